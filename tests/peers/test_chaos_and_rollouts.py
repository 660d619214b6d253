"""Rollouts of Argo that chaos-runner breaks, while their real controller looks after them."""

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from kreflex.chaos import experiments
from kreflex.chaos.runner import Runner
from lab import jobs, manifests, processes, rollouts
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.rollouts import PAUSE, weight
from tests import kit
from tests.cluster import chaos

STEP = kit.ROOT / "triggers" / "canary-step"


@pytest.fixture(scope="module")
async def runner(installed: ControlPlane) -> AsyncIterator[Runner]:
    await chaos.install(installed)
    await rollouts.install(installed)
    async with (
        rollouts.running(installed),
        chaos.prometheus() as healthy,
        chaos.runner(installed, prometheus_url=healthy.url) as made,
    ):
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

    await eventually(broken, f"Argo to act on {fault['kind']}", 90)
    ended = await waking
    after = await rollouts.until(api, shop.name, "cart", rollouts.healthy)
    assert (ended.status.verdict, [one.state for one in ended.status.injected]) == ("Passed", ["Reverted"]), ended
    assert (after["spec"], chaos.notes(after)) == (before["spec"], chaos.notes(before))
    assert after["status"]["stableRS"] == after["status"]["currentPodHash"] == before["status"]["stableRS"]


async def test_what_has_become_stable_is_taken_back_when_argo_has_released_what_was_before(
    shop: kit.Place, runner: Runner
) -> None:
    """The steps end while the fault lasts, so what is put back goes through all of them, and waits for a person."""
    api, path = shop.plane.api, f"{rollouts.collection(shop.name)}/cart"
    before = await rollouts.make(api, shop.name, rollouts.canary("cart", 1, [weight(100)]))
    targets = {"kind": "Rollout", "names": ["cart"]}
    fault = {"kind": "Environment", "env": {"CHAOS": "yes"}}
    made = await chaos.make(shop.plane, shop.name, fault=fault, targets=targets, duration="50s")
    waking = asyncio.create_task(chaos.play(runner, made))
    stable = before["status"]["stableRS"]
    await rollouts.until(
        api, shop.name, "cart", lambda one: rollouts.healthy(one) and one["status"]["stableRS"] != stable
    )
    await steps(shop, path, [weight(100), PAUSE])
    await api.patch(experiments.path(shop.name, made.name), {"spec": {"stop": True}})
    stood = await rollouts.until(api, shop.name, "cart", lambda one: bool(one["status"].get("pauseConditions")))

    async def told() -> bool:
        (one,) = (await chaos.read(shop.plane, shop.name)).status.injected
        return one.open and one.note.startswith("what was changed had become stable")

    await eventually(told, "word of the release", 90)
    assert (stood["status"]["currentPodHash"], stood["spec"]["template"]) == (stable, before["spec"]["template"])
    await steps(shop, path, [weight(100)])
    ended = await waking
    after = await api.get(path)
    assert ([one.state for one in ended.status.injected], after["status"]["stableRS"]) == (["Reverted"], stable)


async def steps(shop: kit.Place, path: str, wanted: list[Any]) -> None:
    """Give a Rollout other steps; Argo may miss what is written right after a write of its own, until another one."""
    await shop.plane.api.patch(path, {"spec": {"strategy": {"canary": {"steps": wanted}}}})

    async def seen() -> bool:
        await asyncio.sleep(1)
        body = await shop.plane.api.get(path)
        if rollouts.observed(body, body["metadata"]["generation"]):
            return True
        note = {"looked-for": body["metadata"]["resourceVersion"]}
        await shop.plane.api.patch(path, {"metadata": {"annotations": note}})
        return False

    await eventually(seen, "Argo to see the steps", 90)


