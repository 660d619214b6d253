"""Series as clusters have them, and what goes wrong with them: made by seeds, so that all runs have the same.

A shape gives healthy series of one kind of signal, at one sample a minute. A fault changes a series from one minute on.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from kreflex.anomaly.detector import AnomalyClass, Floats, SignalKind

DAY = 1440
MIB = 2.0**20
Rng = np.random.Generator
Make = Callable[[Rng, int], Floats]


@dataclass(frozen=True)
class Case:
    """One series before its fault, and when that begins."""

    rng: Rng
    values: Floats
    at: int
    limit: float

    def with_(self, minutes: int, values: Floats | float) -> Floats:
        """Put something else in the place of the first minutes of the fault."""
        changed = self.values.copy()
        changed[self.at : self.at + minutes] = values
        return changed

    def times(self, minutes: int, factor: float) -> Floats:
        """Multiply the first minutes of the fault; a limit stays well above."""
        most = np.inf if np.isnan(self.limit) else 0.85 * self.limit
        return self.with_(minutes, np.minimum(self.values[self.at : self.at + minutes] * factor, most))


Break = Callable[[Case], tuple[Floats, int]]


@dataclass(frozen=True)
class Shape:
    """Healthy series of one kind; `limit` is how much more than their highest value they may be."""

    name: str
    kind: SignalKind
    make: Make
    limit: tuple[float, float] | None = None


@dataclass(frozen=True)
class Fault:
    """What goes wrong, with series of which shapes; `change` gives the series, and until when it has to be found."""

    name: str
    class_: AnomalyClass
    shapes: tuple[str, ...]
    change: Break


# Healthy series.


def _wander(rng: Rng, minutes: int, share: float, memory: float = 0.9) -> Floats:
    """Give noise that remembers: 1 in the middle, so much around it."""
    noise = rng.normal(0, share * np.sqrt(1 - memory**2), minutes)
    found = np.empty(minutes)
    last = 0.0
    for minute, step in enumerate(noise):
        last = memory * last + step
        found[minute] = last
    return 1 + found


def _day(rng: Rng, minutes: int, low: float) -> Floats:
    """Give a day and a night in turn: 1 at its peak, `low` in its trough."""
    phase, sharp = rng.uniform(0, 2 * np.pi), rng.uniform(0.7, 1.5)
    wave = (1 + np.sin(2 * np.pi * np.arange(minutes) / DAY + phase)) / 2
    return np.asarray(low + (1 - low) * wave**sharp)


def _moments(rng: Rng, minutes: int, low: float, high: float) -> list[int]:
    """Give moments that are between `low` and `high` minutes apart."""
    found, at = [], rng.uniform(0, high)
    while at < minutes:
        found.append(int(at))
        at += rng.uniform(low, high)
    return found


def _since(minutes: int, starts: list[int]) -> Floats:
    """Tell of each minute how long it is since the last start; the first part begins long before."""
    since, last = np.arange(minutes) + 10.0 * DAY, 0
    for last in starts:
        since[last:] = np.arange(minutes - last)
    return np.asarray(since, dtype=float)


def _size(rng: Rng) -> float:
    return float(rng.uniform(80, 600)) * MIB


def steady(rng: Rng, minutes: int) -> Floats:
    """Memory of what has all that it needs."""
    return _size(rng) * _wander(rng, minutes, rng.uniform(0.002, 0.02))


def heap(rng: Rng, minutes: int) -> Floats:
    """Memory of what collects garbage: it rises, and falls at once, each few minutes or each hour."""
    pause = float(np.exp(rng.uniform(np.log(4), np.log(120))))
    starts = _moments(rng, minutes, 0.7 * pause, 1.3 * pause)
    share = np.minimum(_since(minutes, starts) / pause, 1.3)
    return np.asarray(_size(rng) * (1 + rng.uniform(0.2, 1.5) * share) * _wander(rng, minutes, 0.01))


def cache(rng: Rng, minutes: int) -> Floats:
    """Memory of a cache: after each start it fills, ever slower, and is full."""
    since = _since(minutes, _moments(rng, minutes, 1.2 * DAY, 3.5 * DAY))
    full, pace = rng.uniform(1, 4), rng.uniform(40, 400)
    return np.asarray(_size(rng) * (1 + full * (1 - np.exp(-since / pace))) * _wander(rng, minutes, 0.005))


def waves(rng: Rng, minutes: int) -> Floats:
    """Memory that goes with the day's load."""
    return _size(rng) * _day(rng, minutes, rng.uniform(0.4, 0.8)) * _wander(rng, minutes, 0.01)


def releases(rng: Rng, minutes: int) -> Floats:
    """Memory of what is released once or twice a day, and warms up each time."""
    since = _since(minutes, _moments(rng, minutes, 0.4 * DAY, 1.6 * DAY))
    return np.asarray(_size(rng) * (1 - 0.7 * np.exp(-since / rng.uniform(3, 20))) * _wander(rng, minutes, 0.01))


