"""Drain: how long a node with 100 pods behind budgets takes to be empty, by node-replacer and by `kubectl drain`."""

import asyncio
import contextlib
import statistics
import tempfile
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import farm, judge, rig
from bench.farm import Sender
from bench.rig import Json
from lab import claims, nodes
from lab.api import eventually
from lab.claims import Cloud
from lab.cluster import ControlPlane
from lab.nodes import Pool
from lab.ports import Ports
from lab.workloads import budget, deployment

PAIRS, APPS, REPLICAS, HOSTS = 3, 10, 10, 4
FAULT = "kernel-deadlock"
# Not Ready=False: of a node that is not ready all pods count as unhealthy, and no budget would let one go.
_ILL = [{"type": "KernelDeadlock", "status": "True", "for": "1s"}]
_MANY = {"maxUnhealthy": "100%", "maxUnhealthyZone": "100%", "stormCooldown": "1s"}
_PATIENCE = 600.0


def budget_of(number: int, replicas: int) -> Json:
    """The budget of an app: most let one pod go at a time, some a few."""
    name = f"app-{number}"
    if number % 5 == 4:
        return budget(name, maxUnavailable="30%")
    return budget(name, minAvailable=replicas - 1) if number % 2 else budget(name, maxUnavailable=1)


@dataclass
class Watched:
    """What a watch of a namespace's pods has shown: who is where, and how few of an app were healthy."""

    node: str
    floors: dict[str, int]
    left: set[str] = field(default_factory=set)
    healthy: dict[str, set[str]] = field(default_factory=dict)
    broken: list[str] = field(default_factory=list)
    empty_at: float | None = None
    _seen: bool = False

    def take(self, kind: str, pod: Json) -> None:
        """Take one event of the watch."""
        meta = pod["metadata"]
        app, uid = meta["labels"]["app"], meta["uid"]
        well = kind != "DELETED" and nodes.is_ready(pod) and "deletionTimestamp" not in meta
        known = self.healthy.setdefault(app, set())
        if well:
            known.add(uid)
        elif uid in known:
            known.discard(uid)
            if len(known) < self.floors[app]:
                self.broken.append(f"{app} had {len(known)} healthy pods, {self.floors[app]} have to stay")
        if pod["spec"].get("nodeName") == self.node and kind != "DELETED":
            self.left.add(uid)
        else:
            self.left.discard(uid)
        if not self.left and self.empty_at is None and kind == "DELETED":
            self.empty_at = time.time()


@asynccontextmanager
async def watched(plane: ControlPlane, where: str, node: str) -> AsyncIterator[Watched]:
    """Watch the pods of a namespace, from how they are now."""
    base = f"/apis/policy/v1/namespaces/{where}/poddisruptionbudgets"
    floors = {one["metadata"]["name"]: one["status"]["desiredHealthy"] for one in (await plane.api.get(base))["items"]}
    listed = await plane.api.get(f"/api/v1/namespaces/{where}/pods")
    found = Watched(node, floors)
    for pod in listed["items"]:
        found.take("ADDED", pod)

    async def follow() -> None:
        version = listed["metadata"]["resourceVersion"]
        async for event in plane.api.watch(f"/api/v1/namespaces/{where}/pods", resourceVersion=version):
            if event["type"] in {"ADDED", "MODIFIED", "DELETED"}:
                found.take(event["type"], event["object"])

    following = asyncio.create_task(follow())
    try:
        yield found
    finally:
        following.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await following


@dataclass(frozen=True)
class Drained:
    """One node that was emptied: how long it took, and how its pods fared."""

    seconds: float
    evictions: int
    twice: int
    broken: tuple[str, ...]


