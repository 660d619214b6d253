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
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from bench import rig
from bench.canary_scenarios import CANARY_SCENARIOS
from bench.git_scenarios import GIT_SCENARIOS
from bench.helm_scenarios import HELM_SCENARIOS
from bench.mishaps import LEDGER, MISHAPS, Mishap, patiently
from bench.node_scenarios import NODE_SCENARIOS
from bench.release_scenarios import RELEASE_SCENARIOS
from bench.rig import GROUP, Json
from bench.scenarios import KILLER, WAKER, End, Scenario
from bench.stage import Event, Process, Said, Stage, net_of, ping, place_of, post, stage, tell
from lab import audit, functions
from lab.cluster import ControlPlane, Options
from lab.faults import Call, Hit, Strike, nth
from lab.troubles import TROUBLES, Trouble

PATIENCE = 240.0
# A busy machine must not make healthy nodes look silent.
PATIENT = Options(node_grace_seconds=60)
# Longer than an attempt may hold a record, by so much: the other replica has taken over by then.
_LONGER = 2.0
# How often it is looked whether the last write was met, at most.
_LAST_WORDS = 50
WIDTH = 8
_REASON = re.compile(
    r"(GET|POST|PUT|PATCH|DELETE) /|ConfigMap|ledger|policies|"
    r"is at work on|is open to others|is about to be free|changes faster|^git [a-z-]+ with \S+ took too long$"
)


SCENARIOS = (KILLER, WAKER)


@dataclass(frozen=True)
class Point:
    """One call of a calm remediation: the `turn`-th of its step."""

    step: str
    turn: int
    writes: bool

    def __str__(self) -> str:
        return self.step if self.turn == 1 else f"{self.step} ({self.turn})"


@dataclass(frozen=True)
class Halt:
    """The process is stopped before its call has left it, or before it knows the answer, and goes on too late."""

    moment: Literal["before", "after"]


Moment = Literal["before", "after", "late"]
"""When a process is killed."""
Blow = Trouble | Moment | Halt
Way = Literal["told", "lost", "late", "often"]


@dataclass(frozen=True)
class Case:
    """One trouble, mishap or blow at one call. Of several replicas each meets the trouble, and each is told.

    The event is told when the fault begins, or lost, or comes a second time when all is over, or again and again at
    the same time. Of a process that is stopped, the second replica does the work meanwhile. `also` is what the next
    remediations by the same processes meet.
    """

    scenario: Scenario
    point: Point | None = None
    trouble: Mishap | Blow | None = None
    replicas: int = 1
    event: Way = "told"
    also: tuple[tuple[Point | None, "Mishap | Blow | None"], ...] = ()

    @property
    def blows(self) -> tuple[tuple[Point | None, "Mishap | Blow | None"], ...]:
        """What is met, and at which call, by one remediation after the other."""
        return ((self.point, self.trouble), *self.also)

    @property
    def name(self) -> str:
        """As people say it."""
        what = "; ".join(f"{_words(blow)} at {point}" if point else "calm" for point, blow in self.blows)
        parts = [
            f"{self.scenario.name}: {what}",
            f"{self.replicas} replicas" if self.replicas > 1 else "",
            f"event {self.event}" if self.event != "told" else "",
        ]
        return ", ".join(part for part in parts if part)


def _words(trouble: Mishap | Blow | None) -> str:
    if isinstance(trouble, str):
        return f"killed {trouble}"
    if isinstance(trouble, Halt):
        return f"stopped {trouble.moment}"
    return trouble.name if trouble is not None else ""


def fits(trouble: Blow, point: Point) -> bool:
    """Whether a trouble means something at this call."""
    if not isinstance(trouble, Trouble):
        return point.writes or trouble == "before"
    if trouble.for_reads_only:
        return point.step.startswith(("read", "list"))
    return point.writes or not trouble.for_writes_only


BLOWS: tuple[Blow, ...] = (*TROUBLES, "before", "after", "late")
STRIKES: tuple[Blow, ...] = ("before", "after", "late", Halt("before"), Halt("after"))


def matrix(scenario: Scenario, points: Iterable[Point], replicas: int = 1, blows: Iterable[Blow] = BLOWS) -> list[Case]:
    """Each of these blows at each call: each trouble, and a kill before, after and with it."""
    cases = (Case(scenario, point, blow, replicas) for point in points for blow in blows if fits(blow, point))
    return [doubled(case) for case in cases]


def doubled(case: Case) -> Case:
    """The same with a second process, if the first one is stopped: somebody has to do the work meanwhile."""
    return replace(case, replicas=max(case.replicas, 2)) if isinstance(case.trouble, Halt) else case


