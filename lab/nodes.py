"""Simulated nodes: kwok with the lab's own stages, pools of nodes, their faults, and their machines."""

import asyncio
import json
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lab import processes
from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane
from lab.errors import LabError
from lab.paths import PACKAGE
from lab.ports import Ports
from lab.toolchain import Toolchain

Json = dict[str, Any]
FAULT = "lab.kreflex.dev/fault"
SILENT = "unknown"
ZONE = "topology.kubernetes.io/zone"
SHUTDOWN = "node.cloudprovider.kubernetes.io/shutdown"
_CONTROL_PLANE = "node-role.kubernetes.io/control-plane"
_KUBELET = "lab.kreflex.dev/kubelet"
_HELD = "lab.kreflex.dev/held"
_STAGES = PACKAGE / "stages"
_CONDITIONS = json.loads((_STAGES / "conditions.json").read_text())
FAULTS: frozenset[str] = frozenset({*_CONDITIONS["faults"], SILENT})
"""What a node can be given; stages/conditions.json tells what each shows."""
_OPTIONS = {
    "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
    "kind": "KwokConfiguration",
    # 4 by default: a thousand pods would start in half a minute.
    "options": {"podPlayStageParallelism": 32, "nodePlayStageParallelism": 8},
}
# kwok renews a lease at each quarter of it: so often that a busy machine can miss some, but not so often that the
# leases of a thousand nodes are most of what the API server does.
_LEASE_OF_GRACE = 0.8
_NODES_A_LEASE_SECOND = 25
_AT_ONCE = 64
_NODE_IP = "10.0.0.1"


@dataclass(frozen=True)
class Pool:
    """What nodes of one kind have in common; they are called after it, with a number."""

    name: str = "node"
    labels: Mapping[str, str] = field(default_factory=dict)
    zones: Sequence[str] = ("lab-a", "lab-b", "lab-c")
    taints: Sequence[Mapping[str, str]] = ()
    annotations: Mapping[str, str] = field(default_factory=dict)
    control_plane: bool = False
    provider_id: str = ""
    """As `aws:///{zone}/{name}`; empty for machines that no cloud knows."""


def grace_seconds(count: int) -> int:
    """How long a control plane of so many nodes waits for a sign of life: leases of many are renewed less often."""
    return max(20, math.ceil(count / _NODES_A_LEASE_SECOND * 1.5))


async def start(plane: ControlPlane, count: int = 3, kwok: Path | None = None, room: int = 0) -> None:
    """Start kwok on a control plane, with this many nodes (and room for more), and wait until they are Ready."""
    program = kwok or Toolchain().ensure(["kwok"])["kwok"]
    config = plane.home.config / "kwok.yaml"
    config.write_text(stages())
    with Ports() as ports:
        port = ports.take()
        command: list[str | Path] = [
            program,
            f"--kubeconfig={plane.home.secrets / 'kwok.kubeconfig'}",
            f"--config={config}",
            f"--manage-nodes-with-label-selector={_KUBELET}=running",
            # Without leases the controller manager finds every node Unknown within a minute.
            f"--node-lease-duration-seconds={_lease_seconds(max(count, room), plane.options.node_grace_seconds)}",
            "--cidr=10.244.0.1/16",
            f"--node-ip={_NODE_IP}",
            f"--server-address=127.0.0.1:{port}",
        ]
        url = f"http://127.0.0.1:{port}/healthz"
        child = plane.start_child("kwok", command, url=url)
        await child.ready(processes.answers(url))
    await add(plane.api, count)


def _lease_seconds(count: int, grace: int) -> int:
    return max(4, round(grace * _LEASE_OF_GRACE), math.ceil(count / _NODES_A_LEASE_SECOND))


def stages() -> str:
    """Kwok's configuration: its options, and the stages with the libraries before their expressions and templates."""
    tags = json.dumps(json.loads((_STAGES / "tags.json").read_text()))
    jq = f"def tags: {tags};\n{(_STAGES / 'library.jq').read_text()}"
    template = f"{{{{- $tags := fromJson `{tags}` -}}}}\n{(_STAGES / 'library.tpl').read_text()}"
    table = json.dumps(_CONDITIONS)
    libraries = {
        "Pod": (jq, template),
        "Node": (
            f"{jq}\ndef conditions: {table};\n{(_STAGES / 'nodes.jq').read_text()}",
            f"{template}\n{{{{- $conditions := fromJson `{table}` -}}}}",
        ),
    }
    documents: list[Json] = [_OPTIONS]
    for file in sorted(_STAGES.glob("*.yaml")):
        for stage in yaml.safe_load_all(file.read_text()):
            _complete(stage, *libraries[stage["spec"]["resourceRef"]["kind"]])
            documents.append(stage)
    return yaml.safe_dump_all(documents, sort_keys=False, width=1000)


