"""Whether a node may be touched, given all nodes. Among the cases are those of medik8s' and Karpenter's own suites."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kreflex import EvictPod
from kreflex.cluster import Reader
from kreflex.cordons import CordonNode, UncordonNode
from kreflex.errors import UnavailableError
from kreflex.fleet import (
    RECHECK,
    SOON,
    Complaint,
    Stop,
    booting,
    busy,
    complaints,
    deadline,
    episode,
    excluded,
    hands_off,
    ill,
    quorum_at_risk,
    too_ill,
)
from kreflex.guards import BlastRadius, Case, Fleet, Refusal
from kreflex.nodeactions import NodeStep
from kreflex.nodes import Node, node_view, owner_of
from kreflex.others import LOCK
from kreflex.policy import Policy, combine
from kreflex.upkeep import Upkeep
from kreflex.views import JSON
from tests.values import (
    HOUR,
    MINUTE,
    NOW,
    CannedApi,
    a_node,
    a_policy,
    a_record,
    says,
    stamp,
    the_node,
    the_pod,
    the_workload,
)

SECOND = timedelta(seconds=1)


def an_upkeep(**about: Any) -> Upkeep:
    return Upkeep.model_validate(about)


def a_matrix(*rules: tuple[str, str, str], **about: Any) -> Upkeep:
    """What a policy says of nodes, with these conditions: type, status, for how long."""
    return an_upkeep(conditions=[{"type": t, "status": s, "for": f} for t, s, f in rules], **about)


def sick(ago: timedelta = 10 * MINUTE, status: str = "Unknown") -> JSON:
    return says("Ready", status, ago)


def well(ago: timedelta = HOUR) -> JSON:
    return says("Ready", "True", ago)


def some(total: int, *conditions: JSON, **about: Any) -> list[Node]:
    """Nodes of one pool: the first have these conditions, one each, the rest are well."""
    pool = about.get("pool", "blue")
    shown = [[one] for one in conditions] + [[]] * (total - len(conditions))
    return [the_node(f"{pool}-{number}", *has, **about) for number, has in enumerate(shown)]


def stopped(stop: Stop | None) -> str:
    """Which guard stops it; "" if none does."""
    return stop.guard if stop else ""


# What a node suffers from


@pytest.mark.parametrize(
    ("kind", "status", "counts"),
    [
        ("Ready", "False", True),
        ("Ready", "Unknown", True),
        ("Ready", "True", False),
        ("DiskPressure", "True", False),
        ("KernelDeadlock", "True", False),
    ],
)
def test_only_what_the_policy_names_is_an_illness(kind: str, status: str, counts: bool) -> None:
    node = the_node("blue-1", says(kind, status, HOUR))
    assert (ill(node, Upkeep()), bool(complaints(node, Upkeep())), deadline(node, Upkeep()) is not None) == (
        counts,
    ) * 3


def test_a_condition_counts_from_its_transition_on_for_as_long_as_the_policy_says() -> None:
    node = the_node("blue-1", says("BadNode", "False", 27 * MINUTE, "Broken"))
    assert complaints(node, a_matrix(("BadNode", "False", "30m"))) == (
        Complaint("BadNode", "False", NOW - 27 * MINUTE, NOW + 3 * MINUTE, "Broken"),
    )


def test_the_earliest_deadline_wins() -> None:
    rules = a_matrix(("BadNode", "False", "1h"), ("ValidUnhealthy", "False", "30m"))
    node = the_node("blue-1", says("BadNode", "False", 27 * MINUTE), says("ValidUnhealthy", "False", 27 * MINUTE))
    assert [one.type for one in complaints(node, rules)] == ["ValidUnhealthy", "BadNode"]
    assert deadline(node, rules) == NOW + 3 * MINUTE


def test_a_later_condition_with_a_shorter_time_comes_first() -> None:
    rules = a_matrix(("Ready", "False", "30m"), ("KernelDeadlock", "True", "5m"))
    node = the_node("blue-1", sick(20 * MINUTE, "False"), says("KernelDeadlock", "True", MINUTE))
    assert deadline(node, rules) == NOW + 4 * MINUTE


def test_of_two_rules_for_one_thing_the_shorter_counts() -> None:
    node = the_node("blue-1", sick(MINUTE, "False"))
    assert deadline(node, a_matrix(("Ready", "False", "30m"), ("Ready", "False", "5m"))) == NOW + 4 * MINUTE


def test_an_unknown_node_that_becomes_not_ready_has_a_new_episode() -> None:
    unknown, not_ready = the_node("blue-1", sick(HOUR)), the_node("blue-1", sick(MINUTE, "False"))
    assert episode(complaints(unknown, Upkeep())[0]) == "Ready/2026-05-01T11:00:00Z"
    assert episode(complaints(not_ready, Upkeep())[0]) == "Ready/2026-05-01T11:59:00Z"
    assert deadline(not_ready, Upkeep()) == NOW + 4 * MINUTE


def test_heartbeats_and_messages_do_not_make_a_new_episode() -> None:
    quiet = {**sick(), "message": "no disk", "lastHeartbeatTime": stamp(NOW - HOUR)}
    loud = {**sick(), "message": "no disk at all", "lastHeartbeatTime": stamp(NOW)}
    (before,), (after,) = (complaints(the_node("blue-1", one), Upkeep()) for one in (quiet, loud))
    assert (before, episode(before)) == (after, episode(after))


def test_a_condition_without_a_time_counts_since_the_node_was_created() -> None:
    node = the_node("blue-1", well(), says("KernelDeadlock", "True", None), age=20 * MINUTE)
    assert deadline(node, a_matrix(("KernelDeadlock", "True", "30m"))) == NOW + 10 * MINUTE


def test_a_condition_is_never_older_than_its_node() -> None:
    node = the_node("blue-1", well(), says("KernelDeadlock", "True", HOUR), age=20 * MINUTE)
    assert deadline(node, a_matrix(("KernelDeadlock", "True", "30m"))) == NOW + 10 * MINUTE


# A node that starts


@pytest.mark.parametrize(
    ("condition", "starts"),
    [
        (sick(5 * MINUTE, "False"), True),
        (says("Ready", "Unknown", 4 * MINUTE, "NodeStatusNeverUpdated"), True),
        (says("MemoryPressure", "False", 5 * MINUTE), True),
        (sick(4 * MINUTE, "False"), False),
        (sick(4 * MINUTE, "Unknown"), False),
        (well(4 * MINUTE), False),
    ],
    ids=["not ready ever since", "never heard of", "says nothing", "fell", "fell silent", "ready"],
)
def test_a_node_starts_until_it_has_been_ready_once(condition: JSON, starts: bool) -> None:
    assert booting(the_node("blue-1", condition, age=5 * MINUTE), Upkeep(), NOW) is starts


def test_a_node_has_its_time_to_start() -> None:
    node = the_node("blue-1", sick(9 * MINUTE, "False"), age=9 * MINUTE)
    assert deadline(node, Upkeep()) == NOW + MINUTE
    assert deadline(node, an_upkeep(startup="20m")) == NOW + 11 * MINUTE
    assert deadline(node, an_upkeep(startup="0s")) == NOW - 4 * MINUTE


def test_a_node_that_never_starts_is_ill_in_the_end() -> None:
    node = the_node("blue-1", sick(10 * MINUTE, "False"), age=10 * MINUTE)
    assert not booting(node, Upkeep(), NOW)
    assert deadline(node, Upkeep()) == NOW


def test_nodes_that_start_open_no_breaker() -> None:
    fleet = some(5, sick()) + [the_node(f"new-{n}", sick(MINUTE, "False"), age=MINUTE) for n in range(5)]
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) is None


def test_nodes_that_start_are_not_among_those_of_which_a_share_may_be_ill() -> None:
    fleet = some(5, sick(), sick()) + [the_node(f"new-{n}", sick(MINUTE, "False"), age=MINUTE) for n in range(5)]
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) == Stop(
        "PoolBreaker", "2 of 5 nodes of pool blue are ill, 1 is tolerated (20%)", NOW + RECHECK
    )


# Too many of a pool


def test_says_how_many_are_ill_and_how_many_may_be() -> None:
    fleet = some(6, *[sick()] * 4)
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) == Stop(
        "PoolBreaker", "4 of 6 nodes of pool blue are ill, 2 are tolerated (20%)", NOW + 5 * MINUTE
    )


@pytest.mark.parametrize(
    ("total", "count", "guard"),
    [
        (10, 2, ""),
        (10, 3, "PoolBreaker"),
        (3, 1, ""),
        (3, 2, "PoolBreaker"),
        (1, 1, ""),
        (6, 2, ""),
        (6, 3, "PoolBreaker"),
    ],
)
def test_a_fifth_of_a_pool_may_be_ill_and_a_part_of_a_node_counts_as_one(total: int, count: int, guard: str) -> None:
    fleet = some(total, *[sick()] * count)
    assert stopped(too_ill(fleet[0], fleet, Upkeep(), NOW)) == guard


def test_nodes_without_a_pool_are_one() -> None:
    fleet = some(10, *[sick()] * 3, pool="")
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) == Stop(
        "PoolBreaker", "3 of 10 nodes of pool workers are ill, 2 are tolerated (20%)", NOW + RECHECK
    )


def test_pools_count_by_themselves() -> None:
    red, blue = some(5, sick(), sick(), pool="red"), some(5, sick())
    assert stopped(too_ill(red[0], red + blue, Upkeep(), NOW)) == "PoolBreaker"
    assert too_ill(blue[0], red + blue, Upkeep(), NOW) is None


def test_a_policy_may_name_the_label_of_a_pool() -> None:
    team = an_upkeep(poolLabel="example.com/team")
    fleet = some(3, sick(), labels={"example.com/team": "red"}) + some(
        3, sick(), pool="green", labels={"example.com/team": "red"}
    )
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) is None
    assert too_ill(fleet[0], fleet, an_upkeep(poolLabel="example.com/team", maxUnhealthy=1), NOW) == Stop(
        "PoolBreaker", "2 of 6 nodes of pool red are ill, 1 is tolerated", NOW + RECHECK
    )
    assert too_ill(fleet[0], fleet, team, NOW) is None


@pytest.mark.parametrize(
    ("share", "tolerated"),
    [
        ({"minHealthy": 8}, 2),
        ({"minHealthy": "80%"}, 2),
        ({"minHealthy": "75%"}, 2),
        ({"minHealthy": "0%"}, 10),
        ({"minHealthy": "100%"}, 0),
        ({"maxUnhealthy": 8}, 8),
        ({"maxUnhealthy": "80%"}, 8),
        ({"maxUnhealthy": "75%"}, 8),
        ({"maxUnhealthy": "0%"}, 0),
        ({"maxUnhealthy": 0}, 0),
        ({"maxUnhealthy": "100%"}, 10),
        ({"maxUnhealthy": 12}, 10),
        ({}, 2),
    ],
)
def test_shares_of_a_pool_round_up(share: JSON, tolerated: int) -> None:
    upkeep = an_upkeep(**share, maxUnhealthyZone="100%")
    stops = [too_ill(fleet[0], fleet, upkeep, NOW) for fleet in (some(10, *[sick()] * n) for n in range(1, 11))]
    assert [stop is None for stop in stops] == [count <= tolerated for count in range(1, 11)]


@pytest.mark.parametrize("share", [-3, "-30%", "101%", "0.5", "%"])
@pytest.mark.parametrize("name", ["minHealthy", "maxUnhealthy", "maxUnhealthyZone"])
def test_a_share_is_a_number_of_nodes_or_a_percentage(name: str, share: object) -> None:
    with pytest.raises(ValueError, match=name):
        an_upkeep(**{name: share})


def test_only_one_share_of_a_pool_may_be_named() -> None:
    with pytest.raises(ValueError, match="minHealthy and maxUnhealthy exclude each other"):
        an_upkeep(minHealthy=1, maxUnhealthy=1)


def test_says_which_share_stops_it() -> None:
    fleet = some(7, *[sick()] * 4)
    assert too_ill(fleet[0], fleet, an_upkeep(minHealthy=4, maxUnhealthyZone=7), NOW) == Stop(
        "PoolBreaker", "4 of 7 nodes of pool blue are ill, 3 are tolerated (minHealthy 4)", NOW + RECHECK
    )
    alone = some(1, sick())
    assert too_ill(alone[0], alone, an_upkeep(minHealthy=4), NOW) == Stop(
        "PoolBreaker", "1 of 1 nodes of pool blue is ill, none is tolerated (minHealthy 4)", NOW + RECHECK
    )


def test_a_node_is_ill_for_the_breaker_from_the_first_moment_on() -> None:
    fleet = some(3, sick(HOUR), sick(SECOND))
    assert stopped(too_ill(fleet[0], fleet, Upkeep(), NOW)) == "PoolBreaker"


def test_what_the_policy_does_not_name_opens_no_breaker() -> None:
    fleet = some(3, sick(HOUR), says("DiskPressure", "True", HOUR))
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) is None


def test_an_ill_node_that_is_being_deleted_still_counts() -> None:
    fleet = [*some(3, sick()), the_node("gone", sick(), terminating=True)]
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) == Stop(
        "PoolBreaker", "2 of 4 nodes of pool blue are ill, 1 is tolerated (20%)", NOW + RECHECK
    )


def test_a_healthy_node_that_is_being_deleted_is_nobody_that_could_stand_in() -> None:
    fleet = [*some(5, sick(), sick()), *(the_node(f"gone-{n}", terminating=True) for n in range(5))]
    assert stopped(too_ill(fleet[0], fleet, Upkeep(), NOW)) == "PoolBreaker"
    assert stopped(too_ill(fleet[0], fleet[:6], an_upkeep(minHealthy=4), NOW)) == "PoolBreaker"


# Too many of a zone, or of all


def test_a_zone_that_is_out_stops_all_its_pools() -> None:
    """One node of each of six pools: no pool has too many."""
    fleet = [node for n in range(6) for node in some(5, sick(), pool=f"pool{n}", zone="zone-b")]
    outage = [one for one in fleet if ill(one, Upkeep())]
    spread = [the_node(f"well-{n}", zone="zone-a", pool=f"pool{n}") for n in range(20)]
    assert too_ill(outage[0], [*outage, *spread], Upkeep(), NOW) == Stop(
        "ZoneBreaker", "6 of 6 nodes of zone zone-b are ill, 3 are tolerated (50%)", NOW + RECHECK
    )
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) is None


def test_a_zone_that_is_out_stops_no_other_zone() -> None:
    out = some(4, *[sick()] * 4, zone="zone-b", pool="red")
    rest = some(20, sick(), zone="zone-a")
    assert too_ill(rest[0], out + rest, Upkeep(), NOW) is None


@pytest.mark.parametrize(
    ("total", "count", "share", "guard"),
    [
        (3, 1, "50%", ""),
        (3, 2, "50%", "ZoneBreaker"),
        (4, 2, "50%", ""),
        (1, 1, "50%", ""),
        (1, 1, "0%", ""),
        (2, 2, "99%", "ZoneBreaker"),
        (2, 1, 0, "ZoneBreaker"),
        (9, 4, 4, ""),
        (9, 5, 4, "ZoneBreaker"),
    ],
)
def test_a_share_of_a_zone_rounds_down_but_one_may_always_be_ill(
    total: int, count: int, share: int | str, guard: str
) -> None:
    fleet = some(total, *[sick()] * count)
    assert stopped(too_ill(fleet[0], fleet, an_upkeep(maxUnhealthy="100%", maxUnhealthyZone=share), NOW)) == guard


def test_an_api_server_that_has_lost_sight_of_all_kubelets_stops_everything() -> None:
    """One node to a pool and zone: neither is too ill by itself."""
    fleet = [the_node(f"n-{n}", sick(), pool=f"pool{n}", zone=f"zone-{n}") for n in range(8)]
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) == Stop(
        "FleetBreaker", "8 of 8 nodes of the whole fleet are ill, 4 are tolerated (50%)", NOW + RECHECK
    )


def test_nodes_without_a_zone_are_no_zone() -> None:
    fleet = [*some(3, sick(), sick(), zone="", pool="red"), *some(10)]
    assert too_ill(fleet[0], fleet, an_upkeep(maxUnhealthy=2), NOW) is None


# After a storm


def test_nothing_new_begins_until_the_storm_has_been_over_for_a_while() -> None:
    fleet = some(5, sick(8 * MINUTE), well(3 * MINUTE))
    stop = too_ill(fleet[0], fleet, Upkeep(), NOW)
    because = (
        "until 11:57:00 UTC 2 of 5 nodes of pool blue were ill, 1 is tolerated (20%): "
        "nothing new begins before 12:07:00 UTC"
    )
    assert stop == Stop("StormCooldown", because, NOW + 7 * MINUTE)
    assert too_ill(fleet[0], fleet, Upkeep(), NOW + 7 * MINUTE - SECOND) == stop
    assert too_ill(fleet[0], fleet, Upkeep(), NOW + 7 * MINUTE) is None


def test_what_has_begun_goes_on_after_a_storm_but_not_in_it() -> None:
    after, within = some(5, sick(), well(3 * MINUTE)), some(5, sick(), sick())
    assert too_ill(after[0], after, Upkeep(), NOW, begun=True) is None
    assert stopped(too_ill(within[0], within, Upkeep(), NOW, begun=True)) == "PoolBreaker"


@pytest.mark.parametrize(("cooldown", "again"), [("1h", RECHECK), ("2m", 2 * MINUTE), ("0s", SOON)])
def test_a_breaker_is_looked_at_again_as_soon_as_its_storm_may_be_over(cooldown: str, again: timedelta) -> None:
    fleet = some(5, sick(), sick())
    stop = too_ill(fleet[0], fleet, an_upkeep(stormCooldown=cooldown), NOW)
    assert stop is not None
    assert (stop.guard, stop.until) == ("PoolBreaker", NOW + again)


def test_a_policy_says_how_long_it_has_to_be_calm() -> None:
    fleet = some(5, sick(), well(3 * MINUTE))
    stop = too_ill(fleet[0], fleet, an_upkeep(stormCooldown="1h"), NOW)
    assert stop is not None
    assert stop.until == NOW + 57 * MINUTE
    assert too_ill(fleet[0], fleet, an_upkeep(stormCooldown="0s"), NOW) is None


def test_one_that_has_healed_when_another_fell_ill_is_no_storm() -> None:
    fleet = some(5, sick(3 * MINUTE), well(3 * MINUTE))
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) is None


def test_as_many_as_are_tolerated_is_no_storm() -> None:
    fleet = some(10, sick(8 * MINUTE), well(3 * MINUTE))
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) is None


def test_a_storm_ends_when_the_number_falls_to_the_limit_not_when_all_are_well() -> None:
    fleet = some(10, sick(2 * MINUTE), *(well(n * MINUTE) for n in (1, 4, 5, 6)))
    stop = too_ill(fleet[0], fleet, Upkeep(), NOW)
    # At 11:55 the second of four healed, and as many were left as are tolerated. The one that is ill now came later.
    assert stop is not None
    assert stop.until == NOW - 5 * MINUTE + Upkeep().storm_cooldown


def test_a_node_that_has_become_ready_for_the_first_time_was_not_ill() -> None:
    fleet = [*some(5, sick()), *(the_node(f"new-{n}", well(MINUTE), age=4 * MINUTE) for n in range(5))]
    assert too_ill(fleet[0], fleet, Upkeep(), NOW) is None
    assert stopped(too_ill(fleet[0], fleet, an_upkeep(startup="1m"), NOW)) == "StormCooldown"


def test_a_zone_and_the_fleet_have_storms_too() -> None:
    upkeep = an_upkeep(maxUnhealthy="100%")
    zone = some(4, sick(), *[well(MINUTE)] * 2) + some(9, zone="zone-b", pool="red")
    fleet = [the_node(f"n-{n}", sick() if n < 2 else well(MINUTE), pool=f"p{n}", zone=f"z{n}") for n in range(5)]
    for nodes, words in ((zone, "zone zone-a"), (fleet, "the whole fleet")):
        stop = too_ill(nodes[0], nodes, upkeep, NOW)
        assert stop is not None
        assert (stop.guard, stop.until) == ("StormCooldown", NOW + 9 * MINUTE)
        assert f"nodes of {words} were ill" in stop.because


def test_the_storm_that_ended_last_counts() -> None:
    upkeep = an_upkeep(maxUnhealthy=2)
    fleet = [*some(4, sick(), well(5 * MINUTE), well(5 * MINUTE)), *some(5, *[well(MINUTE)] * 4, pool="red")]
    stop = too_ill(fleet[0], fleet, upkeep, NOW)
    assert stop is not None
    assert stop.until == NOW + 9 * MINUTE


@pytest.mark.parametrize("kind", ["KernelDeadlock", "NetworkUnavailable"])
def test_a_detector_that_has_started_anew_is_no_storm(kind: str) -> None:
    """It writes a new time for each of its conditions, on every node."""
    rules = a_matrix(("Ready", "Unknown", "5m"), (kind, "True", "5m"))
    fleet = [the_node(f"n-{n}", sick() if n == 0 else well(), says(kind, "False", MINUTE)) for n in range(5)]
    assert too_ill(fleet[0], fleet, rules, NOW) is None


def test_pressure_that_has_passed_on_too_many_nodes_is_a_storm() -> None:
    rules = a_matrix(("Ready", "Unknown", "5m"), ("DiskPressure", "True", "5m"))
    fleet = [the_node(f"n-{n}", sick() if n == 0 else well(), says("DiskPressure", "False", MINUTE)) for n in range(5)]
    assert stopped(too_ill(fleet[0], fleet, rules, NOW)) == "StormCooldown"


def test_an_ill_node_that_has_healed_of_something_else_was_ill_all_the_time() -> None:
    rules = a_matrix(("Ready", "Unknown", "5m"), ("DiskPressure", "True", "5m"))
    disk = [says("DiskPressure", "True", HOUR), well(2 * MINUTE)]
    fleet = [the_node("blue-0", *disk), *some(5, well(HOUR), well(2 * MINUTE))[1:]]
    assert too_ill(fleet[0], fleet, rules, NOW) == Stop(
        "StormCooldown",
        "until 11:58:00 UTC 2 of 5 nodes of pool blue were ill, 1 is tolerated (20%): "
        "nothing new begins before 12:08:00 UTC",
        NOW + 8 * MINUTE,
    )


def test_a_node_is_ill_since_its_first_complaint() -> None:
    rules = a_matrix(("Ready", "Unknown", "5m"), ("KernelDeadlock", "True", "5m"))
    first = the_node("blue-0", sick(MINUTE), says("KernelDeadlock", "True", 8 * MINUTE))
    fleet = [first, *some(5, well(), well(3 * MINUTE))[1:]]
    assert stopped(too_ill(first, fleet, rules, NOW)) == "StormCooldown"


def test_a_storm_runs_its_course() -> None:
    """Medik8s' case: seven nodes of which four have to be healthy, and a cooldown."""
    upkeep = an_upkeep(minHealthy=4, stormCooldown="10m", maxUnhealthyZone="100%")
    ready: dict[int, JSON] = {}

    def told(minute: int) -> str:
        fleet = [
            the_node(f"n-{n}", ready.get(n, {**well(), "lastTransitionTime": stamp(NOW - HOUR)})) for n in range(7)
        ]
        return stopped(too_ill(fleet[0], fleet, upkeep, NOW + minute * MINUTE))

    def turns(number: int, status: str, minute: int) -> None:
        ready[number] = {**sick(status=status), "lastTransitionTime": stamp(NOW + minute * MINUTE)}

    for number in range(3):
        turns(number, "Unknown", 0)
    assert told(1) == ""
    turns(3, "Unknown", 2)
    assert told(3) == "PoolBreaker"
    turns(3, "True", 4)
    assert told(5) == "StormCooldown"
    turns(4, "Unknown", 6)
    assert told(7) == "PoolBreaker"
    turns(4, "True", 8)
    assert [told(minute) for minute in (9, 15, 17)] == ["StormCooldown"] * 3
    assert told(18) == ""


