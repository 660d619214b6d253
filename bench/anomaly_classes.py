"""How each class of anomaly does on series of which all is known: `python -m bench anomaly-classes --json`.

Series that are as they should be (bench/anomaly_shapes.py) tell how often each class cries wolf, in false alarms per
series-day. The same kinds of series with a fault tell which share is found in time, and which share of those by its
name, as the Anomaly would have it: an episode goes by the name that it had first in its family. `named_later` is the
share of which the Anomaly's signals say so later on: of a level shift the first sample is a spike.

`KREFLEX_ANOMALY_SALT` makes other series of the same kinds: nothing was chosen by those of a salt that is new.

They are made, so they say how a detector does what it is meant for, and nothing of what clusters are like. All that is
chosen by series that others have recorded is in `python -m bench anomaly`.
"""

from __future__ import annotations

import asyncio
import os
import sys
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bench.anomaly_shapes import DAY, FAULTS, SHAPES, Case, Fault, Shape
from kreflex.anomaly.agreement import family
from kreflex.anomaly.detector import CLASSES, About, Floats, Kinds
from kreflex.anomaly.engine import Calibrated, scored

HISTORY, HEALTHY, BROKEN = 5 * DAY, 2 * DAY, DAY + 10 * 60
# Series of each shape, and of each fault on each shape.
SERIES, FAULTY = 40, 10
STEP, WANTED = 60.0, 0.05
HOUR = 60
SALT = os.environ.get("KREFLEX_ANOMALY_SALT", "")
END = 1_700_000_000 // 86_400 * 86_400.0
# What has to hold. False alarms are those per series-day of all series, and of one class among those that may have it.
MOST, MOST_OF_A_CLASS = 0.08, 0.05
LEAST_FOUND, LEAST_NAMED = 0.8, 0.8


@dataclass(frozen=True)
class Batch:
    """Series of one shape, with their limits; each begins with its history."""

    shape: Shape
    values: Floats
    limits: Floats | None

    def of(self, rows: slice) -> Batch:
        return Batch(self.shape, self.values[rows], None if self.limits is None else self.limits[rows])


@dataclass
class Tally:
    events: int = 0
    found: int = 0
    named: int = 0
    later: int = 0
    delays: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    called: Counter[str] = field(default_factory=Counter)

    @property
    def figures(self) -> dict[str, Any]:
        told: dict[str, Any] = {
            "events": self.events,
            "found": round(self.found / max(self.events, 1), 3),
            "named": round(self.named / max(self.found, 1), 3),
            "named_later": round(self.later / max(self.found, 1), 3),
            "minutes": float(np.median(self.delays)) if self.delays else None,
        }
        return told | ({"minutes_left": float(np.median(self.left))} if self.left else {})


async def measure(size: int) -> dict[str, Any]:
    """Give the figures; `size` is how many series there are of each shape."""
    return await asyncio.to_thread(_measured, size or SERIES)


