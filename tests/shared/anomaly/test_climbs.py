"""What grows over hours and days, and what only seems to: series are made here, a sample a minute."""

from dataclasses import replace

import numpy as np
import pytest

from kreflex.anomaly import climbs
from kreflex.anomaly.detector import CLASSES, About, Floats, Scores, SignalKind
from kreflex.anomaly.engine import Calibrated

DETECTOR = Calibrated()
DAY, HOUR = 1440, 60
KNOWN = 4 * DAY
MINUTES = np.arange(KNOWN + DAY)
END = 1_700_006_400.0


def about(kind: SignalKind, limit: float, at: int) -> About:
    return About(60.0, END + 60.0 * at, kind, 0.05, np.array([limit]))


def after(values: Floats, hours: int, kind: SignalKind = "memory", limit: float = 1000.0) -> Scores:
    """What is said so many hours after what is known, when each hour was learnt from."""
    state = DETECTOR.learn(values[None, :KNOWN], about(kind, limit, KNOWN - 1))
    for end in range(KNOWN + HOUR, KNOWN + hours * HOUR + 1, HOUR):
        recent = values[None, end - HOUR - DETECTOR.window + 1 : end]
        state = DETECTOR.update(state, recent, about(kind, limit, end - 1))
    end = KNOWN + hours * HOUR
    return DETECTOR.score(state, values[None, end - DETECTOR.window : end], about(kind, limit, end - 1))


def noise(share: float = 0.01) -> Floats:
    return 1 + np.random.default_rng(3).normal(0, share, len(MINUTES))


def heap(minutes: int = 37) -> Floats:
    """Garbage is collected each so many minutes."""
    return (200 + 150 * (MINUTES % minutes) / minutes) * noise()


def leaking(values: Floats, hours: float, limit: float = 1000.0) -> Floats:
    """It grows from where it is to its limit."""
    return np.asarray(values + (limit - values[:KNOWN].max()) * np.maximum(MINUTES - KNOWN, 0) / (hours * HOUR))


def said(scores: Scores) -> tuple[bool, str]:
    return bool(scores.flag[0]), CLASSES[scores.kind[0]]


@pytest.mark.parametrize(("lasts", "by"), [(6, 3), (12, 6), (24, 12)])
def test_a_leak_under_garbage_is_found_when_half_of_its_time_is_left(lasts: int, by: int) -> None:
    assert said(after(leaking(heap(), lasts), by)) == (True, "leak")


@pytest.mark.parametrize("hours", [1, 7, 13, 23])
@pytest.mark.parametrize(
    "values",
    [
        heap(),
        heap(95),
        300 * (1 + 0.5 * np.sin(2 * np.pi * MINUTES / DAY)) * noise(),
        # It fills each day, and is cleared.
        (300 + 400 * ((MINUTES + 500) % DAY) / DAY) * noise(),
        # A cache that was begun anew twice, and again now.
        (200 + 400 * (1 - np.exp(-((MINUTES + 100) % (2 * DAY)) / 200))) * noise(0.003),
    ],
    ids=["heap", "slow heap", "day and night", "cleared each day", "cache"],
)
def test_what_comes_and_goes_is_no_leak(values: Floats, hours: int) -> None:
    assert said(after(values, hours))[1] != "leak"


def test_tells_how_fast_it_grows_and_how_much_time_is_left() -> None:
    found = after(leaking(heap(), 24), 12)
    evidence = {name: float(found.evidence[name][0]) for name in ("grows_in_an_hour", "seconds_to_limit")}
    pace = (1000 - 350) / 24
    assert evidence["grows_in_an_hour"] == pytest.approx(pace, rel=0.2)
    left = 1000 - found.evidence["value"][0]
    assert evidence["seconds_to_limit"] == pytest.approx(3600 * left / evidence["grows_in_an_hour"])


@pytest.mark.parametrize(("kind", "name"), [("memory", "leak"), ("disk", "exhaustion"), ("quota", "exhaustion")])
def test_names_what_is_exhausted_by_its_kind(kind: SignalKind, name: str) -> None:
    assert said(after(leaking(300 * noise(0.002), 12), 6, kind)) == (True, name)


def test_a_quota_that_is_taken_one_by_one_is_foretold() -> None:
    used = np.round(40 + 60 * np.maximum(MINUTES - KNOWN, 0) / (12 * HOUR))
    assert said(after(used, 6, "quota", 100.0)) == (True, "exhaustion")


def test_what_is_far_from_its_limit_is_not_foretold() -> None:
    assert said(after(leaking(300 * noise(0.002), 12), 6, "memory", 1e5))[1] != "leak"


def test_a_climb_is_known_only_of_what_was_seen_for_long_enough() -> None:
    values = leaking(heap(), 24)[None]
    late = KNOWN + 12 * HOUR
    young = DETECTOR.learn(values[:, late - 5 * HOUR : late], about("memory", 1000.0, late - 1))
    assert CLASSES[DETECTOR.score(young, values[:, late - DETECTOR.window : late], ABOUT).kind[0]] != "leak"


ABOUT = about("memory", 1000.0, KNOWN + 12 * HOUR - 1)


def test_samples_that_are_further_apart_are_not_taken_for_hours() -> None:
    values = leaking(heap(), 24)
    coarse = DETECTOR.learn(values[None, : KNOWN + 720 : 5], replace(ABOUT, step=300.0))
    recent = values[None, KNOWN + 720 - DETECTOR.window - 59 : KNOWN + 720]
    state = DETECTOR.update(coarse, recent, ABOUT)
    assert np.isfinite(state["lows"][0]).sum() == 1
    assert state["usual"][0].tolist() == [0, 0, 0, 0]


def test_a_piece_of_which_half_is_missing_has_no_low() -> None:
    values = np.ones((1, 120))
    values[0, :30] = np.nan
    assert np.isnan(climbs.lows(values)).tolist() == [[True, False]]


def bursting(days: tuple[int, ...], kind: SignalKind) -> float:
    """Score a burst on the fifth day, after bursts on some of the four days before."""
    values = 100 * noise()
    bursts = np.random.default_rng(5).integers(0, DAY - 20, 5) + DAY * np.arange(5)
    for day in (*days, 4):
        values[bursts[day] : bursts[day] + 10] = 300
    at = int(bursts[4]) + 5
    # The day that has begun is not over, and does not count.
    begun = KNOWN + 5
    state = DETECTOR.learn(values[None, :begun], about(kind, np.nan, begun - 1))
    recent = values[None, at - DETECTOR.window : at]
    return float(DETECTOR.score(state, recent, about(kind, np.nan, at - 1)).score[0])


def test_what_there_is_on_two_days_of_five_is_usual() -> None:
    assert bursting((0, 3), "traffic") < 1 < bursting((3,), "traffic")


def test_of_a_gauge_only_what_there_is_on_each_day_is_usual() -> None:
    assert bursting((0, 1, 2, 3), "gauge") < 1 < bursting((0, 3), "gauge")
