"""What node-replacer decides, finds and judges, by values."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from functions.node_replacer.main import SECOND, NodeReplacerSettings, decide, find, recovered
from kreflex import (
    CUT_OFF,
    MARK,
    TAINTED,
    AskProvider,
    CordonNode,
    Course,
    Defer,
    DeleteMachine,
    DeleteNodeClaim,
    EndRemediation,
    EvictPods,
    Ineffective,
    MakeRemediation,
    NodeSignal,
    Recovered,
    Refuse,
    RestartNetworkPod,
    Skip,
    TaintOutOfService,
    Taken,
    Treatment,
    UncordonNode,
    UntaintNode,
    World,
    owner_of,
)
from kreflex.nodes import Pool, node_view
from kreflex.records import Answer, Owner, Target
from kreflex.views import JSON
from tests.values import CART, CART_SET, MINUTE, NOW, CannedApi, a_node, a_pod, a_policy, stamp

NAME, RECORD, PROVIDER = "blue-1", "node-replacer-blue-1-abc", "lab:///a/blue-1"
POLICIES = "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies"
POOL = {"karpenter.sh/nodepool": "blue"}
SINK = NodeReplacerSettings(replacement_sink="http://provider")
SNR = {
    "apiVersion": "self-node-remediation.medik8s.io/v1alpha1",
    "kind": "SelfNodeRemediationTemplate",
    "namespace": "medik8s",
    "name": "reboot",
}
MENDING = "/apis/self-node-remediation.medik8s.io/v1alpha1/namespaces/medik8s/selfnoderemediations/blue-1"


def condition(kind: str = "Ready", status: str = "False", ago: timedelta = 6 * MINUTE, reason: str = "") -> JSON:
    return {"type": kind, "status": status, "lastTransitionTime": stamp(NOW - ago), "reason": reason}


def node(*conditions: JSON, ours: bool = False, **about: Any) -> JSON:
    """A node of Karpenter's, Ready unless conditions say otherwise; with `ours` it has our cordon."""
    noted = about.pop("annotations", {})
    body = a_node(NAME, *conditions, annotations={**noted, **({MARK: RECORD} if ours else {})}, **about)
    cordon = {"unschedulable": True} if ours else {}
    return {**body, "spec": {**body["spec"], "providerID": PROVIDER, **cordon}}


def claim(**meta: Any) -> JSON:
    owner = {"apiVersion": "karpenter.sh/v1", "kind": "NodePool", "name": "blue", "uid": "uid-blue"}
    meta = {"name": "blue-1", "uid": "uid-claim", "resourceVersion": "5", "ownerReferences": [owner], **meta}
    return {"kind": "NodeClaim", "metadata": {**meta, "labels": POOL}, "status": {"providerID": PROVIDER}}


def lease(ago: timedelta) -> dict[str, JSON]:
    path = f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{NAME}"
    return {path: {"spec": {"renewTime": stamp(NOW - ago)}}}


def world(
    body: JSON | None, *pods: JSON, upkeep: JSON | None = None, claims: Sequence[JSON] = (), **more: Any
) -> World:
    """A cluster with this node, these pods on it, a policy about nodes, and what stands behind the node."""
    policy = a_policy("nodes", functions=["node-replacer"], owners=["Node"], nodes=upkeep or {})
    assert policy.spec is not None, policy.broken
    meta = {"name": "nodes", "uid": "uid-nodes", "generation": 1}
    spec = {"mode": "Auto", "functions": ["node-replacer"], "owners": ["Node"], "nodes": upkeep or {}}
    objects: dict[str, JSON] = {f"{POLICIES}/nodes": {"metadata": meta, "spec": spec}}
    if body is not None:
        objects[f"/api/v1/nodes/{NAME}"] = body
    here = [{**pod, "spec": {**pod["spec"], "nodeName": NAME}} for pod in pods]
    objects |= {f"/api/v1/pods/{pod['metadata']['name']}": pod for pod in here}
    objects |= {f"/apis/karpenter.sh/v1/nodeclaims/{one['metadata']['name']}": one for one in claims}
    return replace(CannedApi(objects | more.pop("objects", {})).world(), function="node-replacer")


