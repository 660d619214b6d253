"""NodeClaims without Karpenter: a small cloud that ends a machine when its claim is deleted, and makes another.

It stands in where a test is about what is decided, and waits for nothing that Karpenter would wait for: no drain, no
look at the pods. What Karpenter itself does is tested with Karpenter (tests/peers).
"""

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from lab import manifests, nodes
from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane
from lab.errors import LabError

Json = dict[str, Any]
CLAIMS = "/apis/karpenter.sh/v1/nodeclaims"
POOL = "karpenter.sh/nodepool"
_FINALIZER = "karpenter.sh/termination"
_LOOK_SECONDS = 0.2
_OPEN = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
_AWAY = (LabError, aiohttp.ClientError, TimeoutError, OSError)
CRD: Json = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "nodeclaims.karpenter.sh"},
    "spec": {
        "group": "karpenter.sh",
        "scope": "Cluster",
        "names": {"kind": "NodeClaim", "listKind": "NodeClaimList", "plural": "nodeclaims", "singular": "nodeclaim"},
        "versions": [
            {
                "name": "v1",
                "served": True,
                "storage": True,
                "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": _OPEN, "status": _OPEN}}},
            }
        ],
    },
}


@dataclass
class Cloud:
    """The machines behind the claims of some pools."""

    api: Api
    replaces: bool = True
    """Whether a machine that ends is followed by another."""
    _numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def pool(self, name: str, count: int, zones: Sequence[str] = ("lab-a", "lab-b", "lab-c")) -> list[str]:
        """Make a pool of so many nodes, each with its claim, its zones by turns; the nodes' names."""
        made = await asyncio.gather(*(self.machine(name, zones[one % len(zones)]) for one in range(count)))
        return list(made)

    async def machine(self, pool: str, zone: str = "lab-a") -> str:
        """Make one claim, and its node, and wait until that is Ready; the node's name, which is the claim's."""
        number = next(self._numbers)
        name, provider = f"{pool}-{number}", f"lab:///{zone}/{pool}-{number}"
        owner = {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "name": pool, "uid": f"pool-{pool}"}
        meta = {"name": name, "labels": {POOL: pool}, "finalizers": [_FINALIZER], "ownerReferences": [owner]}
        status = {"providerID": provider, "nodeName": name}
        body = {"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "metadata": meta, "spec": {}, "status": status}
        await self.api.post(CLAIMS, body)
        kind = nodes.Pool(pool, labels={POOL: pool}, zones=(zone,), provider_id=provider)
        await nodes.add(self.api, 1, kind, first=number)
        return name

    async def run(self) -> None:
        """Look after the claims, for ever; a cloud bears an API server that is away for a while."""
        ending: set[str] = set()
        async with asyncio.TaskGroup() as tasks:
            while True:
                with contextlib.suppress(*_AWAY):
                    for claim in (await self.api.get(CLAIMS))["items"]:
                        if "deletionTimestamp" in claim["metadata"] and claim["metadata"]["uid"] not in ending:
                            ending.add(claim["metadata"]["uid"])
                            tasks.create_task(self._end(claim, ending))
                await asyncio.sleep(_LOOK_SECONDS)

    async def _end(self, claim: Json, ending: set[str]) -> None:
        name, pool = claim["metadata"]["name"], claim["metadata"]["labels"][POOL]
        try:
            node = await self.api.find(f"/api/v1/nodes/{name}")
            if node is not None:
                await self.api.delete(f"/api/v1/nodes/{name}")
            with contextlib.suppress(Refused):
                await self.api.patch(f"{CLAIMS}/{name}", {"metadata": {"finalizers": None}})
        except _AWAY:
            ending.discard(claim["metadata"]["uid"])
            return
        if self.replaces:
            zone = claim["status"]["providerID"].split("/")[3]
            with contextlib.suppress(*_AWAY):
                await self.machine(pool, zone)


@asynccontextmanager
async def cloud(plane: ControlPlane) -> AsyncIterator[Cloud]:
    """Serve NodeClaims, and run a cloud behind them."""
    await manifests.apply(plane.api, [CRD])

    async def served() -> bool:
        with contextlib.suppress(Refused):
            await plane.api.get(CLAIMS)
            return True
        return False

    await eventually(served, "NodeClaims")
    made = Cloud(plane.api)
    running = asyncio.create_task(made.run())
    try:
        yield made
    finally:
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
