"""A storm: many pods of few owners loop at once, told by one alert body; after that only the waker's rounds."""

import asyncio
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import judge, patients, rig
from bench.rig import GROUP, Json, Rig
from lab.cluster import ControlPlane

PODS, OWNERS, IN_FLIGHT, ROUND = 1000, 20, 10, 1.0
_AT_ONCE = 25


@dataclass
class Watcher:
    """Sees every change of every Remediation of a namespace, and keeps the most that were ever in flight."""

    plane: ControlPlane
    where: str
    records: dict[str, Json] = field(default_factory=dict)
    most: int = 0
    most_of_owner: int = 0
    changes: int = 0

    async def run(self, since: str) -> None:
        """Follow the changes since a resourceVersion."""
        path = f"{GROUP}/namespaces/{self.where}/remediations"
        while True:
            async for event in self.plane.api.watch(path, resourceVersion=since):
                since = event["object"]["metadata"]["resourceVersion"]
                if event["type"] != "BOOKMARK":
                    self._take(event["object"])

    def _take(self, record: Json) -> None:
        self.changes += 1
        self.records[record["spec"]["target"]["uid"]] = record
        owners = Counter(one["spec"]["owner"]["name"] for one in self.records.values() if self._in_flight(one))
        self.most = max(self.most, owners.total())
        self.most_of_owner = max(self.most_of_owner, *owners.values(), 0)

    @staticmethod
    def _in_flight(record: Json) -> bool:
        return record.get("status", {}).get("phase") in {"Acting", "Applied"}

    @property
    def settled(self) -> int:
        """How many remediations were applied and have their verdict."""
        statuses = [record.get("status", {}) for record in self.records.values()]
        return sum(status.get("phase") == "Done" and status.get("outcome") == "applied" for status in statuses)

    def verdicts(self) -> dict[str, int]:
        """How many of each verdict."""
        return dict(Counter(record.get("status", {}).get("verdict") or "none" for record in self.records.values()))


async def run(running: Rig, pods: int, owners: int, in_flight: int, patience: float) -> dict[str, Any]:
    """Let so many pods of so many owners loop, send one alert body, and wait until all are settled; the figures."""
    plane = running.plane
    where = await rig.namespace(plane, {"maxInFlight": in_flight}, proveWithin="5m")
    ill = await _loop(plane, where, pods, owners)
    watcher = Watcher(plane, where)
    since = (await plane.api.get(f"{GROUP}/namespaces/{where}/remediations"))["metadata"]["resourceVersion"]
    following = asyncio.create_task(watcher.run(since))
    begun = time.monotonic()
    progress = asyncio.create_task(_progress(watcher, pods, begun))
    try:
        answered = await _alert(running, ill)
        rig.say(f"{time.monotonic() - begun:6.1f} s  the alert body was answered {answered}")
        await running.start_waker(ROUND)
        await rig.until(lambda: watcher.settled >= pods or following.done(), patience, 0.5)
    finally:
        for task in (following, progress):
            task.cancel()
        await asyncio.gather(following, progress, return_exceptions=True)
    seconds = time.monotonic() - begun
    met, others = judge.disruptions(plane, where, {pod["metadata"]["uid"] for pod in ill})
    return {
        "pods": pods,
        "owners": owners,
        "seconds": round(seconds, 1),
        "settled": watcher.settled,
        "unsettled": pods - watcher.settled,
        "allowed_in_flight": in_flight,
        "most_in_flight": watcher.most,
        "most_in_flight_of_an_owner": watcher.most_of_owner,
        "evicted_twice": sum(count > 1 for count in met.values()),
        "healthy_evicted": others,
        "disruptions_per_fault": round(met.total() / pods, 4),
        "rounds": running.balancer.requests["waker"],
        "writes_per_pod": round(sum(len(r.proxy.writes) for r in running.replicas) / pods, 1),
        "reads_per_pod": round(sum(r.proxy.reads for r in running.replicas) / pods, 1),
        "verdicts": watcher.verdicts(),
    }


def breaches(found: dict[str, Any]) -> list[str]:
    """What should not have been; nothing if all held."""
    broken = [f"{name}: {found[name]}" for name in ("unsettled", "evicted_twice", "healthy_evicted") if found[name]]
    if found["most_in_flight"] > found["allowed_in_flight"] or found["most_in_flight_of_an_owner"] > 1:
        broken.append(f"in flight: {found['most_in_flight']}, of one owner {found['most_in_flight_of_an_owner']}")
    return broken


async def _loop(plane: ControlPlane, where: str, pods: int, owners: int) -> list[Json]:
    for number in range(owners):
        await rig.make(plane, where, f"shop-{number}", pods // owners)
    ill = await rig.ready(plane, where, pods, patience=60 + pods / 4)
    rig.say(f"{pods} pods of {owners} owners are Ready")
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(pod: Json) -> None:
        async with gate:
            await rig.break_pod(plane, pod, speed=10)

    await asyncio.gather(*(one(pod) for pod in ill))
    limit = time.monotonic() + 60 + pods / 4
    while time.monotonic() < limit:
        counts = [pod["status"]["containerStatuses"][0]["restartCount"] for pod in await rig.pods(plane, where)]
        if min(counts) >= 4:
            break
        await asyncio.sleep(1)
    rig.say(f"{pods} pods loop")
    return ill


async def _alert(running: Rig, ill: list[Json]) -> int:
    """Send one Alertmanager body for all pods, once, whatever the answer is."""
    body = patients.alerts(ill)
    headers = {"content-type": "application/json"}
    async with (
        rig.session(running.plane) as client,
        client.post(f"{running.balancer.url}/alertmanager", data=body, headers=headers) as answer,
    ):
        return answer.status


async def _progress(watcher: Watcher, pods: int, begun: float) -> None:
    while True:
        await asyncio.sleep(5)
        known = len(watcher.records)
        rig.say(f"{time.monotonic() - begun:6.1f} s  {watcher.settled} of {pods} settled, {known} records")


async def measure(size: int = 0) -> dict[str, Any]:
    """Run the benchmark: 1,000 pods, or `size`, on a control plane of its own."""
    pods = size or PODS
    owners = min(OWNERS, max(pods // 10, 1))
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home:
        async with rig.cluster(Path(home), 5) as plane, rig.rig(plane, 2, 10) as running:
            found = await run(running, pods, owners, IN_FLIGHT, patience=120 + pods)
    return {**found, "holds": not breaches(found)}
