"""CloudEvents through the real ASGI application: what is read, and what is answered to what can't be."""

import base64
import json
from typing import Any

import pytest
from cloudevents.conversion import to_binary, to_structured
from cloudevents.http import CloudEvent

from kreflex import trace
from kreflex.ingress.cloudevents import DUE, FOUND, MOST_BYTES
from kreflex.reflex import Result
from kreflex.serve import _event
from kreflex.views import JSON
from tests.ingress.conftest import Answer, Caller
from tests.ingress.surroundings import API
from tests.values import CART, RUNNING, a_pod, a_record, a_record_body, a_status

TRACE = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
UPDATE = "dev.knative.apiserver.resource.update"
SEEN = {
    "namespace": "shop",
    "name": "cart-1",
    "uid": CART.uid,
    "summary": "",
    "seen": True,
    "source": "apiserver",
    "delivery": "event-1",
}


def attributes(**about: str) -> dict[str, str]:
    """The attributes of ApiServerSource in resource mode, for an update of a pod."""
    return {"specversion": "1.0", "id": "event-1", "source": "https://10.96.0.1:443", "type": UPDATE, **about}


async def binary(caller: Caller, data: Any, path: str = "/echo", **about: str) -> Answer:
    headers = {f"ce-{name}": value for name, value in attributes(**about).items() if value}
    return await caller.post(data, {**headers, "content-type": "application/json"}, path)


async def structured(caller: Caller, event: Any, path: str = "/echo", kind: str = "+json") -> Answer:
    return await caller.post(event, {"content-type": f"application/cloudevents{kind}; charset=utf-8"}, path)


# What is read


async def test_reads_a_pod_in_binary_mode(caller: Caller) -> None:
    answer = await binary(caller, a_pod())
    assert (answer.status, answer.json["signals"], answer.json["wants_event"]) == (200, [SEEN], True)
    assert answer.json["about"] == {
        "sender": "cloudevents",
        "source": "https://10.96.0.1:443",
        "id": "event-1",
        "type": UPDATE,
    }


async def test_reads_the_same_pod_in_structured_mode(caller: Caller) -> None:
    one = await structured(caller, {**attributes(), "datacontenttype": "application/json", "data": a_pod()})
    other = await structured(
        caller, {**attributes(), "data_base64": base64.b64encode(json.dumps(a_pod()).encode()).decode()}
    )
    assert one.json["signals"] == other.json["signals"] == [SEEN]


@pytest.mark.parametrize("verb", ["add", "update"])
async def test_reads_additions_and_updates(caller: Caller, verb: str) -> None:
    answer = await binary(caller, a_pod(), type=f"dev.knative.apiserver.resource.{verb}")
    assert answer.json["signals"] == [SEEN]


@pytest.mark.parametrize(
    ("about", "data"),
    [
        ({"type": "dev.knative.apiserver.resource.delete"}, a_pod()),
        ({"type": "dev.knative.apiserver.ref.update"}, {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "cart"}),
        ({"type": UPDATE}, {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {}}),
        ({"type": "com.example.order"}, {"any": "thing"}),
        ({"type": "dev.knative.sources.ping"}, {}),
        # Its own reply, if a Trigger sends it back.
        ({"type": "dev.kreflex.remediation.applied.v1"}, {"items": []}),
    ],
)
async def test_leaves_alone_what_is_for_no_function(caller: Caller, about: dict[str, str], data: JSON) -> None:
    assert (await binary(caller, data, **about)).json["signals"] == []
    assert ((await binary(caller, data, path="/", **about)).status, API.calls) == (204, [])


async def test_an_event_of_a_healthy_pod_costs_no_call(caller: Caller) -> None:
    answer = await binary(caller, a_pod(app=[a_status(state=RUNNING, restarts=20)]), path="/")
    assert (answer.status, answer.body, API.calls) == (204, b"", [])


async def test_reads_a_changed_record_and_the_wakers_two_events(caller: Caller) -> None:
    record = {"kind": "Remediation", "metadata": {"namespace": "shop", "name": "r-1"}}
    item = {"namespace": "shop", "name": "r-1"}
    found = {"namespace": "shop", "name": "cart-1", "uid": "u-1", "summary": "app restarted"}
    due = {"namespace": "shop", "record": "r-1"}
    assert (await binary(caller, record)).json["due"] == [due]
    assert (await binary(caller, {"items": [item, item]}, type=DUE)).json["due"] == [due, due]
    (signal,) = (await binary(caller, {"items": [found]}, type=FOUND)).json["signals"]
    assert signal == {**found, "seen": False, "source": "waker", "delivery": ""}


