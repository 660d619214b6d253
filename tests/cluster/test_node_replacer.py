"""node-replacer on a real API server: real node lifecycle, scheduler and evictions, with a stand-in for the cloud."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from aiohttp import web

from functions.node_replacer import main as replacer
from kreflex.cordons import CordonNode
from kreflex.errors import ConflictError
from kreflex.nodes import MARK, owner_of
from kreflex.policy import load_policies
from kreflex.records import read_record
from kreflex.reflex import Arc
from kreflex.serve import REFLEXES
from kreflex.signals import Answered, Due, NodeSignal
from lab import audit, claims, nodes
from lab.api import eventually
from lab.cluster import ControlPlane, Options
from tests import kit

assert replacer.main is not None
HOME = "kreflex-system"
LEDGER = f"/api/v1/namespaces/{HOME}/configmaps/kreflex-ledger"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/medik8s-leases/leases"
RECORDS = f"/apis/kreflex.dev/v1alpha1/namespaces/{HOME}/remediations"
POLICY = "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies/nodes"
REFLEX = replace(REFLEXES["node-replacer"], settings=replacer.NodeReplacerSettings(silent_after=timedelta(seconds=5)))
QUICK = [{"type": "Ready", "status": status, "for": "1s"} for status in ("False", "Unknown")]


@dataclass
class Farm:
    """A control plane with Kreflex, and a cloud of machines."""

    plane: ControlPlane
    cloud: claims.Cloud

    async def policy(self, nodes: dict[str, Any] | None = None, **spec: Any) -> None:
        """Set the policy for nodes: Auto and quick, unless told otherwise; it holds when this returns."""
        limits = {"cooldown": "0s", "rates": [], "maxInFlight": 5, **spec.pop("limits", {})}
        times = {"stormCooldown": "1s", "startup": "1s"}
        upkeep = {"conditions": QUICK, "maxUnhealthy": 1, "maxUnhealthyZone": "100%", **times, **(nodes or {})}
        common = {"functions": ["node-replacer"], "mode": "Auto", "owners": ["Node"], "proof": "1s"}
        body = {
            "apiVersion": "kreflex.dev/v1alpha1",
            "kind": "ClusterRemediationPolicy",
            "metadata": {"name": "nodes"},
            "spec": {**common, "limits": limits, "nodes": upkeep, **spec},
        }
        await self.plane.api.apply(POLICY, body)
        await asyncio.sleep(1.1)  # The core may share a reading of the policies for a second.

    async def record(self, node: str) -> dict[str, Any]:
        """Read the newest record of a node."""
        items = [one for one in (await self.plane.api.get(RECORDS))["items"] if one["spec"]["target"]["name"] == node]
        newest: dict[str, Any] = max(items, key=lambda item: item["metadata"]["creationTimestamp"])
        return newest

    async def the_node(self, name: str) -> dict[str, Any]:
        found = await self.node(name)
        assert found is not None
        return found

    async def lease(self, node: str) -> dict[str, Any]:
        """Read the Lease by which those who remediate nodes keep out of each other's way."""
        return await self.plane.api.get(f"{LEASES}/node-{node}")

    async def tidy(self) -> None:
        """See that nothing of ours is left on any node, and take the test's nodes away."""
        assert (await self.plane.api.get(LEASES))["items"] == []
        for node in (await self.plane.api.get("/api/v1/nodes"))["items"]:
            assert not node["spec"].get("unschedulable"), node["metadata"]["name"]
            assert MARK not in node["metadata"].get("annotations", {})
        self.cloud.replaces = False
        for claim in (await self.plane.api.get(claims.CLAIMS))["items"]:
            await self.plane.api.delete(f"{claims.CLAIMS}/{claim['metadata']['name']}")

        async def gone() -> bool:
            return not (await self.plane.api.get("/api/v1/nodes"))["items"]

        await eventually(gone, "an empty fleet")
        self.cloud.replaces = True

    def touched(self, *names: str) -> list[str]:
        """Tell what was written by the function to these nodes and what stands behind them."""
        return [
            f"{entry['verb']} {entry['requestURI']}"
            for entry in audit.entries(self.plane.audit_log)
            if entry["user"]["username"].endswith(":node-replacer")
            and entry["verb"] in {"patch", "update", "delete", "create"}
            and entry["objectRef"].get("resource") in {"nodes", "nodeclaims"}
            and entry["objectRef"].get("name") in names
        ]

    async def node(self, name: str) -> dict[str, Any] | None:
        return await self.plane.api.find(f"/api/v1/nodes/{name}")

    def forbidden(self) -> list[str]:
        """Tell what the API server forbade the function."""
        return [
            f"{entry['verb']} {entry['requestURI']} {entry['responseStatus'].get('message', '')}"
            for entry in audit.entries(self.plane.audit_log)
            if entry["user"]["username"].endswith(":node-replacer") and entry["responseStatus"]["code"] == 403
        ]


