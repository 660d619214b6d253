"""Rollouts of Argo that chaos-runner breaks, while their real controller looks after them."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kreflex.chaos.runner import Runner
from lab import rollouts
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.rollouts import PAUSE, weight
from tests import kit
from tests.cluster import chaos


@pytest.fixture(scope="module")
async def runner(installed: ControlPlane) -> AsyncIterator[Runner]:
    await chaos.install(installed)
    await rollouts.install(installed)
    async with rollouts.running(installed), chaos.runner(installed) as made:
        yield made


@pytest.fixture
async def shop(runner: Runner, here: kit.Place) -> kit.Place:
    await chaos.opt_in(here)
    return here


@pytest.mark.parametrize(
    ("fault", "field", "wanted"),
    [
        ({"kind": "Image", "image": "lab.local/app:2-crash"}, "currentPodHash", "another"),
        ({"kind": "ScaleToZero"}, "replicas", None),
    ],
)
async def test_a_rollout_is_broken_and_as_before_in_the_end(
    shop: kit.Place, runner: Runner, fault: dict[str, Any], field: str, wanted: str | None
) -> None:
    api, path = shop.plane.api, f"{rollouts.collection(shop.name)}/cart"
    before = await rollouts.make(api, shop.name, rollouts.canary("cart", 2, [weight(50), PAUSE]))
    targets = {"kind": "Rollout", "names": ["cart"]}
    made = await chaos.make(shop.plane, shop.name, fault=fault, targets=targets, duration="6s")
    waking = asyncio.create_task(chaos.play(runner, made))

    async def broken() -> bool:
        seen = (await api.get(path))["status"].get(field) or None
        return bool(seen != before["status"].get(field) if wanted else seen is None)

    await eventually(broken, f"Argo to act on {fault['kind']}", 20)
    ended = await waking
    after = await rollouts.until(api, shop.name, "cart", rollouts.healthy)
    assert (ended.status.verdict, [one.state for one in ended.status.injected]) == ("Passed", ["Reverted"]), ended
    assert (after["spec"], chaos.notes(after)) == (before["spec"], chaos.notes(before))
    assert after["status"]["stableRS"] == after["status"]["currentPodHash"] == before["status"]["stableRS"]


async def test_a_rollout_that_argo_is_rolling_out_is_left_alone(shop: kit.Place, runner: Runner) -> None:
    api = shop.plane.api
    await rollouts.make(api, shop.name, rollouts.canary("cart", 2, [weight(50), PAUSE]))
    new = await rollouts.release(api, shop.name, "cart", "v2")
    made = await chaos.make(shop.plane, shop.name, fault={"kind": "ScaleToZero"}, targets={"kind": "Rollout"})
    await runner.go_on(shop.name, made.name)
    status = (await chaos.read(shop.plane, shop.name)).status
    assert (status.phase, status.guard) == ("Pending", "Unsteady")
    assert (status.reason or "").startswith(f"Rollout {shop.name}/cart: version {new} is being rolled out")