@pytest.mark.parametrize(
    "kind",
    ["application/cloudevents+json", "APPLICATION/CloudEvents+JSON", "application/cloudevents+json ; charset=UTF-8"],
)
async def test_reads_a_structured_event_whatever_the_parameters_of_its_content_type(caller: Caller, kind: str) -> None:
    answer = await caller.post({**attributes(), "data": a_pod()}, {"content-type": kind}, "/echo")
    assert answer.json["signals"] == [SEEN]


async def test_the_content_type_tells_the_mode_whatever_headers_there_are(caller: Caller) -> None:
    headers = {"ce-specversion": "1.0", "ce-type": "x", "content-type": "application/cloudevents+json"}
    answer = await caller.post({**attributes(), "data": a_pod()}, headers, "/echo")
    assert answer.json["signals"] == [SEEN]


async def test_reads_data_that_a_sender_put_in_a_string(caller: Caller) -> None:
    answer = await structured(caller, {**attributes(), "data": json.dumps(a_pod())})
    assert answer.json["signals"] == [SEEN]


async def test_decodes_attributes_in_headers(caller: Caller) -> None:
    answer = await binary(caller, a_pod(), id="event%2F%E2%82%AC%201")
    assert answer.json["about"]["id"] == "event/€ 1"


async def test_the_data_of_an_event_for_others_is_not_looked_at(caller: Caller) -> None:
    for kind in ("dev.knative.sources.ping", "com.example.order"):
        assert (await binary(caller, b"hello, {", path="/", type=kind)).status == 204
        answer = await structured(caller, {**attributes(type=kind), "data_base64": "aGVsbG8="}, "/")
        assert (answer.status, API.calls) == (204, [])


async def test_reads_what_the_sdk_writes(caller: Caller) -> None:
    event = CloudEvent(attributes(traceparent=TRACE), a_pod())
    for headers, body in (to_binary(event), to_structured(event)):
        answer = await caller.post(body, headers, "/echo")
        assert answer.json["signals"] == [{**SEEN, "trace": TRACE}]


# What can't be read


@pytest.mark.parametrize("missing", ["id", "source", "type"])
async def test_names_an_attribute_that_is_missing(caller: Caller, missing: str) -> None:
    answers = [
        await binary(caller, a_pod(), **{missing: ""}),
        await structured(caller, {k: v for k, v in attributes().items() if k != missing} | {"data": a_pod()}),
    ]
    for answer in answers:
        assert answer.status == 400
        assert missing in answer.json["error"]


@pytest.mark.parametrize("version", ["0.2", "2.0", "one"])
async def test_names_a_version_that_it_does_not_know(caller: Caller, version: str) -> None:
    answer = await binary(caller, a_pod(), specversion=version)
    assert answer.status == 400
    assert "specversion" in answer.json["error"]


@pytest.mark.parametrize("event", [b"", b"{", b"[]", b"null", b"5", b'"text"', b"{}", b"\xff", b"[" * 100_000])
async def test_refuses_what_is_no_structured_event(caller: Caller, event: bytes) -> None:
    answer = await structured(caller, event)
    assert answer.status == 400
    assert answer.json["error"].startswith("specversion: is missing" if event == b"{}" else "body: ")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"id": ""}, "id: is missing"),
        ({"id": None}, "id: is missing"),
        ({"source": 5}, "source: must be a string, not 5"),
        ({"type": {"a": 1}}, "type: must be a string, not an object"),
        ({"data": {}, "data_base64": "e30="}, "data_base64: must not stand beside data"),
        ({"data_base64": "e30"}, "data_base64: is not base64"),
        ({"data_base64": "e3 0="}, "data_base64: is not base64"),
        ({"data_base64": 5}, "data_base64: must be a string"),
        ({"data_base64": "/w=="}, "data: is not JSON"),
        ({"data": "x"}, "data: is not JSON"),
        ({"data": "\ud800"}, "data: is not JSON"),
    ],
)
async def test_names_what_is_wrong_with_a_structured_event(caller: Caller, change: JSON, error: str) -> None:
    answer = await structured(caller, {**attributes(), **change})
    assert answer.status == 400
    assert answer.json["error"].startswith(error)


@pytest.mark.parametrize(
    "kind", ["application/cloudevents", "application/cloudevents+avro", "application/cloudevents-batch+xml"]
)
async def test_refuses_a_format_that_it_can_not_read(caller: Caller, kind: str) -> None:
    answer = await caller.post({**attributes(), "data": a_pod()}, {"content-type": kind})
    assert answer.status == 400
    assert answer.json["error"].startswith("content-type: must be application/cloudevents+json or ")


