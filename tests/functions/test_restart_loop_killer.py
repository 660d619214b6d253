"""What restart-loop-killer decides, finds and judges, by values."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from functions.restart_loop_killer.main import RestartLoopSettings, decide, find, recovered
from kreflex import (
    Defer,
    EvictPod,
    Ineffective,
    PodSignal,
    Recovered,
    Ref,
    Refuse,
    Skip,
    Treatment,
    Unknown,
    Verdict,
)
from kreflex.records import Owner, Target
from kreflex.views import JSON, pod_view
from tests.values import (
    CART,
    CART_DEPLOYMENT,
    CART_SET,
    MINUTE,
    NOW,
    RUNNING,
    CannedApi,
    CannedMetrics,
    a_pod,
    a_status,
    a_workload,
    ended,
    objects,
    stamp,
    the_pod,
    the_workload,
    waits,
)

SIGNAL = PodSignal("shop", "cart-1", CART.uid)
PROOF = 10 * MINUTE
# Conditions tell whole seconds.
PROVEN = PROOF + timedelta(seconds=1)
SOON = 10 * MINUTE
OLD = timedelta(days=3)


def an_api(*bodies: JSON) -> CannedApi:
    """A Deployment with its ReplicaSet, and these objects."""
    return CannedApi(objects(a_workload(), a_workload(CART_SET, owner=CART_DEPLOYMENT), *bodies))


async def decision(signal: PodSignal = SIGNAL, metrics: CannedMetrics | None = None, **pod: Any) -> Any:
    return await decision_on(a_pod(**pod), signal, metrics)


async def decision_on(pod: JSON, signal: PodSignal = SIGNAL, metrics: CannedMetrics | None = None) -> Any:
    return await decide(signal, an_api(pod).world(metrics), RestartLoopSettings())


async def test_evicts_a_looping_pod_and_says_why() -> None:
    because = "app restarted 5 times, last with exit code 1: 5 restarts in 10m"
    pod: dict[str, Any] = {"app": [a_status(restarts=5)]}
    assert await decision(**pod) == EvictPod(because, the_pod(**pod), the_workload())


async def test_waits_until_there_are_more_than_three_restarts() -> None:
    assert await decision(app=[a_status(restarts=3)]) == Skip("no container loops")
    assert isinstance(await decision(app=[a_status(restarts=4)]), EvictPod)


async def test_leaves_a_pod_alone_that_has_restarted_often_and_runs_now() -> None:
    assert await decision(app=[a_status(restarts=20, state=RUNNING)]) == Skip("no container loops")


async def test_watches_a_pod_with_a_record_until_it_has_run_for_ten_minutes() -> None:
    runs = a_status(restarts=20, state={"running": {"startedAt": stamp(NOW - MINUTE)}})
    known = replace(SIGNAL, source="record")
    because = "it runs again at this moment, and may crash again"
    assert await decision(known, app=[runs]) == Defer(because, until=NOW + 9 * MINUTE)
    calm = a_status(restarts=20, state={"running": {"startedAt": stamp(NOW - 10 * MINUTE)}})
    assert await decision(known, app=[calm]) == Skip("no container loops")


async def test_a_container_with_few_restarts_in_the_window_hides_no_other() -> None:
    two = [a_status("old", restarts=90), a_status("new", restarts=5)]
    counts = CannedMetrics(1.0, 5.0)
    answer = await decision(metrics=counts, age=OLD, app=two)
    assert isinstance(answer, EvictPod)
    assert answer.because.startswith("new restarted 5 times")


@pytest.mark.parametrize("state", [ended(), waits("CrashLoopBackOff")], ids=["terminated", "CrashLoopBackOff"])
async def test_sees_a_loop_in_the_back_off_and_before_it(state: JSON) -> None:
    assert isinstance(await decision(app=[a_status(state=state)]), EvictPod)


@pytest.mark.parametrize("state", [None, waits("CrashLoopBackOff")], ids=["terminated", "CrashLoopBackOff"])
async def test_what_a_dead_kubelet_said_last_is_no_loop(state: JSON | None) -> None:
    async def after(ago: timedelta) -> Any:
        over = ended(ago=ago)
        return await decision(age=30 * MINUTE, app=[a_status(state=state or over, last=over)])

    assert isinstance(await after(10 * MINUTE), EvictPod)
    assert await after(10 * MINUTE + timedelta(seconds=1)) == Skip("no container loops")


@pytest.mark.parametrize("kind", ["app", "init", "sidecars"])
async def test_sees_a_loop_in_every_kind_of_container(kind: str) -> None:
    pod: dict[str, Any] = {kind: [a_status("broken", restarts=6)]}
    loops = await decision(**pod)
    assert isinstance(loops, EvictPod)
    assert loops.because == "broken restarted 6 times, last with exit code 1: 6 restarts in 10m"


async def test_tells_of_the_container_that_restarted_most() -> None:
    loops = await decision(app=[a_status("one", restarts=4), a_status("two", restarts=8), a_status("three", 5)])
    assert loops.because.startswith("two restarted 8 times")


async def test_does_not_add_up_the_restarts_of_several_containers() -> None:
    assert await decision(app=[a_status("one", restarts=3), a_status("two", restarts=3)]) == Skip("no container loops")


@pytest.mark.parametrize(
    ("about", "refused"),
    [
        (
            {"app": [a_status(state=ended(137, "OOMKilled"))]},
            Refuse("app restarted 4 times, last with exit code 137", "OOMKilled"),
        ),
        (
            {"app": [a_status(state=waits("CrashLoopBackOff"), last=ended(137, "OOMKilled"))]},
            Refuse("app restarted 4 times, last with exit code 137", "OOMKilled"),
        ),
        (
            {"app": [a_status(state=ended(0, "Completed"))]},
            Refuse("app restarted 4 times, last with exit code 0", "ExitZero"),
        ),
        (
            {"app": [a_status(state=ended(128, "StartError"))]},
            Refuse("app restarted 4 times, last with exit code 128", "Config"),
        ),
        (
            {"app": [a_status(state=ended(127, "ContainerCannotRun"))]},
            Refuse("app restarted 4 times, last with exit code 127", "Config"),
        ),
        *(
            ({"app": [a_status(restarts=0, state=waits(reason), last={})]}, Refuse(f"app waits: {reason}", "ImagePull"))
            for reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName")
        ),
        *(
            ({"app": [a_status(restarts=0, state=waits(reason), last={})]}, Refuse(f"app waits: {reason}", "Config"))
            for reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")
        ),
    ],
)
async def test_hands_on_what_a_new_pod_would_inherit(about: dict[str, Any], refused: Refuse) -> None:
    assert await decision(**about) == refused


async def test_hands_on_when_one_of_two_loops_would_be_inherited() -> None:
    both = [a_status("app", restarts=9), a_status("cache", restarts=4, state=ended(137, "OOMKilled"))]
    assert await decision(app=both) == Refuse("cache restarted 4 times, last with exit code 137", "OOMKilled")


async def test_a_kill_without_a_reason_is_no_lack_of_memory() -> None:
    assert isinstance(await decision(app=[a_status(state=ended(137))]), EvictPod)


async def test_gives_an_image_two_minutes_to_appear() -> None:
    pulls: dict[str, Any] = {"app": [a_status(restarts=0, state=waits("ImagePullBackOff"), last={})]}
    assert await decision(age=2 * MINUTE - timedelta(seconds=1), **pulls) == Skip("no container loops")
    assert await decision(age=2 * MINUTE, **pulls) == Refuse("app waits: ImagePullBackOff", "ImagePull")


async def test_an_old_pod_that_has_just_lost_its_image_gets_the_two_minutes_too() -> None:
    pod = a_pod(age=OLD, app=[a_status(restarts=1, state=waits("ImagePullBackOff"))])
    pod["status"]["conditions"][0]["lastTransitionTime"] = stamp(NOW - MINUTE)
    assert await decision_on(pod) == Skip("no container loops")


@pytest.mark.parametrize(
    ("about", "because"),
    [
        ({"terminating": True}, "the pod is terminating"),
        ({"phase": "Succeeded"}, "the pod has succeeded"),
        ({"phase": "Failed"}, "the pod has failed"),
        (
            {"annotations": {"kubernetes.io/config.mirror": "x"}},
            "it is a static pod: its kubelet would restart the same",
        ),
        (
            {"owner": Ref("v1", "Node", "", "node-1", "uid-node-1")},
            "it is a static pod: its kubelet would restart the same",
        ),
    ],
)
async def test_never_touches_what_ends_or_is_static(about: dict[str, Any], because: str) -> None:
    assert await decision(**about) == Skip(because)


@pytest.mark.parametrize(
    "about",
    [
        {"app": [a_status(state=ended(0, "Completed"))], "restart_policy": "OnFailure"},
        {"app": [a_status(state=ended(1))], "restart_policy": "Never"},
        {"init": [a_status("prepare", state=ended(0, "Completed"))]},
    ],
    ids=["a finished task", "never restarted", "an init container that succeeded in the end"],
)
async def test_what_is_not_started_again_is_no_loop(about: dict[str, Any]) -> None:
    assert await decision(**about) == Skip("no container loops")


async def test_leaves_a_pod_alone_that_took_over_the_name() -> None:
    gone = await decision(PodSignal("shop", "cart-1", "uid-of-the-one-before"))
    assert gone == Skip("the pod is gone", final=True)


async def test_leaves_a_pod_alone_that_is_gone() -> None:
    assert await decision(PodSignal("shop", "cart-2", "uid-cart-2")) == Skip("the pod is gone", final=True)


async def test_a_name_without_a_pod_may_have_one_again() -> None:
    assert await decision(PodSignal("shop", "cart-2")) == Skip("the pod is gone", final=False)


async def test_needs_no_uid_from_an_alert() -> None:
    assert isinstance(await decision(PodSignal("shop", "cart-1")), EvictPod)


async def test_names_no_workload_for_a_bare_pod() -> None:
    bare = await decision(owner=None)
    assert isinstance(bare, EvictPod)
    assert bare.owner is None


@pytest.mark.parametrize(
    "about",
    [
        {"app": [a_status(restarts=3)]},
        {"app": [a_status(state=RUNNING, restarts=20)]},
        {"terminating": True},
        {"phase": "Failed"},
    ],
)
async def test_an_event_about_nothing_costs_no_call(about: dict[str, Any]) -> None:
    api = an_api()
    signal = PodSignal("shop", "cart-1", CART.uid, seen=the_pod(**about))
    assert isinstance(await decide(signal, api.world(), RestartLoopSettings()), Skip)
    assert api.calls == []


async def test_never_acts_on_what_an_event_shows_but_on_what_the_cluster_shows() -> None:
    signal = PodSignal("shop", "cart-1", CART.uid, seen=the_pod(app=[a_status(restarts=9)]))
    assert await decision(signal, app=[a_status(restarts=9, state=RUNNING)]) == Skip("no container loops")


async def test_counts_for_itself_while_the_pod_is_younger_than_the_window() -> None:
    metrics = CannedMetrics(0.0)
    assert isinstance(await decision(metrics=metrics, age=60 * MINUTE), EvictPod)
    assert metrics.queries == []


async def test_asks_prometheus_what_an_older_pod_did_in_the_window() -> None:
    metrics = CannedMetrics(4.2)
    loops = await decision(metrics=metrics, age=OLD, app=[a_status(restarts=90)])
    assert loops.because == "app restarted 90 times, last with exit code 1: 4 restarts in 1h"
    labels = 'namespace="shop",pod="cart-1",uid="uid-cart-1",container="app"'
    assert metrics.queries == [f"max(increase(kube_pod_container_status_restarts_total{{{labels}}}[3600s]))"]


async def test_asks_prometheus_for_init_containers_by_their_own_metric() -> None:
    for kind in ("init", "sidecars"):
        metrics = CannedMetrics(9.0)
        pod: dict[str, Any] = {kind: [a_status("prepare")]}
        assert isinstance(await decision(metrics=metrics, age=OLD, **pod), EvictPod)
        assert metrics.queries[0].startswith("max(increase(kube_pod_init_container_status_restarts_total{")


async def test_old_restarts_do_not_count() -> None:
    assert await decision(metrics=CannedMetrics(3.0), age=OLD, app=[a_status(restarts=90)]) == Skip(
        "app restarted 3 times in 1h"
    )


async def test_refuses_when_prometheus_is_down() -> None:
    because = "how often app restarted in 1h is unknown: Prometheus did not answer"
    assert await decision(metrics=CannedMetrics(), age=OLD) == Refuse(because, "RestartsUnknown", again=SOON)


async def test_refuses_when_prometheus_knows_no_such_container() -> None:
    nothing = CannedMetrics(None)
    assert await decision(metrics=nothing, age=OLD) == Refuse(
        "Prometheus has no restarts of app (kube_pod_container_status_restarts_total)", "RestartsUnknown", again=SOON
    )
    because = "Prometheus has no restarts of prepare (kube_pod_init_container_status_restarts_total)"
    init = [a_status("prepare")]
    assert await decision(metrics=nothing, age=OLD, init=init) == Refuse(because, "RestartsUnknown", again=SOON)


async def test_finds_the_pods_that_loop_and_no_others() -> None:
    def named(name: str, **about: Any) -> JSON:
        return a_pod(Ref("v1", "Pod", "shop", name, f"uid-{name}"), **about)

    api = an_api(
        named("loops"),
        named("runs", app=[a_status(state=RUNNING, restarts=20)]),
        named("goes", terminating=True),
        named("starves", app=[a_status(state=ended(137, "OOMKilled"))]),
    )
    found = [signal async for signal in find(api.world(), RestartLoopSettings())]
    assert found == [
        PodSignal("shop", "loops", "uid-loops", "app restarted 4 times, last with exit code 1"),
        PodSignal("shop", "starves", "uid-starves", "app restarted 4 times, last with exit code 137"),
    ]
    assert api.calls == ["GET /apis/kreflex.dev/v1alpha1/anomalies", "GET /api/v1/pods"]


def a_treatment(owner: Ref | None = CART_DEPLOYMENT, ago: timedelta = 12 * MINUTE) -> Treatment:
    """The eviction of a looping pod, twelve minutes ago unless told otherwise."""
    whole = {**Target.of(owner).model_dump(), "controller": CART_SET.uid, "template_hash": "7d4"} if owner else None
    return Treatment(CART, Owner(**whole) if whole else None, NOW - ago, PROOF)


def a_successor(name: str = "cart-2", age: timedelta = 12 * MINUTE, **about: Any) -> JSON:
    """A new pod of the same ReplicaSet that runs, unless told otherwise."""
    runs = {"app": [a_status(state=RUNNING, restarts=0, last={})]}
    return a_pod(Ref("v1", "Pod", "shop", name, f"uid-{name}"), age=age, **{**runs, **about})


async def verdict(*bodies: JSON, treatment: Treatment | None = None) -> Verdict | Defer:
    return await recovered(treatment or a_treatment(), an_api(*bodies).world(), RestartLoopSettings())


# What is said once the proof is over.
NOBODY = Defer("no successor has appeared yet", until=NOW + PROOF)


async def test_recovers_when_a_successor_has_been_ready_for_the_proof() -> None:
    assert await verdict(a_successor(ready_for=PROVEN)) == Recovered("a successor has been Ready for 10m")


async def test_waits_for_the_whole_proof() -> None:
    # Which may have begun at the end of the second that stands in the condition.
    assert await verdict(a_successor(ready_for=PROOF)) == Defer(
        "a successor has been Ready for 9m59s", until=NOW + timedelta(seconds=1)
    )


async def test_waits_for_a_successor_that_is_not_ready() -> None:
    assert await verdict(a_successor()) == Defer("cart-2 is not Ready yet", until=NOW + PROOF)


async def test_is_ineffective_when_a_successor_loops_too() -> None:
    loops = a_successor("cart-3", app=[a_status(restarts=4)])
    assert await verdict(a_successor(ready_for=PROOF), loops) == Ineffective(
        "its successor cart-3 loops too: app restarted 4 times, last with exit code 1"
    )


async def test_is_ineffective_when_a_successor_can_not_start() -> None:
    pulls = a_successor(app=[a_status(restarts=0, state=waits("ImagePullBackOff"), last={})])
    assert await verdict(pulls) == Ineffective("its successor cart-2 loops too: app waits: ImagePullBackOff")


async def test_recovers_when_a_successor_ran_to_its_end() -> None:
    finished = [a_status(restarts=0, state=ended(0, "Completed"))]
    ran = a_successor(phase="Succeeded", restart_policy="OnFailure", app=finished)
    assert await verdict(ran) == Recovered("a successor ran to its end")
    assert await verdict(ran, a_successor("cart-3")) == Recovered("a successor ran to its end")


@pytest.mark.parametrize(
    "about",
    [
        {"app": [a_status(restarts=1)]},
        {"app": [a_status(restarts=1, state=RUNNING)]},
        {"app": [a_status(restarts=4, state=RUNNING)], "ready_for": PROOF},
        {"app": [a_status(restarts=0, state=RUNNING, last={}), a_status("mesh", restarts=3)]},
    ],
    ids=["is down", "runs and is not Ready yet", "has restarted as often as a loop", "is down in its second container"],
)
async def test_a_successor_that_restarts_is_no_proof_even_beside_a_healthy_one(about: dict[str, Any]) -> None:
    waits_for = Defer("its successor cart-3 has restarted, too", until=NOW + PROOF)
    shaky = a_successor("cart-3", **about)
    assert await verdict(shaky) == waits_for
    assert await verdict(a_successor(ready_for=PROOF), shaky) == waits_for


async def test_a_successor_that_restarted_a_little_and_is_ready_for_the_proof_has_recovered() -> None:
    settled = a_successor(app=[a_status(restarts=3, state=RUNNING)], ready_for=PROVEN)
    assert await verdict(settled) == Recovered("a successor has been Ready for 10m")


async def test_a_pod_from_before_the_eviction_proves_nothing() -> None:
    elder = a_successor(age=13 * MINUTE, ready_for=PROOF)
    assert await verdict(elder) == NOBODY


async def test_a_list_that_is_older_than_the_eviction_proves_nothing() -> None:
    older = Defer("the list of its pods is older than the eviction", until=NOW + PROOF)
    evicted, leaves = a_pod(ready_for=PROVEN), a_pod(ready_for=PROVEN, terminating=True)
    assert await verdict(evicted, a_workload(ready=3)) == older
    assert await verdict(evicted, a_successor(ready_for=PROVEN)) == older
    assert await verdict(leaves, a_successor(ready_for=PROVEN)) == Recovered("a successor has been Ready for 10m")


async def test_a_pod_of_another_owner_or_template_proves_nothing() -> None:
    other = a_successor(owner=Ref("apps/v1", "ReplicaSet", "shop", "cart-8e5", "uid-cart-8e5"), ready_for=PROOF)
    assert await verdict(other) == NOBODY


async def test_a_successor_that_is_terminating_proves_nothing() -> None:
    assert await verdict(a_successor(terminating=True, ready_for=PROOF)) == NOBODY


async def test_the_pod_of_a_stateful_set_is_followed_by_one_of_the_same_name() -> None:
    successor = a_pod(
        Ref("v1", "Pod", "shop", CART.name, "uid-of-the-next"),
        app=[a_status(state=RUNNING, restarts=0, last={})],
        ready_for=PROVEN,
    )
    assert await verdict(successor) == Recovered("a successor has been Ready for 10m")


async def without_successor(*bodies: JSON, ago: timedelta = 12 * MINUTE, owner: Ref = CART_DEPLOYMENT) -> Any:
    return await recovered(a_treatment(owner, ago), CannedApi(objects(*bodies)).world(), RestartLoopSettings())


async def test_replicas_that_are_all_ready_are_no_proof_without_a_successor() -> None:
    because = "no pod of this template came after it: its owner is smaller now, or at another release"
    assert await without_successor(a_workload(ready=3)) == Unknown(because)
    assert await without_successor(a_workload(ready=3), ago=PROOF) == Unknown(because)


async def test_a_successor_may_still_come() -> None:
    for owner in (a_workload(ready=3), a_workload(ready=2)):
        assert await without_successor(owner, ago=4 * MINUTE) == Defer(NOBODY.because, until=NOW + 6 * MINUTE)
    assert await without_successor(a_workload(ready=2)) == NOBODY
    assert await without_successor(a_workload(ready=4)) == NOBODY


async def test_an_owner_of_an_unknown_kind_is_waited_for_like_any_other() -> None:
    machine = Ref("x/v1", "Machine", "shop", "cart", "uid-cart")
    assert await without_successor(ago=4 * MINUTE, owner=machine) == Defer(NOBODY.because, until=NOW + 6 * MINUTE)
    assert await without_successor(owner=machine) == NOBODY
    healthy = a_successor(ready_for=PROVEN)
    assert await without_successor(healthy, owner=machine) == Recovered("a successor has been Ready for 10m")


async def test_nobody_can_tell_when_the_owner_is_gone_or_nothing() -> None:
    another = a_workload(Ref("apps/v1", "Deployment", "shop", "cart", "uid-of-another"))
    assert await without_successor() == Unknown("its owner is gone")
    assert await without_successor(another) == Unknown("its owner is gone")
    assert await without_successor(a_workload(replicas=0, ready=0)) == Unknown("its owner was scaled to zero")


async def test_nobody_can_tell_what_became_of_a_bare_pod() -> None:
    because = "nothing owned the pod, so nothing could bring it back"
    assert await verdict(treatment=a_treatment(owner=None)) == Unknown(because)


def test_the_pod_of_these_tests_is_what_the_views_see() -> None:
    assert pod_view(a_pod()).ref == CART
