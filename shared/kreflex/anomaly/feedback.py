"""What people and remediations say of anomalies, and how it moves the thresholds: bounded, and for all to see.

The factors of a watch are kept beside its states and not in them, so that what is learnt anew does not lose them.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from kreflex.anomaly.anomalies import Anomaly, Feedback
from kreflex.anomaly.store import Store
from kreflex.anomaly.watches import Watch
from kreflex.audit import log
from kreflex.cluster import Reader
from kreflex.errors import ConflictError, UnavailableError
from kreflex.parts import Part
from kreflex.records import API, TARGET

LEAST, MOST = 0.5, 4.0
# What was dismissed is borne from now on, and a little more; what was confirmed makes us listen more closely.
# What is found later differs by no more than chance between 0.9 and 1; at 0.9 false alarms come back (docs/adr/0026).
_ABOVE = 1.05
_CLOSER = 0.95
# What was missed and confirmed would just be found from now on.
_BELOW = 0.97
# A remediation that did not help says little about whether there was anything to help, and one after which all is well
# says little, too: a new pod is well, whatever the old one was. Without bounds of their own, evictions for false alarms
# would bring about more of them.
_DOUBT, _DOUBTED_MOST = 1.1, 2.0
_HELP, _HELPED_LEAST = 0.97, 0.8
# Verdicts come within hours. An anomaly that was over for longer gets none.
_AWAITED = timedelta(days=1)
_TRIES = 5
# Series with a factor of their own; beyond that those go whose factor says least. What siblings share stays.
_FACTORS = 5000
_LENIENT = ConfigDict(extra="ignore")

Verdict = Literal["confirmed", "dismissed", "helped", "doubted"]
"""What people say, and what the verdicts of remediations let believe."""


def moved(factor: float, verdict: Verdict, peak: float, then: float = 1.0) -> float:
    """Give the new factor of a series; `peak` is the highest score of its alarm, and `then` the factor it had then."""
    if verdict == "confirmed":
        wanted = factor * _CLOSER if peak >= 1 else min(factor, then * peak * _BELOW)
    elif verdict == "helped":
        wanted = min(factor, max(factor * _HELP, _HELPED_LEAST))
    elif verdict == "doubted":
        wanted = max(factor, min(factor * _DOUBT, _DOUBTED_MOST))
    else:
        wanted = max(factor, then * peak * _ABOVE)
    return round(min(MOST, max(LEAST, wanted)), 4)


class Applied(Part):
    """What was made of one anomaly's feedback, so that it counts once, and can be taken back."""

    model_config = _LENIENT

    verdict: Verdict
    before: dict[str, float] = Field(default_factory=dict)


class Book(Part):
    """The factors of one watch: of series, and of what their siblings have in common."""

    model_config = _LENIENT

    factors: dict[str, float] = Field(default_factory=dict)
    applied: dict[str, Applied] = Field(default_factory=dict)
    asked: dict[str, float] = Field(default_factory=dict)
    """Until when people were asked about the past of a series, in seconds since 1970."""

    def factor(self, signal: str, series: str, siblings: Sequence[str] = ()) -> float:
        """Tell what the threshold of a series is multiplied by: its own factor, or half of what its siblings have."""
        own = self.factors.get(of_series(signal, series))
        if own is not None:
            return own
        group = self.factors.get(_of_group(signal, siblings)) if siblings else None
        return 1.0 if group is None else float(round(group**0.5, 4))


def of_series(signal: str, series: str) -> str:
    """Name a series in the book."""
    return f"{signal}/{series}"


def _of_group(signal: str, siblings: Sequence[str]) -> str:
    return f"{signal}//{'/'.join(siblings)}"


@dataclass(frozen=True)
class Heard:
    """What somebody has said of an anomaly, and who."""

    anomaly: Anomaly
    verdict: Verdict
    by: str
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)

    @property
    def feedback(self) -> Feedback:
        """How the Anomaly's status tells it."""
        return "confirmed" if self.verdict == "helped" else self.verdict

    @property
    def told(self) -> bool:
        """True when the Anomaly's status tells it already."""
        return self.anomaly.status.feedback == self.feedback and self.anomaly.status.feedback_by == self.by


def heard(anomaly: Anomaly) -> Heard | None:
    """Tell what a person has said of an anomaly."""
    said = anomaly.spec.feedback
    if said is None:
        return None
    return Heard(anomaly, "confirmed" if said.verdict == "Confirmed" else "dismissed", said.by)


async def heard_of_remediation(anomaly: Anomaly, function: str, reader: Reader, now: datetime) -> Heard | None:
    """Tell what became of the remediation that an anomaly has led to: one that helped had something to help.

    `function` is the one that the watch names for its class; "" for none.
    """
    if not function or anomaly.status.feedback or not _just_over(anomaly, now):
        return None
    path = f"/apis/{API}/namespaces/{anomaly.namespace}/remediations"
    chosen = f"{TARGET}={anomaly.spec.target.uid[:63]}"
    async for body in reader.list(path, labelSelector=chosen):
        verdict = (body.get("status") or {}).get("verdict")
        if verdict in {"Recovered", "Ineffective"} and _led(anomaly, function, body) and _after(body, anomaly):
            by = f"Remediation {body['metadata']['name']}"
            return Heard(anomaly, "helped" if verdict == "Recovered" else "doubted", by)
    return None


