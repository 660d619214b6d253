"""The actions on nodes on a real API server, with the rights that their declarations give and no others."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kreflex import Defer, Settings, Skip, Treatment, Unknown, World, admission, rights
from kreflex.actions import BlockedError
from kreflex.cluster import Reader, Transport, Writer
from kreflex.cordons import TAINTED, CordonNode, TaintOutOfService, UncordonNode, UntaintNode
from kreflex.credentials import load_credentials
from kreflex.drains import EvictPods, RestartNetworkPod, evictable, network_pods
from kreflex.errors import ApiError, ConflictError, DeniedError, GoneError, OutageError
from kreflex.leases import NAMESPACE, Leases
from kreflex.machines import (
    DRAIN_UNTIL,
    DeleteMachine,
    DeleteNodeClaim,
    Machine,
    Nobody,
    NodeClaim,
    Provider,
    machine_of,
)
from kreflex.mends import EndRemediation, MakeRemediation, Mending, remediation_of
from kreflex.nodeactions import NodeAction
from kreflex.nodes import MARK, Node, owner_of
from kreflex.providers import AskProvider
from kreflex.reflex import Reflex
from kreflex.signals import NodeSignal
from kreflex.upkeep import Drain, Template
from kreflex.views import Ref
from lab import audit, manifests, nodes
from lab.api import Refused, eventually
from lab.cluster import ControlPlane
from tests import kit

NAME, HOME = "node-mender", "kreflex-system"
OURS, THEIRS = "node-mender-n-1", "node-mender-n-2"
OUT = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
SNR = Template(
    api_version="self-node-remediation.medik8s.io/v1alpha1",
    kind="SelfNodeRemediationTemplate",
    namespace="medik8s",
    name="reboot",
)

CONFINED = {
    "name": "app",
    "image": "dns:1",
    "securityContext": {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
}


async def find(world: World, settings: Settings) -> AsyncIterator[NodeSignal]:
    async for node in world.cluster.nodes():
        yield NodeSignal(node.name)


async def decide(
    signal: NodeSignal, world: World, settings: Settings
) -> (
    AskProvider
    | CordonNode
    | DeleteMachine
    | DeleteNodeClaim
    | EndRemediation
    | EvictPods
    | MakeRemediation
    | RestartNetworkPod
    | TaintOutOfService
    | UncordonNode
    | UntaintNode
    | Skip
):
    return Skip("it only names what may be done")


async def recovered(treatment: Treatment, world: World, settings: Settings) -> Unknown | Defer:
    return Unknown("it only names what may be done")


REFLEX = Reflex(NAME, find, decide, recovered, Settings())


@dataclass
class Lab:
    """The control plane, and an account with the rights of all actions on nodes."""

    plane: ControlPlane
    reader: Reader
    writer: Writer

    async def node(self, **about: Any) -> str:
        """Make a Ready node of a pool of its own."""
        (name,) = await nodes.add(self.plane.api, 1, nodes.Pool(f"n-{uuid.uuid4().hex[:6]}", **about))
        return name

    async def read(self, name: str) -> Node:
        node = await self.reader.node(name)
        assert node is not None
        return node

    async def body(self, name: str) -> kit.Json:
        return await self.plane.api.get(f"/api/v1/nodes/{name}")

    async def act(self, kind: type[NodeAction], name: str, mark: str = OURS, **fields: Any) -> str:
        """Act on the node as it is now, again if it changed at that moment: kubelets and controllers write to it."""
        for _ in range(5):
            node = await self.read(name)
            try:
                return await on(kind, node, **fields).apply(self.writer, self.reader, mark)
            except ConflictError:
                if (await self.read(name)).resource_version == node.resource_version:
                    raise
        raise AssertionError(f"{name} changes all the time")

    async def apply(self, action: NodeAction, mark: str = OURS) -> str:
        return await action.apply(self.writer, self.reader, mark)

    def writes(self, name: str) -> list[str]:
        """Tell the verbs of our account's accepted writes on an object, as the API server logged them."""
        return [
            entry["verb"]
            for entry in audit.entries(self.plane.audit_log, name)
            if entry["user"]["username"].endswith(f":{NAME}")
            and entry["objectRef"].get("name") == name
            and entry["verb"] in {"create", "update", "patch", "delete"}
            and entry["responseStatus"]["code"] < 300
        ]


def on(kind: type[NodeAction], node: Node, **fields: Any) -> NodeAction:
    return kind(because="it is ill", node=node, pool=owner_of(node.pool()), **fields)


def a_namespace(name: str) -> kit.Json:
    return {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}


def a_kind(group: str, kind: str, *versions: str, scope: str = "Namespaced") -> kit.Json:
    """A custom resource that takes any fields, in the versions that are named."""
    plural = f"{kind.lower()}s"
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {
            "name": f"{plural}.{group}",
            "annotations": {"api-approved.kubernetes.io": "https://github.com/kubernetes/kubernetes/pull/1111"},
        },
        "spec": {
            "group": group,
            "scope": scope,
            "names": {"kind": kind, "plural": plural, "singular": kind.lower(), "listKind": f"{kind}List"},
            "versions": [
                {"name": one, "served": True, "storage": one == versions[0], "schema": schema} for one in versions
            ],
        },
    }


KINDS = [
    a_kind("karpenter.sh", "NodeClaim", "v1", scope="Cluster"),
    a_kind("cluster.x-k8s.io", "Cluster", "v1beta2", "v1beta1"),
    a_kind("cluster.x-k8s.io", "Machine", "v1beta2", "v1beta1"),
    a_kind("cluster.x-k8s.io", "MachineSet", "v1beta2", "v1beta1"),
    a_kind("cluster.x-k8s.io", "MachineDeployment", "v1beta2", "v1beta1"),
    a_kind("machine.openshift.io", "Machine", "v1beta1"),
    a_kind("self-node-remediation.medik8s.io", "SelfNodeRemediation", "v1alpha1"),
    a_kind("self-node-remediation.medik8s.io", "SelfNodeRemediationTemplate", "v1alpha1"),
]


