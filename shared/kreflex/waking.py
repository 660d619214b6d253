"""The waker's round: what is due, what looks ill without a record, and which records are old enough to go.

It may write nothing but records; what is to be done, the functions decide when they are called.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from pydantic import ValidationError

from kreflex import calls, trace
from kreflex.audit import log
from kreflex.cluster import Reader, Writer
from kreflex.due import is_due
from kreflex.errors import ConflictError, GoneError, KreflexError, UnavailableError
from kreflex.guards import EARLY
from kreflex.ingress import cloudevents
from kreflex.ledger import FULL, Book, left_behind, read_ledger
from kreflex.policy import GROUP, VERSION, Policies, load_policies
from kreflex.records import Record, delete_record, fault_key, read_record
from kreflex.reflex import Reflex
from kreflex.settings import CoreSettings
from kreflex.signals import NodeSignal, Signal, WorkloadSignal
from kreflex.views import JSON
from kreflex.world import World

_CHUNK = 50
# How many are drawn for one place: the first may find its pod healed or gone.
_DRAWN = 2
_SOURCE = f"{GROUP}/functions/waker"
_FIRST = {"Applied": 0, "Acting": 1, "Open": 2, "Done": 3}


@dataclass
class Round:
    """What one round has found: who is to be called for what, and which records may go."""

    book: Book | None
    due: dict[str, list[Record]] = field(default_factory=lambda: defaultdict(list))
    queued: list[Record] = field(default_factory=list)
    resting: list[Record] = field(default_factory=list)
    known: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    early: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    old: list[Record] = field(default_factory=list)
    found: dict[str, list[Signal]] = field(default_factory=lambda: defaultdict(list))
    ill: set[str] = field(default_factory=set)
    blind: list[str] = field(default_factory=list)
    errands: dict[str, list[JSON]] = field(default_factory=dict)

    def left_behind(self, record: Record, since: datetime) -> bool:
        """Tell whether a kill between its admission and its claim has left a record that holds a slot."""
        if self.book is None or record.status.phase != "Open":
            return False
        return left_behind(self.book, record.uid, record.resource_version, since)


class Waker:
    """Looks at all records and asks each function's `find`; `urls` tells where each function listens."""

    def __init__(
        self,
        urls: Mapping[str, str],
        reflexes: Sequence[Reflex[Any]],
        world: World,
        writer: Writer,
        core: CoreSettings,
        retain: timedelta,
        errands: Mapping[str, Callable[[World], AsyncIterator[JSON]]] | None = None,
    ) -> None:
        self._urls = urls
        self._reflexes = reflexes
        self._world = world
        self._reader: Reader = world.cluster
        self._writer = writer
        self._core = core
        self._retain = retain
        self._errands = errands or {}

    async def look(self) -> Round:
        """Look at the cluster, without calling or changing anything."""
        round_, policies = Round(await self._ledger()), await load_policies(self._reader)
        now = self._world.now()
        async for body in self._reader.list(f"/apis/{GROUP}/{VERSION}/remediations"):
            try:
                record = read_record(body)
            except ValidationError as error:
                # Somebody else's object must not keep the others from being woken.
                log.warning("waker.unreadable", record=body["metadata"]["name"], error=str(error))
                spec = body.get("spec", {})
                round_.known[spec.get("function", "")].add(spec.get("fault", {}).get("key", ""))
                continue
            self._sort(record, round_, policies, now)
        for record in turns(round_.queued, round_.resting, policies, now):
            round_.due[record.spec.function].append(record)
        for reflex in self._reflexes:
            try:
                await self._find(reflex, round_)
            except UnavailableError as error:
                # What has been begun is brought to its end all the same; what is ill is found in the next round.
                log.warning("waker.not_found", function=reflex.name, error=str(error))
                round_.blind.append(f"what {reflex.name} would find is not known: {error}")
        for name, due in self._errands.items():
            try:
                round_.errands[name] = [item async for item in due(self._world)]
            except UnavailableError as error:
                log.warning("waker.not_found", function=name, error=str(error))
                round_.blind.append(f"what is due for {name} is not known: {error}")
        return round_

    async def _find(self, reflex: Reflex[Any], round_: Round) -> None:
        async for signal in reflex.find(replace(self._world, function=reflex.name), reflex.settings):
            round_.ill.add(signal.uid)
            fault = fault_key(reflex.name, signal.uid, signal.episode)
            # What was put off because it seemed over is told again: it is not over.
            if fault not in round_.known[reflex.name] or fault in round_.early[reflex.name]:
                round_.found[reflex.name].append(signal)

    async def _ledger(self) -> Book | None:
        try:
            return await read_ledger(self._reader, self._core.kreflex_namespace)
        except UnavailableError as error:
            # Verdicts don't need it. Admissions do, and refuse in words of their own.
            log.warning("waker.no_ledger", error=str(error))
            return None

    async def go(self) -> list[str]:
        """Make one round; returns what went wrong, for people. What is due stays due."""
        round_ = await self.look()
        calls_ = [self._call(name, round_) for name in self._urls]
        failures = [text for texts in await asyncio.gather(*calls_) for text in texts]
        if not round_.blind:
            await self._clear(round_)
        return round_.blind + failures

    def _sort(self, record: Record, round_: Round, policies: Policies, now: datetime) -> None:
        name, fault = record.spec.function, record.spec.fault.key
        if record.status.phase != "Done" or record.final:
            round_.known[name].add(fault)
        if round_.left_behind(record, now - self._core.act_within):
            round_.due[name].append(record)
        elif is_due(record, policies, now, self._core.act_within):
            (round_.queued if is_queued(record, policies) else round_.due[name]).append(record)
        elif record.status.phase in {"Acting", "Applied"}:
            round_.resting.append(record)
        elif record.status.phase == "Open" and record.status.guard == EARLY:
            round_.early[name].add(fault)
        settled = record.status.settled_at
        if record.status.phase == "Done" and settled is not None and now - settled > self._retain:
            round_.old.append(record)

    async def _call(self, name: str, round_: Round) -> list[str]:
        due = sorted(round_.due[name], key=lambda r: (_FIRST[r.status.phase], r.status.due_at or r.created))
        failures = []
        for kind, items in (
            (cloudevents.DUE, [*(_named(record) for record in due), *round_.errands.get(name, ())]),
            (cloudevents.FOUND, [_told(signal) for signal in round_.found[name]]),
        ):
            for start in range(0, len(items), _CHUNK):
                failures += await self._send(name, kind, items[start : start + _CHUNK])
        return failures

    async def _send(self, name: str, kind: str, items: list[JSON]) -> list[str]:
        place = trace.current()
        extensions = place.extensions if place is not None else {}
        headers, body = cloudevents.write(_SOURCE, kind, name, {"items": items}, extensions)
        try:
            await calls.post(self._urls[name], headers, body, self._core.token_file)
        except UnavailableError as error:
            log.warning("waker.call_failed", function=name, kind=kind, items=len(items), error=str(error))
            return [str(error)]
        log.info("waker.called", function=name, kind=kind, items=len(items))
        return []

    async def _clear(self, round_: Round) -> None:
        if round_.book is None:
            return
        held = {entry.uid for entry in round_.book.entries}
        for record in round_.old:
            if record.uid in held or record.spec.target.uid in round_.ill:
                continue
            try:
                await delete_record(self._writer, record)
                log.info("waker.removed", record=str(record))
            except (ConflictError, GoneError):
                continue
            except KreflexError as error:
                log.warning("waker.not_removed", record=str(record), error=str(error))