@pytest.fixture(scope="module")
async def farm(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Farm]:
    async with ControlPlane(tmp_path_factory.mktemp("farm"), Options(node_grace_seconds=6)) as plane:
        await nodes.start(plane, 0)
        await kit.install(plane)
        async with claims.cloud(plane) as cloud:
            made = Farm(plane, cloud)
            yield made
        assert made.forbidden() == []


@asynccontextmanager
async def arc(farm: Farm, time_budget: str = "20s") -> AsyncIterator[Arc[Any]]:
    async with kit.arc_of(farm.plane, REFLEX, time_budget=time_budget) as made:
        yield made


async def woken(farm: Farm, arc: Arc[Any], node: str) -> dict[str, Any]:
    """Say that a node is ill, and give the record that this has led to."""
    await arc.handle(NodeSignal(node))
    return await farm.record(node)


async def settled(farm: Farm, arc: Arc[Any], *names: str, patience: float = 120) -> list[dict[str, Any]]:
    """Wake the function for the nodes' records, as the waker would, until all are Done; the records."""

    async def done() -> list[dict[str, Any]] | None:
        records = [await farm.record(name) for name in names]
        rest = [one for one in records if one["status"]["phase"] != "Done"]
        for record in rest:
            await arc.handle(Due(HOME, record["metadata"]["name"]))
        return None if rest else records

    found: list[dict[str, Any]] = await eventually(done, f"an end for {names}", patience, 0.5)
    return found


async def falls_ill(farm: Farm, *names: str, fault: str = "not-ready") -> None:
    """Break nodes, and wait until the cluster says so for long enough."""
    await nodes.break_nodes(farm.plane.api, names, fault)
    status = "Unknown" if fault == "unknown" else "False"
    for name in names:
        await nodes.shows(farm.plane.api, name, "Ready", status)
    await asyncio.sleep(1.5)


def steps(record: dict[str, Any]) -> list[str]:
    return [step["action"] for step in record["status"].get("steps", [])]


async def a_shop(farm: Farm, replicas: int, **spec: Any) -> kit.Place:
    place = await kit.place(farm.plane)
    body = kit.deployment("shop", replicas, **spec)
    await farm.plane.api.post(f"/apis/apps/v1/namespaces/{place.name}/deployments", body)
    await place.ready_pods("shop", replicas)
    return place


async def guarded(place: kit.Place, **spec: Any) -> None:
    """Put a PodDisruptionBudget over the shop, and wait until it counts."""
    path = f"/apis/policy/v1/namespaces/{place.name}/poddisruptionbudgets"
    selector = {"matchLabels": {"app": "shop"}}
    await place.plane.api.post(path, {"metadata": {"name": "shop"}, "spec": {"selector": selector, **spec}})

    async def counted() -> bool:
        return bool((await place.plane.api.get(f"{path}/shop")).get("status", {}).get("observedGeneration"))

    await eventually(counted, "a budget that counts")


def only_on(pool: str) -> dict[str, Any]:
    """Pods for the nodes of one pool."""
    return {"nodeSelector": {claims.POOL: pool}}


async def test_a_node_that_is_not_ready_is_emptied_replaced_and_its_pool_is_whole_again(farm: Farm) -> None:
    await farm.policy()
    names = await farm.cloud.pool("blue", 3)
    place = await a_shop(farm, 6, **only_on("blue"))
    await falls_ill(farm, names[0])
    async with arc(farm) as replacer_:
        await woken(farm, replacer_, names[0])
        (record,) = await settled(farm, replacer_, names[0])
    assert record["status"]["verdict"] == "Recovered"
    assert steps(record) == ["CordonNode", "EvictPods", "DeleteNodeClaim"]
    assert await farm.node(names[0]) is None
    assert sorted(set(place.evictions())) == sorted(place.evictions()) != []
    await farm.tidy()


