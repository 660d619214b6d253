"""The far end of a sender: a server that notes what it is sent, and answers as it is told."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from lab.ports import Ports


@dataclass(frozen=True)
class Taken:
    """One request, as it came."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    def header(self, name: str) -> str:
        """A header's value, however its name is written; "" if there is none."""
        return next((value for key, value in self.headers.items() if key.lower() == name), "")


Answer = int | Callable[[Taken], Awaitable[web.Response]]
HANG = 0
"""The answer that never comes."""


@dataclass
class Recorder:
    """Answers 200 on every path, unless told otherwise."""

    url: str
    taken: list[Taken] = field(default_factory=list)
    _answers: dict[str, list[Answer]] = field(default_factory=dict)
    _over: asyncio.Event = field(default_factory=asyncio.Event)
    _runner: web.AppRunner | None = None

    def script(self, path: str, *answers: Answer) -> str:
        """Give these answers there one after the other, and the last one for ever; the URL."""
        self._answers[path] = list(answers)
        return self.url + path

    def at(self, path: str) -> list[Taken]:
        """Tell what was sent there, oldest first."""
        return [one for one in self.taken if one.path == path]

    def count(self, path: str) -> int:
        return len(self.at(path))

    async def listen(self) -> None:
        """Begin to answer; until then connections are refused."""
        application = web.Application(client_max_size=64 * 2**20)
        application.router.add_route("*", "/{path:.*}", self._take)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1)
        await self._runner.setup()
        port = int(self.url.rpartition(":")[2])
        await web.TCPSite(self._runner, "127.0.0.1", port, reuse_address=True).start()

    async def stop(self) -> None:
        self._over.set()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _take(self, request: web.Request) -> web.StreamResponse:
        taken = Taken(request.path, dict(request.headers), await request.read())
        answers = self._answers.get(taken.path, [200])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        self.taken.append(taken)
        if answer == HANG:
            await self._over.wait()
            return web.Response(status=500)
        return web.Response(status=answer) if isinstance(answer, int) else await answer(taken)


@asynccontextmanager
async def recorder(*, listening: bool = True) -> AsyncIterator[Recorder]:
    """Run a recorder on a port of its own, or hold one on which nobody listens yet."""
    with Ports() as ports:
        made = Recorder(f"http://127.0.0.1:{ports.take()}")
        if listening:
            await made.listen()
        try:
            yield made
        finally:
            await made.stop()