async def decision(body: JSON | None, *pods: JSON, course: Course | None = None, **about: Any) -> Any:
    """What is decided about the node, whose claim is Karpenter's unless told otherwise."""
    about.setdefault("claims", [claim()])
    settings, seen = about.pop("settings", NodeReplacerSettings()), about.pop("seen", None)
    signal = NodeSignal(NAME, seen=None if seen is None else node_view(seen), course=course)
    return await decide(signal, world(body, *pods, **about), settings)


def course(*steps: Taken, begun: timedelta = MINUTE, answer: Answer | None = None) -> Course:
    return Course(RECORD, NOW - begun, steps, answer)


def taken(action: str, ago: timedelta = MINUTE, note: str = "") -> Taken:
    return Taken(action=action, first=NOW - ago, last=NOW - ago, note=note)


CORDON = taken("CordonNode")


# What it leaves alone


async def test_a_healthy_node_in_an_event_costs_no_call() -> None:
    api = CannedApi()
    healthy = node_view(node(condition(status="True")))
    assert isinstance(await decide(NodeSignal(NAME, seen=healthy), api.world(), NodeReplacerSettings()), Skip)
    assert api.calls == []


async def test_a_node_that_is_gone_or_has_another_uid_is_gone_for_good() -> None:
    assert await decide(NodeSignal(NAME, "uid-x"), world(None), SINK) == Skip("the node is gone", final=True)
    other = await decide(NodeSignal(NAME, "uid-x"), world(node(condition())), SINK)
    assert other == Skip("the node is gone", final=True)


async def test_an_illness_counts_from_its_time_on() -> None:
    early = await decision(node(condition(ago=5 * MINUTE - timedelta(seconds=1))))
    assert isinstance(early, Skip)
    assert "counts from" in early.because
    assert isinstance(await decision(node(condition(ago=5 * MINUTE))), CordonNode)


async def test_the_earliest_deadline_wins() -> None:
    upkeep = {
        "conditions": [
            {"type": "Ready", "status": "False", "for": "30m"},
            {"type": "KernelDeadlock", "status": "True", "for": "2m"},
        ]
    }
    both = node(condition(), condition("KernelDeadlock", "True", 3 * MINUTE))
    assert isinstance(await decision(both, upkeep=upkeep), CordonNode)
    assert isinstance(await decision(node(condition()), upkeep=upkeep), Skip)


async def test_a_condition_that_the_policy_does_not_name_is_no_illness() -> None:
    assert isinstance(await decision(node(condition(status="True"), condition("KernelDeadlock", "True"))), Skip)


async def test_two_policies_that_contradict_each_other_are_told_and_nothing_is_done() -> None:
    second = {"metadata": {"name": "more", "uid": "uid-more", "generation": 1}, "spec": {"mode": "Auto", "nodes": {}}}
    refused = await decision(node(condition()), objects={f"{POLICIES}/more": second})
    assert isinstance(refused, Refuse)
    assert refused.because == "policies more and nodes say when this node is ill: leave one"


# How it goes on


async def test_an_ill_node_is_cordoned_first_and_the_plan_is_the_same_in_each_step() -> None:
    first = await decision(node(condition()), a_pod())
    assert isinstance(first, CordonNode)
    assert first.episode == f"Ready/{stamp(NOW - 6 * MINUTE)}"
    assert first.because == "blue-1: Ready is False for 6m"
    second = await decision(node(condition(), ours=True), a_pod(), course=course(CORDON))
    assert isinstance(second, EvictPods)
    assert second.plan_hash() == first.plan_hash()


async def test_nothing_is_cordoned_that_nothing_would_replace() -> None:
    bare = await decision(node(condition(), pool=""), claims=[])
    assert isinstance(bare, Refuse)
    assert (bare.cause, "REPLACEMENT_SINK" in bare.because) == ("Replacement", True)


async def test_what_somebody_else_has_cordoned_is_emptied_without_a_cordon_of_ours() -> None:
    body = node(condition())
    theirs = {**body, "spec": {**body["spec"], "unschedulable": True}}
    assert isinstance(await decision(theirs, a_pod()), EvictPods)