@pytest.fixture(scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    async with ControlPlane(tmp_path_factory.mktemp("node-actions")) as plane:
        await nodes.start(plane, 1)
        await kit.install(plane)
        spaces = [a_namespace(name) for name in (NAMESPACE, SNR.namespace)]
        allowed = rights.rights_of(REFLEX)
        await manifests.apply(plane.api, [*spaces, *KINDS, *rights.manifests(allowed), *admission.policy_of(allowed)])
        transport = Transport(load_credentials(str(await plane.kubeconfig_for(HOME, NAME))))
        made = Lab(plane, Reader(transport), Writer(transport))
        await eventually(lambda: denies(made), "the admission policy at work")
        yield made
        await transport.close()


async def denies(lab: Lab) -> bool:
    """Whether admission keeps our account from what RBAC alone would allow it."""
    (node,) = [one async for one in lab.reader.nodes() if one.name == "node-0"]
    try:
        await lab.writer.merge(f"/api/v1/nodes/{node.name}?dryRun=All", {"metadata": {"labels": {"a": "b"}}})
    except DeniedError:
        return True
    except ApiError:
        return False
    return False


async def changed(lab: Lab, name: str, **annotations: str) -> None:
    await lab.plane.api.patch(f"/api/v1/nodes/{name}", {"metadata": {"annotations": annotations}})


# Cordons


async def test_a_cordon_has_our_mark_and_an_uncordon_leaves_nothing_of_it(lab: Lab) -> None:
    name = await lab.node()
    before = await lab.body(name)

    await lab.act(CordonNode, name)
    cordoned = await lab.read(name)
    assert (cordoned.unschedulable, cordoned.annotations[MARK]) == (True, OURS)

    await lab.act(UncordonNode, name)
    after = await lab.body(name)
    # Its controller adds one of its own when it first sees the node.
    gone = {"node.alpha.kubernetes.io/ttl"}
    assert set(after["metadata"]["annotations"]) - gone == set(before["metadata"]["annotations"]) - gone
    assert "unschedulable" not in after["spec"]
    assert lab.writes(name) == ["patch", "patch"]


async def test_a_cordon_that_is_ours_already_is_not_written_again(lab: Lab) -> None:
    name = await lab.node()
    await lab.act(CordonNode, name)
    assert await lab.act(CordonNode, name) == "it was cordoned already"
    assert lab.writes(name) == ["patch"]


async def test_a_node_that_has_changed_since_is_not_cordoned(lab: Lab) -> None:
    name = await lab.node()
    seen = await lab.read(name)
    await changed(lab, name, note="new")
    with pytest.raises(ConflictError):
        await lab.apply(on(CordonNode, seen))
    assert not (await lab.read(name)).unschedulable


async def test_another_node_of_the_same_name_is_not_cordoned(lab: Lab) -> None:
    name = await lab.node()
    seen = await lab.read(name)
    await lab.plane.api.delete(f"/api/v1/nodes/{name}")
    with pytest.raises(GoneError):
        await lab.apply(on(CordonNode, seen))
    await lab.plane.api.post("/api/v1/nodes", {"metadata": {"name": name}})
    with pytest.raises(ConflictError):
        await lab.apply(on(CordonNode, seen))
    assert lab.writes(name) == []


async def test_the_api_server_honours_the_uid_of_a_patch_by_itself(lab: Lab) -> None:
    name = await lab.node()
    body = {"metadata": {"uid": str(uuid.uuid4()), "annotations": {MARK: OURS}}, "spec": {"unschedulable": True}}
    with pytest.raises(ApiError) as refused:
        await lab.writer.merge(f"/api/v1/nodes/{name}", body)
    assert refused.value.status in {409, 422}
    assert not (await lab.read(name)).unschedulable


async def test_of_two_that_cordon_at_once_one_does(lab: Lab) -> None:
    won = 0
    for _ in range(20):
        name = await lab.node()
        seen = await lab.read(name)
        asked = (lab.apply(on(CordonNode, seen), mark) for mark in (OURS, THEIRS))
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert all(answer == "" or isinstance(answer, ConflictError) for answer in answers)
        winners = [mark for mark, answer in zip((OURS, THEIRS), answers, strict=True) if answer == ""]
        assert len(winners) == len(lab.writes(name)) <= 1
        # None, if a controller has written to the node at that moment.
        won += len(winners)
        assert not winners or (await lab.read(name)).annotations[MARK] == winners[0]
        if won == 5:
            return
    raise AssertionError("the nodes change all the time")


async def test_the_cordon_of_somebody_else_stays_his(lab: Lab) -> None:
    name = await lab.node()
    before = await lab.read(name)
    kit.kubectl(lab.plane, "cordon", name)
    for seen in (before, await lab.read(name)):
        for kind in (CordonNode, UncordonNode):
            with pytest.raises(ConflictError):
                await lab.apply(on(kind, seen))
    with pytest.raises(ConflictError, match="is cordoned by somebody else"):
        await lab.act(CordonNode, name)
    now = await lab.read(name)
    assert (now.unschedulable, MARK in now.annotations, lab.writes(name)) == (True, False, [])


async def test_the_cordon_of_another_record_is_not_undone(lab: Lab) -> None:
    name = await lab.node()
    await lab.act(CordonNode, name, THEIRS)
    for kind in (CordonNode, UncordonNode):
        with pytest.raises(ConflictError):
            await lab.act(kind, name, OURS)
    now = await lab.read(name)
    assert (now.unschedulable, now.annotations[MARK]) == (True, THEIRS)


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"spec": {"unschedulable": True}}, "a node is cordoned with the annotation"),
        ({"spec": {"taints": [{"key": "mine", "effect": "NoExecute"}]}}, "of the taints, only node.kubernetes.io"),
        ({"spec": {"taints": [OUT]}}, "is set with the annotation kreflex.dev/out-of-service"),
        (
            {"metadata": {"annotations": {TAINTED: OURS}}, "spec": {"taints": [OUT]}},
            "a node that is Ready is not node.kubernetes.io/out-of-service",
        ),
        (
            {"metadata": {"annotations": {"kreflex.dev/opt-out": "false"}}},
            "only spec.taints, spec.unschedulable may change",
        ),
        (
            {"metadata": {"annotations": {"kreflex.dev/opt-out": None}}},
            "only spec.taints, spec.unschedulable may change",
        ),
        ({"metadata": {"labels": {"mine": "yes"}}}, "only spec.taints, spec.unschedulable may change"),
        ({"metadata": {"annotations": {"mine": "yes"}}}, "only spec.taints, spec.unschedulable may change"),
        ({"spec": {"podCIDR": "10.0.0.0/24"}}, "only spec.taints, spec.unschedulable may change"),
    ],
)
async def test_admission_lets_nothing_else_of_a_node_change(lab: Lab, body: kit.Json, why: str) -> None:
    name = await lab.node(annotations={"kreflex.dev/opt-out": "true"})
    with pytest.raises(DeniedError, match=why):
        await lab.writer.merge(f"/api/v1/nodes/{name}", body)
    assert lab.writes(name) == []


async def test_admission_lets_nobodys_cordon_be_undone(lab: Lab) -> None:
    name = await lab.node()
    kit.kubectl(lab.plane, "cordon", name)
    with pytest.raises(DeniedError, match="uncordoned only if it has it"):
        await lab.writer.merge(f"/api/v1/nodes/{name}", {"spec": {"unschedulable": None}})


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("DELETE", "/api/v1/nodes/{name}"),
        ("DELETE", "/api/v1/nodes"),
        ("DELETE", "/api/v1/namespaces/default/pods/none"),
        ("PUT", "/api/v1/nodes/{name}"),
    ],
)
async def test_no_action_deletes_or_replaces_a_node_or_a_pod(lab: Lab, method: str, path: str) -> None:
    name = await lab.node()
    body = await lab.body(name) if method == "PUT" else None
    with pytest.raises(OutageError) as refused:
        await lab.reader._transport.send(method, path.format(name=name), body)
    assert refused.value.status == 403
    assert (await lab.read(name)).name == name


# The taint of a machine that is off


async def off(lab: Lab) -> str:
    """A node whose kubelet says that it is not Ready, with a taint of the control plane that has a time in it."""
    name = await lab.node()
    await nodes.break_node(lab.plane.api, name, "not-ready")

    async def tainted() -> bool:
        taints = (await lab.body(name))["spec"].get("taints", [])
        return {taint["effect"] for taint in taints if "timeAdded" in taint} >= {"NoExecute"}

    await eventually(tainted, f"{name} tainted by the control plane")
    return name


