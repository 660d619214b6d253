"""Where fault cases are played: processes of the functions behind fault proxies, and the net that wakes them."""

import asyncio
import contextlib
import itertools
import json
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from aiohttp import web

from bench import rig
from bench.rig import Json
from lab import callers, claims, forges, functions, kubeconfig, processes
from lab.cluster import ControlPlane
from lab.errors import LabError
from lab.faults import FaultProxy, Hit, Strike
from lab.ports import Ports
from lab.processes import Child

ACT_WITHIN = 3.0
ROUND = 1.0
FUNCTIONS = (rig.FUNCTION, "node-replacer", "rollback", "canary-aborter")
# Of a node that was silenced a moment ago, and of an Ingress that nobody serves.
_SETTINGS = {"node_replacer": {"SILENT_AFTER": "2s"}, "canary_aborter": {"SETTLE": "1s"}}
# Who goes on waiting for one process would wake none of the others.
_PATIENCE = 1.0
_BUILDERS = 3
_PLACE = re.compile(r"b-[0-9a-f]{8}")
# As a Trigger repeats a delivery, but sooner tired.
PAUSES = (0.2, 0.4, 0.8, 1.6)
Event = tuple[Mapping[str, str], bytes]
Said = tuple[int, str]
"""An answer's status, 0 for none, and its text."""


class Process:
    """One process of a function behind its own fault proxy; started again whenever it dies."""

    def __init__(
        self,
        plane: ControlPlane,
        folder: str,
        port: int,
        plan: Sequence[Strike | Hit],
        narrow: str = "",
        settings: Mapping[str, str] | None = None,
        *,
        proxied: bool = False,
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._proxied = proxied
        self.name = f"{functions.kebab(folder)}-{port}"
        token = plane.token_of("admin")
        self.proxy = FaultProxy(self.name, plane.url, plane.authority, lambda: self.child, plan, token, narrow)
        self.child: Child
        self._plane = plane
        self._folder = folder
        self._settings = {"HOST": "127.0.0.1", "PORT": str(port), **rig.callers(plane), **(settings or {})}
        self._keeper: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the process, and wait until it serves."""
        account, namespace = functions.kebab(self._folder), functions.NAMESPACE
        url, token = await self.proxy.start(), await self._plane.token(account, namespace)
        file = self._plane.home.secrets / f"{self.name}.kubeconfig"
        kubeconfig.write(file, url, self._plane.authority, account, token, namespace)
        proxy = {"http_proxy": url} if self._proxied else {}
        common = {"ACT_WITHIN": f"{ACT_WITHIN:g}s", **self._settings}
        self._settings = {**common, "KUBECONFIG": str(file), **proxy, **processes.importable()}
        self._spawn()
        await self.child.ready(processes.answers(f"{self.url}/readyz"), 120)
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self.name in self._plane.children:
            await self._plane.stop_child(self.name)
        await self.proxy.stop()

    def _spawn(self) -> None:
        command: list[str | Path] = [*processes.python("kreflex", self._folder)]
        self.child = self._plane.start_child(self.name, command, self._settings, self.url)

    async def _keep(self) -> None:
        while True:
            await self.child.ended(3600)
            if not self.child.alive:
                self._spawn()


class Switch:
    """Takes the wakers' calls, and hands each item to the processes of its namespace; others it keeps to itself."""

    def __init__(self) -> None:
        self.url = ""
        self.routes: dict[tuple[str, str], list[str]] = {}
        self.answers: dict[str, list[Said]] = defaultdict(list)
        self._turn = itertools.count()
        # Who has not answered yet, and the calls that he has not answered.
        self._busy: set[str] = set()
        self._under_way: set[asyncio.Task[int]] = set()
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Listen on a free port of loopback."""
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        application = web.Application()
        application.router.add_post("/{waker}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Stop to listen."""
        if self._runner is not None:
            await self._runner.cleanup()
        await asyncio.gather(*self._under_way)
        if self._session is not None:
            await self._session.close()

    async def _serve(self, request: web.Request) -> web.Response:
        items: dict[str, list[Json]] = defaultdict(list)
        for item in (await request.json())["items"]:
            items[place_of(item)].append(item)
        headers = {
            k: v for k, v in request.headers.items() if k.lower().startswith(("ce-", "content-type", "authorization"))
        }
        parts = [
            asyncio.create_task(self._send(where, urls, headers, items[where]))
            for (waker, where), urls in self.routes.items()
            if waker == request.match_info["waker"] and where in items
        ]
        done, under_way = await asyncio.wait(parts, timeout=_PATIENCE) if parts else (set(), set())
        self._under_way |= under_way
        for task in under_way:
            task.add_done_callback(self._under_way.discard)
        return web.Response(status=204 if all(task.result() < 300 for task in done) else 503)

    async def _send(self, where: str, urls: list[str], headers: Mapping[str, str], items: list[Json]) -> int:
        assert self._session is not None, "the switch has not been started"
        idle = [url for url in urls if url not in self._busy]
        if not idle:
            return 204
        url, body = idle[next(self._turn) % len(idle)], json.dumps({"items": items}).encode()
        self._busy.add(url)
        status, text = await post(self._session, url, headers, body)
        self._busy.discard(url)
        self.answers[where].append((status, text))
        return status or 503


def net_of(function: str) -> str:
    """Name the net under one function: what another one is called for, would keep it from what it is called for."""
    return f"net-{function}"


def place_of(item: Json) -> str:
    """The namespace of the case that a waker's item belongs to; nodes, and their records elsewhere, bear its name."""
    namespace = str(item.get("namespace", ""))
    named = None if _PLACE.fullmatch(namespace) else _PLACE.search(item["name"])
    return named[0] if named else namespace


async def post(session: aiohttp.ClientSession, url: str, headers: Mapping[str, str], body: bytes) -> Said:
    """Send one event; the answer's status, 0 for none, and its text."""
    try:
        async with session.post(url, data=body, headers=headers) as answer:
            return answer.status, await answer.text()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        return 0, repr(error)


async def tell(session: aiohttp.ClientSession, url: str, event: Event) -> list[Said]:
    """Deliver an event as a Trigger does, with repetitions after 5xx and after no answer; all the answers."""
    answers = []
    for pause in (*PAUSES, 0.0):
        answers.append(await post(session, url, *event))
        if 0 < answers[-1][0] < 500:
            break
        await asyncio.sleep(pause)
    return answers


@dataclass
class Stage:
    """What all cases share: a cluster, a healthy function for the wakers that are spoilt, and a healthy waker."""

    plane: ControlPlane
    ports: Ports
    switch: Switch
    session: aiohttp.ClientSession
    helper: Process
    net: Process
    cloud: claims.Cloud
    token: str
    """The file of the token that all wakers show; it is written once, for it may be read at any moment."""
    turn: asyncio.Lock
    """Held by what happens to the whole cluster."""
    forge: forges.Forge | None = None
    """Where the repositories are, for those who need them."""
    building: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_BUILDERS))
    """Held while nodes are made: many at once, each waited for, would be all that the API server does."""

    async def wake(self) -> None:
        """Wake the healthy waker again and again."""
        while True:
            await post(self.session, self.net.url, *ping())
            await asyncio.sleep(ROUND)

    async def bury(self) -> None:
        """Remove the pods of nodes that are gone, as the pod garbage collector does, but within a second or two."""
        while True:
            with contextlib.suppress(LabError, aiohttp.ClientError, TimeoutError, OSError):
                await _bury(self.plane)
            await asyncio.sleep(ROUND)

    def process(
        self, folder: str, plan: Sequence[Strike | Hit], where: str, *, act_within: float, proxied: bool
    ) -> Process:
        """A process for one case."""
        waker = folder == functions.WAKER
        told = {"FUNCTIONS": f"{rig.FUNCTION}={self.switch.url}/{where}", "TOKEN_FILE": self.token}
        settings = {"ACT_WITHIN": f"{act_within:g}s", **(told if waker else _SETTINGS.get(folder, {}))}
        port, narrow = self.ports.take(), where if waker else ""
        return Process(self.plane, folder, port, plan, narrow, settings, proxied=proxied)


