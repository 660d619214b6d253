"""Empty a node by evictions, and restart the pods by which it has its network."""

from __future__ import annotations

import asyncio
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar, Literal, Self

from kreflex.actions import PRECONDITIONS, BlockedError, evict, register
from kreflex.cluster import Reader, Writer
from kreflex.errors import ApiError, ConflictError, DeniedError, GoneError, KreflexError, UnavailableError
from kreflex.guards import OPT_OUT
from kreflex.nodeactions import NodeStep
from kreflex.rule import Check, Rule
from kreflex.upkeep import Drain
from kreflex.views import Pod

_AT_ONCE = 10
# Then the rest is left to the next step: an attempt has to be over before it is another's.
_WITHIN_SECONDS = 15.0
_NAMED = 3
# What a record keeps of a step's note; the numbers are in it, whatever the names are like.
_NOTE = 300
_GRACE = Check(
    "!has(object.deleteOptions.gracePeriodSeconds) || object.deleteOptions.gracePeriodSeconds >= 1",
    "a pod of a node gets a second at least",
)
# Of any namespace: a node that keeps CoreDNS is not empty.
_EVICTS = (
    Rule("", "pods/eviction", "create", "cluster", checks=(PRECONDITIONS, _GRACE), everywhere=True),
    Rule("", "pods", "get", "cluster"),
)
_FINISHED = {"Succeeded", "Failed"}
# What their own manifests call the DaemonSets by which nodes have their network, and where these put them.
_NETWORKS = {
    ("app", "antrea"),
    ("app", "flannel"),
    ("app", "kindnet"),
    ("app", "kube-ovn-cni"),
    ("app", "multus"),
    ("app", "ovnkube-node"),
    ("app", "sdn"),
    ("app", "terway-eniip"),
    ("component", "kube-proxy"),
    ("k8s-app", "aws-node"),
    ("k8s-app", "azure-cns"),
    ("k8s-app", "calico-node"),
    ("k8s-app", "canal"),
    ("k8s-app", "cilium"),
    ("k8s-app", "cilium-envoy"),
    ("k8s-app", "flannel"),
    ("k8s-app", "kindnet"),
    ("k8s-app", "kube-proxy"),
    ("k8s-app", "kube-router"),
    ("k8s-app", "netd"),
    ("name", "weave-net"),
}
_NETWORK_NAMESPACES = {
    "antrea-system",
    "calico-system",
    "cilium",
    "kube-flannel",
    "kube-ovn",
    "kube-router",
    "kube-system",
    "openshift-multus",
    "openshift-ovn-kubernetes",
    "openshift-sdn",
    "weave",
}


@dataclass(frozen=True, slots=True)
class Load:
    """The pods of a node: those to evict, those that a policy or their opt-out keeps, those that go, and that stay."""

    evictable: tuple[Pod, ...]
    blocking: tuple[Pod, ...]
    leaving: tuple[Pod, ...]
    staying: tuple[Pod, ...]

    @property
    def empty(self) -> bool:
        """True when nothing is left that would have to go."""
        return not (self.evictable or self.blocking or self.leaving)


def evictable(pods: Iterable[Pod], drain: Drain) -> Load:
    """Sort the pods of a node as `kubectl drain` does (kubectl, pkg/drain/filters.go), with the policy's switches."""
    sorted_: dict[str, list[Pod]] = defaultdict(list)
    for pod in pods:
        sorted_[_fate(pod, drain)].append(pod)
    return Load(*(tuple(sorted_[fate]) for fate in ("evictable", "blocking", "leaving", "staying")))


def _fate(pod: Pod, drain: Drain) -> Literal["evictable", "blocking", "leaving", "staying"]:
    if pod.mirror:
        return "staying"
    if pod.phase in _FINISHED:
        return "leaving" if pod.terminating else "evictable"
    if pod.controller is not None and pod.controller.kind == "DaemonSet":
        return "staying"
    if pod.terminating:
        return "leaving"
    bare, scratch = pod.controller is None, pod.empty_dir
    blocked = (bare and drain.bare == "Block") or (scratch and drain.empty_dir == "Block")
    return "blocking" if blocked or _opted_out(pod) else "evictable"


def _opted_out(pod: Pod) -> bool:
    return pod.annotations.get(OPT_OUT, "false").lower() != "false"


def network_pods(pods: Iterable[Pod]) -> tuple[Pod, ...]:
    """Choose the pods of a CNI or of kube-proxy that a DaemonSet starts anew; static ones restart in no such way."""
    return tuple(pod for pod in pods if _networks(pod) and not (pod.terminating or pod.mirror or _opted_out(pod)))


def _networks(pod: Pod) -> bool:
    daemon = pod.controller is not None and pod.controller.kind == "DaemonSet"
    return daemon and pod.ref.namespace in _NETWORK_NAMESPACES and not _NETWORKS.isdisjoint(pod.labels.items())


@dataclass(frozen=True, kw_only=True)
class EvictPods(NodeStep):
    """Evict pods of a node: budgets hold, and no pod is asked twice. `most` bounds how many go, 0 for all of them.

    Those of one controller go one after the other, up to the first that a budget keeps: the others have the same one.
    Controllers go side by side.
    """

    pods: tuple[Pod, ...]
    most: int = 0
    max_grace: timedelta | None = None
    label: str = ""

    rbac: ClassVar[tuple[Rule, ...]] = _EVICTS
    verb: ClassVar[str] = "evict pods of"
    past: ClassVar[str] = "EvictedPods"

    @property
    def step_name(self) -> str:
        """What is evicted for one purpose is a step of its own."""
        return f"{type(self).__name__} {self.label}".rstrip()

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - nothing to undo
        """Evict the pods as they were read; tells how many went, and what keeps the others."""
        return str(await _Evictions(writer, reader, self.most, self.max_grace).of(self.pods))


