"""kube-state-metrics, as it is configured here, and the lab's exporter in its place tell the same of our objects."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab.metrics import anomaly_samples, experiment_samples, remediation_samples, watch_samples

ROOT = Path(__file__).parents[2]
Json = dict[str, Any]
RESOURCES: list[Json] = yaml.safe_load((ROOT / "triggers" / "prometheus" / "kube-state-metrics.yaml").read_text())[
    "spec"
]["resources"]
EXPORTERS = {
    "Remediation": remediation_samples,
    "Anomaly": anomaly_samples,
    "AnomalyWatch": watch_samples,
    "Experiment": experiment_samples,
}
WHEN = {"Remediation": "dueAt", "Anomaly": "freshUntil", "Experiment": "revertBy"}
PLURALS = {
    "Remediation": "remediations",
    "Anomaly": "anomalies",
    "AnomalyWatch": "anomalywatches",
    "Experiment": "experiments",
}
each = pytest.mark.parametrize("resource", RESOURCES, ids=lambda one: one["groupVersionKind"]["kind"])


def kind_of(resource: Json) -> str:
    kind: str = resource["groupVersionKind"]["kind"]
    return kind


def metrics(resource: Json) -> dict[str, Json]:
    return {f"{resource['metricNamePrefix']}_{metric['name']}": metric["each"] for metric in resource["metrics"]}


def paths(resource: Json) -> dict[str, dict[str, list[str]]]:
    """The labels of each metric, and where they stand."""
    common: dict[str, list[str]] = resource["labelsFromPath"]
    return {
        name: common | each[each["type"].lower()].get("labelsFromPath", {}) for name, each in metrics(resource).items()
    }


def gauges(resource: Json) -> list[Json]:
    """Those of times; what is told of each thing in a list is no time."""
    found = [each["gauge"] for each in metrics(resource).values() if each["type"] == "Gauge"]
    return [gauge for gauge in found if "valueFrom" not in gauge]


def of_each(resource: Json) -> set[str]:
    """The metrics that there are as many of as a list has entries."""
    return {name for name, each in metrics(resource).items() if "valueFrom" in each.get("gauge", {})}


def samples(resource: Json, when: str | None) -> dict[str, tuple[set[str], float]]:
    """What the lab's exporter says of such an object."""
    kind = kind_of(resource)
    status = {WHEN[kind]: when} if kind in WHEN else {}
    body = {"metadata": {"namespace": "shop", "name": "a"}, "spec": {}, "status": status}
    return {name: (set(labels), float(value)) for name, labels, value in EXPORTERS[kind](body)}


def test_each_of_our_kinds_that_an_alert_asks_for_is_told_of() -> None:
    assert {kind_of(resource) for resource in RESOURCES} == set(EXPORTERS)


@each
def test_names_and_labels_are_those_of_the_exporter(resource: Json) -> None:
    due = datetime(2026, 5, 1, 12, 0, 0, 500_000, tzinfo=UTC)
    told = samples(resource, "2026-05-01T12:00:00.500Z")
    assert {name: labels for name, (labels, _) in told.items()} == {
        name: set(labels) for name, labels in paths(resource).items() if name not in of_each(resource)
    }
    assert [value for _, value in told.values()] == [1, *[due.timestamp()] * len(gauges(resource))]


@each
def test_a_time_that_is_not_set_is_zero(resource: Json) -> None:
    assert [gauge["nilIsZero"] for gauge in gauges(resource)] == [True] * len(gauges(resource))
    assert [value for _, value in samples(resource, None).values()] == [1, *[0] * len(gauges(resource))]


@each
def test_each_path_is_a_field_of_the_custom_resource(resource: Json) -> None:
    crd = yaml.safe_load((ROOT / "knative" / "crds" / f"{PLURALS[kind_of(resource)]}.yaml").read_text())
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == resource["groupVersionKind"]["version"]]
    properties: Json = version["schema"]["openAPIV3Schema"]["properties"]
    fields = {(part, name) for part in ("spec", "status") for name in properties[part]["properties"]}
    found = [gauge["path"] for gauge in gauges(resource)]
    whole = [labels for name, labels in paths(resource).items() if name not in of_each(resource)]
    found += [path for labels in whole for path in labels.values()]
    assert [path for path in found if path[0] != "metadata" and tuple(path) not in fields] == []


def test_how_far_feedback_has_moved_a_threshold_is_told_of_each_series() -> None:
    (resource,) = [one for one in RESOURCES if kind_of(one) == "Anomaly"]
    (name,) = of_each(resource)
    gauge = metrics(resource)[name]["gauge"]
    seen = {"name": "memory", "series": '{pod="cart"}', "factor": 0.97}
    body = {"metadata": {"namespace": "shop", "name": "a"}, "status": {"signals": [seen]}}
    told = {metric: (labels, value) for metric, labels, value in anomaly_samples(body)}[name]
    assert told == ({"namespace": "shop", "name": "a", "signal": "memory", "series": '{pod="cart"}'}, 0.97)
    assert set(told[0]) == set(paths(resource)[name])
    crd = yaml.safe_load((ROOT / "knative" / "crds" / "anomalies.yaml").read_text())
    status = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]
    fields = status[gauge["path"][1]]["items"]["properties"]
    assert [path for path in (gauge["valueFrom"], *gauge["labelsFromPath"].values()) if path[0] not in fields] == []
