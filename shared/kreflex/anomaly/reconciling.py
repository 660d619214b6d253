"""From what was scored at one tick to the Anomaly objects of a watch: judged, opened, renewed, resolved.

Whoever is killed in between leaves objects that the next tick goes on with. What another replica has just written is
left alone.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from kreflex.anomaly import agreement, episodes, targets
from kreflex.anomaly.agreement import Judgement, Place, Terms, judge
from kreflex.anomaly.anomalies import STORM, Anomalies, Anomaly, AnomalySpec, AnomalyStatus, Seen, Window
from kreflex.anomaly.episodes import State, Tick
from kreflex.anomaly.scoring import Scored
from kreflex.anomaly.targets import Found
from kreflex.anomaly.watches import KIND, Watch
from kreflex.audit import log
from kreflex.cluster import Reader
from kreflex.errors import ConflictError, GoneError, KreflexError
from kreflex.records import API, Target
from kreflex.views import Pod

# Half of all series at once is the fault of what they have in common, Prometheus and the network among it.
_STORM_SHARE = 0.5
_STORM_SERIES = 20
_BLANK_SERIES = 3
# Without samples nothing is known; an object that has none for so long is watched no more.
_SILENT = timedelta(hours=1)
# So many that can't be written are left alone; if there are more, it is the API server.
_LEFT_ALONE = 3


@dataclass
class Round:
    """One tick of one watch: what was scored, what could not be read, and which anomalies there are."""

    watch: Watch
    at: float
    model: str
    samples: int
    scored: Mapping[str, Scored] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    known: Sequence[Anomaly] = ()
    wrong: set[str] = field(default_factory=set)
    """The signals that failed because of what they ask."""
    left_alone: int = 0
    """How many anomalies could not be written."""

    @property
    def now(self) -> datetime:
        """The tick's time."""
        return datetime.fromtimestamp(self.at, UTC)

    @property
    def tick(self) -> Tick:
        """What is written of the tick itself."""
        watch, step = self.watch, self.watch.spec.interval
        window = Window(start=self.now - (self.samples - 1) * step, end=self.now, step=watch.step)
        led: dict[str, str] = {one.class_: one.function for one in watch.spec.remediations}
        return Tick(self.now, step, self.model, window, led)

    @property
    def terms(self) -> Terms:
        """What the watch asks of its signals."""
        spec = self.watch.spec
        return Terms(spec.agreement, spec.interval, frozenset(one.name for one in spec.signals if one.limit))

    def findings(self) -> dict[Place, list[Seen]]:
        """Tell what is beyond its threshold, by what it is about."""
        found: dict[Place, list[Seen]] = defaultdict(list)
        for scored in self.scored.values():
            for place, seen in scored.findings():
                found[place].append(seen)
        return found

    def state(self, anomaly: Anomaly, simmering: set[Place], found: Mapping[Place, Found | None]) -> State:
        """Tell how it is with an Anomaly that nothing was found of at this tick."""
        place, signals = episodes.place_of(anomaly), anomaly.status.signals
        if place in found and not _same(found[place], anomaly):
            return "gone"
        if place in simmering:
            return "seen"
        if any(one.name in self.failed for one in signals) or (self.failed and not signals):
            return "unknown"
        there = [self.scored[one.name].present(one.series) for one in signals if one.series and one.name in self.scored]
        if None in there or (there and not any(there) and self.now - anomaly.last_seen < _SILENT):
            return "unknown"
        return "calm"

    @property
    def blank(self) -> bool:
        """True when all series of all signals are missing at once, as of a Prometheus that begins anew."""
        series = sum(int(scored.known.sum()) for scored in self.scored.values())
        return series >= _BLANK_SERIES and all(scored.blank for scored in self.scored.values())

    def sober(self, judgement: Judgement, pod: Pod | None) -> Judgement:
        """Let nobody act for what was seen, in part, of a pod of the same name before it, as StatefulSets have them."""
        if not judgement.agreed or pod is None or pod.controller is None:
            return judgement
        begun = [self.scored[one.name].begun(one.series) for one in judgement.signals if one.name in self.scored]
        if not any(at is not None and at < pod.created.timestamp() - self.watch.step for at in begun):
            return judgement
        because = f"samples of a pod of its name that was there before {pod.created:%Y-%m-%d %H:%M:%S} UTC count here"
        return replace(judgement, agreed=False, because=because)

    def silent(self, anomaly: Anomaly) -> bool:
        """Tell whether the series of an Anomaly have vanished, as they do with what they are about."""
        series = [one for one in anomaly.status.signals if one.series and one.name in self.scored]
        return bool(series) and all(self.scored[one.name].present(one.series) is False for one in series)