async def test_a_person_who_uncordons_the_node_ends_the_remediation() -> None:
    body = node(condition(), annotations={MARK: RECORD})
    undo = await decision(body, a_pod(), course=course(CORDON))
    assert isinstance(undo, UncordonNode)
    assert undo.because == "somebody has uncordoned blue-1 in the middle of it"
    ended = await decision(node(condition()), a_pod(), course=course(CORDON, taken("UncordonNode")))
    assert isinstance(ended, Refuse)


async def test_pods_that_leave_are_waited_for() -> None:
    leaving = a_pod(terminating=True)
    waits = await decision(node(condition(), ours=True), leaving, course=course(CORDON))
    assert isinstance(waits, Defer)
    assert waits.because == "1 pods are left on blue-1"


async def test_a_budget_that_said_no_is_asked_again_after_two_seconds() -> None:
    for ago, expected in ((1, Defer), (2, EvictPods)):
        blocked = taken("EvictPods", timedelta(seconds=ago), "evicted 0, 1 blocked by PodDisruptionBudgets (shop/cart)")
        steps = course(CORDON, blocked)
        assert isinstance(await decision(node(condition(), ours=True), a_pod(), course=steps), expected)


async def test_a_budget_that_has_let_a_pod_go_is_asked_again_after_a_second() -> None:
    for ago, expected in ((0, Defer), (1, EvictPods)):
        some = taken("EvictPods", timedelta(seconds=ago), "evicted 1, 1 blocked by PodDisruptionBudgets (shop/cart)")
        steps = course(CORDON, some)
        assert isinstance(await decision(node(condition(), ours=True), a_pod(), course=steps), expected)


async def test_an_empty_node_is_handed_to_karpenter_with_an_end_for_its_drain() -> None:
    last = await decision(node(condition(), ours=True), course=course(CORDON))
    assert isinstance(last, DeleteNodeClaim)
    assert last.deadline == NOW + 15 * MINUTE


async def test_a_silent_kubelet_is_not_waited_for() -> None:
    silent, heard = node(condition(status="Unknown"), ours=True), lease(10 * MINUTE)
    # Asked once: what they belong to may make others at once.
    assert isinstance(await decision(silent, a_pod(), course=course(CORDON), objects=heard), EvictPods)
    asked = course(CORDON, taken("EvictPods", timedelta(seconds=1)))
    last = await decision(silent, a_pod(), course=asked, objects=heard)
    assert isinstance(last, DeleteNodeClaim)
    assert last.deadline == NOW


async def test_pods_on_a_silent_node_are_asked_again_if_who_asked_them_was_cut_off() -> None:
    silent, heard = node(condition(status="Unknown"), ours=True), lease(10 * MINUTE)
    cut_off = course(CORDON, taken("EvictPods", timedelta(seconds=1), CUT_OFF))
    assert isinstance(await decision(silent, a_pod(), course=cut_off, objects=heard), EvictPods)


async def test_a_kubelet_whose_lease_is_renewed_is_not_silent() -> None:
    heard = lease(timedelta(seconds=10))
    step = await decision(node(condition(status="Unknown"), ours=True), a_pod(), course=course(CORDON), objects=heard)
    assert isinstance(step, EvictPods)


@pytest.mark.parametrize("why", ["1 denied (shop/cart)", "1 with several PodDisruptionBudgets, where one is allowed"])
async def test_what_keeps_all_pods_is_asked_again_after_two_seconds(why: str) -> None:
    for ago, expected in ((1, Defer), (2, EvictPods)):
        steps = course(CORDON, taken("EvictPods", timedelta(seconds=ago), f"evicted 0, {why}"))
        assert isinstance(await decision(node(condition(), ours=True), a_pod(), course=steps), expected)
    goes_on = course(CORDON, taken("EvictPods", timedelta(seconds=1), "evicted 20"))
    assert isinstance(await decision(node(condition(), ours=True), a_pod(), course=goes_on), EvictPods)


