"""The server: OpenAI's API of completions over HTTP, and what protects it.

    GET  /v1/models           the one model
    POST /v1/completions      whole, or as server-sent events that end in [DONE]
    GET  /health  /metrics    whether it writes; Prometheus' figures
    GET  /  /runs             the pages (pages.py)

Limits: 1 MiB of body, some seconds for the headers and as many for the body, a queue.
"""

import asyncio
import hmac
import json
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsuzuri.apps import web
from tsuzuri.apps.serve import completions, pages
from tsuzuri.apps.serve.completions import Answer, Refused, Request
from tsuzuri.apps.serve.engine import Busy, Engine, News
from tsuzuri.apps.serve.metrics import Metrics
from tsuzuri.errors import RunError, UserError
from tsuzuri.generate import Score
from tsuzuri.language_model import LanguageModel

if TYPE_CHECKING:
    from starlette.applications import Starlette
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response

MOST_BYTES = 1 << 20  # of a body
SECONDS = 10  # for the headers of a request, and again for its body
_MOST_TEXTS = 64  # of one request
_DRAIN = 60  # seconds that texts have to end in after SIGTERM
_OPEN = ("/", "/runs", "/health")  # need no token: they tell nothing


def serve(
    model: LanguageModel,
    host: str,
    port: int,
    say: Callable[[str], None],
    **options: Any,
) -> None:
    """Serves until Ctrl-C or SIGTERM, after which the texts that are being written are ended.

    Args:
      port: 0 for any that is free.
      **options: of `app`.

    Raises:
      UserError: the port is in use or not allowed; an address that others can reach, without a
        token; the packages are not installed.
      RunError: the model cannot be made to write.
    """
    try:
        import uvicorn

        from tsuzuri.apps.serve.connection import Connection
    except ImportError as error:
        raise UserError("a server needs more packages: pip install 'tsuzuri[serve]'") from error
    if not web.is_local(host) and not options.get("token"):
        raise UserError(
            f"{host} can be reached by others: set TSUZURI_TOKEN to a secret that they must give"
        )
    with web.listen(host, port) as listening:
        where = web.address(listening, host)

        def ready() -> None:
            say(f"{where} is the playground, {where}/runs the runs, {where}/v1 the API; "
                "Ctrl-C ends it")  # fmt: skip

        say("compiling what writes: seconds, the first time a minute or more")
        try:
            served = app(model, host=host, ready=ready, **options)
        except UserError:
            raise
        except Exception as error:  # out of memory, for one
            said = str(error).partition("\n")[0]
            raise RunError(
                f"this model cannot be served ({said}); try fewer --rows or a --context-length"
            ) from error
        config = uvicorn.Config(
            served,
            http=partial(Connection, SECONDS),  # type: ignore[arg-type]
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=_DRAIN,
        )
        web.run(config, listening)


