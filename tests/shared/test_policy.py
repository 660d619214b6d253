"""Which policies select an object, and what they say together."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kreflex.cluster import Reader
from kreflex.errors import UnavailableError
from kreflex.policy import Policies, Policy, Useless, combine, healthy_floor, load_policies, read_policy
from tests.values import HOUR, MINUTE, CannedApi, a_policy

FUNCTION = "restart-loop-killer"


def selected(*policies: Policy, function: str = FUNCTION, namespace: str = "shop", **labels: str) -> list[str]:
    """The names of the policies that select an object."""
    return [p.key for p in Policies(policies).for_object(function, namespace, labels).policies]


# Selection


def test_a_policy_without_a_scope_is_about_everything() -> None:
    assert selected(a_policy()) == ["all"]


def test_a_policy_is_about_its_functions_only() -> None:
    assert selected(a_policy(functions=[FUNCTION])) == ["all"]
    assert selected(a_policy(functions=["rollback"])) == []


def test_a_policy_is_about_its_namespaces_only() -> None:
    assert selected(a_policy(scope={"namespaces": ["shop", "till"]})) == ["all"]
    assert selected(a_policy(scope={"namespaces": ["till"]})) == []
    assert selected(a_policy(scope={"excludeNamespaces": ["shop"]})) == []


def test_a_namespaced_policy_is_about_its_own_namespace_only() -> None:
    assert selected(a_policy("own", "shop")) == ["shop/own"]
    assert selected(a_policy("own", "till")) == []


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ({"matchLabels": {"app": "cart"}}, True),
        ({"matchLabels": {"app": "cart", "tier": "back"}}, False),
        ({"matchExpressions": [{"key": "app", "operator": "In", "values": ["cart", "till"]}]}, True),
        ({"matchExpressions": [{"key": "tier", "operator": "In", "values": ["back"]}]}, False),
        ({"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["cart"]}]}, False),
        ({"matchExpressions": [{"key": "tier", "operator": "NotIn", "values": ["back"]}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"app": "cart"}, "matchExpressions": [{"key": "app", "operator": "DoesNotExist"}]}, False),
        ({}, True),
    ],
)
def test_a_selector_means_what_it_means_in_kubernetes(selector: dict[str, Any], matches: bool) -> None:
    assert bool(selected(a_policy(scope={"selector": selector}), app="cart")) is matches


# Combination


def test_without_a_cluster_policy_nothing_is_done() -> None:
    nothing = combine(())
    assert (nothing.mode, nothing.reason) == ("DryRun", "no ClusterRemediationPolicy selects it")
    assert combine((a_policy("own", "shop", mode="Auto"),)).mode == "DryRun"


@pytest.mark.parametrize(
    ("cluster", "own", "together"),
    [
        ("Auto", "Auto", "Auto"),
        ("Auto", "Approve", "Approve"),
        ("Approve", "Auto", "Approve"),
        ("DryRun", "Auto", "DryRun"),
        ("Auto", "DryRun", "DryRun"),
    ],
)
def test_a_namespaced_policy_only_tightens_the_mode(cluster: str, own: str, together: str) -> None:
    assert combine((a_policy(mode=cluster), a_policy("own", "shop", mode=own))).mode == together


def test_of_each_number_the_strictest_holds() -> None:
    strict = {"cooldown": "10m", "useless": {"count": 2, "stop": "30m"}}
    slack = {"cooldown": "1m", "useless": {"count": 5, "stop": "2h"}}
    both = combine(
        (
            a_policy(limits=strict, proof="5m", proveWithin="30m"),
            a_policy("own", "shop", limits=slack, proof="15m", proveWithin="20m"),
        )
    )
    assert both.cooldown == 10 * MINUTE
    assert both.useless == Useless(count=2, stop=timedelta(hours=2))
    assert (both.proof, both.prove_within) == (15 * MINUTE, 30 * MINUTE)


@given(st.permutations([a_policy(), a_policy("b", frozen=True), a_policy("own", "shop", limits={"cooldown": "9m"})]))
def test_the_order_of_the_policies_does_not_matter(policies: list[Policy]) -> None:
    together = combine(tuple(policies))
    straight = combine(tuple(sorted(policies, key=lambda p: p.key)))
    assert replace(together, policies=(), reason="") == replace(straight, policies=(), reason="")


def test_one_frozen_policy_freezes() -> None:
    assert combine((a_policy(), a_policy("own", "shop", frozen=True))).frozen == "shop/own"
    assert combine((a_policy(),)).frozen is None


def test_each_policy_has_to_name_a_kind_of_owner() -> None:
    jobs = a_policy(owners=["Deployment", "Job"])
    assert combine((jobs,)).allows_owner("Job")
    assert not combine((jobs, a_policy("own", "shop", owners=["Deployment"]))).allows_owner("Job")
    assert not combine((jobs, a_policy("own", "shop", owners=["Job"]))).allows_owner("Deployment")
    for kind in ("Pod", "Job", "CronJob", "DaemonSet"):
        assert not combine((a_policy(),)).allows_owner(kind)


# Policies that are not valid


BROKEN: list[dict[str, Any]] = [
    {"mode": "Sometimes"},
    {"limits": {"cooldown": "5 minutes"}},
    {"limits": {"cooldown": "99999999999999h"}},
    {"limits": {"cooldown": "24h1s"}},
    {"limits": {"rates": [{"count": 1, "window": "168h1s"}]}},
    {"limits": {"useless": {"count": 21}}},
    {"limits": {"useless": {"stop": "24h1s"}}},
    {"limits": {"maxInFlight": -1}},
    {"limits": {"minHealthy": "half"}},
    {"proof": "30m"},
    {"nonsense": True},
]


@pytest.mark.parametrize("spec", BROKEN)
def test_a_broken_policy_says_which_field_is_broken(spec: dict[str, Any]) -> None:
    broken = combine((a_policy(), a_policy("bad", **spec))).broken or ""
    assert broken.startswith("ClusterRemediationPolicy bad can't be used: ")
    assert next(iter(spec)) in broken


@pytest.mark.parametrize("spec", BROKEN)
def test_a_broken_policy_refuses_what_it_selects_and_nothing_else(spec: dict[str, Any]) -> None:
    bad = a_policy("bad", scope={"namespaces": ["till"]}, functions=[FUNCTION], **spec)
    policies = Policies((a_policy(), bad))
    assert policies.for_object(FUNCTION, "till", {}).broken is not None
    assert policies.for_object(FUNCTION, "shop", {}).broken is None
    assert policies.for_object("rollback", "till", {}).broken is None


def test_a_policy_may_look_back_for_a_week_and_stop_for_a_day() -> None:
    most = {"cooldown": "24h", "rates": [{"count": 1, "window": "168h"}], "useless": {"count": 20, "stop": "24h"}}
    assert combine((a_policy(limits=most), a_policy("own", "shop", limits=most))).broken is None


def test_what_can_be_read_of_a_broken_scope_still_narrows_it() -> None:
    scope = {"namespaces": ["till"], "selector": {"matchExpressions": [{"key": "app", "operator": "Like"}]}}
    policies = Policies((a_policy(), a_policy("bad", scope=scope)))
    assert policies.for_object(FUNCTION, "till", {"app": "any"}).broken is not None
    assert policies.for_object(FUNCTION, "shop", {"app": "any"}).broken is None


def test_a_broken_policy_of_unknown_scope_refuses_everything() -> None:
    assert combine((a_policy("bad", scope={"namespaces": "till"}),)).broken is not None
    assert selected(a_policy("bad", scope={"namespaces": "till"}, functions="all")) == ["bad"]


def test_a_broken_policy_never_raises_the_mode() -> None:
    assert combine((a_policy("bad", mode="Sometimes"), a_policy("own", "shop", mode="DryRun"))).mode == "DryRun"


# Numbers


@pytest.mark.parametrize(
    ("least", "replicas", "floor"),
    [(0, 5, 0), (2, 5, 2), ("0%", 5, 0), ("50%", 4, 2), ("50%", 5, 3), ("51%", 100, 51), ("1%", 1, 1), ("100%", 3, 3)],
)
def test_a_share_of_healthy_replicas_rounds_up(least: int | str, replicas: int, floor: int) -> None:
    assert healthy_floor(least, replicas) == floor


@given(st.integers(0, 100), st.integers(0, 10_000))
def test_what_must_stay_is_never_less_than_the_share(percent: int, replicas: int) -> None:
    floor = healthy_floor(f"{percent}%", replicas)
    assert 100 * floor >= percent * replicas > 100 * (floor - 1)


# Stamp and memory


def test_the_stamp_changes_with_every_policy_that_could_be_meant() -> None:
    base = Policies((a_policy(),))
    changed = [
        Policies((a_policy(generation=2),)),
        Policies((a_policy(), a_policy("more"))),
        Policies((a_policy(), a_policy("own", "shop"))),
        Policies(()),
    ]
    stamps = {policies.stamp(FUNCTION, "shop") for policies in (base, *changed)}
    assert len(stamps) == 5


def test_the_stamp_stays_when_other_policies_change() -> None:
    base = Policies((a_policy(),))
    others = Policies((a_policy("own", "till"), a_policy("roll", functions=["rollback"]), a_policy()))
    assert base.stamp(FUNCTION, "shop") == others.stamp(FUNCTION, "shop")


def test_the_ledger_remembers_as_long_as_any_policy_looks_back() -> None:
    assert Policies(()).longest_memory() == timedelta(hours=24)
    weekly = a_policy(limits={"rates": [{"count": 3, "window": "168h"}]})
    assert Policies((weekly, a_policy("bad", mode="x"))).longest_memory() == timedelta(days=7)
    stubborn = a_policy(limits={"useless": {"count": 9, "stop": "10h"}})
    assert Policies((stubborn,)).longest_memory() == 100 * HOUR


async def test_policies_that_can_not_be_read_are_no_permission() -> None:
    api = CannedApi()
    api.down = True
    with pytest.raises(UnavailableError):
        await load_policies(Reader(api))


def test_what_a_namespaces_policy_does_not_say_tightens_nothing() -> None:
    cluster = {"mode": "Auto", "owners": ["DaemonSet"], "limits": {"maxInFlight": 5, "cooldown": "1s"}, "proof": "1s"}
    body = {"metadata": {"name": "c", "uid": "u1"}, "spec": {**cluster, "proveWithin": "2s"}}
    own = {"metadata": {"name": "n", "namespace": "shop", "uid": "u2"}, "spec": {"limits": {"cooldown": "9m"}}}

    alone = combine((read_policy(body),))
    both = combine((read_policy(body), read_policy(own)))

    assert both.cooldown == timedelta(minutes=9)
    assert (both.mode, both.proof, both.prove_within, both.useless) == (
        alone.mode,
        alone.proof,
        alone.prove_within,
        alone.useless,
    )
    assert both.allows_owner("DaemonSet")
    assert [spec.limits.max_in_flight for _, spec in both.specs] == [5, 1_000_000]
