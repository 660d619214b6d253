"""Experiments: what people want to be broken, and what the cluster remembers of it.

An experiment is a state machine on its own status (docs/adr/0029). What is about to be done stands there with the state
before it, so that whoever comes after a kill can take it back.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Annotated, Any, Literal, get_args

from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from kreflex.cluster import Reader, Writer
from kreflex.durations import Duration, parse_duration
from kreflex.parts import Part, Share
from kreflex.policy import GROUP, VERSION, Selector
from kreflex.records import HIT_BY, HIT_HOW, Approval, Target, Time
from kreflex.rule import Check, Rule
from kreflex.views import JSON, Ref

API = f"{GROUP}/{VERSION}"
KIND, PLURAL = "Experiment", "experiments"
FUNCTION = "chaos-runner"
# On an object or its namespace: chaos is allowed there. On an object it may forbid what the namespace allows.
OPT_IN = f"{GROUP}/chaos"
ALLOWED = "allowed"
# What an object carries that something was injected into: whose it is, until when, and how it was before.
INJECTED, REVERT_BY, PRIOR = HIT_BY, f"{GROUP}/revert-by", HIT_HOW
FINALIZER = f"{GROUP}/chaos"
TIMELINE = 200
# All of a status has to fit into one write, and etcd takes 1.5 MiB: https://etcd.io/docs/v3.6/dev-guide/limit/
INJECTIONS, PRIORS = 300, 256 * 1024
TURNS = PLACES = 50
_PAST = 20
_HARD = timedelta(hours=24)
_SECOND = timedelta(seconds=1)

FaultKind = Literal[
    "PodKill",
    "PodImage",
    "Cordon",
    "NodeDrain",
    "ScaleToZero",
    "NetworkIsolation",
    "Image",
    "Environment",
    "Probe",
    "Configuration",
    "ResourceSqueeze",
    "LeaderLoss",
    "Engine",
]
PODS: frozenset[FaultKind] = frozenset({"PodKill", "PodImage", "NetworkIsolation"})
NODES: frozenset[FaultKind] = frozenset({"Cordon", "NodeDrain"})
WORKLOADS: frozenset[FaultKind] = frozenset({"ScaleToZero", "Image", "Environment", "Probe", "ResourceSqueeze"})
Phase = Literal["Pending", "Running", "Reverting", "Done", "Aborted", "Refused"]
FINAL = frozenset({"Done", "Aborted", "Refused"})
State = Literal["Intended", "Injected", "Reverted", "Gone", "Foreign"]
Verdict = Literal["Passed", "Failed"]

_ANY_OBJECT = WithJsonSchema({"type": "object", "x-kubernetes-preserve-unknown-fields": True})


class Engine(Part):
    """An experiment of LitmusChaos or Chaos Mesh that is made, followed and ended."""

    kind: Literal[
        "ChaosEngine", "PodChaos", "NetworkChaos", "StressChaos", "IOChaos", "DNSChaos", "TimeChaos", "HTTPChaos"
    ]
    spec: Annotated[dict[str, Any], _ANY_OBJECT] = Field(description="Its spec, as the engine documents it.")


class Fault(Part):
    """What is broken. What a kind does not need is left out."""

    kind: FaultKind
    container: str | None = Field(None, max_length=63, description="The container that is meant; the first by default.")
    image: str | None = Field(None, max_length=500, description="PodImage, Image: the image instead.")
    env: dict[str, str] = Field(default_factory=dict, description="Environment: these values instead.")
    data: dict[str, str] = Field(default_factory=dict, description="Configuration: these values of a ConfigMap.")
    # What the API server would write in another way could not be compared with what it has.
    cpu: str | None = Field(None, pattern=r"^[1-9][0-9]{0,2}m$", description="ResourceSqueeze: the limit instead.")
    memory: str | None = Field(None, pattern=r"^[1-9][0-9]{0,2}(Ki|Mi|Gi)$", description="ResourceSqueeze: as cpu.")
    grace_seconds: int = Field(0, ge=0, le=3600, description="PodKill: how long the pod may take.")
    engine: Engine | None = None


class Targets(Part):
    """What may be hit: what the selector selects, and people have opted in."""

    selector: Selector = Selector()
    names: tuple[str, ...] = Field((), max_length=100, description="Only these, of what is selected.")
    kind: Literal["Deployment", "StatefulSet", "Rollout"] = Field("Deployment", description="Of faults of workloads.")
    canary: bool = Field(
        default=False, description="Only pods of canaries: of a Rollout's new version, or track=canary."
    )


class Http(Part):
    """A request that has to be answered as expected."""

    url: str = Field(pattern=r"^https?://\S+$", max_length=2000)
    codes: tuple[int, ...] = Field((200,), min_length=1, max_length=20)
    # Nothing else is looked at while a probe waits.
    timeout: Duration = Field(parse_duration("2s"), ge=_SECOND, le=parse_duration("10s"))


class Comparison(Part):
    """A value, and what it is compared with."""

    operator: Literal["==", "!=", "<", "<=", ">", ">="] = "=="
    value: str = Field(max_length=200)


class PromQl(Comparison):
    """A query that yields one number."""

    query: str = Field(min_length=1, max_length=4000)


class Thing(Comparison):
    """A field of an object of the experiment's namespace, or of a node."""

    kind: Literal["Deployment", "StatefulSet", "DaemonSet", "Rollout", "Pod", "Node"] = "Deployment"
    name: str = Field(min_length=1, max_length=253)
    path: str = Field(pattern=r"^[A-Za-z0-9_.=\[\]-]+$", max_length=500, description="As status.readyReplicas.")


