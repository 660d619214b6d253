"""Idle: records that wait (for their proof, a thaw, a person, or under a dry run) cause no write and no call.

The pods that were not evicted go on looping, so the event path tells of them again and again.
"""

import asyncio
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from bench import judge, rig
from bench.rig import Rig
from lab.api import eventually
from lab.cluster import ControlPlane

SECONDS, ROUND = 600, 2.0
WAITS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("Applied applied", {"proof": "30m", "proveWithin": "1h"}),
    ("Open refused", {"frozen": True}),
    ("Open refused", {"mode": "DryRun"}),
    ("Open deferred", {"limits": {"maxInFlight": 0}}),
    ("Open awaiting-approval", {"mode": "Approve"}),
)


async def states(plane: ControlPlane, where: str) -> list[str]:
    """Each record's phase and outcome."""
    found = [record.get("status", {}) for record in await rig.records(plane, where)]
    return [f"{status.get('phase')} {status.get('outcome')}" for status in found]


async def prepare(running: Rig) -> str:
    """Make one record that waits for each of the reasons; the namespace that is frozen."""
    plane = running.plane
    places = {await rig.namespace(plane, **spec): expected for expected, spec in WAITS}
    for where in places:
        await rig.make(plane, where, "shop", 1)
        (pod,) = await rig.ready(plane, where, 1)
        await rig.break_pod(plane, pod, speed=10)

    async def waiting() -> bool:
        return all([await states(plane, where) == [expected] for where, expected in places.items()])

    await eventually(waiting, "records that wait", patience=90)
    await asyncio.sleep(10)  # The successor becomes Ready, and the decisions' Events are written.
    return next(where for where, spec in zip(places, WAITS, strict=True) if spec[1].get("frozen"))


async def wakes(running: Rig, where: str) -> bool:
    """Thaw a namespace, and tell whether the waker calls: it could have been silent because it was dead."""
    calls = running.balancer.requests["waker"]
    await rig.set_policy(running.plane, where)
    return await rig.until(lambda: running.balancer.requests["waker"] > calls, 30)


async def measure(size: int = 0) -> dict[str, Any]:
    """Wait 10 minutes, or `size` seconds, and count what is written and called meanwhile."""
    seconds = size or SECONDS
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home:
        async with rig.cluster(Path(home)) as plane, rig.rig(plane, 1, 10) as running:
            await running.start_events()
            await running.start_waker(ROUND)
            frozen = await prepare(running)
            writes, told = len(list(judge.writes(plane))), Counter(running.balancer.requests)
            limit = time.monotonic() + seconds
            while time.monotonic() < limit:
                await asyncio.sleep(min(30, max(limit - time.monotonic(), 0)))
                rig.say(f"{limit - time.monotonic():6.0f} s to go, {running.balancer.requests - told} requests")
            made = [f"{entry['verb']} {entry['requestURI']}" for entry in judge.writes(plane)][writes:]
            calls = running.balancer.requests - told
            awake = await wakes(running, frozen)
    found = {"seconds": seconds, "records": len(WAITS), "writes": len(made), "waker_calls": calls["waker"]}
    holds = not made and not calls["waker"] and awake
    return {**found, "events": calls["apiserver"], "waker_awake_after": awake, "made": made[:10], "holds": holds}
