"""Faults on the way to the API server: whichever call of a remediation meets whichever trouble, the end is the same.

A remediation that nobody disturbs is recorded first. Then each of its calls meets each trouble, one at a time, while
the world goes on as in production: senders repeat what was answered 5xx, and the waker makes its rounds.
"""

import asyncio
import hashlib
import itertools
import json
import re
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

from bench import patients, rig
from bench.mishaps import LEDGER, MISHAPS, Mishap, patiently
from bench.rig import GROUP, Json
from bench.stage import Event, Process, Said, Stage, ping, post, stage, tell
from lab import audit, functions
from lab.cluster import ControlPlane
from lab.faults import Call, Hit, Strike, nth
from lab.troubles import TROUBLES, Trouble

PATIENCE = 120.0
WIDTH = 8
_REASON = re.compile(
    r"(GET|POST|PUT|PATCH|DELETE) /|ConfigMap|ledger|policies|is at work on|is open to others|changes faster"
)


@dataclass(frozen=True)
class Scenario:
    """One function in one remediation; a later function joins the matrix with a value of its own.

    `prepare` makes what is healthy yet, and returns the object that falls ill and the one that falls ill after it;
    `fall_ill` breaks one; `event` is how a sender tells of it, None where nobody does and the function is woken by
    the clock; `healed` says what is wrong with the world at the end, or "".
    """

    function: str
    prepare: Callable[[ControlPlane, str], Coroutine[Any, Any, tuple[Json, Json]]]
    fall_ill: Callable[[ControlPlane, Json], Awaitable[Json]]
    event: Callable[[Json], Event] | None
    healed: Callable[[ControlPlane, str, Json], Awaitable[str]]

    @property
    def folder(self) -> str:
        """Its folder in functions/."""
        return self.function.replace("-", "_")


async def a_shop(plane: ControlPlane, where: str) -> tuple[Json, Json]:
    """A Deployment of two pods."""
    await rig.make(plane, where, "shop", 2)
    first, second = await rig.ready(plane, where, 2, patience=120)
    return first, second


async def loop(plane: ControlPlane, pod: Json) -> Json:
    """A pod in its back-off."""
    (ill,) = await patients.fall_ill(plane, [pod])
    return ill


async def replaced(plane: ControlPlane, where: str, pod: Json) -> str:
    """The pod has a Ready successor."""
    found = await rig.pods(plane, where, "shop")
    if pod["metadata"]["uid"] in {one["metadata"]["uid"] for one in found}:
        return "the pod is still there"
    ready = [one for one in found if any(c["type"] == "Ready" and c["status"] == "True" for c in _conditions(one))]
    return "" if len(ready) == len(found) == 2 else f"{len(ready)} of {len(found)} pods are Ready"


def _conditions(pod: Json) -> list[Json]:
    conditions: list[Json] = pod["status"].get("conditions", [])
    return conditions


async def a_shop_with_a_past(plane: ControlPlane, where: str) -> tuple[Json, Json]:
    """The same, with a record that is old enough to go."""
    ago = (datetime.now(UTC) - timedelta(days=10)).isoformat(timespec="seconds").replace("+00:00", "Z")
    target = {"apiVersion": "v1", "kind": "Pod", "namespace": where, "name": "old", "uid": "old"}
    path = f"{GROUP}/namespaces/{where}/remediations"
    body = {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "Remediation",
        "metadata": {"name": "restart-loop-killer-old-00000000"},
        "spec": {"function": rig.FUNCTION, "target": target, "fault": {"key": f"{rig.FUNCTION}/old"}},
    }
    status = {"phase": "Done", "outcome": "skipped", "guard": "Gone", "settledAt": ago}
    # Nobody else may write one.
    async with plane.api_with(await plane.token(rig.FUNCTION, functions.NAMESPACE)) as api:
        await api.post(path, body)
        await api.patch(f"{path}/restart-loop-killer-old-00000000/status", {"status": status})
    return await a_shop(plane, where)


async def replaced_and_forgotten(plane: ControlPlane, where: str, pod: Json) -> str:
    """The same, and the old record is gone."""
    names = [record["metadata"]["name"] for record in await rig.records(plane, where)]
    old = "the old record is still there" if "restart-loop-killer-old-00000000" in names else ""
    return old or await replaced(plane, where, pod)


