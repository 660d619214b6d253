"""Alertmanager's webhook, version 4: many alerts in one body, and no event id."""

from __future__ import annotations

from typing import Any

from kreflex.errors import BadEventError
from kreflex.signals import Delivery, PodSignal, is_name
from kreflex.views import JSON

VERSION = "4"
# Alertmanager's own limit for what it sends is memory; ours keeps one request from filling a small pod.
MOST_BYTES = 32 * 2**20


def is_alertmanager(body: JSON) -> bool:
    """Tell whether a JSON body is meant as Alertmanager's webhook."""
    return "alerts" in body and "groupKey" in body


def parse(body: JSON) -> Delivery:
    """Read one webhook; raises BadEventError for a body that is not version 4.

    A bad alert among good ones is ignored with its reason and does not lose the rest.
    """
    if body.get("version") != VERSION:
        raise BadEventError("version", f"must be {VERSION!r}, not {body.get('version')!r}")
    alerts = body.get("alerts")
    if not isinstance(alerts, list):
        raise BadEventError("alerts", "must be a list")
    read = [_signal(alert, index) for index, alert in enumerate(alerts)]
    truncated = body.get("truncatedAlerts") or 0
    ignored = [text for text in read if isinstance(text, str)]
    if truncated:
        ignored.append(f"{truncated} alerts were cut off by max_alerts; the waker finds what they are about")
    return Delivery(signals=tuple(s for s in read if isinstance(s, PodSignal)), ignored=tuple(ignored))


def _signal(alert: object, index: int) -> PodSignal | str:
    if not isinstance(alert, dict) or not isinstance(alert.get("labels"), dict):
        return f"alerts[{index}] has no labels"
    labels: dict[str, Any] = alert["labels"]
    name = labels.get("alertname", "alert")
    if alert.get("status") != "firing":
        # Never an action: evicting a pod resolves its alert while the successor loops.
        return f"{name} is {alert.get('status')}"
    namespace, pod = labels.get("namespace"), labels.get("pod")
    if not (is_name(namespace) and is_name(pod)):
        return f"{name} names no pod"
    annotations = alert.get("annotations")
    summary = annotations.get("summary", "") if isinstance(annotations, dict) else ""
    return PodSignal(
        namespace=namespace,
        name=pod,
        uid=labels["uid"] if isinstance(labels.get("uid"), str) else "",
        summary=f"{name}: {summary}" if summary else str(name),
        source="alertmanager",
        delivery=str(alert.get("fingerprint", "")),
    )
