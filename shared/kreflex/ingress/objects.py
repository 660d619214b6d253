"""Kubernetes objects in events, whole or by name, turned into signals: the same for every sender."""

from __future__ import annotations

from typing import Any

from kreflex.errors import BadEventError
from kreflex.ingress.bodies import LONG, plain, shown
from kreflex.ingress.names import name_in, names
from kreflex.kinds import TOLD
from kreflex.nodes import node_view
from kreflex.policy import GROUP
from kreflex.signals import Delivery, Due, NodeSignal, PodSignal, Signal, WorkloadSignal, is_name
from kreflex.trace import Trace, read
from kreflex.views import JSON, pod_view

DELETED = "an object that was deleted is for no function here"
# What of a remediation is a reason for another function to look: it did not help, or nothing was done.
OPEN_ENDED = frozenset({"ineffective", "unknown", "refused"})
# What chaos-runner looks after.
EXPERIMENT = "Experiment"
_SHORT = 128


def read_object(body: Any, where: str, source: str, delivery: str) -> Delivery:
    """Read a whole object; raises BadEventError for one that no API server wrote."""
    if not isinstance(body, dict):
        raise BadEventError(where, "must be a Kubernetes object")
    kind = body.get("kind")
    if not isinstance(kind, str):
        raise BadEventError(f"{where}.kind", "must be the kind of a Kubernetes object")
    if kind == "Remediation":
        return Delivery(_handed_on(body, delivery), due=(_record(body, where),))
    if kind == EXPERIMENT and _is_ours(body):
        return Delivery(experiments=(_record(body, where),))
    if kind == "Event":
        return _told(body, where, source, delivery)
    signal = _signal(body, kind, where, source, delivery)
    return Delivery((signal,)) if signal else Delivery(ignored=(f"a {shown(kind)} is for no function here",))


def _signal(body: JSON, kind: str, where: str, source: str, delivery: str) -> Signal | None:
    if kind == "Pod":
        return _pod(body, where, source, delivery)
    if kind == "Node":
        return _node(body, where, source, delivery)
    return _workload(body, kind, where, source, delivery) if kind in TOLD else None


def read_deleted(body: Any, where: str, source: str, delivery: str) -> Delivery:
    """Read an object that was deleted, whole or by name: it matters for nodes, whose replacement goes on then."""
    if isinstance(body, dict) and body.get("kind") == "Node":
        read_ = read_object if "metadata" in body else read_reference
        return read_(body, where, source, delivery)
    return Delivery(ignored=(DELETED,))


def read_reference(body: Any, where: str, source: str, delivery: str) -> Delivery:
    """Read the name of an object; raises BadEventError for one that names nothing."""
    if not isinstance(body, dict):
        raise BadEventError(where, "must be a reference to a Kubernetes object")
    kind = body.get("kind")
    if kind not in ("Pod", "Node", "Remediation", EXPERIMENT, *TOLD):
        return Delivery(ignored=(f"a reference to a {shown(kind)} is for no function here",))
    if kind == "Node":
        return Delivery((NodeSignal(name_in(body, "name", where), source=source, delivery=delivery),))
    namespace, name = names(body, where)
    if kind == "Remediation":
        return Delivery(due=(Due(namespace, name),))
    if kind == EXPERIMENT and _is_ours(body):
        return Delivery(experiments=(Due(namespace, name),))
    if kind == EXPERIMENT:
        return Delivery(ignored=("an Experiment of somebody else is for no function here",))
    if kind in TOLD:
        return Delivery((WorkloadSignal(TOLD[kind], kind, namespace, name, source=source, delivery=delivery),))
    return Delivery((PodSignal(namespace, name, source=source, delivery=delivery),))


def _pod(body: JSON, where: str, source: str, delivery: str) -> PodSignal:
    try:
        seen = pod_view(body)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadEventError(where, f"is not a whole Pod: {error!r}") from error
    ref = seen.ref
    namespace, name = names({"namespace": ref.namespace, "name": ref.name}, f"{where}.metadata")
    return PodSignal(namespace, name, _uid(ref.uid, where), "", seen, source, delivery)


