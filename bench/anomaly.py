"""How well the anomaly-scorer's detector finds labelled events, judged by a harness outside of this repository.

`KREFLEX_ANOMALY_HARNESS` names the harness' file (`judge`, `vus_pr`, `runs`, `load`), `KREFLEX_ANOMALY_DATA` the
folder with `manifest.json`; without them, both are looked for in the folder `shared` beside the checkout. If they are
absent, the benchmark says so, and holds nothing.

The only thing that is fitted is one number for all series: by how much the shipped threshold is multiplied. `f1` is
cross-validated by source: for each of the five sources the number is chosen on the other four. `f1_in_sample` is that
of the shipped threshold as it is.

`f1_with_feedback` plays the alerts of each series in time, with a person who dismisses or confirms each of the first
five when it is over, and counts every alert on the way, the dismissed ones too.

`f1_after_feedback` is that of a backtest whose questions were answered (`backtest --ask 5`): the five strongest moments
of a series at most, alerts and near misses together, as production chooses them. It is measured on the same time that
the answers are about, so it says what a threshold for each series can reach that fits what people know of it, and
nothing of the time to come. What they are worth later say `f1_rest` and `f1_rest_after_feedback`: questions about the
first half of each series, measured on the second, without and with the answers.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from bench.anomaly_detector import hourly
from kreflex.anomaly import asking
from kreflex.anomaly.detector import Bools, Floats
from kreflex.anomaly.feedback import Verdict, moved

_BESIDE = Path(__file__).resolve().parents[2] / "shared"
_HARNESS = Path(os.environ.get("KREFLEX_ANOMALY_HARNESS") or _BESIDE / "tools" / "anomaly_eval.py")
_DATA = Path(os.environ.get("KREFLEX_ANOMALY_DATA") or _BESIDE / "data" / "anomaly")
_THRESHOLDS = (0.8, 0.85, 0.9, 0.95, 1.0, 1.05, 1.1, 1.2, 1.3, 1.5)
_ASKED = 5
_LONGEST = 10_800


@dataclass(frozen=True)
class Judged:
    """One series with its scores; all arrays are of the scored part."""

    meta: dict[str, Any]
    score: Floats
    label: Floats

    @property
    def source(self) -> str:
        return str(self.meta["source"] if self.meta["origin"] != "injected" else "injected")

    @property
    def hour(self) -> int:
        """How long an alarm lasts, as the harness counts them."""
        return max(6, round(3600 / float(self.meta["period_s"])))


@dataclass
class Sum:
    found: int = 0
    events: int = 0
    false: int = 0
    false_fine: int = 0
    days: float = 0.0

    def add(self, other: Sum) -> None:
        self.found, self.events, self.false = (
            self.found + other.found,
            self.events + other.events,
            self.false + other.false,
        )

    @property
    def f1(self) -> float:
        return 2 * self.found / max(self.found + self.false + self.events, 1)


async def measure(size: int) -> dict[str, Any]:
    """Give the figures; `size` is of how many series, all by default."""
    if not _there():
        sys.stderr.write(f"no data: neither {_HARNESS} with {_DATA} nor KREFLEX_ANOMALY_HARNESS and _DATA are there\n")
        return {"data": False, "holds": False}
    return await asyncio.to_thread(_measured, _harness(), size)


def _there() -> bool:
    return _HARNESS.is_file() and (_DATA / "manifest.json").is_file()


def _harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("anomaly_harness", _HARNESS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _measured(harness: ModuleType, size: int) -> dict[str, Any]:
    rows = []
    for number, (meta, values, label) in enumerate(harness.load(str(_DATA))):
        if size and number >= size:
            break
        sys.stderr.write(f"\r{number + 1} series")
        rows.append(Judged(meta, scores(meta, values), label[meta["warmup"] :]))
    sys.stderr.write("\n")
    return _figures(harness, rows)


def scores(meta: dict[str, Any], values: Floats) -> Floats:
    """Score all of a series but its warm-up, hour by hour as the detector is asked in production."""
    first = int(meta["warmup"])
    one, found = hourly(meta), np.full(len(values), np.nan)
    one.learn(values[max(0, first - _LONGEST) : first], first - 1)
    for start in range(first, len(values), one.pause):
        if start > first:
            one.update(values[:start], start - 1)
        found[start : start + one.pause] = one.scores(values, start, min(start + one.pause, len(values)))
    return found[first:]


def _figures(harness: ModuleType, rows: Sequence[Judged]) -> dict[str, Any]:
    told, delays = _sum(harness, rows, lambda row: _above(row, 1.0))
    vus = [harness.vus_pr(row.score, row.label, min(60, row.meta["budget"])) for row in rows]
    answered = {row.meta["id"]: _answered(harness, row, len(row.score)) for row in rows}
    figures = {
        "f1": _cross_validated(harness, rows).f1,
        "f1_in_sample": told.f1,
        "precision": told.found / max(told.found + told.false, 1),
        "recall": told.found / max(told.events, 1),
        "false_alarms_per_series_day": told.false_fine / max(told.days, 1e-9),
        "vus_pr": float(np.mean([value for value in vus if value is not None])),
        "delay_minutes": float(np.median(delays)) if delays else 0.0,
        "f1_with_feedback": _sum(harness, rows, lambda row: _played(harness, row))[0].f1,
        "f1_after_feedback": _sum(harness, rows, lambda row: _above(row, answered[row.meta["id"]][0]))[0].f1,
        **_rest(harness, rows),
        "asked_per_series": float(np.mean([asked for _, asked in answered.values()])),
    }
    rounded: dict[str, Any] = {name: round(value, 3) for name, value in figures.items()}
    return {**rounded, "by_source": _by_source(harness, rows), "series": len(rows), "holds": _holds(figures)}


def _holds(figures: dict[str, float]) -> bool:
    return (
        figures["f1"] >= 0.62
        and figures["false_alarms_per_series_day"] <= 0.08
        and figures["vus_pr"] >= 0.60
        and figures["delay_minutes"] <= 2
        and figures["f1_after_feedback"] >= 0.75
    )


def _above(row: Judged, threshold: float) -> Bools:
    return np.asarray(np.nan_to_num(row.score, nan=-1.0) >= threshold)


def _sum(harness: ModuleType, rows: Sequence[Judged], flags: Callable[[Judged], Bools]) -> tuple[Sum, list[float]]:
    total, delays = Sum(), []
    for row in rows:
        period = row.meta["period_s"]
        one = harness.judge(flags(row), row.label, row.meta["budget"], period)
        total.found, total.events, total.false = (
            total.found + one["tp"],
            total.events + one["ev"],
            total.false + one["fp"],
        )
        if period <= 300:
            total.false_fine, total.days = total.false_fine + one["fp"], total.days + one["days"]
        if period <= 60:
            delays += [delay * period / 60 for delay in one["delays"]]
    return total, delays


def _cross_validated(harness: ModuleType, rows: Sequence[Judged]) -> Sum:
    """Judge each source by the threshold that is best for all others."""
    total = Sum()
    for source in sorted({row.source for row in rows}):
        best = _best(harness, [row for row in rows if row.source != source])
        own, _ = _at(harness, [row for row in rows if row.source == source], best)
        total.add(own)
    return total


def _best(harness: ModuleType, rows: Sequence[Judged]) -> float:
    return max(_THRESHOLDS, key=lambda threshold: _at(harness, rows, threshold)[0].f1)


def _at(harness: ModuleType, rows: Sequence[Judged], threshold: float) -> tuple[Sum, list[float]]:
    return _sum(harness, rows, lambda row: _above(row, threshold))


def _by_source(harness: ModuleType, rows: Sequence[Judged]) -> dict[str, str]:
    told = {}
    for source in sorted({row.source for row in rows}):
        one, _ = _sum(harness, [row for row in rows if row.source == source], lambda row: _above(row, 1.0))
        told[source] = f"{one.found}/{one.events}, {one.false} false"
    return told


def _played(harness: ModuleType, row: Judged) -> Bools:
    """Go through a series in time with a person who answers five alerts at most; the flags."""
    flags, factor, asked, now = np.zeros(len(row.score), bool), 1.0, 0, 0
    truth = _true(harness, row)
    raw = np.nan_to_num(row.score, nan=-1.0)
    while now < len(raw):
        above = np.flatnonzero(raw[now:] >= factor)
        if not len(above):
            break
        start = now + int(above[0])
        end = min(start + row.hour, len(raw))
        flags[start:end] = raw[start:end] >= factor
        if asked < _ASKED:
            verdict: Verdict = "confirmed" if truth[start:end].any() else "dismissed"
            # As the book of production moves it; a score is relative to the factor of its time.
            factor = moved(factor, verdict, float(raw[start:end].max()) / factor, factor)
            asked += 1
        now = end
    return flags


def _answered(harness: ModuleType, row: Judged, until: int) -> tuple[float, int]:
    """Ask about a series up to a sample; its factor then, and how many answers it took."""
    truth, scores = _true(harness, row), row.score[:until]
    worth = asking.moments(scores, row.hour, _ASKED)
    answers = asking.asked(scores, worth, lambda at: "confirmed" if truth[at] else "dismissed")
    return asking.taught(1.0, answers), len(answers)


def _rest(harness: ModuleType, rows: Sequence[Judged]) -> dict[str, float]:
    """Measure the second half of each series, without and with what was answered about the first."""
    factors, rest = {}, []
    for row in rows:
        half = len(row.score) // 2
        factors[row.meta["id"]] = _answered(harness, row, half)[0]
        rest.append(Judged(row.meta, row.score[half:], row.label[half:]))
    before, _ = _at(harness, rest, 1.0)
    after, _ = _sum(harness, rest, lambda row: _above(row, factors[row.meta["id"]]))
    return {
        "f1_rest": before.f1,
        "f1_rest_after_feedback": after.f1,
        "false_alarms_rest": before.false,
        "false_alarms_rest_after_feedback": after.false,
    }


def _true(harness: ModuleType, row: Judged) -> Bools:
    """Where a person would say that an alert is right, or that it cannot be told."""
    truth = row.label != 0
    budget = row.meta["budget"]
    for start, end in harness.runs(row.label == 1):
        truth[start : max(end, start + budget) + min(budget, 30) + 1] = True
    return np.asarray(truth)
