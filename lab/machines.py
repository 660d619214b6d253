"""Cluster API on a control plane: its own controllers and webhooks, and a cloud that gives them machines.

The management cluster is the workload cluster, too. Its control plane is somebody else's, as with EKS or GKE: only so,
or beside Machines of a control plane, does Cluster API drain and remove the nodes of Machines. What the controllers of
a provider would do is done here: for the LabCluster and the LabControlPlane once, for LabMachines by `Cloud`.
"""

import asyncio
import base64
import contextlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab import builds, manifests, nodes, processes
from lab.api import Api, Refused, eventually
from lab.certificates import Authority
from lab.cluster import ControlPlane
from lab.ports import Ports
from lab.toolchain import Toolchain

Json = dict[str, Any]
PROGRAM = "capi_manager"
NAMESPACE = "capi-system"
ACCOUNT = "capi-manager"
CLUSTER_API = "/apis/cluster.x-k8s.io/v1beta2"
MACHINE = "cluster.x-k8s.io/machine"
DEPLOYMENT = "cluster.x-k8s.io/deployment-name"
_MODULE = "sigs.k8s.io/cluster-api"
_VERSION = "v1.36.3"
_INFRASTRUCTURE = "infrastructure.cluster.x-k8s.io"
_CONTROL_PLANE = "controlplane.cluster.x-k8s.io"
_KINDS = {
    "LabCluster": _INFRASTRUCTURE,
    "LabMachine": _INFRASTRUCTURE,
    "LabMachineTemplate": _INFRASTRUCTURE,
    "LabControlPlane": _CONTROL_PLANE,
}
_OURS = "v1alpha1"
_LAB_MACHINES = f"/apis/{_INFRASTRUCTURE}/{_OURS}/labmachines"
_FINALIZER = "lab.kreflex.dev/cloud"
_PAUSE = 0.2


@dataclass
class Cloud:
    """Runs a machine, and with it a Node, for each LabMachine, for as long as that is not deleted."""

    api: Api
    sold_out: bool = False
    """New LabMachines wait until it has machines again."""

    async def serve(self) -> None:
        """Give and take away machines until cancelled."""
        while True:
            for machine in (await self.api.get(_LAB_MACHINES))["items"]:
                await self._settle(machine)
            await asyncio.sleep(_PAUSE)

    async def _settle(self, machine: Json) -> None:
        if "deletionTimestamp" in machine["metadata"]:
            await self._take_away(machine)
        elif not machine.get("status") and not self.sold_out:
            await self._give(machine)

    async def _give(self, machine: Json) -> None:
        path, node = _lab_machine(machine), node_of(machine)
        spec = {"providerID": node["spec"]["providerID"]}
        await _unless(404, self.api.patch(path, {"metadata": {"finalizers": [_FINALIZER]}, "spec": spec}))
        await _unless(409, self.api.post("/api/v1/nodes", node))
        status = {
            "initialization": {"provisioned": True},
            "addresses": [{"type": "Hostname", "address": node["metadata"]["name"]}],
        }
        await _unless(404, self.api.patch(f"{path}/status", {"status": status}))

    async def _take_away(self, machine: Json) -> None:
        # As a cloud's node controller does. Cluster API would remove the Node, too, but not that of a Cluster which
        # is being deleted.
        await _unless(404, self.api.delete(f"/api/v1/nodes/{node_of(machine)['metadata']['name']}"))
        await _unless(404, self.api.patch(_lab_machine(machine), {"metadata": {"finalizers": None}}))


def node_of(machine: Json) -> Json:
    """The Node of a LabMachine as its kubelet registers it; its name is not the Machine's."""
    provider = f"lab://{machine['metadata']['uid']}"
    zone = machine["spec"]["zone"]
    return nodes.node(0, nodes.Pool(machine["metadata"]["name"], zones=(zone,), provider_id=provider))


@asynccontextmanager
async def running(plane: ControlPlane) -> AsyncIterator[Cloud]:
    """Install Cluster API, and run its controllers and the cloud."""
    program = (await asyncio.to_thread(Toolchain().ensure, [PROGRAM]))[PROGRAM]
    config = await asyncio.to_thread(_configuration)
    with Ports() as ports:
        webhooks, health, diagnostics = (ports.take() for _ in range(3))
        folder = plane.home.secrets / "cluster-api"
        folder.mkdir(exist_ok=True)
        authority = Authority(folder)
        pair = authority.issue("webhooks")
        client = {"url": f"https://127.0.0.1:{webhooks}", "caBundle": base64.b64encode(authority.pem).decode()}
        await _install(plane, config, client)
        command: list[str | Path] = [
            program,
            f"--kubeconfig={await plane.kubeconfig_for(NAMESPACE, ACCOUNT)}",
            f"--webhook-port={webhooks}",
            f"--webhook-cert-dir={folder}",
            f"--webhook-cert-name={pair.certificate.name}",
            f"--webhook-key-name={pair.key.name}",
            f"--health-addr=127.0.0.1:{health}",
            f"--diagnostics-address=127.0.0.1:{diagnostics}",
            "--insecure-diagnostics",
        ]
        url = f"http://127.0.0.1:{health}/readyz"
        child = plane.start_child(PROGRAM, command, url=url)
        try:
            await child.ready(processes.answers(url))
            async with _admission(plane, config, client), _serving(Cloud(plane.api)) as cloud:
                yield cloud
        finally:
            await plane.stop_child(PROGRAM)


