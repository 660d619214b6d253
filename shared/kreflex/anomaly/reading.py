"""What Prometheus says, as numbers in rows: one row a series, in the order of the series' keys.

The name of the metric is no part of a key, for most of PromQL drops it.
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kreflex.anomaly.detector import Floats
from kreflex.errors import QueryError
from kreflex.prom import MOST_SERIES, Metrics

Labels = Mapping[str, str]
# Prometheus refuses more (prometheus, web/api/v1/api.go: "exceeded maximum resolution of 11,000 points").
_MOST_SAMPLES = 11_000
# Of one answer: about 5 MB as text, and 35 MB as the objects that it is read into.
_MOST_POINTS = 200_000
# How many series there are is known after the first answer.
_FIRST_SAMPLES = 30


@dataclass(frozen=True)
class Vector:
    """One sample of each series; NaN where it is no number. `warnings` are Prometheus' own.

    `partial` says that series may be missing: nobody may conclude that they are gone.
    """

    keys: tuple[str, ...]
    labels: tuple[Labels, ...]
    values: Floats
    at: float
    warnings: tuple[str, ...] = ()
    partial: bool = False

    def of(self, keys: Sequence[str]) -> Floats:
        """Give the samples of these series, in this order; NaN for one that is not there."""
        return _ordered(self.values, self.keys, keys)


@dataclass(frozen=True)
class Matrix:
    """Samples of each series, shape (series, samples), the newest last and at `end`; NaN where one is missing."""

    keys: tuple[str, ...]
    labels: tuple[Labels, ...]
    values: Floats
    end: float
    step: float
    warnings: tuple[str, ...] = ()
    partial: bool = False

    def of(self, keys: Sequence[str]) -> Floats:
        """Give the rows of these series, in this order; NaN for one that is not there."""
        return _ordered(self.values, self.keys, keys)

    @property
    def times(self) -> Floats:
        """Tell when the samples are, in seconds since 1970."""
        return self.end - self.step * np.arange(self.values.shape[1] - 1, -1, -1, dtype=float)


class Samples:
    """Asks Prometheus for what a watch is about. Every failure is UnavailableError: nothing is concluded from it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def instant(self, query: str, at: float) -> Vector:
        """Give the newest sample of each series of a query."""
        answer = await self._metrics.instant(query, at)
        rows = _keyed(query, answer.series)
        values = _numbers(_sample(one) for _, _, one in rows)
        keys, labels = tuple(key for key, _, _ in rows), tuple(one for _, one, _ in rows)
        return Vector(keys, labels, values, at, answer.warnings, answer.partial)

    async def window(self, query: str, end: float, step: float, samples: int, series: int = 0) -> Matrix:
        """Give the last samples of each series of a query.

        It is asked in pieces of time that are small enough for Prometheus, and for the memory here. `series` is how
        many are expected.
        """
        gathered = _Gathered(query, samples)
        done, size = 0, _piece(series) if series else _FIRST_SAMPLES
        while done < samples:
            size = min(size, samples - done)
            last = end - done * step
            answer = await self._metrics.range(query, last - (size - 1) * step, last, step)
            gathered.take(answer.series, end, step)
            gathered.warnings |= dict.fromkeys(answer.warnings)
            gathered.partial |= answer.partial
            done, size = done + size, _piece(len(answer.series))
        return gathered.matrix(end, step)

    async def first_seen(self, query: str, at: float, history: float, grid: float) -> Vector:
        """Tell since when each series is there, within the history and to one step of the grid.

        One number for each, and not its samples: PromQL's subquery looks at them over there.
        """
        return await self.instant(f"min_over_time(timestamp({query})[{history:.0f}s:{grid:.0f}s])", at)


class _Gathered:
    """The pieces of one window, put in their places."""

    def __init__(self, query: str, samples: int) -> None:
        self._query = query
        self._samples = samples
        self._rows: dict[str, tuple[Labels, Floats]] = {}
        self.warnings: dict[str, None] = {}
        self.partial = False

    def take(self, series: Sequence[dict[str, Any]], end: float, step: float) -> None:
        for key, labels, one in _keyed(self._query, series):
            if key not in self._rows:
                self._rows[key] = (labels, np.full(self._samples, np.nan))
            points = one.get("values") or ()
            places = [self._samples - 1 - round((end - at) / step) for at, _ in points]
            self._rows[key][1][places] = _numbers(value for _, value in points)

    def matrix(self, end: float, step: float) -> Matrix:
        keys = tuple(sorted(self._rows))
        labels = tuple(self._rows[key][0] for key in keys)
        values = np.empty((len(keys), self._samples))
        for place, key in enumerate(keys):
            # Popped, so that there are not two of everything.
            values[place] = self._rows.pop(key)[1]
        return Matrix(keys, labels, values, end, step, tuple(self.warnings), self.partial)


def tick_of(now: float, step: float) -> float:
    """Give the last moment at which samples are looked at: all replicas look at the same ones."""
    return math.floor(now / step) * step


def key_of(labels: Labels) -> str:
    """Name a series by its labels, as people write them."""
    return "{" + ",".join(f'{name}="{_escaped(labels[name])}"' for name in sorted(labels) if name != "__name__") + "}"


def narrowed(query: str, names: Sequence[str], wanted: Iterable[Sequence[str]]) -> str:
    """Narrow any query to the series whose labels `names` have one of the wanted sets of values.

    Prometheus looks at all of them still, but answers with these.
    """
    sets = " or ".join(_made(names, values) for values in wanted)
    return f"({query}) and on ({','.join(names)}) ({sets})"


def _made(names: Sequence[str], values: Sequence[str]) -> str:
    # `label_replace` with the empty pattern sets a label: https://prometheus.io/docs/prometheus/latest/querying/functions
    made = "vector(1)"
    for name, value in zip(names, values, strict=True):
        made = f'label_replace({made},"{name}",{json.dumps(value.replace("$", "$$"))},"","")'
    return made


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _piece(series: int) -> int:
    return max(1, min(_MOST_SAMPLES, _MOST_POINTS // max(series, 1)))


def _keyed(query: str, series: Sequence[dict[str, Any]]) -> list[tuple[str, Labels, dict[str, Any]]]:
    if any(not isinstance(one, dict) for one in series):
        raise QueryError(f"{query!r} yields a plain number, not series: put vector() around it")
    if len(series) > MOST_SERIES:
        raise QueryError(f"{query!r} yields {len(series)} series, {MOST_SERIES} are borne: narrow or aggregate it")
    rows = sorted(((key_of(one["metric"]), one["metric"], one) for one in series), key=lambda row: row[0])
    for (one, _, _), (other, _, _) in itertools.pairwise(rows):
        if one == other:
            raise QueryError(f"{query!r} yields {one} twice, under two metric names: keep the name in another label")
    return rows


def _sample(one: dict[str, Any]) -> str:
    # A native histogram has none: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-vectors
    return str(one["value"][1]) if "value" in one else "NaN"


def _numbers(texts: Iterable[str]) -> Floats:
    """Read samples; what is not finite is missing: it is a division by nothing, or a marker."""
    values = np.fromiter((float(text) for text in texts), dtype=float)
    values[~np.isfinite(values)] = np.nan
    return values


def _ordered(values: Floats, keys: Sequence[str], wanted: Sequence[str]) -> Floats:
    if tuple(wanted) == tuple(keys):
        return values
    place = {key: row for row, key in enumerate(keys)}
    rows = np.array([place.get(key, -1) for key in wanted], dtype=np.intp)
    found = np.full((len(rows), *values.shape[1:]), np.nan)
    found[rows >= 0] = values[rows[rows >= 0]]
    return found
