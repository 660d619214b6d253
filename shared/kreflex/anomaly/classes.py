"""How a series is unlike its own past: rules on what the experts found, the most telling one first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from kreflex.anomaly.climbs import Climb
from kreflex.anomaly.detector import CLASSES, About, Bools, Floats, Kinds

Rows = npt.NDArray[np.intp]

_HOUR, _SEASON, _NEAR = 0, 1, 2
_FULL = 0.9
GROWING = frozenset({"disk", "memory", "quota"})
"""The kinds that can be exhausted."""
BUSY = frozenset({"cpu", "replicas", "traffic"})
"""The kinds that are nothing when nothing is done: of errors, waiting and throttling nothing is what one wants."""
# Of what is expected, so much is nearly nothing.
_NOTHING = 0.05
# A rise is a leak where it is so much faster than nearly all that the series did before.
_FASTER = 1.5
_KNOWN = 3.0
# A slow one counts less beyond the horizon, too, not at all so many horizons ahead, and least where it has no end.
_SLOWER, _FAR, _ENDLESS = 1.25, 12, 2.0


@dataclass(frozen=True, slots=True)
class Found:
    """What the experts say of some samples of each series, in units of its scale, with the sign."""

    hour: Floats
    season: Floats
    near: Floats
    rise: Floats

    def magnitudes(self) -> Floats:
        """Give them as they are calibrated, shape (experts, series, samples)."""
        return abs(np.stack((self.hour, self.season, self.near, self.rise)))

    def of(self, rows: Rows) -> Found:
        return Found(self.hour[rows], self.season[rows], self.near[rows], self.rise[rows])


@dataclass(frozen=True, slots=True)
class View:
    """What is known of the newest samples of each series."""

    values: Floats
    level: Floats
    scale: Floats
    experts: Found
    high: Floats
    rise: Floats
    climb: Climb
    still: Floats
    idle: Floats

    def of(self, rows: Rows) -> View:
        """Leave in some series only."""
        return View(
            self.values[rows],
            self.level[rows],
            self.scale[rows],
            self.experts.of(rows),
            self.high[rows],
            self.rise[rows],
            Climb(self.climb.more[rows], self.climb.pace[rows], self.climb.new[rows]),
            self.still[rows],
            self.idle[rows],
        )

    @property
    def newest(self) -> Floats:
        return self.values[:, -1]

    @property
    def expected(self) -> Floats:
        """What the last hour lets expect."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(self.newest - self.experts.hour[:, -1] * self.scale)

    @property
    def usual(self) -> Floats:
        """What it usually is at this time of day."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.asarray(self.newest - self.experts.season[:, -1] * self.scale)


def leaks(view: View, about: About) -> Floats:
    """Score a rise that goes on and on, of what can be exhausted; 0 where it does not."""
    if about.kind not in GROWING:
        return np.zeros(len(view.values))
    sudden = np.where(exhausted_in(view, about, _pace(view, about)) < about.horizon, 1.0, _FASTER)
    # What goes up to where it has been before comes down again, as a rule.
    sudden = np.where(view.climb.new, sudden, _KNOWN)
    left = exhausted_in(view, about, view.climb.pace)
    slow = np.where(left < about.horizon, 1.0, np.where(left < _FAR * about.horizon, _SLOWER, np.inf))
    if about.limit is not None:
        slow = np.where(np.isfinite(np.asarray(about.limit, float)), slow, _ENDLESS)
    else:
        slow = np.full(len(slow), _ENDLESS)
    return np.maximum(np.where(_steady(view.values), view.rise / sudden, 0.0), view.climb.more / slow)


def at_most_usual(hour: Floats, level: Floats, day: Floats) -> Floats:
    """Expect what the hour lets expect, but no more than is usual, all in all or at this time of day.

    What is again as it was before an hour of work has not dropped out.
    """
    return np.asarray(np.minimum(hour, np.fmax(level, day)))


def nearly_nothing(values: Floats, expected: Floats) -> Bools:
    """Tell where next to nothing is left of what is expected."""
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((expected > 0) & (abs(values) <= _NOTHING * expected))


def _pace(view: View, about: About) -> Floats:
    """By how much in a second the last fifty samples have risen."""
    steps = _steps(view.values)
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((steps[:, -1] - steps[:, 0]) / (10 * (steps.shape[1] - 1) * about.step))


def exhausted_in(view: View, about: About, pace: Floats) -> Floats:
    """In how many seconds the limit is reached at a pace; infinite where it is not."""
    with np.errstate(over="ignore", invalid="ignore"):
        left = np.full(len(pace), np.nan) if about.limit is None else np.asarray(about.limit, float) - view.newest
        seconds = np.maximum(left, 0) / np.where(pace > 0, pace, np.nan)
    return np.where(np.isfinite(seconds), seconds, np.inf)


def paces(view: View, about: About) -> Floats:
    """By how much in a second it grows: by its climb of hours, where that is what tells."""
    slow = view.climb.more > np.where(_steady(view.values), view.rise, 0.0)
    return np.where(slow, view.climb.pace, _pace(view, about))


def _steps(values: Floats) -> Floats:
    """Give the means of six times ten samples; NaN where one is missing altogether."""
    blocks = values[:, -60:].reshape(len(values), 6, 10)
    there = np.isfinite(blocks)
    # Divided first: a sum of huge numbers overflows.
    return np.where(
        there.any(axis=2),
        np.where(there, blocks / np.maximum(there.sum(axis=2, keepdims=True), 1), 0).sum(axis=2),
        np.nan,
    )


def _steady(values: Floats) -> Bools:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray((np.diff(_steps(values), axis=1) > 0).all(axis=1))


def of(view: View, leak: Floats, score: Floats, about: About) -> Kinds:
    """Name what is wrong with each series that is beyond its threshold; the first rule that holds."""
    kinds = np.full(len(score), CLASSES.index("anomaly"), dtype=np.uint8)
    kinds[~np.isfinite(view.newest)] = CLASSES.index("absent")
    rows = np.flatnonzero(np.nan_to_num(score) >= 1)
    rows = rows[np.isfinite(view.newest[rows])]
    if len(rows):
        rules = _rules(view.of(rows), leak[rows], score[rows], about_of(about, rows))
        names = [CLASSES.index(name) for name, _ in rules]
        kinds[rows] = np.select([holds for _, holds in rules], names, default=CLASSES.index("anomaly"))
    return kinds


def about_of(about: About, rows: Rows | slice) -> About:
    """Leave in the limits of some series only."""
    return about if about.limit is None else replace(about, limit=np.asarray(about.limit)[rows])


def _rules(view: View, leak: Floats, score: Floats, about: About) -> list[tuple[str, Bools]]:
    hour = view.experts.hour / view.high[:, _HOUR, None]
    usual = np.nan_to_num(abs(view.experts.season[:, -1]) / view.high[:, _SEASON])
    out = np.nan_to_num(abs(hour))
    return [
        ("flatline", (view.still >= score) & (view.still > 0)),
        # What grows up to its limit leaks: that has a remedy.
        ("leak" if about.kind == "memory" else "exhaustion", (leak >= 1) | ((leak > 0) & (leak >= score))),
        ("saturation", _full(view, about)),
        ("dropout", _dropped(view, about)),
        ("thrash", _crossings(view) >= 4),
        ("season", usual > 2 * out[:, -1]),
        ("level-shift", (out > 0.5).all(axis=1) & (abs(np.sign(hour).sum(axis=1)) == 3) & _stays(view)),
        ("spike", np.nan_to_num(abs(view.experts.near[:, -1]) / view.high[:, _NEAR]) > 1),
        ("spike", out[:, -1] > 1),
    ]


def _full(view: View, about: About) -> Bools:
    if about.limit is None or about.kind not in {"cpu", "disk", "memory", "quota", "saturation"}:
        return np.zeros(len(view.values), bool)
    return full(view.newest, np.asarray(about.limit, dtype=float))


def full(values: Floats, limit: Floats) -> Bools:
    """Tell what is nearly at its limit."""
    return np.asarray((limit > 0) & (values >= _FULL * limit))


def _dropped(view: View, about: About) -> Bools:
    """Nearly nothing of what was well above nothing."""
    if about.kind not in BUSY | {"gauge"}:
        return np.zeros(len(view.values), bool)
    expected = np.nan_to_num(at_most_usual(view.expected, view.level, view.usual))
    clear = expected > 2 * np.minimum(view.scale, expected)
    return np.asarray((clear | (view.idle >= 1)) & nearly_nothing(view.newest, expected))


def _stays(view: View) -> Bools:
    """The last five samples are on the same side of the hour before them."""
    with np.errstate(over="ignore", invalid="ignore"):
        off = (view.values[:, -5:] - view.expected[:, None]) / view.scale[:, None] / view.high[:, _HOUR, None]
    far = np.nan_to_num(off)
    return np.asarray((far > 0.5).all(axis=1) | (far < -0.5).all(axis=1))


def _crossings(view: View) -> Floats:
    """How often the last fifteen samples went from well above their middle to well below it, or back."""
    newest = view.values[:, -15:]
    there = np.isfinite(newest)
    low = np.where(there, newest, np.inf).min(axis=1, initial=np.inf)
    high = np.where(there, newest, -np.inf).max(axis=1, initial=-np.inf)
    some = there.any(axis=1)
    low, high = np.where(some, low, 0.0), np.where(some, high, 0.0)
    upper = np.nan_to_num(newest, nan=-np.inf) > (low / 4 + high * 0.75)[:, None]
    lower = np.nan_to_num(newest, nan=np.inf) < (low * 0.75 + high / 4)[:, None]
    side = np.where(upper, 1, np.where(lower, -1, 0))
    place = np.where(side != 0, np.arange(side.shape[1]), 0)
    held = np.take_along_axis(side, np.maximum.accumulate(place, axis=1), axis=1)
    return np.asarray((held[:, 1:] * held[:, :-1] < 0).sum(axis=1))


def evidence(view: View, leak: Floats, about: About) -> Mapping[str, Floats]:
    """Numbers for people, in the series' own unit."""
    with np.errstate(over="ignore", invalid="ignore"):
        usually_off = view.high[:, _HOUR] * view.scale
    pace = paces(view, about)
    seconds = np.where(leak > 0, exhausted_in(view, about, pace), np.nan)
    limit = np.full(len(view.values), np.nan) if about.limit is None else np.asarray(about.limit, dtype=float)
    return {
        "value": view.newest,
        "expected": view.expected,
        "usual_at_this_time": view.usual,
        "usually_off_by_less_than": np.asarray(usually_off),
        "limit": limit,
        "grows_in_an_hour": np.where(leak > 0, 3600 * pace, np.nan),
        "seconds_to_limit": np.where(np.isfinite(seconds), seconds, np.nan),
    }