@dataclass(frozen=True, kw_only=True)
class RestartNetworkPod(NodeStep):
    """Evict the pods by which a node has its network, so that their DaemonSets start new ones there."""

    pods: tuple[Pod, ...]

    rbac: ClassVar[tuple[Rule, ...]] = _EVICTS
    verb: ClassVar[str] = "restart the network pods of"
    past: ClassVar[str] = "RestartedNetworkPods"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - nothing to undo
        """Evict them as they were read; tells which. Nothing is done when all of them have changed since."""
        done = await _Evictions(writer, reader).of(self.pods)
        if done.all_changed:
            raise ConflictError(f"the network pods of {self.target} have changed since they were looked at", 409)
        return f"{done}: {_several(pod.ref.name for pod in self.pods)}"


class _Places:
    """How many pods may still go. What turns out not to go takes nobody's place."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._under_way = 0
        self._changed = asyncio.Condition()

    async def take(self) -> bool:
        """Take a place; waits while only those that are under way can tell whether there is one."""
        async with self._changed:
            await self._changed.wait_for(lambda: self._left or not self._under_way)
            if not self._left:
                return False
            self._left -= 1
            self._under_way += 1
            return True

    async def settle(self, *, gone: bool) -> None:
        """Tell what came of a place."""
        async with self._changed:
            self._under_way -= 1
            if not gone:
                self._left += 1
            self._changed.notify_all()


class _Evictions:
    """One batch of evictions, and what came of it."""

    def __init__(self, writer: Writer, reader: Reader, most: int = 0, max_grace: timedelta | None = None) -> None:
        self._writer = writer
        self._reader = reader
        self._places = _Places(most or sys.maxsize)
        self._most_seconds = None if max_grace is None else max(1, int(max_grace.total_seconds()))
        self._end = time.monotonic() + _WITHIN_SECONDS
        self._turns = asyncio.Semaphore(_AT_ONCE)
        self._counts: Counter[str] = Counter()
        self._kept: dict[str, list[str]] = defaultdict(list)
        self._broken: KreflexError | None = None

    @property
    def all_changed(self) -> bool:
        """True if no pod was as it had been read."""
        return set(self._counts) == {"changed"}

    async def of(self, pods: Sequence[Pod]) -> Self:
        """Evict them; what is wrong with more than one pod is raised once all that are under way are done."""
        groups: dict[str, list[Pod]] = defaultdict(list)
        for pod in pods:
            groups[pod.controller.uid if pod.controller else pod.ref.uid].append(pod)
        async with asyncio.TaskGroup() as tasks:
            for group in groups.values():
                tasks.create_task(self._empty(group))
        if self._broken is not None:
            raise self._broken
        return self

    async def _empty(self, group: list[Pod]) -> None:
        # In turn: of those that come at once under one budget, the API server lets all but one wait half a second.
        async with self._turns:
            for number, pod in enumerate(group):
                if self._over or not await self._places.take():
                    return
                kept = await self._evict(pod)
                await self._places.settle(gone=kept == "evicted")
                self._counts[kept] += 1
                if kept in {_BUDGET, _BUDGETS}:
                    self._counts[kept] += len(group) - number - 1
                    return

    @property
    def _over(self) -> bool:
        return self._broken is not None or time.monotonic() > self._end

    async def _evict(self, pod: Pod) -> str:
        """Evict one pod; tells what came of it."""
        try:
            await evict(pod, self._writer, self._reader, self._grace(pod))
        except GoneError:
            return "gone"
        except ConflictError:
            return "changed"
        except BlockedError as blocked:
            return self._keep(_BUDGET if blocked.cause == "DisruptionBudget" else _BUDGETS, pod)
        except DeniedError:
            # Of this pod alone: a webhook may move it away in its own way, as KubeVirt's does.
            return self._keep("denied", pod)
        except (ApiError, UnavailableError) as error:
            self._broken = error
            return "unknown"
        return "evicted"

    def _grace(self, pod: Pod) -> int | None:
        capped = self._most_seconds is not None and pod.grace_seconds > self._most_seconds
        return self._most_seconds if capped else None

    def _keep(self, why: str, pod: Pod) -> str:
        self._kept[why].append(_short(pod))
        return why

    def __str__(self) -> str:
        whole = self._told(named=True)
        return whole if len(whole) <= _NOTE else self._told(named=False)

    def _told(self, *, named: bool) -> str:
        counted = [f"evicted {self._counts['evicted']}"]
        for what in _TOLD:
            names = f" ({_several(self._kept[what])})" if named and self._kept[what] else ""
            if self._counts[what]:
                counted.append(f"{self._counts[what]} {what}{names}")
        return ", ".join(counted)


_BUDGET, _BUDGETS = "blocked by PodDisruptionBudgets", "with several PodDisruptionBudgets, where one is allowed"
_TOLD = (_BUDGET, _BUDGETS, "denied", "changed", "gone")


def _short(pod: Pod) -> str:
    """Name what a pod belongs to as people do: a Deployment by its name, without the ReplicaSet's hash."""
    name = pod.ref.name if pod.controller is None else pod.controller.name
    return f"{pod.ref.namespace}/{name.removesuffix(f'-{pod.template_hash}')}"


def _several(names: Iterable[str]) -> str:
    unique = sorted(set(names))
    more = f" and {len(unique) - _NAMED} more" if len(unique) > _NAMED else ""
    return ", ".join(unique[:_NAMED]) + more


register(EvictPods, RestartNetworkPod)
