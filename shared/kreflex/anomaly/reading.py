"""What Prometheus says, as numbers in rows: one row a series, in the order of the series' keys.

The name of the metric is no part of a key, for most of PromQL drops it.
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from kreflex.anomaly.detector import Floats
from kreflex.errors import QueryError
from kreflex.prom import MOST_SERIES, Metrics, series_in

Labels = Mapping[str, str]
# Prometheus refuses more (prometheus, web/api/v1/api.go: "exceeded maximum resolution of 11,000 points").
_MOST_SAMPLES = 11_000
# Of one answer: about 13 MB as text.
_MOST_POINTS = 500_000
# These bytes are no part of a label: there the quotes would be escaped.
_METRIC, _VALUES = b'{"metric":', b',"values":[['
_LABEL, _ESCAPED = re.compile(r'([^={,]+)="((?:[^"\\]|\\.)*)"'), re.compile(r"\\(.)")
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
        answer = await self._metrics.instant(query, at, lambda content: _vector(query, content))
        keys, labels, values = answer.found
        return Vector(keys, labels, values, at, answer.warnings, answer.partial)

    async def window(self, query: str, end: float, step: float, samples: int, series: int = 0) -> Matrix:
        """Give the last samples of each series of a query.

        It is asked in pieces of time that are small enough for Prometheus, and for the memory here. `series` is how
        many are expected.
        """
        gathered = _Gathered(query, samples, end, step)
        done, size = 0, _piece(series) if series else _FIRST_SAMPLES
        while done < samples:
            size = min(size, samples - done)
            last = end - done * step
            answer = await self._metrics.range(query, last - (size - 1) * step, last, step, gathered.take)
            gathered.warnings |= dict.fromkeys(answer.warnings)
            gathered.partial |= answer.partial
            done, size = done + size, _piece(answer.found)
        return gathered.matrix()

    async def first_seen(self, query: str, at: float, history: float, grid: float) -> Vector:
        """Tell since when each series is there, within the history and to one step of the grid.

        One number for each, and not its samples: PromQL's subquery looks at them over there.
        """
        return await self.instant(f"min_over_time(timestamp({query})[{history:.0f}s:{grid:.0f}s])", at)


class _Gathered:
    """The pieces of one window, put in their places as they are read.

    They are not read into objects first: a window of 10,000 series would be 100 MB of them.
    """

    def __init__(self, query: str, samples: int, end: float, step: float) -> None:
        self._query = query
        self._samples = samples
        self._end = end
        self._step = step
        self._named: list[tuple[str, Labels]] = []
        self._places: dict[bytes, int] = {}
        self._values = np.full((0, samples), np.nan)
        self.warnings: dict[str, None] = {}
        self.partial = False

    def take(self, content: bytes) -> int:
        """Read one answer; tell how many series it has."""
        series = _found(content)
        if series is None:
            content = _rewritten(content)
            series = _found(content) or []
        self._know([labels for labels, _, _ in series if labels not in self._places])
        for labels, begin, end in series:
            self._put(self._values[self._places[labels]], content[begin:end])
        return len(series)

    def _know(self, fresh: Sequence[bytes]) -> None:
        """Give those that were in no piece before a row each, all empty."""
        named = _keyed(self._query, [json.loads(text) for text in fresh])
        self._places |= {fresh[row]: len(self._named) + place for place, (_, _, row) in enumerate(named)}
        self._named += [(key, labels) for key, labels, _ in named]
        if named:
            empty = np.full((len(named), self._samples), np.nan)
            self._values = np.concatenate((self._values, empty)) if len(self._values) else empty

    def matrix(self) -> Matrix:
        order = sorted(range(len(self._named)), key=lambda row: self._named[row][0])
        keys, labels = tuple(self._named[row][0] for row in order), tuple(self._named[row][1] for row in order)
        _differ(self._query, keys)
        # Most often they all were in the first piece.
        values = self._values if order == list(range(len(order))) else self._values[order]
        values[~np.isfinite(values)] = np.nan
        return Matrix(keys, labels, values, self._end, self._step, tuple(self.warnings), self.partial)

    def _put(self, row: Floats, points: bytes) -> None:
        # Times and values in turn: `1700000000,"1.5"],[1700000060,"2"`.
        parts = points.split(b'"')
        values = np.array(parts[1::2], dtype=float)
        first, last = self._place(parts[0]), self._place(parts[-3])
        if last - first == len(values) - 1:
            row[first : last + 1] = values
        else:
            row[[self._place(part) for part in parts[:-1:2]]] = values

    def _place(self, text: bytes) -> int:
        return self._samples - 1 - round((self._end - float(text.strip(b"],["))) / self._step)


def tick_of(now: float, step: float) -> float:
    """Give the last moment at which samples are looked at: all replicas look at the same ones."""
    return math.floor(now / step) * step


def key_of(labels: Labels) -> str:
    """Name a series by its labels, as people write them."""
    return "{" + ",".join(f'{name}="{_escaped(labels[name])}"' for name in sorted(labels) if name != "__name__") + "}"


def labels_of(key: str) -> Labels:
    """Give the labels of a series by its key."""
    return {name: _ESCAPED.sub(_plain, text) for name, text in _LABEL.findall(key)}


def _plain(found: re.Match[str]) -> str:
    return "\n" if found[1] == "n" else found[1]


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
        made = f'label_replace({made},"{name}",{_text(value)},"","")'
    return made


def _text(value: str) -> str:
    # Its strings are Go's, which know no pairs of surrogates.
    return json.dumps(value.replace("$", "$$"), ensure_ascii=False)


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _piece(series: int) -> int:
    return max(1, min(_MOST_SAMPLES, _MOST_POINTS // max(series, 1)))


def _vector(query: str, content: bytes) -> tuple[tuple[str, ...], tuple[Labels, ...], Floats]:
    series = series_in(content)
    if any(not isinstance(one, dict) for one in series):
        raise QueryError(f"{query!r} yields a plain number, not series: put vector() around it")
    named = _keyed(query, [one["metric"] for one in series])
    keys = tuple(key for key, _, _ in named)
    _differ(query, keys)
    values = np.array([_sample(series[row]) for _, _, row in named], dtype=float)
    values[~np.isfinite(values)] = np.nan
    return keys, tuple(labels for _, labels, _ in named), values


def _sample(one: dict[str, Any]) -> str:
    # A native histogram has none: https://prometheus.io/docs/prometheus/latest/querying/api/#instant-vectors
    return str(one["value"][1]) if "value" in one else "NaN"


def _found(content: bytes) -> list[tuple[bytes, int, int]] | None:
    """Find the labels of each series of a range query's answer, and from where to where its samples are.

    None if it is written in another way than all of them do: with spaces, or with native histograms among them.
    """
    found, at = [], content.find(_METRIC)
    if at < 0 and b'"result":[]' not in content:
        return None
    while at >= 0:
        begin = content.find(_VALUES, at)
        end = content.find(b"]]", begin)
        labels = content[at + len(_METRIC) : begin]
        if begin < 0 or end < 0 or _METRIC in labels:
            return None
        found.append((labels, begin + len(_VALUES), end))
        at = content.find(_METRIC, end)
    return found


def _rewritten(content: bytes) -> bytes:
    """Write an answer as all of them do; slowly."""
    series = [{"metric": one["metric"], "values": one["values"]} for one in series_in(content) if one.get("values")]
    return json.dumps({"result": series}, separators=(",", ":")).encode()


def _keyed(query: str, labels: Sequence[Labels]) -> list[tuple[str, Labels, int]]:
    """Give key and labels of each series in the order of the keys, and which one it is."""
    if len(labels) > MOST_SERIES:
        raise QueryError(f"{query!r} yields {len(labels)} series, {MOST_SERIES} are borne: narrow or aggregate it")
    return sorted(((key_of(one), one, row) for row, one in enumerate(labels)), key=lambda named: named[0])


def _differ(query: str, keys: Sequence[str]) -> None:
    for one, other in itertools.pairwise(keys):
        if one == other:
            raise QueryError(f"{query!r} yields {one} twice, under two metric names: keep the name in another label")


def _ordered(values: Floats, keys: Sequence[str], wanted: Sequence[str]) -> Floats:
    if tuple(wanted) == tuple(keys):
        return values
    place = {key: row for row, key in enumerate(keys)}
    rows = np.array([place.get(key, -1) for key in wanted], dtype=np.intp)
    found = np.full((len(rows), *values.shape[1:]), np.nan)
    found[rows >= 0] = values[rows[rows >= 0]]
    return found
