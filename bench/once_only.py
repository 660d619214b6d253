"""Once only: each looping pod is evicted once, whatever is killed or stopped, and however often the fault is told."""

import asyncio
import itertools
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import aiohttp

from bench import judge, rig
from bench.rig import Json, Rig
from lab.api import eventually
from lab.faults import Call, Strike

# The writes of one remediation, in order. A calm one is compared with this list before anything is struck.
STEPS = ("record", "ledger", "Acting", "eviction", "Applied", "Done", "event")
ACT_WITHIN = 3.0
STOP = 5.0
DELIVERIES = 50
ROUND = 1.0
Moment = Literal["before", "after", "late"]
Blow = Literal["kill", "stop"]


@dataclass(frozen=True)
class Plan:
    """Which blow falls at which write of a remediation; none for the calm one."""

    step: str
    moment: Moment
    blow: Blow

    @property
    def name(self) -> str:
        """As people say it."""
        return f"{self.blow} {self.moment} {self.step}"


def plans(count: int) -> list[Plan]:
    """The first so many blows: kills before and after each write, stops at each, then late arrivals, and again."""
    kills = [Plan(step, moment, "kill") for step in STEPS for moment in ("before", "after")]
    stops = [Plan(step, moment, "stop") for moment in ("before", "after") for step in STEPS]
    late = [Plan(step, "late", "kill") for step in STEPS]
    return list(itertools.islice(itertools.cycle([*kills, *stops, *late]), count))


@dataclass
class Fault:
    """One looping pod, what struck its remediation, and what became of it."""

    app: str
    plan: Plan | None
    pod: Json = field(default_factory=dict)
    strike: Strike | None = None
    told_at: datetime | None = None
    limit: float = 0.0

    @property
    def name(self) -> str:
        """The pod's name."""
        name: str = self.pod["metadata"]["name"]
        return name

    @property
    def uid(self) -> str:
        """The pod's UID."""
        uid: str = self.pod["metadata"]["uid"]
        return uid


class Trial:
    """Runs faults side by side on one rig, each told by all senders."""

    def __init__(self, running: Rig, where: str, client: aiohttp.ClientSession, deliveries: int) -> None:
        self.rig = running
        self.where = where
        self.records: dict[str, Json] = {}
        self._client = client
        self._deliveries = deliveries

    async def watch(self) -> None:
        """Keep the records in view."""
        while True:
            for record in await rig.records(self.rig.plane, self.where):
                self.records[record["spec"]["target"]["uid"]] = record
            await asyncio.sleep(0.5)

    async def run(self, fault: Fault, patience: float) -> None:
        """Break a pod, tell of it by all senders, and wait until its remediation has its verdict."""
        plane, balancer = self.rig.plane, self.rig.balancer
        fault.pod = (await rig.pods(plane, self.where, fault.app))[0]
        balancer.count(fault.name)
        if fault.plan is not None:
            fault.strike = self._aim(fault, fault.plan)
        await rig.break_pod(plane, fault.pod)
        fault.pod = await self._looping(fault)
        fault.told_at = datetime.now(UTC)
        for number, url in enumerate(self.rig.alertmanagers):
            # Two Prometheuses disagree about when it began.
            await rig.alert(self._client, url, fault.pod, age=30.0 + number)
        limit = time.monotonic() + patience
        while not self._over(fault) and time.monotonic() < limit:
            await asyncio.gather(*(self._tell(fault) for _ in range(3)))
            await asyncio.sleep(0.15)
        for number, url in enumerate(self.rig.alertmanagers):
            await rig.alert(self._client, url, fault.pod, age=30.0 + number, over=True)

    async def _tell(self, fault: Fault) -> None:
        await rig.tell(self._client, f"{self.rig.balancer.url}/copies", fault.pod)

    def _aim(self, fault: Fault, plan: Plan) -> Strike:
        def chosen(write: Call) -> bool:
            return write.step == plan.step and write.concerns(fault.name)

        strike = Strike(chosen, plan.moment, plan.blow, STOP)
        self.rig.plan.append(strike)
        return strike

    async def _looping(self, fault: Fault) -> Json:
        path = f"/api/v1/namespaces/{self.where}/pods/{fault.name}"

        async def found() -> Json | None:
            pod = await self.rig.plane.api.find(path)
            # The adapter was quicker than we: it may be evicted by now.
            if pod is None or "deletionTimestamp" in pod["metadata"] or fault.uid in self.records:
                return pod or fault.pod
            status = pod["status"]["containerStatuses"][0]
            return pod if status["restartCount"] >= 4 and "running" not in status["state"] else None

        pod: Json = await eventually(found, f"{fault.name} looping", patience=60)
        return pod

    def _over(self, fault: Fault) -> bool:
        told = self.rig.balancer.told[fault.name].total()
        return told >= self._deliveries and self.verdict(fault) is not None and self._struck(fault)

    def _struck(self, fault: Fault) -> bool:
        # The Event is written after the verdict: it is not told a second time if another blow falls in between.
        if fault.strike is None or fault.strike.replica or fault.plan is None or fault.plan.step != "event":
            return True
        settled = datetime.fromisoformat(self.records[fault.uid]["status"]["settledAt"])
        return (datetime.now(UTC) - settled).total_seconds() > 5

    def verdict(self, fault: Fault) -> str | None:
        """The verdict of a fault's record, once it is done."""
        status = self.records.get(fault.uid, {}).get("status", {})
        done = status.get("phase") == "Done" and status.get("outcome") == "applied"
        return status.get("verdict") if done else None