# Whatever the fleet is like

AGES = st.integers(0, 30).map(lambda minutes: minutes * MINUTE)
STATES = st.tuples(st.sampled_from(["True", "True", "Unknown", "False"]), AGES)
NODES = st.tuples(STATES, st.sampled_from("rgb"), st.sampled_from("ab"), st.booleans())
SHARES = st.one_of(st.integers(0, 8), st.integers(0, 100).map(lambda percent: f"{percent}%"))


@st.composite
def fleets(draw: st.DrawFn) -> list[Node]:
    """Nodes of three pools in two zones that have been there for long."""
    made = draw(st.lists(NODES, min_size=1, max_size=20))
    return [
        the_node(f"n-{number}", says("Ready", *state), pool=pool, zone=zone, terminating=leaves)
        for number, (state, pool, zone, leaves) in enumerate(made)
    ]


def in_trouble(fleet: Iterable[Node]) -> list[Node]:
    return [one for one in fleet if not one.ready]


@given(fleet=fleets(), most=st.integers(0, 8), zone=st.integers(0, 8), begun=st.booleans())
def test_never_lets_a_node_be_touched_while_more_are_in_trouble_than_may_be(
    fleet: list[Node], most: int, zone: int, begun: bool
) -> None:
    node = fleet[0]
    if too_ill(node, fleet, an_upkeep(maxUnhealthy=most, maxUnhealthyZone=zone), NOW, begun=begun) is None:
        assert len(in_trouble(one for one in fleet if one.pool() == node.pool())) <= most
        assert len(in_trouble(one for one in fleet if one.zone == node.zone)) <= zone
        assert len(in_trouble(fleet)) <= zone