async def test_a_rollout_that_argo_is_rolling_out_is_left_alone(shop: kit.Place, runner: Runner) -> None:
    api = shop.plane.api
    await rollouts.make(api, shop.name, rollouts.canary("cart", 2, [weight(50), PAUSE]))
    new = await rollouts.release(api, shop.name, "cart", "v2")
    made = await chaos.make(shop.plane, shop.name, fault={"kind": "ScaleToZero"}, targets={"kind": "Rollout"})
    await runner.go_on(shop.name, made.name)
    status = (await chaos.read(shop.plane, shop.name)).status
    assert (status.phase, status.guard) == ("Pending", "Unsteady")
    assert (status.reason or "").startswith(f"Rollout {shop.name}/cart: version {new} is being rolled out")


@pytest.fixture(scope="module")
async def jobs_run(installed: ControlPlane) -> AsyncIterator[None]:
    async with jobs.running(installed, ["kubectl"]):
        yield


@pytest.mark.parametrize("bears", [True, False])
async def test_a_canary_that_does_not_bear_an_experiment_is_aborted_at_its_step(
    shop: kit.Place, runner: Runner, jobs_run: None, tmp_path: Path, bears: bool
) -> None:
    """With the shipped manifests; the lab runs the command of the Job as a process, under its account."""
    api, name = shop.plane.api, "checkout"
    body = rollouts.canary(name, 2, [weight(50), rollouts.analysis("chaos")])
    await chaos.slo(shop.plane, shop.name, "checkout-availability")
    await a_step(shop, tmp_path, replicas=2 if bears else 9)
    before = await rollouts.make(api, shop.name, body)
    new = await rollouts.release(api, shop.name, name, "v2")
    carrying = asyncio.create_task(carried_on(runner, shop))
    try:
        ended = await rollouts.until(
            api, shop.name, name, lambda one: rollouts.healthy(one) or rollouts.degraded(one), 120
        )
    finally:
        carrying.cancel()
        await asyncio.gather(carrying, return_exceptions=True)
    (experiment,) = (await api.get(experiments.path(shop.name)))["items"]
    status = experiment["status"]
    assert (status["phase"], status["verdict"]) == ("Done", "Passed" if bears else "Failed"), status
    assert [one["state"] for one in status["injected"]] == ["Reverted"]
    assert rollouts.degraded(ended) is not bears
    assert ended["status"]["stableRS"] == (new if bears else before["status"]["stableRS"])


async def a_step(shop: kit.Place, folder: Path, replicas: int) -> None:
    """Apply the shipped step, but for a probe that asks for so many replicas, less to wait for, and what runs here."""
    text = "\n---\n".join((STEP / file).read_text() for file in ("rbac.yaml", "analysis.yaml"))
    bodies = list(yaml.safe_load_all(text.replace("namespace: shop", f"namespace: {shop.name}")))
    config, template = (
        next(one for one in bodies if one["kind"] == kind) for kind in ("ConfigMap", "AnalysisTemplate")
    )
    experiment = yaml.safe_load(config["data"]["experiment.yaml"])
    ready = {"kind": "Rollout", "name": "checkout", "path": "spec.replicas", "value": str(replicas)}
    probes = [{"name": "ready", "object": ready, "when": ["After"]}]
    experiment["spec"] |= {"probes": probes, "duration": "2s", "recovery": "2s"}
    file = folder / "experiment.yaml"
    await asyncio.to_thread(file.write_text, yaml.safe_dump(experiment))
    (container,) = template["spec"]["metrics"][0]["provider"]["job"]["spec"]["template"]["spec"]["containers"]
    container["command"][0] = sys.executable
    container["args"][1:4] = [str(file), "--namespace", shop.name]
    container["env"] = [{"name": key, "value": value} for key, value in processes.importable().items()]
    await manifests.apply(shop.plane.api, bodies)


async def carried_on(runner: Runner, shop: kit.Place) -> None:
    """Wake chaos-runner for what is due, as the waker does."""
    while True:
        for one in (await shop.plane.api.get(experiments.path(shop.name)))["items"]:
            await runner.go_on(shop.name, one["metadata"]["name"])
        await asyncio.sleep(0.5)