def without(*path: str) -> JSON:
    """A pod that lacks a field."""
    body = a_pod()
    below = body
    for name in path[:-1]:
        below = below[name]
    del below[path[-1]]
    return body


def renamed(name: Any) -> JSON:
    body = a_pod()
    body["metadata"]["name"] = name
    return body


@pytest.mark.parametrize(
    ("kind", "data", "field"),
    [
        (UPDATE, b"{", "data: is not JSON"),
        (UPDATE, b"\xff\xfe", "data"),
        (UPDATE, b"[" * 100_000, ""),
        (UPDATE, b"", "data: is empty"),
        (UPDATE, [], "data: must be a Kubernetes object"),
        (UPDATE, "text", "data"),
        (UPDATE, {"kind": "Pod", "name": "cart-1"}, "data: is not a whole Pod: KeyError('metadata')"),
        (UPDATE, without("metadata", "uid"), "data: is not a whole Pod: KeyError('uid')"),
        (UPDATE, {**a_pod(), "metadata": {**a_pod()["metadata"], "creationTimestamp": "now"}}, "not a whole Pod"),
        (UPDATE, renamed("../../secrets"), "data.metadata.name: must be a name"),
        (UPDATE, renamed("cart 1"), "data.metadata.name: must be a name"),
        (UPDATE, renamed("cart-1?watch=true"), "data.metadata.name: must be a name"),
        (UPDATE, renamed("\ud800"), "data.metadata.name: must be a name"),
        (UPDATE, renamed(5), "data.metadata.name: must be a name"),
        (UPDATE, b'{"kind": NaN}', "data: is not JSON: NaN is no number of JSON"),
        (UPDATE, b'{"kind": 1e999}', "data: is not JSON: 1e999 is no number of JSON"),
        (UPDATE, b'{"kind": ' + b"1" * 5000 + b"}", "data: is not JSON"),
        (UPDATE, {"kind": 5}, "data.kind: must be the kind"),
        (UPDATE, {"kind": "Remediation"}, "data.metadata: must be an object"),
        (UPDATE, {"kind": "Remediation", "metadata": {"name": "r"}}, "data.metadata.namespace: must be a name"),
        (DUE, {}, "data.items: must be a list"),
        (DUE, {"items": [{"namespace": "shop", "name": "r"}, 5]}, "data.items[1]: must be an object"),
        (DUE, {"items": [{"namespace": "shop", "name": "r/../s"}]}, "data.items[0].name: must be a name"),
        (FOUND, {"items": [{"namespace": "shop", "name": "cart-1"}]}, "data.items[0].uid: must be the UID"),
        (FOUND, {"items": [{"namespace": "shop", "name": "cart-1", "uid": "\ud800"}]}, "data.items[0].uid"),
    ],
)
async def test_names_the_field_that_is_wrong(caller: Caller, kind: str, data: Any, field: str) -> None:
    answer = await binary(caller, data, type=kind)
    assert answer.status == 400
    assert field in answer.json["error"]


@pytest.mark.parametrize(
    "broken",
    [
        {"restartCount": "x"},
        {"restartCount": {}},
        {"state": {"waiting": 5}},
        {"state": {"terminated": {"exitCode": "x"}}},
        {"state": {"terminated": {"finishedAt": "2026-05-01T11:50:00"}}},
        {"state": {"running": {"startedAt": 5}}},
        {"lastState": []} | {"state": []} | {"name": None, "restartCount": None},
    ],
)
async def test_refuses_a_container_that_no_kubelet_wrote(caller: Caller, broken: JSON) -> None:
    answer = await binary(caller, a_pod(app=[{**a_status(), **broken}]), path="/")
    assert answer.status == 400
    assert answer.json["error"].startswith("data: is not a whole Pod")


@pytest.mark.parametrize("broken", [{"annotations": 5}, {"labels": "ab"}, {"creationTimestamp": "2026-05-01T11:50:00"}])
async def test_refuses_metadata_that_no_api_server_wrote(caller: Caller, broken: JSON) -> None:
    body = a_pod()
    body["metadata"].update(broken)
    answer = await binary(caller, body, path="/")
    assert answer.status == 400
    assert answer.json["error"].startswith("data: is not a whole Pod")


@pytest.mark.parametrize("reason", [[], {}, 5, None])
async def test_a_strange_reason_is_just_another_reason(caller: Caller, reason: Any) -> None:
    strange = {"state": {"waiting": {"reason": reason}}, "lastState": {"terminated": {"reason": reason}}}
    body = a_pod(app=[{**a_status(), **strange}])
    body["status"]["phase"] = reason
    assert (await binary(caller, body, path="/")).status == 204