def _node(body: JSON, where: str, source: str, delivery: str) -> NodeSignal:
    try:
        seen = node_view(body)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadEventError(where, f"is not a whole Node: {error!r}") from error
    name = name_in({"name": seen.name}, "name", f"{where}.metadata")
    return NodeSignal(name, _uid(seen.ref.uid, where), "", seen, source, delivery)


def _workload(body: JSON, kind: str, where: str, source: str, delivery: str) -> WorkloadSignal:
    meta = body.get("metadata")
    namespace, name = names(meta, f"{where}.metadata")
    uid = _uid(meta.get("uid") if isinstance(meta, dict) else None, where)
    # Read in the version that we know, whatever version the source asks for.
    return WorkloadSignal(TOLD[kind], kind, namespace, name, uid, "", body, source, delivery)


def _uid(uid: object, where: str) -> str:
    if not is_name(uid):
        raise BadEventError(f"{where}.metadata.uid", "must be the UID of the object")
    return uid


def _told(body: JSON, where: str, source: str, delivery: str) -> Delivery:
    """Read a Kubernetes Event: node-problem-detector tells in one of what is no lasting condition of its node."""
    field = "involvedObject" if "involvedObject" in body else "regarding"
    about, reason = body.get(field), plain(body.get("reason", ""), _SHORT)
    if not isinstance(about, dict):
        raise BadEventError(f"{where}.{field}", "must be a reference to a Kubernetes object")
    if about.get("kind") != "Node" or body.get("type") != "Warning" or _own(body):
        return Delivery(ignored=(f"the Event {reason} is for no function here",))
    message = body.get("message", body.get("note"))
    summary = f"{reason}: {plain(message)}" if isinstance(message, str) and message else reason
    # Not its UID: kubelets and older detectors write the name there
    # (https://github.com/kubernetes/kubernetes/issues/29289).
    name = name_in(about, "name", f"{where}.{field}")
    return Delivery((NodeSignal(name, summary=summary[:LONG], source=source, delivery=delivery),))


def _own(body: JSON) -> bool:
    """Tell whether we have written an Event ourselves: what it tells of stands in a record."""
    writer = body.get("reportingComponent") or body.get("reportingController")
    return isinstance(writer, str) and writer.startswith(f"{GROUP}/")


def _record(body: Any, where: str) -> Due:
    namespace, name = names(body.get("metadata"), f"{where}.metadata")
    return Due(namespace, name, _opened_in(body))


def _is_ours(body: JSON) -> bool:
    """Tell an Experiment of ours from that of Argo Rollouts."""
    return str(body.get("apiVersion", "")).startswith(f"{GROUP}/")


def _handed_on(body: JSON, delivery: str) -> tuple[Signal, ...]:
    """Read what a record tells other functions: whose remediation it is, they leave out by the source.

    The same is in the reply to the call that changed the record. That comes to nobody if the waker has called.
    """
    spec, status = body.get("spec"), body.get("status")
    if not isinstance(spec, dict) or not isinstance(status, dict):
        return ()
    became = plain(status.get("verdict") or status.get("outcome") or "").lower()
    about = spec.get("owner") or spec.get("target")
    if became not in OPEN_ENDED or not isinstance(about, dict):
        return ()
    kind, namespace, name = about.get("kind"), about.get("namespace"), about.get("name")
    if kind not in TOLD or not is_name(namespace) or not is_name(name):
        return ()
    source = f"{GROUP}/functions/{plain(spec.get('function', ''), _SHORT)}"
    summary = plain(status.get("verdictReason") or status.get("reason") or f"a remediation that is {became}")
    return (WorkloadSignal(TOLD[kind], kind, namespace, name, summary=summary, source=source, delivery=delivery),)


def _opened_in(body: Any) -> Trace | None:
    """Tell in which trace a record was opened: what is done about it later belongs there."""
    spec = body.get("spec")
    fault = spec.get("fault") if isinstance(spec, dict) else None
    return read(fault.get("traceparent")) if isinstance(fault, dict) else None
