"""What is told of a release from what an API server has of it."""

import copy
import json
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from kreflex import progress
from kreflex.decisions import Remember
from kreflex.histories import History, Noted, digest
from kreflex.revisions import Untold, release_of, selector_of, to_remember, unremembered
from kreflex.templates import current, hash_of, images, number_of, template_of
from kreflex.views import JSON, Ref
from tests.shared.releases import NEW_SET, a_deployment, a_history, a_pod_of, a_set, a_template, everything, the_release
from tests.values import CART_DEPLOYMENT, CART_SET, HOUR, MINUTE, NOW, CannedApi, a_status, owned_by, stamp

STRANGER = Ref("apps/v1", "Deployment", "shop", "other", "uid-other")


async def told(body: JSON) -> Any:
    return await release_of(CART_DEPLOYMENT, CannedApi(everything(deployment=body)).pair()[0])


# Revisions and pods


async def test_revisions_are_what_the_workload_owns_the_newest_first_with_their_templates() -> None:
    foreign = a_set(Ref("apps/v1", "ReplicaSet", "shop", "cart-x", "uid-x"), 9, "cart:9", MINUTE, STRANGER)
    release = await the_release(foreign)
    assert [(one.number, one.hash, one.template) for one in release.revisions] == [
        (2, "9f2", a_template("cart:2")),
        (1, "7d4", a_template("cart:1")),
    ]
    assert (release.current, release.earlier) == (release.revisions[0], release.revisions[1:])
    assert [pod.ref.name for pod in release.new_pods] == ["cart-9f2-a"]
    assert [pod.ref.name for pod in release.old_pods] == ["cart-7d4-a"]
    assert (release.labels, release.resource_version, release.paused) == ({"tier": "web"}, "41", False)
    assert str(release.current) == "revision 2 (cart:2)"


async def test_pods_of_others_that_the_selector_selects_are_not_counted() -> None:
    release = await the_release(a_pod_of(replace(NEW_SET, uid="uid-other"), "cart-9f2-b"))
    assert [pod.ref.name for pods in release.pods.values() for pod in pods] == ["cart-7d4-a", "cart-9f2-a"]


async def test_of_two_made_of_the_same_template_the_older_is_the_present_one() -> None:
    twin = a_set(Ref("apps/v1", "ReplicaSet", "shop", "cart-aaa", "uid-aaa"), 3, "cart:2", MINUTE)
    assert (await the_release(twin)).current.hash == "9f2"


async def test_what_is_remembered_of_a_revision_is_told_with_it() -> None:
    good: JSON = {"hash": "7d4", "number": 1, "source": "main@1"}
    seen = {"healthyAt": stamp(NOW - HOUR), "healthyUntil": stamp(NOW - 50 * MINUTE)}
    release = await the_release(history=a_history({**good, **seen}, {"hash": "9f2", "number": 2, "bad": "r-1"}))
    (old,) = release.earlier
    assert (old.healthy_at, old.healthy_until, old.source) == (NOW - HOUR, NOW - 50 * MINUTE, "main@1")
    assert (old.bad, release.current.bad) == ("", "r-1")
    assert (await the_release(history=a_history({**good, **seen}, uid="another"))).earlier[0].healthy_at is None


async def test_a_version_is_known_as_bad_by_its_template_too_if_it_comes_again_under_another_hash() -> None:
    bad = {"hash": "old", "number": 2, "bad": "r-1", "template": digest(a_template("cart:2"))}
    assert (await the_release(history=a_history(bad))).current.bad == "r-1"
    assert (await the_release(history=a_history({**bad, "template": "another"}))).current.bad == ""


