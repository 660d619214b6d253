"""Carries experiments on: one change of status after the other, each before what it announces."""

from __future__ import annotations

import asyncio
import socket
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from kreflex.audit import log
from kreflex.chaos import gates, turns
from kreflex.chaos.corruptions import UnfitError
from kreflex.chaos.engines import engine_intent
from kreflex.chaos.experiments import (
    FINAL,
    FINALIZER,
    INJECTIONS,
    PLACES,
    PRIORS,
    TIMELINE,
    Experiment,
    Experiments,
    ExperimentSpec,
    ExperimentStatus,
    Healed,
    Injection,
    Level,
    Line,
    Phase,
    Probe,
    Probed,
    Span,
    Verdict,
)
from kreflex.chaos.faults import WAITS, Act, Back, Hands, TooMuchError, act_of, intent
from kreflex.chaos.healing import healed_by
from kreflex.chaos.news import tell
from kreflex.chaos.probes import Eyes, Seen, noted
from kreflex.chaos.score import score, shortfalls
from kreflex.chaos.targets import choose, eligible, ending, kind_of
from kreflex.cluster import Reader, Writer, acting_until
from kreflex.errors import (
    ApiError,
    ConflictError,
    DeniedError,
    GoneError,
    KreflexError,
    OutageError,
    UnavailableError,
)
from kreflex.views import JSON
from kreflex.world import World

RECHECK = timedelta(minutes=1)
AGAIN = timedelta(seconds=5)
# A Lease outlasts what it is about: whoever takes the next one finds all taken back, or sees who is at it.
_SLACK = timedelta(minutes=2)
# What of a call is kept for its last writes.
_RESERVE = timedelta(seconds=3)
_BUDGET_EVERY = timedelta(seconds=4)
_STEP = timedelta(seconds=1)
_LOOK = timedelta(seconds=5)
# What can't be taken back for so long needs a person: it is tried each minute then, so that no process stays for it.
_STUBBORN = timedelta(minutes=10)
# The result of a Job before an experiment holds for so long.
_FRESH = timedelta(minutes=10)
_PAST = 20
_FORBIDDEN = 403
# So long nobody is told that a controller has not looked yet at what is put back.
_UNTOLD = timedelta(seconds=10)
# So long the end of an experiment is told to whoever asks.
_NEWS = timedelta(seconds=30)


@dataclass(frozen=True)
class Terms:
    """What people have set for all experiments."""

    act_within: timedelta
    time_budget: timedelta
    hosts: frozenset[str]


