"""Alertmanager's webhook, version 4: many alerts of one group in one body, and no event id.

The fields are described in https://prometheus.io/docs/alerting/latest/configuration/#webhook_config and written by
`Message` in notify/webhook/webhook.go and `Data` in template/template.go of github.com/prometheus/alertmanager.
"""

from __future__ import annotations

from typing import Any

from kreflex.errors import BadEventError
from kreflex.ingress.bodies import LONG, plain, shown
from kreflex.signals import Delivery, PodSignal, Resolved, is_name
from kreflex.views import JSON

VERSION = "4"
# Alertmanager's own limit for what it sends is memory; ours keeps one request from filling a small pod.
MOST_BYTES = 32 * 2**20


def is_alertmanager(body: object) -> bool:
    """Tell whether a JSON body is meant as Alertmanager's webhook."""
    return isinstance(body, dict) and "alerts" in body and "groupKey" in body


def parse(body: JSON, where: str = "") -> Delivery:
    """Read one webhook; raises BadEventError for a body that is not version 4, its fields named below `where`.

    A bad alert among good ones is ignored with its reason and does not lose the rest.
    """
    if body.get("version") != VERSION:
        raise BadEventError(f"{where}version", f"must be {VERSION!r}, not {shown(body.get('version'))}")
    alerts = body.get("alerts")
    if not isinstance(alerts, list):
        raise BadEventError(f"{where}alerts", "must be a list")
    read = [_signal(alert, index) for index, alert in enumerate(alerts)]
    truncated = body.get("truncatedAlerts") or 0
    ignored = [text for text in read if isinstance(text, str)]
    if truncated:
        ignored.append(f"{shown(truncated)} alerts were cut off by max_alerts; the waker finds what they are about")
    return Delivery(
        signals=tuple(s for s in read if isinstance(s, PodSignal)),
        resolved=tuple(s for s in read if isinstance(s, Resolved)),
        ignored=tuple(ignored),
        about=_about(body),
    )


def _about(body: JSON) -> dict[str, str]:
    # Why Alertmanager sends now, "repeat interval elapsed" for one, is for the log: what is to be done follows from the
    # cluster. Before 0.30 it did not say.
    told = {"group": body.get("groupKey"), "reason": body.get("notification_reason"), "receiver": body.get("receiver")}
    return {"sender": "alertmanager", **{name: plain(value) for name, value in told.items() if value}}


def _signal(alert: object, index: int) -> PodSignal | Resolved | str:
    if not isinstance(alert, dict) or not isinstance(alert.get("labels"), dict):
        return f"alerts[{index}] has no labels"
    labels: dict[str, Any] = alert["labels"]
    name = plain(labels.get("alertname", "alert"))
    status = alert.get("status")
    if status not in ("firing", "resolved"):
        return f"alerts[{index}].status of {name} is neither firing nor resolved but {shown(status)}"
    namespace, pod, uid = labels.get("namespace"), labels.get("pod"), labels.get("uid", "")
    if not (is_name(namespace) and is_name(pod)):
        return f"{name} names no pod"
    if not (uid == "" or is_name(uid)):
        return f"{name} names {pod} with a uid that is none"
    if status == "resolved":
        # Never an action: evicting a pod resolves its alert while the successor loops.
        return Resolved(namespace, pod, uid) if uid else f"{name} is resolved, of a pod whose uid it does not say"
    return PodSignal(
        namespace=namespace,
        name=pod,
        uid=uid,
        summary=_summary(name, alert),
        source="alertmanager",
        delivery=plain(alert.get("fingerprint", "")),
    )


def _summary(name: str, alert: JSON) -> str:
    annotations = alert.get("annotations")
    summary = annotations.get("summary") if isinstance(annotations, dict) else None
    return f"{name}: {summary[:LONG]}" if isinstance(summary, str) and summary else name
