"""node-replacer and Karpenter on one control plane: the one empties nodes and proves, the other makes machines."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from lab import audit, karpenter, nodes, workloads
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.peers.replacer import Replacer, falls_ill, outcome, replacing, steps

Json = dict[str, Any]
WORK: Json = {"containers": [{"name": "app", "image": "shop:1", "resources": {"requests": {"cpu": "1500m"}}}]}
"""Two pods of these fit on a machine of four processors."""
FUNCTION = "system:serviceaccount:kreflex-system:node-replacer"


@dataclass(frozen=True)
class Shop:
    """Four pods on two nodes of one pool, and the function that watches over these."""

    place: kit.Place
    replacer: Replacer
    pods: list[Json]

    @property
    def plane(self) -> ControlPlane:
        return self.place.plane

    @property
    def node(self) -> str:
        """The node that falls ill."""
        names: list[str] = [pod["spec"]["nodeName"] for pod in self.pods]
        return min(names)

    @property
    def on_node(self) -> list[str]:
        """The UIDs of the pods that were on it at first."""
        return sorted(pod["metadata"]["uid"] for pod in self.pods if pod["spec"]["nodeName"] == self.node)

    async def claims(self) -> dict[str, Json]:
        """The pool's NodeClaims, by the names of their nodes."""
        selector = f"{karpenter.POOL}={self.place.name}"
        items = (await self.plane.api.get(karpenter.NODE_CLAIMS, labelSelector=selector))["items"]
        return {one.get("status", {}).get("nodeName", ""): one for one in items}

    async def guarded(self, most: int) -> None:
        """Let so many pods be disrupted at a time, and wait until that holds."""
        path = f"/apis/policy/v1/namespaces/{self.place.name}/poddisruptionbudgets"
        await self.plane.api.post(path, workloads.budget("shop", maxUnavailable=most))

        async def holds() -> bool:
            status = (await self.plane.api.get(f"{path}/shop")).get("status", {})
            return bool(status.get("currentHealthy") == len(self.pods))

        await eventually(holds, "the budget of the shop")

    async def moved(self) -> None:
        """See all pods Ready, on nodes that are there, and none where the ill node was."""
        pods = await self.place.ready_pods("shop", len(self.pods))
        assert {pod["spec"]["nodeName"] for pod in pods} <= (await self.claims()).keys() - {self.node}

    async def untouched(self, record: Json) -> None:
        """See that the function has written nothing but its record."""
        assert steps(record) == []
        assert self.replacer.wrote(self.node, (await self.claims())[self.node]["metadata"]["name"]) == []


@asynccontextmanager
async def shop(plane: ControlPlane, place: kit.Place, *gates: str) -> AsyncIterator[Shop]:
    async with karpenter.running(plane, *gates), replacing(plane) as replacer:
        await plane.api.post(karpenter.NODE_POOLS, karpenter.node_pool(place.name))
        pods = await place.deployment("shop", 4, **WORK, **karpenter.placement(place.name))
        assert len({pod["spec"]["nodeName"] for pod in pods}) == 2
        await asyncio.sleep(1.5)  # So that the nodes are no longer starting when they fall ill.
        yield Shop(place, replacer, pods)


@pytest.fixture(scope="module")
async def with_karpenter(installed: ControlPlane) -> ControlPlane:
    await karpenter.install(installed)
    return installed


@pytest.fixture
async def place(with_karpenter: ControlPlane) -> kit.Place:
    """A namespace of this test's own."""
    return await kit.place(with_karpenter)


@pytest.fixture
async def here(with_karpenter: ControlPlane, place: kit.Place) -> AsyncIterator[Shop]:
    """A shop on Karpenter's nodes, which it does not repair by itself."""
    async with shop(with_karpenter, place) as made:
        yield made


async def test_a_node_is_emptied_within_its_budget_and_karpenter_makes_another(here: Shop) -> None:
    await here.guarded(1)
    claim = (await here.claims())[here.node]
    await falls_ill(here.plane, here.node, "kernel-deadlock", "KernelDeadlock", "True")
    async with fewest_ready(here) as fewest:
        await here.replacer.woken(here.node)
        record = await here.replacer.settled(here.node)
    assert (record["status"]["verdict"], steps(record)) == ("Recovered", ["CordonNode", "EvictPods", "DeleteNodeClaim"])
    assert fewest == [3]
    assert sorted(here.place.evictions()) == here.on_node
    assert evictors(here) == {FUNCTION}
    await here.moved()
    (deletion,) = deletions(here, claim)
    assert deletion["requestObject"]["preconditions"]["uid"] == claim["metadata"]["uid"]


async def test_a_node_that_is_not_ready_is_replaced_and_its_pods_move(here: Shop) -> None:
    await falls_ill(here.plane, here.node, "not-ready", "Ready", "False")
    await here.replacer.woken(here.node)
    record = await here.replacer.settled(here.node)
    assert (record["status"]["verdict"], steps(record)) == ("Recovered", ["CordonNode", "EvictPods", "DeleteNodeClaim"])
    assert sorted(here.place.evictions()) == here.on_node
    await here.moved()


async def test_a_silent_node_is_replaced_and_its_pods_get_another_at_once(here: Shop) -> None:
    await falls_ill(here.plane, here.node, nodes.SILENT, "Ready", "Unknown")
    record = await here.replacer.woken(here.node)
    assert steps(record) == ["CordonNode", "EvictPods", "DeleteNodeClaim"]
    assert sorted(here.place.evictions()) == here.on_node
    # Those that were evicted are still there: nobody can end them before the pod garbage collector does.
    await eventually(lambda: successors_are_ready(here), "Ready successors", 90)
    assert (await here.replacer.settled(here.node))["status"]["verdict"] == "Recovered"
    await here.moved()


