"""One connection: how many there may be, how much of a request is held, and for how long anybody is waited for."""

from __future__ import annotations

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

CLIENTS = 400
"""connections at a time; the next ones are told to come again"""
ARRIVING = 20.0
"""seconds that a request has to be here whole, from its first byte (or from the connection's start)"""
ANSWERING = 120.0
"""seconds in which its answer must be made, and taken"""
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: text/plain\r\nContent-Length: 28\r\n"
    b"Retry-After: 5\r\nConnection: close\r\n\r\ntoo many clients are talking"
)


class Line(H11Protocol):
    """A connection that ends by itself: a client that sends or reads too slowly, or not at all, keeps no place."""

    _clock: asyncio.TimerHandle | None = None
    _clocked: object = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client is there."""
        super().connection_made(transport)
        if len(self.connections) > CLIENTS:
            transport.write(FULL)
            transport.close()
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone."""
        if self._clock is not None:
            self._clock.cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Some of a request, of several, or of none."""
        super().data_received(data)
        self._watch()

    def on_response_complete(self) -> None:
        """The answer is written, as far as this side can tell."""
        super().on_response_complete()
        self._watch()

    def timeout_keep_alive_handler(self) -> None:
        """It has been idle for long enough."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()  # It was not idle: it does not read.
        else:
            super().timeout_keep_alive_handler()

    def _watch(self) -> None:
        """Start the clock when a request begins to arrive, and again when it is here; stop it in between."""
        whole = self.conn.their_state in (h11.DONE, h11.MUST_CLOSE)
        idle = self.timeout_keep_alive_task is not None
        seconds = None if idle else ANSWERING if whole else ARRIVING
        # Every further byte of the same request leaves the clock as it is.
        if self._clocked == (clocked := (self.cycle, seconds)):
            return
        self._clocked = clocked
        if self._clock is not None:
            self._clock.cancel()
        self._clock = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
