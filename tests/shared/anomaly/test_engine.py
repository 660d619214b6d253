from dataclasses import replace

import numpy as np
import pytest

from kreflex.anomaly import tails
from kreflex.anomaly.detector import CLASSES, About, Detector, Floats, SignalKind
from kreflex.anomaly.engine import Calibrated

DETECTOR: Detector = Calibrated()
ABOUT = About(step=60.0, end=1_700_000_040.0, kind="cpu", false_alarms=0.05)
WINDOW = DETECTOR.window
ODD = {
    "missing": np.full(300, np.nan),
    "infinite": np.full(300, np.inf),
    "constant": np.full(300, 7.0),
    "zero": np.zeros(300),
    "counting": np.arange(300.0) * 1e9,
    "huge": np.linspace(-1.0, 1.0, 300) * 1e308,
    "tiny": np.linspace(1e-308, 5e-308, 300),
    "one sample": np.concatenate((np.full(299, np.nan), [1.0])),
    "every other": np.where(np.arange(300) % 2, np.nan, 5.0),
    "one jump": np.concatenate((np.zeros(299), [1e300])),
}


def noise(series: int = 1, samples: int = 3000, level: float = 10.0) -> Floats:
    return np.asarray(level + np.random.default_rng(7).normal(size=(series, samples)))


def found(tail: Floats, history: Floats | None = None, about: About = ABOUT) -> tuple[bool, str, float]:
    """What is said of the last of these samples, after a history of noise."""
    past = noise() if history is None else history
    state = DETECTOR.learn(past, replace(about, end=about.end - 60.0 * len(tail)))
    recent = np.concatenate((past, [tail]), axis=1)[:, -WINDOW:]
    scores = DETECTOR.score(state, recent, about)
    return bool(scores.flag[0]), CLASSES[scores.kind[0]], float(scores.score[0])


def test_the_state_of_a_series_is_less_than_a_kilobyte() -> None:
    assert DETECTOR.dtype.itemsize <= 1024


def test_flags_a_value_far_off_and_no_usual_one() -> None:
    history = noise(2)
    recent = history[:, -WINDOW:].copy()
    recent[:, -1] = [10, 60]
    assert DETECTOR.score(DETECTOR.learn(history, ABOUT), recent, ABOUT).flag.tolist() == [False, True]


@pytest.mark.parametrize(
    ("tail", "name"),
    [
        (np.array([60.0]), "spike"),
        (np.array([0.0]), "dropout"),
        (np.full(6, 40.0), "level-shift"),
        (np.array([40.0, 15.0] * 5), "thrash"),
        (np.full(40, 10.5), "flatline"),
        (np.full(20, np.nan), "absent"),
    ],
)
def test_names_what_is_wrong(tail: Floats, name: str) -> None:
    flag, kind, _ = found(tail, noise(level=10.0) if name != "dropout" else noise(level=30.0))
    assert (flag, kind) == (True, name)


def test_names_a_leak_and_when_it_ends() -> None:
    about = replace(ABOUT, kind="memory", limit=np.array([700.0]))
    history, rise = noise(level=100.0), 100 + 3 * np.arange(70.0)
    state = DETECTOR.learn(history, about)
    scores = DETECTOR.score(state, np.concatenate((history, [rise]), axis=1)[:, -WINDOW:], about)
    assert (scores.flag.tolist(), CLASSES[scores.kind[0]]) == ([True], "leak")
    assert scores.evidence["seconds_to_limit"][0] == pytest.approx((700 - rise[-1]) / 3 * 60)


def test_a_limit_that_is_reached_beyond_the_horizon_weighs_less() -> None:
    about = replace(ABOUT, kind="memory", limit=np.array([700.0]))
    history, rise = noise(level=100.0), 100 + 3 * np.arange(70.0)
    state, recent = DETECTOR.learn(history, about), np.concatenate((history, [rise]), axis=1)[:, -WINDOW:]
    left = (700 - rise[-1]) / 3 * 60
    within, beyond = (
        DETECTOR.score(state, recent, replace(about, horizon=left * share)).score[0] for share in (1.1, 0.9)
    )
    assert within > beyond > 0


