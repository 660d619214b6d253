"""chaos-runner makes an engine's object where new faults are kept out: by its own account, with what is shipped."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kreflex import budgetstatus
from kreflex.budgets import Budget
from kreflex.chaos import experiments
from kreflex.chaos.experiments import Experiment
from kreflex.chaos.runner import Terms
from kreflex.sloformats import Slo
from lab import chaos_engines, manifests
from lab.api import Refused, eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster import chaos

HOME = "kreflex-system"
STATUS = f"/apis/kreflex.dev/v1alpha1/namespaces/{HOME}/errorbudgetstatuses/{budgetstatus.NAME}"
HEALTHY = Budget(0.85, "none", "SLO cart: 85% of the error budget of 30d is left")
SPENT = Budget(0.12, "none", "SLO cart: 12% of the error budget of 30d is left, below 20%")
# Whoever meets another's change lets go of an experiment, and holds it for so long nevertheless.
HASTY = Terms(timedelta(seconds=2), timedelta(seconds=25), frozenset())
ENV = [{"name": "TARGET_NODE", "value": "node-7"}]
ENGINE = {
    "kind": "ChaosEngine",
    "spec": {"experiments": [{"name": "kubelet-service-kill", "spec": {"components": {"env": ENV}}}]},
}


@pytest.fixture(scope="module")
async def gated(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A control plane with chaos-runner, LitmusChaos' kinds, and the gate."""
    async with ControlPlane(tmp_path_factory.mktemp("gated")) as plane:
        await kit.install(plane)
        await chaos.install(plane)
        await chaos_engines.install(plane)
        await plane.api.post("/api/v1/nodes", {"metadata": {"name": "node-7", "labels": chaos.ALLOWED}})
        await manifests.apply(plane.api, manifests.read(kit.ROOT / "knative" / "error-budget" / "admission.yaml"))
        yield plane


@pytest.fixture
async def shop(gated: ControlPlane) -> kit.Place:
    here = await kit.place(gated)
    await chaos.opt_in(here)
    return here


async def write(shop: kit.Place, budget: Budget) -> None:
    """Write down what is known of the namespace's budget; both policies go by it when this returns."""
    body = budgetstatus.status([(Slo(shop.name, "cart", "cart", "SLO"), budget)], datetime.now(UTC), HOME)
    await shop.plane.api.apply(STATUS, body)
    wanted = "" if budget.healthy else "is spent"
    await eventually(lambda: answered(shop, wanted), "the status seen")


async def answered(shop: kit.Place, wanted: str) -> bool:
    told = await denied(shop, {"metadata": {"name": "probe"}, "spec": ENGINE["spec"]})
    return wanted in told if wanted else told == ""


async def denied(shop: kit.Place, body: kit.Json) -> str:
    """Try to make an engine; what is said against it."""
    path = f"/apis/litmuschaos.io/v1alpha1/namespaces/{shop.name}/chaosengines?dryRun=All"
    try:
        await shop.plane.api.post(path, {"apiVersion": "litmuschaos.io/v1alpha1", "kind": "ChaosEngine", **body})
    except Refused as refusal:
        return str(refusal)
    return ""


@asynccontextmanager
async def litmus(shop: kit.Place) -> AsyncIterator[list[str]]:
    """LitmusChaos at work; the nodes that it has silenced."""
    silent: list[str] = []

    async def silence(names: list[str]) -> None:
        silent.extend(names)

    async def heal(names: list[str]) -> None:
        silent[:] = [name for name in silent if name not in names]

    async with chaos_engines.litmus(shop.plane, silence, heal):
        yield silent


async def make(shop: kit.Place, **spec: Any) -> Experiment:
    fault = {"kind": "Engine", "engine": ENGINE}
    return await chaos.make(shop.plane, shop.name, fault=fault, targets={"selector": {}}, **spec)


async def hit(silent: list[str]) -> bool:
    return silent == ["node-7"]


@contextmanager
def ended(waking: "asyncio.Task[Any]") -> Iterator[None]:
    """Let no task outlive its test."""
    try:
        yield
    finally:
        waking.cancel()


async def left(shop: kit.Place) -> list[kit.Json]:
    return list((await shop.plane.api.get(chaos_engines.ENGINES))["items"])


async def test_an_engine_is_ended_when_the_budget_is_spent_and_none_is_made_then(shop: kit.Place) -> None:
    await write(shop, HEALTHY)
    async with (
        litmus(shop) as silent,
        chaos.prometheus() as prometheus,
        chaos.runner(shop.plane, prometheus_url=prometheus.url, terms=HASTY) as runner,
    ):
        budget = {"budget": {"slo": await chaos.slo(shop.plane, shop.name, "cart")}, "withoutBudget": None}
        made = await make(shop, duration="50s", **budget)
        waking = asyncio.create_task(chaos.play(runner, made))
        with ended(waking):
            await eventually(lambda: hit(silent), "the engine's fault", 90)
            await write(shop, SPENT)
            prometheus.errors = 0.5
            over = await waking
        assert (over.status.phase, over.status.verdict) == ("Aborted", "Failed"), over.status
        assert (over.status.aborted or "").startswith("ErrorBudget: Spent: ")
        assert (silent, await left(shop)) == ([], [])
        with pytest.raises(Refused, match="no new faults while the error budget is spent"):
            await chaos.make(shop.plane, shop.name, "again", fault={"kind": "PodKill"}, withoutBudget=None)


async def test_who_may_say_that_no_budget_is_asked_gets_his_engine_and_gets_rid_of_it(shop: kit.Place) -> None:
    await write(shop, SPENT)
    async with litmus(shop) as silent, chaos.runner(shop.plane, terms=HASTY) as runner:
        waking = asyncio.create_task(chaos.play(runner, await make(shop, duration="50s")))
        with ended(waking):
            await eventually(lambda: hit(silent), "the engine's fault", 90)
            # From here on nobody knows of any budget.
            await shop.plane.api.delete(STATUS)
            await shop.plane.api.patch(experiments.path(shop.name, "storm"), {"spec": {"stop": True}})
            over = await waking
        assert (over.status.phase, over.status.aborted) == ("Aborted", "Stopped: spec.stop says so")
        assert (silent, await left(shop)) == ([], [])
        await shop.plane.api.delete(experiments.path(shop.name, "storm"))
        assert await shop.plane.api.find(experiments.path(shop.name, "storm")) is None
