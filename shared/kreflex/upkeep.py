"""What a policy says about nodes: when one is ill, how many may be, how it is emptied, and what is tried in turn."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Field, StringConstraints, model_validator

from kreflex.durations import Duration, parse_duration
from kreflex.parts import Part

# Nobody means more nodes than there are.
Portion = Annotated[int, Field(ge=0)] | Annotated[str, StringConstraints(pattern=r"^(100|[1-9]?[0-9])%$")]
PRESSURES = ("DiskPressure", "MemoryPressure", "PIDPressure")


class IllWhen(Part):
    """A condition of a node that counts as an illness once it has lasted for a time."""

    type: str = Field(min_length=1, max_length=316)
    status: Literal["True", "False", "Unknown"]
    for_: Duration = Field(alias="for", description="Since the condition's lastTransitionTime.")


class Drain(Part):
    """How a node is emptied."""

    timeout: Duration = Field(parse_duration("15m"), description="Since the cordon; then `onTimeout`.")
    batch: int = Field(20, ge=1, le=100, description="How many pods are evicted in one step at most.")
    empty_dir: Literal["Evict", "Block"] = Field(
        "Evict", description="Pods with emptyDir volumes, whose data are lost: evict them, or never drain the node."
    )
    bare: Literal["Evict", "Block"] = Field(
        "Block", description="Pods that nothing owns and nothing brings back: evict them, or never drain the node."
    )
    max_grace: Duration | None = Field(None, description="Caps a pod's own grace period; 1s at least.")
    on_timeout: Literal["GiveUp", "Force"] = Field(
        "GiveUp",
        description="GiveUp uncordons the node and asks people; Force replaces it with the pods that are left.",
    )

    @model_validator(mode="after")
    def _graceful(self) -> Drain:
        if self.max_grace is not None and self.max_grace < parse_duration("1s"):
            raise ValueError("maxGrace must be 1s at least: 0s would kill without a word")
        return self


class Template(Part):
    """A remediation template of medik8s: the object that is made from it mends the node."""

    api_version: str = Field(pattern=r"^[a-z0-9.-]+/[a-z0-9]+$")
    kind: str = Field(pattern=r"^[A-Z][A-Za-z0-9]*Template$")
    namespace: str = Field(min_length=1, max_length=63)
    name: str = Field(min_length=1, max_length=253)

    @property
    def makes(self) -> str:
        """The kind of what is made from it."""
        return self.kind.removesuffix("Template")


class Rung(Part):
    """One thing to try, and how long to wait until the next one."""

    action: Literal["RestartNetworkPods", "EvictPods", "Repair", "Replace"]
    within: Duration = Field(parse_duration("10m"), description="How long it may take to help.")
    only: tuple[str, ...] = Field((), description="Only while every complaint is one of these; empty means always.")
    never: tuple[str, ...] = Field((), description="Never while every complaint is one of these.")
    template: Template | None = Field(None, description="What Repair makes its object from.")

    @model_validator(mode="after")
    def _templated(self) -> Rung:
        if (self.action == "Repair") != (self.template is not None):
            raise ValueError("a template belongs to Repair, and to Repair only")
        return self

    def fits(self, complaints: frozenset[str]) -> bool:
        """Tell whether this is tried for a node with these complaints."""
        return (not self.only or complaints <= set(self.only)) and not (self.never and complaints <= set(self.never))


# Node Health Check's defaults: https://github.com/medik8s/node-healthcheck-operator/blob/main/docs/configuration.md
READY = (
    IllWhen(type="Ready", status="False", for_=parse_duration("5m")),
    IllWhen(type="Ready", status="Unknown", for_=parse_duration("5m")),
)
# Pressure passes, or comes again with the pods: no provider replaces a node for it
# (https://docs.aws.amazon.com/eks/latest/userguide/node-health.html).
LADDER = (
    Rung(action="RestartNetworkPods", only=("NetworkUnavailable",), within=parse_duration("5m")),
    Rung(action="EvictPods", only=("DiskPressure",)),
    Rung(action="Replace", never=PRESSURES, within=parse_duration("30m")),
)


class Upkeep(Part):
    """When nodes are ill, and what may be done about it."""

    conditions: tuple[IllWhen, ...] = Field(
        READY, min_length=1, description="Any of these; the earliest deadline wins."
    )
    startup: Duration = Field(
        parse_duration("10m"), description="How long a new node may take to be Ready; until then it is not ill."
    )
    pool_label: str = Field("", description="A label whose value names a node's pool, before those that are known.")
    min_healthy: Portion | None = Field(
        None, description="Healthy nodes of a pool that must be there; percent rounds up."
    )
    max_unhealthy: Portion | None = Field(
        None, description="Ill nodes of a pool that are tolerated; percent rounds up. 20% without either."
    )
    max_unhealthy_zone: Portion = Field(
        "50%", description="The same for a zone, and for all nodes, of any pool; percent rounds down, one is tolerated."
    )
    storm_cooldown: Duration = Field(
        parse_duration("10m"), description="After too many were ill, nothing new begins for this long."
    )
    drain: Drain = Drain()
    ladder: tuple[Rung, ...] = Field(
        LADDER, min_length=1, description="Tried in turn; the last rung is always a person."
    )

    @cached_property
    def matrix(self) -> Mapping[tuple[str, str], timedelta]:
        """How long each condition, by type and status, may last; of two rules for one the shorter counts."""
        return {
            (rule.type, rule.status): rule.for_ for rule in sorted(self.conditions, key=lambda r: r.for_, reverse=True)
        }

    @model_validator(mode="after")
    def _one_breaker(self) -> Upkeep:
        if self.min_healthy is not None and self.max_unhealthy is not None:
            raise ValueError("minHealthy and maxUnhealthy exclude each other: name one")
        return self