async def test_a_silent_node_is_replaced_and_nobody_waits_for_its_pods(farm: Farm) -> None:
    await farm.policy()
    (name, *_) = await farm.cloud.pool("silent", 2)
    place = await a_shop(farm, 4, **only_on("silent"))
    await falls_ill(farm, name, fault="unknown")
    async with arc(farm) as replacer_:
        await woken(farm, replacer_, name)
        (record,) = await settled(farm, replacer_, name)
    assert record["status"]["verdict"] == "Recovered"
    assert steps(record) == ["CordonNode", "EvictPods", "DeleteNodeClaim"]
    assert len(set(place.evictions())) == len(place.evictions()) == 2
    await farm.tidy()


async def test_a_node_that_heals_while_it_is_emptied_is_uncordoned_and_kept(farm: Farm) -> None:
    await farm.policy()
    (name,) = await farm.cloud.pool("heals", 1)
    place = await a_shop(farm, 2, **only_on("heals"))
    await guarded(place, maxUnavailable=0)
    await falls_ill(farm, name)
    async with arc(farm, time_budget="6s") as replacer_:
        begun = await woken(farm, replacer_, name)
        assert (begun["status"]["phase"], steps(begun)) == ("Acting", ["CordonNode", "EvictPods"])
        assert (await farm.the_node(name))["spec"]["unschedulable"] is True
        assert (await farm.lease(name))["spec"]["holderIdentity"] == f"kreflex/{begun['metadata']['name']}"
        await nodes.heal_node(farm.plane.api, name)
        await nodes.shows(farm.plane.api, name, "Ready", "True")
        (record,) = await settled(farm, replacer_, name)
    assert (record["status"]["verdict"], steps(record)[-1]) == ("Recovered", "UncordonNode")
    assert place.evictions() == []
    await farm.tidy()


async def test_a_drain_that_can_not_end_is_given_up_uncordoned_and_told_to_people(farm: Farm) -> None:
    await farm.policy({"drain": {"timeout": "4s"}})
    (name,) = await farm.cloud.pool("stuck", 1)
    place = await a_shop(farm, 2, **only_on("stuck"))
    await guarded(place, maxUnavailable=0)
    await falls_ill(farm, name)
    async with arc(farm) as replacer_:
        record = await woken(farm, replacer_, name)
    assert record["status"]["verdict"] == "Ineffective"
    assert record["status"]["guard"] == "GaveUp"
    assert steps(record) == ["CordonNode", "EvictPods", "UncordonNode"]
    assert place.evictions() == []
    events = (await farm.plane.api.get("/api/v1/namespaces/default/events"))["items"]
    told = [one["reason"] for one in events if one["involvedObject"]["name"] == name]
    assert "KreflexIneffective" in told
    await farm.tidy()


async def test_who_comes_too_late_for_a_whole_remediation_leaves_no_lease(farm: Farm) -> None:
    await farm.policy({"drain": {"timeout": "1s"}})
    (name,) = await farm.cloud.pool("late", 1)
    place = await a_shop(farm, 1, **only_on("late"))
    await guarded(place, maxUnavailable=0)
    await falls_ill(farm, name)
    async with arc(farm) as replacer_:
        done = await woken(farm, replacer_, name)
        assert done["status"]["phase"] == "Done"
        node = await replacer_.reader.node(name)
        assert node is not None
        cordon = CordonNode("it was ill a moment ago", node=node, pool=owner_of(node.pool()))
        stale = replace(read_record(done), resource_version="1")
        case = replacer_.case(stale, cordon, await load_policies(replacer_.reader))
        with pytest.raises(ConflictError):
            await replacer_.courses.begin(stale, case)
    await farm.tidy()


