"""The fast path: the recent samples of a signal, its state and its factors, to what is beyond its threshold now."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Protocol

import numpy as np
import numpy.typing as npt

from kreflex.anomaly.agreement import Place
from kreflex.anomaly.anomalies import Seen
from kreflex.anomaly.codec import Bundle
from kreflex.anomaly.detector import CLASSES, About, Bools, Detector, Floats, Scores
from kreflex.anomaly.episodes import LOW
from kreflex.anomaly.events import plain
from kreflex.anomaly.feedback import Book
from kreflex.anomaly.reading import Matrix, Vector
from kreflex.anomaly.watches import Signal, Watch

# A cache for so many series at most; those of more are asked for anew at each tick.
_CACHED = 200_000
# Longer than the longest interval of a watch.
_UNASKED = 2 * 3600
_SERIES = 2048


class Sampling(Protocol):
    """Where samples come from."""

    async def instant(self, query: str, at: float) -> Vector:
        """Give the newest sample of each series of a query."""
        ...

    async def window(self, query: str, end: float, step: float, samples: int) -> Matrix:
        """Give the last samples of each series of a query."""
        ...


class Windows:
    """The recent samples of each signal. Those of the tick before are kept: a cache, that a new process fills anew.

    The answer is the same either way, since a range query evaluates the query at each step as an instant query does.
    """

    def __init__(self, samples: Sampling) -> None:
        self._samples = samples
        self._kept: dict[tuple[str, str], Matrix] = {}

    async def recent(self, watch: Watch, signal: Signal, tick: float, samples: int) -> Matrix:
        """Give the last samples of a signal, until this tick."""
        name = (watch.uid, f"{signal.name}/{signal.meaning}/{watch.step:g}")
        kept = self._kept.pop(name, None)
        if kept is not None and kept.end == tick:
            found = kept
        elif kept is not None and kept.end == tick - watch.step and kept.values.shape[1] == samples:
            found = shifted(kept, await self._samples.instant(signal.query, tick))
        else:
            found = there(await self._samples.window(signal.query, tick, watch.step, samples))
        self._keep(name, found)
        return found

    def _keep(self, name: tuple[str, str], matrix: Matrix) -> None:
        # What nobody asks for any more, as that of a query of yesterday, makes room.
        self._kept = {name: one for name, one in self._kept.items() if one.end > matrix.end - _UNASKED}
        held = sum(len(one.keys) for one in self._kept.values())
        # What may be incomplete is not gone on with.
        if not matrix.partial and held + len(matrix.keys) <= _CACHED:
            self._kept[name] = matrix


def shifted(before: Matrix, newest: Vector) -> Matrix:
    """Add the newest sample of each series, and drop the oldest."""
    end, warnings = before.end + before.step, newest.warnings
    if newest.keys == before.keys:
        values = np.concatenate((before.values[:, 1:], newest.values[:, None]), axis=1)
        return there(replace(before, values=values, end=end, warnings=warnings, partial=newest.partial))
    labels = dict(zip(before.keys, before.labels, strict=True)) | dict(zip(newest.keys, newest.labels, strict=True))
    keys = tuple(sorted(labels))
    row = {key: number for number, key in enumerate(keys)}
    values = np.full((len(keys), before.values.shape[1]), np.nan)
    values[[row[key] for key in before.keys], :-1] = before.values[:, 1:]
    values[[row[key] for key in newest.keys], -1] = newest.values
    named = tuple(labels[key] for key in keys)
    return there(Matrix(keys, named, values, end, before.step, warnings, newest.partial))


def there(matrix: Matrix) -> Matrix:
    """Leave out the series that have no sample in the whole window."""
    some = np.isfinite(matrix.values).any(axis=1)
    if some.all():
        return matrix
    rows = np.flatnonzero(some)
    keys, labels = tuple(matrix.keys[row] for row in rows), tuple(matrix.labels[row] for row in rows)
    return replace(matrix, keys=keys, labels=labels, values=matrix.values[rows])


def limits_of(labels: Sequence[Mapping[str, str]], limit: Vector) -> Floats:
    """Give the limit of each series: that of the series of the limit's query whose labels it has all."""
    found = np.full(len(labels), np.nan)
    by_names: dict[tuple[str, ...], dict[tuple[str, ...], float]] = {}
    for one, value in zip(limit.labels, limit.values, strict=True):
        names = tuple(sorted(name for name in one if name != "__name__"))
        by_names.setdefault(names, {})[tuple(one[name] for name in names)] = float(value)
    for names, values in sorted(by_names.items(), key=lambda item: len(item[0])):
        for row, own in enumerate(labels):
            value = values.get(tuple([own.get(name, "") for name in names]))
            if value is not None:
                found[row] = value
    return found