async def test_the_taint_leaves_others_and_is_taken_back_without_a_trace(lab: Lab) -> None:
    name = await off(lab)
    before = await lab.body(name)

    await lab.act(TaintOutOfService, name)
    tainted = await lab.body(name)
    assert [{k: v for k, v in taint.items() if k != "timeAdded"} for taint in tainted["spec"]["taints"][-1:]] == [OUT]
    assert tainted["spec"]["taints"][:-1] == before["spec"]["taints"]
    assert tainted["metadata"]["annotations"][TAINTED] == OURS
    assert await lab.act(TaintOutOfService, name) == "it was tainted already"

    await lab.act(UntaintNode, name)
    after = await lab.body(name)
    assert after["spec"] == before["spec"]
    assert TAINTED not in after["metadata"]["annotations"]
    assert lab.writes(name) == ["patch", "patch"]


async def test_a_node_that_is_ready_is_not_said_to_be_off(lab: Lab) -> None:
    name = await lab.node()
    with pytest.raises(ConflictError, match="its kubelet says that it is Ready"):
        await lab.act(TaintOutOfService, name)
    assert lab.writes(name) == []


async def test_the_taint_of_somebody_else_stays_his(lab: Lab) -> None:
    name = await off(lab)
    kit.kubectl(lab.plane, "taint", "node", name, "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute")
    for kind, why in ((TaintOutOfService, "was tainted by somebody else"), (UntaintNode, "is not ours")):
        with pytest.raises(ConflictError, match=why):
            await lab.act(kind, name)
    with pytest.raises(DeniedError, match="removed only if it is there"):
        await lab.writer.merge(f"/api/v1/nodes/{name}", {"spec": {"taints": (await off_taints(lab, name))}})
    assert lab.writes(name) == []


async def off_taints(lab: Lab, name: str) -> list[kit.Json]:
    return [taint for taint in (await lab.body(name))["spec"]["taints"] if taint["key"] != OUT["key"]]


async def test_a_node_that_has_changed_since_is_not_tainted(lab: Lab) -> None:
    name = await off(lab)
    seen = await lab.read(name)
    await changed(lab, name, note="new")
    with pytest.raises(ConflictError, match="has changed since it was looked at"):
        await lab.apply(on(TaintOutOfService, seen))
    await lab.plane.api.delete(f"/api/v1/nodes/{name}")
    with pytest.raises(GoneError):
        await lab.apply(on(TaintOutOfService, seen))


# Evictions


@pytest.fixture
async def here(lab: Lab) -> kit.Place:
    name = f"t-{uuid.uuid4().hex[:8]}"
    await lab.plane.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    return kit.Place(lab.plane, name)


async def fill(place: kit.Place, node: str, grace: int = 0, **replicas: int) -> None:
    """Run Deployments on a node, and nowhere else."""
    there = {"nodeSelector": {"kubernetes.io/hostname": node}, "terminationGracePeriodSeconds": grace}
    for app, count in replicas.items():
        await place.deployment(app, count, **there)


async def budget(place: kit.Place, app: str, most: int = 0, name: str = "") -> None:
    """Let so many pods of an app be unavailable at most; holds when this returns."""
    path = f"/apis/policy/v1/namespaces/{place.name}/poddisruptionbudgets"
    spec = {"maxUnavailable": most, "selector": {"matchLabels": {"app": app}}}
    await place.plane.api.post(path, {"metadata": {"name": name or app}, "spec": spec})

    async def counted() -> bool:
        status = (await place.plane.api.get(f"{path}/{name or app}")).get("status", {})
        return bool(status.get("expectedPods"))

    await eventually(counted, f"the budget of {app} counted")


async def evict(lab: Lab, node: str, drain: Drain | None = None, **fields: Any) -> str:
    pods = evictable([pod async for pod in lab.reader.pods_on(node)], drain or Drain()).evictable
    return await lab.apply(on(EvictPods, await lab.read(node), pods=pods, **fields))


def asked(place: kit.Place) -> list[tuple[str, int]]:
    """Tell which Deployments' pods somebody has asked to evict here, and how that was answered."""
    return sorted(
        (entry["objectRef"]["name"].split("-")[0], entry["responseStatus"]["code"])
        for entry in audit.entries(place.plane.audit_log)
        if entry["objectRef"].get("subresource") == "eviction" and entry["objectRef"]["namespace"] == place.name
    )


async def test_a_budget_keeps_its_own_pods_and_no_others_and_is_asked_once(lab: Lab, here: kit.Place) -> None:
    node = await lab.node()
    await fill(here, node, cart=3, web=2, free=3)
    await budget(here, "cart")
    await budget(here, "web", most=1)
    told = await evict(lab, node)
    kept = f"{here.name}/cart, {here.name}/web"
    assert told == f"evicted 4, 4 blocked by PodDisruptionBudgets ({kept})"
    assert asked(here) == [("cart", 429), *[("free", 201)] * 3, ("web", 201), ("web", 429)]


async def test_what_is_blocked_takes_nobodys_place_in_a_batch(lab: Lab, here: kit.Place) -> None:
    node = await lab.node()
    await fill(here, node, cart=3, free=3)
    await budget(here, "cart")
    told = await evict(lab, node, most=2)
    assert told == f"evicted 2, 3 blocked by PodDisruptionBudgets ({here.name}/cart)"


async def test_two_that_drain_at_once_evict_each_pod_once(lab: Lab, here: kit.Place) -> None:
    node = await lab.node()
    await fill(here, node, grace=30, cart=6, web=6)
    await asyncio.gather(evict(lab, node), evict(lab, node))
    uids = here.evictions()
    assert (len(uids), len(set(uids))) == (12, 12)


async def test_pods_that_are_not_ready_are_evicted_once_too(lab: Lab, here: kit.Place) -> None:
    pool = f"n-{uuid.uuid4().hex[:6]}"
    node, _ = await nodes.add(lab.plane.api, 2, nodes.Pool(pool, labels={"pool": pool}))
    await here.deployment("cart", 12, nodeSelector={"pool": pool}, terminationGracePeriodSeconds=30)
    # With a healthy pod elsewhere: the API server lets those that are not Ready go under such a budget only.
    await budget(here, "cart", most=11)
    await nodes.break_node(lab.plane.api, node, "unknown")

    async def all_unready() -> bool:
        return not any([pod.ready async for pod in lab.reader.pods_on(node)])

    await eventually(all_unready, "no pod Ready", patience=60)
    pods = tuple([pod async for pod in lab.reader.pods_on(node)])
    seen = await lab.read(node)
    await asyncio.gather(*(lab.apply(on(EvictPods, seen, pods=pods)) for _ in range(2)))
    assert await lab.apply(on(EvictPods, seen, pods=pods)) == f"evicted 0, {len(pods)} gone"
    assert sorted(here.evictions()) == sorted(pod.ref.uid for pod in pods)


async def test_a_pod_that_has_changed_since_is_left_for_the_next_time(lab: Lab, here: kit.Place) -> None:
    node = await lab.node()
    await fill(here, node, cart=2)
    pods = tuple([pod async for pod in lab.reader.pods_on(node)])
    for pod in pods[:1]:
        path = f"/api/v1/namespaces/{here.name}/pods/{pod.ref.name}"
        await lab.plane.api.patch(path, {"metadata": {"annotations": {"note": "new"}}})
    assert await lab.apply(on(EvictPods, await lab.read(node), pods=pods)) == "evicted 1, 1 changed"


