"""What Cluster API's own controllers do with Machines, on which the replacement of nodes is built."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab import machines, nodes
from lab.api import Refused, eventually
from lab.cluster import ControlPlane
from tests import kit

Json = dict[str, Any]
CLUSTER = "blue"
PAUSED = "cluster.x-k8s.io/paused"
UNDRAINED = "machine.cluster.x-k8s.io/exclude-node-draining"
REMEDIATE = "cluster.x-k8s.io/remediate-machine"
LONG_ENOUGH = 5.0
"""In so many seconds a Machine without pods is gone, and its successor is made."""


@dataclass
class Fleet:
    """A Cluster in a namespace of its own."""

    plane: ControlPlane
    cloud: machines.Cloud
    namespace: str

    async def pool(self, name: str, replicas: int = 2, **machine: Any) -> list[Json]:
        """Make a MachineDeployment; its Ready nodes."""
        return await machines.make_pool(self.plane, self.namespace, CLUSTER, name, replicas, **machine)

    async def machines(self, pool: str) -> list[Json]:
        return await machines.machines(self.plane, self.namespace, pool)

    async def machine_of(self, node: Json, version: str = "v1beta2") -> Json:
        """Find a node's Machine as its annotations tell it."""
        notes = node["metadata"]["annotations"]
        home = f"/apis/cluster.x-k8s.io/{version}/namespaces/{notes['cluster.x-k8s.io/cluster-namespace']}"
        return await self.plane.api.get(f"{home}/machines/{notes[machines.MACHINE]}")

    def path(self, machine: Json) -> str:
        return f"{machines.CLUSTER_API}/namespaces/{self.namespace}/machines/{machine['metadata']['name']}"

    async def delete(self, machine: Json) -> None:
        await self.plane.api.delete(self.path(machine), {"preconditions": {"uid": machine["metadata"]["uid"]}})

    async def annotate(self, machine: Json, **notes: str | None) -> None:
        await self.plane.api.patch(self.path(machine), {"metadata": {"annotations": notes}})

    async def deleting(self, machine: Json, reason: str) -> None:
        """Wait until the deletion of a Machine has come so far."""

        async def there() -> bool:
            found = nodes.whole_condition(await self.plane.api.get(self.path(machine)), "Deleting")
            return found is not None and found["reason"] == reason

        await eventually(there, f"{machine['metadata']['name']} at {reason}", 90)

    async def replaced(self, pool: str, machine: Json, replicas: int = 2) -> list[Json]:
        """Wait until another Machine with a Ready node has taken the place of one that was deleted; the nodes."""

        async def gone() -> bool:
            return machine["metadata"]["uid"] not in {one["metadata"]["uid"] for one in await self.machines(pool)}

        await eventually(gone, f"the end of {machine['metadata']['name']}", 60)
        return await machines.ready_nodes(self.plane, self.namespace, pool, replicas)

    async def occupy(self, node: Json, app: str, **spec: Any) -> None:
        """Run a pod that only this node may have, and that no eviction may take."""
        selector = {"kubernetes.io/hostname": name_of(node)}
        body = kit.deployment(app, 1, nodeSelector=selector, **spec)
        await self.plane.api.post(f"/apis/apps/v1/namespaces/{self.namespace}/deployments", body)
        budget = {"minAvailable": 1, "selector": {"matchLabels": {"app": app}}}
        budgets = f"/apis/policy/v1/namespaces/{self.namespace}/poddisruptionbudgets"
        await self.plane.api.post(budgets, {"metadata": {"name": app}, "spec": budget})

        async def protected() -> bool:
            return bool((await self.plane.api.get(f"{budgets}/{app}")).get("status", {}).get("currentHealthy"))

        await eventually(protected, f"a Ready pod of {app}")


def name_of(thing: Json) -> str:
    name: str = thing["metadata"]["name"]
    return name


def names(things: list[Json]) -> set[str]:
    return {name_of(one) for one in things}


@pytest.fixture(scope="module")
async def cloud(plane: ControlPlane) -> AsyncIterator[machines.Cloud]:
    """Cluster API and its cloud, running."""
    async with machines.running(plane) as running:
        yield running


@pytest.fixture(scope="module")
async def fleet(plane: ControlPlane, cloud: machines.Cloud) -> AsyncIterator[Fleet]:
    """A Cluster, into which each test puts a pool of its own."""
    namespace = f"fleet-{uuid.uuid4().hex[:8]}"
    await plane.api.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    await machines.make_cluster(plane, namespace, CLUSTER)
    yield Fleet(plane, cloud, namespace)
    await machines.remove_cluster(plane, namespace, CLUSTER)


async def test_a_machine_deployment_gives_ready_nodes_that_name_their_machine_and_its_owner(fleet: Fleet) -> None:
    found = await fleet.pool("two")

    assert len(found) == 2
    for node in found:
        machine = await fleet.machine_of(node)
        (owner,) = machine["metadata"]["ownerReferences"]
        notes = node["metadata"]["annotations"]
        assert machine["status"]["nodeRef"] == {"name": name_of(node)}
        assert machine["spec"]["providerID"] == node["spec"]["providerID"]
        assert (notes["cluster.x-k8s.io/owner-kind"], notes["cluster.x-k8s.io/owner-name"]) == (
            "MachineSet",
            owner["name"],
        )
        assert owner["controller"]
        assert machine["metadata"]["labels"][machines.DEPLOYMENT] == "two"


