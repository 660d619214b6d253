"""Heads of requests that are too long. What a process does at its end is tested in tests/cluster/test_serving.py."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import uvicorn
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send
from uvicorn.server import ServerState

from kreflex.server import Impatient

LINE = b"X-A: " + b"a" * 8000 + b"\r\n"


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Reads the whole body, and answers 200."""
    await Request(scope, receive).body()
    await Response("ok")(scope, receive, send)


@pytest.fixture
async def port() -> AsyncIterator[int]:
    """Where a server listens."""
    config = uvicorn.Config(app, lifespan="off", log_config=None)
    config.load()
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Impatient(config, ServerState(), {}), "127.0.0.1", 0)
    async with server:
        yield server.sockets[0].getsockname()[1]


async def answered(port: int, head: bytes, body: bytes = b"") -> bytes:
    """What a connection brings until it is closed, which it may be before all has been sent."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n" + head + body)
        return await asyncio.wait_for(reader.read(), 60)
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def test_a_head_that_is_too_long_is_given_up(port: int) -> None:
    assert await answered(port, LINE * 1000 + b"Content-Length: 0\r\n\r\n") == b""


async def test_a_long_head_and_a_body_longer_than_any_head_are_answered(port: int) -> None:
    body = b"x" * 4 * 2**20
    head = LINE * 60 + b"Content-Length: %d\r\n\r\n" % len(body)
    assert (await answered(port, head, body)).startswith(b"HTTP/1.1 200 ")
