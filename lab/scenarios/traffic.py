"""A client that asks the workload 50 times a second, and counts what fails.

The lab's pods have no network, so a stand-in answers for the Service: it takes the next Ready address of the
EndpointSlices in turn, as kube-proxy would, and fails when the container behind it does not run at this moment.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from lab.scenarios.place import Json, Place

PER_SECOND = 50
_LOOK_SECONDS = 0.05


@dataclass
class Count:
    """How many requests were sent, and how many failed."""

    sent: int = 0
    failed: int = 0
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def __str__(self) -> str:
        share = self.failed / self.sent if self.sent else 0.0
        return f"{self.sent} requests at {PER_SECOND} a second, {self.failed} failed ({share:.1%})"


class StandIn:
    """Answers for a Service from its EndpointSlices and the state of the containers behind them."""

    def __init__(self, place: Place, service: str) -> None:
        self._place = place
        self._service = service
        self._addresses: list[str] = []
        self._turn = itertools.count()

    async def follow(self) -> None:
        """Keep the addresses up to date."""
        path = self._place.path("endpointslices", "/apis/discovery.k8s.io/v1")
        selector = f"kubernetes.io/service-name={self._service}"
        while True:
            slices = [body async for body in self._place.reader.list(path, labelSelector=selector)]
            endpoints = [endpoint for body in slices for endpoint in body.get("endpoints") or ()]
            self._addresses = [e["targetRef"]["uid"] for e in endpoints if e["conditions"].get("ready")]
            await asyncio.sleep(_LOOK_SECONDS)

    async def answer(self, _: web.Request) -> web.Response:
        """Answer one request."""
        addresses = self._addresses
        if not addresses:
            return web.Response(status=503, text="no Ready endpoint")
        pod = self._place.pods.get(addresses[next(self._turn) % len(addresses)])
        return web.Response(status=200 if pod and _runs(pod) else 503)


@asynccontextmanager
async def traffic(place: Place, service: str) -> AsyncIterator[Count]:
    """Send requests to a Service of this name, which is made if need be, until the block ends."""
    body = {
        "metadata": {"name": service},
        "spec": {"selector": {"app": service}, "ports": [{"port": 80}]},
    }
    if await place.reader.get(place.path(f"services/{service}")) is None:
        await place.writer.create(place.path("services"), body)
    stand_in = StandIn(place, service)
    application = web.Application()
    application.router.add_get("/", stand_in.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}/"
    following = asyncio.create_task(stand_in.follow())
    await asyncio.sleep(4 * _LOOK_SECONDS)
    count = Count()
    sending = asyncio.create_task(_send(url, count))
    try:
        yield count
    finally:
        for task in (sending, following):
            task.cancel()
        await asyncio.gather(sending, following, *count.tasks, return_exceptions=True)
        await runner.cleanup()


async def _send(url: str, count: Count) -> None:
    loop = asyncio.get_running_loop()
    begin = loop.time()
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as session:
        for number in itertools.count(1):
            task = asyncio.create_task(_ask(session, url, count))
            count.tasks.add(task)
            task.add_done_callback(count.tasks.discard)
            await asyncio.sleep(max(0.0, begin + number / PER_SECOND - loop.time()))


async def _ask(session: aiohttp.ClientSession, url: str, count: Count) -> None:
    count.sent += 1
    try:
        async with session.get(url) as answer:
            failed = answer.status != 200
    except (aiohttp.ClientError, TimeoutError):
        failed = True
    count.failed += failed


def _runs(pod: Json) -> bool:
    statuses = pod["status"].get("containerStatuses", [])
    return bool(statuses) and all("running" in status["state"] for status in statuses)
