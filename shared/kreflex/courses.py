"""Long remediations: one step after the other, as many as fit into a call, each from what the cluster shows now.

A record whose course has begun stays Acting until the course is over. While nobody is at work on it, it has no holder,
and its `dueAt` says when somebody should go on. A step that a kill has cut off is found in the intent: the function is
told of it, and looks at the cluster for what came of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextvars import ContextVar
from dataclasses import replace
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kreflex.actions import Action, BlockedError, HopelessError
from kreflex.audit import log
from kreflex.cluster import acting_until
from kreflex.decisions import Defer, Refuse, Skip
from kreflex.errors import ApiError, ConflictError, DeniedError, GoneError, UnavailableError
from kreflex.guards import EARLY, Case, Guard, Refusal
from kreflex.leases import HOLDER, lease_of
from kreflex.policy import load_policies
from kreflex.records import Outcome, Record, Taken
from kreflex.settings import Settings
from kreflex.signals import RECORD, Course, NodeSignal, PodSignal, Signal, WorkloadSignal

if TYPE_CHECKING:
    from kreflex.reflex import Arc, Decision, Result

S = TypeVar("S", bound=Settings)

# When, by the loop's clock, the call ends in which signals are handled.
END: ContextVar[float] = ContextVar("END")
CUT_OFF = "cut off while it was done"
LEASE, CHANGED = "Lease", "Changed"
_RECHECK = timedelta(minutes=1)
_AGAIN = timedelta(seconds=5)
_SHORTEST = timedelta(milliseconds=200)
# What is left of a call when it is ended: the time of a write or two.
_RESERVE = 2.0
# A wait that is not worth another wake.
_SOON = timedelta(seconds=5)
_STUMBLES = 5
# Then people have to look; waits that double come to an hour or so.
_MOST_ATTEMPTS = 10
_BLOCKED_FIRST, _BLOCKED_MOST = timedelta(seconds=30), timedelta(minutes=10)
# Renewed in each call, so longer than the longest wait and the waker's round; not for long in the way of others if we
# die before it is given back.
_LEASE_LASTS = _BLOCKED_MOST + timedelta(minutes=2)
_SLACK = timedelta(seconds=1)


class Courses(Generic[S]):
    """Carries the long remediations of one arc on."""

    def __init__(self, arc: Arc[S], guards: Sequence[Guard]) -> None:
        self._arc = arc
        # Those that are asked before each step. What has begun is not held up by what only stops new work.
        self._guards = guards
        # Whose record names us as its holder, and is in the hands of another task of this process.
        self._busy: set[str] = set()
        # Those that wait for something to come soon; who waits must not keep others from being served.
        self._waiting = 0

    async def begin(self, record: Record, case: Case) -> Result:
        """Take the first step of a remediation that has been admitted."""
        now = self._arc.world.now()
        taken = await self._hold(record)
        if taken is not None and not case.action.undo:
            # Written each time: a record that changes gives back what the ledger has just given.
            return await self._arc.refuse(record, Refusal(LEASE, taken, now + _RECHECK, "deferred"), spent=True)
        claimed = await self._claim_first(record, case)
        with _Held(self._busy, record.uid):
            return await self._run(await self._do(claimed, case), taken)

    async def _claim_first(self, record: Record, case: Case) -> Record:
        """Claim the first step. Who comes too late for the whole course leaves no Lease behind."""
        now = self._arc.world.now()
        try:
            return await self._arc.claim(record, case, begun_at=now, steps=(), answer=None)
        except ConflictError:
            seen = await self._arc.records.get(record.namespace, record.name)
            if seen is None or seen.status.phase in {"Applied", "Done"}:
                await self.release(record)
            raise

    async def go_on(self, record: Record) -> Result:
        """Carry on what has begun, unless somebody is at work on it."""
        holder, deadline = record.status.holder, record.status.deadline
        mine = holder == self._arc.holder and record.uid not in self._busy
        if record.uid in self._busy and not holder:
            # We have let go of it a moment ago, and this is who was woken by that.
            raise UnavailableError(f"{record} is about to be free; come again")
        if record.uid in self._busy or (holder and not mine and deadline and self._arc.world.now() < deadline):
            return self._told(record, "deferred", f"{holder} is at work on it until {deadline:%H:%M:%S}")
        with _Held(self._busy, record.uid):
            return await self._run(cut_off(record) if holder else record, await self._hold(record))

    async def _run(self, record: Record | Result, taken: str | None) -> Result:
        """Take as many steps as fit; `taken` tells who else has the node's Lease, for what is undone all the same."""
        stumbles = 0
        while isinstance(record, Record):
            decision, steps = await self._arc.decide(signal_of(record)), record.status.steps
            if taken is not None and isinstance(decision, Action) and not decision.undo:
                return await self._leave(record, _RECHECK, LEASE, taken)
            record = await self._next(record, decision)
            if isinstance(record, Record):
                idle = isinstance(decision, Action) and record.status.steps == steps
                stumbles = stumbles + 1 if idle else 0
                if stumbles >= _STUMBLES:
                    return await self._leave(record, _AGAIN, CHANGED, "it changes while it is looked at")
        return record

    async def _next(self, record: Record, decision: Decision) -> Record | Result:
        """Do what was decided; the record is given back if another decision may follow in this call."""
        if isinstance(decision, Skip):
            return await self._over(record, decision.because)
        if isinstance(decision, Refuse):
            return await self._give_up(record, decision)
        if isinstance(decision, Defer):
            return await self._pause(record, decision)
        if decision.target.uid != record.spec.target.uid:
            return await self._over(record, "it was replaced")
        if _left() < timedelta():
            return await self._leave(record, timedelta(), EARLY, decision.because)
        case = self._arc.case(record, decision, await load_policies(self._arc.reader))
        refusal = None if decision.undo else await self._held_up(case)
        if refusal is not None:
            wait = min(refusal.until - self._arc.world.now(), _RECHECK)
            return await self._leave(record, wait, refusal.guard, refusal.because)
        return await self._do(await self._arc.claim(record, case), case)

    async def _held_up(self, case: Case) -> Refusal | None:
        for guard in self._guards:
            refusal = await guard.refuses(case)
            if refusal is not None:
                return refusal
        return None

    async def _do(self, record: Record, case: Case) -> Record | Result:
        """Take a step that is claimed. What went wrong is told, and tried again later."""
        action, now = case.action, self._arc.world.now()
        if record.status.deadline is None or now >= record.status.deadline:
            raise UnavailableError(f"the attempt on {record} took too long to begin; it is open to others now")
        try:
            with acting_until(record.status.deadline):
                note = await action.apply(self._arc.writer, self._arc.reader, record.name)
        except (ConflictError, GoneError) as error:
            log.info("course.changed", record=str(record), error=str(error))
            return record
        except HopelessError as hopeless:
            return await self._give_up(record, Refuse(str(hopeless), hopeless.cause))
        except BlockedError as blocked:
            return await self._hindered(record, case, patience(record), blocked.cause, str(blocked))
        except DeniedError as denied:
            return await self._hindered(record, case, _RECHECK, "Admission", str(denied))
        except ApiError as error:
            if isinstance(error, UnavailableError):
                # Whether it was done is not known: whoever comes next finds the intent.
                raise
            return await self._hindered(record, case, patience(record), "Failed", str(error))
        return await self._taken(record, action, note)

    async def _hindered(self, record: Record, case: Case, wait: timedelta, cause: str, because: str) -> Result:
        """Try a step again later, but not for ever: what has begun keeps its slot, and people think that it goes on.

        A node has rules of its own for what takes too long, and what was done to it has to be taken back.
        """
        attempts = record.status.attempt or 0
        if attempts < _MOST_ATTEMPTS or case.action.undo or record.spec.target.kind == "Node":
            return await self._leave(record, wait, cause, because)
        return await self._give_up(record, Refuse(f"{because}. It was tried {attempts} times", cause))

    async def _taken(self, record: Record, action: Action, note: str) -> Record | Result:
        taken = noted(record, action.step_name, self._arc.world.now(), note)
        log.info("course.step", record=str(record), step=action.step_name, because=action.because, note=note)
        if not any(step.action == action.step_name for step in record.status.steps):
            # The object's own history is read before its record is.
            told = f"{action.because}. {note}" if note not in {"", action.because} else action.because
            await self._arc.announcer.tell(taken, "Normal", f"Kreflex{type(action).__name__}", told)
        return taken if action.step else await self._end(taken, action.because)

    async def _pause(self, record: Record, decision: Defer) -> Record | Result:
        """Wait here for what comes soon; what takes longer is left to whoever is woken for it."""
        wait = max(decision.until - self._arc.world.now(), _SHORTEST)
        if _left() < wait <= _SOON:
            # The change of the record wakes the next call, which waits in our place. One that came before it is due
            # would leave it to the waker, a minute later.
            return await self._leave(record, timedelta(), EARLY, decision.because)
        if _left() < wait or self._waiting >= self._arc.core.concurrency // 2:
            return await self._leave(record, wait, EARLY, decision.because)
        self._waiting += 1
        try:
            await asyncio.sleep(wait.total_seconds())
        finally:
            self._waiting -= 1
        return record

    async def _leave(self, record: Record, wait: timedelta, guard: str, because: str) -> Result:
        """Let go of the record until it is due; nothing is written if it says so already."""
        now, status = self._arc.world.now(), record.status
        soon = status.due_at is not None and now < status.due_at <= now + wait + _SLACK
        if status.holder is None and status.guard == guard and soon:
            return self._told(record, "deferred", because)
        changed = await self._arc.records.change(
            record,
            now,
            outcome="deferred",
            guard=guard,
            reason=because[:1000],
            holder=None,
            deadline=None,
            intent=None,
            due_at=now + max(wait, timedelta()),
            decided_at=now,
        )
        if guard not in {EARLY, status.guard}:
            log.info("course.held_up", record=str(record), guard=guard, because=because)
            await self._arc.announcer.tell(changed, "Warning", f"Kreflex{guard}", because)
        return self._told(changed, "deferred", because, changed)

    async def _over(self, record: Record, because: str) -> Result:
        """End a course: if nothing was done there is nothing to prove."""
        if record.status.steps:
            return await self._end(record, because)
        await self.release(record)
        return await self._arc.close(record, because)

    async def _end(self, record: Record, because: str) -> Result:
        span = (record.status.prove_by or self._arc.world.now()) - (record.status.acted_at or self._arc.world.now())
        now = self._arc.world.now()
        # The time for proof begins now: a drain may have taken longer than all of it.
        status = record.status.model_copy(update={"acted_at": now, "prove_by": now + max(span, timedelta())})
        result = await self._arc.applied(replace(record, status=status), because)
        await self.release(record)
        return result

    async def _give_up(self, record: Record, refusal: Refuse) -> Result:
        """End a course that has failed: what can be undone has been undone, and a person has to look."""
        now = self._arc.world.now()
        if not record.status.steps:
            await self.release(record)
            return await self._arc.refuse(record, Refusal(refusal.cause, refusal.because, now + refusal.again))
        return await self._arc.settle(record, "Ineffective", refusal.because, guard=refusal.cause)

    async def _hold(self, record: Record) -> str | None:
        """Take or renew the node's Lease; tell who has it otherwise. Only what is done to nodes needs one."""
        target = record.spec.target
        if target.kind != "Node":
            return None
        return await self._arc.leases.hold(lease_of(target.name), HOLDER + record.name, _LEASE_LASTS, target.ref)

    async def release(self, record: Record) -> None:
        """Give the node's Lease back, if it is this record's."""
        if record.spec.target.kind != "Node":
            return
        await self._arc.leases.release(lease_of(record.spec.target.name), HOLDER + record.name)

    def _told(self, record: Record, outcome: Outcome, because: str, changed: Record | None = None) -> Result:
        return self._arc.result(record, outcome, because, changed)