async def test_a_deleted_machine_is_replaced_by_another_with_another_node(fleet: Fleet) -> None:
    old, other = await fleet.pool("replaced")
    machine = await fleet.machine_of(old)

    await fleet.delete(machine)
    now = await fleet.replaced("replaced", machine)

    assert name_of(other) in names(now)
    assert name_of(old) not in names(now)
    assert await fleet.plane.api.find(f"/api/v1/nodes/{name_of(old)}") is None
    assert name_of(machine) not in names(await fleet.machines("replaced"))


async def test_a_machine_is_not_deleted_for_the_uid_of_another(fleet: Fleet) -> None:
    (node,) = await fleet.pool("kept", 1)
    machine = await fleet.machine_of(node)

    with pytest.raises(Refused) as refusal:
        await fleet.plane.api.delete(fleet.path(machine), {"preconditions": {"uid": "another"}})

    assert refusal.value.status == 409
    assert "deletionTimestamp" not in (await fleet.machine_of(node))["metadata"]


async def test_the_older_version_of_a_machine_tells_the_same(fleet: Fleet) -> None:
    (node,) = await fleet.pool("older", 1)

    machine = await fleet.machine_of(node, "v1beta1")

    assert machine["apiVersion"] == "cluster.x-k8s.io/v1beta1"
    assert machine["status"]["nodeRef"]["name"] == name_of(node)
    assert machine["spec"]["providerID"] == node["spec"]["providerID"]


async def test_no_successor_is_made_while_the_drain_hangs_and_the_machine_may_be_let_off_it(fleet: Fleet) -> None:
    (node,) = await fleet.pool("hanging", 1)
    machine = await fleet.machine_of(node)
    await fleet.occupy(node, "hanging")

    await fleet.delete(machine)
    await fleet.deleting(machine, "DrainingNode")
    await asyncio.sleep(LONG_ENOUGH)
    assert names(await fleet.machines("hanging")) == {name_of(machine)}
    assert (await fleet.plane.api.get(f"/api/v1/nodes/{name_of(node)}"))["spec"]["unschedulable"]

    # Its MachineSet would undo a limit in the Machine's spec at once.
    await fleet.annotate(machine, **{UNDRAINED: ""})
    (successor,) = await fleet.replaced("hanging", machine, 1)
    assert name_of(successor) != name_of(node)


async def test_a_silent_node_does_not_hold_its_machine_up(fleet: Fleet) -> None:
    (node,) = await fleet.pool("silent", 1)
    machine = await fleet.machine_of(node)
    await nodes.break_node(fleet.plane.api, name_of(node), "unknown")
    await nodes.shows(fleet.plane.api, name_of(node), "Ready", "Unknown")

    await fleet.delete(machine)

    assert name_of(node) not in names(await fleet.replaced("silent", machine, 1))


async def test_a_paused_machine_is_not_replaced_until_it_is_let_go_on(fleet: Fleet) -> None:
    (node,) = await fleet.pool("paused", 1)
    machine = await fleet.machine_of(node)
    await fleet.annotate(machine, **{PAUSED: ""})

    async def paused() -> bool:
        return nodes.condition(await fleet.machine_of(node), "Paused") == "True"

    await eventually(paused, "the pause")
    await fleet.delete(machine)
    await asyncio.sleep(LONG_ENOUGH)
    assert names(await fleet.machines("paused")) == {name_of(machine)}
    assert await fleet.plane.api.find(f"/api/v1/nodes/{name_of(node)}") is not None

    await fleet.annotate(machine, **{PAUSED: None})
    assert name_of(node) not in names(await fleet.replaced("paused", machine, 1))


async def test_a_machine_that_asks_for_remediation_is_replaced_once_a_health_check_selects_it(fleet: Fleet) -> None:
    old, _ = await fleet.pool("checked")
    machine = await fleet.machine_of(old)
    await fleet.annotate(machine, **{REMEDIATE: ""})

    await fleet.plane.api.post(
        f"{machines.CLUSTER_API}/namespaces/{fleet.namespace}/machinehealthchecks",
        {
            "metadata": {"name": "checked"},
            "apiVersion": "cluster.x-k8s.io/v1beta2",
            "kind": "MachineHealthCheck",
            "spec": {"clusterName": CLUSTER, "selector": {"matchLabels": {machines.DEPLOYMENT: "checked"}}},
        },
    )

    assert name_of(old) not in names(await fleet.replaced("checked", machine))


async def test_a_cloud_that_is_sold_out_leaves_the_pool_one_short(fleet: Fleet) -> None:
    (node,) = await fleet.pool("short", 1)
    machine = await fleet.machine_of(node)
    fleet.cloud.sold_out = True
    try:
        await fleet.delete(machine)

        async def waiting() -> bool:
            new = [one for one in await fleet.machines("short") if name_of(one) != name_of(machine)]
            return [nodes.condition(one, "InfrastructureReady") for one in new] == ["False"]

        await eventually(waiting, "a Machine that has none", 60)
    finally:
        fleet.cloud.sold_out = False

    assert name_of(node) not in names(await machines.ready_nodes(fleet.plane, fleet.namespace, "short", 1))
