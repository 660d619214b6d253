"""Nodes fail as real ones do, and are drained as real ones are."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import count
from typing import Any

import pytest

from lab import crowd, nodes, workloads
from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane, Options
from lab.errors import LabError
from lab.nodes import Pool
from lab.workloads import PREFIX, Manifest
from tests import kit

Json = dict[str, Any]
SIGNS = [
    ("not-ready", "Ready", "False", "KubeletNotReady"),
    ("network-not-ready", "Ready", "False", "KubeletNotReady"),
    ("memory-pressure", "MemoryPressure", "True", "KubeletHasInsufficientMemory"),
    ("disk-pressure", "DiskPressure", "True", "KubeletHasDiskPressure"),
    ("pid-pressure", "PIDPressure", "True", "KubeletHasInsufficientPID"),
    ("network-unavailable", "NetworkUnavailable", "True", "NoRouteCreated"),
    ("kernel-deadlock", "KernelDeadlock", "True", "DockerHung"),
    ("readonly-filesystem", "ReadonlyFilesystem", "True", "FilesystemIsReadOnly"),
    ("xfs-shutdown", "XfsShutdown", "True", "XfsHasShutdown"),
    ("corrupt-docker-overlay2", "CorruptDockerOverlay2", "True", "CorruptDockerOverlay2"),
    ("frequent-kubelet-restart", "FrequentKubeletRestart", "True", "FrequentKubeletRestart"),
    ("frequent-docker-restart", "FrequentDockerRestart", "True", "FrequentDockerRestart"),
    ("frequent-containerd-restart", "FrequentContainerdRestart", "True", "FrequentContainerdRestart"),
    ("frequent-unregister-net-device", "FrequentUnregisterNetDevice", "True", "UnregisterNetDevice"),
    ("kubelet-unhealthy", "KubeletUnhealthy", "True", "KubeletUnhealthy"),
    ("container-runtime-unhealthy", "ContainerRuntimeUnhealthy", "True", "ContainerdUnhealthy"),
    ("kernel-unready", "KernelReady", "False", "ForkFailedOutOfPIDs"),
    ("networking-unready", "NetworkingReady", "False", "IPAMDNotRunning"),
    ("storage-unready", "StorageReady", "False", "XFSSmallAverageClusterSize"),
    ("container-runtime-unready", "ContainerRuntimeReady", "False", "PodStuckTerminating"),
    ("accelerated-hardware-unready", "AcceleratedHardwareReady", "False", "NvidiaXID79Error"),
]
TAINTS = [
    ("not-ready", "node.kubernetes.io/not-ready"),
    ("memory-pressure", "node.kubernetes.io/memory-pressure"),
    ("disk-pressure", "node.kubernetes.io/disk-pressure"),
    ("pid-pressure", "node.kubernetes.io/pid-pressure"),
    ("network-unavailable", "node.kubernetes.io/network-unavailable"),
]
GRACE = 6
numbers = count()


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A control plane with six nodes that misses a silent one soon."""
    async with ControlPlane(tmp_path_factory.mktemp("nodes"), Options(node_grace_seconds=GRACE)) as running:
        await nodes.start(running, 6)
        yield running


@pytest.fixture
def api(cluster: ControlPlane) -> Api:
    return cluster.api


@pytest.fixture
async def node(api: Api) -> AsyncIterator[str]:
    """A node of this test's own."""
    (name,) = await nodes.add(api, 1, Pool("own", zones=("lab-own",)), first=next(numbers))
    yield name
    if await api.find(f"/api/v1/nodes/{name}"):
        await api.delete(f"/api/v1/nodes/{name}")


async def body_of(api: Api, name: str) -> Json:
    return await api.get(f"/api/v1/nodes/{name}")


async def taints(api: Api, name: str) -> set[str]:
    return {taint["key"] for taint in (await body_of(api, name))["spec"].get("taints", [])}


async def is_tainted(api: Api, name: str, key: str) -> None:
    async def there() -> bool:
        return key in await taints(api, name)

    await eventually(there, f"{name} with {key}")


async def is_untainted(api: Api, name: str) -> None:
    async def clean() -> bool:
        return not await taints(api, name)

    await eventually(clean, f"{name} without taints")


