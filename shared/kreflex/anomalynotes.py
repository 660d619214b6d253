"""What anomaly-scorer says of a pod, as who acts on it reads it.

No alert and no event is believed, for these are easily forged: only the `Anomaly` in the cluster counts, which
admission lets nobody write but anomaly-scorer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime

from pydantic import ValidationError

from kreflex.anomaly.anomalies import KIND, PLURAL, Anomaly, anomalies_of, read_anomaly
from kreflex.anomalyterms import Anomalies
from kreflex.cluster import Reader
from kreflex.policy import GROUP, VERSION
from kreflex.rule import Rule
from kreflex.views import Ref

RBAC = (Rule(GROUP, PLURAL, "list"),)


async def open_anomalies(pod: Ref, reader: Reader) -> list[Anomaly]:
    """Read the open anomalies of a pod, by its UID: those of an earlier one of its name are not its own."""
    found = await anomalies_of(reader, pod.uid, pod.namespace)
    return [one for one in found if one.open and one.spec.target.uid == pod.uid]


async def agreed_anomalies(reader: Reader) -> Mapping[str, Sequence[Anomaly]]:
    """Read what several signals say now, of everything in the namespaces that are looked after, by UID."""
    found = defaultdict(list)
    async for body in reader.everywhere(f"{GROUP}/{VERSION}", KIND):
        try:
            one = read_anomaly(body)
        except ValidationError:
            # Whoever looks at its pod is told so.
            continue
        if one.open and one.status.agreed:
            found[one.spec.target.uid].append(one)
    return found


def doubt(anomaly: Anomaly, terms: Anomalies, now: datetime) -> str | None:
    """Tell why a pod must not be evicted for an anomaly, by a policy's terms; None if it may."""
    status, kind = anomaly.status, anomaly.spec.class_
    if kind not in terms.classes:
        return f"{anomaly}: no policy lets {kind} lead to an eviction (anomalies.classes)"
    if anomaly.dismissed:
        return f"{anomaly} was dismissed by {anomaly.dismissed}"
    if not status.agreed:
        return f"{anomaly} may lead to nothing: {status.because or 'no second signal agrees'}"
    seen = _signals(anomaly)
    if seen < terms.signals:
        return f"{anomaly} is seen by {seen} signals, and the policy wants {terms.signals} (anomalies.signals)"
    if not anomaly.fresh(now):
        return f"{anomaly} is old: it is not beyond its threshold now, or anomaly-scorer is silent (status.freshUntil)"
    return None


def first_certain(found: Sequence[Anomaly], terms: Anomalies, now: datetime) -> Anomaly | None:
    """Choose the anomaly that a pod may be evicted for; of several the one that is farthest beyond its threshold."""
    certain = [one for one in found if doubt(one, terms, now) is None]
    return max(certain, key=lambda one: one.status.score or 0, default=None)


def story(anomaly: Anomaly) -> str:
    """Say what is wrong, and how many signals say so."""
    count = _signals(anomaly)
    agree = f"{count} signals agree" if count > 1 else "one signal says so"
    return f"{anomaly.status.summary or anomaly.spec.class_}; {agree}"


def _signals(anomaly: Anomaly) -> int:
    """Count the signals that say so: several series of one, as of two containers, are one signal."""
    return len({one.name for one in anomaly.status.signals})
