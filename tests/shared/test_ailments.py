"""What a pod suffers from, by values."""

from datetime import timedelta
from typing import Any

import pytest

from kreflex import Pod
from kreflex.ailments import Ailment, Early, ailment, waits, well
from kreflex.views import JSON
from tests.releases import LIMITS, a_pod_of, a_template, held, looping, unplaced, unready
from tests.values import HOUR, MINUTE, NOW, RUNNING, a_status, ended, stamp

SECOND = timedelta(seconds=1)
NOT_FOUND = 'failed to pull and unpack image "docker.io/library/shop:2": docker.io/library/shop:2: not found'


def of(pod: Pod, template: JSON | None = None) -> Ailment | Early | None:
    return ailment(pod, template or a_template(), LIMITS, NOW)


def test_a_pod_that_is_ready_is_well() -> None:
    assert of(a_pod_of(2)) is None


def test_a_container_that_restarts_again_and_again_loops() -> None:
    pod = looping(2, restarts=3)
    # The third start came 30 seconds of waiting after the first.
    story = "app restarted 3 times, last with exit code 1"
    assert of(pod) == Ailment(pod, "Loop", story, NOW - timedelta(seconds=30), "app")


def test_a_crash_or_two_may_pass() -> None:
    assert of(looping(2, restarts=2)) is None


def test_a_loop_with_exit_code_0_is_one_and_one_without_memory_says_so() -> None:
    quiet = looping(2, code=0)
    assert of(quiet) == Ailment(
        quiet, "Loop", "app restarted 4 times, last with exit code 0", NOW - timedelta(seconds=70), "app"
    )
    end = ended(137, "OOMKilled")
    hungry = a_pod_of(2, app=[a_status(state=end, last=end)])
    told = of(hungry)
    assert isinstance(told, Ailment)
    assert told.story == "app restarted 4 times, last with exit code 137 (OOMKilled)"


def test_a_loop_did_not_begin_before_the_pod() -> None:
    told = of(looping(2, restarts=9, age=3 * MINUTE))
    assert isinstance(told, Ailment)
    assert told.since == NOW - 3 * MINUTE


def test_a_container_that_runs_between_two_crashes_gets_a_moment() -> None:
    pod = a_pod_of(2, app=[a_status(restarts=5, state={"running": {"startedAt": stamp(NOW - 30 * SECOND)}})])
    assert of(pod) == Early(NOW + 90 * SECOND)


def test_a_container_that_has_run_for_long_enough_since_its_crashes_is_well() -> None:
    state = {"running": {"startedAt": stamp(NOW - 3 * MINUTE)}}
    assert of(a_pod_of(2, app=[a_status(restarts=5, state=state)], ready_for=3 * MINUTE)) is None


def test_an_init_container_that_has_ended_well_is_done_however_often_it_was_restarted() -> None:
    init = a_status("prepare", restarts=5, state=ended(0, "Completed"))
    app = a_status(restarts=0, state=RUNNING, last={})
    assert of(a_pod_of(2, init=[init], app=[app], ready_for=5 * MINUTE)) is None


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("ErrImagePull", "Image"),
        ("ImagePullBackOff", "Image"),
        ("InvalidImageName", "Image"),
        ("ErrImageNeverPull", "Image"),
        ("CreateContainerConfigError", "Config"),
        ("CreateContainerError", "Start"),
        ("RunContainerError", "Start"),
    ],
)
def test_hears_why_a_container_is_not_started(reason: str, kind: Any) -> None:
    pod = held(2, reason, NOT_FOUND)
    assert of(pod) == Ailment(pod, kind, f"app waits: {reason}: {NOT_FOUND}", NOW - 9 * MINUTE, "app", NOT_FOUND)


def test_an_image_may_be_pushed_a_moment_later() -> None:
    assert of(held(2, "ErrImagePull", NOT_FOUND, age=2 * MINUTE - SECOND)) is None
    assert isinstance(of(held(2, "ErrImagePull", NOT_FOUND, age=2 * MINUTE)), Ailment)