async def test_several_budgets_of_one_pod_are_told(lab: Lab, here: kit.Place) -> None:
    node = await lab.node()
    await fill(here, node, cart=2, free=1)
    await budget(here, "cart", most=2)
    await budget(here, "cart", most=2, name="again")
    why = f"2 with several PodDisruptionBudgets, where one is allowed ({here.name}/cart)"
    assert await evict(lab, node) == f"evicted 1, {why}"


@pytest.mark.parametrize(("own", "most", "given"), [(60, 5, 5), (60, 0, 1), (3, 5, None)])
async def test_a_grace_period_is_capped_and_never_lengthened(
    lab: Lab, here: kit.Place, own: int, most: int, given: int | None
) -> None:
    node = await lab.node()
    await fill(here, node, grace=own, cart=1)
    assert await evict(lab, node, max_grace=timedelta(seconds=most)) == "evicted 1"
    (entry,) = [
        entry
        for entry in audit.entries(lab.plane.audit_log)
        if entry["objectRef"].get("subresource") == "eviction" and entry["objectRef"]["namespace"] == here.name
    ]
    assert entry["requestObject"]["deleteOptions"].get("gracePeriodSeconds") == given


@pytest.mark.parametrize(
    ("options", "why"),
    [({"gracePeriodSeconds": 0}, "gets a second at least"), ({"preconditions": None}, "UID and resourceVersion")],
)
async def test_admission_lets_no_pod_be_killed(lab: Lab, here: kit.Place, options: kit.Json, why: str) -> None:
    node = await lab.node()
    await fill(here, node, cart=1)
    (pod,) = [pod async for pod in lab.reader.pods_on(node)]
    where = {"name": pod.ref.name, "namespace": here.name}
    precise = {"preconditions": {"uid": pod.ref.uid, "resourceVersion": pod.resource_version}, **options}
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": where, "deleteOptions": precise}
    with pytest.raises(DeniedError, match=why):
        await lab.writer.create(f"/api/v1/namespaces/{here.name}/pods/{pod.ref.name}/eviction", body)
    assert here.evictions() == []


async def test_pods_of_the_system_leave_the_node_as_well(lab: Lab) -> None:
    node = await lab.node()
    for namespace in ("kube-system", HOME):
        place = kit.Place(lab.plane, namespace)
        app = f"dns{node.replace('-', '')}"
        await place.deployment(app, nodeSelector={"kubernetes.io/hostname": node}, containers=[CONFINED])
        try:
            assert await evict(lab, node) == "evicted 1"
        finally:
            await lab.plane.api.delete(f"/apis/apps/v1/namespaces/{namespace}/deployments/{app}")


async def test_daemons_and_static_pods_stay_and_finished_ones_go(lab: Lab, here: kit.Place) -> None:
    node = await lab.node()
    await daemon(here, node)
    run = {"nodeName": node, "containers": [{"name": "app", "image": "shop:1"}], "restartPolicy": "Never"}
    path = f"/api/v1/namespaces/{here.name}/pods"
    await lab.plane.api.post(path, {"metadata": {"name": "done"}, "spec": run})
    mirror = {"name": "static", "annotations": {"kubernetes.io/config.mirror": "x"}}
    await lab.plane.api.post(path, {"metadata": mirror, "spec": run})
    await lab.plane.api.post(path, {"metadata": {"name": "bare"}, "spec": run})

    async def running() -> bool:
        body = await lab.plane.api.get(f"{path}/done")
        return bool(body["status"].get("phase") == "Running")

    await eventually(running, "the pod running that is to be done")
    await lab.plane.api.patch(f"{path}/done/status", {"status": {"phase": "Succeeded"}})
    load = evictable([pod async for pod in lab.reader.pods_on(node)], Drain())
    assert [pod.ref.name for pod in load.evictable] == ["done"]
    assert [pod.ref.name for pod in load.blocking] == ["bare"]
    assert {pod.ref.name[:6] for pod in load.staying} == {"static", "proxy-"}


async def daemon(place: kit.Place, node: str, **labels: str) -> None:
    """Run a DaemonSet on a node alone, and wait for its pod."""
    labels = {"app": "proxy", **labels}
    spec = {"nodeSelector": {"kubernetes.io/hostname": node}, "containers": [{"name": "app", "image": "shop:1"}]}
    template = {"metadata": {"labels": labels}, "spec": {**spec, "terminationGracePeriodSeconds": 0}}
    await place.plane.api.post(
        f"/apis/apps/v1/namespaces/{place.name}/daemonsets",
        {
            "metadata": {"name": f"proxy-{node}"},
            "spec": {"selector": {"matchLabels": labels}, "template": template},
        },
    )
    await place.ready_pods("proxy", 1)


async def test_the_network_pod_is_started_anew_on_the_same_node(lab: Lab) -> None:
    place, node = kit.Place(lab.plane, "kube-system"), await lab.node()
    await daemon(place, node, **{"k8s-app": "kube-proxy"})
    try:
        pods = network_pods([pod async for pod in lab.reader.pods_on(node)])
        assert await lab.apply(on(RestartNetworkPod, await lab.read(node), pods=pods)) == (
            f"evicted 1: {pods[0].ref.name}"
        )
        (new,) = await place.ready_pods("proxy", 1)
        assert (new["metadata"]["uid"] != pods[0].ref.uid, new["spec"]["nodeName"]) == (True, node)
        with pytest.raises(ConflictError, match="have changed since"):
            await lab.apply(on(RestartNetworkPod, await lab.read(node), pods=await restless(lab, node)))
    finally:
        await lab.plane.api.delete(f"/apis/apps/v1/namespaces/kube-system/daemonsets/proxy-{node}")


async def restless(lab: Lab, node: str) -> tuple[Any, ...]:
    """The network pods of a node, each of which changes after it was read."""
    pods = network_pods([pod async for pod in lab.reader.pods_on(node)])
    for pod in pods:
        path = f"/api/v1/namespaces/kube-system/pods/{pod.ref.name}"
        await lab.plane.api.patch(path, {"metadata": {"annotations": {"note": "new"}}})
    return pods


# What stands behind a node


def a_claim(name: str, provider: str, **about: Any) -> kit.Json:
    """A NodeClaim of a pool, with the finalizer by which Karpenter ends what is behind it."""
    return {
        "apiVersion": "karpenter.sh/v1",
        "kind": "NodeClaim",
        "metadata": {
            "name": name,
            "labels": {"karpenter.sh/nodepool": "blue"},
            "annotations": about.get("annotations", {}),
            "finalizers": ["karpenter.sh/termination"],
            "ownerReferences": about.get("owners", [_owner("karpenter.sh/v1", "NodePool", "blue")]),
        },
        "status": {"providerID": provider, "conditions": about.get("conditions", [])},
    }


def _owner(api_version: str, kind: str, name: str, **about: Any) -> kit.Json:
    return {"apiVersion": api_version, "kind": kind, "name": name, "uid": str(uuid.uuid4()), **about}


CLAIMS = "/apis/karpenter.sh/v1/nodeclaims"


@dataclass
class Claimed:
    """A node and its NodeClaim."""

    node: str
    claim: str


