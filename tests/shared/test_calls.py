"""The waker's calls: who it says it is."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kreflex import calls
from kreflex.errors import UnavailableError


class Function:
    """A function that notes what it is shown."""

    def __init__(self) -> None:
        self.url = ""
        self.shown: list[str | None] = []
        self.status = 204

    async def answer(self, request: web.Request) -> web.Response:
        self.shown.append(request.headers.get("Authorization"))
        return web.Response(status=self.status, text="the header Authorization is missing")


@pytest.fixture
async def function() -> AsyncIterator[Function]:
    made = Function()
    application = web.Application()
    application.router.add_post("/", made.answer)
    async with TestServer(application) as server:
        made.url = str(server.make_url("/"))
        yield made


async def test_shows_the_token_that_is_in_the_file_now(function: Function, tmp_path: Path) -> None:
    file = tmp_path / "token"
    for token in ("today", "tomorrow"):
        file.write_text(f"{token}\n")
        await calls.post(function.url, {}, b"", str(file))
    assert function.shown == ["Bearer today", "Bearer tomorrow"]


async def test_shows_none_if_it_has_none(function: Function) -> None:
    await calls.post(function.url, {}, b"")
    assert function.shown == [None]


async def test_calls_nobody_with_a_token_that_can_not_be_read(function: Function, tmp_path: Path) -> None:
    with pytest.raises(UnavailableError, match=r"the token for functions can't be read, see TOKEN_FILE"):
        await calls.post(function.url, {}, b"", str(tmp_path / "token"))
    assert function.shown == []


async def test_passes_on_why_it_is_not_let_in(function: Function) -> None:
    function.status = 401
    with pytest.raises(UnavailableError, match="answered 401: the header Authorization is missing"):
        await calls.post(function.url, {}, b"")
