"""river's HalfSpaceTrees, which learn one sample at a time; the threshold is from the series' own past.

The trees are no fixed number of bytes, so the state keeps the samples that they learn from, in their order.
"""

from __future__ import annotations

import numpy as np
from river import anomaly

from kreflex.anomaly.detector import About, Bools, Floats, Scores
from kreflex_detectors.tails import left_out, scores, threshold

_KEPT = 240


class HalfSpace:
    """Scores the newest sample by how rare its place among the series' last hours is."""

    name = "halfspace"
    version = 1
    window = 2
    dtype = np.dtype([("kept", "f4", (_KEPT,)), ("low", "f8"), ("span", "f8"), ("high", "f8")])

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
            value = recent[row, -1]
            if np.isfinite(one["high"]) and np.isfinite(value):
                kept = one["kept"][np.isfinite(one["kept"])]
                raw[row] = _followed(kept, one)[1].score_one(_features(value, kept[-1], one))
        return scores(raw, state["high"], recent, about)

    def _learnt(self, values: Floats, about: About) -> np.void:
        one = np.zeros(1, self.dtype)
        one["kept"], one["high"] = np.nan, np.nan
        if len(values):
            one["kept"][0, _KEPT - len(values) :] = values
            one["low"], one["span"] = values.min(), max(np.ptp(values), 1e-9)
            raw = _followed(values, one[0])[0]
            # The first ones meet trees that have seen nothing.
            one["high"] = threshold(raw[len(raw) // 4 :], about)
        return one[0]


def _followed(values: Floats, one: np.void) -> tuple[Floats, anomaly.HalfSpaceTrees]:
    """Learn from the samples in their order; what each scored before it was learnt from, and the trees."""
    trees = anomaly.HalfSpaceTrees(n_trees=10, height=6, window_size=40, seed=0)
    raw = []
    for before, value in zip([values[0], *values], values, strict=False):
        features = _features(value, before, one)
        raw.append(trees.score_one(features))
        trees.learn_one(features)
    return np.array(raw), trees


def _features(value: float, before: float, one: np.void) -> dict[str, float]:
    # The trees expect numbers between 0 and 1; room is left for what was never seen.
    place = 0.25 + 0.5 * (value - one["low"]) / one["span"]
    change = 0.5 + 0.25 * (value - before) / one["span"]
    return {"place": float(np.clip(place, 0, 1)), "change": float(np.clip(change, 0, 1))}