@given(fleet=fleets(), share=SHARES, name=st.sampled_from(["maxUnhealthy", "minHealthy"]), more=st.data())
def test_one_more_ill_node_never_opens_the_way(
    fleet: list[Node], share: int | str, name: str, more: st.DataObject
) -> None:
    upkeep = an_upkeep(**{name: share})
    stop = too_ill(fleet[0], fleet, upkeep, NOW, begun=True)
    which = more.draw(st.integers(0, len(fleet) - 1))
    node = fleet[which]
    worse = the_node(node.name, sick(), pool=node.pool().name, zone=node.zone, terminating=False)
    # A healthy node that leaves does not count, so that it would be one more among those that do.
    if stop is not None and (node.ready and not node.terminating):
        after = [*fleet[:which], worse, *fleet[which + 1 :]]
        assert too_ill(after[0], after, upkeep, NOW, begun=True) is not None


def storms_over(fleet: Sequence[Node], upkeep: Upkeep, limit: int) -> datetime | None:
    """Walk through the last hours by half minutes, and tell when more than the limit were ill for the last time."""
    half = MINUTE / 2
    for step in range(240):
        at = NOW - half - step * MINUTE
        ready = [(one.ready, one.condition("Ready")) for one in fleet if one.ready is False or not one.terminating]
        ill_then = [c.since > at if well_now else c.since <= at for well_now, c in ready if c is not None and c.since]
        if sum(ill_then) > limit:
            return at + half + upkeep.storm_cooldown
    return None