async def test_refuses_an_event_that_is_too_large(caller: Caller) -> None:
    large = {**a_pod(), "padding": "x" * MOST_BYTES}
    assert (await binary(caller, large)).status == 413
    assert (await structured(caller, {**attributes(), "data": large})).status == 413


# What is answered


async def test_answers_503_for_a_record_that_can_not_be_read(caller: Caller) -> None:
    broken = a_record_body({"approval": {"by": "ada"}})
    API.objects = {f"/apis/kreflex.dev/v1alpha1/namespaces/shop/remediations/{broken['metadata']['name']}": broken}
    items = [{"namespace": "shop", "name": broken["metadata"]["name"]}]
    answer = await binary(caller, {"items": items}, "/", type=DUE)
    assert answer.status == 503
    assert answer.json["error"].startswith(
        "Remediation shop/restart-loop-killer-cart-1-5b0e1cc5 can't be read; mend or delete it: "
    )


async def test_answers_503_while_the_api_server_is_down(caller: Caller) -> None:
    API.down = True
    answer = await binary(caller, a_pod(), path="/")
    assert (answer.status, answer.json) == (503, {"error": "the API server did not answer"})


async def test_a_pod_that_is_gone_is_no_error(caller: Caller) -> None:
    assert (await binary(caller, a_pod(), path="/")).status == 204


async def test_probes_tell_whether_it_lives_and_whether_it_can_work(caller: Caller) -> None:
    API.objects = {"/readyz": {}}
    assert [(await caller.get(path)).status for path in ("/healthz", "/readyz")] == [200, 200]
    API.down = True
    assert [(await caller.get(path)).status for path in ("/healthz", "/readyz")] == [200, 503]


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE"])
async def test_a_request_that_is_no_delivery_is_refused(caller: Caller, method: str) -> None:
    assert (await caller.post(b"", method=method)).status == 400


# The reply

APPLIED = {"phase": "Applied", "outcome": "applied", "reason": "app restarted 4 times"}
REFUSED = {"phase": "Open", "outcome": "refused", "guard": "OOMKilled", "reason": "app restarted 4 times"}


def a_reply(*statuses: JSON) -> tuple[dict[str, str], JSON]:
    """The reply to an event that changed records to these statuses; its headers and its data."""
    results = [Result("it", "applied", "because", a_record(status=status)) for status in statuses]
    with trace.span("test", trace.read(TRACE)):
        response = _event("restart-loop-killer", results)
    return dict(response.headers), json.loads(bytes(response.body))


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (APPLIED, "applied"),
        (REFUSED, "refused"),
        ({**APPLIED, "phase": "Done", "verdict": "Recovered"}, "recovered"),
        ({**APPLIED, "phase": "Done", "verdict": "Ineffective"}, "ineffective"),
        ({"phase": "Open", "outcome": "awaiting-approval"}, "awaiting-approval"),
    ],
)
def test_a_reply_tells_what_became_of_the_fault(status: JSON, kind: str) -> None:
    headers, data = a_reply(status)
    assert headers["ce-type"] == f"dev.kreflex.remediation.{kind}.v1"
    assert headers["ce-source"] == "kreflex.dev/functions/restart-loop-killer"
    assert headers["ce-subject"] == "shop/restart-loop-killer-cart-1-5b0e1cc5"
    assert headers["ce-traceparent"][:36] == TRACE[:36]
    (item,) = data["items"]
    assert (item["target"]["uid"], item["owner"]["name"], item["outcome"], item["cause"]) == (
        CART.uid,
        "cart",
        status["outcome"],
        status.get("guard"),
    )


def test_one_reply_tells_of_several_faults() -> None:
    headers, data = a_reply(APPLIED, REFUSED)
    assert headers["ce-type"] == "dev.kreflex.remediation.changed.v1"
    assert [item["outcome"] for item in data["items"]] == ["applied", "refused"]


@pytest.mark.parametrize(
    "status", [APPLIED, REFUSED, {**APPLIED, "phase": "Done", "verdict": "Ineffective"}, {"phase": "Acting"}]
)
async def test_a_reply_never_wakes_the_function_that_sent_it(caller: Caller, status: JSON) -> None:
    headers, data = a_reply(status)
    event = {name[3:]: value for name, value in headers.items() if name.startswith("ce-")} | {"data": data}
    assert event["source"] == "kreflex.dev/functions/restart-loop-killer"
    answers = [
        await caller.post(data, headers),
        await structured(caller, event, "/"),
        await structured(caller, [event, event], "/", kind="-batch+json"),
    ]
    assert ([answer.status for answer in answers], API.calls) == ([204, 204, 200], [])
