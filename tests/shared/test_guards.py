"""Each guard by itself, by values."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from kreflex import CordonNode, EvictPod, Ref, owner_of
from kreflex.guards import (
    RECHECK,
    Approved,
    BlastRadius,
    BudgetLeft,
    CalmEnough,
    Case,
    Fleet,
    Frozen,
    Guard,
    InScope,
    NotUseless,
    OwnedByGit,
    Paused,
    Refusal,
    Unleased,
    Usable,
    guards,
    guards_of_steps,
    storm_until,
)
from kreflex.ledger import Ledger, Standing
from kreflex.policy import Policy, Storm, combine
from kreflex.records import read_record
from kreflex.views import JSON
from tests.values import (
    CART,
    HOUR,
    MINUTE,
    NOW,
    CannedApi,
    CannedMetrics,
    a_policy,
    a_record_body,
    an_empty_ledger,
    objects,
    stamp,
    the_node,
    the_pod,
    the_workload,
)

BECAUSE = "app restarted 4 times"
RECORD = "restart-loop-killer-cart-1-5b0e1cc5"


def an_eviction(**about: Any) -> EvictPod:
    """The eviction of cart's pod; `workload` are its Deployment's values, None for a bare pod."""
    workload = about.pop("workload", {})
    return EvictPod(BECAUSE, the_pod(**about), None if workload is None else the_workload(**workload))


def a_case(
    *policies: Policy, action: EvictPod | None = None, approval: JSON | None = None, now: datetime = NOW
) -> Case:
    """A case for which one policy allows all, unless told otherwise."""
    record = read_record(a_record_body({"approval": approval} if approval else None))
    return Case(action or an_eviction(), combine(policies or (a_policy(),)), record, "kreflex-system", now)


async def refused(guard: Guard, case: Case) -> tuple[str, str] | None:
    refusal = await guard.refuses(case)
    return None if refusal is None else (refusal.guard, refusal.because)


def test_the_guards_are_asked_in_the_order_of_the_design() -> None:
    api = CannedApi()
    ledger = Ledger(*api.pair(), "kreflex-system", look)
    assert [type(guard) for guard in guards(api.world().cluster, CannedMetrics(), ledger)] == [
        Usable,
        Frozen,
        Paused,
        InScope,
        OwnedByGit,
        NotUseless,
        BlastRadius,
        Fleet,
        Unleased,
        CalmEnough,
        BudgetLeft,
        Approved,
    ]


async def look(_: object) -> Standing:
    return Standing("")


async def test_a_broken_policy_refuses() -> None:
    case = a_case(a_policy(), a_policy("bad", mode="Sometimes"))
    refusal = await Usable().refuses(case)
    assert refusal is not None
    assert (refusal.guard, refusal.until, refusal.outcome) == ("Policy", NOW + RECHECK, "refused")
    assert "ClusterRemediationPolicy bad can't be used: mode:" in refusal.because
    assert await Usable().refuses(a_case()) is None


async def test_a_frozen_policy_refuses() -> None:
    assert await refused(Frozen(), a_case(a_policy(), a_policy("stop", "shop", frozen=True))) == (
        "Frozen",
        "policy shop/stop is frozen",
    )
    assert await refused(Frozen(), a_case()) is None


async def test_nothing_new_begins_while_a_policy_asks_for_a_pause() -> None:
    asks = a_policy(pauseRequests=["the network is being changed until 18:00"])
    refusal = await Paused().refuses(a_case(asks, a_policy("own", "shop", pauseRequests=["a sale"])))
    because = "a pause is asked for: the network is being changed until 18:00 (all), a sale (shop/own)"
    assert refusal == Refusal("Paused", because, NOW + MINUTE)
    assert await refused(Paused(), a_case()) is None


async def test_what_has_begun_goes_on_in_a_pause() -> None:
    case = a_case(a_policy(pauseRequests=["a sale"]))
    begun = case.record.status.model_copy(update={"phase": "Acting", "begun_at": NOW})
    assert await refused(Paused(), replace(case, record=replace(case.record, status=begun))) is None


# Scope


@pytest.mark.parametrize("namespace", ["kube-system", "kube-public", "kube-node-lease", "kreflex-system"])
async def test_some_namespaces_are_protected_whatever_the_policies_say(namespace: str) -> None:
    action = an_eviction(ref=Ref("v1", "Pod", namespace, "dns", "uid-dns"))
    assert await refused(InScope(), a_case(action=action)) == ("Scope", f"namespace {namespace} is protected")


@pytest.mark.parametrize("kind", ["DaemonSet", "Job", "CronJob", "Machine"])
async def test_kinds_of_owners_have_to_be_named(kind: str) -> None:
    action = an_eviction(workload={"ref": Ref("x/v1", kind, "shop", "cart", "uid-cart")})
    because = f"it belongs to a {kind}: name {kind} in the policy's owners to allow that"
    assert await refused(InScope(), a_case(action=action)) == ("Scope", because)
    assert await refused(InScope(), a_case(a_policy(owners=[kind]), action=action)) is None


async def test_a_bare_pod_has_to_be_named() -> None:
    action = an_eviction(owner=None, workload=None)
    because = "nothing owns it, so nothing would bring it back: name Pod in the policy's owners to allow that"
    assert await refused(InScope(), a_case(action=action)) == ("Scope", because)
    assert await refused(InScope(), a_case(a_policy(owners=["Pod"]), action=action)) is None


@pytest.mark.parametrize("value", ["true", "True", "yes", "until-friday", ""])
async def test_a_pod_or_its_owner_may_opt_out(value: str) -> None:
    noted = {"kreflex.dev/opt-out": value}
    assert await refused(InScope(), a_case(action=an_eviction(annotations=noted))) == (
        "Scope",
        "Pod shop/cart-1 has the annotation kreflex.dev/opt-out",
    )
    assert await refused(InScope(), a_case(action=an_eviction(workload={"annotations": noted}))) == (
        "Scope",
        "Deployment shop/cart has the annotation kreflex.dev/opt-out",
    )


@pytest.mark.parametrize("value", ["false", "False"])
async def test_an_opt_out_that_says_no_is_none(value: str) -> None:
    assert await refused(InScope(), a_case(action=an_eviction(annotations={"kreflex.dev/opt-out": value}))) is None


# Blast radius


def healthy(replicas: int | None, ready: int | None) -> EvictPod:
    """An eviction of a pod that is Ready."""
    return an_eviction(ready_for=MINUTE, workload={"replicas": replicas, "ready": ready})


async def test_a_pod_that_does_not_serve_takes_nothing_away() -> None:
    case = a_case(a_policy(limits={"minHealthy": "100%"}), action=an_eviction(workload={"replicas": 3, "ready": 0}))
    assert await refused(BlastRadius(), case) is None


async def test_a_healthy_replica_stays_when_too_few_would_be_left() -> None:
    half = a_policy(limits={"minHealthy": "50%"})
    assert await refused(BlastRadius(), a_case(half, action=healthy(5, 4))) is None
    assert await refused(BlastRadius(), a_case(half, action=healthy(5, 3))) == (
        "BlastRadius",
        "3 of 5 replicas are healthy, 3 must stay (all)",
    )


async def test_unknown_numbers_refuse_where_a_policy_asks_for_some() -> None:
    for known in (healthy(None, 2), healthy(3, None)):
        assert await refused(BlastRadius(), a_case(a_policy(limits={"minHealthy": 1}), action=known)) == (
            "BlastRadius",
            "how many replicas Deployment shop/cart has is not known",
        )
        assert await refused(BlastRadius(), a_case(action=known)) is None


# Storm


def at(*seconds: int) -> list[datetime]:
    return [NOW + timedelta(seconds=second) for second in seconds]


FUNCTION = "restart-loop-killer"
STORM = Storm(faults=2, window=MINUTE, cooldown=10 * MINUTE)


@pytest.mark.parametrize(
    ("times", "until"),
    [
        ([], None),
        (at(0, 30), None),
        (at(0, 30, 61), None),
        (at(0, 30, 60), NOW + 11 * MINUTE),
        (at(60, 0, 30), NOW + 11 * MINUTE),
        (at(0, 10, 20, 600), NOW + timedelta(seconds=620)),
        (at(0, 10, 20, 30), NOW + timedelta(seconds=630)),
    ],
    ids=["none", "few", "slow", "as fast as allowed no more", "in any order", "one later", "goes on"],
)
def test_a_storm_lasts_until_it_has_been_calm(times: list[datetime], until: datetime | None) -> None:
    assert storm_until(times, STORM) == until


def remediations(
    times: Iterable[datetime], namespace: str = "shop", function: str = FUNCTION, target: str = "shop"
) -> dict[str, JSON]:
    """Records that were made at these times, about objects of a namespace, or of none."""
    base = f"/apis/kreflex.dev/v1alpha1/namespaces/{namespace}/remediations"
    return {
        f"{base}/r{n}": {
            "metadata": {"creationTimestamp": stamp(time), "namespace": namespace},
            "spec": {"function": function, "target": {"namespace": target} if target else {}},
        }
        for n, time in enumerate(times)
    }


async def test_a_storm_of_another_namespace_or_function_is_none_here() -> None:
    storm = {"storm": {"faults": 2}}
    api = CannedApi(remediations(at(-3, -2, -1)))
    guard = CalmEnough(api.world().cluster)
    assert await refused(guard, a_case(a_policy(limits=storm))) is not None
    assert await refused(guard, a_case(a_policy(limits=storm, scope={"namespaces": ["bakery"]}))) is None
    assert await refused(guard, a_case(a_policy(limits=storm, functions=["node-replacer"]))) is None


async def test_faults_of_nodes_belong_to_no_namespace_wherever_their_records_are() -> None:
    api = CannedApi(remediations(at(-3, -2, -1), target=""))
    guard = CalmEnough(api.world().cluster)
    storm = {"storm": {"faults": 2}}
    assert await refused(guard, a_case(a_policy(limits=storm))) is not None
    assert await refused(guard, a_case(a_policy(limits=storm, scope={"namespaces": ["shop"]}))) is None
    assert await refused(guard, a_case(a_policy(limits=storm, scope={"excludeNamespaces": ["shop"]}))) is not None


async def test_a_storm_refuses_and_says_when_it_is_over() -> None:
    stormy = a_policy(limits={"storm": {"faults": 2, "window": "1m", "cooldown": "10m"}})
    guard = CalmEnough(CannedApi(remediations(at(-3, -2, -1))).world().cluster)
    assert await guard.refuses(a_case(stormy)) == Refusal(
        "Storm",
        "more than 2 faults in 1m (all): one cause is likely, and it is not in the pods",
        NOW + 10 * MINUTE - timedelta(seconds=1),
    )
    assert await guard.refuses(a_case(stormy, now=NOW + 10 * MINUTE)) is None


async def test_storms_are_counted_only_where_a_policy_says_what_one_is() -> None:
    api = CannedApi(remediations(at(-3, -2, -1)))
    assert await refused(CalmEnough(api.world().cluster), a_case()) is None
    assert api.calls == []


async def test_a_namespace_counts_its_own_faults() -> None:
    api = CannedApi(remediations(()))
    own = a_policy("own", "shop", limits={"storm": {"faults": 2}})
    assert await refused(CalmEnough(api.world().cluster), a_case(a_policy(), own)) is None
    assert api.calls == ["GET /apis/kreflex.dev/v1alpha1/namespaces/shop/remediations"]


# Error budget

BUDGET = a_policy(limits={"errorBudget": {"query": "budget", "least": 0.2}})
SERVES = {"ready_for": MINUTE}
NO_SLOS = CannedApi().world().cluster


async def test_safe_healing_is_never_refused_for_a_spent_budget() -> None:
    metrics = CannedMetrics(0.0)
    assert await refused(BudgetLeft(metrics, NO_SLOS), a_case(BUDGET)) is None
    assert metrics.queries == []


@pytest.mark.parametrize(
    ("metrics", "known"),
    [
        (CannedMetrics(0.19), "19%"),
        (CannedMetrics(-1.5), "-150%"),
        (CannedMetrics(None), "unknown"),
        (CannedMetrics(), "unknown (Prometheus did not answer)"),
    ],
    ids=["little", "overspent", "no series", "down"],
)
async def test_a_person_decides_what_is_risky_while_the_budget_is_spent(metrics: CannedMetrics, known: str) -> None:
    action = an_eviction(**SERVES)
    refusal = await BudgetLeft(metrics, NO_SLOS).refuses(a_case(BUDGET, action=action))
    because = f"the error budget left is {known}, below 20% (all): a person decides{how(action)}"
    assert refusal == Refusal("ErrorBudget", because, NOW + RECHECK, "awaiting-approval", action.plan_hash())


async def test_nobody_is_asked_to_approve_what_a_dry_run_would_not_do() -> None:
    dry = a_policy(mode="DryRun", limits={"errorBudget": {"query": "budget"}})
    refusal = await BudgetLeft(CannedMetrics(0.1), NO_SLOS).refuses(a_case(dry, action=an_eviction(**SERVES)))
    because = (
        "dry run (ClusterRemediationPolicy all): the error budget left is 10%, below 20% (all): a person would be asked"
    )
    assert refusal == Refusal("ErrorBudget", because, NOW + RECHECK)


async def test_enough_budget_lets_pass() -> None:
    assert await refused(BudgetLeft(CannedMetrics(0.2), NO_SLOS), a_case(BUDGET, action=an_eviction(**SERVES))) is None


# Approval


def how(action: EvictPod) -> str:
    """What a person types to approve: the whole command, up to the name."""
    you = """'"$(kubectl auth whoami -o jsonpath={.status.userInfo.username})"'"""
    approval = f'{{"planHash": "{action.plan_hash()}", "by": "{you}", "until": "2026-05-01T13:00:00Z"}}'
    patch = f'{{"spec": {{"approval": {approval}}}}}'
    return f". To approve: kubectl -n shop patch remediation {RECORD} --type merge -p '{patch}'"


def an_approval(plan: str = "", until: datetime = NOW + HOUR) -> JSON:
    return {"planHash": plan or an_eviction().plan_hash(), "by": "ada", "until": stamp(until)}


ASKS = a_policy(mode="Approve")


async def test_auto_lets_pass() -> None:
    assert await refused(Approved(), a_case()) is None


async def test_a_dry_run_says_what_it_would_do_and_whose_word_it_is() -> None:
    assert await refused(Approved(), a_case(a_policy(mode="DryRun"))) == (
        "DryRun",
        f"dry run (ClusterRemediationPolicy all): would evict Pod shop/cart-1, because {BECAUSE}",
    )
    assert await refused(Approved(), a_case(a_policy("own", "shop"))) == (
        "DryRun",
        f"dry run (no ClusterRemediationPolicy selects it): would evict Pod shop/cart-1, because {BECAUSE}",
    )


async def test_a_plan_waits_for_a_person() -> None:
    refusal = await Approved().refuses(a_case(ASKS))
    assert refusal == Refusal(
        "Approval",
        f"would evict Pod shop/cart-1: {BECAUSE}{how(an_eviction())}",
        NOW + RECHECK,
        "awaiting-approval",
        an_eviction().plan_hash(),
    )


async def test_an_approved_plan_passes() -> None:
    assert await refused(Approved(), a_case(ASKS, approval=an_approval())) is None


async def test_an_approval_is_for_one_plan() -> None:
    because = f"what ada approved is not the plan {an_eviction().plan_hash()}{how(an_eviction())}"
    assert await refused(Approved(), a_case(ASKS, approval=an_approval("another"))) == ("ApprovalMismatch", because)


async def test_an_approval_that_ends_later_is_for_all_of_what_it_has_begun() -> None:
    case = a_case(ASKS, approval=an_approval(until=NOW - MINUTE))
    for began, expected in ((2 * MINUTE, None), (MINUTE, "ApprovalExpired")):
        begun = case.record.status.model_copy(update={"phase": "Acting", "begun_at": NOW - began})
        refusal = await refused(Approved(), replace(case, record=replace(case.record, status=begun)))
        assert (refusal and refusal[0]) == expected


async def test_a_node_that_another_holds_is_left_alone_and_our_own_lease_does_not_count() -> None:
    node = the_node()
    action = CordonNode("it is ill", node=node, pool=owner_of(node.pool()))
    path = "/apis/coordination.k8s.io/v1/namespaces/medik8s-leases/leases/node-blue-1"
    for holder, because in (
        ("nhc", "nhc is at work on it until 12:01:00 UTC, by Lease medik8s-leases/node-blue-1"),
        (f"kreflex/{RECORD}", None),
    ):
        spec = {"holderIdentity": holder, "leaseDurationSeconds": 60, "renewTime": stamp(NOW)}
        guard = Unleased(CannedApi({path: {"spec": spec}}).world().cluster)
        refusal = await guard.refuses(replace(a_case(), action=action))
        assert (refusal and refusal.because) == because
        assert refusal is None or (refusal.guard, refusal.outcome) == ("Lease", "deferred")
        assert await guard.refuses(a_case()) is None
    assert await Unleased(CannedApi().world().cluster).refuses(replace(a_case(), action=action)) is None


def test_before_each_step_of_what_has_begun_is_asked_whether_people_still_allow_it() -> None:
    kinds = [type(guard) for guard in guards_of_steps(CannedApi().world().cluster)]
    assert kinds == [Usable, Frozen, InScope, OwnedByGit, Fleet, Approved]


@dataclass(frozen=True)
class LiveWrite(EvictPod):
    """Writes what somebody owns in Git."""

    owned_by: str = ""

    @property
    def manager(self) -> str:
        return self.owned_by


async def test_what_git_owns_is_not_written_live() -> None:
    bare = an_eviction()
    owned = LiveWrite(bare.because, bare.pod, bare.top, "Application argocd/shop")
    assert await refused(OwnedByGit(), a_case(action=owned)) == (
        "Git",
        "Application argocd/shop owns it in Git: undo it there, or let a policy say how (releases.git)",
    )
    assert await refused(OwnedByGit(), a_case(action=replace(owned, owned_by=""))) is None


async def test_an_approval_ends_and_the_date_is_told() -> None:
    assert await refused(Approved(), a_case(ASKS, approval=an_approval(until=NOW))) == (
        "ApprovalExpired",
        f"what ada approved has expired at 2026-05-01 12:00:00 UTC{how(an_eviction())}",
    )


@pytest.mark.parametrize(
    ("approval", "guard"),
    [
        (an_approval(), None),
        (an_approval("another"), "ApprovalMismatch"),
        (an_approval(until=NOW), "ApprovalExpired"),
        (None, "ErrorBudget"),
    ],
)
async def test_only_a_valid_approval_replaces_the_error_budget(approval: JSON | None, guard: str | None) -> None:
    case = a_case(BUDGET, action=an_eviction(**SERVES), approval=approval)
    refusal = await BudgetLeft(CannedMetrics(0.0), NO_SLOS).refuses(case)
    assert (refusal.guard if refusal else None) == guard


def test_a_plan_is_the_same_however_the_pod_changes_and_another_for_another_pod() -> None:
    plan = an_eviction().plan_hash()
    assert an_eviction(ready_for=MINUTE, labels={"a": "b"}).plan_hash() == plan
    assert an_eviction(ref=Ref("v1", "Pod", "shop", CART.name, "uid-of-the-next")).plan_hash() != plan


async def test_useless_is_asked_of_the_ledger() -> None:
    api = CannedApi(an_empty_ledger() | objects())
    guard = NotUseless(Ledger(*api.pair(), "kreflex-system", look))
    assert await refused(guard, a_case()) is None
