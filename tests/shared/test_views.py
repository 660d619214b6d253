"""What the views see of Kubernetes objects."""

from datetime import UTC, datetime, timedelta

import pytest

from kreflex import Container, Ref
from kreflex.views import Termination, pod_view, workload_view
from tests.values import (
    CART,
    CART_SET,
    MINUTE,
    NOW,
    RUNNING,
    CannedApi,
    a_pod,
    a_status,
    a_workload,
    ended,
    objects,
    owned_by,
    the_pod,
    the_workload,
    waits,
)


def test_sees_every_kind_of_container_and_how_its_runs_ended() -> None:
    pod = the_pod(
        init=[a_status("prepare", restarts=0, state=ended(0, "Completed"), last={})],
        sidecars=[a_status("mesh", restarts=2, state=RUNNING)],
        app=[a_status("app", restarts=5, state=waits("CrashLoopBackOff"), last=ended(3))],
    )
    assert pod.containers == (
        Container("prepare", "init", 0, False, None, None, Termination("Completed", 0, NOW), None),
        Container("mesh", "sidecar", 2, True, NOW - MINUTE, None, None, Termination("Error", 1, NOW)),
        Container("app", "app", 5, False, None, "CrashLoopBackOff", None, Termination("Error", 3, NOW)),
    )
    assert [c.ended.exit_code if c.ended else None for c in pod.containers] == [0, 1, 3]


def test_sees_whose_pod_it_is_and_since_when_it_is_ready() -> None:
    pod = the_pod(ready_for=MINUTE, labels={"controller-revision-hash": "web-6f"})
    assert (pod.ref, pod.controller, pod.created) == (CART, CART_SET, NOW - 10 * MINUTE)
    assert (pod.ready, pod.ready_since, pod.terminating, pod.mirror) == (True, NOW - MINUTE, False, False)
    assert pod.template_hash == "web-6f"


def test_a_pod_that_is_not_ready_is_ready_since_never() -> None:
    assert (the_pod().ready, the_pod().ready_since) == (False, None)


def test_an_owner_that_does_not_control_is_no_controller() -> None:
    body = a_pod()
    body["metadata"]["ownerReferences"] = [{**owned_by(CART_SET)[0], "controller": False}]
    assert pod_view(body).controller is None


def test_sees_a_pod_that_was_not_scheduled_yet() -> None:
    body = a_pod()
    body["status"] = {"phase": "Pending"}
    assert (pod_view(body).containers, pod_view(body).ready) == ((), False)


@pytest.mark.parametrize("field", ["namespace", "name", "uid", "creationTimestamp", "resourceVersion"])
def test_what_lacks_its_identity_is_no_pod(field: str) -> None:
    body = a_pod()
    del body["metadata"][field]
    with pytest.raises(KeyError):
        pod_view(body)


def test_counts_the_replicas_that_were_asked_for() -> None:
    deployment = the_workload(replicas=3, ready=2)
    assert (deployment.replicas, deployment.ready) == (3, 2)


def test_counts_the_nodes_of_a_daemon_set() -> None:
    body = a_workload(Ref("apps/v1", "DaemonSet", "shop", "agent", "uid-agent"))
    body["spec"], body["status"] = {}, {"desiredNumberScheduled": 5, "numberReady": 4}
    view = workload_view(body)
    assert (view.replicas, view.ready) == (5, 4)


def test_a_job_counts_no_replicas() -> None:
    body = a_workload(Ref("batch/v1", "Job", "shop", "task", "uid-task"))
    body["spec"], body["status"] = {"parallelism": 2}, {"active": 2}
    assert workload_view(body).replicas is None


async def test_follows_the_controllers_to_the_top() -> None:
    deployment = Ref("apps/v1", "Deployment", "shop", "cart", "uid-cart")
    api = CannedApi(objects(a_workload(deployment), a_workload(CART_SET, owner=deployment)))
    assert await api.world().cluster.top_owner(the_pod()) == the_workload(ref=deployment)
    assert await api.world().cluster.top_owner(the_pod(owner=None)) is None


async def test_a_controller_of_an_unknown_kind_ends_the_way() -> None:
    machine = Ref("example.com/v1", "Machine", "shop", "m", "uid-m")
    top = await CannedApi().world().cluster.top_owner(the_pod(owner=machine))
    assert top is not None
    assert (top.ref, top.replicas, top.ready) == (machine, None, None)


async def test_a_controller_that_was_replaced_is_not_asked_for_its_replicas() -> None:
    api = CannedApi(objects(a_workload(Ref("apps/v1", "ReplicaSet", "shop", CART_SET.name, "uid-of-the-next"))))
    top = await api.world().cluster.top_owner(the_pod())
    assert top is not None
    assert (top.ref, top.replicas) == (CART_SET, None)


def test_reads_times_with_fractions_too() -> None:
    body = a_pod()
    body["metadata"]["creationTimestamp"] = "2026-05-01T11:50:00.250000Z"
    assert pod_view(body).created == datetime(2026, 5, 1, 11, 50, tzinfo=UTC) + timedelta(milliseconds=250)


def test_hears_why_a_container_waits_and_why_no_node_takes_a_pod() -> None:
    waiting = {"waiting": {"reason": "CreateContainerConfigError", "message": 'configmap "settings" not found'}}
    body = a_pod(app=[a_status(state=waiting)])
    placed = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available",
    }
    body["status"]["conditions"].append(placed)
    pod = pod_view(body)
    assert (pod.containers[0].said, pod.unplaced) == ('configmap "settings" not found', "0/3 nodes are available")
    assert (the_pod().containers[0].said, the_pod().unplaced) == ("", "")