@pytest.mark.parametrize(
    ("change", "because", "passing"),
    [
        (
            {"workloadRef": {"kind": "Deployment", "name": "cart"}},
            "Deployment shop/cart takes its template from Deployment cart (spec.workloadRef): go back there, by hand",
            False,
        ),
        ({"meta": {"deletionTimestamp": stamp(NOW)}}, "Deployment shop/cart is being deleted", False),
        (
            {"meta": {"generation": 3}},
            "the controller of Deployment shop/cart has not seen its last change yet",
            True,
        ),
        ({"image": "cart:3"}, "Deployment shop/cart: no revision with its present template was found", True),
    ],
)
async def test_of_what_nothing_can_be_said_it_is_said_why(change: Any, because: str, passing: bool) -> None:
    assert await told(a_deployment(**change)) == Untold(because, passing)


def test_a_selector_is_written_as_a_query() -> None:
    expressions = [
        {"key": "tier", "operator": "In", "values": ["web", "api"]},
        {"key": "track", "operator": "NotIn", "values": ["canary"]},
        {"key": "app", "operator": "Exists"},
        {"key": "old", "operator": "DoesNotExist"},
    ]
    body = {"spec": {"selector": {"matchLabels": {"b": "2", "a": "1"}, "matchExpressions": expressions}}}
    assert selector_of(body) == "a=1,b=2,tier in (web,api),track notin (canary),app,!old"


# Since when


async def test_a_new_version_is_present_since_it_was_made() -> None:
    assert (await the_release()).changed_at == NOW - 5 * MINUTE


def field(manager: str, ago: timedelta, path: str = "f:template") -> JSON:
    return {"manager": manager, "time": stamp(NOW - ago), "fieldsV1": {"f:spec": {path: {}}}}


async def gone_back(*fields: JSON) -> datetime:
    """Tell since when the older of two versions is the present one again."""
    sets = a_set(CART_SET, 3, "cart:1", 600 * MINUTE)
    return (await the_release(sets, deployment=a_deployment("cart:1", meta={"managedFields": [*fields]}))).changed_at


async def test_one_that_was_gone_back_to_is_present_since_somebody_set_it() -> None:
    others = (field("kube-controller-manager", MINUTE), field("kubectl", MINUTE, "f:replicas"))
    assert await gone_back(*others, field("kubectl", 9 * MINUTE), field("helm", 3 * MINUTE)) == NOW - 3 * MINUTE
    # Nobody has set it, as far as that is known: its first pod counts.
    assert await gone_back(*others) == NOW - 60 * MINUTE
    assert await gone_back(field("kubectl", 9 * HOUR * 24)) == NOW - 600 * MINUTE


def a_revision(name: str, number: int, image: str, ago: timedelta, numbered: timedelta) -> JSON:
    template = {"$patch": "replace", **a_template(image)}
    template["metadata"] = {"creationTimestamp": None, **template["metadata"]}
    return {
        "metadata": {
            "name": name,
            "uid": f"uid-{name}",
            "labels": {"controller-revision-hash": name.rpartition("-")[2]},
            "creationTimestamp": stamp(NOW - ago),
            "managedFields": [{"time": stamp(NOW - numbered)}],
            "ownerReferences": owned_by(replace(CART_DEPLOYMENT, kind="DaemonSet")),
        },
        "data": {"spec": {"template": template}},
        "revision": number,
    }


async def test_a_controller_revision_is_present_since_it_was_numbered_anew() -> None:
    body = {**a_deployment("cart:1"), "kind": "DaemonSet"}
    made = {
        name: a_revision(name, number, image, ago, numbered)
        for name, number, image, ago, numbered in (
            ("cart-7d4", 3, "cart:1", 600 * MINUTE, 2 * MINUTE),
            ("cart-9f2", 2, "cart:2", 5 * MINUTE, 5 * MINUTE),
        )
    }
    found = {f"/apis/apps/v1/namespaces/shop/controllerrevisions/{name}": one for name, one in made.items()}
    path = "/apis/apps/v1/namespaces/shop/daemonsets/cart"
    ref = replace(CART_DEPLOYMENT, kind="DaemonSet")
    release = await release_of(ref, CannedApi({path: body, **found}).pair()[0])
    assert not isinstance(release, Untold | None)
    assert (release.current.number, release.current.hash, release.changed_at) == (3, "7d4", NOW - 2 * MINUTE)
    assert release.current.template == a_template("cart:1")
    assert release.pods == {}