async def lease(api: Api, name: str) -> Json:
    found: Json = (await api.get(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{name}"))["spec"]
    return found


def moment(text: str) -> datetime:
    return datetime.fromisoformat(text)


async def test_nodes_are_spread_over_zones_and_stay_ready(plane: ControlPlane) -> None:
    items = (await plane.api.get("/api/v1/nodes"))["items"]
    zones = {node["metadata"]["labels"]["topology.kubernetes.io/zone"] for node in items}
    assert zones == {"lab-a", "lab-b", "lab-c"}
    assert all(nodes.is_ready(node) for node in items)


def test_every_fault_has_its_sign() -> None:
    assert {fault for fault, *_ in SIGNS} == nodes.FAULTS - {"unknown"}


async def test_each_fault_is_a_condition_that_comes_and_goes(api: Api, node: str) -> None:
    for fault, kind, status, reason in SIGNS:
        await nodes.break_node(api, node, fault)
        assert (await nodes.shows(api, node, kind, status))["reason"] == reason
        ready = nodes.condition(await body_of(api, node), "Ready")
        assert ready == ("False" if kind == "Ready" else "True")
        await nodes.heal_node(api, node)
        healed = await nodes.shows(api, node, kind, "False" if status == "True" else "True")
        assert healed["reason"] != reason
    await is_untainted(api, node)


async def test_the_controller_manager_taints_an_ill_node(api: Api, node: str) -> None:
    for fault, key in TAINTS:
        await nodes.break_node(api, node, fault)
        await is_tainted(api, node, key)
    await nodes.heal_node(api, node)
    await is_untainted(api, node)


async def test_a_node_can_have_several_faults_of_which_some_end_first(api: Api, node: str) -> None:
    await nodes.break_node(api, node, "disk-pressure", "kernel-deadlock")
    await nodes.shows(api, node, "DiskPressure", "True")
    deadlock = await nodes.shows(api, node, "KernelDeadlock", "True")

    await nodes.break_node(api, node, "kernel-deadlock")
    await nodes.shows(api, node, "DiskPressure", "False")
    still = await nodes.shows(api, node, "KernelDeadlock", "True")
    assert still["lastTransitionTime"] == deadlock["lastTransitionTime"]


async def test_an_unknown_fault_is_refused(api: Api, node: str) -> None:
    with pytest.raises(LabError, match="a node has no fault tired"):
        await nodes.break_node(api, node, "tired")


async def test_the_time_of_a_transition_stays_while_the_kubelet_repeats_itself(api: Api, node: str) -> None:
    calm = await nodes.shows(api, node, "MemoryPressure", "False")
    await asyncio.sleep(1.1)
    await nodes.break_node(api, node, "memory-pressure")
    first = await nodes.shows(api, node, "MemoryPressure", "True")
    assert moment(first["lastTransitionTime"]) > moment(calm["lastTransitionTime"])
    # Of those conditions that did not change, neither moves.
    ready = await nodes.shows(api, node, "Ready", "True")
    assert moment(ready["lastTransitionTime"]) < moment(first["lastTransitionTime"])

    often = {"metadata": {"annotations": {f"{PREFIX}heartbeat-seconds": "1.1"}}}
    await api.patch(f"/api/v1/nodes/{node}", often)

    async def repeated() -> Json | None:
        again = await nodes.shows(api, node, "MemoryPressure", "True")
        late = moment(first["lastHeartbeatTime"]) + timedelta(seconds=2)
        return again if moment(again["lastHeartbeatTime"]) > late else None

    again = await eventually(repeated, "a later heartbeat")
    assert again["lastTransitionTime"] == first["lastTransitionTime"]


async def test_a_silent_kubelet_renews_no_lease_and_its_node_becomes_unknown(api: Api, node: str) -> None:
    ready = await nodes.shows(api, node, "Ready", "True")
    await nodes.break_node(api, node, "unknown")
    renewed = (await lease(api, node))["renewTime"]

    unknown = await nodes.shows(api, node, "Ready", "Unknown")
    assert unknown["reason"] == "NodeStatusUnknown"
    assert moment(unknown["lastTransitionTime"]) > moment(ready["lastTransitionTime"])
    assert unknown["lastHeartbeatTime"] == ready["lastHeartbeatTime"]
    body = await body_of(api, node)
    kinds = ("MemoryPressure", "DiskPressure", "PIDPressure", "NetworkUnavailable")
    assert [nodes.condition(body, kind) for kind in kinds] == ["Unknown", "Unknown", "Unknown", "False"]
    await is_tainted(api, node, "node.kubernetes.io/unreachable")
    assert (await lease(api, node))["renewTime"] == renewed


async def test_an_unknown_node_can_come_back_ill(api: Api, node: str) -> None:
    await nodes.break_node(api, node, "unknown")
    unknown = await nodes.shows(api, node, "Ready", "Unknown")
    await asyncio.sleep(1.1)

    await nodes.break_node(api, node, "not-ready")
    back = await nodes.shows(api, node, "Ready", "False")
    assert moment(back["lastTransitionTime"]) > moment(unknown["lastTransitionTime"])
    assert nodes.condition(await body_of(api, node), "DiskPressure") == "False"

    async def exchanged() -> bool:
        return await taints(api, node) == {"node.kubernetes.io/not-ready"}

    await eventually(exchanged, "the one taint for the other")


async def test_an_unknown_node_heals(api: Api, node: str) -> None:
    await nodes.break_node(api, node, "unknown")
    await nodes.shows(api, node, "Ready", "Unknown")
    await nodes.heal_node(api, node)
    await nodes.shows(api, node, "Ready", "True")
    await is_untainted(api, node)


async def test_a_whole_zone_fails_and_the_others_do_not(api: Api, node: str) -> None:
    ill = await nodes.break_zone(api, "lab-b", "not-ready")
    assert ill == ["node-1", "node-4"]
    for name in ill:
        await nodes.shows(api, name, "Ready", "False")
    assert sorted(await ready(api) - {node}) == ["node-0", "node-2", "node-3", "node-5"]
    await nodes.heal_nodes(api, ill)
    for name in ill:
        await nodes.shows(api, name, "Ready", "True")


async def ready(api: Api) -> set[str]:
    items = (await api.get("/api/v1/nodes"))["items"]
    return {one["metadata"]["name"] for one in items if nodes.is_ready(one)}


async def test_the_api_server_loses_sight_of_all_kubelets_and_finds_them_again(cluster: ControlPlane, api: Api) -> None:
    before = await ready(api)

    async def none_ready() -> bool:
        return not await ready(api)

    async def all_ready() -> bool:
        return await ready(api) == before

    async with nodes.blackout(cluster):
        await eventually(none_ready, "no Ready node")
    await eventually(all_ready, "all nodes Ready again")


async def test_a_pool_has_labels_zones_provider_ids_and_control_plane_nodes(api: Api) -> None:
    own = {"karpenter.sh/nodepool": "general"}
    pool = Pool("general", labels=own, zones=("z1", "z2"), control_plane=True, provider_id="aws:///{zone}/i-{name}")
    names = await nodes.add(api, 3, pool)
    assert names == ["general-0", "general-1", "general-2"] == await nodes.named(api, "karpenter.sh/nodepool=general")
    bodies = [await body_of(api, name) for name in names]
    assert [body["metadata"]["labels"][nodes.ZONE] for body in bodies] == ["z1", "z2", "z1"]
    assert [body["spec"]["providerID"] for body in bodies][:2] == ["aws:///z1/i-general-0", "aws:///z2/i-general-1"]
    assert all("node-role.kubernetes.io/control-plane" in body["metadata"]["labels"] for body in bodies)
    assert await taints(api, "general-0") == {"node-role.kubernetes.io/control-plane"}
    for name in names:
        await api.delete(f"/api/v1/nodes/{name}")


async def test_a_machine_that_was_switched_off_is_confirmed_by_the_clouds_taint(api: Api, node: str) -> None:
    await nodes.switch_off(api, node)
    assert nodes.SHUTDOWN in await taints(api, node)
    await nodes.heal_node(api, node)
    await nodes.shows(api, node, "Ready", "True")
    await is_untainted(api, node)


@pytest.fixture
async def space(api: Api) -> str:
    """A namespace of this test's own, whose pods can be made."""
    name = f"n-{uuid.uuid4().hex[:8]}"
    await api.post("/api/v1/namespaces", {"metadata": {"name": name}})

    async def usable() -> bool:
        return await api.find(f"/api/v1/namespaces/{name}/serviceaccounts/default") is not None

    await eventually(usable, f"the ServiceAccount of {name}")
    return name


async def make(api: Api, space: str, body: Manifest) -> None:
    group = "/api/v1" if body["apiVersion"] == "v1" else f"/apis/{body['apiVersion']}"
    await api.post(f"{group}/namespaces/{space}/{body['kind'].lower()}s", body)


async def pods_on(api: Api, node: str, space: str) -> list[Json]:
    items = (await api.get(f"/api/v1/namespaces/{space}/pods", fieldSelector=f"spec.nodeName={node}"))["items"]
    return [*items]


async def apps_on(api: Api, node: str, space: str) -> set[str]:
    """The apps and bare pods on a node, without what is Terminating."""
    found = [pod["metadata"] for pod in await pods_on(api, node, space)]
    return {one.get("labels", {}).get("app", one["name"]) for one in found if "deletionTimestamp" not in one}


async def runs(api: Api, node: str, space: str, apps: set[str]) -> None:
    async def running() -> bool:
        pods = await pods_on(api, node, space)
        return await apps_on(api, node, space) == apps and all(nodes.is_ready(pod) for pod in pods)

    await eventually(running, f"{', '.join(sorted(apps))} on {node}")


def tied_to(node: str) -> Manifest:
    """A spec whose pods run on one node only, and wait for it."""
    return {**workloads.pod_spec(), "nodeSelector": {"kubernetes.io/hostname": node}}


async def drain(cluster: ControlPlane, node: str, *options: str) -> str:
    """Run the real kubectl drain; its words, or an AssertionError with them."""
    return await asyncio.to_thread(kit.kubectl, cluster, "drain", node, *options)


ALL = ("--ignore-daemonsets", "--delete-emptydir-data", "--force")


async def test_kubectl_drains_a_node_and_leaves_what_belongs_to_it(
    cluster: ControlPlane, api: Api, node: str, space: str
) -> None:
    await make(api, space, workloads.daemon_set("log"))
    await make(api, space, workloads.static_pod("etcd", await body_of(api, node)))
    await make(api, space, workloads.pod("bare", spec=workloads.on(node)))
    await make(api, space, workloads.deployment("web", 2, spec=tied_to(node)))
    await make(api, space, workloads.deployment("cache", spec=workloads.scratch(tied_to(node))))
    await make(api, space, workloads.stateful_set("db", 2, spec=tied_to(node)))
    await make(api, space, workloads.budget("web", maxUnavailable=1))
    await make(api, space, workloads.budget("db", minAvailable=1))
    await runs(api, node, space, {"log", f"etcd-{node}", "bare", "web", "cache", "db"})

    with pytest.raises(AssertionError, match="declare no controller"):
        await drain(cluster, node, "--ignore-daemonsets", "--delete-emptydir-data")
    with pytest.raises(AssertionError, match="with local storage"):
        await drain(cluster, node, "--ignore-daemonsets", "--force")
    # The successors of one `web` and one `db` find no other node: a budget of one pod lets the second never go.
    kit.kubectl(cluster, "delete", "pdb", "--all", f"--namespace={space}")
    await drain(cluster, node, *ALL, "--timeout=60s")
    assert await apps_on(api, node, space) == {"log", f"etcd-{node}"}
    assert (await body_of(api, node))["spec"]["unschedulable"] is True


async def test_kubectl_drain_moves_pods_one_by_one_behind_a_budget(
    cluster: ControlPlane, api: Api, node: str, space: str
) -> None:
    # They start on this node, and may go to another.
    nearby = {"matchExpressions": [{"key": "kubernetes.io/hostname", "operator": "In", "values": [node]}]}
    wish = {
        "nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference": nearby}]}
    }
    await make(api, space, workloads.deployment("web", 4, spec={**workloads.pod_spec(), "affinity": wish}))
    await make(api, space, workloads.budget("web", maxUnavailable=1))
    await runs(api, node, space, {"web"})
    await drain(cluster, node, *ALL, "--timeout=90s")
    assert not await apps_on(api, node, space)
    status = (await api.get(f"/apis/apps/v1/namespaces/{space}/deployments/web"))["status"]
    assert status["readyReplicas"] >= 3


