"""The detector that ships: residuals to the last hour and to the time of day, in units of the series' own tail.

Method, numbers and what was tried: docs/adr/0026-anomalies-are-measured-by-a-series-own-tail.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kreflex.anomaly import classes, season, tails, windows
from kreflex.anomaly.detector import About, Bools, Floats, Scores

_EXPERTS = ("hour", "season", "near", "rise")
HOUR, SEASON, NEAR, RISE = range(len(_EXPERTS))
_STATE = np.dtype(
    [
        ("seen", "f4"),
        ("level", "f8"),
        ("scale", "f8"),
        ("profile", "f2", (season.SLOTS,)),
        # Of each expert: how many scores there were, and the largest of them.
        ("count", "f4", (len(_EXPERTS),)),
        ("top", "f4", (len(_EXPERTS), tails.KEPT)),
        # What the siblings' thresholds are, and how many samples stand behind that; no samples where there are none.
        ("kin", "f4", (len(_EXPERTS),)),
        ("kindred", "f4"),
        # How long it is usually still, and missing, in samples.
        ("still", "f4"),
        ("gap", "f4"),
    ]
)
State = npt.NDArray[np.void]

# What the two experts, each in units of its own tail and averaged over three samples, reach at the threshold.
_AGREED = 0.92
# What the last ten samples' expert has to reach alone.
_ALONE = 2.0
# And what the hour's has to reach then: a return to where the series was within the hour is no anomaly.
_SUPPORT = 0.5
# Beyond it, what is between two samples is the season, and not a jump.
_FINE = 360.0
_LEAST = 10
_CHUNK = 500


class Calibrated:
    """Scores a sample by how far beyond its own past it is; the threshold is a stated number of false alarms."""

    name = "calibrated"
    version = 2
    window = windows.LOOK + 3
    dtype = _STATE

    def learn(self, history: Floats, about: About, excluded: Bools | None = None) -> State:
        values = windows.clean(history)
        state = np.zeros(len(values), _STATE)
        for row in range(len(values)):
            mask = None if excluded is None else excluded[row : row + 1]
            state[row : row + 1] = _learnt(values[row : row + 1], about, mask)
        return state if about.siblings is None else _with_kin(state, about.siblings)

    def update(self, state: State, recent: Floats, about: About, excluded: Bools | None = None) -> State:
        values, new = windows.clean(recent), state.copy()
        for start in range(0, len(values), _CHUNK):
            rows = slice(start, start + _CHUNK)
            mask = None if excluded is None else excluded[rows]
            new[rows] = _grown(new[rows], values[rows], self.window - 1, about, mask)
        young = np.flatnonzero(state["seen"] < _LEAST)
        for row in young:
            new[row] = _learnt(values[row : row + 1], about, None if excluded is None else excluded[row : row + 1])[0]
        return new

    def score(self, state: State, recent: Floats, about: About) -> Scores:
        return scored(state, recent, np.array([[about.end]]), about)


def scored(state: State, recent: Floats, ends: Floats, about: About) -> Scores:
    """Score the newest sample of each row; `ends` is when it was, of one row for all, or of a row each."""
    values = windows.clean(recent)
    found = _experts(state, values, 3, ends + about.step * np.arange(-2, 1), about.step)
    high = _thresholds(state)
    factor = np.ones(len(values)) if about.factor is None else np.asarray(about.factor, dtype=float)
    far = tails.beyond(state["count"][:, HOUR] + state["kindred"], about.false_alarms) * factor
    hour = abs(found.hour[:, -1]) / high[:, HOUR]
    alone = np.minimum(abs(found.near[:, -1]) / high[:, NEAR] / _ALONE, hour / _SUPPORT)
    near = np.nan_to_num(alone / far)
    both = np.nan_to_num(_together(found, high) / _AGREED / far)
    still = _stillness(values, state["still"]) / far
    gone = _stillness_of(windows.missing(values)[:, -1], state["gap"], 5) / far
    rise = found.rise[:, -1] / high[:, RISE] / far
    here = np.isfinite(values[:, -1])
    view = classes.View(values, state["level"], state["scale"], found, high, np.nan_to_num(rise), still, gone)
    leak = classes.leaks(view, about)
    score = np.where(here, np.maximum.reduce((both, near, still, leak)), gone)
    known = (state["seen"] >= _LEAST) & (here | (gone >= 1))
    score = np.where(known, score, np.nan)
    flag = np.nan_to_num(score) >= 1
    return Scores(score, flag, classes.of(view, leak, score, about), classes.evidence(view, leak, about))


def _experts(state: State, values: Floats, samples: int, times: Floats, step: float) -> classes.Found:
    scaled = _scaled(state, values)
    hour, near, rise = _looked_back(scaled, samples, step)
    usual = season.expected(state["profile"], times, step)
    # Before a day has passed, the nearest time of day that is known is an hour ago.
    usual = np.where(_days(state, step)[:, None] >= 1, usual, np.nan)
    return classes.Found(hour, scaled[:, -samples:] - usual, near, rise)


def _days(state: State, step: float) -> Floats:
    return np.asarray(state["seen"] * step / season.DAY)


def _scaled(state: State, values: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        scaled = (values - state["level"][:, None]) / state["scale"][:, None]
    return np.asarray(np.clip(scaled, -1e30, 1e30), dtype=np.float32)


def _looked_back(scaled: Floats, samples: int, step: float) -> tuple[Floats, Floats, Floats]:
    newest = scaled[:, -samples:]
    hour = newest - windows.before(scaled, windows.LOOK, samples)
    if step > _FINE:
        nothing = np.full_like(newest, np.nan)
        return hour, nothing, nothing
    apart = windows.LOOK - windows.NEAR
    if samples >= apart:
        lately = windows.before(scaled, windows.NEAR, samples + apart)
        return hour, newest - lately[:, apart:], lately[:, apart:] - lately[:, :-apart]
    lately = windows.before(scaled, windows.NEAR, samples)
    return hour, newest - lately, lately - windows.before(scaled[:, :-apart], windows.NEAR, samples)


def _thresholds(state: State) -> Floats:
    """Give the high quantile of each expert's past, shape (series, experts), mixed with the siblings' while young."""
    own = tails.high(state["top"], state["count"])
    weight = (state["count"] / (state["count"] + 0.2 * state["kindred"][:, None] + 1)).astype(float)
    kin = np.where(state["kindred"][:, None] > 0, np.maximum(state["kin"], 1e-9), 1e-9)
    mixed = np.exp(weight * np.log(np.maximum(own, 1e-9)) + (1 - weight) * np.log(kin))
    # Nothing smaller than a thousandth of what the series is at counts as its noise.
    least = np.maximum(1e-6, 1e-3 * abs(state["level"]) / np.where(state["scale"] > 0, state["scale"], 1.0))
    used = np.where(state["kindred"][:, None] > 0, mixed, own)
    return np.asarray(np.maximum(used, least[:, None]))


def _together(found: classes.Found, high: Floats) -> Floats:
    """Multiply the hour's and the season's residual, and average over three samples; the hour's alone at first."""
    hour = abs(found.hour) / high[:, HOUR, None]
    usual = abs(found.season) / high[:, SEASON, None]
    product = np.where(np.isfinite(usual), np.sqrt(hour) * np.sqrt(np.where(np.isfinite(usual), usual, 0)), hour)
    there = np.isfinite(product)
    return np.asarray(np.where(there, product, 0).sum(axis=1) / np.maximum(there.sum(axis=1), 1))


