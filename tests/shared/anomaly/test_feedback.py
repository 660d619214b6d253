"""How what people say moves thresholds: bounded, once each, and kept when states are learnt anew."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kreflex.anomaly.anomalies import Anomaly, AnomalySpec, AnomalyStatus
from kreflex.anomaly.feedback import (
    LEAST,
    MOST,
    Book,
    Heard,
    Verdict,
    apply,
    book_name,
    changed,
    heard,
    moved,
    read_book,
)
from kreflex.anomaly.reading import Matrix
from kreflex.anomaly.scoring import factors_of
from kreflex.anomaly.store import Folder
from kreflex.records import Target
from tests.anomalies import a_watch
from tests.values import CART, NOW


def an_anomaly(uid: str = "uid-1", score: float = 2.0, factor: float = 1.0, **spec: Any) -> Anomaly:
    told = {"watch": "a/b", "target": Target.of(CART), "class": "anomaly", "since": NOW, **spec}
    seen = {"name": "memory", "class": "anomaly", "score": score, "at": NOW, "series": "cart", "factor": factor}
    status = AnomalyStatus.model_validate({"signals": [seen]})
    return Anomaly("shop", "one", uid, "1", AnomalySpec.model_validate(told), status)


def says(verdict: Verdict, **more: Any) -> Heard:
    return Heard(an_anomaly(**more), verdict, "ann")


def test_what_was_dismissed_is_just_borne_from_then_on() -> None:
    book = changed(Book(), [says("dismissed")])
    assert book.factors == {"memory/cart": 2.1}


def test_the_threshold_that_held_then_counts() -> None:
    assert moved(1.5, "dismissed", 2.0, 1.5) == 3.15
    assert moved(3.5, "dismissed", 2.0, 1.5) == 3.5


def test_what_was_confirmed_is_listened_to_more_closely() -> None:
    assert changed(Book(), [says("confirmed")]).factors == {"memory/cart": 0.95}


def test_what_was_missed_and_confirmed_would_just_be_found_from_then_on() -> None:
    assert moved(1.0, "confirmed", 0.8) == 0.776
    assert moved(2.0, "confirmed", 0.8, 2.0) == 1.552
    assert moved(0.7, "confirmed", 0.8, 1.0) == 0.7


def test_a_remediation_that_did_not_help_says_little() -> None:
    assert changed(Book(), [says("doubted")]).factors == {"memory/cart": 1.1}


def test_a_remediation_after_which_all_was_well_says_less_than_a_person() -> None:
    assert changed(Book(), [says("helped")]).factors == {"memory/cart": 0.97}


def test_remediations_alone_move_a_threshold_by_little_however_many_there_are() -> None:
    assert many("helped", 1.0) == 0.8
    assert many("doubted", 1.0) == 2.0
    # What people have said beyond that stays.
    assert (many("helped", 0.6), many("doubted", 3.0)) == (0.6, 3.0)


def many(verdict: Verdict, factor: float) -> float:
    for _ in range(20):
        factor = moved(factor, verdict, 2)
    return factor


@pytest.mark.parametrize(
    ("verdict", "told"),
    [("confirmed", "confirmed"), ("helped", "confirmed"), ("dismissed", "dismissed"), ("doubted", "doubted")],
)
def test_the_anomaly_tells_what_was_made_of_it(verdict: Verdict, told: str) -> None:
    assert says(verdict).feedback == told


def test_it_is_bounded_on_both_sides() -> None:
    assert moved(1, "dismissed", 1000) == MOST
    factor = 1.0
    for _ in range(20):
        factor = moved(factor, "confirmed", 2)
    assert factor == LEAST


def test_each_verdict_counts_once() -> None:
    once = changed(Book(), [says("confirmed")])
    assert changed(once, [says("confirmed")]) == once


def test_another_verdict_takes_back_the_one_before() -> None:
    book = changed(changed(Book(), [says("confirmed")]), [says("dismissed")])
    assert book.factors == {"memory/cart": 2.1}
    assert changed(book, [says("confirmed")]).factors == {"memory/cart": 0.95}


def test_siblings_that_nobody_spoke_of_learn_half_of_it() -> None:
    book = changed(Book(), [Heard(an_anomaly(), "dismissed", "ann", {"cart": ("shop", "cart")})])
    assert book.factor("memory", "cart", ("shop", "cart")) == 2.1
    assert book.factor("memory", "another", ("shop", "cart")) == pytest.approx(2.1**0.5, abs=1e-4)
    assert book.factor("memory", "another", ("shop", "till")) == 1
    assert book.factor("rss", "cart", ("shop", "cart")) == 1


def test_a_person_is_heard_by_what_stands_in_the_spec() -> None:
    said = heard(an_anomaly(feedback={"verdict": "Dismissed", "by": "ann"}))
    assert said is not None
    assert (said.verdict, said.feedback, said.by, said.told) == ("dismissed", "dismissed", "ann", False)
    assert heard(an_anomaly()) is None


async def test_two_replicas_write_it_once_and_lose_nothing(tmp_path: Path) -> None:
    store, watch = Folder(tmp_path), a_watch()
    many = [says("confirmed", uid=f"uid-{number}") for number in range(4)]
    for _ in range(2):
        await asyncio.gather(*(apply(store, watch, [one], [o.anomaly.uid for o in many]) for one in many))
    book, _ = await read_book(store, watch)
    assert book.factors == {"memory/cart": pytest.approx(0.95**4, abs=1e-3)}
    assert sorted(book.applied) == [f"uid-{number}" for number in range(4)]


async def test_what_is_gone_is_forgotten_and_its_lesson_stays(tmp_path: Path) -> None:
    store, watch = Folder(tmp_path), a_watch()
    await apply(store, watch, [says("dismissed")], ["uid-1"])
    await apply(store, watch, [], [])
    assert (await read_book(store, watch))[0] == Book(factors={"memory/cart": 2.1})


async def test_a_damaged_book_is_begun_anew(tmp_path: Path) -> None:
    store, watch = Folder(tmp_path), a_watch()
    await store.write(book_name(watch), b"damaged", "")
    assert await apply(store, watch, [says("dismissed")], ["uid-1"]) == (await read_book(store, watch))[0]


def test_only_series_that_were_spoken_of_have_a_factor() -> None:
    watch = a_watch()
    recent = Matrix(("cart", "till"), ({"pod": "cart"}, {"pod": "till"}), np.zeros((2, 3)), 0.0, 60.0)
    signal = watch.spec.signals[0]
    assert factors_of(Book(), watch, signal, recent) is None
    found = factors_of(Book(factors={"memory/cart": 2.1}), watch, signal, recent)
    assert found is not None
    assert found.tolist() == [2.1, 1.0]


def test_a_book_does_not_grow_without_end() -> None:
    pods = {f'memory/{{pod="cart-{number}"}}': 0.95 for number in range(6000)}
    strong = {'memory/{pod="disk"}': 3.0, "memory//shop/cart": 0.95}
    book = changed(Book(factors={**pods, **strong}), [says("confirmed")])
    assert len(book.factors) == 5000
    assert strong.items() <= book.factors.items()
    assert book.factors["memory/cart"] == 0.95
