"""Whatever a call of a function meets on its way to the API server, the end is the same, and nobody is evicted twice.

A well-chosen part of the matrix, on a control plane of its own; `python -m bench faults` plays all of it.
"""

from collections.abc import AsyncIterator, Sequence

import pytest

from bench import faults, rig
from bench.faults import BLOWS, MISHAP_STEPS, SCENARIOS, Case, Course
from bench.mishaps import MISHAPS
from bench.rig import Json
from bench.scenarios import KILLER, WAKER, Scenario
from bench.stage import Stage, stage
from lab.troubles import Trouble

# What another trouble is much like, which is played here.
ALIKE = {
    "504",
    "504 though done",
    "etcd away",
    "slow request",
    "slow answer",
    "clock ahead once",
    "clock behind once",
    "clock behind from now on",
}
PLAYED = [blow for blow in BLOWS if not isinstance(blow, Trouble) or blow.name not in ALIKE]


@pytest.fixture(scope="module")
async def on(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A control plane of its own: what happens here happens to the whole cluster."""
    async with rig.cluster(tmp_path_factory.mktemp("faults")) as plane, stage(plane) as made:
        yield made


async def differences(on: Stage, courses: Sequence[Course]) -> Json:
    """What was not as in a remediation that nobody disturbs, by the records, the ledger and the audit log."""
    found = await faults.judge(on, courses)
    assert found["second_disruptions"] == 0
    different: Json = found["different"]
    return different


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.function)
async def test_the_end_is_the_same_whatever_one_call_meets(on: Stage, scenario: Scenario) -> None:
    (calm,) = await faults.run_all(on, [Case(scenario)])
    # The waker has few calls, and all but one are reads.
    blows = PLAYED[::2] if scenario is WAKER else PLAYED
    courses = await faults.run_all(on, faults.sample(scenario, faults.points(calm), blows))
    assert await differences(on, [calm, *courses]) == {}
    assert [course.case.name for course in courses if not course.met] == []


async def test_the_end_is_the_same_however_the_event_comes_and_whoever_is_told(on: Stage) -> None:
    told = [Case(KILLER, event="lost"), Case(KILLER, event="late"), Case(KILLER, replicas=2)]
    assert await differences(on, await faults.run_all(on, told)) == {}


async def test_the_end_is_the_same_whatever_happens_to_the_cluster_meanwhile(on: Stage) -> None:
    (calm,) = await faults.run_all(on, [Case(KILLER)])
    steps = [point for point in faults.points(calm) if str(point) in MISHAP_STEPS]
    # All at once: each mishap meets the other remediations, too.
    cases = [Case(KILLER, point, mishap) for point, mishap in zip(steps, MISHAPS, strict=False)]
    courses = await faults.run_together(on, cases)
    assert await differences(on, [calm, *courses]) == {}
    assert [course.case.name for course in courses if not course.met] == []