async def claimed(lab: Lab, owned: bool = True, **about: Any) -> Claimed:
    """A node of Karpenter's, whose owner is its NodeClaim as far as that has been written yet."""
    node = await lab.node(labels={"karpenter.sh/nodepool": "blue"}, provider_id="lab://{name}")
    made = await lab.plane.api.post(CLAIMS, a_claim(f"claim-{node}", f"lab://{node}", **about))
    if owned:
        owner = {"apiVersion": "karpenter.sh/v1", "kind": "NodeClaim", "blockOwnerDeletion": True}
        owner |= {"name": made["metadata"]["name"], "uid": made["metadata"]["uid"]}
        await lab.plane.api.patch(f"/api/v1/nodes/{node}", {"metadata": {"ownerReferences": [owner]}})
    return Claimed(node, made["metadata"]["name"])


async def behind(lab: Lab, node: str) -> Any:
    return await machine_of(await lab.read(node), lab.reader)


@pytest.mark.parametrize("owned", [True, False])
async def test_karpenters_claim_is_found_by_the_provider_id(lab: Lab, owned: bool) -> None:
    made = await claimed(lab, owned)
    body = await lab.plane.api.get(f"{CLAIMS}/{made.claim}")
    ref = Ref("karpenter.sh/v1", "NodeClaim", "", made.claim, body["metadata"]["uid"])
    assert await behind(lab, made.node) == NodeClaim(ref, body["metadata"]["resourceVersion"], terminating=False)


async def test_a_claim_of_another_machine_is_not_the_nodes(lab: Lab) -> None:
    made = await claimed(lab)
    await lab.plane.api.patch(f"{CLAIMS}/{made.claim}", {"status": {"providerID": "lab://another"}})
    why = "its labels are Karpenter's, but 0 NodeClaims have its providerID"
    assert await behind(lab, made.node) == Provider(f"lab://{made.node}", why)


@pytest.mark.parametrize(
    ("about", "held"),
    [
        ({"owners": []}, "no NodePool owns NodeClaim {claim}, so nothing would make a successor"),
        (
            {"annotations": {"karpenter.sh/do-not-repair": "true"}},
            "NodeClaim {claim} has the annotation karpenter.sh/do-not-repair",
        ),
        ({"annotations": {"karpenter.sh/do-not-repair": "false"}}, ""),
        (
            {"conditions": [{"type": "DisruptionReason", "status": "True", "reason": "Drifted"}]},
            "Karpenter itself is at work on it: DisruptionReason Drifted",
        ),
        ({"conditions": [{"type": "DisruptionReason", "status": "False", "reason": "Drifted"}]}, ""),
    ],
)
async def test_a_claim_that_must_be_left_alone_says_why(lab: Lab, about: kit.Json, held: str) -> None:
    made = await claimed(lab, **about)
    claim = await behind(lab, made.node)
    assert claim.held == held.format(claim=made.claim)
    if held:
        with pytest.raises(ConflictError, match="must be left alone"):
            await lab.apply(on(DeleteNodeClaim, await lab.read(made.node), claim=claim))
        assert lab.writes(made.claim) == []


async def test_a_claim_is_deleted_as_it_was_read_and_that_is_done(lab: Lab) -> None:
    made = await claimed(lab)
    action = on(DeleteNodeClaim, await lab.read(made.node), claim=await behind(lab, made.node))
    assert not await action.done(action.target, action.prior(), lab.reader)
    assert await lab.apply(action) == f"NodeClaim {made.claim} is deleted"
    left = await lab.plane.api.get(f"{CLAIMS}/{made.claim}")
    assert "deletionTimestamp" in left["metadata"]
    assert DRAIN_UNTIL not in left["metadata"].get("annotations", {})
    assert await action.done(action.target, action.prior(), lab.reader)

    again = on(DeleteNodeClaim, await lab.read(made.node), claim=await behind(lab, made.node))
    assert await lab.apply(again) == f"NodeClaim {made.claim} is on its way out already"
    await lab.plane.api.patch(f"{CLAIMS}/{made.claim}", {"metadata": {"finalizers": None}})
    assert await action.done(action.target, action.prior(), lab.reader)
    with pytest.raises(GoneError):
        await lab.apply(action)
    assert lab.writes(made.claim) == ["delete"]


@pytest.mark.parametrize("deadline", [None, datetime(2030, 1, 1, tzinfo=UTC)])
async def test_a_claim_that_has_changed_since_is_not_deleted(lab: Lab, deadline: datetime | None) -> None:
    made = await claimed(lab)
    action = on(DeleteNodeClaim, await lab.read(made.node), claim=await behind(lab, made.node), deadline=deadline)
    await lab.plane.api.patch(f"{CLAIMS}/{made.claim}", {"metadata": {"annotations": {"note": "new"}}})
    with pytest.raises(ConflictError):
        await lab.apply(action)
    assert lab.writes(made.claim) == []


async def test_another_claim_of_the_same_name_is_not_deleted(lab: Lab) -> None:
    made = await claimed(lab)
    action = on(DeleteNodeClaim, await lab.read(made.node), claim=await behind(lab, made.node))
    await lab.plane.api.patch(f"{CLAIMS}/{made.claim}", {"metadata": {"finalizers": None}})
    await lab.plane.api.delete(f"{CLAIMS}/{made.claim}")
    await lab.plane.api.post(CLAIMS, a_claim(made.claim, f"lab://{made.node}"))
    with pytest.raises(ConflictError):
        await lab.apply(action)
    assert lab.writes(made.claim) == []
    assert await action.done(action.target, action.prior(), lab.reader)


async def test_of_two_that_delete_a_claim_at_once_one_does(lab: Lab) -> None:
    made = await claimed(lab)
    seen, claim = await lab.read(made.node), await behind(lab, made.node)
    deadline = datetime(2030, 1, 1, tzinfo=UTC)
    two = (lab.apply(on(DeleteNodeClaim, seen, claim=claim, deadline=deadline)) for _ in range(2))
    answers = await asyncio.gather(*two, return_exceptions=True)
    assert sorted(isinstance(answer, ConflictError) for answer in answers) == [False, True]
    assert lab.writes(made.claim) == ["delete", "patch"]


@pytest.mark.parametrize(
    ("set_", "asked", "then"),
    [
        (None, "2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z"),
        ("2031-01-01T01:00:00+01:00", "2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z"),
        ("2029-01-01T00:00:00Z", "2030-01-01T00:00:00Z", "2029-01-01T00:00:00Z"),
        ("soon", "2030-01-01T00:00:00Z", "2030-01-01T00:00:00Z"),
    ],
)
async def test_the_end_of_karpenters_drain_is_set_and_never_put_off(
    lab: Lab, set_: str | None, asked: str, then: str
) -> None:
    made = await claimed(lab, annotations={DRAIN_UNTIL: set_} if set_ else {})
    until = datetime.fromisoformat(asked)
    seen, claim = await lab.read(made.node), await behind(lab, made.node)
    await lab.apply(on(DeleteNodeClaim, seen, claim=claim, deadline=until))
    left = await lab.plane.api.get(f"{CLAIMS}/{made.claim}")
    assert left["metadata"]["annotations"][DRAIN_UNTIL] == then
    assert "deletionTimestamp" in left["metadata"]


