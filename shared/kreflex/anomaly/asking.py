"""Questions about the past of a series: its strongest moments, alarms and near misses, and what the answers teach.

Who only hears alerts is never asked about what was missed. A question is no alert, opens nothing and leads to nothing:
only its answer moves the factor of its series, within the bounds of all feedback.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from kreflex.anomaly.detector import Floats
from kreflex.anomaly.feedback import Book, Verdict, moved, of_series, rewrite
from kreflex.anomaly.replay import Replay, Track
from kreflex.anomaly.store import Store
from kreflex.anomaly.watches import Watch

# Of the threshold; nobody is asked about what is below: a lower one finds no more in the time after the answers, and
# has more false alarms then (docs/adr/0026).
LEAST = 0.7
_HOUR = 3600.0
# A series that nobody has spoken of for so long before the others is forgotten, for pods do not come back.
_REMEMBERED = 60 * 86_400.0


@dataclass(frozen=True)
class Answer:
    """What a person said of one moment; `score` is 1 at the threshold that nobody has moved."""

    score: float
    verdict: Verdict


@dataclass(frozen=True)
class Questions:
    """The past of one series, and how often it may be asked about."""

    track: Track
    row: int
    factor: float
    moments: tuple[int, ...]

    @property
    def series(self) -> str:
        """The series' key."""
        return self.track.matrix.keys[self.row]

    @property
    def name(self) -> str:
        """How the book calls it."""
        return of_series(self.track.signal.name, self.series)


@dataclass(frozen=True)
class Taught:
    """What was said of one series, and until when its past was looked at."""

    name: str
    answers: tuple[Answer, ...]
    until: float
    factor: float = 1.0
    """What held for it when nobody had spoken of itself."""


def apart(step: float) -> int:
    """Tell in how many samples two moments are two: an hour, or six samples where they are sparse."""
    return max(6, round(_HOUR / step))


def moments(scores: Floats, apart: int, most: int, factor: float = 1.0) -> Iterator[int]:
    """Give where the strongest moments are that are worth a question, the strongest first."""
    left = np.nan_to_num(scores, nan=-1.0)
    for _ in range(most):
        at = int(left.argmax()) if len(left) else 0
        if not len(left) or left[at] < LEAST * factor:
            return
        yield at
        left[max(0, at - apart + 1) : at + apart] = -1


def asked(scores: Floats, moments: Iterable[int], ask: Callable[[int], Verdict | None]) -> tuple[Answer, ...]:
    """Ask about moments, the strongest first, until one is dismissed: what is weaker than that can't be listened to."""
    answers = []
    for at in moments:
        verdict = ask(at)
        if verdict is not None:
            answers.append(Answer(float(scores[at]), verdict))
        if verdict == "dismissed":
            break
    return tuple(answers)


def taught(factor: float, answers: Iterable[Answer]) -> float:
    """Give the factor of a series after these answers."""
    for answer in answers:
        factor = moved(factor, answer.verdict, answer.score / factor, factor)
    return factor


def questions(played: Replay, book: Book, most: int) -> list[Questions]:
    """Give what there is to ask of the time that was played, `most` of each series; the loudest series first."""
    found = [one for track in played.tracks for one in _of_track(track, played.watch, book, most)]
    return sorted(found, key=lambda one: (-one.track.scores[one.row, one.moments[0]] / one.factor, one.name))


def _of_track(track: Track, watch: Watch, book: Book, most: int) -> Iterator[Questions]:
    times, between = track.matrix.times, apart(track.matrix.step)
    for row, key in enumerate(track.matrix.keys):
        name = of_series(track.signal.name, key)
        factor = book.factor(track.signal.name, key, watch.siblings(track.matrix.labels[row]))
        # What somebody has answered before is not asked again.
        scores = np.where(times > book.asked.get(name, 0.0), track.scores[row], np.nan)
        worth = tuple(moments(scores, between, most, factor))
        if worth:
            yield Questions(track, row, factor, worth)


def learnt(book: Book, taught_: Sequence[Taught]) -> Book:
    """Give the book with these answers; those about a time that was answered already don't count again."""
    factors, until = dict(book.factors), dict(book.asked)
    for one in taught_:
        if one.until > until.get(one.name, 0.0):
            factors[one.name] = taught(factors.get(one.name, one.factor), one.answers)
            until[one.name] = one.until
    kept = {name: factors[name] for name in sorted(factors) if factors[name] != 1.0}
    return book.model_copy(update={"factors": kept, "asked": _recent(until)})


def _recent(until: Mapping[str, float]) -> dict[str, float]:
    newest = max(until.values(), default=0.0)
    return {name: time for name, time in until.items() if time > newest - _REMEMBERED}


async def teach(store: Store, watch: Watch, answers: Sequence[Taught]) -> Book:
    """Write answers where the watch's feedback is kept; raises UnavailableError."""
    return await rewrite(store, watch, lambda book: learnt(book, answers))
