"""What an HTTP trigger of Argo Events sends: no CloudEvent, but JSON with the keys that its Sensor's `payload` maps.

Each source has its own event data (github.com/argoproj/argo-events, pkg/eventsources/events/event-data.go); a Sensor
maps it as a whole, or just the object within. CloudEvent headers come only from a Sensor that sets them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from kreflex.errors import BadEventError
from kreflex.ingress import alertmanager
from kreflex.ingress.bodies import read_json, shown
from kreflex.ingress.objects import read_deleted, read_object
from kreflex.signals import Delivery
from kreflex.views import JSON

CALENDAR = "io.argoproj.events.calendar"
TYPES = ("io.argoproj.events.resource", "io.argoproj.events.webhook", CALENDAR)
SOURCE = "argo-events"
# EventType of pkg/apis/events/v1alpha1/eventsource_types.go.
_SEEN, _DELETED = ("ADD", "UPDATE"), "DELETE"


def parse_event(kind: str, data: Callable[[], Any], where: str, delivery: str) -> Delivery:
    """Read what stands below the CloudEvent headers that a Sensor has set."""
    return Delivery(tick=True) if kind == CALENDAR else parse(data(), f"{where}.", delivery)


def parse(body: Any, where: str = "", delivery: str = "") -> Delivery:
    """Read a body; raises BadEventError for one of no shape that is known, its fields named below `where`."""
    if not isinstance(body, dict):
        raise BadEventError(where.rstrip(".") or "body", f"must be an object, not {shown(body)}")
    if alertmanager.is_alertmanager(body):
        return alertmanager.parse(body, where)
    if "kind" in body and "metadata" in body:
        return read_object(body, where.rstrip(".") or "body", SOURCE, delivery)
    if "eventTime" in body:
        return Delivery(tick=True, about={"sender": SOURCE})
    if "body" in body:
        return _below(body, where, delivery)
    raise BadEventError(
        where.rstrip(".") or "body",
        "is no CloudEvent (no ce-specversion), no Alertmanager webhook (no alerts with a groupKey), no event of Argo"
        " Events (no body, no eventTime) and no Kubernetes object (no kind with metadata)",
    )


def _below(body: JSON, where: str, delivery: str) -> Delivery:
    inner, verb = _unwrapped(body["body"], f"{where}body"), body.get("type")
    if "type" not in body:
        return _webhook(inner, f"{where}body", delivery)
    if verb == _DELETED:
        return replace(read_deleted(inner, f"{where}body", SOURCE, delivery), about={"sender": SOURCE})
    if verb not in _SEEN:
        raise BadEventError(f"{where}type", f"must be ADD, UPDATE or DELETE, not {shown(verb)}")
    return read_object(inner, f"{where}body", SOURCE, delivery)


def _webhook(inner: Any, where: str, delivery: str) -> Delivery:
    if isinstance(inner, dict) and "body" in inner:
        raise BadEventError(f"{where}.body", "is one body too many")
    return parse(inner, f"{where}.", delivery)


def _unwrapped(inner: Any, where: str) -> Any:
    # A Sensor that maps an object without `useRawData: true` sends its JSON in a string.
    return read_json(inner.encode(errors="replace"), where) if isinstance(inner, str) else inner