async def test_three_ill_nodes_in_three_pools_are_replaced_as_many_at_a_time_as_the_policy_allows(farm: Farm) -> None:
    await farm.policy(limits={"maxInFlight": 2})
    pools = [await farm.cloud.pool(f"many-{number}", 2) for number in range(3)]
    names = [pool[0] for pool in pools]
    shops = [await a_shop(farm, 2, **only_on(f"many-{number}")) for number in range(3)]
    for shop in shops:
        await guarded(shop, maxUnavailable=0)
    await falls_ill(farm, *names)
    async with arc(farm, time_budget="4s") as replacer_:
        records = [await woken(farm, replacer_, name) for name in names]
        assert [record["status"].get("guard") for record in records[2:]] == ["Slots"]
        assert [record["status"]["phase"] for record in records] == ["Acting", "Acting", "Open"]
        for shop in shops:
            await farm.plane.api.delete(f"/apis/policy/v1/namespaces/{shop.name}/poddisruptionbudgets/shop")
        records = await settled(farm, replacer_, *names, patience=120)
    assert [record["status"]["verdict"] for record in records] == ["Recovered"] * 3
    await farm.tidy()


async def test_most_of_a_pool_ill_at_once_is_left_alone_until_it_has_been_calm_for_the_cooldown(farm: Farm) -> None:
    await farm.policy({"maxUnhealthy": "20%", "stormCooldown": "16s", "startup": "1s"})
    names = await farm.cloud.pool("storm", 5)
    await asyncio.sleep(1.5)  # So that their becoming Ready is no longer taken for the end of their boot.
    await falls_ill(farm, *names[:3])
    async with arc(farm) as replacer_:
        records = [await woken(farm, replacer_, name) for name in names[:3]]
        assert {record["status"]["guard"] for record in records} == {"PoolBreaker"}
        assert "3 of 5 nodes of pool storm are ill, 1 is tolerated (20%)" in records[0]["status"]["reason"]
        await nodes.heal_nodes(farm.plane.api, names[1:3])
        for name in names[1:3]:
            await nodes.shows(farm.plane.api, name, "Ready", "True")
        # Few enough are ill now; it has not been so for long. (A reading of all nodes may be shared for a second.)
        await asyncio.sleep(1.1)
        record = await woken(farm, replacer_, names[0])
        assert record["status"]["guard"] == "StormCooldown"
        assert farm.touched(*names) == []
        await asyncio.sleep(16)
        await woken(farm, replacer_, names[0])
        (record,) = await settled(farm, replacer_, names[0])
    assert record["status"]["verdict"] == "Recovered"
    await farm.tidy()


async def test_a_zone_that_is_out_is_left_alone(farm: Farm) -> None:
    await farm.policy({"maxUnhealthy": 1, "maxUnhealthyZone": "50%"})
    names = [(await farm.cloud.pool(f"zone-{number}", 2, zones=("lab-x", "lab-y")))[0] for number in range(3)]
    await farm.cloud.pool("zone-rest", 6, zones=("lab-y",))
    await falls_ill(farm, *names)
    async with arc(farm) as replacer_:
        records = [await woken(farm, replacer_, name) for name in names]
    assert {record["status"]["guard"] for record in records} == {"ZoneBreaker"}
    assert "3 of 3 nodes of zone lab-x are ill" in records[0]["status"]["reason"]
    assert farm.touched(*names) == []
    await farm.tidy()


async def test_an_api_server_that_lost_sight_of_all_kubelets_touches_none(farm: Farm) -> None:
    await farm.policy({"maxUnhealthy": 1, "maxUnhealthyZone": "50%", "stormCooldown": "5s"})
    names = [(await farm.cloud.pool(f"lost-{number}", 1))[0] for number in range(4)]
    async with nodes.blackout(farm.plane):
        for name in names:
            await nodes.shows(farm.plane.api, name, "Ready", "Unknown")
        await asyncio.sleep(1.5)
        async with arc(farm) as replacer_:
            records = [await woken(farm, replacer_, name) for name in names]
        assert {record["status"]["guard"] for record in records} <= {"ZoneBreaker", "FleetBreaker"}
        assert farm.touched(*names) == []
    for name in names:
        await nodes.shows(farm.plane.api, name, "Ready", "True")
    await falls_ill(farm, names[0])
    await asyncio.sleep(5)
    async with arc(farm) as replacer_:
        await woken(farm, replacer_, names[0])
        (record,) = await settled(farm, replacer_, names[0])
    assert record["status"]["verdict"] == "Recovered"
    await farm.tidy()