class JobOf(Part):
    """A Job that has to succeed: it is made from a CronJob of the experiment's namespace that has opted in."""

    cron_job: str = Field(min_length=1, max_length=52, description="It may be suspended: it only keeps the template.")
    within: Duration = Field(
        parse_duration("1m"), ge=_SECOND, le=parse_duration("5m"), description="How long it may take."
    )


When = Literal["Before", "During", "After"]


class Probe(Part):
    """A steady state that is looked at before, during and after."""

    name: str = Field(pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", max_length=63)
    weight: int = Field(10, ge=0, le=100)
    when: tuple[When, ...] = Field(("Before", "During", "After"), min_length=1, max_length=3)
    every: Duration = Field(parse_duration("5s"), ge=_SECOND, description="How often, during.")
    failures: int = Field(0, ge=0, description="During: abort after so many failures in a row; 0 does not.")
    tolerated: int = Field(0, ge=0, le=100, description="During: percent of checks that may fail.")
    http: Http | None = None
    promql: PromQl | None = None
    object: Thing | None = None
    job: JobOf | None = None

    @model_validator(mode="after")
    def _one(self) -> Probe:
        if sum(one is not None for one in (self.http, self.promql, self.object, self.job)) != 1:
            raise ValueError(f"probe {self.name} must have one of http, promql, object and job")
        return self


class BudgetOf(Part):
    """The service level objective that has to have budget left."""

    slo: str = Field(min_length=1, max_length=253)


class Expects(Part):
    """The remediation that has to come, and to help."""

    function: str = Field(min_length=1, max_length=63)
    within: Duration = parse_duration("5m")


Day = Literal["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]
DAYS: tuple[Day, ...] = get_args(Day)
_BEGIN, _END = "09:00", "16:00"
# Of what is left out, the API server knows no default.
_SOME_TIME = f"(has(self.begin) ? self.begin : '{_BEGIN}') != (has(self.end) ? self.end : '{_END}')"
_NO_TIME = "begin and end are the same: a whole day is from 00:00 to 24:00"


class Hours(Part):
    """When an experiment may begin, by the clocks of a zone. If it ends before it begins, it goes on past midnight."""

    model_config = ConfigDict(
        json_schema_extra={"x-kubernetes-validations": [{"rule": _SOME_TIME, "message": _NO_TIME}]}
    )

    days: tuple[Day, ...] = Field(
        DAYS[:5], min_length=1, max_length=7, description="The days of `begin`; what is past midnight belongs to them."
    )
    begin: str = Field(_BEGIN, pattern=r"^([01][0-9]|2[0-3]):[0-5][0-9]$")
    end: str = Field(_END, pattern=r"^(([01][0-9]|2[0-3]):[0-5][0-9]|24:00)$", description="24:00 is midnight, too.")
    zone: str = Field("UTC", min_length=1, max_length=64, description="As Europe/Berlin.")

    @model_validator(mode="after")
    def _some(self) -> Hours:
        if self.begin == self.end:
            raise ValueError(_NO_TIME)
        return self


class ExperimentSpec(Part):
    """What people want to be broken, for how long, and what has to hold."""

    title: str = Field("", max_length=200, description="What it is called in a report.")
    fault: Fault
    targets: Targets = Targets()
    amount: Share = Field(1, description="How many at a time; percent of what may be hit, rounded down.")
    interval: Duration | None = Field(None, description="PodKill: again and again, each time others.")
    duration: Duration = parse_duration("1m")
    ttl: Duration = Field(
        parse_duration("10m"), le=_HARD, description="From the start: then all is taken back, whatever happens."
    )
    recovery: Duration = Field(parse_duration("1m"), description="How long the probes after it may take to pass.")
    probes: tuple[Probe, ...] = Field((), max_length=20)
    expects: Expects | None = None
    budget: BudgetOf | None = Field(None, description="Default: that of the targets, as policies and annotations say.")
    without_budget: str | None = Field(
        None, min_length=10, max_length=300, description="Why no error budget is asked; it stands in the report."
    )
    hours: Hours | None = None
    start_within: Duration = Field(parse_duration("1h"), description="Refused if it could not begin until then.")
    every: Duration | None = Field(None, description="Begin anew so long after the start of the last run.")
    weight: int = Field(10, ge=0, le=100, description="In the score of a game day.")
    stop: bool = Field(default=False, description="True aborts it, and takes all back.")
    approval: Approval | None = Field(None, description="A person's yes to it, as it is, where a policy asks for one.")

    @model_validator(mode="after")
    def _fits(self) -> ExperimentSpec:
        faults = [*_missing(self.fault), *_misplaced(self.fault.kind, self.targets), *self._too_long()]
        if faults:
            raise ValueError("; ".join(faults))
        return self

    @property
    def plan_hash(self) -> str:
        """Name what is approved: all of it but the approval itself, and the wish to stop it."""
        told = self.model_dump(mode="json", by_alias=True, exclude={"approval", "stop"})
        return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()[:16]

    def _too_long(self) -> list[str]:
        longest = max(self.duration, self.expects.within if self.expects else timedelta())
        told = [] if self.ttl > longest else ["ttl must be longer than duration and expects.within"]
        if self.interval is not None and self.fault.kind != "PodKill":
            told.append("interval is for PodKill")
        if self.interval is not None and self.interval < timedelta(seconds=1):
            told.append("interval must be 1s at least")
        return told + (["every must be longer than ttl"] if self.every is not None and self.every <= self.ttl else [])


_NEEDS = {
    "PodImage": "image",
    "Image": "image",
    "Environment": "env",
    "Configuration": "data",
    "Engine": "engine",
}


def _missing(fault: Fault) -> list[str]:
    needed = _NEEDS.get(fault.kind)
    if needed is not None and not getattr(fault, needed):
        return [f"fault.{needed} is needed by {fault.kind}"]
    if fault.kind == "ResourceSqueeze" and not (fault.cpu or fault.memory):
        return ["fault.cpu or fault.memory is needed by ResourceSqueeze"]
    return []


def _misplaced(kind: FaultKind, targets: Targets) -> list[str]:
    """Tell what of the targets would be passed over, and so more be hit than is meant."""
    told = []
    if targets.kind != "Deployment" and kind not in WORKLOADS:
        told.append(f"targets.kind {targets.kind} is for {', '.join(sorted(WORKLOADS))}, not for {kind}")
    if targets.canary and kind not in PODS:
        told.append(f"targets.canary is for {', '.join(sorted(PODS))}, not for {kind}")
    return told


class Noted(Part):
    """A part of the status. What a newer version has added to it keeps this one from nothing."""

    model_config = ConfigDict(extra="ignore")


class Injection(Noted):
    """One thing that was done to one object, or is about to be."""

    fault: FaultKind
    target: Target
    owner: Target | None = None
    round: int = Field(0, ge=0)
    prior: str = Field("", max_length=65536, description="The state before it, in JSON.")
    moves: tuple[str, ...] = Field(
        (), max_length=PLACES, description="Of a fault on nodes: the namespaces of the pods there."
    )
    stable: str = Field("", max_length=63, description="Of a Rollout: the version that was stable before it.")
    state: State = "Intended"
    intended_at: Time
    injected_at: Time | None = None
    revert_by: Time
    reverted_at: Time | None = None
    note: str = Field("", max_length=500)

    @property
    def open(self) -> bool:
        """True while something may have to be taken back."""
        return self.state in {"Intended", "Injected"}

    @property
    def spared(self) -> bool:
        """True for what was not hit after all. Who has died before he noted it may have hit it."""
        return self.state == "Injected" and self.injected_at is None

    @property
    def nodes(self) -> tuple[str, ...]:
        """Name the nodes that are hit: the target, or what an engine was told to hit."""
        if self.fault == "Engine":
            return tuple(json.loads(self.prior or "[]"))
        return (self.target.name,) if self.target.kind == "Node" else ()


class Span(Noted):
    """From when to when a run was, and what it broke beside what is in its namespace."""

    since: Time
    until: Time
    nodes: tuple[str, ...] = Field((), max_length=PLACES)
    namespaces: tuple[str, ...] = Field((), max_length=PLACES)


class Turn(Noted):
    """From when on a probe passed, or failed."""

    at: Time
    ok: bool
    said: str = Field("", max_length=200)


class Probed(Noted):
    """How a probe went."""

    name: str
    weight: int = Field(10, ge=0)
    before: bool | None = None
    after: bool | None = None
    passed: int = Field(0, ge=0)
    failed: int = Field(0, ge=0)
    in_a_row: int = Field(0, ge=0)
    last: Time | None = None
    tries: int = Field(0, ge=0, description="Jobs that have failed afterwards.")
    turns: tuple[Turn, ...] = Field((), max_length=TURNS)


class Healed(Noted):
    """What the platform did about the fault by itself."""

    record: str = ""
    function: str = ""
    verdict: str | None = None
    opened_after: float | None = Field(None, description="Seconds from the fault to the record.")
    acted_after: float | None = Field(None, description="Seconds from the fault to the first action.")
    mttr: float | None = Field(None, description="Seconds from the fault to when its owner was healthy for good.")
    because: str = Field("", max_length=500)


class Line(Noted):
    """One thing that happened."""

    at: Time
    word: str = Field(max_length=30)
    text: str = Field(max_length=500)


class Level(Noted):
    """What was left of the error budget."""

    at: Time
    left: float
    burning: str = "none"


class ExperimentStatus(Noted):
    """How far it is. Written by chaos-runner only."""

    phase: Phase = "Pending"
    guard: str | None = None
    reason: str | None = Field(None, max_length=1000)
    verdict: Verdict | None = None
    score: float | None = Field(None, description="Percent: passed checks, weighted by probe; none without probes.")
    holder: str | None = None
    deadline: Time | None = None
    due_at: Time | None = None
    run: int = Field(0, ge=0)
    waiting_since: Time | None = Field(None, description="Since when its next run could begin.")
    past: tuple[Span, ...] = Field((), max_length=_PAST, description="The runs before this one.")
    slos: str = Field("", max_length=5000, description="Whose error budgets have to hold, as they were when it began.")
    started_at: Time | None = None
    ends_at: Time | None = None
    revert_by: Time | None = None
    reverting_at: Time | None = None
    finished_at: Time | None = None
    rounds: int = Field(0, ge=0)
    eligible: int = Field(0, ge=0)
    next_round_at: Time | None = None
    aborted: str | None = Field(None, max_length=500)
    injected: tuple[Injection, ...] = Field((), max_length=INJECTIONS)
    probes: tuple[Probed, ...] = Field((), max_length=20)
    remediation: Healed | None = None
    lost: int = Field(0, ge=0, description="Requests of http probes that failed, from the fault to its end.")
    budget: tuple[Level, ...] = Field((), max_length=TIMELINE)
    timeline: tuple[Line, ...] = Field((), max_length=TIMELINE)


@dataclass(frozen=True)
class Experiment:
    """An Experiment as it was read; `broken` says why its spec can't be used."""

    namespace: str
    name: str
    uid: str
    resource_version: str
    created: datetime
    leaving: bool
    finalizers: tuple[str, ...]
    spec: ExperimentSpec | None
    broken: str
    status: ExperimentStatus

    def __str__(self) -> str:
        return f"Experiment {self.namespace}/{self.name}"

    @property
    def ref(self) -> Ref:
        """Itself as a reference."""
        return Ref(API, KIND, self.namespace, self.name, self.uid)

    @property
    def mark(self) -> str:
        """What is left on an object that something was injected into."""
        return f"{self.namespace}/{self.name}/{self.uid}"

    @property
    def wants(self) -> ExperimentSpec:
        """Its spec; asked only of one that is not broken."""
        if self.spec is None:
            raise ValueError(f"{self} can't be read: {self.broken}")
        return self.spec

    @property
    def again_at(self) -> datetime | None:
        """Tell when its next run is due. One that was refused counts as one, or it would be due again at once."""
        status, every = self.status, None if self.spec is None or self.leaving else self.spec.every
        last = status.finished_at if status.phase == "Refused" else status.started_at or status.finished_at
        return None if every is None or last is None else last + every

    @property
    def late_at(self) -> datetime | None:
        """Tell from when on it is too late to begin."""
        return None if self.spec is None else self.waits_since + self.spec.start_within

    @property
    def waits_since(self) -> datetime:
        """Tell since when its next run could begin."""
        return self.status.waiting_since or self.created

    def due(self, now: datetime) -> bool:
        """Tell whether chaos-runner should look at it now."""
        status = self.status
        if status.holder is not None and status.deadline is not None and now < status.deadline:
            return False
        if FINALIZER in self.finalizers and (self.leaving or status.phase in FINAL):
            return True
        if status.phase in FINAL:
            return self.again_at is not None and self.again_at <= now
        return status.due_at is None or status.due_at <= now or self._said(now)

    def _said(self, now: datetime) -> bool:
        """Tell whether a person has said what it waits for, or that it has to stop."""
        if self.spec is None:
            return False
        given = self.spec.approval
        fits = given is not None and given.plan_hash == self.spec.plan_hash and given.until > now
        return self.spec.stop or (self.status.guard == "Approve" and fits)


_FINALIZERS = Check(
    "object.metadata.?finalizers.orValue([]).filter(f, !(f in oldObject.metadata.?finalizers.orValue([])))"
    f".all(f, f == '{FINALIZER}') && oldObject.metadata.?finalizers.orValue([])"
    f".filter(f, !(f in object.metadata.?finalizers.orValue([]))).all(f, f == '{FINALIZER}')",
    f"of the finalizers, only {FINALIZER} may change",
)
# In the whole cluster, also for who is bound to some namespaces: when one of these is deleted its RoleBinding goes, and
# an experiment whose finalizer nobody may take away then would keep the namespace for ever.
RBAC_TO_FIND = (Rule(GROUP, PLURAL, "list", "cluster"),)
RBAC = (
    *RBAC_TO_FIND,
    Rule(GROUP, PLURAL, "get", "cluster"),
    Rule(GROUP, PLURAL, "patch", "cluster", fields=("metadata.finalizers",), checks=(_FINALIZERS,)),
    Rule(GROUP, f"{PLURAL}/status", "patch", "cluster", fields=("status",)),
)


def path(namespace: str = "", name: str = "") -> str:
    """Tell where experiments are served."""
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{API}{where}/{PLURAL}{f'/{name}' if name else ''}"


def read_experiment(body: JSON) -> Experiment:
    """Read an Experiment; a spec that is not valid is kept as words."""
    meta = body["metadata"]
    spec, broken = _spec(body.get("spec") or {})
    return Experiment(
        namespace=meta["namespace"],
        name=meta["name"],
        uid=meta["uid"],
        resource_version=meta["resourceVersion"],
        created=datetime.fromisoformat(meta["creationTimestamp"]),
        leaving="deletionTimestamp" in meta,
        finalizers=tuple(meta.get("finalizers") or ()),
        spec=spec,
        broken=broken,
        status=ExperimentStatus.model_validate(body.get("status") or {}),
    )


def _spec(raw: JSON) -> tuple[ExperimentSpec | None, str]:
    try:
        return ExperimentSpec.model_validate(raw), ""
    except ValidationError as error:
        told = (
            f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}".removeprefix(": ")
            for e in error.errors()
        )
        return None, "; ".join(told)[:900]


class Experiments:
    """The experiments in the cluster; each change is conditioned on what was read."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def get(self, namespace: str, name: str) -> Experiment | None:
        """Read one."""
        body = await self._reader.get(path(namespace, name))
        return None if body is None else read_experiment(body)

    async def all(self, namespace: str = "") -> list[Experiment]:
        """Read all of them."""
        return [read_experiment(body) async for body in self._reader.list(path(namespace))]

    async def change(self, experiment: Experiment, **changes: Any) -> Experiment:
        """Change its status as it was read; raises ConflictError if somebody changed it since."""
        status = experiment.status.model_copy(update=changes)
        whole = status.model_dump(mode="json", by_alias=True)
        lists = {
            field: [one.model_dump(mode="json", by_alias=True, exclude_none=True) for one in getattr(status, field)]
            for field in ("injected", "probes", "budget", "timeline", "past")
        }
        healed = status.remediation
        told = {"remediation": None if healed is None else healed.model_dump(mode="json", by_alias=True)}
        body: JSON = {
            "metadata": {"uid": experiment.uid, "resourceVersion": experiment.resource_version},
            # Nulls stay: in a merge patch they remove what an earlier phase left.
            "status": {**whole, **lists, **told},
        }
        where = path(experiment.namespace, experiment.name)
        return read_experiment(await self._writer.merge(f"{where}/status", body))

    async def hold(self, experiment: Experiment, *, hold: bool) -> Experiment:
        """Keep it from being deleted before all is taken back, or let it go."""
        others = [one for one in experiment.finalizers if one != FINALIZER]
        wanted = [*others, FINALIZER] if hold else others
        if list(experiment.finalizers) == wanted:
            return experiment
        meta = {"uid": experiment.uid, "resourceVersion": experiment.resource_version, "finalizers": wanted}
        where = path(experiment.namespace, experiment.name)
        return read_experiment(await self._writer.merge(where, {"metadata": meta}))
