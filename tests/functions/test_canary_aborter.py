"""What canary-aborter decides, finds and judges, by values."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from functions.canary_aborter.main import CanaryAborterSettings, decide, find, recovered
from kreflex import (
    MARK,
    AbortRollout,
    Course,
    Defer,
    Ineffective,
    PauseRollout,
    PodSignal,
    Recovered,
    Ref,
    Refuse,
    ResumeAborted,
    ScaleCanary,
    Skip,
    Taken,
    TakeTraffic,
    Treatment,
    WorkloadSignal,
    World,
)
from kreflex.prom import Metrics
from kreflex.views import JSON, pod_view
from kreflex.weights import NGINX, NGINX_WEIGHT
from tests.values import HOUR, MINUTE, NOW, CannedApi, CannedMetrics, a_pod, stamp

NEW, OLD, RECORD = "7d4", "5f6", "canary-aborter-cart-1"
ROLLOUTS, HASH = "/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts", "rollouts-pod-template-hash"
DEPLOYMENTS, INGRESSES = (
    "/apis/apps/v1/namespaces/shop/deployments",
    "/apis/networking.k8s.io/v1/namespaces/shop/ingresses",
)
POLICIES = "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies"
SETTINGS = CanaryAborterSettings()
SECOND = timedelta(seconds=1)
STORY = (
    "the canary fails 20.0% of 200 requests, what is stable 0.2% of 1800: 14.0% more at least, with a confidence of 99%"
)


def worse() -> Metrics:
    return CannedMetrics(200, 40, 1800, 4)


def too_few() -> Metrics:
    return CannedMetrics(9, 9, 90, 0)


def a_policy_body() -> JSON:
    canary = {"requests": "requests", "errors": "errors"}
    spec = {"mode": "Auto", "functions": ["canary-aborter"], "releases": {"canary": canary}}
    return {"metadata": {"name": "canaries", "uid": "uid-canaries", "generation": 1}, "spec": spec}


def pods(template: str, count: int, label: str = HASH, **more: Any) -> dict[str, JSON]:
    """Ready pods of a template."""
    refs = [Ref("v1", "Pod", "shop", f"cart-{template}-{n}", f"uid-{template}-{n}") for n in range(count)]
    labels = {"app": "cart", label: template, **more.pop("labels", {})}
    about = {"ready_for": HOUR, "labels": labels, **more}
    return {f"/api/v1/namespaces/shop/pods/{ref.name}": a_pod(ref, **about) for ref in refs}


def a_rollout(
    *, annotations: JSON | None = None, paused: bool = False, blue_green: bool = False, **status: Any
) -> JSON:
    """A Rollout that tries NEW beside OLD at a tenth, and goes on by itself after a while."""
    steps = [{"setWeight": 10}, {"pause": {"duration": "10m"}}]
    strategy = {"blueGreen": {}} if blue_green else {"canary": {"steps": steps}}
    spec = {"replicas": 10, "selector": {"matchLabels": {"app": "cart"}}, "strategy": strategy}
    whole = {
        "currentPodHash": NEW,
        "stableRS": OLD,
        "observedGeneration": "3",
        "updatedReplicas": 1,
        "currentStepIndex": 1,
        **status,
    }
    return {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "metadata": {
            "namespace": "shop",
            "name": "cart",
            "uid": "uid-cart",
            "resourceVersion": "7",
            "generation": 3,
            "annotations": annotations or {},
        },
        "spec": {**spec, **({"paused": True} if paused else {})},
        "status": whole,
    }


def signal(summary: str = "", course: Course | None = None, episode: str = "", kind: str = "Rollout") -> WorkloadSignal:
    version = "argoproj.io/v1alpha1" if kind == "Rollout" else "apps/v1"
    source = "record" if course is not None or episode else "test"
    name = "cart" if kind == "Rollout" else "cart-canary"
    return WorkloadSignal(version, kind, "shop", name, summary=summary, source=source, episode=episode, course=course)


def world(*bodies: dict[str, JSON], metrics: Metrics | None = None) -> World:
    objects = {f"{POLICIES}/canaries": a_policy_body()}
    for body in bodies:
        objects |= body
    return replace(CannedApi(objects).world(metrics or worse()), function="canary-aborter")


async def of_rollout(body: JSON, metrics: Metrics | None = None, **about: Any) -> Any:
    """What is decided about a Rollout of nine stable pods and one new one."""
    here = world({f"{ROLLOUTS}/cart": body}, pods(NEW, 1), pods(OLD, 9), metrics=metrics)
    return await decide(signal(**about), here, SETTINGS)


def taken(action: str, ago: timedelta = timedelta(), count: int = 1) -> Taken:
    return Taken(action=action, first=NOW - ago, last=NOW - ago, count=count)


def course(*steps: Taken) -> dict[str, Any]:
    return {"course": Course(RECORD, NOW - MINUTE, steps), "episode": NEW}


# What it leaves alone


@pytest.mark.parametrize(
    "seen",
    [
        replace(signal(), seen=a_rollout(stableRS=NEW)),
        replace(signal(), seen=a_rollout(abort=True)),
        replace(signal(kind="Deployment"), seen={"metadata": {}, "spec": {}}),
        PodSignal("shop", "cart-1", seen=pod_view(a_pod(labels={HASH: NEW}, ready_for=MINUTE))),
        PodSignal("shop", "cart-1", seen=pod_view(a_pod())),
    ],
)
async def test_an_event_about_what_is_no_ill_canary_costs_no_call(seen: Any) -> None:
    api = CannedApi()
    assert isinstance(await decide(seen, api.world(), SETTINGS), Skip)
    assert api.calls == []


async def test_what_is_gone_is_gone_for_good() -> None:
    gone = await decide(replace(signal(), uid="uid-x"), world(), SETTINGS)
    assert gone == Skip("Rollout shop/cart is gone", final=True)


@pytest.mark.parametrize("status", [{"stableRS": NEW}, {"observedGeneration": "2"}, {"stableRS": ""}, {"abort": True}])
async def test_a_rollout_that_tries_nothing_or_is_aborted_is_left_alone(status: JSON) -> None:
    assert isinstance(await of_rollout(a_rollout(**status)), Skip)


async def test_a_stable_pod_that_fails_says_nothing_against_the_canary() -> None:
    owner = Ref("argoproj.io/v1alpha1", "Rollout", "shop", "cart", "uid-cart")
    here = world({f"{ROLLOUTS}/cart": a_rollout()}, pods(OLD, 1, owner=owner), pods(NEW, 1, owner=owner))
    told = [await decide(PodSignal("shop", f"cart-{one}-0", summary="x"), here, SETTINGS) for one in (OLD, NEW)]
    assert [type(one) for one in told] == [Skip, AbortRollout]


async def test_a_new_canary_without_requests_is_let_be_while_nobody_complains() -> None:
    assert isinstance(await of_rollout(a_rollout(), too_few()), Skip)


# Rollouts


async def test_a_rollout_whose_canary_is_worse_is_aborted_whoever_woke_us() -> None:
    for summary in ("", "ErrorRate: too many fail"):
        action = await of_rollout(a_rollout(), summary=summary)
        assert isinstance(action, AbortRollout)
        assert (action.because, action.episode, action.version) == (STORY, NEW, "7")
        assert action.target == Ref("argoproj.io/v1alpha1", "Rollout", "shop", "cart", "uid-cart")


async def test_a_complaint_that_nobody_can_judge_pauses_once_under_the_plan_of_the_abort() -> None:
    pause = await of_rollout(a_rollout(), too_few(), summary="ErrorRate")
    assert isinstance(pause, PauseRollout)
    assert pause.episode == f"{NEW}/inconclusive"
    assert pause.plan_hash() == (await of_rollout(a_rollout())).plan_hash()


@pytest.mark.parametrize(
    "body",
    [
        a_rollout(paused=True),
        a_rollout(blue_green=True, pauseConditions=[{"reason": "BlueGreenPause"}]),
        a_rollout(annotations={"argocd.argoproj.io/tracking-id": "cart:argoproj.io/Rollout:shop/cart"}),
    ],
)
async def test_what_waits_for_a_person_anyway_or_is_gits_is_not_paused(body: JSON) -> None:
    told = await of_rollout(body, too_few(), summary="ErrorRate")
    assert isinstance(told, Refuse)
    assert (told.cause, told.episode) == ("Inconclusive", f"{NEW}/inconclusive")


async def test_an_abort_is_waited_for_until_no_traffic_is_left() -> None:
    asked = course(taken("AbortRollout", SECOND))
    at_once = a_rollout(abort=True, abortedAt=stamp(NOW))
    assert isinstance(await of_rollout(at_once, **asked), Defer)
    off = a_rollout(abort=True, abortedAt=stamp(NOW), updatedReplicas=0)
    assert isinstance(await of_rollout(off, **asked), Skip)
    weighed: dict[str, Any] = {"canary": {"weights": {"canary": {"weight": 0}}}}
    assert isinstance(await of_rollout(a_rollout(abort=True, abortedAt=stamp(NOW), **weighed), **asked), Skip)
    weighed = {"canary": {"weights": {"canary": {"weight": 10}}}}
    assert isinstance(await of_rollout(a_rollout(abort=True, abortedAt=stamp(NOW), **weighed), **asked), Defer)


async def test_an_abort_that_the_controller_has_not_noticed_is_repeated_soon_and_not_for_ever() -> None:
    unseen = a_rollout(abort=True, updatedReplicas=0)
    assert isinstance(await of_rollout(unseen, **course(taken("AbortRollout", SECOND))), Defer)
    assert isinstance(await of_rollout(unseen, **course(taken("AbortRollout", 2 * SECOND))), AbortRollout)
    given_up = await of_rollout(unseen, **course(taken("AbortRollout", 2 * SECOND, count=3)))
    assert isinstance(given_up, Refuse)
    assert given_up.cause == "NotAborted"


async def test_an_abort_that_is_slow_is_repeated_after_its_time() -> None:
    slow = a_rollout(abort=True, abortedAt=stamp(NOW))
    assert isinstance(await of_rollout(slow, **course(taken("AbortRollout", 59 * SECOND))), Defer)
    assert isinstance(await of_rollout(slow, **course(taken("AbortRollout", MINUTE))), AbortRollout)


async def test_our_own_pause_is_taken_back_from_an_aborted_rollout_and_a_persons_is_not() -> None:
    steps = course(taken("PauseRollout", MINUTE), taken("AbortRollout", SECOND))
    ours = a_rollout(abort=True, abortedAt=stamp(NOW), paused=True, annotations={MARK: RECORD})
    assert isinstance(await of_rollout(ours, **steps), ResumeAborted)
    theirs = await of_rollout(a_rollout(abort=True, abortedAt=stamp(NOW), paused=True), **steps)
    assert isinstance(theirs, Refuse)
    assert theirs.cause == "Paused"


async def test_a_paused_canary_is_watched_for_a_while_and_aborted_when_the_numbers_come() -> None:
    body = a_rollout(paused=True, annotations={MARK: RECORD})
    early, late = (course(taken("PauseRollout", ago)) for ago in (MINUTE, 5 * MINUTE))
    assert isinstance(await of_rollout(body, too_few(), **early), Defer)
    assert isinstance(await of_rollout(body, **early), AbortRollout)
    given_up = await of_rollout(body, too_few(), **late)
    assert isinstance(given_up, Refuse)
    assert given_up.cause == "Inconclusive"


async def test_what_was_promoted_meanwhile_is_handed_to_rollback() -> None:
    told = await of_rollout(a_rollout(stableRS=NEW), **course(taken("AbortRollout")))
    assert isinstance(told, Refuse)
    assert told.cause == "Promoted"
    assert isinstance(await of_rollout(a_rollout(stableRS=NEW), **course(taken("PauseRollout"))), Skip)


async def test_another_template_ends_it() -> None:
    assert isinstance(await of_rollout(a_rollout(currentPodHash="other"), **course(taken("AbortRollout"))), Skip)
    assert isinstance(await of_rollout(a_rollout(currentPodHash=OLD), **course(taken("AbortRollout"))), Skip)


# Deployments


def a_deployment(name: str, track: str, replicas: int = 1) -> dict[str, JSON]:
    labels = {"app": "cart", "track": track}
    body = {
        "metadata": {"namespace": "shop", "name": name, "uid": f"uid-{name}", "resourceVersion": "7", "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels}},
        },
        "status": {"readyReplicas": replicas},
    }
    return {f"{DEPLOYMENTS}/{name}": body}


def an_ingress(weight: int) -> dict[str, JSON]:
    backend = {"service": {"name": "cart-canary"}}
    body = {
        "metadata": {
            "namespace": "shop",
            "name": "cart-canary",
            "uid": "uid-ingress",
            "resourceVersion": "7",
            "annotations": {NGINX: "true", NGINX_WEIGHT: str(weight)},
        },
        "spec": {"rules": [{"http": {"paths": [{"path": "/", "backend": backend}]}}]},
    }
    return {f"{INGRESSES}/cart-canary": body}


async def of_deployment(
    weight: int = 10, replicas: int = 1, stable: int = 3, metrics: Metrics | None = None, **about: Any
) -> Any:
    """What is decided about a canary beside three stable pods, with a share at nginx."""
    service = {"metadata": {"name": "cart-canary"}, "spec": {"selector": {"track": "canary"}}}
    tried = pods(NEW, replicas, "pod-template-hash", labels={"track": "canary"})
    steady = pods(OLD, stable, "pod-template-hash", labels={"track": "stable"})
    made = a_deployment("cart-canary", "canary", replicas) | a_deployment("cart", "stable", 3)
    services = {"/api/v1/namespaces/shop/services/cart-canary": service}
    here = world(made, services, an_ingress(weight), tried, steady, metrics=metrics)
    return await decide(signal(kind="Deployment", **about), here, SETTINGS)


async def test_of_a_deployment_the_traffic_goes_first_and_the_replicas_after_under_one_plan() -> None:
    first = await of_deployment()
    assert isinstance(first, TakeTraffic)
    assert (first.because, first.episode, first.step_name) == (STORY, NEW, "TakeTraffic Ingress/cart-canary")
    early, late = (course(taken(first.step_name, ago)) for ago in (9 * SECOND, 10 * SECOND))
    assert isinstance(await of_deployment(weight=0, **early), Defer)
    second = await of_deployment(weight=0, **late)
    assert isinstance(second, ScaleCanary)
    assert (second.replicas, second.plan_hash()) == (1, first.plan_hash())
    assert isinstance(await of_deployment(weight=0, replicas=0, **late), Skip)


async def test_traffic_that_somebody_gives_back_is_taken_three_times() -> None:
    name = "TakeTraffic Ingress/cart-canary"
    assert isinstance(await of_deployment(**course(taken(name, count=2))), TakeTraffic)
    told = await of_deployment(**course(taken(name, count=3)))
    assert isinstance(told, Refuse)
    assert told.cause == "Rewritten"


@pytest.mark.parametrize(
    ("about", "cause"),
    [
        ({"stable": 0}, "StableIll"),
        ({"weight": 100}, "Promoted"),
        ({"metrics": too_few(), "summary": "ErrorRate"}, "Inconclusive"),
    ],
)
async def test_nothing_of_a_deployment_is_begun_that_could_not_end_well(about: dict[str, Any], cause: str) -> None:
    told = await of_deployment(**about)
    assert isinstance(told, Refuse)
    assert (told.cause, told.about is not None and told.about.ref.name) == (cause, "cart-canary")


async def test_a_deployment_that_nobody_complains_of_is_let_be_while_nobody_can_tell() -> None:
    assert isinstance(await of_deployment(metrics=too_few()), Skip)


# What it finds, and when it is healed


async def test_what_tries_a_new_version_is_found() -> None:
    here = world(
        {f"{ROLLOUTS}/cart": a_rollout(), f"{ROLLOUTS}/done": a_rollout(stableRS=NEW)},
        a_deployment("cart-canary", "canary") | a_deployment("cart", "stable") | a_deployment("off", "canary", 0),
    )
    found = [one async for one in find(here, SETTINGS)]
    assert [(one.kind, one.name, one.uid, one.episode) for one in found] == [
        ("Rollout", "cart", "uid-cart", ""),
        ("Deployment", "cart-canary", "uid-cart-canary", ""),
    ]


async def verdict(body: JSON, ready_for: timedelta = HOUR, ago: timedelta = HOUR, action: str = "AbortRollout") -> Any:
    target = Ref("argoproj.io/v1alpha1", "Rollout", "shop", "cart", "uid-cart")
    treatment = Treatment(target, None, NOW - ago, 10 * MINUTE, NEW, action)
    here = world({f"{ROLLOUTS}/cart": body}, pods(OLD, 3, ready_for=ready_for))
    return await recovered(treatment, here, SETTINGS)


ABORTED = a_rollout(abort=True, abortedAt=stamp(NOW - HOUR), updatedReplicas=0)


async def test_it_is_healed_when_all_traffic_is_at_what_is_stable_and_that_was_ready_for_the_proof() -> None:
    assert isinstance(await verdict(ABORTED), Recovered)
    just = 10 * MINUTE + SECOND
    assert isinstance(await verdict(ABORTED, ready_for=just), Recovered)
    assert isinstance(await verdict(ABORTED, ready_for=just - SECOND), Defer)
    assert isinstance(await verdict(ABORTED, ago=just - SECOND), Defer)


async def test_it_is_not_healed_if_the_version_gets_traffic_again_or_is_promoted() -> None:
    assert isinstance(await verdict(a_rollout()), Ineffective)
    assert isinstance(await verdict(a_rollout(stableRS=NEW)), Ineffective)
