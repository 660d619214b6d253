"""Fleet: what a decision about one node among many costs in reads, in time against `kubectl get nodes`, in memory."""

import asyncio
import json
import statistics
import tempfile
import uuid
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import effort, farm, rig
from bench.farm import Call, Sender
from bench.rig import Json
from lab import claims, crowd, functions, nodes, workloads
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.nodes import Pool
from lab.ports import Ports

NODES, PODS_OF_A_NODE, PAIRS = 1000, 20, 9
POOLS = tuple(f"pool-{number}" for number in range(5))
# What a kubelet tells of its images: 50 of them, each by a digest and a tag (kubelet, nodeStatusMaxImages).
_IMAGES = 50
_DIGEST = "9f2c4b1e7a5d8036" * 4


_ROUNDS = 5
# Nodes that come back from a blackout are no storm to what is measured after it.
_CALM = {"stormCooldown": "1s"}
_BARE = {"bare": "Evict"}
_LABELS = {
    "karpenter.k8s.aws/instance-category": "m",
    "karpenter.k8s.aws/instance-cpu": "8",
    "karpenter.k8s.aws/instance-family": "m7i",
    "karpenter.k8s.aws/instance-memory": "32768",
    "karpenter.sh/capacity-type": "on-demand",
    "karpenter.sh/initialized": "true",
    "karpenter.sh/registered": "true",
    "topology.k8s.aws/zone-id": "euc1-az2",
}
_NOTES = {
    "csi.volume.kubernetes.io/nodeid": '{"ebs.csi.aws.com":"i-0f1e2d3c4b5a69788","efs.csi.aws.com":"i-0f1e2d3c4b5a69"}',
    "karpenter.sh/nodepool-hash": "17120937265463274183",
    "node.alpha.kubernetes.io/ttl": "15",
    "volumes.kubernetes.io/controller-managed-attach-detach": "true",
}


async def populate(plane: ControlPlane, count: int) -> None:
    """Make nodes of five pools with the size of a cloud's, each with its claim."""
    for number, name in enumerate(POOLS):
        size = count // len(POOLS) + (number < count % len(POOLS))
        pool = Pool(name, labels={claims.POOL: name}, provider_id="aws:///{zone}/{name}")
        async with crowd.Store(plane) as store:
            await store.write("karpenter.sh/nodeclaims", (_claim(nodes.node(one, pool)) for one in range(size)))
        await crowd.many(plane, size, pool=pool, dress=_dressed)
        rig.say(f"{size} nodes of {name}")


async def load(plane: ControlPlane, pods: int) -> None:
    """Put pods on all nodes."""
    names = await nodes.named(plane.api)
    async with crowd.Store(plane) as store:
        await store.write("pods", (_pod(number, names[number % len(names)]) for number in range(pods)))
    rig.say(f"{pods} pods")


def _pod(number: int, node: str) -> Json:
    """A pod that runs, and that nobody controls: controllers would be busy with so many for minutes."""
    body, now = workloads.pod(f"crowd-{number}"), _now()
    about = {"namespace": "default", "uid": _uid(f"crowd-{number}"), "creationTimestamp": now}
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": now}
        for kind in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]
    ran = {"ready": True, "started": True, "restartCount": 0, "state": {"running": {"startedAt": now}}}
    containers = [
        {"name": one["name"], "image": one["image"], "imageID": "", **ran} for one in body["spec"]["containers"]
    ]
    address = f"10.64.{number // 256}.{number % 256}"
    state = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "startTime": now}
    return {
        **body,
        "metadata": {**body["metadata"], **about},
        "spec": {**body["spec"], "nodeName": node},
        "status": {**state, "conditions": conditions, "containerStatuses": containers},
    }


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _claim(node: Json) -> Json:
    name, pool = node["metadata"]["name"], node["metadata"]["labels"][claims.POOL]
    owner = {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "name": pool, "uid": f"uid-{pool}"}
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {
            "name": name,
            "uid": _uid(name),
            "creationTimestamp": _now(),
            "labels": {claims.POOL: pool},
            "ownerReferences": [owner],
        },
        "spec": {},
        "status": {"providerID": node["spec"]["providerID"], "nodeName": name},
    }


def _uid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, name))


