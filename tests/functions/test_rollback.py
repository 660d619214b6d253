"""What rollback decides, finds and judges, by values: objects as an API server has them, without one."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from functions.rollback.main import RollbackSettings, decide, find, recovered
from kreflex import (
    BACK_BY,
    BACK_FROM,
    BACK_TO,
    Course,
    Defer,
    EvictStuck,
    Ineffective,
    PodSignal,
    Recovered,
    Ref,
    Refuse,
    Remember,
    RevertTemplate,
    Skip,
    Taken,
    Treatment,
    Unknown,
    WorkloadSignal,
)
from kreflex.policy import read_policy
from kreflex.releases import Releases
from kreflex.views import JSON, pod_view
from tests.releases import DAY, SHOP, a_template
from tests.values import HOUR, MINUTE, NOW, CannedApi, CannedMetrics, a_node, a_pod, a_status, owned_by, stamp

SIGNAL = WorkloadSignal("apps/v1", "Deployment", "shop", "shop", SHOP.uid)
CHANGED = 10 * MINUTE
SECOND = timedelta(seconds=1)
RECORD = "rollback-shop-0123abcd"
FAILS = "1 of 1 pods of revision 2 (shop:2) fail: shop-2-a: app restarted 4 times, last with exit code 1"
OLD_WELL = "1 pods of revision 1 (shop:1) are well at the same time"
COURSE = "roll back from 2/h2 to 1/h1"


def a_set(number: int, template: JSON | None = None, age: timedelta | None = None) -> JSON:
    """The ReplicaSet of one revision."""
    template = template or a_template(f"shop:{number}")
    labels = {**template["metadata"]["labels"], "pod-template-hash": f"h{number}"}
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "namespace": "shop",
            "name": f"shop-h{number}",
            "uid": f"uid-shop-h{number}",
            "labels": labels,
            "annotations": {"deployment.kubernetes.io/revision": str(number)},
            "creationTimestamp": stamp(NOW - (age or (CHANGED if number > 1 else DAY))),
            "ownerReferences": owned_by(SHOP),
            "resourceVersion": "3",
        },
        "spec": {"template": {**template, "metadata": {**template["metadata"], "labels": labels}}},
    }


def a_deployment(
    number: int = 2,
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    complete: bool = False,
    **spec: Any,
) -> JSON:
    """A Deployment that is to run one revision."""
    told = {"observedGeneration": 5, "replicas": 1, "updatedReplicas": 1, "readyReplicas": 1}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "namespace": "shop",
            "name": "shop",
            "uid": SHOP.uid,
            "resourceVersion": "9",
            "generation": 5,
            "labels": labels or {},
            "annotations": annotations or {},
        },
        "spec": {
            "replicas": 1,
            "selector": {"matchLabels": {"app": "shop"}},
            "template": a_template(f"shop:{number}"),
            **spec,
        },
        "status": {**told, "availableReplicas": 1 if complete else 0},
    }


def the_pod_of(number: int, bad: bool = False, age: timedelta | None = None, **about: Any) -> JSON:
    """A pod of one revision, on node blue-1; in a crash loop if it is bad."""
    name, age = f"shop-{number}-a", age or (CHANGED - MINUTE if number > 1 else DAY)
    well: JSON = {"app": [a_status(restarts=0, state={"running": {"startedAt": stamp(NOW - age)}}, last={})]}
    state = {"app": [a_status(restarts=4)]} if bad else {**well, "ready_for": age}
    body = a_pod(
        Ref("v1", "Pod", "shop", name, f"uid-{name}"),
        owner=Ref("apps/v1", "ReplicaSet", "shop", f"shop-h{number}", f"uid-shop-h{number}"),
        labels={"app": "shop", "pod-template-hash": f"h{number}"},
        age=age,
        **{**state, **about},
    )
    body["spec"]["nodeName"] = "blue-1"
    return body


def a_history(**revisions: JSON) -> JSON:
    """What is remembered: revision 1 was healthy for an hour."""
    good = {"healthyAt": stamp(NOW - DAY), "healthyUntil": stamp(NOW - DAY + HOUR)}
    noted = {"h1": {"hash": "h1", "number": 1, **good}, **revisions}
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "shop", "uid": SHOP.uid}
    return {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "ReleaseHistory",
        "metadata": {"namespace": "shop", "name": "deployment-shop", "resourceVersion": "4"},
        "spec": {"workload": target, "revisions": list(noted.values())},
    }


PATHS = {
    "Deployment": "/apis/apps/v1/namespaces/shop/deployments",
    "ReplicaSet": "/apis/apps/v1/namespaces/shop/replicasets",
    "Pod": "/api/v1/namespaces/shop/pods",
    "ReleaseHistory": "/apis/kreflex.dev/v1alpha1/namespaces/shop/releasehistories",
    "Remediation": "/apis/kreflex.dev/v1alpha1/namespaces/shop/remediations",
    "Application": "/apis/argoproj.io/v1alpha1/namespaces/argocd/applications",
    "ClusterRemediationPolicy": "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies",
}


def a_policy(name: str = "releases", **releases: Any) -> JSON:
    meta = {"name": name, "uid": f"uid-{name}", "resourceVersion": "1"}
    return {"kind": "ClusterRemediationPolicy", "metadata": meta, "spec": {"mode": "Auto", "releases": releases}}


def an_api(*bodies: JSON, deployment: JSON | None = None, sets: tuple[JSON, ...] | None = None) -> CannedApi:
    """A Deployment of two revisions, the nodes and what is remembered, and these objects; the last of a name counts."""
    whole = [deployment or a_deployment(), *(sets or (a_set(2), a_set(1))), a_history(), *bodies]
    found = {f"{PATHS[body['kind']]}/{body['metadata']['name']}": body for body in whole}
    return CannedApi({**found, "/api/v1/nodes/blue-1": a_node("blue-1")})


BAD, OLD = the_pod_of(2, bad=True), the_pod_of(1)


async def decision(*bodies: JSON, signal: Any = SIGNAL, metrics: CannedMetrics | None = None, **about: Any) -> Any:
    return await decide(signal, an_api(*bodies, **about).world(metrics), RollbackSettings())


def refused(because: str, cause: str, **about: Any) -> Refuse:
    """Compared without the workload that it is about."""
    return Refuse(because, cause, episode="h2/2", **about)


def bare(answer: Any) -> Any:
    """A refusal without the workload that it is about, which has to be the Deployment."""
    assert answer.about is not None
    assert answer.about.ref == SHOP
    return replace(answer, about=None)


# -- the way back


async def test_all_that_fails_in_a_namespace_is_judged_by_one_reading_of_it() -> None:
    api = an_api(BAD, OLD)
    world = api.world()
    for _ in range(3):
        assert isinstance(await decide(SIGNAL, world, RollbackSettings()), RevertTemplate)
    # Each reads what is its own, by its selector.
    assert [api.calls.count(f"GET {PATHS[kind]}") for kind in ("Pod", "ReplicaSet")] == [3 + 1, 3 + 1]


async def test_goes_back_to_the_revision_that_was_healthy_and_says_why() -> None:
    answer = await decision(BAD, OLD)
    assert isinstance(answer, RevertTemplate)
    assert (answer.because, answer.to.hash, answer.episode) == (f"{FAILS}; {OLD_WELL}", "h1", "h2/2")
    assert (answer.target, answer.owner and answer.owner.ref, answer.course) == (SHOP, SHOP, COURSE)
    assert answer.to.template == a_template("shop:1")


async def test_a_pod_leads_to_its_deployment() -> None:
    told = PodSignal("shop", "shop-2-a", "uid-shop-2-a")
    assert await decision(BAD, OLD, signal=told) == await decision(BAD, OLD)


async def test_all_steps_are_one_plan() -> None:
    first = await decision(BAD, OLD)
    assert isinstance(first, RevertTemplate)
    assert first.plan() == {"target": "Deployment shop/shop", "uid": SHOP.uid, "course": COURSE}


async def test_what_is_refused_is_told_of_the_deployment() -> None:
    answer = await decision(BAD, the_pod_of(1, bad=True), signal=PodSignal("shop", "shop-2-a"))
    also = "shop-1-a of an earlier revision fails as well: app restarted 4 times, last with exit code 1"
    assert bare(answer) == refused(f"{FAILS}; {also}", "Dependency")


# -- hands off


async def test_a_version_that_was_rolled_back_from_before_is_for_people() -> None:
    history = a_history(h2={"hash": "h2", "number": 2, "bad": RECORD})
    because = f"revision 2 (shop:2) was rolled back from before, by {RECORD}, and is here again: people decide"
    assert bare(await decision(BAD, OLD, history)) == refused(because, "SameVersionAgain")


async def test_a_version_that_its_own_record_has_marked_without_a_rollback_is_not_there_again() -> None:
    """The mark is written first, and the template may have been refused after it."""
    mine = an_api().world().record_of(SHOP, "h2/2")
    history = a_history(h2={"hash": "h2", "number": 2, "bad": mine})
    assert isinstance(await decision(BAD, OLD, history), RevertTemplate)


async def test_what_was_gone_back_to_is_not_rolled_back() -> None:
    notes = {BACK_BY: RECORD, BACK_FROM: "1/h1", BACK_TO: "1/h2"}
    because = f"revision 2 (shop:2) is what {RECORD} has gone back to, and it fails, too: people decide"
    answer = await decision(BAD, OLD, deployment=a_deployment(annotations=notes))
    assert bare(answer) == refused(because, "RollbackOfRollback")


async def test_a_note_of_an_earlier_rollback_does_not_keep_a_later_release() -> None:
    notes = {BACK_BY: RECORD, BACK_FROM: "0/h0", BACK_TO: "1/h1"}
    assert isinstance(await decision(BAD, OLD, deployment=a_deployment(annotations=notes)), RevertTemplate)


async def test_whoever_has_gone_back_himself_is_not_undone() -> None:
    sets = (a_set(2, age=2 * DAY), a_set(1, age=DAY))
    because = "somebody has gone back from revision 1 (shop:1) to revision 2 (shop:2) himself, and it fails"
    answer = await decision(BAD, OLD, sets=sets)
    assert bare(answer) == refused(f"{because}: people decide", "RollbackOfRollback")


async def test_a_version_that_comes_again_with_another_note_is_the_same() -> None:
    noted = {**a_template("shop:2"), "metadata": {"labels": {"app": "shop"}, "annotations": {"build": "71"}}}
    deployment, fails = a_deployment(template=noted), a_history(h0={"hash": "h0", "number": 0, "bad": RECORD})
    sets = (a_set(2, noted), a_set(1), a_set(0, a_template("shop:2"), age=2 * DAY))
    answer = await decision(BAD, OLD, fails, deployment=deployment, sets=sets)
    because = f"revision 2 (shop:2) was rolled back from before, by {RECORD}, and is here again: people decide"
    assert bare(answer) == refused(because, "SameVersionAgain")


async def test_what_an_operator_makes_is_left_to_it() -> None:
    deployment = a_deployment()
    maker = Ref("elasticsearch.k8s.elastic.co/v1", "Elasticsearch", "shop", "es", "uid-es")
    deployment["metadata"]["ownerReferences"] = owned_by(maker)
    because = "Deployment shop/shop is made by Elasticsearch shop/es, which would write it again: change it there"
    assert bare(await decision(BAD, OLD, deployment=deployment)) == refused(because, "Owned")


@pytest.mark.parametrize(
    "changed",
    [
        {"metadata": {"labels": {"app": "shop"}, "annotations": {"checksum/config": "5f7"}}},
        a_template("shop:1", container={"env": [{"name": "STAKATER_SETTINGS_CONFIGMAP", "value": "5f7"}]}),
    ],
    ids=["Helm's checksum", "Reloader's variable"],
)
async def test_a_configuration_that_was_changed_does_not_come_back_with_a_template(changed: JSON) -> None:
    new = {**a_template("shop:1"), **changed}
    answer = await decision(BAD, OLD, deployment=a_deployment(template=new), sets=(a_set(2, new), a_set(1)))
    lost = "only a checksum of its configuration was changed in the template: undo the change of what it is for"
    assert bare(answer) == refused(f"{FAILS.replace('shop:2', 'shop:1')}; {OLD_WELL}. {lost}", "Config")


async def test_a_paused_deployment_is_left_to_whoever_paused_it() -> None:
    because = "Deployment shop/shop is paused: whoever paused it has to go on"
    answer = await decision(BAD, OLD, deployment=a_deployment(paused=True))
    assert bare(answer) == refused(because, "WorkloadPaused")


@pytest.mark.parametrize(
    ("age", "told"), [(DAY, True), (MINUTE, False)], ids=["healthy for a day", "healthy for a minute"]
)
async def test_only_a_revision_that_was_really_healthy_is_gone_back_to(age: timedelta, told: bool) -> None:
    nothing = a_history(h1={"hash": "h1", "number": 1})
    answer = await decision(BAD, the_pod_of(1, age=age), nothing)
    assert isinstance(answer, RevertTemplate) is told
    if not told:
        assert answer.cause == "NoHealthyRevision"


async def test_policies_that_contradict_each_other_refuse() -> None:
    answer = await decision(BAD, OLD, a_policy("one"), a_policy("two"))
    because = "policies one and two say when this release is bad: leave one"
    assert bare(answer) == Refuse(because, "Policy")


async def test_the_policy_says_how_long_a_pod_may_take() -> None:
    slow = the_pod_of(2, app=[{**a_status(restarts=0, state=running(5 * MINUTE), last={}), "ready": False}])
    del slow["status"]["conditions"][0]["lastTransitionTime"]
    slow["status"]["conditions"][0]["status"] = "False"
    assert isinstance(await decision(slow, OLD), RevertTemplate)
    assert isinstance(await decision(slow, OLD, a_policy(patience="6m")), Skip)


def running(ago: timedelta) -> JSON:
    return {"running": {"startedAt": stamp(NOW - ago)}}


def a_record(episode: str, ago: timedelta, **status: Any) -> JSON:
    """A record of this function about the Deployment, as it was left."""
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "shop", "uid": SHOP.uid}
    meta = {"namespace": "shop", "name": RECORD, "uid": "uid-record", "resourceVersion": "1"}
    fault = {"key": f"rollback/{SHOP.uid}/{episode}"}
    return {
        "kind": "Remediation",
        "metadata": {**meta, "creationTimestamp": stamp(NOW - ago)},
        "spec": {"function": "rollback", "target": target, "fault": fault},
        "status": {"phase": "Open", "outcome": "refused", **status},
    }


READY_AGAIN = the_pod_of(1, ready_for=5 * MINUTE)
LONG_OVER = {"phase": "Done", "outcome": "skipped", "settledAt": stamp(NOW - HOUR)}


async def test_a_release_into_an_outage_is_not_to_blame_for_it() -> None:
    because = f"{FAILS}; revision 1 (shop:1) was failing, too, when it was replaced ({RECORD})"
    assert bare(await decision(BAD, a_record("h1/1", 20 * MINUTE))) == refused(because, "FailedBefore")
    # Noticed within the second of the change.
    assert bare(await decision(BAD, a_record("h1/1", CHANGED))) == refused(because, "FailedBefore")
    closed = {"phase": "Done", "outcome": "skipped", "settledAt": stamp(NOW - MINUTE)}
    assert bare(await decision(BAD, a_record("h1/1", 20 * MINUTE, **closed))) == refused(because, "FailedBefore")


async def test_pods_that_were_ready_all_the_time_may_need_a_dependency_only_to_start() -> None:
    told = await decision(BAD, OLD, a_record("h1/1", 20 * MINUTE))
    assert isinstance(told, Refuse)
    assert told.cause == "FailedBefore"


@pytest.mark.parametrize(
    "bodies",
    [
        (a_record("h1/1", 20 * MINUTE), READY_AGAIN),
        (a_record("h1/1", 2 * HOUR, **LONG_OVER),),
        (a_record("h1/1", MINUTE),),
        (a_record("h0/0", 20 * MINUTE),),
        (a_record("h1/1", 2 * DAY),),
    ],
    ids=["well again", "over before the change", "later", "of another version", "healthy since"],
)
async def test_what_failed_at_another_time_says_nothing_of_the_change(bodies: tuple[JSON, ...]) -> None:
    assert isinstance(await decision(BAD, *bodies), RevertTemplate)


# -- who does it


async def test_what_git_owns_is_not_written_live() -> None:
    tracked = {"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:shop/shop"}
    application = {
        "kind": "Application",
        "metadata": {"namespace": "argocd", "name": "shop", "uid": "uid-app", "resourceVersion": "1"},
        "spec": {"source": {"repoURL": "https://git.example.com/shop.git", "path": "shop"}},
    }
    answer = await decision(BAD, OLD, application, deployment=a_deployment(annotations=tracked))
    assert not isinstance(answer, RevertTemplate)


async def test_what_helm_has_installed_is_not_written_live() -> None:
    marks = {"meta.helm.sh/release-name": "shop", "meta.helm.sh/release-namespace": "shop"}
    labels = {"app.kubernetes.io/managed-by": "Helm"}
    answer = await decision(BAD, OLD, deployment=a_deployment(annotations=marks, labels=labels))
    assert not isinstance(answer, RevertTemplate)


# -- nothing to do


async def test_a_release_that_runs_well_is_remembered() -> None:
    answer = await decision(the_pod_of(2), deployment=a_deployment(complete=True))
    assert isinstance(answer, Remember)
    assert (answer.workload, answer.noted.hash, answer.noted.number) == (SHOP, "h2", 2)
    assert (answer.noted.healthy_at, answer.noted.healthy_until) == (NOW - 9 * MINUTE, NOW)


async def test_a_release_that_is_remembered_already_is_skipped() -> None:
    api = an_api(the_pod_of(2), deployment=a_deployment(complete=True))
    told = await decide(SIGNAL, api.world(), RollbackSettings())
    assert isinstance(told, Remember)
    noted = told.noted.model_dump(mode="json", by_alias=True, exclude_none=True)
    answer = await decision(the_pod_of(2), a_history(h2=noted), deployment=a_deployment(complete=True))
    assert answer == Skip("revision 2 (shop:2) is complete, and nothing of it fails")


async def test_a_roll_out_that_goes_on_well_is_left_alone() -> None:
    starting = the_pod_of(2, age=MINUTE, ready_for=None, app=[a_status(restarts=0, state={"waiting": {}}, last={})])
    assert await decision(starting, OLD) == Skip("revision 2 (shop:2) is on its way, and nothing of it fails")


async def test_a_pod_of_nothing_that_is_released_is_skipped() -> None:
    alone = the_pod_of(2, bad=True)
    alone["metadata"]["ownerReferences"] = []
    answer = await decision(alone, signal=PodSignal("shop", "shop-2-a"))
    assert answer == Skip("it belongs to nothing that is released, or is gone")


async def test_a_workload_that_is_gone_is_gone_for_good() -> None:
    gone = replace(SIGNAL, uid="uid-of-an-earlier-one")
    assert await decision(BAD, OLD, signal=gone) == Skip("the workload is gone", final=True)


async def test_a_loop_that_runs_at_this_moment_is_watched_once_it_has_a_record() -> None:
    pod = the_pod_of(2, app=[a_status(restarts=5, state=running(MINUTE))])
    because = "a pod runs again at this moment, and may crash again"
    assert await decision(pod, OLD) == Skip(because)
    known = replace(SIGNAL, source="record", episode="h2/2")
    assert bare(await decision(pod, OLD, signal=known)) == Defer(because, until=NOW + MINUTE, episode="h2/2")


async def test_a_controller_that_has_not_seen_the_last_change_is_waited_for() -> None:
    late = a_deployment()
    late["metadata"]["generation"] = 6
    because = "the controller of Deployment shop/shop has not seen its last change yet"
    assert await decision(BAD, OLD, deployment=late) == Skip(because)
    known = replace(SIGNAL, source="record")
    assert await decision(BAD, OLD, deployment=late, signal=known) == Defer(because, until=NOW + 2 * SECOND)


@pytest.mark.parametrize(
    "seen",
    [
        the_pod_of(2),
        the_pod_of(2, age=MINUTE, ready_for=None, app=[a_status(restarts=0, state={"waiting": {}}, last={})]),
    ],
    ids=["ready", "starting"],
)
async def test_an_event_of_a_pod_that_is_well_costs_no_call(seen: JSON) -> None:
    api = an_api(BAD, OLD)
    told = PodSignal("shop", "shop-2-a", "uid-shop-2-a", seen=pod_view(seen))
    because = "the event shows nothing that a release could be to blame for"
    assert await decide(told, api.world(), RollbackSettings()) == Skip(because)
    assert api.calls == []


@pytest.mark.parametrize("status", [{}, {"conditions": []}, {"conditions": "none"}, [], None])
async def test_an_event_of_a_workload_that_says_nothing_of_a_failure_costs_no_call(status: Any) -> None:
    api = an_api(BAD, OLD)
    told = replace(SIGNAL, seen={**a_deployment(), "status": status})
    assert isinstance(await decide(told, api.world(), RollbackSettings()), Skip)
    assert api.calls == []


@pytest.mark.parametrize(
    "condition",
    [
        {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"},
        {"type": "ReplicaFailure", "status": "True", "reason": "FailedCreate"},
    ],
)
async def test_an_event_of_a_workload_that_is_stuck_is_looked_into(condition: JSON) -> None:
    told = replace(SIGNAL, seen={**a_deployment(), "status": {"conditions": [condition]}})
    assert isinstance(await decision(BAD, OLD, signal=told), RevertTemplate)


async def test_the_record_of_an_earlier_version_is_not_for_the_one_that_came_since() -> None:
    """That fails as well, and has a record of its own."""
    old = replace(SIGNAL, source="record", episode="h1/1")
    assert await decision(BAD, OLD, signal=old) == Skip("revision 2 (shop:2) has been released since")


# -- requests


async def test_more_failed_requests_than_before_the_change_are_a_reason_where_the_policy_counts_them() -> None:
    rules = a_policy(canary={"requests": "all{{hash}}", "errors": "bad{{hash}}"}, healthyFor="5m")
    metrics = CannedMetrics(1000, 1, 1000, 200, 1000, 300)
    answer = await decision(the_pod_of(2), rules, deployment=a_deployment(complete=True), metrics=metrics)
    assert isinstance(answer, RevertTemplate)
    words = "revision 2 (shop:2): 30.0% of 1000 requests fail, and 0.1% of 1000 did just before the change"
    assert answer.because == f"{words}; it has never been healthy, and nothing else fails"


async def test_prometheus_is_not_asked_for_what_the_waker_has_found() -> None:
    rules = a_policy(canary={"requests": "all", "errors": "bad"})
    metrics = CannedMetrics(1000, 1, 1000, 200, 1000, 300)
    told = replace(SIGNAL, source="waker")
    answer = await decision(the_pod_of(2), rules, deployment=a_deployment(complete=True), metrics=metrics, signal=told)
    assert isinstance(answer, Remember)
    assert metrics.queries == []


# -- going on


def a_course(*steps: Taken) -> WorkloadSignal:
    return replace(SIGNAL, source="record", episode="h2/2", course=Course(RECORD, NOW - MINUTE, steps))


def taken(name: str, note: str = "from 2 to 1") -> Taken:
    return Taken(action=name, first=NOW - MINUTE, last=NOW - MINUTE, note=note)


BACK = {BACK_BY: RECORD, BACK_FROM: "2/h2", BACK_TO: "1/h1"}
GONE_BACK = (
    a_set(2),
    {**a_set(1), "metadata": {**a_set(1)["metadata"], "annotations": {"deployment.kubernetes.io/revision": "3"}}},
)


async def test_a_template_that_is_back_is_the_end_of_the_course() -> None:
    signal = a_course(taken("RevertTemplate"))
    answer = await decision(OLD, deployment=a_deployment(1, BACK), sets=GONE_BACK, signal=signal)
    assert answer == Skip("its template is that of revision 3 (shop:1) again")


@pytest.mark.parametrize(("ago", "given_up"), [(9, False), (10, True)])
async def test_a_rollback_that_its_controller_never_sees_is_for_people(ago: int, given_up: bool) -> None:
    late = a_deployment(1, BACK)
    fields = [{"time": stamp(NOW - ago * MINUTE)}, {"subresource": "status", "time": stamp(NOW)}]
    late["metadata"] |= {"generation": 6, "managedFields": fields}
    because = "the controller of Deployment shop/shop has not seen its last change yet"
    answer = await decision(BAD, OLD, deployment=late, signal=a_course(taken("RevertTemplate")))
    expected = Refuse(f"{because}, for 10m: does it run?", "NotSeen") if given_up else Defer(because, NOW + 2 * SECOND)
    assert answer == expected


def a_stateful_set(annotations: JSON) -> list[JSON]:
    """Of two pods one is of the bad version still, and never Ready: the controller waits for it."""
    ref = Ref("apps/v1", "StatefulSet", "shop", "shop", SHOP.uid)
    revisions = [
        {
            "kind": "ControllerRevision",
            "metadata": {
                "namespace": "shop",
                "name": f"shop-h{number}",
                "uid": f"uid-revision-{number}",
                "creationTimestamp": stamp(NOW - (CHANGED if number > 1 else DAY)),
                "ownerReferences": owned_by(ref),
            },
            "revision": 3 if number == 1 else number,
            "data": {"spec": {"template": {"$patch": "replace", **a_template(f"shop:{number}")}}},
        }
        for number in (1, 2)
    ]
    body = {**a_deployment(1, annotations), "kind": "StatefulSet"}
    body["status"] = {"observedGeneration": 5, "updateRevision": "shop-h1", "readyReplicas": 0}
    pod = the_pod_of(2, bad=True)
    pod["metadata"] |= {"ownerReferences": owned_by(ref), "labels": {"controller-revision-hash": "shop-h2"}}
    return [body, *revisions, pod]


SET_PATHS = {
    **PATHS,
    "StatefulSet": "/apis/apps/v1/namespaces/shop/statefulsets",
    "ControllerRevision": "/apis/apps/v1/namespaces/shop/controllerrevisions",
}
APPLICATION = {
    "kind": "Application",
    "metadata": {"namespace": "argocd", "name": "shop", "uid": "uid-app", "resourceVersion": "1"},
    "spec": {"source": {"repoURL": "https://git.example.com/shop.git", "path": "shop"}},
    "status": {"resources": [{"group": "apps", "kind": "StatefulSet", "namespace": "shop", "name": "shop"}]},
}
PLAN = "propose a commit for the default branch of https://git.example.com/shop.git that brings back"


@pytest.mark.parametrize(
    ("steps", "annotations", "whole"),
    [
        (
            ["RevertTemplate"],
            {BACK_BY: RECORD, BACK_FROM: "2/shop-h2", BACK_TO: "1/shop-h1"},
            "roll back from 2/shop-h2 to 1/shop-h1",
        ),
        (
            ["PushRevert", "RequestSync"],
            {"argocd.argoproj.io/tracking-id": "shop:apps/StatefulSet:shop/shop"},
            f"{PLAN} shop-h1 instead of shop-h2",
        ),
    ],
    ids=["live", "by Git"],
)
async def test_a_stateful_set_is_freed_from_the_bad_pod_that_it_waits_for_whoever_went_back(
    steps: list[str], annotations: JSON, whole: str
) -> None:
    bodies = [*a_stateful_set(annotations), APPLICATION]
    api = CannedApi({f"{SET_PATHS[body['kind']]}/{body['metadata']['name']}": body for body in bodies})
    course = Course(RECORD, NOW - DAY, tuple(map(taken, steps)))
    told = replace(SIGNAL, kind="StatefulSet", source="record", episode="shop-h2/2", course=course)
    answer = await decide(told, api.world(), RollbackSettings())
    assert isinstance(answer, EvictStuck), answer
    assert ([pod.ref.name for pod in answer.pods], answer.course) == (["shop-2-a"], whole)
    del api.objects[f"{PATHS['Pod']}/shop-2-a"]
    # The next one may be stuck as well.
    assert await decide(told, api.world(), RollbackSettings()) == Defer(
        "its pods come back one by one", NOW + 2 * SECOND
    )


STUCK = (
    "shop-2-a of revision 2 (shop:2) fails: app restarted 4 times, last with exit code 1;"
    " StatefulSet shop/shop waits for it before it makes any pod of revision 3 (shop:1)"
)
SET = replace(SIGNAL, kind="StatefulSet")


def held_up(**about: JSON) -> CannedApi:
    """A StatefulSet that somebody has put back by hand; `about` is merged into objects of it, by kind."""
    found = [{**body, **about.get(body["kind"], {})} for body in a_stateful_set({})]
    return CannedApi({f"{SET_PATHS[body['kind']]}/{body['metadata']['name']}": body for body in found})


async def test_a_pod_of_a_version_that_was_never_well_is_evicted_where_the_next_one_waits_for_it() -> None:
    answer = await decide(SET, held_up().world(), RollbackSettings())
    assert isinstance(answer, EvictStuck), answer
    assert ([pod.ref.name for pod in answer.pods], answer.because, answer.course, answer.episode) == (
        ["shop-2-a"],
        f"{STUCK}; that version was never well",
        "evict shop-2-a, for which 3/shop-h1 waits",
        "held-up/shop-h2/3",
    )


async def test_people_are_told_which_pod_to_delete_if_its_version_was_well_before() -> None:
    noted = a_history(h2={"hash": "shop-h2", "number": 2, "healthyAt": stamp(NOW - DAY), "healthyUntil": stamp(NOW)})
    api = held_up()
    api.objects[f"{PATHS['ReleaseHistory']}/statefulset-shop"] = noted
    answer = await decide(SET, api.world(), RollbackSettings())
    assert isinstance(answer, Refuse)
    spared = "revision 2 (shop:2) was well before, so it may be something else that is wrong"
    by_hand = "if it is not needed: kubectl delete pod shop-2-a --namespace shop"
    assert (answer.cause, answer.because) == ("HeldUp", f"{STUCK}. It is not evicted, for {spared}; {by_hand}")
    assert answer.episode == "held-up/shop-h2/3"


@pytest.mark.parametrize(
    "spec",
    [
        {"podManagementPolicy": "Parallel"},
        {"updateStrategy": {"type": "OnDelete"}},
        {"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 1}}},
    ],
    ids=lambda spec: next(iter(spec)),
)
async def test_a_stateful_set_that_does_not_wait_or_is_not_to_go_on_is_not_freed(spec: JSON) -> None:
    body, *_ = a_stateful_set({})
    answer = await decide(SET, held_up(StatefulSet={"spec": {**body["spec"], **spec}}).world(), RollbackSettings())
    assert not isinstance(answer, EvictStuck | Refuse)


async def test_once_the_pod_is_gone_or_was_evicted_before_nothing_more_is_done_for_its_version() -> None:
    told = replace(SET, source="record", episode="held-up/shop-h2/3")
    gone = Skip("it waits for no pod of an older version any more")
    api = held_up()
    evicted = replace(told, course=Course(RECORD, NOW - DAY, (taken("EvictStuck"),)))
    assert await decide(evicted, api.world(), RollbackSettings()) == gone
    cut_off = replace(told, course=Course(RECORD, NOW - DAY, (taken("EvictStuck", "cut off while it was done"),)))
    assert isinstance(await decide(cut_off, api.world(), RollbackSettings()), EvictStuck)
    assert await decide(replace(told, episode="held-up/shop-h2/2"), api.world(), RollbackSettings()) == gone
    del api.objects[f"{PATHS['Pod']}/shop-2-a"]
    assert await decide(told, api.world(), RollbackSettings()) == gone


async def test_an_attempt_that_was_cut_off_before_its_write_is_made_again() -> None:
    """The version is known as bad by then, by this very record."""
    history = a_history(h2={"hash": "h2", "number": 2, "bad": RECORD})
    signal = a_course(taken("RevertTemplate", "cut off while it was done"))
    answer = await decision(BAD, OLD, history, signal=signal)
    assert isinstance(answer, RevertTemplate)
    assert (answer.episode, answer.course) == ("h2/2", COURSE)


async def test_a_version_that_is_put_back_ends_the_course_as_failed() -> None:
    signal = a_course(taken("RevertTemplate"))
    answer = await decision(BAD, OLD, deployment=a_deployment(2, BACK), signal=signal)
    because = "somebody has put revision 2 (shop:2) back: what writes Deployment shop/shop?"
    assert bare(answer) == refused(because, "PutBack")


async def test_a_third_version_ends_the_course() -> None:
    signal = a_course(taken("RevertTemplate"))
    sets = (a_set(4, age=MINUTE), *GONE_BACK)
    answer = await decision(deployment=a_deployment(4, BACK), sets=sets, signal=signal)
    assert answer == Skip("revision 4 (shop:4) has been released meanwhile")


async def test_whoever_took_our_note_away_has_taken_over() -> None:
    signal = a_course(taken("RevertTemplate"))
    assert await decision(BAD, OLD, signal=signal) == Skip("somebody has changed it since")


# -- the verdict


def a_treatment(episode: str = "h2/2") -> Treatment:
    return Treatment(SHOP, None, NOW - 5 * MINUTE, 2 * MINUTE, episode, "RevertTemplate")


async def verdict(*bodies: JSON, **about: Any) -> Any:
    about = {"deployment": a_deployment(1, BACK, complete=True), "sets": GONE_BACK, **about}
    return await recovered(a_treatment(), an_api(*bodies, **about).world(), RollbackSettings())


async def test_recovers_once_it_was_complete_and_ready_for_the_proof() -> None:
    ready = the_pod_of(1, age=3 * MINUTE)
    because = "revision 3 (shop:1) has been complete, and its pods Ready, for 2m59s"
    assert await verdict(ready) == Recovered(because)


async def test_health_counts_from_the_rollback_on() -> None:
    because = "revision 3 (shop:1) has been complete, and its pods Ready, for 5m"
    assert await verdict(OLD) == Recovered(because)


async def test_waits_for_the_whole_proof() -> None:
    because = "revision 3 (shop:1) has been complete, and its pods Ready, for 59s"
    assert await verdict(the_pod_of(1, age=MINUTE)) == Defer(because, until=NOW + 61 * SECOND)


async def test_is_not_proven_while_it_is_not_complete() -> None:
    answer = await verdict(OLD, deployment=a_deployment(1, BACK))
    assert answer == Defer("revision 3 (shop:1) is not complete yet", until=NOW + MINUTE)


async def test_did_not_help_if_the_old_version_fails_as_well() -> None:
    because = "revision 3 (shop:1) fails, too: shop-1-a: app restarted 4 times, last with exit code 1"
    assert await verdict(the_pod_of(1, bad=True)) == Ineffective(because)


async def test_did_not_help_if_the_bad_version_is_there_again() -> None:
    answer = await verdict(BAD, deployment=a_deployment(2, BACK), sets=(a_set(2), a_set(1)))
    assert answer == Ineffective("revision 2 (shop:2), which is bad, is there again")


async def test_notes_of_an_earlier_rollback_say_nothing_of_one_that_git_has_made() -> None:
    earlier = {BACK_BY: "rollback-shop-4567", BACK_FROM: "0/h0", BACK_TO: "0/h7"}
    answer = await verdict(OLD, deployment=a_deployment(1, earlier, complete=True))
    assert answer == Recovered("revision 3 (shop:1) has been complete, and its pods Ready, for 5m")


async def test_nobody_can_tell_once_another_version_is_released_or_the_workload_is_gone() -> None:
    sets = (a_set(4, age=MINUTE), *GONE_BACK)
    answer = await verdict(deployment=a_deployment(4, BACK), sets=sets)
    assert answer == Unknown("revision 4 (shop:4) has been released meanwhile")
    gone = replace(a_treatment(), target=replace(SHOP, uid="uid-of-an-earlier-one"))
    assert await recovered(gone, an_api().world(), RollbackSettings()) == Unknown("the workload is gone")


# -- find


async def found(deployment: JSON, *bodies: JSON) -> list[WorkloadSignal]:
    world = an_api(*bodies, deployment=deployment).world()
    return [signal async for signal in find(world, RollbackSettings())]


async def test_finds_what_is_not_complete() -> None:
    summary = "Deployment shop/shop: its release is not complete"
    assert await found(a_deployment()) == [replace(SIGNAL, summary=summary)]


async def test_finds_what_is_well_and_not_noted() -> None:
    summary = "Deployment shop/shop: nobody has noted that it is well"
    assert await found(a_deployment(complete=True)) == [replace(SIGNAL, summary=summary)]


async def test_one_history_that_can_t_be_read_keeps_no_workload_from_being_found() -> None:
    broken = a_history(h2={"number": "two"})
    assert [signal.name for signal in await found(a_deployment(complete=True), broken)] == ["shop"]


async def test_does_not_find_what_was_scaled_to_zero() -> None:
    assert await found(a_deployment(replicas=0)) == []


def test_the_page_s_policy_is_valid_and_says_the_defaults() -> None:
    page = (Path(__file__).parents[2] / "docs" / "functions" / "rollback.md").read_text()
    body = yaml.safe_load(page.partition("<!-- example: releases -->\n```yaml\n")[2].partition("```")[0])
    policy = read_policy({**body, "metadata": {**body["metadata"], "uid": "1"}})
    assert policy.broken == ""
    assert policy.spec is not None
    assert policy.spec.releases == Releases()