def test_says_that_a_limit_is_nearly_reached() -> None:
    assert found(np.array([95.0]), about=replace(ABOUT, limit=np.array([100.0])))[:2] == (True, "saturation")


def test_a_return_to_what_was_usual_within_the_hour_is_no_anomaly() -> None:
    assert not found(np.concatenate((np.full(9, 30.0), np.full(3, 10.0))))[0]


def test_a_series_that_often_rests_says_nothing_by_resting() -> None:
    resting = np.repeat(noise(samples=60), 50, axis=1)
    assert not found(np.full(40, resting[0, -1]), resting)[0]


def bursts() -> Floats:
    """What is many times its level now and then, so that its level is small beside its tail."""
    return np.asarray(10 * (1 + np.random.default_rng(4).pareto(1.5, (1, 3000))))


def test_nearly_nothing_for_a_while_is_a_dropout_however_high_the_bursts_are() -> None:
    assert [found(np.full(minutes, 0.1), bursts())[:2] for minutes in (5, 6)] == [(False, "anomaly"), (True, "dropout")]


def test_nothing_is_no_dropout_of_what_has_often_nothing_to_do() -> None:
    resting = bursts()
    resting[:, np.arange(3000) % 100 < 25] = 0
    assert not found(np.full(12, 0.1), resting)[0]


def test_what_is_again_as_it_was_before_a_batch_is_no_dropout() -> None:
    past = bursts() / 500
    batch = np.full(45, 1.0) + noise(samples=45, level=0.0)[0] / 50
    told = [found(np.concatenate((batch, past[0, :minutes])), past)[:2] for minutes in range(1, 40)]
    assert [name for flag, name in told if flag] == []


def test_a_sample_that_is_missing_ends_no_dropout() -> None:
    tail = np.array([0.1, 0.1, 0.1, np.nan, 0.1, 0.1, np.nan])
    assert [found(tail[:length], bursts())[:2] for length in (6, 7)] == [(True, "dropout"), (False, "absent")]


@pytest.mark.parametrize(("wanted", "samples"), [(0.05, 3000), (0.005, 3000), (0.05, 100)])
def test_a_dropout_goes_on_to_count_up_to_three_and_is_dismissed_by_four(wanted: float, samples: int) -> None:
    about, past = replace(ABOUT, false_alarms=wanted), np.minimum(bursts()[:, :samples], 30)
    longest = [
        found(np.full(30, 0.001), past, replace(about, factor=np.array([factor])))[2] for factor in (1.0, 2.0, 4.0)
    ]
    assert longest == pytest.approx([3.0, 1.5, 0.75])


def test_a_new_pod_knows_from_its_siblings_that_there_is_often_nothing_to_do() -> None:
    worker = bursts().repeat(4, axis=0)
    worker[:, np.arange(3000) % 100 < 25] = 0
    worker[2:, :-80] = np.nan
    worker[2:, -80:] = bursts()[:, :80]
    about = replace(ABOUT, siblings=np.zeros(4, np.intp))
    alone, among = (DETECTOR.learn(worker, one)["idle"] >= 1 for one in (ABOUT, about))
    assert [alone.tolist(), among.tolist()] == [[True, True, False, False], [True] * 4]


def test_a_dropout_is_one_after_hours_of_learning_that_there_was_none() -> None:
    state, past = DETECTOR.learn(bursts(), ABOUT), bursts()[:, : WINDOW + 59]
    for _ in range(5):
        state = DETECTOR.update(state, past, ABOUT)
    assert (state["idle"][0], state["gap"][0]) == (0, 0)
    recent = np.concatenate((past, np.full((1, 6), 0.1)), axis=1)[:, -WINDOW:]
    assert CLASSES[DETECTOR.score(state, recent, ABOUT).kind[0]] == "dropout"


