"""Small frozen views of nodes, their pools and zones."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from kreflex.views import Ref, Workload, moment, time_of

ZONE = "topology.kubernetes.io/zone"
_CONTROL_PLANE = ("node-role.kubernetes.io/control-plane", "node-role.kubernetes.io/master")
# Where the providers write the pool that a node belongs to.
KARPENTER_POOL = "karpenter.sh/nodepool"
POOL_LABELS = (
    KARPENTER_POOL,
    "eks.amazonaws.com/nodegroup",
    "alpha.eksctl.io/nodegroup-name",
    "cloud.google.com/gke-nodepool",
    "kubernetes.azure.com/agentpool",
    "agentpool",
    "doks.digitalocean.com/node-pool",
    "node.openshift.io/machine-pool",
)
# Cluster API names the owner of a node's Machine on the node
# (https://github.com/kubernetes-sigs/cluster-api, api/core/v1beta2/common_types.go).
MACHINE_OWNER_KIND, MACHINE_OWNER = "cluster.x-k8s.io/owner-kind", "cluster.x-k8s.io/owner-name"


# A MachineDeployment calls its MachineSets so: during a rollout there are two, of one pool
# (k8s.io/apimachinery, pkg/util/rand: no vowels, and nothing that looks like another).
_SUFFIX = re.compile(r"-[bcdfghjklmnpqrstvwxz2456789]{5}$")
# Names the record of the remediation that has changed an object, and may have to change it back.
MARK = "kreflex.dev/remediation"
# Where the makers of nodes note the template: https://karpenter.sh/docs/concepts/nodeclaims/ and
# https://docs.aws.amazon.com/eks/latest/userguide/launch-templates.html
_TEMPLATES = ("karpenter.sh/nodepool-hash", "machine-template-hash", "eks.amazonaws.com/sourceLaunchTemplateVersion")


@dataclass(frozen=True, slots=True)
class NodeCondition:
    """What a node, or a watcher of it, says about one thing, and since when."""

    type: str
    status: str
    since: datetime | None
    reason: str = ""
    message: str = ""


@dataclass(frozen=True, slots=True)
class Taint:
    """A taint of a node."""

    key: str
    value: str
    effect: str


@dataclass(frozen=True, slots=True)
class Pool:
    """Nodes that are made alike; `source` says by which label or annotation they are known, "" for the rest."""

    name: str
    source: str

    def __str__(self) -> str:
        return f"pool {self.name}"


@dataclass(frozen=True, slots=True)
class Node:
    """A node as it was read; `resource_version` says when."""

    ref: Ref
    resource_version: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    created: datetime
    terminating: bool
    unschedulable: bool
    taints: tuple[Taint, ...]
    provider_id: str
    addresses: tuple[str, ...]
    conditions: tuple[NodeCondition, ...]

    @property
    def name(self) -> str:
        """Its name."""
        return self.ref.name

    @property
    def ready(self) -> bool:
        """True if its kubelet says so, and was heard in time."""
        return any(c.type == "Ready" and c.status == "True" for c in self.conditions)

    @property
    def control_plane(self) -> bool:
        """True for a node that runs the control plane."""
        return any(label in self.labels for label in _CONTROL_PLANE)

    @property
    def zone(self) -> str:
        """Its zone, or ""."""
        return self.labels.get(ZONE, "")

    def condition(self, kind: str) -> NodeCondition | None:
        """Tell what is said about one thing."""
        return next((c for c in self.conditions if c.type == kind), None)

    def pool(self, label: str = "") -> Pool:
        """Tell its pool: by this label if it has it, by its provider's, its role, or all others together."""
        for known in (label, *POOL_LABELS) if label else POOL_LABELS:
            if known in self.labels:
                return Pool(self.labels[known], known)
        if MACHINE_OWNER in self.annotations:
            return Pool(_SUFFIX.sub("", self.annotations[MACHINE_OWNER]), MACHINE_OWNER)
        return Pool("control-plane" if self.control_plane else "workers", "")


class _Meta(TypedDict, total=False):
    name: str
    uid: str
    resourceVersion: str
    creationTimestamp: str
    deletionTimestamp: str
    labels: dict[str, str]
    annotations: dict[str, str]


class _Taint(TypedDict, total=False):
    key: str
    value: str
    effect: str


class _Spec(TypedDict, total=False):
    unschedulable: bool
    taints: list[_Taint]
    providerID: str


class _Address(TypedDict, total=False):
    address: str


class _Condition(TypedDict, total=False):
    type: str
    status: str
    lastTransitionTime: str | None
    reason: str
    message: str


class _Status(TypedDict, total=False):
    addresses: list[_Address]
    conditions: list[_Condition]


class _Body(TypedDict, total=False):
    metadata: _Meta
    spec: _Spec
    status: _Status


class _Page(TypedDict, total=False):
    metadata: dict[str, Any]
    items: list[_Body]


@cache
def _pages() -> TypeAdapter[Any]:
    # Made when the first list is read: a function that is started for one pod has no use for it.
    return TypeAdapter(_Page)


def read_nodes(page: bytes) -> Any:
    """Read of a page of nodes what `node_view` looks at, and leave the rest where it is; raises ValueError.

    Most of a node are its images and managed fields. Not to make objects of these is four times as fast.
    """
    return _pages().validate_json(page)


def node_view(body: Mapping[str, Any]) -> Node:
    """View a node; raises KeyError, ValueError, TypeError or AttributeError for a body that is no node."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    return Node(
        ref=Ref("v1", "Node", "", meta["name"], meta["uid"]),
        resource_version=meta["resourceVersion"],
        labels=dict(meta.get("labels") or {}),
        annotations=dict(meta.get("annotations") or {}),
        created=time_of(meta["creationTimestamp"]),
        terminating="deletionTimestamp" in meta,
        unschedulable=bool(spec.get("unschedulable")),
        taints=tuple(Taint(str(t["key"]), str(t.get("value", "")), str(t["effect"])) for t in spec.get("taints") or ()),
        provider_id=str(spec.get("providerID", "")),
        addresses=tuple(str(a["address"]) for a in status.get("addresses") or ()),
        conditions=tuple(_condition(c) for c in status.get("conditions") or ()),
    )


def _condition(body: Mapping[str, Any]) -> NodeCondition:
    return NodeCondition(
        type=str(body["type"]),
        status=str(body["status"]),
        since=moment(body.get("lastTransitionTime")),
        reason=str(body.get("reason", "")),
        message=str(body.get("message", "")),
    )


def owner_of(pool: Pool) -> Workload:
    """Give a pool as an owner: what limits are counted by. There may be no such object, so its source is in the UID."""
    ref = Ref("kreflex.dev/v1alpha1", "Pool", "", pool.name, f"{pool.source}={pool.name}"[:128])
    return Workload(ref, {}, None, None, None)


def template_of(node: Node) -> str:
    """Tell the template that a node was made from, or "" if nobody says."""
    said = {**node.labels, **node.annotations}
    return next((said[name][:63] for name in _TEMPLATES if name in said), "")