@given(fleet=fleets(), limit=st.integers(0, 8))
def test_the_closing_of_a_storm_is_what_walking_through_time_finds(fleet: list[Node], limit: int) -> None:
    upkeep = an_upkeep(maxUnhealthy=100, maxUnhealthyZone=limit, stormCooldown="3h")
    one_zone = [the_node(one.name, *map(as_json, one.conditions), terminating=one.terminating) for one in fleet]
    stop = too_ill(one_zone[0], one_zone, upkeep, NOW)
    if len(in_trouble(one_zone)) > limit:
        assert stopped(stop) == "ZoneBreaker"
    else:
        assert (stop.until if stop else None) == storms_over(one_zone, upkeep, limit)


def as_json(condition: Any) -> JSON:
    return {"type": condition.type, "status": condition.status, "lastTransitionTime": stamp(condition.since)}


@given(fleet=fleets(), share=SHARES, minutes=st.lists(st.integers(0, 60), min_size=2, max_size=6))
def test_the_end_of_a_storm_never_moves_while_nothing_changes(
    fleet: list[Node], share: int | str, minutes: list[int]
) -> None:
    upkeep = an_upkeep(maxUnhealthy=share)
    stops = [too_ill(fleet[0], fleet, upkeep, NOW + minute * MINUTE) for minute in sorted(minutes)]
    ends = [stop.until if stopped(stop) == "StormCooldown" and stop else None for stop in stops]
    for before, after in pairwise(ends):
        assert after in {before, None}
    first = next((stop for stop in stops if stopped(stop) == "StormCooldown"), None)
    if first is not None:
        assert too_ill(fleet[0], fleet, upkeep, first.until) is None