async def test_a_budget_does_not_keep_a_silent_node_and_nothing_is_proven_before_its_pods_have_moved(
    here: Shop,
) -> None:
    await here.guarded(1)
    await falls_ill(here.plane, here.node, nodes.SILENT, "Ready", "Unknown")
    await here.replacer.woken(here.node)
    record = await here.replacer.settled(here.node)
    assert (record["status"]["verdict"], steps(record)) == ("Recovered", ["CordonNode", "EvictPods", "DeleteNodeClaim"])
    assert here.place.evictions() == []
    await here.moved()


async def test_a_node_that_karpenter_is_emptying_is_left_to_it(here: Shop) -> None:
    await here.guarded(0)
    claim = (await here.claims())[here.node]
    await falls_ill(here.plane, here.node, "kernel-deadlock", "KernelDeadlock", "True")
    await here.plane.api.delete(f"{karpenter.NODE_CLAIMS}/{claim['metadata']['name']}")
    await eventually(lambda: is_disrupted(here), "the taint of a node that is being emptied")
    record = await here.replacer.woken(here.node)
    assert outcome(record) == ("refused", "Replacement")
    assert "Karpenter is taking it away" in record["status"]["reason"]
    await here.untouched(record)


async def test_a_node_that_karpenter_itself_repairs_is_left_to_it(
    with_karpenter: ControlPlane, place: kit.Place
) -> None:
    async with shop(with_karpenter, place, karpenter.NODE_REPAIR) as here:
        await turns_unhealthy(here)
        await eventually(lambda: is_disrupted(here), "the taint of a node that is being repaired", 90)
        record = await here.replacer.woken(here.node)
        assert outcome(record) == ("refused", "Replacement")
        assert "Karpenter itself is at work on it: DisruptionReason Unhealthy" in record["status"]["reason"]
        assert steps(record) == []
        await eventually(lambda: is_gone(here), "the end of the node", 60)
        await here.moved()
        assert here.replacer.wrote(here.node) == []


async def test_a_node_that_nobody_is_to_repair_is_left_alone(here: Shop) -> None:
    note = {"metadata": {"annotations": {"karpenter.sh/do-not-repair": "true"}}}
    await here.plane.api.patch(f"/api/v1/nodes/{here.node}", note)
    await falls_ill(here.plane, here.node, "not-ready", "Ready", "False")
    record = await here.replacer.woken(here.node)
    assert outcome(record) == ("refused", "Replacement")
    assert "the node has the annotation karpenter.sh/do-not-repair" in record["status"]["reason"]
    await here.untouched(record)


async def test_a_claim_that_nobody_is_to_repair_keeps_its_node(here: Shop) -> None:
    claim = (await here.claims())[here.node]["metadata"]["name"]
    note = {"metadata": {"annotations": {"karpenter.sh/do-not-repair": "true"}}}
    await here.plane.api.patch(f"{karpenter.NODE_CLAIMS}/{claim}", note)
    await falls_ill(here.plane, here.node, "not-ready", "Ready", "False")
    record = await here.replacer.woken(here.node)
    assert outcome(record) == ("refused", "Replacement")
    assert f"NodeClaim {claim} has the annotation karpenter.sh/do-not-repair" in record["status"]["reason"]
    await here.untouched(record)


@asynccontextmanager
async def fewest_ready(here: Shop) -> AsyncIterator[list[int]]:
    """Count Ready pods until the end of the block; the least number is there then."""
    fewest: list[int] = []

    async def count() -> None:
        while True:
            ready = sum(kit.is_ready(pod) for pod in await here.place.pods("shop"))
            fewest[:] = [min([ready, *fewest])]
            await asyncio.sleep(0.05)

    counting = asyncio.create_task(count())
    try:
        yield fewest
    finally:
        counting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await counting


async def is_disrupted(here: Shop) -> bool:
    """Whether Karpenter's taint is on the node."""
    taints = (await here.plane.api.get(f"/api/v1/nodes/{here.node}"))["spec"].get("taints", [])
    return any(taint["key"] == "karpenter.sh/disrupted" for taint in taints)


async def successors_are_ready(here: Shop) -> bool:
    """Whether as many pods as there were are Ready on nodes that are there, besides those that can't end."""
    there = (await here.claims()).keys() - {here.node}
    ready = [pod for pod in await here.place.pods("shop") if kit.is_ready(pod) and pod["spec"]["nodeName"] in there]
    return len(ready) == len(here.pods)


async def is_gone(here: Shop) -> bool:
    return await here.plane.api.find(f"/api/v1/nodes/{here.node}") is None


async def turns_unhealthy(here: Shop) -> None:
    """Let the node show the condition for which the KWOK provider has a policy of half a minute."""
    path = f"/api/v1/nodes/{here.node}"
    now = karpenter.deadline(datetime.now(UTC))
    ill = {"type": "KWOKUnhealthy", "status": "True", "reason": "Test", "lastTransitionTime": now}
    conditions = [*(await here.plane.api.get(path))["status"]["conditions"], ill]
    await here.plane.api.patch(f"{path}/status", {"status": {"conditions": conditions}})


def evictors(here: Shop) -> set[str]:
    """Who has evicted pods of the shop."""
    return {
        entry["user"]["username"]
        for entry in audit.entries(here.plane.audit_log)
        if entry["objectRef"].get("subresource") == "eviction"
        and entry["objectRef"]["namespace"] == here.place.name
        and entry["responseStatus"]["code"] < 300
    }


def deletions(here: Shop, claim: Json) -> list[Json]:
    """The function's deletions of a NodeClaim."""
    return [entry for entry in here.replacer.wrote(claim["metadata"]["name"]) if entry["verb"] == "delete"]