def _just_over(anomaly: Anomaly, now: datetime) -> bool:
    over = anomaly.status.resolved_at
    return not anomaly.open and over is not None and now - over <= _AWAITED


def _led(anomaly: Anomaly, function: str, remediation: Mapping[str, Any]) -> bool:
    """Tell whether a remediation of the same object was done for this anomaly."""
    if remediation["spec"].get("function") != function:
        return False
    if anomaly.spec.target.kind != "Pod":
        return True
    # An eviction names the class that it was for. That of a pod that crashed says nothing of its anomalies.
    intent = (remediation.get("status") or {}).get("intent") or {}
    return bool((intent.get("prior") or {}).get("anomaly") == anomaly.spec.class_)


def _after(body: Mapping[str, Any], anomaly: Anomaly) -> bool:
    return str(body["metadata"]["creationTimestamp"]) >= anomaly.spec.since.strftime("%Y-%m-%dT%H:%M:%SZ")


def changed(book: Book, heard: Iterable[Heard], known: Iterable[str] | None = None) -> Book:
    """Give the book with these verdicts; each counts once, and one that was changed takes back the one before.

    `known` are the UIDs of the anomalies that are still there: of others nothing more will be heard.
    """
    factors, applied = dict(book.factors), dict(book.applied)
    for one in heard:
        uid = one.anomaly.uid
        done = applied.get(uid)
        if done is not None and done.verdict == one.verdict:
            continue
        factors |= done.before if done else {}
        before = {}
        for key, peak, then in _moves(one):
            now = factors.get(key, 1.0)
            before[key] = now
            factors[key] = moved(now, one.verdict, peak, then)
        applied[uid] = Applied(verdict=one.verdict, before=before)
    there = set(applied) if known is None else set(known)
    kept = {uid: applied[uid] for uid in applied if uid in there}
    taught = _bounded({key: factors[key] for key in sorted(factors) if factors[key] != 1.0}, kept)
    return book.model_copy(update={"factors": taught, "applied": kept})


def _bounded(factors: dict[str, float], applied: Mapping[str, Applied]) -> dict[str, float]:
    """Keep the book small: pods whose remediation was judged never come back, and nobody says when one is gone."""
    if len(factors) <= _FACTORS:
        return factors
    named = {key for one in applied.values() for key in one.before}
    kept = [key for key in factors if key in named or "//" in key.partition("{")[0]]
    others = sorted(factors.keys() - set(kept), key=lambda key: (-abs(factors[key] - 1), key))
    chosen = {*kept, *others[: max(0, _FACTORS - len(kept))]}
    return {key: factor for key, factor in factors.items() if key in chosen}


def _moves(one: Heard) -> Iterable[tuple[str, float, float]]:
    for seen in one.anomaly.status.signals:
        peak = max(seen.peak, seen.score)
        yield of_series(seen.name, seen.series), peak, seen.factor
        siblings = one.groups.get(seen.series)
        if siblings:
            yield _of_group(seen.name, siblings), peak, seen.factor


def book_name(watch: Watch) -> str:
    """Name the book of a watch in the store; no signal's name has a dot."""
    return f"{watch.uid}.feedback.book"


async def read_book(store: Store, watch: Watch) -> tuple[Book, str]:
    """Read the factors of a watch, and their version in the store."""
    stored = await store.read(book_name(watch))
    if stored is None:
        return Book(), ""
    try:
        return Book.model_validate_json(stored.content), stored.version
    except ValidationError as error:
        # Without it the thresholds are those that the detector states: sound, only not yet taught.
        log.warning("feedback.unreadable", watch=watch.key, error=str(error))
        return Book(), stored.version


async def apply(store: Store, watch: Watch, heard: Sequence[Heard], known: Iterable[str]) -> Book:
    """Write verdicts into the book of a watch, once each, whoever else writes; raises UnavailableError."""
    there = tuple(known)
    return await rewrite(store, watch, lambda book: changed(book, heard, there))


async def rewrite(store: Store, watch: Watch, change: Callable[[Book], Book]) -> Book:
    """Change the book of a watch, whoever else writes; raises UnavailableError."""
    for _ in range(_TRIES):
        book, version = await read_book(store, watch)
        new = change(book)
        if new == book:
            return book
        content = json.dumps(new.model_dump(mode="json", by_alias=True), sort_keys=True).encode()
        try:
            await store.write(book_name(watch), content, version)
        except ConflictError:
            continue
        return new
    raise UnavailableError(f"the feedback of {watch.key} is written by others all the time; it is tried again")