class Runner:
    """One process's hands on the experiments of a cluster."""

    def __init__(self, world: World, writer: Writer, terms: Terms) -> None:
        self._world = world
        self._reader: Reader = world.cluster
        self._writer = writer
        self._terms = terms
        self._hands = Hands(self._reader, writer, world.home)
        self._eyes = Eyes(world, writer, terms.hosts)
        self.experiments = Experiments(self._reader, writer)
        self._me = f"{socket.gethostname()[:200]}/{uuid.uuid4().hex[:8]}"
        self._busy: set[str] = set()
        self._levels: dict[str, datetime] = {}

    def now(self) -> datetime:
        """Tell the API server's time."""
        return self._world.now()

    async def go_on(self, namespace: str, name: str) -> Experiment | None:
        """Carry one experiment on as far as this call's time allows; None if there is none, or others are at it.

        One that was over a moment ago is given once more: a clock that has carried it to its end tells nobody of that,
        but the event of its last write, which comes here, is answered with it.
        """
        if self._reader.namespaces and namespace not in self._reader.namespaces:
            return None
        found = await self.experiments.get(namespace, name)
        if found is None or found.uid in self._busy:
            return None
        if not found.due(self.now()):
            return found if _just_over(found, self.now()) else None
        self._busy.add(found.uid)
        try:
            return await self._hold(found)
        finally:
            self._busy.discard(found.uid)

    async def _hold(self, experiment: Experiment) -> Experiment | None:
        end = self.now() + self._terms.time_budget - _RESERVE
        try:
            held = await self._save(experiment, holder=self._me)
            while self.now() < end:
                before = held
                try:
                    held, wait = await self._step(held)
                    if wait is None:
                        return held
                    if held.status.phase in FINAL or wait > end - self.now():
                        return await self._let_go(held, wait)
                except ConflictError as error:
                    held, wait = await self._still_mine(held, error), _STEP / 5
                if held is before or wait > timedelta():
                    await asyncio.sleep(max(wait, _STEP / 5).total_seconds())
            return await self._let_go(held, timedelta())
        except (ConflictError, GoneError) as error:
            # Somebody else has changed it: whoever is woken by that goes on.
            log.info("experiment.changed", experiment=str(experiment), error=str(error))
            return None

    async def _still_mine(self, held: Experiment, error: ConflictError) -> Experiment:
        """Read it again: people have changed the spec, or deleted it, and wait for whoever is at work to hear of it."""
        found = await self.experiments.get(held.namespace, held.name)
        if found is None or found.uid != held.uid or found.status.holder != self._me:
            raise error
        return found

    async def _let_go(self, held: Experiment, wait: timedelta) -> Experiment:
        over = held.status.phase in FINAL
        if held.leaving and not held.finalizers:
            # It went as soon as nothing held it; what has become of it is told all the same.
            return held
        try:
            due_at = None if over else self.now() + wait
            return await self.experiments.change(held, holder=None, deadline=None, due_at=due_at)
        except GoneError:
            # Or a moment later, as with its namespace.
            if not over:
                raise
            return held

    async def _save(self, held: Experiment, *lines: tuple[str, str], **changes: Any) -> Experiment:
        """Write the status, and stay at work for as long as an attempt may take from now."""
        now = self.now()
        told = (*held.status.timeline, *(Line(at=now, word=word, text=text[:500]) for word, text in lines))
        for word, text in lines:
            log.info(f"experiment.{word}", experiment=str(held), text=text)
        changes = {"holder": self._me, "deadline": now + self._terms.act_within, "due_at": None, **changes}
        return await self.experiments.change(held, timeline=told[-TIMELINE:], **changes)

    async def _step(self, held: Experiment) -> tuple[Experiment, timedelta | None]:
        """Do the next thing; how long to wait for the one after it, or None if there is none."""
        if held.spec is None:
            return await self._broken(held)
        steps: dict[Phase, Callable[[Experiment], Awaitable[tuple[Experiment, timedelta | None]]]] = {
            "Pending": self._begin,
            "Running": self._run,
            "Reverting": self._revert,
        }
        step = steps.get(held.status.phase)
        if step is not None:
            return await step(held)
        if FINALIZER in held.finalizers:
            # Whoever ended it died before he let it go.
            return await self._let_go(await self._release(held), timedelta()), None
        return await self._again(held), timedelta()

    async def _broken(self, held: Experiment) -> tuple[Experiment, timedelta | None]:
        """What has begun is taken back, whatever the spec is now; what has not, is refused."""
        if held.status.phase in {"Running", "Reverting"}:
            return await self._revert(held)
        return await self._refuse(held, gates.Stop("Spec", held.broken, final=True))

    # Pending

    async def _begin(self, held: Experiment) -> tuple[Experiment, timedelta | None]:
        spec, now = held.wants, self.now()
        if held.leaving:
            return await self._release(held), None
        stop, bodies, slos = await self._may_begin(held)
        if stop is not None:
            return await self._refuse(held, stop)
        held = await self._save(await self.experiments.hold(held, hold=True))
        with acting_until(held.status.deadline):
            taken = await turns.take(held, now + spec.ttl + _SLACK, self._reader, self._writer)
        if taken is not None:
            return await self._refuse(held, gates.Stop("Busy", taken))
        probed = await asyncio.gather(*(self._first_look(probe, held) for probe in spec.probes))
        ones = tuple(one for one, _ in probed)
        failed = [f"{one.name}: {text}" for one, text in probed if one.before is False]
        if failed:
            refused = gates.Stop("SteadyState", f"not steady before it: {'; '.join(failed)}", final=True)
            return await self._refuse(held, refused, probes=ones, score=None)
        running = [text for one, text in probed if one.before is None and text]
        if running:
            return (await self._refuse(held, gates.Stop("SteadyState", f"not known yet: {running[0]}")))[0], AGAIN
        return await self._start(held, ones, len(bodies), slos), timedelta()

    async def _may_begin(self, held: Experiment) -> tuple[gates.Stop | None, list[JSON], str]:
        """Tell what keeps it from beginning, or what may be hit and whose budgets have to hold."""
        stop = await self._busy_place(held) or await gates.may_begin(held, self._world)
        try:
            bodies = [] if stop else await self._eligible(held)
        except ApiError as error:
            if _is_outage(error):
                raise
            # As a selector that the API server does not take.
            stop, bodies = gates.Stop("Targets", str(error), final=True), []
        stop = stop or gates.at_rest(held, bodies)
        slos = "" if stop else await gates.objectives(held, self._world, bodies)
        if stop is None and isinstance(slos, gates.Stop):
            stop = slos
        if stop is not None or isinstance(slos, gates.Stop):
            return stop, bodies, ""
        stop = gates.of_budget(await gates.budget(held, slos, self._world))
        if stop is None and held.wants.fault.kind != "Engine":
            choice = choose(held, bodies, (), len(bodies))
            stop = None if choice.chosen else gates.Stop("Targets", choice.because, final=True)
        return stop, bodies, slos

    async def _start(self, held: Experiment, probed: tuple[Probed, ...], count: int, slos: str) -> Experiment:
        spec, now, status = held.wants, self.now(), held.status
        longest = _longest(spec)
        return await self._save(
            held,
            ("began", f"{spec.fault.kind}, {spec.amount} of {count}, for {longest.total_seconds():g} s at most"),
            phase="Running",
            guard=None,
            reason=None,
            verdict=None,
            score=None,
            run=status.run + 1,
            slos=slos,
            waiting_since=None,
            budget=(),
            started_at=now,
            ends_at=None,
            revert_by=now + spec.ttl,
            next_round_at=now,
            reverting_at=None,
            finished_at=None,
            rounds=0,
            eligible=count,
            aborted=None,
            injected=(),
            probes=probed,
            remediation=None,
            lost=0,
        )

    async def _busy_place(self, held: Experiment) -> gates.Stop | None:
        others = await self.experiments.all(held.namespace)
        busy = next((o for o in others if o.uid != held.uid and o.status.phase in {"Running", "Reverting"}), None)
        return None if busy is None else gates.Stop("Busy", f"{busy} runs in this namespace")

    async def _eligible(self, held: Experiment) -> list[JSON]:
        return [] if held.wants.fault.kind == "Engine" else await eligible(held, self._reader)

    async def _first_look(self, probe: Probe, held: Experiment) -> tuple[Probed, str]:
        probed = Probed(name=probe.name, weight=probe.weight)
        if "Before" not in probe.when:
            return probed, ""
        # The same Job for whoever asks again soon, and another one where an experiment waits for long.
        turn = f"{held.status.run}/before/{(self.now() - held.waits_since) // _FRESH}"
        seen = await self._eyes.look(probe, held, turn)
        if seen is None:
            return probed, f"the Job of {probe.name} runs"
        return probed.model_copy(update={"before": seen.ok}), seen.said

    async def _refuse(self, held: Experiment, stop: gates.Stop, **changes: Any) -> tuple[Experiment, timedelta | None]:
        """Say why it does not begin; what may be over soon is asked again, but not for ever."""
        now, status = self.now(), held.status
        late = held.late_at is not None and now > held.late_at
        told = (status.phase, status.guard, status.reason) == ("Pending", stop.guard, stop.because[:1000])
        if not stop.final and not late:
            # It waits without what it needs to run: others may begin.
            held = await self._release(held) if FINALIZER in held.finalizers else held
            if not told:
                held = await self._save(
                    held, ("waits", f"{stop.guard}: {stop.because}"), guard=stop.guard, reason=stop.because[:1000]
                )
                if status.guard != stop.guard:
                    # Once for each guard: its reason may have another number each minute.
                    await tell(self._writer, held, "Warning", f"Kreflex{stop.guard}", stop.because, now)
            return held, RECHECK
        held = await self._save(
            held,
            ("refused", f"{stop.guard}: {stop.because}"),
            phase="Refused",
            guard=stop.guard,
            reason=stop.because[:1000],
            finished_at=now,
            **changes,
        )
        await tell(self._writer, held, "Warning", f"Kreflex{stop.guard}", stop.because, now)
        return await self._let_go(await self._release(held), timedelta()), None

    # Running

    async def _run(self, held: Experiment) -> tuple[Experiment, timedelta | None]:
        spec = held.wants
        # First of all, and by the clock alone: whatever else can't be read, no fault outlasts its time.
        late = self._late(held)
        if late:
            return await self._turn_back(held, late, abort=False), timedelta()
        held, left = await self._level(held)
        stop = await gates.must_end(held, spec, self._world, left) or self._lost(held)
        if stop is not None:
            return await self._turn_back(held, f"{stop.guard}: {stop.because}", abort=True), timedelta()
        held = await self._finish_intents(held)
        if self._round_due(held):
            return await self._round(held), timedelta()
        held = await self._watch(held)
        over = await self._over(held)
        if over:
            return await self._turn_back(held, over, abort=False), timedelta()
        status, now = held.status, self.now()
        # Whatever is waited for: the budget, the policies and spec.stop are asked again soon.
        waits = [_LOOK, *(one - now for one in (status.ends_at, status.next_round_at) if one is not None)]
        waits += [probe.every for probe in spec.probes if "During" in probe.when]
        return held, min([max(_STEP / 5, one) for one in waits if one > timedelta()] or [_STEP], default=_STEP)

    def _late(self, held: Experiment) -> str:
        """Tell whether its time is over, whatever it has come to; nothing is begun then that was only planned."""
        status, now = held.status, self.now()
        if status.revert_by is None or now >= status.revert_by - AGAIN:
            return "its TTL is over"
        planned = any(one.state == "Intended" for one in status.injected)
        return "its time is over" if planned and status.ends_at is not None and now >= status.ends_at else ""

    async def _level(self, held: Experiment) -> tuple[Experiment, Any]:
        """Ask the error budget, not more often than it can change."""
        now, spec = self.now(), held.wants
        asked = self._levels.get(held.uid)
        if spec.without_budget is not None or (asked is not None and now - asked < _BUDGET_EVERY):
            return held, None
        left = await gates.budget(held, held.status.slos, self._world)
        self._levels[held.uid] = now
        if left is None or left.left is None:
            return held, left
        level = Level(at=now, left=round(left.left, 4), burning=left.burning)
        last = held.status.budget[-1:]
        if last and (last[0].left, last[0].burning) == (level.left, level.burning):
            return held, left
        return await self._save(held, budget=(*held.status.budget, level)[-TIMELINE:]), left

    def _lost(self, held: Experiment) -> gates.Stop | None:
        """Tell whether the steady state is lost for longer than people accept."""
        wanted = {probe.name: probe.failures for probe in held.wants.probes}
        for one in held.status.probes:
            most = wanted.get(one.name, 0)
            if most and one.in_a_row >= most:
                return gates.Stop("SteadyState", f"{one.name} failed {one.in_a_row} times in a row")
        return None

    def _round_due(self, held: Experiment) -> bool:
        status, now = held.status, self.now()
        if status.next_round_at is None or status.next_round_at > now:
            return False
        # The first round has its time from when it begins, however late that is.
        return not status.rounds or status.ends_at is None or now < status.ends_at

    async def _round(self, held: Experiment) -> Experiment:
        """Choose, write down what is about to be done, and only then do it."""
        spec, status, now = held.wants, held.status, self.now()
        following = now + spec.interval if spec.interval is not None else None
        if not status.rounds and status.revert_by is not None and now + _longest(spec) >= status.revert_by:
            return await self._turn_back(held, "Late: its TTL would be over before it is", abort=True)
        if spec.fault.kind == "Engine":
            bodies, chosen = [], [{"metadata": {"uid": held.uid}}]
        else:
            bodies = await self._eligible(held)
            if status.rounds and sum(map(_is_ready, bodies)) < status.eligible:
                return await self._save(
                    held, ("passed", "those of the round before are not back yet"), next_round_at=following
                )
            # There may be fewer than when it was begun: a share of those that are left.
            of = min(status.eligible, len(bodies))
            choice = choose(held, bodies, (one.target.uid for one in status.injected), of)
            chosen = list(choice.chosen)
        planned, unfit = await self._plan(held, chosen)
        if sum(len(one.prior) + sum(map(len, one.moves)) for one in (*status.injected, *planned)) > PRIORS:
            unfit, planned = [f"the state before would take more than {PRIORS // 1024} KiB: hit less at a time"], []
        if len(status.injected) + len(planned) > INJECTIONS:
            unfit, planned = [f"more than {INJECTIONS} objects are not remembered: hit less"], []
        if not planned:
            text = "; ".join(unfit) or "nothing may be hit any more"
            if status.rounds:
                return await self._save(held, ("passed", text), next_round_at=following)
            return await self._turn_back(held, f"Targets: {text}", abort=True)
        held = await self._save(
            held,
            *(("unfit", text) for text in unfit),
            ("chosen", ", ".join(one.target.name for one in planned)),
            injected=(*status.injected, *planned),
            rounds=status.rounds + 1,
            ends_at=status.ends_at if status.rounds else now + _longest(spec),
            next_round_at=following,
        )
        return await self._finish_intents(held)

    async def _plan(self, held: Experiment, chosen: Iterable[JSON]) -> tuple[list[Injection], list[str]]:
        kind, planned, unfit = kind_of(held.wants.fault.kind, held.wants.targets), [], []
        for body in chosen:
            try:
                if held.wants.fault.kind == "Engine":
                    planned.append(await engine_intent(held, self.now(), self._reader))
                else:
                    planned.append(await intent(held, body, kind, self.now(), self._hands))
            except (UnfitError, TooMuchError) as error:
                unfit.append(f"{body['metadata'].get('name', held.name)}: {error}")
        return planned, unfit

    async def _finish_intents(self, held: Experiment) -> Experiment:
        """Do what stands there to be done: now, or left by somebody who died."""
        for index, one in enumerate(held.status.injected):
            if one.state == "Intended":
                held = await self._inject(held, index)
        return held

    async def _inject(self, held: Experiment, index: int) -> Experiment:
        one, hit = held.status.injected[index], self.now()
        at: datetime | None = hit
        try:
            with acting_until(held.status.deadline):
                note = await act_of(one.fault).inject(held, one, self._hands) or f"{one.target.ref} was hit before"
        except GoneError:
            # A pod that was to be killed has been, by whoever died before he could say so.
            at, note = (hit if one.fault == "PodKill" else None), f"{one.target.ref} is gone"
        except (ApiError, UnfitError) as error:
            if one.fault == "PodKill" and isinstance(error, ConflictError):
                return held
            if _is_outage(error):
                raise
            # Not as it was chosen, or the cluster says no: it is left alone, and looked at when all is taken back.
            at, note = None, f"{one.target.ref} was not hit: {error}"
        changed = one.model_copy(update={"state": "Injected", "injected_at": at, "note": note[:500]})
        return await self._save(held, ("fault", note), injected=_with(held.status.injected, index, changed))

    async def _watch(self, held: Experiment) -> Experiment:
        """Look at the probes that are due, at the remediation that is expected, and at what takes longer."""
        spec, now = held.wants, self.now()
        wanted = {probe.name: probe for probe in spec.probes if "During" in probe.when}
        due = [one for one in held.status.probes if one.name in wanted and _is_due(one, wanted[one.name], now)]
        turn = f"{held.status.run}/during"
        looks = [
            self._eyes.look(wanted[one.name], held, f"{turn}/{one.passed + one.failed}")
            for one in held.status.probes
            if one in due
        ]
        found = zip(due, await asyncio.gather(*looks), strict=True)
        told: list[tuple[Probed, Seen]] = [(one, seen) for one, seen in found if seen is not None]
        after = {one.name: noted(one, seen, self.now()) for one, seen in told}
        lines = [
            ("probe", f"{one.name} {'passes again' if after[one.name].in_a_row == 0 else 'fails'}: {seen.said}")
            for one, seen in told
            if (one.in_a_row == 0) != (after[one.name].in_a_row == 0)
        ]
        lost = sum(not seen.ok for one, seen in told if wanted[one.name].http is not None)
        lines += [("fault", text) for text in await self._keep_on(held) if text]
        healed = held.status.remediation
        if spec.expects is not None:
            healed = await healed_by(held, spec.expects.function, self._world.home, self._reader)
        if healed is not None and (
            held.status.remediation is None or healed.verdict != held.status.remediation.verdict
        ):
            lines.append(("healing", f"{healed.record}: {healed.verdict or healed.because}"))
        if not told and not lines and healed == held.status.remediation:
            return held
        probes = tuple(after.get(one.name, one) for one in held.status.probes)
        return await self._save(held, *lines, probes=probes, remediation=healed, lost=held.status.lost + lost)

    async def _keep_on(self, held: Experiment) -> list[str]:
        with acting_until(held.status.deadline):
            said = [await self._kept_on(held, one) for one in held.status.injected if one.state == "Injected"]
        known = {line.text for line in held.status.timeline}
        return [text for text in said if text[:500] not in known]

    async def _kept_on(self, held: Experiment, one: Injection) -> str:
        try:
            return await act_of(one.fault).keep_on(held, one, self._hands)
        except KreflexError as error:
            # What goes wrong with one thing keeps nothing from its end.
            return f"{one.target.ref}: {error}"

    async def _over(self, held: Experiment) -> str:
        """Tell why the faults end now; "" while they last."""
        spec, status, now = held.wants, held.status, self.now()
        lasted = status.ends_at is not None and now >= status.ends_at - _longest(spec) + spec.duration
        if spec.expects is None:
            return "its time is over" if lasted else ""
        verdict = status.remediation.verdict if status.remediation else None
        if verdict is not None and lasted:
            return f"{spec.expects.function}: {verdict}"
        return f"{spec.expects.function} has had its time" if status.ends_at and now >= status.ends_at else ""

    async def _turn_back(self, held: Experiment, because: str, *, abort: bool) -> Experiment:
        word = "aborted" if abort else "ended"
        return await self._save(
            held,
            (word, because),
            phase="Reverting",
            aborted=because[:500] if abort else None,
            reverting_at=self.now(),
            next_round_at=None,
        )

    # Reverting

    async def _revert(self, held: Experiment) -> tuple[Experiment, timedelta | None]:
        """Take back what is open, the last one first; what can't be is tried again, for as long as it takes."""
        stuck = waits = False
        untold_until = (held.status.reverting_at or self.now()) + _UNTOLD
        for index in reversed(range(len(held.status.injected))):
            one = held.status.injected[index]
            if not one.open:
                continue
            held = await self._still_at_work(held)
            back = await self._take_back(held, one)
            if back.state == WAITS and self.now() < untold_until:
                # All are put back before any is waited for.
                waits = True
                continue
            stuck |= not back.proven
            held = await self._noted(held, index, back)
        if stuck:
            until = held.status.revert_by
            return held, RECHECK if until is not None and self.now() > until + _STUBBORN else AGAIN
        return (held, _STEP) if waits else await self._afterwards(held)

    async def _still_at_work(self, held: Experiment) -> Experiment:
        """Keep others away while many things are taken back of which there is nothing to note yet."""
        until = held.status.deadline
        late = until is None or self.now() > until - self._terms.act_within / 2
        return await self._save(held) if late else held

    async def _take_back(self, held: Experiment, one: Injection) -> Back:
        act: Act = act_of(one.fault)
        try:
            return await act.revert(held.mark, one, self._hands)
        except ConflictError:
            return Back(proven=False, note="it changes while it is looked at")
        except GoneError:
            return Back(proven=True, state="Gone", note="it is gone by itself")
        except UnavailableError as error:
            gone = await self._gone_with(one.target.namespace, error)
            if gone:
                return Back(proven=True, state="Gone", note=f"{gone}, and it goes with it{_beyond(one)}"[:500])
            return Back(proven=False, note=str(error)[:500])
        except ApiError as error:
            return Back(proven=False, state="Stuck", note=f"it can't be taken back: {error}"[:500])

    async def _gone_with(self, namespace: str, error: UnavailableError) -> str:
        """Tell that we may do nothing in a namespace any more because it goes.

        Who is bound to it by a RoleBinding loses that to its deletion before our finalizers are looked at.
        """
        denied = isinstance(error, OutageError) and error.status == _FORBIDDEN
        return await ending(namespace, self._reader) if denied else ""

    async def _noted(self, held: Experiment, index: int, back: Back) -> Experiment:
        one = held.status.injected[index]
        if not back.proven:
            if one.note == back.note:
                return held
            changed = one.model_copy(update={"note": back.note[:500]})
            text = f"{one.target.ref}: {back.note}"
            if back.state == "Stuck":
                await tell(self._writer, held, "Warning", "KreflexStuck", text, self.now())
            return await self._save(held, ("stuck", text), injected=_with(held.status.injected, index, changed))
        note = (back.note or one.note)[:500]
        changed = one.model_copy(update={"state": back.state, "reverted_at": self.now(), "note": note})
        text = f"{one.target.ref} {'is as before' if back.state == 'Reverted' else back.state.lower()}"
        return await self._save(
            held,
            ("reverted", f"{text}: {back.note}" if back.note else text),
            injected=_with(held.status.injected, index, changed),
        )

    async def _afterwards(self, held: Experiment) -> tuple[Experiment, timedelta | None]:
        """Look at the steady state once more, until it is there or its time is over; then say how it went."""
        if held.spec is None:
            return await self._finish(held, (held.broken,)), None
        spec, status, now = held.spec, held.status, self.now()
        waiting = {probe.name: probe for probe in spec.probes if "After" in probe.when}
        probes = await asyncio.gather(*(self._last_look(one, waiting.get(one.name), held) for one in status.probes))
        healed = await self._healed(held)
        since = status.reverting_at or now
        missing = [one.name for one in probes if one.name in waiting and one.after is not True]
        # Whoever deletes it does not wait for how it ends.
        if missing and now < since + spec.recovery and not held.leaving:
            tried = any(one.tries != before.tries for one, before in zip(probes, status.probes, strict=True))
            return (await self._save(held, probes=tuple(probes)) if tried else held), _STEP
        held = await self._save(held, probes=tuple(probes), remediation=healed)
        return await self._finish(held, shortfalls(spec, held.status)), None

    async def _healed(self, held: Experiment) -> Healed | None:
        """Look a last time at the remediation that was expected."""
        expects, known = held.wants.expects, held.status.remediation
        if expects is None:
            return None
        try:
            return await healed_by(held, expects.function, self._world.home, self._reader) or known
        except UnavailableError as error:
            if not await self._gone_with(held.namespace, error):
                raise
            return known

    async def _last_look(self, probed: Probed, probe: Probe | None, held: Experiment) -> Probed:
        if probe is None or probed.after is True:
            return probed
        seen = await self._eyes.look(probe, held, f"{held.status.run}/after/{probed.tries}")
        if seen is None:
            return probed
        # The next look at a Job that has failed is at another one.
        tries = probed.tries + (probe.job is not None and not seen.ok)
        return probed.model_copy(update={"after": seen.ok, "tries": tries})

    async def _finish(self, held: Experiment, missing: Iterable[str]) -> Experiment:
        now, told = self.now(), list(missing)
        verdict: Verdict = "Failed" if told else "Passed"
        points = score(held.status.probes)
        reason = "; ".join(told) or f"the steady state held, and all is as before{_but_for(held.status.injected)}"
        held = await self._save(
            held,
            ("verdict", f"{verdict}: {reason}"),
            phase="Aborted" if held.status.aborted else "Done",
            verdict=verdict,
            score=points,
            reason=reason[:1000],
            guard=None,
            finished_at=now,
        )
        await tell(self._writer, held, "Warning" if told else "Normal", f"Kreflex{verdict}", reason, now)
        return await self._let_go(await self._release(held), timedelta())

    # Over

    async def _release(self, held: Experiment) -> Experiment:
        """Let others begin, and let it be deleted."""
        try:
            await turns.give_back(held, self._reader, self._writer)
        except UnavailableError as error:
            if not await self._gone_with(held.namespace, error):
                raise
        return await self.experiments.hold(held, hold=False)

    async def _again(self, held: Experiment) -> Experiment:
        """Begin anew with nothing of the last run but when it was."""
        status = held.status
        fresh = ExperimentStatus(run=status.run, past=(*status.past, *_span(status))[-_PAST:], waiting_since=self.now())
        return await self._save(replace(held, status=fresh), ("again", "its next run begins"))


