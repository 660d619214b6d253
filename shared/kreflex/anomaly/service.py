"""What anomaly-scorer does when it is woken: a tick scores what is declared, an alert is looked at, feedback is heard.

Nothing is kept between two calls but caches, whose loss costs time and no answer. What could not be done at one tick,
because something was down or this process was killed, is done at the next.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from kreflex.anomaly import episodes, feedback, memory
from kreflex.anomaly.agreement import Place
from kreflex.anomaly.alerting import NAME, Alertmanagers
from kreflex.anomaly.anomalies import KIND, Anomalies, Anomaly, AnomalyStatus, Looked, Said, read_anomaly
from kreflex.anomaly.around import Around, around
from kreflex.anomaly.detector import About, Detector
from kreflex.anomaly.events import LOOKED, Sink, envelope
from kreflex.anomaly.feedback import Book, Heard
from kreflex.anomaly.learning import forget
from kreflex.anomaly.reading import Samples, labels_of, tick_of
from kreflex.anomaly.reconciling import Reconciler, Round
from kreflex.anomaly.scoring import Scored, Windows, factors_of, limits_of, score
from kreflex.anomaly.states import Due, Knowledge, experiments, in_words, incidents
from kreflex.anomaly.store import Store
from kreflex.anomaly.svg import sparkline
from kreflex.anomaly.telling import Teller
from kreflex.anomaly.watches import Signal, Watch, Watches, read_watches, report
from kreflex.audit import log
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError, GoneError, KreflexError, QueryError, UnavailableError
from kreflex.records import API
from kreflex.signals import NodeSignal, PodSignal, WorkloadSignal
from kreflex.signals import Signal as Told
from kreflex.views import JSON

# Prometheus takes a moment to have what it scraped; a tick is looked at that much later.
_SETTLE = 5.0
# One delivery may tell of many objects; the rest is found by the ticks.
_LOOKS = 20
# At one tick; after a bad week there may be thousands.
_REMOVED = 100
_VERDICTS_EACH = 600.0
_FORGET_EACH = 3600.0
# This share of the time is left for the answer, when the slow path begins with another state.
_LAST = 0.2
# And a watch may have this much of it, so that one that Prometheus is slow for does not keep the others from learning.
_PATIENCE = 0.6
_AT_ONCE = 4


@dataclass(frozen=True)
class Terms:
    """What the function's settings say."""

    home: str
    retain: timedelta
    most_open: int
    budget: timedelta


