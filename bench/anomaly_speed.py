"""What 10,000 series cost anomaly-scorer on one core: answers of a real Prometheus, with the reading of their JSON.

`python -m bench anomaly-speed`. Measured are, on one core, the fast path (a tick whose window is kept, as in a process
that goes on, and the first one of a new process) and the slow path (what learns from an hour); and over the empty
function the memory and the cold start.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from bench import effort, sides
from kreflex.anomaly import memory
from kreflex.anomaly.codec import Bundle
from kreflex.anomaly.detector import About, Detector
from kreflex.anomaly.feedback import Book
from kreflex.anomaly.learning import meaning_of
from kreflex.anomaly.plugins import detector
from kreflex.anomaly.reading import Samples
from kreflex.anomaly.scoring import Windows, factors_of, groups_of, score
from kreflex.anomaly.watches import Watch, WatchSpec
from kreflex.prom import Metrics
from lab import kubeconfig, processes
from lab.history import Past, prometheus_with
from lab.paths import REPOSITORY
from lab.ports import Ports

SERIES = 10_000
END, MINUTE = 1_700_000_040, 60
_SAMPLES = 200
_TICKS = 5
_STARTS = 5
# What has to hold: seconds a tick, CPU seconds an hour, MiB over the empty function, seconds of a cold start over a
# function of ours that needs no numpy. What the core itself adds to an empty one is judged by `bench cold-start`.
MOST = {
    "fast_seconds": 1.0,
    "slow_cpu_seconds_per_hour": 300.0,
    "extra_mib": 100.0,
    "extra_start_seconds_over_another": 0.2,
}


def _past(series: int) -> Past:
    rng = np.random.default_rng(1)
    times = [END - MINUTE * back for back in range(_SAMPLES - 1, -1, -1)]
    for number in range(series):
        values = 2e8 + rng.normal(0, 1e6, _SAMPLES).cumsum()
        pod = f"shop-{number // 10:04}-{number % 10}"
        labels = {"namespace": f"team-{number % 50}", "pod": pod, "container": "app", "node": f"node-{number % 100}"}
        yield "memory", labels, zip(times, values.round(0).tolist(), strict=True)


def _watch() -> Watch:
    signal = {"name": "memory", "query": "memory", "kind": "memory"}
    target = {"kind": "Pod", "nameLabel": "pod"}
    spec = {"target": target, "signals": [signal], "siblings": ["namespace"], "history": "2h"}
    return Watch("kreflex-system", "pods", "uid", 1, WatchSpec.model_validate(spec))


async def _scored(made: Detector, watch: Watch, windows: Windows, bundle: Bundle, at: float) -> int:
    """Do what one tick does for one signal, up to what is beyond its threshold."""
    signal = watch.spec.signals[0]
    recent = await windows.recent(watch, signal, at, made.window)
    factor = factors_of(Book(), watch, signal, recent)
    scored = await score(made, bundle, watch, signal, recent, About(MINUTE, at, signal.kind, 0.05, None, factor=factor))
    return len(list(scored.findings())) + len(list(scored.simmering()))


async def measured(url: str) -> dict[str, float]:
    """Measure the two paths in this process, on one core."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    made, watch, samples = detector(), _watch(), Samples(Metrics(url))
    signal = watch.spec.signals[0]
    start = END - _TICKS * MINUTE
    history = await samples.window("memory", start, MINUTE, 60 + made.window - 1)
    groups = groups_of(watch, history.labels)
    about = About(MINUTE, start, signal.kind, 0.05, None, groups)
    state = made.learn(history.values, about)
    none = np.full(len(history.keys), float(start))
    bundle = Bundle(made.name, made.version, meaning_of(watch, signal), start, history.keys, state, none, none)

    begun = time.process_time()
    await samples.window("memory", start, MINUTE, 60 + made.window - 1, len(history.keys))
    made.update(state, history.values, about)
    slow = time.process_time() - begun

    windows = Windows(samples)
    begun, cpu = time.perf_counter(), time.process_time()
    await _scored(made, watch, windows, bundle, start)
    cold, cold_cpu = time.perf_counter() - begun, time.process_time() - cpu
    ticks = []
    for number in range(1, _TICKS + 1):
        begun, cpu = time.perf_counter(), time.process_time()
        await _scored(made, watch, windows, bundle, start + number * MINUTE)
        ticks.append((time.perf_counter() - begun, time.process_time() - cpu))
    return {
        "series": len(bundle.keys),
        "fast_seconds": sorted(wall for wall, _ in ticks)[len(ticks) // 2],
        "fast_cpu_seconds": sorted(cpu for _, cpu in ticks)[len(ticks) // 2],
        "fast_cold_seconds": cold,
        "fast_cold_cpu_seconds": cold_cpu,
        "slow_cpu_seconds_per_hour": slow,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "state_bytes_per_series": float(made.dtype.itemsize),
    }


_MEASURED = """
import asyncio, json, sys
from bench.anomaly_speed import measured
print(json.dumps(asyncio.run(measured(sys.argv[1]))))
"""
# What a serving process holds between two ticks: the state, the window, and what they are read with.
_RESIDENT = """
import asyncio, sys
from bench.anomaly_speed import held
print(asyncio.run(held(sys.argv[1])))
"""


async def held(url: str) -> float:
    """Give the MiB that a serving process has resident after some ticks."""
    for module in ("uvicorn", "functions.anomaly_scorer.main"):
        importlib.import_module(module)
    made, watch, samples = detector(), _watch(), Samples(Metrics(url))
    signal = watch.spec.signals[0]
    start = END - _TICKS * MINUTE
    newest = await samples.instant("memory", start)
    state = np.zeros(len(newest.keys), made.dtype)
    # Of none anything is known; but no scale is nothing.
    state["scale"] = 1
    none = np.full(len(newest.keys), float(start))
    bundle = Bundle(made.name, made.version, meaning_of(watch, signal), start, newest.keys, state, none, none)
    windows = Windows(samples)
    for number in range(_TICKS + 1):
        await _scored(made, watch, windows, bundle, start + number * MINUTE)
        memory.give_back()
    return effort.pss_mib(os.getpid())


async def _started(folder: Path, command: list[str | Path], path: str, **settings: str) -> tuple[float, float, float]:
    """Start a server until it answers: the seconds, those of the processor, and the MiB that it holds then."""
    with Ports() as ports:
        port = ports.take()
        paths = (sides.packages(folder / "packages"), REPOSITORY, REPOSITORY / "shared")
        environment = {"PYTHONPATH": ":".join(map(str, paths)), "HOST": "127.0.0.1", "PORT": str(port), **settings}
        begun = time.perf_counter()
        url = f"http://127.0.0.1:{port}{path}"
        command = [*command, "--port", str(port)] if "functions_framework" in command else command
        async with processes.start("side", command, folder / "side.log", environment=environment) as child:
            await child.ready(processes.answers(url))
            seconds = time.perf_counter() - begun
            return seconds, effort.cpu_seconds(child.pid), effort.pss_mib(child.pid)


async def _starts(folder: Path) -> dict[str, float]:
    """Start the function, the empty one and another one in turn; the best of each, for others use this machine, too."""
    config = kubeconfig.write(folder / "config", "http://127.0.0.1:9", folder / "none", "me", "token")
    python = Path(sys.base_prefix) / "bin" / "python3"
    source = str(Path(__file__).with_name("empty_function.py"))
    known = {"KUBECONFIG": str(config), "CALLERS_ACCOUNTS": "kreflex-system/waker", "DRAIN_GRACE": "0s"}
    empty: list[str | Path] = [python, "-m", "functions_framework", "--target", "main", "--asgi", "--source", source]
    ours, others, siblings = [], [], []
    for _ in range(_STARTS):
        ours.append(await _started(folder, [python, "-m", "kreflex", "anomaly-scorer"], "/healthz", **known))
        others.append(await _started(folder, empty, "/"))
        siblings.append(await _started(folder, [python, "-m", "kreflex", "restart-loop-killer"], "/healthz", **known))
    best = [[min(one) for one in zip(*runs, strict=True)] for runs in (ours, others, siblings)]
    return {
        "start_cpu_seconds": best[0][1],
        "empty_start_cpu_seconds": best[1][1],
        "extra_start_seconds": best[0][0] - best[1][0],
        "extra_start_cpu_seconds": best[0][1] - best[1][1],
        # What numpy and the detector add to what all functions pay.
        "extra_start_seconds_over_another": best[0][0] - best[2][0],
        "extra_start_cpu_seconds_over_another": best[0][1] - best[2][1],
        "start_mib": best[0][2],
        "empty_mib": best[1][2],
    }


async def measure(size: int = 0) -> dict[str, Any]:
    """Measure all of it, with 10,000 series or `size`."""
    series = size or SERIES
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as name:
        folder = Path(name)
        async with prometheus_with(folder, _past(series)) as url:
            found = await asyncio.to_thread(_in_a_process, url)
            resident = await asyncio.to_thread(_resident, url)
        starts = await _starts(folder)
    figures = {name: round(value, 4) for name, value in {**found, **starts, "resident_mib": resident}.items()}
    figures["extra_mib"] = round(resident - starts["empty_mib"], 1)
    figures["seconds_per_10000"] = round(figures["fast_seconds"] * 10_000 / series, 4)
    broken = [name for name, most in MOST.items() if figures[name] > most]
    return {**figures, "broken": broken, "holds": not broken}


def _in_a_process(url: str) -> dict[str, float]:
    found: dict[str, float] = json.loads(_output([sys.executable, "-c", _MEASURED, url]))
    return found


def _resident(url: str) -> float:
    return float(_output([sys.executable, "-c", _RESIDENT, url]))


def _output(command: list[str]) -> str:
    environment = {**os.environ, **processes.importable()}
    done = subprocess.run(  # noqa: S603 - its own code
        command, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(done.stderr)
    return done.stdout.splitlines()[-1]
