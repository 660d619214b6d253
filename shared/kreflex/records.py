"""Remediation records: one per fault and function. Idempotency key, outbox, audit, and where a person approves."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, PlainSerializer, ValidationError, WithJsonSchema

from kreflex.cluster import Reader, Writer
from kreflex.durations import Duration
from kreflex.errors import ConflictError, GoneError, UnavailableError
from kreflex.parts import Part
from kreflex.policy import GROUP, VERSION
from kreflex.rule import Check, Rule
from kreflex.views import JSON, Ref

Phase = Literal["Open", "Acting", "Applied", "Done"]
Outcome = Literal["applied", "skipped", "refused", "deferred", "awaiting-approval", "failed"]
VerdictName = Literal["Recovered", "Ineffective", "Unknown"]

API = f"{GROUP}/{VERSION}"
HISTORY = 20
TARGET = f"{GROUP}/target"
# On what an experiment has hit, for as long as it is broken: NAMESPACE/NAME/UID of the experiment.
HIT_BY = f"{GROUP}/chaos-experiment"
# Beside it: what was changed there, as kreflex.chaos.changes writes it.
HIT_HOW = f"{GROUP}/chaos-prior"
_EXPERIMENT = 63 + 1 + 253
_NAME = 200
_KNOWN = 10_000

_MINE = "a function writes its own records only"
RBAC = (
    Rule(GROUP, "remediations", "get"),
    Rule(
        GROUP,
        "remediations",
        "create",
        checks=(
            Check("object.spec.function == variables.me", _MINE),
            Check("!has(object.spec.approval)", "a function approves nothing"),
        ),
    ),
    Rule(
        GROUP,
        "remediations/status",
        "patch",
        fields=("status",),
        checks=(Check("oldObject.spec.function == variables.me", _MINE),),
    ),
)
RBAC_TO_CLEAR = (
    Rule(
        GROUP,
        "remediations",
        "delete",
        checks=(Check("oldObject.?status.?phase.orValue('') == 'Done'", "only a record that is Done is removed"),),
    ),
)


def _show(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


# Stricter than the API server's date-time, which lets pass what no calendar has.
_TIME = r"^[0-9]{4}-[01][0-9]-[0-3][0-9]T[0-2][0-9]:[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+-][01][0-9]:[0-5][0-9])$"
Time = Annotated[
    datetime,
    PlainSerializer(_show, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "format": "date-time", "pattern": _TIME}),
]


class Target(Part):
    """The object that is ill, by UID."""

    api_version: str = Field(max_length=253)
    kind: str = Field(max_length=63)
    namespace: str = Field("", max_length=63)
    name: str = Field(max_length=253)
    uid: str = Field(min_length=1, max_length=128)

    @classmethod
    def of(cls, ref: Ref) -> Target:
        """Name a reference."""
        return cls(api_version=ref.api_version, kind=ref.kind, namespace=ref.namespace, name=ref.name, uid=ref.uid)

    @property
    def ref(self) -> Ref:
        """The same as a reference."""
        return Ref(self.api_version, self.kind, self.namespace, self.name, self.uid)


class Owner(Target):
    """What recovers: the topmost controller, and the template that the target was made from."""

    template_hash: str = Field("", max_length=63)
    controller: str = Field(
        "", max_length=128, description="UID of the direct controller, whose next pod is the successor."
    )

    @property
    def key(self) -> str:
        """What cooldown and slots are counted by."""
        return f"{self.namespace}/{self.kind}/{self.name}"


class Fault(Part):
    """One episode of one thing being wrong."""

    key: str = Field(
        min_length=1, max_length=512, description="Function, target UID and episode; deliveries of one fault share it."
    )
    summary: str = Field("", max_length=1024)
    experiment: str | None = Field(
        None,
        max_length=_EXPERIMENT,
        description="NAMESPACE/NAME of the Experiment that has broken the target or its owner, on purpose.",
    )
    traceparent: str | None = Field(
        None,
        max_length=55,
        pattern=r"^00-[0-9a-f]{32}-[0-9a-f]{16}-[0-9a-f]{2}$",
        description="The place in a W3C trace where the record was opened; what is done later belongs to that trace.",
    )


class Approval(Part):
    """A person's yes to one plan, until a time."""

    plan_hash: str = Field(min_length=1, max_length=64)
    by: str = Field(min_length=1, max_length=253)
    until: Time


class RemediationSpec(Part):
    """What is wrong, and with what. Only `approval` may be added later."""

    function: str = Field(min_length=1, max_length=63)
    target: Target
    owner: Owner | None = None
    fault: Fault
    approval: Approval | None = None


