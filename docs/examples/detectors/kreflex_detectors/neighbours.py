"""scikit-learn's LocalOutlierFactor over the last samples, with a threshold from the series' own past.

What it learns is no fixed number of bytes, so the state keeps what it is learnt from, and it is learnt anew to score,
some milliseconds a series. Not an IsolationForest: whatever lies outside of what its trees have seen gets the same
score, so that no threshold tells far from near.
"""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import LocalOutlierFactor

from kreflex.anomaly.detector import About, Bools, Floats, Scores
from kreflex_detectors.tails import left_out, scores, threshold, windows

_KEPT = 256


class Neighbours:
    """Scores the last five samples by how far they are from their neighbours in the series' past."""

    name = "neighbours"
    version = 1
    window = 5
    dtype = np.dtype([("kept", "f4", (_KEPT + 5,)), ("high", "f8")])

    def learn(self, history: Floats, about: About, excluded: Bools | None = None) -> np.ndarray:
        state = np.zeros(len(history), self.dtype)
        for row, values in enumerate(left_out(history, excluded)):
            state[row] = self._learnt(values, about)
        return state

    def update(self, state: np.ndarray, recent: Floats, about: About, excluded: Bools | None = None) -> np.ndarray:
        history = np.concatenate((state["kept"], left_out(recent, excluded)[:, self.window - 1 :]), axis=1)
        return self.learn(history, about)

    def score(self, state: np.ndarray, recent: Floats, about: About) -> Scores:
        raw = np.full(len(state), np.nan)
        for row, values in enumerate(np.asarray(recent, dtype=float)):
            grown = windows(state["kept"][row], self.window)
            if np.isfinite(state["high"][row]) and np.isfinite(values).all() and len(grown):
                raw[row] = _raw(_grown(grown), values[None, :])[0]
        return scores(raw, state["high"], recent, about)

    def _learnt(self, values: Floats, about: About) -> np.void:
        one = np.zeros(1, self.dtype)
        kept = values[-(_KEPT + 5) :]
        one["kept"] = np.nan
        one["kept"][0, len(one["kept"][0]) - len(kept) :] = kept
        seen = windows(kept, self.window)
        one["high"] = threshold(_raw(_grown(seen), seen), about) if len(seen) > 30 else np.nan
        return one[0]


def _grown(seen: Floats) -> LocalOutlierFactor:
    return LocalOutlierFactor(n_neighbors=min(20, len(seen) - 1), novelty=True).fit(seen)


def _raw(found: LocalOutlierFactor, seen: Floats) -> Floats:
    # -score_samples is about 1 for what is as far from its neighbours as these are from theirs.
    return np.maximum(-found.score_samples(seen) - 0.9, 0)
