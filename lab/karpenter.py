"""Karpenter with its KWOK provider: its machines are Node objects, and the lab's kwok is the kubelet of each.

To that provider a machine is gone as soon as its Node is being deleted. So a node whose Ready condition is not True
vanishes at once when its NodeClaim is deleted; only a Ready one is drained. A cloud would drain both.
"""

import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lab import builds, manifests, nodes, processes
from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane
from lab.ports import Ports
from lab.processes import Child
from lab.toolchain import Toolchain

Json = dict[str, Any]
PROGRAM = "karpenter"
NODE_CLAIMS = "/apis/karpenter.sh/v1/nodeclaims"
NODE_POOLS = "/apis/karpenter.sh/v1/nodepools"
NODE_CLASS = {"group": "karpenter.kwok.sh", "kind": "KWOKNodeClass", "name": "lab"}
POOL = "karpenter.sh/nodepool"
"""The label that tells the pool of a Node and of a NodeClaim."""
NODE_REPAIR = "NodeRepair"
"""The feature gate by which Karpenter replaces ill nodes itself: those that are not Ready for ten minutes."""
STATIC_CAPACITY = "StaticCapacity"
"""The feature gate for pools with a number of `replicas`, which has nodes without pods that ask for them."""
DEADLINE = "karpenter.sh/nodeclaim-termination-timestamp"
"""The annotation of a NodeClaim that says when its drain has to be over: budgets hold no pod any more then."""
TAINT = "lab.kreflex.dev/pool"
_NAMESPACE = "kube-system"
_ACCOUNT = "karpenter"
_MODULE = "sigs.k8s.io/karpenter"
_ROLES = ("clusterrole", "clusterrole-kwok")
_ZONES = nodes.Pool().zones
# By this the lab's kwok knows the nodes whose kubelet it is: lab/nodes.py.
_KUBELET = "lab.kreflex.dev/kubelet"
_SIZES = (2, 4, 8, 16, 32, 64)


async def install(plane: ControlPlane) -> None:
    """Apply Karpenter's definitions, the rights that its chart gives it, and the class of all the lab's machines."""
    folder = builds.source(PROGRAM, _MODULE) / "kwok"
    definitions = sorted(folder.glob("*/crds/*.yaml"))
    node_class = {
        "apiVersion": f"{NODE_CLASS['group']}/v1alpha1",
        "kind": NODE_CLASS["kind"],
        "metadata": {"name": NODE_CLASS["name"]},
    }
    await manifests.apply(plane.api, [*manifests.read(*definitions), node_class])
    charts = [folder / "charts" / "templates" / f"{name}.yaml" for name in _ROLES]
    await manifests.grant(plane.api, _NAMESPACE, _ACCOUNT, [rule for chart in charts for rule in _rules(chart)])


def _rules(chart: Path) -> list[Json]:
    """The rules of a chart's ClusterRole: what is templated in it are names, labels and annotations."""
    lines = [line for line in chart.read_text().splitlines() if "{{" not in line]
    return [rule for document in yaml.safe_load_all("\n".join(lines)) for rule in document.get("rules", ())]


async def start(plane: ControlPlane, *gates: str) -> Child:
    """Start Karpenter, which is installed already, with these feature gates on; node repair is off unless named."""
    program = Toolchain().ensure([PROGRAM])[PROGRAM]
    machines = plane.home.config / "karpenter-machines.json"
    machines.write_text(json.dumps(machine_types(), indent=1))
    config = await plane.kubeconfig_for(_NAMESPACE, _ACCOUNT)
    features = {NODE_REPAIR: False} | dict.fromkeys(gates, True)
    with Ports() as ports:
        # It listens on all addresses, and can't be told otherwise.
        health, metrics = ports.take(), ports.take()
        command: list[str | Path] = [
            program,
            f"--health-probe-port={health}",
            f"--metrics-port={metrics}",
            f"--instance-types-file-path={machines}",
            f"--feature-gates={','.join(f'{gate}={str(on).lower()}' for gate, on in features.items())}",
            "--disable-leader-election",
            "--disable-cluster-state-observability",
        ]
        url = f"http://127.0.0.1:{health}/readyz"
        child = plane.start_child(PROGRAM, command, {"KUBECONFIG": str(config)}, url=url)
        await child.ready(processes.answers(url))
    return child


