"""What stands behind a node and makes its successor: a NodeClaim of Karpenter, a Machine, a provider, or nobody.

A Node object is never deleted by itself: its machine would run on, and whoever manages it would make nothing new.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import ClassVar

from kreflex.actions import register
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError, GoneError, OutageError
from kreflex.nodeactions import NodeAction
from kreflex.nodes import KARPENTER_POOL, Node
from kreflex.rule import Check, Rule
from kreflex.views import JSON, Ref, controller_of, moment

KARPENTER = "karpenter.sh"
CLUSTER_API = "cluster.x-k8s.io"
OPENSHIFT = "machine.openshift.io"
# By this Karpenter bounds its drain: https://github.com/kubernetes-sigs/karpenter, pkg/controllers/nodeclaim/lifecycle.
DRAIN_UNTIL = f"{KARPENTER}/nodeclaim-termination-timestamp"
_UNWANTED = f"{KARPENTER}/do-not-repair"
_TAINTS = {
    f"{KARPENTER}/disrupted": "Karpenter is taking it away",
    f"{KARPENTER}/rebooting": "Karpenter is rebooting it",
}
_PAUSED = f"{CLUSTER_API}/paused"
_SKIP = f"{CLUSTER_API}/skip-remediation"
_NO_CREATE = f"{CLUSTER_API}/disable-machine-create"
# The newest first: https://cluster-api.sigs.k8s.io/reference/versions
_VERSIONS = {CLUSTER_API: ("v1beta2", "v1beta1"), OPENSHIFT: ("v1beta1",)}
_PLURALS = {
    "Cluster": "clusters",
    "Machine": "machines",
    "MachineDeployment": "machinedeployments",
    "MachineSet": "machinesets",
    "NodeClaim": "nodeclaims",
}
# Whatever its value: https://cluster-api.sigs.k8s.io/reference/api/labels-and-annotations
_UNDRAINED = {
    CLUSTER_API: f"machine.{CLUSTER_API}/exclude-node-draining",
    OPENSHIFT: f"{OPENSHIFT}/exclude-node-draining",
}


@dataclass(frozen=True, slots=True)
class NodeClaim:
    """Karpenter's claim to a node; `held` tells why it must be left alone, "" if nothing speaks against it."""

    ref: Ref
    resource_version: str
    terminating: bool
    held: str = ""
    drain_until: datetime | None = None


@dataclass(frozen=True, slots=True)
class Machine:
    """A node's Machine of Cluster API or OpenShift; `held` tells why it must be left alone, "" if nothing does."""

    ref: Ref
    resource_version: str
    terminating: bool
    held: str = ""


@dataclass(frozen=True, slots=True)
class Provider:
    """Nothing in this cluster replaces the node, but a provider knows its machine by `provider_id`."""

    provider_id: str
    because: str = ""


@dataclass(frozen=True, slots=True)
class Nobody:
    """Nothing is known that could replace the node."""

    because: str


Backing = NodeClaim | Machine | Provider | Nobody


async def machine_of(node: Node, reader: Reader) -> Backing:
    """Tell what makes a node's successor; what the node says of it is believed only if both agree."""
    if KARPENTER_POOL in node.labels or f"{KARPENTER}/registered" in node.labels:
        return await _claim_of(node, reader)
    annotations = node.annotations
    if f"{CLUSTER_API}/machine" in annotations:
        namespace = annotations.get(f"{CLUSTER_API}/cluster-namespace", "")
        return await _machine_of(node, reader, CLUSTER_API, namespace, annotations[f"{CLUSTER_API}/machine"])
    if f"{OPENSHIFT}/machine" in annotations:
        namespace, _, name = annotations[f"{OPENSHIFT}/machine"].rpartition("/")
        return await _machine_of(node, reader, OPENSHIFT, namespace, name)
    return _elsewhere(node, "no NodeClaim and no Machine in this cluster is its own")


def _elsewhere(node: Node, because: str) -> Provider | Nobody:
    if node.provider_id:
        return Provider(node.provider_id, because)
    return Nobody(f"{because}, and it has no providerID by which somebody could be asked")


async def _claim_of(node: Node, reader: Reader) -> Backing:
    try:
        claims = await _claims(node, reader)
    except OutageError as error:
        if error.status != 404:
            raise
        claims = []
    if not node.provider_id or len(claims) != 1:
        return _elsewhere(node, f"its labels are Karpenter's, but {len(claims)} NodeClaims have its providerID")
    return _claim(claims[0], node)


async def _claims(node: Node, reader: Reader) -> list[JSON]:
    """Find the claims to a node as Karpenter does (pkg/utils/node): by providerID. Its owner is looked at first."""
    body = await reader.get(f"/api/v1/nodes/{node.name}")
    for owner in ((body or {}).get("metadata") or {}).get("ownerReferences") or ():
        if owner["kind"] == "NodeClaim" and owner["apiVersion"].startswith(f"{KARPENTER}/"):
            claim = await reader.get(_path(f"{KARPENTER}/v1", "NodeClaim", "", owner["name"]))
            if claim is not None and _provider_of(claim) == node.provider_id:
                return [claim]
    pool = node.labels.get(KARPENTER_POOL)
    chosen = {"labelSelector": f"{KARPENTER_POOL}={pool}"} if pool else {}
    claims = reader.list(_path(f"{KARPENTER}/v1", "NodeClaim", ""), **chosen)
    return [claim async for claim in claims if _provider_of(claim) == node.provider_id]


