"""What canary-aborter decides, finds and judges, by values."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from functions.canary_aborter.main import CanaryAborterSettings, decide, find, recovered
from kreflex import (
    CUT_OFF,
    MARK,
    SYNC_SUSPENDED,
    AbortRollout,
    Course,
    Defer,
    ForgetSuspendedShares,
    Ineffective,
    NoteSuspendedShare,
    PauseRollout,
    PodSignal,
    ProposeEdit,
    PushEdit,
    Recovered,
    Ref,
    Refuse,
    RequestSync,
    ResumeAborted,
    ScaleCanary,
    Skip,
    SuspendSync,
    Taken,
    TakeTraffic,
    Treatment,
    WorkloadSignal,
    World,
)
from kreflex.gitactions import PROPOSED
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
    "the canary fails 20.0% of 200 requests, what is stable 0.2% of 1800:"
    " 11.3% more at least, with a confidence of 99.99%"
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


def taken(action: str, ago: timedelta = timedelta(), count: int = 1, note: str = "") -> Taken:
    return Taken(action=action, first=NOW - ago, last=NOW - ago, count=count, note=note)


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


async def test_what_people_retry_is_judged_anew_and_not_aborted_for_ever() -> None:
    asked = course(taken("AbortRollout", SECOND))
    assert isinstance(await of_rollout(a_rollout(), **asked), AbortRollout)
    left = await of_rollout(a_rollout(), too_few(), **asked)
    assert isinstance(left, Skip)
    assert left.because.startswith("somebody retries ")
    given_up = await of_rollout(a_rollout(), **course(taken("AbortRollout", SECOND, count=3)))
    assert isinstance(given_up, Refuse)
    assert (given_up.cause, "somebody retries it" in given_up.because) == ("NotAborted", True)


async def test_an_abort_that_was_cut_off_before_it_arrived_is_sent_whatever_can_be_told_by_now() -> None:
    cut = course(taken("AbortRollout", MINUTE, note=CUT_OFF))
    assert isinstance(await of_rollout(a_rollout(), too_few(), **cut), AbortRollout)


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
    assert theirs.cause == "WorkloadPaused"


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


# What Git owns

BASE = "/apis/kustomize.toolkit.fluxcd.io/v1/namespaces/flux/kustomizations/shop"
SOURCE = "/apis/source.toolkit.fluxcd.io/v1/namespaces/flux/gitrepositories/shop"
FLUX = {"kustomize.toolkit.fluxcd.io/name": "shop", "kustomize.toolkit.fluxcd.io/namespace": "flux"}
APPLIED = "a" * 40


def by_flux(*, suspended: bool = False) -> dict[str, JSON]:
    """A Kustomization, and the repository that it applies."""
    spec = {"path": "./shop", "sourceRef": {"kind": "GitRepository", "name": "shop"}, "suspend": suspended}
    ids = ["shop_cart-canary_apps_Deployment", "shop_cart-canary_networking.k8s.io_Ingress"]
    status = {
        "lastAppliedRevision": f"main@sha1:{APPLIED}",
        "lastAttemptedRevision": f"main@sha1:{APPLIED}",
        "inventory": {"entries": [{"id": one, "v": "v1"} for one in ids]},
    }
    url = {"url": "https://git.example/team/shop", "ref": {"branch": "main"}}
    meta = {"namespace": "flux", "name": "shop", "uid": "uid-flux", "resourceVersion": "7"}
    return {BASE: {"metadata": meta, "spec": spec, "status": status}, SOURCE: {"metadata": meta, "spec": url}}


async def of_git(
    mode: str, weight: int = 10, replicas: int = 1, noted: str = "", suspended: bool = False, **about: Any
) -> Any:
    """What is decided about a canary whose Ingress and Deployment Flux writes."""
    policy = a_policy_body()
    policy["spec"]["releases"]["git"] = {"mode": mode, "repositories": ["https://git.example/team"]}
    service = {"metadata": {"name": "cart-canary"}, "spec": {"selector": {"track": "canary"}}}
    made = a_deployment("cart-canary", "canary", replicas) | an_ingress(weight)
    for body in made.values():
        meta = body["metadata"]
        meta["labels"] = {**meta.get("labels", {}), **FLUX}
        meta["annotations"] = {**meta.get("annotations", {}), **({SYNC_SUSPENDED: noted} if noted else {})}
    here = world(
        made,
        a_deployment("cart", "stable", 3),
        {"/api/v1/namespaces/shop/services/cart-canary": service, f"{POLICIES}/canaries": policy},
        pods(NEW, replicas, "pod-template-hash", labels={"track": "canary"}),
        pods(OLD, 3, "pod-template-hash", labels={"track": "stable"}),
        by_flux(suspended=suspended),
    )
    return await decide(signal(kind="Deployment", **about), here, SETTINGS)


async def test_what_git_owns_is_refused_pushed_or_proposed_as_the_policy_says() -> None:
    told = await of_git("Refuse")
    assert isinstance(told, Refuse)
    owns = "Kustomization flux/shop owns Ingress shop/cart-canary, Deployment shop/cart-canary in Git"
    assert (told.cause, told.because) == ("Git", f"{STORY}. {owns}: take the traffic away there")
    for mode, kind in (("Commit", PushEdit), ("PullRequest", ProposeEdit)):
        step = await of_git(mode)
        assert type(step) is kind
        assert [(str(one), one.now, one.by.applied) for one in step.numbers] == [
            (f"Ingress shop/cart-canary: metadata.annotations.{NGINX_WEIGHT}", 10, APPLIED)
        ]


async def test_a_commit_is_followed_under_one_plan_until_the_weight_is_zero_and_the_replicas_stay() -> None:
    pushed = await of_git("Commit")
    asks = await of_git("Commit", **course(taken("PushEdit")))
    assert isinstance(asks, RequestSync)
    assert asks.plan_hash() == pushed.plan_hash()
    steps = course(taken("PushEdit", MINUTE), taken("RequestSync", MINUTE))
    assert isinstance(await of_git("Commit", **steps), Defer)
    told = await of_git("Commit", weight=0, **steps)
    assert isinstance(told, Skip)
    assert "gets no traffic, and keeps its replicas" in told.because
    late = await of_git("Commit", **course(taken("PushEdit", HOUR), taken("RequestSync", HOUR)))
    assert isinstance(late, Refuse)
    assert late.cause == "GitLate"


async def test_a_proposal_waits_for_people_and_says_that_the_traffic_is_not_off_yet() -> None:
    proposed = taken("ProposeEdit").model_copy(update={"note": f"{PROPOSED}https://git.example/team/shop/pulls/1"})
    told = await of_git("PullRequest", **course(proposed))
    assert isinstance(told, Defer)
    waits = "https://git.example/team/shop/pulls/1 waits for people: until it is merged"
    assert told.because == f"{waits}, Ingress shop/cart-canary has {NGINX_WEIGHT} 10"


async def test_a_sync_is_suspended_after_each_object_says_so_and_before_any_is_written() -> None:
    first = await of_git("Suspend")
    assert isinstance(first, NoteSuspendedShare)
    assert (first.step_name, len(first.lives)) == ("NoteSuspendedShare", 2)
    second = await of_git("Suspend", noted=RECORD, **course(taken("NoteSuspendedShare")))
    assert isinstance(second, SuspendSync)
    noted: dict[str, Any] = {"noted": RECORD, "suspended": True}
    early, late = (course(taken("SuspendSync", ago)) for ago in (9 * SECOND, 10 * SECOND))
    assert isinstance(await of_git("Suspend", **noted, **early), Defer)
    third = await of_git("Suspend", **noted, **late)
    assert isinstance(third, TakeTraffic)
    assert {first.plan_hash(), second.plan_hash(), third.plan_hash()} == {first.plan_hash()}
    again = await of_git("Suspend", noted=RECORD, **course(taken("SuspendSync", count=3)))
    assert isinstance(again, Refuse)
    assert again.cause == "Rewritten"


async def test_who_has_opted_out_by_the_share_is_not_even_prepared_for() -> None:
    step = await of_git("Suspend")
    assert [name for name, _ in step.annotations()] == ["Deployment shop/cart-canary", "Ingress shop/cart-canary"]


async def test_a_suspended_sync_is_told_until_it_is_resumed_and_then_the_notes_go() -> None:
    off: dict[str, Any] = {"weight": 0, "replicas": 0, "noted": RECORD}
    told = await of_git("Suspend", **off, suspended=True)
    assert isinstance(told, Refuse)
    assert (told.cause, told.episode) == ("SyncSuspended", f"suspended/{RECORD}")
    assert told.because.endswith("and then: flux resume kustomization shop -n flux")
    for episode in ("", f"suspended/{RECORD}"):
        forget = await of_git("Suspend", **off, episode=episode)
        assert isinstance(forget, ForgetSuspendedShares)
        assert (forget.episode, [one.ref.kind for one in forget.lives]) == (f"suspended/{RECORD}", ["Ingress"])
    over = await of_git("Suspend", weight=0, replicas=0, episode=f"suspended/{RECORD}")
    assert isinstance(over, Skip)


async def test_what_rollback_has_suspended_is_for_rollback_to_tell() -> None:
    told = await of_git("Suspend", weight=0, replicas=0, noted="rollback-cart-1a2b3c4d", suspended=True)
    assert told == Skip("the canary of Deployment shop/cart-canary has no replicas")


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
