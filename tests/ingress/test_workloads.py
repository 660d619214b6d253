"""What senders say of workloads, and of what shares out their traffic, through the real ASGI application."""

from typing import Any

import pytest

from kreflex.anomaly.anomalies import read_anomaly
from kreflex.anomaly.events import DETECTED, event_of
from kreflex.ingress.cloudevents import FOUND
from kreflex.views import JSON
from tests.ingress.conftest import Answer, Caller
from tests.ingress.surroundings import API
from tests.ingress.test_alertmanager import a_webhook, an_alert
from tests.ingress.test_argo_events import a_resource, sent
from tests.ingress.test_cloudevents import UPDATE, binary, structured

UID = "uid-cart"
CART = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"namespace": "shop", "name": "cart", "uid": UID}}
SEEN = {
    "api_version": "apps/v1",
    "kind": "Deployment",
    "namespace": "shop",
    "name": "cart",
    "uid": UID,
    "summary": "",
    "seen": True,
    "source": "apiserver",
    "delivery": "event-1",
    "episode": "",
    "course": None,
}
HEARD = {**SEEN, "uid": "", "seen": False}
RECORD = {"namespace": "shop", "name": "restart-loop-killer-cart-1", "function": "restart-loop-killer"}
OWNER = {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "cart", "uid": UID}
POD = {"apiVersion": "v1", "kind": "Pod", "namespace": "shop", "name": "cart-1", "uid": "uid-cart-1"}
KINDS = [
    ("apps/v1", "Deployment"),
    ("apps/v1", "StatefulSet"),
    ("apps/v1", "DaemonSet"),
    ("argoproj.io/v1alpha1", "Rollout"),
    ("networking.k8s.io/v1", "Ingress"),
    ("gateway.networking.k8s.io/v1", "HTTPRoute"),
    ("networking.istio.io/v1", "VirtualService"),
    ("flagger.app/v1beta1", "Canary"),
]


async def heard(caller: Caller, data: JSON, kind: str = UPDATE) -> Any:
    return (await binary(caller, data, type=kind)).json


@pytest.mark.parametrize(("version", "kind"), KINDS)
async def test_reads_a_whole_object_of_each_kind(caller: Caller, version: str, kind: str) -> None:
    told = await heard(caller, {**CART, "apiVersion": version, "kind": kind})
    assert told["signals"] == [{**SEEN, "api_version": version, "kind": kind}]


async def test_reads_it_in_the_version_that_we_know(caller: Caller) -> None:
    told = await heard(caller, {**CART, "apiVersion": "networking.istio.io/v1beta1", "kind": "VirtualService"})
    assert told["signals"][0]["api_version"] == "networking.istio.io/v1"


async def test_reads_a_reference(caller: Caller) -> None:
    told = await heard(caller, OWNER, "dev.knative.apiserver.ref.update")
    assert told["signals"] == [HEARD]


async def test_reads_what_argo_events_has_seen(caller: Caller) -> None:
    signals = (await sent(caller, a_resource(CART))).json["signals"]
    assert signals == [{**SEEN, "source": "argo-events", "delivery": signals[0]["delivery"]}]


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"metadata": {}}, "data.metadata.namespace"),
        ({"metadata": {"namespace": "shop"}}, "data.metadata.name"),
        ({"metadata": {"namespace": "shop", "name": "cart"}}, "data.metadata.uid"),
        ({"metadata": {"namespace": "../nodes", "name": "cart", "uid": UID}}, "data.metadata.namespace"),
        ({"metadata": None}, "data.metadata"),
    ],
)
async def test_names_what_is_wrong_with_an_object(caller: Caller, change: JSON, field: str) -> None:
    answer = await binary(caller, {**CART, **change}, type=UPDATE)
    assert answer.status == 400
    assert field in answer.json["error"]


async def test_it_is_not_for_a_function_of_pods_and_costs_no_call(caller: Caller) -> None:
    answer = await binary(caller, CART, path="/", type=UPDATE)
    assert (answer.status, API.calls) == (204, [])


# Alerts


@pytest.mark.parametrize(
    ("label", "kind"),
    [
        ("deployment", "Deployment"),
        ("statefulset", "StatefulSet"),
        ("daemonset", "DaemonSet"),
        ("rollout", "Rollout"),
        ("canary", "Canary"),
    ],
)
async def test_an_alert_that_names_a_workload_is_about_it(caller: Caller, label: str, kind: str) -> None:
    alert = an_alert("firing", {"summary": "It is stuck."}, alertname="Stuck", pod=None, uid=None, **{label: "cart"})
    (signal,) = await signals_of(caller, alert)
    assert (signal["kind"], signal["namespace"], signal["name"]) == (kind, alert["labels"]["namespace"], "cart")
    assert (signal["summary"], signal["source"], signal["uid"]) == ("Stuck: It is stuck.", "alertmanager", "")


