"""The HTTP server of a function: patient with what has begun, impatient with who connects and says nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from datetime import timedelta
from types import FrameType
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from kreflex.audit import log
from kreflex.readiness import LIFETIME

# Less than the 30 seconds after which a kubelet kills, more than the 25 that one request may take.
_END_SECONDS = 28
_HEAD_SECONDS = 10.0
# Knative's and Go's own servers take 1 MiB. What comes with the head's end may be 256 KiB of the body.
_MOST_HEAD = 2**20
# Open connections, the idle ones too. Beyond that the answer is 503, which Knative and Alertmanager repeat.
_MOST_CONNECTIONS = 1000


class Impatient(HttpToolsProtocol):
    """Closes a connection whose request has no whole head after 10 seconds, or 1 MiB; uvicorn bounds neither."""

    _waiting: asyncio.TimerHandle | None = None
    _head = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to wait."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Count what comes before the head is whole: it is held in memory, and nobody has been asked who he is."""
        if self._waiting is not None:
            self._head += len(data)
            if self._head > _MOST_HEAD:
                self.transport.close()
                return
        super().data_received(data)

    def on_message_begin(self) -> None:
        """Begin to wait: a later request on the same connection."""
        super().on_message_begin()
        self._wait()

    def on_headers_complete(self) -> None:
        """End to wait."""
        self._stop()
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """End to wait."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._waiting is None:
            self._waiting = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

    def _stop(self) -> None:
        self._head = 0
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None


class Server(uvicorn.Server):
    """Ends softly: not ready at once, no new request after a grace, an answer to each that has begun, exit code 0.

    The grace is for those who have not heard yet that this pod ends. A second signal ends the process on the spot.
    """

    def __init__(self, app: Any, host: str, port: int, grace: timedelta) -> None:
        self._grace = grace.total_seconds()
        self._ends_at: float | None = None
        config = uvicorn.Config(
            app,
            host=host,
            port=port,
            http=Impatient,
            ws="none",
            lifespan="off",
            log_level="warning",
            access_log=False,
            limit_concurrency=_MOST_CONNECTIONS,
            timeout_graceful_shutdown=max(1, _END_SECONDS - round(self._grace)),
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - see uvicorn
        """Begin to end; the second time, end."""
        if LIFETIME.ending:
            signal.signal(sig, signal.SIG_DFL)
            os.kill(os.getpid(), sig)
        LIFETIME.ending = True
        # A person at a keyboard has no endpoints that lag behind.
        self._ends_at = time.monotonic() + (0 if sig == signal.SIGINT else self._grace)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Answer what has begun, then close what it needed."""
        await super().shutdown(sockets)
        for close in LIFETIME.closers:
            await close()

    async def on_tick(self, counter: int) -> bool:
        """Tell whether to stop accepting; asked ten times a second."""
        if self._ends_at is not None and not self.should_exit and time.monotonic() >= self._ends_at:
            log.info("process.ending", requests=len(self.server_state.tasks))
            self.should_exit = True
        return await super().on_tick(counter)
