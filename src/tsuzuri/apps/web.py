"""What every page and API of this program shares: where it listens, and who may call it.

A server on one's own machine can be called by any page that the browser shows. So without a token
a call must be made to a number, localhost or this host's name, since other names can be made to
point here (DNS rebinding), and from a page of that same address.
"""

import asyncio
import errno
import ipaddress
import logging
import signal
import socket
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from tsuzuri.errors import UserError

if TYPE_CHECKING:
    import uvicorn

# Of the pages: nothing is loaded from anywhere, and no other page may show one inside itself.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; "
    "script-src 'unsafe-inline'; img-src data:; connect-src 'self'; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


def listen(host: str, port: int) -> socket.socket:
    """A socket that listens; port 0 takes any that is free.

    Raises:
      UserError: the port is in use or not allowed, the host is none of this machine.
    """
    if not 0 <= port < 65536:
        raise UserError(f"there is no port {port}; give one below 65536 with --port")
    try:
        family, *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise UserError(
                f"port {port} of {host} is in use; give another one with --port"
            ) from error
        raise UserError(
            f"cannot listen at {host}, port {port} ({error.strerror}); give others with --host "
            "and --port"
        ) from error


def address(listening: socket.socket, host: str) -> str:
    """What to type into a browser."""
    port = listening.getsockname()[1]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def run(config: "uvicorn.Config", listening: socket.socket) -> None:
    """Serves until Ctrl-C or SIGTERM; what is being answered then is ended first.

    A second Ctrl-C, and the end of `config.timeout_graceful_shutdown`, cut off what is left.
    """
    import uvicorn

    logging.getLogger("uvicorn.error").addFilter(_is_failure)
    # uvicorn has the handlers that were there before its own called when it has ended.
    before = {s: signal.signal(s, lambda *_: None) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        uvicorn.Server(config).run(sockets=[listening])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _is_failure(record: logging.LogRecord) -> bool:
    """What is cut off at the end is none: it needs no traceback for each request."""
    return not (record.exc_info and isinstance(record.exc_info[1], asyncio.CancelledError))


def is_local(host: str) -> bool:
    """Whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def called_by_name(called: str, host: str) -> bool:
    """Whether a Host header is a number, localhost or a name of this host.

    Args:
      host: where the server listens.
    """
    try:
        name = urlsplit("//" + called).hostname or ""
    except ValueError:
        return False
    try:
        ipaddress.ip_address(name)
        return True
    except ValueError:
        return name in ("localhost", host.lower(), socket.gethostname().lower())


def from_here(origin: str, called: str) -> bool:
    """Whether an Origin header is of the address that was called."""
    return bool(called) and origin.partition("://")[2] == called
