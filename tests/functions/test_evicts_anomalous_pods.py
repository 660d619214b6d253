"""What restart-loop-killer makes of the anomalies that anomaly-scorer has written down, by values."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from functions.restart_loop_killer.main import RestartLoopSettings, decide, find, recovered
from kreflex import (
    Defer,
    EvictAnomalous,
    EvictPod,
    Ineffective,
    PodSignal,
    Recovered,
    Ref,
    Refuse,
    Skip,
    Treatment,
)
from kreflex.records import Owner, Target
from kreflex.views import JSON
from tests.values import (
    CART,
    CART_DEPLOYMENT,
    CART_SET,
    MINUTE,
    NOW,
    RUNNING,
    CannedApi,
    a_pod,
    a_status,
    a_workload,
    objects,
    stamp,
    the_pod,
    the_workload,
)

SIGNAL = PodSignal("shop", "cart-1", CART.uid, "KreflexAnomaly: it leaks", source="alertmanager")
HEALTHY: dict[str, Any] = {"app": [a_status(state=RUNNING, restarts=0, last={})], "ready_for": MINUTE}
LEAKS = {"classes": ["leak"]}
SUMMARY = "Pod shop/cart-1: leak: rss is 200Mi, and reaches its limit of 256Mi in 12 min (2.5 times its threshold)"
STORY = f"{SUMMARY}; 2 signals agree"
PROOF = 10 * MINUTE
ANOMALIES, POLICIES = "/apis/kreflex.dev/v1alpha1", "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies"


def a_sign(name: str, kind: str = "leak") -> JSON:
    return {"name": name, "class": kind, "score": 2.5, "at": stamp(NOW), "evidence": {"value": 1.0}}


def an_anomaly(kind: str = "leak", target: Ref = CART, **status: Any) -> JSON:
    """A leak of the pod on which two signals agree, seen a moment ago, unless told otherwise."""
    said = {
        "phase": "Open",
        "lastSeen": stamp(NOW),
        "freshUntil": stamp(NOW + MINUTE),
        "score": 2.5,
        "summary": SUMMARY,
        "agreed": True,
        "signals": [a_sign("working-set"), a_sign("rss")],
        **status,
    }
    about = Target.of(target).model_dump(mode="json", by_alias=True)
    return {
        "metadata": {"namespace": "shop", "name": f"{kind}-cart-1-00000000", "uid": "u", "resourceVersion": "3"},
        "spec": {"watch": "kreflex-system/pods", "target": about, "class": kind, "since": stamp(NOW)},
        "status": said,
    }


def a_policy(name: str = "all", **spec: Any) -> JSON:
    return {"metadata": {"name": name, "uid": f"uid-{name}", "generation": 1}, "spec": {"mode": "Auto", **spec}}


def an_api(*anomalies: JSON, policies: list[JSON] | None = None, pods: list[JSON] | None = None) -> CannedApi:
    """A healthy pod of a Deployment, these anomalies, and a policy that lets leaks lead to evictions."""
    held = objects(a_workload(), a_workload(CART_SET, owner=CART_DEPLOYMENT), *(pods or [a_pod(**HEALTHY)]))
    held |= {f"{ANOMALIES}/namespaces/shop/anomalies/{one['metadata']['name']}": one for one in anomalies}
    for one in [a_policy(anomalies=LEAKS)] if policies is None else policies:
        held[f"{POLICIES}/{one['metadata']['name']}"] = one
    return CannedApi(held)


async def decision(*anomalies: JSON, signal: PodSignal = SIGNAL, **about: Any) -> Any:
    return await decide(signal, an_api(*anomalies, **about).world(), RestartLoopSettings())


def skipped(why: str, kind: str = "leak") -> Skip:
    return Skip(f"Anomaly shop/{kind}-cart-1-00000000{why}")


async def test_evicts_a_leaking_pod_and_says_why() -> None:
    assert await decision(an_anomaly()) == EvictAnomalous(STORY, the_pod(**HEALTHY), the_workload(), "leak")


async def test_an_alert_without_an_anomaly_in_the_cluster_does_nothing() -> None:
    assert await decision() == Skip("no container loops")


async def test_an_event_of_a_healthy_pod_costs_no_call_even_if_it_leaks() -> None:
    api = an_api(an_anomaly())
    seen = replace(SIGNAL, seen=the_pod(**HEALTHY))
    assert await decide(seen, api.world(), RestartLoopSettings()) == Skip("the event shows no loop")
    assert api.calls == []


async def test_without_a_policy_that_says_so_no_anomaly_leads_to_anything() -> None:
    no = skipped(": no policy lets leak lead to an eviction (anomalies.classes)")
    assert await decision(an_anomaly(), policies=[]) == no
    assert await decision(an_anomaly(), policies=[a_policy()]) == no
    assert await decision(an_anomaly(), policies=[a_policy(anomalies={"classes": ["spike"]})]) == no


async def test_a_class_that_is_not_named_leads_to_nothing() -> None:
    no = skipped(": no policy lets spike lead to an eviction (anomalies.classes)", "spike")
    assert await decision(an_anomaly("spike")) == no


async def test_all_policies_that_say_something_of_anomalies_have_to_allow_it() -> None:
    no = skipped(": no policy lets leak lead to an eviction (anomalies.classes)")
    two = [a_policy(anomalies=LEAKS), a_policy("strict", anomalies={"classes": ["spike"]})]
    assert await decision(an_anomaly(), policies=two) == no
    silent = [a_policy(anomalies=LEAKS), a_policy("silent")]
    assert isinstance(await decision(an_anomaly(), policies=silent), EvictAnomalous)


async def test_of_several_policies_the_most_signals_are_wanted() -> None:
    three = [a_policy(anomalies=LEAKS), a_policy("strict", anomalies={**LEAKS, "signals": 3})]
    no = skipped(" is seen by 2 signals, and the policy wants 3 (anomalies.signals)")
    assert await decision(an_anomaly(), policies=three) == no


async def test_one_signal_alone_leads_to_nothing() -> None:
    alone = an_anomaly(agreed=False, because="working-set alone says so, 2 signals have to agree")
    assert await decision(alone) == skipped(" may lead to nothing: working-set alone says so, 2 signals have to agree")
    two_containers = [a_sign("working-set"), {**a_sign("working-set"), "series": 'container="mesh"'}]
    said = an_anomaly(signals=two_containers)
    assert await decision(said) == skipped(" is seen by 1 signals, and the policy wants 2 (anomalies.signals)")


@pytest.mark.parametrize("until", [None, stamp(NOW - timedelta(seconds=1))], ids=["never", "is over"])
async def test_what_its_scorer_does_not_renew_is_not_believed(until: str | None) -> None:
    old = " is old: it is not beyond its threshold now, or anomaly-scorer is silent (status.freshUntil)"
    assert await decision(an_anomaly(freshUntil=until)) == skipped(old)


async def test_what_a_person_has_dismissed_leads_to_nothing_before_its_scorer_has_heard_of_it() -> None:
    no = skipped(" was dismissed by ann")
    assert await decision(an_anomaly(feedback="dismissed", feedbackBy="ann")) == no
    said = an_anomaly()
    said["spec"]["feedback"] = {"verdict": "Dismissed", "by": "ann"}
    assert await decision(said) == no


async def test_of_what_was_said_of_an_anomaly_the_last_word_counts() -> None:
    said = an_anomaly(feedback="dismissed", feedbackBy="ann")
    said["spec"]["feedback"] = {"verdict": "Confirmed", "by": "bob"}
    assert isinstance(await decision(said), EvictAnomalous)


async def test_an_anomaly_that_is_over_leads_to_nothing() -> None:
    assert await decision(an_anomaly(phase="Resolved")) == Skip("no container loops")


async def test_the_anomaly_of_an_earlier_pod_of_the_same_name_leads_to_nothing() -> None:
    elder = replace(CART, uid="uid-of-the-elder")
    assert await decision(an_anomaly(target=elder)) == Skip("no container loops")


async def test_a_policy_that_can_not_be_read_is_told_of() -> None:
    broken = await decision(an_anomaly(), policies=[a_policy(anomalies={"classes": ["leeks"]})])
    assert isinstance(broken, Refuse)
    assert broken.cause == "Policy"
    assert broken.because.startswith("ClusterRemediationPolicy all can't be used: anomalies.classes.0")


async def test_a_pod_that_loops_is_evicted_for_its_loop() -> None:
    loops = [a_pod(app=[a_status(restarts=5)])]
    answer = await decision(an_anomaly(), pods=loops)
    assert type(answer) is EvictPod
    assert answer.because.startswith("app restarted 5 times")


async def test_a_pod_that_is_killed_for_its_memory_is_handed_on_as_before() -> None:
    killed = [a_pod(app=[a_status(restarts=4, state={"terminated": {"exitCode": 137, "reason": "OOMKilled"}})])]
    answer = await decision(an_anomaly(), pods=killed)
    assert isinstance(answer, Refuse)
    assert answer.cause == "OOMKilled"


async def test_a_loop_that_is_watched_is_not_forgotten_for_an_anomaly_that_leads_to_nothing() -> None:
    runs = [a_pod(app=[a_status(restarts=20, state={"running": {"startedAt": stamp(NOW - MINUTE)}})])]
    watched = replace(SIGNAL, source="record")
    answer = await decision(an_anomaly(agreed=False), signal=watched, pods=runs)
    assert answer == Defer("it runs again at this moment, and may crash again", until=NOW + 9 * MINUTE)


async def test_the_waker_finds_what_no_alert_has_told() -> None:
    api = an_api(an_anomaly())
    found = [signal async for signal in find(api.world(), RestartLoopSettings())]
    assert found == [PodSignal("shop", "cart-1", CART.uid, STORY)]


@pytest.mark.parametrize(
    "about",
    [{"agreed": False}, {"phase": "Resolved"}, {"freshUntil": None}, {"signals": []}, {"kind": "spike"}],
    ids=["not agreed", "over", "old", "no signals", "of another class"],
)
async def test_the_waker_finds_nothing_that_leads_to_nothing(about: dict[str, Any]) -> None:
    api = an_api(an_anomaly(**about))
    assert [signal async for signal in find(api.world(), RestartLoopSettings())] == []


async def test_without_an_anomaly_the_waker_reads_no_policies() -> None:
    api = an_api()
    assert [signal async for signal in find(api.world(), RestartLoopSettings())] == []
    assert api.calls == [f"GET {ANOMALIES}/anomalies", "GET /api/v1/pods"]


async def verdict(*anomalies: JSON, prior: dict[str, str] | None = None) -> Any:
    """What is judged when a pod has been Ready long enough since another was evicted for a leak."""
    since = 12 * MINUTE
    whole = {**Target.of(CART_DEPLOYMENT).model_dump(), "controller": CART_SET.uid, "template_hash": "7d4"}
    why = {"anomaly": "leak"} if prior is None else prior
    treatment = Treatment(CART, Owner(**whole), NOW - since, PROOF, action="EvictAnomalous", prior=why)
    return await recovered(treatment, an_api(*anomalies, pods=[SUCCESSOR]).world(), RestartLoopSettings())


NEXT = Ref("v1", "Pod", "shop", "cart-2", "uid-cart-2")
SUCCESSOR = a_pod(NEXT, age=12 * MINUTE, app=HEALTHY["app"], ready_for=PROOF + timedelta(seconds=1))


async def test_recovers_when_a_successor_is_ready_and_does_not_leak() -> None:
    assert await verdict() == Recovered("a successor has been Ready for 10m")


async def test_is_ineffective_when_a_successor_leaks_too() -> None:
    because = f"its successor cart-2 shows the same: {STORY}"
    assert await verdict(an_anomaly(target=NEXT)) == Ineffective(because)


async def test_an_anomaly_of_another_class_or_one_that_is_over_is_not_the_same() -> None:
    well = Recovered("a successor has been Ready for 10m")
    assert await verdict(an_anomaly("spike", target=NEXT), an_anomaly(target=NEXT, phase="Resolved")) == well


async def test_who_was_evicted_for_a_loop_is_judged_by_loops() -> None:
    assert await verdict(an_anomaly(target=NEXT), prior={}) == Recovered("a successor has been Ready for 10m")


def test_the_record_says_for_what_it_was_evicted() -> None:
    evicts = EvictAnomalous(STORY, the_pod(**HEALTHY), the_workload(), "leak")
    assert evicts.prior() == {"resourceVersion": "7", "ready": "true", "restarts.app": "0", "anomaly": "leak"}