def _complete(part: Any, jq: str, template: str) -> None:
    """Put the libraries before each expression below this part of a stage."""
    if isinstance(part, list):
        for item in part:
            _complete(item, jq, template)
    elif isinstance(part, dict):
        for key, value in part.items():
            if key == "jq":
                name = "key" if "key" in value else "expression"
                value[name] = f"{jq}\n{value[name]}"
            elif key == "template":
                part[key] = f"{template}\n{value}"
            else:
                _complete(value, jq, template)


async def add(api: Api, count: int, pool: Pool | None = None, first: int = 0) -> list[str]:
    """Make nodes of a pool, its zones by turns, and wait until they are Ready; their names. Those that exist stay."""
    pool = pool or Pool()
    numbers = range(first, first + count)
    await each(numbers, lambda number: _make(api, "/api/v1/nodes", node(number, pool)))
    names = {f"{pool.name}-{number}" for number in numbers}

    async def all_ready() -> bool:
        items = (await api.get("/api/v1/nodes", resourceVersion="0"))["items"]
        return names <= {one["metadata"]["name"] for one in items if _is_usable(one)}

    await eventually(all_ready, f"{count} Ready nodes", patience=30 + count / 10, pause=0.1 + count / 1000)
    return [f"{pool.name}-{number}" for number in numbers]


async def each(items: Iterable[Any], do: Callable[[Any], Awaitable[object]], at_once: int = _AT_ONCE) -> None:
    """Do the same with all of many things, some at once."""
    turns = iter(items)

    async def work() -> None:
        for item in turns:
            await do(item)

    await asyncio.gather(*(work() for _ in range(at_once)))


async def _make(api: Api, collection: str, body: Json) -> None:
    try:
        await api.post(collection, body)
    except Refused as refusal:
        if refusal.status != 409:
            raise


def is_ready(node: Json) -> bool:
    """Whether a node's or a pod's Ready condition is True."""
    return condition(node, "Ready") == "True"


def _is_usable(node: Json) -> bool:
    """Whether a node is Ready, and the scheduler has been told so."""
    taints = {taint["key"] for taint in node["spec"].get("taints", [])}
    return is_ready(node) and "node.kubernetes.io/not-ready" not in taints


def condition(thing: Json, kind: str) -> str | None:
    """The status of a condition, or None."""
    found = whole_condition(thing, kind)
    return None if found is None else str(found["status"])


def whole_condition(thing: Json, kind: str) -> Json | None:
    """A condition with its reason and times, or None."""
    conditions: list[Json] = thing.get("status", {}).get("conditions", [])
    return next((one for one in conditions if one["type"] == kind), None)


async def shows(api: Api, name: str, kind: str, status: str, patience: float = 120) -> Json:
    """Wait until a node's condition has this status; the condition."""

    async def there() -> Json | None:
        found = whole_condition(await api.get(_path(name)), kind)
        return found if found and found["status"] == status else None

    found: Json = await eventually(there, f"{name} with {kind} {status}", patience)
    return found


async def named(api: Api, selector: str = "") -> list[str]:
    """The names of the nodes that a label selector chooses, all by default."""
    items = (await api.get("/api/v1/nodes", labelSelector=selector))["items"]
    return [one["metadata"]["name"] for one in items]


async def break_node(api: Api, name: str, *faults: str) -> None:
    """Give a node one or several of FAULTS instead of what it had; `unknown` makes its kubelet silent."""
    strangers = sorted(set(faults) - FAULTS)
    if strangers:
        raise LabError(f"a node has no fault {', '.join(strangers)}: choose of {', '.join(sorted(FAULTS))}")
    silent = SILENT in faults
    if silent:
        await _hold_pods(api, name)
    labels = {_KUBELET: "lost" if silent else "running"}
    await api.patch(_path(name), {"metadata": {"annotations": {FAULT: ",".join(faults) or None}, "labels": labels}})
    if not silent:
        await _let_pods_go(api, name)


async def break_nodes(api: Api, names: Iterable[str], *faults: str) -> None:
    """Give many nodes the same faults, as quickly as the API server allows."""
    await each(names, lambda name: break_node(api, name, *faults))


async def break_zone(api: Api, zone: str, *faults: str) -> list[str]:
    """Give all nodes of a zone faults; their names."""
    names = await named(api, f"{ZONE}={zone}")
    await break_nodes(api, names, *faults)
    return names


async def heal_node(api: Api, name: str) -> None:
    """Take a node's faults away, and let a machine that was off run again."""
    await break_node(api, name)
    await _taint(api, name, present=False)


