"""What the newest samples of many series are, beside those just before them."""

from __future__ import annotations

import numpy as np

from kreflex.anomaly.detector import Bools, Floats

LOOK = 60
"""How many samples before one tell where the series was lately."""
NEAR = 10
"""How many samples before one tell where it was just now."""
_LEAST = 5


def clean(values: Floats) -> Floats:
    """Give samples as numbers; what is infinite is missing."""
    numbers = np.asarray(values, dtype=float)
    return np.where(np.isfinite(numbers), numbers, np.nan)


def middles(rows: Floats) -> Floats:
    """Give the medians of the last axis, NaN where less than five samples are there."""
    # NaN is sorted to the end, so that the count of the others says where the middle is.
    ordered = np.sort(rows, axis=-1)
    count = np.isfinite(ordered).sum(axis=-1, keepdims=True)
    low = np.take_along_axis(ordered, np.maximum(count - 1, 0) // 2, axis=-1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, rows.shape[-1] - 1), axis=-1)
    return np.where(count >= _LEAST, (low + high) / 2, np.nan)[..., 0]


def before(values: Floats, length: int, samples: int) -> Floats:
    """Give the medians of `length` samples before each of the newest `samples`."""
    views = np.lib.stride_tricks.sliding_window_view(values[:, -(length + samples) : -1], length, axis=1)
    return middles(views)


def padded(values: Floats, samples: int) -> Floats:
    """Put missing samples before."""
    return np.concatenate((np.full((len(values), samples), np.nan, values.dtype), values), axis=1)


def filled(values: Floats) -> Floats:
    """Put the sample before in the place of a missing one."""
    index = np.where(np.isfinite(values), np.arange(values.shape[1]), 0)
    result: Floats = np.take_along_axis(values, np.maximum.accumulate(index, axis=1), axis=1)
    return result


def runs(changed: Bools) -> Floats:
    """Tell of each sample for how many before it nothing changed."""
    place = np.arange(changed.shape[1])
    return np.asarray(place - np.maximum.accumulate(np.where(changed, place, 0), axis=1), dtype=np.float32)


def still(values: Floats) -> Floats:
    """Tell of each sample for how many before it the value was the same."""
    known = filled(values)
    # NaN differs from itself: before the first sample nothing is still.
    return runs(np.concatenate((np.ones((len(known), 1), bool), known[:, 1:] != known[:, :-1]), axis=1))


def missing(values: Floats) -> Floats:
    """Tell of each sample how many in a row are missing up to it."""
    there = np.isfinite(values)
    there[:, 0] = True
    return runs(there)