async def test_an_alert_about_a_pod_and_its_workload_is_about_both(caller: Caller) -> None:
    found = await signals_of(caller, an_alert("firing", deployment="cart"))
    assert [one.get("kind", "Pod") for one in found] == ["Pod", "Deployment"]


async def test_takes_the_names_that_prometheus_has_put_aside(caller: Caller) -> None:
    labels = {"deployment": "kube-state-metrics", "exported_deployment": "cart", "exported_namespace": "shop"}
    (signal,) = await signals_of(caller, an_alert("firing", pod=None, uid=None, **labels))
    assert (signal["namespace"], signal["name"]) == ("shop", "cart")


@pytest.mark.parametrize("name", ["../pods", "", 7])
async def test_an_alert_whose_workload_has_no_name_is_ignored(caller: Caller, name: object) -> None:
    assert await signals_of(caller, an_alert("firing", pod=None, uid=None, deployment=name)) == []


async def test_a_resolved_alert_about_a_workload_is_never_a_reason_to_act(caller: Caller) -> None:
    assert await signals_of(caller, an_alert("resolved", pod=None, uid=None, deployment="cart")) == []


async def signals_of(caller: Caller, alert: JSON) -> Any:
    answer = await caller.post(a_webhook(alert), {"content-type": "application/json"}, "/echo")
    assert answer.status == 200, answer.body
    return answer.json["signals"]


# What others of Kreflex say


@pytest.mark.parametrize("verdict", ["ineffective", "unknown", "refused"])
async def test_what_another_function_could_not_heal_is_about_its_owner(caller: Caller, verdict: str) -> None:
    item = {**RECORD, "target": POD, "owner": OWNER, "outcome": "applied", "verdict": verdict.title(), "reason": "why"}
    told = await heard(caller, {"items": [item]}, f"dev.kreflex.remediation.{verdict}.v1")
    assert told["signals"] == [{**HEARD, "summary": "why", "source": told["about"]["source"]}]


async def test_of_several_only_those_are_heard_that_are_not_over(caller: Caller) -> None:
    item = {**RECORD, "target": POD, "owner": OWNER, "outcome": "applied"}
    items = [{**item, "verdict": "Recovered"}, {**item, "verdict": None}, {**item, "verdict": "Ineffective"}]
    told = await heard(caller, {"items": items}, "dev.kreflex.remediation.changed.v1")
    assert (len(told["signals"]), len(told["ignored"])) == (1, 2)


def a_record(function: str = "restart-loop-killer", **status: str) -> JSON:
    """A Remediation of another function, as ApiServerSource sends it."""
    body = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Remediation", "status": status}
    spec = {"function": function, "target": POD, "owner": OWNER}
    return {**body, "metadata": {"namespace": "shop", "name": f"{function}-cart-1-0123abcd"}, "spec": spec}


@pytest.mark.parametrize(
    ("status", "summary"),
    [
        ({"outcome": "applied", "verdict": "Ineffective", "verdictReason": "it loops again"}, "it loops again"),
        ({"outcome": "applied", "verdict": "Unknown"}, "a remediation that is unknown"),
        ({"outcome": "refused", "reason": "OOMKilled"}, "OOMKilled"),
    ],
)
async def test_a_record_tells_others_of_its_owner_too_for_the_waker_passes_no_reply_on(
    caller: Caller, status: dict[str, str], summary: str
) -> None:
    told = await heard(caller, a_record(**status))
    source = "kreflex.dev/functions/restart-loop-killer"
    assert told["signals"] == [{**HEARD, "summary": summary, "source": source}]
    assert [one["record"] for one in told["due"]] == ["restart-loop-killer-cart-1-0123abcd"]


@pytest.mark.parametrize(
    "status", [{}, {"outcome": "applied"}, {"outcome": "applied", "verdict": "Recovered"}, {"outcome": "deferred"}]
)
async def test_a_record_that_goes_well_tells_others_nothing(caller: Caller, status: dict[str, str]) -> None:
    assert (await heard(caller, a_record(**status)))["signals"] == []


async def test_a_record_of_another_function_costs_no_call(caller: Caller) -> None:
    answer = await binary(caller, a_record("rollback", outcome="refused"), path="/", type=UPDATE)
    assert (answer.status, API.calls) == (204, [])


async def test_a_function_is_woken_by_what_others_have_said_and_never_by_itself(caller: Caller) -> None:
    woken, own = [
        (await argo(caller, a_record(function, outcome="refused"))).json for function in ("rollback", "release-watcher")
    ]
    result = {"about": "Deployment shop/cart", "outcome": "skipped", "because": "the release is well"}
    assert woken == {"results": [result], "ignored": []}
    assert [result["outcome"] for result in own["results"]] == ["skipped"]
    assert [result["about"] for result in own["results"]] == ["record shop/release-watcher-cart-1-0123abcd"]


