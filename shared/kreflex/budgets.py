"""What is left of an error budget, and whether it burns: the one answer that chaos and risky remediation wait for.

Prometheus is asked for what rules have recorded (our own, Sloth's or Pyrra's), and where not all of that is there, for
what it is made of. Nobody who can't find out goes on: that is `Unknown`.
"""

from __future__ import annotations

import asyncio
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Literal

from kreflex.burn import TAG, Alarm, over, prom_duration, questions, windows
from kreflex.errors import KreflexError
from kreflex.prom import Metrics
from kreflex.sloformats import Slo
from kreflex.slos import SLO, load_slos

if TYPE_CHECKING:
    from kreflex.world import World

Burning = Literal["page", "ticket", "none"]
State = Literal["Healthy", "Burning", "Spent", "Unknown"]
LEAST = 0.2
# Of good events among all there may seem to be more than there are, for Prometheus extrapolates both.
_INEXACT = 0.05
_WORST: tuple[State, ...] = ("Unknown", "Spent", "Burning", "Healthy")
# The share of events that failed, by the windows of one group.
_Shares = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Budget:
    """What is left of an error budget, from 1 to 0 and below; None if nobody can tell.

    `burning` is the worst burn-rate alert that its windows would raise now. `why` is for people: which SLO, how much.
    """

    left: float | None
    burning: Burning
    why: str
    least: float = LEAST

    @property
    def state(self) -> State:
        """Tell it in one word; below `least` it counts as spent."""
        if self.left is None:
            return "Unknown"
        if self.left < self.least:
            return "Spent"
        return "Healthy" if self.burning == "none" else "Burning"

    @property
    def healthy(self) -> bool:
        """Tell whether chaos may begin, and risky remediation needs no person."""
        return self.state == "Healthy"

    @property
    def must_stop(self) -> bool:
        """Tell whether a running experiment has to end now: a slow burn, which makes a ticket, lets it run out."""
        return self.state in {"Spent", "Unknown"} or self.burning == "page"


def unknown(why: str, least: float = LEAST) -> Budget:
    """Give the answer of who can't find out."""
    return Budget(None, "none", why, least)


async def budget_of(namespace: str, about: str | Mapping[str, Any], world: World, least: float = LEAST) -> Budget:
    """Tell the budget of an SLO, or the worst of those that a workload of a namespace is part of.

    `about` is an SLO's name, as NAME or NAMESPACE/NAME, or the labels and annotations of a workload together, or its
    object: it names its SLO in `kreflex.dev/slo`, or the SLO selects its labels by its own `kreflex.dev/workloads`.
    Never raises: the state is Unknown then.
    """
    about = about if isinstance(about, str) else marks(about)
    try:
        found = await slos_of(namespace, about, world)
    except KreflexError as error:
        return unknown(f"the error budget is unknown: the SLOs can't be read: {error}", least)
    if not found:
        return unknown(_nobody(namespace, about), least)
    return worst(await asyncio.gather(*(measure(slo, world.metrics, least) for slo in found)))


def marks(about: Mapping[str, Any]) -> Mapping[str, str]:
    """Give the labels and annotations of an object and of its pods' template; of what is no object, itself."""
    if not isinstance(about.get("metadata"), Mapping):
        return about
    template = (about.get("spec") or {}).get("template") or {}
    metas = [template.get("metadata") or {}, about["metadata"]]
    return {
        key: value
        for meta in metas
        for part in ("labels", "annotations")
        for key, value in (meta.get(part) or {}).items()
    }


def _nobody(namespace: str, about: str | Mapping[str, str]) -> str:
    name = about if isinstance(about, str) else about.get(SLO, "")
    if name:
        return f"there is no SLO {name!r} for namespace {namespace or 'none'}: is it written as its object is called?"
    return f"no SLO is about it: name one of namespace {namespace or 'none'} by the annotation {SLO}"


async def slos_of(namespace: str, about: str | Mapping[str, str], world: World) -> tuple[Slo, ...]:
    """Find the SLOs of a name or a workload; one of several names that is not there makes a broken one."""
    names = about if isinstance(about, str) else about.get(SLO, "")
    found = [slo for name in names.split(",") if name.strip() for slo in await _named(namespace, name.strip(), world)]
    if not isinstance(about, str) and namespace:
        found += [slo for slo in await load_slos(world.cluster, world.home, namespace) if slo.about(about)]
    return tuple(dict.fromkeys(found))


async def _named(namespace: str, name: str, world: World) -> Iterable[Slo]:
    there, _, own = name.rpartition("/")
    there = there or namespace
    found = [slo for slo in await load_slos(world.cluster, world.home, there) if slo.called(own)] if there else []
    return found or [Slo(there, own, own, "SLO", broken="it is not there: is it written as its object is called?")]


def worst(budgets: Iterable[Budget]) -> Budget:
    """Give the budget that stops most."""
    return min(budgets, key=lambda budget: (_WORST.index(budget.state), not budget.must_stop, budget.left or 0))


async def measure(slo: Slo, metrics: Metrics, least: float = LEAST) -> Budget:
    """Ask Prometheus what is left of one SLO's budget."""
    if slo.broken:
        return unknown(f"{slo} can't be used: {slo.broken}", least)
    try:
        return judge(slo, await _shares(slo, metrics), least)
    except KreflexError as error:
        return unknown(f"{slo}: the error budget is unknown: {error}", least)


