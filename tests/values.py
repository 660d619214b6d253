"""Values that tests of single parts build with: Kubernetes objects, policies, records, and an API server's answers."""

import asyncio
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes.client.configuration import Configuration

from kreflex.clock import ServerClock
from kreflex.cluster import Reader, Transport, Writer
from kreflex.errors import ConflictError, GoneError, UnavailableError
from kreflex.ledger import NAME as LEDGER
from kreflex.nodes import KARPENTER_POOL, ZONE, Node, node_view
from kreflex.policy import Policy, read_policy
from kreflex.prom import Metrics
from kreflex.records import Record, read_record
from kreflex.views import JSON, Pod, Ref, Workload, pod_view, workload_view
from kreflex.world import World

NOW = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
MINUTE, HOUR = timedelta(minutes=1), timedelta(hours=1)
LEDGER_PATH = f"/api/v1/namespaces/kreflex-system/configmaps/{LEDGER}"

CART = Ref("v1", "Pod", "shop", "cart-1", "uid-cart-1")
CART_SET = Ref("apps/v1", "ReplicaSet", "shop", "cart-7d4", "uid-cart-7d4")
CART_DEPLOYMENT = Ref("apps/v1", "Deployment", "shop", "cart", "uid-cart")


def stamp(moment: datetime) -> str:
    """A time as the API server writes it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


RUNNING: JSON = {"running": {"startedAt": stamp(NOW - MINUTE)}}


def waits(reason: str) -> JSON:
    return {"waiting": {"reason": reason}}


def ended(code: int = 1, reason: str = "Error", ago: timedelta = timedelta()) -> JSON:
    return {"terminated": {"exitCode": code, "reason": reason, "finishedAt": stamp(NOW - ago)}}


def a_status(name: str = "app", restarts: int = 4, state: JSON | None = None, last: JSON | None = None) -> JSON:
    """A container that has crashed, as a 1.36 kubelet shows it: terminated, no waiting reason."""
    state = ended() if state is None else state
    last = ended() if last is None else last
    return {"name": name, "restartCount": restarts, "ready": "running" in state, "state": state, "lastState": last}


def owned_by(ref: Ref) -> list[JSON]:
    return [{"apiVersion": ref.api_version, "kind": ref.kind, "name": ref.name, "uid": ref.uid, "controller": True}]


def a_pod(
    ref: Ref = CART,
    app: Iterable[JSON] = (),
    init: Iterable[JSON] = (),
    sidecars: Iterable[JSON] = (),
    owner: Ref | None = CART_SET,
    age: timedelta = 10 * MINUTE,
    ready_for: timedelta | None = None,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    phase: str = "Running",
    restart_policy: str = "Always",
    terminating: bool = False,
) -> JSON:
    """A pod of a Deployment whose one container is in a crash loop, unless told otherwise."""
    init, sidecars = list(init), list(sidecars)
    apps = list(app) or [a_status(state=RUNNING, restarts=0, last={}) if init or sidecars else a_status()]
    since = stamp(NOW - (age if ready_for is None else ready_for))
    ready = {"type": "Ready", "status": "False" if ready_for is None else "True", "lastTransitionTime": since}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "namespace": ref.namespace,
            "name": ref.name,
            "uid": ref.uid,
            "resourceVersion": "7",
            "creationTimestamp": stamp(NOW - age),
            "labels": {"pod-template-hash": "7d4"} if labels is None else labels,
            "annotations": annotations or {},
            "ownerReferences": owned_by(owner) if owner else [],
            **({"deletionTimestamp": stamp(NOW)} if terminating else {}),
        },
        "spec": {
            "restartPolicy": restart_policy,
            "containers": [{"name": one["name"]} for one in apps],
            "initContainers": [{"name": one["name"]} for one in init]
            + [{"name": one["name"], "restartPolicy": "Always"} for one in sidecars],
        },
        "status": {
            "phase": phase,
            "conditions": [ready],
            "containerStatuses": apps,
            "initContainerStatuses": init + sidecars,
        },
    }


def the_pod(**about: Any) -> Pod:
    return pod_view(a_pod(**about))


def a_workload(
    ref: Ref = CART_DEPLOYMENT,
    owner: Ref | None = None,
    replicas: int | None = 3,
    ready: int | None = 2,
    annotations: dict[str, str] | None = None,
) -> JSON:
    """A Deployment of three replicas of which two are Ready, unless told otherwise."""
    return {
        "apiVersion": ref.api_version,
        "kind": ref.kind,
        "metadata": {
            "namespace": ref.namespace,
            "name": ref.name,
            "uid": ref.uid,
            "annotations": annotations or {},
            "ownerReferences": owned_by(owner) if owner else [],
        },
        "spec": {"replicas": replicas},
        "status": {"readyReplicas": ready},
    }


def the_workload(**about: Any) -> Workload:
    return workload_view(a_workload(**about))


def says(kind: str, status: str, ago: timedelta | None = HOUR, reason: str = "") -> JSON:
    """A condition of a node, and how long ago it became so."""
    since = {} if ago is None else {"lastTransitionTime": stamp(NOW - ago)}
    return {"type": kind, "status": status, **since, **({"reason": reason} if reason else {})}


def a_node(
    name: str = "blue-1",
    *conditions: JSON,
    pool: str = "blue",
    zone: str = "zone-a",
    age: timedelta = 24 * HOUR,
    control_plane: bool = False,
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
    taints: Iterable[JSON] = (),
    provider_id: str = "",
    unschedulable: bool = False,
    terminating: bool = False,
    uid: str = "",
) -> JSON:
    """A node of Karpenter's pool blue that has been Ready for an hour, unless told otherwise."""
    belongs = {KARPENTER_POOL: pool} if pool else {}
    place = {ZONE: zone} if zone else {}
    role = {"node-role.kubernetes.io/control-plane": ""} if control_plane else {}
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "uid": uid or f"uid-{name}",
            "resourceVersion": "7",
            "creationTimestamp": stamp(NOW - age),
            "labels": {**belongs, **place, **role, **(labels or {})},
            "annotations": annotations or {},
            **({"deletionTimestamp": stamp(NOW)} if terminating else {}),
        },
        "spec": {
            "taints": list(taints),
            **({"providerID": provider_id} if provider_id else {}),
            **({"unschedulable": True} if unschedulable else {}),
        },
        "status": {"conditions": list(conditions) or [says("Ready", "True")]},
    }