@dataclass(frozen=True)
class Scored:
    """One signal at one tick: what was looked at, and how far beyond its threshold each series is."""

    watch: Watch
    signal: Signal
    recent: Matrix
    scores: Scores
    known: Bools
    """Which series have a state; of the others nothing can be said yet."""
    about: About

    @property
    def flagged(self) -> npt.NDArray[np.intp]:
        """The rows beyond their thresholds, in a class that the signal is asked for."""
        rows = self._rows(self.scores.flag)
        wanted = self.signal.classes
        return rows if not wanted else rows[[self.class_of(row) in wanted for row in rows]] if len(rows) else rows

    @property
    def warm(self) -> npt.NDArray[np.intp]:
        """The rows that are not well below their thresholds."""
        return self._rows(np.asarray(np.nan_to_num(self.scores.score) >= LOW))

    def _rows(self, chosen: Bools) -> npt.NDArray[np.intp]:
        # What an incomplete answer leaves out may well be there.
        there = np.isfinite(self.recent.values[:, -1]) if self.recent.partial else True
        return np.flatnonzero(chosen & self.known & there)

    @property
    def blank(self) -> bool:
        """True when not one of the known series has a sample now."""
        return not bool(np.isfinite(self.recent.values[self.known, -1]).any())

    def class_of(self, row: int | np.intp) -> str:
        """Tell what is wrong with a series, if something is."""
        return CLASSES[int(self.scores.kind[row])]

    def factor(self, row: int | np.intp) -> float:
        """Tell what feedback has multiplied the threshold of a series by."""
        return 1.0 if self.about.factor is None else float(self.about.factor[row])

    def seen(self, row: int | np.intp) -> Seen:
        """Tell of one series."""
        numbers = {name: float(values[row]) for name, values in self.scores.evidence.items()}
        if self.about.limit is not None:
            numbers.setdefault("limit", float(self.about.limit[row]))
        # An absent series has a flag and may have no score.
        score = float(np.nan_to_num(self.scores.score[row], nan=1.0, posinf=1e6))
        return Seen(
            name=self.signal.name,
            class_=self.class_of(row),
            score=round(score, 3),
            peak=round(score, 3),
            series=self.recent.keys[row][:_SERIES],
            at=datetime.fromtimestamp(self.recent.end, UTC),
            factor=self.factor(row),
            evidence=plain(numbers),
        )

    def place(self, row: int | np.intp) -> Place | None:
        """Tell what a series is about; None if the watch may not be about it."""
        named = self.watch.target(self.recent.labels[row])
        return None if named is None else Place(self.watch.spec.target.kind, *named)

    def findings(self) -> Iterator[tuple[Place, Seen]]:
        """Tell what is beyond its threshold, and what it is about."""
        for row in self.flagged:
            place = self.place(row)
            if place is not None:
                yield place, self.seen(row)

    def simmering(self) -> Iterator[Place]:
        """Tell what is not well below its threshold."""
        for row in self.warm:
            place = self.place(row)
            if place is not None:
                yield place

    def picture_of(self, series: str) -> list[float]:
        """Give the recent samples of one series; none if it is not there."""
        try:
            row = self.recent.keys.index(series)
        except ValueError:
            return []
        return [float(value) for value in self.recent.values[row]]

    def begun(self, series: str) -> float | None:
        """Tell when the first of the recent samples of a series was; None if there is none."""
        finite = np.flatnonzero(np.isfinite(self.picture_of(series)))
        return float(self.recent.times[finite[0]]) if len(finite) else None

    def present(self, series: str) -> bool | None:
        """Tell whether a series has a sample at this tick; None where the answer may be incomplete."""
        values = self.picture_of(series)
        if values and np.isfinite(values[-1]):
            return True
        return None if self.recent.partial else False


