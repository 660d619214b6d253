"""The objects that anomalies are about: from a name in a label to what the cluster has under it now."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from kreflex.anomaly.agreement import Place
from kreflex.cluster import Reader
from kreflex.kinds import OWNERS
from kreflex.records import Target
from kreflex.rule import Rule
from kreflex.views import JSON, Pod, Ref, pod_view

_SERVED = {
    "Pod": ("v1", "/api/v1", "pods"),
    "Node": ("v1", "/api/v1", "nodes"),
    "ResourceQuota": ("v1", "/api/v1", "resourcequotas"),
    "Service": ("v1", "/api/v1", "services"),
    "Deployment": ("apps/v1", "/apis/apps/v1", "deployments"),
    "StatefulSet": ("apps/v1", "/apis/apps/v1", "statefulsets"),
    "DaemonSet": ("apps/v1", "/apis/apps/v1", "daemonsets"),
}
_AT_ONCE = 8
# Two may be on one node by chance.
_OF_A_NODE = 3
RBAC = (
    Rule("", "pods", "get"),
    Rule("", "pods", "list", "cluster"),
    Rule("", "services", "get"),
    Rule("", "resourcequotas", "get"),
    Rule("", "nodes", "get", "cluster"),
    *OWNERS,
)


@dataclass(frozen=True)
class Found:
    """An object as the cluster has it; of a pod, what it is a part of, too. One that is over is on its way out."""

    target: Target
    pod: Pod | None = None
    over: bool = False


async def find(reader: Reader, place: Place) -> Found | None:
    """Read what has this name now; None if nothing has."""
    version, root, plural = _SERVED[place.kind]
    where = f"/namespaces/{place.namespace}" if place.namespace else ""
    body = await reader.get(f"{root}{where}/{plural}/{place.name}")
    if body is None:
        return None
    target = Target(
        api_version=version,
        kind=place.kind,
        namespace=place.namespace,
        name=place.name,
        uid=body["metadata"]["uid"],
    )
    return Found(target, pod_view(body) if place.kind == "Pod" else None, _over(body))


def _over(body: JSON) -> bool:
    finished = body.get("kind") == "Pod" and (body.get("status") or {}).get("phase") in {"Succeeded", "Failed"}
    return finished or "deletionTimestamp" in body["metadata"]


async def find_all(reader: Reader, places: Iterable[Place]) -> dict[Place, Found | None]:
    """Read what has these names now, a few at a time."""
    limit = asyncio.Semaphore(_AT_ONCE)

    async def one(place: Place) -> tuple[Place, Found | None]:
        async with limit:
            return place, await find(reader, place)

    return dict(await asyncio.gather(*(one(place) for place in sorted(set(places), key=str))))


@dataclass(frozen=True)
class Above:
    """What several pods belong to: a workload or a node, how many pods it has, and which of them are meant."""

    found: Found
    pods: int
    below: frozenset[Place]


async def above(reader: Reader, found: Iterable[Found]) -> list[Above]:
    """Tell what several of these pods belong to: workloads, and nodes that several workloads run on."""
    owners: dict[Ref, int] = {}
    of_owner: dict[Ref, set[Place]] = defaultdict(set)
    of_node: dict[str, set[Place]] = defaultdict(set)
    owners_on: dict[str, set[str]] = defaultdict(set)
    for one in found:
        if one.pod is None:
            continue
        place = Place("Pod", one.target.namespace, one.target.name)
        owner = await reader.top_owner(one.pod)
        if owner is not None and owner.ref.kind in _SERVED:
            of_owner[owner.ref].add(place)
            owners[owner.ref] = owner.replicas or 0
        if one.pod.node:
            of_node[one.pod.node].add(place)
            owners_on[one.pod.node].add(str(owner.ref) if owner else place.name)
    workloads = [
        Above(Found(Target.of(ref)), max(owners[ref], len(pods)), frozenset(pods))
        for ref, pods in sorted(of_owner.items(), key=lambda item: str(item[0]))
        if len(pods) > 1
    ]
    # All of one workload say that the workload is ill, and not the node below it.
    nodes = [
        await _node(reader, name, pods)
        for name, pods in sorted(of_node.items())
        if len(pods) >= _OF_A_NODE and len(owners_on[name]) > 1
    ]
    return [*workloads, *(one for one in nodes if one is not None)]


async def _node(reader: Reader, name: str, pods: set[Place]) -> Above | None:
    node = await find(reader, Place("Node", "", name))
    if node is None:
        return None
    return Above(node, len([pod async for pod in reader.pods_on(name)]), frozenset(pods))