@asynccontextmanager
async def stage(plane: ControlPlane) -> AsyncIterator[Stage]:
    """Everything that cases share, on a cluster with Kreflex."""
    switch, ports = Switch(), Ports()
    await switch.start()
    helper = Process(plane, rig.FOLDER, ports.take(), [])
    # It removes no records: that is for the wakers that are spoilt.
    token = str(await callers.issue(plane, functions.WAKER, functions.NAMESPACE))
    urls = ",".join(f"{name}={switch.url}/{net_of(name)}" for name in FUNCTIONS)
    told = {"RETAIN": "87600h", "FUNCTIONS": urls, "TOKEN_FILE": token}
    net = Process(plane, functions.WAKER, ports.take(), [], settings=told)
    try:
        async with rig.session(plane) as session, claims.cloud(plane) as cloud:
            await asyncio.gather(helper.start(), net.start())
            made = Stage(plane, ports, switch, session, helper, net, cloud, token, asyncio.Lock())
            rounds = [asyncio.create_task(work) for work in (made.wake(), made.bury())]
            try:
                yield made
            finally:
                for task in rounds:
                    task.cancel()
                await asyncio.gather(*rounds, return_exceptions=True)
    finally:
        await asyncio.gather(helper.stop(), net.stop())
        await switch.stop()
        ports.release()


async def _bury(plane: ControlPlane) -> None:
    # The pods first: a node that is made meanwhile has none of them.
    found = (await plane.api.get("/api/v1/pods"))["items"]
    names = {node["metadata"]["name"] for node in (await plane.api.get("/api/v1/nodes"))["items"]}
    for pod in found:
        meta = pod["metadata"]
        if pod["spec"].get("nodeName", "") not in {"", *names}:
            path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
            await plane.api.delete(path, {"gracePeriodSeconds": 0, "preconditions": {"uid": meta["uid"]}})


def ping() -> Event:
    """A PingSource's event."""
    now = datetime.now(UTC).isoformat()
    source = "/apis/v1/namespaces/kreflex-system/pingsources/waker"
    headers = {"ce-specversion": "1.0", "ce-id": now, "ce-type": "dev.knative.sources.ping", "ce-source": source}
    return {**headers, "content-type": "application/json"}, b"{}"
