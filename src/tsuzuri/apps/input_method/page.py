"""The same as a page: a web socket and a session for each that is open, and nothing shared.

The page sends the keys as text. The server answers each message with what has changed, as JSON:

    kept, pieces             so many pieces of the text stand, and these follow them
    gap, pending, candidates what is at the caret and below it
    note, spelling           one line about the last key; whether a word is spelled in full
    keys, characters, saved  the counters

and, while it works at many keys, tells {"working": share done}.
"""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsuzuri.apps import web
from tsuzuri.apps.input_method.composer import Composer
from tsuzuri.apps.input_method.engine import InputMethod
from tsuzuri.errors import UserError

if TYPE_CHECKING:
    import uvicorn
    from starlette.applications import Starlette
    from starlette.websockets import WebSocket

MOST_BYTES = 64 * 1024  # of one message
_SLICE = 0.005  # seconds of one page's keys, before it is the other pages' turn
_TELL = 0.2  # seconds between two words about what is still worked at


def serve(method: InputMethod, host: str, port: int, say: Callable[[str], None]) -> None:
    """Serves the page until Ctrl-C or SIGTERM.

    Args:
      port: 0 for any that is free.

    Raises:
      UserError: the port is in use or not allowed, the host is none of this machine; the packages
        are not installed.
    """
    try:
        served = config(method, host)
    except ImportError as error:
        raise UserError("the page needs more packages: pip install 'tsuzuri[serve]'") from error
    method.session().candidates("th")  # what is compiled is compiled before the first key
    with web.listen(host, port) as listening:
        say(f"{web.address(listening, host)} is the page; Ctrl-C ends it")
        web.run(served, listening)


def config(method: InputMethod, host: str) -> "uvicorn.Config":
    """How the page is served."""
    import uvicorn

    return uvicorn.Config(
        app(method, host),
        log_level="warning",
        access_log=False,
        ws="websockets-sansio",
        ws_per_message_deflate=False,  # it costs more time than it saves
        ws_max_size=16 * MOST_BYTES,  # more than that ends the connection
        timeout_graceful_shutdown=2,
    )


def app(method: InputMethod, host: str) -> "Starlette":
    """The page at /, its web socket at /keys.

    Args:
      host: where it is served; the name by which pages may call it, beside localhost and numbers.
    """
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocketDisconnect

    html = Path(__file__).with_name("page.html").read_text(encoding="utf-8")

    async def page(request: Any) -> HTMLResponse:
        return HTMLResponse(html, headers=web.HEADERS)

    async def keys(websocket: "WebSocket") -> None:
        origin, called = (websocket.headers.get(key, "") for key in ("origin", "host"))
        if not (web.called_by_name(called, host) and web.from_here(origin, called)):
            await websocket.close()  # 403
            return
        await websocket.accept()
        composer = Composer(method.session())
        try:
            while True:
                await _type(composer, await websocket.receive_text(), websocket)
        except WebSocketDisconnect:
            pass
        except KeyError:  # a message that is no text
            await websocket.close(1003)

    return Starlette(routes=[Route("/", page), WebSocketRoute("/keys", keys)])


async def _type(composer: Composer, keys: str, websocket: "WebSocket") -> None:
    """All the keys of a message, in slices, and one answer."""
    if len(keys.encode("utf-8", "replace")) > MOST_BYTES:
        composer.note = f"more than {MOST_BYTES // 1024} KiB at once are refused; paste it in parts"
        keys = ""
    began = told = time.perf_counter()
    for at, key in enumerate(keys):
        composer.key(key)
        now = time.perf_counter()
        if now - told > _TELL:  # sending fails where the page is gone: its work ends here
            told = began = now
            await websocket.send_json({"working": at / len(keys)})
        elif now - began > _SLICE:
            await asyncio.sleep(0)
            began = time.perf_counter()
    kept, pieces = composer.changes()
    await websocket.send_json(
        {
            "kept": kept,
            "pieces": pieces,
            "gap": composer.gap if composer.pending else "",
            "pending": composer.pending,
            "candidates": composer.candidates,
            "note": composer.note,
            "spelling": composer.spelled is not None,
            "keys": composer.keys,
            "characters": composer.characters,
            "saved": composer.keys_saved,
        }
    )