@pytest.mark.parametrize("on_timeout", ["GiveUp", "Force"])
async def test_a_drain_has_all_its_time_after_a_repair_in_vain(on_timeout: str) -> None:
    upkeep = {**REPAIR, "drain": {"timeout": "15m", "onTimeout": on_timeout}}
    late = course(taken(MADE, 15 * MINUTE), CORDON, begun=15 * MINUTE)
    step = await decision(node(condition(), ours=True), a_pod(), course=late, upkeep=upkeep)
    assert isinstance(step, EvictPods)


async def test_pods_that_never_end_hold_what_somebody_else_has_cordoned_for_the_drain_s_time_only() -> None:
    theirs, leaving = node(condition(), unschedulable=True), a_pod(terminating=True)
    first = await decision(theirs, leaving)
    assert isinstance(first, EvictPods)
    assert first.pods == ()
    begun = course(taken("EvictPods", 15 * MINUTE), begun=15 * MINUTE)
    assert isinstance(await decision(theirs, leaving, course=begun), Refuse)


async def test_a_drain_whose_time_is_over_is_given_up_uncordoned_first() -> None:
    late = course(taken("CordonNode", 15 * MINUTE), begun=15 * MINUTE)
    assert isinstance(await decision(node(condition(), ours=True), a_pod(), course=late), UncordonNode)
    undone = taken("UncordonNode", note="1 pods are left on blue-1 after 15m")
    uncordoned = course(taken("CordonNode", 15 * MINUTE), undone, begun=15 * MINUTE)
    refused = await decision(node(condition()), a_pod(), course=uncordoned)
    because = "1 pods are left on blue-1 after 15m; blue-1: Ready is False for 6m"
    assert refused == Refuse(because, "GaveUp", 5 * MINUTE, refused.episode)


async def test_a_drain_whose_time_is_over_is_forced_if_the_policy_says_so() -> None:
    late = course(taken("CordonNode", 15 * MINUTE), begun=15 * MINUTE)
    force = {"drain": {"onTimeout": "Force"}}
    last = await decision(node(condition(), ours=True), a_pod(), course=late, upkeep=force)
    assert isinstance(last, DeleteNodeClaim)
    assert last.deadline == NOW


async def test_a_bare_pod_keeps_a_node_from_being_touched_at_all() -> None:
    bare = a_pod(owner=None)
    refused = await decision(node(condition()), bare)
    assert isinstance(refused, Refuse)
    assert refused.cause == "PodsBlock"
    allowed = await decision(node(condition()), bare, upkeep={"drain": {"bare": "Evict"}})
    assert isinstance(allowed, CordonNode)


# When it can't go on


async def test_policies_that_contradict_each_other_hold_what_has_begun() -> None:
    second = {"metadata": {"name": "more", "uid": "uid-more", "generation": 1}, "spec": {"mode": "Auto", "nodes": {}}}
    about: dict[str, Any] = {"course": course(CORDON), "objects": {f"{POLICIES}/more": second}}
    held = await decision(node(condition(), ours=True), a_pod(), **about)
    assert held == Defer("policies more and nodes say when this node is ill: leave one", until=NOW + MINUTE)


async def test_what_is_held_up_for_longer_than_all_its_time_is_taken_back() -> None:
    # 15m to drain it and 30m to replace it.
    for minutes, expected in ((44, DeleteNodeClaim), (45, UncordonNode)):
        begun = course(taken("CordonNode", minutes * MINUTE), begun=minutes * MINUTE)
        assert isinstance(await decision(node(condition(), ours=True), course=begun), expected)


async def test_a_provider_that_can_not_be_reached_in_time_leads_to_people() -> None:
    late = course(taken("CordonNode", 45 * MINUTE), begun=45 * MINUTE)
    body = node(condition(), pool="", ours=True)
    assert isinstance(await decision(body, claims=[], settings=SINK, course=late), UncordonNode)
    asked = course(taken("CordonNode", 45 * MINUTE), taken("AskProvider"), begun=45 * MINUTE)
    assert isinstance(await decision(body, claims=[], settings=SINK, course=asked), Defer)