@given(fleet=fleets(), which=st.integers(0, 19), share=SHARES)
def test_one_that_heals_later_never_ends_a_storm_earlier(fleet: list[Node], which: int, share: int | str) -> None:
    upkeep = an_upkeep(maxUnhealthy=share)
    number = which % len(fleet)
    node = fleet[number]
    ready = node.condition("Ready")
    stop = too_ill(fleet[0], fleet, upkeep, NOW)
    if ready is None or ready.status != "True" or ready.since is None or stopped(stop) != "StormCooldown":
        return
    later = the_node(
        node.name, well((NOW - ready.since) / 2), pool=node.pool().name, zone=node.zone, terminating=node.terminating
    )
    after = too_ill(fleet[0], [*fleet[:number], later, *fleet[number + 1 :]], upkeep, NOW)
    assert after is not None
    assert stop is not None
    assert after.until >= stop.until


# The control plane


def masters(*conditions: JSON, total: int = 3, **about: Any) -> list[Node]:
    return some(total, *conditions, control_plane=True, pool="", **about)


def test_a_node_of_the_control_plane_is_touched_while_all_others_are_well() -> None:
    fleet = [*masters(sick()), *some(3, sick())]
    assert quorum_at_risk(fleet[0], fleet, Upkeep(), NOW) is None
    assert hands_off(fleet[0], fleet, an_upkeep(maxUnhealthyZone="100%"), NOW) is None


