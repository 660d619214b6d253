"""The words of anomalies that a custom resource may use. Nothing here needs numpy."""

from __future__ import annotations

from typing import Literal, get_args

SignalKind = Literal[
    "cpu",
    "disk",
    "errors",
    "gauge",
    "latency",
    "memory",
    "quota",
    "replicas",
    "restarts",
    "saturation",
    "traffic",
    "up",
]
# What can be wrong. "anomaly" is the generic one: unlike its own past, and no class says how.
AnomalyClass = Literal[
    "anomaly",
    "absent",
    "dropout",
    "exhaustion",
    "flatline",
    "leak",
    "level-shift",
    "saturation",
    "season",
    "spike",
    "thrash",
]
CLASSES: tuple[AnomalyClass, ...] = get_args(AnomalyClass)