async def test_admission_asks_for_the_preconditions_of_a_deletion(lab: Lab) -> None:
    made = await claimed(lab)
    uid = (await lab.plane.api.get(f"{CLAIMS}/{made.claim}"))["metadata"]["uid"]
    for body in ({}, {"preconditions": {"uid": uid}}):
        with pytest.raises(DeniedError, match="named by UID and resourceVersion"):
            await lab.writer.delete(f"{CLAIMS}/{made.claim}", body)
    with pytest.raises(DeniedError, match=f"only {DRAIN_UNTIL} may change"):
        await lab.writer.merge(f"{CLAIMS}/{made.claim}", {"metadata": {"annotations": {"mine": "yes"}}})
    with pytest.raises(DeniedError, match=f"only {DRAIN_UNTIL} may change"):
        await lab.writer.merge(f"{CLAIMS}/{made.claim}", {"spec": {"mine": "yes"}})


CAPI, OPENSHIFT = "cluster.x-k8s.io", "machine.openshift.io"
NAMES = {"Cluster": "prod", "MachineDeployment": "workers", "MachineSet": "set"}


async def machine(lab: Lab, api: str = f"{CAPI}/v1beta2", **about: Any) -> tuple[str, str]:
    """A node with a Machine of a MachineSet of a MachineDeployment of a Cluster; the node's name and the path."""
    group, place = api.partition("/")[0], f"m-{uuid.uuid4().hex[:8]}"
    await lab.plane.api.post("/api/v1/namespaces", {"metadata": {"name": place}})
    noted = {f"{OPENSHIFT}/machine": f"{place}/m-1"}
    if group == CAPI:
        noted = {f"{CAPI}/machine": "m-1", f"{CAPI}/cluster-namespace": place}
    node = await lab.node(annotations=noted, provider_id="lab://{name}")
    owner: list[kit.Json] = [_owner(f"{group}/v1beta1", "MachineSet", "set", controller=True)]
    for kind in ("Cluster", "MachineDeployment", "MachineSet") if group == CAPI else ():
        plural = f"{kind.lower()}s"
        meta = {"name": NAMES[kind], "ownerReferences": owner if kind == "MachineSet" else []}
        whole: kit.Json = merged({"apiVersion": api, "kind": kind, "metadata": meta}, about.get(plural))
        made = await lab.plane.api.post(f"/apis/{api}/namespaces/{place}/{plural}", whole)
        # By its UID: the garbage collector looks whether owners are there.
        owner = [{**_owner(api, kind, NAMES[kind], controller=True), "uid": made["metadata"]["uid"]}]
    body = {
        "apiVersion": api,
        "kind": "Machine",
        "metadata": {"name": "m-1", "ownerReferences": owner, "finalizers": [f"machine.{group}/finalizer"]},
        "spec": {"clusterName": "prod", "providerID": f"lab://{node}"},
        "status": {"nodeRef": {"name": node}},
    }
    await lab.plane.api.post(f"/apis/{api}/namespaces/{place}/machines", merged(body, about.get("machines")))
    return node, f"/apis/{api}/namespaces/{place}/machines/m-1"


def merged(body: kit.Json, change: kit.Json | None) -> kit.Json:
    change = change or {}
    both = {key: merged(body[key], change[key]) for key in body.keys() & change if isinstance(body[key], dict)}
    return {**body, **change, **both}


@pytest.mark.parametrize("api", [f"{CAPI}/v1beta2", f"{OPENSHIFT}/v1beta1"])
async def test_a_machine_is_found_and_deleted_as_it_was_read(lab: Lab, api: str) -> None:
    node, path = await machine(lab, api)
    body = await lab.plane.api.get(path)
    meta = body["metadata"]
    found = await behind(lab, node)
    assert found == Machine(
        Ref(api, "Machine", meta["namespace"], "m-1", meta["uid"]), meta["resourceVersion"], terminating=False
    )

    await lab.plane.api.patch(path, {"metadata": {"labels": {"note": "new"}}})
    with pytest.raises(ConflictError):
        await lab.apply(on(DeleteMachine, await lab.read(node), machine=found))
    action = on(DeleteMachine, await lab.read(node), machine=await behind(lab, node))
    assert not await action.done(action.target, action.prior(), lab.reader)
    assert await lab.apply(action) == f"Machine {meta['namespace']}/m-1 is deleted"
    left = (await lab.plane.api.get(path))["metadata"]
    assert ("deletionTimestamp" in left, left.get("annotations", {})) == (True, {})
    assert await action.done(action.target, action.prior(), lab.reader)


@pytest.mark.parametrize(
    ("api", "note"),
    [
        (f"{CAPI}/v1beta2", "machine.cluster.x-k8s.io/exclude-node-draining"),
        (f"{OPENSHIFT}/v1beta1", "machine.openshift.io/exclude-node-draining"),
    ],
)
async def test_a_machine_can_be_deleted_without_a_drain(lab: Lab, api: str, note: str) -> None:
    node, path = await machine(lab, api)
    await lab.apply(on(DeleteMachine, await lab.read(node), machine=await behind(lab, node), undrained=True))
    left = (await lab.plane.api.get(path))["metadata"]
    assert ("deletionTimestamp" in left, left["annotations"]) == (True, {note: ""})


@pytest.mark.parametrize(
    ("about", "held"),
    [
        ({"machines": {"metadata": {"ownerReferences": []}}}, "nothing controls Machine {m}"),
        (
            {"machines": {"metadata": {"annotations": {f"{CAPI}/paused": ""}}}},
            f"Machine {{m}} has the annotation {CAPI}/paused",
        ),
        (
            {"machines": {"metadata": {"annotations": {f"{CAPI}/skip-remediation": ""}}}},
            f"Machine {{m}} has the annotation {CAPI}/skip-remediation",
        ),
        (
            {"machines": {"status": {"nodeRef": {"name": "another"}}}},
            "Machine {m} is not this node's: it names node another",
        ),
        ({"machines": {"spec": {"providerID": "lab://another"}}}, "Machine {m} is not this node's"),
        ({"machines": {"status": {"conditions": [{"type": "Paused", "status": "True"}]}}}, "Machine {m} is paused"),
        ({"clusters": {"spec": {"paused": True}}}, "Cluster {ns}/prod is paused"),
        (
            {"clusters": {"metadata": {"name": "other"}}},
            "Cluster {ns}/prod, which Machine {m} belongs to, is not there",
        ),
        (
            {"machinesets": {"metadata": {"annotations": {f"{CAPI}/disable-machine-create": "true"}}}},
            f"MachineSet {{ns}}/set has the annotation {CAPI}/disable-machine-create",
        ),
        ({"machinesets": {"metadata": {"annotations": {f"{CAPI}/disable-machine-create": "false"}}}}, ""),
        ({"machinedeployments": {"spec": {"paused": True}}}, "MachineDeployment {ns}/workers is paused"),
        ({"machinedeployments": {"spec": {"paused": False}}}, ""),
    ],
)
async def test_a_machine_that_must_be_left_alone_says_why(lab: Lab, about: kit.Json, held: str) -> None:
    node, path = await machine(lab, **about)
    place = path.split("/")[5]
    found = await behind(lab, node)
    assert found.held.startswith(held.format(ns=place, m=f"{place}/m-1"))
    assert bool(found.held) == bool(held)
    if held:
        with pytest.raises(ConflictError, match="must be left alone"):
            await lab.apply(on(DeleteMachine, await lab.read(node), machine=found))
        assert "deletionTimestamp" not in (await lab.plane.api.get(path))["metadata"]