@pytest.mark.parametrize(("total", "quorum"), [(1, 1), (2, 2)])
def test_one_or_two_nodes_of_a_control_plane_are_never_touched(total: int, quorum: int) -> None:
    fleet = masters(sick(), total=total)
    assert quorum_at_risk(fleet[0], fleet, Upkeep(), NOW) == Stop(
        "ControlPlane",
        f"of {total} control-plane nodes {total - 1} would be left, etcd's quorum is {quorum}",
        NOW + HOUR,
    )


@pytest.mark.parametrize(
    ("second", "trouble"),
    [
        ({"conditions": [sick(SECOND)]}, "is ill"),
        ({"conditions": [says("Ready", "False", SECOND)]}, "is ill"),
        ({"unschedulable": True}, "is cordoned"),
        ({"terminating": True}, "is being deleted"),
        ({"conditions": [sick(SECOND)], "terminating": True}, "is being deleted"),
    ],
)
def test_nodes_of_the_control_plane_are_touched_one_at_a_time(second: JSON, trouble: str) -> None:
    about = dict(second)
    other = the_node("cp-2", *about.pop("conditions", []), control_plane=True, pool="", **about)
    fleet = [*masters(sick(), total=5), other]
    assert quorum_at_risk(fleet[0], fleet, Upkeep(), NOW) == Stop(
        "ControlPlane", f"cp-2 of the control plane {trouble}: one at a time", NOW + RECHECK
    )


def test_one_that_is_not_ready_is_in_trouble_even_if_no_policy_calls_that_an_illness() -> None:
    fleet = masters(says("KernelDeadlock", "True", HOUR), sick())
    upkeep = a_matrix(("KernelDeadlock", "True", "5m"))
    assert stopped(quorum_at_risk(fleet[0], fleet, upkeep, NOW)) == "ControlPlane"


def test_workers_do_not_wait_for_the_control_plane() -> None:
    fleet = [*masters(sick(), sick()), *some(10, sick())]
    assert hands_off(fleet[-10], fleet, Upkeep(), NOW) is None


def test_a_node_of_the_control_plane_does_not_wait_for_itself() -> None:
    fleet = [the_node("cp-0", sick(), control_plane=True, pool="", unschedulable=True), *masters()[1:]]
    assert quorum_at_risk(fleet[0], fleet, Upkeep(), NOW) is None


@given(states=st.lists(st.booleans(), min_size=0, max_size=8))
def test_etcd_keeps_its_quorum_whatever_the_control_plane_is_like(states: list[bool]) -> None:
    fleet = masters(sick(), *(well() if healthy else sick() for healthy in states), total=len(states) + 1)
    if quorum_at_risk(fleet[0], fleet, Upkeep(), NOW) is None:
        assert sum(states) >= len(fleet) // 2 + 1


# Others who are at work


def tainted(key: str, value: str = "", effect: str = "NoSchedule") -> JSON:
    return {"taints": [{"key": key, **({"value": value} if value else {}), "effect": effect}]}


def annotated(**notes: str) -> JSON:
    return {"annotations": {f"machineconfiguration.openshift.io/{name}": value for name, value in notes.items()}}


KURED = "weave.works/kured-reboot-in-progress"
SINCE_1970 = int(NOW.timestamp())


@pytest.mark.parametrize(
    ("key", "value", "who"),
    [
        ("karpenter.sh/disrupted", "", "Karpenter is taking it away"),
        ("karpenter.sh/disruption", "disrupting", "Karpenter is taking it away"),
        ("karpenter.sh/rebooting", "", "Karpenter is restarting it"),
        ("karpenter.sh/unregistered", "", "Karpenter is still starting it"),
        ("ToBeDeletedByClusterAutoscaler", str(SINCE_1970 - 60), "the Cluster Autoscaler is deleting it"),
        ("ToBeDeletedByClusterAutoscaler", "", "the Cluster Autoscaler is deleting it"),
        ("DeletionCandidateOfClusterAutoscaler", str(SINCE_1970), "the Cluster Autoscaler is about to delete it"),
        ("medik8s.io/drain", "", "the Node Maintenance Operator is emptying it"),
        ("remediation.medik8s.io/self-node-remediation", "", "medik8s is mending it"),
        ("remediation.medik8s.io/fence-agents-remediation", "", "medik8s is mending it"),
        ("node.kubernetes.io/out-of-service", "nodeshutdown", "somebody has said that its machine is off"),
        ("cloud.google.com/impending-node-termination", "", "GKE is about to stop it"),
        ("remediator.kubernetes.azure.com/unschedulable", "", "AKS is repairing it"),
        ("aws-node-termination-handler/spot-itn", "i-1", "the AWS Node Termination Handler expects it to go"),
    ],
)
def test_whoever_has_tainted_a_node_is_at_work_on_it(key: str, value: str, who: str) -> None:
    node = the_node("blue-1", sick(), **tainted(key, value))
    words = f"{who}: it has the taint {key}"
    assert busy(node, NOW) == words
    assert hands_off(node, [node], Upkeep(), NOW) == Stop("AtWork", words, NOW + MINUTE)


