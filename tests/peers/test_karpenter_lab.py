"""Karpenter itself on the lab: what it does when a NodeClaim is deleted, and by what it shows that it is at work."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from lab import audit, karpenter, nodes
from lab.api import Refused, eventually
from lab.cluster import ControlPlane
from tests import kit

Json = dict[str, Any]
LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
WORK: Json = {"containers": [{"name": "app", "image": "shop:1", "resources": {"requests": {"cpu": "1500m"}}}]}
"""Two pods of these fit on a machine of four processors."""


@dataclass(frozen=True)
class Pool:
    """A pool of one test, and the namespace whose pods run on its nodes."""

    place: kit.Place

    @property
    def name(self) -> str:
        return self.place.name

    async def create(self, **spec: Any) -> None:
        await self.place.plane.api.post(karpenter.NODE_POOLS, karpenter.node_pool(self.name, **spec))

    async def shop(self, replicas: int) -> list[Json]:
        """Run pods on the pool's nodes and wait until they are Ready."""
        return await self.place.deployment("shop", replicas, **WORK, **karpenter.placement(self.name))

    async def claims(self) -> list[Json]:
        selector = f"{karpenter.POOL}={self.name}"
        items: list[Json] = (await self.place.plane.api.get(karpenter.NODE_CLAIMS, labelSelector=selector))["items"]
        return items

    async def ready_claims(self, count: int, *, without: str = "", patience: float = 120) -> list[Json]:
        """Wait until the pool has this many Ready NodeClaims and no other; none with a UID that should be gone."""

        async def found() -> list[Json] | None:
            claims = await self.claims()
            settled = all(nodes.condition(claim, "Ready") == "True" for claim in claims)
            gone = without not in [claim["metadata"]["uid"] for claim in claims]
            return claims if len(claims) == count and settled and gone else None

        claims: list[Json] = await eventually(found, f"{count} Ready NodeClaims of {self.name}", patience)
        return claims

    async def node_of(self, claim: Json) -> Json:
        return await self.place.plane.api.get(f"/api/v1/nodes/{claim['status']['nodeName']}")

    async def delete(self, claim: Json, uid: str = "") -> None:
        """Delete a NodeClaim, if it still has this UID."""
        name, own = claim["metadata"]["name"], claim["metadata"]["uid"]
        await self.place.plane.api.delete(f"{karpenter.NODE_CLAIMS}/{name}", {"preconditions": {"uid": uid or own}})

    async def node_is_gone(self, claim: Json) -> None:
        async def gone() -> bool:
            return await self.place.plane.api.find(f"/api/v1/nodes/{claim['status']['nodeName']}") is None

        await eventually(gone, f"the end of the node of {claim['metadata']['name']}", 60)


@pytest.fixture(scope="module")
async def with_karpenter(installed: ControlPlane) -> ControlPlane:
    """A control plane on which Karpenter is installed, but doesn't run yet."""
    await karpenter.install(installed)
    return installed


@pytest.fixture
async def pool(with_karpenter: ControlPlane, here: kit.Place) -> AsyncIterator[Pool]:
    """A name for a pool, while Karpenter runs that repairs no node by itself."""
    async with karpenter.running(with_karpenter, karpenter.STATIC_CAPACITY):
        yield Pool(here)


async def test_pods_that_fit_on_no_node_get_one_which_the_lab_s_kwok_runs(pool: Pool) -> None:
    await pool.create()
    pods = await pool.shop(2)
    (claim,) = await pool.ready_claims(1)
    node = await pool.node_of(claim)
    assert {pod["spec"]["nodeName"] for pod in pods} == {node["metadata"]["name"]}
    assert nodes.is_ready(node)
    assert await lease_is_renewed(pool, node)


