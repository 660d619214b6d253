"""What is told of anomalies, and noted as told: each event once, each alert anew at each tick.

The objects are the outbox. What was not delivered, because the sink was down or this process was killed, is delivered
at the next tick; what was delivered and not yet noted is delivered again, under the same id.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta

from kreflex.anomaly.alerting import AHEAD, Alertmanagers, alert_of, until
from kreflex.anomaly.anomalies import Anomalies, Anomaly
from kreflex.anomaly.events import DETECTED, RESOLVED, Sink, event_of
from kreflex.anomaly.scoring import Scored
from kreflex.anomaly.svg import sparkline
from kreflex.audit import log
from kreflex.errors import ConflictError, GoneError, UnavailableError

_MINUTE = timedelta(minutes=1)


def untold(anomaly: Anomaly) -> str:
    """Tell which event of an anomaly is still to be delivered; "" for none."""
    told = anomaly.status.told
    if not anomaly.open:
        return "resolved" if told and "resolved" not in told else ""
    if not anomaly.status.signals:
        # It was made a moment ago, by somebody who was killed or is still at it.
        return ""
    if anomaly.status.agreed and "agreed" not in told:
        return "agreed"
    return "" if told else "detected"


class Teller:
    """Tells the sink and Alertmanager what becomes of anomalies."""

    def __init__(self, objects: Anomalies, sink: Sink, alertmanagers: Alertmanagers) -> None:
        self._objects = objects
        self._sink = sink
        self._alertmanagers = alertmanagers

    async def events(
        self, anomalies: Iterable[Anomaly], scored: Mapping[str, Mapping[str, Scored]], seconds: float
    ) -> list[str]:
        """Deliver the events that are to be delivered; what went wrong, in words."""
        if not self._sink.url:
            return []
        for anomaly in anomalies:
            word = untold(anomaly)
            if not word:
                continue
            try:
                await self._deliver(anomaly, word, scored.get(anomaly.spec.watch, {}), seconds)
            except UnavailableError as error:
                # The rest would meet the same sink.
                return [f"the event of {anomaly} was not delivered, and waits for the next tick: {error}"]
        return []

    async def _deliver(self, anomaly: Anomaly, word: str, scored: Mapping[str, Scored], seconds: float) -> None:
        kind = RESOLVED if word == "resolved" else DETECTED
        queries = {name: one.signal.query for name, one in scored.items()}
        event = event_of(kind, anomaly, pictures(anomaly, scored), queries, word)
        await self._sink.send(event, seconds)
        told = tuple(dict.fromkeys((*anomaly.status.told, word)))
        try:
            await self._objects.change(anomaly, anomaly.status.model_copy(update={"told": told}))
        except (ConflictError, GoneError) as error:
            log.info("anomaly.told_again", anomaly=str(anomaly), because=str(error))

    async def alerts(self, anomalies: Iterable[tuple[Anomaly, timedelta]], now: datetime, seconds: float) -> list[str]:
        """Post the alerts of what is open, and of what was resolved a moment ago; what went wrong, in words."""
        told = [alert for one, step in anomalies for alert in alerts_of(one, step, now)]
        try:
            await self._alertmanagers.tell(told, seconds)
        except UnavailableError as error:
            return [str(error)]
        return []


def alerts_of(anomaly: Anomaly, step: timedelta, now: datetime) -> list[dict[str, object]]:
    """Give the alert of an anomaly, if there is something to tell."""
    if anomaly.open:
        return [alert_of(anomaly, until(now, step))] if anomaly.status.signals else []
    resolved = anomaly.status.resolved_at
    # Told a few times: the first may have been lost, and it is the same alert.
    if resolved is None or now - resolved > AHEAD * max(step, _MINUTE):
        return []
    return [alert_of(anomaly, resolved)]


def pictures(anomaly: Anomaly, scored: Mapping[str, Scored]) -> dict[str, str]:
    """Draw the series of an anomaly, as far as they are there."""
    drawn = {}
    for seen in anomaly.status.signals:
        values = scored[seen.name].picture_of(seen.series) if seen.name in scored and seen.series else []
        if values:
            title = f"{seen.name} of {anomaly.spec.target.name}"
            drawn[f"{seen.name}/{seen.series}"] = sparkline(values, seen.evidence.get("limit", math.nan), title)
    return drawn
