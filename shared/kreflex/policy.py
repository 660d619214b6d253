"""Policies: what people allow, where, how often and how much. They are custom resources and belong into Git."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, ValidationError, WithJsonSchema, model_validator

from kreflex.anomalyterms import Anomalies
from kreflex.cluster import Reader
from kreflex.durations import PATTERN, Duration, parse_duration
from kreflex.errors import ApiError, UnavailableError
from kreflex.parts import Part, Share
from kreflex.releases import Releases
from kreflex.rule import Rule
from kreflex.upkeep import Upkeep
from kreflex.views import JSON

GROUP = "kreflex.dev"
VERSION = "v1alpha1"
_KINDS = (("ClusterRemediationPolicy", "clusterremediationpolicies"), ("RemediationPolicy", "remediationpolicies"))
PROTECTED = ("kube-system", "kube-public", "kube-node-lease")
# On a namespace, with any value but "false": admission refuses each action there.
PROTECTED_LABEL = f"{GROUP}/protected"
# One freeze in any namespace must be seen, so the namespaced policies are read in all of them at once.
RBAC = tuple(Rule(GROUP, plural, "list", "cluster") for plural in ("clusterremediationpolicies", "remediationpolicies"))

Mode = Literal["DryRun", "Approve", "Auto"]
# More than a cluster has pods.
_MANY = 1_000_000
_MODES: tuple[Mode, ...] = ("DryRun", "Approve", "Auto")


def _at_most(hours: int) -> WithJsonSchema:
    rule = {"rule": f"duration(self) <= duration('{hours}h')", "message": f"must be {hours}h at most"}
    pattern = {"type": "string", "pattern": PATTERN, "minLength": 2, "maxLength": 20}
    return WithJsonSchema({**pattern, "x-kubernetes-validations": [rule]})


# The ledger remembers for as long as the longest of these, for all namespaces: nobody may make it remember for years.
Day = Annotated[Duration, Field(le=timedelta(hours=24)), _at_most(24)]
Week = Annotated[Duration, Field(le=timedelta(hours=168)), _at_most(168)]


class Expression(Part):
    """One requirement of a label selector."""

    key: str = Field(min_length=1)
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"]
    values: tuple[str, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Decide as Kubernetes does: a label that is absent is NotIn anything."""
        present = self.key in labels
        return {
            "In": present and labels.get(self.key) in self.values,
            "NotIn": labels.get(self.key) not in self.values,
            "Exists": present,
            "DoesNotExist": not present,
        }[self.operator]


class Selector(Part):
    """A label selector; an empty one matches everything."""

    match_labels: dict[str, str] = Field(default_factory=dict)
    match_expressions: tuple[Expression, ...] = ()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether an object with these labels is selected."""
        return self.match_labels.items() <= labels.items() and all(e.matches(labels) for e in self.match_expressions)


class Scope(Part):
    """What a policy is about."""

    namespaces: tuple[str, ...] = Field(
        (), description="Only these namespaces; empty means all. Cluster policies only."
    )
    exclude_namespaces: tuple[str, ...] = Field((), description="None of these namespaces. Cluster policies only.")
    selector: Selector = Field(Selector(), description="Only objects with these labels.")


class Rate(Part):
    """At most `count` remediations in any `window`."""

    count: int = Field(ge=0)
    window: Week


class Useless(Part):
    """After `count` remediations of one owner in a row that did not help: stop, and ask a person."""

    count: int = Field(3, ge=1, le=20)
    stop: Day = parse_duration("1h")


class Storm(Part):
    """More than `faults` new faults in `window`: stop until it has been calm for `cooldown`."""

    faults: int = Field(ge=1)
    window: Duration = parse_duration("5m")
    cooldown: Duration = parse_duration("10m")


class ErrorBudget(Part):
    """Where the error budget is looked up: an SLO, or PromQL. With neither it is that of the SLO of the workload."""

    model_config = ConfigDict(
        json_schema_extra={
            "x-kubernetes-validations": [
                {"rule": "!has(self.query) || !has(self.slo)", "message": "query and slo exclude each other"}
            ]
        }
    )

    query: str | None = Field(None, min_length=1, description="PromQL that yields the share that is left, from 0 to 1.")
    slo: str | None = Field(None, min_length=1, max_length=317, description="An SLO as NAME or NAMESPACE/NAME.")
    least: float = Field(0.2, ge=0, le=1, description="With less than this left, the budget counts as spent.")

    @model_validator(mode="after")
    def _one(self) -> ErrorBudget:
        if self.query is not None and self.slo is not None:
            raise ValueError("query and slo exclude each other")
        return self


class Limits(Part):
    """The guards' numbers."""

    cooldown: Day = Field(parse_duration("5m"), description="Rest of one owner between two remediations.")
    rates: tuple[Rate, ...] = Field(
        (Rate(count=10, window=parse_duration("1h")),), description="How many remediations in how long; all hold."
    )
    max_in_flight: int = Field(1, ge=0, description="How many remediations at a time.")
    in_flight_until: Literal["Applied", "Verdict"] = Field(
        "Verdict", description="Whether a remediation counts until it is applied, or until its verdict."
    )
    min_healthy: Share = Field(0, description="Healthy replicas of an owner that must stay; percent rounds up.")
    useless: Useless = Useless()
    storm: Storm | None = None
    error_budget: ErrorBudget | None = None


