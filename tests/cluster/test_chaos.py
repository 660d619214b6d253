"""Experiments on a real API server, by chaos-runner's own account."""

from collections.abc import AsyncIterator

import pytest

from kreflex.chaos.runner import Runner
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster import chaos


@pytest.fixture(scope="module")
async def ready(installed: ControlPlane) -> ControlPlane:
    """The control plane with chaos-runner's rights."""
    await chaos.install(installed)
    return installed


@pytest.fixture
async def runner(ready: ControlPlane) -> AsyncIterator[Runner]:
    async with chaos.runner(ready) as made:
        yield made


@pytest.fixture
async def shop(ready: ControlPlane) -> kit.Place:
    """A namespace that has opted in, and whose policy lets everything pass."""
    here = await kit.place(ready)
    await chaos.opt_in(here)
    return here


async def test_kills_half_of_the_pods_rounded_down_and_they_come_again(shop: kit.Place, runner: Runner) -> None:
    pods = {pod["metadata"]["uid"] for pod in await shop.deployment("cart", 3)}
    steady = {"name": "cart", "object": {"name": "cart", "path": "status.readyReplicas", "operator": ">=", "value": "3"}}
    made = await chaos.make(
        shop.plane,
        shop.name,
        fault={"kind": "PodKill"},
        amount="50%",
        probes=[{**steady, "when": ["Before", "After"]}],
    )
    ended = await chaos.play(runner, made)
    hit = [one.target.uid for one in ended.status.injected]
    assert (ended.status.phase, ended.status.verdict, ended.status.score) == ("Done", "Passed", 100.0), ended.status
    assert len(hit) == 1
    assert set(hit) <= pods
    left = {pod["metadata"]["uid"] for pod in await shop.ready_pods("cart", 3)}
    assert pods - left == set(hit)
