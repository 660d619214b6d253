"""Anomaly objects: one for each episode of one class on one target. What people and other functions believe.

Nothing here needs numpy, so that a function that reads them starts as fast as before.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from kreflex.audit import log
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError, GoneError, UnavailableError
from kreflex.parts import Part
from kreflex.policy import GROUP
from kreflex.records import API, TARGET, Target, Time
from kreflex.rule import Check, Rule
from kreflex.views import JSON

KIND, PLURAL = "Anomaly", "anomalies"
CLASS = f"{GROUP}/class"
WATCH = f"{GROUP}/watch"
STORM = "storm"
_NAME = 200
_WORD = r"^[a-z]([a-z-]{0,61}[a-z])?$"
_LENIENT = ConfigDict(extra="ignore")

RBAC_TO_READ = (Rule(GROUP, PLURAL, "get"), Rule(GROUP, PLURAL, "list"))
RBAC = (
    *RBAC_TO_READ,
    Rule(GROUP, PLURAL, "create", checks=(Check("!has(object.spec.feedback)", "an anomaly is made before feedback"),)),
    # What an event of a caller who may send them says of an anomaly.
    Rule(
        GROUP,
        PLURAL,
        "patch",
        fields=("spec.feedback",),
        checks=(Check("object.spec.?feedback.?by.orValue('').startsWith('event:')", "it speaks for no person"),),
    ),
    Rule(GROUP, f"{PLURAL}/status", "patch", fields=("status",)),
    Rule(
        GROUP,
        PLURAL,
        "delete",
        checks=(Check("oldObject.?status.?phase.orValue('') == 'Resolved'", "only what is over is removed"),),
    ),
)

Phase = Literal["Open", "Resolved"]
Feedback = Literal["confirmed", "dismissed", "doubted", ""]


class Said(Part):
    """What a person says of an anomaly."""

    verdict: Literal["Confirmed", "Dismissed"]
    by: str = Field(min_length=1, max_length=253)


class AnomalySpec(Part):
    """What is unlike itself, and since when. Only `feedback` may be added later."""

    model_config = _LENIENT

    watch: str = Field(max_length=317, description="The AnomalyWatch, as namespace/name.")
    target: Target
    class_: str = Field(alias="class", pattern=_WORD, description="What is wrong with it, in one word.")
    since: Time = Field(description="The tick that saw it first.")
    feedback: Said | None = None


class Seen(Part):
    """One signal of the target, as it was when it was seen last."""

    model_config = _LENIENT

    name: str = Field(max_length=63)
    class_: str = Field(alias="class", pattern=_WORD)
    score: float
    series: str = Field("", max_length=2048, description="The labels of the series.")
    at: Time = Field(description="The tick that saw it last beyond its threshold.")
    peak: float = Field(0.0, description="The highest score of the episode, as far as it was written down.")
    factor: float = Field(1.0, description="What feedback has multiplied the threshold of this series by.")
    evidence: dict[str, float] = Field(default_factory=dict)


class Window(Part):
    """What was looked at: from when to when, and how far the samples are apart."""

    start: Time
    end: Time
    step: float = Field(ge=0, description="Seconds.")


class Looked(Part):
    """What was found when an alert about the target came in."""

    at: Time
    alert: str = Field(max_length=1024)
    found: str = Field(max_length=1024)


class AnomalyStatus(Part):
    """How it goes. Written by anomaly-scorer only."""

    model_config = _LENIENT

    phase: Phase = "Open"
    since: Time | None = None
    last_seen: Time | None = Field(None, description="Written anew every few ticks, not at each one.")
    fresh_until: Time | None = Field(
        None, description="Nobody should act on it after that: it is below its threshold, or its scorer is silent."
    )
    resolved_at: Time | None = None
    resolved_because: str | None = Field(None, max_length=300)
    score: float | None = Field(None, description="1 is the threshold.")
    summary: str | None = Field(None, max_length=1024)
    signals: tuple[Seen, ...] = Field((), max_length=20)
    agreed: bool = Field(default=False, description="Enough signals agree that it may lead to a remediation.")
    because: str | None = Field(None, max_length=1024, description="Why they agree, or what is missing.")
    remediation: str | None = Field(None, max_length=63, description="The function that the watch names for it.")
    window: Window | None = None
    model: str | None = Field(None, max_length=63, description="The detector and its version.")
    looked: tuple[Looked, ...] = Field((), max_length=5, description="What alerts made us look at, the newest first.")
    feedback: Feedback = Field(
        "", description="What a person, or the verdict of a remediation, made of it; `doubted` if that did not help."
    )
    feedback_by: str | None = Field(None, max_length=253)
    told: tuple[str, ...] = Field((), max_length=4, description="The events that have been delivered.")


@dataclass(frozen=True)
class Anomaly:
    """An Anomaly as it was read."""

    namespace: str
    name: str
    uid: str
    version: str
    spec: AnomalySpec
    status: AnomalyStatus

    def __str__(self) -> str:
        return f"{KIND} {self.namespace}/{self.name}"

    @property
    def open(self) -> bool:
        """True until it is resolved; one that was made and never written to is open, too."""
        return self.status.phase == "Open"

    @property
    def last_seen(self) -> datetime:
        """When it was seen last, as far as it was written down."""
        return self.status.last_seen or self.spec.since

    @property
    def dismissed(self) -> str:
        """Who says that it is none, or ""; known at once, and not only when anomaly-scorer has heard it."""
        said, status = self.spec.feedback, self.status
        if said is not None:
            return said.by if said.verdict == "Dismissed" else ""
        return (status.feedback_by or "somebody") if status.feedback == "dismissed" else ""

    @property
    def key(self) -> tuple[str, str]:
        """What there is one open Anomaly of: a target, by UID, and a class."""
        return self.spec.target.uid, self.spec.class_

    def fresh(self, now: datetime) -> bool:
        """Tell whether it is open, and was seen so recently that it may be believed."""
        return self.open and self.status.fresh_until is not None and now <= self.status.fresh_until


def anomaly_name(class_: str, target: Target, before: str = "") -> str:
    """Name an episode, `<class>-<object>-<hash8>`, the same in each process.

    Not by its time, about which two replicas may differ, but by the UID of the Anomaly that came before it.
    """
    digest = hashlib.sha256(f"{target.uid}/{class_}/{before}".encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-z0-9.-]", "-", f"{class_}-{target.name}".lower())[:_NAME].rstrip("-.")
    return f"{readable}-{digest}"


def place_of(target: Target, home: str) -> str:
    """Tell in which namespace the Anomaly of a target lives: its own, or ours if it is in none."""
    return target.namespace or home


def read_anomaly(body: JSON) -> Anomaly:
    """Read an Anomaly; raises pydantic's ValidationError for one that no Kreflex wrote."""
    meta = body["metadata"]
    return Anomaly(
        meta["namespace"],
        meta["name"],
        meta["uid"],
        meta["resourceVersion"],
        AnomalySpec.model_validate(body["spec"]),
        AnomalyStatus.model_validate(body.get("status") or {}),
    )