def app(
    model: LanguageModel,
    name: str = "",
    *,
    runs: Path | None = None,
    host: str = "127.0.0.1",
    token: str = "",
    cors: Sequence[str] = (),
    rows: int = 16,
    queue: int = 64,
    context: int = 0,
    ready: Callable[[], None] = lambda: None,
) -> "Starlette":
    """All that is served; what writes is compiled here, where Ctrl-C still ends it.

    Args:
      name: what the model is called; its run folder's name by default.
      runs: the folder whose runs are shown; by default the one that the model's lies in.
      host: where it is served.
      token: what a caller must give; none needs one where it is empty.
      cors: the origins of other pages that may call it.
      rows: texts that are written at the same time; `queue`: those that wait beside them.
      context: the most tokens of a prompt and its continuation; by default the model's, or 4096.
      ready: called when it is served.
    """
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.middleware import Middleware
    from starlette.middleware.cors import CORSMiddleware
    from starlette.responses import JSONResponse, PlainTextResponse
    from starlette.routing import Route

    name = name or model.run.resolve().name
    context = min(context or 4096, model.model_config.context_length)
    engine = Engine(model, rows, queue, context)
    engine.compile()
    metrics = Metrics(engine)

    async def models(request: "HttpRequest") -> "Response":
        served = {"id": name, "object": "model", "created": 0, "owned_by": "tsuzuri"}
        served |= {"context_length": context, "vocab_size": model.tokenizer.vocab_size}
        if "name" not in request.path_params:
            return JSONResponse({"object": "list", "data": [served]})
        if request.path_params["name"] != name:
            return _refusal(Refused(404, f"this server has '{name}'", "model", "model_not_found"))
        return JSONResponse(served)

    async def health(request: "HttpRequest") -> JSONResponse:
        return JSONResponse(
            {"status": "ok" if engine.alive else "ended"}, 200 if engine.alive else 503
        )

    async def figures(request: "HttpRequest") -> PlainTextResponse:
        return PlainTextResponse(metrics.text(), media_type=metrics.media_type)

    scoring = 0  # requests whose prompts are scored, or wait for it

    async def scores(prompts: list[list[int]]) -> list[list[Score]]:
        nonlocal scoring
        if scoring > queue:
            raise Busy(1)
        scoring += 1
        try:
            start = model.tokenizer.begin_of_text
            return [await asyncio.to_thread(engine.scores, [start, *ids]) for ids in prompts]
        finally:
            scoring -= 1

    async def complete(http: "HttpRequest") -> "Response":
        body = await _body(http)
        most = min(_MOST_TEXTS, rows + queue)  # more could never be taken
        request = completions.read(body, name, model.tokenizer, context, most)
        wanted = request.echo and request.logprobs is not None
        scored = await scores(request.prompts) if wanted else []
        answer = Answer(request, name, model.tokenizer, scored)
        job = _Job(request, answer, engine, model, metrics)  # refused here, if there is no room
        return await job.stream() if request.stream else await job.whole(http)

    @asynccontextmanager
    async def running(_: Any) -> AsyncIterator[None]:
        engine.start()
        ready()
        try:
            yield
        except asyncio.CancelledError:  # by a second Ctrl-C
            engine.close(at_once=True)
            return
        await asyncio.to_thread(engine.close)

    handlers = dict.fromkeys((Refused, Busy, HTTPException, 500), _refuse)
    shown = runs or model.run.resolve().parent
    routes = [
        Route("/v1/models", models),
        Route("/v1/models/{name:path}", models),
        Route("/v1/completions", complete, methods=["POST"]),
        Route("/health", health),
        Route("/metrics", figures),
        *pages.routes(name, shown),
    ]
    guards = [Middleware(_Guard, host=host, token=token, cors=cors, metrics=metrics)]
    if cors:
        methods, headers = ["GET", "POST"], ["Authorization", "Content-Type"]
        allow = partial(Middleware, CORSMiddleware, allow_methods=methods, allow_headers=headers)
        guards.insert(0, allow(allow_origins=cors))
    return Starlette(
        routes=routes, middleware=guards, lifespan=running, exception_handlers=handlers
    )


class _Job:
    """A request whose texts are with the engine, until its answer is sent or nobody waits.

    Raises:
      Busy: there is no room for it.
    """

    def __init__(
        self,
        request: Request,
        answer: Answer,
        engine: Engine,
        model: LanguageModel,
        metrics: Metrics,
    ):
        self._request, self._answer = request, answer
        self._engine, self._metrics = engine, metrics
        self._news: asyncio.Queue[list[News]] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def tell(news: list[News]) -> None:  # in the engine's thread
            with suppress(RuntimeError):  # the server has ended meanwhile
                loop.call_soon_threadsafe(self._news.put_nowait, news)

        self._texts = completions.texts(request, model.tokenizer) if request.max_tokens else []
        self._engine.submit(self._texts, tell)
        self._metrics.prompt_tokens.inc(answer.usage()["prompt_tokens"])

    async def stream(self) -> "Response":
        from starlette.responses import StreamingResponse

        return StreamingResponse(
            self._events(), media_type="text/event-stream", headers={"Cache-Control": "no-store"}
        )

    async def whole(self, http: "HttpRequest") -> "Response":
        from starlette.responses import JSONResponse, Response

        async def written() -> None:
            async for _ in self._pieces():
                pass

        async def gone() -> None:
            while (await http.receive())["type"] != "http.disconnect":
                pass

        waited_for = asyncio.create_task(written()), asyncio.create_task(gone())
        try:
            await asyncio.wait(waited_for, return_when=asyncio.FIRST_COMPLETED)
            if not waited_for[0].done():
                return Response(status_code=499)  # nobody reads it
            waited_for[0].result()
            return JSONResponse(self._answer.whole())
        finally:
            for task in waited_for:
                task.cancel()

    async def _events(self) -> AsyncIterator[str]:
        try:
            async for piece in self._pieces():
                yield _event(piece)
        except Refused as error:
            yield _event(error.body)
            return
        if self._request.usage_in_stream:
            yield _event(self._answer.last())
        yield "data: [DONE]\n\n"

    async def _pieces(self) -> AsyncIterator[dict[str, Any]]:
        """The pieces of the answer as the engine writes them; if it is left, nothing more is."""
        answer, began = self._answer, time.monotonic()
        told = False
        try:
            news = [] if self._texts else answer.nothing()
            while True:
                if any(word.finish == "failed" for word in news):
                    raise Refused(500, "the model has failed; the server's log says why")
                before = answer.completion_tokens
                for piece in answer.pieces(news):
                    yield piece
                self._metrics.completion_tokens.inc(answer.completion_tokens - before)
                if answer.completion_tokens and not told:
                    told = True
                    self._metrics.first_token.observe(time.monotonic() - began)
                if answer.ended:
                    return
                news = await self._news.get()
        finally:
            self._engine.cancel(self._texts)


