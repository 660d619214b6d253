"""The detector that ships: residuals to the last hour and to the time of day, in units of the series' own tail.

Method, numbers and what was tried: docs/adr/0026-anomalies-are-measured-by-a-series-own-tail.md.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kreflex.anomaly import classes, climbs, season, tails, windows
from kreflex.anomaly.detector import About, Bools, Floats, Scores, SignalKind

_EXPERTS = ("hour", "season", "near", "rise")
HOUR, SEASON, NEAR, RISE = range(len(_EXPERTS))
# So many of the highest scores of pieces are kept, and these ranks of them tell how the tail goes on: a few bad hours
# are not among them. The threshold is then where there would have been so many alarms in a day, or this much below it.
_PEAKS, _UPPER, _LOWER = 16, 6, 16
_BORNE, _BELOW = 0.05, 0.9
# Up to here the tail is light, and is believed. Beyond it, incidents and bursts that are usual look alike, and the
# quantiles of single samples, which incidents move less, stand but for a little.
_LIGHT, _HEAVY, _LITTLE = 1.5, 1.7, 1.08
# What two days of five have had (of four to seven: 2, 2, 3, 3) is usual, whatever the tail is; and so much above it, up
# to so many times the threshold. Of a gauge nobody knows what it is: only what was there on every day is usual of it.
_WEEK, _LEAST_DAYS, _OFTEN, _USUAL = 8, 4, (0.75, 1.25), 4.0
_EVERY = (0.0, 1.15)
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
        # How long it is usually still, missing, and nearly nothing, in samples.
        ("still", "f4"),
        ("gap", "f4"),
        ("idle", "f4"),
        # The highest scores of its pieces of 60 samples, as they are without these.
        ("peaks", "f4", (_PEAKS,)),
        # The highest score of each of the last days, by their number, and which day is today.
        ("days", "f2", (_WEEK,)),
        ("day", "f4"),
        # How far apart the samples are that the lows are of, the lows, the largest climbs, the highest low before
        # them, and the highest of all.
        ("step", "f4"),
        ("lows", "f4", (climbs.KEPT,)),
        ("usual", "f4", (len(climbs.SPANS),)),
        ("crest", "f4"),
        ("ceiling", "f4"),
    ]
)
State = npt.NDArray[np.void]

# Nothing smaller than a thousandth of what the series is at counts as its noise; and no jump of memory, a disk or a
# quota by less than a hundredth tells anything. Their slow growth does, and is told as that.
_FAINT, _SLIGHT = 1e-3, 1e-2
# What the two experts, each in units of its own tail and averaged over three samples, reach at the threshold.
_AGREED = 0.92
# What the last ten samples' expert has to reach alone.
_ALONE = 2.0
# And what the hour's has to reach then: a return to where the series was within the hour is no anomaly.
_SUPPORT = 0.5
# And by how much the season's exceeds the hour's, where it is the time of day that a fall is unlike.
_UNTIMELY = 2.0
# What still, missing and nearly nothing last at least, in samples, before they are anything.
_RESTS, _GAPS, _IDLES = 10.0, 5.0, 5.0
# However long nearly nothing lasts, it counts no more, so that a person can dismiss it: no threshold is raised above 4.
_IDLE_ENOUGH = 3.0
# How long it usually is nearly nothing counts up to here, so that one outage is forgotten within a week of samples a
# minute apart (exp(0.002 * 168) is 1.4): until then nothing is a dropout.
_RESTED = 1.39
# Beyond it, what is between two samples is the season, and not a jump.
_FINE = 360.0
_LEAST = 10
_CHUNK = 500


class Calibrated:
    """Scores a sample by how far beyond its own past it is; the threshold is a stated number of false alarms."""

    name = "calibrated"
    version = 4
    window = windows.LOOK + 3
    dtype = _STATE

    def learn(self, history: Floats, about: About, excluded: Bools | None = None) -> State:
        values = windows.clean(history)
        state = np.zeros(len(values), _STATE)
        for row in range(len(values)):
            one = slice(row, row + 1)
            mask = None if excluded is None else excluded[one]
            state[one] = _learnt(values[one], classes.about_of(about, one), mask)
        return state if about.siblings is None else _with_kin(state, about.siblings)

    def update(self, state: State, recent: Floats, about: About, excluded: Bools | None = None) -> State:
        values, new = windows.clean(recent), state.copy()
        for start in range(0, len(values), _CHUNK):
            rows = slice(start, start + _CHUNK)
            mask = None if excluded is None else excluded[rows]
            new[rows] = _grown(new[rows], values[rows], self.window - 1, classes.about_of(about, rows), mask)
        young = np.flatnonzero(state["seen"] < _LEAST)
        for row in young:
            one = slice(row, row + 1)
            mask = None if excluded is None else excluded[one]
            new[one] = _learnt(values[one], classes.about_of(about, one), mask)
        return new

    def score(self, state: State, recent: Floats, about: About) -> Scores:
        return scored(state, recent, np.array([[about.end]]), about)


def scored(state: State, recent: Floats, ends: Floats, about: About) -> Scores:
    """Score the newest sample of each row; `ends` is when it was, of one row for all, or of a row each."""
    values = windows.clean(recent)
    found = _experts(state, values, 3, ends + about.step * np.arange(-2, 1), about.step)
    high = _thresholds(state, _faint(state, found, values, about.kind))
    factor = np.ones(len(values)) if about.factor is None else np.asarray(about.factor, dtype=float)
    far = tails.beyond(state["count"][:, HOUR] + state["kindred"], about.false_alarms) * factor
    unlike = _jumped(state, found, values, about)[:, -1] / far / _own(state, about)
    still = _longer(windows.still(values)[:, -1], state["still"], _RESTS) / far
    gone = _longer(windows.missing(values)[:, -1], state["gap"], _GAPS) / far
    rise = np.nan_to_num(found.rise[:, -1] / high[:, RISE] / far)
    here = np.isfinite(values[:, -1])
    climb = _climbing(state, values, about, factor)
    # An end that is the same whatever is wanted or known, but not whatever people say of it.
    idle = np.minimum(_idling(state, values, found, about) / (far / factor), _IDLE_ENOUGH) / factor
    view = classes.View(values, state["level"], state["scale"], found, high, rise, climb, still, idle)
    leak = classes.leaks(view, about)
    score = np.where(here, np.maximum.reduce((unlike, still, leak, idle)), gone)
    known = (state["seen"] >= _LEAST) & (here | (gone >= 1))
    score = np.where(known, score, np.nan)
    flag = np.nan_to_num(score) >= 1
    return Scores(score, flag, classes.of(view, leak, score, about), classes.evidence(view, leak, about))


def _jumped(state: State, found: classes.Found, values: Floats, about: About) -> Floats:
    """Score the newest samples by how unlike the past they are; what is nearly full, by its small jumps too."""
    scores = _unlike(found, _thresholds(state, _faint(state, found, values, about.kind)), about.kind)
    if about.limit is None or about.kind not in classes.GROWING:
        return scores
    full = classes.full(values[:, -scores.shape[1] :], np.asarray(about.limit, float)[:, None])
    if not full.any():
        return scores
    faint = _level(state)[:, None] * np.full(len(_EXPERTS), _FAINT)
    return np.where(full, _unlike(found, _thresholds(state, faint), about.kind), scores)


def _unlike(found: classes.Found, high: Floats, kind: SignalKind) -> Floats:
    """Score samples by how unlike the past they are: 1 at the thresholds, 0 where nothing is known."""
    hour = abs(found.hour) / high[:, HOUR, None]
    alone = np.minimum(abs(found.near) / high[:, NEAR, None] / _ALONE, hour / _SUPPORT)
    score = np.fmax(np.nan_to_num(alone), np.nan_to_num(_together(found, high) / _AGREED))
    if kind not in classes.GROWING:
        return np.asarray(score)
    # Memory that falls was given back or is another process', and space on a disk was freed: nothing runs out.
    season = np.nan_to_num(abs(found.season) / high[:, SEASON, None])
    return np.where((found.hour < 0) & (season <= _UNTIMELY * hour), 0.0, score)


def _own(state: State, about: About) -> Floats:
    """Tell what the thresholds are multiplied by, so that there would have been few alarms lately; 1 if nobody knows.

    Beyond what was seen the tail goes on as an exponential one does.
    """
    upper, lower = (state["peaks"][:, rank - 1].astype(float) for rank in (_UPPER, _LOWER))
    days = np.maximum(np.minimum(state["seen"], tails.MEMORY) * about.step / season.DAY, 1e-3)
    grows = (upper - lower) / np.log(_LOWER / _UPPER)
    wanted = lower + grows * np.log(np.maximum(_LOWER / (_BORNE * days), 1))
    believed = np.clip((_HEAVY - wanted) / (_HEAVY - _LIGHT), 0, 1)
    much = np.maximum(_BELOW * wanted, _BELOW)
    little = np.minimum(much, _LITTLE)
    own = np.where(lower > 0, little + believed * (much - little), 1.0)
    share, above = _EVERY if about.kind == "gauge" else _OFTEN
    return np.asarray(np.maximum(own, np.minimum(above * _daily(state, share), _USUAL)))


def _daily(state: State, share: float) -> Floats:
    """Give the score that this share of the days but today have stayed below; 0 where too few days are known."""
    known = (state["days"] >= 0) & (np.arange(_WEEK) != state["day"][:, None] % _WEEK)
    count = known.sum(axis=1)
    ordered = np.sort(np.where(known, state["days"].astype(float), np.inf), axis=1)
    place = (share * np.maximum(count - 1, 0)).astype(np.intp)
    return np.where(count >= _LEAST_DAYS, ordered[np.arange(len(state)), place], 0.0)


def _climbing(state: State, values: Floats, about: About, factor: Floats) -> climbs.Climb:
    """Tell how much more than usual it climbs, and by how much in a second, in the series' own unit."""
    if about.kind not in classes.GROWING:
        nothing = np.zeros(len(values))
        return climbs.Climb(nothing, nothing, nothing > 0)
    pieces = np.where(state["step"] == np.float32(about.step), state["seen"] / climbs.PIECE, 0)
    past = climbs.Past(state["lows"], state["usual"], state["crest"], state["ceiling"], pieces, _level(state))
    climb = climbs.climbing(past, _scaled(state, values))
    return climbs.Climb(climb.more / factor, climb.pace * state["scale"] / about.step, climb.new)


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


