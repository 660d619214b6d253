"""Simulated nodes and pods: kwok with the lab's own stages, and the faults of nodes."""

from pathlib import Path
from typing import Any

import yaml

from lab import processes
from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane
from lab.paths import PACKAGE
from lab.ports import Ports
from lab.toolchain import Toolchain

FAULT = "lab.kreflex.dev/fault"
_KUBELET = "lab.kreflex.dev/kubelet"
_STAGES = PACKAGE / "stages"
_ZONES = "abc"
# A lease is renewed each quarter of it: more often than a busy machine can miss, but a thousand nodes each 4 seconds
# would be most of what the API server does. With many nodes the control plane needs a longer grace, too.
MANY = 100
_LEASE_SECONDS = 16
_OPTIONS = {
    "apiVersion": "config.kwok.x-k8s.io/v1alpha1",
    "kind": "KwokConfiguration",
    # 4 by default: a thousand pods would start in half a minute.
    "options": {"podPlayStageParallelism": 32, "nodePlayStageParallelism": 8},
}
_LEASE_SECONDS_OF_MANY = 40


async def start(plane: ControlPlane, count: int = 3, kwok: Path | None = None) -> None:
    """Start kwok on a control plane, with this many nodes, and wait until they are Ready."""
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
            f"--node-lease-duration-seconds={_LEASE_SECONDS if count <= MANY else _LEASE_SECONDS_OF_MANY}",
            "--cidr=10.244.0.1/16",
            "--node-ip=10.0.0.1",
            f"--server-address=127.0.0.1:{port}",
        ]
        url = f"http://127.0.0.1:{port}/healthz"
        child = plane.start_child("kwok", command, url=url)
        await child.ready(processes.answers(url))
    await add(plane.api, count)


def stages() -> str:
    """Kwok's configuration: its options, and the stages with the libraries before their expressions and templates."""
    jq, template = (_STAGES / "library.jq").read_text(), (_STAGES / "library.tpl").read_text()
    documents: list[dict[str, Any]] = [_OPTIONS]
    for file in sorted(_STAGES.glob("*.yaml")):
        for stage in yaml.safe_load_all(file.read_text()):
            _complete(stage, jq, template)
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


async def add(api: Api, count: int) -> list[str]:
    """Make nodes up to this number, in three zones, and wait until all are Ready; their names."""
    names = [f"node-{number}" for number in range(count)]
    for number, name in enumerate(names):
        try:
            await api.post("/api/v1/nodes", _node(name, _ZONES[number % len(_ZONES)]))
        except Refused as refusal:
            if refusal.status != 409:
                raise

    async def all_ready() -> bool:
        nodes = (await api.get("/api/v1/nodes"))["items"]
        return sum(is_ready(node) for node in nodes) >= count

    await eventually(all_ready, f"{count} Ready nodes", patience=30 + count / 10)
    return names


def is_ready(node: dict[str, Any]) -> bool:
    """Whether a node's or a pod's Ready condition is True."""
    return condition(node, "Ready") == "True"


def condition(thing: dict[str, Any], kind: str) -> str | None:
    """The status of a condition, or None."""
    for one in thing.get("status", {}).get("conditions", []):
        if one["type"] == kind:
            status: str = one["status"]
            return status
    return None


async def break_node(api: Api, name: str, fault: str) -> None:
    """Give a node a fault: not-ready, disk-pressure, or unknown (nobody renews its lease any more)."""
    await api.patch(f"/api/v1/nodes/{name}", {"metadata": {"annotations": {FAULT: fault}}})


async def heal_node(api: Api, name: str) -> None:
    """Take a node's fault away."""
    metadata = {"annotations": {FAULT: None}, "labels": {_KUBELET: "running"}}
    await api.patch(f"/api/v1/nodes/{name}", {"metadata": metadata})


def _node(name: str, zone: str) -> dict[str, Any]:
    size = {"cpu": "32", "memory": "256Gi", "pods": "1000", "ephemeral-storage": "1Ti"}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": {"kwok.x-k8s.io/node": "fake"},
            "labels": {
                _KUBELET: "running",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
                "node.kubernetes.io/instance-type": "lab",
                "topology.kubernetes.io/region": "lab",
                "topology.kubernetes.io/zone": f"lab-{zone}",
            },
        },
        "status": {"allocatable": size, "capacity": size},
    }