async def test_a_repair_that_can_not_be_begun_leads_to_the_next_rung_when_its_time_is_over() -> None:
    assert isinstance(
        await decision(node(condition()), upkeep=REPAIR, course=course(begun=9 * MINUTE)), MakeRemediation
    )
    assert isinstance(await decision(node(condition()), upkeep=REPAIR, course=course(begun=10 * MINUTE)), CordonNode)


async def test_an_illness_has_one_name_whatever_an_event_calls_it() -> None:
    for told in ("", "Ready/made-up"):
        signal = NodeSignal(NAME, "uid-blue-1", source="waker", episode=told)
        step = await decide(signal, world(node(condition()), claims=[claim()]), NodeReplacerSettings())
        assert isinstance(step, CordonNode)
        assert step.episode == f"Ready/{stamp(NOW - 6 * MINUTE)}"
    recorded = NodeSignal(NAME, "uid-blue-1", source="record", episode="Ready/earlier")
    step = await decide(recorded, world(node(condition()), claims=[claim()]), NodeReplacerSettings())
    assert isinstance(step, CordonNode)
    assert step.episode == "Ready/earlier"


# When it heals by itself


async def test_a_node_that_heals_is_uncordoned_and_then_proven() -> None:
    well = node(condition(status="True"), ours=True)
    assert isinstance(await decision(well, course=course(CORDON)), UncordonNode)
    free = node(condition(status="True"))
    assert await decision(free, course=course(CORDON, taken("UncordonNode"))) == Skip("the node has recovered")


async def test_a_cordon_of_somebody_else_is_left_when_a_node_heals() -> None:
    body = node(condition(status="True"))
    theirs = {**body, "spec": {**body["spec"], "unschedulable": True}}
    assert await decision(theirs, course=course(taken("EvictPods"))) == Skip("the node has recovered")


async def test_a_cordon_of_a_record_that_was_deleted_is_taken_over() -> None:
    orphan = node(condition(), annotations={MARK: "node-replacer-blue-1-old"}, unschedulable=True)
    late = course(taken("EvictPods", 15 * MINUTE), begun=15 * MINUTE)
    undo = await decision(orphan, a_pod(), course=late)
    assert isinstance(undo, UncordonNode)
    assert undo.of == "node-replacer-blue-1-old"
    # One of another function stays its own.
    other = node(condition(), annotations={MARK: "chaos-runner-blue-1"}, unschedulable=True)
    assert isinstance(await decision(other, a_pod(), course=late), Refuse)


async def test_a_cordon_that_nobody_remembers_is_taken_back() -> None:
    undo = await decision(node(condition(status="True"), ours=True))
    assert isinstance(undo, UncordonNode)
    assert undo.of == RECORD


async def test_a_taint_that_nobody_remembers_is_taken_back_before_the_cordon() -> None:
    tainted = node(condition(status="True"), ours=True, annotations={TAINTED: "node-replacer-blue-1-old"})
    undo = await decision(tainted)
    assert isinstance(undo, UntaintNode)
    assert undo.of == "node-replacer-blue-1-old"
    alone = node(condition(status="True"), annotations={TAINTED: RECORD})
    assert isinstance(await decision(alone), UntaintNode)
    assert await found(alone) == [(NAME, f"cordon/{RECORD}")]


async def test_another_status_of_the_same_condition_goes_on_with_the_same_remediation() -> None:
    # It was Unknown for long, and is False since a second: neither healthy nor newly unhealthy.
    changed = node(condition(ago=timedelta(seconds=1)), ours=True)
    assert isinstance(await decision(changed, a_pod(), course=course(CORDON)), EvictPods)


# The ladder


