"""The ledger: what has been spent of the policies' limits. One object, changed by one compare-and-swap.

Entries name the Remediation's UID, so that resuming one is free. The admissions of one process that arrive together
share one write: a hot object bears about 90 contended writes a second, a batch any number.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from kreflex.cluster import Reader, Writer
from kreflex.durations import show_duration
from kreflex.errors import ConflictError, GoneError, UnavailableError
from kreflex.policy import Limits, Useless
from kreflex.rule import Rule
from kreflex.views import JSON

NAME = "kreflex-ledger"
RBAC_TO_READ = (Rule("", "configmaps", "get", "home", (NAME,)),)
RBAC = (*RBAC_TO_READ, Rule("", "configmaps", "update", "home", (NAME,), ("data",)))
State = Literal["", "Applied", "Recovered", "Ineffective", "Unknown"]
# What is left of an admission whose remediation never acted: it spent nothing.
WITHDRAWN = "Withdrawn"
# The guards' names under which the ledger denies what may be free a moment later.
FULL = frozenset({"Slots", "OneAtATime", "Cooldown", "Rate"})
_MOST = 3000
_MOST_BYTES = 900_000
_TRIES = 10


@dataclass(frozen=True, slots=True)
class Entry:
    """One admitted remediation. `state` is "" while it may act; the verdict, once somebody has seen it.

    `one` is what may have only one in flight, if that is not the owner: a node, whose pool may have several.

    `version` is the record's resourceVersion at the admission: a record that is Open in another version was put back
    since, and holds nothing. Comparing times instead would trust the clocks of two replicas.
    """

    uid: str
    namespace: str
    record: str
    owner: str
    template_hash: str
    policies: tuple[str, ...]
    version: str
    at: datetime
    state: State = ""
    one: str = ""

    @property
    def sole(self) -> str:
        """What gets no second one while this has no verdict."""
        return self.one or self.owner

    @property
    def settled(self) -> bool:
        """True when the verdict is known."""
        return self.state not in {"", "Applied"}


@dataclass(frozen=True, slots=True)
class Standing:
    """How an entry's remediation stands in truth: its state or `Withdrawn`, and when to look again."""

    state: str
    due_at: datetime | None = None


@dataclass(frozen=True)
class Request:
    """A remediation that asks to be admitted. `limits` holds each policy's key with its numbers.

    `acting` is True for one that is taken over: it holds its admission since it began to act.
    """

    uid: str
    namespace: str
    record: str
    version: str
    owner: str
    template_hash: str
    limits: tuple[tuple[str, Limits], ...]
    cooldown: timedelta
    useless: Useless
    acting: bool = False
    one: str = ""

    def entry(self, now: datetime) -> Entry:
        """Make the entry of this admission."""
        policies = tuple(key for key, _ in self.limits)
        one = self.one if self.one != self.owner else ""
        names = (self.uid, self.namespace, self.record, self.owner, self.template_hash, policies, self.version)
        return Entry(*names, now, one=one)


@dataclass(frozen=True, slots=True)
class Denial:
    """A limit is reached: which one, in words, and when it may be free again."""

    guard: str
    because: str
    until: datetime


@dataclass(frozen=True)
class Book:
    """The entries, oldest first, and the resourceVersion under which they were read."""

    entries: tuple[Entry, ...] = ()
    version: str = ""
    body: JSON = field(default_factory=dict, repr=False)

    def without(self, uid: str) -> Book:
        """Leave one remediation out."""
        return replace(self, entries=tuple(e for e in self.entries if e.uid != uid))

    def of(self, owner: str, template_hash: str | None = None) -> tuple[Entry, ...]:
        """Tell the entries of one owner, or of one template of it."""
        return tuple(
            e for e in self.entries if e.owner == owner and (template_hash is None or e.template_hash == template_hash)
        )

    def find(self, uid: str) -> Entry | None:
        """Tell the entry of one remediation."""
        return next((e for e in self.entries if e.uid == uid), None)