ANY = "*"
DEFAULT_OWNERS = ("Deployment", "ReplicaSet", "Rollout", "StatefulSet")


class PolicySpec(Part):
    """What a RemediationPolicy and a ClusterRemediationPolicy say."""

    functions: tuple[str, ...] = Field((), description="Only these functions; empty means all.")
    mode: Mode = Field("DryRun", description="DryRun records, Approve waits for a person, Auto acts.")
    frozen: bool = Field(default=False, description="True stops all work at once, aborts experiments; undoing goes on.")
    scope: Scope = Scope()
    owners: tuple[str, ...] = Field(
        DEFAULT_OWNERS,
        description="Kinds of topmost owners whose pods may be touched: DaemonSet, Job, CronJob, Pod only if named.",
    )
    limits: Limits = Limits()
    pause_requests: tuple[str, ...] = Field(
        (), description="While anybody asks for a pause here, in words, nothing new begins; what has begun goes on."
    )
    nodes: Upkeep | None = Field(None, description="When nodes are ill, and what is done then. Cluster policies only.")
    releases: Releases | None = Field(
        None, description="When a release is bad, and how it is undone. Cluster policies only."
    )
    anomalies: Anomalies | None = Field(
        None, description="Which anomalies a pod may be evicted for. Of several policies that say so, all have to."
    )
    proof: Duration = Field(parse_duration("10m"), description="How long the owner must be healthy to count as healed.")
    prove_within: Duration = Field(
        parse_duration("20m"), description="No proof after this long is the verdict Unknown, which is not healed."
    )

    @model_validator(mode="after")
    def _proof_fits(self) -> PolicySpec:
        if self.prove_within < self.proof:
            raise ValueError("proveWithin must not be shorter than proof")
        return self


def healthy_floor(least: int | str, replicas: int) -> int:
    """Turn a number or a percentage of `replicas` into a number of pods; a percentage rounds up."""
    text = str(least)
    return math.ceil(replicas * int(text[:-1]) / 100) if text.endswith("%") else int(text)


@dataclass(frozen=True)
class Policy:
    """One policy object; `broken` says why its spec can't be used."""

    kind: str
    namespace: str
    name: str
    uid: str
    generation: int
    spec: PolicySpec | None
    broken: str = ""
    scope: Scope = field(default_factory=Scope)
    functions: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """How the ledger and people call it."""
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def covers(self, function: str, namespace: str) -> bool:
        """Tell whether the policy is about this function and namespace, whatever the labels."""
        if self.functions and function not in self.functions:
            return False
        if self.namespace and namespace != self.namespace:
            return False
        if self.scope.namespaces and namespace not in self.scope.namespaces:
            return False
        return namespace not in self.scope.exclude_namespaces

    def selects(self, function: str, namespace: str, labels: Mapping[str, str]) -> bool:
        """Tell whether the policy is about this function and object."""
        return self.covers(function, namespace) and self.scope.selector.matches(labels)


