"""Many nodes and pods in a moment: written into the store as the API server would have written them one by one.

Twenty thousand pods would keep controllers, scheduler and kubelets of a small machine busy for ten minutes. What comes
out is the same: Deployments with their ReplicaSets and pods, which live on by themselves from then on.
"""

import base64
import json
import ssl
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import cycle
from typing import Self

import aiohttp

from lab import nodes
from lab.api import Api, Json, eventually
from lab.cluster import ControlPlane
from lab.errors import LabError
from lab.nodes import Pool
from lab.workloads import PREFIX, deployment

_QUOTA = "crowd-is-being-made"


@dataclass(frozen=True)
class Crowd:
    """What was made, and how long it took."""

    nodes: list[str]
    node_seconds: float
    pod_seconds: float


async def many(
    plane: ControlPlane,
    count: int,
    pods: int = 0,
    pool: Pool | None = None,
    namespace: str = "crowd",
    apps: int = 20,
    dress: Callable[[Json], Json] = lambda node: node,
) -> Crowd:
    """Make many nodes of a pool, and many pods of some Deployments spread over them; all are Ready at the end.

    `dress` gives a node more than the lab's own have.
    """
    begun = time.monotonic()
    async with Store(plane) as store:
        names = await _make_nodes(plane.api, store, [dress(nodes.node(one, pool or Pool())) for one in range(count)])
        made = time.monotonic()
        if pods:
            await _make_pods(plane, store, names, pods, namespace, apps)
    return Crowd(names, made - begun, time.monotonic() - made)


class Store:
    """Writes into a control plane's etcd, past the API server."""

    def __init__(self, plane: ControlPlane) -> None:
        urls = [part for part in plane.children["etcd"].command if part.startswith("--listen-client-urls=")]
        self._url = urls[0].partition("=")[2]
        secrets = plane.home.secrets
        self._context = ssl.create_default_context(cafile=str(plane.authority))
        self._context.load_cert_chain(secrets / "etcd-client.crt", secrets / "etcd-client.key")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        connector = aiohttp.TCPConnector(ssl=self._context)
        self._session = aiohttp.ClientSession(connector=connector)
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._session is not None
        await self._session.close()

    async def write(self, kind: str, bodies: Iterable[Json]) -> None:
        """Put objects of one kind under their names.

        Each in a revision of its own, as the API server does: who resumes a watch between two objects of one revision
        never hears of the second.
        """
        await nodes.each(bodies, lambda body: self._put(kind, body), at_once=16)

    async def _put(self, kind: str, body: Json) -> None:
        assert self._session is not None, "the store has not been opened"
        put = {"key": _encoded(_key(kind, body)), "value": _encoded(json.dumps(body))}
        async with self._session.post(f"{self._url}/v3/kv/put", json=put) as answer:
            if answer.status != 200:
                raise LabError(f"etcd refused {body['metadata']['name']} of {kind}: {await answer.text()}")


def _key(kind: str, body: Json) -> str:
    where = [part for part in (body["metadata"].get("namespace"), body["metadata"]["name"]) if part]
    return "/".join(["/registry", kind, *where])


def _encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


async def _make_nodes(api: Api, store: Store, bodies: Sequence[Json]) -> list[str]:
    now, count = _now(), len(bodies)
    # All at once: kwok finds them Ready, so that all that is left to do is to renew their leases.
    await store.write("minions", (_born(_with_status(body, now), now) for body in bodies))
    names = [body["metadata"]["name"] for body in bodies]

    async def known() -> bool:
        leases = await api.get("/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases", resourceVersion="0")
        return {one["metadata"]["name"] for one in leases["items"]} >= set(names)

    await eventually(known, f"the leases of {count} nodes", patience=60 + count / 10, pause=0.5 + count / 1000)
    return names


def _with_status(body: Json, now: str) -> Json:
    name = body["metadata"]["name"]
    return {**body, "status": {**body["status"], **nodes.healthy_status(name, now)}}


def _born(body: Json, now: str) -> Json:
    metadata = {**body["metadata"], "uid": str(uuid.uuid4()), "creationTimestamp": now}
    return {**body, "metadata": metadata}


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


