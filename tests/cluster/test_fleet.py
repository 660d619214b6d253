"""What the guard of the fleet tells of real nodes: their conditions are written by others, and so are the times."""

import asyncio
import json
import uuid
from collections.abc import AsyncIterator, Iterable
from datetime import datetime, timedelta
from typing import Any

import pytest

from kreflex.cluster import Reader, Transport
from kreflex.cordons import CordonNode
from kreflex.credentials import load_credentials
from kreflex.fleet import booting, complaints
from kreflex.guards import Case, Fleet, Refusal
from kreflex.nodes import Node, owner_of
from kreflex.policy import combine
from kreflex.upkeep import Upkeep
from lab import nodes
from lab.api import Api, eventually
from lab.cluster import ControlPlane, Options
from lab.nodes import Pool
from tests.kit import deployment
from tests.values import a_policy, a_record

GRACE = 6
# Nodes of a test are new: what became Ready a moment ago has healed. Other tests' nodes are in the same fleet.
QUICK = {"startup": "0s", "stormCooldown": "5s", "maxUnhealthyZone": "100%"}


@pytest.fixture(scope="module")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A control plane that misses a silent node soon."""
    async with ControlPlane(tmp_path_factory.mktemp("fleet"), Options(node_grace_seconds=GRACE)) as running:
        await nodes.start(running, 0)
        yield running


@pytest.fixture
def api(cluster: ControlPlane) -> Api:
    return cluster.api


@pytest.fixture
async def transport(cluster: ControlPlane) -> AsyncIterator[Transport]:
    connection = Transport(load_credentials(str(cluster.kubeconfig)))
    yield connection
    await connection.close()


@pytest.fixture
async def pool(api: Api) -> AsyncIterator[str]:
    """The name of a pool of this test's own; its nodes go with the test."""
    name = f"p{uuid.uuid4().hex[:6]}"
    yield name
    for node in await nodes.named(api, f"karpenter.sh/nodepool={name}"):
        await api.delete(f"/api/v1/nodes/{node}")


def a_pool(name: str, **about: Any) -> Pool:
    return Pool(f"{name}-n", labels={"karpenter.sh/nodepool": name}, **about)


async def read(transport: Transport, name: str) -> Node:
    node = await Reader(transport).node(name)
    assert node is not None
    return node


def turned(node: Node) -> datetime:
    """When its Ready became what it is."""
    ready = node.condition("Ready")
    assert ready is not None
    assert ready.since is not None
    return ready.since


async def asked(transport: Transport, name: str, **upkeep: Any) -> Refusal | None:
    """Ask the guard whether the remediation of a node may begin now."""
    node = await read(transport, name)
    action = CordonNode(because="it is ill", node=node, pool=owner_of(node.pool()))
    policy = combine((a_policy(nodes={**QUICK, **upkeep}),))
    return await Fleet(Reader(transport)).refuses(
        Case(action, policy, a_record(), "kreflex-system", transport.clock.now())
    )


async def told(transport: Transport, names: Iterable[str], **upkeep: Any) -> set[tuple[str, str]]:
    refusals = [await asked(transport, name, **upkeep) for name in names]
    return {(one.guard, one.because) if one else ("", "") for one in refusals}


async def show(api: Api, names: Iterable[str], status: str) -> None:
    for name in names:
        await nodes.shows(api, name, "Ready", status)


async def test_most_of_a_pool_ill_at_once_is_left_alone_and_healing_resumes_after_the_storm(
    api: Api, transport: Transport, pool: str
) -> None:
    names = await nodes.add(api, 5, a_pool(pool))
    await nodes.break_nodes(api, names[:3], "not-ready")
    await show(api, names[:3], "False")
    because = f"3 of 5 nodes of pool {pool} are ill, 1 is tolerated (20%)"
    assert await told(transport, names[:3]) == {("PoolBreaker", because)}

    await nodes.heal_nodes(api, names[1:3])
    await show(api, names[1:3], "True")
    refusal = await asked(transport, names[0])
    assert refusal is not None
    assert refusal.guard == "StormCooldown"
    # With the first of them two were left, which is still one too many.
    healed = max([turned(await read(transport, name)) for name in names[1:3]])
    assert refusal.until == healed + timedelta(seconds=5)

    await asyncio.sleep((refusal.until - transport.clock.now()).total_seconds() + 0.1)
    assert await told(transport, names[:1]) == {("", "")}


async def test_a_zone_that_is_out_is_left_alone(api: Api, transport: Transport, pool: str) -> None:
    zone = f"{pool}-a"
    names = [
        name
        for kind in "xyz"
        for name in await nodes.add(api, 3, Pool(f"{pool}-{kind}", {"team": f"{pool}-{kind}"}, (zone, "b", "c")))
    ]
    out = await nodes.break_zone(api, zone, "not-ready")
    await show(api, out, "False")
    because = f"3 of 3 nodes of zone {zone} are ill, 1 is tolerated (50%)"
    assert await told(transport, out, poolLabel="team", maxUnhealthyZone="50%") == {("ZoneBreaker", because)}
    assert await told(transport, out, poolLabel="team", maxUnhealthyZone="100%", stormCooldown="0s") == {("", "")}
    for name in names:
        await api.delete(f"/api/v1/nodes/{name}")


