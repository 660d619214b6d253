"""Whatever is killed or stopped at whichever write, a rollback ends as ever: the template is written back once.

A part of the matrix, on a control plane of its own; `python -m bench faults --only rollback` plays all of it.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from bench import faults, rig
from bench.faults import Blow, Case, Course, Halt
from bench.release_scenarios import ROLLBACK, STUCK
from bench.scenarios import Scenario
from bench.stage import Stage, stage

KILLS: tuple[Blow, ...] = ("before", "after")
STOPS: tuple[Blow, ...] = (Halt("before"),)
# What is done to the workload and its pods; the rest is written as in every remediation.
OWN = ("patch deployments", "patch statefulsets", "eviction")
OFTEN = Case(ROLLBACK, replicas=2, event="often")


@dataclass(frozen=True)
class Played:
    """What became of all the cases, and what a calm remediation writes."""

    on: Stage
    calm: dict[Scenario, Sequence[str]]
    courses: list[Course]

    async def same_end(self, scenario: Scenario) -> None:
        """All is as in a remediation that nobody disturbs, by the records, the ledger and the audit log."""
        found = await faults.judge(self.on, [one for one in self.courses if one.case.scenario is scenario])
        assert found["different"] == {}
        assert (found["second_disruptions"], found["second_steps"]) == (0, 0)


def struck(course: Course) -> list[Case]:
    """Kills and a stop at the mark of what is bad and at the template; of a StatefulSet at the eviction, too."""
    points = [point for point in faults.points(course) if point.writes]
    mark = [point for point in points if point.step.endswith("releasehistories")][:1]
    template = [point for point in points if point.step == "patch deployments"]
    evicted = [point for point in points if point.step == "eviction"][:1]
    return faults.at_writes(course.case.scenario, [*(mark if template else []), *template, *evicted], (*KILLS, *STOPS))


@pytest.fixture(scope="module")
async def played(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Played]:
    """All cases at once, on a control plane of their own."""
    home, folders = tmp_path_factory.mktemp("faults"), (rig.FOLDER, "rollback")
    async with rig.cluster(home, options=faults.PATIENT, folders=folders) as plane, stage(plane) as on:
        calm = await faults.run_all(on, [Case(ROLLBACK), Case(STUCK)])
        cases = [case for course in calm for case in struck(course)]
        courses = await faults.run_all(on, [OFTEN, *faults.in_turn(cases)], width=8)
        yield Played(on, {one.case.scenario: written(one) for one in calm}, [*calm, *courses])


def written(course: Course) -> Sequence[str]:
    """The steps that are written, of those that are rollback's own; one that met a change and was tried again once."""
    return list(dict.fromkeys(point.step for point in faults.points(course) if point.step in OWN))


async def test_a_deployment_is_rolled_back_once_whatever_is_killed_or_stopped(played: Played) -> None:
    assert played.calm[ROLLBACK] == ["patch deployments"]
    await played.same_end(ROLLBACK)


async def test_a_stuck_pod_is_evicted_once_whatever_is_killed_or_stopped(played: Played) -> None:
    assert played.calm[STUCK] == ["patch statefulsets", "eviction"]
    await played.same_end(STUCK)


async def test_two_replicas_that_are_told_twenty_times_at_once_write_the_template_once(played: Played) -> None:
    (often,) = [one for one in played.courses if one.case == OFTEN]
    assert [[step["action"] for step in record["status"]["steps"]] for record in often.records] == [
        ["RevertTemplate"] for _ in often.ill
    ]
    assert (await faults.judge(played.on, [often]))["second_steps"] == 0
