"""Bodies that are too large, too many or too late for memory, and answers that come before their end."""

import asyncio
from collections.abc import Iterable
from typing import Any

import pytest
from starlette.responses import Response

from kreflex.errors import BadEventError, TooLargeError, UnavailableError
from kreflex.exchange import Body, EarlyAnswer

MIB = 2**20


class Sender:
    """Sends a body in pieces, and keeps what it is answered; `gone` hangs up instead of sending the end."""

    def __init__(self, pieces: Iterable[bytes], *, gone: bool = False) -> None:
        self.pieces = list(pieces)
        self.gone = gone
        self.got: list[dict[str, Any]] = []

    async def receive(self) -> dict[str, Any]:
        if not self.pieces:
            return {"type": "http.disconnect"}
        piece = self.pieces.pop(0)
        return {"type": "http.request", "body": piece, "more_body": bool(self.pieces) or self.gone}

    async def send(self, message: Any) -> None:
        self.got.append(message)


async def test_a_body_is_whole_at_its_end() -> None:
    body = Body(Sender([b"ab", b"c"]).receive)
    assert (await body.read(3), body.whole) == (bytearray(b"abc"), True)
    body.let_go()
    assert Body.held == 0


async def test_a_body_over_the_limit_is_not_read_further() -> None:
    sender = Sender([b"ab", b"cd", b"ef"])
    body = Body(sender.receive)
    with pytest.raises(TooLargeError, match="larger than 3 bytes"):
        await body.read(3)
    assert (sender.pieces, body.whole) == ([b"ef"], False)
    body.let_go()


async def test_who_hangs_up_has_sent_nothing() -> None:
    body = Body(Sender([b"ab"], gone=True).receive)
    with pytest.raises(BadEventError, match="body: ended before it was whole"):
        await body.read(3)
    body.let_go()


async def test_all_bodies_together_have_a_limit_and_who_finds_no_room_comes_again() -> None:
    bodies = [Body(Sender([b"x" * MIB] * 30).receive) for _ in range(2)]
    assert len(await bodies[0].read(32 * MIB)) == 30 * MIB
    with pytest.raises(UnavailableError, match="come again"):
        await bodies[1].read(32 * MIB)
    for one in bodies:
        one.let_go()
    assert Body.held == 0
    again = Body(Sender([b"x" * MIB] * 30).receive)
    assert len(await again.read(32 * MIB)) == 30 * MIB
    again.let_go()


async def test_an_early_answer_is_whole_before_the_rest_is_thrown_away() -> None:
    sender = Sender([b"ab", b"cd"])
    answered: list[int] = []

    async def receive() -> dict[str, Any]:
        answered.append(len(sender.got))
        return await sender.receive()

    await EarlyAnswer(Response(b"no", 401, {"WWW-Authenticate": "Bearer"}))({"type": "http"}, receive, sender.send)
    start, text, end = sender.got
    headers = {name.decode(): value.decode() for name, value in start["headers"]}
    assert (start["status"], headers["connection"], headers["www-authenticate"]) == (401, "close", "Bearer")
    assert (text["body"], text["more_body"], end["body"], end["more_body"]) == (b"no", True, b"", False)
    assert headers["content-length"] == "2"
    assert (sender.pieces, answered) == ([], [2, 2])


async def test_an_early_answer_does_not_read_for_ever() -> None:
    async def receive() -> dict[str, Any]:
        await asyncio.sleep(0)
        return {"type": "http.request", "body": b"x" * MIB, "more_body": True}

    sender = Sender([])
    await EarlyAnswer(Response(b"no", 401))({"type": "http"}, receive, sender.send)
    assert sender.got[-1] == {"type": "http.response.body", "body": b"", "more_body": False}