# Templates


def test_pods_are_labelled_with_what_the_kind_of_the_workload_uses() -> None:
    made = a_revision("cart-7d4", 1, "cart:1", MINUTE, MINUTE)
    assert (hash_of("StatefulSet", made), hash_of("DaemonSet", made)) == ("cart-7d4", "7d4")
    assert (hash_of("Deployment", a_set(CART_SET, 1, "cart:1", MINUTE)), hash_of("Rollout", made)) == ("7d4", "")
    unnumbered = {"metadata": {"annotations": {"deployment.kubernetes.io/revision": "x"}}, "spec": {}}
    assert (number_of("Deployment", unnumbered), number_of("Rollout", unnumbered)) == (0, 0)


def test_what_argo_rollouts_has_put_into_a_template_is_taken_out_again() -> None:
    term = {"labelSelector": {"matchExpressions": [{"key": "rollouts-pod-template-hash"}]}, "topologyKey": "host"}
    theirs = {"labelSelector": {"matchExpressions": [{"key": "app"}]}, "topologyKey": "host"}
    preferred = "preferredDuringSchedulingIgnoredDuringExecution"
    required = "requiredDuringSchedulingIgnoredDuringExecution"
    wanted = a_template()
    made = {
        "metadata": {
            "annotations": {
                "rollout.argoproj.io/revision": "4",
                "rollout.argoproj.io/ephemeral-metadata": '{"labels":{"role":"canary"},"annotations":{"a":"b"}}',
            }
        },
        "spec": {"template": copy.deepcopy(wanted)},
    }
    template = made["spec"]["template"]
    template["metadata"]["labels"] |= {"rollouts-pod-template-hash": "6c5", "role": "canary"}
    template["metadata"]["annotations"] = {"a": "b"}
    template["spec"]["affinity"] = {"podAntiAffinity": {required: [term]}}
    assert (template_of("Rollout", made), number_of("Rollout", made)) == (wanted, 4)
    assert template["metadata"]["annotations"] == {"a": "b"}

    apart = {preferred: [{"weight": 1, "podAffinityTerm": term}, {"weight": 2, "podAffinityTerm": theirs}]}
    template["spec"]["affinity"] = {"nodeAffinity": {"x": 1}, "podAntiAffinity": {**apart, required: [theirs]}}
    left = {preferred: [{"weight": 2, "podAffinityTerm": theirs}], required: [theirs]}
    assert template_of("Rollout", made)["spec"]["affinity"] == {"nodeAffinity": {"x": 1}, "podAntiAffinity": left}


def test_what_is_to_run_is_told_by_the_status_where_it_is_told() -> None:
    status = {"status": {"updateRevision": "cart-9f2", "currentPodHash": "6c5"}}
    assert (current({"kind": "StatefulSet", **status}, {}), current({"kind": "Rollout", **status}, {})) == (
        "cart-9f2",
        "6c5",
    )
    assert current({"kind": "DaemonSet"}, {}) == ""


def test_images_are_named_once_and_those_of_init_containers_first() -> None:
    spec = {"initContainers": [{"name": "i", "image": "tool:1"}], "containers": [{"image": "a:1"}, {"image": "tool:1"}]}
    assert images({"spec": spec}) == ("tool:1", "a:1")


# How far


def a_workload(kind: str, spec: JSON, status: JSON) -> JSON:
    generation = {"metadata": {"generation": 2}}
    return {"kind": kind, **generation, "spec": spec, "status": {"observedGeneration": 2, **status}}


