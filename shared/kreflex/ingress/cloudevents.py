"""CloudEvents 1.0 over HTTP, binary and structured. The SDK is used here and nowhere else."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from cloudevents.conversion import to_binary
from cloudevents.exceptions import GenericException
from cloudevents.http import CloudEvent, from_http

from kreflex.errors import BadEventError
from kreflex.signals import Delivery, Due, PodSignal, is_name
from kreflex.views import JSON, pod_view

MOST_BYTES = 2**20
# ApiServerSource in mode Resource sends the object, in mode Reference its name:
# https://knative.dev/docs/eventing/sources/apiserversource/reference/
RESOURCE = "dev.knative.apiserver.resource."
REFERENCE = "dev.knative.apiserver.ref."
DUE = "dev.kreflex.remediation.due.v1"
FOUND = "dev.kreflex.fault.found.v1"
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}")


def is_cloudevent(headers: Mapping[str, str]) -> bool:
    """Tell whether a request is meant as a CloudEvent, in either mode."""
    return "ce-specversion" in headers or headers.get("content-type", "").startswith("application/cloudevents")


def parse(headers: Mapping[str, str], body: bytes) -> Delivery:
    """Read one event; raises BadEventError that names what is wrong with it."""
    if "ce-specversion" in headers:
        # The SDK would take it for a structured event then, and complain about that.
        for name in ("ce-id", "ce-source", "ce-type"):
            if not headers.get(name):
                raise BadEventError(name, "is missing")
    try:
        event = from_http(dict(headers), body)
    except (GenericException, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise BadEventError("CloudEvent", str(error)) from error
    delivery = _delivery(event)
    return Delivery(delivery.signals, delivery.due, delivery.ignored, wants_event=True, extensions=_trace(event))


def _trace(event: CloudEvent) -> dict[str, str]:
    # It goes back in a header, so nothing but a traceparent may stand in it.
    trace = str(event["traceparent"]) if "traceparent" in event else ""
    return {"traceparent": trace} if _TRACEPARENT.fullmatch(trace) else {}


def _delivery(event: CloudEvent) -> Delivery:
    kind, data = str(event["type"]), _data(event)
    if kind == DUE:
        return Delivery(due=tuple(Due(*_names(item, where, "namespace", "name")) for where, item in _items(data)))
    if kind == FOUND:
        return Delivery(signals=tuple(_found(item, where) for where, item in _items(data)))
    if kind.startswith((RESOURCE, REFERENCE)) and not kind.endswith(".delete"):
        return _resource(event, data) if kind.startswith(RESOURCE) else _reference(event, data)
    return Delivery(ignored=(f"{kind} is for no function here",))


def _data(event: CloudEvent) -> Any:
    data = event.get_data()
    if isinstance(data, bytes | str):
        try:
            return json.loads(data)
        except ValueError as error:
            raise BadEventError("data", f"is not JSON: {error}") from error
    return data


def _resource(event: CloudEvent, data: Any) -> Delivery:
    if not isinstance(data, dict):
        raise BadEventError("data", "must be a Kubernetes object")
    kind = data.get("kind")
    if kind == "Remediation":
        return Delivery(due=(Due(*_names(data.get("metadata"), "data.metadata", "namespace", "name")),))
    if kind != "Pod":
        return Delivery(ignored=(f"a {kind} is for no function here",))
    try:
        seen = pod_view(data)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadEventError("data", f"is not a whole Pod: {error!r}") from error
    ref = seen.ref
    _names({"namespace": ref.namespace, "name": ref.name}, "data.metadata", "namespace", "name")
    return Delivery((PodSignal(ref.namespace, ref.name, ref.uid, "", seen, "apiserver", str(event["id"])),))


def _reference(event: CloudEvent, data: Any) -> Delivery:
    if not isinstance(data, dict) or data.get("kind") not in {"Pod", "Remediation"}:
        return Delivery(ignored=("a reference to what is for no function here",))
    namespace, name = _names(data, "data", "namespace", "name")
    if data["kind"] == "Remediation":
        return Delivery(due=(Due(namespace, name),))
    return Delivery((PodSignal(namespace, name, source="apiserver", delivery=str(event["id"])),))


def _found(item: Any, where: str) -> PodSignal:
    namespace, name = _names(item, where, "namespace", "name")
    uid = item.get("uid")
    if not isinstance(uid, str) or not uid:
        raise BadEventError(f"{where}.uid", "must be the UID of the object")
    return PodSignal(namespace, name, uid, str(item.get("summary", "")), source="waker")


def _items(data: Any) -> list[tuple[str, Any]]:
    items = data.get("items") if isinstance(data, dict) else None
    if not isinstance(items, list):
        raise BadEventError("data.items", "must be a list")
    return [(f"data.items[{index}]", item) for index, item in enumerate(items)]


def _names(item: Any, where: str, *fields: str) -> tuple[str, ...]:
    if not isinstance(item, dict):
        raise BadEventError(where, "must be an object")
    for field in fields:
        if not is_name(item.get(field)):
            raise BadEventError(f"{where}.{field}", "must be a name as Kubernetes has them")
    return tuple(item[field] for field in fields)


def write(
    source: str, kind: str, subject: str, data: JSON, extensions: Mapping[str, str]
) -> tuple[Mapping[str, str], bytes]:
    """Write an event in binary mode; returns the headers and the body."""
    attributes = {"source": source, "type": kind, "subject": subject, **extensions}
    headers, body = to_binary(CloudEvent(attributes, data))
    return {**headers, "content-type": "application/json"}, body or b""