async def _shares(slo: Slo, metrics: Metrics) -> Mapping[tuple[str, ...], _Shares]:
    """Ask for what is recorded; if not all of it is there, for what it is made of."""
    wanted = windows(slo.alarms)
    recorded = {one: _recorded(slo, slo.records, one) for one in wanted}
    whole = _recorded(slo, slo.record or slo.records, slo.window)
    found = await _asked(slo, metrics, {**recorded, slo.window: whole})
    if slo.errors and not _complete(slo, found):
        found = await _asked(slo, metrics, {one: over(slo.errors, one) for one in (*wanted, slo.window)})
    return found


def _recorded(slo: Slo, theirs: str, window: timedelta) -> str:
    """Ask for what their own rules have recorded, or ours: nobody may run those of Sloth or Pyrra."""
    if slo.kind == "SLO":
        return over(theirs, window)
    return over(f"{theirs} or {slo.ours}" if theirs else slo.ours, window)


def _complete(slo: Slo, found: Mapping[tuple[str, ...], _Shares]) -> bool:
    wanted, whole = {prom_duration(one) for one in windows(slo.alarms)}, prom_duration(slo.window)
    # Sloth records the mean of all its 5 minutes, which is no number for 30 days if in one of them there was no event
    # (https://github.com/slok/sloth/blob/main/internal/plugin/slo/core/sli_rules_v1/plugin.go).
    return any(wanted <= shares.keys() and not math.isnan(shares.get(whole, math.nan)) for shares in found.values())


async def _asked(slo: Slo, metrics: Metrics, asked: Mapping[timedelta, str]) -> Mapping[tuple[str, ...], _Shares]:
    asked = {window: query for window, query in asked.items() if query}
    answers = await asyncio.gather(*(metrics.vector(query) for query in questions(asked)))
    shares: dict[tuple[str, ...], dict[str, float]] = defaultdict(dict)
    for labels, share in (one for answer in answers for one in answer):
        group = shares[tuple(labels.get(name, "") for name in slo.grouping)]
        # Two Prometheus that measure the same: the worse counts, and a number more than none.
        before = group.get(labels.get(TAG, ""), math.nan)
        group[labels.get(TAG, "")] = before if share <= before or math.isnan(share) else share
    return shares


def judge(slo: Slo, found: Mapping[tuple[str, ...], _Shares], least: float = LEAST) -> Budget:
    """Tell the budget from the shares of failed events by group and window; the worst group counts."""
    wanted = [prom_duration(one) for one in windows(slo.alarms)]
    missing = next((one for one in wanted if not any(one in shares for shares in found.values())), None)
    if missing is not None:
        return unknown(f"{slo}: Prometheus has no data of the last {missing}: is it still measured?", least)
    whole = prom_duration(slo.window)
    # A group that nobody asks for any more says nothing of the others; one that is new may burn already.
    counted = {
        group: shares
        for group, shares in found.items()
        if not math.isnan(shares.get(whole, math.nan)) or _alarm(slo, shares)
    }
    return worst(_judged(slo, group, shares, least) for group, shares in (counted or found).items())


def _judged(slo: Slo, group: tuple[str, ...], shares: _Shares, least: float) -> Budget:
    which = ", ".join(f"{name}={value}" for name, value in zip(slo.grouping, group, strict=True))
    whose, whole = f"{slo} ({which})" if which else str(slo), prom_duration(slo.window)
    failed, alarm = shares.get(whole, math.nan), _alarm(slo, shares)
    burns = f"{_burn(alarm, slo, shares)}; " if alarm else ""
    if math.isnan(failed):
        return unknown(f"{whose}: {burns}there were no events within {whole}, or Prometheus does not have them", least)
    if failed < -_INEXACT:
        return unknown(f"{whose}: the share of its events that failed is {failed:.4g}: mend its query", least)
    left = min(1.0, 1 - failed / slo.allowed)
    severity: Burning = alarm.severity if alarm else "none"
    remains = f"{left:.0%} of the error budget of {whole} is left"
    if left < least:
        return Budget(left, severity, f"{whose}: {remains}, below {least:.0%}", least)
    return Budget(left, severity, f"{whose}: {burns}{remains}", least)


def _alarm(slo: Slo, shares: _Shares) -> Alarm | None:
    """Find the worst alert that is on."""
    return next((one for one in slo.alarms if _burns(one, slo, shares)), None)


def _burns(alarm: Alarm, slo: Slo, shares: _Shares) -> bool:
    # Not a number: there were no events, so none has failed.
    most = alarm.factor * slo.allowed
    return all(shares.get(prom_duration(window), math.nan) > most for window in (alarm.long, alarm.short))


def _burn(alarm: Alarm, slo: Slo, shares: _Shares) -> str:
    long, short = prom_duration(alarm.long), prom_duration(alarm.short)
    rate = min(shares[long], shares[short]) / slo.allowed
    return f"it burns {rate:.1f} times too fast over {long} and {short}, more than {alarm.factor:g} ({alarm.severity})"
