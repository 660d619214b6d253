"""What people allow, on a real API server: who refuses, with which words, and when it goes on."""

import asyncio
import re
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from typing import Any

import pytest

from kreflex.errors import UnavailableError
from kreflex.reflex import Arc
from kreflex.signals import Due
from lab.api import Refused, eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster.reflexes import (
    POLICIES,
    SPEED,
    Ahead,
    a_template,
    an_arc,
    asked,
    changes,
    events,
    goes_on,
    handled,
    made,
    settled,
    signal,
    the_record,
    told,
    woken,
)


@pytest.fixture
async def arc(installed: ControlPlane) -> AsyncIterator[Arc[Any]]:
    async with an_arc(installed) as running:
        yield running


async def a_looping_pod(here: kit.Place, **about: Any) -> kit.Json:
    return await here.loop((await here.deployment(**about))[0], speed=SPEED)


def uids(*pods: kit.Json) -> list[str]:
    return [pod["metadata"]["uid"] for pod in pods]


# PodDisruptionBudgets


async def a_budget(here: kit.Place, name: str = "shop") -> str:
    """A PodDisruptionBudget that allows nothing now, because the only replica is not ready."""
    path = f"/apis/policy/v1/namespaces/{here.name}/poddisruptionbudgets"
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "shop"}}}
    await here.plane.api.post(path, {"metadata": {"name": name}, "spec": spec})

    async def observed() -> Any:
        status = (await here.plane.api.get(f"{path}/{name}")).get("status", {})
        return status.get("observedGeneration") and status["expectedPods"] == 1 and status["currentHealthy"] == 0

    await eventually(observed, f"{name} observed")
    return f"{path}/{name}"