@dataclass(frozen=True)
class Effective:
    """What holds for one object: the cluster policies' ceilings, tightened by the namespace's own policies."""

    policies: tuple[Policy, ...]
    mode: Mode
    reason: str
    frozen: str | None
    broken: str | None
    cooldown: timedelta
    useless: Useless
    proof: timedelta
    prove_within: timedelta

    @property
    def specs(self) -> tuple[tuple[Policy, PolicySpec], ...]:
        """Every policy that can be used, with its spec."""
        return tuple((policy, policy.spec) for policy in self.policies if policy.spec is not None)

    @property
    def upkeep(self) -> Upkeep | str:
        """What holds for a node: what one policy says of nodes, or the defaults; or why nobody can tell."""
        said = {policy.key: spec.nodes for policy, spec in self.specs if spec.nodes is not None}
        if len(said) > 1:
            return f"policies {' and '.join(sorted(said))} say when this node is ill: leave one"
        return next(iter(said.values()), Upkeep())

    @property
    def releases(self) -> Releases | str:
        """What holds for a release: what one policy of the cluster says, or the defaults; or why nobody can tell.

        A namespace's own policy has no say: it could name an account that its author may not use.
        """
        said = {p.key: spec.releases for p, spec in self.specs if spec.releases is not None and not p.namespace}
        if len(said) > 1:
            return f"policies {' and '.join(sorted(said))} say when this release is bad: leave one"
        return next(iter(said.values()), Releases())

    @property
    def anomalies(self) -> Anomalies:
        """What a pod may be evicted for: what all policies that say something of it allow, and one of the cluster's.

        A namespace's own policy may only tighten what that says.
        """
        said = [(spec.anomalies, policy.namespace) for policy, spec in self.specs if spec.anomalies is not None]
        if all(namespace for _, namespace in said):
            return Anomalies()
        allowed = set.intersection(*(set(one.classes) for one, _ in said))
        return Anomalies(
            classes=tuple(name for name in said[0][0].classes if name in allowed),
            signals=max(one.signals for one, _ in said),
        )

    def allows_owner(self, kind: str) -> bool:
        """Tell whether each policy names this kind of owner."""
        return all(kind in spec.owners or ANY in spec.owners for _, spec in self.specs)


def combine(policies: tuple[Policy, ...]) -> Effective:
    """Combine the policies that select one object: of each number the strictest holds.

    Without a cluster policy there is no ceiling, and so the mode is DryRun, whatever the namespace's own say.
    """
    specs = [p.spec for p in policies if p.spec is not None]
    capped = any(not p.namespace for p in policies)
    mode = _MODES[min((_MODES.index(s.mode) for s in specs), default=0)] if capped else "DryRun"
    blank = PolicySpec()
    return Effective(
        policies=policies,
        mode=mode,
        reason=_why(policies, mode, capped=capped),
        frozen=next((p.key for p in policies if p.spec and p.spec.frozen), None),
        broken=next((f"{p.kind} {p.key} can't be used: {p.broken}" for p in policies if p.broken), None),
        cooldown=max((s.limits.cooldown for s in specs), default=blank.limits.cooldown),
        useless=Useless(
            count=min((s.limits.useless.count for s in specs), default=blank.limits.useless.count),
            stop=max((s.limits.useless.stop for s in specs), default=blank.limits.useless.stop),
        ),
        proof=max((s.proof for s in specs), default=blank.proof),
        prove_within=max([s.prove_within for s in specs] + [s.proof for s in specs], default=blank.prove_within),
    )


def _why(policies: tuple[Policy, ...], mode: Mode, *, capped: bool) -> str:
    if not capped:
        return "no ClusterRemediationPolicy selects it"
    return " and ".join(f"{p.kind} {p.key}" for p in policies if p.spec is not None and p.spec.mode == mode)


