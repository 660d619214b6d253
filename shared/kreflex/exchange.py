"""Requests and answers as HTTP has them, before and after a function thinks about them."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from typing import ClassVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from kreflex.audit import log
from kreflex.errors import BadEventError, KreflexError, TooLargeError, UnavailableError
from kreflex.views import JSON

_LONG = 2000
# One of the largest, and some small ones: a pod has 512 MiB, and to parse a body takes several times its size.
_MOST_HELD = 40 * 2**20
_BODY_SECONDS = 10.0
# How much of a body is thrown away, and for how long, so that its sender reads the answer that came before its end.
_REST_BYTES, _REST_SECONDS = 64 * 2**20, 5.0


def answer_json(body: JSON, status: int = 200) -> Response:
    """Answer with JSON."""
    # In ASCII: half a surrogate pair, which JSON may hold, can't be encoded otherwise.
    return Response(json.dumps(body), status, media_type="application/json")


def problem(status: int, error: KreflexError) -> Response:
    """Answer with what is wrong; a 401 says what would have been right."""
    answer = answer_json({"error": str(error)[:_LONG]}, status)
    if status == 401:
        answer.headers["WWW-Authenticate"] = 'Bearer realm="kreflex"'
    return answer


class Seldom:
    """Logs at most one line a second, with the number of those before it: strangers must not fill the disk."""

    def __init__(self) -> None:
        self._last = 0.0
        self._skipped = 0

    def warn(self, event: str, **about: object) -> None:
        """Log a line, or count it."""
        now = time.monotonic()
        if now - self._last < 1:
            self._skipped += 1
            return
        log.warning(event, **about, others=self._skipped)
        self._last, self._skipped = now, 0


class Body:
    """The body of a request, within a size, a time, and the room that all bodies have together."""

    held: ClassVar[int] = 0
    """How many bytes of bodies this process holds; whoever has parsed one lets it go."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._size = 0
        self.whole = False
        """Whether nothing of it is on its way any more."""

    async def read(self, most: int) -> bytearray:
        """Read it; raises TooLargeError, BadEventError when it does not come, UnavailableError for want of room."""
        body = bytearray()
        try:
            async with asyncio.timeout(_BODY_SECONDS):
                while not self.whole:
                    body += await self._piece()
                    if len(body) > most:
                        raise TooLargeError(f"the body is larger than {most} bytes")
        except TimeoutError as error:
            # Not 408: Knative repeats that.
            raise BadEventError("body", f"was not whole after {_BODY_SECONDS:.0f} seconds") from error
        return body

    def let_go(self) -> None:
        """Give the room back."""
        Body.held -= self._size
        self._size = 0

    async def _piece(self) -> bytes:
        message = await self._receive()
        self.whole = not message.get("more_body", False)
        if message["type"] == "http.disconnect":
            raise BadEventError("body", "ended before it was whole")
        piece: bytes = message.get("body", b"")
        self._size += len(piece)
        Body.held += len(piece)
        if Body.held > _MOST_HELD:
            raise UnavailableError("other large bodies are being read at the moment; come again")
        return piece


class EarlyAnswer(Response):
    """An answer that is sent before the body was read to its end, after which the connection is closed.

    Its sender is given a moment to finish: closing while bytes are on their way resets the connection, and he might
    never see the answer (RFC 9112, section 9.6).
    """

    def __init__(self, answer: Response) -> None:
        super().__init__(answer.body, answer.status_code, dict(answer.headers))
        self.headers["Connection"] = "close"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002 - Starlette's
        """Send the answer, throw the rest of the body away, and end."""
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REST_SECONDS):
                await _discard(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _discard(receive: Receive) -> None:
    left = _REST_BYTES
    while left > 0:
        message = await receive()
        left -= len(message.get("body", b""))
        if not message.get("more_body"):
            return