async def test_waits_for_a_disruption_budget_and_evicts_when_it_allows(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await a_looping_pod(here)
    budget = await a_budget(here)

    assert (await handled(arc, pod)).outcome == "deferred"
    record = await the_record(here)
    assert told(record) == ("Open", "deferred", "DisruptionBudget")
    assert "a PodDisruptionBudget does not allow it now" in record["status"]["reason"]
    assert here.evictions() == []

    await here.plane.api.patch(budget, {"spec": {"unhealthyPodEvictionPolicy": "AlwaysAllow"}})
    Ahead.of(arc, minutes=1)
    assert told(await goes_on(arc, here, pod)) == ("Applied", "applied", None)
    assert here.evictions() == uids(pod)


async def several_budgets(here: kit.Place) -> None:
    for name in ("one", "other"):
        await a_budget(here, name)


async def test_says_so_when_several_disruption_budgets_select_a_pod(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await a_looping_pod(here)
    await several_budgets(here)
    assert (await handled(arc, pod)).outcome == "deferred"
    assert told(await the_record(here)) == ("Open", "deferred", "SeveralBudgets")
    assert here.evictions() == []


@pytest.mark.parametrize(("block", "guard"), [(a_budget, "DisruptionBudget"), (several_budgets, "SeveralBudgets")])
async def test_asks_a_disruption_budget_once_however_often_it_is_called_before_its_time(
    here: kit.Place, arc: Arc[Any], block: Any, guard: str
) -> None:
    pod = await a_looping_pod(here)
    await block(here)
    await handled(arc, pod)
    record = await the_record(here)
    assert told(record) == ("Open", "deferred", guard)
    assert asked(here) == 1

    before, due = changes(here), Due(here.name, record["metadata"]["name"])
    assert {(await arc.handle(due)).because for _ in range(10)} == {"it is not due yet"}
    for _ in range(5):
        await handled(arc, pod)  # Each crash is an event.
    assert (asked(here), changes(here)) == (1, before)

    Ahead.of(arc, minutes=5)
    await goes_on(arc, here, pod)
    assert asked(here) == 2
    # Each attempt doubles it, one that met a pod which had just changed, too.
    first, second = pause_of(record), pause_of(await the_record(here))
    assert second > first >= timedelta(seconds=30)


def pause_of(record: kit.Json) -> timedelta:
    status = record["status"]
    pause = datetime.fromisoformat(status["dueAt"]) - datetime.fromisoformat(status["decidedAt"])
    return timedelta(seconds=round(pause.total_seconds()))


# Scope


async def a_bare_pod(here: kit.Place) -> None:
    spec = {"containers": [{"name": "app", "image": "shop:1"}], "terminationGracePeriodSeconds": 0}
    meta = {"name": "shop", "labels": {"app": "shop"}}
    await here.plane.api.post(f"/api/v1/namespaces/{here.name}/pods", {"metadata": meta, "spec": spec})


async def a_daemon_set(here: kit.Place) -> None:
    await made(here, "DaemonSet", {"selector": {"matchLabels": {"app": "shop"}}, "template": a_template()})


async def a_job(here: kit.Place) -> None:
    template = a_template(**{kit.FAULT: "crash-loop", kit.SPEED: SPEED})
    template["spec"]["restartPolicy"] = "OnFailure"
    await made(here, "Job", {"template": template, "backoffLimit": 100})


@pytest.mark.parametrize(("make", "kind"), [(a_bare_pod, "Pod"), (a_daemon_set, "DaemonSet"), (a_job, "Job")])
async def test_kinds_of_owners_have_to_be_named(here: kit.Place, arc: Arc[Any], make: Any, kind: str) -> None:
    await make(here)

    async def running() -> Any:
        return [pod for pod in await here.pods("shop") if pod["status"].get("containerStatuses")]

    pod = await here.loop((await eventually(running, "a pod"))[0], speed=SPEED)
    assert (await handled(arc, pod)).outcome == "refused"
    record = await the_record(here)
    assert told(record) == ("Open", "refused", "Scope")
    assert f"name {kind} in the policy's owners" in record["status"]["reason"]
    assert here.evictions() == []

    await here.policy(owners=[kind])
    assert told(await goes_on(arc, here, pod)) == ("Applied", "applied", None)
    assert here.evictions() == uids(pod)


async def test_a_pod_may_opt_out(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await a_looping_pod(here, annotations={"kreflex.dev/opt-out": "true"})
    assert (await handled(arc, pod)).outcome == "refused"
    assert told(await the_record(here)) == ("Open", "refused", "Scope")
    assert here.evictions() == []


async def test_an_opt_out_without_a_value_is_one(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await a_looping_pod(here, annotations={"kreflex.dev/opt-out": ""})
    assert (await handled(arc, pod)).outcome == "refused"
    assert told(await the_record(here)) == ("Open", "refused", "Scope")


async def test_an_owner_may_opt_out_and_in_again(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await a_looping_pod(here)
    path = f"/apis/apps/v1/namespaces/{here.name}/deployments/shop"
    await here.plane.api.patch(path, {"metadata": {"annotations": {"kreflex.dev/opt-out": "true"}}})
    assert (await handled(arc, pod)).outcome == "refused"
    assert "Deployment" in (await the_record(here))["status"]["reason"]
    assert here.evictions() == []

    await here.plane.api.patch(path, {"metadata": {"annotations": {"kreflex.dev/opt-out": None}}})
    await asyncio.sleep(1.1)
    assert (await handled(arc, pod)).outcome == "applied"


async def test_system_namespaces_are_protected_whatever_the_policies_say(
    installed: ControlPlane, arc: Arc[Any]
) -> None:
    system = kit.Place(installed, "kube-system")
    await system.policy()
    pod = await a_looping_pod(system)
    assert (await handled(arc, pod)).because == "namespace kube-system is protected"
    assert system.evictions() == []
    await installed.api.delete(f"{POLICIES}/clusterremediationpolicies/kube-system")
    await installed.api.delete("/apis/apps/v1/namespaces/kube-system/deployments/shop")


# Policies


async def test_a_freeze_stops_new_work_until_it_thaws(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await a_looping_pod(here)
    await here.policy(frozen=True)
    assert (await handled(arc, pod)).outcome == "refused"
    assert told(await the_record(here)) == ("Open", "refused", "Frozen")
    assert here.evictions() == []

    await here.policy(frozen=False)
    assert told(await goes_on(arc, here, pod)) == ("Applied", "applied", None)


async def test_without_a_policy_it_only_says_what_it_would_do(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await a_looping_pod(here)
    await here.plane.api.delete(f"{POLICIES}/clusterremediationpolicies/{here.name}")
    assert (await handled(arc, pod)).outcome == "refused"
    record = await the_record(here)
    assert told(record) == ("Open", "refused", "DryRun")
    name = pod["metadata"]["name"]
    would = (
        f"dry run (no ClusterRemediationPolicy selects it): would evict Pod {here.name}/{name}, because app restarted"
    )
    assert record["status"]["reason"].startswith(would)
    assert here.evictions() == []


async def own_policy(here: kit.Place, **spec: Any) -> None:
    await here.plane.api.post(
        f"{POLICIES}/namespaces/{here.name}/remediationpolicies",
        {"apiVersion": "kreflex.dev/v1alpha1", "kind": "RemediationPolicy", "metadata": {"name": "own"}, "spec": spec},
    )
    await asyncio.sleep(1.1)


@pytest.mark.parametrize(
    ("ceiling", "own", "guard"),
    [("Auto", "Approve", "Approval"), ("Approve", "Auto", "Approval"), ("DryRun", "Auto", "DryRun")],
)
async def test_a_namespace_may_only_tighten(here: kit.Place, arc: Arc[Any], ceiling: str, own: str, guard: str) -> None:
    pod = await a_looping_pod(here)
    await here.policy(mode=ceiling)
    await own_policy(here, mode=own)
    await handled(arc, pod)
    assert told(await the_record(here))[2] == guard
    assert here.evictions() == []


async def test_a_broken_policy_refuses_what_it_selects_and_says_why(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await a_looping_pod(here)
    # The API server's pattern does not know how long a duration may be.
    await own_policy(here, mode="Auto", limits={"storm": {"faults": 9, "cooldown": "99999999999h"}})
    assert (await handled(arc, pod)).outcome == "refused"
    record = await the_record(here)
    assert told(record) == ("Open", "refused", "Policy")
    assert "limits.storm.cooldown: must not be longer than 87600h" in record["status"]["reason"]
    assert here.evictions() == []

    there = await kit.place(here.plane)
    assert (await handled(arc, await a_looping_pod(there))).outcome == "applied"


# Limits


async def test_stops_after_three_useless_deletions_and_tells_people(here: kit.Place, arc: Arc[Any]) -> None:
    body = kit.deployment("shop", 1, {kit.FAULT: "crash-loop", kit.SPEED: SPEED})
    await here.plane.api.post(f"/apis/apps/v1/namespaces/{here.name}/deployments", body)

    async def the_next_loops() -> Any:
        pods = [pod for pod in await here.pods("shop") if "deletionTimestamp" not in pod["metadata"]]
        counts = [c["restartCount"] for pod in pods for c in pod["status"].get("containerStatuses", [])]
        return pods[0] if counts and max(counts) > 3 and pods[0]["metadata"]["uid"] not in here.evictions() else None

    for _ in range(3):
        pod = await eventually(the_next_loops, "a looping successor")
        result = await handled(arc, pod)
        assert result.outcome == "applied", result
        assert result.changed is not None
        assert await settled(arc, here, result.changed.name) == "Ineffective"

    last = await eventually(the_next_loops, "one more looping successor")
    refused = await handled(arc, last)
    assert refused.outcome == "refused"
    assert re.fullmatch(
        f"the last 3 remediations of {here.name}/Deployment/shop did not help: a person has to look; "
        r"not tried again before \d{4}-\d\d-\d\d \d\d:\d\d UTC",
        refused.because,
    )
    assert len(set(here.evictions())) == len(here.evictions()) == 3
    before = changes(here)
    await handled(arc, last)
    assert changes(here) == before
    assert [event for event in await events(here) if event[0] == "KreflexUseless"] == [
        ("KreflexUseless", f"Pod {last['metadata']['name']}", refused.because)
    ]


async def two_looping_pods(here: kit.Place) -> list[kit.Json]:
    return [await here.loop(pod, speed=SPEED) for pod in await here.deployment(replicas=2)]


async def test_takes_one_pod_of_an_owner_at_a_time(here: kit.Place, arc: Arc[Any]) -> None:
    first, second = await two_looping_pods(here)
    await here.policy(proof="5s")
    done = await handled(arc, first)
    assert done.changed is not None
    assert (await handled(arc, second)).outcome == "deferred"
    guards = {record["spec"]["target"]["name"]: told(record)[2] for record in await here.records()}
    assert guards[second["metadata"]["name"]] == "OneAtATime"
    (waits,) = [r["metadata"]["name"] for r in await here.records() if told(r)[2] == "OneAtATime"]
    before = changes(here)
    await woken(arc, here, waits)
    assert changes(here) == before

    assert await settled(arc, here, done.changed.name) == "Recovered"
    assert (await handled(arc, second)).outcome == "applied"
    assert here.evictions() == uids(first, second)


async def test_an_owner_rests_after_a_remediation(here: kit.Place, arc: Arc[Any]) -> None:
    await here.policy(limits={"cooldown": "1h"})
    first, second = await two_looping_pods(here)
    done = await handled(arc, first)
    assert done.changed is not None
    assert await settled(arc, here, done.changed.name) == "Recovered"
    refused = await handled(arc, second)
    assert refused.outcome == "deferred"
    assert re.search(r"was remediated \d+s ago, it rests for 1h$", refused.because)
    assert here.evictions() == uids(first)


@pytest.mark.parametrize(
    ("limits", "guard"),
    [
        ({"maxInFlight": 1}, "Slots"),
        ({"rates": [{"count": 9, "window": "1m"}, {"count": 1, "window": "1h"}]}, "Rate"),
        ({"maxInFlight": 0}, "Slots"),
    ],
)
async def test_a_policy_counts_over_all_owners(here: kit.Place, arc: Arc[Any], limits: kit.Json, guard: str) -> None:
    await here.policy(limits=limits)
    first, second = await a_looping_pod(here, name="one"), await a_looping_pod(here, name="other")
    admitted = limits.get("maxInFlight", 1)
    outcomes = [(await handled(arc, pod)).outcome for pod in (first, second)]
    assert outcomes == ["applied"] * admitted + ["deferred"] * (2 - admitted)
    assert guard in {told(record)[2] for record in await here.records()}
    assert len(here.evictions()) == admitted


async def test_a_storm_of_faults_is_left_to_people(here: kit.Place, arc: Arc[Any]) -> None:
    await own_policy(
        here, mode="Auto", limits={"storm": {"faults": 1}, "maxInFlight": 5}, proof="1s", proveWithin="30s"
    )
    first, second = await a_looping_pod(here, name="one"), await a_looping_pod(here, name="other")
    await handled(arc, first)
    await asyncio.sleep(1.1)
    assert (await handled(arc, second)).outcome == "refused"
    assert {told(record)[2] for record in await here.records()} == {None, "Storm"}
    assert here.evictions() == uids(first)


async def test_without_the_ledger_nothing_is_done(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await a_looping_pod(here)
    path = "/api/v1/namespaces/kreflex-system/configmaps/kreflex-ledger"
    await here.plane.api.delete(path)
    try:
        with pytest.raises(UnavailableError, match=r"kreflex-ledger is missing.*apply knative/base/ledger\.yaml"):
            await handled(arc, pod)
        assert here.evictions() == []
    finally:
        kit.kubectl(here.plane, "apply", "--server-side", "-f", str(kit.ROOT / "knative/base/ledger.yaml"))
    assert (await handled(arc, pod)).outcome == "applied"


async def test_a_ledger_that_is_lost_while_it_works_stops_it_too(here: kit.Place, arc: Arc[Any]) -> None:
    first, second = await a_looping_pod(here, name="one"), await a_looping_pod(here, name="other")
    assert (await handled(arc, first)).outcome == "applied"
    await here.plane.api.delete("/api/v1/namespaces/kreflex-system/configmaps/kreflex-ledger")
    try:
        with pytest.raises(UnavailableError, match="kreflex-ledger is missing"):
            await handled(arc, second)
    finally:
        kit.kubectl(here.plane, "apply", "--server-side", "-f", str(kit.ROOT / "knative/base/ledger.yaml"))
    assert here.evictions() == uids(first)


# The records and policies themselves


async def test_what_a_record_is_about_never_changes(here: kit.Place, arc: Arc[Any]) -> None:
    await handled(arc, await a_looping_pod(here))
    path = f"{POLICIES}/namespaces/{here.name}/remediations/{(await the_record(here))['metadata']['name']}"
    changes: list[kit.Json] = [
        {"function": "other"},
        {"target": {"uid": "other"}},
        {"fault": {"key": "other"}},
        {"owner": {"name": "other"}},
        {"owner": None},
    ]
    for change in changes:
        with pytest.raises(Refused, match=r"422: .*(never changes|neither added nor taken away)"):
            await here.plane.api.patch(path, {"spec": change})


@pytest.mark.parametrize(
    "spec",
    [
        {"mode": "Sometimes"},
        {"proof": "30m", "proveWithin": "20m"},
        {"proof": "30m"},
        {"proveWithin": "5m"},
        {"limits": {"cooldown": "5 minutes"}},
        {"limits": {"maxInFlight": -1}},
        {"limits": {"minHealthy": "half"}},
        {"limits": {"useless": {"count": 0}}},
        {"limits": {"useless": {"count": 21}}},
        {"limits": {"useless": {"stop": "24h1s"}}},
        {"limits": {"cooldown": "24h1s"}},
        {"limits": {"cooldown": "99999999999h"}},
        {"limits": {"rates": [{"count": 1, "window": "168h1s"}]}},
        {"scope": {"selector": {"matchExpressions": [{"key": "app", "operator": "Like"}]}}},
    ],
)
async def test_the_api_server_takes_no_policy_that_is_not_valid(here: kit.Place, spec: kit.Json) -> None:
    with pytest.raises(Refused, match="422: "):
        await own_policy(here, **spec)


async def test_the_api_server_takes_a_policy_that_looks_back_for_a_week_and_stops_for_a_day(here: kit.Place) -> None:
    rates = [{"count": 1, "window": "168h"}]
    await own_policy(here, limits={"cooldown": "24h", "rates": rates, "useless": {"count": 20, "stop": "24h"}})


async def test_a_namespaced_policy_names_no_namespaces(here: kit.Place) -> None:
    with pytest.raises(Refused, match=r"422: .*is about its own namespace"):
        await own_policy(here, scope={"namespaces": ["kube-system"]})


async def test_the_records_read_like_an_incident_log(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await a_looping_pod(here)
    await handled(arc, pod)
    heads, *rows = kit.kubectl(here.plane, "get", "remediations", "-A").splitlines()
    assert heads.split() == ["NAMESPACE", "NAME", "TARGET", "PHASE", "OUTCOME", "GUARD", "VERDICT", "AGE", "REASON"]
    (row,) = [row for row in rows if row.startswith(here.name)]
    name = pod["metadata"]["name"]
    assert re.search(
        rf"restart-loop-killer-{name}-\w{{8}} +{name} +Applied +applied +\d+s +app restarted \d+ times", row
    )


async def test_a_lost_signal_leaves_no_trace(here: kit.Place, arc: Arc[Any]) -> None:
    (pod,) = await here.deployment()
    assert (await arc.handle(signal(pod))).outcome == "skipped"
    assert (await here.records(), here.writes()) == ([], [])
