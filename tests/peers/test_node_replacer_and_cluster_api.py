"""node-replacer and Cluster API on one control plane: the one deletes a Machine, the other makes its successor."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from kreflex.nodes import MARK
from lab import machines, nodes
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.peers.replacer import Replacer, falls_ill, outcome, replacing, steps

Json = dict[str, Any]
CLUSTER = "blue"
HOSTNAME = "kubernetes.io/hostname"


@dataclass(frozen=True)
class Fleet:
    """A Cluster whose nodes the function watches over."""

    plane: ControlPlane
    place: kit.Place
    replacer: Replacer

    async def pool(self, name: str, replicas: int = 2) -> tuple[str, Json]:
        """Make a MachineDeployment; one of its Ready nodes, and the Machine of that."""
        found = await machines.make_pool(self.plane, self.place.name, CLUSTER, name, replicas)
        node = min(found, key=lambda one: one["metadata"]["name"])
        machine = await self.plane.api.get(f"{self.path}/machines/{node['metadata']['annotations'][machines.MACHINE]}")
        return node["metadata"]["name"], machine

    @property
    def path(self) -> str:
        return f"{machines.CLUSTER_API}/namespaces/{self.place.name}"

    async def pods_on(self, pool: str, node: str) -> list[str]:
        """Run two pods on a node whose app may go to the pool's others, too; their UIDs."""
        # Where they begin is a wish, so that they can begin again elsewhere.
        wish = {"matchExpressions": [{"key": HOSTNAME, "operator": "In", "values": [node]}]}
        affinity = {
            "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": wish}]}
        }
        pods = await self.place.deployment(pool, 2, affinity=affinity)
        assert {pod["spec"]["nodeName"] for pod in pods} == {node}
        return sorted(pod["metadata"]["uid"] for pod in pods)

    async def machine_names(self, pool: str) -> set[str]:
        found = await machines.machines(self.plane, self.place.name, pool)
        return {one["metadata"]["name"] for one in found}

    async def left_alone(self, node: str, machine: Json, record: Json) -> None:
        """See that nothing was begun."""
        assert steps(record) == []
        assert self.replacer.wrote(node, machine["metadata"]["name"]) == []
        body = await self.plane.api.get(f"/api/v1/nodes/{node}")
        assert not body["spec"].get("unschedulable")
        assert MARK not in body["metadata"]["annotations"]


@pytest.fixture(scope="module")
async def fleet(installed: ControlPlane) -> AsyncIterator[Fleet]:
    """A Cluster of Cluster API, into which each test puts a pool of its own."""
    async with machines.running(installed), replacing(installed) as replacer:
        place = await kit.place(installed)
        await machines.make_cluster(installed, place.name, CLUSTER)
        yield Fleet(installed, place, replacer)
        await machines.remove_cluster(installed, place.name, CLUSTER)


async def test_the_machine_of_an_ill_node_is_deleted_and_its_set_makes_another(fleet: Fleet) -> None:
    node, machine = await fleet.pool("ill")
    pods = await fleet.pods_on("ill", node)
    await falls_ill(fleet.plane, node, "kernel-deadlock", "KernelDeadlock", "True")
    await fleet.replacer.woken(node)
    record = await fleet.replacer.settled(node)
    assert (record["status"]["verdict"], steps(record)) == ("Recovered", ["CordonNode", "EvictPods", "DeleteMachine"])
    (deletion,) = [one for one in fleet.replacer.wrote(machine["metadata"]["name"]) if one["verb"] == "delete"]
    assert deletion["requestObject"]["preconditions"]["uid"] == machine["metadata"]["uid"]
    assert sorted(set(fleet.place.evictions()) & set(pods)) == pods
    left = await machines.ready_nodes(fleet.plane, fleet.place.name, "ill", 2)
    assert node not in {one["metadata"]["name"] for one in left}
    await fleet.place.ready_pods("ill", 2)


async def test_the_machine_of_a_silent_node_is_deleted_without_a_drain(fleet: Fleet) -> None:
    node, machine = await fleet.pool("silent")
    await falls_ill(fleet.plane, node, nodes.SILENT, "Ready", "Unknown")
    await fleet.replacer.woken(node)
    record = await fleet.replacer.settled(node)
    assert (record["status"]["verdict"], steps(record)) == ("Recovered", ["CordonNode", "DeleteMachine"])
    assert machine["metadata"]["name"] not in await fleet.machine_names("silent")
    assert len(await machines.ready_nodes(fleet.plane, fleet.place.name, "silent", 2)) == 2


async def test_a_machine_that_nothing_controls_keeps_its_node(fleet: Fleet) -> None:
    node, machine = await fleet.pool("alone")
    await disown(fleet, machine)
    await falls_ill(fleet.plane, node, "not-ready", "Ready", "False")
    record = await fleet.replacer.woken(node)
    assert outcome(record) == ("refused", "Replacement")
    assert "so nothing would make a successor" in record["status"]["reason"]
    await fleet.left_alone(node, machine, record)
    await nodes.heal_node(fleet.plane.api, node)


async def test_no_machine_of_a_paused_cluster_is_touched_until_it_goes_on(fleet: Fleet) -> None:
    node, machine = await fleet.pool("paused")
    cluster = f"{fleet.path}/clusters/{CLUSTER}"
    await fleet.plane.api.patch(cluster, {"spec": {"paused": True}})
    try:
        await falls_ill(fleet.plane, node, "not-ready", "Ready", "False")
        record = await fleet.replacer.woken(node)
        assert outcome(record) == ("refused", "Replacement")
        assert "is paused" in record["status"]["reason"]
        await fleet.left_alone(node, machine, record)
    finally:
        await fleet.plane.api.patch(cluster, {"spec": {"paused": None}})
    await eventually(lambda: goes_on(fleet, machine), "a Machine that is no longer paused")
    await fleet.replacer.woken(node)
    assert (await fleet.replacer.settled(node))["status"]["verdict"] == "Recovered"


async def disown(fleet: Fleet, machine: Json) -> None:
    """Make a Machine one that nothing controls, as those are that people make by hand."""
    path = f"{fleet.path}/machines/{machine['metadata']['name']}"
    keys = ("cluster.x-k8s.io/deployment-name", "cluster.x-k8s.io/set-name", "machine-template-hash")
    await fleet.plane.api.patch(path, {"metadata": {"ownerReferences": None, "labels": dict.fromkeys(keys)}})

    async def alone() -> bool:
        owners = (await fleet.plane.api.get(path))["metadata"].get("ownerReferences", [])
        return bool(owners) and not any(owner.get("controller") for owner in owners)

    await eventually(alone, "a Machine that its Cluster has taken on")


async def goes_on(fleet: Fleet, machine: Json) -> bool:
    body = await fleet.plane.api.get(f"{fleet.path}/machines/{machine['metadata']['name']}")
    return nodes.condition(body, "Paused") == "False"