async def run(
    running: Rig, faults: Sequence[Fault], *, width: int = 4, deliveries: int = DELIVERIES, patience: float = 60.0
) -> dict[str, Any]:
    """Run faults, so many at a time, and judge by the audit log; the figures, with `holds`."""
    plane, begun = running.plane, time.monotonic()
    where = await rig.namespace(plane)
    apps = {fault.app: 1 + number % 2 for number, fault in enumerate(faults)}
    bystanders = {f"calm-{number}": 2 for number in range(3)}
    for app, replicas in {**apps, **bystanders}.items():
        await rig.make(plane, where, app, replicas)
    await rig.ready(plane, where, sum(apps.values()) + sum(bystanders.values()), patience=120)
    calm = {pod["metadata"]["uid"] for app in bystanders for pod in await rig.pods(plane, where, app)}
    gate = asyncio.Semaphore(width)
    async with rig.session(plane) as client:
        trial = Trial(running, where, client, deliveries)
        watcher = asyncio.create_task(trial.watch())

        async def one(fault: Fault) -> None:
            async with gate:
                await trial.run(fault, patience)
                _tell_progress(fault, trial, begun)

        try:
            await asyncio.gather(*(one(fault) for fault in faults))
        finally:
            watcher.cancel()
            await asyncio.gather(watcher, return_exceptions=True)
    for record in await rig.records(plane, where):
        trial.records[record["spec"]["target"]["uid"]] = record
    calm -= {pod["metadata"]["uid"] for pod in await rig.pods(plane, where)}
    return {
        **figures(trial, faults, patience),
        "bystanders_lost": len(calm),
        "seconds": round(time.monotonic() - begun),
    }


