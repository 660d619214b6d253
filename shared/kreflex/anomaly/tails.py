"""The tail of a series' own past: its largest scores, and what a stated number of false alarms makes of them."""

from __future__ import annotations

import numpy as np

from kreflex.anomaly.detector import Floats

KEPT = 32
# The quantile that a threshold stands on, and how many samples it takes to see it.
SHARE = 0.002
_ENOUGH = 1 / SHARE
# Seven days of one-minute samples. Tails count samples, not time: a quantile needs so many to be one.
MEMORY = 10_080
# The index of the tail beyond what was seen. Measured on 103 series: short histories are as far off as it says.
INDEX = 0.25
# What the factors of the engine stand for. With them, 0.05 asked for was 0.06 measured, and more is to be expected of
# series that nobody has seen yet (docs/adr/0026).
_MEASURED = 0.055

# What was seen fades by half in so many samples: thresholds come down again after a bad week, but not at once.
_HALVED = 4 * MEMORY


def grown(top: Floats, fresh: Floats, samples: int = 0) -> Floats:
    """Add fresh scores, shape (series, scores), to what was seen before, which fades; `samples` if they are of more.

    A tail is sorted, the largest first; -1 stands in an empty place.
    """
    faded = np.where(top > 0, top * 0.5 ** ((samples or fresh.shape[1]) / _HALVED), top)
    values = np.concatenate((faded, np.where(np.isfinite(fresh), fresh, -1)), axis=1)
    return np.asarray(-np.sort(-values, axis=1)[:, : top.shape[1]], dtype=np.float32)


def high(top: Floats, count: Floats) -> Floats:
    """Give the value that `SHARE` of the counted scores are above; the largest, where there are too few to tell."""
    place = np.clip(SHARE * (count - 1), 0, KEPT - 1)
    lower = np.floor(place).astype(np.intp)
    upper = np.minimum(lower + 1, KEPT - 1)
    first = np.take_along_axis(top, lower[..., None], axis=-1)[..., 0]
    second = np.take_along_axis(top, upper[..., None], axis=-1)[..., 0]
    # Empty places are there as long as the history is short.
    second = np.where(second < 0, first, second)
    return np.asarray(first + (place - lower) * (second - first))


def beyond(count: Floats, false_alarms: float) -> Floats:
    """Tell how far beyond the largest scores of so many samples the threshold is, for so many false alarms a day."""
    wanted = np.clip((_MEASURED / max(false_alarms, 1e-6)) ** INDEX, 0.5, 3.0)
    return np.asarray(wanted * np.maximum(1.0, _ENOUGH / np.maximum(count, 10)) ** INDEX)
