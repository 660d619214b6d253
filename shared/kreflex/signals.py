"""Signals: what an event says about one object, whoever sent it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar, TypeGuard

from kreflex.cluster import OWNERS
from kreflex.rule import Rule
from kreflex.trace import Trace
from kreflex.views import Pod

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

    # What is read to decide and to prove; and what to find such a signal without an event, as the waker does.
    rbac: ClassVar[tuple[Rule, ...]] = (Rule("", "pods", "get"), Rule("", "pods", "list"), *OWNERS)
    rbac_to_find: ClassVar[tuple[Rule, ...]] = (Rule("", "pods", "list"),)

    @property
    def recorded(self) -> bool:
        """True when a record of the fault is there, and is looked at again."""
        return self.source == RECORD

    def __str__(self) -> str:
        return f"pod {self.namespace}/{self.name}"


Signal = PodSignal


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
class Delivery:
    """What one request asks for: signals, due records, verdicts, and what was understood but is for no function.

    `tick` says that a clock has sent it, which is what the waker waits for. `trace` is where the request came from, and
    `about` says for the log and the span who sent it.
    """

    signals: tuple[Signal, ...] = ()
    due: tuple[Due, ...] = ()
    resolved: tuple[Resolved, ...] = ()
    ignored: tuple[str, ...] = ()
    wants_event: bool = False
    tick: bool = False
    trace: Trace | None = None
    about: Mapping[str, str] = field(default_factory=dict)