def test_an_outage_that_was_learnt_makes_deaf_for_dropouts_for_a_week_and_no_longer() -> None:
    past = np.tile(bursts(), 4)[:, :10_080]
    past[:, 5000:5035] = 0
    state, calm = DETECTOR.learn(past, ABOUT), past[:, : WINDOW - 1 + 1440]
    recent = np.concatenate((calm, np.full((1, 8), 0.1)), axis=1)[:, -WINDOW:]
    told = []
    for _ in range(9):
        told.append(CLASSES[DETECTOR.score(state, recent, ABOUT).kind[0]] == "dropout")
        state = DETECTOR.update(state, calm, ABOUT)
    assert told == [False] * 7 + [True] * 2


def test_a_dropout_that_was_known_not_to_be_normal_is_not_learnt() -> None:
    past = bursts()
    past[:, 2000:2025] = 0
    excluded = past == 0
    assert [DETECTOR.learn(past, ABOUT, one)["idle"][0] > 0 for one in (None, excluded)] == [True, False]


@pytest.mark.parametrize("kind", ["errors", "gauge", "latency", "saturation"])
def test_only_of_what_is_at_work_is_a_while_of_nothing_a_dropout(kind: SignalKind) -> None:
    assert found(np.full(8, 0.1), bursts(), replace(ABOUT, kind=kind))[:2] == (False, "anomaly")


@pytest.mark.parametrize("kind", ["disk", "memory", "quota"])
def test_what_can_run_out_is_told_when_it_rises_and_not_when_it_falls(kind: SignalKind) -> None:
    about, past = replace(ABOUT, kind=kind), noise(level=100.0)
    assert [found(np.full(3, value), past, about)[0] for value in (40.0, 160.0)] == [False, True]


@pytest.mark.parametrize("kind", ["disk", "memory", "quota"])
def test_a_jump_by_less_than_a_hundredth_tells_nothing_of_what_can_run_out(kind: SignalKind) -> None:
    past, jump = 1000 + noise(level=0.0) / 10, np.full(3, 1005.0)
    assert [found(jump, past, one)[0] for one in (ABOUT, replace(ABOUT, kind=kind))] == [True, False]


@pytest.mark.parametrize(("kind", "before", "now", "limit"), [("disk", 995, 1000, 1000), ("quota", 198, 199.5, 200)])
def test_what_becomes_full_is_told_however_small_the_jump_is(
    kind: SignalKind, before: float, now: float, limit: float
) -> None:
    past, jump = before + noise(level=0.0) * before / 20_000, np.full(3, now)
    tight, wide = (replace(ABOUT, kind=kind, limit=np.array([one * limit])) for one in (1.0, 10.0))
    assert [found(jump, past, one)[:2] for one in (tight, wide)] == [(True, "saturation"), (False, "anomaly")]


def test_a_hundredth_is_one_of_what_a_disk_is_at_since_it_was_cleared() -> None:
    past, about = 1000 + noise(samples=1200, level=0.0) / 10, replace(ABOUT, kind="disk")
    tail = np.concatenate((past[0, :70] - 900, np.full(3, 105.0)))
    assert [found(tail[:length], past, about)[0] for length in (70, 73)] == [False, True]


@pytest.mark.parametrize("kind", ["memory", "traffic"])
@pytest.mark.parametrize("past", ODD)
@pytest.mark.parametrize("recent", ODD)
def test_says_nothing_unsound_of_odd_samples(past: str, recent: str, kind: SignalKind) -> None:
    about = replace(ABOUT, kind=kind, limit=np.array([10.0]))
    state = DETECTOR.learn(ODD[past][None], about)
    grown = DETECTOR.update(state, ODD[recent][None, : WINDOW + 59], about)
    for one in (state, grown):
        scores = DETECTOR.score(one, ODD[recent][None, -WINDOW:], about)
        assert not np.isinf(scores.score).any()
        assert scores.flag.tolist() == [bool(score >= 1) for score in scores.score]


