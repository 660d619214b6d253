"""The anomaly-scorer's detector behind the protocol of an evaluation harness: `bench.anomaly_detector:factory`.

What production does in an hour, this does in an hour's samples: history is learnt once, each hour goes on learning
with the hour that has passed, and each sample is scored by the state of the hour before. It sees no later sample.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from kreflex.anomaly.detector import About, Floats, SignalKind
from kreflex.anomaly.engine import Calibrated, scored

_KINDS: dict[str, SignalKind] = {
    "cpu": "cpu",
    "disk": "disk",
    "latency": "latency",
    "memory": "memory",
    "network": "traffic",
    "requests": "traffic",
}
_HOUR = 3600.0


class Hourly:
    """One series: learns what it is given first, and then each hour."""

    def __init__(self, step: float, kind: SignalKind, factor: float = 1.0) -> None:
        self.detector = Calibrated()
        self.pause = max(1, round(_HOUR / step))
        self.factor = factor
        self._step, self._kind = step, kind
        self._learnt = -1
        self._state = np.zeros(1, self.detector.dtype)

    def about(self, index: int) -> About:
        return About(self._step, index * self._step, self._kind, 0.05, factor=np.array([self.factor]))

    def learn(self, history: Floats, index: int) -> None:
        self._state, self._learnt = self.detector.learn(history[None], self.about(index)), index

    def due(self, index: int) -> bool:
        return index - self._learnt > self.pause

    def update(self, window: Floats, index: int) -> None:
        """Learn the hour up to a sample, the last of `window`."""
        count = index - self._learnt
        values = _last(window, count + self.detector.window - 1)
        self._state, self._learnt = self.detector.update(self._state, values[None], self.about(index)), index

    def score(self, window: Floats, index: int) -> tuple[float, bool]:
        found = self.detector.score(self._state, _last(window, self.detector.window)[None], self.about(index))
        return float(found.score[0]), bool(found.flag[0])

    def scores(self, values: Floats, first: int, last: int) -> Floats:
        """Score the samples from `first` up to `last` at once, as `score` does one by one; they are of one hour."""
        size = self.detector.window
        padded = _last(values[:last], size + last - first - 1)
        views = np.lib.stride_tricks.sliding_window_view(padded, size)
        ends = np.arange(first, last)[:, None] * self._step
        state = np.repeat(self._state, last - first)
        return np.asarray(scored(state, views, ends, self.about(last - 1)).score)


class Stepwise:
    """What the harness talks to."""

    def __init__(self, meta: Mapping[str, Any]) -> None:
        self._hourly = hourly(meta)
        self._history: Floats = np.zeros(0)
        self._begun = False

    def warm(self, history: Floats) -> None:
        self._history = history

    def step(self, window: Floats, t: int) -> tuple[float, bool]:
        if not self._begun:
            self._hourly.learn(self._history, t - 1)
            self._begun = True
        if self._hourly.due(t):
            self._hourly.update(window[:-1], t - 1)
        return self._hourly.score(window, t)


def hourly(meta: Mapping[str, Any], factor: float = 1.0) -> Hourly:
    return Hourly(float(meta["period_s"]), _KINDS.get(str(meta["kind"]), "gauge"), factor)


def factory(meta: Mapping[str, Any]) -> Stepwise:
    """Make the detector for one series; `meta` has period_s and kind."""
    return Stepwise(meta)


def _last(values: Floats, count: int) -> Floats:
    """Give the newest samples; where there are fewer, missing ones before them."""
    newest = np.asarray(values[max(0, len(values) - count) :], dtype=float)
    return np.concatenate((np.full(count - len(newest), np.nan), newest))
