"""Whom the waker calls for, of the many that wait in a storm."""

from dataclasses import replace
from typing import Any

from kreflex.policy import Policies
from kreflex.records import Record
from kreflex.waking import is_queued, turns
from tests.values import MINUTE, NOW, a_policy, a_record, stamp

POLICIES = Policies((a_policy(limits={"maxInFlight": 3}),))
STAMP = POLICIES.stamp("restart-loop-killer", "shop")


def of(owner: str, number: int, **status: Any) -> Record:
    """A record of one owner's pod."""
    record = a_record(status={"policies": ["all"], **status})
    assert record.spec.owner is not None
    spec = record.spec.model_copy(update={"owner": record.spec.owner.model_copy(update={"name": owner})})
    return replace(record, uid=f"{owner}-{number}", spec=spec)


def queue(owner: str, length: int) -> list[Record]:
    """Records that the ledger has denied."""
    return [of(owner, number, phase="Open", guard="OneAtATime", policy=STAMP) for number in range(length)]


def at_work(owner: str) -> Record:
    return of(owner, 99, phase="Applied", dueAt=stamp(NOW + MINUTE))


def owners(chosen: list[Record]) -> list[str]:
    return sorted(record.owner_key.rpartition("/")[2] for record in chosen)


def test_a_few_of_each_owner_have_their_turn() -> None:
    assert owners(turns([*queue("cart", 50), *queue("shop", 50)], [], POLICIES, NOW)) == ["cart"] * 2 + ["shop"] * 2


def test_nobody_is_called_for_an_owner_whose_verdict_is_not_due() -> None:
    chosen = turns([*queue("cart", 50), *queue("shop", 50)], [at_work("cart")], POLICIES, NOW)
    assert owners(chosen) == ["shop", "shop"]


def test_nobody_is_called_while_all_slots_are_taken() -> None:
    resting = [at_work(f"w{number}") for number in range(3)]
    assert turns(queue("cart", 50), resting, POLICIES, NOW) == []


def test_the_turns_are_few_where_the_slots_are_few() -> None:
    waiting = [record for number in range(50) for record in queue(f"w{number}", 1)]
    assert len(turns(waiting, [at_work("a"), at_work("b")], POLICIES, NOW)) == 2


def test_whose_turn_it_is_changes_with_time() -> None:
    waiting = queue("cart", 50)
    seen = {record.uid for step in range(200) for record in turns(waiting, [], POLICIES, NOW + step * MINUTE)}
    assert len(seen) > 40


def test_a_change_of_the_policies_lets_all_be_decided_anew() -> None:
    assert is_queued(queue("cart", 1)[0], POLICIES)
    assert not is_queued(of("cart", 1, phase="Open", guard="Slots", policy="another"), POLICIES)
    assert not is_queued(of("cart", 1, phase="Open", guard="Frozen", policy=STAMP), POLICIES)
