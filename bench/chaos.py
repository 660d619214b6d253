"""Chaos: whichever write a runner dies at, all is as before within the TTL; and nothing is hit that has not opted in.

A story is an experiment with one kind of fault. Played undisturbed it shows its writes, by the step that each is: all
of a status that are made in the same phase after the same thing are one step, and so are those of the second pod. Each
step of each story is then met four times: killed before it, killed after it, killed while it is on its way, stopped at
it. Of a step that comes more than once the first is met, or the last, in turns. A story is played twice undisturbed: a
step that only one of the two takes came by chance, as with an answer of 409. It is met if it comes again.
"""

import asyncio
import contextlib
import itertools
import random
import tempfile
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp

from bench import burning, chaos_runs, rig
from bench.chaos_lane import ACCOUNT, FOLDER, HOME, LATE, MOMENTS, STOPS, TTL, Case, Lane, Story
from lab.api import Refused
from lab.cluster import ControlPlane
from lab.ports import Ports

# As many as leave the TTL its time on two cores; one more has the node, of which there is one at a time.
WIDTH = 6
RUNS = 100
# A step that a run did not come to, as what comes twice by the clock, may come in the next.
TRIES = 3
CALM = 2
STORIES = (
    Story("PodKill", interval="2s"),
    Story("Image", {"image": "lab.local/app:2-crash"}, 1),
    Story("NetworkIsolation"),
    Story("Configuration", {"data": {"url": "nowhere", "new": "one"}}, 1),
    Story("ScaleToZero", amount=1),
    Story("PodImage", {"image": "lab.local/app:2-crash"}),
    Story("Environment", {"env": {"DATABASE": "none"}}, 1),
    Story("Probe", amount=1),
    Story("ResourceSqueeze", {"cpu": "10m"}, 1),
    Story("NodeDrain", amount=1),
)


class Field:
    """All lanes of a benchmark."""

    def __init__(self, plane: ControlPlane, client: aiohttp.ClientSession, ports: Ports) -> None:
        self._plane = plane
        self._client = client
        self._ports = ports
        self._lanes: dict[bool, list[Lane]] = {False: [], True: []}

    @asynccontextmanager
    async def opened(self, stories: Sequence[Story]) -> AsyncIterator["Field"]:
        """Open the lanes that these stories need."""
        wanted = {False: WIDTH if any(not story.on_node for story in stories) else 0}
        wanted[True] = int(any(story.on_node for story in stories))
        try:
            for on_node, count in wanted.items():
                for _ in range(count):
                    lane = Lane(self._plane, self._client, self._ports, on_node=on_node)
                    await lane.open()
                    self._lanes[on_node].append(lane)
            yield self
        finally:
            await asyncio.gather(*(lane.close() for lanes in self._lanes.values() for lane in lanes))

    async def play(self, cases: Sequence[Case]) -> None:
        """Play cases side by side, each where it can be."""
        count = itertools.count(1)

        async def along(lane: Lane, left: deque[Case]) -> None:
            while left:
                case = left.popleft()
                await lane.play(case)
                told = "; ".join(case.wrong) or "as before"
                rig.say(f"{next(count)} of {len(cases)}: {case}: {told} ({case.took:.0f} s)")
                if case.wrong:
                    # What it has left must not be taken for what the next one leaves.
                    await lane.close()
                    await lane.open()
                elif case.step and not case.struck and case.tries < TRIES:
                    case.turn = 1
                    left.append(case)

        queues = {where: deque(case for case in cases if case.story.on_node is where) for where in (False, True)}
        await asyncio.gather(*(along(lane, queues[where]) for where, lanes in self._lanes.items() for lane in lanes))


def steps_of(calm: Sequence[Case]) -> dict[tuple[Story, str], int]:
    """Tell which steps each story has taken, and how often at least."""
    found: dict[tuple[Story, str], int] = {}
    for case in calm:
        for step, times in case.steps.items():
            found[case.story, step] = min(times, found.get((case.story, step), times))
    return found


def always(calm: Sequence[Case]) -> set[tuple[Story, str]]:
    """Tell which of them come whenever the story is played."""
    times = Counter((case.story, step) for case in calm for step in case.steps)
    return {which for which, count in times.items() if count == CALM}


def blows(steps: Mapping[tuple[Story, str], int], size: int = 0) -> list[Case]:
    """Each step of each story, met in each way; so many of them if not all are wanted."""
    stops: Iterator[float] = itertools.cycle(STOPS)
    found = []
    for (story, step), times in steps.items():
        for moment in MOMENTS:
            turn = times if moment in {"after", "stopped"} else 1
            found.append(Case(story, step, moment, turn, next(stops) if moment == "stopped" else LATE))
    # The same ones each time, of all stories.
    random.Random(8).shuffle(found)  # noqa: S311
    return found[:size] if size else found


def covered(cases: Sequence[Case]) -> set[tuple[Story, str]]:
    """Tell which steps of stories were met in all ways, and left nothing behind."""
    met = Counter((case.story, case.step) for case in cases if case.struck and not case.wrong)
    return {which for which, count in met.items() if count == len(MOMENTS)}


async def measure(size: int = 0, only: str = "") -> dict[str, Any]:
    """Run the benchmark: each step of each story in all ways, or `size` of these blows; budgets; a hundred runs."""
    begun = time.monotonic()
    chosen = [story for story in STORIES if story.kind.startswith(only)]
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home, Ports() as ports:
        async with (
            rig.cluster(Path(home), folders=[FOLDER]) as plane,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client,
        ):
            with contextlib.suppress(Refused):
                await rig.set_policy(plane, HOME, functions=[ACCOUNT])
            calm = [Case(story) for story in chosen for _ in range(CALM)]
            async with Field(plane, client, ports).opened(chosen) as field:
                await field.play(calm)
                cases = blows(steps_of(calm), size)
                await field.play(cases)
            burnt = await burning.play(plane, client, ports, [story for story in chosen if not story.on_node])
            count = min(RUNS, size) if size else RUNS
            outside, inside, wrong = await chaos_runs.play(plane, count, client, ports)
    left = [case for case in (*calm, *cases) if case.wrong]
    for text in [*(f"{case}: {'; '.join(case.wrong)}" for case in left), *burnt.wrong, *wrong]:
        rig.say(f"WRONG {text}")
    for case in (case for case in cases if not case.struck):
        rig.say(f"NOT MET {case}")
    steps = always(calm)
    others = {(case.story, step) for case in (*calm, *cases) for step in case.steps} - steps
    due = [case for case in cases if (case.story, case.step) in steps]
    figures = {
        "left_behind": len(left),
        "outside": outside,
        "outside_blast_radius": outside,
        "budget_runs": burnt.runs,
        "budget_aborted": burnt.aborted,
        "budget_seconds": burnt.seconds,
        "steps": len(steps),
        "steps_covered": len(covered(due)),
        "steps_by_chance_or_after_blows": len(others),
        "runs": count,
        "killed": inside,
        "kills": sum(case.moment != "stopped" for case in due),
        "stops": sum(case.moment == "stopped" for case in due),
        "blows_met": sum(case.struck for case in due),
        "blows_met_by_chance": sum(case.struck for case in cases) - sum(case.struck for case in due),
        "ttl_seconds": TTL,
        "seconds": round(time.monotonic() - begun),
    }
    whole = all(case.struck for case in due) and (bool(size) or figures["steps_covered"] == len(steps))
    return {**figures, "holds": whole and not left and not outside and not wrong and burnt.aborted == burnt.runs}
