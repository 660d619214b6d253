"""What keeps an experiment from beginning, and what ends one that runs. A gate that can't find out, refuses."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ValidationError

from kreflex.budgets import Budget, budget_of, marks, slos_of, unknown
from kreflex.chaos.experiments import DAYS, FUNCTION, Experiment, ExperimentSpec, Hours
from kreflex.chaos.targets import forbidden, kind_of, restless
from kreflex.errors import KreflexError, UnavailableError
from kreflex.policy import GROUP, VERSION, Effective, load_policies
from kreflex.records import read_record
from kreflex.views import JSON
from kreflex.world import World

_MOST_SLOS = 5000
# So that the command behind it is never cut off, even with the longest names.
_BEFORE_HOW = 300
_APPROVED_FOR = timedelta(hours=1)
# The shell puts the name in: admission takes nobody else's (see admission.experiments).
_WHOEVER_ASKS = "'\"$(kubectl auth whoami -o jsonpath={.status.userInfo.username})\"'"


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
    stop = of_policy(await _policy(experiment, world), experiment, world.now())
    return stop or _hours(spec.hours, world.now()) or await _calm(experiment, world)


async def _policy(experiment: Experiment, world: World) -> Effective:
    return (await load_policies(world.cluster)).for_object(FUNCTION, experiment.namespace, {})


def of_policy(policy: Effective, experiment: Experiment, now: datetime | None) -> Stop | None:
    """Ask the policies: a freeze and a pause stop all new work; chaos needs a policy that says Auto, or a person.

    `now` is None for one that runs: what a person approved may go on, however long it takes.
    """
    if policy.broken is not None:
        return Stop("Policy", policy.broken)
    if policy.frozen is not None:
        return Stop("Frozen", f"policy {policy.frozen} is frozen")
    asked = [f"{words} ({one.key})" for one, spec in policy.specs for words in spec.pause_requests]
    if asked:
        return Stop("Paused", f"a pause is asked for: {', '.join(asked)}")
    if policy.mode == "Auto":
        return None
    if policy.mode == "Approve":
        return _approval(experiment, policy.reason, now)
    how = f"let a ClusterRemediationPolicy with functions: [{FUNCTION}] select the namespace in mode Auto or Approve"
    return Stop(policy.mode, f"{policy.reason}: {how}")


def _approval(experiment: Experiment, because: str, now: datetime | None) -> Stop | None:
    """Ask whether a person has approved the experiment as it is. Admission sees to it that he has said so himself."""
    given, plan = experiment.wants.approval, experiment.wants.plan_hash
    if given is None:
        told = f"{because}: nobody has approved it"
    elif given.plan_hash != plan:
        told = f"what {given.by} approved is not this experiment: it was changed"
    elif now is not None and given.until <= now:
        told = f"what {given.by} approved has expired at {given.until:%Y-%m-%d %H:%M:%S} UTC"
    else:
        return None
    return Stop("Approve", f"{told[:_BEFORE_HOW]}. {_how_to_approve(experiment, plan)}")


def _how_to_approve(experiment: Experiment, plan: str) -> str:
    # As late as it may begin: a time of its own would be another text each minute.
    until = experiment.late_at or experiment.created + _APPROVED_FOR
    patch = json.dumps({"spec": {"approval": {"planHash": plan, "by": "YOU", "until": f"{until:%Y-%m-%dT%H:%M:%SZ}"}}})
    where = f"kubectl -n {experiment.namespace} patch experiments.kreflex.dev {experiment.name}"
    return f"To approve: {where} --type merge -p '{patch.replace('YOU', _WHOEVER_ASKS)}'"


def _hours(hours: Hours | None, now: datetime) -> Stop | None:
    if hours is None:
        return None
    try:
        there = now.astimezone(ZoneInfo(hours.zone))
    except (ZoneInfoNotFoundError, ValueError, OSError):
        why = f"hours.zone is {hours.zone!r}, no time zone that is known here: write it as Europe/Berlin, or UTC"
        return Stop("Hours", why, final=True)
    if _within(hours, there):
        return None
    # Not what time it is: the same words are told once.
    end = hours.end if hours.begin < hours.end else f"{hours.end} of the next day"
    return Stop("Hours", f"it may begin {', '.join(hours.days)} from {hours.begin} to {end}, {hours.zone}")


def _within(hours: Hours, there: datetime) -> bool:
    """Tell whether a clock is in the hours; those past midnight are of the day before."""
    clock, today, yesterday = f"{there:%H:%M}", DAYS[there.weekday()], DAYS[there.weekday() - 1]
    if hours.begin < hours.end:
        return today in hours.days and hours.begin <= clock < hours.end
    return (today in hours.days and hours.begin <= clock) or (yesterday in hours.days and clock < hours.end)


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


def at_rest(experiment: Experiment, bodies: Iterable[JSON]) -> Stop | None:
    """Look whether Argo is rolling out any Rollout that may be hit: nobody could tell its faults from ours."""
    if kind_of(experiment.wants.fault.kind, experiment.wants.targets) != "Rollout":
        return None
    for body in bodies:
        why = restless(body)
        if why:
            return Stop("Unsteady", f"Rollout {body['metadata']['namespace']}/{body['metadata']['name']}: {why}")
    return None


async def objectives(experiment: Experiment, world: World, bodies: Iterable[JSON]) -> str | Stop:
    """Name the SLOs that have to have budget left, with commas between: those of all that may be hit, not of one."""
    spec = experiment.wants
    if spec.without_budget is not None or spec.budget is not None:
        return spec.budget.slo if spec.budget is not None else ""
    abouts = _distinct(bodies) or [{}]
    try:
        found = [await slos_of(experiment.namespace, about, world) for about in abouts]
    except KreflexError as error:
        return Stop("ErrorBudget", f"the SLOs can't be read: {error}")
    nameless = next((about for about, slos in zip(abouts, found, strict=True) if not slos), None)
    if nameless is not None:
        left = await budget_of(experiment.namespace, nameless, world)
        return Stop("ErrorBudget", f"{left.state}: {left.why}")
    keys = ",".join(dict.fromkeys(slo.key for slos in found for slo in slos))
    return keys if len(keys) <= _MOST_SLOS else Stop("ErrorBudget", "too many SLOs are about it: hit less at a time")


def _distinct(bodies: Iterable[JSON]) -> list[Mapping[str, str]]:
    """Give what the SLOs of objects are found by, each once."""
    return [dict(one) for one in dict.fromkeys(tuple(sorted(marks(body).items())) for body in bodies)]


async def budget(experiment: Experiment, slos: str, world: World) -> Budget | None:
    """Tell what is left of the error budget; None where people have said why none is asked."""
    if experiment.wants.without_budget is not None:
        return None
    return await budget_of(experiment.namespace, slos, world) if slos else unknown("nobody knows whose budget it is")


def of_budget(left: Budget | None) -> Stop | None:
    """Ask whether chaos may begin."""
    if left is None or left.healthy:
        return None
    return Stop("ErrorBudget", f"{left.state}: {left.why}")


async def must_end(experiment: Experiment, spec: ExperimentSpec, world: World, left: Budget | None) -> Stop | None:
    """Tell why an experiment that runs has to be aborted now. Nobody who can't find out goes on."""
    if experiment.leaving:
        return Stop("Deleted", "it was deleted")
    if spec.stop:
        return Stop("Stopped", "spec.stop says so")
    if left is not None and left.must_stop:
        return Stop("ErrorBudget", f"{left.state}: {left.why}")
    try:
        stop = of_policy(await _policy(experiment, world), experiment, None)
        because = None if stop else await forbidden(experiment, world.home, world.cluster)
    except UnavailableError as error:
        return Stop("Unknown", f"nobody can tell whether it may go on: {error}")
    return stop or (Stop("Scope", because) if because else None)
