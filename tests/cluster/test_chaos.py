"""Experiments on a real API server, by chaos-runner's own account."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kreflex.chaos.changes import value
from kreflex.chaos.runner import Runner
from lab import nodes
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster import chaos

POD = ("spec", "template", "spec", "containers", "name=app")


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
    ready = {"name": "cart", "path": "status.readyReplicas", "operator": ">=", "value": "3"}
    made = await chaos.make(
        shop.plane,
        shop.name,
        fault={"kind": "PodKill"},
        amount="50%",
        probes=[{"name": "cart", "object": ready, "when": ["Before", "After"]}],
    )
    ended = await chaos.play(runner, made)
    hit = [one.target.uid for one in ended.status.injected]
    assert (ended.status.phase, ended.status.verdict, ended.status.score) == ("Done", "Passed", 100.0), ended.status
    assert len(hit) == 1
    assert set(hit) <= pods
    left = {pod["metadata"]["uid"] for pod in await shop.ready_pods("cart", 3)}
    assert pods - left == set(hit)


CONTAINER = {
    "name": "app",
    "image": "shop:1",
    "env": [{"name": "DATABASE", "value": "main"}, {"name": "OTHER", "value": "kept"}],
    "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 7},
    "resources": {"limits": {"cpu": "500m"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
}
WORKLOADS: dict[str, tuple[dict[str, Any], tuple[str, ...], object]] = {
    "ScaleToZero": ({}, ("spec", "replicas"), 0),
    "Image": ({"image": "shop:2-crash"}, (*POD, "image"), "shop:2-crash"),
    "Environment": ({"env": {"DATABASE": "none"}}, (*POD, "env", "name=DATABASE", "value"), "none"),
    "Probe": ({}, (*POD, "readinessProbe", "tcpSocket", "port"), 1),
    "ResourceSqueeze": ({"cpu": "10m"}, (*POD, "resources", "requests", "cpu"), "10m"),
}


@pytest.mark.parametrize("kind", WORKLOADS)
async def test_a_changed_workload_is_as_before_in_the_end(shop: kit.Place, runner: Runner, kind: str) -> None:
    given, field, wanted = WORKLOADS[kind]
    await shop.deployment("cart", 1, containers=[CONTAINER])
    path = f"/apis/apps/v1/namespaces/{shop.name}/deployments/cart"
    before = await shop.plane.api.get(path)
    made = await chaos.make(shop.plane, shop.name, fault={"kind": kind, **given}, duration="3s")
    waking = asyncio.create_task(chaos.play(runner, made))
    during = await eventually(lambda: chaos.injected(shop.plane, path), "the fault", 20)
    ended, after = await waking, await shop.plane.api.get(path)
    assert value(during, field) == wanted
    assert [one.state for one in ended.status.injected] == ["Reverted"], ended.status
    assert (ended.status.phase, ended.status.verdict, ended.status.score) == ("Done", "Passed", None)
    assert after["spec"] == before["spec"]
    assert chaos.notes(after) == chaos.notes(before)


async def test_a_config_map_gets_its_values_back(shop: kit.Place, runner: Runner) -> None:
    path = f"/api/v1/namespaces/{shop.name}/configmaps/cart"
    body = {"metadata": {"name": "cart", "annotations": {"mine": "yes"}}, "data": {"url": "http://db", "kept": "yes"}}
    await shop.plane.api.post(path.rpartition("/")[0], body)
    made = await chaos.make(
        shop.plane,
        shop.name,
        fault={"kind": "Configuration", "data": {"url": "http://nowhere", "new": "one"}},
        targets={"names": ["cart"]},
        duration="3s",
    )
    waking = asyncio.create_task(chaos.play(runner, made))
    during = await eventually(lambda: chaos.injected(shop.plane, path), "the fault", 20)
    ended, after = await waking, await shop.plane.api.get(path)
    assert during["data"] == {"url": "http://nowhere", "new": "one", "kept": "yes"}
    assert [one.state for one in ended.status.injected] == ["Reverted"], ended.status
    assert (after["data"], after["metadata"]["annotations"]) == (body["data"], {"mine": "yes"})


async def test_pods_are_cut_off_by_a_policy_that_goes_with_the_mark(shop: kit.Place, runner: Runner) -> None:
    before = [pod["metadata"]["labels"] for pod in await shop.deployment("cart", 2)]
    made = await chaos.make(shop.plane, shop.name, fault={"kind": "NetworkIsolation"}, duration="3s")
    waking = asyncio.create_task(chaos.play(runner, made))
    policies = f"/apis/networking.k8s.io/v1/namespaces/{shop.name}/networkpolicies"

    async def cut_off() -> list[kit.Json]:
        pods = await shop.pods("cart")
        marked = [one for one in pods if "kreflex.dev/chaos-isolated" in one["metadata"]["labels"]]
        return marked if (await shop.plane.api.get(policies))["items"] else []

    (marked,) = await eventually(cut_off, "a pod that is cut off", 20)
    (policy,) = (await shop.plane.api.get(policies))["items"]
    ended = await waking
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    assert chosen.items() <= marked["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert [one.state for one in ended.status.injected] == ["Reverted"], ended.status
    assert (await shop.plane.api.get(policies))["items"] == []
    assert [pod["metadata"]["labels"] for pod in await shop.pods("cart")] == before


async def test_a_node_is_drained_and_gets_pods_again(ready: ControlPlane, runner: Runner) -> None:
    pool = nodes.Pool(f"chaos-{uuid.uuid4().hex[:6]}", labels=chaos.ALLOWED)
    (name,) = await nodes.add(ready.api, 1, pool)
    here = await kit.place(ready)
    await here.deployment("cart", 2, nodeSelector={"kubernetes.io/hostname": name})
    await ready.api.apply(*chaos.home_policy())
    wanted = {"fault": {"kind": "NodeDrain"}, "targets": {"names": [name, "node-0"]}, "amount": "100%"}
    made = await chaos.make(ready, "kreflex-system", name, **wanted, duration="3s")
    ended = await chaos.play(runner, made)
    after = await ready.api.get(f"/api/v1/nodes/{name}")
    await ready.api.delete(f"/api/v1/nodes/{name}")
    assert [(one.target.name, one.state) for one in ended.status.injected] == [(name, "Reverted")], ended.status
    assert len(set(here.evictions())) == 2
    assert not after["spec"].get("unschedulable")
    assert chaos.notes(after) == {}


async def test_a_leader_loses_a_lease_that_has_opted_in_by_itself(ready: ControlPlane, runner: Runner) -> None:
    name = f"leader-{uuid.uuid4().hex[:6]}"
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
    spec = {"holderIdentity": "someone", "leaseDurationSeconds": 15}
    await ready.api.post(path, {"metadata": {"name": name, "labels": chaos.ALLOWED}, "spec": spec})
    await ready.api.post(path, {"metadata": {"name": f"{name}-other"}, "spec": spec})
    await ready.api.apply(*chaos.home_policy())
    made = await chaos.make(
        ready,
        "kreflex-system",
        name,
        fault={"kind": "LeaderLoss"},
        targets={"names": [name, f"{name}-other"]},
        amount="100%",
        duration="2s",
    )
    waking = asyncio.create_task(chaos.play(runner, made))
    during = await eventually(lambda: chaos.injected(ready, f"{path}/{name}"), "the fault", 20)
    ended, after = await waking, await ready.api.get(f"{path}/{name}")
    assert during["spec"]["holderIdentity"] == f"kreflex-chaos/{name}"
    assert [one.target.name for one in ended.status.injected] == [name]
    assert (after["spec"].get("holderIdentity", ""), chaos.notes(after)) == ("", {})
    assert (await ready.api.get(f"{path}/{name}-other"))["spec"]["holderIdentity"] == "someone"