def the_node(name: str = "blue-1", *conditions: JSON, **about: Any) -> Node:
    return node_view(a_node(name, *conditions, **about))


def a_policy(name: str = "all", namespace: str = "", generation: int = 1, **spec: Any) -> Policy:
    """A ClusterRemediationPolicy that lets act, or a namespace's own RemediationPolicy."""
    meta = {"name": name, "namespace": namespace, "uid": f"uid-{namespace}-{name}", "generation": generation}
    kind = "RemediationPolicy" if namespace else "ClusterRemediationPolicy"
    return read_policy({"kind": kind, "metadata": meta, "spec": {"mode": "Auto", **spec}})


def a_record(
    spec: JSON | None = None, status: JSON | None = None, version: str = "1", age: timedelta = MINUTE
) -> Record:
    """The open record of the pod's crash loop."""
    return read_record(a_record_body(spec, status, version, age))


def a_record_body(
    spec: JSON | None = None, status: JSON | None = None, version: str = "1", age: timedelta = MINUTE
) -> JSON:
    owner = {**_target(CART_DEPLOYMENT), "templateHash": "7d4", "controller": CART_SET.uid}
    fault = {"key": "restart-loop-killer/uid-cart-1"}
    return {
        "metadata": {
            "namespace": "shop",
            "name": "restart-loop-killer-cart-1-5b0e1cc5",
            "uid": "uid-record",
            "resourceVersion": version,
            "creationTimestamp": stamp(NOW - age),
        },
        "spec": {
            "function": "restart-loop-killer",
            "target": _target(CART),
            "owner": owner,
            "fault": fault,
            **(spec or {}),
        },
        "status": status or {},
    }


