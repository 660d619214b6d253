"""Small frozen views of Kubernetes objects: what a decision needs, and no more."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

JSON = dict[str, Any]

MIRROR = "kubernetes.io/config.mirror"
HASH_LABELS = ("pod-template-hash", "controller-revision-hash", "rollouts-pod-template-hash")


@dataclass(frozen=True, slots=True)
class Ref:
    """One object, and no other of the same name: the UID says which."""

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True, slots=True)
class Termination:
    """How a container's run ended."""

    reason: str
    exit_code: int
    finished_at: datetime | None


@dataclass(frozen=True, slots=True)
class Container:
    """One container's status; a sidecar is an init container that is restarted for ever."""

    name: str
    kind: Literal["app", "init", "sidecar"]
    restarts: int
    ready: bool
    running_since: datetime | None
    waiting: str | None
    terminated: Termination | None
    last: Termination | None
    said: str = ""
    """Why it waits, in the kubelet's words."""

    @property
    def ended(self) -> Termination | None:
        """The newest end of a run, if any run has ended."""
        return self.terminated or self.last


@dataclass(frozen=True, slots=True)
class Pod:
    """A pod as it was read; `resource_version` says when."""

    ref: Ref
    resource_version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    controller: Ref | None
    phase: str
    created: datetime
    terminating: bool
    ready: bool
    ready_since: datetime | None
    unready_since: datetime | None
    restart_policy: str
    containers: tuple[Container, ...]
    node: str = ""
    grace_seconds: int = 30
    empty_dir: bool = False
    unplaced: str = ""
    """Why no node takes it, in the scheduler's words."""

    @property
    def mirror(self) -> bool:
        """True for a static pod's mirror: deleting it restarts nothing."""
        return MIRROR in self.annotations or (self.controller is not None and self.controller.kind == "Node")

    @property
    def template_hash(self) -> str:
        """The template that the pod was made from, or "" if its controller does not say."""
        return next((self.labels[label] for label in HASH_LABELS if label in self.labels), "")


@dataclass(frozen=True, slots=True)
class Workload:
    """What owns pods in the end; `replicas` and `ready` are None where the kind does not count them."""

    ref: Ref
    annotations: Mapping[str, str]
    controller: Ref | None
    replicas: int | None
    ready: int | None


def moment(text: str | None) -> datetime | None:
    """Read an API timestamp, with or without fractions of a second."""
    return time_of(text) if text else None


def time_of(text: str) -> datetime:
    """Read an API timestamp that has to be there; raises ValueError for one without a time zone."""
    read = datetime.fromisoformat(text)
    if read.tzinfo is None:
        raise ValueError(f"{text!r} has no time zone")
    return read


def pod_view(body: Mapping[str, Any]) -> Pod:
    """View a pod; raises KeyError, ValueError, TypeError or AttributeError for a body that is no pod of an API server.

    What is compared later is made the type that it has to be: events are read with it, and anybody may send one.
    """
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    ready, placed = _condition(status, "Ready"), _condition(status, "PodScheduled")
    return Pod(
        ref=Ref("v1", "Pod", meta["namespace"], meta["name"], meta["uid"]),
        resource_version=meta["resourceVersion"],
        labels=dict(meta.get("labels") or {}),
        annotations=dict(meta.get("annotations") or {}),
        controller=controller_of(meta),
        phase=str(status.get("phase", "")),
        created=time_of(meta["creationTimestamp"]),
        terminating="deletionTimestamp" in meta,
        ready=ready.get("status") == "True",
        ready_since=moment(ready.get("lastTransitionTime")) if ready.get("status") == "True" else None,
        unready_since=moment(ready.get("lastTransitionTime")) if ready.get("status") == "False" else None,
        restart_policy=spec.get("restartPolicy", "Always"),
        containers=_containers(spec, status),
        node=str(spec.get("nodeName", "")),
        grace_seconds=int(spec.get("terminationGracePeriodSeconds", 30)),
        empty_dir=any("emptyDir" in volume for volume in spec.get("volumes") or ()),
        unplaced=str(placed.get("message", "")) if placed.get("reason") == "Unschedulable" else "",
    )


def _condition(status: Mapping[str, Any], kind: str) -> JSON:
    return next((c for c in status.get("conditions") or () if c.get("type") == kind), {})


def workload_view(body: Mapping[str, Any]) -> Workload:
    """View a Deployment, StatefulSet, ReplicaSet, DaemonSet, Job or a kind that counts replicas as they do."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    daemon = body["kind"] == "DaemonSet"
    return Workload(
        ref=Ref(body["apiVersion"], body["kind"], meta.get("namespace", ""), meta["name"], meta["uid"]),
        annotations=meta.get("annotations") or {},
        controller=controller_of(meta),
        replicas=status.get("desiredNumberScheduled") if daemon else spec.get("replicas"),
        ready=status.get("numberReady", 0) if daemon else status.get("readyReplicas", 0),
    )


def controller_of(meta: Mapping[str, Any]) -> Ref | None:
    """Read the owner that controls an object; there is at most one."""
    for owner in meta.get("ownerReferences") or ():
        if owner.get("controller"):
            namespace = "" if owner["kind"] == "Node" else meta.get("namespace", "")
            return Ref(owner["apiVersion"], owner["kind"], namespace, owner["name"], owner["uid"])
    return None


def _containers(spec: Mapping[str, Any], status: Mapping[str, Any]) -> tuple[Container, ...]:
    sidecars = {c["name"] for c in spec.get("initContainers") or () if c.get("restartPolicy") == "Always"}
    inits = (
        _container(c, "sidecar" if c["name"] in sidecars else "init") for c in status.get("initContainerStatuses") or ()
    )
    return (*inits, *(_container(c, "app") for c in status.get("containerStatuses") or ()))


def _container(status: Mapping[str, Any], kind: Literal["app", "init", "sidecar"]) -> Container:
    state, last = status.get("state") or {}, status.get("lastState") or {}
    return Container(
        name=status["name"],
        kind=kind,
        restarts=int(status.get("restartCount", 0)),
        ready=bool(status.get("ready")),
        running_since=moment((state.get("running") or {}).get("startedAt")),
        waiting=str(state["waiting"].get("reason", "")) if state.get("waiting") else None,
        terminated=_termination(state.get("terminated")),
        last=_termination(last.get("terminated")),
        said=str((state.get("waiting") or {}).get("message", "")),
    )


def _termination(body: Mapping[str, Any] | None) -> Termination | None:
    if body is None:
        return None
    return Termination(str(body.get("reason", "")), int(body.get("exitCode", 0)), moment(body.get("finishedAt")))
