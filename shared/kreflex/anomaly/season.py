"""What a series usually is at a time of day: 96 quarters of an hour, each an average that forgets over days."""

from __future__ import annotations

import numpy as np

from kreflex.anomaly.detector import Floats

SLOTS = 96
DAY = 86_400.0
_SLOT = DAY / SLOTS
# A new day counts for a quarter at least: a series that has changed for good is known anew after some days.
_LEAST = 0.25


def expected(profile: Floats, times: Floats, step: float) -> Floats:
    """Give what is expected at each time, shape (series, times); NaN where that time of day was never seen.

    `times` is of one row for all series, or of a row each. Between the middles of two slots it is a line, but for
    samples that are further apart than a slot, of which some slots see none.
    """
    place = times % DAY / _SLOT
    if step >= _SLOT:
        return _at(profile, place.astype(np.intp))
    low = np.floor(place - 0.5)
    share = place - 0.5 - low
    first = _at(profile, low.astype(np.intp) % SLOTS)
    second = _at(profile, (low.astype(np.intp) + 1) % SLOTS)
    first = np.where(np.isfinite(first), first, second)
    second = np.where(np.isfinite(second), second, first)
    return np.asarray(first + share * (second - first))


def _at(profile: Floats, slots: np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> Floats:
    rows = np.broadcast_to(slots, (len(profile), slots.shape[-1]))
    return np.asarray(np.take_along_axis(profile, rows, axis=1), dtype=np.float32)


def learnt(profile: Floats, days: Floats, values: Floats, times: Floats, step: float) -> Floats:
    """Move the slots of these times towards the middle of their samples; times are those of less than a day."""
    slots, first, counts = np.unique((times % DAY / _SLOT).astype(np.intp), return_index=True, return_counts=True)
    # Times go up, so that the samples of a slot are side by side.
    place = np.arange(len(times)) - np.repeat(first, counts)
    samples = np.full((len(values), len(slots), counts.max()), np.nan, np.float32)
    samples[:, np.repeat(np.arange(len(slots)), counts), place] = values
    count = np.isfinite(samples).sum(axis=2)
    middle = _middle(samples, count)
    before = np.asarray(profile[:, slots], dtype=np.float32)
    # A slot of which an update sees a part moves by that part.
    weight = np.maximum(_LEAST, 1 / (days + 1))[:, None] * np.minimum(1.0, count / max(_SLOT / step, 1.0))
    moved = np.where(np.isfinite(before), before + weight * (middle - before), middle)
    result = np.array(profile, dtype=np.float32)
    result[:, slots] = np.where(count > 0, moved, before)
    # Half precision, as the state has it: it must not overflow.
    return np.clip(result, -60_000, 60_000)


def _middle(rows: Floats, count: np.ndarray[tuple[int, ...], np.dtype[np.intp]]) -> Floats:
    ordered = np.sort(rows, axis=-1)
    low = np.take_along_axis(ordered, (np.maximum(count - 1, 0) // 2)[..., None], axis=-1)
    high = np.take_along_axis(ordered, np.minimum(count // 2, rows.shape[-1] - 1)[..., None], axis=-1)
    # Halved first: the sum of two huge ones overflows.
    return np.asarray(low / 2 + high / 2)[..., 0]
