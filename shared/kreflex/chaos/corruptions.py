"""What each fault changes of an object: the plan, from the object as it is and what people want."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from kreflex.chaos.changes import ABSENT, Change, value
from kreflex.chaos.experiments import Experiment, Fault, FaultKind
from kreflex.views import JSON

ISOLATED = "kreflex.dev/chaos-isolated"
_TEMPLATE = ("spec", "template", "spec", "containers")
# All that the API server would fill in by itself, so that what it has is what was asked for. Nothing listens there.
_NEVER_READY: JSON = {
    "tcpSocket": {"port": 1},
    "failureThreshold": 1,
    "periodSeconds": 1,
    "successThreshold": 1,
    "timeoutSeconds": 1,
}
_HANDLERS = ("exec", "grpc", "httpGet", "tcpSocket")


class UnfitError(Exception):
    """The object has nothing that this fault could change."""


def changes_of(experiment: Experiment, body: JSON, now: datetime) -> tuple[Change, ...]:
    """Plan the changes of one object; raises UnfitError in words for people."""
    fault = experiment.wants.fault
    planned = _PLANS[fault.kind](experiment, fault, body, now)
    return tuple(one for one in planned if one.before is not one.after and one.before != one.after)


def _changed(body: JSON, path: tuple[str, ...], after: Any) -> Change:
    return Change(path, value(body, path), after)


def _cordon(_: Experiment, __: Fault, body: JSON, ___: datetime) -> list[Change]:
    if body["spec"].get("unschedulable"):
        raise UnfitError("it is cordoned already, by somebody else")
    return [_changed(body, ("spec", "unschedulable"), after=True)]


def _scale(_: Experiment, __: Fault, body: JSON, ___: datetime) -> list[Change]:
    return [_changed(body, ("spec", "replicas"), 0)]


def _image(_: Experiment, fault: Fault, body: JSON, __: datetime) -> list[Change]:
    return [_changed(body, (*_container(body, fault, _TEMPLATE), "image"), fault.image)]


def _pod_image(_: Experiment, fault: Fault, body: JSON, __: datetime) -> list[Change]:
    return [_changed(body, (*_container(body, fault, ("spec", "containers")), "image"), fault.image)]


def _environment(_: Experiment, fault: Fault, body: JSON, __: datetime) -> list[Change]:
    path = (*_container(body, fault, _TEMPLATE), "env")
    wanted = [{"name": name, "value": text} for name, text in sorted(fault.env.items())]
    if value(body, path) is ABSENT:
        return [Change(path, ABSENT, wanted)]
    return [_changed(body, (*path, f"name={one['name']}"), one) for one in wanted]


def _probe(_: Experiment, fault: Fault, body: JSON, __: datetime) -> list[Change]:
    """Make the readiness probe ask where nothing answers; the rest of it stays."""
    path = (*_container(body, fault, _TEMPLATE), "readinessProbe")
    there = value(body, path)
    if there is ABSENT:
        return [Change(path, ABSENT, _NEVER_READY)]
    handlers = [_changed(body, (*path, name), ABSENT) for name in _HANDLERS if name in there and name != "tcpSocket"]
    # A probe has one handler: the new one is added by the same patch that takes the old one away.
    return [*handlers, _changed(body, (*path, "tcpSocket"), _NEVER_READY["tcpSocket"])]


def _squeeze(_: Experiment, fault: Fault, body: JSON, __: datetime) -> list[Change]:
    path = (*_container(body, fault, _TEMPLATE), "resources")
    wanted = {key: text for key, text in (("cpu", fault.cpu), ("memory", fault.memory)) if text}
    found = value(body, path)
    if found is ABSENT or found == {}:
        return [Change(path, found, {"limits": wanted, "requests": wanted})]
    return [one for kind in ("limits", "requests") for one in _quantities(body, (*path, kind), wanted)]


def _quantities(body: JSON, path: tuple[str, ...], wanted: Mapping[str, str]) -> list[Change]:
    if value(body, path) is ABSENT:
        return [Change(path, ABSENT, dict(wanted))]
    # A request above its limit is refused, so both are the same.
    return [_changed(body, (*path, key), text) for key, text in wanted.items()]


def _configuration(_: Experiment, fault: Fault, body: JSON, __: datetime) -> list[Change]:
    if body.get("immutable"):
        raise UnfitError("it is immutable")
    if "data" not in body:
        return [Change(("data",), ABSENT, dict(fault.data))]
    return [_changed(body, ("data", key), text) for key, text in fault.data.items()]


def _isolation(experiment: Experiment, _: Fault, body: JSON, __: datetime) -> list[Change]:
    """Mark a pod for the NetworkPolicy that keeps all traffic from what is marked."""
    if "labels" not in body["metadata"]:
        return [Change(("metadata", "labels"), ABSENT, {ISOLATED: experiment.uid})]
    return [_changed(body, ("metadata", "labels", ISOLATED), experiment.uid)]


def _leader(experiment: Experiment, _: Fault, body: JSON, now: datetime) -> list[Change]:
    """Take a leader's Lease away: he can't renew it, and steps down. It is free again in the end."""
    if not value(body, ("spec", "holderIdentity")):
        raise UnfitError("nobody holds it")
    holder = f"kreflex-chaos/{experiment.name}"
    moment = now.isoformat(timespec="microseconds").replace("+00:00", "Z")
    renewed = value(body, ("spec", "renewTime"))
    return [
        Change(("spec", "holderIdentity"), value(body, ("spec", "holderIdentity")), holder, back=""),
        Change(("spec", "renewTime"), renewed, moment, back=moment),
    ]


def _container(body: JSON, fault: Fault, path: tuple[str, ...]) -> tuple[str, ...]:
    template = body["spec"].get("workloadRef")
    if path == _TEMPLATE and template:
        # https://argo-rollouts.readthedocs.io/en/stable/migrating/#reference-deployment-from-rollout
        whose = f"its template is that of {template.get('kind')} {template.get('name')}"
        raise UnfitError(f"{whose}, and Argo would release what is changed there: experiment with its pods")
    containers = value(body, path)
    names = [one["name"] for one in containers] if isinstance(containers, list) else []
    name = fault.container or (names[0] if names else "")
    if name not in names:
        raise UnfitError(f"it has no container {name!r}, but {', '.join(names) or 'none'}")
    return (*path, f"name={name}")


_PLANS: Mapping[FaultKind, Callable[[Experiment, Fault, JSON, datetime], list[Change]]] = {
    "Cordon": _cordon,
    "NodeDrain": _cordon,
    "ScaleToZero": _scale,
    "Image": _image,
    "PodImage": _pod_image,
    "Environment": _environment,
    "Probe": _probe,
    "ResourceSqueeze": _squeeze,
    "Configuration": _configuration,
    "NetworkIsolation": _isolation,
    "LeaderLoss": _leader,
}
