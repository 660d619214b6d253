"""Slow rises, over hours and a day: of what a series is at its lowest, which neither garbage nor jobs move.

A piece is 60 samples. Of each only the low is kept, and a climb is by how much the lows of the newest third of some
pieces are all above those of the oldest third. So what goes up and down within a few pieces has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kreflex.anomaly.detector import Bools, Floats

PIECE = 60
_LATELY = 5
SPANS = (3, 6, 12, 24)
"""Over how many pieces it is looked."""
KEPT = SPANS[-1]
# A span has been seen in all its ways after so many times its length; before that it tells nothing.
_SEEN = 3
# What was fades by half in so many pieces: two weeks, if they are hours.
_HALVED = 336
# And so many halve how far above the newest ones the highest are: what is reached once a day is known at night, too.
_SETTLED = 1344
# How much more than the largest climb of the past is one; and how much of it, on ground where the series never was.
_MORE, _ON_NEW_GROUND = 3.0, 0.6
# So much of a climb has to be above all lows of the days before.
_NEW = 0.25
# So many samples of a piece may be odd.
_ODD = 2
# Of what a series is at, so much is no climb.
_LEAST = 0.005


@dataclass(frozen=True, slots=True)
class Past:
    """What is known of each series, in units of its scale: shapes (series, KEPT), (series, spans), and (series,)."""

    lows: Floats
    usual: Floats
    crest: Floats
    """The highest low before those that are kept."""
    ceiling: Floats
    """The highest of all."""
    pieces: Floats
    level: Floats


@dataclass(frozen=True, slots=True)
class Climb:
    """How much more than usual each series climbs, 1 at the threshold, and by how much in a sample."""

    more: Floats
    pace: Floats
    new: Bools
    """Where it is higher than it ever was."""


def lows(values: Floats) -> Floats:
    """Give the low of each whole piece, the newest last; NaN where half of its samples are missing."""
    count = values.shape[1] // PIECE
    pieces = values[:, values.shape[1] - count * PIECE :].reshape(len(values), count, PIECE)
    there = np.isfinite(pieces)
    # One odd sample is no low.
    third = np.partition(np.where(there, pieces, np.inf), _ODD, axis=2)[:, :, _ODD]
    return np.asarray(np.where(there.sum(axis=2) > PIECE // 2, third, np.nan), dtype=np.float32)


def highs(values: Floats) -> Floats:
    """Give the same of what is high."""
    return -lows(-values)


def climbs(found: Floats) -> Floats:
    """Give the climbs that end with each piece, shape (series, pieces, spans); NaN where pieces are missing."""
    return np.stack([_climb(found, span) for span in SPANS], axis=2)


def _climb(found: Floats, span: int) -> Floats:
    result = np.full(found.shape, np.nan, np.float32)
    if found.shape[1] >= span:
        views = np.lib.stride_tricks.sliding_window_view(found, span, axis=1)
        whole = np.isfinite(views).all(axis=2)
        result[:, span - 1 :] = np.where(whole, _rise(views), np.nan)
    return result


def _rise(views: Floats) -> Floats:
    third = views.shape[-1] // 3
    return np.asarray(views[..., -third:].min(axis=-1) - views[..., :third].max(axis=-1))


def largest(found: Floats, before: Floats) -> Floats:
    """Give the largest climb of each span, shape (series, spans), of these and of what was before; it fades."""
    count = found.shape[1]
    share = 0.5 ** (np.arange(count - 1, -1, -1) / _HALVED)
    top = np.where(np.isfinite(found), found * share[:, None], 0).max(axis=1, initial=0)
    return np.asarray(np.maximum(top, before * 0.5 ** (count / _HALVED)))


def highest(found: Floats, before: Floats) -> Floats:
    """Give the highest of these pieces and of those before, which moves towards them; NaN where there was none."""
    top = np.where(np.isfinite(found), found, -np.inf).max(axis=1, initial=-np.inf)
    top = np.where(np.isfinite(top), top, np.nan)
    share = 0.5 ** (found.shape[1] / _SETTLED)
    return np.asarray(np.fmax(top, np.where(np.isfinite(top), top + (before - top) * share, before)))


def climbing(past: Past, newest: Floats) -> Climb:
    """Compare the climbs up to the newest samples, the last piece of them, with those of the past."""
    known = np.concatenate((past.lows[:, 1:], lows(newest[:, -PIECE:])), axis=1)
    least = np.maximum(past.usual[:, 0], _LEAST * past.level)
    more, pace = np.zeros(len(known)), np.zeros(len(known))
    for number, span in enumerate(SPANS):
        views = known[:, -span:]
        rise = np.nan_to_num(_rise(views), nan=0.0)
        usual = np.maximum(past.usual[:, number], least)
        wanted = np.where(_new_ground(views, rise, past.crest), _ON_NEW_GROUND, _MORE) * usual
        told = np.where(past.pieces >= _SEEN * span, np.maximum(rise, 0) / np.maximum(wanted, 1e-9), 0)
        # From the last piece of the oldest third to the first of the newest. What is new is slow in long spans.
        pace = np.where(told >= 1, np.maximum(pace, rise / (PIECE * (span // 3 + 1))), pace)
        more = np.maximum(more, told)
    lately = newest[:, -_LATELY:].min(axis=1)
    risen = lately - newest[:, -PIECE : -PIECE + _LATELY].max(axis=1)
    return Climb(more, pace, ~(lately - past.ceiling <= _NEW * risen))


def _new_ground(views: Floats, rise: Floats, crest: Floats) -> Bools:
    third = views.shape[1] // 3
    return np.asarray(views[:, -third:].min(axis=1) - crest > _NEW * rise)