async def test_a_network_that_is_down_is_restarted_before_anything_else() -> None:
    upkeep = {"conditions": [{"type": "NetworkUnavailable", "status": "True", "for": "1m"}]}
    where, owner = replace(CART, namespace="kube-system"), replace(CART_SET, kind="DaemonSet", name="kube-proxy")
    proxy = a_pod(where, labels={"k8s-app": "kube-proxy"}, owner=owner)
    body = node(condition(status="True"), condition("NetworkUnavailable", "True"))
    step = await decision(body, proxy, upkeep=upkeep)
    assert isinstance(step, RestartNetworkPod)
    waits = await decision(body, proxy, upkeep=upkeep, course=course(taken("RestartNetworkPod")))
    assert isinstance(waits, Defer)
    late = course(taken("RestartNetworkPod", 5 * MINUTE), begun=5 * MINUTE)
    assert isinstance(await decision(body, proxy, upkeep=upkeep, course=late), CordonNode)


async def test_a_full_disk_is_relieved_and_its_node_never_replaced() -> None:
    upkeep = {"conditions": [{"type": "DiskPressure", "status": "True", "for": "1m"}]}
    body = node(condition(status="True"), condition("DiskPressure", "True"))
    step = await decision(body, a_pod(), upkeep=upkeep)
    assert isinstance(step, EvictPods)
    assert step.step_name == "EvictPods relief"
    late = course(taken("EvictPods relief", 10 * MINUTE), begun=10 * MINUTE)
    refused = await decision(body, a_pod(), upkeep=upkeep, course=late)
    assert isinstance(refused, Refuse)
    assert refused.cause == "Ladder"


REPAIR = {"ladder": [{"action": "Repair", "within": "5m", "template": SNR}, {"action": "Replace"}]}
MADE = "MakeRemediation SelfNodeRemediation"


def mending(by: str = RECORD, succeeded: str = "Unknown", **meta: Any) -> dict[str, JSON]:
    noted = {"uid": "uid-mending", "annotations": {MARK: by}, **meta}
    said = [{"type": "Succeeded", "status": succeeded, "reason": "Because"}]
    return {MENDING: {"metadata": noted, "status": {"conditions": said}}}


async def test_a_repair_is_tried_before_a_replacement_and_has_its_time() -> None:
    assert isinstance(await decision(node(condition()), upkeep=REPAIR), MakeRemediation)
    waits = await decision(node(condition()), upkeep=REPAIR, course=course(taken(MADE)), objects=mending())
    assert isinstance(waits, Defer)


@pytest.mark.parametrize(("ago", "succeeded"), [(5, "Unknown"), (1, "False")])
async def test_a_repair_that_fails_or_takes_too_long_is_ended_before_the_next_rung(ago: int, succeeded: str) -> None:
    steps = course(taken(MADE, ago * MINUTE))
    ended = await decision(node(condition()), upkeep=REPAIR, course=steps, objects=mending(succeeded=succeeded))
    assert isinstance(ended, EndRemediation)
    assert isinstance(await decision(node(condition()), upkeep=REPAIR, course=steps), CordonNode)


async def test_a_repair_of_somebody_else_is_not_ended() -> None:
    steps = course(taken(MADE, 5 * MINUTE))
    step = await decision(node(condition()), upkeep=REPAIR, course=steps, objects=mending(by="another"))
    assert isinstance(step, CordonNode)


async def test_a_repair_that_has_helped_is_ended() -> None:
    well = node(condition(status="True"))
    ended = await decision(well, upkeep=REPAIR, course=course(taken(MADE)), objects=mending(succeeded="True"))
    assert isinstance(ended, EndRemediation)


# The provider


async def asks(*steps: Taken, answer: Answer | None = None, body: JSON | None = None) -> Any:
    body = body or node(condition(), pool="", ours=True)
    given = course(CORDON, *steps, answer=answer)
    return await decision(body, claims=[], settings=SINK, course=given)


def answered(outcome: str, **more: Any) -> Answer:
    return Answer.model_validate({"outcome": outcome, "at": stamp(NOW), **more})


async def test_a_provider_is_asked_once_and_its_answer_waited_for() -> None:
    assert isinstance(await asks(), AskProvider)
    assert isinstance(await asks(taken("AskProvider")), Defer)
    assert isinstance(await asks(taken("AskProvider"), answer=answered("Accepted")), Defer)


async def test_a_request_that_was_cut_off_is_sent_again() -> None:
    assert isinstance(await asks(taken("AskProvider", note=CUT_OFF)), AskProvider)


