"""Anomalies on a real API server: who may write them, and what restart-loop-killer makes of them."""

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from functions.restart_loop_killer.main import RestartLoopSettings, find
from kreflex.reflex import Arc
from lab import manifests
from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster.reflexes import an_arc, changes, settled, signal, the_record, told

SCORER, HOME = "anomaly-scorer", "kreflex-system"
API = "/apis/kreflex.dev/v1alpha1"
RBAC = "rbac.authorization.k8s.io"
ALLOWED = {"classes": ["leak"]}
SUMMARY = "rss is 200Mi, and reaches its limit of 256Mi in 12 min"


@pytest.fixture(scope="module")
async def guarded(installed: ControlPlane) -> ControlPlane:
    """Kreflex, with the shipped policy about who writes anomalies."""
    await manifests.apply(installed.api, kit.manifests("knative/admission/anomalies.yaml"), HOME)
    # A stranger who may do everything: admission is what is left.
    admins = {"kind": "ServiceAccount", "name": "stranger", "namespace": HOME}
    role = {"apiGroup": RBAC, "kind": "ClusterRole", "name": "cluster-admin"}
    about = {"apiVersion": f"{RBAC}/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "anomalies-stranger"}}
    await manifests.apply(installed.api, [{**about, "roleRef": role, "subjects": [admins]}], HOME)

    async def denied() -> bool:
        body = an_anomaly("default", "probe", "u")
        return "ValidatingAdmissionPolicy" in await refusal(installed.api, f"{anomalies('default')}?dryRun=All", body)

    await eventually(denied, "a forged anomaly denied")
    return installed


@pytest.fixture
async def scorer(guarded: ControlPlane) -> AsyncIterator[Api]:
    async with guarded.api_with(await guarded.token(SCORER, HOME)) as client:
        yield client


@pytest.fixture
async def arc(guarded: ControlPlane) -> AsyncIterator[Arc[Any]]:
    async with an_arc(guarded) as running:
        yield running


def anomalies(namespace: str) -> str:
    return f"{API}/namespaces/{namespace}/anomalies"


def an_anomaly(namespace: str, pod: str, uid: str, kind: str = "leak") -> kit.Json:
    target = {"apiVersion": "v1", "kind": "Pod", "namespace": namespace, "name": pod, "uid": uid}
    meta = {"name": f"{kind}-{pod}", "namespace": namespace, "labels": {"kreflex.dev/target": uid}}
    spec = {"watch": f"{namespace}/pods", "target": target, "class": kind, "since": now()}
    return {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Anomaly", "metadata": meta, "spec": spec}


def a_status(**status: Any) -> kit.Json:
    signals = [{"name": name, "class": "leak", "score": 2.5, "at": now()} for name in ("rss", "working-set")]
    fresh = {"lastSeen": now(), "freshUntil": now(timedelta(minutes=5))}
    said = {"phase": "Open", "score": 2.5, "summary": SUMMARY, "agreed": True, "signals": signals, **fresh}
    return {"status": {**said, **status}}


def now(later: timedelta = timedelta()) -> str:
    return (datetime.now(UTC) + later).strftime("%Y-%m-%dT%H:%M:%SZ")


async def refusal(client: Api, path: str, body: kit.Json) -> str:
    try:
        await client.post(path, body)
    except Refused as refused:
        return str(refused)
    return ""


async def noted(scorer: Api, pod: kit.Json, **status: Any) -> str:
    """What anomaly-scorer writes of a pod; the path of the Anomaly."""
    meta = pod["metadata"]
    where = anomalies(meta["namespace"])
    await scorer.post(where, an_anomaly(meta["namespace"], meta["name"], meta["uid"]))
    path = f"{where}/leak-{meta['name']}"
    await scorer.patch(f"{path}/status", a_status(**status))
    return path


# Who may write them


async def test_nobody_but_anomaly_scorer_makes_an_anomaly(here: kit.Place, scorer: Api) -> None:
    body = an_anomaly(here.name, "cart-1", "u")
    only = "only the account of anomaly-scorer writes anomalies and their status: pods may be evicted for them"
    async with here.plane.api_with(await here.plane.token("stranger", HOME)) as stranger:
        assert only in await refusal(stranger, anomalies(here.name), body)
        assert only in await refusal(here.plane.api, anomalies(here.name), body)
        await scorer.post(anomalies(here.name), body)
        path = f"{anomalies(here.name)}/leak-cart-1/status"
        for client in (stranger, here.plane.api):
            with pytest.raises(Refused, match="only the account of anomaly-scorer"):
                await client.patch(path, a_status())
    await scorer.patch(path, a_status())


async def test_an_account_of_its_name_elsewhere_is_not_anomaly_scorer(here: kit.Place, guarded: ControlPlane) -> None:
    subject = {"kind": "ServiceAccount", "name": SCORER, "namespace": here.name}
    rules = [{"apiGroups": ["kreflex.dev"], "resources": ["anomalies", "anomalies/status"], "verbs": ["*"]}]
    role = {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": {"name": "forger"}, "rules": rules}
    ref = {"apiGroup": RBAC, "kind": "Role", "name": "forger"}
    binding = {"apiVersion": f"{RBAC}/v1", "kind": "RoleBinding", "metadata": {"name": "forger"}, "roleRef": ref}
    await manifests.apply(guarded.api, [role, {**binding, "subjects": [subject]}], here.name)
    async with guarded.api_with(await guarded.token(SCORER, here.name)) as forger:
        body = an_anomaly(here.name, "cart-1", "u")
        assert "only the account of anomaly-scorer" in await refusal(forger, anomalies(here.name), body)


async def test_a_person_gives_feedback_in_his_own_name_and_an_account_gives_none(here: kit.Place, scorer: Api) -> None:
    await scorer.post(anomalies(here.name), an_anomaly(here.name, "cart-1", "u"))
    path = f"{anomalies(here.name)}/leak-cart-1"
    said = {"spec": {"feedback": {"verdict": "Dismissed", "by": "bob"}}}
    with pytest.raises(Refused, match=r"spec\.feedback\.by must be who asks: .+, not bob"):
        await here.plane.api.patch(path, said)
    async with here.plane.api_with(await here.plane.token("stranger", HOME)) as stranger:
        with pytest.raises(Refused, match="only people give feedback"):
            await stranger.patch(path, said)
    me = await whoami(here)
    own = {"spec": {"feedback": {"verdict": "Dismissed", "by": me}}}
    assert (await here.plane.api.patch(path, own))["spec"]["feedback"] == own["spec"]["feedback"]
    taken_back = await here.plane.api.patch(path, {"spec": {"feedback": None}})
    assert "feedback" not in taken_back["spec"]


async def whoami(here: kit.Place) -> str:
    review = {"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"}
    answer = await here.plane.api.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", review)
    name: str = answer["status"]["userInfo"]["username"]
    return name


async def test_what_an_anomaly_is_about_never_changes(here: kit.Place, scorer: Api) -> None:
    await scorer.post(anomalies(here.name), an_anomaly(here.name, "cart-1", "u"))
    with pytest.raises(Refused, match="it never changes"):
        await scorer.patch(f"{anomalies(here.name)}/leak-cart-1", {"spec": {"class": "spike"}})
    with pytest.raises(Refused, match="it never changes"):
        await here.plane.api.patch(f"{anomalies(here.name)}/leak-cart-1", {"spec": {"target": {"uid": "other"}}})


# What leads to an eviction


async def test_a_leaking_pod_is_evicted_and_its_siblings_are_not(here: kit.Place, arc: Arc[Any], scorer: Api) -> None:
    leaks, *_ = await here.deployment(replicas=3)
    await here.policy(anomalies=ALLOWED)
    path = await noted(scorer, leaks)
    result = await arc.handle(signal(leaks))
    assert (result.outcome, result.because) == ("applied", f"{SUMMARY}; 2 signals agree")
    assert here.evictions() == [leaks["metadata"]["uid"]]
    record = await the_record(here)
    assert (record["status"]["intent"]["action"], record["status"]["intent"]["prior"]["anomaly"]) == (
        "EvictAnomalous",
        "leak",
    )
    await scorer.patch(f"{path}/status", {"status": {"phase": "Resolved"}})
    assert await settled(arc, here, record["metadata"]["name"]) == "Recovered"


async def test_an_alert_without_an_anomaly_evicts_nothing(here: kit.Place, arc: Arc[Any]) -> None:
    (pod,) = await here.deployment()
    await here.policy(anomalies=ALLOWED)
    assert (await arc.handle(signal(pod))).because == "no container loops"
    assert (changes(here), here.evictions()) == ([], [])


async def test_without_the_policy_s_word_an_anomaly_evicts_nothing(here: kit.Place, arc: Arc[Any], scorer: Api) -> None:
    (pod,) = await here.deployment()
    await noted(scorer, pod)
    await here.policy()
    assert "anomalies.classes" in (await arc.handle(signal(pod))).because
    assert (changes(here), here.evictions()) == ([], [])


async def test_a_serving_pod_is_left_alone_when_too_few_would_stay(here: kit.Place, arc: Arc[Any], scorer: Api) -> None:
    (pod,) = await here.deployment()
    await noted(scorer, pod)
    await here.policy(anomalies=ALLOWED, limits={"minHealthy": 1})
    assert (await arc.handle(signal(pod))).outcome == "refused"
    assert told(await the_record(here)) == ("Open", "refused", "BlastRadius")
    assert here.evictions() == []


async def test_a_dry_run_says_what_it_would_do(here: kit.Place, arc: Arc[Any], scorer: Api) -> None:
    (pod,) = await here.deployment()
    await noted(scorer, pod)
    await here.policy(mode="DryRun", anomalies=ALLOWED)
    result = await arc.handle(signal(pod))
    assert result.outcome == "refused"
    assert result.because.endswith(f"because {SUMMARY}; 2 signals agree")
    assert here.evictions() == []


async def test_the_waker_finds_what_the_alert_did_not_tell(here: kit.Place, arc: Arc[Any], scorer: Api) -> None:
    (pod,) = await here.deployment()
    await noted(scorer, pod)
    await here.policy(anomalies=ALLOWED)
    found = [one async for one in find(arc.world, RestartLoopSettings()) if one.namespace == here.name]
    assert [(one.uid, one.summary) for one in found] == [(pod["metadata"]["uid"], f"{SUMMARY}; 2 signals agree")]