async def _make_pods(
    plane: ControlPlane, store: Store, names: Sequence[str], pods: int, namespace: str, apps: int
) -> None:
    api, manager = plane.api, plane.children["kube-controller-manager"]
    await api.post("/api/v1/namespaces", {"metadata": {"name": namespace}})
    await eventually(
        lambda: api.find(f"/api/v1/namespaces/{namespace}/serviceaccounts/default"),
        f"the ServiceAccount of {namespace}",
    )
    # Without it the controller of the ReplicaSets would make the pods before we do; the store asks no quota.
    quotas = f"/api/v1/namespaces/{namespace}/resourcequotas"
    await api.post(quotas, {"metadata": {"name": _QUOTA}, "spec": {"hard": {"pods": "0"}}})
    sizes = [pods // apps + (number < pods % apps) for number in range(apps)]
    sets = [await _make_app(api, namespace, f"app-{number}", size) for number, size in enumerate(sizes) if size]
    homes = cycle(names)
    for replicas in sets:
        # Its controller would count with each pod anew, in vain. Between two rests it has to hear of the nodes again.
        manager.pause()
        try:
            await store.write("pods", _pods_of(replicas, homes))
        finally:
            manager.resume()
        await _counted(api, replicas)
    await api.delete(f"{quotas}/{_QUOTA}")


async def _make_app(api: Api, namespace: str, name: str, size: int) -> Json:
    """Make a Deployment that can't make pods; its ReplicaSet."""
    base = f"/apis/apps/v1/namespaces/{namespace}"
    await api.post(f"{base}/deployments", deployment(name, size))

    async def found() -> Json | None:
        items: list[Json] = (await api.get(f"{base}/replicasets", labelSelector=f"app={name}"))["items"]
        return items[0] if items else None

    replicas: Json = await eventually(found, f"the ReplicaSet of {name}")
    return replicas


def _pods_of(replicas: Json, homes: Iterator[str]) -> Iterator[Json]:
    """All pods of a ReplicaSet, running."""
    about, template, now = replicas["metadata"], replicas["spec"]["template"], _now()
    owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": about["name"], "uid": about["uid"]}
    owners = [{**owner, "controller": True, "blockOwnerDeletion": True}]
    for number in range(replicas["spec"]["replicas"]):
        metadata = {"name": f"{about['name']}-{number:05}", "namespace": about["namespace"], "ownerReferences": owners}
        spec = {**template["spec"], **_ADMITTED, "nodeName": next(homes)}
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": {**template["metadata"], **metadata}, "spec": spec}
        yield _born({**body, "status": _running(template["spec"]["containers"], number, now)}, now)


_FIVE_MINUTES = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}
# What admission gives to every pod.
_ADMITTED: Json = {
    "serviceAccountName": "default",
    "serviceAccount": "default",
    "enableServiceLinks": True,
    "priority": 0,
    "preemptionPolicy": "PreemptLowerPriority",
    "tolerations": [
        {"key": "node.kubernetes.io/not-ready", **_FIVE_MINUTES},
        {"key": "node.kubernetes.io/unreachable", **_FIVE_MINUTES},
    ],
}


def _running(containers: Sequence[Json], number: int, now: str) -> Json:
    conditions = ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    ran = {"ready": True, "started": True, "restartCount": 0, "state": {"running": {"startedAt": now}}}
    address = f"10.{64 + number // 65536 % 64}.{number // 256 % 256}.{number % 256}"
    return {
        "phase": "Running",
        "qosClass": "BestEffort",
        "startTime": now,
        "podIP": address,
        "podIPs": [{"ip": address}],
        "conditions": [{"type": kind, "status": "True", "lastTransitionTime": now} for kind in conditions],
        "containerStatuses": [{"name": one["name"], "image": one["image"], "imageID": "", **ran} for one in containers],
    }


async def _counted(api: Api, replicas: Json) -> None:
    """Wait until a ReplicaSet has seen its pods. Its controller was refused so often that it sleeps: wake it."""
    name, namespace, size = (
        replicas["metadata"]["name"],
        replicas["metadata"]["namespace"],
        replicas["spec"]["replicas"],
    )
    path = f"/apis/apps/v1/namespaces/{namespace}/replicasets/{name}"

    async def counted() -> bool:
        note = {"metadata": {"annotations": {f"{PREFIX}woken": str(time.monotonic())}}}
        status: Json = (await api.patch(path, note))["status"]
        return bool(status.get("readyReplicas", 0) == size)

    await eventually(counted, f"{size} Ready pods of {name}", patience=60 + size / 10, pause=0.2)
