"""The slow path: what is new is learnt from history, what is known learns on, what has vanished is forgotten.

Known series learn in pieces of 60 samples whose ends are the same for all replicas, so that two that do so at the same
time come to the same state. New ones learn up to now, to be scored at once, and take part from the next piece on.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from kreflex.anomaly.codec import Bundle, State, StateError, decode, encode
from kreflex.anomaly.detector import About, Bools, Detector, Floats
from kreflex.anomaly.reading import Labels, Matrix, Samples, Vector, narrowed, tick_of
from kreflex.anomaly.scoring import groups_of, limits_of
from kreflex.anomaly.store import Store, Stored
from kreflex.anomaly.watches import Broken, Signal, Watch
from kreflex.audit import log
from kreflex.errors import ConflictError, QueryError

_DAY = 86_400.0
_PIECE = 60
# Who has not learnt for longer learns anew: to catch up would take as long.
_PIECES = 6
# Of all that new series are learnt from at once: 80 MB as text, read in pieces, and 24 MB as numbers.
_POINTS = 3_000_000
# How many samples are learnt from before the time is looked at; it bounds the memory that a detector needs, too.
_BATCH = 120_000
# A series is new in the cluster, and not only to us, if it is younger than this many samples.
_YOUNG = 120
_RELATIVES = 4
# Prometheus combines so many `or`s fast.
_SETS = 40
_GRID = 168
_Rows = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Exclusion:
    """When series with these labels were not normal: an incident, an experiment. In seconds since 1970."""

    labels: Mapping[str, str]
    since: float
    until: float


@dataclass(frozen=True)
class Learnt:
    """What a refresh came to. `pending` are series that wait for the next one; `told` is for people."""

    bundle: Bundle
    new: int = 0
    updated: int = 0
    dropped: int = 0
    pending: int = 0
    written: bool = False
    told: tuple[str, ...] = ()


def state_name(watch: Watch, signal: Signal) -> str:
    """Name the state of a signal in the store."""
    return f"{watch.uid}.{signal.name}"


def meaning_of(watch: Watch, signal: Signal) -> str:
    """Say what a state is about: with another query or another step, another one is learnt."""
    return f"{watch.uid}/{signal.name}/{signal.meaning}/{watch.step:g}"


async def load(store: Store, watch: Watch, signal: Signal, detector: Detector) -> Bundle | None:
    """Read the state of a signal; None if there is none that can be used. For the fast path, which never learns."""
    bundle, _ = _usable(await store.read(state_name(watch, signal)), watch, signal, detector)
    return bundle


class States:
    """Reads states, and keeps the last version of each as it was read: a cache, that a new process fills anew."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._kept: dict[str, tuple[str, Bundle]] = {}

    async def load(self, watch: Watch, signal: Signal, detector: Detector) -> Bundle | None:
        """Read the state of a signal, if it has changed since."""
        name, meaning = state_name(watch, signal), meaning_of(watch, signal)
        version, bundle = self._kept.get(name, ("", None))
        if bundle is not None and bundle.meaning == meaning and version == await self._store.version(name):
            return bundle
        stored = await self._store.read(name)
        found, _ = _usable(stored, watch, signal, detector)
        self._kept.pop(name, None)
        if found is not None and stored is not None:
            self._kept[name] = (stored.version, found)
        return found


async def forget(store: Store, watches: Collection[Watch | Broken]) -> tuple[str, ...]:
    """Remove what is kept of watches and signals that are gone; tell which."""
    there = {watch.uid: watch for watch in watches}
    gone = [name for name in await store.names() if not _wanted(name, there)]
    for name in gone:
        await store.delete(name)
    return tuple(gone)


def _wanted(name: str, there: Mapping[str, Watch | Broken]) -> bool:
    uid, _, rest = name.partition(".")
    watch = there.get(uid)
    if not isinstance(watch, Watch):
        return watch is not None
    # With a dot it is no signal's: feedback.
    return "." in rest or rest in {signal.name for signal in watch.spec.signals}


