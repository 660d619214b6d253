"""When an Anomaly is opened, written down again, and over."""

from dataclasses import replace
from datetime import datetime
from typing import Any

from kreflex.anomaly.agreement import Judgement, Place, Terms, judge
from kreflex.anomaly.anomalies import Anomaly, AnomalySpec, AnomalyStatus, Seen, Window, anomaly_name, label_of
from kreflex.anomaly.episodes import Tick, before, dismissed, ended, number, old, open_of, renewed, said, still
from kreflex.records import Target
from tests.values import CART, HOUR, MINUTE, NOW

TARGET = Target.of(CART)
PLACE = Place("Pod", "shop", "cart-1")


def a_tick(minutes: int = 0) -> Tick:
    at = NOW + minutes * MINUTE
    return Tick(at, MINUTE, "loud/1", Window(start=at - HOUR, end=at, step=60), {"leak": "restart-loop-killer"})


def a_judgement(*names: str, at: datetime = NOW, class_: str = "anomaly") -> Judgement:
    found = [
        Seen.model_validate({"name": name, "class": class_, "score": 2.0, "at": at, "series": name})
        for name in names or ("memory",)
    ]
    (made,) = judge(PLACE, found, [], Terms(2, MINUTE, frozenset({"memory"})), at)
    return made


def an_anomaly(class_: str = "anomaly", name: str = "one", uid: str = "", **status: Any) -> Anomaly:
    spec = AnomalySpec.model_validate({"watch": "a/b", "target": TARGET, "class": class_, "since": NOW})
    return Anomaly("shop", name, uid or f"uid-{name}", "1", spec, AnomalyStatus.model_validate(status))


def after(anomaly: Anomaly, minutes: int, *names: str) -> Anomaly:
    """The Anomaly as it is written when it is seen so many minutes later."""
    judgement = a_judgement(*names, at=NOW + minutes * MINUTE, class_=anomaly.spec.class_)
    status = renewed(anomaly, judgement, a_tick(minutes))
    return anomaly if status is None else replace(anomaly, status=status)


def test_a_new_one_is_written_down_at_once() -> None:
    status = after(an_anomaly(), 0).status
    assert (status.phase, status.since, status.last_seen, status.agreed) == ("Open", NOW, NOW, False)
    assert status.fresh_until == NOW + 6 * MINUTE


def test_it_is_written_down_again_after_three_ticks_and_not_before() -> None:
    anomaly = after(an_anomaly(), 0)
    assert [after(anomaly, minutes) is anomaly for minutes in (1, 2, 3)] == [True, True, False]


def test_what_changes_its_meaning_is_written_down_at_once() -> None:
    anomaly = after(an_anomaly("leak"), 0)
    status = after(anomaly, 1, "memory", "rss").status
    assert (status.agreed, status.remediation) == (True, "restart-loop-killer")


def test_a_slower_replica_writes_nothing_over_what_is_newer() -> None:
    anomaly = after(an_anomaly(), 2)
    assert after(anomaly, 1, "memory", "rss") is anomaly


def test_it_is_over_after_six_calm_ticks() -> None:
    anomaly = after(an_anomaly(), 0)
    assert ended(anomaly, "calm", a_tick(5)) is None
    status = ended(anomaly, "calm", a_tick(6))
    assert status is not None
    assert (status.phase, status.resolved_because) == ("Resolved", "below 0.8 of its threshold for 6 ticks")
    assert (status.resolved_at, status.fresh_until, status.since) == (NOW + 6 * MINUTE, None, NOW)


def test_it_is_over_with_its_object() -> None:
    anomaly = after(an_anomaly(), 0)
    status = ended(anomaly, "gone", a_tick(1))
    assert status is not None
    assert status.resolved_because == "Pod shop/cart-1 is gone"
    assert ended(anomaly, "seen", a_tick(60 * 24)) is None