def test_knows_nothing_of_what_it_has_hardly_seen() -> None:
    state = DETECTOR.learn(noise(samples=5), ABOUT)
    scores = DETECTOR.score(state, noise(samples=WINDOW), ABOUT)
    assert (np.isnan(scores.score[0]), scores.flag[0]) == (True, False)


def test_learns_anew_in_an_update_what_was_too_short_before() -> None:
    state = DETECTOR.update(DETECTOR.learn(noise(samples=5), ABOUT), noise(samples=WINDOW + 59), ABOUT)
    assert state["seen"][0] == WINDOW + 59


def test_equal_input_gives_equal_states_and_scores() -> None:
    history = noise(3)
    one, two = DETECTOR.learn(history, ABOUT), DETECTOR.learn(history.copy(), ABOUT)
    assert one.tobytes() == two.tobytes()
    recent = history[:, -WINDOW:]
    assert DETECTOR.score(one, recent, ABOUT).score.tobytes() == DETECTOR.score(two, recent, ABOUT).score.tobytes()


def test_a_series_is_scored_alike_alone_and_among_others() -> None:
    history = noise(4)
    together = DETECTOR.score(DETECTOR.learn(history, ABOUT), history[:, -WINDOW:], ABOUT)
    alone = DETECTOR.score(DETECTOR.learn(history[2:3], ABOUT), history[2:3, -WINDOW:], ABOUT)
    assert together.score[2] == alone.score[0]


def test_going_on_to_learn_keeps_the_old_state_as_it_was() -> None:
    state = DETECTOR.learn(noise(), ABOUT)
    before = state.tobytes()
    assert DETECTOR.update(state, noise(samples=WINDOW + 59), ABOUT).tobytes() != before
    assert state.tobytes() == before


def test_what_is_excluded_does_not_raise_the_threshold() -> None:
    wild = noise(samples=WINDOW + 59)
    wild[:, -50:] += 100
    state = DETECTOR.learn(noise(), ABOUT)
    excluded = np.zeros(wild.shape, bool)
    excluded[:, -50:] = True
    calm = DETECTOR.update(state, wild, ABOUT, excluded)["top"][0, 0, 0]
    assert calm < 10 < DETECTOR.update(state, wild, ABOUT)["top"][0, 0, 0]


def test_fewer_wanted_false_alarms_and_a_higher_factor_lower_the_score() -> None:
    usual = found(np.array([60.0]))[2]
    assert found(np.array([60.0]), about=replace(ABOUT, false_alarms=0.005))[2] < usual
    assert found(np.array([60.0]), about=replace(ABOUT, factor=np.array([2.0])))[2] == pytest.approx(usual / 2)


def test_a_new_pod_borrows_the_thresholds_of_its_siblings() -> None:
    history = noise(3) * np.array([[1.0], [1.0], [0.01]])
    history[:2, 100::200] += 40
    history[2, :-30] = np.nan
    about = replace(ABOUT, siblings=np.zeros(3, np.intp))
    recent = history[:, -WINDOW:].copy()
    recent[2, -1] += 20
    alone = DETECTOR.score(DETECTOR.learn(history, ABOUT), recent, ABOUT).score[2]
    assert DETECTOR.score(DETECTOR.learn(history, about), recent, about).score[2] < alone / 5


def test_a_tail_forgets_slowly() -> None:
    top = tails.grown(np.full((1, tails.KEPT), -1.0), np.array([[8.0]]))
    later = tails.grown(top, np.full((1, 4 * tails.MEMORY), np.nan))
    assert later[0, :2].tolist() == [4.0, -1.0]


def test_a_short_history_is_believed_less() -> None:
    assert tails.beyond(np.array([31.25, 500.0, 5000.0]), 0.055).tolist() == [2.0, 1.0, 1.0]