async def refresh(
    store: Store,
    samples: Samples,
    watch: Watch,
    signal: Signal,
    detector: Detector,
    now: float,
    excluded: Sequence[Exclusion] = (),
    seconds: float = 15.0,
) -> Learnt:
    """Bring the state of a signal up to date, and write it; another replica that was quicker is fine.

    What is not begun within `seconds` waits for the next call. Raises UnavailableError where Prometheus or the store
    does not answer; nothing is changed then.
    """
    stored = await store.read(state_name(watch, signal))
    bundle, problem = _usable(stored, watch, signal, detector)
    told = (f"the state of {watch.key} {signal.name} is learnt anew: {problem}",) if problem else ()
    for line in told:
        log.warning("state.learnt_anew", watch=watch.key, signal=signal.name, because=line)
    course = _Course(samples, watch, signal, detector, tick_of(now, watch.step), tuple(excluded), seconds)
    learnt = await course.run(_empty(detector, watch, signal) if bundle is None else bundle)
    learnt = replace(learnt, told=(*told, *learnt.told))
    if not (learnt.new or learnt.updated or learnt.dropped):
        return learnt
    try:
        content = await asyncio.to_thread(encode, learnt.bundle)
        await store.write(state_name(watch, signal), content, stored.version if stored else "")
    except ConflictError:
        # Another replica was quicker. What it wrote is as good; what it did not do is done the next time.
        theirs = await load(store, watch, signal, detector)
        return learnt if theirs is None else Learnt(theirs, pending=learnt.pending, told=learnt.told)
    return replace(learnt, written=True)


def _usable(stored: Stored | None, watch: Watch, signal: Signal, detector: Detector) -> tuple[Bundle | None, str]:
    """Give the state as it is kept, or why it can't be used."""
    if stored is None:
        return None, ""
    try:
        bundle = decode(stored.content, detector.dtype)
    except StateError as error:
        return None, str(error)
    if (bundle.detector, bundle.version) != (detector.name, detector.version):
        return None, f"it is that of {bundle.detector} {bundle.version}, not of {detector.name} {detector.version}"
    if bundle.meaning != meaning_of(watch, signal):
        return None, "the signal's query, or the watch's interval, is another one"
    return bundle, ""


def _empty(detector: Detector, watch: Watch, signal: Signal) -> Bundle:
    state, none = np.zeros(0, detector.dtype), np.zeros(0)
    return Bundle(detector.name, detector.version, meaning_of(watch, signal), 0.0, (), state, none, none)


