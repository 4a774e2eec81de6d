"""Connections of clients: how many there are at a time, and how long one may keep the server waiting for a request.

A connection that has not said a whole request yet is silent.  Silent connections are closed after a while, and the one
that is silent longest gives way to a new one where there are too many, so that nobody can take all places by opening
connections and saying nothing.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from genjax.serving.answers import as_json
from genjax.serving.bodies import RequestError

#: Connections at a time, below the 1024 files that a process may have open by default.
MOST_CONNECTIONS = 768
#: Seconds in which the head of a request must have come.
HEAD_SECONDS = 30.0


class Connection(H11Protocol):
    """A connection of a client.

    Attributes:
      silent_since: when the server began to wait for the head of a request; None while there is one.
    """

    silent_since: float | None = None
    _patience: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        """Takes the place of a silent connection where there are too many."""
        super().connection_made(transport)
        self._wait()
        if len(self.connections) > MOST_CONNECTIONS:
            silent = [each for each in self.connections if each is not self and each.silent_since is not None]
            min(silent, key=lambda each: each.silent_since, default=self).refuse(
                RequestError("there are too many open connections; ask again later", 503, code="overloaded")
            )

    def data_received(self, data: bytes) -> None:
        """Reads more of a request."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_waiting()
        elif self.silent_since is None:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forgets the connection."""
        self._stop_waiting()
        super().connection_lost(exc)

    def refuse(self, error: RequestError) -> None:
        """Says why, and closes the connection."""
        self._stop_waiting()
        body = as_json(error.as_json())
        head = f"HTTP/1.1 {error.status} \r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        self.transport.write(f"{head}retry-after: 1\r\nconnection: close\r\n\r\n".encode() + body)
        self.connections.discard(self)
        self.transport.close()

    def _wait(self) -> None:
        self.silent_since = time.monotonic()
        error = RequestError(f"no request came within {HEAD_SECONDS:g} seconds", 408)
        self._patience = self.loop.call_later(HEAD_SECONDS, self.refuse, error)

    def _stop_waiting(self) -> None:
        self.silent_since = None
        if self._patience is not None:
            self._patience.cancel()
            self._patience = None