def cooling(book: Book, request: Request, now: datetime) -> Denial | None:
    """Deny while the owner rests from its last remediation."""
    last = max((e.at for e in book.of(request.owner)), default=None)
    if last is None or now - last >= request.cooldown:
        return None
    rests = f"{show_duration(now - last)} ago, it rests for {show_duration(request.cooldown)}"
    return Denial("Cooldown", f"{request.owner} was remediated {rests}", last + request.cooldown)


def useless(book: Book, request: Request, now: datetime) -> Denial | None:
    """Deny when the last remediations of this template did not help: a person has to look."""
    rule, tried = request.useless, book.of(request.owner, request.template_hash)
    settled = [e for e in tried if e.settled]
    tail = settled[-rule.count :]
    if len(tail) < rule.count or any(e.state == "Recovered" for e in tail):
        return None
    until = tail[-1].at + rule.stop
    if now >= until:
        return None
    because = f"the last {rule.count} remediations of {request.owner} did not help: a person has to look"
    return Denial("Useless", f"{because}; not tried again before {until:%Y-%m-%d %H:%M} UTC", until)


def over_rate(book: Book, request: Request, now: datetime) -> Denial | None:
    """Deny when a policy's rate is spent in any of its windows."""
    for policy, limits in request.limits:
        for rate in limits.rates:
            spent = [e.at for e in book.entries if policy in e.policies and now - e.at < rate.window]
            if len(spent) >= rate.count:
                free = sorted(spent)[-rate.count] + rate.window if rate.count else now + rate.window
                return Denial(
                    "Rate", f"all {rate.count} remediations in {show_duration(rate.window)} are spent ({policy})", free
                )
    return None


def in_flight(book: Book, policy: str, limits: Limits) -> tuple[Entry, ...]:
    """Tell which remediations hold a slot of a policy, as far as the ledger knows."""
    counts = {"", "Applied"} if limits.in_flight_until == "Verdict" else {""}
    return tuple(e for e in book.entries if policy in e.policies and e.state in counts)


def pruned(book: Book, now: datetime, memory: timedelta) -> Book:
    """Forget what no window, cooldown or count can refer to any more."""
    return replace(book, entries=tuple(e for e in book.entries if not e.settled or now - e.at < memory))


def left_behind(book: Book, uid: str, version: str, since: datetime) -> bool:
    """Tell whether a record that is Open in this version was admitted before `since`, and then nobody went on."""
    entry = book.find(uid)
    return entry is not None and entry.version == version and entry.at < since


def full(book: Book) -> bool:
    """Tell whether another entry might not fit: an object of the API server has one MiB at most."""
    return len(book.entries) >= _MOST or (
        len(book.entries) >= _MOST // 4 and sum(len(json.dumps(_out(e))) for e in book.entries) > _MOST_BYTES
    )


Look = Callable[[Entry], Awaitable[Standing]]