WHOLE: dict[str, tuple[JSON, JSON]] = {
    "Deployment": ({"replicas": 3}, {"replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}),
    "StatefulSet": ({"replicas": 3}, {"readyReplicas": 3, "updatedReplicas": 3}),
    "DaemonSet": ({}, {"desiredNumberScheduled": 3, "updatedNumberScheduled": 3, "numberAvailable": 3}),
    "Rollout": ({}, {"observedGeneration": "2", "stableRS": "a", "currentPodHash": "a", "phase": "Healthy"}),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_a_roll_out_is_complete_when_all_that_counts_says_so(kind: str) -> None:
    spec, status = WHOLE[kind]
    assert progress.complete(a_workload(kind, spec, status))
    assert not progress.complete({**a_workload(kind, spec, status), "metadata": {"generation": 3}})
    for key in status:
        less = {"replicas": 4}.get(key, 2 if isinstance(status[key], int) else "1")
        if key == "desiredNumberScheduled":
            less = 4
        assert not progress.complete(a_workload(kind, spec, {**status, key: less})), key


def test_a_partition_is_complete_when_the_part_is() -> None:
    strategy = {"updateStrategy": {"rollingUpdate": {"partition": 2}}}
    status = {"readyReplicas": 3, "updatedReplicas": 1}
    assert progress.complete(a_workload("StatefulSet", {"replicas": 3, **strategy}, status))
    assert not progress.complete(a_workload("StatefulSet", {"replicas": 3}, status))


def test_one_whose_time_is_up_is_stuck_and_not_complete() -> None:
    late = {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
    spec, status = WHOLE["Deployment"]
    body = a_workload("Deployment", spec, {**status, "conditions": [late]})
    assert (progress.stuck(body), progress.complete(body)) == (True, False)
    assert not progress.stuck({**body, "metadata": {"generation": 3}})
    aborted = {**late, "reason": "RolloutAborted"}
    assert not progress.stuck(a_workload("Rollout", {}, {"conditions": [aborted]}))


# Healthy


async def test_a_version_is_ready_since_the_last_of_its_pods_is() -> None:
    release = await the_release(a_pod_of(CART_SET, "cart-7d4-b", 3 * MINUTE))
    (old,) = release.earlier
    assert (release.ready_since(old), release.ready_since(release.current)) == (NOW - 3 * MINUTE, None)
    assert release.healthy(old, 3 * MINUTE, NOW)
    assert not release.healthy(old, 4 * MINUTE, NOW)
    assert not release.healthy(replace(old, bad="r-1"), timedelta(), NOW)
    one_is_ill = await the_release(a_pod_of(CART_SET, "cart-7d4-b"))
    assert not one_is_ill.healthy(one_is_ill.earlier[0], timedelta(), NOW)


COMPLETE = {"replicas": 3, "updatedReplicas": 3, "availableReplicas": 3}


async def well(ready_for: timedelta, known: JSON | None = None, source: str = "") -> Remember | None:
    """Say what is to be remembered of a release whose only pod is Ready for so long, with a healthy time of 5m."""
    pod = a_pod_of(NEW_SET, "cart-9f2-a", ready_for)
    history = a_history({"hash": "9f2", "number": 2, **known}) if known is not None else None
    release = await the_release(pod, deployment=a_deployment(status=COMPLETE), history=history)
    return to_remember(release, 5 * MINUTE, NOW, source)


def by_experiment(made: JSON, path: str, after: object) -> JSON:
    """A ReplicaSet with what its Deployment was marked with."""
    prior = json.dumps([{"path": path.split(), "before": "before", "after": after}])
    notes = {"kreflex.dev/chaos-experiment": "shop/storm/u-1", "kreflex.dev/chaos-prior": prior}
    annotations = {**(made["metadata"].get("annotations") or {}), **notes}
    return {**made, "metadata": {**made["metadata"], "annotations": annotations}}


async def test_what_an_experiment_has_made_is_never_healthy_and_not_remembered() -> None:
    pod, image = a_pod_of(NEW_SET, "cart-9f2-a", HOUR), "spec template spec containers name=app image"
    for made, broken in (
        (by_experiment(a_set(NEW_SET, 2, "cart:2", HOUR), image, "cart:2"), "shop/storm"),
        # The mark of one that has changed the replicas stays on the ReplicaSet that was there.
        (by_experiment(a_set(NEW_SET, 2, "cart:2", HOUR), "spec replicas", 0), ""),
    ):
        release = await the_release(pod, made, deployment=a_deployment(status=COMPLETE))
        assert release.current.experiment == broken
        assert release.healthy(release.current, 5 * MINUTE, NOW) is not bool(broken)
        assert (to_remember(release, 5 * MINUTE, NOW) is None) is bool(broken)


SEEN: JSON = {
    "template": digest(a_template("cart:2")),
    "healthyAt": stamp(NOW - HOUR),
    "healthyUntil": stamp(NOW - 55 * MINUTE),
}


async def test_a_version_is_remembered_once_it_was_well_for_long_enough() -> None:
    assert await well(4 * MINUTE) is None
    assert await well(5 * MINUTE, source="main@2") == Remember(
        "revision 2 (cart:2) is complete, and its pods have been Ready for 5m",
        CART_DEPLOYMENT,
        Noted(
            hash="9f2",
            number=2,
            template=digest(a_template("cart:2")),
            images=("cart:2",),
            healthy_at=NOW - 5 * MINUTE,
            healthy_until=NOW,
            source="main@2",
        ),
    )
    assert to_remember(await the_release(), timedelta(), NOW) is None


async def test_with_it_is_remembered_how_long_its_pods_took_to_start() -> None:
    pod = a_pod_of(NEW_SET, "cart-9f2-a", 5 * MINUTE)
    running = {"running": {"startedAt": stamp(NOW - 8 * MINUTE)}}
    pod["status"]["containerStatuses"] = [a_status(restarts=0, state=running, last={})]
    told = to_remember(await the_release(pod, deployment=a_deployment(status=COMPLETE)), 5 * MINUTE, NOW)
    assert told is not None
    assert told.noted.start_seconds == 180


async def test_what_is_known_is_remembered_anew_only_if_it_is_not_the_same() -> None:
    assert await well(HOUR, SEEN) is None
    assert await well(HOUR, {**SEEN, "bad": "r-1"}) is None
    assert await well(HOUR, {**SEEN, "source": "main@2"}) is None
    assert await well(HOUR, {**SEEN, "source": "main@2"}, source="main@2") is None
    for changed in ({"template": "old"}, {"healthyUntil": stamp(NOW - 58 * MINUTE)}):
        assert await well(HOUR, {**SEEN, **changed}) is not None
    assert await well(HOUR, SEEN, source="main@2") is not None


def test_what_is_not_remembered_yet_is_found_in_a_list_of_workloads() -> None:
    body = a_deployment(status=COMPLETE)
    good = Noted(hash="9f2", number=2, template=SEEN["template"], healthy_at=NOW - HOUR, healthy_until=NOW)
    assert unremembered(body, None, 5 * MINUTE)
    assert unremembered(body, History(CART_DEPLOYMENT), 5 * MINUTE)
    assert not unremembered(body, History(CART_DEPLOYMENT, revisions=(good,)), 5 * MINUTE)
    assert unremembered(body, History(CART_DEPLOYMENT, revisions=(good,)), 2 * HOUR)
    assert not unremembered(a_deployment(), None, 5 * MINUTE)
    asleep = {"replicas": 0, "updatedReplicas": 0, "availableReplicas": 0, "readyReplicas": 0}
    assert not unremembered(a_deployment(status=asleep, replicas=0), None, 5 * MINUTE)
    elsewhere = a_workload("Rollout", {"workloadRef": {"name": "cart"}}, {**WHOLE["Rollout"][1], "readyReplicas": 3})
    elsewhere |= {"apiVersion": "argoproj.io/v1alpha1", "metadata": {"name": "cart", "uid": "uid", "generation": 2}}
    assert progress.complete(elsewhere)
    assert not unremembered(elsewhere, None, 5 * MINUTE)
