"""Signals: what an event says about one object, whoever sent it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import ClassVar, Literal, TypeGuard

from kreflex import gitops, histories, others
from kreflex.kinds import OWNERS, TO_FIND
from kreflex.nodes import Node
from kreflex.records import Answer, Taken
from kreflex.rule import Rule
from kreflex.trace import Trace
from kreflex.views import JSON, Pod

_NAME = re.compile(r"[a-z0-9]([-.a-z0-9]{0,251}[a-z0-9])?")


def is_name(value: object) -> TypeGuard[str]:
    """Tell whether something may name an object or a namespace: it becomes part of a path of the API server."""
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


RECORD = "record"


@dataclass(frozen=True, slots=True)
class PodSignal:
    """Somebody says that a pod is ill.

    `uid` is "" where the sender does not know it; `seen` is the pod as the event carried it: good enough to see that
    nothing is wrong, never good enough to act on. `source` and `delivery` are for the log only, and `trace` is the
    event's own, where that is not the request's.
    """

    namespace: str
    name: str
    uid: str = ""
    summary: str = ""
    seen: Pod | None = field(default=None, repr=False)
    source: str = ""
    delivery: str = ""
    trace: Trace | None = field(default=None, repr=False)
    # A pod has one fault at most, so its UID names it.
    episode: ClassVar[str] = ""

    # What is read to decide and to prove; and what to find such a signal without an event, as the waker does.
    rbac: ClassVar[tuple[Rule, ...]] = (Rule("", "pods", "get"), Rule("", "pods", "list"), *OWNERS)
    rbac_to_find: ClassVar[tuple[Rule, ...]] = (Rule("", "pods", "list"),)

    @property
    def recorded(self) -> bool:
        """True when a record of the fault is there, and is looked at again."""
        return self.source == RECORD

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Course:
    """A long remediation that has begun: the name of its record, and what was done so far."""

    record: str
    begun_at: datetime
    steps: tuple[Taken, ...] = ()
    answer: Answer | None = None

    def took(self, action: str) -> Taken | None:
        """Tell of one kind of step, if it was taken."""
        return next((step for step in self.steps if step.action == action), None)


@dataclass(frozen=True, slots=True)
class NodeSignal:
    """Somebody says that a node is ill.

    `name` may be one of its addresses: that is all that an exporter on the node knows. `uid` is "" where the sender
    does not know it; `seen` is the node as the event carried it. `episode` is what `find` calls the fault, and `course`
    is there once its remediation has begun.
    """

    name: str
    uid: str = ""
    summary: str = ""
    seen: Node | None = field(default=None, repr=False)
    source: str = ""
    delivery: str = ""
    trace: Trace | None = field(default=None, repr=False)
    episode: str = ""
    course: Course | None = None

    rbac: ClassVar[tuple[Rule, ...]] = (
        Rule("", "nodes", "get", "cluster"),
        Rule("", "nodes", "list", "cluster"),
        Rule("", "pods", "list", "cluster"),
        Rule("coordination.k8s.io", "leases", "get", "cluster"),
        *others.RBAC,
    )
    rbac_to_find: ClassVar[tuple[Rule, ...]] = (Rule("", "nodes", "list", "cluster"),)
    # A node is in no namespace; nothing that belongs to one is about it.
    namespace: ClassVar[str] = ""

    @property
    def recorded(self) -> bool:
        """True when a record of the fault is there, and is looked at again."""
        return self.source == RECORD

    def __str__(self) -> str:
        return f"node {self.name}"


@dataclass(frozen=True, slots=True)
class WorkloadSignal:
    """Somebody says that something is wrong with a release: with a workload, or with what shares out its traffic.

    `uid` is "" where the sender does not know it; `seen` is the object as the event carried it, good enough to see that
    nothing is wrong. `episode` names the release, and `course` is there once a remediation of it has begun.
    """

    api_version: str
    kind: str
    namespace: str
    name: str
    uid: str = ""
    summary: str = ""
    seen: JSON | None = field(default=None, repr=False)
    source: str = ""
    delivery: str = ""
    trace: Trace | None = field(default=None, repr=False)
    episode: str = ""
    course: Course | None = None

    rbac: ClassVar[tuple[Rule, ...]] = (
        *OWNERS,
        *TO_FIND,
        Rule("", "pods", "get"),
        Rule("", "pods", "list"),
        Rule("apps", "replicasets", "list"),
        Rule("apps", "controllerrevisions", "list"),
        # Whether its pods fail because of their nodes.
        Rule("", "nodes", "list", "cluster"),
        *gitops.RBAC,
        *histories.RBAC_TO_READ,
    )
    rbac_to_find: ClassVar[tuple[Rule, ...]] = (*TO_FIND, *histories.RBAC_TO_FIND)

    @property
    def recorded(self) -> bool:
        """True when a record of the fault is there, and is looked at again."""
        return self.source == RECORD

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}"


Signal = PodSignal | NodeSignal | WorkloadSignal


@dataclass(frozen=True, slots=True)
class Due:
    """A record that is to be looked at again: the waker's call, or a change of the record."""

    namespace: str
    record: str
    trace: Trace | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"record {self.namespace}/{self.record}"


@dataclass(frozen=True, slots=True)
class Resolved:
    """Somebody says that a pod is ill no more. It is never a reason to act, only to look at an open verdict."""

    namespace: str
    name: str
    uid: str
    trace: Trace | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"resolved pod {self.namespace}/{self.name}"


@dataclass(frozen=True, slots=True)
class Answered:
    """The automation of a provider answers what a remediation has asked of it."""

    namespace: str
    record: str
    outcome: Literal["Accepted", "Done", "Failed"]
    powered_off: bool = False
    message: str = ""
    trace: Trace | None = field(default=None, repr=False)

    def __str__(self) -> str:
        return f"answer to {self.namespace}/{self.record}"


@dataclass(frozen=True, slots=True)
class Feedback:
    """Somebody says whether an anomaly was one."""

    namespace: str
    anomaly: str
    verdict: Literal["Confirmed", "Dismissed"]
    by: str = ""

    def __str__(self) -> str:
        return f"feedback on {self.namespace}/{self.anomaly}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """What one request asks for: signals, due records, verdicts, and what was understood but is for no function.

    `tick` says that a clock has sent it, which is what the waker waits for. `gate` says that the sender takes a success
    for "roll back now" and is told no in every other case. `trace` is where the request came from, and
    `about` says for the log and the span who sent it.
    """

    signals: tuple[Signal, ...] = ()
    due: tuple[Due, ...] = ()
    resolved: tuple[Resolved, ...] = ()
    answered: tuple[Answered, ...] = ()
    experiments: tuple[Due, ...] = ()
    feedback: tuple[Feedback, ...] = ()
    ignored: tuple[str, ...] = ()
    wants_event: bool = False
    tick: bool = False
    gate: bool = False
    trace: Trace | None = None
    about: Mapping[str, str] = field(default_factory=dict)
