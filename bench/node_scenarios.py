"""Node-replacer in the fault matrix: a node that is ill, one that is silent, some that heal, and one that stays full.

Each case has a pool of its own, and a policy for it alone; on each node runs one pod of each kind of owner.
"""

import asyncio
import json
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from datetime import UTC, datetime

from bench import rig
from bench.rig import GROUP, Json
from bench.scenarios import End, Scenario
from bench.stage import Event, Stage
from lab import claims, functions, nodes, workloads
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.workloads import fault

FUNCTION = "node-replacer"
MARK = "kreflex.dev/remediation"
SIZE = 3
GAVE_UP: End = ("Done", "applied", "Ineffective", "GaveUp")
Making = Callable[[Stage, str], Awaitable[list[Json]]]
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/medik8s-leases/leases"
_ILL = [{"type": "Ready", "status": status, "for": "1s"} for status in ("False", "Unknown")]
# Times have whole seconds, the fraction cut off.
_UNTIL_ILL = 2.1
# Longer than a kubelet needs to say that its node is well again.
_SLOW = fault(termination_seconds=8)
_GLANCE, _PATIENCE = 0.2, 240.0
_COLLECTIONS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}


def a_pool(drain: str = "10m", notes: dict[str, str] | None = None, spare: int = 1) -> Making:
    """Make a pool whose drains end after so long, and of whose guarded pods so many may be missing."""

    async def make(on: Stage, where: str) -> list[Json]:
        await _set_policy(on.plane, where, drain)
        async with on.building:
            names = sorted(await on.cloud.pool(where, SIZE))
        await _fill(on.plane, where, notes or {}, spare)
        return [await on.plane.api.get(f"/api/v1/nodes/{name}") for name in names]

    return make


async def _set_policy(plane: ControlPlane, where: str, drain: str) -> None:
    # So many may be ill that the cases side by side are no storm to each other.
    breakers = {"maxUnhealthy": "100%", "maxUnhealthyZone": "100%", "stormCooldown": "1s"}
    body = {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "ClusterRemediationPolicy",
        "metadata": {"name": where},
        "spec": {
            "functions": [FUNCTION],
            "mode": "Auto",
            "owners": ["Node"],
            "scope": {"selector": {"matchLabels": {claims.POOL: where}}},
            "limits": {"cooldown": "0s", "maxInFlight": 1, "rates": [], "useless": {"count": 20}},
            "nodes": {"conditions": _ILL, "startup": "1s", "drain": {"timeout": drain}, **breakers},
            "proof": "1s",
            "proveWithin": "5m",
        },
    }
    await plane.api.apply(f"{GROUP}/clusterremediationpolicies/{where}", body)


async def _fill(plane: ControlPlane, where: str, notes: dict[str, str], spare: int) -> None:
    """Put one pod of each kind of owner on each node of a pool."""
    await plane.api.post(
        f"/apis/policy/v1/namespaces/{where}/poddisruptionbudgets", workloads.budget("guarded", maxUnavailable=spare)
    )
    store = workloads.stateful_set("store", SIZE)
    store["spec"]["podManagementPolicy"] = "Parallel"
    made = [workloads.deployment("shop", SIZE), workloads.deployment("guarded", SIZE), store]
    for body in (*made, workloads.daemon_set("logs")):
        path = f"/apis/apps/v1/namespaces/{where}/{_COLLECTIONS[body['kind']]}"
        await plane.api.post(path, _on_each(body, where, notes))
    await eventually(lambda: _is_full(plane, where), f"one pod of each kind on each node of {where}", 120, 0.5)


def _on_each(body: Json, where: str, notes: dict[str, str]) -> Json:
    """The same workload with one pod on each node of a pool."""
    template, name = body["spec"]["template"], body["metadata"]["name"]
    # Who is evicted waits for the next node: so all nodes are alike at any time.
    apart = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": name}}}
    alone = {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [apart]}}
    spec = {**template["spec"], "nodeSelector": {claims.POOL: where}, "affinity": alone}
    template = {"metadata": {**template["metadata"], "annotations": notes}, "spec": spec}
    return {**body, "spec": {**body["spec"], "template": template}}


