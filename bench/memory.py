"""Memory: what a function holds after many events, against an empty function after as many requests."""

import tempfile
from pathlib import Path
from typing import Any

from bench import effort, flood, judge, patients, rig, sides
from bench.flood import Message
from bench.rig import Json
from lab.cluster import ControlPlane
from lab.ports import Ports

EVENTS, FAULTS = 5000, 20


async def run(plane: ControlPlane, ports: Ports, events: int) -> dict[str, Any]:
    """Serve the same number of requests on both sides; the figures."""
    healthy = await sides.healthy_pod(plane)
    ours = await sides.ours(plane, healthy)
    empty = sides.empty(ours)
    mine, url, _ = await sides.started(plane, ours, ports)
    others, empty_url, _ = await sides.started(plane, empty, ports)
    fresh = {"ours": effort.pss_mib(mine.pid), "empty": effort.pss_mib(others.pid)}
    where, ill = await _patients(plane)
    caller, messages = rig.caller(plane), [patients.told(pod) for pod in ill]
    acted = await flood.flood(mine, url, messages, len(messages), caller)
    mixed: list[Message] = [(ours.headers, ours.body), *messages, patients.told(healthy)]
    cost = await flood.flood(mine, url, mixed, events, caller)
    quiet = await flood.flood(others, empty_url, mixed, events + len(messages), caller)
    evicted, _ = judge.disruptions(plane, where, {pod["metadata"]["uid"] for pod in ill})
    ours_mib, empty_mib = effort.pss_mib(mine.pid), effort.pss_mib(others.pid)
    return {
        "events": events,
        "remediations": sum(evicted.values()),
        "ratio": round(ours_mib / empty_mib, 2),
        "ours_mib": round(ours_mib, 1),
        "empty_mib": round(empty_mib, 1),
        "ours_processes": len(effort.family(mine.pid)),
        "empty_processes": len(effort.family(others.pid)),
        "ours_first_event_mib": round(fresh["ours"], 1),
        "empty_first_request_mib": round(fresh["empty"], 1),
        "goals_reached": ours_mib / empty_mib <= 1.15,
        "holds": set(acted.answers) == {200} and set(cost.answers) == {204} and set(quiet.answers) == {200},
    }


async def _patients(plane: ControlPlane) -> tuple[str, list[Json]]:
    where = await rig.namespace(plane, proof="30m", proveWithin="1h")
    return where, await patients.fall_ill(plane, await patients.make(plane, where, FAULTS))


async def measure(size: int = 0) -> dict[str, Any]:
    """Serve 5,000 events, or `size`, 20 remediations before them."""
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home, Ports() as ports:
        async with rig.cluster(Path(home), 1) as plane:
            return await run(plane, ports, size or EVENTS)
