"""Budgets that are burnt in the middle of experiments: each is aborted, and all is as before, within one wake."""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import yaml
from aiohttp import web

from bench.chaos_lane import FOLDER, HOME, OVER, Ground, Story, differences, due, late
from bench.rig import Json
from bench.stage import Process
from kreflex.burn import TAG
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.ports import Ports

# Longer than a wake takes: what ends does so by its budget.
_DURATION = "50s"


@dataclass
class Burnt:
    """What became of experiments whose budget was burnt; the most seconds from then until a wake had ended one."""

    runs: int = 0
    aborted: int = 0
    seconds: float = 0.0
    wrong: list[str] = field(default_factory=list)


class Prometheus:
    """Answers each query as if the share `errors` of all requests failed, in every window; 503 if it is None."""

    def __init__(self) -> None:
        self.errors: float | None = 0.0
        self.url = ""

    async def answer(self, request: web.Request) -> web.Response:
        """Answer one query: one sample for each window that it asks for."""
        if self.errors is None:
            return web.Response(status=503)
        asked = {**request.query, **await request.post()}
        windows = re.findall(r'"(\d+[smhdw])"', str(asked["query"])) or [""]
        sample = [time.time(), str(self.errors)]
        result = [{"metric": {TAG: window} if window else {}, "value": sample} for window in dict.fromkeys(windows)]
        return web.json_response({"status": "success", "data": {"resultType": "vector", "result": result}})


@asynccontextmanager
async def prometheus() -> AsyncIterator[Prometheus]:
    """A server that speaks Prometheus' API, on loopback."""
    made = Prometheus()
    application = web.Application()
    application.router.add_route("*", "/api/v1/query", made.answer)
    serving = web.AppRunner(application, access_log=None)
    await serving.setup()
    await web.TCPSite(serving, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{serving.addresses[0][1]}"
    try:
        yield made
    finally:
        await serving.cleanup()


async def play(plane: ControlPlane, client: aiohttp.ClientSession, ports: Ports, stories: Sequence[Story]) -> Burnt:
    """Let one experiment of each story run, burn all their budgets, and see how the wake ends that they are in."""
    async with prometheus() as metrics:
        process = Process(plane, FOLDER, ports.take(), [], "", {"PROMETHEUS_URL": metrics.url})
        await process.start()
        try:
            runs = [Run(plane, story) for story in stories]
            await asyncio.gather(*(run.begin() for run in runs))
            wakes = [asyncio.create_task(run.wake(client, process.url, metrics)) for run in runs]
            await asyncio.gather(*(eventually(run.hit, f"the fault of {run}", 90, 0.2) for run in runs))
            metrics.errors, begun = 0.5, time.monotonic()
            seconds = await asyncio.gather(*wakes)
            told = await asyncio.gather(*(run.judged() for run in runs))
        finally:
            await process.stop()
    slowest = round(max((one - begun for one in seconds), default=0.0), 1)
    return Burnt(len(runs), told.count([]), slowest, [text for one in told for text in one])


class Run:
    """One experiment whose budget is burnt."""

    def __init__(self, plane: ControlPlane, story: Story) -> None:
        self._plane = plane
        self._story = story
        self._ground = Ground(plane)
        self._path = ""
        self._before: dict[str, Json] = {}

    def __str__(self) -> str:
        return f"{self._story.kind} with a budget"

    async def begin(self) -> None:
        """Make the experiment, with an objective that it has to keep."""
        await self._ground.make()
        await self._ground.ready()
        self._before = await self._ground.objects()
        where = self._ground.where
        meta = {"name": f"slos-{where}", "labels": {"kreflex.dev/slos": "true"}}
        body = {"metadata": meta, "data": {"slo.yaml": yaml.safe_dump(_objective(where))}}
        await self._plane.api.post(f"/api/v1/namespaces/{HOME}/configmaps", body)
        self._path = await self._ground.begin("burnt", self._story, duration=_DURATION, budget={"slo": "app"})

    async def wake(self, client: aiohttp.ClientSession, url: str, prometheus: Prometheus) -> float:
        """Wake chaos-runner until it is over, but once only after the budget was burnt; when that was."""
        headers, data = due(self._plane, (self._ground.where, "burnt"))
        burnt = False
        while not burnt and (await self._status()).get("phase") not in OVER:
            burnt = bool(prometheus.errors)
            async with client.post(url, headers=headers, data=data):
                pass
            await asyncio.sleep(0.2)
        return time.monotonic()

    async def hit(self) -> bool:
        """Whether its fault is there."""
        injected = (await self._status()).get("injected") or ()
        return any(one["state"] == "Injected" for one in injected)

    async def judged(self) -> list[str]:
        """Tell what is not as it has to be after that one wake."""
        status = await self._status()
        told = late(status) + differences(self._before, await self._ground.objects())
        if not (status.get("aborted") or "").startswith("ErrorBudget: Spent: "):
            told.append(f"it is {status['phase']}: {status.get('aborted') or status.get('reason')}")
        return [f"{self}: {text}" for text in told]

    async def _status(self) -> Json:
        status: Json = (await self._plane.api.get(self._path)).get("status") or {}
        return status


def _objective(namespace: str) -> Json:
    ratio = {"counter": True, "bad": _source("bad"), "total": _source("all")}
    return {
        "apiVersion": "openslo/v1",
        "kind": "SLO",
        "metadata": {"name": "app", "namespace": namespace},
        "spec": {
            "service": "app",
            "indicator": {"spec": {"ratioMetric": ratio}},
            "timeWindow": [{"duration": "30d", "isRolling": True}],
            "budgetingMethod": "Occurrences",
            "objectives": [{"target": 0.999}],
        },
    }


def _source(query: str) -> Json:
    return {"metricSource": {"type": "Prometheus", "spec": {"query": query}}}