def _dressed(node: Json) -> Json:
    """A node with what a cloud, its kubelet and Karpenter put on it: some 15 KB, of which images are the most."""
    meta = node["metadata"]
    owner = {"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "name": meta["name"]}
    noted = {
        "labels": meta["labels"] | _LABELS,
        "annotations": meta["annotations"] | _NOTES,
        "ownerReferences": [{**owner, "uid": _uid(meta["name"]), "blockOwnerDeletion": True}],
    }
    managed = [_managed(manager, noted) for manager in ("karpenter", "kubelet", "kube-controller-manager")]
    status = {**node["status"], "images": [_image(number) for number in range(_IMAGES)]}
    return {**node, "metadata": {**meta, **noted, "managedFields": managed}, "status": status}


def _managed(manager: str, noted: Json) -> Json:
    fields: Json = {f"f:{part}": {f"f:{key}": {} for key in noted[part]} for part in ("labels", "annotations")}
    when = {"operation": "Update", "apiVersion": "v1", "time": "2026-11-01T00:00:00Z", "fieldsType": "FieldsV1"}
    return {"manager": manager, **when, "fieldsV1": {"f:metadata": fields}}


def _image(number: int) -> Json:
    name = f"registry.example.com/team-{number % 7}/service-{number}"
    return {"names": [f"{name}@sha256:{_DIGEST}", f"{name}:v1.{number}.0"], "sizeBytes": 40_000_000 + number}


async def fall_ill(plane: ControlPlane, name: str) -> Json:
    """Let one node's kubelet say that it is not ready, for longer than the policy waits; the node."""
    await nodes.break_node(plane.api, name, "not-ready")
    await nodes.shows(plane.api, name, "Ready", "False")
    await asyncio.sleep(farm.FORGOTTEN + 1)
    return await plane.api.get(f"/api/v1/nodes/{name}")


async def decide(plane: ControlPlane, sender: Sender, url: str, name: str) -> Call:
    """Have one decision made about a node that has no record, by a process that has read nothing for a second."""
    await farm.forget(plane)
    await asyncio.sleep(farm.FORGOTTEN)
    told = await sender.tell(url, await plane.api.get(f"/api/v1/nodes/{name}"))
    if told.status not in {200, 204}:
        raise RuntimeError(f"the function answered {told.status} {told.text}")
    return told


async def listed(plane: ControlPlane) -> Call:
    """List the nodes as a person does."""
    return await farm.kubectl(plane, "get", "nodes")


async def in_turn(
    plane: ControlPlane, sender: Sender, url: str, name: str, pairs: int
) -> tuple[list[Call], list[Call]]:
    """Measure both, the order changing."""
    ours, theirs = [], []
    for number in range(pairs):
        if number % 2:
            theirs.append(await listed(plane))
        ours.append(await decide(plane, sender, url, name))
        if not number % 2:
            theirs.append(await listed(plane))
        rig.say(f"decision {ours[-1].seconds:.3f} s, kubectl get nodes {theirs[-1].seconds:.3f} s")
    return ours, theirs


async def run(plane: ControlPlane, ports: Ports, pairs: int) -> dict[str, Any]:
    """Measure on a fleet that is there already: the decision, the waker's round, and one course's first write."""
    names = await nodes.named(plane.api)
    await farm.policy(plane, "DryRun", drain=_BARE, **_CALM)
    child, url = await farm.start(plane, ports.take())
    async with Sender(plane) as sender:
        await sender.tell(url, await plane.api.get(f"/api/v1/nodes/{names[1]}"))
        idle = effort.rss_mib(child.pid)
        node = await fall_ill(plane, names[0])
        ill = node["metadata"]["name"]
        await listed(plane)  # It fills the cache of its discovery.
        effort.forget_peak(child.pid)
        ours, theirs = await in_turn(plane, sender, url, ill, pairs)
        peak = effort.peak_mib(child.pid)
        reasons = [record["status"].get("guard") for record in await farm.records(plane)]
        costs = [farm.asked(plane, call.begun, call.ended) for call in ours]
        waker = await _round(plane, sender, ports, url)
        course = await _course(plane, sender, url, ill)
    await plane.stop_child(farm.FUNCTION)
    ratios = [mine.seconds / other.seconds for mine, other in zip(ours, theirs, strict=True)]
    found = {
        "nodes": len(names),
        "node_kib": round(len(json.dumps(node)) / 1024, 1),
        "pairs": pairs,
        "decision_ratio": round(statistics.median(ratios), 2),
        "memory_ratio": round(peak / idle, 2),
        "decision_p50_ms": round(1000 * statistics.median(call.seconds for call in ours)),
        "kubectl_p50_ms": round(1000 * statistics.median(call.seconds for call in theirs)),
        "idle_mib": round(idle, 1),
        "peak_mib": round(peak, 1),
        "node_lists": max(cost.lists("nodes") for cost in costs),
        "node_pages": max(cost.pages("nodes") for cost in costs),
        "whole_pod_lists": max(cost.whole_pods for cost in costs),
        "calls": statistics.median(cost.calls for cost in costs),
        "writes": statistics.median(cost.writes for cost in costs),
        **waker,
        **course,
    }
    slim = found["node_lists"] == 1 and found["whole_pod_lists"] == 0
    reached = slim and found["decision_ratio"] <= 1 and found["memory_ratio"] <= 1.25
    return {**found, "steps": costs[-1].names, "goals_reached": reached, "holds": slim and reasons == ["DryRun"]}


async def _round(plane: ControlPlane, sender: Sender, ports: Ports, url: str) -> dict[str, Any]:
    """Have the waker make a round over the same fleet."""
    child, waker = await farm.start_waker(plane, ports.take(), url)
    idle = effort.rss_mib(child.pid)
    rounds: list[Call] = []
    for _ in range(3):
        await asyncio.sleep(farm.FORGOTTEN)
        rounds.append(await sender.tick(waker))
    reads, peak = farm.asked(plane, rounds[0].begun, rounds[0].ended, farm.WAKER), effort.peak_mib(child.pid)
    await plane.stop_child(functions.WAKER)
    return {
        "waker_round_p50_ms": round(1000 * statistics.median(one.seconds for one in rounds)),
        "waker_memory_ratio": round(peak / idle, 2),
        "waker_node_lists": reads.lists("nodes"),
    }


async def _course(plane: ControlPlane, sender: Sender, url: str, ill: str) -> dict[str, Any]:
    """Let it act, and tell how long it took until its first write to the node."""
    await farm.policy(plane, "Auto", drain=_BARE, **_CALM)
    told = await decide(plane, sender, url, ill)
    cost = farm.asked(plane, told.begun, told.ended)
    first = next(
        (farm.arrival(e) for e in cost.entries if (e["verb"], e["objectRef"]["resource"]) == ("patch", "nodes")), None
    )
    return {
        "first_write_ms": None if first is None else round(1000 * (first - told.begun)),
        "course_node_lists": cost.lists("nodes"),
        "course_whole_pod_lists": cost.whole_pods,
    }


async def blackout(plane: ControlPlane, ports: Ports) -> dict[str, Any]:
    """Let the API server hear of no kubelet, and tell what that costs: all nodes are found ill, and none is touched."""
    names = await nodes.named(plane.api)
    await farm.forget(plane)
    await farm.policy(plane, "Auto", drain=_BARE, **_CALM)
    _, url = await farm.start(plane, ports.take())
    _, waker = await farm.start_waker(plane, ports.take(), url)
    async with Sender(plane) as sender, nodes.blackout(plane):
        await eventually(lambda: _all(plane, "Unknown"), "the end of all Leases", patience=300, pause=1)
        await asyncio.sleep(farm.FORGOTTEN + 1)
        rounds: list[Call] = []
        while len(await farm.records(plane)) < len(names) and len(rounds) < _ROUNDS:
            rounds.append(await sender.tick(waker))
            rig.say(f"the waker's round over {len(names)} ill nodes: {rounds[-1].status}, {rounds[-1].seconds:.1f} s")
        again = await sender.tick(waker)
    first, second = farm.asked(plane, rounds[0].begun, rounds[-1].ended), farm.asked(plane, again.begun, again.ended)
    stops = Counter(record["status"].get("guard") for record in await farm.records(plane))
    for name in (functions.WAKER, farm.FUNCTION):
        await plane.stop_child(name)
    await eventually(lambda: _all(plane, "True"), "all nodes Ready again", patience=300, pause=1)
    await farm.forget(plane)
    return {
        "blackout_stops": dict(stops),
        "blackout_touched": sum("nodes" in name or "evict" in name for name in first.written),
        "blackout_writes_of_a_node": round(first.writes / len(names), 2),
        "blackout_node_lists_of_a_node": round(first.lists("nodes") / len(names), 3),
        "blackout_seconds": round(rounds[-1].ended - rounds[0].begun, 1),
        "blackout_writes_of_the_next_round": second.writes,
    }


async def _all(plane: ControlPlane, status: str) -> bool:
    items = (await plane.api.get("/api/v1/nodes", resourceVersion="0"))["items"]
    return all(nodes.condition(node, "Ready") == status for node in items)


async def measure(size: int = 0) -> dict[str, Any]:
    """Measure with 1,000 nodes, or `size`, and 20 pods for each."""
    count = size or NODES
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home, Ports() as ports:
        async with farm.farm(Path(home), count) as plane:
            await populate(plane, count)
            dark = await blackout(plane, ports)
            await load(plane, count * PODS_OF_A_NODE)
            return {**await run(plane, ports, PAIRS), **dark}