class Scorer:
    """Scores what AnomalyWatches declare, and keeps the Anomaly objects."""

    def __init__(
        self,
        reader: Reader,
        writer: Writer,
        samples: Samples,
        store: Store,
        detector: Detector,
        sink: Sink,
        alertmanagers: Alertmanagers,
        terms: Terms,
    ) -> None:
        self._reader = reader
        self._writer = writer
        self._samples = samples
        self._store = store
        self._detector = detector
        self._sink = sink
        self._terms = terms
        self._objects = Anomalies(reader, writer)
        self._windows = Windows(samples)
        self._states = Knowledge(store, samples, detector)
        self._reconciler = Reconciler(reader, self._objects, terms.home, terms.most_open)
        self._at_once = asyncio.Semaphore(_AT_ONCE)
        self._teller = Teller(self._objects, sink, alertmanagers)

    @property
    def _model(self) -> str:
        return f"{self._detector.name}/{self._detector.version}"

    async def go(self) -> list[str]:
        """Do what is to be done at a tick; what went wrong, in words. It is tried again at the next."""
        try:
            return await self._go()
        finally:
            memory.give_back()

    async def _go(self) -> list[str]:
        deadline = time.monotonic() + self._terms.budget.total_seconds()
        watches, known = await self._declared(), await self._known()
        failures: list[str] = []
        rounds: list[Round] = []
        learn: list[Due] = []
        for answer in await asyncio.gather(*(self._try(watch, known.get(watch.key, [])) for watch in watches.good)):
            if isinstance(answer, str):
                failures.append(answer)
                continue
            round_, due = answer
            # Of a query that is wrong its watch tells; to come again would not mend it.
            failures += [
                f"{round_.watch.key} {name}: {text}" for name, text in round_.failed.items() if name not in round_.wrong
            ]
            rounds.append(round_)
            learn += due
        orphans = await self._orphans(watches, known)
        failures += await self._tell(rounds, orphans, deadline)
        for round_ in rounds:
            failures += await self._hear_all(round_)
        failures += await self._clear([*orphans, *(one for round_ in rounds for one in round_.known)])
        failures += await self._learn(rounds, learn, deadline)
        if any(_each(_FORGET_EACH, round_) for round_ in rounds):
            await forget(self._store, (*watches.good, *watches.broken))
        return failures

    async def _declared(self) -> Watches:
        watches = await read_watches(self._reader, self._terms.home)
        for broken in watches.broken:
            await report(broken, broken.problem, self._writer)
        return watches

    async def _known(self) -> dict[str, list[Anomaly]]:
        known: dict[str, list[Anomaly]] = {}
        async for body in self._reader.everywhere(API, KIND):
            try:
                anomaly = read_anomaly(body)
            except ValueError as error:
                meta = body["metadata"]
                log.warning("anomaly.unreadable", anomaly=f"{meta['namespace']}/{meta['name']}", because=str(error))
                continue
            known.setdefault(anomaly.spec.watch, []).append(anomaly)
        return known

    async def _try(self, watch: Watch, known: Sequence[Anomaly]) -> tuple[Round, list[Due]] | str:
        """Score a watch, or say why that failed: whatever it was, the others are looked at, and in time."""
        seconds = _PATIENCE * self._terms.budget.total_seconds()
        try:
            async with self._at_once, asyncio.timeout(seconds):
                return await self._tick(watch, known)
        except TimeoutError:
            return f"{watch.key}: it took more than {seconds:.0f} s: make its queries cheaper, by recording rules"
        except Exception as error:  # noqa: BLE001
            return f"{watch.key}: {in_words(error)}"

    async def _tick(self, watch: Watch, known: Sequence[Anomaly]) -> tuple[Round, list[Due]]:
        at = self._at(watch)
        book, _ = await feedback.read_book(self._store, watch)
        signals = watch.spec.signals
        answers = await asyncio.gather(*(self._score(watch, one, at, book) for one in signals), return_exceptions=True)
        scored: dict[str, Scored] = {}
        failed: dict[str, str] = {}
        learn: list[Due] = []
        for signal, answer in zip(signals, answers, strict=True):
            if isinstance(answer, Exception):
                failed[signal.name] = in_words(answer)
            elif isinstance(answer, BaseException):
                raise answer
            else:
                scored[signal.name] = answer[0]
                learn += [answer[1]] if answer[1] else []
        if not any(isinstance(one, UnavailableError) and not isinstance(one, QueryError) for one in answers):
            problem = "; ".join(f"signal {name}: {text}" for name, text in failed.items())
            await report(watch, problem, self._writer)
        round_ = Round(watch, at, self._model, self._detector.window, scored, failed, known)
        round_.wrong = {
            one.name for one, answer in zip(signals, answers, strict=True) if isinstance(answer, QueryError)
        }
        if scored:
            # By nothing that could be read, nothing is opened or resolved.
            round_.known = await self._reconciler.run(round_)
        return round_, learn

    def _at(self, watch: Watch) -> float:
        settle = min(_SETTLE, watch.step / 10)
        return tick_of(self._reader.now().timestamp() - settle, watch.step)

    async def _score(self, watch: Watch, signal: Signal, at: float, book: Book) -> tuple[Scored, Due | None]:
        bundle = await self._states.of(watch, signal)
        recent = await self._windows.recent(watch, signal, at, self._detector.window)
        limit = limits_of(recent.labels, await self._samples.instant(signal.limit, at)) if signal.limit else None
        factor = factors_of(book, watch, signal, recent)
        about = About(
            watch.step,
            at,
            signal.kind,
            watch.spec.false_alarms_per_series_day,
            limit,
            factor=factor,
            horizon=watch.spec.horizon.total_seconds(),
        )
        scored = await score(self._detector, bundle, watch, signal, recent, about)
        return scored, self._states.due(scored, bundle, at)

    async def _orphans(self, watches: Watches, known: Mapping[str, Sequence[Anomaly]]) -> list[Anomaly]:
        """Resolve what no watch looks at any more; that of a watch that can't be used waits until it is mended."""
        there = {one.key for one in watches.good} | {f"{one.namespace}/{one.name}" for one in watches.broken}
        orphans = [one for key, anomalies in known.items() if key not in there for one in anomalies]
        return [await self._over(one, "its AnomalyWatch is gone") if one.open else one for one in orphans]

    async def _over(self, anomaly: Anomaly, because: str) -> Anomaly:
        return await self._change(anomaly, episodes.over(anomaly, self._reader.now(), because))

    async def _change(self, anomaly: Anomaly, status: AnomalyStatus) -> Anomaly:
        try:
            return await self._objects.change(anomaly, status)
        except KreflexError as error:
            # Another was quicker, or it can't be written now: the next tick comes to the same.
            log.info("anomaly.left", anomaly=str(anomaly), because=str(error))
            return anomaly

    async def _tell(self, rounds: Sequence[Round], orphans: Sequence[Anomaly], deadline: float) -> list[str]:
        seconds = max(1.0, (deadline - time.monotonic()) / 3)
        alerts = [(one, round_.watch.spec.interval) for round_ in rounds for one in round_.known]
        alerts += [(one, timedelta(minutes=1)) for one in orphans]
        # First the alerts: they are what wakes people, and cost one request.
        failures = await self._teller.alerts(alerts, self._reader.now(), seconds)
        scored = {round_.watch.key: round_.scored for round_ in rounds}
        told = sorted((one for one, _ in alerts), key=lambda one: (one.spec.since, one.uid))
        return failures + await self._teller.events(told, scored, seconds)

    async def _clear(self, known: Sequence[Anomaly]) -> list[str]:
        """Remove what was over long ago."""
        failures = []
        for anomaly in episodes.old(known, self._reader.now(), self._terms.retain)[:_REMOVED]:
            try:
                await self._objects.remove(anomaly)
                log.info("anomaly.removed", anomaly=str(anomaly))
            except (ConflictError, GoneError):
                continue
            except KreflexError as error:
                failures.append(f"{anomaly} was not removed: {error}")
        return failures

    async def _hear_all(self, round_: Round) -> list[str]:
        try:
            await self._hear(round_)
        except UnavailableError as error:
            return [f"feedback on {round_.watch.key} waits for the next tick: {error}"]
        return []

    async def _hear(self, round_: Round) -> None:
        heard = [one for anomaly in round_.known if (one := feedback.heard(anomaly)) is not None and not one.told]
        if _each(_VERDICTS_EACH, round_):
            heard += await self._verdicts(round_)
        if not heard:
            return
        heard = [replace(one, groups=_groups(one.anomaly, round_)) for one in heard]
        book = await feedback.apply(self._store, round_.watch, heard, [one.uid for one in round_.known])
        for one in heard:
            await self._note(one, book)

    async def _verdicts(self, round_: Round) -> list[Heard]:
        led = round_.tick.remediations
        asked = [
            await feedback.heard_of_remediation(one, led.get(one.spec.class_, ""), self._reader, round_.now)
            for one in round_.known
            # A person has the last word.
            if one.spec.feedback is None
        ]
        return [one for one in asked if one is not None]

    async def _note(self, heard: Heard, book: Book) -> None:
        """Write onto an Anomaly what was heard of it, and what became of the thresholds."""
        # As it is now: what it was told of may have been noted since it was read.
        anomaly = await self._objects.get(heard.anomaly.namespace, heard.anomaly.name)
        if anomaly is None:
            return
        signals = tuple(
            one.model_copy(update={"factor": book.factor(one.name, one.series)}) for one in anomaly.status.signals
        )
        changes = {"feedback": heard.feedback, "feedback_by": heard.by, "signals": signals}
        await self._change(anomaly, anomaly.status.model_copy(update=changes))
        log.info("anomaly.feedback", anomaly=str(anomaly), verdict=heard.verdict, by=heard.by)

    async def _learn(self, rounds: Sequence[Round], due: Sequence[Due], deadline: float) -> list[str]:
        failures: list[str] = []
        for round_ in rounds:
            mine = [one for one in due if one.watch.uid == round_.watch.uid]
            if mine:
                try:
                    excluded = incidents(round_.watch, round_.known, round_.now)
                    excluded += await experiments(self._reader, round_.watch, round_.now)
                    failures += await self._states.learn(
                        mine, round_.at, excluded, deadline - _LAST * self._terms.budget.total_seconds()
                    )
                except UnavailableError as error:
                    failures.append(f"{round_.watch.key} was not learnt: {error}")
        return failures

    async def hear(self, namespace: str, name: str, said: Said) -> bool:
        """Write down what an allowed caller says of an Anomaly, for the next tick; False if there is none."""
        anomaly = await self._objects.get(namespace, name)
        if anomaly is None:
            return False
        if anomaly.spec.feedback != said:
            await self._objects.say(anomaly, said)
        return True

    async def look(self, told: Iterable[Told]) -> list[JSON]:
        """Look at what alerts are about, and note what is found; the events that were made of it. Nothing is done."""
        signals = [one for one in told if not one.summary.startswith(NAME)][:_LOOKS]
        if not signals:
            return []
        watches, known = await read_watches(self._reader, self._terms.home), await self._known()
        events = []
        deadline = time.monotonic() + _PATIENCE * self._terms.budget.total_seconds()
        for number, signal in enumerate(signals):
            if time.monotonic() > deadline:
                log.info("anomaly.not_looked_at", alerts=len(signals) - number)
                break
            place = place_of(signal)
            for watch in watches.good:
                if watch.spec.target.kind == place.kind and (watch.home or watch.namespace == place.namespace):
                    seen = await self._around(watch, place)
                    if seen is None:
                        continue
                    open_ = [one for one in known.get(watch.key, ()) if one.open and episodes.place_of(one) == place]
                    await self._attach(open_, signal, seen)
                    events.append(_looked(signal, watch, seen, open_, self._at(watch), self._model))
        for event in events:
            await self._sink.send(event)
        return events

    async def _around(self, watch: Watch, place: Place) -> Around | None:
        """Look at one target; None if a query of the watch is wrong, of which each tick tells."""
        with contextlib.suppress(QueryError):
            return await self._looked_at(watch, place)
        return None

    async def _looked_at(self, watch: Watch, place: Place) -> Around:
        book, _ = await feedback.read_book(self._store, watch)
        states = [(signal, await self._states.of(watch, signal)) for signal in watch.spec.signals]
        return await around(self._samples, self._detector, watch, states, place, book, self._at(watch))

    async def _attach(self, open_: Iterable[Anomaly], signal: Told, seen: Around) -> None:
        for anomaly in open_:
            note = Looked(at=self._reader.now(), alert=signal.summary[:1024] or "alert", found=seen.text[:1024])
            if not any((one.alert, one.found) == (note.alert, note.found) for one in anomaly.status.looked):
                looked = (note, *anomaly.status.looked)[:5]
                await self._change(anomaly, anomaly.status.model_copy(update={"looked": looked}))