class Intent(Part):
    """What an attempt is about to do, with the state before it."""

    action: str
    because: str = ""
    plan_hash: str
    prior: dict[str, str] = Field(default_factory=dict)
    step: str | None = Field(None, description="What it is called among the steps, if it is one of several.")


class Step(Part):
    """One change of a record, for the timeline."""

    at: Time
    phase: Phase
    outcome: Outcome | None = None
    reason: str = ""


class Taken(Part):
    """A step of a long remediation that has been taken: once, or again and again."""

    action: str
    first: Time
    last: Time
    count: int = Field(1, ge=1)
    note: str = Field("", max_length=300, description="How it went the last time.")


class Answer(Part):
    """What the automation of a provider has answered to a request."""

    outcome: Literal["Accepted", "Done", "Failed"]
    powered_off: bool = Field(default=False, description="The machine is off, for certain: its disks may be taken.")
    message: str = Field("", max_length=1000)
    at: Time


class RemediationStatus(Part):
    """How far the remediation is. Written by functions only, through the status subresource."""

    # A newer version of Kreflex may have written more.
    model_config = ConfigDict(extra="ignore")

    phase: Phase = "Open"
    outcome: Outcome | None = None
    guard: str | None = None
    reason: str | None = None
    plan_hash: str | None = None
    verdict: VerdictName | None = None
    verdict_reason: str | None = None
    holder: str | None = None
    attempt: int | None = Field(None, ge=0)
    deadline: Time | None = None
    intent: Intent | None = None
    due_at: Time | None = None
    policy: str | None = Field(None, description="A stamp of the policies that could be meant, and their generations.")
    policies: tuple[str, ...] = Field((), description="The policies that select the target.")
    proof: Duration | None = None
    prove_by: Time | None = None
    decided_at: Time | None = None
    acted_at: Time | None = None
    applied_at: Time | None = None
    settled_at: Time | None = None
    begun_at: Time | None = Field(None, description="When the first step of a long remediation was admitted.")
    steps: tuple[Taken, ...] = Field((), max_length=20, description="The steps that were taken, in this order.")
    answer: Answer | None = None
    history: tuple[Step, ...] = Field((), max_length=HISTORY)


@dataclass(frozen=True)
class Record:
    """A Remediation as it was read."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    created: datetime
    spec: RemediationSpec
    status: RemediationStatus

    def __str__(self) -> str:
        return f"Remediation {self.namespace}/{self.name}"

    @property
    def owner_key(self) -> str:
        """What cooldown and slots are counted by; what nothing owns is its own owner."""
        target, owner = self.spec.target, self.spec.owner
        return owner.key if owner else f"{target.namespace}/{target.kind}/{target.name}"

    @property
    def one_key(self) -> str:
        """What gets no second action while a verdict is open: an owner, or a node, for a pool may have several."""
        target = self.spec.target
        return f"/{target.kind}/{target.name}" if target.kind == "Node" else self.owner_key

    @property
    def episode(self) -> str:
        """What tells its fault from an earlier one of the same object, if anything does."""
        prefix = fault_key(self.spec.function, self.spec.target.uid)
        return self.spec.fault.key.removeprefix(prefix).removeprefix("/")

    @property
    def begun(self) -> bool:
        """True between the first step of a long remediation and its last, whoever is at work on it."""
        return self.status.phase == "Acting" and self.status.begun_at is not None

    @property
    def final(self) -> bool:
        """True when nothing can follow: applied and settled, or the target is gone."""
        return self.status.phase == "Done" and (self.status.outcome == "applied" or self.status.guard == "Gone")

    def due(self, now: datetime, patience: timedelta) -> bool:
        """Tell whether somebody should look at it now. One that was never decided has been left by a crash."""
        if self.status.phase == "Done":
            return False
        due_at = self.status.due_at or self.created + patience
        return due_at <= now


def fault_key(function: str, uid: str, episode: str = "") -> str:
    """Make the key of a fault from what is wrong, never from who said so."""
    return f"{function}/{uid}/{episode}" if episode else f"{function}/{uid}"


def record_name(function: str, object_name: str, key: str) -> str:
    """Make a record's readable name, `<function>-<object>-<hash8>`, the same in each process."""
    digest = hashlib.sha256(key.encode()).hexdigest()[:8]
    readable = re.sub(r"[^a-z0-9.-]", "-", f"{function}-{object_name}".lower())[:_NAME].rstrip("-.")
    return f"{readable}-{digest}"


def experiment_of(*annotations: Mapping[str, str]) -> str | None:
    """Name the experiment that has broken an object or its owner, by the mark that it leaves there."""
    mark = next((one[HIT_BY] for one in annotations if HIT_BY in one), "")
    namespace, _, rest = mark.partition("/")
    name = rest.partition("/")[0]
    return f"{namespace}/{name}"[:_EXPERIMENT] if namespace and name else None


