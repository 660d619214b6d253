"""Whether a node may be touched, given all nodes. Nothing is remembered: what the nodes show says it all (ADR 0018)."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kreflex.nodes import Node, NodeCondition, Taint
from kreflex.upkeep import Upkeep
from kreflex.views import time_of

# Karpenter asks again after this time, too: https://github.com/kubernetes-sigs/karpenter, node/legacyrepair.
RECHECK = timedelta(minutes=5)
# Sooner where the policy waits for less after a storm: a node that stays silent tells nobody that the others are back.
SOON = timedelta(seconds=10)
AT_WORK = timedelta(minutes=1)
NEVER = timedelta(hours=1)
# The kubelet keeps the times of its conditions when it starts anew. Others, node-problem-detector and Calico among
# them, write a new time at each start, so that a new version of them would look like a fleet that has just healed.
KUBELETS = frozenset({"Ready", "DiskPressure", "MemoryPressure", "PIDPressure"})


@dataclass(frozen=True, slots=True)
class Complaint:
    """A condition of a node that the policy calls an illness; from `deadline` on something may be done about it."""

    type: str
    status: str
    since: datetime
    deadline: datetime
    reason: str = ""

    def __str__(self) -> str:
        return f"{self.type} is {self.status}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True, slots=True)
class Stop:
    """Why a node is left alone: which guard says so, in which words, and until when."""

    guard: str
    because: str
    until: datetime


def complaints(node: Node, upkeep: Upkeep) -> tuple[Complaint, ...]:
    """Tell what a node suffers from, the earliest deadline first."""
    found = [_complaint(node, said, upkeep) for said in node.conditions]
    return tuple(sorted((one for one in found if one is not None), key=lambda one: (one.deadline, one.type)))


def ill(node: Node, upkeep: Upkeep) -> bool:
    """Tell whether a node suffers from anything now, for however short a time."""
    return any((said.type, said.status) in upkeep.matrix for said in node.conditions)


def deadline(node: Node, upkeep: Upkeep) -> datetime | None:
    """Tell from when on something may be done about a node; None for one that is not ill."""
    found = complaints(node, upkeep)
    return found[0].deadline if found else None


def episode(complaint: Complaint) -> str:
    """Name one time of being ill: it is the same whoever looks, and another one when the illness comes again."""
    return f"{complaint.type}/{complaint.since.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def booting(node: Node, upkeep: Upkeep, now: datetime) -> bool:
    """Tell whether a node is still starting: it has never been Ready, and its time for that is not over."""
    return now < node.created + upkeep.startup and _never_ready(node)


def _complaint(node: Node, said: NodeCondition, upkeep: Upkeep) -> Complaint | None:
    patience = upkeep.matrix.get((said.type, said.status))
    if patience is None:
        return None
    since = _since(node, said)
    due = since + patience
    if _never_ready(node):
        due = max(due, node.created + upkeep.startup)
    return Complaint(said.type, said.status, since, due, said.reason)


def _since(node: Node, said: NodeCondition) -> datetime:
    """Tell since when a condition is as it is: never before there was the node."""
    return max(said.since or node.created, node.created)


def _never_ready(node: Node) -> bool:
    """Tell whether a node has been NotReady since it was created; in doubt it has been Ready.

    A kubelet that registers its node writes Ready=False at that moment, and the time stays until Ready changes. One
    that never writes anything is told by the node lifecycle controller (kubernetes, pkg/controller/nodelifecycle).
    """
    ready = node.condition("Ready")
    if ready is None or ready.status == "True":
        return ready is None
    return ready.reason == "NodeStatusNeverUpdated" or _since(node, ready) <= node.created + timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class _Case:
    """A node's history, as far as it shows: ill since a time, or healed at a time and ill before it."""

    node: Node
    since: datetime | None
    healed: datetime | None


@dataclass(frozen=True, slots=True)
class _Storm:
    """Too many of some nodes were ill until `ended`: so many."""

    ended: datetime
    ill: int