def _thresholds(state: State, faint: Floats) -> Floats:
    """Give the high quantile of each expert's past, shape (series, experts), mixed with the siblings' while young."""
    own = tails.high(state["top"], state["count"])
    weight = (state["count"] / (state["count"] + 0.2 * state["kindred"][:, None] + 1)).astype(float)
    kin = np.where(state["kindred"][:, None] > 0, np.maximum(state["kin"], 1e-9), 1e-9)
    mixed = np.exp(weight * np.log(np.maximum(own, 1e-9)) + (1 - weight) * np.log(kin))
    used = np.where(state["kindred"][:, None] > 0, mixed, own)
    return np.asarray(np.maximum(used, np.maximum(1e-6, faint)))


def _level(state: State) -> Floats:
    """Give what the series is at, in units of its scale."""
    return np.asarray(abs(state["level"]) / _scale(state))


def _scale(state: State) -> Floats:
    return np.where(state["scale"] > 0, state["scale"], 1.0)


def _faint(state: State, found: classes.Found, values: Floats, kind: SignalKind) -> Floats:
    """Tell of each expert what counts as its noise, however quiet the series is: a share of what it is at."""
    level = _level(state)[:, None]
    faint = level * np.full(len(_EXPERTS), _FAINT)
    if kind in classes.GROWING:
        # What was cleared since it was learnt is at less now.
        lately = abs(_expected(state, values[:, -1:], found.hour[:, -1:]))
        with np.errstate(over="ignore"):
            lately = lately / _scale(state)[:, None]
        faint[:, [HOUR, SEASON, NEAR]] = np.fmin(level, lately) * _SLIGHT
    return np.asarray(faint)


