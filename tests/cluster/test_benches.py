"""The benchmarks of speed run, and tell the figures that others rely on; how fast this machine is, is no test."""

from collections.abc import AsyncIterator

import pytest

from bench import cold_start, duplicates, irrelevant, memory, reflex, rig
from lab import functions
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