def test_while_nothing_is_known_it_goes_on_for_a_day() -> None:
    anomaly = after(an_anomaly(), 0)
    assert ended(anomaly, "unknown", a_tick(60 * 24 - 1)) is None
    status = ended(anomaly, "unknown", a_tick(60 * 24))
    assert status is not None
    assert status.resolved_because == f"nothing could be read of it since {NOW:%Y-%m-%d %H:%M} UTC"


def test_just_below_the_threshold_it_goes_on_and_is_no_reason_to_act() -> None:
    anomaly = after(an_anomaly(), 0)
    assert still(anomaly, a_tick(2)) is None
    status = still(anomaly, a_tick(3))
    assert status is not None
    assert (status.last_seen, status.fresh_until) == (NOW + 3 * MINUTE, NOW + 6 * MINUTE)


def test_a_dismissed_one_is_over_as_soon_as_it_is_not_beyond_its_new_threshold() -> None:
    assert dismissed(an_anomaly(), a_tick()) is None
    status = dismissed(an_anomaly(feedback="dismissed", feedbackBy="ann"), a_tick())
    assert status is not None
    assert status.resolved_because == "dismissed by ann"


def test_an_episode_goes_on_under_the_name_that_it_has() -> None:
    spike, leak = an_anomaly("spike", "spike"), an_anomaly("leak", "leak")
    over = an_anomaly("spike", "over", phase="Resolved")
    assert open_of([over, leak, spike], a_judgement(class_="level-shift"), CART.uid) == spike
    assert open_of([over, leak, spike], a_judgement(class_="leak"), CART.uid) == leak
    assert open_of([over, leak], a_judgement(), CART.uid) is None
    assert open_of([spike], a_judgement(), "uid-of-another") is None


def test_two_replicas_at_different_ticks_give_an_episode_the_same_name() -> None:
    over = an_anomaly(uid="uid-before", phase="Resolved")
    assert before([], "anomaly", CART.uid) == ""
    assert before([over], "anomaly", CART.uid) == "uid-before"
    first, second = (anomaly_name("anomaly", TARGET, uid) for uid in ("", "uid-before"))
    assert first != second
    assert first.startswith("anomaly-cart-1-")
    assert anomaly_name("anomaly", TARGET, "") == first


def test_only_what_was_over_long_ago_is_old() -> None:
    gone = an_anomaly(phase="Resolved", resolvedAt=NOW - 2 * HOUR)
    assert old([gone, an_anomaly()], NOW, HOUR) == [gone]
    assert old([gone, an_anomaly()], NOW, 3 * HOUR) == []


def test_what_is_fresh_may_be_believed() -> None:
    anomaly = after(an_anomaly(), 0)
    assert anomaly.fresh(NOW + 6 * MINUTE)
    assert not anomaly.fresh(NOW + 7 * MINUTE)
    assert not an_anomaly().fresh(NOW)


def test_numbers_are_told_as_people_write_them() -> None:
    evidence = {"value": 200 * 2**20, "expected": 1e8, "limit": 256 * 2**20, "seconds_to_limit": 720}
    one = Seen.model_validate({"name": "memory", "class": "leak", "score": 2, "at": NOW, "evidence": evidence})
    assert said(one) == (
        "memory is 200Mi, 95.37Mi was expected, and reaches its limit of 256Mi in 12 min (2.0 times its threshold)"
    )
    growing = one.model_copy(update={"evidence": {**evidence, "grows_in_an_hour": 280 * 2**20}})
    assert said(growing) == (
        "memory is 200Mi, 95.37Mi was expected, grows by 280Mi an hour, and reaches its limit of 256Mi in 12 min"
        " (2.0 times its threshold)"
    )
    assert [number(value) for value in (0.12345, 42.0, 2.0**40)] == ["0.1235", "42", "1Ti"]


def test_a_watch_with_a_long_name_has_a_label() -> None:
    assert label_of("kreflex-system/pods") == "kreflex-system_pods"
    assert len(label_of("n" * 60 + "/" + "w" * 60)) == 63