def test_a_pod_that_runs_and_is_never_ready_fails_after_the_patience() -> None:
    pod = unready(2, ago=2 * MINUTE)
    assert of(pod) == Ailment(pod, "Unready", "app runs and is not ready for 2m", NOW - 2 * MINUTE, "app")
    assert of(unready(2, ago=2 * MINUTE - SECOND)) is None


@pytest.mark.parametrize(
    ("probes", "seconds"),
    [
        ({"startupProbe": {"failureThreshold": 30, "periodSeconds": 10}}, 300),
        ({"startupProbe": {"initialDelaySeconds": 20, "failureThreshold": 2}}, 40),
        ({"readinessProbe": {"initialDelaySeconds": 60}}, 60),
    ],
)
def test_a_slow_start_that_the_probes_allow_is_waited_for(probes: JSON, seconds: int) -> None:
    allowed, template = 2 * MINUTE + seconds * SECOND, a_template(container=probes)
    assert of(unready(2, ago=allowed - SECOND), template) is None
    assert isinstance(of(unready(2, ago=allowed), template), Ailment)


def test_a_readiness_gate_is_not_the_container() -> None:
    status = a_status(restarts=0, state={"running": {"startedAt": stamp(NOW - 5 * MINUTE)}}, last={})
    pod = a_pod_of(2, app=[status])
    story = "its containers are ready and it is not, for 5m: a readiness gate"
    assert of(pod) == Ailment(pod, "Gate", story, NOW - 5 * MINUTE)


def test_a_pod_that_no_node_takes_waits_for_a_new_node_first() -> None:
    said = "0/3 nodes are available: 3 Insufficient cpu."
    pod = unplaced(2, said, ago=10 * MINUTE)
    assert of(pod) == Ailment(pod, "Unplaced", f"no node takes it: {said}", NOW - 10 * MINUTE, said=said)
    assert of(unplaced(2, said, ago=10 * MINUTE - SECOND)) is None


def test_containers_that_are_not_made_may_wait_for_a_large_image() -> None:
    pod = held(2, "ContainerCreating", age=10 * MINUTE)
    story = "its containers are not started after 10m (ContainerCreating)"
    assert of(pod) == Ailment(pod, "Waiting", story, NOW - 10 * MINUTE)
    assert of(held(2, "ContainerCreating", age=10 * MINUTE - SECOND)) is None


@pytest.mark.parametrize("about", [{"terminating": True}, {"phase": "Succeeded"}, {"phase": "Failed"}])
def test_a_pod_that_ends_is_not_ill(about: Any) -> None:
    assert of(looping(2, **about)) is None


def test_of_two_containers_that_loop_the_one_that_restarted_most_is_told_of() -> None:
    pod = a_pod_of(2, app=[a_status("few", restarts=3), a_status("many", restarts=7)])
    told = of(pod)
    assert isinstance(told, Ailment)
    assert told.container == "many"


@pytest.mark.parametrize(
    ("restarts", "seconds"), [(0, 0), (1, 0), (2, 10), (3, 30), (6, 310), (7, 610), (8, 910), (20, 310 + 14 * 300)]
)
def test_knows_how_long_a_kubelet_has_waited(restarts: int, seconds: int) -> None:
    assert waits(restarts) == timedelta(seconds=seconds)


def test_only_who_is_ready_for_long_enough_is_a_witness() -> None:
    assert well(a_pod_of(1, ready_for=2 * MINUTE), LIMITS, NOW)
    assert not well(a_pod_of(1, ready_for=2 * MINUTE - SECOND), LIMITS, NOW)
    assert not well(a_pod_of(1, ready_for=HOUR, terminating=True), LIMITS, NOW)
    assert not well(unready(1), LIMITS, NOW)
