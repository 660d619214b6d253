"""The detector that ships: residuals to the last hour and to the time of day, in units of the series' own tail."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from kreflex.anomaly.detector import CLASSES, About, Bools, Floats, Scores

_SLOTS = 96
_DAY = 86_400.0
_STATE = np.dtype(
    [
        ("seen", "f4"),
        ("level", "f8"),
        ("scale", "f8"),
        ("profile", "f4", (_SLOTS,)),
        ("hour", "f4"),
        ("season", "f4"),
        ("tail", "f4"),
    ]
)
State = npt.NDArray[np.void]


class Calibrated:
    """Scores a sample by how far beyond its own past it is; the threshold is a stated number of false alarms."""

    name = "calibrated"
    version = 1
    window = 61
    dtype = _STATE

    def learn(self, history: Floats, about: About, excluded: Bools | None = None) -> State:
        history = np.asarray(history, dtype=float)
        if excluded is not None:
            history = np.where(excluded, np.nan, history)
        state = np.zeros(len(history), _STATE)
        for row, values in enumerate(history):
            state[row] = _learnt(values, about)
        return state

    def update(self, state: State, recent: Floats, about: About, excluded: Bools | None = None) -> State:
        fresh = self.learn(recent, about, excluded)
        weight = np.minimum(0.5, fresh["seen"] / np.maximum(state["seen"] + fresh["seen"], 1))
        new = np.where(state["seen"] > 0, state, fresh)
        for name in ("hour", "season", "tail"):
            new[name] = state[name] + weight * (np.maximum(fresh[name], state[name] * 0.9) - state[name])
        new["seen"] = np.minimum(state["seen"] + fresh["seen"], 7 * _DAY / about.step)
        return new

    def score(self, state: State, recent: Floats, about: About) -> Scores:
        recent = np.asarray(recent, dtype=float)
        value, expected = recent[:, -1], _middles(recent[:, :-1])
        seasonal = _unscaled(state, np.array([about.end]))[:, 0]
        raw = _combined(
            abs(value - expected) / np.maximum(state["hour"], 1e-12),
            abs(value - seasonal) / np.maximum(state["season"], 1e-12),
        )
        factor = np.ones(len(value)) if about.factor is None else about.factor
        score = np.where(state["tail"] > 0, raw / (np.maximum(state["tail"], 1e-12) * factor), np.nan)
        flag = np.nan_to_num(score) >= 1
        kind = np.where(np.isnan(value) & (state["seen"] > 0), CLASSES.index("absent"), CLASSES.index("anomaly"))
        return Scores(score, flag, kind.astype(np.uint8), {"value": value, "expected": expected})


def _learnt(values: Floats, about: About) -> np.void:
    state = np.zeros(1, _STATE)
    good = values[np.isfinite(values)]
    if len(good) < 10:
        return _first(state)
    times = about.end - about.step * np.arange(len(values) - 1, -1, -1)
    slots = (times % _DAY // (_DAY / _SLOTS)).astype(int)
    level = float(np.median(good))
    scale = 1.4826 * float(np.median(abs(good - level))) or float(np.std(good)) or max(abs(level), 1.0) * 1e-3
    profile = np.zeros(_SLOTS)
    for slot in range(_SLOTS):
        own = values[(slots == slot) & np.isfinite(values)]
        profile[slot] = (np.median(own) - level) / scale if len(own) else 0.0
    state["seen"], state["level"], state["scale"], state["profile"] = len(good), level, scale, profile
    padded = np.concatenate((np.full(60, np.nan), values))
    views = np.lib.stride_tricks.sliding_window_view(padded, 60)[: len(values)]
    hour, season = abs(values - _middles(views)), abs(values - (level + scale * profile[slots]))
    state["hour"], state["season"] = _high(hour, scale), _high(season, scale)
    raw = _combined(hour / state["hour"], season / state["season"])
    state["tail"] = 1.6 * _high(raw, 1.0)
    return _first(state)


def _high(values: Floats, least: float) -> float:
    finite = values[np.isfinite(values)]
    return max(float(np.quantile(finite, 0.998)), 1e-3 * least) if len(finite) else least


def _middles(rows: Floats) -> Floats:
    """The medians of rows, NaN for those with nothing."""
    result = np.full(len(rows), np.nan)
    some = np.isfinite(rows).any(axis=1)
    if some.any():
        result[some] = np.nanmedian(rows[some], axis=1)
    return result


def _combined(hour: Floats, season: Floats) -> Floats:
    return np.asarray(np.sqrt(hour * season))


def _unscaled(state: State, times: Floats) -> Floats:
    slots = (times % _DAY // (_DAY / _SLOTS)).astype(int)
    return np.asarray(state["level"][:, None] + state["scale"][:, None] * state["profile"][:, slots])


def _first(state: State) -> np.void:
    row: np.void = state[0]
    return row