KILLER = Scenario(rig.FUNCTION, a_shop, loop, patients.told, replaced)
WAKER = Scenario(functions.WAKER, a_shop_with_a_past, loop, None, replaced_and_forgotten)
SCENARIOS = (KILLER, WAKER)


@dataclass(frozen=True)
class Point:
    """One call of a calm remediation: the `turn`-th of its step."""

    step: str
    turn: int
    writes: bool

    def __str__(self) -> str:
        return self.step if self.turn == 1 else f"{self.step} ({self.turn})"


Moment = Literal["before", "after", "late"]
Way = Literal["told", "lost", "late"]


@dataclass(frozen=True)
class Case:
    """One trouble, mishap or kill at one call. Of several replicas each meets the trouble, and each is told.

    The event is told when the fault begins, or lost, or comes a second time when all is over.
    """

    scenario: Scenario
    point: Point | None = None
    trouble: Trouble | Mishap | Moment | None = None
    replicas: int = 1
    event: Way = "told"

    @property
    def name(self) -> str:
        """As people say it."""
        what = f"killed {self.trouble}" if isinstance(self.trouble, str) else getattr(self.trouble, "name", "")
        parts = [
            f"{self.scenario.function}: {what} at {self.point}" if self.point else f"{self.scenario.function}: calm",
            f"{self.replicas} replicas" if self.replicas > 1 else "",
            f"event {self.event}" if self.event != "told" else "",
        ]
        return ", ".join(part for part in parts if part)


def fits(trouble: Trouble | Moment, point: Point) -> bool:
    """Whether a trouble means something at this call."""
    if not isinstance(trouble, Trouble):
        return point.writes or trouble == "before"
    if trouble.for_reads_only:
        return point.step.startswith(("read", "list"))
    return point.writes or not trouble.for_writes_only


BLOWS: tuple[Trouble | Moment, ...] = (*TROUBLES, "before", "after", "late")


def matrix(scenario: Scenario, points: Iterable[Point], replicas: int = 1) -> list[Case]:
    """Each trouble at each call, and a kill before, after and with each."""
    return [Case(scenario, point, blow, replicas) for point in points for blow in BLOWS if fits(blow, point)]


def sample(scenario: Scenario, points: Sequence[Point], blows: Iterable[Trouble | Moment] = BLOWS) -> list[Case]:
    """Each of these troubles at one call: at the writes first, then at the calls that have met fewest."""
    used: Counter[Point] = Counter()
    cases = []
    for blow in blows:
        fitting = [point for point in points if fits(blow, point)]
        if fitting:
            point = min(fitting, key=lambda point: (used[point], not point.writes))
            used[point] += 1
            cases.append(Case(scenario, point, blow))
    return cases