async def counts(api: Api, space: str, name: str, healthy: int) -> None:
    """Wait until a budget has counted its healthy pods."""
    path = f"/apis/policy/v1/namespaces/{space}/poddisruptionbudgets/{name}"

    async def counted() -> bool:
        status = (await api.get(path)).get("status", {})
        return bool(status.get("currentHealthy") == healthy and status.get("observedGeneration"))

    await eventually(counted, f"a budget with {healthy} healthy pods")


async def test_kubectl_drain_waits_for_a_budget_that_lets_nothing_go(
    cluster: ControlPlane, api: Api, node: str, space: str
) -> None:
    await make(api, space, workloads.deployment("web", 2, spec=tied_to(node)))
    await make(api, space, workloads.budget("web", maxUnavailable=0))
    await runs(api, node, space, {"web"})
    await counts(api, space, "web", 2)
    with pytest.raises(AssertionError, match="violate the pod's disruption budget"):
        await drain(cluster, node, *ALL, "--timeout=7s")
    assert await apps_on(api, node, space) == {"web"}

    await api.delete(f"/apis/policy/v1/namespaces/{space}/poddisruptionbudgets/web")
    await drain(cluster, node, *ALL, "--timeout=30s")
    assert not await apps_on(api, node, space)


async def evict(api: Api, space: str, name: str) -> None:
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name, "namespace": space}}
    await api.post(f"/api/v1/namespaces/{space}/pods/{name}/eviction", body)