async def anomalies(reader: Reader, namespace: str = "", **query: str) -> AsyncIterator[Anomaly]:
    """Read the anomalies of a namespace, or of all; one that can't be read is told of and left out."""
    async for body in reader.list_served(_path(namespace), **query):
        try:
            yield read_anomaly(body)
        except ValidationError as error:
            meta = body["metadata"]
            log.warning("anomaly.unreadable", anomaly=f"{meta.get('namespace')}/{meta['name']}", error=str(error))


async def anomalies_of(reader: Reader, uid: str, namespace: str = "") -> list[Anomaly]:
    """Read the anomalies of one object, by its UID."""
    return [one async for one in anomalies(reader, namespace, labelSelector=f"{TARGET}={uid[:63]}")]


class Anomalies:
    """Writes Anomaly objects; each change is conditioned on what was read."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def open(self, spec: AnomalySpec, home: str, before: str) -> tuple[Anomaly, bool]:
        """Make an episode's Anomaly, or read the one that another replica has just made; whether it is new."""
        name, namespace = anomaly_name(spec.class_, spec.target, before), place_of(spec.target, home)
        labels = {CLASS: spec.class_, TARGET: spec.target.uid[:63], WATCH: label_of(spec.watch)}
        body: JSON = {
            "apiVersion": API,
            "kind": KIND,
            "metadata": {"name": name, "namespace": namespace, "labels": labels},
            "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        try:
            return read_anomaly(await self._writer.create(_path(namespace), body)), True
        except ConflictError:
            found = await self._reader.get(_path(namespace, name))
        if found is None:
            raise GoneError(f"{KIND} {namespace}/{name} was deleted at this moment", 404)
        return _readable(found), False

    async def get(self, namespace: str, name: str) -> Anomaly | None:
        """Read one, or None."""
        body = await self._reader.get(_path(namespace, name))
        return None if body is None else _readable(body)

    async def change(self, anomaly: Anomaly, status: AnomalyStatus) -> Anomaly:
        """Write the status of an Anomaly as it was read; raises ConflictError, or GoneError."""
        body: JSON = {
            "metadata": {"resourceVersion": anomaly.version},
            # Nulls stay: in a merge patch they remove what was there.
            "status": {**status.model_dump(mode="json", by_alias=True), **_lists(status)},
        }
        path = _path(anomaly.namespace, anomaly.name)
        return read_anomaly(await self._writer.merge(f"{path}/status", body))

    async def say(self, anomaly: Anomaly, said: Said) -> Anomaly:
        """Write somebody's feedback onto an Anomaly."""
        feedback: Any = said.model_dump(mode="json", by_alias=True)
        body: JSON = {"metadata": {"resourceVersion": anomaly.version}, "spec": {"feedback": feedback}}
        return read_anomaly(await self._writer.merge(_path(anomaly.namespace, anomaly.name), body))

    async def remove(self, anomaly: Anomaly) -> None:
        """Delete an Anomaly as it was read; raises ConflictError if it has changed since."""
        preconditions = {"uid": anomaly.uid, "resourceVersion": anomaly.version}
        await self._writer.delete(_path(anomaly.namespace, anomaly.name), {"preconditions": preconditions})


def label_of(watch: str) -> str:
    """Name a watch, given as namespace/name, in a label's value."""
    plain = watch.replace("/", "_")
    return plain if len(plain) <= 63 else f"{plain[:54]}-{hashlib.sha256(plain.encode()).hexdigest()[:8]}"


def _readable(body: JSON) -> Anomaly:
    try:
        return read_anomaly(body)
    except ValidationError as error:
        name = f"{body['metadata']['namespace']}/{body['metadata']['name']}"
        raise UnavailableError(f"{KIND} {name} can't be read; mend or delete it: {error}") from error


def _lists(status: AnomalyStatus) -> JSON:
    # Inside what is replaced as a whole, nulls would stay.
    return {
        "signals": [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in status.signals],
        "looked": [one.model_dump(mode="json", by_alias=True) for one in status.looked],
        "window": status.window.model_dump(mode="json", by_alias=True) if status.window else None,
    }


def _path(namespace: str = "", name: str = "") -> str:
    base = f"/apis/{API}/namespaces/{namespace}/{PLURAL}" if namespace else f"/apis/{API}/{PLURAL}"
    return f"{base}/{name}" if name else base