def _each(seconds: float, round_: Round) -> bool:
    """Tell whether this tick is the first in such a span of time, in every process."""
    return round_.at // seconds != (round_.at - round_.watch.step) // seconds


def place_of(signal: Told) -> Place:
    """Tell what an alert is about, by name."""
    if isinstance(signal, NodeSignal):
        return Place("Node", "", signal.name)
    kind = "Pod" if isinstance(signal, PodSignal) else signal.kind
    assert isinstance(signal, PodSignal | WorkloadSignal)
    return Place(kind, signal.namespace, signal.name)


def _groups(anomaly: Anomaly, round_: Round) -> dict[str, tuple[str, ...]]:
    """Tell which siblings each of its series has; by its name, for a verdict comes when the series is gone."""
    if not round_.watch.spec.siblings:
        return {}
    named = {one.series: labels_of(one.series) for one in anomaly.status.signals}
    return {series: round_.watch.siblings(labels) for series, labels in named.items() if labels}


def _looked(signal: Told, watch: Watch, seen: Around, open_: Sequence[Anomaly], at: float, model: str) -> JSON:
    place = seen.place
    id_ = hashlib.sha256(f"{LOOKED}/{watch.uid}/{place}/{signal.delivery}/{at}".encode()).hexdigest()[:32]
    drawn = dict(seen.pictures)
    data: JSON = {
        "target": {"kind": place.kind, "namespace": place.namespace, "name": place.name},
        "watch": watch.key,
        "alert": signal.summary,
        "summary": seen.text,
        "anomalies": [f"{one.namespace}/{one.name}" for one in open_],
        "series": seen.series,
        "signals": [
            {
                **one.model_dump(mode="json", by_alias=True),
                "svg": sparkline(drawn.get(f"{one.name}/{one.series}", ()), title=f"{one.name} of {place.name}"),
            }
            for one in seen.signals
        ],
        "model": model,
    }
    return envelope(LOOKED, id_, f"{place.namespace}/{place.name}", datetime.fromtimestamp(at, UTC), data)