@dataclass
class Course:
    """What became of one case."""

    case: Case
    where: str = ""
    ill: list[Json] = field(default_factory=list)
    records: list[Json] = field(default_factory=list)
    answers: list[Said] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    met: bool = False
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Trial:
    """Plays one case from a healthy workload to the second remediation after the trouble."""

    def __init__(self, on: Stage, case: Case) -> None:
        self.course = Course(case)
        self._stage = on
        self._case = case
        # Empty until the processes are up: what they ask at their start is no part of a remediation.
        self._plan: list[Strike | Hit] = []
        self._processes: list[Process] = []
        self._objects: tuple[Json, Json]
        self._mending: list[asyncio.Task[None]] = []
        self._begun = time.monotonic()

    async def prepare(self) -> None:
        """Make the workload and start the processes."""
        stage, case = self._stage, self._case
        self.course.where = where = await rig.namespace(stage.plane, {"maxInFlight": 1})
        made = asyncio.create_task(case.scenario.prepare(stage.plane, where))
        self._processes = [stage.process(case.scenario.folder, self._plan, where) for _ in range(case.replicas)]
        await asyncio.gather(*(process.start() for process in self._processes))
        self._objects = await made

    async def play(self) -> None:
        """Let the fault begin and the trouble strike, and wait for the end; then once more, without any trouble."""
        plan, course = self._aim(), self.course
        await self._break(self._objects[0], plan)
        course.met = all(one.replica if isinstance(one, Strike) else one.replicas for one in plan)
        course.calls = list(self._processes[0].proxy.calls)
        await asyncio.gather(*self._mending)
        if not course.wrong:
            # Nothing is left behind that would keep the next fault from being healed.
            await self._break(self._objects[1], [])

    async def clear(self) -> None:
        """End the processes, and take away what would burden the other cases."""
        stage, where, course = self._stage, self.course.where, self.course
        await asyncio.gather(*self._mending, *(process.stop() for process in self._processes))
        for key in [key for key in stage.switch.routes if key[1] == where]:
            del stage.switch.routes[key]
        shop = f"/apis/apps/v1/namespaces/{where}/deployments/shop"
        await patiently(lambda: _remove(stage.plane, f"{GROUP}/clusterremediationpolicies/{where}"))
        await patiently(lambda: _remove(stage.plane, shop))
        course.seconds = time.monotonic() - self._begun
        course.answers += stage.switch.answers.pop(where, [])
        course.wrong += dict.fromkeys(why for status, text in course.answers if (why := unclear(status, text)))
        course.wrong += [f"a traceback in {p.child.log}" for p in self._processes if _stumbled(p.child.log)]

    def _aim(self) -> list[Strike | Hit]:
        case, point = self._case, self._case.point
        if point is None or case.trouble is None:
            return []
        chosen = nth(point.step, point.turn)
        if isinstance(case.trouble, str):
            return [Strike(chosen, case.trouble, "kill", 1.0)]
        if isinstance(case.trouble, Mishap):
            mishap = case.trouble
            return [Hit(chosen, Trouble(mishap.name), first=lambda: self._happen(mishap))]
        return [Hit(chosen, case.trouble, each=case.replicas > 1)]

    async def _happen(self, mishap: Mishap) -> None:
        plane, where = self._stage.plane, self.course.where
        # One at a time: the next one waits until this one is mended.
        await self._stage.turn.acquire()
        try:
            await patiently(lambda: mishap.happens(plane, where))
        finally:
            self._mending.append(asyncio.create_task(self._mend(mishap)))

    async def _mend(self, mishap: Mishap) -> None:
        try:
            await asyncio.sleep(mishap.seconds)
            await patiently(lambda: mishap.mended(self._stage.plane, self.course.where))
        finally:
            self._stage.turn.release()

    async def _break(self, pod: Json, plan: Sequence[Strike | Hit]) -> None:
        """Let a pod fall ill, tell of it, and wait until its remediation has come to its end."""
        stage, scenario, where = self._stage, self._case.scenario, self.course.where
        for process in self._processes:
            await patiently(process.proxy.remember)
        # What the processes share for a second is too old then.
        await asyncio.sleep(1.1)
        pod = await patiently(lambda: scenario.fall_ill(stage.plane, pod))
        self.course.ill.append(pod)
        for process in self._processes:
            process.proxy.forget()
        self._plan[:] = plan
        if scenario.event is None:
            stage.switch.routes[where, where] = [stage.helper.url]
            await self._until_over(pod, self._tick)
            return
        event = scenario.event(pod)
        if self._case.event != "lost":
            await self._tell(event)
        stage.switch.routes["net", where] = [process.url for process in self._processes]
        await self._until_over(pod, _nothing)
        if self._case.event == "late":
            await self._tell(event)

    async def _tell(self, event: Event) -> None:
        urls = [process.url for process in self._processes]
        for answers in await asyncio.gather(*(tell(self._stage.session, url, event) for url in urls)):
            self.course.answers += answers

    async def _tick(self) -> None:
        url = self._processes[0].url
        self.course.answers.append(await post(self._stage.session, url, *ping()))

    async def _until_over(self, pod: Json, meanwhile: Callable[[], Awaitable[None]]) -> None:
        limit, missing = time.monotonic() + PATIENCE, "?"
        while missing and time.monotonic() < limit:
            await meanwhile()
            await asyncio.sleep(0.3)
            missing = await patiently(lambda: self._missing(pod))
        self.course.wrong += [f"pod {pod['metadata']['name']}: {missing}"] if missing else []

    async def _missing(self, pod: Json) -> str:
        """What is missing of the end that a calm remediation has."""
        plane, where = self._stage.plane, self.course.where
        self.course.records = await rig.records(plane, where)
        ends = [end(one) for one in self.course.records if one["spec"]["target"]["uid"] == pod["metadata"]["uid"]]
        if ends not in self._ends():
            return f"its records are {ends}"
        return await self._case.scenario.healed(plane, where, pod)

    def _ends(self) -> tuple[list[tuple[str | None, ...]], ...]:
        trouble = self._case.trouble
        if isinstance(trouble, Mishap) and trouble.orphans:
            return [CALM_END], [], [GONE_END]
        return ([CALM_END], [UNPROVEN_END]) if isinstance(trouble, Trouble) and trouble.lasting else ([CALM_END],)