def in_turn(cases: Iterable[Case], count: int = 3) -> list[Case]:
    """The same cases, so many played by the same processes, one after the other."""
    alike: dict[tuple[Scenario, int, Way], list[Case]] = defaultdict(list)
    for case in cases:
        alike[case.scenario, case.replicas, case.event].append(case)
    rows = [same[start : start + count] for same in alike.values() for start in range(0, len(same), count)]
    return [replace(first, also=tuple(one.blows[0] for one in others)) for first, *others in rows]


def at_writes(scenario: Scenario, points: Iterable[Point], blows: Iterable[Blow] = STRIKES) -> list[Case]:
    """A kill and a stop before, after and with each write."""
    return matrix(scenario, [point for point in points if point.writes], blows=blows)


def sample(scenario: Scenario, points: Sequence[Point], blows: Iterable[Blow] = BLOWS) -> list[Case]:
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
    evicted: list[str] = field(default_factory=list)
    """The UIDs of the pods that are evicted in a calm remediation."""
    records: list[Json] = field(default_factory=list)
    answers: list[Said] = field(default_factory=list)
    calls: list[Call] = field(default_factory=list)
    met: bool = True
    twice: list[str] = field(default_factory=list)
    """What was done more than once elsewhere than at the API server."""
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0


class Trial:
    """Plays one case from a healthy workload to the next remediation after the trouble."""

    def __init__(self, on: Stage, case: Case) -> None:
        self.course = Course(case)
        self._stage = on
        self._case = case
        # Empty until the processes are up: what they ask at their start is no part of a remediation.
        self._plan: list[Strike | Hit] = []
        self._processes: list[Process] = []
        self._objects: list[Json]
        self._blow = case.trouble
        self._mending: list[asyncio.Task[None]] = []
        self._meanwhile: list[asyncio.Future[None]] = []
        self._begun = time.monotonic()

    async def prepare(self) -> None:
        """Make the workload and start the processes."""
        stage, case = self._stage, self._case
        self.course.where = where = await rig.namespace(stage.plane, {"maxInFlight": 1})
        made = asyncio.ensure_future(case.scenario.prepare(stage, where))
        self._processes = [self._process(where) for _ in range(case.replicas)]
        await asyncio.gather(*(process.start() for process in self._processes))
        self._objects = await made

    def _process(self, where: str) -> Process:
        played = self._case.scenario
        return self._stage.process(
            played.folder, self._plan, where, act_within=played.act_within, proxied=played.proxied
        )

    async def play(self) -> None:
        """Let the faults begin and the troubles strike, and wait for each end; then once more, without any trouble."""
        course, objects = self.course, iter(self._objects)
        for point, blow in self._case.blows:
            self._blow = blow
            plan = self._aim(point)
            await self._break(next(objects), plan)
            course.met &= await _all_met(plan)
            course.calls = course.calls or list(self._processes[0].proxy.calls)
            await asyncio.gather(*self._mending)
            if course.wrong:
                return
        # Nothing is left behind that would keep the next fault from being healed.
        self._blow, thing = None, next(objects, None)
        if thing is not None:
            await self._break(thing, [])

    async def clear(self) -> None:
        """End the processes, and take away what would burden the other cases."""
        stage, where, course = self._stage, self.course.where, self.course
        for task in self._meanwhile:
            task.cancel()
        await asyncio.gather(*self._meanwhile, return_exceptions=True)
        await asyncio.gather(*self._mending, *(process.stop() for process in self._processes))
        for key in [key for key in stage.switch.routes if key[1] == where]:
            del stage.switch.routes[key]
        for thing in course.ill:
            course.twice += await patiently(partial(self._case.scenario.twice, stage.plane, where, thing))
        await patiently(lambda: rig.remove(stage.plane, f"{GROUP}/clusterremediationpolicies/{where}"))
        await patiently(lambda: self._case.scenario.clear(stage, where))
        course.seconds = time.monotonic() - self._begun
        course.answers += stage.switch.answers.pop(where, [])
        course.wrong += dict.fromkeys(why for status, text in course.answers if (why := unclear(status, text)))
        course.wrong += [f"a traceback in {p.child.log}" for p in self._processes if _stumbled(p.child.log)]

    def _aim(self, point: Point | None) -> list[Strike | Hit]:
        blow = self._blow
        if point is None or blow is None:
            return []
        chosen = nth(point.step, point.turn)
        if isinstance(blow, str):
            return [Strike(chosen, blow, "kill", 1.0)]
        if isinstance(blow, Halt):
            return [Strike(chosen, blow.moment, "stop", self._case.scenario.act_within + _LONGER)]
        if isinstance(blow, Mishap):
            return [Hit(chosen, Trouble(blow.name), first=lambda: self._happen(blow))]
        return [Hit(chosen, blow, each=self._case.replicas > 1)]

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

    async def _break(self, thing: Json, plan: Sequence[Strike | Hit]) -> None:
        """Let something fall ill, tell of it, and wait until its remediation has come to its end."""
        stage, scenario, where, course = self._stage, self._case.scenario, self.course.where, self.course
        for process in self._processes:
            await patiently(process.proxy.remember)
        # What the processes share for a second is too old then.
        await asyncio.sleep(1.1)
        # Nobody tells of it before it has fallen ill.
        stage.switch.routes.pop((net_of(scenario.function), where), None)
        course.evicted += await patiently(lambda: scenario.evicts(stage.plane, where, thing))
        ill = await patiently(lambda: scenario.fall_ill(stage.plane, thing))
        course.ill.append(ill)
        if scenario.evicts_ill is not None:
            course.evicted += await patiently(partial(scenario.evicts_ill, stage.plane, where, ill))
        for process in self._processes:
            process.proxy.forget()
        self._plan[:] = plan
        self._meanwhile.append(asyncio.ensure_future(scenario.meanwhile(stage.plane, where, ill)))
        await (self._clocked(ill) if scenario.event is None else self._told(ill, scenario.event(ill)))

    async def _clocked(self, ill: Json) -> None:
        """Wake the function again and again."""
        where = self.course.where
        self._stage.switch.routes[where, where] = [self._stage.helper.url]
        await self._until_over(ill, self._tick)

    async def _told(self, ill: Json, event: Event) -> None:
        """Tell of it, in the way of the case; then the waker makes its rounds."""
        urls, way = [process.url for process in self._processes], self._case.event
        # Nobody but the first process is told by the event if that one is to be stopped: the other one takes over.
        first = urls[:1] if isinstance(self._blow, Halt) else urls
        telling = asyncio.create_task(self._tell(event, first if way != "lost" else [], 20 if way == "often" else 1))
        if not isinstance(self._blow, Halt):
            await telling
        self._stage.switch.routes[net_of(self._case.scenario.function), self.course.where] = urls
        await self._until_over(ill, _nothing)
        await telling
        if way == "late":
            await self._tell(event, urls)

    async def _tell(self, event: Event, urls: Sequence[str], times: int = 1) -> None:
        headers, body = event
        # Each delivery has an id of its own.
        events = [({**headers, "ce-id": f"{headers['ce-id']}-{number}"}, body) for number in range(times)]
        telling = [tell(self._stage.session, url, one) for url in urls for one in events]
        for answers in await asyncio.gather(*telling):
            self.course.answers += answers

    async def _tick(self) -> None:
        url = self._processes[0].url
        self.course.answers.append(await post(self._stage.session, url, *ping()))

    async def _until_over(self, ill: Json, meanwhile: Callable[[], Awaitable[None]]) -> None:
        limit, missing = time.monotonic() + PATIENCE, "?"
        while missing and time.monotonic() < limit:
            await meanwhile()
            await asyncio.sleep(0.5)
            missing = await patiently(lambda: self._missing(ill))
        name = f"{ill['kind'].lower() if 'kind' in ill else 'pod'} {ill['metadata']['name']}"
        self.course.wrong += [f"{name}: {missing}"] if missing else []

    async def _missing(self, ill: Json) -> str:
        """What is missing of the end that a calm remediation has."""
        plane, where, scenario = self._stage.plane, self.course.where, self._case.scenario
        uids = [one["metadata"]["uid"] for one in self.course.ill]
        found = await rig.records_about(plane, scenario.home or where, uids)
        aside = scenario.aside
        self.course.records = [one for one in found if not aside or aside not in one["spec"]["fault"]["key"]]
        ends = [end(one) for one in self.course.records if one["spec"]["target"]["uid"] == ill["metadata"]["uid"]]
        if ends not in self._ends():
            return f"its records are {ends}"
        return await scenario.healed(plane, where, ill)

    def _ends(self) -> tuple[list[End], ...]:
        # What lasts, the remediation after it meets, too.
        blows, usual = [blow for _, blow in self._case.blows], self._case.scenario.end
        if any(isinstance(blow, Mishap) and blow.orphans for blow in blows):
            return [usual], [], [GONE_END]
        lasting = any(isinstance(blow, Trouble) and blow.lasting for blow in blows)
        return ([usual], [UNPROVEN_END]) if lasting else ([usual],)