class Ledger:
    """Admits remediations within the limits; `look` tells how an entry's remediation stands."""

    def __init__(self, reader: Reader, writer: Writer, namespace: str, look: Look) -> None:
        self._reader = reader
        self._writer = writer
        self._namespace = namespace
        self._look = look
        self._book: Book | None = None
        self._turn = asyncio.Lock()
        self._waiting: list[tuple[Request, timedelta, asyncio.Future[Denial | None]]] = []

    async def admit(self, request: Request, memory: timedelta) -> Denial | None:
        """Admit a remediation, in the same write as all that wait with it; or say which limit denies it."""
        answer: asyncio.Future[Denial | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, memory, answer))
        async with self._turn:
            if not answer.done():
                await self._serve()
        return await answer

    async def useless(self, request: Request) -> Denial | None:
        """Tell early what `admit` would say of an owner whose remediations don't help; costs no call in general."""
        fresh = self._book is None
        denial = await self._judge_useless(request)
        if denial is None or fresh:
            return denial
        # Somebody may have cleared the ledger: a no is told only from what was just read.
        self._book = None
        return await self._judge_useless(request)

    async def _judge_useless(self, request: Request) -> Denial | None:
        book = self._book = self._book or await self._read()
        book, _ = await self._look_at(tuple(e for e in book.of(request.owner) if not e.settled), book)
        return useless(book, request, self._reader.now())

    async def left_behind(self, uid: str, version: str, since: datetime) -> bool:
        """Tell whether a kill has left a record between its admission and its claim."""
        return left_behind(await self._reader.share("ledger", self._read), uid, version, since)

    async def full(self, request: Request, memory: timedelta) -> Denial | None:
        """Tell what `admit` would say, without admitting; the signals of one burst share the reading."""
        book = await self._reader.share("ledger", self._read)
        answers, _ = await self._weigh_all([(request, memory)], book)
        return answers[0]

    async def _serve(self) -> None:
        batch, self._waiting = self._waiting, []
        try:
            answers = await self._settle([(request, memory) for request, memory, _ in batch])
        except BaseException as error:
            for _, _, answer in batch:
                if not answer.done():
                    answer.set_exception(error if isinstance(error, Exception) else UnavailableError("interrupted"))
                    answer.exception()  # Marked as seen: its owner may have been cancelled.
            raise
        for (_, _, answer), denial in zip(batch, answers, strict=True):
            if not answer.done():
                answer.set_result(denial)

    async def _settle(self, batch: list[tuple[Request, timedelta]]) -> list[Denial | None]:
        fresh = self._book is None
        for _ in range(_TRIES):
            book = await self._read() if self._book is None else self._book
            answers, after = await self._weigh_all(batch, book)
            if not fresh and any(answers):
                # What denies may be gone by now: a no is told only from what was just read.
                self._book, fresh = None, True
                continue
            if all(answers):
                # Nothing is spent, so nothing is written; what was seen on the way is kept for the next time.
                self._book = after
                return answers
            if after.entries == book.entries:
                return answers
            try:
                self._book = await self._write(after)
            except (ConflictError, GoneError):
                # Changed, or deleted: reading it says which.
                self._book, fresh = None, True
                continue
            return answers
        raise UnavailableError("the ledger is changed by others faster than it can be written")

    async def _weigh_all(self, batch: list[tuple[Request, timedelta]], book: Book) -> tuple[list[Denial | None], Book]:
        answers: list[Denial | None] = []
        now = self._reader.now()
        for request, memory in batch:
            old = tuple(e for e in book.entries if not e.settled and now - e.at >= memory)
            book = pruned((await self._look_at(old, book))[0], now, memory)
            denial, book = await self._weigh(request, book, now)
            answers.append(denial)
        return answers, book

    async def _weigh(self, request: Request, book: Book, now: datetime) -> tuple[Denial | None, Book]:
        mine = book.find(request.uid)
        if mine is not None:
            # No look at the record here: the answer may be shared and old, and would resume what was put back since.
            if request.acting or mine.version == request.version:
                return None, book
            book = book.without(request.uid)
        denial, book = await self._slots(request, book, now)
        denial = denial or useless(book, request, now) or cooling(book, request, now)
        if denial is None and over_rate(book, request, now) is not None:
            # Those that were put back without an action have spent nothing; asked only when it matters.
            book, _ = await self._look_at(tuple(e for e in book.entries if not e.settled), book)
            denial = over_rate(book, request, now)
        if denial is None and full(book):
            because = f"the ledger is full with {len(book.entries)} entries: shorten the policies' windows"
            denial = Denial("Ledger", because, now + timedelta(minutes=10))
        if denial is not None:
            return denial, book
        return None, replace(book, entries=(*book.entries, request.entry(now)))

    async def _slots(self, request: Request, book: Book, now: datetime) -> tuple[Denial | None, Book]:
        """Deny when the owner, or a policy, has all that it may have in flight; look closer only then."""
        for policy, limits in request.limits:
            if limits.max_in_flight == 0:
                return Denial("Slots", f"policy {policy} allows none in flight", now + timedelta(hours=1)), book
            if len(in_flight(book, policy, limits)) >= limits.max_in_flight:
                book, waits = await self._look_at(in_flight(book, policy, limits), book)
                busy = in_flight(book, policy, limits)
                if len(busy) >= limits.max_in_flight:
                    because = f"{len(busy)} of {limits.max_in_flight} remediations are in flight ({policy})"
                    return Denial("Slots", because, _soonest(waits, now)), book
        sole = request.one or request.owner
        book, waits = await self._look_at(tuple(e for e in book.entries if e.sole == sole and not e.settled), book)
        open_ones = [e for e in book.entries if e.sole == sole and not e.settled]
        if open_ones:
            because = f"{open_ones[0].namespace}/{open_ones[0].record} of the same owner has no verdict yet"
            return Denial("OneAtATime", because, _soonest(waits, now)), book
        return None, book

    async def _look_at(self, entries: tuple[Entry, ...], book: Book) -> tuple[Book, list[datetime | None]]:
        standings = await asyncio.gather(*(self._look(entry) for entry in entries))
        seen = dict(zip((entry.uid for entry in entries), standings, strict=True))
        kept = tuple(
            replace(e, state=seen[e.uid].state) if e.uid in seen else e  # type: ignore[arg-type]
            for e in book.entries
            if e.uid not in seen or seen[e.uid].state != WITHDRAWN
        )
        waits = [s.due_at for s in standings if s.state in {"", "Applied"}]
        return replace(book, entries=kept), waits

    async def _read(self) -> Book:
        return await read_ledger(self._reader, self._namespace)

    async def _write(self, book: Book) -> Book:
        data = {"entries": json.dumps([_out(e) for e in book.entries], separators=(",", ":"))}
        return read_book(await self._writer.replace(_path(self._namespace), {**book.body, "data": data}))


