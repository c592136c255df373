"""uvicorn's HTTP connection, with a time limit for the headers of a request.

uvicorn ends a connection that is idle between two requests, but not one that sends its headers a
byte at a time (Slowloris), nor one that was answered early and goes on with its body: those are
ended here.
"""

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol


class Connection(H11Protocol):
    def __init__(self, seconds: float, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self._seconds = seconds
        self._too_late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._watch()

    def handle_events(self) -> None:
        super().handle_events()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._too_late:
            self._too_late.cancel()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """Starts the clock where nothing is to be answered, stops it where headers have come."""
        waits = self.conn.our_state in (h11.IDLE, h11.DONE)
        if waits and not self._too_late:
            self._too_late = self.loop.call_later(self._seconds, self._end)
        elif not waits and self._too_late:
            self._too_late.cancel()
            self._too_late = None

    def _end(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n\r\n")
            self.transport.close()