# The record was deleted, and made anew by a request that arrived when the pod was gone.
GONE_END = ("Done", "skipped", None, "Gone")
# By two clocks that differ nobody can tell which pods came after the eviction.
UNPROVEN_END = ("Done", "applied", "Unknown", None)


def end(record: Json) -> End:
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


async def _all_met(plan: Sequence[Strike | Hit]) -> bool:
    """Tell whether all has struck. A Kubernetes Event is written after the record that ends a remediation."""
    for _ in range(_LAST_WORDS):
        if all(one.replica if isinstance(one, Strike) else one.replicas for one in plan):
            return True
        await asyncio.sleep(0.2)
    return False


def _stumbled(log: Path) -> bool:
    text = log.read_text(errors="replace") if log.exists() else ""
    return "Traceback" in text or '"exception"' in text


async def _nothing() -> None:
    return


def points(course: Course) -> list[Point]:
    """The calls of a calm remediation; what is asked again and again until the verdict counts once."""
    found = [Point(call.step, call.turn, call.writes) for call in course.calls]
    steps = [point.step for point in found]
    # What is given up is never applied; the waker's own calls are neither.
    over = [steps.index(step) for step in ("Applied", "Done") if step in steps]
    acted = over[0] if over else 0
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
        expected = Counter(course.evicted)
        surplus = found[course.where] - expected
        too_many += surplus.total()
        if surplus or (found[course.where] != expected and not course.case.scenario.spares):
            course.wrong.append(f"evictions {dict(found[course.where])} instead of one each of {list(expected)}")
    return too_many


