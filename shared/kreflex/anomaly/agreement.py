"""What the signals of one target say together: which classes, and whether enough of them agree to act on it.

One series alone is wrong too often to lead to anything but a look
(of the single alarms of good detectors on public data, a third to a half are false).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kreflex.anomaly.anomalies import Seen
from kreflex.durations import show_duration

# These only say in which way it is unlike its own past: one episode of them goes by the name that it had first.
GENERIC = frozenset({"anomaly", "level-shift", "season", "spike"})
# These foretell; only another forecast agrees with them.
FORECASTS = frozenset({"exhaustion", "leak"})
# Ticks within which signals are beyond their thresholds at the same time.
TOGETHER = 5
_SHARE = 0.5


def family(class_: str) -> str:
    """Tell what a target has one open Anomaly of."""
    return "generic" if class_ in GENERIC else class_


@dataclass(frozen=True)
class Place:
    """What a series is about, by name; only the cluster knows its UID."""

    kind: str
    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.kind} {self.namespace}/{self.name}" if self.namespace else f"{self.kind} {self.name}"


@dataclass(frozen=True)
class Judgement:
    """What is wrong with one target, as its signals tell it."""

    place: Place
    class_: str
    score: float
    signals: tuple[Seen, ...]
    agreed: bool
    because: str

    @property
    def family(self) -> str:
        """What a target has one open Anomaly of."""
        return family(self.class_)


@dataclass(frozen=True)
class Terms:
    """What a watch asks of its signals."""

    agreement: int
    step: timedelta
    limits: frozenset[str] = field(default=frozenset())
    """The signals that have a limit: what is foretold of others has no end."""

    @property
    def together(self) -> timedelta:
        """How long a signal counts that was beyond its threshold."""
        return TOGETHER * self.step


def judge(place: Place, found: Iterable[Seen], earlier: Iterable[Seen], terms: Terms, now: datetime) -> list[Judgement]:
    """Judge a target by what was found of it now, and by what its open Anomalies say of the last few ticks."""
    now_, recent = list(found), [one for one in earlier if now - one.at <= terms.together]
    families: Mapping[str, list[Seen]] = defaultdict(list)
    for one in now_:
        families[family(one.class_)].append(one)
    return [_judged(place, ones, latest([*recent, *now_]), terms) for _, ones in sorted(families.items())]


def _judged(place: Place, found: list[Seen], around: list[Seen], terms: Terms) -> Judgement:
    worst = max(found, key=lambda one: (one.score, one.name))
    supporting = sorted(
        (one for one in around if _supports(one, worst.class_)), key=lambda one: (-one.score, one.name, one.series)
    )
    agreed, because = _agree(worst, {one.name for one in supporting}, terms)
    return Judgement(place, worst.class_, worst.score, tuple(supporting), agreed, because)


def latest(signals: Iterable[Seen]) -> list[Seen]:
    """Keep of each series what was seen last, and of that moment the worst; the peak of all of them stays with it."""
    kept: dict[tuple[str, str], Seen] = {}
    for one in sorted(signals, key=lambda one: (one.at, one.score)):
        before = kept.get((one.name, one.series), one)
        kept[one.name, one.series] = one.model_copy(
            update={"peak": max(before.peak, before.score, one.peak, one.score)}
        )
    return list(kept.values())


def _supports(one: Seen, class_: str) -> bool:
    return one.class_ in FORECASTS if class_ in FORECASTS else True


def _agree(worst: Seen, names: set[str], terms: Terms) -> tuple[bool, str]:
    told = ", ".join(sorted(names))
    if len(names) < terms.agreement:
        return False, f"{len(names)} of the {terms.agreement} signals that have to agree: {told}"
    if worst.class_ in FORECASTS and not names & terms.limits:
        return False, f"{told} agree, but none of them has a limit that would be reached"
    return True, f"{len(names)} signals agree within {show_duration(terms.together)}: {told}"


def above(
    parent: Place, of: int, below: Mapping[Place, Iterable[Judgement]], least: int, now: datetime
) -> list[Judgement]:
    """Judge a workload by its pods, or a node by what runs on it: half of them, and `least` at least, in one way."""
    ways: dict[str, list[Judgement]] = defaultdict(list)
    for judgements in below.values():
        for kind, worst in {one.family: one for one in sorted(judgements, key=lambda one: one.score)}.items():
            ways[kind].append(worst)
    found = []
    for ones in ways.values():
        if len(ones) < max(2, least, _SHARE * of):
            continue
        scores = sorted(one.score for one in ones)
        middle, worst = scores[len(scores) // 2], max(ones, key=lambda one: (one.score, str(one.place)))
        numbers = {"pods": float(len(ones)), "of": float(of)}
        seen = Seen(name="pods", class_=worst.class_, score=middle, at=now, evidence=numbers)
        because = f"{len(ones)} of {of} pods of {parent} agree"
        found.append(Judgement(parent, worst.class_, middle, (seen,), agreed=True, because=because))
    return found