def _stillness(values: Floats, usual: Floats) -> Floats:
    return _stillness_of(windows.still(values)[:, -1], usual, 10)


def _stillness_of(length: Floats, usual: Floats, least: float) -> Floats:
    """Score by how much longer than usual it lasts; a series that often rests says nothing by resting."""
    return np.where(usual < windows.LOOK / 3, length / np.maximum(3 * usual, least), 0.0)


def _learnt(values: Floats, about: About, excluded: Bools | None) -> State:
    """Learn the state of one series as it would have been learnt day by day."""
    state = np.zeros(1, _STATE)
    normal = values if excluded is None else np.where(excluded, np.nan, values)
    good = normal[np.isfinite(normal)]
    state["profile"], state["top"], state["scale"] = np.nan, -1, 1
    if len(good) < _LEAST:
        return state
    state["level"], state["scale"] = _place(good)
    scaled = windows.padded(_scaled(state, values), windows.LOOK)
    samples = values.shape[1]
    hour, near, rise = _looked_back(scaled, samples, about.step)
    times = about.end - about.step * np.arange(samples - 1, -1, -1)
    usual, state["profile"] = _season_by_day(_scaled(state, normal), times, about.step)
    found = classes.Found(hour, _scaled(state, values) - usual, near, rise)
    state = _counted(state, found.magnitudes(), normal)
    state["still"] = _usual(windows.still(values))
    state["gap"] = _usual(windows.missing(values))
    return state


