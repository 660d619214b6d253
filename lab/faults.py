"""A reverse proxy between a function's process and the API server that kills or stops the process at chosen writes.

The process is met where it is weakest: a write that the API server has not seen yet, or one that it has answered while
the process does not know. What was in the network when the process died or stopped is delivered all the same.
"""

import asyncio
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import aiohttp
from aiohttp import web

from lab.processes import Child, trusting

WRITES = frozenset({"POST", "PUT", "PATCH", "DELETE"})
_LIMIT = 32 * 1024 * 1024
# What belongs to one connection, or is made anew for the next one.
_HOP = frozenset({"host", "connection", "transfer-encoding", "content-length", "accept-encoding", "content-encoding"})
_STEPS = (
    ("record", re.compile(r"^POST /apis/kreflex\.dev/.*/remediations$")),
    ("ledger", re.compile(r"^PUT .*/configmaps/kreflex-ledger$")),
    ("eviction", re.compile(r"^POST .*/eviction$")),
    ("event", re.compile(r"^POST .*/events$")),
)
_STATUS = re.compile(r"^PATCH .*/remediations/[^/]+/status$")


@dataclass(frozen=True)
class Write:
    """A write on its way to the API server; `number` counts the writes of one replica from 1."""

    number: int
    method: str
    path: str
    body: bytes = field(repr=False)

    @property
    def step(self) -> str:
        """Which step of a remediation it is: record, ledger, Open, Acting, eviction, Applied, Done, event; else ""."""
        line = f"{self.method} {self.path}"
        if _STATUS.match(line):
            phase: str = json.loads(self.body)["status"]["phase"]
            return phase
        return next((name for name, pattern in _STEPS if pattern.match(line)), "")

    def concerns(self, name: str) -> bool:
        """Whether it names an object in its path or body."""
        return name in self.path or name.encode() in self.body


@dataclass
class Strike:
    """A blow at the process, at the first write that `chosen` picks.

    Before: the API server never sees the write of a killed process; that of a stopped one arrives when it goes on.
    After: the API server has answered, and the process does not know. Late: the process dies, and its write arrives
    `seconds` after its death. `seconds` is how long a stop lasts, too.
    """

    chosen: Callable[[Write], bool]
    moment: Literal["before", "after", "late"]
    blow: Literal["kill", "stop"] = "kill"
    seconds: float = 0.0
    replica: str = ""
    """Who was struck; "" while nobody was."""
    write: Write | None = None
    over: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when the process is dead, or goes on after its stop."""


def nth(number: int) -> Callable[[Write], bool]:
    """Choose the k-th write of a replica."""
    return lambda write: write.number == number


class FaultProxy:
    """Stands at `url` before an API server for one replica; `victim` tells its process."""

    def __init__(
        self, name: str, upstream: str, authority: Path, victim: Callable[[], Child], plan: list[Strike]
    ) -> None:
        self.name = name
        self.url = ""
        self.writes: list[Write] = []
        self.reads = 0
        self._upstream = upstream
        self._authority = authority
        self._victim = victim
        self._plan = plan
        self._session: aiohttp.ClientSession | None = None
        self._runner: web.AppRunner | None = None
        self._busy = 0

    async def start(self) -> str:
        """Listen on a free port of loopback; the URL."""
        connector = aiohttp.TCPConnector(ssl=trusting(self._authority), limit=0)
        self._session = aiohttp.ClientSession(connector=connector, auto_decompress=True)
        application = web.Application(client_max_size=_LIMIT)
        application.router.add_route("*", "/{path:.*}", self._serve)
        # Handlers are not cancelled when the client is gone: what it sent is on its way.
        self._runner = web.AppRunner(application, access_log=None, handler_cancellation=False, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.url

    async def stop(self) -> None:
        """Stop to listen, once what is on its way has arrived."""
        if self._runner is not None:
            await self._runner.cleanup()
        while self._busy:
            await asyncio.sleep(0.05)
        if self._session is not None:
            await self._session.close()

    async def _serve(self, request: web.Request) -> web.StreamResponse:
        self._busy += 1
        try:
            return await self._hand_on(request, await request.read())
        finally:
            self._busy -= 1

    async def _hand_on(self, request: web.Request, body: bytes) -> web.StreamResponse:
        if request.method not in WRITES:
            self.reads += 1
            return await self._forward(request, body)
        write = Write(len(self.writes) + 1, request.method, request.path, body)
        self.writes.append(write)
        strike = self._take(write)
        if strike is None:
            return await self._forward(request, body)
        if strike.moment == "after":
            answer = await self._forward(request, body)
            await self._deal(strike)
            return answer
        await self._deal(strike)
        if strike.moment == "late":
            await asyncio.sleep(strike.seconds)
        elif strike.blow == "kill":
            # It died before it could send. Nobody reads this answer.
            return web.Response(status=502)
        return await self._forward(request, body)

    def _take(self, write: Write) -> Strike | None:
        for strike in self._plan:
            if not strike.replica and strike.chosen(write):
                strike.replica, strike.write = self.name, write
                return strike
        return None

    async def _deal(self, strike: Strike) -> None:
        process = self._victim()
        if strike.blow == "kill":
            process.kill()
            await process.ended()
        else:
            process.pause()
            await asyncio.sleep(strike.seconds)
            process.resume()
        strike.over.set()

    async def _forward(self, request: web.Request, body: bytes) -> web.Response:
        assert self._session is not None, "the proxy has not been started"
        headers = {key: value for key, value in request.headers.items() if key.lower() not in _HOP}
        try:
            async with self._session.request(
                request.method, self._upstream + request.path_qs, data=body or None, headers=headers
            ) as answer:
                content = await answer.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            return web.Response(status=503, text=f"the API server does not answer: {error!r}")
        kept = {key: value for key, value in answer.headers.items() if key.lower() not in _HOP}
        return web.Response(body=content, status=answer.status, headers=kept)
