"""Cold start: from spawn to the first event answered with one real read, against an empty function's first answer."""

import statistics
import tempfile
from pathlib import Path
from typing import Any

from bench import effort, rig, sides
from bench.sides import Side
from lab.cluster import ControlPlane
from lab.ports import Ports

PAIRS = 21


async def run(plane: ControlPlane, ports: Ports, pairs: int) -> dict[str, Any]:
    """Start both in turn, the order changing; the figures."""
    ours = await sides.ours(plane, await sides.healthy_pod(plane))
    empty = sides.empty(ours)
    found: dict[str, list[tuple[float, float]]] = {"ours": [], "empty": []}
    for side in (ours, empty):
        await _once(plane, ports, side)  # From here on the bytecode and the files are cached for both.
    for number in range(pairs):
        for side in (ours, empty) if number % 2 else (empty, ours):
            found[side.name].append(await _once(plane, ports, side))
        rig.say(f"{number + 1} of {pairs}: {found['ours'][-1][0]:.3f} s, empty {found['empty'][-1][0]:.3f} s")
    return _figures(found["ours"], found["empty"])


async def _once(plane: ControlPlane, ports: Ports, side: Side) -> tuple[float, float]:
    """The seconds until the answer, and those of the processor."""
    child, _, seconds = await sides.started(plane, side, ports)
    used = effort.cpu_seconds(child.pid)
    await plane.stop_child(child.name)
    return seconds, used


def _figures(ours: list[tuple[float, float]], empty: list[tuple[float, float]]) -> dict[str, Any]:
    (mine, mine_cpu), (others, others_cpu) = (
        [statistics.median(one) for one in zip(*runs, strict=True)] for runs in (ours, empty)
    )
    ratio = mine / others
    return {
        "pairs": len(ours),
        "ratio": round(ratio, 2),
        "ratio_of_pairs": round(statistics.median(a[0] / b[0] for a, b in zip(ours, empty, strict=True)), 2),
        "cpu_ratio": round(mine_cpu / others_cpu, 2),
        "ours_ms": round(1000 * mine),
        "empty_ms": round(1000 * others),
        "ours_cpu_ms": round(1000 * mine_cpu),
        "empty_cpu_ms": round(1000 * others_cpu),
        "goals_reached": ratio <= 1.5,
        "stretch_reached": ratio <= 1.25,
        "holds": True,
    }


async def measure(size: int = 0) -> dict[str, Any]:
    """Start 21 of each, or `size`, beside a control plane that answers the read."""
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home, Ports() as ports:
        async with rig.cluster(Path(home), 1) as plane:
            return await run(plane, ports, size or PAIRS)