def _just_over(experiment: Experiment, now: datetime) -> bool:
    status = experiment.status
    over = status.phase in FINAL and status.holder is None and status.finished_at is not None
    return over and status.finished_at is not None and now < status.finished_at + _NEWS


def _span(status: ExperimentStatus) -> tuple[Span, ...]:
    since, until = status.started_at, status.finished_at
    if since is None or until is None:
        return ()
    nodes = {name for one in status.injected for name in one.nodes}
    spaces = {name for one in status.injected for name in one.moves}
    names = tuple(sorted(nodes)[:PLACES])
    return (Span(since=since, until=until, nodes=names, namespaces=tuple(sorted(spaces)[:PLACES])),)


def _but_for(injected: Iterable[Injection]) -> str:
    """Name what could not be put back as it was. That a pod has gone says nothing: others come."""
    lost = [str(one.target.ref) for one in injected if one.state in {"Gone", "Foreign"} and one.target.kind != "Pod"]
    return f", but for {', '.join(lost)}" if lost else ""


def _beyond(one: Injection) -> str:
    """Name what an engine hits outside of its namespace, and so stays when that goes."""
    nodes = one.nodes if one.fault == "Engine" else ()
    return f": see that nothing of it is left on {', '.join(nodes)}" if nodes else ""


def _is_outage(error: Exception) -> bool:
    """Tell whether it may be over soon, and was about nothing that was asked."""
    return isinstance(error, UnavailableError) and not isinstance(error, DeniedError)


def _longest(spec: ExperimentSpec) -> timedelta:
    """Tell how long the faults last at most."""
    return max(spec.duration, spec.expects.within if spec.expects else timedelta())


def _with(injected: tuple[Injection, ...], index: int, changed: Injection) -> tuple[Injection, ...]:
    return (*injected[:index], changed, *injected[index + 1 :])


def _is_ready(body: JSON) -> bool:
    conditions = (body.get("status") or {}).get("conditions") or ()
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def _is_due(probed: Probed, probe: Probe, now: datetime) -> bool:
    return probed.last is None or now >= probed.last + probe.every
