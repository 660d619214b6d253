"""What is seen of a query now, what was expected, and where the threshold is: for a person at a terminal."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np

from kreflex.anomaly.codec import Bundle
from kreflex.anomaly.detector import CLASSES, About, Detector, Floats
from kreflex.anomaly.episodes import number
from kreflex.anomaly.events import plain
from kreflex.anomaly.feedback import Book
from kreflex.anomaly.scoring import Sampling, factors_of, groups_of, limits_of, score, there
from kreflex.anomaly.watches import Signal, Watch

# Each halves the interval in which the threshold is.
_HALVES = 30
_DOUBLINGS = 60

Scoring = Callable[[Floats], Awaitable[Floats]]


@dataclass(frozen=True)
class Explained:
    """One series: what is seen, and from where on it would be beyond its threshold."""

    signal: str
    series: str
    value: float
    score: float
    flag: bool
    class_: str
    low: float
    high: float
    factor: float
    evidence: Mapping[str, float]

    @property
    def text(self) -> str:
        """All of it, in a few lines."""
        verdict = f"BEYOND ITS THRESHOLD: {self.class_}" if self.flag else "as ever"
        verdict = verdict if math.isfinite(self.score) else "nothing can be said yet: too little history"
        lines = [f"{self.series or '{}'}  {self.signal}", f"  {verdict}"]
        lines.append(f"  seen       {_shown(self.value)}")
        if "expected" in self.evidence:
            lines.append(f"  expected   {_shown(self.evidence['expected'])}")
        lines.append(f"  threshold  below {_shown(self.low)} or above {_shown(self.high)}")
        factor = f", moved by feedback: {self.factor:g}" if self.factor != 1 else ""
        lines.append(f"  score      {self.score:.3f} (1 is the threshold{factor})")
        rest = {name: value for name, value in self.evidence.items() if name not in {"value", "expected"}}
        if rest:
            lines.append("  why        " + ", ".join(f"{name} {number(value)}" for name, value in sorted(rest.items())))
        return "\n".join(lines)

    @property
    def json(self) -> dict[str, object]:
        """All of it, for programs."""
        return {
            "signal": self.signal,
            "series": self.series,
            "value": _finite(self.value),
            "score": _finite(self.score),
            "flag": self.flag,
            "class": self.class_ if self.flag else "",
            "below": _finite(self.low),
            "above": _finite(self.high),
            "factor": self.factor,
            "evidence": dict(self.evidence),
        }


def _shown(value: float) -> str:
    return number(value) if math.isfinite(value) else "none"


def _finite(value: float) -> float | None:
    return float(f"{value:.6g}") if math.isfinite(value) else None


async def explain(
    samples: Sampling,
    detector: Detector,
    watch: Watch,
    signal: Signal,
    at: float,
    bundle: Bundle | None = None,
    book: Book | None = None,
) -> list[Explained]:
    """Explain each series of a signal, the loudest first. Without a state, one is learnt here from the history."""
    if bundle is None:
        bundle = await _learnt(samples, detector, watch, signal, at)
    recent = there(await samples.window(signal.query, at, watch.step, detector.window))
    limit = limits_of(recent.labels, await samples.instant(signal.limit, at)) if signal.limit else None
    factor = factors_of(book, watch, signal, recent) if book else None
    about = About(
        watch.step,
        at,
        signal.kind,
        watch.spec.false_alarms_per_series_day,
        limit,
        factor=factor,
        horizon=watch.spec.horizon.total_seconds(),
    )
    scored = await score(detector, bundle, watch, signal, recent, about)

    async def scores_of(values: Floats) -> Floats:
        changed = replace(recent, values=np.concatenate((recent.values[:, :-1], values[:, None]), axis=1))
        return (await score(detector, bundle, watch, signal, changed, about)).scores.score

    expected = scored.scores.evidence.get("expected", np.nanmedian(recent.values[:, :-1], axis=1))
    low, high = [await _threshold(scores_of, recent.values, expected, sign) for sign in (-1.0, 1.0)]
    rows = [
        Explained(
            signal.name,
            recent.keys[row],
            float(recent.values[row, -1]),
            float(scored.scores.score[row]),
            row in set(scored.flagged),
            CLASSES[int(scored.scores.kind[row])],
            float(low[row]),
            float(high[row]),
            scored.factor(row),
            plain({name: float(values[row]) for name, values in scored.scores.evidence.items()}),
        )
        for row in range(len(recent.keys))
    ]
    return sorted(rows, key=lambda one: (not one.flag, -np.nan_to_num(one.score, nan=-1.0), one.series))


async def _learnt(samples: Sampling, detector: Detector, watch: Watch, signal: Signal, at: float) -> Bundle:
    """Learn as the slow path would have, until a moment ago: what is explained must not explain itself."""
    count = max(int(watch.spec.history.total_seconds() / watch.step), 2 * detector.window)
    until = at - detector.window * watch.step
    history = await samples.window(signal.query, until, watch.step, count)
    limit = limits_of(history.labels, await samples.instant(signal.limit, until)) if signal.limit else None
    groups = groups_of(watch, history.labels)
    about = About(watch.step, until, signal.kind, watch.spec.false_alarms_per_series_day, limit, groups)
    state = await asyncio.to_thread(detector.learn, history.values, about)
    none = np.full(len(history.keys), until)
    return Bundle(detector.name, detector.version, "", until, history.keys, state, none, none)


async def _threshold(scores_of: Scoring, values: Floats, expected: Floats, sign: float) -> Floats:
    """Find the value at which each series would be at its threshold, on one side of what is expected."""
    start = np.where(np.isfinite(expected), expected, np.nan_to_num(values[:, -1]))
    spread = np.nan_to_num(np.nanmax(values, axis=1) - np.nanmin(values, axis=1))
    reach = np.where(spread > 0, spread, np.maximum(abs(start), 1.0)) * 1e-3
    beyond = np.zeros(len(start), bool)
    for _ in range(_DOUBLINGS):
        beyond = np.nan_to_num(await scores_of(start + sign * reach)) >= 1
        if beyond.all():
            break
        reach = np.where(beyond, reach, reach * 2)
    inside = np.zeros(len(start))
    for _ in range(_HALVES):
        middle = (inside + reach) / 2
        over = np.nan_to_num(await scores_of(start + sign * middle)) >= 1
        inside, reach = np.where(over, inside, middle), np.where(over, middle, reach)
    return np.where(beyond, start + sign * reach, np.nan)
