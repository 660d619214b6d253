"""Bodies as the HTTP trigger of Argo Events makes them, through the real ASGI application.

The shapes are those of pkg/eventsources/events/event-data.go at argoproj/argo-events; `ConstructPayload` in
pkg/sensors/triggers/params.go puts them under the keys that a Sensor maps, as a string unless `useRawData` is set.
"""

import json
from typing import Any

import pytest

from kreflex.ingress.cloudevents import MOST_BYTES
from kreflex.views import JSON
from tests.ingress.conftest import Answer, Caller
from tests.ingress.surroundings import API
from tests.ingress.test_alertmanager import SIGNAL, a_webhook, an_alert
from tests.values import CART, RUNNING, a_node, a_pod, a_status

SEEN = {
    "namespace": "shop",
    "name": "cart-1",
    "uid": CART.uid,
    "summary": "",
    "seen": True,
    "source": "argo-events",
    "delivery": "",
}
DUE = {"namespace": "shop", "record": "r-1"}
RECORD = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Remediation", "metadata": {"namespace": "shop", "name": "r-1"}}
REPLICA_SET = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "metadata": {"name": "cart"}}


def a_resource(body: Any = None, verb: Any = "UPDATE") -> JSON:
    """Event data of a resource event source."""
    body = a_pod() if body is None else body
    return {"type": verb, "body": body, "oldBody": None, "group": "", "version": "v1", "resource": "pods"}


def a_hook(body: Any) -> JSON:
    """Event data of a webhook event source."""
    return {"header": {"Content-Type": ["application/json"]}, "body": body}


CALENDAR = {"eventTime": "2026-05-01 12:00:00 +0000 UTC m=+60.001"}


async def sent(caller: Caller, body: Any, kind: str = "", path: str = "/echo") -> Answer:
    about = {"specversion": "1.0", "id": "event-1", "source": "pods", "type": f"io.argoproj.events.{kind}"}
    headers = {f"ce-{name}": value for name, value in about.items()} if kind else {}
    return await caller.post(body, headers, path)


@pytest.mark.parametrize("kind", ["", "resource"])
@pytest.mark.parametrize(
    "body",
    [
        a_resource(),
        a_resource(verb="ADD"),
        a_resource(json.dumps(a_pod())),
        {"body": a_pod()},
        {"body": json.dumps(a_pod())},
        a_pod(),
        a_hook(a_pod()),
    ],
)
async def test_reads_a_pod_however_the_sensor_maps_it(caller: Caller, body: JSON, kind: str) -> None:
    answer = await sent(caller, body, kind)
    assert (answer.status, answer.json["signals"]) == (200, [{**SEEN, "delivery": "event-1" if kind else ""}])
    assert not answer.json["wants_event"]


@pytest.mark.parametrize("kind", ["", "webhook"])
@pytest.mark.parametrize("wrap", [a_hook, lambda body: a_hook(json.dumps(body)), lambda body: body])
async def test_reads_alertmanagers_webhook_within(caller: Caller, wrap: Any, kind: str) -> None:
    answer = await sent(caller, wrap(a_webhook(an_alert(), 5)), kind)
    assert (answer.status, answer.json["signals"]) == (200, [SIGNAL])
    assert answer.json["ignored"] == ["alerts[1] has no labels"]


@pytest.mark.parametrize("kind", ["", "resource"])
async def test_reads_a_changed_record(caller: Caller, kind: str) -> None:
    assert (await sent(caller, a_resource(RECORD), kind)).json["due"] == [DUE]


@pytest.mark.parametrize("kind", ["", "calendar"])
async def test_a_calendar_is_a_clock(caller: Caller, kind: str) -> None:
    assert (await sent(caller, CALENDAR, kind)).json["tick"]
    assert ((await sent(caller, CALENDAR, kind, "/")).status, API.calls) == (200, [])


async def test_a_calendar_needs_no_payload_where_the_headers_name_it(caller: Caller) -> None:
    assert (await sent(caller, b"", "calendar")).json["tick"]


@pytest.mark.parametrize(
    "body",
    [
        a_resource(verb="DELETE"),
        a_resource(REPLICA_SET),
        REPLICA_SET,
        a_resource(a_node()),
        a_node(),
        a_resource(a_pod(app=[a_status(state=RUNNING)])),
        CALENDAR,
        a_hook(a_webhook()),
    ],
)
async def test_what_is_for_no_function_costs_no_call(caller: Caller, body: JSON) -> None:
    assert ((await sent(caller, body, path="/")).status, API.calls) == (200, [])


NO_SHAPE = "is no CloudEvent (no ce-specversion), no Alertmanager webhook"


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "body: is empty; an HTTP trigger of Argo Events sends no body unless it has a `payload`"),
        (b'"text"', "body: must be an object, not 'text'"),
        (b"[]", "body: must be an object, not a list"),
        ({}, f"body: {NO_SHAPE}"),
        ({"pod": "cart-1"}, f"body: {NO_SHAPE}"),
        ({"kind": "Pod"}, f"body: {NO_SHAPE}"),
        ({"kind": "Pod", "metadata": 5}, "body: is not a whole Pod"),
        (a_resource(verb="Modified"), "type: must be ADD, UPDATE or DELETE, not 'Modified'"),
        (a_resource(verb=5), "type: must be ADD, UPDATE or DELETE, not 5"),
        (a_resource([]), "body: must be a Kubernetes object"),
        (a_resource("{"), "body: is not JSON"),
        (a_resource(""), "body: is empty"),
        (a_resource({"kind": "Pod"}), "body: is not a whole Pod"),
        (a_hook({"action": "opened"}), f"body: {NO_SHAPE}"),
        (a_hook(None), "body: must be an object, not None"),
        (a_hook(a_webhook(version="3")), "body.version: must be '4', not '3'"),
        (a_hook(a_hook(a_webhook())), "body.body: is one body too many"),
        (a_hook(json.dumps(a_hook(a_webhook()))), "body.body: is one body too many"),
    ],
)
async def test_names_what_is_wrong(caller: Caller, body: Any, error: str) -> None:
    answer = await sent(caller, body, path="/")
    assert (answer.status, API.calls) == (400, [])
    assert answer.json["error"].startswith(error)


@pytest.mark.parametrize(
    ("kind", "body", "error"),
    [
        ("resource", b"", "data: is empty"),
        ("resource", {}, f"data: {NO_SHAPE}"),
        ("resource", a_resource(verb="x"), "data.type: must be ADD"),
        ("webhook", a_hook(a_webhook(alerts=5)), "data.body.alerts: must be a list"),
    ],
)
async def test_names_what_is_wrong_below_the_headers_of_an_event(
    caller: Caller, kind: str, body: Any, error: str
) -> None:
    answer = await sent(caller, body, kind, "/")
    assert answer.status == 400
    assert answer.json["error"].startswith(error)


async def test_a_body_that_is_too_large_for_an_event_is_refused(caller: Caller) -> None:
    large = a_resource({**a_pod(), "padding": "x" * MOST_BYTES})
    assert [(await sent(caller, large, kind)).status for kind in ("", "resource")] == [413, 413]
