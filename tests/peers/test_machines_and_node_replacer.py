"""node-replacer where Cluster API makes the machines, and where Node Healthcheck looks after the same nodes."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from functions.node_replacer import main as replacer
from kreflex.nodes import MARK
from kreflex.reflex import Arc
from kreflex.serve import REFLEXES
from kreflex.signals import Due, NodeSignal
from lab import audit, machines, medik8s, nodes
from lab.api import eventually
from lab.cluster import ControlPlane, Options
from tests import kit

assert replacer.main is not None
Json = dict[str, Any]
FLEET, CLUSTER = "fleet", "blue"
RECORDS = "/apis/kreflex.dev/v1alpha1/namespaces/kreflex-system/remediations"
POLICY = "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies/nodes"
REFLEX = replace(REFLEXES["node-replacer"], settings=replacer.NodeReplacerSettings(silent_after=timedelta(seconds=5)))
SOON = [{"type": "Ready", "status": status, "for": "1s"} for status in ("False", "Unknown")]
PAUSED = "cluster.x-k8s.io/paused"
LABEL = "node.cluster.x-k8s.io/pool"
"""Cluster API copies labels of this domain from Machines to nodes."""


@dataclass
class Fleet:
    """A Cluster whose nodes Kreflex may replace."""

    plane: ControlPlane

    async def policy(self) -> None:
        """Let node-replacer work at once, on one node of a pool at a time."""
        times = {"stormCooldown": "1s", "startup": "1s"}
        upkeep = {"conditions": SOON, "maxUnhealthy": 1, "maxUnhealthyZone": "100%", **times}
        limits = {"cooldown": "0s", "rates": [], "maxInFlight": 5}
        common = {"functions": ["node-replacer"], "mode": "Auto", "owners": ["Node"], "proof": "1s"}
        body = {
            "apiVersion": "kreflex.dev/v1alpha1",
            "kind": "ClusterRemediationPolicy",
            "metadata": {"name": "nodes"},
            "spec": {**common, "limits": limits, "nodes": upkeep},
        }
        await self.plane.api.apply(POLICY, body)
        await asyncio.sleep(1.1)  # The core may share a reading of the policies for a second.

    @asynccontextmanager
    async def pool(self, name: str) -> AsyncIterator[tuple[str, str]]:
        """Make a pool of two nodes, and look at its end that nothing of ours is left on any."""
        first, second = await machines.make_pool(self.plane, FLEET, CLUSTER, name, 2, labels={LABEL: name})
        yield first["metadata"]["name"], second["metadata"]["name"]
        for node in (await self.plane.api.get("/api/v1/nodes"))["items"]:
            assert not node["spec"].get("unschedulable"), node["metadata"]["name"]
            assert MARK not in node["metadata"].get("annotations", {})
        assert await self.holders() == []

    async def whole(self, pool: str) -> set[str]:
        """Wait until a pool has two Ready nodes again; their names."""
        found = await machines.ready_nodes(self.plane, FLEET, pool, 2)
        return {node["metadata"]["name"] for node in found}

    async def shop(self, pool: str, replicas: int = 4) -> kit.Place:
        """Run pods on the nodes of one pool."""
        place = await kit.place(self.plane)
        await place.deployment("shop", replicas, nodeSelector={LABEL: pool})
        return place

    async def falls_ill(self, node: str, fault: str = "not-ready") -> None:
        """Break a node, and wait until that shows for long enough."""
        await nodes.break_node(self.plane.api, node, fault)
        await nodes.shows(self.plane.api, node, "Ready", "Unknown" if fault == nodes.SILENT else "False")
        await asyncio.sleep(1.5)

    async def record(self, node: str) -> Json:
        records: list[Json] = (await self.plane.api.get(RECORDS))["items"]
        (found,) = (one for one in records if one["spec"]["target"]["name"] == node)
        return found

    async def settled(self, arc: Arc[Any], node: str) -> Json:
        """Wake the function as its waker does until it is done with a node; the record."""

        async def done() -> Json | None:
            record = await self.record(node)
            if record["status"]["phase"] == "Done":
                return record
            await arc.handle(Due("kreflex-system", record["metadata"]["name"]))
            return None

        found: Json = await eventually(done, f"an end for {node}", 90, 0.5)
        return found

    async def holders(self) -> list[str]:
        """Tell who is at work on nodes, by their Leases."""
        leases = (await self.plane.api.get(medik8s.LEASES))["items"]
        return [one["spec"]["holderIdentity"] for one in leases]

    def deletions(self, resource: str, node: str) -> list[str]:
        """Tell who has deleted such objects of a node's Machine, from the audit log."""
        return [
            entry["user"]["username"].rpartition(":")[2]
            for entry in audit.entries(self.plane.audit_log)
            if entry["verb"] == "delete"
            and entry["objectRef"]["resource"] == resource
            and entry["objectRef"].get("name", "") == node.removesuffix("-0")
        ]

    def evictors(self, place: kit.Place) -> set[str]:
        return {
            entry["user"]["username"].rpartition(":")[2]
            for entry in audit.entries(self.plane.audit_log)
            if entry["objectRef"].get("subresource") == "eviction" and entry["objectRef"]["namespace"] == place.name
        }


