"""What is known of the series of each signal: read for the fast path, and brought up to date on the slow one."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kreflex.anomaly.anomalies import Anomaly
from kreflex.anomaly.codec import Bundle
from kreflex.anomaly.detector import Detector
from kreflex.anomaly.learning import Exclusion, States, refresh, state_name
from kreflex.anomaly.reading import Samples
from kreflex.anomaly.scoring import Scored
from kreflex.anomaly.store import Store
from kreflex.anomaly.watches import Pointer, Signal, Watch
from kreflex.audit import log
from kreflex.cluster import Reader
from kreflex.errors import KreflexError
from kreflex.records import API
from kreflex.views import JSON, moment

# A state learns on after so many samples, as learning.py has it.
_SAMPLES = 60
# For so long an anomaly that nobody has confirmed is not learnt from.
UNCONFIRMED = timedelta(days=1)
_OVER = frozenset({"Aborted", "Done", "Refused"})


@dataclass(frozen=True)
class Due:
    """A state that is to be brought up to date, and why."""

    watch: Watch
    signal: Signal
    age: float


class Knowledge:
    """The states in the store, and what is to be learnt."""

    def __init__(self, store: Store, samples: Samples, detector: Detector) -> None:
        self._store = store
        self._samples = samples
        self._detector = detector
        self._states = States(store)
        self._tried: dict[str, tuple[str, ...]] = {}

    async def of(self, watch: Watch, signal: Signal) -> Bundle | None:
        """Read the state of a signal; None if nothing was learnt yet."""
        return await self._states.load(watch, signal, self._detector)

    def due(self, scored: Scored, bundle: Bundle | None, at: float) -> Due | None:
        """Tell whether a state is to be brought up to date: it is old, or there are series that it does not know."""
        watch, signal = scored.watch, scored.signal
        if bundle is None:
            return Due(watch, signal, float("inf"))
        period = _SAMPLES * watch.step
        new = tuple(scored.recent.keys[row] for row in (~scored.known).nonzero()[0])
        # What could not be learnt the last time, for it is too short, waits for the next period.
        worth = bool(new) and new != self._tried.get(state_name(watch, signal))
        self._tried[state_name(watch, signal)] = new
        return Due(watch, signal, at - bundle.tick) if worth or at - bundle.tick >= period else None

    async def learn(self, due: Iterable[Due], at: float, excluded: Sequence[Exclusion], deadline: float) -> list[str]:
        """Bring states up to date, the oldest first, until the time is over; what could not be done, in words."""
        failures = []
        for one in sorted(due, key=lambda one: (-one.age, one.watch.key, one.signal.name)):
            left = deadline - time.monotonic()
            if left <= 0:
                log.info("anomaly.learning_waits", watch=one.watch.key, signal=one.signal.name)
                self._tried.pop(state_name(one.watch, one.signal), None)
                continue
            try:
                await self._learn(one, at, excluded, left)
            # Whatever it is, as of somebody's own detector, it is this signal's: the others learn all the same.
            except Exception as error:  # noqa: BLE001
                failures.append(f"{one.watch.key} {one.signal.name} was not learnt: {in_words(error)}")
        return failures

    async def _learn(self, due: Due, at: float, excluded: Sequence[Exclusion], seconds: float) -> None:
        mine = [one for one in excluded if not one.labels or _may_be_about(one, due.watch)]
        learnt = await refresh(self._store, self._samples, due.watch, due.signal, self._detector, at, mine, seconds)
        if learnt.pending:
            self._tried.pop(state_name(due.watch, due.signal), None)
        about = {"watch": due.watch.key, "signal": due.signal.name, "told": list(learnt.told)}
        numbers = {"new": learnt.new, "updated": learnt.updated, "dropped": learnt.dropped, "pending": learnt.pending}
        log.info("anomaly.learnt", **about, **numbers)


def in_words(error: Exception) -> str:
    """Say what went wrong; what nobody has foreseen is logged with where it happened, too."""
    if isinstance(error, KreflexError):
        return str(error)
    log.error("anomaly.failed", error=repr(error), exc_info=error)
    return repr(error)


def _may_be_about(one: Exclusion, watch: Watch) -> bool:
    return set(one.labels) <= {watch.spec.target.namespace_label, watch.spec.target.name_label}


def incidents(watch: Watch, known: Iterable[Anomaly], now: datetime) -> list[Exclusion]:
    """Tell when targets of a watch were not normal, as people or remediations have confirmed, or as is open now."""
    pointer = watch.spec.target
    found = []
    for one in known:
        until = _abnormal_until(one, now)
        if until is None:
            continue
        target = one.spec.target
        labels = {pointer.name_label: target.name}
        if target.namespace:
            labels[pointer.namespace_label] = target.namespace
        found.append(Exclusion(labels, began(one.spec.since, watch), until.timestamp()))
    return found


def _abnormal_until(anomaly: Anomaly, now: datetime) -> datetime | None:
    """Tell until when an anomaly is not learnt from; None if it is.

    One that nobody has confirmed may be the new normal: after a day it is learnt, so that it ends.
    """
    feedback = anomaly.status.feedback
    if feedback == "confirmed":
        return anomaly.status.resolved_at or now
    return min(now, anomaly.spec.since + UNCONFIRMED) if anomaly.open and feedback != "dismissed" else None


def began(since: datetime, watch: Watch) -> float:
    """Tell from when on samples are not normal: before an anomaly was seen it had begun."""
    return since.timestamp() - 5 * watch.step


async def experiments(reader: Reader, watch: Watch, now: datetime) -> list[Exclusion]:
    """Tell when somebody broke things on purpose that a watch looks at."""
    found = []
    async for body in reader.list_served(f"/apis/{API}/experiments"):
        for run in _runs(body, now):
            found += [Exclusion(one, run.since, run.until) for one in _broken(body, run, watch.spec.target)]
    return found


@dataclass(frozen=True)
class _Run:
    """A run of an experiment, and what it broke beside what is in its namespace."""

    since: float
    until: float
    nodes: tuple[str, ...]
    namespaces: tuple[str, ...]


def _broken(body: JSON, run: _Run, pointer: Pointer) -> list[dict[str, str]]:
    """Give the labels of what was broken in a run: of all there is, where a leader of the control plane was missing."""
    if ((body.get("spec") or {}).get("fault") or {}).get("kind") == "LeaderLoss":
        return [{}]
    if pointer.kind == "Node":
        return [{pointer.name_label: name} for name in run.nodes]
    return [{pointer.namespace_label: name} for name in dict.fromkeys((body["metadata"]["namespace"], *run.namespaces))]


def _runs(body: JSON, now: datetime) -> list[_Run]:
    """Give the runs of an experiment: those before, and the last one."""
    status = body.get("status") or {}
    ended = moment(status.get("finishedAt")) if status.get("phase") in _OVER else now
    last = _run(moment(status.get("startedAt")), ended or now, *_hit(status))
    past = [
        _run(moment(one.get("since")), moment(one.get("until")), one.get("nodes") or (), one.get("namespaces") or ())
        for one in status.get("past") or ()
    ]
    return [run for run in (*past, last) if run is not None]


def _run(
    since: datetime | None, until: datetime | None, nodes: Iterable[str], namespaces: Iterable[str]
) -> _Run | None:
    if since is None or until is None:
        return None
    return _Run(since.timestamp(), until.timestamp(), tuple(nodes), tuple(namespaces))


def _hit(status: JSON) -> tuple[list[str], list[str]]:
    """Name the nodes that are hit, as a target or by an engine that was told to, and whose pods have to move."""
    injected = [one for one in status.get("injected") or () if isinstance(one, dict)]
    named = [one["target"]["name"] for one in injected if one.get("target", {}).get("kind") == "Node"]
    told = [one.get("prior") or "[]" for one in injected if one.get("fault") == "Engine"]
    nodes = {*named, *(name for text in told for name in json.loads(text))}
    return sorted(nodes), sorted({name for one in injected for name in one.get("moves") or ()})