def figures(trial: Trial, faults: Sequence[Fault], patience: float) -> dict[str, Any]:
    """What the audit log and the records say."""
    plane, where = trial.rig.plane, trial.where
    met, healthy = judge.disruptions(plane, where, {fault.uid for fault in faults})
    times = dict(judge.evictions(plane, where))
    waits = [(times[f.uid] - f.told_at).total_seconds() for f in faults if f.uid in times and f.told_at]
    told = [trial.rig.balancer.told[fault.name] for fault in faults]
    dealt = [fault for fault in faults if fault.strike is not None and fault.strike.replica]
    verdicts = Counter(trial.verdict(fault) or "none" for fault in faults)
    unhandled = sum(met[f.uid] == 0 or trial.verdict(f) is None for f in faults)
    return {
        "faults": len(faults),
        "disruptions_per_fault": round(met.total() / len(faults), 4),
        "evicted_twice": sum(count > 1 for count in met.values()),
        "unhandled": unhandled,
        "late": sum(wait > patience for wait in waits),
        "healthy_evicted": healthy,
        "kills": sum(f.plan is not None and f.plan.blow == "kill" for f in dealt),
        "stops": sum(f.plan is not None and f.plan.blow == "stop" for f in dealt),
        "blows": len({f.plan for f in dealt}),
        "blows_missed": sorted(f.plan.name for f in faults if f.plan and f.plan.step != "event" and f not in dealt),
        # Another blow fell between the verdict and its Event.
        "events_lost": sum(f.plan is not None and f.plan.step == "event" and f not in dealt for f in faults),
        "deliveries": sum(counter.total() for counter in told),
        "deliveries_per_fault": min((counter.total() for counter in told), default=0),
        "deliveries_by_sender": dict(sum(told, Counter())),
        "eviction_after_seconds_p50": round(statistics.median(waits), 2) if waits else None,
        "eviction_after_seconds_most": round(max(waits), 2) if waits else None,
        "verdicts": dict(verdicts),
    }


def breaches(found: dict[str, Any]) -> list[str]:
    """What speaks against once only; nothing if it held."""
    nothing = ("evicted_twice", "unhandled", "late", "healthy_evicted", "blows_missed", "bystanders_lost")
    broken = [f"{name}: {found[name]}" for name in nothing if found[name]]
    once = found["disruptions_per_fault"] == 1
    return broken if once else [f"disruptions_per_fault: {found['disruptions_per_fault']}", *broken]


async def calm_steps(running: Rig) -> list[str]:
    """The writes of a remediation that nobody strikes, told by one event, in the order in which they were sent."""
    where = await rig.namespace(running.plane)
    await rig.make(running.plane, where, "calm", 1)
    await rig.ready(running.plane, where, 1)
    async with rig.session(running.plane) as client:
        trial = Trial(running, where, client, 1)
        fault = Fault("calm", None, (await rig.pods(running.plane, where, "calm"))[0])
        for replica in running.replicas:
            replica.proxy.forget()
        await rig.break_pod(running.plane, fault.pod)
        fault.pod = await trial._looping(fault)  # noqa: SLF001

        async def announced() -> list[Call] | None:
            await trial._tell(fault)  # noqa: SLF001
            await asyncio.sleep(0.5)
            writes = [write for replica in running.replicas for write in replica.proxy.writes]
            return writes if any(write.step == "event" for write in writes) else None

        running.balancer.count(fault.name)
        writes: list[Call] = await eventually(announced, "a calm remediation", patience=60)
    return [write.step for write in writes]


def _tell_progress(fault: Fault, trial: Trial, begun: float) -> None:
    what = "calm" if fault.plan is None else fault.plan.name
    seconds = time.monotonic() - begun
    rig.say(f"{seconds:6.1f} s  {fault.app:10} {what:24} {trial.verdict(fault) or 'NOT SETTLED'}")


async def measure(size: int = 0) -> dict[str, Any]:
    """Run the benchmark: 100 faults, or `size`, on a control plane of its own."""
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home:
        async with rig.cluster(Path(home)) as plane, rig.rig(plane, 2, ACT_WITHIN) as running:
            await running.start_waker(ROUND)
            steps = await calm_steps(running)
            # Open: it was put back because the pod restarted meanwhile. That is as good as the record's first write.
            if set(steps) - {"Open"} != set(STEPS):
                rig.say(f"a calm remediation writes {steps}, but the blows are aimed at {STEPS}")
                return {"holds": False, "steps": steps}
            await start_senders(running)
            faults = [Fault(f"shop-{n}", plan) for n, plan in enumerate(plans(size or 100))]
            found = await run(running, faults)
            starts = sum(replica.starts for replica in running.replicas)
    return {**found, "replica_starts": starts, "holds": not breaches(found)}


async def start_senders(running: Rig) -> None:
    """Let the event path and two Alertmanagers tell of each fault; the waker does so already."""
    await running.start_events()
    for name in ("alertmanager-a", "alertmanager-b"):
        await running.start_alertmanager(name)