async def is_gone(api: Api, space: str, name: str, patience: float = 90) -> None:
    async def gone() -> bool:
        return await api.find(f"/api/v1/namespaces/{space}/pods/{name}") is None

    await eventually(gone, f"{name} gone", patience)


async def test_a_pod_takes_its_time_to_end_but_no_longer_than_its_grace(api: Api, node: str, space: str) -> None:
    slow = workloads.fault(termination_seconds=10)
    await make(api, space, workloads.pod("patient", slow, workloads.on(node, workloads.lasting(30))))
    await make(api, space, workloads.pod("hurried", slow, workloads.on(node, workloads.lasting(1))))
    await runs(api, node, space, {"patient", "hurried"})
    clock = asyncio.get_running_loop().time
    begun = clock()
    for name in ("patient", "hurried"):
        await evict(api, space, name)
    await is_gone(api, space, "hurried")
    assert clock() - begun >= 1
    assert await api.find(f"/api/v1/namespaces/{space}/pods/patient") is not None
    await is_gone(api, space, "patient")
    assert clock() - begun >= 10


async def test_a_pod_on_a_silent_node_stays_terminating_until_the_node_is_back(api: Api, node: str, space: str) -> None:
    await make(api, space, workloads.pod("early", workloads.fault(termination_seconds=2), workloads.on(node)))
    await make(api, space, workloads.pod("late", spec=workloads.on(node)))
    await runs(api, node, space, {"early", "late"})
    # One is Terminating already when the node falls silent.
    await evict(api, space, "early")
    await nodes.break_node(api, node, "unknown")
    await evict(api, space, "late")
    await nodes.shows(api, node, "Ready", "Unknown")
    pods = await pods_on(api, node, space)
    assert {pod["metadata"]["name"] for pod in pods if "deletionTimestamp" in pod["metadata"]} == {"early", "late"}

    await nodes.heal_node(api, node)
    await is_gone(api, space, "early")
    await is_gone(api, space, "late")


