"""What is told of an Anomaly to whoever subscribes: CloudEvents, in structured mode, sent to the sink.

Equal anomalies give equal events: the id is that of the episode, so that who gets one twice knows it.
https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/formats/json-format.md
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from kreflex import calls, trace
from kreflex.anomaly.anomalies import Anomaly
from kreflex.errors import UnavailableError
from kreflex.policy import GROUP
from kreflex.records import Time
from kreflex.views import JSON

SOURCE = f"{GROUP}/functions/anomaly-scorer"
DETECTED = "dev.kreflex.anomaly.detected.v1"
RESOLVED = "dev.kreflex.anomaly.resolved.v1"
LOOKED = "dev.kreflex.anomaly.evidence.v1"
_TRIES = 3
_HEADERS = {"Content-Type": "application/cloudevents+json; charset=utf-8"}


def event_id(word: str, anomaly: Anomaly) -> str:
    """Name an event after what it tells: target, class and episode, and what became of it."""
    spec = anomaly.spec
    told = f"{word}/{spec.target.uid}/{spec.class_}/{anomaly.name}/{_text(spec.since)}"
    return hashlib.sha256(told.encode()).hexdigest()[:32]


def event_of(
    kind: str,
    anomaly: Anomaly,
    pictures: Mapping[str, str] | None = None,
    queries: Mapping[str, str] | None = None,
    word: str = "detected",
) -> JSON:
    """Make the event of a change of an Anomaly; `pictures` are of its signals, `queries` what they ask.

    `word` says which change: one that is told again because its signals agree now is another event.
    """
    at = anomaly.status.resolved_at if kind == RESOLVED else anomaly.spec.since
    return envelope(
        kind,
        event_id(word, anomaly),
        f"{anomaly.namespace}/{anomaly.name}",
        at or anomaly.spec.since,
        told_of(anomaly, pictures or {}, queries or {}),
    )


def envelope(kind: str, id_: str, subject: str, at: datetime, data: JSON) -> JSON:
    """Put the attributes of a CloudEvent around data."""
    place = trace.current()
    return {
        "specversion": "1.0",
        "id": id_,
        "source": SOURCE,
        "type": kind,
        "subject": subject,
        "time": _text(at),
        "datacontenttype": "application/json",
        **(place.extensions if place is not None else {}),
        "data": data,
    }


def told_of(anomaly: Anomaly, pictures: Mapping[str, str], queries: Mapping[str, str]) -> JSON:
    """Tell of an Anomaly what somebody needs who has nothing else: numbers, pictures, and how to get them again."""
    spec, status = anomaly.spec, anomaly.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    signals = [
        {**one, **_drawn(one, pictures), **({"query": queries[one["name"]]} if one["name"] in queries else {})}
        for one in status.get("signals", ())
    ]
    told = ("phase", "lastSeen", "resolvedAt", "resolvedBecause", "score", "agreed", "because", "window", "model")
    return {
        "anomaly": {"namespace": anomaly.namespace, "name": anomaly.name, "uid": anomaly.uid},
        "watch": spec.watch,
        "target": spec.target.model_dump(mode="json", by_alias=True),
        "class": spec.class_,
        "since": _text(spec.since),
        "summary": status.get("summary", ""),
        "remediation": status.get("remediation", ""),
        "signals": signals,
        **{name: status[name] for name in told if name in status},
    }


def _drawn(one: JSON, pictures: Mapping[str, str]) -> JSON:
    drawn = pictures.get(f"{one['name']}/{one.get('series', '')}")
    return {"svg": drawn} if drawn else {}


def _text(at: Time) -> str:
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def plain(numbers: Mapping[str, float]) -> dict[str, float]:
    """Keep the numbers that JSON knows, as short as they are exact enough."""
    return {name: float(f"{value:.6g}") for name, value in numbers.items() if math.isfinite(value)}


@dataclass(frozen=True)
class Sink:
    """Where events go: what Knative injects as K_SINK, or SINK."""

    url: str
    token_file: str = ""

    async def send(self, event: JSON, seconds: float = 10.0) -> None:
        """Deliver one event, with a few tries in the time there is; raises UnavailableError."""
        if not self.url:
            return
        body = json.dumps(event, separators=(",", ":"), allow_nan=False).encode()
        try:
            async with asyncio.timeout(max(seconds, 0.1)):
                await self._try(body)
        except TimeoutError as error:
            raise UnavailableError(
                f"the sink {calls.shown(self.url)} did not take the event within {seconds:.0f} s"
            ) from error

    async def _try(self, body: bytes) -> None:
        for again in range(_TRIES):
            try:
                return await calls.post(self.url, _HEADERS, body, self.token_file)
            except UnavailableError:
                if again == _TRIES - 1:
                    raise
                await asyncio.sleep(0.2 * 4**again)
        return None