def _target(ref: Ref) -> JSON:
    return {
        "apiVersion": ref.api_version,
        "kind": ref.kind,
        "namespace": ref.namespace,
        "name": ref.name,
        "uid": ref.uid,
    }


class Watch(ServerClock):
    """A server's time that stands until it is stepped."""

    def __init__(self, moment: datetime = NOW) -> None:
        super().__init__()
        self.moment = moment

    def now(self) -> datetime:
        return self.moment


class CannedApi(Transport):
    """Answers reads from objects by path, and replaces one under its resourceVersion; `calls` tells what was asked.

    `before` is called ahead of each call: there a test lets somebody else act in between.
    """

    def __init__(self, objects: dict[str, JSON] | None = None) -> None:
        super().__init__(Configuration())
        self.objects = objects or {}
        self.clock = self.watch = Watch()
        self.calls: list[str] = []
        self.down = False

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        self.calls.append(f"{method} {path}")
        await asyncio.sleep(0)  # Others run meanwhile, as they do while a real server answers.
        self.before(method)
        if self.down:
            raise UnavailableError("the API server did not answer")
        if method == "PUT":
            assert body is not None
            return self._replace(path, body)
        if path in self.objects:
            return self.objects[path]
        below = [one for name, one in self.objects.items() if name.rpartition("/")[0] in {path, _in_namespaces(path)}]
        if below or path.endswith("s"):
            wanted = (options.get("query") or {}).get("fieldSelector", "")
            return {"items": [body for body in below if _matches(body, wanted)], "metadata": {}}
        raise GoneError(f"{path} is not there", 404)

    def before(self, method: str) -> None:
        """Nothing happens in between, unless a test says so."""

    def _replace(self, path: str, body: JSON) -> JSON:
        if path not in self.objects:
            raise GoneError(f"{path} is not there", 404)
        version = self.objects[path]["metadata"]["resourceVersion"]
        if body["metadata"]["resourceVersion"] != version:
            raise ConflictError(f"{path} has changed", 409)
        self.objects[path] = {**body, "metadata": {**body["metadata"], "resourceVersion": str(int(version) + 1)}}
        return self.objects[path]

    @property
    def writes(self) -> list[str]:
        return [call for call in self.calls if not call.startswith("GET")]

    def world(self, metrics: Metrics | None = None) -> World:
        return World(Reader(self), metrics or CannedMetrics())

    def pair(self) -> tuple[Reader, Writer]:
        return Reader(self), Writer(self)


def _matches(body: JSON, selector: str) -> bool:
    """Whether a field selector of one requirement selects an object."""
    path, _, wanted = selector.partition("=")
    value: Any = body
    for part in path.split(".") if path else ():
        value = value.get(part, {})
    return not path or value == wanted


def _in_namespaces(path: str) -> str:
    base, _, plural = path.rpartition("/")
    return f"{base}/namespaces/shop/{plural}"


def objects(*bodies: JSON) -> dict[str, JSON]:
    """Objects of namespace shop by their paths."""
    groups = {"Pod": "/api/v1", "Deployment": "/apis/apps/v1", "ReplicaSet": "/apis/apps/v1"}
    return {
        f"{groups[body['kind']]}/namespaces/shop/{body['kind'].lower()}s/{body['metadata']['name']}": body
        for body in bodies
    }


class CannedMetrics(Metrics):
    """A Prometheus with answers in order, the last of them again and again; without an answer it is down."""

    def __init__(self, *answer: float | None) -> None:
        super().__init__("")
        self.answer = answer
        self.queries: list[str] = []

    async def scalar(self, query: str) -> float | None:
        self.queries.append(query)
        if not self.answer:
            raise UnavailableError("Prometheus did not answer")
        return self.answer[min(len(self.queries), len(self.answer)) - 1]


def an_empty_ledger(entries: str = "[]") -> dict[str, JSON]:
    return {LEDGER_PATH: {"metadata": {"resourceVersion": "1"}, "data": {"entries": entries}}}