@asynccontextmanager
async def running(plane: ControlPlane, *gates: str) -> AsyncIterator[Child]:
    """Run Karpenter, which is installed already; at the end nothing is left of its pools and their nodes."""
    child = await start(plane, *gates)
    try:
        yield child
        await remove_pools(plane.api)
    finally:
        await plane.stop_child(PROGRAM)


async def remove_pools(api: Api) -> None:
    """Delete all pools, and wait until Karpenter has taken their nodes away, whatever budgets their pods have."""
    await _delete_all(api, NODE_POOLS)
    # The garbage collector would delete the claims of a pool as well, but it hears of new kinds after half a minute.
    await _delete_all(api, NODE_CLAIMS, {"metadata": {"annotations": {DEADLINE: deadline(datetime.now(UTC))}}})

    async def gone() -> bool:
        return not (await api.get(NODE_CLAIMS))["items"]

    await eventually(gone, "the end of Karpenter's nodes", patience=90)


async def _delete_all(api: Api, collection: str, last_words: Json | None = None) -> None:
    for item in (await api.get(collection))["items"]:
        path = f"{collection}/{item['metadata']['name']}"
        try:
            if last_words:
                await api.patch(path, last_words)
            await api.delete(path)
        except Refused as refusal:
            if refusal.status != 404:
                raise


def deadline(moment: datetime) -> str:
    """A value of the annotation DEADLINE."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def node_pool(name: str, cpus: int = 4, *, zones: Sequence[str] = _ZONES, **spec: Any) -> Json:
    """A pool of machines of one size in these zones, which only pods that tolerate its name's taint are put on.

    Karpenter takes none of its nodes away by itself: all that happens to them is somebody else's doing.
    """
    wanted = {
        # By this and by nothing else, or the provider makes no machine for a pool with a number of replicas.
        "node.kubernetes.io/instance-type": [f"lab-{cpus}"],
        nodes.ZONE: list(zones),
    }
    template = {
        "nodeClassRef": NODE_CLASS,
        "requirements": [{"key": key, "operator": "In", "values": values} for key, values in wanted.items()],
        "expireAfter": "Never",
        "taints": [{"key": TAINT, "value": name, "effect": "NoSchedule"}],
    }
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodePool",
        "metadata": {"name": name},
        "spec": {
            "disruption": {"consolidationPolicy": "WhenEmpty", "consolidateAfter": "Never"},
            "template": {"metadata": {"labels": {_KUBELET: "running"}}, "spec": template},
            **spec,
        },
    }


def placement(pool: str) -> Json:
    """What the spec of a pod says that shall run on a pool's nodes and nowhere else."""
    toleration = {"key": TAINT, "operator": "Equal", "value": pool, "effect": "NoSchedule"}
    return {"nodeSelector": {POOL: pool}, "tolerations": [toleration]}


def machine_types() -> list[Json]:
    """The machines that Karpenter may choose from: a few sizes, in the zones of the lab's other nodes."""
    return [_machine_type(cpus) for cpus in _SIZES]


def _machine_type(cpus: int) -> Json:
    return {
        "name": f"lab-{cpus}",
        "architecture": "amd64",
        "operatingSystems": ["linux"],
        "resources": {"cpu": str(cpus), "memory": f"{4 * cpus}Gi", "ephemeral-storage": "100Gi"},
        "offerings": [_offering(cpus, zone) for zone in _ZONES],
    }


def _offering(cpus: int, zone: str) -> Json:
    places = {"karpenter.sh/capacity-type": "on-demand", nodes.ZONE: zone}
    requirements = [{"key": key, "operator": "In", "values": [value]} for key, value in places.items()]
    return {"Price": cpus / 100, "Available": True, "Requirements": requirements}
