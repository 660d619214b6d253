"""river's StandardAbsoluteDeviation, which learns one sample at a time; the threshold is from the series' own past.

What it has learnt is an object of river's and no fixed number of bytes, so the state keeps the samples that it learns
from, in their order.
"""

from __future__ import annotations

import numpy as np
from river import anomaly

from kreflex.anomaly.detector import About, Bools, Floats, Scores
from kreflex_detectors.tails import left_out, scores, threshold

_KEPT = 240


class Deviation:
    """Scores the newest sample by how many deviations it is from the mean of the series' last hours."""

    name = "deviation"
    version = 1
    window = 2
    dtype = np.dtype([("kept", "f8", (_KEPT,)), ("high", "f8")])

    def learn(self, history: Floats, about: About, excluded: Bools | None = None) -> np.ndarray:
        state = np.zeros(len(history), self.dtype)
        for row, values in enumerate(left_out(history, excluded)):
            state[row] = self._learnt(values[np.isfinite(values)][-_KEPT:], about)
        return state

    def update(self, state: np.ndarray, recent: Floats, about: About, excluded: Bools | None = None) -> np.ndarray:
        return self.learn(np.concatenate((state["kept"], left_out(recent, excluded)[:, 1:]), axis=1), about)

    def score(self, state: np.ndarray, recent: Floats, about: About) -> Scores:
        raw = np.full(len(state), np.nan)
        for row, one in enumerate(state):
            value = float(recent[row, -1])
            if np.isfinite(one["high"]) and np.isfinite(value):
                scorer = _followed(one["kept"][np.isfinite(one["kept"])])[1]
                raw[row] = abs(scorer.score_one({}, value))
        return scores(raw, state["high"], recent, about)

    def _learnt(self, values: Floats, about: About) -> np.void:
        one = np.zeros(1, self.dtype)
        one["kept"], one["high"] = np.nan, np.nan
        if len(values):
            one["kept"][0, _KEPT - len(values) :] = values
            raw = _followed(values)[0]
            # The first ones are compared with hardly anything.
            one["high"] = threshold(raw[len(raw) // 4 :], about)
        return one[0]


def _followed(values: Floats) -> tuple[Floats, anomaly.StandardAbsoluteDeviation]:
    """Learn from the samples in their order; what each scored before it was learnt from, and what was learnt."""
    scorer = anomaly.StandardAbsoluteDeviation()
    raw = []
    for value in values:
        raw.append(abs(scorer.score_one({}, float(value))))
        scorer.learn_one({}, float(value))
    return np.nan_to_num(np.array(raw), posinf=0.0), scorer
