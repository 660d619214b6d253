"""What Prometheus says, as numbers in rows: one row a series, in the order of the series' keys."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from kreflex.anomaly.detector import Floats
from kreflex.prom import Metrics


@dataclass(frozen=True)
class Vector:
    """One sample of each series. A key is the series' labels, sorted; `warnings` say what may be missing."""

    keys: tuple[str, ...]
    labels: tuple[Mapping[str, str], ...]
    values: Floats
    at: float
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Matrix:
    """Samples of each series, shape (series, samples), the newest last and at `end`; NaN where one is missing."""

    keys: tuple[str, ...]
    labels: tuple[Mapping[str, str], ...]
    values: Floats
    end: float
    step: float
    warnings: tuple[str, ...] = ()

    def rows(self, keys: tuple[str, ...]) -> Floats:
        """Give the rows of these series in this order; NaN for one that is not there."""
        raise NotImplementedError


class Samples:
    """Asks Prometheus for what a watch is about. Every failure is UnavailableError: nothing is concluded from it."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    async def instant(self, query: str, at: float) -> Vector:
        """Give the newest sample of each series of a query."""
        raise NotImplementedError

    async def window(self, query: str, end: float, step: float, samples: int) -> Matrix:
        """Give the last samples of each series of a query."""
        raise NotImplementedError


def tick_of(now: float, step: float) -> float:
    """Give the last moment at which samples are looked at: all replicas look at the same ones."""
    return float(np.floor(now / step) * step)