def _provider_of(claim: JSON) -> str:
    return str((claim.get("status") or {}).get("providerID", ""))


def _claim(body: JSON, node: Node) -> NodeClaim:
    meta = body["metadata"]
    return NodeClaim(
        _ref(body, f"{KARPENTER}/v1", "NodeClaim"),
        meta["resourceVersion"],
        "deletionTimestamp" in meta,
        _claim_held(body, node),
        _deadline(meta),
    )


def _claim_held(body: JSON, node: Node) -> str:
    meta, conditions = body["metadata"], _conditions(body)
    if not any(owner["kind"] == "NodePool" for owner in meta.get("ownerReferences") or ()):
        return f"no NodePool owns NodeClaim {meta['name']}, so nothing would make a successor"
    for what, noted in (("the node", node.annotations), (f"NodeClaim {meta['name']}", meta.get("annotations") or {})):
        if noted.get(_UNWANTED) == "true":
            return f"{what} has the annotation {_UNWANTED}"
    for kind in ("DisruptionReason", "Rebooting"):
        if kind in conditions:
            return f"Karpenter itself is at work on it: {kind} {conditions[kind]}".rstrip()
    return next((_TAINTS[taint.key] for taint in node.taints if taint.key in _TAINTS), "")


def _conditions(body: JSON) -> dict[str, str]:
    """Give the conditions that are True, with their reasons."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    return {one["type"]: one.get("reason", "") for one in conditions if one.get("status") == "True"}


def _deadline(meta: JSON) -> datetime | None:
    try:
        return moment((meta.get("annotations") or {}).get(DRAIN_UNTIL))
    except ValueError:
        # Karpenter itself puts another in the place of one that it can't read.
        return None


async def _machine_of(node: Node, reader: Reader, group: str, namespace: str, name: str) -> Backing:
    for version in _VERSIONS[group]:
        try:
            body = await reader.get(_path(f"{group}/{version}", "Machine", namespace, name))
        except OutageError as error:
            if error.status != 404:
                raise
            # Not served in this version.
            continue
        if body is not None:
            return await _machine(body, f"{group}/{version}", node, reader)
    # It may be in a management cluster: that it is not here does not mean that it is gone.
    return _elsewhere(node, f"its Machine {namespace}/{name} ({group}) is not in this cluster")


async def _machine(body: JSON, api_version: str, node: Node, reader: Reader) -> Machine:
    meta, ref = body["metadata"], _ref(body, api_version, "Machine")
    held = _machine_held(body, ref, node) or await _owner_held(body, ref, reader)
    return Machine(ref, meta["resourceVersion"], "deletionTimestamp" in meta, held)


def _machine_held(body: JSON, ref: Ref, node: Node) -> str:
    spec, status = body.get("spec") or {}, body.get("status") or {}
    named = (status.get("nodeRef") or {}).get("name", "")
    if named != node.name or spec.get("providerID", "") != node.provider_id:
        return f"{ref} is not this node's: it names node {named or 'none'}, with providerID {spec.get('providerID')}"
    if controller_of(body["metadata"]) is None:
        return f"nothing controls {ref}, so nothing would make a successor"
    if "Paused" in _conditions(body):
        return f"{ref} is paused"
    return _noted(body, ref, _PAUSED, _SKIP)


async def _owner_held(body: JSON, ref: Ref, reader: Reader) -> str:
    """Tell what of a Machine's Cluster, MachineSet and MachineDeployment keeps it from being replaced."""
    if not ref.api_version.startswith(f"{CLUSTER_API}/"):
        return ""
    cluster = Ref(ref.api_version, "Cluster", ref.namespace, (body.get("spec") or {}).get("clusterName", ""), "")
    held, _ = await _held(cluster, ref, reader)
    owner = controller_of(body["metadata"])
    # Control planes of other groups watch over themselves.
    while not held and owner is not None and owner.kind in _PLURALS:
        held, owner = await _held(owner, ref, reader)
    return held


async def _held(owner: Ref, ref: Ref, reader: Reader) -> tuple[str, Ref | None]:
    """Tell what of one owner keeps a Machine from being replaced, and what controls that owner."""
    body = await reader.get(_path(ref.api_version, owner.kind, ref.namespace, owner.name))
    if body is None:
        return f"{owner}, which {ref} belongs to, is not there", None
    paused = f"{owner} is paused" if (body.get("spec") or {}).get("paused") else ""
    return paused or _noted(body, owner, _PAUSED) or _childless(body, owner), controller_of(body["metadata"])


def _childless(body: JSON, owner: Ref) -> str:
    # Every MachineSet of a MachineDeployment has it, as `false` when it may make Machines.
    if (body["metadata"].get("annotations") or {}).get(_NO_CREATE) != "true":
        return ""
    return f"{owner} has the annotation {_NO_CREATE}"