async def test_an_older_cluster_api_serves_its_machines_too(lab: Lab) -> None:
    await serve(lab, "v1beta2", served=False)
    try:
        node, path = await machine(lab, f"{CAPI}/v1beta1")
        found = await behind(lab, node)
        assert (found.ref.api_version, found.held) == (f"{CAPI}/v1beta1", "")
        await lab.apply(on(DeleteMachine, await lab.read(node), machine=found))
        assert "deletionTimestamp" in (await lab.plane.api.get(path))["metadata"]
    finally:
        await serve(lab, "v1beta2", served=True)


async def serve(lab: Lab, version: str, *, served: bool) -> None:
    """Serve a version of Cluster API's kinds, or no more; holds when this returns."""
    crds = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions"
    plurals = ("clusters", "machines", "machinesets", "machinedeployments")
    for plural in plurals:
        crd = await lab.plane.api.get(f"{crds}/{plural}.{CAPI}")
        versions = [{**v, "served": served} if v["name"] == version else v for v in crd["spec"]["versions"]]
        await lab.plane.api.patch(f"{crds}/{plural}.{CAPI}", {"spec": {"versions": versions}})

    async def noticed() -> bool:
        paths = [f"/apis/{CAPI}/{version}/{plural}" for plural in plurals]
        try:
            return {await lab.plane.api.find(path) is not None for path in paths} == {served}
        except Refused:
            # For a moment it says that its storage is (re)initializing.
            return False

    await eventually(noticed, f"{version} served: {served}")


async def test_a_machine_that_is_not_in_this_cluster_is_not_gone(lab: Lab) -> None:
    noted = {f"{CAPI}/machine": "m-1", f"{CAPI}/cluster-namespace": "elsewhere"}
    node = await lab.node(annotations=noted, provider_id="lab://{name}")
    why = f"its Machine elsewhere/m-1 ({CAPI}) is not in this cluster"
    assert await behind(lab, node) == Provider(f"lab://{node}", why)


async def test_a_node_that_nothing_stands_behind_is_left_to_its_provider_or_to_nobody(lab: Lab) -> None:
    why = "no NodeClaim and no Machine in this cluster is its own"
    assert await behind(lab, node := await lab.node(provider_id="lab://{name}")) == Provider(f"lab://{node}", why)
    assert await behind(lab, await lab.node()) == Nobody(
        f"{why}, and it has no providerID by which somebody could be asked"
    )


# Remediators


TEMPLATE_PATH = f"/apis/{SNR.api_version}/namespaces/{SNR.namespace}/selfnoderemediationtemplates"
MADE_PATH = f"/apis/{SNR.api_version}/namespaces/{SNR.namespace}/selfnoderemediations"


@pytest.fixture(scope="module")
async def template(lab: Lab) -> Template:
    spec = {"template": {"spec": {"remediationStrategy": "OutOfServiceTaint"}}}
    body = {"apiVersion": SNR.api_version, "kind": SNR.kind, "metadata": {"name": SNR.name}, "spec": spec}
    await lab.plane.api.post(TEMPLATE_PATH, body)
    return SNR


async def test_a_remediation_is_made_from_its_template_with_our_mark(lab: Lab, template: Template) -> None:
    name = await lab.node(control_plane=True)
    told = await lab.act(MakeRemediation, name, template=template)
    assert told == f"SelfNodeRemediation medik8s/{name} is made"
    made = await lab.plane.api.get(f"{MADE_PATH}/{name}")
    assert made["spec"] == {"remediationStrategy": "OutOfServiceTaint"}
    assert made["metadata"]["annotations"] == {
        "remediation.medik8s.io/node-name": name,
        "remediation.medik8s.io/template-name": "reboot",
        MARK: OURS,
    }
    assert "remediation.medik8s.io/isControlPlaneNode" in made["metadata"]["labels"]
    # When the node goes, it goes, too: the next node of this name may be well.
    owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": (await lab.read(name)).ref.uid}
    assert made["metadata"]["ownerReferences"] == [owner]

    told = await lab.act(MakeRemediation, name, template=template)
    assert told == f"SelfNodeRemediation medik8s/{name} was there already"
    assert await lab.act(EndRemediation, name, template=template) == ""
    assert await lab.act(EndRemediation, name, template=template) == "it was gone already"
    assert lab.writes(name) == ["create", "delete"]


async def test_a_remediation_is_followed(lab: Lab, template: Template) -> None:
    name = await lab.node()
    node = await lab.read(name)
    assert await remediation_of(node, template, lab.reader) is None
    await lab.act(MakeRemediation, name, template=template)
    uid = (await lab.plane.api.get(f"{MADE_PATH}/{name}"))["metadata"]["uid"]
    ref = Ref(template.api_version, "SelfNodeRemediation", "medik8s", name, uid)
    for processing, succeeded, expected in (
        (None, None, Mending(ref, OURS, False, None, False, False, "")),
        ("True", "Unknown", Mending(ref, OURS, True, None, False, False, "Reboot")),
        ("False", "True", Mending(ref, OURS, False, True, False, False, "Reboot")),
        ("False", "False", Mending(ref, OURS, False, False, False, False, "Reboot")),
    ):
        if processing and succeeded:
            conditions = [
                {"type": "Processing", "status": processing},
                {"type": "Succeeded", "status": succeeded, "reason": "Reboot"},
            ]
            await lab.plane.api.patch(f"{MADE_PATH}/{name}", {"status": {"conditions": conditions}})
        found = await remediation_of(node, template, lab.reader)
        assert found == expected
        assert found.failed == (succeeded == "False")


async def test_the_remediation_of_somebody_else_stays_his(lab: Lab, template: Template) -> None:
    name = await lab.node()
    theirs = {"apiVersion": template.api_version, "kind": "SelfNodeRemediation", "metadata": {"name": name}}
    await lab.plane.api.post(MADE_PATH, theirs)
    with pytest.raises(BlockedError, match="is there already: somebody else is at work on it") as blocked:
        await lab.act(MakeRemediation, name, template=template)
    assert blocked.value.cause == "Remediation"
    with pytest.raises(ConflictError, match="is not ours"):
        await lab.act(EndRemediation, name, template=template)
    meta = (await lab.plane.api.get(f"{MADE_PATH}/{name}"))["metadata"]
    exact = {"preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}}
    with pytest.raises(DeniedError, match="taken back, with the annotation"):
        await lab.writer.delete(f"{MADE_PATH}/{name}", exact)
    with pytest.raises(DeniedError, match="made, and taken back, with the annotation"):
        await lab.writer.create(MADE_PATH, {**theirs, "metadata": {"name": f"{name}-2"}})
    assert lab.writes(name) == []


async def test_of_two_that_make_a_remediation_at_once_one_does(lab: Lab, template: Template) -> None:
    name = await lab.node()
    node = await lab.read(name)
    two = (lab.apply(on(MakeRemediation, node, template=template), mark) for mark in (OURS, THEIRS))
    answers = await asyncio.gather(*two, return_exceptions=True)
    assert sorted(isinstance(answer, BlockedError) for answer in answers) == [False, True]
    assert lab.writes(name) == ["create"]


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"name": "other"}, "SelfNodeRemediationTemplate medik8s/other .* is not there"),
        ({"kind": "FenceAgentsRemediationTemplate"}, "is none of those that are known"),
        (
            {"kind": "FenceAgentsRemediationTemplate", "api_version": "fence-agents-remediation.medik8s.io/v1alpha1"},
            "is of no kind that this cluster serves: is its operator there",
        ),
    ],
)
async def test_what_keeps_a_template_from_being_used_is_told(
    lab: Lab, template: Template, change: dict[str, str], why: str
) -> None:
    name = await lab.node()
    with pytest.raises(BlockedError, match=why) as blocked:
        await lab.act(MakeRemediation, name, template=template.model_copy(update=change))
    assert blocked.value.cause == "Template"


