"""Whatever is killed or stopped at whichever write, what Git or Helm owns is taken back once: a release, or a canary.

With a real Git server, a stand-in for Argo CD and for a forge, and helm itself. A part of the matrix:
`python -m bench faults --only "rollback b"` and `--only canary-aborter` play all of it.
"""

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import pytest

from bench import canary_scenarios, faults, rig
from bench.faults import Blow, Case, Course, Halt, Point
from bench.git_scenarios import COMMIT, PULL_REQUEST, SUSPENSION
from bench.helm_scenarios import HELM
from bench.scenarios import Scenario
from bench.stage import Stage, stage

STOP = Halt("before")
# At what is done to the outside, and at the note by which whoever comes after a kill knows of it: three in a case.
STRUCK: dict[Scenario, tuple[tuple[str, Blow], ...]] = {
    COMMIT: (("push", "before"), ("push", "after"), ("push", "late"), ("push", STOP)),
    PULL_REQUEST: (("push", "after"), ("pull request", "before"), ("pull request", "after")),
    SUSPENSION: (("note deployments", "after"), ("patch applications", "before"), ("patch applications", "after")),
    canary_scenarios.COMMIT: (("push", "before"), ("push", "after"), ("push", "late"), ("push", STOP)),
    canary_scenarios.SUSPENSION: (
        ("patch applications", "after"),
        ("note ingresses", "before"),
        ("patch deployments", "after"),
    ),
    HELM: (("note deployments", "after"), ("create jobs", "before"), ("create jobs", "after"), ("create jobs", STOP)),
}


@dataclass(frozen=True)
class Played:
    """What became of all the cases."""

    on: Stage
    calm: dict[Scenario, Course]
    courses: Sequence[Course]


@pytest.fixture(scope="module")
async def played(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Played]:
    """All cases at once, on a control plane of their own."""
    home, folders = tmp_path_factory.mktemp("faults"), (rig.FOLDER, "rollback", "canary_aborter")
    cases = [Case(one, Point(step, 1, True), blow) for one, blows in STRUCK.items() for step, blow in blows]
    async with (
        rig.cluster(home, options=faults.PATIENT, folders=folders) as plane,
        stage(plane) as on,
        faults.surroundings(on, STRUCK),
    ):
        calm = await faults.run_all(on, [Case(scenario) for scenario in STRUCK])
        rows = faults.in_turn([faults.doubled(case) for case in cases])
        yield Played(on, {one.case.scenario: one for one in calm}, await faults.run_all(on, rows))


@pytest.mark.parametrize("scenario", STRUCK, ids=lambda one: one.name)
async def test_the_end_is_the_same_and_nothing_is_done_twice(played: Played, scenario: Scenario) -> None:
    assert {step for step, _ in STRUCK[scenario]} <= {
        point.step for point in faults.points(played.calm[scenario]) if point.writes
    }
    mine = [played.calm[scenario], *(one for one in played.courses if one.case.scenario is scenario)]
    found = await faults.judge(played.on, mine)
    assert found["different"] == {}
    assert (found["second_disruptions"], found["second_steps"]) == (0, 0)