async def test_a_freeze_holds_the_next_step_and_does_not_keep_a_cordon(farm: Farm) -> None:
    await farm.policy({"drain": {"timeout": "20s"}})
    (name,) = await farm.cloud.pool("frozen", 1)
    place = await a_shop(farm, 2, **only_on("frozen"))
    await guarded(place, maxUnavailable=0)
    await falls_ill(farm, name)
    async with arc(farm, time_budget="4s") as replacer_:
        await woken(farm, replacer_, name)
        await farm.policy({"drain": {"timeout": "20s"}}, frozen=True)
        held = await woken(farm, replacer_, name)
        assert (held["status"]["phase"], held["status"]["guard"]) == ("Acting", "Frozen")
        await asyncio.sleep(20)
        record = await woken(farm, replacer_, name)
    assert (record["status"]["verdict"], steps(record)[-1]) == ("Ineffective", "UncordonNode")
    await farm.tidy()


async def test_what_people_allow_no_more_is_held_before_its_next_step(farm: Farm) -> None:
    await farm.policy()
    (name,) = await farm.cloud.pool("withdrawn", 1)
    place = await a_shop(farm, 2, **only_on("withdrawn"))
    await guarded(place, maxUnavailable=0)
    await falls_ill(farm, name)
    async with arc(farm, time_budget="4s") as replacer_:
        begun = await woken(farm, replacer_, name)
        await farm.plane.api.delete(f"/apis/policy/v1/namespaces/{place.name}/poddisruptionbudgets/shop")
        await farm.plane.api.delete(POLICY)
        await asyncio.sleep(1.1)
        await replacer_.handle(Due(HOME, begun["metadata"]["name"]))
        held = await farm.record(name)
        assert (held["status"]["phase"], held["status"]["guard"]) == ("Acting", "DryRun")
        await farm.policy(mode="Approve")
        held = await woken(farm, replacer_, name)
        assert (held["status"]["phase"], held["status"]["guard"]) == ("Acting", "Approval")
        assert place.evictions() == []
        await farm.policy()
        await asyncio.sleep(2)
        await woken(farm, replacer_, name)
        (record,) = await settled(farm, replacer_, name)
    assert (record["status"]["verdict"], steps(record)[-1]) == ("Recovered", "DeleteNodeClaim")
    await farm.tidy()


async def test_a_pause_stops_new_work_and_not_what_has_begun(farm: Farm) -> None:
    await farm.policy()
    (first, second) = [(await farm.cloud.pool(f"pause-{number}", 1))[0] for number in range(2)]
    place = await a_shop(farm, 1, **only_on("pause-0"))
    await guarded(place, maxUnavailable=0)
    await falls_ill(farm, first, second)
    async with arc(farm, time_budget="4s") as replacer_:
        await woken(farm, replacer_, first)
        await farm.policy(pauseRequests=["an upgrade of the storage"])
        refused = await woken(farm, replacer_, second)
        assert refused["status"]["guard"] == "Paused"
        assert "an upgrade of the storage" in refused["status"]["reason"]
        await farm.plane.api.delete(f"/apis/policy/v1/namespaces/{place.name}/poddisruptionbudgets/shop")
        (record,) = await settled(farm, replacer_, first)
    assert record["status"]["verdict"] == "Recovered"
    await farm.tidy()


async def test_one_approval_is_for_the_whole_remediation(farm: Farm) -> None:
    await farm.policy(mode="Approve")
    (name,) = await farm.cloud.pool("asked", 1)
    await a_shop(farm, 1, **only_on("asked"))
    await falls_ill(farm, name)
    async with arc(farm) as replacer_:
        waits = await woken(farm, replacer_, name)
        assert waits["status"]["outcome"] == "awaiting-approval"
        command = waits["status"]["reason"].partition("To approve: ")[2]
        assert command.startswith(f"kubectl -n {HOME} patch remediation node-replacer-{name}-")
        until = waits["status"]["dueAt"]
        approval = {"planHash": waits["status"]["planHash"], "by": "lab-admin", "until": until}
        path = f"{RECORDS}/{waits['metadata']['name']}"
        whoami = kit.kubectl(farm.plane, "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}")
        await farm.plane.api.patch(path, {"spec": {"approval": {**approval, "by": whoami}}})
        (record,) = await settled(farm, replacer_, name)
    assert (record["status"]["verdict"], steps(record)[-1]) == ("Recovered", "DeleteNodeClaim")
    await farm.tidy()