async def test_a_provider_that_fails_or_says_nothing_in_time_leads_to_people() -> None:
    assert isinstance(await asks(taken("AskProvider"), answer=answered("Failed", message="quota")), UncordonNode)
    assert isinstance(await asks(taken("AskProvider", 30 * MINUTE)), UncordonNode)


async def test_volumes_are_let_go_only_when_the_machine_is_off_for_certain() -> None:
    asked, silent = taken("AskProvider"), node(condition(status="Unknown"), pool="", ours=True)
    assert isinstance(await asks(asked, answer=answered("Done"), body=silent), Defer)
    # Whoever says so of a machine whose kubelet is heard is wrong.
    assert isinstance(await asks(asked, answer=answered("Done", poweredOff=True)), Defer)
    assert isinstance(await asks(asked, answer=answered("Done", poweredOff=True), body=silent), TaintOutOfService)
    # Whoever has tainted it, ourselves or somebody else.
    taint = {"key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute"}
    tainted = node(condition(status="Unknown"), pool="", ours=True, taints=[taint])
    assert isinstance(await asks(asked, answer=answered("Done", poweredOff=True), body=tainted), Defer)


async def test_a_node_that_comes_back_loses_the_taint_before_its_cordon() -> None:
    back = node(condition(status="True"), pool="", ours=True, annotations={TAINTED: RECORD})
    assert isinstance(await asks(taken("AskProvider"), taken("TaintOutOfService"), body=back), UntaintNode)


async def test_a_machine_is_deleted_by_its_owner_s_rules() -> None:
    noted = {"cluster.x-k8s.io/machine": "m-1", "cluster.x-k8s.io/cluster-namespace": "fleet"}
    owner = {"apiVersion": "v1", "kind": "Other", "name": "o", "uid": "u", "controller": True}
    meta = {"name": "m-1", "namespace": "fleet", "uid": "uid-m", "resourceVersion": "3", "ownerReferences": [owner]}
    spec = {"providerID": PROVIDER, "clusterName": "c"}
    base = "/apis/cluster.x-k8s.io/v1beta2/namespaces/fleet"
    machine = {"metadata": meta, "spec": spec, "status": {"nodeRef": {"name": NAME}}}
    objects = {f"{base}/machines/m-1": machine, f"{base}/clusters/c": {"metadata": {"name": "c", "uid": "c"}}}
    body = node(condition(), pool="", annotations=noted, ours=True)
    assert isinstance(await decision(body, claims=[], course=course(CORDON), objects=objects), DeleteMachine)


# What is found, and what is proven


async def found(body: JSON, upkeep: JSON | None = None) -> list[tuple[str, str]]:
    cluster = world(body, upkeep=upkeep)
    return [(one.name, one.episode) async for one in find(cluster, NodeReplacerSettings())]


async def test_finds_what_has_been_ill_for_long_enough_and_cordons_that_are_left() -> None:
    assert await found(node(condition())) == [(NAME, f"Ready/{stamp(NOW - 6 * MINUTE)}")]
    assert await found(node(condition(ago=MINUTE))) == []
    assert await found(node(condition(status="True"))) == []
    assert await found(node(condition(status="True"), ours=True)) == [(NAME, f"cordon/{RECORD}")]


async def test_finds_what_the_policy_calls_an_illness_though_it_looks_well() -> None:
    upkeep = {"conditions": [{"type": "GPUHealthy", "status": "False", "for": "1m"}]}
    body = node(condition(status="True"), condition("GPUHealthy", "False"))
    assert await found(body, upkeep) == [(NAME, f"GPUHealthy/{stamp(NOW - 6 * MINUTE)}")]
    assert await found(body) == []


def treatment(
    action: str = "", ago: timedelta = 20 * MINUTE, pool: Pool | None = None, steps: tuple[Taken, ...] = ()
) -> Treatment:
    body = node_view(node())
    owner = owner_of(pool or Pool("blue", "karpenter.sh/nodepool"))
    whole = Owner(**Target.of(owner.ref).model_dump())
    return Treatment(body.ref, whole, NOW - ago, 10 * MINUTE, action=action, steps=steps)


