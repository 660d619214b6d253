"""What is watched for anomalies: AnomalyWatch objects, which people keep in Git.

Nothing here needs numpy. One that can't be used is told of, and skips only itself.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    WithJsonSchema,
    model_validator,
)

from kreflex.anomaly.words import AnomalyClass, SignalKind
from kreflex.audit import log
from kreflex.cluster import Reader, Writer
from kreflex.durations import PATTERN, Duration, parse_duration, show_duration
from kreflex.errors import ConflictError, KreflexError
from kreflex.parts import Part
from kreflex.policy import GROUP
from kreflex.records import API
from kreflex.rule import Rule
from kreflex.signals import is_name
from kreflex.views import JSON

KIND, PLURAL = "AnomalyWatch", "anomalywatches"
TargetKind = Literal["Pod", "Node", "Deployment", "StatefulSet", "DaemonSet", "Service", "ResourceQuota"]
RBAC_TO_READ = (Rule(GROUP, PLURAL, "list", "cluster"),)
# Its Event is written under the rule that all functions have.
RBAC = (*RBAC_TO_READ, Rule(GROUP, f"{PLURAL}/status", "patch", "cluster", fields=("status",)))
_PROBLEM = 1000
_NAMESPACE = 63

INTERVAL, HISTORY = timedelta(minutes=1), timedelta(days=7)
LEAST_SAMPLES = 60

_LABEL = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z_][a-zA-Z0-9_]*$", max_length=100)]
_QUERY = Annotated[str, StringConstraints(min_length=1, max_length=4096)]


def _within(least: timedelta, most: timedelta) -> tuple[AfterValidator, WithJsonSchema]:
    shortest, longest = show_duration(least), show_duration(most)
    message = f"must be {shortest} at least, and {longest} at most"

    def check(given: timedelta) -> timedelta:
        if not least <= given <= most:
            raise ValueError(message)
        return given

    rule = f"duration(self) >= duration('{shortest}') && duration(self) <= duration('{longest}')"
    text = {"type": "string", "pattern": PATTERN, "minLength": 2, "maxLength": 20}
    return AfterValidator(check), WithJsonSchema(
        {**text, "x-kubernetes-validations": [{"rule": rule, "message": message}]}
    )


Interval = Annotated[Duration, *_within(timedelta(seconds=1), timedelta(hours=1))]
History = Annotated[Duration, *_within(timedelta(minutes=10), timedelta(days=28))]
Horizon = Annotated[Duration, *_within(timedelta(minutes=1), timedelta(days=7))]


class Pointer(Part):
    """What the series are about: one object of a kind, which their labels name."""

    kind: TargetKind
    namespace_label: _LABEL = Field("namespace", description="The label that names its namespace; nodes have none.")
    name_label: _LABEL = Field(description="The label that names it.")


class Signal(Part):
    """One query of the watch, and what kind of number it yields."""

    name: str = Field(pattern=r"^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$")
    query: _QUERY = Field(description="PromQL: an instant vector, one series for each target or part of one.")
    kind: SignalKind = "gauge"
    limit: _QUERY | None = Field(
        None, description="PromQL: where it is exhausted; its series have the labels of the query's, or some of them."
    )
    classes: tuple[AnomalyClass, ...] = Field((), max_length=11, description="Only these classes; empty means all.")

    @property
    def meaning(self) -> str:
        """Name what a state is about: with another query, another one is learnt."""
        return hashlib.sha256(json.dumps([self.query, self.kind, self.limit]).encode()).hexdigest()[:16]


class Led(Part):
    """The function that an anomaly of a class may wake."""

    class_: AnomalyClass = Field(alias="class")
    function: str = Field(pattern=r"^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$")


class WatchSpec(Part):
    """What an AnomalyWatch says."""

    target: Pointer
    interval: Interval = Field(
        parse_duration("1m"), description="How far apart the samples are, and how often they are looked at."
    )
    false_alarms_per_series_day: float = Field(0.05, ge=0.001, le=10, description="How many are borne.")
    agreement: int = Field(
        2, ge=1, le=20, description="How many signals have to agree before a class may lead to a remediation."
    )
    siblings: tuple[_LABEL, ...] = Field(
        (), max_length=10, description="Labels that are the same for series which are expected to be alike."
    )
    history: History = Field(HISTORY, description="What is learnt from.")
    horizon: Horizon = Field(parse_duration("4h"), description="How far ahead it is looked whether a limit is reached.")
    signals: tuple[Signal, ...] = Field(min_length=1, max_length=20)
    remediations: tuple[Led, ...] = Field((), max_length=11)

    @model_validator(mode="after")
    def _names_differ(self) -> WatchSpec:
        names = [signal.name for signal in self.signals]
        if len(set(names)) < len(names):
            raise ValueError("signals must have different names")
        return self

    @model_validator(mode="after")
    def _queries_differ(self) -> WatchSpec:
        queries = [" ".join(signal.query.split()) for signal in self.signals]
        if len(set(queries)) < len(queries):
            raise ValueError("signals must have different queries: a series does not agree with itself")
        return self

    @model_validator(mode="after")
    def _history_suffices(self) -> WatchSpec:
        if self.history < LEAST_SAMPLES * self.interval:
            raise ValueError(f"history must be {LEAST_SAMPLES} intervals at least")
        return self


class WatchStatus(Part):
    """What anomaly-scorer says of the watch."""

    model_config = ConfigDict(extra="ignore")

    observed_generation: int = Field(0, ge=0)
    problem: str = Field("", max_length=_PROBLEM, description="Why it, or one of its signals, can't be used.")


@dataclass(frozen=True)
class Watch:
    """One AnomalyWatch as it was read."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: WatchSpec
    home: bool = True
    status: WatchStatus | None = None

    @property
    def key(self) -> str:
        """How people call it."""
        return f"{self.namespace}/{self.name}"

    @property
    def step(self) -> float:
        """Seconds between two samples."""
        return self.spec.interval.total_seconds()

    def remediation(self, class_: AnomalyClass) -> str:
        """Tell the function that a class may lead to; "" for none."""
        return next((led.function for led in self.spec.remediations if led.class_ == class_), "")

    def target(self, labels: Mapping[str, str]) -> tuple[str, str] | None:
        """Tell the namespace ("" for nodes) and the name of what a series is about.

        None if its labels don't say, or say what is no name, or name what this watch may not be about: one outside of
        Kreflex' own namespace is about its own only.
        """
        pointer = self.spec.target
        # A label may have any value, and a query may make it up.
        name, namespace = labels.get(pointer.name_label), labels.get(pointer.namespace_label)
        if not is_name(name):
            return None
        if pointer.kind == "Node":
            return ("", name) if self.home else None
        mine = self.home or namespace == self.namespace
        return (namespace, name) if mine and is_name(namespace) and len(namespace) <= _NAMESPACE else None

    def siblings(self, labels: Mapping[str, str]) -> tuple[str, ...]:
        """Tell what the series has in common with those that are expected to be like it."""
        return tuple(labels.get(label, "") for label in self.spec.siblings)


