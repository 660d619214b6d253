"""What senders say of nodes, through the real ASGI application."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from kreflex.ingress.cloudevents import ANSWERED, FOUND
from kreflex.views import JSON
from tests.ingress.conftest import Answer, Caller
from tests.ingress.surroundings import API
from tests.ingress.test_alertmanager import SIGNAL, a_webhook, an_alert
from tests.ingress.test_argo_events import a_resource
from tests.ingress.test_cloudevents import TRACE, UPDATE, binary, structured
from tests.ingress.test_cloudevents import attributes as event_attributes
from tests.values import a_node as any_node
from tests.values import says

UID = "uid-node-1"
DELETE = "dev.knative.apiserver.resource.delete"
SEEN = {
    "name": "node-1",
    "uid": UID,
    "summary": "",
    "seen": True,
    "source": "apiserver",
    "delivery": "event-1",
    "episode": "",
    "course": None,
}
ALERT = {
    **SEEN,
    "uid": "",
    "summary": "KubeNodeNotReady: Node is not ready.",
    "seen": False,
    "source": "alertmanager",
    "delivery": "5ef77f1f8a3ecb8d",
}


def a_node() -> JSON:
    """A node that is ill."""
    return any_node("node-1", says("Ready", "False"))


def a_node_alert(status: str = "firing", alertname: str = "KubeNodeNotReady", **labels: Any) -> JSON:
    """The stock alert about a node, of a kube-state-metrics whose own labels were dropped."""
    told = {"alertname": alertname, "container": None, "namespace": None, "pod": None, "uid": None, **labels}
    return an_alert(status, {"summary": "Node is not ready."}, **told)


async def read(caller: Caller, *alerts: JSON, path: str = "/echo") -> Any:
    answer = await caller.post(a_webhook(*alerts), {"content-type": "application/json"}, path)
    assert answer.status == 200, answer.body
    return answer.json


# Alerts


async def test_an_alert_that_names_a_node_is_about_it(caller: Caller) -> None:
    assert (await read(caller, a_node_alert(node="node-1")))["signals"] == [ALERT]


@pytest.mark.parametrize(
    ("labels", "name"),
    [
        ({"node": "node-1", "instance": "10.0.0.9:8080"}, "node-1"),
        ({"kubernetes_node": "node-1", "instance": "10.0.0.9:8080"}, "node-1"),
        ({"nodename": "Node-1.example.com"}, "node-1.example.com"),
        # Prometheus does not honor the labels of kube-state-metrics here: `node` is where that runs.
        ({"node": "node-9", "exported_node": "node-1"}, "node-1"),
        ({"node": "", "nodename": "node-1"}, "node-1"),
    ],
)
async def test_takes_the_node_from_the_label_that_names_it(caller: Caller, labels: JSON, name: str) -> None:
    (signal,) = (await read(caller, a_node_alert(**labels)))["signals"]
    assert signal["name"] == name


@pytest.mark.parametrize(
    ("instance", "name"),
    [
        ("node-1", "node-1"),
        ("node-1:9100", "node-1"),
        ("ip-10-0-0-7.eu-west-1.compute.internal:9100", "ip-10-0-0-7.eu-west-1.compute.internal"),
        ("10.0.0.7:9100", "10.0.0.7"),
        ("10.0.0.7", "10.0.0.7"),
        ("[2001:db8::7]:9100", "2001:db8::7"),
        ("[2001:DB8:0::7]:9100", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("2001:db8::7", "2001:db8::7"),
    ],
)
@pytest.mark.parametrize(
    "about",
    [
        {"alertname": "NodeFilesystemAlmostOutOfSpace", "job": "node-exporter"},
        {"alertname": "NodeRAIDDegraded"},
        {"alertname": "DiskWillFill", "job": "prometheus-node-exporter"},
        {"alertname": "KubeletDown", "job": "kubelet"},
        {"alertname": "KernelDeadlock", "job": "monitoring/node-problem-detector"},
    ],
)
async def test_the_instance_of_what_runs_on_each_node_is_the_node(
    caller: Caller, about: JSON, instance: str, name: str
) -> None:
    (signal,) = (await read(caller, a_node_alert(**about, instance=instance)))["signals"]
    assert (signal["name"], signal["uid"]) == (name, "")


@pytest.mark.parametrize(
    "labels",
    [
        {},
        {"instance": "node-1:9100", "job": "kube-state-metrics", "alertname": "KubeQuota"},
        {"node": "../pods"},
        {"node": "node-1/status"},
        {"node": "node-1?watch=1"},
        {"node": 5},
        {"node": ["node-1"]},
        {"node": "\ud800"},
        {"node": "x" * 254},
        {"instance": "http://node-1:9100/metrics", "job": "node-exporter"},
        {"instance": "fe80::1%eth0", "job": "node-exporter"},
        {"instance": "fe80::1%../x", "job": "node-exporter"},
        {"instance": "[::1", "job": "node-exporter"},
        {"instance": ":9100", "job": "node-exporter"},
        {"instance": "node-1:port", "job": "node-exporter"},
        {"instance": "1:2:3:9100", "job": "node-exporter"},
        {"instance": None, "job": "node-exporter"},
        {"job": {"a": 1}, "instance": "node-1"},
    ],
)
async def test_an_alert_that_names_no_machine_is_ignored(caller: Caller, labels: JSON) -> None:
    answer = await read(caller, a_node_alert(**{"alertname": "Custom", **labels}), a_node_alert(node="node-1"))
    assert (answer["signals"], len(answer["ignored"])) == ([ALERT], 1)
    assert answer["ignored"][0].endswith("names no pod, no workload and no node")


async def test_an_alert_may_name_a_pod_and_a_node(caller: Caller) -> None:
    signals = (await read(caller, an_alert(node="node-1")))["signals"]
    assert signals == [SIGNAL, {**ALERT, "summary": SIGNAL["summary"]}]


async def test_reads_the_pod_that_is_meant_where_labels_are_not_honored(caller: Caller) -> None:
    own = {"namespace": "monitoring", "pod": "kube-state-metrics-0"}
    alert = an_alert(**own, exported_namespace="shop", exported_pod="cart-1")
    assert (await read(caller, alert))["signals"] == [SIGNAL]


async def test_a_resolved_alert_of_a_node_asks_for_nothing(caller: Caller) -> None:
    answer = await read(caller, a_node_alert("resolved", node="node-1"))
    assert (answer["signals"], answer["resolved"]) == ([], [])
    assert answer["ignored"] == [
        "KubeNodeNotReady of node node-1 is resolved; a change of the node itself wakes the check"
    ]


# Who heeds what


async def test_a_function_for_pods_never_hears_of_nodes(caller: Caller) -> None:
    answer = await read(caller, an_alert(node="node-1"), a_node_alert(node="node-2"), path="/")
    assert [result["about"] for result in answer["results"]] == ["pod shop/cart-1"]
    assert answer["ignored"] == [
        "node node-1 is not for restart-loop-killer",
        "node node-2 is not for restart-loop-killer",
    ]
    assert not any("node" in call for call in API.calls)


async def test_a_function_for_nodes_never_hears_of_pods(caller: Caller) -> None:
    alerts = an_alert(node="node-1"), an_alert("resolved"), an_alert(pod="cart-2")
    answer = await read(caller, *alerts, path="/nodes")
    assert answer["results"] == [{"about": "node node-1", "outcome": "skipped", "because": "the node is well"}]
    assert answer["ignored"] == [
        "pod shop/cart-1 is not for node-watcher",
        "pod shop/cart-2 is not for node-watcher",
        "resolved pod shop/cart-1 is not for node-watcher",
    ]
    assert API.calls == []


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (UPDATE, a_node()),
        (DELETE, a_node()),
        (FOUND, {"items": [{"kind": "Node", "name": "node-1", "uid": UID}]}),
        (ANSWERED, {"namespace": "kreflex-system", "record": "r-1", "outcome": "Done"}),
    ],
)
async def test_what_is_about_nodes_costs_a_function_for_pods_no_call(caller: Caller, kind: str, data: JSON) -> None:
    assert ((await binary(caller, data, "/", type=kind)).status, API.calls) == (204, [])


# Objects


@pytest.mark.parametrize("kind", [UPDATE, "dev.knative.apiserver.resource.add", DELETE])
async def test_reads_a_node_in_whatever_became_of_it(caller: Caller, kind: str) -> None:
    assert (await binary(caller, a_node(), type=kind)).json["signals"] == [SEEN]
    event = {**event_attributes(type=kind, kind="Node"), "data": a_node()}
    assert (await structured(caller, event)).json["signals"] == [SEEN]


@pytest.mark.parametrize("verb", ["add", "update", "delete"])
async def test_reads_a_reference_to_a_node(caller: Caller, verb: str) -> None:
    reference = {"apiVersion": "v1", "kind": "Node", "name": "node-1"}
    answer = await binary(caller, reference, type=f"dev.knative.apiserver.ref.{verb}")
    assert answer.json["signals"] == [{**SEEN, "uid": "", "seen": False}]


async def test_the_data_of_a_deleted_pod_is_not_even_read(caller: Caller) -> None:
    answer = await binary(caller, b"{", type=DELETE, kind="Pod")
    assert (answer.status, answer.json["ignored"]) == (200, ["an object that was deleted is for no function here"])


@pytest.mark.parametrize("verb", ["ADD", "UPDATE", "DELETE"])
async def test_reads_a_node_from_argo_events(caller: Caller, verb: str) -> None:
    for body in (a_node(), json.dumps(a_node())):
        answer = await caller.post(a_resource(body, verb), {}, "/echo")
        assert answer.json["signals"] == [{**SEEN, "source": "argo-events", "delivery": ""}]
        assert answer.json["about"] == ({"sender": "argo-events"} if verb == "DELETE" else {})


def a_broken_node(**meta: Any) -> JSON:
    body = a_node()
    body["metadata"] = {key: value for key, value in {**body["metadata"], **meta}.items() if value is not None}
    return body


@pytest.mark.parametrize(
    ("data", "field"),
    [
        ({"kind": "Node"}, "data: is not a whole Node: KeyError('metadata')"),
        (a_broken_node(uid=None), "data: is not a whole Node: KeyError('uid')"),
        (a_broken_node(uid="x y"), "data.metadata.uid: must be the UID"),
        (a_broken_node(name="../x"), "data.metadata.name: must be a name"),
        (a_broken_node(name=5), "data.metadata.name: must be a name"),
        (a_broken_node(creationTimestamp="now"), "data: is not a whole Node"),
        (a_broken_node(labels="ab"), "data: is not a whole Node"),
        ({**a_node(), "status": {"conditions": [{"type": "Ready"}]}}, "data: is not a whole Node: KeyError('status')"),
        ({**a_node(), "status": {"conditions": [5]}}, "data: is not a whole Node"),
        ({**a_node(), "status": {"addresses": {"a": 1}}}, "data: is not a whole Node"),
        ({**a_node(), "spec": {"taints": [{"key": "a"}]}}, "data: is not a whole Node: KeyError('effect')"),
    ],
)
@pytest.mark.parametrize("path", ["/", "/nodes"])
async def test_names_what_is_wrong_with_a_node(caller: Caller, data: JSON, field: str, path: str) -> None:
    answer = await binary(caller, data, path)
    assert answer.status == 400
    assert answer.json["error"].startswith(field)


async def test_names_what_is_wrong_with_a_reference_to_a_node(caller: Caller) -> None:
    answer = await binary(caller, {"kind": "Node", "name": "a/b"}, type="dev.knative.apiserver.ref.update")
    assert (answer.status, answer.json["error"]) == (400, "data.name: must be a name as Kubernetes has them")


# Kubernetes Events


def a_warning(kind: str = "Node", **about: Any) -> JSON:
    """What node-problem-detector writes of a hung task: its reference has no UID, or the name in its place."""
    return {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "node-1.17f1", "namespace": "default"},
        "involvedObject": {"kind": kind, "name": "node-1", "uid": "node-1"},
        "reason": "TaskHung",
        "message": "INFO: task docker:20744 blocked for more than 120 seconds.",
        "source": {"component": "kernel-monitor", "host": "node-1"},
        "type": "Warning",
        **about,
    }


async def test_a_warning_about_a_node_names_it_and_not_by_its_uid(caller: Caller) -> None:
    (signal,) = (await binary(caller, a_warning())).json["signals"]
    summary = "TaskHung: INFO: task docker:20744 blocked for more than 120 seconds."
    assert signal == {**SEEN, "uid": "", "seen": False, "summary": summary}


async def test_reads_a_warning_of_the_newer_kind(caller: Caller) -> None:
    event = a_warning(apiVersion="events.k8s.io/v1", regarding={"kind": "Node", "name": "node-1"}, note="hung")
    del event["involvedObject"], event["message"]
    (signal,) = (await binary(caller, event)).json["signals"]
    assert (signal["name"], signal["summary"]) == ("node-1", "TaskHung: hung")


@pytest.mark.parametrize(
    "event",
    [
        a_warning(type="Normal"),
        a_warning("Pod"),
        a_warning(type=None),
        a_warning(reportingComponent="kreflex.dev/node-replacer"),
        a_warning(reportingController="kreflex.dev/restart-loop-killer"),
    ],
)
async def test_leaves_alone_what_is_no_warning_about_a_node(caller: Caller, event: JSON) -> None:
    answer = (await binary(caller, event)).json
    assert (answer["signals"], answer["ignored"]) == ([], ["the Event TaskHung is for no function here"])


@pytest.mark.parametrize(
    ("event", "field"),
    [
        (a_warning(involvedObject=5), "data.involvedObject: must be a reference"),
        (a_warning(involvedObject={"kind": "Node", "name": "../x"}), "data.involvedObject.name: must be a name"),
        ({"kind": "Event"}, "data.regarding: must be a reference"),
    ],
)
async def test_names_what_is_wrong_with_a_warning(caller: Caller, event: JSON, field: str) -> None:
    answer = await binary(caller, event)
    assert answer.status == 400
    assert answer.json["error"].startswith(field)


# What the waker has found

KINDS = "Pod, Node, Deployment, StatefulSet, DaemonSet, Rollout, Ingress, HTTPRoute, VirtualService, Canary"
ITEM = {"kind": "Node", "name": "node-1", "uid": "u-1", "summary": "Ready is False", "episode": "Ready/2026-05-01"}


async def test_reads_the_nodes_that_the_waker_has_found(caller: Caller) -> None:
    pod = {"namespace": "shop", "name": "cart-1", "uid": "u-1"}
    answer = await binary(caller, {"items": [ITEM, pod, {**pod, "kind": "Pod"}]}, type=FOUND)
    node, *pods = answer.json["signals"]
    assert node == {
        **{key: value for key, value in ITEM.items() if key != "kind"},
        "seen": False,
        "source": "waker",
        "delivery": "",
        "course": None,
    }
    assert [one["namespace"] for one in pods] == ["shop", "shop"]


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({**ITEM, "kind": "Job", "namespace": "shop"}, f"data.items[0].kind: must be one of {KINDS}, not 'Job'"),
        ({**ITEM, "kind": ["Node"], "namespace": "shop"}, f"data.items[0].kind: must be one of {KINDS}, not a list"),
        ({**ITEM, "name": "a/b"}, "data.items[0].name: must be a name"),
        ({**ITEM, "uid": ""}, "data.items[0].uid: must be the UID"),
        ({**ITEM, "episode": "\ud800"}, "data.items[0].episode: must be a short text"),
        ({**ITEM, "episode": "x" * 401}, "data.items[0].episode: must be a short text"),
        ({**ITEM, "episode": 5}, "data.items[0].episode: must be a short text"),
    ],
)
async def test_names_what_is_wrong_with_a_found_node(caller: Caller, item: JSON, field: str) -> None:
    answer = await binary(caller, {"items": [item]}, type=FOUND)
    assert answer.status == 400
    assert answer.json["error"].startswith(field)


# Answers of a provider's automation

ANSWER = {"namespace": "kreflex-system", "record": "node-replacer-node-1-5b0e1cc5", "outcome": "Accepted"}
READ = {**ANSWER, "powered_off": False, "message": ""}


async def answered(caller: Caller, data: Any, **about: str) -> Answer:
    return await binary(caller, data, type=ANSWERED, **about)


@pytest.mark.parametrize(
    ("said", "understood"),
    [
        ({}, {}),
        ({"outcome": "Done", "poweredOff": True}, {"outcome": "Done", "powered_off": True}),
        ({"outcome": "Failed", "message": "no quota"}, {"outcome": "Failed", "message": "no quota"}),
        ({"message": "x" * 2000}, {"message": "x" * 1000}),
    ],
)
async def test_reads_an_answer(caller: Caller, said: JSON, understood: JSON) -> None:
    answer = await answered(caller, {**ANSWER, **said})
    assert (answer.json["answered"], answer.json["signals"]) == ([{**READ, **understood}], [])


async def test_an_answer_that_nothing_waits_for_costs_the_read_of_one_record(caller: Caller) -> None:
    answer = await structured(caller, [{**event_attributes(type=ANSWERED), "data": ANSWER}], "/nodes", "-batch+json")
    (result,) = answer.json["results"]
    assert (result["outcome"], result["because"]) == ("skipped", "nothing waits for that answer")
    path = "/apis/kreflex.dev/v1alpha1/namespaces/kreflex-system/remediations"
    assert API.calls == [f"GET {path}/{ANSWER['record']}"]


async def test_the_documented_answer_is_one(caller: Caller) -> None:
    page = (Path(__file__).parents[2] / "docs" / "functions" / "node-replacer.md").read_text()
    (example,) = re.findall(r"```json\n(.*?)```", page, re.DOTALL)
    (told,) = (await answered(caller, json.loads(example))).json["answered"]
    assert (told["outcome"], told["powered_off"]) == ("Done", True)


async def test_an_answer_belongs_to_its_own_trace_also_in_a_batch(caller: Caller) -> None:
    event = {**event_attributes(type=ANSWERED), "traceparent": TRACE, "data": ANSWER}
    answer = await structured(caller, [event, {**event, "traceparent": ""}], kind="-batch+json")
    assert answer.json["answered"] == [{**READ, "trace": TRACE}, READ]


@pytest.mark.parametrize(
    ("data", "error"),
    [
        ([], "data: must be an object, not a list"),
        (None, "data: must be an object, not None"),
        ({**ANSWER, "poweredoff": True}, "data: has 'poweredoff', which is none of namespace, record, outcome, po"),
        ({**ANSWER, "outcome": "done"}, "data.outcome: must be Accepted, Done or Failed, not 'done'"),
        ({**ANSWER, "outcome": ["Done"]}, "data.outcome: must be Accepted, Done or Failed, not a list"),
        ({"namespace": "a", "record": "b"}, "data.outcome: must be Accepted, Done or Failed, not None"),
        ({**ANSWER, "poweredOff": "true"}, "data.poweredOff: must be true or false, not 'true'"),
        ({**ANSWER, "poweredOff": 1}, "data.poweredOff: must be true or false, not 1"),
        ({**ANSWER, "poweredOff": None}, "data.poweredOff: must be true or false, not None"),
        ({**ANSWER, "message": 5}, "data.message: must be a string, not 5"),
        ({**ANSWER, "namespace": "../x"}, "data.namespace: must be a name"),
        ({**ANSWER, "record": "r/status"}, "data.record: must be a name"),
    ],
)
async def test_guesses_nothing_of_an_answer(caller: Caller, data: Any, error: str) -> None:
    answer = await answered(caller, data)
    assert answer.status == 400
    assert answer.json["error"].startswith(error)