def _noted(body: JSON, ref: Ref, *annotations: str) -> str:
    noted = body["metadata"].get("annotations") or {}
    return next((f"{ref} has the annotation {one}" for one in annotations if one in noted), "")


def _ref(body: JSON, api_version: str, kind: str) -> Ref:
    meta = body["metadata"]
    return Ref(api_version, kind, meta.get("namespace", ""), meta["name"], meta["uid"])


def _path(api_version: str, kind: str, namespace: str, name: str = "") -> str:
    within = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{api_version}{within}/{_PLURALS[kind]}" + (f"/{name}" if name else "")


_CONDITIONED = Check(
    "has(request.options.preconditions) && has(request.options.preconditions.uid)"
    " && has(request.options.preconditions.resourceVersion)",
    "what is deleted is named by UID and resourceVersion in the preconditions",
)


def _replaces(group: str, plural: str, note: str) -> tuple[Rule, ...]:
    return (
        Rule(group, plural, "get", "cluster"),
        Rule(group, plural, "patch", "cluster", notes=(note,)),
        Rule(group, plural, "delete", "cluster", checks=(_CONDITIONED,)),
    )


@dataclass(frozen=True, kw_only=True)
class _Replace(NodeAction):
    """Delete what stands behind a node, so that its owner makes a successor."""

    verb: ClassVar[str] = "replace"
    past: ClassVar[str] = "Replaced"

    @property
    @abstractmethod
    def behind(self) -> NodeClaim | Machine:
        """What is deleted."""

    @property
    def _where(self) -> str:
        ref = self.behind.ref
        return _path(ref.api_version, ref.kind, ref.namespace, ref.name)

    def prior(self) -> dict[str, str]:
        """The node's, and what stands behind it."""
        return {**super().prior(), "path": self._where, "uid": self.behind.ref.uid}

    async def _delete(self, writer: Writer, notes: Mapping[str, str]) -> str:
        ref, version = self.behind.ref, self.behind.resource_version
        if self.behind.terminating:
            return f"{ref} is on its way out already"
        if self.behind.held:
            raise ConflictError(f"{ref} must be left alone: {self.behind.held}", 409)
        await writer.delete(self._where, {"preconditions": {"uid": ref.uid, "resourceVersion": version}})
        # Not before: a kill between the two must leave no bound on what lives on. Who drains reads it again and again.
        if notes:
            with suppress(GoneError, ConflictError):
                await writer.merge(self._where, {"metadata": {"uid": ref.uid, "annotations": notes}})
        return f"{ref} is deleted"

    @staticmethod
    async def done(target: Ref, prior: Mapping[str, str], reader: Reader) -> bool:  # noqa: ARG004 - see what is behind
        """What stood behind the node is gone, was replaced under its name, or is on its way out."""
        body = await reader.get(prior["path"])
        return body is None or body["metadata"]["uid"] != prior["uid"] or "deletionTimestamp" in body["metadata"]


@dataclass(frozen=True, kw_only=True)
class DeleteNodeClaim(_Replace):
    """Delete a node's NodeClaim: Karpenter drains the node, ends its machine, and makes another for its pods.

    `deadline` is when that drain ends at the latest; without one, a PodDisruptionBudget may hold it for ever.
    """

    claim: NodeClaim
    deadline: datetime | None = None

    rbac: ClassVar[tuple[Rule, ...]] = (
        Rule("", "nodes", "get", "cluster"),
        Rule(KARPENTER, "nodeclaims", "list", "cluster"),
        *_replaces(KARPENTER, "nodeclaims", DRAIN_UNTIL),
    )

    @property
    def behind(self) -> NodeClaim:
        """The NodeClaim."""
        return self.claim

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - nothing to undo
        """Delete the claim that was read, and bound its drain; an earlier bound stays."""
        set_, until = self.claim.drain_until, self.deadline
        tighter = until is not None and (set_ is None or until < set_)
        return await self._delete(writer, {DRAIN_UNTIL: _show(until)} if until and tighter else {})


@dataclass(frozen=True, kw_only=True)
class DeleteMachine(_Replace):
    """Delete a node's Machine: its controller drains the node, ends the machine, and its owner makes another.

    With `undrained` the controller's drain is left out: for a kubelet that is silent, or when the time is over.
    """

    machine: Machine
    undrained: bool = False

    rbac: ClassVar[tuple[Rule, ...]] = (
        *(
            Rule(CLUSTER_API, _PLURALS[kind], "get", "cluster")
            for kind in ("Cluster", "MachineDeployment", "MachineSet")
        ),
        *(rule for group, note in _UNDRAINED.items() for rule in _replaces(group, "machines", note)),
    )

    @property
    def behind(self) -> Machine:
        """The Machine."""
        return self.machine

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - nothing to undo
        """Delete the Machine that was read."""
        note = _UNDRAINED[self.machine.ref.api_version.partition("/")[0]]
        return await self._delete(writer, {note: ""} if self.undrained else {})


def _show(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")


register(DeleteNodeClaim, DeleteMachine)