async def verdict(body: JSON | None, about: Treatment, **more: JSON) -> Any:
    return await recovered(about, world(body, objects=more), NodeReplacerSettings())


async def test_a_node_that_was_mended_has_recovered_once_it_has_been_well_for_the_proof() -> None:
    well = node(condition(status="True", ago=11 * MINUTE))
    assert isinstance(await verdict(well, treatment()), Recovered)
    assert isinstance(await verdict(node(condition(status="True", ago=9 * MINUTE)), treatment()), Defer)
    assert isinstance(await verdict(well, treatment(ago=5 * MINUTE)), Defer)
    assert isinstance(await verdict(node(condition()), treatment()), Ineffective)


async def test_a_node_whose_machine_is_being_deleted_is_waited_for() -> None:
    assert isinstance(await verdict(node(condition()), treatment("DeleteNodeClaim")), Defer)


def mate(ago: timedelta, ready: timedelta) -> dict[str, JSON]:
    body = a_node("blue-9", condition(status="True", ago=ready), labels=POOL)
    body["metadata"] |= {"creationTimestamp": stamp(NOW - ago), "uid": "uid-9"}
    return {"/api/v1/nodes/blue-9": body}


async def test_a_pool_is_whole_when_another_node_has_been_ready_for_the_proof() -> None:
    assert isinstance(await verdict(None, treatment(), **mate(15 * MINUTE, 12 * MINUTE)), Recovered)
    assert isinstance(await verdict(None, treatment(), **mate(15 * MINUTE, 9 * MINUTE)), Defer)
    # One that was there before takes nobody's place.
    other = treatment(pool=Pool("workers", ""))
    assert isinstance(await verdict(None, other, **mate(30 * MINUTE, 29 * MINUTE)), Defer)


async def test_a_provider_may_make_the_successor_before_the_old_node_goes() -> None:
    workers = Pool("workers", "")
    new = {"/api/v1/nodes/new": a_node("new", condition(status="True", ago=14 * MINUTE), pool="", age=15 * MINUTE)}
    for asked, expected in ((16 * MINUTE, Recovered), (13 * MINUTE, Defer)):
        steps = (taken("CordonNode", 20 * MINUTE), taken("AskProvider", asked))
        about = treatment(ago=11 * MINUTE, pool=workers, steps=steps)
        assert isinstance(await verdict(None, about, **new), expected)
    # Whose machine we have ended ourselves, what came before is no successor of.
    deleted = (taken("CordonNode", 20 * MINUTE), taken("DeleteMachine", 11 * MINUTE))
    about = treatment(ago=11 * MINUTE, pool=workers, steps=deleted)
    assert isinstance(await verdict(None, about, **new), Defer)


async def test_karpenter_need_not_make_a_node_that_no_pod_waits_for() -> None:
    assert isinstance(await verdict(None, treatment()), Recovered)
    # It was evicted eleven minutes ago, by a step before the last one.
    waiting = {"/api/v1/pods/p": a_pod(phase="Pending", age=11 * MINUTE)}
    about = treatment(ago=10 * MINUTE + 2 * SECOND, steps=(taken("EvictPods", 12 * MINUTE),))
    assert isinstance(await verdict(None, about, **waiting), Defer)
    before = {"/api/v1/pods/p": a_pod(phase="Pending", age=13 * MINUTE)}
    assert isinstance(await verdict(None, about, **before), Recovered)


async def test_nothing_is_proven_while_pods_are_bound_to_the_node_that_is_gone() -> None:
    orphan = a_pod()
    left = {"/api/v1/pods/p": {**orphan, "spec": {**orphan["spec"], "nodeName": NAME}}}
    waited = await verdict(None, treatment(), **left)
    assert waited == Defer(f"{NAME} is gone, and 1 pods are still bound to it", until=NOW + 10 * MINUTE)
    assert isinstance(await verdict(None, treatment(), **left, **mate(15 * MINUTE, 12 * MINUTE)), Defer)