@dataclass(frozen=True, slots=True)
class _Breaker:
    """How many of some nodes may be ill."""

    name: str
    nodes: str
    cases: tuple[_Case, ...]
    limit: int
    rule: str

    @property
    def ill(self) -> int:
        """How many are ill now."""
        return sum(case.since is not None for case in self.cases)

    def words(self, count: int, verb: str) -> str:
        """Tell the count and the limit."""
        return f"{count} of {len(self.cases)} {self.nodes} {verb} ill, {_tolerated(self.limit)}{self.rule}"

    def storm(self) -> _Storm | None:
        """Tell when more were ill than are tolerated for the last time before now."""
        always = sum(1 for case in self.cases if case.since and case.healed and case.since < case.healed)
        others = [case for case in self.cases if not (case.since and case.healed and case.since < case.healed)]
        begun = sorted(case.since for case in others if case.since is not None)
        ended = sorted(case.healed for case in others if case.healed is not None)
        # The number falls only when a node heals. How long it was ill before is not told: as long as need be.
        for healed in reversed(ended):
            count = always + bisect_left(begun, healed) + len(ended) - bisect_left(ended, healed)
            if count > self.limit:
                return _Storm(healed, count)
        return None


def too_ill(node: Node, fleet: Iterable[Node], upkeep: Upkeep, now: datetime, *, begun: bool = False) -> Stop | None:
    """Tell whether too many nodes of its pool, its zone or the whole fleet are ill, or were a short time ago.

    Then one cause is likely, and it is not in the nodes. A remediation that has `begun` does not wait for the storm
    cooldown.
    """
    cases = [case for one in fleet if (case := _case(one, upkeep, now)) is not None]
    breakers = _breakers(node, cases, upkeep)
    for breaker in breakers:
        if breaker.ill > breaker.limit:
            words = breaker.words(breaker.ill, "is" if breaker.ill == 1 else "are")
            return Stop(breaker.name, words, now + min(RECHECK, max(upkeep.storm_cooldown, SOON)))
    return None if begun else _cooldown(breakers, upkeep, now)


def _cooldown(breakers: Iterable[_Breaker], upkeep: Upkeep, now: datetime) -> Stop | None:
    storms = [(storm, breaker) for breaker in breakers if (storm := breaker.storm()) is not None]
    if not storms:
        return None
    storm, breaker = max(storms, key=lambda one: one[0].ended)
    calm_at = storm.ended + upkeep.storm_cooldown
    if now >= calm_at:
        return None
    words = breaker.words(storm.ill, "was" if storm.ill == 1 else "were")
    because = f"until {storm.ended:%H:%M:%S} UTC {words}: nothing new begins before {calm_at:%H:%M:%S} UTC"
    return Stop("StormCooldown", because, calm_at)


def _case(node: Node, upkeep: Upkeep, now: datetime) -> _Case | None:
    """Tell a node's history; None if it does not count: while it boots, and when it leaves in good health."""
    since = [_since(node, c) for c in node.conditions if (c.type, c.status) in upkeep.matrix]
    if booting(node, upkeep, now) or (node.terminating and not since):
        return None
    return _Case(node, min(since, default=None), _healed(node, upkeep))


def _healed(node: Node, upkeep: Upkeep) -> datetime | None:
    """Tell when a node has healed last, as far as it shows; to become Ready for the first time is no healing."""
    kinds, booted = {kind for kind, _ in upkeep.matrix} & KUBELETS, node.created + upkeep.startup
    times = [c.since for c in node.conditions if c.type in kinds and (c.type, c.status) not in upkeep.matrix]
    return max((at for at in times if at is not None and at >= booted), default=None)


def _breakers(node: Node, cases: Sequence[_Case], upkeep: Upkeep) -> tuple[_Breaker, ...]:
    pool, zone = node.pool(upkeep.pool_label), node.zone
    mates = tuple(case for case in cases if case.node.pool(upkeep.pool_label) == pool)
    near = tuple(case for case in cases if zone and case.node.zone == zone)
    return (
        _Breaker("PoolBreaker", f"nodes of {pool}", mates, *_limit_of_pool(len(mates), upkeep)),
        _Breaker("ZoneBreaker", f"nodes of zone {zone}", near, *_limit_of_zone(len(near), upkeep)),
        _Breaker("FleetBreaker", "nodes of the whole fleet", tuple(cases), *_limit_of_zone(len(cases), upkeep)),
    )