# The node's Lease


MINUTE = timedelta(minutes=1)
LEASES = f"/apis/coordination.k8s.io/v1/namespaces/{NAMESPACE}/leases"
US, OTHER = f"kreflex/{OURS}", f"kreflex/{THEIRS}"


def leases(lab: Lab) -> Leases:
    return Leases(lab.reader, lab.writer)


async def lease(lab: Lab, name: str) -> kit.Json | None:
    return await lab.plane.api.find(f"{LEASES}/{name}")


async def theirs(lab: Lab, holder: str | None, ago: timedelta, seconds: int | None = 60) -> str:
    """A Lease that somebody else has renewed some time ago; its name."""
    name, renewed = f"node-{uuid.uuid4().hex[:6]}", datetime.now(UTC) - ago
    spec = {"holderIdentity": holder, "leaseDurationSeconds": seconds, "leaseTransitions": 3}
    times = {"renewTime": renewed.strftime("%Y-%m-%dT%H:%M:%S.%fZ")}
    times["acquireTime"] = times["renewTime"]
    spec = {key: value for key, value in {**spec, **times}.items() if value is not None}
    await lab.plane.api.post(LEASES, {"metadata": {"name": name}, "spec": spec})
    return name


async def test_a_lease_is_taken_renewed_and_given_back_as_medik8s_does(lab: Lab) -> None:
    node = await lab.read(await lab.node())
    name = f"node-{node.name}"
    assert await leases(lab).hold(name, US, 10 * MINUTE, node.ref) is None
    first = await lease(lab, name)
    assert first is not None
    spec = first["spec"]
    assert (spec["holderIdentity"], spec["leaseDurationSeconds"], spec["leaseTransitions"]) == (US, 600, 0)
    assert spec["acquireTime"] == spec["renewTime"]
    assert abs(datetime.fromisoformat(spec["renewTime"]) - datetime.now(UTC)) < timedelta(seconds=30)
    assert datetime.fromisoformat(spec["renewTime"]) <= datetime.now(UTC)
    assert first["metadata"]["ownerReferences"] == [
        {"apiVersion": "v1", "kind": "Node", "name": node.name, "uid": node.ref.uid}
    ]

    assert await leases(lab).hold(name, US, 20 * MINUTE, node.ref) is None
    second = await lease(lab, name)
    assert second is not None
    assert (second["spec"]["leaseDurationSeconds"], second["spec"]["acquireTime"]) == (1200, spec["acquireTime"])
    assert second["spec"]["leaseTransitions"] == 0

    await leases(lab).release(name, US)
    assert await lease(lab, name) is None
    await leases(lab).release(name, US)
    assert lab.writes(name) == ["create", "update", "delete"]


async def test_our_lease_is_not_written_while_it_lasts_long_enough(lab: Lab) -> None:
    name = f"node-{uuid.uuid4().hex[:6]}"
    assert await leases(lab).hold(name, US, 10 * MINUTE) is None
    assert await leases(lab).hold(name, US, 5 * MINUTE) is None
    assert lab.writes(name) == ["create"]


@pytest.mark.parametrize(
    ("holder", "seconds"), [("NodeHealthCheck-workers", 60), ("node-maintenance", 3600), (OTHER, 60), (None, 60)]
)
async def test_a_lease_that_somebody_holds_is_neither_taken_nor_given_back(
    lab: Lab, holder: str | None, seconds: int
) -> None:
    name = await theirs(lab, holder, timedelta(seconds=5), seconds)
    told = await leases(lab).hold(name, US, MINUTE)
    assert told is not None
    assert told.startswith(f"{holder or 'somebody'} is at work on it until ")
    assert told.endswith(f"UTC, by Lease medik8s-leases/{name}")
    await leases(lab).release(name, US)
    body = await lease(lab, name)
    assert body is not None
    assert body["spec"].get("holderIdentity") == holder
    assert lab.writes(name) == []


@pytest.mark.parametrize(
    ("ago", "seconds"),
    [(2 * MINUTE, 60), (timedelta(seconds=5), None), (-timedelta(hours=1), 60)],
    ids=["expired", "without a duration", "from the future"],
)
async def test_a_lease_that_is_over_is_taken_over(lab: Lab, ago: timedelta, seconds: int | None) -> None:
    name = await theirs(lab, "NodeHealthCheck-workers", ago, seconds)
    before = await lease(lab, name)
    assert await leases(lab).hold(name, US, MINUTE) is None
    after = await lease(lab, name)
    assert before is not None
    assert after is not None
    spec = after["spec"]
    assert (spec["holderIdentity"], spec["leaseTransitions"]) == (US, 4)
    assert spec["acquireTime"] == spec["renewTime"] != before["spec"]["acquireTime"]


@pytest.mark.parametrize("there", [False, True], ids=["free", "expired"])
async def test_of_many_that_want_a_lease_at_once_one_gets_it(lab: Lab, there: bool) -> None:
    for _ in range(5):
        name = await theirs(lab, "gone", 2 * MINUTE) if there else f"node-{uuid.uuid4().hex[:6]}"
        holders = [f"kreflex/{number}" for number in range(8)]
        answers = await asyncio.gather(*(leases(lab).hold(name, holder, MINUTE) for holder in holders))
        assert answers.count(None) == 1
        winner = holders[answers.index(None)]
        body = await lease(lab, name)
        assert body is not None
        assert body["spec"]["holderIdentity"] == winner
        assert all(winner in answer for answer in answers if answer)
        assert len(lab.writes(name)) == 1


async def test_admission_lets_no_lease_be_held_in_another_name_or_elsewhere(lab: Lab) -> None:
    def body(holder: str) -> kit.Json:
        return {"metadata": {"name": f"node-{uuid.uuid4().hex[:6]}"}, "spec": {"holderIdentity": holder}}

    with pytest.raises(DeniedError, match="a Lease is held in the name of kreflex/"):
        await lab.writer.create(LEASES, body("node-maintenance"))
    with pytest.raises(OutageError) as refused:
        await lab.writer.create(LEASES.replace(NAMESPACE, "kube-system"), body(US))
    assert refused.value.status == 403


async def test_a_namespace_of_leases_that_is_missing_is_told(lab: Lab) -> None:
    transport = Transport(load_credentials(str(lab.plane.kubeconfig)))
    await lab.plane.api.delete(f"/api/v1/namespaces/{NAMESPACE}")
    try:
        await eventually(lambda: gone(lab), "the namespace gone", patience=60)
        told = await Leases(Reader(transport), Writer(transport)).hold("node-1", US, MINUTE)
        assert told is not None
        assert "kubectl create namespace medik8s-leases" in told
        told = await leases(lab).hold("node-1", US, MINUTE)
        assert told is not None
        assert "apply rbac.yaml of this function" in told
    finally:
        await transport.close()
        allowed = rights.manifests(rights.rights_of(REFLEX))
        await manifests.apply(lab.plane.api, [a_namespace(NAMESPACE), *allowed])


async def gone(lab: Lab) -> bool:
    return await lab.plane.api.find(f"/api/v1/namespaces/{NAMESPACE}") is None