def judge_writes(plane: ControlPlane, courses: Sequence[Course]) -> int:
    """Compare what was done to the nodes and to what stands behind them; how many steps there were too many."""
    found: dict[str, Counter[tuple[str, str]]] = defaultdict(Counter)
    for entry in audit.entries(plane.audit_log):
        step = step_of(entry)
        if step in OWN_STEPS:
            found[place_of(entry["objectRef"])][entry["objectRef"]["name"], step] += 1
    too_many = 0
    for course in courses:
        ill = [node["metadata"]["name"] for node in course.ill]
        expected = Counter((name, step) for name in ill for step in course.case.scenario.writes)
        too_many += (found[course.where] - expected).total() + len(course.twice)
        course.wrong += course.twice
        if found[course.where] != expected:
            course.wrong.append(f"steps {dict(found[course.where])} instead of one each of {list(expected)}")
    return too_many


OWN_STEPS = frozenset(
    {"cordon", "uncordon", "taint", "untaint", "replacement"}
    | {f"patch {plural}" for plural in ("applications", "deployments", "statefulsets")}
)


def step_of(entry: Json) -> str:
    """Which step of a remediation the API server has accepted of one of our accounts; "" for all else."""
    accepted = entry["responseStatus"]["code"] < 300 and entry["verb"] in _METHODS
    if not accepted or not _is_ours(entry):
        return ""
    body = json.dumps(entry.get("requestObject") or {}).encode()
    return Call(_METHODS[entry["verb"]], entry["requestURI"].partition("?")[0], body).step


_METHODS = {"create": "POST", "update": "PUT", "patch": "PATCH", "delete": "DELETE"}


def _is_ours(entry: Json) -> bool:
    return str(entry["user"]["username"]).startswith(f"system:serviceaccount:{functions.NAMESPACE}:")


def removes_pod(entry: Json) -> bool:
    """Whether the API server accepted an eviction by whomever, or a pod's deletion by one of our accounts."""
    meant = entry["objectRef"]
    if meant.get("resource") != "pods" or entry["responseStatus"]["code"] >= 300:
        return False
    return bool(meant.get("subresource") == "eviction" or (entry["verb"] == "delete" and _is_ours(entry)))


def judge_ledger(book: Json, courses: Sequence[Course]) -> None:
    """Each remediation has one entry in the ledger, and nothing else has."""
    held: dict[str, Counter[str]] = defaultdict(Counter)
    for row in json.loads((book.get("data") or {}).get("entries", "[]")):
        held[place_of({"name": row["rec"], "namespace": row["ns"]})][row["uid"]] += 1
    mishaps = [course.case.trouble for course in courses if isinstance(course.case.trouble, Mishap)]
    forgets = any(mishap.forgets for mishap in mishaps)
    for course in courses:
        if isinstance(course.case.trouble, Mishap) and course.case.trouble.orphans:
            # Its entry names a record that is no more; that its slot is free again, the second remediation has shown.
            continue
        expected = Counter(record["metadata"]["uid"] for record in course.records)
        if held[course.where] != expected and not (forgets and held[course.where] <= expected):
            course.wrong.append(f"the ledger holds {dict(held[course.where])} instead of {dict(expected)}")


