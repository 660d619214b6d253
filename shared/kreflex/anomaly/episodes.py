"""What becomes of the Anomaly objects of a watch after one tick: opened, renewed, resolved, or left as they are.

Nothing is remembered between two ticks but what stands in the objects. Two replicas at one tick come to the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Literal

from kreflex.anomaly.agreement import Judgement, Place, family
from kreflex.anomaly.anomalies import Anomaly, AnomalyStatus, Seen, Window

# A score is over only where it is well below its threshold.
LOW = 0.8
# In ticks. What is seen is written down again after RENEW of them; what was not seen for CALM of them is over.
RENEW = 3
CALM = 6
FRESH = 6
# So long nothing can be known of it, as of a query that was mended wrongly; then it is over, as far as anyone knows.
UNKNOWN = timedelta(days=1)
_SIGNALS = 20

State = Literal["seen", "calm", "gone", "unknown"]


@dataclass(frozen=True)
class Tick:
    """One tick of one watch."""

    at: datetime
    step: timedelta
    model: str
    window: Window
    remediations: Mapping[str, str] = field(default_factory=dict)


def place_of(anomaly: Anomaly) -> Place:
    """Tell what an Anomaly is about, by name."""
    target = anomaly.spec.target
    return Place(target.kind, target.namespace, target.name)


def open_of(known: Iterable[Anomaly], judgement: Judgement, uid: str) -> Anomaly | None:
    """Find the open Anomaly that a judgement goes on with."""
    return next(
        (
            one
            for one in sorted(known, key=lambda one: (one.spec.since, one.name))
            if one.open and one.spec.target.uid == uid and family(one.spec.class_) == judgement.family
        ),
        None,
    )


def before(known: Iterable[Anomaly], class_: str, uid: str) -> str:
    """Tell the UID of the last Anomaly of this class on this target; "" for the first."""
    over = [one for one in known if not one.open and one.key == (uid, class_)]
    return max(over, key=lambda one: (one.spec.since, one.uid)).uid if over else ""


def renewed(anomaly: Anomaly, judgement: Judgement, tick: Tick) -> AnomalyStatus | None:
    """Give the status of an Anomaly that is seen again; None while what is written says enough."""
    old = anomaly.status
    new = old.model_copy(
        update={
            "phase": "Open",
            "since": anomaly.spec.since,
            "last_seen": tick.at,
            "fresh_until": tick.at + FRESH * tick.step,
            "resolved_at": None,
            "resolved_because": None,
            "score": round(judgement.score, 3),
            "summary": summary(judgement),
            "signals": judgement.signals[:_SIGNALS],
            "agreed": judgement.agreed,
            "because": judgement.because[:1024],
            "remediation": tick.remediations.get(anomaly.spec.class_, "") if judgement.agreed else "",
            "window": tick.window,
            "model": tick.model,
        }
    )
    return new if _worth(old, new, tick) else None


def _worth(old: AnomalyStatus, new: AnomalyStatus, tick: Tick) -> bool:
    if old.last_seen is None or tick.at - old.last_seen >= RENEW * tick.step:
        return True
    # By an older tick of a slower replica nothing is written over.
    return tick.at >= old.last_seen and _essence(old) != _essence(new)


def _essence(status: AnomalyStatus) -> object:
    return status.agreed, status.remediation or "", {(one.name, family(one.class_)) for one in status.signals}


def still(anomaly: Anomaly, tick: Tick) -> AnomalyStatus | None:
    """Give the status of one that is not beyond its threshold now, and not well below it; None if nothing changes."""
    if tick.at - anomaly.last_seen < RENEW * tick.step:
        return None
    # It is not over, but no reason to act: `fresh_until` stays as it is, for nobody has looked whether signals agree.
    return anomaly.status.model_copy(update={"last_seen": tick.at, "since": anomaly.spec.since})


def ended(anomaly: Anomaly, state: State, tick: Tick) -> AnomalyStatus | None:
    """Give the status of one that is over; None while it may come again, or nothing is known of it."""
    quiet = tick.at - anomaly.last_seen
    if state == "gone":
        because = f"{place_of(anomaly)} is gone"
    elif state == "calm" and quiet >= CALM * tick.step:
        because = f"below {LOW:g} of its threshold for {round(quiet / tick.step)} ticks"
    elif state == "unknown" and quiet >= UNKNOWN:
        because = f"nothing could be read of it since {anomaly.last_seen:%Y-%m-%d %H:%M} UTC"
    else:
        return None
    return over(anomaly, tick.at, because)


def dismissed(anomaly: Anomaly, tick: Tick) -> AnomalyStatus | None:
    """Give the status of one that somebody has dismissed, and that is not beyond its new threshold."""
    if anomaly.status.feedback != "dismissed":
        return None
    return over(anomaly, tick.at, f"dismissed by {anomaly.status.feedback_by}")


def over(anomaly: Anomaly, at: datetime, because: str) -> AnomalyStatus:
    """Give the status of one that is over."""
    old = anomaly.status
    update = {"phase": "Resolved", "resolved_at": at, "resolved_because": because[:300], "fresh_until": None}
    return old.model_copy(update={**update, "since": anomaly.spec.since, "last_seen": anomaly.last_seen})


def summary(judgement: Judgement) -> str:
    """Say what is wrong in one sentence with numbers."""
    worst = max(judgement.signals, key=lambda one: (one.class_ == judgement.class_, one.score, one.name))
    return f"{judgement.place}: {judgement.class_}: {said(worst)}"[:1024]


def said(seen: Seen) -> str:
    """Say what one signal tells, in numbers."""
    numbers = seen.evidence
    if "pods" in numbers:
        return f"{numbers['pods']:.0f} of {numbers.get('of', 0):.0f} pods"
    text = f"{seen.name} is {number(numbers['value'])}" if "value" in numbers else seen.name
    if "expected" in numbers:
        text += f", {number(numbers['expected'])} was expected"
    if "grows_in_an_hour" in numbers:
        text += f", grows by {number(numbers['grows_in_an_hour'])} an hour"
    if "limit" in numbers and "seconds_to_limit" in numbers:
        text += f", and reaches its limit of {number(numbers['limit'])} in {_span(numbers['seconds_to_limit'])}"
    return f"{text} ({seen.score:.1f} times its threshold)"


def number(value: float) -> str:
    """Write a number as people read it: `3.2Mi`, `0.25`."""
    if abs(value) < 1e6:
        return f"{value:.4g}"
    for unit in ("Ki", "Mi", "Gi", "Ti", "Pi"):
        value /= 1024
        if abs(value) < 1024:
            return f"{value:.4g}{unit}"
    return f"{value:.4g}Pi"


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def old(known: Iterable[Anomaly], now: datetime, retain: timedelta) -> list[Anomaly]:
    """Choose those that were over long ago."""
    return [one for one in known if one.status.resolved_at is not None and now - one.status.resolved_at > retain]