def _place(good: Floats) -> tuple[float, float]:
    """Where the middle is, and how far around it the samples usually are."""
    level = float(np.median(good))
    with np.errstate(over="ignore"):
        spread = 1.4826 * float(np.median(abs(good - level))) or float(np.std(good / 2)) * 2
    fits = np.isfinite(spread) and spread > 1e-9 * abs(level)
    return level, max(spread, 1e-300) if fits else max(abs(level) * 1e-2, 1e-9)


def _usual(lengths: Floats) -> float:
    return float(np.quantile(lengths, 1 - tails.SHARE))


def _season_by_day(scaled: Floats, times: Floats, step: float) -> tuple[Floats, Floats]:
    """Expect of each day what the days before it were, so that the tail is that of forecasts."""
    profile = np.full((1, season.SLOTS), np.nan, np.float32)
    usual = np.full(scaled.shape, np.nan, np.float32)
    days = (times // season.DAY).astype(np.int64)
    for number, day in enumerate(np.unique(days)):
        own = days == day
        usual[:, own] = season.expected(profile, times[None, own], step)
        profile = season.learnt(profile, np.array([float(number)]), scaled[:, own], times[own], step)
    return usual, profile


def _counted(state: State, magnitudes: Floats, normal: Floats) -> State:
    there = np.isfinite(normal)
    for expert, scores in enumerate(magnitudes):
        fresh = np.where(there, scores, np.nan)
        state["top"][:, expert] = tails.grown(state["top"][:, expert], fresh)
        count = state["count"][:, expert] + np.isfinite(fresh).sum(axis=1)
        state["count"][:, expert] = np.minimum(count, tails.MEMORY)
    state["seen"] = np.minimum(state["seen"] + there.sum(axis=1), 1e7)
    return state


def _grown(state: State, values: Floats, known: int, about: About, excluded: Bools | None) -> State:
    """Go on learning from what comes after the first `known` samples."""
    samples = values.shape[1] - known
    if samples <= 0:
        return state
    normal = values if excluded is None else np.where(excluded, np.nan, values)
    times = about.end - about.step * np.arange(samples - 1, -1, -1)
    found = _experts(state, values, samples, times[None, :], about.step)
    days = np.floor(_days(state, about.step))
    fresh = _scaled(state, normal)[:, -samples:]
    state = _counted(state, found.magnitudes(), normal[:, -samples:])
    for day in np.unique(times // season.DAY):
        own = times // season.DAY == day
        state["profile"] = season.learnt(state["profile"], days, fresh[:, own], times[own], about.step)
    state["still"] = _followed(state["still"], windows.still(values)[:, -samples:])
    state["gap"] = _followed(state["gap"], windows.missing(values)[:, -samples:])
    return state


def _followed(usual: Floats, lengths: Floats) -> Floats:
    """Move a quantile by how many samples were above it."""
    above = (lengths > usual[:, None]).mean(axis=1) - tails.SHARE
    pace = lengths.shape[1] / 60
    return np.asarray(np.maximum(usual, 1) * np.exp(np.minimum(above * pace, 1.0)) - np.maximum(1 - usual, 0))


def _with_kin(state: State, siblings: npt.NDArray[np.intp]) -> State:
    """Tell each series what its siblings' thresholds are: a new pod has no past, but its siblings have."""
    own = tails.high(state["top"], state["count"]) * state["scale"][:, None]
    for group in np.unique(siblings[state["seen"] >= _LEAST]):
        rows = np.flatnonzero((siblings == group) & (state["seen"] >= _LEAST))
        if len(rows) < 2:
            continue
        middle = np.median(np.maximum(own[rows], 0), axis=0)
        state["kin"][rows] = middle / state["scale"][rows, None]
        state["kindred"][rows] = np.minimum(state["count"][rows, HOUR].sum() - state["count"][rows, HOUR], tails.MEMORY)
    return state