def _left() -> timedelta:
    """Tell how much time this call has for more; without a limit, none but for what is under way."""
    end = END.get(None)
    return timedelta(seconds=end - _RESERVE - asyncio.get_running_loop().time() if end is not None else 0)


class _Held:
    """Keeps one task of this process from another's record."""

    def __init__(self, busy: set[str], uid: str) -> None:
        self._busy = busy
        self._uid = uid

    def __enter__(self) -> None:
        self._busy.add(self._uid)

    def __exit__(self, *_: object) -> None:
        self._busy.discard(self._uid)


def noted(record: Record, action: str, now: datetime, note: str) -> Record:
    """Add a step to those that were taken; it is written with the next change of the record."""
    steps = {step.action: step for step in record.status.steps}
    earlier = steps.pop(action, None)
    first, count = (earlier.first, earlier.count + 1) if earlier else (now, 1)
    # The newest last, so that the order tells which came after which.
    steps[action] = Taken(action=action, first=first, last=now, count=count, note=note[:300])
    # What fails after a success is waited for as at first.
    changes = {"steps": tuple(steps.values()), "attempt": 0}
    return replace(record, status=record.status.model_copy(update=changes))


def cut_off(record: Record) -> Record:
    """Count the step that somebody was about to take when he died: it may have been taken."""
    intent, acted_at = record.status.intent, record.status.acted_at
    if intent is None or intent.step is None or acted_at is None:
        return record
    return noted(record, intent.step, acted_at, CUT_OFF)


def patience(record: Record) -> timedelta:
    """Tell how long to wait after an attempt that the cluster did not let through; longer each time."""
    doublings = max(0, min((record.status.attempt or 1) - 1, 8))
    return min(_BLOCKED_FIRST * (1 << doublings), _BLOCKED_MOST)


def signal_of(record: Record) -> Signal:
    """Make the signal again from which a record came, or could have come."""
    target, summary = record.spec.target, record.spec.fault.summary
    if target.kind == "Pod":
        return PodSignal(target.namespace, target.name, target.uid, summary=summary, source=RECORD)
    told: dict[str, Any] = {"summary": summary, "source": RECORD, "episode": record.episode, "course": _course(record)}
    if target.kind == "Node":
        return NodeSignal(target.name, target.uid, **told)
    return WorkloadSignal(target.api_version, target.kind, target.namespace, target.name, target.uid, **told)


def _course(record: Record) -> Course | None:
    status = record.status
    # One that was put back before its first step has begun nothing.
    if not record.begun or status.begun_at is None:
        return None
    return Course(record.name, status.begun_at, status.steps, status.answer)
