"""The benchmarks of speed run, and tell the figures that others rely on; how fast this machine is, is no test.

Here and not in `make test`, which has no time for them.
"""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench import cold_start, drain, duplicates, farm, fleet, irrelevant, memory, reflex, rig, rollback
from kreflex.cluster import Reader, Transport
from kreflex.credentials import load_credentials
from kreflex.nodes import node_view
from lab import functions, nodes
from lab.api import eventually
from lab.cluster import ControlPlane, Options
from lab.ports import Ports


@pytest.fixture(scope="module")
async def quiet(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A control plane of their own, whose audit log has the reads, too."""
    async with rig.cluster(tmp_path_factory.mktemp("bench"), 1, Options(audit_reads=True)) as plane:
        yield plane


@pytest.fixture(scope="module")
async def url(quiet: ControlPlane) -> AsyncIterator[str]:
    """A running function that asks its callers who they are."""
    with Ports() as ports:
        yield await functions.start(quiet, rig.FOLDER, ports.take(), rig.callers(quiet))
        await quiet.stop_child(rig.FUNCTION)


async def test_a_reflex_needs_eight_calls_of_which_five_write(quiet: ControlPlane, url: str) -> None:
    found = await reflex.run(quiet, url, 3)
    assert found["holds"]
    assert (found["calls"], found["writes"]) == (8, 5)
    assert min(found["p50_ratio"], found["p99_ratio"]) > 0


async def test_an_irrelevant_event_costs_no_call(quiet: ControlPlane, url: str) -> None:
    found = await irrelevant.run(quiet, url, 200)
    assert found["holds"]
    assert found["calls"] == 0
    assert found["per_second"] > 0


async def test_a_fault_that_is_dealt_with_is_looked_up_once(quiet: ControlPlane, url: str) -> None:
    found = await duplicates.run(quiet, url, 500)
    assert found["holds"]
    assert found["calls"] <= duplicates.FAULTS + 1  # And one question about the caller, whose answer is a minute old.
    assert found["per_second"] > 0


async def test_start_and_memory_are_compared_with_an_empty_function(quiet: ControlPlane) -> None:
    with Ports() as ports:
        started = await cold_start.run(quiet, ports, 1)
        held = await memory.run(quiet, ports, 50)
    assert started["holds"]
    assert held["holds"]
    assert held["remediations"] == memory.FAULTS
    assert min(started["ratio"], held["ratio"]) > 0


@pytest.fixture(scope="module")
async def many(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A control plane with nodes of a cloud's size, in five pools."""
    async with farm.farm(tmp_path_factory.mktemp("fleet"), 30) as plane:
        await fleet.populate(plane, 30)
        await fleet.load(plane, 90)
        yield plane


async def test_many_nodes_show_the_same_whether_they_are_read_slimly_or_whole(many: ControlPlane) -> None:
    transport = Transport(load_credentials(str(many.kubeconfig)))
    reader = Reader(transport)
    await nodes.break_node(many.api, "pool-1-0", "kernel-deadlock")
    await many.api.patch("/api/v1/nodes/pool-1-1", {"spec": {"unschedulable": True}})
    await nodes.shows(many.api, "pool-1-0", "KernelDeadlock", "True")

    async def alike() -> bool:
        # Their controllers change them meanwhile: what is compared is of the same resourceVersion.
        slim = [node async for node in reader.nodes(limit="7")]
        whole = [node_view(body) async for body in reader.list("/api/v1/nodes")]
        same = [(a, b) for a, b in zip(slim, whole, strict=True) if a.resource_version == b.resource_version]
        assert all(a == b for a, b in same)
        taints = {taint.key for node in slim for taint in node.taints}
        return len(same) == 30 and "node.kubernetes.io/unschedulable" in taints

    await eventually(alike, "a moment without a change of a node")
    await transport.close()
    await nodes.heal_node(many.api, "pool-1-0")
    await many.api.patch("/api/v1/nodes/pool-1-1", {"spec": {"unschedulable": None}})


async def test_a_decision_among_many_nodes_reads_them_once_and_never_all_pods(many: ControlPlane) -> None:
    with Ports() as ports:
        found = await fleet.run(many, ports, 1)
    assert found["holds"]
    assert (found["node_lists"], found["whole_pod_lists"]) == (1, 0)
    assert found["waker_node_lists"] == 1
    assert min(found["decision_ratio"], found["memory_ratio"]) > 0


async def test_a_blackout_of_all_nodes_costs_three_writes_a_node_once_and_touches_none(many: ControlPlane) -> None:
    with Ports() as ports:
        found = await fleet.blackout(many, ports)
    # One of the thirty may have been replaced by then: nothing here makes a successor.
    assert found["blackout_stops"].keys() <= {"PoolBreaker", "ZoneBreaker", "FleetBreaker"}
    assert (found["blackout_touched"], found["blackout_writes_of_the_next_round"]) == (0, 0)
    assert found["blackout_writes_of_a_node"] <= 3.1


async def test_a_node_is_emptied_as_its_budgets_allow_and_no_pod_is_evicted_twice(
    tmp_path: Path,
) -> None:
    with Ports() as ports:
        async with farm.farm(tmp_path / "drain", 4) as plane:
            found = await drain.run(plane, ports, 1, 3, 3)
    assert found["holds"]
    assert (found["evictions_of_a_node"], found["evicted_twice"], found["budgets_broken"]) == ([9], 0, [])
    assert found["ratio"] > 0


async def test_a_bad_release_is_healed_and_one_without_room_is_not_rolled_back(tmp_path: Path) -> None:
    played = rollback.cases(1, "quota")
    with Ports() as ports:
        async with rig.cluster(tmp_path / "rollback", 0, folders=(rollback.FOLDER,)) as plane:
            found = await rollback.run(plane, ports, played, 4, verbose=False)
    assert found["holds"], found
    assert (found["bad"], found["others"], found["healed"], found["false_rollbacks"]) == (1, 1, 1, 0)
    assert found["causes"] == {"Quota": 1}
    assert found["verdicts"] == {"Recovered": 1}


def test_any_write_to_what_is_not_to_blame_is_a_false_rollback() -> None:
    bad, innocent = rollback.cases(1, "quota")
    bad.where, innocent.where, bad.healed = "one", "two", True
    back = rollback.Write("one", "patch", "deployments", "shop", of_template=True)
    evicted = rollback.Write("two", "create", "pods", "shop-0", of_template=False)
    assert rollback.figures([bad, innocent], [back], 1)["holds"]
    found = rollback.figures([bad, innocent], [back, evicted], 1)
    assert (found["false_rollbacks"], found["holds"]) == (1, False)
    found = rollback.figures([bad, innocent], [back, back], 1)
    assert (found["rolled_back_twice"], found["holds"]) == ([bad.name], False)


def test_the_cases_are_as_many_of_each_side_by_turns() -> None:
    played = rollback.cases(100)
    assert [case.story.blamed for case in played] == [True, False] * 100
    assert len({(case.story.name, case.kind) for case in played}) > 90
    assert {case.kind for case in played} == {"Deployment", "StatefulSet", "DaemonSet"}