def _measured(series: int) -> dict[str, Any]:
    false = {shape.name: _false_alarms(made(shape, series, HEALTHY)) for shape in SHAPES}
    faults = {fault.name: _tally(fault, max(1, series * FAULTY // SERIES)) for fault in FAULTS}
    days = {shape.name: series * HEALTHY / DAY for shape in SHAPES}
    alarms: Counter[str] = sum(false.values(), Counter())
    figures: dict[str, Any] = {
        "false_alarms_per_series_day": round(alarms.total() / sum(days.values()), 4),
        "by_class": {
            name: _of_class(name, alarms, [tally for fault, tally in faults.items() if _class(fault) == name], days)
            for name in (*sorted({fault.class_ for fault in FAULTS}), "anomaly")
        },
        "by_fault": {name: tally.figures | {"called": dict(tally.called)} for name, tally in faults.items()},
        "by_shape": {name: {cls: round(n / days[name], 4) for cls, n in false[name].items()} for name in false},
    }
    return {**figures, "broken": (broken := _broken(figures)), "holds": not broken}


def _class(fault: str) -> str:
    return next(one.class_ for one in FAULTS if one.name == fault)


def _of_class(name: str, alarms: Counter[str], tallies: Sequence[Tally], days: dict[str, float]) -> dict[str, Any]:
    """Give a class' figures; its false alarms are told for the series that may have it."""
    may = [shape.name for shape in SHAPES if _may_be(shape, name)]
    whole = Tally()
    for tally in tallies:
        whole.events, whole.found = whole.events + tally.events, whole.found + tally.found
        whole.named, whole.later = whole.named + tally.named, whole.later + tally.later
        whole.delays += tally.delays
        whole.left += tally.left
    rate = alarms[name] / sum(days[one] for one in may)
    return (whole.figures if tallies else {}) | {"false_alarms_per_series_day": round(rate, 4)}


def _may_be(shape: Shape, name: str) -> bool:
    only = {"leak": {"memory"}, "exhaustion": {"disk", "quota"}}.get(name)
    return only is None or shape.kind in only


def _broken(figures: dict[str, Any]) -> list[str]:
    broken = [] if figures["false_alarms_per_series_day"] <= MOST else ["false alarms"]
    for name, one in figures["by_class"].items():
        broken += [f"{name}: false alarms"] if one["false_alarms_per_series_day"] > MOST_OF_A_CLASS else []
        broken += [f"{name}: found"] if one.get("found", 1) < LEAST_FOUND else []
        broken += [f"{name}: named"] if one.get("named_later", 1) < LEAST_NAMED else []
    return broken


def made(shape: Shape, series: int, scored_: int, salt: str = "") -> Batch:
    """Make series of a shape: the same in each run with the same salt."""
    rng = _dice(f"{shape.name}/{salt}")
    values = np.stack([shape.make(rng, HISTORY + scored_) for _ in range(series)])
    if shape.limit is None:
        return Batch(shape, values, None)
    return Batch(shape, values, values.max(axis=1) * rng.uniform(*shape.limit, series))


def _dice(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(f"{name}{SALT}".encode()))


def _tally(fault: Fault, series: int) -> Tally:
    tally = Tally()
    for name in fault.shapes:
        shape = next(one for one in SHAPES if one.name == name)
        batch = made(shape, series, BROKEN, fault.name)
        rng = _dice(f"{fault.name}/{name}")
        values, spans = batch.values.copy(), []
        for row in range(series):
            at = HISTORY + int(rng.uniform(2 * HOUR, 6 * HOUR))
            limit = np.nan if batch.limits is None else float(batch.limits[row])
            values[row], end = fault.change(Case(rng, batch.values[row], at, limit))
            spans.append((at - HISTORY, min(end, HISTORY + BROKEN - 1) - HISTORY))
        score, kinds = played(Batch(shape, values, batch.limits))
        for row, (start, end) in enumerate(spans):
            _count(tally, fault, score[row, start : end + 1], kinds[row, start : end + 1])
    sys.stderr.write(f"{fault.name}: {tally.found} of {tally.events}, {tally.named} named\n")
    return tally


def _count(tally: Tally, fault: Fault, score: Floats, kinds: Kinds) -> None:
    """Count one fault: found if it is flagged at all, and named if an episode bears its name."""
    tally.events += 1
    loud = np.flatnonzero(np.nan_to_num(score) >= 1)
    if not len(loud):
        return
    names = _first_names(CLASSES[kinds[at]] for at in loud)
    tally.found += 1
    tally.later += any(CLASSES[kinds[at]] == fault.class_ for at in loud)
    tally.named += fault.class_ in names
    tally.called[next(iter(names))] += 1
    tally.delays.append(int(loud[0]))
    if fault.class_ in {"leak", "exhaustion"} and fault.class_ in names:
        first = next(at for at in loud if CLASSES[kinds[at]] == fault.class_)
        tally.left.append(len(score) - 1 - int(first))


def _first_names(names: Iterable[str]) -> list[str]:
    """Give the names of the episodes: in each family the first."""
    found: dict[str, str] = {}
    for name in names:
        found.setdefault(family(name), name)
    return list(found.values())


def _false_alarms(batch: Batch) -> Counter[str]:
    score, kinds = played(batch)
    found: Counter[str] = Counter()
    for row in range(len(score)):
        found.update(_alarms(score[row], kinds[row]))
    sys.stderr.write(f"{batch.shape.name}: {dict(found)}\n")
    return found


def _alarms(score: Floats, kinds: Kinds) -> Iterator[str]:
    """Name the alarms of a healthy series; in each family one, until it was silent for an hour."""
    last: dict[str, int] = {}
    for at in np.flatnonzero(np.nan_to_num(score) >= 1):
        name = CLASSES[kinds[at]]
        if at - last.get(family(name), -HOUR) >= HOUR:
            yield name
        last[family(name)] = int(at)


def played(batch: Batch) -> tuple[Floats, Kinds]:
    """Score what comes after the history as production does: learnt once, and each hour going on to learn."""
    detector = Calibrated()
    size, count = detector.window, batch.values.shape[1] - HISTORY
    state = detector.learn(batch.values[:, :HISTORY], _about(batch, HISTORY - 1))
    scores, kinds = np.full((len(batch.values), count), np.nan), np.zeros((len(batch.values), count), np.uint8)
    for first in range(HISTORY, HISTORY + count, HOUR):
        if first > HISTORY:
            state = detector.update(state, batch.values[:, first - HOUR - size + 1 : first], _about(batch, first - 1))
        last = min(first + HOUR, HISTORY + count)
        found = _hour(state, batch, first, last, size)
        scores[:, first - HISTORY : last - HISTORY], kinds[:, first - HISTORY : last - HISTORY] = found
    return scores, kinds


def _hour(state: np.ndarray[Any, Any], batch: Batch, first: int, last: int, size: int) -> tuple[Floats, Kinds]:
    """Score the samples of one hour at once, as `score` does one by one."""
    views = np.lib.stride_tricks.sliding_window_view(batch.values[:, first - size + 1 : last], size, axis=1)
    rows, samples = len(batch.values), last - first
    ends = np.tile(END + STEP * np.arange(first, last), rows)[:, None]
    about = _about(batch, last - 1, samples)
    found = scored(np.repeat(state, samples), views.reshape(rows * samples, size), ends, about)
    return found.score.reshape(rows, samples), found.kind.reshape(rows, samples)


def _about(batch: Batch, at: int, samples: int = 1) -> About:
    limit = None if batch.limits is None else np.repeat(batch.limits, samples)
    return About(STEP, END + STEP * at, batch.shape.kind, WANTED, limit)