def _together(found: classes.Found, high: Floats) -> Floats:
    """Multiply the hour's and the season's residual, and average over three samples; the hour's alone at first."""
    hour = abs(found.hour) / high[:, HOUR, None]
    usual = abs(found.season) / high[:, SEASON, None]
    product = np.where(np.isfinite(usual), np.sqrt(hour) * np.sqrt(np.where(np.isfinite(usual), usual, 0)), hour)
    there = np.isfinite(product)
    return _lately(np.where(there, product, 0)) / np.maximum(_lately(there), 1)


def _lately(values: Floats | Bools) -> Floats:
    """Add up the last three samples of each."""
    found = np.array(values, dtype=float)
    found[:, 1:] += values[:, :-1]
    found[:, 2:] += values[:, :-2]
    return found


def _idling(state: State, values: Floats, found: classes.Found, about: About) -> Floats:
    """Score by how long nearly nothing has been left of what is expected now; 0 where that is usual."""
    if about.kind not in classes.BUSY or about.step > _FINE:
        return np.zeros(len(values))
    newest = values[:, -1:]
    hour, day = (_expected(state, newest, found.hour[:, -1:]), _expected(state, newest, found.season[:, -1:]))
    expected = classes.at_most_usual(hour, state["level"][:, None], day)
    # A sample that is missing ends nothing.
    known = windows.filled(values[:, -windows.LOOK :])
    length = windows.runs(~classes.nearly_nothing(known, expected))[:, -1]
    return np.where(state["idle"] < 1, length / _IDLES, 0.0)