def _same(found: Found | None, anomaly: Anomaly) -> bool:
    return found is not None and found.target.uid == anomaly.spec.target.uid


class Reconciler:
    """Brings the Anomaly objects of a watch in line with what was found."""

    def __init__(self, reader: Reader, objects: Anomalies, home: str, most: int) -> None:
        self._reader = reader
        self._objects = objects
        self._home = home
        self._most = most

    async def run(self, round_: Round) -> list[Anomaly]:
        """Bring them in line; all anomalies of the watch as they are then."""
        now = {one.uid: one for one in round_.known}
        findings = round_.findings()
        storm = self._storm(round_, findings)
        if storm is not None:
            # What is open stays as it is: in a storm nobody can say that something is over.
            await self._go_on(round_, storm_target(round_.watch), [storm], now)
            return list(now.values())
        chosen, beyond = self._chosen(findings, now.values())
        found = await targets.find_all(self._reader, {*chosen, *self._doubtful(round_, now.values())})
        judged = await self._judge(round_, chosen, found, now)
        for target, judgements in judged:
            await self._go_on(round_, target, judgements, now)
        if beyond:
            await self._go_on(round_, storm_target(round_.watch), [_beyond(round_, findings, beyond)], now)
        matched = {(target.uid, one.family) for target, ones in judged for one in ones}
        await self._end(round_, matched, found, now, overflowing=bool(beyond))
        return list(now.values())

    def _storm(self, round_: Round, findings: Mapping[Place, list[Seen]]) -> Judgement | None:
        series = sum(int(scored.known.sum()) for scored in round_.scored.values())
        loud = sum(len(seen) for seen in findings.values())
        if not (stormy(loud, series) or (loud and round_.blank)):
            return None
        numbers = {"series": float(loud), "of": float(series), "targets": float(len(findings))}
        because = f"{loud} of {series} series at once: look at Prometheus and the network first"
        return _of_watch(round_, numbers, because)

    def _chosen(
        self, findings: Mapping[Place, list[Seen]], known: Iterable[Anomaly]
    ) -> tuple[dict[Place, list[Seen]], int]:
        """Choose what is told of by itself: what is open already, and the worst of the rest while there is room."""
        open_ = {episodes.place_of(one) for one in known if one.open}
        new = sorted(
            (place for place in findings if place not in open_),
            key=lambda place: (-max(one.score for one in findings[place]), str(place)),
        )
        room = max(0, self._most - len(open_))
        chosen = {place: seen for place, seen in findings.items() if place in open_ or place in set(new[:room])}
        return chosen, len(new[room:])

    def _doubtful(self, round_: Round, known: Iterable[Anomaly]) -> set[Place]:
        return {
            episodes.place_of(one)
            for one in known
            if one.open and one.spec.class_ != STORM and (round_.silent(one) or not one.status.signals)
        }

    async def _judge(
        self,
        round_: Round,
        chosen: Mapping[Place, list[Seen]],
        found: Mapping[Place, Found | None],
        now: Mapping[str, Anomaly],
    ) -> list[tuple[Target, list[Judgement]]]:
        judged: list[tuple[Target, list[Judgement]]] = []
        by_place: dict[Place, list[Judgement]] = {}
        for place, seen in sorted(chosen.items(), key=lambda item: str(item[0])):
            there = found[place]
            if there is None or there.over:
                continue
            earlier = [s for one in now.values() if one.open and _same(there, one) for s in one.status.signals]
            found_now = judge(place, seen, earlier, round_.terms, round_.now)
            by_place[place] = [round_.sober(one, there.pod) for one in found_now]
            judged.append((there.target, by_place[place]))
        pods = [there for place in by_place if (there := found[place]) is not None and there.pod is not None]
        return judged + await self._above(round_, pods, by_place)

    async def _above(
        self, round_: Round, pods: list[Found], by_place: Mapping[Place, list[Judgement]]
    ) -> list[tuple[Target, list[Judgement]]]:
        judged = []
        for one in await targets.above(self._reader, pods) if len(pods) > 1 else ():
            target = one.found.target
            if not (target.namespace or round_.watch.home):
                continue
            place = Place(target.kind, target.namespace, target.name)
            below = {pod: by_place[pod] for pod in one.below}
            judgements = agreement.above(place, one.pods, below, round_.watch.spec.agreement, round_.now)
            if judgements:
                judged.append((target, judgements))
        return judged

    async def _go_on(
        self, round_: Round, target: Target, judgements: Iterable[Judgement], now: dict[str, Anomaly]
    ) -> None:
        for judgement in judgements:
            anomaly = episodes.open_of(now.values(), judgement, target.uid)
            anomaly = anomaly or await self._opened(round_, target, judgement, now)
            if anomaly is None or not anomaly.open:
                continue
            now[anomaly.uid] = anomaly
            status = episodes.renewed(anomaly, judgement, round_.tick)
            if status is not None:
                await self._write(round_, anomaly, status, now)

    async def _opened(
        self, round_: Round, target: Target, judgement: Judgement, now: Mapping[str, Anomaly]
    ) -> Anomaly | None:
        try:
            return await self._open(round_, target, judgement, now)
        except KreflexError as error:
            self._leave(round_, f"{target.kind} {target.namespace}/{target.name}", error)
            return None

    async def _open(
        self, round_: Round, target: Target, judgement: Judgement, now: Mapping[str, Anomaly]
    ) -> Anomaly | None:
        spec = AnomalySpec(watch=round_.watch.key, target=target, class_=judgement.class_, since=round_.now)
        before = episodes.before(now.values(), judgement.class_, target.uid)
        try:
            anomaly, new = await self._objects.open(spec, self._home, before)
        except GoneError:
            return None
        if new:
            log.info(
                "anomaly.opened", anomaly=str(anomaly), watch=round_.watch.key, summary=episodes.summary(judgement)
            )
        return anomaly

    async def _end(
        self,
        round_: Round,
        matched: set[tuple[str, str]],
        found: Mapping[Place, Found | None],
        now: dict[str, Anomaly],
        *,
        overflowing: bool,
    ) -> None:
        simmering = {place for scored in round_.scored.values() for place in scored.simmering()}
        for anomaly in list(now.values()):
            family = agreement.family(anomaly.spec.class_)
            if not anomaly.open or (anomaly.spec.target.uid, family) in matched or (overflowing and family == STORM):
                continue
            state = round_.state(anomaly, simmering, found)
            status = episodes.dismissed(anomaly, round_.tick) or episodes.ended(anomaly, state, round_.tick)
            if status is None and state == "seen":
                status = episodes.still(anomaly, round_.tick)
            if status is not None:
                await self._write(round_, anomaly, status, now)

    async def _write(self, round_: Round, anomaly: Anomaly, status: AnomalyStatus, now: dict[str, Anomaly]) -> None:
        try:
            now[anomaly.uid] = await self._objects.change(anomaly, status)
        except (ConflictError, GoneError) as error:
            # Another replica was quicker, or somebody gave feedback just now. The next tick sees what is there then.
            log.info("anomaly.left", anomaly=str(anomaly), because=str(error))
            return
        except KreflexError as error:
            self._leave(round_, str(anomaly), error)
            return
        if status.phase == "Resolved":
            log.info("anomaly.resolved", anomaly=str(anomaly), because=status.resolved_because)

    def _leave(self, round_: Round, what: str, error: KreflexError) -> None:
        """Go on with the others: in a namespace that is being deleted, nothing can be made."""
        round_.left_alone += 1
        if round_.left_alone > _LEFT_ALONE:
            raise error
        log.warning("anomaly.not_written", about=what, watch=round_.watch.key, because=str(error))


def stormy(loud: int, series: int) -> bool:
    """Tell whether so many series are beyond their thresholds that none of them is told of by itself."""
    return series >= _STORM_SERIES and loud >= _STORM_SHARE * series


def storm_target(watch: Watch) -> Target:
    """Name a watch itself: what it is told by when nearly all of its series are loud."""
    return Target(api_version=API, kind=KIND, namespace=watch.namespace, name=watch.name, uid=watch.uid)


def _beyond(round_: Round, findings: Mapping[Place, list[Seen]], beyond: int) -> Judgement:
    numbers = {"series": float(sum(map(len, findings.values()))), "targets": float(len(findings))}
    return _of_watch(round_, numbers, f"{len(findings)} targets at once, of which {beyond} are told of only here")


def _of_watch(round_: Round, numbers: dict[str, float], because: str) -> Judgement:
    watch = round_.watch
    seen = Seen(name="watch", class_=STORM, score=1.0, peak=1.0, at=round_.now, evidence=numbers)
    return Judgement(Place(KIND, watch.namespace, watch.name), STORM, 1.0, (seen,), agreed=False, because=because)