async def test_the_pods_of_a_node_that_came_back_are_ready_again(api: Api, node: str, space: str) -> None:
    await make(api, space, workloads.deployment("web", spec=tied_to(node)))
    await runs(api, node, space, {"web"})
    await nodes.break_node(api, node, "unknown")

    async def unready() -> bool:
        return not any(nodes.is_ready(pod) for pod in await pods_on(api, node, space))

    await eventually(unready, "a pod that is not Ready")
    await nodes.heal_node(api, node)
    await runs(api, node, space, {"web"})


async def test_the_cloud_removes_the_node_of_a_machine_that_is_gone(api: Api, node: str) -> None:
    await nodes.remove_machine(api, node)
    with pytest.raises(Refused, match="not found"):
        await body_of(api, node)


async def test_a_crowd_of_nodes_and_pods_is_made_at_once_and_lives_on(cluster: ControlPlane, api: Api) -> None:
    pool = Pool("crowd", labels={"pool": "crowd"})
    made = await crowd.many(cluster, 20, 100, pool, namespace="crowd", apps=3)
    assert made.nodes == [f"crowd-{number}" for number in range(20)]
    assert sorted(await nodes.named(api, "pool=crowd")) == sorted(made.nodes)
    pods = (await api.get("/api/v1/namespaces/crowd/pods"))["items"]
    assert len(pods) == 100
    assert all(nodes.is_ready(pod) for pod in pods)
    assert {pod["spec"]["nodeName"] for pod in pods} == set(made.nodes)

    victim = pods[0]["metadata"]["name"]
    await evict(api, "crowd", victim)
    await is_gone(api, "crowd", victim)

    async def replaced() -> bool:
        found = (await api.get("/api/v1/namespaces/crowd/pods"))["items"]
        return len(found) == 100 and all(nodes.is_ready(pod) for pod in found)

    await eventually(replaced, "a successor of the evicted pod")
    await nodes.break_node(api, "crowd-7", "not-ready")
    await nodes.shows(api, "crowd-7", "Ready", "False")
    await api.delete("/api/v1/namespaces/crowd")
    for name in made.nodes:
        await api.delete(f"/api/v1/nodes/{name}")
