"""How a long remediation is kept in its record, by values."""

from dataclasses import replace
from datetime import timedelta

from kreflex.courses import CUT_OFF, cut_off, noted, patience, signal_of
from kreflex.records import Intent, Record, Taken
from kreflex.signals import Course, NodeSignal, PodSignal
from tests.values import MINUTE, NOW, a_record

NODE = {"apiVersion": "v1", "kind": "Node", "name": "blue-1", "uid": "uid-blue-1"}
SPEC = {"function": "node-replacer", "target": NODE, "fault": {"key": "node-replacer/uid-blue-1/Ready/then"}}


def begun(**status: object) -> Record:
    record = a_record({**SPEC, "owner": None})
    changes = {"phase": "Acting", "begun_at": NOW - MINUTE, **status}
    return replace(record, status=record.status.model_copy(update=changes))


def test_a_step_that_is_taken_again_is_counted_and_comes_last() -> None:
    record = noted(noted(begun(), "EvictPods", NOW, "evicted 2"), "CordonNode", NOW, "")
    record = noted(record, "EvictPods", NOW + MINUTE, "evicted 1")
    again = Taken(action="EvictPods", first=NOW, last=NOW + MINUTE, count=2, note="evicted 1")
    assert record.status.steps == (Taken(action="CordonNode", first=NOW, last=NOW), again)


def test_a_step_that_was_claimed_and_not_told_of_may_have_been_taken() -> None:
    intent = Intent(action="CordonNode", plan_hash="x", step="CordonNode")
    taken = Taken(action="CordonNode", first=NOW, last=NOW, note=CUT_OFF)
    assert cut_off(begun(intent=intent, acted_at=NOW)).status.steps == (taken,)


def test_the_last_action_is_no_step_that_could_be_cut_off() -> None:
    intent = Intent(action="DeleteNodeClaim", plan_hash="x")
    assert cut_off(begun(intent=intent, acted_at=NOW)).status.steps == ()


def test_what_fails_again_and_again_is_waited_for_longer_each_time_and_ten_minutes_at_most() -> None:
    waits = [patience(begun(attempt=attempt)) for attempt in (0, 1, 2, 3, 60)]
    assert waits == [timedelta(seconds=seconds) for seconds in (30, 30, 60, 120, 600)]
    assert patience(noted(begun(attempt=5), "EvictPods", NOW, "")) == timedelta(seconds=30)


def test_a_record_that_has_begun_is_a_signal_with_its_course() -> None:
    steps = (Taken(action="CordonNode", first=NOW, last=NOW),)
    record = begun(steps=steps)
    signal = signal_of(record)
    assert isinstance(signal, NodeSignal)
    assert (signal.name, signal.uid, signal.episode) == ("blue-1", "uid-blue-1", "Ready/then")
    assert signal.course == Course(record.name, NOW - MINUTE, steps)


def test_a_record_that_was_put_back_before_its_first_step_has_no_course() -> None:
    signal = signal_of(begun(phase="Open"))
    assert isinstance(signal, NodeSignal)
    assert signal.course is None


def test_the_record_of_a_pod_is_a_signal_about_the_pod() -> None:
    assert isinstance(signal_of(a_record()), PodSignal)
