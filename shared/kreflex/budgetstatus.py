"""What the cluster knows of its error budgets: one object that is written each minute, and that admission reads.

Who may inject a fault is told by `budgets.budget_of`, which asks Prometheus. An admission policy can't ask anybody: it
reads the ErrorBudgetStatus, and denies what is new while a budget is spent, or while nobody writes (docs/adr/0028).
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import Annotated, Literal

from pydantic import Field, ValidationError

from kreflex.budgets import Budget, measure, unknown
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError
from kreflex.parts import Part
from kreflex.policy import GROUP, VERSION
from kreflex.prom import Metrics
from kreflex.records import API, Time
from kreflex.rule import Rule
from kreflex.sloformats import Slo
from kreflex.slos import RBAC as RBAC_OF_SLOS
from kreflex.slos import load_slos
from kreflex.views import JSON

KIND, PLURAL, NAME = "ErrorBudgetStatus", "errorbudgetstatuses", "current"
# The writer comes each minute: three that fail in a row leave things as they are, the fourth stops all chaos.
FRESH = timedelta(minutes=5)
_WORDS = 500
# Of all lines together: an object in etcd has 1.5 MiB.
_ALL_WORDS = 400_000
_MOST = 2000
_NAMESPACE, _SLO, _LEFT = 63, 253, 20
_AT_ONCE = 8
# The CronJob has 55 seconds: whom nobody could ask in this time is unknown, and the others are written down.
_SECONDS = 40.0
RBAC_TO_READ = (Rule(GROUP, PLURAL, "get", "home", names=(NAME,)),)
# A name can't be given to a right to create.
RBAC = (
    *RBAC_OF_SLOS,
    *RBAC_TO_READ,
    Rule(GROUP, PLURAL, "create", "home"),
    Rule(GROUP, PLURAL, "update", "home", names=(NAME,)),
)


class BudgetLine(Part):
    """One SLO's budget."""

    namespace: str = Field(max_length=_NAMESPACE)
    slo: str = Field(max_length=_SLO)
    state: Literal["Healthy", "Burning", "Spent", "Unknown"]
    burning: Literal["page", "ticket", "none"]
    left: Annotated[str, Field(max_length=_LEFT)] = Field("", description="As 85%; empty if nobody can tell.")
    why: str = Field(max_length=_WORDS, description="Which SLO, how much, and the threshold.")


class BudgetStatusSpec(Part):
    """All error budgets of the cluster as they were last seen."""

    observed_at: Time
    fresh_until: Time = Field(description="Nothing new is injected after this, until it is written again.")
    budgets: tuple[BudgetLine, ...] = Field((), max_length=_MOST)


def line(namespace: str, slo: str, budget: Budget, words: int = _WORDS) -> BudgetLine:
    """Write one budget down, as much of it as there is room for: one that is strange must not hide the others."""
    left = "" if budget.left is None else f"{budget.left:.0%}"
    return BudgetLine(
        namespace=namespace[:_NAMESPACE],
        slo=slo[:_SLO],
        state=budget.state,
        burning=budget.burning,
        left=left[:_LEFT],
        why=budget.why[:words],
    )


async def observe(
    slos: Iterable[Slo], metrics: Metrics, least: float, seconds: float = _SECONDS
) -> list[tuple[Slo, Budget]]:
    """Measure all budgets, a few at a time; what is not begun within `seconds` is unknown."""
    turn, end = asyncio.Semaphore(_AT_ONCE), time.monotonic() + seconds

    async def one(slo: Slo) -> tuple[Slo, Budget]:
        async with turn:
            if time.monotonic() < end:
                return slo, await measure(slo, metrics, least)
        return slo, unknown(f"{slo}: Prometheus was too slow to be asked, after {seconds:.0f} s with the others", least)

    return list(await asyncio.gather(*(one(slo) for slo in slos)))


def status(found: Iterable[tuple[Slo, Budget]], now: datetime, home: str) -> JSON:
    """Make the object."""
    # What is in no namespace, or in none that there can be, is nobody's: it is told to who asks for the status.
    whose = [(slo, budget) for slo, budget in found if 0 < len(slo.namespace) <= _NAMESPACE]
    if len(whose) > _MOST:
        # What there is no room for is unknown to admission, and that of an ill one must not be.
        whose = sorted(whose, key=lambda one: one[1].healthy)[:_MOST]
    words = min(_WORDS, _ALL_WORDS // max(len(whose), 1))
    lines = tuple(line(slo.namespace, slo.name, budget, words) for slo, budget in whose)
    spec = BudgetStatusSpec(observed_at=now, fresh_until=now + FRESH, budgets=lines)
    return {
        "apiVersion": f"{GROUP}/{VERSION}",
        "kind": KIND,
        "metadata": {"name": NAME, "namespace": home, "labels": {"app.kubernetes.io/part-of": "kreflex"}},
        "spec": spec.model_dump(mode="json", by_alias=True),
    }


def line_of(lines: Iterable[BudgetLine], name: str) -> BudgetLine:
    """Find what is written of an SLO, as NAMESPACE/NAME; what is not there nobody knows."""
    namespace, _, slo = name.partition("/")
    found = next((one for one in lines if (one.namespace, one.slo) == (namespace, slo)), None)
    return found or unsaid(name, f"there is no SLO {name} among those that are written down")


def unsaid(name: str, why: str) -> BudgetLine:
    """Say of an SLO that nobody knows."""
    namespace, _, slo = name.partition("/")
    return line(namespace, slo, unknown(why))


async def written(reader: Reader, home: str, names: Iterable[str]) -> list[BudgetLine]:
    """Read what is written of some SLOs; Unknown where it is older than it may be."""
    body = await reader.get(f"/apis/{API}/namespaces/{home}/{PLURAL}/{NAME}")
    if body is None:
        return [unsaid(name, f"there is no {KIND} {home}/{NAME}: is CronJob error-budget there?") for name in names]
    try:
        spec = BudgetStatusSpec.model_validate(body["spec"])
    except (KeyError, ValidationError) as error:
        because = f"{KIND} {home}/{NAME} can't be read, and is written anew each minute: {' '.join(str(error).split())}"
        return [unsaid(name, because) for name in names]
    if reader.now() > spec.fresh_until:
        because = f"nobody has looked at the error budgets since {spec.observed_at:%Y-%m-%d %H:%M:%S} UTC"
        return [unsaid(name, because) for name in names]
    return [line_of(spec.budgets, name) for name in names]


async def write(reader: Reader, writer: Writer, metrics: Metrics, home: str, least: float) -> list[tuple[Slo, Budget]]:
    """Measure all budgets and write them down, unless another does so meanwhile: what it has seen is as new."""
    path = f"/apis/{API}/namespaces/{home}/{PLURAL}"
    # Read before Prometheus is asked: what is older is not written over what is newer.
    before = await reader.get(f"{path}/{NAME}")
    found = await observe(await load_slos(reader, home), metrics, least)
    body = status(found, reader.now(), home)
    with contextlib.suppress(ConflictError):
        if before is None:
            await writer.create(path, body)
        else:
            version = before["metadata"]["resourceVersion"]
            meta = {**body["metadata"], "resourceVersion": version}
            await writer.replace(f"{path}/{NAME}", {**body, "metadata": meta})
    return found