async def argo(caller: Caller, record: JSON) -> Answer:
    """Send a record as Argo Events does, whose answers tell what became of it."""
    return await caller.post(a_resource(record), {"content-type": "application/json"}, "/releases")


async def test_what_nothing_owns_is_meant_itself(caller: Caller) -> None:
    item = {**RECORD, "target": POD, "owner": None, "outcome": "refused", "verdict": None, "reason": "why"}
    told = await heard(caller, {"items": [item]}, "dev.kreflex.remediation.refused.v1")
    assert [(one["name"], one["summary"]) for one in told["signals"]] == [("cart-1", "why")]


async def test_what_is_about_a_node_is_for_nobody_here(caller: Caller) -> None:
    node = {"apiVersion": "v1", "kind": "Node", "name": "node-1", "uid": "u"}
    item = {**RECORD, "target": node, "owner": None, "outcome": "refused", "verdict": None}
    told = await heard(caller, {"items": [item]}, "dev.kreflex.remediation.refused.v1")
    assert (told["signals"], len(told["ignored"])) == ([], 1)


@pytest.mark.parametrize("kind", ["dev.kreflex.anomaly.detected.v1", "dev.kreflex.experiment.finished.v1"])
async def test_an_anomaly_and_an_experiment_name_their_target(caller: Caller, kind: str) -> None:
    told = await heard(caller, {"target": OWNER, "because": "its errors rise"}, kind)
    assert told["signals"] == [{**HEARD, "summary": "its errors rise", "source": told["about"]["source"]}]


def an_event(target: JSON) -> JSON:
    """What anomaly-scorer tells of an anomaly that it has just opened."""
    said = {"phase": "Open", "summary": "it leaks", "because": "2 signals agree", "agreed": True}
    spec = {"watch": "kreflex-system/pods", "target": target, "class": "leak", "since": "2026-05-01T12:00:00Z"}
    meta = {"namespace": "shop", "name": "leak-cart-1-01234567", "uid": "u", "resourceVersion": "1"}
    return event_of(DETECTED, read_anomaly({"metadata": meta, "spec": spec, "status": said}))


async def test_the_event_of_a_pods_anomaly_names_it_by_its_uid(caller: Caller) -> None:
    event = an_event(POD)
    told = (await structured(caller, event)).json
    (signal,) = told["signals"]
    named = {key: signal[key] for key in ("namespace", "name", "uid", "summary", "delivery")}
    assert named == {
        **{key: POD[key] for key in ("namespace", "name", "uid")},
        "summary": "it leaks",
        "delivery": event["id"],
    }


async def test_the_event_of_a_workloads_anomaly_is_a_reason_to_look_at_the_workload(caller: Caller) -> None:
    told = (await structured(caller, an_event(OWNER))).json
    (signal,) = told["signals"]
    assert (signal["kind"], signal["name"], signal["summary"], told["ignored"]) == (
        "Deployment",
        "cart",
        "it leaks",
        [],
    )


async def test_the_event_of_a_nodes_anomaly_is_for_nobody_here(caller: Caller) -> None:
    told = (await structured(caller, an_event({"apiVersion": "v1", "kind": "Node", "name": "blue-1", "uid": "n"}))).json
    assert (told["signals"], len(told["ignored"])) == ([], 1)


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({}, "data.target"),
        ([], "data.target"),
        ({"target": "cart"}, "data.target"),
        ({"items": [{}]}, "data.items[0].target"),
        ({"items": {}}, "data.items"),
        ({"target": {**OWNER, "name": "../x"}}, "data.target.name"),
    ],
)
async def test_names_what_an_anomaly_lacks(caller: Caller, data: Any, field: str) -> None:
    answer = await binary(caller, data, type="dev.kreflex.anomaly.detected.v1")
    assert answer.status == 400
    assert field in answer.json["error"]


async def test_an_anomaly_of_a_strange_kind_is_for_nobody_here(caller: Caller) -> None:
    told = await heard(caller, {"target": {**OWNER, "kind": ["Pod"]}}, "dev.kreflex.anomaly.detected.v1")
    assert (told["signals"], len(told["ignored"])) == ([], 1)


async def test_what_the_waker_has_found_is_a_signal(caller: Caller) -> None:
    item = {**OWNER, "summary": "stuck", "episode": "5f7/3"}
    told = await heard(caller, {"items": [item]}, FOUND)
    expected = {**SEEN, "seen": False, "summary": "stuck", "source": "waker", "delivery": "", "episode": "5f7/3"}
    assert told["signals"] == [expected]
