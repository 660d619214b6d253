"""node-replacer on a real API server: real node lifecycle, scheduler and evictions, with a stand-in for the cloud."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest

from functions.node_replacer import main as replacer
from kreflex.nodes import MARK
from kreflex.reflex import Arc, Result
from kreflex.serve import REFLEXES
from kreflex.signals import Due, NodeSignal
from lab import audit, claims, nodes
from lab.api import eventually
from lab.cluster import ControlPlane, Options
from tests import kit

assert replacer.main is not None
HOME = "kreflex-system"
RECORDS = f"/apis/kreflex.dev/v1alpha1/namespaces/{HOME}/remediations"
POLICY = "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies/nodes"
REFLEX = replace(REFLEXES["node-replacer"], settings=replacer.NodeReplacerSettings(silent_after=timedelta(seconds=5)))
QUICK = [{"type": "Ready", "status": status, "for": "1s"} for status in ("False", "Unknown")]


@dataclass
class Farm:
    """A control plane with Kreflex, and a cloud of machines."""

    plane: ControlPlane
    cloud: claims.Cloud

    async def policy(self, nodes: dict[str, Any] | None = None, **spec: Any) -> None:
        """Set the policy for nodes: Auto and quick, unless told otherwise; it holds when this returns."""
        limits = {"cooldown": "0s", "rates": [], "maxInFlight": 5, **spec.pop("limits", {})}
        upkeep = {"conditions": QUICK, "maxUnhealthy": 1, "stormCooldown": "1s", "startup": "1s", **(nodes or {})}
        common = {"functions": ["node-replacer"], "mode": "Auto", "owners": ["Node"], "proof": "1s"}
        body = {
            "apiVersion": "kreflex.dev/v1alpha1",
            "kind": "ClusterRemediationPolicy",
            "metadata": {"name": "nodes"},
            "spec": {**common, "limits": limits, "nodes": upkeep, **spec},
        }
        await self.plane.api.apply(POLICY, body)
        await asyncio.sleep(1.1)  # The core may share a reading of the policies for a second.

    async def record(self) -> dict[str, Any]:
        """Read the newest record."""
        items = (await self.plane.api.get(RECORDS))["items"]
        newest: dict[str, Any] = max(items, key=lambda item: item["metadata"]["creationTimestamp"])
        return newest

    async def node(self, name: str) -> dict[str, Any] | None:
        return await self.plane.api.find(f"/api/v1/nodes/{name}")

    def forbidden(self) -> list[str]:
        """Tell what the API server forbade the function."""
        return [
            f"{entry['verb']} {entry['requestURI']} {entry['responseStatus'].get('message', '')}"
            for entry in audit.entries(self.plane.audit_log)
            if entry["user"]["username"].endswith(":node-replacer") and entry["responseStatus"]["code"] == 403
        ]


@pytest.fixture(scope="module")
async def farm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Farm]:
    async with ControlPlane(tmp_path_factory.mktemp("farm"), Options(node_grace_seconds=6)) as plane:
        await nodes.start(plane, 0)
        await kit.install(plane)
        async with claims.cloud(plane) as cloud:
            made = Farm(plane, cloud)
            yield made
        assert made.forbidden() == []


@asynccontextmanager
async def arc(farm: Farm) -> AsyncIterator[Arc[Any]]:
    async with kit.arc_of(farm.plane, REFLEX, time_budget="20s") as made:
        yield made


async def settled(farm: Farm, arc: Arc[Any], name: str, patience: float = 60) -> Result:
    """Wake the function for a node's record, as the waker would, until it is Done."""

    async def done() -> Result | None:
        record = await farm.record()
        if record["status"]["phase"] == "Done":
            return Result(name, record["status"]["outcome"], record["status"].get("verdictReason", ""))
        await arc.handle(Due(HOME, record["metadata"]["name"]))
        return None

    found: Result = await eventually(done, f"an end for {name}", patience, 0.5)
    return found


async def test_a_node_that_is_not_ready_is_emptied_replaced_and_its_pool_is_whole_again(farm: Farm) -> None:
    await farm.policy()
    names = await farm.cloud.pool("blue", 3)
    place = await kit.place(farm.plane)
    await farm.plane.api.post(f"/apis/apps/v1/namespaces/{place.name}/deployments", kit.deployment("shop", 6))
    await place.ready_pods("shop", 6)
    await nodes.break_node(farm.plane.api, names[0], "not-ready")
    await nodes.shows(farm.plane.api, names[0], "Ready", "False")
    await asyncio.sleep(1.5)
    async with arc(farm) as woken:
        await woken.handle(NodeSignal(names[0]))
        await settled(farm, woken, names[0])
    record = await farm.record()
    assert record["status"]["verdict"] == "Recovered"
    assert await farm.node(names[0]) is None
    assert [step["action"] for step in record["status"]["steps"]] == ["CordonNode", "EvictPods", "DeleteNodeClaim"]
    assert not any(MARK in node["metadata"].get("annotations", {}) for node in await everyone(farm))


async def everyone(farm: Farm) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = (await farm.plane.api.get("/api/v1/nodes"))["items"]
    return items
