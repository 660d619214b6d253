"""Storm: ten alerts for each of a thousand targets; none is lost, and no more is done than the policy allows."""

import asyncio
import random
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import aiohttp

from bench import effort, judge, patients, rig
from bench.rig import Json, Rig
from bench.storm_pods import Watcher
from lab.cluster import ControlPlane

TARGETS, ALERTS_EACH, OWNERS, HEALTHY = 1000, 10, 20, 20
IN_FLIGHT, BODY, SENDERS = 10, 500, 4
_CALM = 15.0


async def run(running: Rig, targets: int, patience: float) -> dict[str, Any]:
    """Tell of each target ten times, in bodies of 500 alerts, until every body is accepted; the figures."""
    plane, owners = running.plane, min(OWNERS, max(targets // 10, 1))
    most = max(targets // 10, 5)
    where = await rig.namespace(plane, {"maxInFlight": IN_FLIGHT, "rates": [{"count": most, "window": "1h"}]})
    ill, healthy = await _patients(plane, where, targets, owners)
    watcher, begun = Watcher(plane, where), time.monotonic()
    since = (await plane.api.get(f"{rig.GROUP}/namespaces/{where}/remediations"))["metadata"]["resourceVersion"]
    heaviest = Heaviest(running)
    watching = [asyncio.create_task(work) for work in (watcher.run(since), heaviest.run(), _progress(watcher, begun))]
    try:
        answers = await _tell(running, _bodies(ill, healthy), begun + patience)
        told = time.monotonic() - begun
        await running.start_waker(1.0)
        await rig.until(lambda: len(judge.evictions(plane, where)) >= most, 60, 1.0)
        await asyncio.sleep(_CALM)  # Whoever goes beyond the rate does it now.
    finally:
        for task in watching:
            task.cancel()
        await asyncio.gather(*watching, return_exceptions=True)
    uids = {pod["metadata"]["uid"] for pod in ill}
    met, others = judge.disruptions(plane, where, uids)
    records = await rig.records(plane, where)
    found = {
        "targets": targets,
        "alerts": ALERTS_EACH * (targets + len(healthy)),
        "lost": len(uids - {one["spec"]["target"]["uid"] for one in records if _reason(one)}),
        "evictions": met.total(),
        "allowed_evictions": most,
        "most_in_flight": watcher.most,
        "allowed_in_flight": IN_FLIGHT,
        "most_in_flight_of_an_owner": watcher.most_of_owner,
        "evicted_twice": sum(count > 1 for count in met.values()),
        "healthy_evicted": others,
        "reasons": dict(Counter(_reason(one) for one in records)),
        "answers": dict(sorted(answers.items())),
        "told_seconds": round(told, 1),
        "seconds": round(time.monotonic() - begun, 1),
        "most_mib_of_a_replica": round(heaviest.mib, 1),
        "restarts": sum(replica.starts - 1 for replica in running.replicas),
    }
    return {**found, "breaches": breaches(found), "holds": not breaches(found)}


def breaches(found: dict[str, Any]) -> list[str]:
    """What should not have been; nothing if all held."""
    zero = ("lost", "evicted_twice", "healthy_evicted", "restarts")
    broken = [f"{name}: {found[name]}" for name in zero if found[name]]
    bounds = (("evictions", found["allowed_evictions"]), ("most_in_flight", IN_FLIGHT), ("most_mib_of_a_replica", 256))
    broken += [f"{name}: {found[name]}, allowed {bound}" for name, bound in bounds if found[name] > bound]
    return broken + ([] if found["most_in_flight_of_an_owner"] <= 1 else ["two of one owner"])


def _reason(record: Json) -> str:
    """What became of a record, or why nothing has: empty for one that nobody has decided."""
    status = record.get("status", {})
    if status.get("phase") in {"Acting", "Applied", "Done"}:
        return str(status.get("verdict") or status["phase"])
    return str(status.get("guard") or "")


class Heaviest:
    """The most memory that one replica was seen to hold."""

    def __init__(self, running: Rig) -> None:
        self.mib = 0.0
        self._running = running

    async def run(self) -> None:
        """Look twice a second."""
        while True:
            pids = [replica.child.pid for replica in self._running.replicas if replica.child.alive]
            self.mib = max(self.mib, *(effort.pss_mib(pid) for pid in pids), 0.0)
            await asyncio.sleep(0.5)


async def _patients(plane: ControlPlane, where: str, targets: int, owners: int) -> tuple[list[Json], list[Json]]:
    pods = await patients.make(plane, where, owners, replicas=targets // owners)
    ill = await patients.fall_ill(plane, pods)
    await rig.make(plane, where, "well", min(HEALTHY, targets))
    healthy = await rig.ready(plane, where, min(HEALTHY, targets), "well", patience=120)
    rig.say(f"{len(ill)} pods loop, {len(healthy)} are well")
    return ill, healthy


def _bodies(ill: Sequence[Json], healthy: Sequence[Json]) -> list[bytes]:
    """Bodies of 500 alerts in no order; some of them are wrong, for their pods are well."""
    alerts = [pod for _ in range(ALERTS_EACH) for pod in (*ill, *healthy)]
    random.Random(7).shuffle(alerts)  # noqa: S311 - the same storm each time
    return [patients.alerts(alerts[first : first + BODY]) for first in range(0, len(alerts), BODY)]


async def _tell(running: Rig, bodies: list[bytes], limit: float) -> Counter[int]:
    """Send all bodies, four at a time, each again until it is accepted, as an Alertmanager does."""
    answers: Counter[int] = Counter()
    headers = {"content-type": "application/json"}

    async def send(client: aiohttp.ClientSession) -> None:
        while bodies and time.monotonic() < limit:
            body = bodies.pop()
            try:
                async with client.post(f"{running.balancer.url}/alertmanager", data=body, headers=headers) as answer:
                    answers[answer.status] += 1
                    accepted = answer.status == 200
            except TimeoutError:
                accepted = False
            if not accepted:
                bodies.insert(0, body)
                await asyncio.sleep(1)

    async with rig.session(running.plane) as client:
        await asyncio.gather(*(send(client) for _ in range(SENDERS)))
    return answers


async def _progress(watcher: Watcher, begun: float) -> None:
    while True:
        await asyncio.sleep(5)
        rig.say(f"{time.monotonic() - begun:6.1f} s  {len(watcher.records)} records, {watcher.settled} settled")


async def measure(size: int = 0) -> dict[str, Any]:
    """Run the storm over 1,000 targets, or `size`, with two replicas."""
    targets = size or TARGETS
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home:
        async with rig.cluster(Path(home), 5) as plane, rig.rig(plane, 2, 10) as running:
            return await run(running, targets, patience=300)