def steps(record: Json) -> list[str]:
    return [step["action"] for step in record["status"].get("steps", [])]


@pytest.fixture(scope="module")
async def fleet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    async with ControlPlane(tmp_path_factory.mktemp("fleet"), Options(node_grace_seconds=6)) as plane:
        await nodes.start(plane, 0)
        await kit.install(plane)
        async with machines.running(plane):
            await plane.api.post("/api/v1/namespaces", {"metadata": {"name": FLEET}})
            await machines.make_cluster(plane, FLEET, CLUSTER)
            made = Fleet(plane)
            await made.policy()
            yield made
            await machines.remove_cluster(plane, FLEET, CLUSTER)


@pytest.fixture
async def arc(fleet: Fleet) -> AsyncIterator[Arc[Any]]:
    async with kit.arc_of(fleet.plane, REFLEX, time_budget="20s") as made:
        yield made


async def test_an_ill_node_is_emptied_and_its_machine_replaced_by_cluster_api(fleet: Fleet, arc: Arc[Any]) -> None:
    async with fleet.pool("emptied") as (ill, other):
        place = await fleet.shop("emptied")
        await fleet.falls_ill(ill)

        await arc.handle(NodeSignal(ill))
        record = await fleet.settled(arc, ill)

        assert record["status"]["verdict"] == "Recovered"
        assert steps(record) == ["CordonNode", "EvictPods", "DeleteMachine"]
        now = await fleet.whole("emptied")
        assert ill not in now
        assert other in now
        assert fleet.deletions("machines", ill) == ["node-replacer"]
        # Cluster API's own drain found nothing left to do.
        assert fleet.evictors(place) == {"node-replacer"}
        assert len(place.evictions()) == len(set(place.evictions())) > 0


async def test_a_silent_node_s_pods_are_asked_to_go_once_and_nobody_waits_for_them(fleet: Fleet, arc: Arc[Any]) -> None:
    async with fleet.pool("silent") as (ill, _):
        place = await fleet.shop("silent")
        stuck = [pod["metadata"]["uid"] for pod in await place.pods("shop") if pod["spec"]["nodeName"] == ill]
        await fleet.falls_ill(ill, nodes.SILENT)

        await arc.handle(NodeSignal(ill))
        record = await fleet.settled(arc, ill)

        assert (record["status"]["verdict"], steps(record)) == (
            "Recovered",
            ["CordonNode", "EvictPods", "DeleteMachine"],
        )
        assert ill not in await fleet.whole("silent")
        assert sorted(place.evictions()) == sorted(stuck)


async def test_a_paused_pool_is_left_to_people_and_its_node_as_it_was(fleet: Fleet, arc: Arc[Any]) -> None:
    async with fleet.pool("paused") as (ill, _):
        path = f"{machines.CLUSTER_API}/namespaces/{FLEET}/machinedeployments/paused"
        await fleet.plane.api.patch(path, {"metadata": {"annotations": {PAUSED: ""}}})
        await fleet.falls_ill(ill)

        await arc.handle(NodeSignal(ill))
        record = await fleet.record(ill)

        assert f"MachineDeployment {FLEET}/paused has the annotation {PAUSED}" in record["status"]["reason"]
        assert steps(record) == []
        assert fleet.deletions("machines", ill) == []
        await nodes.heal_node(fleet.plane.api, ill)
        # Cluster API would not end it with its Cluster.
        await fleet.plane.api.patch(path, {"metadata": {"annotations": {PAUSED: None}}})


async def test_what_node_healthcheck_is_at_work_on_is_left_to_it(fleet: Fleet, arc: Arc[Any]) -> None:
    await medik8s.install(fleet.plane)
    async with fleet.pool("shared") as (ill, _), medik8s.running(fleet.plane):
        await medik8s.make_check(fleet.plane, "shared", {LABEL: "shared"})
        await nodes.break_node(fleet.plane.api, ill, "not-ready")

        async def at_work() -> bool:
            return await fleet.holders() == ["NodeHealthCheck-shared"]

        await eventually(at_work, "Node Healthcheck at work")
        await asyncio.sleep(1.5)
        await arc.handle(NodeSignal(ill))
        record = await fleet.record(ill)
        assert "NodeHealthCheck-shared is at work on it" in record["status"]["reason"]
        assert steps(record) == []

        async with medik8s.remediating(fleet.plane) as remediator:

            async def let_go() -> bool:
                return await fleet.holders() == []

            await eventually(let_go, "a node that Node Healthcheck has let go")
        assert remediator.rebooted == [ill]
        assert fleet.deletions("machines", ill) == []
        await fleet.plane.api.delete(f"{medik8s.CHECKS}/shared")