async def test_an_api_server_that_hears_of_no_kubelet_touches_nothing_until_all_have_been_back_for_a_while(
    cluster: ControlPlane, api: Api, transport: Transport, pool: str
) -> None:
    names = await nodes.add(api, 4, a_pool(pool, zones=("a", "b", "c", "d")))
    everything = {"maxUnhealthy": "100%", "maxUnhealthyZone": "50%", "stormCooldown": "10s"}
    async with nodes.blackout(cluster):
        await show(api, names, "Unknown")
        because = "4 of 4 nodes of the whole fleet are ill, 2 are tolerated (50%)"
        assert await told(transport, names, **everything) == {("FleetBreaker", because)}
    await show(api, names, "True")
    assert {guard for guard, _ in await told(transport, names, **everything)} == {"StormCooldown"}

    async def calm() -> bool:
        return await told(transport, names, **everything) == {("", "")}

    await eventually(calm, "the end of the storm")


async def test_the_control_plane_is_touched_one_node_at_a_time(api: Api, transport: Transport, pool: str) -> None:
    names = await nodes.add(api, 3, a_pool(pool, control_plane=True))
    most = {"maxUnhealthy": "100%", "stormCooldown": "0s"}
    await nodes.break_node(api, names[0], "not-ready")
    await show(api, names[:1], "False")
    assert await told(transport, names[:1], **most) == {("", "")}

    await api.patch(f"/api/v1/nodes/{names[1]}", {"spec": {"unschedulable": True}})
    because = f"{names[1]} of the control plane is cordoned: one at a time"
    assert await told(transport, names[:1], **most) == {("ControlPlane", because)}

    await api.patch(f"/api/v1/nodes/{names[1]}", {"spec": {"unschedulable": False}})
    await api.delete(f"/api/v1/nodes/{names[1]}")
    because = "of 2 control-plane nodes 1 would be left, etcd's quorum is 2"
    assert await told(transport, names[:1], **most) == {("ControlPlane", because)}


async def test_a_node_that_registers_as_a_kubelet_does_is_starting(api: Api, transport: Transport, pool: str) -> None:
    now = f"{transport.clock.now():%Y-%m-%dT%H:%M:%SZ}"
    said = {"type": "Ready", "status": "False", "reason": "KubeletNotReady", "lastTransitionTime": now}
    (well,) = await nodes.add(api, 1, a_pool(pool))
    name = f"{pool}-new"
    meta = {"name": name, "labels": {"karpenter.sh/nodepool": pool}}
    await api.post("/api/v1/nodes", {"metadata": meta, "status": {"conditions": [said]}})
    node, upkeep = await read(transport, name), Upkeep()
    # Never before there was the node, which the API server may have created in the second after.
    assert [one.since for one in complaints(node, upkeep)] == [max(turned(node), node.created)]
    assert booting(node, upkeep, transport.clock.now())
    assert not booting(await read(transport, well), upkeep, transport.clock.now())
    assert complaints(node, upkeep)[0].deadline == node.created + upkeep.startup


async def test_a_node_that_is_being_deleted_is_left_to_who_deletes_it(
    api: Api, transport: Transport, pool: str
) -> None:
    (name,) = await nodes.add(api, 1, a_pool(pool))
    path = f"/api/v1/nodes/{name}"
    await api.patch(path, {"metadata": {"finalizers": ["karpenter.sh/termination"]}})
    await api.delete(path)
    assert await told(transport, [name]) == {("AtWork", "it is being deleted: it has a deletionTimestamp")}
    await api.patch(path, {"metadata": {"finalizers": None}})


async def test_kured_is_seen_where_it_is_and_nobody_where_nobody_is(api: Api, transport: Transport, pool: str) -> None:
    """OpenShift's objects are not served here, whatever a node says of them."""
    noted = {
        "machineconfiguration.openshift.io/currentConfig": "a",
        "machineconfiguration.openshift.io/desiredConfig": "a",
    }
    names = await nodes.add(api, 2, a_pool(pool, annotations=noted))
    most = {"maxUnhealthy": "100%", "stormCooldown": "0s"}
    assert await told(transport, names, **most) == {("", "")}

    body = deployment(pool, 0)
    spec = {"selector": body["spec"]["selector"], "template": body["spec"]["template"]}
    spec["template"]["spec"]["nodeSelector"] = {"nobody": "has-this"}
    lock = {"nodeID": names[0], "created": f"{transport.clock.now():%Y-%m-%dT%H:%M:%SZ}", "TTL": 0}
    meta = {"name": pool, "annotations": {"weave.works/kured-node-lock": json.dumps(lock)}}
    path = "/apis/apps/v1/namespaces/default/daemonsets"
    await api.post(path, {"metadata": meta, "spec": spec})
    because = f"kured is restarting it: it holds the lock of DaemonSet default/{pool}"
    assert await told(transport, names, **most) == {("AtWork", because), ("", "")}
    await api.delete(f"{path}/{pool}")
