"""Actions: one change to the cluster each, as a value that knows its preconditions and when it is done."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from kreflex import anomalynotes
from kreflex.cluster import Reader, Writer
from kreflex.errors import ApiError, ConflictError, GoneError, KreflexError, ThrottledError
from kreflex.rule import Check, Rule
from kreflex.views import JSON, Pod, Ref, Workload


class BlockedError(KreflexError):
    """The cluster does not allow the action now; `cause` is one word. Not an error of ours, and not final."""

    def __init__(self, because: str, cause: str) -> None:
        super().__init__(because)
        self.cause = cause


class HopelessError(BlockedError):
    """It can't be done, now or later, unless people change something: a long remediation is given up here."""


@dataclass(frozen=True)
class Action(ABC):
    """A change to `target`, because of `because`. `owner` is what limits are counted by."""

    because: str

    rbac: ClassVar[tuple[Rule, ...]]
    # What `find` reads, beside what its signals ask for, to come to this action without an event.
    rbac_to_find: ClassVar[tuple[Rule, ...]] = ()
    verb: ClassVar[str]
    past: ClassVar[str]
    # One of several of a long remediation: after it, the function is asked for the next.
    step: ClassVar[bool] = False
    # Takes back what was begun: no guard, no freeze and no limit stops that.
    undo: ClassVar[bool] = False
    # Part of a long remediation: its record knows the steps.
    lasting: ClassVar[bool] = False
    # Part of the remediation of a node, whose Lease is held, which needs rights.
    leased: ClassVar[bool] = False
    # Leaves a word in the history of a workload's releases, which needs rights.
    remembering: ClassVar[bool] = False

    @property
    @abstractmethod
    def target(self) -> Ref:
        """The object that is changed, by UID."""

    @property
    @abstractmethod
    def owner(self) -> Workload | None:
        """The workload that the target belongs to in the end; None for an object that stands alone."""

    @property
    @abstractmethod
    def template_hash(self) -> str:
        """The owner's template; a new one begins a new count."""

    @property
    @abstractmethod
    def controller(self) -> str:
        """UID of the target's direct controller, or ""."""

    @property
    @abstractmethod
    def risky(self) -> bool:
        """True if it takes something away that still serves: then a spent error budget asks a person first."""

    @property
    def kind(self) -> str:
        """What a policy's `owners` must name: the kind of the owner, or of what nothing owns."""
        return self.owner.ref.kind if self.owner is not None else self.target.kind

    @property
    def step_name(self) -> str:
        """What the record calls it among the steps that were taken."""
        return type(self).__name__

    @property
    def episode(self) -> str:
        """What tells this fault from an earlier one of the same object; "" if an object has one fault at most."""
        return ""

    @abstractmethod
    def annotations(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        """The annotations that may opt out, each with the name of its object."""

    @property
    @abstractmethod
    def labels(self) -> Mapping[str, str]:
        """What a policy's selector sees."""

    @property
    def manager(self) -> str:
        """Who owns in Git what is written; "" if nobody does, or if his sync is suspended by us."""
        return ""

    def plan(self) -> JSON:
        """Tell what would be done, without what changes from one reading to the next."""
        return {"action": type(self).__name__, "target": str(self.target), "uid": self.target.uid}

    def prior(self) -> dict[str, str]:
        """Tell the state before the action, for the record."""
        return {}

    def plan_hash(self) -> str:
        """Name the plan; an approval is for this plan and no other."""
        return hashlib.sha256(json.dumps(self.plan(), sort_keys=True).encode()).hexdigest()[:16]

    @abstractmethod
    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Do it, and tell how it went if there is more to say than that it is done.

        `mark` names the record, to be left on an object that is changed and may have to be changed back. Raises
        ConflictError if the target is not as it was read, GoneError, BlockedError.
        """

    @staticmethod
    async def done(target: Ref, prior: Mapping[str, str], reader: Reader) -> bool:  # noqa: ARG004 - for those that ask
        """Tell whether it has been done already, by whomever: asked after a crash, before anything is done again.

        `prior` is what the action said of the state before it. A step is not asked: the next one follows from the
        cluster.
        """
        return False


PRECONDITIONS = Check(
    "has(object.deleteOptions) && has(object.deleteOptions.preconditions)"
    " && has(object.deleteOptions.preconditions.uid) && has(object.deleteOptions.preconditions.resourceVersion)",
    "an eviction names the pod's UID and resourceVersion in its preconditions",
)
_GRACE = Check(
    "!has(object.deleteOptions) || !has(object.deleteOptions.gracePeriodSeconds)",
    "an eviction leaves the pod its own grace period",
)


@dataclass(frozen=True)
class EvictPod(Action):
    """Evict a pod, so that its owner makes a new one. PodDisruptionBudgets hold; the pod's own grace period holds."""

    pod: Pod
    top: Workload | None

    rbac: ClassVar[tuple[Rule, ...]] = (
        Rule("", "pods/eviction", "create", checks=(PRECONDITIONS, _GRACE)),
        Rule("", "pods", "get"),
    )
    verb: ClassVar[str] = "evict"
    past: ClassVar[str] = "Evicted"

    @property
    def target(self) -> Ref:
        """The pod."""
        return self.pod.ref

    @property
    def owner(self) -> Workload | None:
        """The pod's topmost controller."""
        return self.top

    @property
    def template_hash(self) -> str:
        """The pod template's hash."""
        return self.pod.template_hash

    @property
    def controller(self) -> str:
        """The ReplicaSet's, StatefulSet's, … UID."""
        return self.pod.controller.uid if self.pod.controller else ""

    @property
    def risky(self) -> bool:
        """A pod that is Ready serves."""
        return self.pod.ready

    def prior(self) -> dict[str, str]:
        """The pod's version and how often its containers had been restarted."""
        restarts = {f"restarts.{c.name}": str(c.restarts) for c in self.pod.containers}
        return {"resourceVersion": self.pod.resource_version, "ready": str(self.pod.ready).lower(), **restarts}

    def annotations(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        """The pod's and its owner's."""
        top = () if self.top is None else ((str(self.top.ref), self.top.annotations),)
        return ((str(self.target), self.pod.annotations), *top)

    @property
    def labels(self) -> Mapping[str, str]:
        """The pod's labels."""
        return self.pod.labels

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - nothing to undo
        """Evict the pod that was read, and no other and no later one."""
        await evict(self.pod, writer, reader)
        return ""

    @staticmethod
    async def done(target: Ref, prior: Mapping[str, str], reader: Reader) -> bool:  # noqa: ARG004 - the UID says it all
        """An evicted pod is gone, replaced under its name, or on its way out."""
        return await _left(target, reader)


@dataclass(frozen=True)
class EvictAnomalous(EvictPod):
    """Evict a pod that does not crash, for an anomaly of one class that anomaly-scorer sees."""

    anomaly: str

    rbac: ClassVar[tuple[Rule, ...]] = (*EvictPod.rbac, *anomalynotes.RBAC)
    rbac_to_find: ClassVar[tuple[Rule, ...]] = anomalynotes.RBAC

    def prior(self) -> dict[str, str]:
        """Its class too: the pods that come after must not show the same."""
        return {**super().prior(), "anomaly": self.anomaly}


async def evict(pod: Pod, writer: Writer, reader: Reader, grace_seconds: int | None = None) -> None:
    """Evict a pod as it was read; `grace_seconds` replaces its own grace period. Raises as `Action.apply` does.

    Looked at once more, for the API server's own preconditions are not enough: for a pod that is not ready, under
    a PodDisruptionBudget with room, it puts another resourceVersion in the place of ours; and a conflict that it
    finds has taken from the budget already (kubernetes, pkg/registry/core/pod/storage/eviction.go).
    """
    await _same(pod, reader)
    try:
        await writer.create(
            f"/api/v1/namespaces/{pod.ref.namespace}/pods/{pod.ref.name}/eviction", _eviction(pod, grace_seconds)
        )
    except ThrottledError as error:
        # An eviction with a wrong UID is answered 429 for a pod that is not ready: look who is there.
        if await _left(pod.ref, reader):
            raise GoneError(f"{pod.ref} went away by itself", 404) from error
        raise BlockedError(f"a PodDisruptionBudget does not allow it now: {error}", "DisruptionBudget") from error
    except ApiError as error:
        if error.status == 500 and "PodDisruptionBudget" in str(error):
            raise BlockedError(
                f"more than one PodDisruptionBudget selects {pod.ref}, so nobody can evict it: leave one",
                "SeveralBudgets",
            ) from error
        raise


def _eviction(pod: Pod, grace_seconds: int | None) -> JSON:
    # The resourceVersion too: the eviction of a Terminating pod is accepted again under the UID alone.
    options: JSON = {"preconditions": {"uid": pod.ref.uid, "resourceVersion": pod.resource_version}}
    if grace_seconds is not None:
        options["gracePeriodSeconds"] = grace_seconds
    return {
        "apiVersion": "policy/v1",
        "kind": "Eviction",
        "metadata": {"namespace": pod.ref.namespace, "name": pod.ref.name},
        "deleteOptions": options,
    }


async def _same(pod: Pod, reader: Reader) -> None:
    now = await reader.pod(pod.ref.namespace, pod.ref.name)
    if now is None or now.ref.uid != pod.ref.uid or now.terminating:
        raise GoneError(f"{pod.ref} went away by itself", 404)
    if now.resource_version != pod.resource_version:
        raise ConflictError(f"{pod.ref} has changed since it was looked at", 409)


async def _left(target: Ref, reader: Reader) -> bool:
    pod = await reader.pod(target.namespace, target.name)
    return pod is None or pod.ref.uid != target.uid or pod.terminating


ACTIONS: dict[str, type[Action]] = {}


def register(*kinds: type[Action]) -> None:
    """Let records be read whose intent names these actions: each module of actions does so with its own."""
    ACTIONS.update({kind.__name__: kind for kind in kinds})


register(EvictPod, EvictAnomalous)