CALM_END = ("Done", "applied", "Recovered", None)
# The record was deleted, and made anew by a request that arrived when the pod was gone.
GONE_END = ("Done", "skipped", None, "Gone")
# By two clocks that differ nobody can tell which pods came after the eviction.
UNPROVEN_END = ("Done", "applied", "Unknown", None)


def end(record: Json) -> tuple[str | None, ...]:
    """A record's end: phase, outcome, verdict and guard."""
    status = record.get("status", {})
    return tuple(status.get(name) for name in ("phase", "outcome", "verdict", "guard"))


def unclear(status: int, text: str) -> str:
    """What is wrong with an answer: all but 2xx, none at all, and a 503 that says in one line what was not reached."""
    if status < 300:
        return ""
    try:
        reason = str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return f"answered {status} {text!r}"
    clear = status == 503 and "\n" not in reason and _REASON.search(reason)
    return "" if clear else f"answered {status} {reason!r}"


async def _remove(plane: ControlPlane, path: str) -> None:
    if await plane.api.find(path) is not None:
        await plane.api.delete(path, {"propagationPolicy": "Background"})


def _stumbled(log: Path) -> bool:
    text = log.read_text(errors="replace") if log.exists() else ""
    return "Traceback" in text or '"exception"' in text


async def _nothing() -> None:
    return


def points(course: Course) -> list[Point]:
    """The calls of a calm remediation; what is asked again and again until the verdict counts once."""
    found = [Point(call.step, call.turn, call.writes) for call in course.calls]
    acted = next((number for number, point in enumerate(found) if point.step == "Applied"), 0)
    return [point for number, point in enumerate(found) if number < acted or point.turn == 1]


async def run_all(on: Stage, cases: Sequence[Case], width: int = WIDTH) -> list[Course]:
    """Play cases, so many at a time."""
    gate, begun, count = asyncio.Semaphore(width), time.monotonic(), itertools.count(1)

    async def one(case: Case) -> Course:
        async with gate:
            trial = Trial(on, case)
            try:
                await trial.prepare()
                await trial.play()
            finally:
                await trial.clear()
        _tell_progress(trial.course, f"{time.monotonic() - begun:6.0f} s  {next(count)}/{len(cases)}")
        return trial.course

    return list(await asyncio.gather(*(one(case) for case in cases)))


async def run_together(on: Stage, cases: Sequence[Case]) -> list[Course]:
    """Play cases whose mishaps happen to all of them: each is prepared before the first one begins."""
    trials, begun = [Trial(on, case) for case in cases], time.monotonic()
    try:
        await asyncio.gather(*(trial.prepare() for trial in trials))
        await asyncio.gather(*(trial.play() for trial in trials))
    finally:
        await asyncio.gather(*(trial.clear() for trial in trials))
    for trial in trials:
        _tell_progress(trial.course, f"{time.monotonic() - begun:6.0f} s")
    return [trial.course for trial in trials]


def _tell_progress(course: Course, when: str) -> None:
    word = "; ".join(course.wrong) or ("as ever" if course.met else "as ever, but the trouble was not met")
    rig.say(f"{when}  {course.case.name}: {word}")


def judge_disruptions(plane: ControlPlane, courses: Sequence[Course]) -> int:
    """Compare what the API server logged with what fell ill; how many evictions there were too many."""
    found: dict[str, Counter[str]] = defaultdict(Counter)
    for entry in audit.entries(plane.audit_log):
        if removes_pod(entry):
            options = entry["requestObject"].get("deleteOptions") or {}
            found[entry["objectRef"]["namespace"]][(options.get("preconditions") or {}).get("uid", "?")] += 1
    too_many = 0
    for course in courses:
        expected = Counter(pod["metadata"]["uid"] for pod in course.ill)
        too_many += (found[course.where] - expected).total()
        if found[course.where] != expected:
            course.wrong.append(f"evictions {dict(found[course.where])} instead of one each of {list(expected)}")
    return too_many


def removes_pod(entry: Json) -> bool:
    """Whether the API server accepted an eviction by whomever, or a pod's deletion by one of our accounts."""
    meant = entry["objectRef"]
    if meant.get("resource") != "pods" or entry["responseStatus"]["code"] >= 300:
        return False
    ours = entry["user"]["username"].startswith(f"system:serviceaccount:{functions.NAMESPACE}:")
    return bool(meant.get("subresource") == "eviction" or (entry["verb"] == "delete" and ours))


