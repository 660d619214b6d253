"""The reflex arc: from a signal to a decision, through the guards, to one action, its record and its verdict.

`Open → Acting → Applied → Done`; each change is conditioned on the record as it was read, so that of two replicas one
goes on and the other sees why not. A kill at any line leaves a record that the next call can take further.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, Generic, TypeVar, get_args, get_type_hints
from weakref import WeakValueDictionary

from kreflex import trace
from kreflex.actions import ACTIONS, Action, BlockedError
from kreflex.audit import Announcer, log
from kreflex.cluster import Reader, Transport, Writer, acting_until
from kreflex.courses import END, Courses, patience, signal_of
from kreflex.dealt import Dealt
from kreflex.decisions import Defer, Ineffective, Recovered, Refuse, Remember, Skip, Unknown, Verdict
from kreflex.due import is_due
from kreflex.durations import show_duration
from kreflex.errors import ApiError, ConflictError, DeniedError, GoneError, UnavailableError
from kreflex.gates import OpenGate, analysis_of
from kreflex.gitops import IN_GIT
from kreflex.guards import EARLY, RECHECK, Case, Refusal, guards, guards_of_steps, request_of
from kreflex.histories import Histories
from kreflex.kinds import path_in
from kreflex.leases import Leases
from kreflex.ledger import FULL, WITHDRAWN, Entry, Ledger, Standing
from kreflex.nodes import MARK, Node, owner_of, template_of
from kreflex.policy import Effective, Policies, combine, load_policies
from kreflex.prom import Metrics
from kreflex.providers import AskProvider
from kreflex.records import (
    Answer,
    Fault,
    Intent,
    Outcome,
    Owner,
    Record,
    Records,
    RemediationSpec,
    RemediationStatus,
    Target,
    VerdictName,
    experiment_of,
    fault_key,
    record_name,
)
from kreflex.settings import CoreSettings, Settings
from kreflex.signals import Answered, Due, NodeSignal, PodSignal, Resolved, Signal, WorkloadSignal, is_name
from kreflex.views import Ref, Workload, workload_view
from kreflex.world import Treatment, World

S = TypeVar("S", bound=Settings)
Decision = Action | Defer | Refuse | Skip
Asked = Signal | Due | Resolved | Answered

_TRIES = 3
_VERDICTS: dict[type, VerdictName] = {Recovered: "Recovered", Ineffective: "Ineffective", Unknown: "Unknown"}
_DEALT = "this fault has been dealt with"
# A refusal that waits shorter than this is not written anew: the record is due, and the next wake asks again.
_WORTH_A_WRITE = timedelta(seconds=30)
# What the cluster itself refuses, or Git, not one of our guards.
_STUBBORN = {"DisruptionBudget", "SeveralBudgets", "Failed", "Admission", *IN_GIT}


class BusyError(UnavailableError):
    """Another replica is at work on this fault. It may die, so the sender should come again."""


@dataclass(frozen=True)
class Reflex(Generic[S]):
    """A function: its name, its three questions and its settings."""

    name: str
    find: Callable[[World, S], AsyncIterator[Signal]]
    decide: Callable[[Any, World, S], Awaitable[Any]]
    recovered: Callable[[Treatment, World, S], Awaitable[Verdict | Defer]]
    settings: S

    @cached_property
    def heeds(self) -> tuple[type, ...]:
        """The kinds of signals that it is for, by the signature of `decide`."""
        annotated = get_type_hints(self.decide)["signal"]
        return get_args(annotated) or (annotated,)


@dataclass(frozen=True)
class Result:
    """What became of one signal; `changed` is the record if this call has changed it."""

    about: str
    outcome: Outcome
    because: str
    changed: Record | None = None


@dataclass(frozen=True)
class Subject:
    """The object that a signal means, and what it belongs to."""

    target: Ref
    owner: Workload | None
    template_hash: str
    controller: str
    experiment: str | None = None
    """Whose fault on purpose it is."""


class Arc(Generic[S]):
    """Carries signals of one function through the arc."""

    def __init__(self, reflex: Reflex[S], core: CoreSettings, transport: Transport) -> None:
        self.reflex = reflex
        self.core = core
        self.reader = Reader(transport, core.looked_after)
        writer = Writer(transport)
        self.writer = writer
        self.world = World(self.reader, Metrics(*core.metrics), reflex.name, core.kreflex_namespace)
        self.records = Records(self.reader, writer)
        self.histories = Histories(self.reader, writer)
        self.ledger = Ledger(self.reader, writer, core.kreflex_namespace, self._look)
        self.guards = guards(self.reader, self.world.metrics, self.ledger)
        self.announcer = Announcer(writer, reflex.name)
        self.leases = Leases(self.reader, writer)
        self.courses = Courses(self, guards_of_steps(self.reader))
        self._dealt = Dealt(time.monotonic)
        # Verdicts that were found while the ledger was asked: told with the answer that is next.
        self._settled: list[Record] = []
        self.holder = f"{socket.gethostname()}-{os.getpid()}-{uuid.uuid4().hex[:6]}"

    async def handle(self, signal: Asked, end: float | None = None) -> Result:
        """Carry one signal as far as it goes now; raises UnavailableError when the sender should come again.

        `end` is when the call has to be over, by the loop's clock; by default after the time budget.
        """
        END.set(asyncio.get_running_loop().time() + self.core.time_budget.total_seconds() if end is None else end)
        if self.core.looked_after and signal.namespace and signal.namespace not in self.core.looked_after:
            return Result(str(signal), "skipped", f"namespace {signal.namespace} is none of those in NAMESPACES")
        dealt = self._dealt.get(self._key(signal))
        if dealt is not None:
            return Result(str(signal), "skipped", dealt)
        for _ in range(_TRIES):
            try:
                return await self._go(signal)
            except ConflictError as error:
                # Somebody else changed the record, or the target is not as it was read: look again.
                log.info("arc.conflict", about=str(signal), error=str(error))
            except GoneError as error:
                log.info("arc.gone", about=str(signal), error=str(error))
        raise UnavailableError(f"{signal} changes faster than it can be read")

    async def opened(self, signal: WorkloadSignal) -> bool:
        """Tell whether a record says that Flagger may roll this version of a Canary back now."""
        path = path_in(signal.api_version, signal.kind, signal.namespace, signal.name)
        body = await self.reader.get(path) if path else None
        if body is None:
            return False
        canary = analysis_of(body)
        record = await self.records.unfinished(self.reflex.name, canary.ref.uid, canary.ref.namespace)
        if record is None or record.status.phase != "Applied" or record.status.intent is None:
            return False
        same = record.episode.partition("/")[0] == canary.version
        return same and record.status.intent.action == OpenGate.__name__

    def settled_on_the_way(self) -> list[Result]:
        """Hand over the verdicts that were found for other records than those asked for."""
        settled, self._settled = self._settled, []
        return [Result(str(r), "applied", r.status.verdict_reason or "", r) for r in settled]

    async def _begin(self, signal: Signal) -> Result:
        known = await self._marked(signal)
        if known is not None:
            return await self._advance(known, None)
        decision = await self.decide(signal)
        if isinstance(decision, Skip):
            if decision.final:
                self._dealt.keep(self._key(signal), decision.because)
            return Result(str(signal), "skipped", decision.because)
        subject = await self._subject(signal, decision)
        if subject is None:
            return Result(str(signal), "skipped", "it is gone")
        begun = await self._begun(subject)
        return await self._advance(begun, None) if begun is not None else await self._record(signal, subject, decision)

    async def _record(self, signal: Signal, subject: Subject, decision: Action | Defer | Refuse) -> Result:
        """Open the record of a fault, or find it, and go on from what it says."""
        try:
            spec = self._spec(subject, signal, decision.episode)
            record, new = await self._open(spec, subject.target.namespace or self.core.kreflex_namespace)
        except ApiError as error:
            if "NamespaceTerminating" in error.causes:
                return Result(str(signal), "skipped", "its namespace is being deleted")
            raise
        if new:
            # The only trace of who said it first: deliveries have ids, faults have keys.
            told = {"source": signal.source, "delivery": signal.delivery}
            made = {"decision": type(decision).__name__, "because": decision.because}
            log.info("remediation.opened", record=str(record), **told, **made)
        return await self._advance(record, decision)

    async def _open(self, spec: RemediationSpec, namespace: str) -> tuple[Record, bool]:
        """Open the record, and have the policies read meanwhile: every new one needs them next."""
        opening = self.records.open(spec, namespace)
        opened, _ = await asyncio.gather(opening, load_policies(self.reader), return_exceptions=True)
        # Policies that can't be read fail where they are needed; the record is there by then.
        if isinstance(opened, BaseException):
            raise opened
        return opened

    async def _marked(self, signal: Signal) -> Record | None:
        """Read the record that a node's mark names, if it has begun: what it looks like follows from what we did."""
        seen = signal.seen if isinstance(signal, NodeSignal) else None
        mark = seen.annotations.get(MARK) if isinstance(seen, Node) else None
        record = await self.records.get(self.core.kreflex_namespace, mark) if is_name(mark) else None
        mine = record is not None and record.spec.function == self.reflex.name and record.spec.target.uid == signal.uid
        return record if record is not None and mine and record.begun else None

    async def _begun(self, subject: Subject) -> Record | None:
        """Find what has begun with an object under another episode: it looks different while it is treated."""
        target = subject.target
        if target.kind == "Pod":
            return None
        where = target.namespace or self.core.kreflex_namespace
        return await self.records.unfinished(self.reflex.name, target.uid, where)

    def _key(self, signal: Asked) -> str:
        """Name the fault of a signal that knows its object's UID; "" for others, and for what asks for a verdict.

        The name belongs to it: whoever says a wrong one beside the UID has not shown that the object is gone.
        """
        if not isinstance(signal, Signal) or not signal.uid or not (isinstance(signal, PodSignal) or signal.episode):
            return ""
        return f"{signal.namespace}/{signal.name}/{fault_key(self.reflex.name, signal.uid, signal.episode)}"

    async def _go(self, signal: Asked) -> Result:
        if isinstance(signal, Resolved):
            return await self._check(signal)
        if isinstance(signal, Answered):
            return await self._hear(signal)
        return await (self._resume(signal) if isinstance(signal, Due) else self._begin(signal))

    async def _check(self, resolved: Resolved) -> Result:
        """Look at the verdict of what was done about a pod, if it is open; whatever else there is can wait."""
        name = record_name(self.reflex.name, resolved.name, fault_key(self.reflex.name, resolved.uid))
        record = await self.records.get(resolved.namespace, name)
        if record is None or record.status.phase != "Applied":
            return Result(str(resolved), "skipped", "nothing was done about it whose success is open")
        return await self._advance(record, None)

    async def _hear(self, answered: Answered) -> Result:
        """Write down what a provider's automation has answered, and go on from there."""
        record = await self.records.get(answered.namespace, answered.record)
        mine = record is not None and record.spec.function == self.reflex.name
        if record is None or not mine or not record.begun or not _asked(record):
            return Result(str(answered), "skipped", "nothing waits for that answer")
        said = Answer(
            outcome=answered.outcome, powered_off=answered.powered_off, message=answered.message, at=self.world.now()
        )
        known = record.status.answer
        if known is None or said.model_copy(update={"at": known.at}) != known:
            record = await self.records.change(record, self.world.now(), answer=said)
        return await self._advance(record, None)

    async def _resume(self, due: Due) -> Result:
        record = await self.records.get(due.namespace, due.record)
        if record is None or record.spec.function != self.reflex.name or record.status.phase == "Done":
            return Result(str(due), "skipped", "there is nothing left to do")
        if record.begun and not record.status.holder and not await self._is_due(record):
            return Result(str(record), record.status.outcome or "deferred", "it is not due yet")
        if record.status.phase != "Open":
            return await self._advance(record, None)
        since = self.world.now() - self.core.act_within
        timely = await self._is_due(record)
        if not timely and not await self.ledger.left_behind(record.uid, record.resource_version, since):
            # A change of the record may have woken us, our own write among them.
            return Result(str(record), record.status.outcome or "deferred", "it is not due yet")
        waiting = await self._still_waiting(record)
        return waiting or await self._advance(record, await self.decide(signal_of(record)))

    async def _is_due(self, record: Record) -> bool:
        return is_due(record, await load_policies(self.reader), self.world.now(), self.core.act_within)

    async def _advance(self, record: Record, decision: Decision | None) -> Result:
        """Go on from where the record says that the remediation is."""
        if record.final:
            self._dealt.keep(self._key(signal_of(record)), _DEALT)
            return Result(str(record), record.status.outcome or "skipped", _DEALT)
        if record.status.phase == "Applied":
            after = await self._prove(record)
            changed = after if after is not record else None
            return Result(str(record), "applied", after.status.verdict_reason or "it has been done", changed)
        if record.begun:
            return await self.courses.go_on(record)
        if record.status.phase == "Acting":
            return await self._take_over(record)
        if record.status.guard in _STUBBORN and not await self._is_due(record):
            # Each crash is an event; the cluster said no a moment ago, and asking it costs more than asking ourselves.
            return Result(str(record), record.status.outcome or "deferred", record.status.reason or "")
        return await self._consider(record, decision or await self.decide(signal_of(record)))

    async def _take_over(self, record: Record) -> Result:
        if record.status.deadline and self.world.now() < record.status.deadline:
            raise BusyError(f"{record.status.holder} is at work on {record} until {record.status.deadline:%H:%M:%S}")
        intent = record.status.intent
        if intent is not None and await ACTIONS[intent.action].done(record.spec.target.ref, intent.prior, self.reader):
            # By the attempt that was cut off, or by somebody else in the meantime: nobody can tell any more.
            return await self.applied(record, f"{intent.because} (found done when the attempt was taken over)")
        return await self._consider(record, await self.decide(signal_of(record)))

    async def _consider(self, record: Record, decision: Decision) -> Result:
        now = self.world.now()
        if isinstance(decision, Skip):
            return await self.close(record, decision.because)
        if isinstance(decision, Defer):
            return await self._wait(record, decision)
        if isinstance(decision, Refuse):
            return await self.refuse(record, Refusal(decision.cause, decision.because, now + decision.again))
        if decision.target.uid != record.spec.target.uid:
            return await self.close(record, "it was replaced", gone=True)
        if record.status.phase == "Done":
            # Open before it is admitted: of one that is Done the ledger believes that it holds nothing.
            record = await self._reopen(record, "Again", "the fault is back", now)
        policies = await load_policies(self.reader)
        case = self.case(record, decision, policies)
        refusal = None if decision.undo else await self._refused(case, policies)
        if refusal is not None:
            return await self.refuse(record, refusal, policies, case.policy)
        if decision.lasting:
            return await self.courses.begin(record, case)
        return await self._act(await self.claim(record, case), case)

    async def _wait(self, record: Record, decision: Defer) -> Result:
        """Look again later; the waker comes sooner if it finds the fault again.

        What was refused, and still would be, stays refused for its reason; only the time moves.
        """
        status, policies = record.status, await load_policies(self.reader)
        stamped = status.policy == policies.stamp(self.reflex.name, record.namespace)
        if status.phase == "Open" and status.guard and status.outcome not in {None, "deferred"} and stamped:
            again = Refusal(status.guard, status.reason or "", decision.until, status.outcome, status.plan_hash)
            return await self.refuse(record, again)
        return await self.refuse(record, Refusal(EARLY, decision.because, decision.until, "deferred"))

    async def _refused(self, case: Case, policies: Policies) -> Refusal | None:
        for guard in self.guards:
            refusal = await guard.refuses(case)
            if refusal is not None:
                return refusal
        denial = await self.ledger.admit(case.request(), policies.longest_memory())
        if denial is not None:
            return Refusal(denial.guard, denial.because, denial.until, "deferred")
        passed = [*(guard.name for guard in self.guards), "Ledger"]
        log.info(
            "guards.passed", record=str(case.record), guards=passed, policies=[p.key for p in case.policy.policies]
        )
        return None

    async def claim(self, record: Record, case: Case, **more: Any) -> Record:
        """Write down what is about to be done, by whom, and until when nobody else may."""
        now = self.world.now()
        deadline = now + self.core.act_within
        action = case.action
        intent = Intent(
            action=type(action).__name__,
            because=action.because[:1000],
            plan_hash=action.plan_hash(),
            prior=action.prior(),
            step=action.step_name if action.step else None,
        )
        changes: dict[str, Any] = {
            "phase": "Acting",
            "outcome": None,
            "guard": None,
            "reason": action.because[:1000],
            "holder": self.holder,
            "attempt": (record.status.attempt or 0) + 1,
            "deadline": deadline,
            "due_at": deadline,
            "intent": intent,
            "policies": tuple(policy.key for policy in case.policy.policies),
            "acted_at": now,
            # A fault that was over and is back: the record is open again.
            "settled_at": None,
            "proof": case.policy.proof,
            "prove_by": now + case.policy.prove_within,
            "plan_hash": None,
        }
        return await self.records.change(record, now, **changes | more)

    async def _act(self, record: Record, case: Case) -> Result:
        action = case.action
        if record.status.deadline is None or self.world.now() >= record.status.deadline:
            raise BusyError(f"the attempt on {record} took too long to begin; it is open to others now")
        try:
            with acting_until(record.status.deadline):
                await action.apply(self.writer, self.reader)
        except GoneError:
            return await self.close(_undone(record, case), "it went away by itself", gone=True)
        except ConflictError:
            # Not as it was read. Whoever changed it may have healed it: put it back and decide again.
            undone, now = _undone(record, case), self.world.now()
            # Nothing was tried, so that nothing is waited for the longer.
            uncounted = undone.status.model_copy(update={"attempt": case.record.status.attempt})
            undone = replace(undone, status=uncounted)
            reopened = await self._reopen(undone, "Changed", "it changed while it was looked at", now)
            log.info("remediation.changed", record=str(reopened))
            raise
        except BlockedError as blocked:
            refusal = Refusal(blocked.cause, str(blocked), self.world.now() + patience(record), "deferred")
            return await self.refuse(_undone(record, case), refusal)
        except ApiError as error:
            return await self._failed(record, case, error)
        return await self.applied(record, action.because)

    async def _failed(self, record: Record, case: Case, error: ApiError) -> Result:
        now = self.world.now()
        refusal = Refusal("Failed", str(error), now + patience(record), "failed")
        if isinstance(error, DeniedError):
            # People's own rule, as the guards are: no failure, and no reason to ask again soon.
            return await self.refuse(_undone(record, case), Refusal("Admission", str(error), now + RECHECK))
        if error.status < 500:
            return await self.refuse(_undone(record, case), refusal)
        # Whether it was done is not known, and it may yet happen: the intent stays, so that whoever comes next asks.
        if await case.action.done(record.spec.target.ref, case.action.prior(), self.reader):
            return await self.applied(record, case.action.because)
        return await self.refuse(record, refusal)

    def result(self, record: Record, outcome: Outcome, because: str, changed: Record | None = None) -> Result:
        """Tell what became of a record."""
        return Result(str(record), outcome, because, changed)

    async def applied(self, attempt: Record, because: str) -> Result:
        """Record that it is done, whatever others made of the record meanwhile: what is done is not forgotten."""
        record: Record | None = attempt
        for _ in range(_TRIES):
            if record is None or record.uid != attempt.uid:
                return Result(str(attempt), "applied", because)
            if record.status.phase == "Applied" or record.status.outcome == "applied":
                return Result(str(record), "applied", because)
            try:
                record = await self._mark_applied(record, attempt.status, because)
            except (ConflictError, GoneError):
                record = await self.records.get(attempt.namespace, attempt.name)
                continue
            log.info("remediation.applied", record=str(record), target=str(record.spec.target.ref), because=because)
            return Result(str(record), "applied", because, record)
        raise UnavailableError(f"{attempt} changes faster than it can be written")

    async def _mark_applied(self, record: Record, attempt: RemediationStatus, because: str) -> Record:
        now = self.world.now()
        return await self.records.change(
            record,
            now,
            phase="Applied",
            outcome="applied",
            guard=None,
            reason=because[:1000],
            intent=attempt.intent,
            steps=attempt.steps,
            proof=attempt.proof,
            prove_by=attempt.prove_by,
            acted_at=attempt.acted_at,
            deadline=None,
            due_at=now + (attempt.proof or timedelta()),
            applied_at=now,
            settled_at=None,
        )

    async def _prove(self, record: Record) -> Record:
        """Ask whether the fault is gone; past the time for proof the answer is Unknown."""
        now = self.world.now()
        status = record.status
        treatment = Treatment(
            record.spec.target.ref,
            record.spec.owner,
            status.acted_at or record.created,
            status.proof or timedelta(),
            record.episode,
            status.intent.action if status.intent else "",
            status.answer,
            status.steps,
            status.intent.prior if status.intent else {},
        )
        verdict = await self.reflex.recovered(treatment, self.world, self.reflex.settings)
        prove_by = status.prove_by or now
        if isinstance(verdict, Defer):
            if now < prove_by:
                return await self._prove_later(record, min(max(verdict.until, now), prove_by), verdict.because)
            verdict = Unknown(f"no proof by {prove_by:%H:%M:%S}: {verdict.because}")
        settled = (await self.settle(record, _VERDICTS[type(verdict)], verdict.because)).changed
        return settled or record

    async def settle(self, record: Record, verdict: VerdictName, because: str, guard: str | None = None) -> Result:
        """Write the verdict, and tell it to people; `guard` is the cause, where one is known."""
        now, status = self.world.now(), record.status
        if status.begun_at is not None:
            # Whoever wrote that it is applied may have died before he gave the Lease back.
            await self.courses.release(record)
        record = await self.records.change(
            record,
            now,
            phase="Done",
            outcome="applied",
            guard=guard,
            verdict=verdict,
            verdict_reason=because[:1000],
            holder=None,
            deadline=None,
            due_at=None,
            settled_at=now,
        )
        log.info("remediation.settled", record=str(record), verdict=verdict, because=because)
        done = ACTIONS[status.intent.action].past if status.intent else "Treated"
        note = f"{verdict}: {because}. {done} {record.spec.target.ref} because {status.reason}"
        await self.announcer.tell(record, "Normal" if verdict == "Recovered" else "Warning", f"Kreflex{verdict}", note)
        return Result(str(record), "applied", because, record)

    async def _prove_later(self, record: Record, until: datetime, because: str) -> Record:
        now = self.world.now()
        due_at = record.status.due_at
        if due_at is not None and (due_at > now or until - now < _WORTH_A_WRITE):
            return record
        return await self.records.change(record, now, due_at=until, verdict_reason=because[:1000])

    async def refuse(
        self,
        record: Record,
        refusal: Refusal,
        policies: Policies | None = None,
        asked: Effective | None = None,
        *,
        spent: bool = False,
    ) -> Result:
        """Write down why nothing is done now; what is known already is written only if an admission was `spent`."""
        policies = policies or await load_policies(self.reader)
        stamp = policies.stamp(self.reflex.name, record.namespace)
        status, now = record.status, self.world.now()
        same = (status.phase, status.outcome, status.guard, status.plan_hash) == (
            "Open",
            refusal.outcome,
            refusal.guard,
            refusal.plan_hash,
        )
        waits = status.due_at is not None and status.due_at > now
        if same and not spent and status.policy == stamp and (waits or refusal.until - now < _WORTH_A_WRITE):
            return Result(str(record), refusal.outcome, refusal.because)
        record = await self.records.change(
            record,
            now,
            phase="Open",
            outcome=refusal.outcome,
            guard=refusal.guard,
            reason=refusal.because[:1000],
            plan_hash=refusal.plan_hash,
            due_at=refusal.until,
            policy=stamp,
            policies=tuple(p.key for p in asked.policies) if asked else record.status.policies,
            decided_at=now,
            deadline=None,
            holder=None,
            settled_at=None,
        )
        if not same:
            log.info(f"remediation.{refusal.outcome}", record=str(record), guard=refusal.guard, because=refusal.because)
            if refusal.guard != EARLY:
                await self.announcer.tell(record, "Warning", f"Kreflex{refusal.guard}", refusal.because)
        return Result(str(record), refusal.outcome, refusal.because, record if not same else None)

    async def _reopen(self, record: Record, guard: str, because: str, due_at: datetime) -> Record:
        now = self.world.now()
        return await self.records.change(
            record,
            now,
            phase="Open",
            outcome="deferred",
            guard=guard,
            reason=because,
            due_at=due_at,
            decided_at=now,
            deadline=None,
            holder=None,
            settled_at=None,
        )

    async def close(self, record: Record, because: str, *, gone: bool = False) -> Result:
        """Close a record without an action: the fault is over, or its object is gone."""
        intent = record.status.intent
        if intent is not None and await ACTIONS[intent.action].done(record.spec.target.ref, intent.prior, self.reader):
            # An attempt that was cut off may have done it after all.
            return await self.applied(record, intent.because)
        if intent is not None:
            # It stays only of an attempt whose end nobody knows; of a push not even the cluster can tell.
            because = f"{because}; an attempt whose end is not known may have done it ({intent.action})"
        now = self.world.now()
        gone = gone or await self._target_gone(record)
        record = await self.records.change(
            record,
            now,
            phase="Done",
            outcome="skipped",
            guard="Gone" if gone else None,
            reason=because[:1000],
            due_at=None,
            deadline=None,
            holder=None,
            settled_at=now,
            decided_at=now,
        )
        log.info("remediation.skipped", record=str(record), because=because)
        return Result(str(record), "skipped", because, record)

    async def _target_gone(self, record: Record) -> bool:
        target = record.spec.target
        if target.kind not in {"Node", "Pod"}:
            return self.reader.knows(target.ref) and not await self.reader.is_there(target.ref)
        node = target.kind == "Node"
        found = await (self.reader.node(target.name) if node else self.reader.pod(target.namespace, target.name))
        return found is None or found.ref.uid != target.uid

    async def _still_waiting(self, record: Record) -> Result | None:
        """Ask the ledger first, where the ledger denied: in a storm most records wait, and that must cost little."""
        if record.status.guard not in FULL:
            return None
        policies = await load_policies(self.reader)
        if record.status.policy != policies.stamp(self.reflex.name, record.namespace):
            return None
        asked = combine(tuple(p for p in policies.all if p.key in record.status.policies))
        denial = await self.ledger.full(request_of(record, asked), policies.longest_memory())
        if denial is None:
            return None
        return await self.refuse(record, Refusal(denial.guard, denial.because, denial.until, "deferred"), policies)

    async def _look(self, entry: Entry) -> Standing:
        """Tell the ledger how one of its entries stands; the verdict is asked for on the way, if it is due or open."""
        return await self.reader.share(f"look {entry.uid} {entry.version}", lambda: self._look_now(entry))

    async def _look_now(self, entry: Entry) -> Standing:
        record = await self.records.get(entry.namespace, entry.record)
        if record is None or record.uid != entry.uid:
            return Standing("Unknown")
        if record.status.phase == "Applied" and record.spec.function == self.reflex.name:
            try:
                after = await self._prove(record)
            except ConflictError:
                return Standing("Applied", record.status.due_at)
            if after.status.phase == "Done":
                self._settled.append(after)
            record = after
        return standing(record, entry.version)

    async def decide(self, signal: Signal) -> Decision:
        decision: Decision | Remember = await self.reflex.decide(signal, self.world, self.reflex.settings)
        return await self._remember(decision) if isinstance(decision, Remember) else decision

    async def _remember(self, told: Remember) -> Skip:
        """Write down how a release goes; for the rest of the arc there is nothing to do."""
        try:
            await self.histories.note(told.workload, told.noted)
        except ApiError as error:
            if "NamespaceTerminating" in error.causes:
                return Skip("its namespace is being deleted")
            raise
        log.info("release.remembered", workload=str(told.workload), because=told.because)
        return Skip(told.because)

    async def _subject(self, signal: Signal, decision: Decision) -> Subject | None:
        if isinstance(decision, Action):
            broken = experiment_of(*(noted for _, noted in decision.annotations()))
            return Subject(decision.target, decision.owner, decision.template_hash, decision.controller, broken)
        if isinstance(decision, Defer | Refuse) and decision.about is not None:
            return Subject(decision.about.ref, decision.about, "", "", experiment_of(decision.about.annotations))
        if isinstance(signal, NodeSignal):
            node = await self.reader.node(signal.name)
            return None if node is None or (signal.uid and node.ref.uid != signal.uid) else await self._fleet_part(node)
        if isinstance(signal, WorkloadSignal):
            return await self._workload(signal)
        pod = await self.reader.pod(signal.namespace, signal.name)
        if pod is None or (signal.uid and pod.ref.uid != signal.uid):
            return None
        controller = pod.controller.uid if pod.controller else ""
        top = await self.reader.top_owner(pod)
        broken = experiment_of(pod.annotations, *(() if top is None else (top.annotations,)))
        return Subject(pod.ref, top, pod.template_hash, controller, broken)

    async def _workload(self, signal: WorkloadSignal) -> Subject | None:
        path = path_in(signal.api_version, signal.kind, signal.namespace, signal.name)
        body = await self.reader.get(path) if path else None
        if body is None or (signal.uid and body["metadata"]["uid"] != signal.uid):
            return None
        view = workload_view(body)
        return Subject(view.ref, view, "", "", experiment_of(view.annotations))

    async def _fleet_part(self, node: Node) -> Subject:
        upkeep = await self.world.upkeep(node)
        pool = node.pool("" if isinstance(upkeep, str) else upkeep.pool_label)
        return Subject(node.ref, owner_of(pool), template_of(node), "", experiment_of(node.annotations))

    def _spec(self, subject: Subject, signal: Signal, episode: str) -> RemediationSpec:
        owner = None
        if subject.owner is not None:
            whole = Target.of(subject.owner.ref).model_dump()
            owner = Owner(**whole, template_hash=subject.template_hash, controller=subject.controller)
        place = trace.current()
        return RemediationSpec(
            function=self.reflex.name,
            target=Target.of(subject.target),
            owner=owner,
            fault=Fault(
                key=fault_key(self.reflex.name, subject.target.uid, episode),
                summary=signal.summary[:1000],
                experiment=subject.experiment,
                traceparent=place.traceparent if place is not None else None,
            ),
        )

    def case(self, record: Record, action: Action, policies: Policies) -> Case:
        # Not the record's: those of nodes live in Kreflex' own.
        policy: Effective = policies.for_object(self.reflex.name, action.target.namespace, action.labels)
        return Case(action, policy, record, self.core.kreflex_namespace, self.world.now())