MAINTENANCE, QUARANTINE = "cloud.google.com/active-node-maintenance", "kubernetes.azure.com/upgrade-status"
OPENSHIFT = "OpenShift's Machine Config Operator is changing it"


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"terminating": True}, "it is being deleted: it has a deletionTimestamp"),
        (
            {"labels": {MAINTENANCE: "ONGOING"}},
            f"GKE is maintaining its machine: it has the label {MAINTENANCE}=ONGOING",
        ),
        (
            {"labels": {QUARANTINE: "Quarantined"}},
            f"AKS has set it aside in an upgrade: it has the label {QUARANTINE}=Quarantined",
        ),
        (
            {"annotations": {KURED: "2026-05-01T11:59:00Z"}},
            f"kured is restarting it: it has the annotation {KURED}=2026-05-01T11:59:00Z",
        ),
        ({"annotations": {KURED: "yes"}}, f"kured is restarting it: it has the annotation {KURED}=yes"),
        (
            annotated(desiredConfig="b", currentConfig="a", state="Working"),
            f"{OPENSHIFT}: from a to b, state Working",
        ),
        (annotated(desiredConfig="b", currentConfig="a"), f"{OPENSHIFT}: from a to b, state unknown"),
        (
            annotated(desiredConfig="b", currentConfig="b", state="Rebooting"),
            f"{OPENSHIFT}: from b to b, state Rebooting",
        ),
    ],
    ids=["deletion", "GKE", "AKS", "kured", "kured of some time", "OpenShift", "OpenShift soon", "OpenShift restarts"],
)
def test_whoever_has_marked_a_node_is_at_work_on_it(about: JSON, words: str) -> None:
    node = the_node("blue-1", sick(), **about)
    assert busy(node, NOW) == words
    assert hands_off(node, [node], Upkeep(), NOW) == Stop("AtWork", words, NOW + MINUTE)


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"unschedulable": True},
        tainted("node.kubernetes.io/unschedulable"),
        tainted("node.kubernetes.io/unreachable", effect="NoExecute"),
        tainted("nvidia.com/gpu", "true"),
        tainted("ToBeDeletedByClusterAutoscaler", str(SINCE_1970 - 1800)),
        tainted("DeletionCandidateOfClusterAutoscaler", str(SINCE_1970 - 1800), "PreferNoSchedule"),
        {"annotations": {KURED: stamp(NOW - 30 * MINUTE)}},
        {"annotations": {"weave.works/kured-most-recent-reboot-needed": stamp(NOW)}},
        annotated(desiredConfig="a", currentConfig="a", state="Done"),
        annotated(desiredConfig="b", currentConfig="a", state="Degraded"),
        {"labels": {"cloud.google.com/active-node-maintenance": "PENDING"}},
    ],
    ids=[
        "nothing",
        "cordoned",
        "cordon taint",
        "silent",
        "gpu",
        "left by the autoscaler",
        "long a candidate",
        "never came back from kured",
        "kured of long ago",
        "OpenShift done",
        "OpenShift stuck",
        "GKE later",
    ],
)
def test_nobody_is_at_work_on_a_node_that_shows_it_by_nothing(about: JSON) -> None:
    assert busy(the_node("blue-1", sick(), **about), NOW) is None


@pytest.mark.parametrize("key", ["remediation.medik8s.io/self-node-remediation", "node.kubernetes.io/out-of-service"])
def test_our_own_marks_do_not_stop_what_has_begun(key: str) -> None:
    node = the_node("blue-1", sick(), **tainted(key))
    assert busy(node, NOW, begun=True) is None
    assert hands_off(node, [node], Upkeep(), NOW, begun=True) is None
    assert busy(the_node("blue-1", sick(), **tainted("karpenter.sh/disrupted")), NOW, begun=True) is not None


# Those that nobody is to mend


EXCLUDED, NO_REPAIR = "remediation.medik8s.io/exclude-from-remediation", "karpenter.sh/do-not-repair"


@pytest.mark.parametrize(
    ("about", "words"),
    [
        ({"labels": {EXCLUDED: "true"}}, f"it has the label {EXCLUDED}=true"),
        ({"annotations": {NO_REPAIR: "true"}}, f"it has the annotation {NO_REPAIR}=true"),
        ({"labels": {EXCLUDED: "false"}}, None),
        ({"labels": {EXCLUDED: ""}}, None),
        ({"annotations": {NO_REPAIR: "yes"}}, None),
        ({"annotations": {"karpenter.sh/do-not-disrupt": "true"}}, None),
    ],
)
def test_a_node_that_others_leave_alone_is_left_alone(about: JSON, words: str | None) -> None:
    node = the_node("blue-1", sick(), **about)
    assert excluded(node) == words
    assert stopped(hands_off(node, [node], Upkeep(), NOW)) == ("OptedOut" if words else "")


