"""What a detector is: it learns a state from history, and scores the newest sample of many series at once.

A detector keeps nothing: state in, state out. All series of one call have the same step and the same kind of signal.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from kreflex.anomaly.words import CLASSES, AnomalyClass, SignalKind

__all__ = ["CLASSES", "About", "AnomalyClass", "Bools", "Detector", "Floats", "Kinds", "Scores", "SignalKind"]

Floats = npt.NDArray[np.floating[Any]]
Bools = npt.NDArray[np.bool_]
Kinds = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class About:
    """What is known of the series of one call beside their samples; arrays have one entry a series."""

    step: float
    """Seconds between two samples."""
    end: float
    """When the newest sample was, in seconds since 1970."""
    kind: SignalKind
    false_alarms: float
    """How many false alarms per series-day are wanted."""
    limit: Floats | None = None
    """The value at which it is exhausted (a memory limit, the size of a disk); NaN where there is none."""
    siblings: npt.NDArray[np.intp] | None = None
    """The number of the group of a series: those of one group (the pods of a workload) are expected to be alike."""
    factor: Floats | None = None
    """What the threshold is multiplied by, learnt from feedback; 1 where there is none."""
    horizon: float = 4 * 3600.0
    """Within how many seconds a limit has to be reached, so that a rise towards it counts in full."""


@dataclass(frozen=True, slots=True)
class Scores:
    """What was found of the newest sample of each series.

    `score` is 1 at the threshold, whatever the wanted number of false alarms is, and NaN where nothing can be said.
    `kind` is an index of CLASSES. `evidence` has named numbers of each series (NaN where one does not apply), for
    people: what was expected, how far off it is, when it will be exhausted.
    """

    score: Floats
    flag: Bools
    kind: Kinds
    evidence: Mapping[str, Floats]


class Detector(Protocol):
    """Learns and scores; equal input gives equal output, in every process."""

    name: str
    version: int
    """Of the state's layout and meaning: a state of another version is learnt anew."""
    window: int
    """How many samples `score` needs, the newest last."""
    dtype: np.dtype[np.void]
    """The state of one series."""

    def learn(self, history: Floats, about: About, excluded: Bools | None = None) -> npt.NDArray[np.void]:
        """Learn from history, shape (series, samples), NaN where a sample is missing; the states, shape (series,).

        `excluded` has True where the samples are known not to be normal: incidents, experiments.
        """
        ...

    def update(
        self, state: npt.NDArray[np.void], recent: Floats, about: About, excluded: Bools | None = None
    ) -> npt.NDArray[np.void]:
        """Go on learning: `recent` has the samples since the last update, and `window - 1` before them."""
        ...

    def score(self, state: npt.NDArray[np.void], recent: Floats, about: About) -> Scores:
        """Score the newest sample; `recent` has the shape (series, window)."""
        ...