@dataclass(frozen=True)
class Broken:
    """An AnomalyWatch that can't be used, and why: the field, and what is wrong with it."""

    namespace: str
    name: str
    uid: str
    generation: int
    problem: str
    status: WatchStatus | None = None


@dataclass(frozen=True)
class Watches:
    """All AnomalyWatches of the cluster."""

    good: tuple[Watch, ...] = ()
    broken: tuple[Broken, ...] = ()


async def read_watches(reader: Reader, home: str = "kreflex-system") -> Watches:
    """Read all AnomalyWatches; those that can't be used stand apart."""
    found = [read_watch(body, home) async for body in reader.list_served(f"/apis/{API}/{PLURAL}")]
    return Watches(
        tuple(one for one in found if isinstance(one, Watch)), tuple(one for one in found if isinstance(one, Broken))
    )


def read_watch(body: JSON, home: str = "kreflex-system") -> Watch | Broken:
    """Read one AnomalyWatch, of the cluster or of a file."""
    meta = body["metadata"]
    who = (meta.get("namespace", home), meta["name"], meta.get("uid", ""), meta.get("generation", 0))
    status = _status(body)
    try:
        spec = WatchSpec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        return Broken(*who, "; ".join(_sentence(fault["loc"], fault["msg"]) for fault in error.errors()), status)
    at_home = who[0] == home
    if spec.target.kind == "Node" and not at_home:
        return Broken(*who, f"spec.target.kind: nodes are watched from namespace {home} only", status)
    return Watch(*who, spec, at_home, status)


async def report(one: Watch | Broken, problem: str, writer: Writer) -> None:
    """Tell on the watch itself, once, what is wrong with it; "" if nothing is. What can't be told is logged."""
    problem = problem[:_PROBLEM]
    status = WatchStatus(observed_generation=one.generation, problem=problem)
    if one.status == status:
        return
    named = f"{one.namespace}/{one.name}"
    if problem:
        log.warning("watch.broken", watch=named, because=problem)
    path = f"/apis/{API}/namespaces/{one.namespace}/{PLURAL}/{one.name}/status"
    try:
        # First the Event: until the status is written, it is told again, as the same Event.
        if problem:
            await _announce(one, problem, writer)
        await writer.merge(path, {"status": status.model_dump(mode="json", by_alias=True)})
    except KreflexError as error:
        log.warning("watch.not_told", watch=named, error=str(error))


async def _announce(one: Watch | Broken, problem: str, writer: Writer) -> None:
    digest = hashlib.sha256(f"{one.uid}/{one.generation}/{problem}".encode()).hexdigest()[:10]
    regarding = {"apiVersion": API, "kind": KIND, "namespace": one.namespace, "name": one.name, "uid": one.uid}
    body: JSON = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{one.name[:200]}.{digest}", "namespace": one.namespace},
        "eventTime": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
        "reportingController": f"{GROUP}/anomaly-scorer",
        "reportingInstance": "anomaly-scorer",
        "action": "Watch",
        "reason": "WatchCannotBeUsed",
        "type": "Warning",
        "note": problem[:_PROBLEM],
        "regarding": regarding,
    }
    with contextlib.suppress(ConflictError):
        await writer.create(f"/apis/events.k8s.io/v1/namespaces/{one.namespace}/events", body)


def _status(body: JSON) -> WatchStatus | None:
    try:
        return WatchStatus.model_validate(body["status"])
    except (KeyError, ValidationError):
        return None


def _sentence(place: tuple[int | str, ...], message: str) -> str:
    path = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place)
    return f"spec{path}: {message.removeprefix('Value error, ')}"
