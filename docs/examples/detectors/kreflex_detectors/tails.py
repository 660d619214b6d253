"""What the examples share: windows of samples, and a threshold that is a stated number of false alarms."""

from __future__ import annotations

import numpy as np

from kreflex.anomaly.detector import CLASSES, About, Bools, Floats, Scores

_DAY = 86_400.0
_LEAST = 1e-12


def windows(values: Floats, size: int) -> Floats:
    """Give all windows of one series that have no gap, shape (windows, size)."""
    values = np.asarray(values, dtype=float)
    if len(values) < size:
        return np.empty((0, size))
    views = np.lib.stride_tricks.sliding_window_view(values, size)
    return views[np.isfinite(views).all(axis=1)]


def threshold(raw: Floats, about: About) -> float:
    """Give the raw score that a series exceeds as often as false alarms are borne; NaN with too few to tell.

    With fewer samples than that takes, it is the highest of all and half as much again.
    """
    if len(raw) < 30:
        return float("nan")
    share = about.false_alarms * about.step / _DAY
    if share * len(raw) < 1:
        return float(max(raw.max() * 1.5, _LEAST))
    return float(max(np.quantile(raw, 1 - share), _LEAST))


def scores(raw: Floats, high: Floats, recent: Floats, about: About) -> Scores:
    """Make the scores of raw ones: 1 is the threshold."""
    factor = np.ones(len(raw)) if about.factor is None else about.factor
    score = raw / (high * factor)
    flag = np.nan_to_num(score) >= 1
    kind = np.full(len(raw), CLASSES.index("anomaly"), dtype=np.uint8)
    return Scores(score, flag, kind, {"value": recent[:, -1], "raw": raw})


def left_out(history: Floats, excluded: Bools | None) -> Floats:
    """Give the history without what is known not to be normal."""
    return np.asarray(history, dtype=float) if excluded is None else np.where(excluded, np.nan, history)