class Drains:
    """Two nodes with the same pods, one for each side."""

    def __init__(self, plane: ControlPlane, cloud: Cloud, sender: Sender, url: str, apps: int, replicas: int) -> None:
        self._plane = plane
        self._cloud = cloud
        self._sender = sender
        self._url = url
        self._apps = apps
        self._replicas = replicas

    async def pair(self, *, ours_first: bool) -> tuple[Drained, Drained]:
        """Empty one node by node-replacer and one by kubectl; ours comes first in the answer."""
        first, second = [await self._laden() for _ in range(2)]
        sides: list[Callable[[str], Awaitable[None]]] = [self._ours, self._kubectl]
        if not ours_first:
            sides.reverse()
        found = [await self._empty(side, *one) for side, one in zip(sides, (first, second), strict=True)]
        return (found[0], found[1]) if ours_first else (found[1], found[0])

    async def _laden(self) -> tuple[str, str]:
        """Make a node, and pods on it; nobody may put more there."""
        name = await self._cloud.machine("blue")
        where = f"drain-{uuid.uuid4().hex[:6]}"
        await self._plane.api.post("/api/v1/namespaces", {"metadata": {"name": where}})
        await self._only(name)
        for number in range(self._apps):
            body = deployment(f"app-{number}", self._replicas)
            await self._plane.api.post(f"/apis/apps/v1/namespaces/{where}/deployments", body)
            limits = budget_of(number, self._replicas)
            await self._plane.api.post(f"/apis/policy/v1/namespaces/{where}/poddisruptionbudgets", limits)
        await rig.ready(self._plane, where, self._apps * self._replicas, patience=180)
        await self._counted(where)
        await nodes.break_node(self._plane.api, name, FAULT)
        await nodes.shows(self._plane.api, name, "KernelDeadlock", "True")
        await self._cordon(name, on=True)
        return name, where

    async def _only(self, chosen: str) -> None:
        for name in await nodes.named(self._plane.api):
            await self._cordon(name, on=name != chosen)

    async def _cordon(self, name: str, *, on: bool) -> None:
        await self._plane.api.patch(f"/api/v1/nodes/{name}", {"spec": {"unschedulable": on or None}})

    async def _counted(self, where: str) -> None:
        """Wait until the budgets know of all pods."""

        async def known() -> bool:
            items = (await self._plane.api.get(f"/apis/policy/v1/namespaces/{where}/poddisruptionbudgets"))["items"]
            return all(one.get("status", {}).get("currentHealthy") == self._replicas for one in items)

        await eventually(known, "the budgets", patience=60)

    async def _empty(self, side: Callable[[str], Awaitable[None]], node: str, where: str) -> Drained:
        for host in await nodes.named(self._plane.api, "pool=hosts"):
            await self._cordon(host, on=False)
        await self._cordon(node, on=False)
        await asyncio.sleep(farm.FORGOTTEN)
        async with watched(self._plane, where, node) as seen:
            begun = time.time()
            working = asyncio.ensure_future(side(node))
            await self._until_empty(seen, working)
            await working
            await eventually(lambda: self._settled(where), f"the pods of {where} elsewhere", patience=60)
        assert seen.empty_at is not None
        evicted = Counter(name for name in self._evicted(where))
        rig.say(f"{side.__name__.strip('_')}: {seen.empty_at - begun:.1f} s, {sum(evicted.values())} evictions")
        await self._plane.api.delete(f"/api/v1/namespaces/{where}")
        twice = sum(count > 1 for count in evicted.values())
        return Drained(seen.empty_at - begun, sum(evicted.values()), twice, tuple(seen.broken))

    async def _until_empty(self, seen: Watched, working: "asyncio.Future[None]") -> None:
        limit = time.time() + _PATIENCE
        while seen.empty_at is None:
            if working.done() and working.exception() is not None:
                working.result()
            if time.time() > limit:
                raise RuntimeError(f"{len(seen.left)} pods are left on {seen.node}")
            await asyncio.sleep(0.05)

    async def _settled(self, where: str) -> bool:
        """Whether all successors are Ready."""
        items = (await self._plane.api.get(f"/apis/apps/v1/namespaces/{where}/deployments"))["items"]
        return all(one["status"].get("readyReplicas") == self._replicas for one in items)

    def _evicted(self, where: str) -> list[str]:
        """The name of the pod of each accepted eviction, whoever asked."""
        return judge.evicted_names(self._plane, where)

    async def _ours(self, node: str) -> None:
        """Tell node-replacer of the node once, and of each change of its record, as an ApiServerSource does."""
        body = await self._plane.api.get(f"/api/v1/nodes/{node}")
        version = (await self._plane.api.get(farm.RECORDS))["metadata"]["resourceVersion"]
        async with asyncio.TaskGroup() as calls:
            calls.create_task(self._sender.tell(self._url, body))
            async for event in self._plane.api.watch(farm.RECORDS, resourceVersion=version):
                record = event["object"]
                if event["type"] != "MODIFIED" or record["spec"]["target"]["name"] != node:
                    continue
                if record["status"].get("phase") in {"Applied", "Done"}:
                    break
                calls.create_task(self._sender.tell(self._url, record, "Remediation"))

    async def _kubectl(self, node: str) -> None:
        await farm.kubectl(self._plane, "drain", node, "--ignore-daemonsets", "--delete-emptydir-data")


async def run(plane: ControlPlane, ports: Ports, pairs: int, apps: int, replicas: int) -> dict[str, Any]:
    """Empty so many pairs of nodes, each side first by turns; the figures."""
    await nodes.add(plane.api, HOSTS, Pool("host", labels={"pool": "hosts"}))
    await farm.policy(plane, "Auto", conditions=_ILL, **_MANY)
    _, url = await farm.start(plane, ports.take())
    made: list[tuple[Drained, Drained]] = []
    async with claims.cloud(plane) as cloud, Sender(plane) as sender:
        cloud.replaces = False
        drains = Drains(plane, cloud, sender, url, apps, replicas)
        made += [await drains.pair(ours_first=number % 2 == 0) for number in range(pairs)]
    await plane.stop_child(farm.FUNCTION)
    return _figures(made, apps * replicas)


def _figures(made: list[tuple[Drained, Drained]], pods: int) -> dict[str, Any]:
    ratio = statistics.median(mine.seconds / other.seconds for mine, other in made)
    mine = [one for one, _ in made]
    found = {
        "pods": pods,
        "pairs": len(made),
        "ratio": round(ratio, 2),
        "ours_seconds": [round(one.seconds, 1) for one in mine],
        "kubectl_seconds": [round(other.seconds, 1) for _, other in made],
        "evictions_of_a_node": [one.evictions for one in mine],
        "evicted_twice": sum(one.twice for one in mine),
        "budgets_broken": [text for one in mine for text in one.broken][:10],
    }
    held = not found["evicted_twice"] and not found["budgets_broken"] and all(one.evictions == pods for one in mine)
    return {**found, "goals_reached": held and ratio <= 1, "holds": held}


async def measure(size: int = 0) -> dict[str, Any]:
    """Empty nodes with 100 pods, in three pairs, or `size`."""
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home, Ports() as ports:
        async with farm.farm(Path(home), HOSTS) as plane:
            return await run(plane, ports, size or PAIRS, APPS, REPLICAS)
