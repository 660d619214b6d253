"""A look at what an alert is about: its series over the last minutes, scored as each tick would have scored them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from kreflex.anomaly.agreement import Place, latest
from kreflex.anomaly.anomalies import Seen
from kreflex.anomaly.codec import Bundle
from kreflex.anomaly.detector import About, Detector
from kreflex.anomaly.episodes import said
from kreflex.anomaly.feedback import Book
from kreflex.anomaly.reading import Matrix, narrowed
from kreflex.anomaly.scoring import Sampling, Scored, factors_of, limits_of, score, there
from kreflex.anomaly.watches import Signal, Watch

# How many ticks are looked at.
TICKS = 15
# Of so many series an event tells; a target may have thousands.
_MOST = 20


@dataclass(frozen=True)
class Around:
    """What was found of one target: the signals that were beyond their thresholds, and how many were looked at."""

    place: Place
    watch: str
    signals: tuple[Seen, ...]
    series: int
    highest: float
    pictures: tuple[tuple[str, tuple[float, ...]], ...] = ()

    @property
    def text(self) -> str:
        """What was found, in words."""
        if not self.series:
            return "none of its series is known yet"
        if not self.signals:
            return f"{self.series} series are as ever in the last {TICKS} ticks (at most {self.highest:.2f})"
        return "; ".join(said(one) for one in self.signals)


async def around(
    samples: Sampling,
    detector: Detector,
    watch: Watch,
    states: Sequence[tuple[Signal, Bundle | None]],
    place: Place,
    book: Book,
    tick: float,
) -> Around:
    """Look at one target of a watch; raises UnavailableError if Prometheus does not answer."""
    found: list[Seen] = []
    series, highest, drawn = 0, 0.0, []
    for signal, bundle in states:
        matrix = await _window(samples, watch, signal, place, tick, detector.window + TICKS - 1)
        scored = await _replayed(samples, detector, watch, signal, bundle, matrix, book)
        series += int(scored[-1].known.sum()) if scored else 0
        for one in scored:
            highest = max(highest, float(np.max(np.nan_to_num(one.scores.score), initial=0.0)))
            found += [seen for _, seen in one.findings()]
        rows = zip(matrix.keys, matrix.values, strict=True)
        drawn += [(f"{signal.name}/{key}", tuple(float(value) for value in row)) for key, row in rows]
    worst = sorted(latest(found), key=lambda one: (-one.score, one.name, one.series))
    return Around(place, watch.key, tuple(worst[:_MOST]), series, highest, tuple(drawn))


async def _window(samples: Sampling, watch: Watch, signal: Signal, place: Place, tick: float, length: int) -> Matrix:
    pointer = watch.spec.target
    names, values = [pointer.name_label], [place.name]
    if place.namespace:
        names, values = [pointer.namespace_label, *names], [place.namespace, *values]
    query = narrowed(signal.query, names, [values])
    return there(await samples.window(query, tick, watch.step, length))


async def _replayed(
    samples: Sampling,
    detector: Detector,
    watch: Watch,
    signal: Signal,
    bundle: Bundle | None,
    matrix: Matrix,
    book: Book,
) -> list[Scored]:
    limit = limits_of(matrix.labels, await samples.instant(signal.limit, matrix.end)) if signal.limit else None
    about = About(
        watch.step,
        matrix.end,
        signal.kind,
        watch.spec.false_alarms_per_series_day,
        limit,
        factor=factors_of(book, watch, signal, matrix),
        horizon=watch.spec.horizon.total_seconds(),
    )
    scored = []
    for back in range(TICKS - 1, -1, -1):
        end = matrix.end - back * watch.step
        values = matrix.values[:, : matrix.values.shape[1] - back][:, -detector.window :]
        then = replace(matrix, values=values, end=end)
        scored.append(await score(detector, bundle, watch, signal, then, replace(about, end=end)))
    return scored