def _event(content: dict[str, Any]) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def _body(http: "HttpRequest") -> bytes:
    """The body of a request.

    Raises:
      Refused: it is too long, or does not come.
    """
    from starlette.requests import ClientDisconnect

    close = {"Connection": "close"}  # what is left of it is not read
    too_long = Refused(413, f"a body has at most {MOST_BYTES} bytes", headers=close)
    length = http.headers.get("content-length", "")
    if length.isdecimal() and int(length) > MOST_BYTES:
        raise too_long
    body = bytearray()
    try:
        async with asyncio.timeout(SECONDS):
            async for chunk in http.stream():
                body += chunk
                if len(body) > MOST_BYTES:
                    raise too_long
    except TimeoutError:
        raise Refused(408, f"the body did not come within {SECONDS} s", headers=close) from None
    except ClientDisconnect:
        raise Refused(400, "the body broke off", headers=close) from None  # nobody reads it
    return bytes(body)


class _Guard:
    """Who may call, and the count of what they were answered."""

    def __init__(self, app: Any, host: str, token: str, cors: Sequence[str], metrics: Metrics):
        self._app, self._host, self._metrics = app, host, metrics
        self._token, self._cors = token.encode(), cors

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def counted(message: Any) -> None:
            if message["type"] == "http.response.start" and scope["path"].startswith("/v1/"):
                self._metrics.requests.labels(message["status"]).inc()
            await send(message)

        refused = self._refused(scope)
        await (_refusal(refused) if refused else self._app)(scope, receive, counted)

    def _refused(self, scope: Any) -> Refused | None:
        headers = {key.decode("latin-1"): value for key, value in scope["headers"]}
        if self._token:
            kind, _, given = headers.get("authorization", b"").partition(b" ")
            right = hmac.compare_digest(given.strip(), self._token) and kind.lower() == b"bearer"
            if scope["path"] not in _OPEN and not right:
                said = "this server wants its token: Authorization: Bearer TOKEN"
                return Refused(401, said, code="invalid_api_key",
                               headers={"WWW-Authenticate": "Bearer"})  # fmt: skip
            return None
        called, origin = (headers.get(key, b"").decode("latin-1") for key in ("host", "origin"))
        if not web.called_by_name(called, self._host):
            return Refused(403, f"this server is not called '{called[:100]}'")
        if origin and origin not in self._cors and not web.from_here(origin, called):
            return Refused(403, f"pages of {origin[:100]} may not call; start it with --cors")
        return None


def _refusal(refused: Refused) -> "Response":
    from starlette.responses import Response

    # As ASCII: half a surrogate pair in what was asked is no reason to fail.
    text = json.dumps(refused.body)
    return Response(text, refused.status, refused.headers, "application/json")


def _refuse(request: "HttpRequest", error: Exception) -> "Response":
    if isinstance(error, Busy):
        wait = {"Retry-After": str(error.seconds)}
        return _refusal(Refused(429, str(error), code="busy", headers=wait))
    if isinstance(error, Refused):
        return _refusal(error)
    status = getattr(error, "status_code", 500)
    said = {
        404: f"there is no {request.url.path[:200]} here",
        405: f"{request.method} is not for {request.url.path[:200]}",
        500: "the server has failed; its log says why",
    }
    return _refusal(Refused(status, said.get(status, str(error)),
                            headers=getattr(error, "headers", None)))  # fmt: skip