def factors_of(book: Book, watch: Watch, signal: Signal, recent: Matrix) -> Floats | None:
    """Give the factor of each series; None where no feedback was ever given."""
    if not any(name.startswith(f"{signal.name}/") for name in book.factors):
        return None
    pairs = zip(recent.keys, recent.labels, strict=True)
    found = [book.factor(signal.name, key[:_SERIES], watch.siblings(labels)) for key, labels in pairs]
    return np.array(found, dtype=float)


async def score(
    detector: Detector, bundle: Bundle | None, watch: Watch, signal: Signal, recent: Matrix, about: About
) -> Scored:
    """Score the newest sample of each series of a signal."""
    rows, known = _positions(bundle, recent.keys)
    if bundle is None or not known.any():
        return Scored(watch, signal, recent, spread(None, rows, len(recent.keys)), known, about)
    chosen = np.flatnonzero(known)
    some = _of_rows(about, chosen) if len(chosen) < len(known) else about
    values = recent.values[chosen] if len(chosen) < len(known) else recent.values
    # In a thread: it may take a while, and a detector of somebody's own may ask somebody else.
    scores = await asyncio.to_thread(detector.score, bundle.state[rows[chosen]], values, some)
    return Scored(watch, signal, recent, spread(scores, chosen, len(known)), known, about)


def _positions(bundle: Bundle | None, keys: tuple[str, ...]) -> tuple[npt.NDArray[np.intp], Bools]:
    if bundle is None:
        return np.zeros(len(keys), np.intp), np.zeros(len(keys), bool)
    if bundle.keys == keys:
        return np.arange(len(keys)), np.ones(len(keys), bool)
    place = {key: number for number, key in enumerate(bundle.keys)}
    rows = np.array([place.get(key, -1) for key in keys], np.intp)
    return rows, rows >= 0


def _of_rows(about: About, rows: npt.NDArray[np.intp]) -> About:
    """Leave in what is known of some series only those of these rows."""
    return replace(
        about,
        limit=None if about.limit is None else about.limit[rows],
        siblings=None if about.siblings is None else about.siblings[rows],
        factor=None if about.factor is None else about.factor[rows],
    )


def spread(scores: Scores | None, rows: npt.NDArray[np.intp], count: int) -> Scores:
    """Give the scores of these rows among `count`; of the others nothing is said."""
    if scores is None:
        return _nothing(count)
    if len(rows) == count:
        return scores
    empty = _nothing(count)
    empty.score[rows], empty.flag[rows], empty.kind[rows] = scores.score, scores.flag, scores.kind
    evidence = {name: np.full(count, np.nan) for name in scores.evidence}
    for name, values in scores.evidence.items():
        evidence[name][rows] = values
    return replace(empty, evidence=evidence)


def _nothing(count: int) -> Scores:
    return Scores(np.full(count, np.nan), np.zeros(count, bool), np.zeros(count, np.uint8), {})


def groups_of(watch: Watch, labels: Sequence[Mapping[str, str]]) -> npt.NDArray[np.intp] | None:
    """Number the groups of series that are expected to be alike; None where the watch names none."""
    if not watch.spec.siblings:
        return None
    numbers: dict[tuple[str, ...], int] = {}
    return np.array([numbers.setdefault(watch.siblings(one), len(numbers)) for one in labels], dtype=np.intp)