async def _is_full(plane: ControlPlane, where: str) -> bool:
    found = await rig.pods(plane, where)
    places = {(pod["metadata"]["labels"]["app"], pod["spec"].get("nodeName")) for pod in found if nodes.is_ready(pod)}
    return len(places) == 4 * SIZE


async def fall_ill(plane: ControlPlane, node: Json) -> Json:
    """A node whose kubelet says that it is not ready, for longer than the policy bears it."""
    name = node["metadata"]["name"]
    await nodes.break_node(plane.api, name, "not-ready")
    await nodes.shows(plane.api, name, "Ready", "False")
    return await _ill_by_now(plane, name)


async def fall_silent(plane: ControlPlane, node: Json) -> Json:
    """A node whose kubelet says nothing any more, and of which the control plane has noticed it."""
    name = node["metadata"]["name"]
    await nodes.break_node(plane.api, name, "unknown")
    # As the node lifecycle controller does, but at once: with so short a patience it would give up healthy nodes, too.
    await plane.api.patch(f"/api/v1/nodes/{name}/status", {"status": {"conditions": _unknown(node)}})
    return await _ill_by_now(plane, name)


def _unknown(node: Json) -> list[Json]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    lost = {"status": "Unknown", "reason": "NodeStatusUnknown", "lastTransitionTime": now}
    return [{**one, **lost} for one in node["status"]["conditions"]]


async def _ill_by_now(plane: ControlPlane, name: str) -> Json:
    await asyncio.sleep(_UNTIL_ILL)
    return await plane.api.get(f"/api/v1/nodes/{name}")


def told(node: Json) -> Event:
    """The event by which an ApiServerSource in mode Resource tells of a node, with an id of its own."""
    name = node["metadata"]["name"]
    headers = {
        "ce-specversion": "1.0",
        "ce-id": str(uuid.uuid4()),
        "ce-type": "dev.knative.apiserver.resource.update",
        "ce-source": "https://10.96.0.1:443",
        "ce-subject": f"/apis/v1/namespaces//nodes/{name}",
        "ce-kind": "Node",
        "ce-name": name,
        "ce-namespace": "",
        "ce-time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "content-type": "application/json",
    }
    return headers, json.dumps({"apiVersion": "v1", "kind": "Node", **node}).encode()


async def evicted(plane: ControlPlane, where: str, node: Json) -> list[str]:
    """The pods of a node, but for the DaemonSet's."""
    found = await _pods_on(plane, where, node)
    return [pod["metadata"]["uid"] for pod in found if pod["metadata"]["labels"]["app"] != "logs"]


async def evicted_unless_guarded(plane: ControlPlane, where: str, node: Json) -> list[str]:
    """The same without the pod that its budget keeps."""
    found = await _pods_on(plane, where, node)
    return [pod["metadata"]["uid"] for pod in found if pod["metadata"]["labels"]["app"] not in {"logs", "guarded"}]


async def _pods_on(plane: ControlPlane, where: str, node: Json) -> list[Json]:
    return [pod for pod in await rig.pods(plane, where) if pod["spec"].get("nodeName") == node["metadata"]["name"]]


async def replaced(plane: ControlPlane, where: str, node: Json) -> str:
    """Another node has taken its place, and all pods have found a node again."""
    pool = await _nodes_of(plane, where)
    if node["metadata"]["uid"] in {one["metadata"]["uid"] for one in pool}:
        return "the node is still there"
    found = sum(nodes.is_ready(one) for one in pool)
    few = f"{found} nodes of {SIZE} are Ready" if found < SIZE else ""
    return few or await _touched(plane, where, pool) or await _whole(plane, where)


async def well(plane: ControlPlane, where: str, node: Json) -> str:
    """The node is there and serves, and its pods are back."""
    return await _there(plane, where, node, ready=True) or await _whole(plane, where)


async def as_it_was(plane: ControlPlane, where: str, node: Json) -> str:
    """The node is there, as ill as before, and nothing of ours is on it."""
    return await _there(plane, where, node, ready=False)


async def _there(plane: ControlPlane, where: str, node: Json, *, ready: bool) -> str:
    pool = await _nodes_of(plane, where)
    same = [one for one in pool if one["metadata"]["uid"] == node["metadata"]["uid"]]
    if not same or nodes.is_ready(same[0]) is not ready:
        return f"the node is {'not ready' if same and ready else 'ready' if same else 'gone'}"
    return await _touched(plane, where, pool)