def test_tells_first_what_is_about_the_node_itself() -> None:
    fleet = [*masters(sick(), sick(), sick()), the_node("cp-9", sick(), control_plane=True, pool="", terminating=True)]
    assert [stopped(hands_off(node, fleet, Upkeep(), NOW)) for node in (fleet[3], fleet[0])] == [
        "AtWork",
        "ControlPlane",
    ]
    assert stopped(hands_off(fleet[0], fleet[:1], Upkeep(), NOW)) == "ControlPlane"


# The guard


def a_case(node: Node, *policies: Policy, begun: bool = False, action: type[NodeStep] = CordonNode) -> Case:
    """A step of a node's remediation, which is to begin unless told otherwise."""
    done = {"phase": "Acting", "begunAt": stamp(NOW - MINUTE)} if begun else {}
    record = a_record(status=done)
    step = action(because="it is ill", node=node, pool=owner_of(node.pool()))
    return Case(step, combine(policies or (a_policy(),)), record, "kreflex-system", NOW)


def an_api(*bodies: JSON) -> CannedApi:
    return CannedApi({f"/api/v1/nodes/{body['metadata']['name']}": body for body in bodies})


SICK = a_node("blue-0", sick())


async def test_the_guard_reads_all_nodes_once_and_lets_a_node_of_a_healthy_fleet_pass() -> None:
    api = an_api(SICK, a_node("blue-1"))
    assert await Fleet(Reader(api)).refuses(a_case(node_view(SICK), begun=True)) is None
    assert api.calls == ["GET /api/v1/nodes"]


async def test_others_are_asked_for_before_something_begins_that_nothing_else_stops() -> None:
    lock = json.dumps({"nodeID": "blue-0", "created": stamp(NOW)})
    kured = {"metadata": {"namespace": "kube-system", "name": "kured", "annotations": {LOCK: lock}}}
    api, stormy = an_api(SICK, a_node("blue-1")), an_api(SICK, a_node("blue-1", sick()))
    api.objects["/apis/apps/v1/daemonsets/kured"] = kured
    because = "kured is restarting it: it holds the lock of DaemonSet kube-system/kured"
    assert await Fleet(Reader(api)).refuses(a_case(node_view(SICK))) == Refusal("AtWork", because, NOW + MINUTE)
    assert await Fleet(Reader(stormy)).refuses(a_case(node_view(SICK))) is not None
    assert stormy.calls == ["GET /api/v1/nodes"]


async def test_the_guard_gives_the_words_and_the_time_of_what_stops_it() -> None:
    guard = Fleet(Reader(an_api(SICK, a_node("blue-1", sick()))))
    because = "2 of 2 nodes of pool blue are ill, 1 is tolerated (20%)"
    assert await guard.refuses(a_case(node_view(SICK))) == Refusal("PoolBreaker", because, NOW + RECHECK)


async def test_the_guard_takes_the_numbers_of_the_policy() -> None:
    guard = Fleet(Reader(an_api(SICK, a_node("blue-1", sick()))))
    most = a_policy(nodes={"maxUnhealthy": 2, "maxUnhealthyZone": "100%"})
    assert await guard.refuses(a_case(node_view(SICK), most)) is None


async def test_the_guard_refuses_while_policies_contradict_each_other() -> None:
    refusal = await Fleet(Reader(an_api(SICK))).refuses(
        a_case(node_view(SICK), a_policy(nodes={}), a_policy("b", nodes={}))
    )
    assert refusal is not None
    assert (refusal.guard, refusal.because) == ("Policy", "policies all and b say when this node is ill: leave one")


async def test_the_guard_refuses_a_node_that_has_been_replaced_under_its_name() -> None:
    guard = Fleet(Reader(an_api(a_node("blue-0", sick(), uid="another"))))
    because = "Node blue-0 is not among the 1 nodes"
    assert await guard.refuses(a_case(node_view(SICK))) == Refusal("Fleet", because, NOW + MINUTE)


async def test_the_guard_can_not_find_out_while_the_api_server_is_down() -> None:
    api = an_api(SICK)
    api.down = True
    with pytest.raises(UnavailableError):
        await Fleet(Reader(api)).refuses(a_case(node_view(SICK)))


async def test_the_storm_cooldown_does_not_stop_what_has_begun() -> None:
    guard = Fleet(Reader(an_api(SICK, a_node("blue-1", well(MINUTE)))))
    fresh = await guard.refuses(a_case(node_view(SICK)))
    assert fresh is not None
    assert fresh.guard == "StormCooldown"
    assert await guard.refuses(a_case(node_view(SICK), begun=True)) is None


async def test_nothing_stops_what_takes_back() -> None:
    guard = Fleet(Reader(an_api(SICK, a_node("blue-1", sick()))))
    case = a_case(node_view(SICK))
    back = UncordonNode(
        because="it is well", node=node_view(SICK), pool=owner_of(node_view(SICK).pool()), of="a record"
    )
    assert await guard.refuses(replace(case, action=back)) is None


async def test_pods_are_not_the_fleet_s_business() -> None:
    api = an_api(SICK)
    eviction = EvictPod("it loops", the_pod(), the_workload())
    assert await Fleet(Reader(api)).refuses(replace(a_case(node_view(SICK)), action=eviction)) is None
    assert api.calls == []


async def test_replicas_do_not_count_for_a_node() -> None:
    """How many of a pool may be ill is for the fleet's guard, and a pool does not say how many it has."""
    ready = node_view(a_node("blue-0", says("KernelDeadlock", "True"), well()))
    assert await BlastRadius().refuses(a_case(ready, a_policy(limits={"minHealthy": 1}))) is None


def test_the_two_machine_sets_of_a_rollout_are_one_pool() -> None:
    def pool(owner: str) -> str:
        return the_node(pool="", annotations={"cluster.x-k8s.io/owner-name": owner}).pool().name

    assert {pool("md-0-7dk2x"), pool("md-0-c9wqz")} == {"md-0"}
    assert [pool("workers-east"), pool("control-plane")] == ["workers-east", "control-plane"]