def _undone(record: Record, case: Case) -> Record:
    """Take back the intent of an attempt that was answered no; what an earlier one did is still not known."""
    status = record.status.model_copy(update={"intent": case.record.status.intent})
    return replace(record, status=status)


def _asked(record: Record) -> bool:
    """Tell whether a provider was asked, or was about to be: who answers before that knows nothing."""
    status, asking = record.status, AskProvider.__name__
    claimed = status.intent is not None and status.intent.step == asking
    return claimed or any(step.action == asking for step in status.steps)


def standing(record: Record, admitted: str) -> Standing:
    """Tell whether an admitted remediation is in flight, settled, or never acted."""
    status = record.status
    if status.phase == "Done":
        return Standing((status.verdict or "Unknown") if status.outcome == "applied" else WITHDRAWN)
    if status.phase == "Open" and record.resource_version != admitted:
        return Standing(WITHDRAWN)
    # When an open one was to be looked at again says nothing about when its slot is free: it is about to act.
    due_at = None if status.phase == "Open" else status.due_at
    return Standing("Applied" if status.phase == "Applied" else "", due_at)


async def handle_all(
    arc: Arc[S], signals: tuple[Asked, ...], budget: timedelta
) -> tuple[list[Result], list[Exception]]:
    """Handle many signals at a time, within limits; what the budget leaves no time to begin comes back as one error."""
    loop = asyncio.get_running_loop()
    end = loop.time() + budget.total_seconds()
    waiting, answers = iter(enumerate(signals)), dict[int, Result | Exception]()
    turns = WeakValueDictionary[str, asyncio.Lock]()

    async def work() -> None:
        while loop.time() < end and (given := next(waiting, None)) is not None:
            index, signal = given
            # Two alerts about one pod are common, and the second would only find that the first is being dealt with.
            turn = turns.setdefault(str(signal), asyncio.Lock())
            async with turn:
                answers[index] = await _answered(arc, signal, end)
            # What is known already is answered without a pause; probes must not wait for all of it.
            await asyncio.sleep(0)

    if len(signals) == 1:
        # Most events are about one object, and most of these lead to nothing: no task of its own, no turn.
        answers[0] = await _answered(arc, signals[0], end)
    # A few that take one after the other: with a task for each, one large body would fill the memory of a small pod.
    else:
        await asyncio.gather(*(work() for _ in range(min(arc.core.concurrency, len(signals)))))
    told = [answers[index] for index in sorted(answers)]
    results = [one for one in told if isinstance(one, Result)]
    errors = [one for one in told if isinstance(one, Exception)]
    if left := len(signals) - len(told):
        errors.append(UnavailableError(f"{left} signals did not fit into {show_duration(budget)}; send them again"))
    # They wait for an answer that tells results: with errors it tells these.
    return results if errors else results + arc.settled_on_the_way(), errors


async def _answered(arc: Arc[S], signal: Asked, end: float) -> Result | Exception:
    try:
        with trace.span(type(signal).__name__, signal.trace) as span:
            result = await arc.handle(signal, end)
            span.tell({"kreflex.about": result.about, "kreflex.outcome": result.outcome})
            return result
    except Exception as error:  # noqa: BLE001 - it is handed back: one signal must not lose the others
        return error
