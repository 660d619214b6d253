"""kube-state-metrics, as it is configured here, and the lab's exporter in its place tell the same of a Remediation."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import yaml

from lab.metrics import remediation_samples

ROOT = Path(__file__).parents[2]
(RESOURCE,) = yaml.safe_load((ROOT / "triggers" / "prometheus" / "kube-state-metrics.yaml").read_text())["spec"][
    "resources"
]
COMMON: dict[str, list[str]] = RESOURCE["labelsFromPath"]
METRICS = {f"{RESOURCE['metricNamePrefix']}_{metric['name']}": metric["each"] for metric in RESOURCE["metrics"]}
PATHS = {name: COMMON | each[each["type"].lower()].get("labelsFromPath", {}) for name, each in METRICS.items()}


def schema() -> dict[str, Any]:
    crd = yaml.safe_load((ROOT / "knative" / "crds" / "remediations.yaml").read_text())
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == RESOURCE["groupVersionKind"]["version"]]
    properties: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]
    return properties


def samples(status: dict[str, Any]) -> dict[str, tuple[set[str], float]]:
    """What the lab's exporter says of a Remediation."""
    metadata, spec = {"namespace": "shop", "name": "a"}, {"function": "restart-loop-killer"}
    found = remediation_samples({"metadata": metadata, "spec": spec, "status": status})
    return {name: (set(labels), float(value)) for name, labels, value in found}


def test_names_and_labels_are_those_of_the_exporter() -> None:
    due = datetime(2026, 5, 1, 12, 0, 0, 500_000, tzinfo=UTC)
    told = samples({"dueAt": "2026-05-01T12:00:00.500Z"})
    assert {name: labels for name, (labels, _) in told.items()} == {name: set(paths) for name, paths in PATHS.items()}
    assert [value for _, value in told.values()] == [1, due.timestamp()]


def test_what_is_due_never_is_zero() -> None:
    (gauge,) = [each["gauge"] for each in METRICS.values() if each["type"] == "Gauge"]
    assert gauge["nilIsZero"] is True
    assert samples({"dueAt": None})["kreflex_remediation_due_timestamp_seconds"][1] == 0


def test_each_path_is_a_field_of_the_custom_resource() -> None:
    fields = {(part, name) for part in ("spec", "status") for name in schema()[part]["properties"]}
    values = [each["gauge"]["path"] for each in METRICS.values() if each["type"] == "Gauge"]
    paths = [*values, *(path for labels in PATHS.values() for path in labels.values())]
    assert [path for path in paths if path[0] != "metadata" and tuple(path) not in fields] == []