def _path(namespace: str) -> str:
    return f"/api/v1/namespaces/{namespace}/configmaps/{NAME}"


async def read_ledger(reader: Reader, namespace: str) -> Book:
    """Read the ledger; raises UnavailableError when it is missing, for then nobody knows what has been spent."""
    body = await reader.get(_path(namespace))
    if body is None:
        raise UnavailableError(
            f"ConfigMap {namespace}/{NAME} is missing, so what has been spent is not known: "
            "apply knative/base/ledger.yaml"
        )
    return read_book(body)


def read_book(body: JSON) -> Book:
    """Read the ledger's object; raises UnavailableError if its content is not the ledger's."""
    try:
        rows = json.loads((body.get("data") or {}).get("entries", "[]"))
        entries = tuple(_in(row) for row in rows)
    except (ValueError, KeyError, TypeError) as error:
        raise UnavailableError(
            f"ConfigMap {NAME} can't be read, so what has been spent is not known: {error!r}"
        ) from error
    return Book(entries, body["metadata"]["resourceVersion"], body)


def _out(entry: Entry) -> JSON:
    return {
        "uid": entry.uid,
        "ns": entry.namespace,
        "rec": entry.record,
        "own": entry.owner,
        "tpl": entry.template_hash,
        "pol": list(entry.policies),
        "rv": entry.version,
        "at": round(entry.at.timestamp(), 3),
        "st": entry.state,
        **({"one": entry.one} if entry.one else {}),
    }


def _in(row: dict[str, Any]) -> Entry:
    at = datetime.fromtimestamp(row["at"], UTC)
    names = (row["uid"], row["ns"], row["rec"], row["own"], row["tpl"], tuple(row["pol"]), row["rv"])
    return Entry(*names, at, row["st"], row.get("one", ""))


def _soonest(waits: list[datetime | None], now: datetime) -> datetime:
    return min((max(w, now) for w in waits if w is not None), default=now + timedelta(seconds=1))