async def heal_nodes(api: Api, names: Iterable[str]) -> None:
    """Take the faults of many nodes away."""
    await each(names, lambda name: heal_node(api, name))


@asynccontextmanager
async def blackout(plane: ControlPlane) -> AsyncIterator[None]:
    """The API server hears of no kubelet at all, as behind a broken load balancer; they live on, and come back."""
    kwok = plane.children["kwok"]
    kwok.pause()
    try:
        yield
    finally:
        kwok.resume()


async def switch_off(api: Api, name: str, patience: float = 120) -> None:
    """Turn a node's machine off; its cloud confirms that by the taint which cloud-node-lifecycle sets."""
    await break_node(api, name, SILENT)
    await shows(api, name, "Ready", "Unknown", patience)
    await _taint(api, name, present=True)


async def remove_machine(api: Api, name: str, patience: float = 120) -> None:
    """Let the cloud take a machine away and remove the Node object, as cloud-node-lifecycle does with what is ill."""
    await break_node(api, name, SILENT)
    await shows(api, name, "Ready", "Unknown", patience)
    await api.delete(_path(name))


async def _taint(api: Api, name: str, *, present: bool) -> None:
    """Set or remove the taint of a machine that is off, while others change the node's taints, too."""

    async def settled() -> bool:
        try:
            await _taint_once(api, name, present=present)
        except Refused as refusal:
            if refusal.status != 409:
                raise
            return False
        return True

    await eventually(settled, f"the taint of {name}")


async def _taint_once(api: Api, name: str, *, present: bool) -> None:
    body = await api.get(_path(name))
    before = body["spec"].get("taints", [])
    after = [taint for taint in before if taint["key"] != SHUTDOWN]
    if present:
        after.append({"key": SHUTDOWN, "effect": "NoSchedule"})
    if after != before:
        version = body["metadata"]["resourceVersion"]
        await api.patch(_path(name), {"metadata": {"resourceVersion": version}, "spec": {"taints": after}})


async def _hold_pods(api: Api, name: str) -> None:
    """Take the pods of a node that are Terminating out of kwok's queue, or it would still remove them when due."""
    for path in await _terminating(api, name):
        await _note_held(api, path, "please")

        async def held(path: str = path) -> bool:
            pod = await api.find(path)
            return pod is None or pod["metadata"]["annotations"].get(_HELD) == "yes"

        await eventually(held, f"{path} held")


async def _let_pods_go(api: Api, name: str) -> None:
    for path in await _terminating(api, name):
        await _note_held(api, path, None)


async def _terminating(api: Api, name: str) -> list[str]:
    pods = (await api.get("/api/v1/pods", fieldSelector=f"spec.nodeName={name}"))["items"]
    metadata = [pod["metadata"] for pod in pods if "deletionTimestamp" in pod["metadata"]]
    return [f"/api/v1/namespaces/{one['namespace']}/pods/{one['name']}" for one in metadata]


async def _note_held(api: Api, path: str, word: str | None) -> None:
    try:
        await api.patch(path, {"metadata": {"annotations": {_HELD: word}}})
    except Refused as refusal:
        # It has just gone.
        if refusal.status != 404:
            raise


def _path(name: str) -> str:
    return f"/api/v1/nodes/{name}"


def node(number: int, pool: Pool) -> Json:
    """A Node of a pool as its kubelet registers it."""
    zone = pool.zones[number % len(pool.zones)]
    name = f"{pool.name}-{number}"
    size = {"cpu": "32", "memory": "256Gi", "pods": "1000", "ephemeral-storage": "1Ti"}
    role = {_CONTROL_PLANE: ""} if pool.control_plane else {}
    reserved = [{"key": _CONTROL_PLANE, "effect": "NoSchedule"}] if pool.control_plane else []
    provider = {"providerID": pool.provider_id.format(zone=zone, name=name)} if pool.provider_id else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake", **pool.annotations},
            "labels": {
                _KUBELET: "running",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "node.kubernetes.io/instance-type": "lab",
                "topology.kubernetes.io/region": "lab",
                ZONE: zone,
                **role,
                **pool.labels,
            },
        },
        "spec": {"taints": [*reserved, *pool.taints], **provider},
        "status": {"allocatable": size, "capacity": size},
    }


def healthy_status(name: str, now: str) -> Json:
    """What the kubelet of a healthy node adds to its status."""
    since = {"lastHeartbeatTime": now, "lastTransitionTime": now}
    addresses = [{"type": "InternalIP", "address": _NODE_IP}, {"type": "Hostname", "address": name}]
    return {
        "phase": "Running",
        "conditions": [{"type": kind, **_CONDITIONS["calm"][kind], **since} for kind in _CONDITIONS["always"]],
        "addresses": addresses,
    }
