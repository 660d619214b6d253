"""When a record is due: for the waker, which calls a function for it, and for the function that is called."""

from typing import Any

import pytest

from kreflex.due import is_due
from kreflex.policy import Policies
from kreflex.records import Record
from tests.values import HOUR, MINUTE, NOW, a_policy, a_record, stamp

POLICIES = Policies((a_policy(),))
STAMP = POLICIES.stamp("restart-loop-killer", "shop")
PLAN = "0123456789abcdef"


def due(record: Record) -> bool:
    return is_due(record, POLICIES, NOW, MINUTE / 2)


def a_refused(**status: Any) -> Record:
    """A record that was refused five minutes ago and is to be looked at again in an hour."""
    approval = status.pop("approval", None)
    told = {
        "phase": "Open",
        "outcome": "refused",
        "guard": "Frozen",
        "dueAt": stamp(NOW + HOUR),
        "policy": STAMP,
        "decidedAt": stamp(NOW - 5 * MINUTE),
    }
    return a_record({"approval": approval} if approval else None, {**told, **status})


def a_waiting(until: Any = NOW + HOUR, plan: str = PLAN, guard: str = "Approval", **status: Any) -> Record:
    """A record with a plan that waits for a person, and that person's approval."""
    approval = {"planHash": plan, "by": "ada", "until": stamp(until)}
    waits = {"outcome": "awaiting-approval", "guard": guard, "planHash": PLAN}
    return a_refused(approval=approval, **waits, **status)


def test_a_refused_record_waits_for_its_time() -> None:
    assert not due(a_refused())
    assert due(a_refused(dueAt=stamp(NOW)))


def test_a_change_of_the_policies_wakes_it() -> None:
    assert due(a_refused(policy="another"))


def test_a_record_that_nobody_has_decided_was_left_by_a_crash() -> None:
    assert due(a_record(age=MINUTE))
    assert not due(a_record(age=MINUTE / 4))


@pytest.mark.parametrize("phase", ["Acting", "Applied"])
def test_an_attempt_and_a_proof_are_due_on_time(phase: str) -> None:
    assert not due(a_record(status={"phase": phase, "dueAt": stamp(NOW + MINUTE), "policy": "another"}))
    assert due(a_record(status={"phase": phase, "dueAt": stamp(NOW)}))


def test_nothing_follows_what_is_done() -> None:
    assert not due(a_record(status={"phase": "Done", "dueAt": stamp(NOW)}))


def test_an_approval_wakes_it() -> None:
    assert not due(a_refused(outcome="awaiting-approval", guard="Approval", planHash=PLAN))
    assert due(a_waiting())


def test_an_approval_of_another_plan_is_looked_at_once() -> None:
    assert due(a_waiting(plan="another"))
    assert not due(a_waiting(plan="another", guard="ApprovalMismatch"))


def test_an_approval_that_has_expired_is_looked_at_once() -> None:
    assert due(a_waiting(until=NOW - MINUTE))
    assert not due(a_waiting(until=NOW - MINUTE, guard="ApprovalExpired", decidedAt=stamp(NOW)))


def test_an_approval_of_the_right_plan_after_one_of_another_is_looked_at_even_if_it_has_expired() -> None:
    assert due(a_waiting(until=NOW - MINUTE, guard="ApprovalMismatch"))