def _limit_of_pool(total: int, upkeep: Upkeep) -> tuple[int, str]:
    if upkeep.min_healthy is not None:
        return total - _part(upkeep.min_healthy, total, math.ceil), f" (minHealthy {upkeep.min_healthy})"
    share = "20%" if upkeep.max_unhealthy is None else upkeep.max_unhealthy
    return _part(share, total, math.ceil), f" ({share})" if isinstance(share, str) else ""


def _limit_of_zone(total: int, upkeep: Upkeep) -> tuple[int, str]:
    share = upkeep.max_unhealthy_zone
    if not isinstance(share, str):
        return share, ""
    return max(1, _part(share, total, math.floor)), f" ({share})"


def _part(share: int | str, total: int, rounded: Callable[[float], int]) -> int:
    return rounded(total * int(share[:-1]) / 100) if isinstance(share, str) else share


def _tolerated(limit: int) -> str:
    return "none is tolerated" if limit < 1 else "1 is tolerated" if limit == 1 else f"{limit} are tolerated"


def quorum_at_risk(node: Node, fleet: Iterable[Node], upkeep: Upkeep, now: datetime) -> Stop | None:
    """Tell why a node of the control plane is left alone: they are touched one at a time, and etcd keeps its quorum."""
    if not node.control_plane:
        return None
    others = [one for one in fleet if one.control_plane and one.ref.uid != node.ref.uid]
    for other in others:
        trouble = _trouble(other, upkeep)
        if trouble:
            return Stop("ControlPlane", f"{other.name} of the control plane {trouble}: one at a time", now + RECHECK)
    quorum = (len(others) + 1) // 2 + 1
    if len(others) >= quorum:
        return None
    because = f"of {len(others) + 1} control-plane nodes {len(others)} would be left, etcd's quorum is {quorum}"
    return Stop("ControlPlane", because, now + NEVER)


def _trouble(node: Node, upkeep: Upkeep) -> str:
    if node.terminating:
        return "is being deleted"
    if node.unschedulable:
        return "is cordoned"
    return "is ill" if ill(node, upkeep) or not node.ready else ""


# Who is at work on a node whose taints have this key.
_TAINTS = {
    # https://karpenter.sh/docs/concepts/disruption; the second until v0.37.
    "karpenter.sh/disrupted": "Karpenter is taking it away",
    "karpenter.sh/disruption": "Karpenter is taking it away",
    "karpenter.sh/rebooting": "Karpenter is restarting it",
    "karpenter.sh/unregistered": "Karpenter is still starting it",
    # https://github.com/medik8s/node-maintenance-operator, controllers/taint.go
    "medik8s.io/drain": "the Node Maintenance Operator is emptying it",
    # https://cloud.google.com/kubernetes-engine/docs/how-to/handle-disruption-gpu-tpu
    "cloud.google.com/impending-node-termination": "GKE is about to stop it",
    # https://learn.microsoft.com/azure/aks/node-auto-drain
    "remediator.kubernetes.azure.com/unschedulable": "AKS is repairing it",
}
# The same, for the first part of the key: https://github.com/aws/aws-node-termination-handler, pkg/node/node.go
_AWS_HANDLER = "aws-node-termination-handler/"
# Whoever mends a node for a medik8s remediation object, ours among them; and what says that a machine is off.
_MEDIK8S, _OUT_OF_SERVICE = "remediation.medik8s.io/", "node.kubernetes.io/out-of-service"
# Their values are seconds since 1970: kubernetes/autoscaler, cluster-autoscaler/utils/taints/taints.go
_AUTOSCALER = {
    "ToBeDeletedByClusterAutoscaler": "the Cluster Autoscaler is deleting it",
    "DeletionCandidateOfClusterAutoscaler": "the Cluster Autoscaler is about to delete it",
}
# Labels, and what they say when somebody is at work.
_LABELS = {
    ("cloud.google.com/active-node-maintenance", "ONGOING"): "GKE is maintaining its machine",
    # https://learn.microsoft.com/azure/aks/upgrade-cluster: its drain has failed in an upgrade
    ("kubernetes.azure.com/upgrade-status", "Quarantined"): "AKS has set it aside in an upgrade",
}
# https://github.com/kubereboot/kured, cmd/kured/main.go: with --annotate-nodes
_KURED = "weave.works/kured-reboot-in-progress"
# https://github.com/openshift/machine-config-operator, pkg/daemon/constants/constants.go
_MACHINE_CONFIG = "machineconfiguration.openshift.io/"
# A mark with a time is left over when it is older: a machine that never came back from its restart must be mended.
STALE = timedelta(minutes=30)