@asynccontextmanager
async def a_provider() -> AsyncIterator[tuple[str, list[dict[str, Any]]]]:
    """Somebody who is asked for machines: where, and what was asked."""
    asked: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        asked.append(await request.json())
        return web.Response(status=202)

    app = web.Application()
    app.router.add_post("/", take)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/", asked
    finally:
        await runner.cleanup()


async def test_a_provider_makes_the_successor_first_and_its_answer_counts_once_it_was_asked(farm: Farm) -> None:
    await farm.policy()
    group = {"eks.amazonaws.com/nodegroup": "managed"}
    kind = nodes.Pool("managed", labels=group, provider_id="aws:///{zone}/{name}")
    (name,) = await nodes.add(farm.plane.api, 1, kind)
    place = await a_shop(farm, 1, nodeSelector=group)
    await guarded(place, maxUnavailable=0)
    await falls_ill(farm, name)
    async with a_provider() as (url, asked):
        reflex = replace(REFLEX, settings=replacer.NodeReplacerSettings(replacement_sink=url))
        async with kit.arc_of(farm.plane, reflex, time_budget="4s") as replacer_:
            begun = await woken(farm, replacer_, name)
            answer = Answered(HOME, begun["metadata"]["name"], "Failed", message="before it was asked")
            assert (await replacer_.handle(answer)).because == "nothing waits for that answer"
            await farm.plane.api.delete(f"/apis/policy/v1/namespaces/{place.name}/poddisruptionbudgets/shop")

            async def was_asked() -> bool:
                await replacer_.handle(Due(HOME, begun["metadata"]["name"]))
                return bool(asked)

            await eventually(was_asked, "a request for a machine")
            assert asked[0]["providerID"].endswith(f"/{name}")
            (successor,) = await nodes.add(farm.plane.api, 1, kind, first=1)
            await replacer_.handle(replace(answer, outcome="Done", message="there it is"))
            assert (await farm.record(name))["status"]["answer"]["outcome"] == "Done"
            await asyncio.sleep(3)
            await farm.plane.api.delete(f"/api/v1/nodes/{name}")
            await replacer_.handle(replace(answer, outcome="Done", message="and the old one is gone"))
            (record,) = await settled(farm, replacer_, name)
    assert record["status"]["verdict"] == "Recovered", record["status"]
    assert f"{successor} was Ready" in record["status"]["verdictReason"]
    await farm.plane.api.delete(f"/api/v1/nodes/{successor}")
    await farm.tidy()


async def test_a_node_that_another_actor_holds_is_not_touched_until_it_lets_go(farm: Farm) -> None:
    await farm.policy()
    (name,) = await farm.cloud.pool("held", 1)
    now = datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
    spec = {
        "holderIdentity": "NodeHealthCheck-workers",
        "leaseDurationSeconds": 600,
        "renewTime": now,
        "acquireTime": now,
    }
    await farm.plane.api.post(LEASES, {"metadata": {"name": f"node-{name}"}, "spec": spec})
    await falls_ill(farm, name)
    async with arc(farm) as replacer_:
        waits = await woken(farm, replacer_, name)
        assert (waits["status"]["phase"], waits["status"]["guard"]) == ("Open", "Lease")
        assert "NodeHealthCheck-workers" in waits["status"]["reason"]
        # Told again, it waits as before: it holds no place among those in flight, and its pool does not rest for it.
        assert (await woken(farm, replacer_, name))["metadata"] == waits["metadata"]
        assert waits["metadata"]["uid"] not in (await farm.plane.api.get(LEDGER)).get("data", {}).get("entries", "")
        assert farm.touched(name) == []
        await farm.plane.api.delete(f"{LEASES}/node-{name}")
        await woken(farm, replacer_, name)
        (record,) = await settled(farm, replacer_, name)
    assert record["status"]["verdict"] == "Recovered"
    await farm.tidy()
