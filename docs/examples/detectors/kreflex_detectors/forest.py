"""scikit-learn's IsolationForest over the last samples, with a threshold from the series' own past.

A forest is no fixed number of bytes, so the state keeps what it is grown from, and it is grown anew to score: some
milliseconds a series. With its own rule, `contamination`, it would call the worst of any samples anomalous.
"""

from __future__ import annotations

import numpy as np
from sklearn.ensemble import IsolationForest

from kreflex.anomaly.detector import About, Bools, Floats, Scores
from kreflex_detectors.tails import left_out, scores, threshold, windows

_KEPT = 256


class Forest:
    """Scores the last five samples by how soon a random tree tells them from the series' past."""

    name = "forest"
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
        one["high"] = threshold(_raw(_grown(seen), seen), about) if len(seen) else np.nan
        return one[0]


def _grown(seen: Floats) -> IsolationForest:
    # The seed is fixed: two replicas have to come to the same.
    return IsolationForest(n_estimators=50, random_state=0).fit(seen)


def _raw(forest: IsolationForest, seen: Floats) -> Floats:
    # -score_samples is between 0 and 1, and about 0.5 for what is not unusual.
    return np.maximum(-forest.score_samples(seen) - 0.4, 0)