async def judge(on: Stage, courses: Sequence[Course]) -> Json:
    """The figures of courses that are over."""
    too_many = judge_disruptions(on.plane, courses)
    double = judge_writes(on.plane, courses)
    judge_ledger(await on.plane.api.get(LEDGER), courses)
    seconds = sorted(course.seconds for course in courses)
    return {
        "cases": sum(len(course.case.blows) for course in courses),
        "same_end_state": sum(len(course.case.blows) for course in courses if not course.wrong),
        "second_disruptions": too_many,
        "second_steps": double,
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


@asynccontextmanager
async def surroundings(on: Stage, scenarios: Iterable[Scenario]) -> AsyncIterator[None]:
    """Run what these scenarios need besides, once each."""
    async with AsyncExitStack() as stack:
        for needs in dict.fromkeys(scenario.needs for scenario in scenarios):
            if needs is not None:
                await stack.enter_async_context(needs(on))
        yield


async def measure(size: int = 0, only: str = "", *, strikes: bool = False) -> dict[str, Any]:
    """Run the benchmark: the whole matrix, or `size` cases of it, and the mishaps at the steps of a remediation.

    `only` chooses scenarios by the beginning of their names; `strikes` leaves all but kills and stops out.
    """
    begun = time.monotonic()
    chosen = [scenario for scenario in (*SCENARIOS, *LONG) if scenario.name.startswith(only)]
    folders = sorted({scenario.folder for scenario in chosen} | {rig.FOLDER})
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home:
        async with (
            rig.cluster(Path(home), options=PATIENT, folders=folders) as plane,
            stage(plane) as on,
            surroundings(on, chosen),
        ):
            calm = await run_all(on, [Case(scenario) for scenario in chosen])
            cases = [case for course in calm for case in _cases(course, strikes=strikes)]
            events = [case for scenario in chosen for case in _events(scenario)]
            found = [await judge(on, [*calm, *await run_all(on, [*events, *shuffled(cases, size)])])]
            if KILLER in chosen and not strikes:
                steps = [point for point in points(calm[0]) if str(point) in MISHAP_STEPS]
                found += [await judge(on, await run_together(on, mishaps_at(p))) for p in steps[: size or len(steps)]]
    whole = together(found)
    second = whole["second_disruptions"] + whole["second_steps"]
    holds = whole["same_end_state"] == whole["cases"] and not second
    return {**whole, "seconds": round(time.monotonic() - begun), "holds": holds}


LONG = (*NODE_SCENARIOS, *RELEASE_SCENARIOS, *GIT_SCENARIOS, *HELM_SCENARIOS, *CANARY_SCENARIOS)
VARIANTS = (*NODE_SCENARIOS[1:], *RELEASE_SCENARIOS[1:], *GIT_SCENARIOS, *HELM_SCENARIOS, *CANARY_SCENARIOS)


def _cases(calm: Course, *, strikes: bool) -> list[Case]:
    """What the calls of a calm remediation meet. The variants of one function differ in what they do, not in how."""
    scenario, found = calm.case.scenario, points(calm)
    struck = in_turn(at_writes(scenario, found)) if scenario in LONG else at_writes(scenario, found)
    if strikes or scenario in VARIANTS:
        return struck
    if scenario in LONG:
        return [*struck, *matrix(scenario, found, blows=TROUBLES)]
    twice = matrix(scenario, found, 2, TROUBLES) if scenario is KILLER else []
    return [*matrix(scenario, found), *twice]


def _events(scenario: Scenario) -> list[Case]:
    """The ways in which the event comes, for those that it wakes."""
    if scenario.event is None or scenario in VARIANTS:
        return []
    ways: tuple[Way, ...] = ("lost", "late")
    return [*(Case(scenario, event=way) for way in ways), Case(scenario, replicas=2, event="often")]


MISHAP_STEPS = ("read pods", "record", "ledger", "Acting", "eviction", "Applied", "Done")


def together(found: Sequence[Json]) -> Json:
    """The figures of several runs as one."""
    numbers = ("cases", "same_end_state", "second_disruptions", "second_steps")
    return {
        **{name: sum(one[name] for one in found) for name in numbers},
        "not_met": [name for one in found for name in one["not_met"]],
        "different": {name: why for one in found for name, why in one["different"].items()},
        "answers": dict(sum((Counter(one["answers"]) for one in found), Counter[str]())),
        "seconds_p50": found[0]["seconds_p50"],
        "seconds_most": max(one["seconds_most"] for one in found),
    }
