"""What people are told: alerts to Alertmanager, which groups, routes and silences them.

Each open Anomaly is posted anew at each tick, and says until when it holds: an Alertmanager that was away learns of it
at the next tick, and one that never hears of an end forgets the alert by itself. POST /api/v2/alerts:
https://github.com/prometheus/alertmanager/blob/main/api/v2/openapi.yaml
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from kreflex import calls
from kreflex.anomaly.anomalies import Anomaly
from kreflex.anomaly.episodes import said
from kreflex.errors import UnavailableError
from kreflex.views import JSON

NAME = "KreflexAnomaly"
# Ticks; an alert ends by itself when we are silent for so long.
AHEAD = 3
_MOST = 500
_GRAVE = frozenset({"absent", "dropout", "exhaustion", "leak", "saturation"})
_HEADERS = {"Content-Type": "application/json"}


def alert_of(anomaly: Anomaly, until: datetime) -> JSON:
    """Make the alert of an Anomaly; its labels name the object as kube-state-metrics does, for routes that know it."""
    spec, status = anomaly.spec, anomaly.status
    labels = {
        "alertname": NAME,
        "class": spec.class_,
        "severity": severity(anomaly),
        "kind": spec.target.kind,
        "watch": spec.watch,
        **_named(anomaly),
    }
    if status.agreed and status.remediation:
        labels["remediation"] = status.remediation
    annotations = {
        "summary": status.summary or f"{spec.target.kind} {spec.target.name}: {spec.class_}",
        "score": f"{status.score or 0:.2f}",
        "evidence": "; ".join(said(one) for one in status.signals)[:1000],
        "agreement": status.because or "",
        "anomaly": f"{anomaly.namespace}/{anomaly.name}",
    }
    return {
        "labels": labels,
        "annotations": {name: text for name, text in annotations.items() if text},
        "startsAt": _text(spec.since),
        "endsAt": _text(until),
    }


def _named(anomaly: Anomaly) -> dict[str, str]:
    target = anomaly.spec.target
    named = {target.kind.lower(): target.name}
    if target.kind == "Pod":
        # What is resolved is believed of a pod whose UID it says.
        named["uid"] = target.uid
    return {"namespace": target.namespace, **named} if target.namespace else named


def severity(anomaly: Anomaly) -> str:
    """Tell how urgent it is: what agrees and will hurt is for the night, the rest for the day."""
    grave = anomaly.spec.class_ in _GRAVE
    return "critical" if anomaly.status.agreed and grave else "warning" if anomaly.status.agreed or grave else "info"


@dataclass(frozen=True)
class Alertmanagers:
    """One Alertmanager, or the members of a cluster of them, with commas between: each has to be told."""

    urls: str
    token_file: str = ""

    @property
    def each(self) -> list[str]:
        """Where each of them takes alerts."""
        return [f"{url.strip().rstrip('/')}/api/v2/alerts" for url in self.urls.split(",") if url.strip()]

    async def tell(self, alerts: Iterable[JSON], seconds: float = 10.0) -> None:
        """Post alerts; raises UnavailableError only if no member took them, for they tell each other nothing new."""
        told = list(alerts)
        if not self.each or not told:
            return
        failures = await asyncio.gather(*(self._post(url, told, seconds) for url in self.each))
        if all(failures):
            raise UnavailableError(f"no Alertmanager took {len(told)} alerts: {'; '.join(filter(None, failures))}")

    async def _post(self, url: str, alerts: list[JSON], seconds: float) -> str:
        try:
            async with asyncio.timeout(max(seconds, 0.1)):
                for start in range(0, len(alerts), _MOST):
                    body = json.dumps(alerts[start : start + _MOST]).encode()
                    await calls.post(url, _HEADERS, body, self.token_file)
        except UnavailableError as error:
            return str(error)
        except TimeoutError:
            return f"{calls.shown(url)} did not answer within {seconds:.0f} s"
        return ""


def until(now: datetime, step: timedelta) -> datetime:
    """Tell until when an alert that is posted now holds."""
    # The ticks of a watch may be closer to each other than those of the clock that wakes us.
    return now + AHEAD * max(step, timedelta(minutes=1))


def _text(at: datetime) -> str:
    return at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