def jobs(rng: Rng, minutes: int) -> Floats:
    """Memory of what has a job now and then, of some minutes each."""
    busy = np.zeros(minutes)
    for start in _moments(rng, minutes, 60, 700):
        busy[start : start + int(rng.uniform(5, 50))] = rng.uniform(0.5, 2)
    return _size(rng) * (1 + busy) * _wander(rng, minutes, 0.01)


def nightly(rng: Rng, minutes: int) -> Floats:
    """Memory of what leaks a little, and is started anew each night before it hurts: its usual way."""
    starts = [int(rng.integers(0, DAY)) + number * DAY for number in range(-1, minutes // DAY + 1)]
    first = starts[0] % DAY
    since = (np.arange(minutes) - first) % DAY
    return _size(rng) * (1 + rng.uniform(0.3, 1) * since / DAY) * _wander(rng, minutes, 0.01)


def logs(rng: Rng, minutes: int) -> Floats:
    """A disk that fills with logs, and is cleared each day."""
    since = (np.arange(minutes) + int(rng.integers(0, DAY))) % DAY
    written = rng.uniform(0.05, 0.4) * since / DAY * _wander(rng, minutes, 0.01)
    return 2e10 * (1 + written) * _wander(rng, minutes, 0.0005)


def archive(rng: Rng, minutes: int) -> Floats:
    """A disk that fills over months, with some files that come and go."""
    grown = rng.uniform(0, 0.01) * np.arange(minutes) / DAY
    return 5e10 * (1 + grown) * _wander(rng, minutes, 0.002, 0.97)


def shares(rng: Rng, minutes: int) -> Floats:
    """What is used of a quota: in steps, with releases and with the day's load."""
    usual = rng.integers(5, 60) * _day(rng, minutes, rng.uniform(0.6, 1))
    found = np.round(usual / 2) * 2
    for start in _moments(rng, minutes, 120, 900):
        found[start : start + int(rng.uniform(3, 12))] += rng.integers(1, 4)
    return np.asarray(found)


def cpu(rng: Rng, minutes: int) -> Floats:
    """Cores: noise, the day's load, and something each hour."""
    base = rng.uniform(0.1, 1.5) * _day(rng, minutes, rng.uniform(0.2, 0.9))
    every = int(rng.choice([0, 60, 60, 360]))
    busy = np.zeros(minutes)
    if every:
        for start in range(int(rng.integers(0, every)), minutes, every):
            busy[start : start + int(rng.uniform(1, 5))] = rng.uniform(0.2, 0.6)
    return (base + busy) * np.exp(rng.normal(0, rng.uniform(0.05, 0.2), minutes))


def requests(rng: Rng, minutes: int) -> Floats:
    """Requests a second over five minutes: a day and a night, and noise."""
    rate = rng.uniform(2, 400) * _day(rng, minutes, rng.uniform(0.1, 0.6))
    counted = rng.poisson(np.maximum(rate * 60, 0)) / 60
    smooth = np.convolve(counted, np.ones(5) / 5)[:minutes]
    return np.asarray(smooth * _wander(rng, minutes, 0.03))


def latency(rng: Rng, minutes: int) -> Floats:
    """Seconds, with a tail."""
    found = rng.uniform(0.02, 0.5) * np.exp(rng.normal(0, rng.uniform(0.05, 0.25), minutes))
    slow = rng.random(minutes) < 0.002
    return np.asarray(np.where(slow, found * rng.uniform(1.5, 3, minutes), found))


def errors(rng: Rng, minutes: int) -> Floats:
    """The share of requests that fail: mostly none."""
    return np.asarray(rng.poisson(rng.uniform(0.02, 2), minutes) / rng.uniform(200, 5000))


def throttled(rng: Rng, minutes: int) -> Floats:
    """The share of periods that were throttled: none, but for bursts."""
    found = np.zeros(minutes)
    for start in _moments(rng, minutes, 20, 300):
        found[start : start + int(rng.uniform(1, 8))] = rng.uniform(0.02, 0.3)
    return found


def replicas(rng: Rng, minutes: int) -> Floats:
    """Replicas that an HPA sets by the day's load: in whole numbers, and not sooner than after five minutes."""
    wanted = rng.uniform(4, 30) * _day(rng, minutes, rng.uniform(0.2, 0.7)) * _wander(rng, minutes, 0.04)
    found, now, since = np.empty(minutes), round(wanted[0]), 0
    for minute, want in enumerate(wanted):
        since += 1
        if since >= 5 and abs(want - now) > 0.1 * now:
            now, since = max(1, round(want)), 0
        found[minute] = now
    return found


def received(rng: Rng, minutes: int) -> Floats:
    """Bytes a second: bursts of all sizes."""
    return np.asarray(1e5 * (1 + rng.pareto(rng.uniform(2, 4), minutes)) * _day(rng, minutes, 0.5))


SHAPES = (
    Shape("steady", "memory", steady, (1.5, 4)),
    Shape("heap", "memory", heap, (1.2, 3)),
    Shape("cache", "memory", cache, (1.2, 2)),
    Shape("waves", "memory", waves, (1.3, 3)),
    Shape("releases", "memory", releases, (1.3, 3)),
    Shape("jobs", "memory", jobs, (1.2, 2)),
    Shape("nightly", "memory", nightly, (1.1, 2)),
    Shape("logs", "disk", logs, (1.2, 3)),
    Shape("archive", "disk", archive, (1.2, 3)),
    Shape("shares", "quota", shares, (1.3, 3)),
    Shape("cpu", "cpu", cpu, (1.2, 2)),
    Shape("requests", "traffic", requests),
    Shape("latency", "latency", latency),
    Shape("errors", "errors", errors),
    Shape("throttled", "saturation", throttled),
    Shape("replicas", "replicas", replicas),
    Shape("received", "traffic", received),
)


# What goes wrong: the series then, and until when it has to be found.


def growing(hours: float, *, whole: bool = False) -> Break:
    """From now on it grows, until it is at its limit after so many hours; there it ends."""

    def change(case: Case) -> tuple[Floats, int]:
        # It may bend, but not much: caches bend.
        bend = case.rng.uniform(0.85, 1.2)
        usual = float(np.max(case.values[case.at - 60 : case.at]))
        passed = np.maximum(np.arange(len(case.values)) - case.at, 0) / (60 * hours)
        changed = case.values + (case.limit - usual) * passed**bend
        changed = np.round(changed) if whole else changed
        over = np.flatnonzero(changed[case.at :] >= case.limit)
        end = case.at + int(over[0]) if len(over) else len(changed) - 1
        changed[end:] = np.nan
        return changed, end

    return change


def flapping(case: Case) -> tuple[Floats, int]:
    """Up and down each two to four minutes."""
    up = np.arange(60) // int(case.rng.integers(2, 5)) % 2 > 0
    here = float(case.values[case.at])
    return case.with_(60, np.round(np.where(up, here * case.rng.uniform(1.4, 2.5) + 1, max(1, here / 2)))), case.at + 30


def frozen(case: Case) -> tuple[Floats, int]:
    """The same value for six hours."""
    return case.with_(360, float(case.values[case.at])), case.at + 120


def absent(case: Case) -> tuple[Floats, int]:
    """Nothing is told for two hours."""
    return case.with_(120, np.nan), case.at + 30


def capped(case: Case) -> tuple[Floats, int]:
    """As much as it may have, for an hour."""
    return case.with_(60, case.limit * (1 - abs(case.rng.normal(0, 0.01, 60)))), case.at + 15


def stopped(case: Case) -> tuple[Floats, int]:
    """Nearly nothing comes in for half an hour."""
    return case.times(30, case.rng.uniform(0, 0.03)), case.at + 15


def shifted(case: Case) -> tuple[Floats, int]:
    """Another level for three hours."""
    return case.times(180, case.rng.uniform(1.8, 3.5)), case.at + 15


def spiking(case: Case) -> tuple[Floats, int]:
    """One to three minutes of many times as much."""
    return case.times(int(case.rng.integers(1, 4)), case.rng.uniform(5, 10)), case.at + 5


def unseasonable(case: Case) -> tuple[Floats, int]:
    """It goes over to what it was half a day ago within an hour: a night by day, or a day by night."""
    at, before = case.at, case.at - DAY // 2
    share = np.clip(np.arange(360) / 60, 0, 1)
    other = (1 - share) * case.values[at : at + 360] + share * case.values[before : before + 360]
    return case.with_(360, other), at + 240


_MEMORY = ("steady", "heap", "cache", "waves", "releases", "jobs")
FAULTS = (
    *(Fault(f"leak {hours} h", "leak", _MEMORY, growing(hours)) for hours in (2, 6, 12, 24)),
    *(Fault(f"disk {hours} h", "exhaustion", ("logs", "archive"), growing(hours)) for hours in (2, 6, 12, 24)),
    *(Fault(f"quota {hours} h", "exhaustion", ("shares",), growing(hours, whole=True)) for hours in (2, 6, 12, 24)),
    Fault("flapping", "thrash", ("replicas",), flapping),
    Fault("frozen", "flatline", ("cpu", "requests", "latency", "received", "steady", "heap"), frozen),
    Fault("absent", "absent", ("cpu", "requests", "steady", "heap", "replicas"), absent),
    Fault("capped", "saturation", ("cpu",), capped),
    Fault("stopped", "dropout", ("requests", "received"), stopped),
    Fault("shifted", "level-shift", ("latency", "steady", "requests", "cpu"), shifted),
    Fault("spiking", "spike", ("latency", "requests", "cpu", "steady"), spiking),
    Fault("unseasonable", "season", ("requests", "waves"), unseasonable),
)
