"""Nodes fail as real ones do."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from lab import nodes
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.nodes import condition

NAME = "node-2"
PATH = f"/api/v1/nodes/{NAME}"


@pytest.fixture
async def node(plane: ControlPlane) -> AsyncIterator[str]:
    yield NAME
    await nodes.heal_node(plane.api, NAME)
    await shows(plane, "Ready", "True")
    await shows(plane, "DiskPressure", "False")
    await eventually(lambda: untainted(plane), "a node without taints")


async def shows(plane: ControlPlane, kind: str, status: str, patience: float = 30) -> None:
    async def there() -> bool:
        return condition(await plane.api.get(PATH), kind) == status

    await eventually(there, f"{NAME} with {kind} {status}", patience)


async def untainted(plane: ControlPlane) -> bool:
    return not (await plane.api.get(PATH))["spec"].get("taints")


def taints(node: dict[str, Any]) -> set[str]:
    return {taint["key"] for taint in node["spec"].get("taints", [])}


async def test_nodes_are_spread_over_zones_and_stay_ready(plane: ControlPlane) -> None:
    items = (await plane.api.get("/api/v1/nodes"))["items"]
    zones = {node["metadata"]["labels"]["topology.kubernetes.io/zone"] for node in items}
    assert zones == {"lab-a", "lab-b", "lab-c"}
    assert all(nodes.is_ready(node) for node in items)


async def test_not_ready(plane: ControlPlane, node: str) -> None:
    await nodes.break_node(plane.api, node, "not-ready")
    await shows(plane, "Ready", "False")

    async def tainted() -> bool:
        return "node.kubernetes.io/not-ready" in taints(await plane.api.get(PATH))

    await eventually(tainted, "the controller's taint")


async def test_disk_pressure_leaves_the_node_ready(plane: ControlPlane, node: str) -> None:
    await nodes.break_node(plane.api, node, "disk-pressure")
    await shows(plane, "DiskPressure", "True")
    await shows(plane, "Ready", "True")


async def test_a_node_whose_lease_nobody_renews_becomes_unknown(plane: ControlPlane, node: str) -> None:
    await nodes.break_node(plane.api, node, "unknown")
    await shows(plane, "Ready", "Unknown", patience=60)
    conditions = (await plane.api.get(PATH))["status"]["conditions"]
    ready = next(one for one in conditions if one["type"] == "Ready")
    assert ready["reason"] == "NodeStatusUnknown"
