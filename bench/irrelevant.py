"""Irrelevant: events that are nothing to the function cost no call, and little of the processor."""

import tempfile
from pathlib import Path
from typing import Any

from bench import flood, judge, patients, rig
from bench.rig import Json
from lab import functions
from lab.cluster import ControlPlane, Options
from lab.ports import Ports

EVENTS, WARM = 10_000, 200


async def run(plane: ControlPlane, url: str, events: int) -> dict[str, Any]:
    """Tell of pods that are well, of one that ends, and of other kinds; the figures."""
    where = await rig.namespace(plane)
    messages = [patients.told(body) for body in await _harmless(plane, where)]
    child, headers = plane.children[rig.FUNCTION], rig.caller(plane)
    await flood.flood(child, url, messages, WARM, headers)
    cost = await flood.flood(child, url, messages, events, headers)
    made = judge.between(plane, cost.begun, cost.ended)
    asked = [call for call in made if not call.about_callers]
    return {
        "events": events,
        "bytes": round(sum(len(body) for _, body in messages) / len(messages)),
        "per_second": round(cost.per_second),
        "calls": len(asked),
        "token_reviews": len(made) - len(asked),
        "cpu_seconds": round(cost.cpu_seconds, 2),
        "seconds": round(cost.ended - cost.begun, 2),
        "goals_reached": cost.per_second >= 2000 and not asked,
        "holds": not asked and set(cost.answers) == {204},
    }


async def _harmless(plane: ControlPlane, where: str) -> list[Json]:
    """A healthy pod, one that restarted now and then, one that is being deleted, and a Deployment."""
    (pod,) = await patients.make(plane, where, 1)
    deployment = await plane.api.get(f"/apis/apps/v1/namespaces/{where}/deployments/shop-0")
    restarted = {**pod, "status": patients.looping(pod, restarts=2)}
    deleted = {**pod, "metadata": {**pod["metadata"], "deletionTimestamp": pod["metadata"]["creationTimestamp"]}}
    return [pod, restarted, deleted, {"apiVersion": "apps/v1", "kind": "Deployment", **deployment}]


async def measure(size: int = 0) -> dict[str, Any]:
    """Send 10,000 events, or `size`, to one function on a control plane whose audit log has the reads, too."""
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home, Ports() as ports:
        async with rig.cluster(Path(home), 1, Options(audit_reads=True)) as plane:
            url = await functions.start(plane, rig.FOLDER, ports.take(), rig.callers(plane))
            return await run(plane, url, size or EVENTS)
