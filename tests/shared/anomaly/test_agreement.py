"""What the signals of one target say together."""

from datetime import timedelta
from typing import Any

from kreflex.anomaly.agreement import Judgement, Place, Terms, above, family, judge, latest
from kreflex.anomaly.anomalies import Seen
from kreflex.anomaly.detector import CLASSES
from tests.values import MINUTE, NOW

CART = Place("Pod", "shop", "cart-1")
TERMS = Terms(2, MINUTE, frozenset({"memory"}))


def seen(name: str = "memory", class_: str = "anomaly", score: float = 2.0, **more: Any) -> Seen:
    return Seen.model_validate({"name": name, "class": class_, "score": score, "at": NOW, "series": name, **more})


def judged(*found: Seen, earlier: tuple[Seen, ...] = (), terms: Terms = TERMS) -> list[tuple[str, float, bool, str]]:
    return [(one.class_, one.score, one.agreed, one.because) for one in judge(CART, found, earlier, terms, NOW)]


def test_one_signal_alone_does_not_agree() -> None:
    because = "1 of the 2 signals that have to agree: memory"
    assert judged(seen()) == [("anomaly", 2.0, False, because)]


def test_one_signal_in_many_series_is_one_signal() -> None:
    assert [one[2] for one in judged(seen(series="a"), seen(series="b"), seen(series="c"))] == [False]


def test_two_signals_agree() -> None:
    because = "2 signals agree within 5m: cpu, memory"
    assert judged(seen(), seen("cpu", score=3)) == [("anomaly", 3.0, True, because)]


def test_what_was_seen_a_few_ticks_ago_counts_and_what_is_older_does_not() -> None:
    for ago, agreed in ((5, True), (6, False)):
        before = seen("cpu", at=NOW - ago * MINUTE)
        assert [one[2] for one in judged(seen(), earlier=(before,))] == [agreed]


def test_generic_classes_are_one_episode_and_go_by_the_worst() -> None:
    found = judged(seen(class_="spike", score=2), seen("cpu", "level-shift", 5))
    assert [one[0] for one in found] == ["level-shift"]
    assert {family(name) for name in CLASSES} == {
        "generic",
        "absent",
        "dropout",
        "exhaustion",
        "flatline",
        "leak",
        "saturation",
        "thrash",
    }


def test_only_a_forecast_agrees_with_a_forecast() -> None:
    assert [(one[0], one[2]) for one in judged(seen(class_="leak"), seen("cpu", "spike"))] == [
        ("spike", True),
        ("leak", False),
    ]
    assert [(one[0], one[2]) for one in judged(seen(class_="leak"), seen("rss", "leak"))] == [("leak", True)]


def test_a_forecast_without_a_limit_agrees_to_nothing() -> None:
    because = "memory, rss agree, but none of them has a limit that would be reached"
    found = judged(seen(class_="leak"), seen("rss", "leak"), terms=Terms(2, MINUTE))
    assert found == [("leak", 2.0, False, because)]


def test_more_agreement_may_be_asked_for() -> None:
    found = judged(seen(), seen("cpu"), terms=Terms(3, MINUTE))
    assert [one[2:] for one in found] == [(False, "2 of the 3 signals that have to agree: cpu, memory")]


def test_of_each_series_the_last_counts_and_its_peak_stays() -> None:
    (kept,) = latest([seen(score=9, at=NOW - MINUTE), seen(score=2)])
    assert (kept.score, kept.peak, kept.at) == (2, 9, NOW)


def of_pod(number: int, class_: str = "anomaly", score: float = 2.0) -> tuple[Place, list[Judgement]]:
    place = Place("Pod", "shop", f"cart-{number}")
    return place, judge(place, [seen(class_=class_, score=score)], [], TERMS, NOW)


def test_half_of_its_pods_say_that_a_workload_is_ill() -> None:
    cart = Place("Deployment", "shop", "cart")
    below = dict(of_pod(number, score=number + 1) for number in range(3))
    (found,) = above(cart, 6, below, 2, NOW)
    assert (found.place, found.class_, found.score, found.agreed) == (cart, "anomaly", 2.0, True)
    assert found.because == "3 of 6 pods of Deployment shop/cart agree"
    assert found.signals[0].evidence == {"pods": 3, "of": 6}
    assert above(cart, 7, below, 2, NOW) == []
    assert above(cart, 6, below, 4, NOW) == []


def test_pods_that_are_ill_in_different_ways_do_not_add_up() -> None:
    cart = Place("Deployment", "shop", "cart")
    below = dict([of_pod(0, "leak"), of_pod(1, "thrash"), of_pod(2, "dropout")])
    assert above(cart, 3, below, 2, NOW) == []


def test_a_step_of_any_length_has_its_few_ticks() -> None:
    assert Terms(2, timedelta(seconds=10)).together == timedelta(seconds=50)