@dataclass
class _Course:
    """One refresh of one signal."""

    samples: Samples
    watch: Watch
    signal: Signal
    detector: Detector
    tick: float
    excluded: tuple[Exclusion, ...]
    seconds: float
    begun: float = field(default_factory=time.monotonic)
    told: list[str] = field(default_factory=list)

    @property
    def step(self) -> float:
        return self.watch.step

    @property
    def piece(self) -> float:
        return _PIECE * self.step

    async def run(self, bundle: Bundle) -> Learnt:
        current = await self.samples.instant(self.signal.query, self.tick)
        self.told += [f"Prometheus warns: {warning}" for warning in current.warnings]
        limit = await self.samples.instant(self.signal.limit, self.tick) if self.signal.limit else None
        bundle, dropped = self._without_vanished(self._noted(bundle, current), current)
        bundle, updated = await self._updated(bundle, limit)
        wanted = self._unknown(bundle, current)
        bundle, new = await self._with_new(bundle, current, wanted, limit)
        pending = len(wanted) - new
        return Learnt(bundle, new, updated, dropped, pending, told=tuple(dict.fromkeys(self.told)))

    def _noted(self, bundle: Bundle, current: Vector) -> Bundle:
        """Note which series are there."""
        there = np.isfinite(current.of(bundle.keys))
        return replace(bundle, seen=np.where(there, self.tick, bundle.seen))

    def _without_vanished(self, bundle: Bundle, current: Vector) -> tuple[Bundle, int]:
        """Forget what was not there for a day; but from a partial answer nothing is concluded."""
        kept = np.flatnonzero(bundle.seen > self.tick - _DAY)
        if current.partial or len(kept) == len(bundle.keys):
            return bundle, 0
        return _chosen(bundle, kept), len(bundle.keys) - len(kept)

    def _unknown(self, bundle: Bundle, current: Vector) -> list[int]:
        """Tell the rows of the series that have no state, or one that is too far behind."""
        behind = bundle.until < self.tick - _PIECES * self.piece
        known = {key for key, late in zip(bundle.keys, behind, strict=True) if not late}
        there = np.isfinite(current.values)
        return [row for row, key in enumerate(current.keys) if key not in known and there[row]]

    async def _updated(self, bundle: Bundle, limit: Vector | None) -> tuple[Bundle, int]:
        """Let the known series learn from each whole piece since they did last."""
        last = tick_of(self.tick, self.piece)
        at = max(bundle.tick, last - _PIECES * self.piece) if bundle.keys else last
        updated = 0
        while at < last and not (updated and self._late()):
            bundle, count, rest = await self._piece_learnt(bundle, at + self.piece, limit)
            updated = max(updated, count)
            if rest:
                break
            at += self.piece
        return replace(bundle, tick=at), updated

    async def _piece_learnt(self, bundle: Bundle, at: float, limit: Vector | None) -> tuple[Bundle, int, int]:
        """Let each series learn from one piece; tell how many did, and how many had no time to."""
        window = await self._recent(bundle, at)
        recent, labels = _aligned(window, bundle.keys)
        # Those that are too far behind learn anew; those that are ahead of this piece have just learnt.
        due = np.flatnonzero((bundle.until < at) & (bundle.until >= self.tick - (_PIECES + 1) * self.piece))
        due = due[np.isfinite(recent[due, -_PIECE:]).any(axis=1)]
        bundle, count = await self._taught(bundle, due, window, recent, labels, limit)
        return bundle, count, len(due) - count

    async def _recent(self, bundle: Bundle, at: float) -> Matrix:
        samples = _PIECE + self.detector.window - 1
        return await self.samples.window(self.signal.query, at, self.step, samples, len(bundle.keys))

    async def _taught(
        self, bundle: Bundle, due: _Rows, window: Matrix, recent: Floats, labels: Sequence[Labels], limit: Vector | None
    ) -> tuple[Bundle, int]:
        """Let these rows learn on from the newest samples; not from those that they have learnt from before."""
        state, until, done = bundle.state.copy(), bundle.until.copy(), 0
        size = _batch(recent.shape[1])
        while done < len(due) and not (done and self._late()):
            some = due[done : done + size]
            named = [labels[row] for row in some]
            mask = self._mask(window.times, named)
            # What was before the piece is there to look back at.
            mask[:, -_PIECE:] |= window.times[None, -_PIECE:] <= until[some][:, None]
            about = self._about(self.step, window.end, named, limit)
            state[some] = await asyncio.to_thread(self.detector.update, state[some], recent[some], about, _any(mask))
            until[some] = window.end
            done += len(some)
        return replace(bundle, state=state, until=until), done

    async def _with_new(
        self, bundle: Bundle, current: Vector, wanted: Sequence[int], limit: Vector | None
    ) -> tuple[Bundle, int]:
        """Learn what is unknown, the young ones first: they are few, and the old ones take longer."""
        if not wanted:
            return bundle, 0
        ages = await self._ages(current, wanted)
        young = [row for row, age in zip(wanted, ages, strict=True) if age <= _YOUNG * self.step]
        old = [row for row, age in zip(wanted, ages, strict=True) if age > _YOUNG * self.step]
        oldest = max((age for age in ages if age <= _YOUNG * self.step), default=0.0)
        new = 0
        for rows, age in ((young, oldest), (old, math.inf)):
            if rows and (not new or not self._late()):
                bundle, count = await self._learnt(bundle, current, rows, age, limit)
                new += count
        return bundle, new

    async def _ages(self, current: Vector, wanted: Sequence[int]) -> list[float]:
        history = self.watch.spec.history.total_seconds()
        grid = max(self.step, math.ceil(history / _GRID))
        try:
            first = await self.samples.first_seen(self.signal.query, self.tick, history, grid)
        except QueryError as error:
            self.told.append(f"how old its series are can't be asked, so all are taken for old: {error}")
            return [math.inf] * len(wanted)
        since = first.of([current.keys[row] for row in wanted])
        # It may have been there for up to one step of the grid before.
        return [float(age) for age in np.where(np.isfinite(since), self.tick - since, 0) + grid]

    async def _learnt(
        self, bundle: Bundle, current: Vector, rows: Sequence[int], age: float, limit: Vector | None
    ) -> tuple[Bundle, int]:
        """Learn these rows together with some that are like them, so that who has little history borrows theirs."""
        relatives = self._relatives(bundle, current, rows)
        query, series = self._asked(current, rows)
        step, count = self._plan(series, _DAY if relatives and age < _DAY else age)
        window = await self.samples.window(query, self.tick, step, count, series)
        states: list[State] = []
        size = _batch(count)
        while len(states) * size < len(rows) and not (states and self._late()):
            batch = rows[len(states) * size : (len(states) + 1) * size]
            states.append(await self._batch_learnt(current, batch, relatives, window, limit))
        done = rows[: len(states) * size]
        bundle = _merged(bundle, [current.keys[row] for row in done], np.concatenate(states), self.tick)
        del window
        if step > self.step and not self._late():
            bundle = await self._refined(bundle, limit)
        return bundle, len(done)

    async def _batch_learnt(
        self, current: Vector, batch: Sequence[int], relatives: Sequence[int], window: Matrix, limit: Vector | None
    ) -> State:
        groups, mine = {self.watch.siblings(current.labels[row]) for row in batch}, set(batch)
        theirs = [row for row in relatives if row not in mine and self.watch.siblings(current.labels[row]) in groups]
        together = [*batch, *theirs]
        labels = [current.labels[row] for row in together]
        history = window.of([current.keys[row] for row in together])
        about = self._about(window.step, self.tick, labels, limit)
        mask = _any(self._mask(window.times, labels))
        state = await asyncio.to_thread(self.detector.learn, history, about, mask)
        return state[: len(batch)]

    async def _refined(self, bundle: Bundle, limit: Vector | None) -> Bundle:
        """Show what was learnt from samples that are far apart some that are not."""
        window = await self._recent(bundle, self.tick)
        recent, labels = _aligned(window, bundle.keys)
        due = np.flatnonzero((bundle.until == self.tick) & np.isfinite(recent).any(axis=1))
        fresh = replace(bundle, until=np.where(bundle.until == self.tick, 0, bundle.until))
        taught, _ = await self._taught(fresh, due, window, recent, labels, limit)
        return replace(taught, until=bundle.until)

    def _relatives(self, bundle: Bundle, current: Vector, rows: Sequence[int]) -> list[int]:
        """Tell some known series of each group of siblings that a new one belongs to."""
        if not self.watch.spec.siblings:
            return []
        left = dict.fromkeys((self.watch.siblings(current.labels[row]) for row in rows), _RELATIVES)
        known, found = set(bundle.keys), []
        for row, key in enumerate(current.keys):
            group = self.watch.siblings(current.labels[row])
            if key in known and left.get(group, 0) > 0:
                left[group] -= 1
                found.append(row)
        return found

    def _asked(self, current: Vector, rows: Sequence[int]) -> tuple[str, int]:
        """Give the query that yields these series and their siblings, and how many it yields."""
        pointer = self.watch.spec.target
        names = self.watch.spec.siblings or (pointer.namespace_label, pointer.name_label)
        sets = {_of(names, current.labels[row]) for row in rows}
        if len(sets) > _SETS:
            return self.signal.query, len(current.keys)
        count = sum(_of(names, labels) in sets for labels in current.labels)
        return narrowed(self.signal.query, names, sorted(sets)), count

    def _plan(self, series: int, age: float) -> tuple[float, int]:
        """Tell the step and the number of samples to learn from: as fine as fits, over the whole history if it can."""
        history = min(self.watch.spec.history.total_seconds(), age)
        wanted = max(math.ceil(history / self.step), self.detector.window) + 1
        fits = max(_POINTS // max(series, 1), 2 * self.detector.window)
        if wanted <= fits:
            return self.step, wanted
        days = math.floor(fits * self.step / _DAY)
        if days >= 2:
            return self.step, math.floor(days * _DAY / self.step)
        apart = math.ceil(wanted / fits)
        return apart * self.step, math.ceil(wanted / apart)

    def _about(self, step: float, end: float, labels: Sequence[Labels], limit: Vector | None) -> About:
        return About(
            step,
            end,
            self.signal.kind,
            self.watch.spec.false_alarms_per_series_day,
            None if limit is None else limits_of(labels, limit),
            groups_of(self.watch, labels),
        )

    def _mask(self, times: Floats, labels: Sequence[Labels]) -> Bools:
        """Tell which samples are known not to be normal."""
        mask = np.zeros((len(labels), len(times)), dtype=bool)
        for one in self.excluded:
            within = (times >= one.since) & (times <= one.until)
            if within.any():
                meant = np.array([one.labels.items() <= own.items() for own in labels], dtype=bool)
                mask |= meant[:, None] & within[None, :]
        return mask

    def _late(self) -> bool:
        return time.monotonic() - self.begun > self.seconds


def _batch(samples: int) -> int:
    return max(10, _BATCH // samples)


def _of(names: Sequence[str], labels: Labels) -> tuple[str, ...]:
    return tuple(labels.get(name, "") for name in names)


def _any(mask: Bools) -> Bools | None:
    return mask if mask.any() else None


def _aligned(window: Matrix, keys: Sequence[str]) -> tuple[Floats, list[Labels]]:
    """Give the rows of these series, and their labels; none for one that is not there."""
    named = dict(zip(window.keys, window.labels, strict=True))
    return window.of(keys), [named.get(key, {}) for key in keys]


def _chosen(bundle: Bundle, rows: _Rows) -> Bundle:
    keys = tuple(bundle.keys[row] for row in rows)
    return replace(bundle, keys=keys, state=bundle.state[rows], until=bundle.until[rows], seen=bundle.seen[rows])


def _merged(bundle: Bundle, keys: Sequence[str], state: State, tick: float) -> Bundle:
    """Give the bundle with these series, new or learnt anew."""
    fresh = set(keys)
    kept = _chosen(bundle, np.array([row for row, key in enumerate(bundle.keys) if key not in fresh], dtype=np.intp))
    now = np.full(len(keys), tick)
    names = [*kept.keys, *keys]
    order = np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.intp)
    whole = replace(
        kept,
        keys=tuple(names),
        state=np.concatenate((kept.state, state)),
        until=np.concatenate((kept.until, now)),
        seen=np.concatenate((kept.seen, now)),
    )
    return _chosen(whole, order)