def read_policy(body: JSON) -> Policy:
    """Read a policy object. One that is not valid keeps what can be read of its scope, so that it refuses just that."""
    meta, raw = body["metadata"], body.get("spec") or {}
    try:
        spec, broken = PolicySpec.model_validate(_tightening(raw) if meta.get("namespace") else raw), ""
        scope, functions = spec.scope, spec.functions
    except ValidationError as error:
        spec, broken = (
            None,
            "; ".join(
                f"{'.'.join(map(str, e['loc']))}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
            ),
        )
        scope, functions = _salvage(raw)
    return Policy(
        kind=body.get("kind", "Policy"),
        namespace=meta.get("namespace", ""),
        name=meta["name"],
        uid=meta["uid"],
        generation=meta.get("generation", 0),
        spec=spec,
        broken=broken,
        scope=scope,
        functions=functions,
    )


def _tightening(raw: JSON) -> JSON:
    """Fill what a namespace's policy does not say with what tightens nothing: only what it says may count."""
    limits = raw.get("limits", {})
    useless = limits.get("useless", {}) if isinstance(limits, dict) else None
    if not isinstance(limits, dict) or not isinstance(useless, dict):
        return raw
    neutral = {"cooldown": "0s", "rates": [], "maxInFlight": _MANY, "minHealthy": 0}
    useless = {"count": 20, "stop": "0s", **useless}
    proof = raw.get("proof", "0s")
    blank = {"mode": "Auto", "owners": [ANY], "proof": proof, "proveWithin": proof}
    return {**blank, **raw, "limits": {**neutral, **limits, "useless": useless}}


def _salvage(raw: JSON) -> tuple[Scope, tuple[str, ...]]:
    """Read each field of the scope by itself: one that can't be read narrows nothing, so the policy refuses more."""
    functions, scope = raw.get("functions"), raw.get("scope")
    known = isinstance(functions, list) and all(isinstance(name, str) for name in functions)
    usable = Scope()
    for name, value in scope.items() if isinstance(scope, dict) else ():
        with contextlib.suppress(ValidationError):
            part = Scope.model_validate({name: value})
            usable = usable.model_copy(update={field: getattr(part, field) for field in part.model_fields_set})
    return usable, tuple(functions) if known and functions else ()


@dataclass(frozen=True)
class Policies:
    """All policies of the cluster at one time."""

    all: tuple[Policy, ...]

    def for_object(self, function: str, namespace: str, labels: Mapping[str, str]) -> Effective:
        """Combine the policies that select one object."""
        return combine(tuple(p for p in self.all if p.selects(function, namespace, labels)))

    def stamp(self, function: str, namespace: str) -> str:
        """Tell in a few letters which policies could be about a function in a namespace, and in which generation.

        A record that was refused under another stamp is decided anew.
        """
        concerned = sorted(
            f"{p.uid}:{p.generation}"
            for p in self.all
            if (not p.functions or function in p.functions) and p.namespace in {"", namespace}
        )
        return hashlib.sha256(" ".join(concerned).encode()).hexdigest()[:12]

    def longest_memory(self) -> timedelta:
        """Tell how long the ledger must remember, so that every window, cooldown and count can be judged."""
        spans = [timedelta(hours=24)]
        for policy in self.all:
            if policy.spec is not None:
                limits = policy.spec.limits
                spans += [limits.cooldown, limits.useless.stop * (limits.useless.count + 1), policy.spec.prove_within]
                spans += [rate.window for rate in limits.rates]
        return max(spans)


async def load_policies(reader: Reader) -> Policies:
    """Read all policies; raises UnavailableError when that fails, because an unread policy could be a freeze."""
    try:
        return await reader.share("policies", lambda: _read_all(reader))
    except ApiError as error:
        hint = " (are knative/crds/ applied and may this account list them?)" if error.status in {403, 404} else ""
        raise UnavailableError(f"the policies can't be read{hint}: {error}") from error


async def _read_all(reader: Reader) -> Policies:
    # Side by side: a list of what changes seldom may wait a tenth of a second, until the API server's cache knows that
    # it is up to date (kubernetes, staging/src/k8s.io/apiserver/pkg/storage/cacher, ConsistentListFromCache).
    found = await asyncio.gather(*(_read_kind(reader, *kind) for kind in _KINDS))
    return Policies(tuple(policy for policies in found for policy in policies))


async def _read_kind(reader: Reader, kind: str, plural: str) -> list[Policy]:
    path = f"/apis/{GROUP}/{VERSION}/{plural}"
    return [read_policy({"kind": kind, **body}) async for body in reader.list(path)]