async def test_a_node_and_its_claim_know_of_each_other(pool: Pool) -> None:
    await pool.create(zones=["lab-b"])
    await pool.shop(1)
    (claim,) = await pool.ready_claims(1)
    node = await pool.node_of(claim)
    (owner,) = node["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("NodeClaim", claim["metadata"]["uid"])
    assert node["spec"]["providerID"] == claim["status"]["providerID"]
    assert node["metadata"]["labels"][karpenter.POOL] == pool.name
    assert node["metadata"]["labels"][nodes.ZONE] == "lab-b"


async def test_the_node_of_a_deleted_claim_is_drained_and_its_pods_get_another(pool: Pool) -> None:
    await pool.create()
    pods = await pool.shop(2)
    (claim,) = await pool.ready_claims(1)
    with pytest.raises(Refused, match="409"):
        await pool.delete(claim, uid="00000000-0000-0000-0000-000000000000")
    await pool.delete(claim)
    await pool.node_is_gone(claim)

    (other,) = await pool.ready_claims(1, without=claim["metadata"]["uid"])
    successors = await pool.place.ready_pods("shop", 2)
    assert {pod["spec"]["nodeName"] for pod in successors} == {other["status"]["nodeName"]}
    assert sorted(pool.place.evictions()) == sorted(pod["metadata"]["uid"] for pod in pods)


async def test_a_disruption_budget_holds_a_drain_until_the_claim_has_a_deadline(pool: Pool) -> None:
    await pool.create()
    (pod,) = await pool.shop(1)
    await forbid_disruptions(pool)
    (claim,) = await pool.ready_claims(1)
    await pool.delete(claim)
    path = f"{karpenter.NODE_CLAIMS}/{claim['metadata']['name']}"
    await eventually(lambda: refused_evictions(pool), "an eviction that the budget refuses")
    draining = await pool.place.plane.api.get(path)
    assert nodes.condition(draining, "Drained") == "Unknown"
    assert "karpenter.sh/disrupted" in taints(await pool.node_of(claim))

    now = karpenter.deadline(datetime.now(UTC))
    await pool.place.plane.api.patch(path, {"metadata": {"annotations": {karpenter.DEADLINE: now}}})
    await pool.node_is_gone(claim)
    (successor,) = await pool.place.ready_pods("shop", 1)
    assert successor["metadata"]["uid"] != pod["metadata"]["uid"]
    assert pool.place.evictions() == []


async def test_a_silent_node_goes_with_its_claim_and_nothing_is_evicted(pool: Pool) -> None:
    await pool.create()
    await pool.shop(1)
    (claim,) = await pool.ready_claims(1)
    await nodes.break_node(pool.place.plane.api, claim["status"]["nodeName"], nodes.SILENT)
    await nodes.shows(pool.place.plane.api, claim["status"]["nodeName"], "Ready", "Unknown", 60)
    await pool.delete(claim)
    await pool.node_is_gone(claim)

    # Its pods are nobody's for two thirds of a minute, and only then another node is asked for.
    (other,) = await pool.ready_claims(1, without=claim["metadata"]["uid"], patience=150)
    (successor,) = await pool.place.ready_pods("shop", 1)
    assert successor["spec"]["nodeName"] == other["status"]["nodeName"]
    assert pool.place.evictions() == []


async def test_pods_of_a_silent_node_that_are_evicted_get_another_at_once(pool: Pool) -> None:
    await pool.create()
    (pod,) = await pool.shop(1)
    (claim,) = await pool.ready_claims(1)
    await nodes.break_node(pool.place.plane.api, claim["status"]["nodeName"], nodes.SILENT)
    await nodes.shows(pool.place.plane.api, claim["status"]["nodeName"], "Ready", "Unknown", 60)
    await evict(pool, pod)
    await pool.delete(claim)
    await pool.ready_claims(1, without=claim["metadata"]["uid"], patience=20)
    assert pool.place.evictions() == [pod["metadata"]["uid"]]


async def test_a_pool_of_a_fixed_size_is_filled_up_again_without_any_pod(pool: Pool) -> None:
    await pool.create(replicas=3)
    (first, *_) = await pool.ready_claims(3)
    await pool.delete(first)
    await pool.ready_claims(3, without=first["metadata"]["uid"])


async def test_with_node_repair_karpenter_replaces_an_ill_node_by_itself_and_says_so_before(
    with_karpenter: ControlPlane, here: kit.Place
) -> None:
    pool = Pool(here)
    async with karpenter.running(with_karpenter, karpenter.NODE_REPAIR):
        await pool.create()
        await pool.shop(1)
        (claim,) = await pool.ready_claims(1)
        await make_unhealthy(pool, claim)
        path = f"{karpenter.NODE_CLAIMS}/{claim['metadata']['name']}"

        async def at_work() -> Json | None:
            body = await pool.place.plane.api.get(path)
            reasons = [one["reason"] for one in body["status"]["conditions"] if one["type"] == "DisruptionReason"]
            return body if reasons == ["Unhealthy"] else None

        before = await eventually(at_work, "a NodeClaim whose node is being repaired", 90)
        assert "deletionTimestamp" not in before["metadata"]
        assert "karpenter.sh/disrupted" in taints(await pool.node_of(claim))
        await pool.node_is_gone(claim)
        await pool.ready_claims(1, without=claim["metadata"]["uid"])
        await pool.place.ready_pods("shop", 1)


def taints(node: Json) -> list[str]:
    """The keys of a node's taints."""
    return [taint["key"] for taint in node["spec"].get("taints", [])]


async def lease_is_renewed(pool: Pool, node: Json) -> bool:
    """Wait until a node's lease is newer than it was."""
    path = f"{LEASES}/{node['metadata']['name']}"
    api = pool.place.plane.api
    first = (await api.get(path))["spec"]["renewTime"]

    async def newer() -> bool:
        return bool((await api.get(path))["spec"]["renewTime"] > first)

    return bool(await eventually(newer, f"a renewal of the lease of {node['metadata']['name']}"))


async def forbid_disruptions(pool: Pool) -> None:
    """Let no pod of the shop be evicted, and wait until that holds."""
    budgets = f"/apis/policy/v1/namespaces/{pool.place.name}/poddisruptionbudgets"
    spec = {"maxUnavailable": 0, "selector": {"matchLabels": {"app": "shop"}}}
    await pool.place.plane.api.post(budgets, {"metadata": {"name": "shop"}, "spec": spec})

    async def holds() -> bool:
        status = (await pool.place.plane.api.get(f"{budgets}/shop")).get("status", {})
        return bool(status.get("expectedPods") == 1)

    await eventually(holds, "the budget of the shop")


async def evict(pool: Pool, pod: Json) -> None:
    """Ask a pod to leave, though nobody on its node hears it."""
    name, options = pod["metadata"]["name"], {"preconditions": {"uid": pod["metadata"]["uid"]}}
    path = f"/api/v1/namespaces/{pool.place.name}/pods/{name}/eviction"
    eviction = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}, "deleteOptions": options}
    await pool.place.plane.api.post(path, eviction)


async def refused_evictions(pool: Pool) -> int:
    """Count the evictions of this namespace that a budget refused."""
    return sum(
        entry["objectRef"].get("subresource") == "eviction" and entry["responseStatus"]["code"] == 429
        for entry in audit.entries(pool.place.plane.audit_log)
        if entry["objectRef"].get("namespace") == pool.place.name
    )


async def make_unhealthy(pool: Pool, claim: Json) -> None:
    """Let a node show the condition for which the KWOK provider has a policy of half a minute."""
    ill = {
        "type": "KWOKUnhealthy",
        "status": "True",
        "reason": "Test",
        "lastTransitionTime": karpenter.deadline(datetime.now(UTC)),
    }
    conditions = [*(await pool.node_of(claim))["status"]["conditions"], ill]
    path = f"/api/v1/nodes/{claim['status']['nodeName']}/status"
    await pool.place.plane.api.patch(path, {"status": {"conditions": conditions}})
