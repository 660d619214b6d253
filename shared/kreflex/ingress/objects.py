"""Kubernetes objects in events, whole or by name, turned into signals: the same for every sender."""

from __future__ import annotations

from typing import Any

from kreflex.errors import BadEventError
from kreflex.ingress.bodies import shown
from kreflex.signals import Delivery, Due, PodSignal, is_name
from kreflex.trace import Trace, read
from kreflex.views import pod_view


def read_object(body: Any, where: str, source: str, delivery: str) -> Delivery:
    """Read a whole object; raises BadEventError for one that no API server wrote."""
    if not isinstance(body, dict):
        raise BadEventError(where, "must be a Kubernetes object")
    kind = body.get("kind")
    if not isinstance(kind, str):
        raise BadEventError(f"{where}.kind", "must be the kind of a Kubernetes object")
    if kind == "Remediation":
        return Delivery(due=(_record(body, where),))
    if kind != "Pod":
        return Delivery(ignored=(f"a {shown(kind)} is for no function here",))
    try:
        seen = pod_view(body)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadEventError(where, f"is not a whole Pod: {error!r}") from error
    ref = seen.ref
    namespace, name = names({"namespace": ref.namespace, "name": ref.name}, f"{where}.metadata")
    if not is_name(ref.uid):
        raise BadEventError(f"{where}.metadata.uid", "must be the UID of the object")
    return Delivery((PodSignal(namespace, name, ref.uid, "", seen, source, delivery),))


def read_reference(body: Any, where: str, source: str, delivery: str) -> Delivery:
    """Read the name of an object; raises BadEventError for one that names nothing."""
    if not isinstance(body, dict):
        raise BadEventError(where, "must be a reference to a Kubernetes object")
    kind = body.get("kind")
    if kind not in ("Pod", "Remediation"):
        return Delivery(ignored=(f"a reference to a {shown(kind)} is for no function here",))
    namespace, name = names(body, where)
    if kind == "Remediation":
        return Delivery(due=(Due(namespace, name),))
    return Delivery((PodSignal(namespace, name, source=source, delivery=delivery),))


def names(item: Any, where: str) -> tuple[str, str]:
    """Read the namespace and the name of something, as Kubernetes has them."""
    if not isinstance(item, dict):
        raise BadEventError(where, "must be an object")
    namespace, name = item.get("namespace"), item.get("name")
    if not is_name(namespace):
        raise BadEventError(f"{where}.namespace", "must be a name as Kubernetes has them")
    if not is_name(name):
        raise BadEventError(f"{where}.name", "must be a name as Kubernetes has them")
    return namespace, name


def _record(body: Any, where: str) -> Due:
    namespace, name = names(body.get("metadata"), f"{where}.metadata")
    return Due(namespace, name, _opened_in(body))


def _opened_in(body: Any) -> Trace | None:
    """Tell in which trace a record was opened: what is done about it later belongs there."""
    spec = body.get("spec")
    fault = spec.get("fault") if isinstance(spec, dict) else None
    return read(fault.get("traceparent")) if isinstance(fault, dict) else None