def _expected(state: State, values: Floats, hour: Floats) -> Floats:
    with np.errstate(over="ignore", invalid="ignore"):
        return np.asarray(values - hour * state["scale"][:, None])


def _longer(length: Floats, usual: Floats, least: float) -> Floats:
    """Score by how much longer than usual it lasts; a series that often rests says nothing by resting."""
    return np.where(usual < windows.LOOK / 3, length / np.maximum(3 * usual, least), 0.0)


def _learnt(values: Floats, about: About, excluded: Bools | None) -> State:
    """Learn the state of one series as it would have been learnt day by day."""
    state = np.zeros(1, _STATE)
    state["lows"], state["crest"], state["ceiling"], state["step"] = np.nan, np.nan, np.nan, about.step
    normal = values if excluded is None else np.where(excluded, np.nan, values)
    good = normal[np.isfinite(normal)]
    state["profile"], state["top"], state["scale"], state["days"] = np.nan, -1, 1, -1
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
    state["idle"] = min(_usual(_idle(state, normal, hour)), _RESTED)
    state = _peaked(state, found, normal, times, about)
    return _climbed(state, values, normal)


def _idle(state: State, normal: Floats, hour: Floats) -> Floats:
    """Tell of each sample for how many nearly nothing has been left of what the hour let expect."""
    return windows.runs(~classes.nearly_nothing(normal, _expected(state, normal, hour)))