def labels_of(spec: RemediationSpec) -> dict[str, str]:
    """Give the labels by which a record is found: whose it is, and about which object."""
    return {f"{GROUP}/function": spec.function, TARGET: spec.target.uid[:63]}


def read_record(body: JSON) -> Record:
    """Read a Remediation; raises pydantic's ValidationError for one that no Kreflex wrote."""
    meta = body["metadata"]
    return Record(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        resource_version=meta["resourceVersion"],
        created=datetime.fromisoformat(meta["creationTimestamp"]),
        spec=RemediationSpec.model_validate(body["spec"]),
        status=RemediationStatus.model_validate(body.get("status") or {}),
    )


class Records:
    """The records in the cluster; each change is conditioned on what was read."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer
        # No limit rests on it: one that was forgotten costs a create that is answered 409.
        self._known: dict[str, None] = {}

    async def open(self, spec: RemediationSpec, namespace: str) -> tuple[Record, bool]:
        """Create the fault's record, or read the one that is there; the second value says whether it is new."""
        name = record_name(spec.function, spec.target.name, spec.fault.key)
        # A looping pod tells of itself at each restart: what this process knows to be there is read, not written to.
        known = await self.get(namespace, name) if f"{namespace}/{name}" in self._known else None
        if known is not None:
            return known, False
        self._remember(f"{namespace}/{name}")
        body: JSON = {
            "apiVersion": API,
            "kind": "Remediation",
            "metadata": {"name": name, "namespace": namespace, "labels": labels_of(spec)},
            "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        try:
            return read_record(await self._writer.create(_path(namespace), body)), True
        except ConflictError:
            found = await self.get(namespace, name)
        if found is None:
            raise GoneError(f"Remediation {namespace}/{name} was deleted at this moment", 404)
        return found, False

    def _remember(self, name: str) -> None:
        self._known[name] = None
        if len(self._known) > _KNOWN:
            del self._known[next(iter(self._known))]

    async def get(self, namespace: str, name: str) -> Record | None:
        """Read one record."""
        body = await self._reader.get(_path(namespace, name))
        return None if body is None else _readable(body, f"{namespace}/{name}")

    async def unfinished(self, function: str, target: str, namespace: str) -> Record | None:
        """Find a record of an object that has begun and not ended, whatever its fault is called now."""
        chosen = f"{GROUP}/function={function},{TARGET}={target[:63]}"
        async for body in self._reader.list(_path(namespace), labelSelector=chosen):
            record = _readable(body, f"{namespace}/{body['metadata']['name']}")
            if record.status.phase in {"Acting", "Applied"}:
                return record
        return None

    async def change(self, record: Record, now: datetime, **changes: Any) -> Record:
        """Change the status of a record as it was read, and add the step to its history.

        Raises ConflictError if somebody changed it since, GoneError if it was deleted.
        """
        status = record.status.model_copy(update=changes)
        reason = (status.verdict_reason or status.reason or "")[:300]
        step = Step(at=now, phase=status.phase, outcome=status.outcome, reason=reason)
        status = status.model_copy(update={"history": (*record.status.history, step)[-HISTORY:]})
        body: JSON = {
            "metadata": {"resourceVersion": record.resource_version},
            # Nulls stay: in a merge patch they remove what an earlier phase left.
            "status": {**status.model_dump(mode="json", by_alias=True), **_lists(status)},
        }
        return read_record(await self._writer.merge(_path(record.namespace, record.name) + "/status", body))


async def delete_record(writer: Writer, record: Record) -> None:
    """Delete a record as it was read; raises ConflictError if it has changed since."""
    preconditions = {"uid": record.uid, "resourceVersion": record.resource_version}
    await writer.delete(_path(record.namespace, record.name), {"preconditions": preconditions})


def _readable(body: JSON, name: str) -> Record:
    try:
        return read_record(body)
    except ValidationError as error:
        raise UnavailableError(f"Remediation {name} can't be read; mend or delete it: {error}") from error


def _lists(status: RemediationStatus) -> JSON:
    # Inside what is replaced as a whole, nulls would stay.
    return {
        "history": [step.model_dump(mode="json", by_alias=True, exclude_none=True) for step in status.history],
        "steps": [step.model_dump(mode="json", by_alias=True) for step in status.steps],
        "answer": status.answer.model_dump(mode="json", by_alias=True) if status.answer else None,
        "intent": status.intent.model_dump(mode="json", by_alias=True) if status.intent else None,
    }


def _path(namespace: str, name: str = "") -> str:
    base = f"/apis/{API}/namespaces/{namespace}/remediations"
    return f"{base}/{name}" if name else base
