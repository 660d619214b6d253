"""The past of a watch, played again as production would have seen it: learnt first, then scored tick by tick."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt

from kreflex.anomaly.agreement import Judgement, Place, Terms, judge
from kreflex.anomaly.anomalies import STORM, Seen
from kreflex.anomaly.detector import About, Bools, Detector, Floats
from kreflex.anomaly.episodes import CALM
from kreflex.anomaly.reading import Matrix, Vector
from kreflex.anomaly.reconciling import stormy
from kreflex.anomaly.scoring import Sampling, Scored, groups_of, limits_of, spread
from kreflex.anomaly.states import UNCONFIRMED, began
from kreflex.anomaly.watches import KIND, Signal, Watch
from kreflex.errors import KreflexError

# 1,000 series for a week at a minute are 80 MB.
MOST_POINTS = 20_000_000
_PIECE = 60
_DAY = 86_400.0


class TooMuchError(KreflexError):
    """More samples than fit into memory."""


@dataclass
class Track:
    """One signal over the whole time. `scores` and `flags` have the shape of the samples; nothing while it learns."""

    signal: Signal
    matrix: Matrix
    learnt: int
    """How many samples at the beginning were only learnt from."""
    scores: Floats
    flags: Bools

    @property
    def series_days(self) -> float:
        """For how long series were scored, all together."""
        return float(np.isfinite(self.scores).sum()) * self.matrix.step / _DAY


@dataclass
class Raised:
    """One anomaly that would have been opened."""

    place: Place
    class_: str
    since: datetime
    last_seen: datetime
    score: float
    agreed: bool
    remediation: str
    because: str
    signals: list[Seen] = field(default_factory=list)

    @property
    def series(self) -> set[tuple[str, str]]:
        """The series that it was seen in, each with its signal."""
        return {(one.name, one.series) for one in self.signals}


@dataclass
class Replay:
    """What would have been raised in the time that was played."""

    watch: Watch
    since: datetime
    until: datetime
    tracks: list[Track]
    raised: list[Raised]

    @property
    def series_days(self) -> float:
        """For how long series were scored, all together."""
        return sum(track.series_days for track in self.tracks)


async def replay(
    samples: Sampling,
    detector: Detector,
    watch: Watch,
    end: float,
    last: timedelta,
    tell: Callable[[str], None] = lambda _: None,
) -> Replay:
    """Play the last so much time of a watch; raises UnavailableError, and TooMuchError."""
    count = int(last.total_seconds() / watch.step)
    learnt = min(int(watch.spec.history.total_seconds() / watch.step), count // 2)
    if learnt < 2 * detector.window:
        raise TooMuchError(
            f"{2 * detector.window * 2 * watch.step / 3600:.1f} h are needed at least, half of it to learn from"
        )
    players = [
        await _player(samples, detector, watch, signal, end, count, learnt, tell) for signal in watch.spec.signals
    ]
    story = _Story(watch)
    for tick in range(learnt, count):
        now = datetime.fromtimestamp(end - (count - 1 - tick) * watch.step, UTC)
        open_ = story.began()
        story.tick(now, [await player.play(tick, open_) for player in players])
    first = datetime.fromtimestamp(end - (count - 1 - learnt) * watch.step, UTC)
    return Replay(watch, first, datetime.fromtimestamp(end, UTC), [one.track for one in players], story.raised)


async def _player(
    samples: Sampling,
    detector: Detector,
    watch: Watch,
    signal: Signal,
    end: float,
    count: int,
    learnt: int,
    tell: Callable[[str], None],
) -> _Player:
    tell(f"{watch.key} {signal.name}: reading {count} samples of each series")
    matrix = await samples.window(signal.query, end, watch.step, count)
    if matrix.values.size > MOST_POINTS:
        raise TooMuchError(
            f"{watch.key} {signal.name}: {len(matrix.keys)} series with {count} samples are more than fit; narrow"
            " the query, or play less time with --last"
        )
    tell(f"{watch.key} {signal.name}: playing {len(matrix.keys)} series")
    player = _Player(samples, detector, watch, signal, matrix, learnt)
    await player.begin()
    return player


class _Player:
    """Scores one signal tick by tick, and learns as the slow path does."""

    def __init__(
        self, samples: Sampling, detector: Detector, watch: Watch, signal: Signal, matrix: Matrix, learnt: int
    ) -> None:
        self._samples = samples
        self._detector = detector
        self._watch = watch
        self._signal = signal
        shape = matrix.values.shape
        self.track = Track(signal, matrix, learnt, np.full(shape, np.nan), np.zeros(shape, bool))
        self._state = np.zeros(shape[0], detector.dtype)
        self._known = np.zeros(shape[0], bool)
        self._groups = groups_of(watch, matrix.labels)
        self._limit: Floats | None = None

    async def begin(self) -> None:
        """Learn from the first part."""
        learnt = self.track.learnt
        await self._ask_limit(learnt - 1)
        there = np.asarray(np.isfinite(self.track.matrix.values[:, :learnt]).any(axis=1))
        self._learn(learnt - 1, there, learnt)

    async def play(self, tick: int, open_: Mapping[Place, datetime]) -> Scored:
        """Score one tick, and learn what production learns at it; `open_` are the anomalies there are, since when."""
        if (tick - self.track.learnt) % _PIECE == _PIECE - 1:
            await self._ask_limit(tick)
            self._update(tick, open_)
        scored = self._score(tick)
        # Who has appeared is learnt at the tick that sees it, and scored from the next on.
        self._learn(tick, np.isfinite(self.track.matrix.values[:, tick]) & ~self._known, 2 * self._detector.window)
        return scored

    async def _ask_limit(self, tick: int) -> None:
        if self._signal.limit:
            limit: Vector = await self._samples.instant(self._signal.limit, self._at(tick))
            self._limit = limits_of(self.track.matrix.labels, limit)

    def _at(self, tick: int) -> float:
        matrix = self.track.matrix
        return float(matrix.end - (matrix.values.shape[1] - 1 - tick) * matrix.step)

    def _about(self, tick: int, rows: npt.NDArray[np.intp]) -> About:
        return About(
            self._watch.step,
            self._at(tick),
            self._signal.kind,
            self._watch.spec.false_alarms_per_series_day,
            None if self._limit is None else self._limit[rows],
            None if self._groups is None else self._groups[rows],
            horizon=self._watch.spec.horizon.total_seconds(),
        )

    def _learn(self, tick: int, wanted: Bools, samples: int) -> None:
        rows = np.flatnonzero(wanted)
        if not len(rows):
            return
        history = self.track.matrix.values[rows, max(0, tick + 1 - samples) : tick + 1]
        self._state[rows] = self._detector.learn(history, self._about(tick, rows))
        self._known[rows] = True

    def _update(self, tick: int, open_: Mapping[Place, datetime]) -> None:
        rows = np.flatnonzero(self._known)
        begin = max(0, tick + 1 - _PIECE - self._detector.window + 1)
        recent = self.track.matrix.values[rows, begin : tick + 1]
        mask = self._mask(rows, np.array([self._at(one) for one in range(begin, tick + 1)]), open_) if open_ else None
        self._state[rows] = self._detector.update(self._state[rows], recent, self._about(tick, rows), mask)

    def _mask(self, rows: npt.NDArray[np.intp], times: Floats, open_: Mapping[Place, datetime]) -> Bools:
        """Tell which samples are not learnt from: those of anomalies that are open, for a day at most."""
        mask = np.zeros((len(rows), len(times)), dtype=bool)
        for number, row in enumerate(rows):
            named = self._watch.target(self.track.matrix.labels[row])
            since = open_.get(Place(self._watch.spec.target.kind, *named)) if named else None
            if since is not None:
                until = (since + UNCONFIRMED).timestamp()
                mask[number] = (times >= began(since, self._watch)) & (times <= until)
        return mask

    def _score(self, tick: int) -> Scored:
        matrix, known = self.track.matrix, self._known.copy()
        rows = np.flatnonzero(known)
        recent = matrix.values[:, tick + 1 - self._detector.window : tick + 1]
        everything = np.arange(len(known))
        about = self._about(tick, everything)
        if len(rows):
            scores = spread(
                self._detector.score(self._state[rows], recent[rows], self._about(tick, rows)), rows, len(known)
            )
        else:
            scores = spread(None, rows, len(known))
        self.track.scores[:, tick], self.track.flags[:, tick] = scores.score, scores.flag
        now = replace(matrix, values=recent, end=self._at(tick))
        return Scored(self._watch, self._signal, now, scores, known, about)


class _Story:
    """What is opened and over, tick by tick, by the rules that hold in the cluster."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch
        spec = watch.spec
        self._terms = Terms(spec.agreement, spec.interval, frozenset(one.name for one in spec.signals if one.limit))
        self._open: dict[tuple[Place, str], Raised] = {}
        self.raised: list[Raised] = []

    def began(self) -> dict[Place, datetime]:
        """Tell what is open, and since when."""
        newest_first = sorted(self._open.values(), key=lambda one: one.since, reverse=True)
        return {one.place: one.since for one in newest_first}

    def tick(self, now: datetime, scored: Sequence[Scored]) -> None:
        """Go on by one tick."""
        found: dict[Place, list[Seen]] = {}
        for one in scored:
            for place, seen in one.findings():
                found.setdefault(place, []).append(seen)
        loud, series = sum(map(len, found.values())), sum(int(one.known.sum()) for one in scored)
        if stormy(loud, series):
            self._take(now, [self._storm(loud, series, now)])
            return
        simmering = {place for one in scored for place in one.simmering()} if self._open else set()
        matched = {key for place, seen in found.items() for key in self._take(now, self._judged(place, seen, now))}
        self._end(now, matched, simmering)

    def _judged(self, place: Place, seen: Sequence[Seen], now: datetime) -> list[Judgement]:
        earlier = [one for (where, _), open_ in self._open.items() if where == place for one in open_.signals]
        return judge(place, seen, earlier, self._terms, now)

    def _storm(self, loud: int, series: int, now: datetime) -> Judgement:
        place = Place(KIND, self._watch.namespace, self._watch.name)
        seen = Seen(name="watch", class_=STORM, score=1.0, at=now)
        because = f"{loud} of {series} series at once"
        return Judgement(place, STORM, 1.0, (seen,), agreed=False, because=because)

    def _take(self, now: datetime, judgements: Iterable[Judgement]) -> list[tuple[Place, str]]:
        keys = []
        for one in judgements:
            key = (one.place, one.family)
            open_ = self._open.get(key)
            if open_ is None:
                open_ = Raised(one.place, one.class_, now, now, one.score, one.agreed, "", one.because)
                self._open[key] = open_
                self.raised.append(open_)
            open_.last_seen, open_.score = now, max(open_.score, one.score)
            open_.signals = list(one.signals)
            if one.agreed and not open_.remediation:
                open_.agreed, open_.because = True, one.because
                open_.remediation = _led(self._watch).get(open_.class_, "")
            keys.append(key)
        return keys

    def _end(self, now: datetime, matched: set[tuple[Place, str]], simmering: set[Place]) -> None:
        for key, open_ in list(self._open.items()):
            if key in matched:
                continue
            if key[0] in simmering:
                open_.last_seen = now
            elif now - open_.last_seen >= CALM * self._watch.spec.interval:
                del self._open[key]


def _led(watch: Watch) -> Mapping[str, str]:
    return {one.class_: one.function for one in watch.spec.remediations}
