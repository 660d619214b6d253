"""kube-state-metrics, as it is configured here, and the lab's exporter in its place tell the same of a Remediation."""

from pathlib import Path
from typing import Any

import yaml

from lab.metrics import remediation_samples

ROOT = Path(__file__).parents[2]
(RESOURCE,) = yaml.safe_load((ROOT / "triggers" / "prometheus" / "kube-state-metrics.yaml").read_text())["spec"][
    "resources"
]
(METRIC,) = RESOURCE["metrics"]
PATHS: dict[str, list[str]] = RESOURCE["labelsFromPath"] | METRIC["each"]["info"]["labelsFromPath"]


def schema() -> dict[str, Any]:
    crd = yaml.safe_load((ROOT / "knative" / "crds" / "remediations.yaml").read_text())
    (version,) = [v for v in crd["spec"]["versions"] if v["name"] == RESOURCE["groupVersionKind"]["version"]]
    properties: dict[str, Any] = version["schema"]["openAPIV3Schema"]["properties"]
    return properties


def test_names_and_labels_are_those_of_the_exporter() -> None:
    metadata = {"namespace": "shop", "name": "a"}
    ((name, labels, value),) = remediation_samples({"metadata": metadata, "spec": {"function": "restart-loop-killer"}})
    assert (name, set(labels), value) == (f"{RESOURCE['metricNamePrefix']}_{METRIC['name']}", set(PATHS), 1)


def test_each_label_is_a_field_of_the_custom_resource() -> None:
    fields = {(part, name) for part in ("spec", "status") for name in schema()[part]["properties"]}
    assert [path for path in PATHS.values() if path[0] != "metadata" and tuple(path) not in fields] == []
