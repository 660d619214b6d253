"""Alertmanager's webhook, version 4: many alerts of one group in one body, and no event id.

The fields are described in https://prometheus.io/docs/alerting/latest/configuration/#webhook_config and written by
`Message` in notify/webhook/webhook.go and `Data` in template/template.go of github.com/prometheus/alertmanager.
"""

from __future__ import annotations

import re
from typing import Any

from kreflex.errors import BadEventError
from kreflex.ingress.bodies import LONG, plain, shown
from kreflex.ingress.names import machine_name
from kreflex.kinds import TOLD
from kreflex.signals import Delivery, NodeSignal, PodSignal, Resolved, Signal, WorkloadSignal, is_name
from kreflex.views import JSON

VERSION = "4"
# Alertmanager's own limit for what it sends is memory; ours keeps one request from filling a small pod.
MOST_BYTES = 32 * 2**20
# Where an alert says which node it is about. A Prometheus that does not honor the labels of what it scrapes calls them
# `exported_…` and has `node` and `pod` name the exporter's own
# (https://prometheus.io/docs/prometheus/latest/configuration/configuration/#scrape_config).
_NODE = ("exported_node", "node", "kubernetes_node", "nodename")
# As kube-state-metrics and Argo Rollouts call them (https://github.com/kubernetes/kube-state-metrics/tree/main/docs/metrics).
_WORKLOADS = {
    prefix + label: kind
    for prefix in ("exported_", "")
    for label, kind in (
        ("deployment", "Deployment"),
        ("statefulset", "StatefulSet"),
        ("daemonset", "DaemonSet"),
        ("rollout", "Rollout"),
        ("canary", "Canary"),
    )
}
# What runs on each node, so that its instance is the node: the jobs, and the alerts of node_exporter's mixin
# (https://github.com/prometheus/node_exporter/blob/master/docs/node-mixin/alerts/alerts.libsonnet).
_ON_NODES = re.compile(r"node[-_]?exporter|kubelet|kubernetes-nodes|node-problem-detector")
_ABOUT_NODES = re.compile(r"Node[A-Z]")


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
    read = [one for index, alert in enumerate(alerts) for one in _read(alert, index)]
    truncated = body.get("truncatedAlerts") or 0
    ignored = [text for text in read if isinstance(text, str)]
    if truncated:
        ignored.append(f"{shown(truncated)} alerts were cut off by max_alerts; the waker finds what they are about")
    return Delivery(
        signals=tuple(s for s in read if isinstance(s, Signal)),
        resolved=tuple(s for s in read if isinstance(s, Resolved)),
        ignored=tuple(ignored),
        about=_about(body),
    )


def _about(body: JSON) -> dict[str, str]:
    # Why Alertmanager sends now, "repeat interval elapsed" for one, is for the log: what is to be done follows from the
    # cluster. Before 0.30 it did not say.
    told = {"group": body.get("groupKey"), "reason": body.get("notification_reason"), "receiver": body.get("receiver")}
    return {"sender": "alertmanager", **{name: plain(value) for name, value in told.items() if value}}


def _read(alert: object, index: int) -> list[Signal | Resolved | str]:
    """Read one alert: both a pod and a node may be named, and who heeds which, is not known here."""
    if not isinstance(alert, dict) or not isinstance(alert.get("labels"), dict):
        return [f"alerts[{index}] has no labels"]
    labels: dict[str, Any] = alert["labels"]
    name = plain(labels.get("alertname", "alert"))
    status = alert.get("status")
    if status not in ("firing", "resolved"):
        return [f"alerts[{index}].status of {name} is neither firing nor resolved but {shown(status)}"]
    asked = (_pod(alert, labels, name), _workload(alert, labels, name), _node(alert, labels, name))
    return [one for one in asked if one is not None] or [f"{name} names no pod, no workload and no node"]


def _pod(alert: JSON, labels: JSON, name: str) -> PodSignal | Resolved | str | None:
    exported = "exported_" if "exported_pod" in labels else ""
    namespace, pod, uid = labels.get("namespace"), labels.get(f"{exported}pod"), labels.get("uid", "")
    namespace = labels.get(f"{exported}namespace", namespace)
    if not (is_name(namespace) and is_name(pod)):
        return None
    if not (uid == "" or is_name(uid)):
        return f"{name} names {pod} with a uid that is none"
    if alert["status"] == "resolved":
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


def _workload(alert: JSON, labels: JSON, name: str) -> WorkloadSignal | str | None:
    label = next((one for one in _WORKLOADS if labels.get(one)), None)
    if label is None:
        return None
    namespace = labels.get("exported_namespace") if label.startswith("exported_") else labels.get("namespace")
    kind, workload = _WORKLOADS[label], labels[label]
    if not (is_name(namespace) and is_name(workload)):
        return None
    if alert["status"] == "resolved":
        return f"{name} of {kind} {namespace}/{workload} is resolved; a change of it wakes the check"
    return WorkloadSignal(
        TOLD[kind],
        kind,
        namespace,
        workload,
        summary=_summary(name, alert),
        source="alertmanager",
        delivery=plain(alert.get("fingerprint", "")),
    )


def _node(alert: JSON, labels: JSON, name: str) -> NodeSignal | str | None:
    node = _machine(labels, name)
    if node is None:
        return None
    if alert["status"] == "resolved":
        # A cordon resolves KubeNodeNotReady, whose expression leaves out what is cordoned.
        return f"{name} of node {node} is resolved; a change of the node itself wakes the check"
    return NodeSignal(
        name=node,
        summary=_summary(name, alert),
        source="alertmanager",
        delivery=plain(alert.get("fingerprint", "")),
    )


def _machine(labels: JSON, name: str) -> str | None:
    named = next((labels[label] for label in _NODE if labels.get(label)), None)
    if named is None and (_ON_NODES.search(plain(labels.get("job", ""))) or _ABOUT_NODES.match(name)):
        named = labels.get("instance")
    return machine_name(named)


def _summary(name: str, alert: JSON) -> str:
    annotations = alert.get("annotations")
    summary = annotations.get("summary") if isinstance(annotations, dict) else None
    return f"{name}: {summary[:LONG]}" if isinstance(summary, str) and summary else name