async def _touched(plane: ControlPlane, where: str, pool: Iterable[Json]) -> str:
    """What of us is left on nodes, or in the namespace of their Leases."""
    for node in pool:
        name, marked = node["metadata"]["name"], MARK in node["metadata"].get("annotations", {})
        if marked or node["spec"].get("unschedulable"):
            return f"{name} is still cordoned" + (", and marked" if marked else "")
    held = [lease["metadata"]["name"] for lease in (await plane.api.get(_LEASES))["items"]]
    ours = [name for name in held if name.startswith(f"node-{where}-")]
    return f"Leases {ours} are still held" if ours else ""


async def _whole(plane: ControlPlane, where: str) -> str:
    found = [pod for pod in await rig.pods(plane, where) if pod["metadata"]["labels"]["app"] != "logs"]
    ready = [pod for pod in found if nodes.is_ready(pod) and "deletionTimestamp" not in pod["metadata"]]
    return "" if len(ready) == len(found) == 3 * SIZE else f"{len(ready)} of {len(found)} pods are Ready"


async def _nodes_of(plane: ControlPlane, where: str) -> list[Json]:
    items: list[Json] = (await plane.api.get("/api/v1/nodes", labelSelector=f"{claims.POOL}={where}"))["items"]
    return items


async def heal_when_cordoned(plane: ControlPlane, _: str, node: Json) -> None:
    """The node heals as soon as it is cordoned."""
    name = node["metadata"]["name"]

    async def cordoned() -> bool:
        return bool((await plane.api.get(f"/api/v1/nodes/{name}"))["spec"].get("unschedulable"))

    await eventually(cordoned, f"the cordon of {name}", _PATIENCE, _GLANCE)
    await nodes.heal_node(plane.api, name)


async def heal_when_emptied(plane: ControlPlane, where: str, node: Json) -> None:
    """The node heals as soon as a pod of it has been evicted."""
    name = node["metadata"]["name"]

    async def leaving() -> bool:
        return any("deletionTimestamp" in pod["metadata"] for pod in await _pods_on(plane, where, node))

    await eventually(leaving, f"the first eviction from {name}", _PATIENCE, _GLANCE)
    await nodes.heal_node(plane.api, name)


async def clear(on: Stage, where: str) -> None:
    """Remove the workloads, then the nodes with their claims; the cloud is to make no others."""
    for kind in _COLLECTIONS.values():
        path = f"/apis/apps/v1/namespaces/{where}/{kind}"
        for item in (await on.plane.api.get(path))["items"]:
            await rig.remove(on.plane, f"{path}/{item['metadata']['name']}")
    for claim in (await on.plane.api.get(claims.CLAIMS, labelSelector=f"{claims.POOL}={where}"))["items"]:
        path = f"{claims.CLAIMS}/{claim['metadata']['name']}"
        await on.plane.api.patch(path, {"metadata": {"finalizers": None}})
        await rig.remove(on.plane, path)
    for node in await _nodes_of(on.plane, where):
        await rig.remove(on.plane, f"/api/v1/nodes/{node['metadata']['name']}")


UNDONE = ("cordon", "uncordon")
REPLACER = Scenario(
    FUNCTION,
    a_pool(),
    fall_ill,
    told,
    replaced,
    variant="of an ill node",
    home=functions.NAMESPACE,
    evicts=evicted,
    writes=("cordon", "replacement"),
    clear=clear,
)
SILENT = replace(REPLACER, variant="of a silent node", fall_ill=fall_silent)
HEALS_EARLY = replace(
    REPLACER,
    variant="of a node that heals when cordoned",
    prepare=a_pool(notes=_SLOW),
    healed=well,
    writes=UNDONE,
    spares=True,
    meanwhile=heal_when_cordoned,
)
HEALS_LATE = replace(HEALS_EARLY, variant="of a node that heals while it is emptied", meanwhile=heal_when_emptied)
FULL = replace(
    REPLACER,
    variant="of a node that can't be emptied",
    prepare=a_pool("5s", spare=0),
    healed=as_it_was,
    evicts=evicted_unless_guarded,
    end=GAVE_UP,
    writes=UNDONE,
    spares=True,
)
NODE_SCENARIOS = (REPLACER, SILENT, HEALS_EARLY, HEALS_LATE, FULL)