def is_queued(record: Record, policies: Policies) -> bool:
    """Tell whether a record waits for nothing but the ledger, under the policies of now."""
    status = record.status
    stamped = status.policy == policies.stamp(record.spec.function, record.namespace)
    return status.phase == "Open" and status.guard in FULL and stamped


def turns(queued: Sequence[Record], resting: Sequence[Record], policies: Policies, now: datetime) -> list[Record]:
    """Choose of those that wait in a queue the few that could be admitted now; in a storm nearly all could not.

    The ledger decides, this only saves calls. Nobody waits for ever: who is passed over waits for a remediation that
    comes to its end, and whose turn it is, is drawn by lot, so that one that fails each time keeps nobody back.
    """
    limits = {policy.key: policy.spec.limits for policy in policies.all if policy.spec is not None}
    busy = {record.one_key for record in resting}
    taken = Counter(
        key
        for record in resting
        for key in record.status.policies
        if key in limits and (record.status.phase == "Acting" or limits[key].in_flight_until == "Verdict")
    )
    full = {key for key, limit in limits.items() if taken[key] >= limit.max_in_flight}
    chosen, asked, drawn = [], Counter[str](), Counter[str]()
    for record in sorted(queued, key=lambda record: hash((record.uid, now))):
        keys = [key for key in record.status.policies if key in limits]
        spent = any(drawn[key] >= _DRAWN * (limits[key].max_in_flight - taken[key]) for key in keys)
        if record.one_key in busy or asked[record.one_key] >= _DRAWN or full.intersection(keys) or spent:
            continue
        chosen.append(record)
        asked[record.one_key] += 1
        drawn.update(keys)
    return chosen


def _named(record: Record) -> JSON:
    # What is done about it belongs to the trace that opened it, not to the round.
    parent = record.spec.fault.traceparent
    return {"namespace": record.namespace, "name": record.name, **({"traceparent": parent} if parent else {})}


def _told(signal: Signal) -> JSON:
    told: JSON = {"name": signal.name, "uid": signal.uid, "summary": signal.summary}
    if isinstance(signal, NodeSignal):
        return {"kind": "Node", **told, "episode": signal.episode}
    if isinstance(signal, WorkloadSignal):
        meant = {"apiVersion": signal.api_version, "kind": signal.kind, "namespace": signal.namespace}
        return {**meant, **told, "episode": signal.episode}
    return {"namespace": signal.namespace, **told}
