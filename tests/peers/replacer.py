"""node-replacer as it runs beside those who make machines: its policy, its records, and what it has written."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

from functions.node_replacer import main as replacer
from kreflex.reflex import Arc
from kreflex.serve import REFLEXES
from kreflex.signals import Due, NodeSignal
from lab import audit, nodes
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit

assert replacer.main is not None
Json = dict[str, Any]
HOME = "kreflex-system"
RECORDS = f"/apis/kreflex.dev/v1alpha1/namespaces/{HOME}/remediations"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/medik8s-leases/leases"
REFLEX = replace(REFLEXES["node-replacer"], settings=replacer.NodeReplacerSettings(silent_after=timedelta(seconds=10)))
ILL = (("Ready", "False"), ("Ready", "Unknown"), ("KernelDeadlock", "True"), ("KWOKUnhealthy", "True"))
_NODES = {"nodes", "nodeclaims", "machines"}


@dataclass
class Replacer:
    """The function in this process, with its own account's rights."""

    plane: ControlPlane
    arc: Arc[Any]

    async def woken(self, node: str) -> Json:
        """Say that a node is ill, and give the record that this has led to."""
        await self.arc.handle(NodeSignal(node))
        return await self.record(node)

    async def record(self, node: str) -> Json:
        """Read the record of a node."""
        items: list[Json] = (await self.plane.api.get(RECORDS))["items"]
        (record,) = [one for one in items if one["spec"]["target"]["name"] == node]
        return record

    async def settled(self, node: str, patience: float = 150) -> Json:
        """Wake the function for a node's record, as the waker would, until it is Done; the record."""

        async def done() -> Json | None:
            record = await self.record(node)
            if record["status"]["phase"] != "Done":
                await self.arc.handle(Due(HOME, record["metadata"]["name"]))
                return None
            return record

        found: Json = await eventually(done, f"the verdict on {node}", patience, 0.5)
        assert (await self.plane.api.get(LEASES))["items"] == []
        return found

    def wrote(self, *names: str) -> list[Json]:
        """Read in the audit log what the function has written to these nodes, and to what stands behind them."""
        return [
            entry
            for entry in audit.entries(self.plane.audit_log)
            if entry["user"]["username"] == f"system:serviceaccount:{HOME}:node-replacer"
            and entry["verb"] in {"create", "update", "patch", "delete"}
            and entry["objectRef"]["resource"] in _NODES
            and entry["objectRef"].get("name") in names
        ]

    def forbidden(self) -> list[str]:
        """Tell what the API server forbade the function."""
        return [
            f"{entry['verb']} {entry['requestURI']} {entry['responseStatus'].get('message', '')}"
            for entry in audit.entries(self.plane.audit_log)
            if entry["user"]["username"].endswith(":node-replacer") and entry["responseStatus"]["code"] == 403
        ]


@asynccontextmanager
async def replacing(plane: ControlPlane, **upkeep: Any) -> AsyncIterator[Replacer]:
    """Run the function with a quick Auto policy for nodes, which is removed at the end."""
    conditions = [{"type": kind, "status": status, "for": "1s"} for kind, status in ILL]
    breakers = {"maxUnhealthy": 1, "maxUnhealthyZone": "100%", "stormCooldown": "1s", "startup": "1s"}
    spec = {
        "functions": ["node-replacer"],
        "mode": "Auto",
        "owners": ["Node"],
        "proof": "1s",
        "proveWithin": "5m",
        "limits": {"cooldown": "0s", "rates": [{"count": 1000, "window": "1h"}], "maxInFlight": 5},
        "nodes": {"conditions": conditions, **breakers, **upkeep},
    }
    path = "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies/nodes"
    kind = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "ClusterRemediationPolicy"}
    await plane.api.apply(path, {**kind, "metadata": {"name": "nodes"}, "spec": spec})
    await asyncio.sleep(1.1)  # The core may share a reading of the policies for a second.
    try:
        async with kit.arc_of(plane, REFLEX, time_budget="20s") as arc:
            made = Replacer(plane, arc)
            yield made
            assert made.forbidden() == []
    finally:
        await plane.api.delete(path)


async def falls_ill(plane: ControlPlane, node: str, fault: str, kind: str, status: str) -> None:
    """Break a node, and wait until the cluster has said so for long enough."""
    await nodes.break_node(plane.api, node, fault)
    await nodes.shows(plane.api, node, kind, status)
    await asyncio.sleep(1.5)


def steps(record: Json) -> list[str]:
    """The steps of a remediation, in the order in which each was last taken."""
    return [step["action"] for step in record["status"].get("steps", [])]


def outcome(record: Json) -> tuple[str | None, str | None]:
    """What became of a record, and by which guard."""
    return record["status"].get("outcome"), record["status"].get("guard")
