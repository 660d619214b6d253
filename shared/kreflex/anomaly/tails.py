"""The tail of a series' own past: its largest scores, and what a stated number of false alarms makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from kreflex.anomaly.detector import Floats

KEPT = 28
# The quantile that a threshold stands on, and how many samples it takes to see it.
SHARE = 0.002
_ENOUGH = 1 / SHARE
# Seven days of one-minute samples. Tails count samples, not time: a quantile needs so many to be one.
MEMORY = 10_080
# The index of the tail beyond what was seen. Measured on 103 series: short histories are as far off as it says.
INDEX = 0.25
# For so many false alarms per series-day the factors of the engine were measured.
_MEASURED = 0.05

Ages = npt.NDArray[np.unsignedinteger[Any]]


def grown(top: Floats, age: Ages, fresh: Floats) -> tuple[Floats, Ages]:
    """Add fresh scores, shape (series, samples); what is older than the memory is forgotten.

    A tail is sorted, the largest first; -1 stands in an empty place.
    """
    samples = fresh.shape[1]
    old = np.minimum(age.astype(np.int64) + samples, MEMORY + 1)
    values = np.concatenate((np.where(old > MEMORY, -1, top), np.where(np.isfinite(fresh), fresh, -1)), axis=1)
    ages = np.concatenate((old, np.broadcast_to(np.arange(samples)[::-1], fresh.shape)), axis=1)
    # Stable: equal input has to give equal states everywhere.
    order = np.argsort(-values, axis=1, kind="stable")[:, :KEPT]
    return np.take_along_axis(values, order, axis=1), np.take_along_axis(ages, order, axis=1).astype(np.uint16)


def high(top: Floats, count: Floats) -> Floats:
    """Give the value that `SHARE` of the counted scores are above; the largest, where there are too few to tell."""
    place = np.clip(SHARE * (count - 1), 0, KEPT - 1)
    lower = np.floor(place).astype(np.intp)
    upper = np.minimum(lower + 1, KEPT - 1)
    first = np.take_along_axis(top, lower[..., None], axis=-1)[..., 0]
    second = np.take_along_axis(top, upper[..., None], axis=-1)[..., 0]
    # What was forgotten leaves empty places behind.
    second = np.where(second < 0, first, second)
    return np.asarray(first + (place - lower) * (second - first))


def beyond(count: Floats, false_alarms: float) -> Floats:
    """Tell how far beyond the largest scores of so many samples the threshold is, for so many false alarms a day."""
    wanted = np.clip((_MEASURED / max(false_alarms, 1e-6)) ** INDEX, 0.5, 3.0)
    return np.asarray(wanted * np.maximum(1.0, _ENOUGH / np.maximum(count, 10)) ** INDEX)