def judge_ledger(book: Json, courses: Sequence[Course]) -> None:
    """Each remediation has one entry in the ledger, and nothing else has."""
    held: dict[str, Counter[str]] = defaultdict(Counter)
    for row in json.loads((book.get("data") or {}).get("entries", "[]")):
        held[row["ns"]][row["uid"]] += 1
    mishaps = [course.case.trouble for course in courses if isinstance(course.case.trouble, Mishap)]
    forgets = any(mishap.forgets for mishap in mishaps)
    for course in courses:
        if isinstance(course.case.trouble, Mishap) and course.case.trouble.orphans:
            # Its entry names a record that is no more; that its slot is free again, the second remediation has shown.
            continue
        ill = {pod["metadata"]["uid"] for pod in course.ill}
        expected = Counter(r["metadata"]["uid"] for r in course.records if r["spec"]["target"]["uid"] in ill)
        if held[course.where] != expected and not (forgets and held[course.where] <= expected):
            course.wrong.append(f"the ledger holds {dict(held[course.where])} instead of {dict(expected)}")


async def judge(on: Stage, courses: Sequence[Course]) -> Json:
    """The figures of courses that are over."""
    too_many = judge_disruptions(on.plane, courses)
    judge_ledger(await on.plane.api.get(LEDGER), courses)
    seconds = sorted(course.seconds for course in courses)
    return {
        "cases": len(courses),
        "same_end_state": sum(not course.wrong for course in courses),
        "second_disruptions": too_many,
        "not_met": sorted(course.case.name for course in courses if not course.met),
        "different": {course.case.name: course.wrong for course in courses if course.wrong},
        "answers": dict(Counter(str(status) for course in courses for status, _ in course.answers)),
        "seconds_p50": round(seconds[len(seconds) // 2], 1),
        "seconds_most": round(seconds[-1], 1),
    }


def mishaps_at(point: Point, scenario: Scenario = KILLER) -> list[Case]:
    """Each mishap at one call."""
    return [Case(scenario, point, mishap) for mishap in MISHAPS]


def shuffled(cases: Iterable[Case], size: int = 0) -> list[Case]:
    """The cases in an order that has little to do with the calls, the same each time; so many of them, or all."""
    found = sorted(cases, key=lambda case: hashlib.sha256(case.name.encode()).digest())
    return found[:size] if size else found


async def measure(size: int = 0) -> dict[str, Any]:
    """Run the benchmark: the whole matrix, or `size` cases of it, and the mishaps at the steps of a remediation."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home:
        async with rig.cluster(Path(home)) as plane, stage(plane) as on:
            calm = await run_all(on, [Case(scenario) for scenario in SCENARIOS])
            cases = [case for course in calm for case in matrix(course.case.scenario, points(course))]
            twice = [case for case in matrix(KILLER, points(calm[0]), 2) if isinstance(case.trouble, Trouble)]
            events = [Case(KILLER, event=way) for way in ("lost", "late")] + [Case(KILLER, replicas=2)]
            courses = [*calm, *await run_all(on, [*events, *shuffled([*cases, *twice], size)])]
            found = [await judge(on, courses)]
            steps = [point for point in points(calm[0]) if str(point) in MISHAP_STEPS]
            found += [await judge(on, await run_together(on, mishaps_at(p))) for p in steps[: size or len(steps)]]
    whole = together(found)
    holds = whole["same_end_state"] == whole["cases"] and not whole["second_disruptions"]
    return {**whole, "seconds": round(time.monotonic() - begun), "holds": holds}


MISHAP_STEPS = ("read pods", "record", "ledger", "Acting", "eviction", "Applied", "Done")


def together(found: Sequence[Json]) -> Json:
    """The figures of several runs as one."""
    numbers = ("cases", "same_end_state", "second_disruptions")
    return {
        **{name: sum(one[name] for one in found) for name in numbers},
        "not_met": [name for one in found for name in one["not_met"]],
        "different": {name: why for one in found for name, why in one["different"].items()},
        "answers": dict(sum((Counter(one["answers"]) for one in found), Counter[str]())),
        "seconds_p50": found[0]["seconds_p50"],
        "seconds_most": max(one["seconds_most"] for one in found),
    }