@dataclass(frozen=True)
class Configuration:
    """What a release of Cluster API has in its manifest, without what it needs cert-manager for."""

    definitions: list[Json]
    admission: list[Json]
    rules: list[Json]


def _configuration() -> Configuration:
    folder = builds.source(PROGRAM, _MODULE) / "core" / "config"
    (role,) = _read([folder / "rbac" / "role.yaml"])
    return Configuration(
        definitions=_read(sorted((folder / "crd" / "bases").glob("*.yaml"))),
        admission=_read([folder / "webhook" / "manifests.yaml"]),
        rules=role["rules"],
    )


def _read(files: Iterable[Path]) -> list[Json]:
    # The loader in C: Cluster API's definitions have 40,000 lines.
    return [body for file in files for body in yaml.load_all(file.read_text(), yaml.CSafeLoader) if body]


async def _install(plane: ControlPlane, config: Configuration, client: Json) -> None:
    webhook = {"conversionReviewVersions": ["v1"], "clientConfig": _at(client, "/convert")}
    for definition in config.definitions:
        definition["spec"]["conversion"] = {"strategy": "Webhook", "webhook": webhook}
    # The label tells Cluster API which of a kind's versions follow which of its contracts.
    contract = {"cluster.x-k8s.io/v1beta2": _OURS}
    ours = [manifests.definition(f"{group}/{_OURS}", kind, contract) for kind, group in _KINDS.items()]
    await manifests.apply(plane.api, [*config.definitions, *ours])
    await manifests.grant(plane.api, NAMESPACE, ACCOUNT, config.rules)


@asynccontextmanager
async def _admission(plane: ControlPlane, config: Configuration, client: Json) -> AsyncIterator[None]:
    """Let the API server ask the webhooks, for as long as they answer."""
    for one in config.admission:
        one["metadata"]["name"] = f"capi-{one['metadata']['name']}"
        for webhook in one["webhooks"]:
            webhook["clientConfig"] = _at(client, webhook["clientConfig"]["service"]["path"])
    await manifests.apply(plane.api, config.admission)
    try:
        yield
    finally:
        for one in config.admission:
            collection = f"{one['kind'].lower()}s"
            await plane.api.delete(f"/apis/{one['apiVersion']}/{collection}/{one['metadata']['name']}")


def _at(client: Json, path: str) -> Json:
    return {**client, "url": client["url"] + path}


@asynccontextmanager
async def _serving(cloud: Cloud) -> AsyncIterator[Cloud]:
    task = asyncio.create_task(cloud.serve())
    try:
        yield cloud
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def make_cluster(plane: ControlPlane, namespace: str, name: str) -> None:
    """Make a Cluster whose infrastructure and control plane exist already: they are this lab."""
    endpoint = {"host": "127.0.0.1", "port": int(plane.url.rpartition(":")[2])}
    control_plane = {"controlPlaneEndpoint": endpoint, "version": _VERSION}
    references = {
        "infrastructureRef": _reference("LabCluster", name),
        "controlPlaneRef": _reference("LabControlPlane", name),
    }
    bodies = [
        await _credentials(plane, name),
        _object("LabCluster", name, {"controlPlaneEndpoint": endpoint}),
        _object("LabControlPlane", name, control_plane),
    ]
    await manifests.apply(plane.api, bodies, namespace)
    await _say(plane, namespace, "LabCluster", name, {"initialization": {"provisioned": True}})
    ready = {
        "initialization": {"controlPlaneInitialized": True},
        "externalManagedControlPlane": True,
        "version": _VERSION,
    }
    await _say(plane, namespace, "LabControlPlane", name, ready)
    cluster = {"apiVersion": "cluster.x-k8s.io/v1beta2", "kind": "Cluster", "metadata": {"name": name}}
    await manifests.apply(plane.api, [{**cluster, "spec": references}], namespace)