def _peaked(state: State, found: classes.Found, normal: Floats, times: Floats, about: About) -> State:
    """Remember the highest scores of these samples, by the thresholds of single samples."""
    scores = np.where(np.isfinite(normal), _jumped(state, found, normal, about), -1.0)
    state["peaks"] = _peaks(state, scores)
    for day in np.unique(times // season.DAY):
        _begin(state, day)
        slot = int(day) % _WEEK
        top = np.minimum(scores[:, times // season.DAY == day].max(axis=1), 6e4)
        state["days"][:, slot] = np.maximum(state["days"][:, slot], top)
    return state


def _begin(state: State, day: float) -> None:
    """Forget what was on days of the week before, up to this one."""
    for ahead in range(_WEEK):
        passed = state["day"] < day - ahead
        state["days"][passed, int(day - ahead) % _WEEK] = -1
    state["day"] = np.maximum(state["day"], day)


def _peaks(state: State, scores: Floats) -> Floats:
    """Give the highest scores of pieces, those that were kept and those of these samples."""
    count = -(-scores.shape[1] // climbs.PIECE)
    whole = np.full((len(scores), count * climbs.PIECE), -1.0)
    whole[:, whole.shape[1] - scores.shape[1] :] = scores
    fresh = whole.reshape(len(scores), count, climbs.PIECE).max(axis=2)
    return tails.grown(state["peaks"], fresh, scores.shape[1])


def _climbed(state: State, values: Floats, normal: Floats) -> State:
    """Remember the lows of the pieces, and how they have climbed; what was not normal is no climb of the past."""
    known = np.concatenate((state["lows"], climbs.lows(_scaled(state, values))), axis=1)
    usual = climbs.lows(_scaled(state, normal))
    state["ceiling"] = climbs.highest(climbs.highs(_scaled(state, normal)), state["ceiling"])
    fresh = climbs.climbs(np.concatenate((state["lows"], usual), axis=1))[:, climbs.KEPT :]
    state["usual"] = climbs.largest(fresh, state["usual"])
    state["crest"] = climbs.highest(known[:, : -climbs.KEPT], state["crest"])
    state["lows"] = known[:, -climbs.KEPT :]
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
    state = _peaked(state, found, normal[:, -samples:], times, about)
    state = _counted(state, found.magnitudes(), normal[:, -samples:])
    for day in np.unique(times // season.DAY):
        own = times // season.DAY == day
        state["profile"] = season.learnt(state["profile"], days, fresh[:, own], times[own], about.step)
    state["still"] = _followed(state["still"], windows.still(values)[:, -samples:])
    state["gap"] = _followed(state["gap"], windows.missing(values)[:, -samples:])
    idle = _followed(state["idle"], _idle(state, normal[:, -samples:], found.hour))
    state["idle"] = np.minimum(idle, _RESTED)
    return _climbed(_of_step(state, about.step), values[:, -samples:], normal[:, -samples:])


def _of_step(state: State, step: float) -> State:
    """Begin anew with the lows where they are those of samples that are further apart."""
    other = state["step"] != np.float32(step)
    for name in ("lows", "crest", "ceiling"):
        state[name][other] = np.nan
    state["usual"][other] = 0
    state["step"] = step
    return state


def _followed(usual: Floats, lengths: Floats) -> Floats:
    """Move a quantile by how many samples were above it."""
    above = (lengths > usual[:, None]).mean(axis=1) - tails.SHARE
    pace = lengths.shape[1] / 60
    moved = np.maximum(usual, 1) * np.exp(np.minimum(above * pace, 1.0)) - np.maximum(1 - usual, 0)
    # Below nothing, nothing would be above it.
    return np.asarray(np.maximum(moved, 0.0))


def _with_kin(state: State, siblings: npt.NDArray[np.intp]) -> State:
    """Tell each series what its siblings' thresholds are: a new pod has no past, but its siblings have."""
    own = tails.high(state["top"], state["count"]) * state["scale"][:, None]
    for group in np.unique(siblings[state["seen"] >= _LEAST]):
        rows = np.flatnonzero((siblings == group) & (state["seen"] >= _LEAST))
        if len(rows) < 2:
            continue
        middle = np.median(np.maximum(own[rows], 0), axis=0)
        state["kin"][rows] = middle / state["scale"][rows, None]
        # Who has seen little does not know yet how often there is nothing to do.
        knows = state["seen"][rows] >= state["seen"][rows].max() / 2
        state["idle"][rows] = np.maximum(state["idle"][rows], np.median(state["idle"][rows[knows]]))
        state["kindred"][rows] = np.minimum(state["count"][rows, HOUR].sum() - state["count"][rows, HOUR], tails.MEMORY)
    return state