def busy(node: Node, now: datetime, *, begun: bool = False) -> str | None:
    """Tell who else is at work on a node, and how we know; None if nobody is.

    Once our own remediation has `begun`, the marks of medik8s' remediators and of a machine that is off may be ours.
    """
    if node.terminating:
        return "it is being deleted: it has a deletionTimestamp"
    return _tainted(node, now, begun=begun) or _labelled(node) or _restarting(node, now) or _reconfigured(node)


def _tainted(node: Node, now: datetime, *, begun: bool) -> str | None:
    for taint in node.taints:
        who = _TAINTS.get(taint.key) or _handled(taint, now)
        if who is None and not begun:
            who = _remediated(taint)
        if who:
            return f"{who}: it has the taint {taint.key}"
    return None


def _handled(taint: Taint, now: datetime) -> str | None:
    if taint.key.startswith(_AWS_HANDLER):
        return "the AWS Node Termination Handler expects it to go"
    recent = not taint.value.isdigit() or now - datetime.fromtimestamp(int(taint.value), UTC) < STALE
    return _AUTOSCALER.get(taint.key) if recent else None


def _remediated(taint: Taint) -> str | None:
    if taint.key.startswith(_MEDIK8S):
        return "medik8s is mending it"
    return "somebody has said that its machine is off" if taint.key == _OUT_OF_SERVICE else None


def _labelled(node: Node) -> str | None:
    found = ((key, value, who) for (key, value), who in _LABELS.items() if node.labels.get(key) == value)
    return next((f"{who}: it has the label {key}={value}" for key, value, who in found), None)


def _restarting(node: Node, now: datetime) -> str | None:
    said = node.annotations.get(_KURED)
    if said is None:
        return None
    try:
        fresh = now - time_of(said) < STALE
    except ValueError:
        fresh = True
    return f"kured is restarting it: it has the annotation {_KURED}={said}" if fresh else None


def _reconfigured(node: Node) -> str | None:
    wanted, current, state = (
        node.annotations.get(_MACHINE_CONFIG + name, "") for name in ("desiredConfig", "currentConfig", "state")
    )
    # Degraded: the operator can't go on by itself.
    if state not in {"Working", "Rebooting"} and (wanted in {"", current} or state == "Degraded"):
        return None
    how = f"from {current} to {wanted}, state {state or 'unknown'}"
    return f"OpenShift's Machine Config Operator is changing it: {how}"


# Nobody is to mend a node that has one of these with the value "true".
_OPT_OUT_LABEL = "remediation.medik8s.io/exclude-from-remediation"
_OPT_OUT_ANNOTATION = "karpenter.sh/do-not-repair"


def excluded(node: Node) -> str | None:
    """Tell what people or others have put on a node so that nobody mends it."""
    if node.labels.get(_OPT_OUT_LABEL) == "true":
        return f"it has the label {_OPT_OUT_LABEL}=true"
    return (
        f"it has the annotation {_OPT_OUT_ANNOTATION}=true"
        if node.annotations.get(_OPT_OUT_ANNOTATION) == "true"
        else None
    )


def hands_off(node: Node, fleet: Sequence[Node], upkeep: Upkeep, now: datetime, *, begun: bool = False) -> Stop | None:
    """Tell why a node is not touched now, whatever is wrong with it; None if nothing speaks against it."""
    kept = excluded(node)
    if kept is not None:
        return Stop("OptedOut", kept, now + NEVER)
    worker = busy(node, now, begun=begun)
    if worker is not None:
        return Stop("AtWork", worker, now + AT_WORK)
    return quorum_at_risk(node, fleet, upkeep, now) or too_ill(node, fleet, upkeep, now, begun=begun)