async def make_pool(
    plane: ControlPlane,
    namespace: str,
    cluster: str,
    name: str,
    replicas: int,
    *,
    zone: str = "lab-a",
    labels: dict[str, str] | None = None,
    **machine: Any,
) -> list[Json]:
    """Make a MachineDeployment, with labels and more for its Machines if need be, and wait for its nodes."""
    template = _object("LabMachineTemplate", name, {"template": {"spec": {"zone": zone}}})
    spec = {
        "clusterName": cluster,
        "version": _VERSION,
        # Of a machine that boots nothing.
        "bootstrap": {"dataSecretName": f"{cluster}-kubeconfig"},
        "infrastructureRef": _reference("LabMachineTemplate", name),
        **machine,
    }
    deployment = {
        "apiVersion": "cluster.x-k8s.io/v1beta2",
        "kind": "MachineDeployment",
        "metadata": {"name": name},
        "spec": {
            "clusterName": cluster,
            "replicas": replicas,
            "selector": {},
            "template": {"metadata": {"labels": labels or {}}, "spec": spec},
        },
    }
    await manifests.apply(plane.api, [template, deployment], namespace)
    return await ready_nodes(plane, namespace, name, replicas)


async def machines(plane: ControlPlane, namespace: str, pool: str) -> list[Json]:
    """The Machines of a MachineDeployment, with those that are going."""
    answer = await plane.api.get(f"{CLUSTER_API}/namespaces/{namespace}/machines", labelSelector=f"{DEPLOYMENT}={pool}")
    items: list[Json] = answer["items"]
    return items


async def ready_nodes(plane: ControlPlane, namespace: str, pool: str, count: int, patience: float = 90.0) -> list[Json]:
    """Wait until a MachineDeployment has this many Machines, no others, each bound to a Ready node; the nodes."""

    async def found() -> list[Json] | None:
        present = await machines(plane, namespace, pool)
        bound = {(one["metadata"]["name"], one.get("status", {}).get("nodeRef", {}).get("name")) for one in present}
        every = (await plane.api.get("/api/v1/nodes"))["items"]
        ready = [node for node in every if nodes.is_ready(node) and _binding(node) in bound]
        return ready if len(ready) == len(bound) == count else None

    ready: list[Json] = await eventually(found, f"{count} Ready nodes of {namespace}/{pool}", patience)
    return ready


def _binding(node: Json) -> tuple[str | None, str]:
    """The Machine that a node names, and the node."""
    return node["metadata"].get("annotations", {}).get(MACHINE), node["metadata"]["name"]


async def remove_cluster(plane: ControlPlane, namespace: str, name: str) -> None:
    """Delete a Cluster with its Machines and nodes."""
    path = f"{CLUSTER_API}/namespaces/{namespace}/clusters/{name}"
    await plane.api.delete(path)

    async def gone() -> bool:
        return await plane.api.find(path) is None

    await eventually(gone, f"the end of the Cluster {namespace}/{name}", 120)


async def _credentials(plane: ControlPlane, cluster: str) -> Json:
    """The Secret with which Cluster API reaches the workload cluster."""
    config = yaml.safe_load(plane.kubeconfig.read_text())
    authority = {"certificate-authority-data": _encoded(plane.authority.read_bytes())}
    config["clusters"][0]["cluster"] = {"server": plane.url, **authority}
    return {
        "apiVersion": "v1",
        "kind": "Secret",
        "type": "cluster.x-k8s.io/secret",
        "metadata": {"name": f"{cluster}-kubeconfig", "labels": {"cluster.x-k8s.io/cluster-name": cluster}},
        "data": {"value": _encoded(yaml.safe_dump(config).encode())},
    }


def _encoded(content: bytes) -> str:
    return base64.b64encode(content).decode()


def _object(kind: str, name: str, spec: Json) -> Json:
    return {"apiVersion": f"{_KINDS[kind]}/{_OURS}", "kind": kind, "metadata": {"name": name}, "spec": spec}


def _reference(kind: str, name: str) -> Json:
    return {"apiGroup": _KINDS[kind], "kind": kind, "name": name}


async def _say(plane: ControlPlane, namespace: str, kind: str, name: str, status: Json) -> None:
    path = f"/apis/{_KINDS[kind]}/{_OURS}/namespaces/{namespace}/{kind.lower()}s/{name}"
    await plane.api.patch(f"{path}/status", {"status": status})


def _lab_machine(machine: Json) -> str:
    metadata = machine["metadata"]
    return f"/apis/{_INFRASTRUCTURE}/{_OURS}/namespaces/{metadata['namespace']}/labmachines/{metadata['name']}"


async def _unless(status: int, request: Any) -> None:
    """Make a request that may find what it was to bring about."""
    try:
        await request
    except Refused as refusal:
        if refusal.status != status:
            raise
