"""What keeps an experiment from beginning, and what ends one that runs. A gate that can't find out, refuses."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ValidationError

from kreflex.budgets import Budget, budget_of
from kreflex.chaos.experiments import FUNCTION, Experiment, ExperimentSpec, Hours
from kreflex.chaos.targets import forbidden
from kreflex.policy import GROUP, VERSION, Effective, load_policies
from kreflex.records import read_record
from kreflex.views import JSON
from kreflex.world import World


@dataclass(frozen=True, slots=True)
class Stop:
    """Why not; one that is not final may be over soon."""

    guard: str
    because: str
    final: bool = False


async def may_begin(experiment: Experiment, world: World) -> Stop | None:
    """Ask all gates but those of targets, which are looked at last."""
    spec = experiment.wants
    if spec.stop:
        return Stop("Stopped", "spec.stop says so", final=True)
    because = await forbidden(experiment, world.home, world.cluster)
    if because is not None:
        return Stop("Scope", because, final=True)
    return (
        of_policy(await _policy(experiment, world)) or _hours(spec.hours, world.now()) or await _calm(experiment, world)
    )


async def _policy(experiment: Experiment, world: World) -> Effective:
    return (await load_policies(world.cluster)).for_object(FUNCTION, experiment.namespace, {})


def of_policy(policy: Effective) -> Stop | None:
    """Ask the policies: a freeze and a pause stop all new work; chaos needs a policy that says Auto."""
    if policy.broken is not None:
        return Stop("Policy", policy.broken)
    if policy.frozen is not None:
        return Stop("Frozen", f"policy {policy.frozen} is frozen")
    asked = [f"{words} ({one.key})" for one, spec in policy.specs for words in spec.pause_requests]
    if asked:
        return Stop("Paused", f"a pause is asked for: {', '.join(asked)}")
    if policy.mode == "Auto":
        return None
    how = f"let a ClusterRemediationPolicy with functions: [{FUNCTION}] select the namespace in mode Auto"
    return Stop(policy.mode, f"{policy.reason}: {how}")


def _hours(hours: Hours | None, now: datetime) -> Stop | None:
    if hours is None:
        return None
    try:
        there = now.astimezone(ZoneInfo(hours.zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        return Stop("Hours", f"{hours.zone} is no time zone that is known here", final=True)
    if f"{there:%a}" in hours.days and hours.begin <= f"{there:%H:%M}" < hours.end:
        return None
    when = f"{', '.join(hours.days)} from {hours.begin} to {hours.end} {hours.zone}"
    return Stop("Hours", f"it is {there:%a %H:%M}; it may begin {when}")


async def _calm(experiment: Experiment, world: World) -> Stop | None:
    """Look whether anything is being healed where the experiment is: one fault at a time."""
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{experiment.namespace}/remediations"
    async for body in world.cluster.list(path):
        try:
            record = read_record(body)
        except ValidationError:
            return Stop("Unsteady", f"Remediation {body['metadata']['name']} can't be read: mend or delete it")
        if record.status.phase in {"Acting", "Applied"}:
            return Stop("Unsteady", f"{record} is not over: {record.status.reason or record.status.phase}")
    return None


async def budget(experiment: Experiment, world: World, about: JSON | None) -> Budget | None:
    """Tell what is left of the error budget; None where people have said why none is asked."""
    spec = experiment.wants
    if spec.without_budget is not None:
        return None
    if spec.budget is not None:
        return await budget_of(experiment.namespace, spec.budget.slo, world)
    meta = (about or {}).get("metadata") or {}
    said = {**(meta.get("labels") or {}), **(meta.get("annotations") or {})}
    return await budget_of(experiment.namespace, said, world)


def of_budget(left: Budget | None) -> Stop | None:
    """Ask whether chaos may begin."""
    if left is None or left.healthy:
        return None
    return Stop("ErrorBudget", f"{left.state}: {left.why}")


async def must_end(experiment: Experiment, spec: ExperimentSpec, world: World, left: Budget | None) -> Stop | None:
    """Tell why an experiment that runs has to be aborted now."""
    if experiment.leaving:
        return Stop("Deleted", "it was deleted")
    if spec.stop:
        return Stop("Stopped", "spec.stop says so")
    if left is not None and left.must_stop:
        return Stop("ErrorBudget", f"{left.state}: {left.why}")
    stop = of_policy(await _policy(experiment, world))
    if stop is not None:
        return stop
    because = await forbidden(experiment, world.home, world.cluster)
    return Stop("Scope", because) if because else None
