"""Whatever is killed or stopped at whichever write, a node's remediation ends as ever, and no step is done twice.

A part of the matrix, on a control plane of its own; `python -m bench faults --only node-replacer` plays all of it.
"""

import itertools
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from bench import faults, rig
from bench.faults import Blow, Case, Course, Halt, Point
from bench.node_scenarios import FULL, HEALS_EARLY, HEALS_LATE, REPLACER, SILENT
from bench.scenarios import Scenario
from bench.stage import Stage, stage

KILLS: tuple[Blow, ...] = ("before", "after")
STOPS: tuple[Blow, ...] = (Halt("after"), Halt("before"))


def at(step: str) -> Point:
    """The write of this name."""
    name, _, turn = step.partition(" (")
    return Point(name, int(turn.rstrip(")") or 1), writes=True)


def struck(scenario: Scenario, steps: Sequence[str], blows: Sequence[Blow]) -> list[Case]:
    """One blow at each write, by turns."""
    turns = zip(steps, itertools.cycle(blows), strict=False)
    return [Case(scenario, at(step), blow, 2 if isinstance(blow, Halt) else 1) for step, blow in turns]


CASES = [
    # At some writes, three in a case; the benchmark plays all of them.
    *struck(REPLACER, ("cordon", "eviction (2)", "replacement"), KILLS),
    *struck(REPLACER, ("lease", "eviction", "bound"), ("after", "before")),
    *struck(REPLACER, ("Acting (2)", "cordon", "replacement"), STOPS),
    *struck(SILENT, ("cordon", "Acting (2)", "replacement"), ("after", "before")),
    *struck(HEALS_LATE, ("Applied", "uncordon", "Acting (2)"), ("after", "before")),
    *struck(HEALS_EARLY, ("lease", "cordon"), (Halt("before"), Halt("after"))),
    *struck(FULL, ("uncordon", "release", "Done"), ("after", "before")),
]
OFTEN = Case(REPLACER, replicas=2, event="often")


@dataclass(frozen=True)
class Played:
    """What became of all the cases, which were played at once: most of the time each of them waits."""

    on: Stage
    courses: list[Course]

    async def same_end(self, *scenarios: Scenario) -> None:
        """All is as in a remediation that nobody disturbs, by the records, the ledger and the audit log."""
        found = await faults.judge(self.on, [one for one in self.courses if one.case.scenario in scenarios])
        assert found["different"] == {}
        assert (found["second_disruptions"], found["second_steps"]) == (0, 0)
        assert found["not_met"] == []


@pytest.fixture(scope="module")
async def played(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Played]:
    """A control plane of its own: there is nobody else who would disturb the nodes."""
    home, folders = tmp_path_factory.mktemp("faults"), (rig.FOLDER, "node_replacer")
    async with rig.cluster(home, options=faults.PATIENT, folders=folders) as plane, stage(plane) as on:
        yield Played(on, await faults.run_all(on, [OFTEN, *faults.in_turn(CASES)], width=8))


async def test_the_end_is_the_same_whatever_is_killed_or_stopped_at_each_write(played: Played) -> None:
    await played.same_end(REPLACER)


async def test_a_silent_node_is_replaced_once_and_each_of_its_pods_is_asked_to_go_once(played: Played) -> None:
    await played.same_end(SILENT)


async def test_a_node_that_heals_meanwhile_is_uncordoned_once_and_kept(played: Played) -> None:
    await played.same_end(HEALS_EARLY, HEALS_LATE)


async def test_a_node_that_can_not_be_emptied_is_uncordoned_once_and_left_to_people(played: Played) -> None:
    await played.same_end(FULL)


async def test_two_replicas_that_are_told_twenty_times_at_once_take_each_step_once(played: Played) -> None:
    (often,) = [one for one in played.courses if one.case == OFTEN]
    taken = [{step["action"] for step in record["status"]["steps"]} for record in often.records]
    assert len(often.records) == len(often.ill)
    assert all({"CordonNode", "DeleteNodeClaim"} <= one for one in taken)
    # By the audit log: a record counts attempts, and on a slow machine one may be cut off by its deadline and repeated.
    found = await faults.judge(played.on, [often])
    assert (found["second_disruptions"], found["second_steps"]) == (0, 0)
