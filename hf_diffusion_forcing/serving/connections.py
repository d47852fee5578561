"""Connections that ask for nothing."""

from __future__ import annotations

import asyncio

from ..compat.serving import H11Protocol

HEAD_TIMEOUT = 30.0
"""Seconds a new connection has to send the head of its first request."""


class PatientProtocol(H11Protocol):
    """uvicorn's HTTP connection, which is closed if no request arrives in time."""

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._deadline = self.loop.call_later(HEAD_TIMEOUT, self._close_if_silent)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def _close_if_silent(self) -> None:
        if self.cycle is None:
            self.transport.close()
