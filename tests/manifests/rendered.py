"""What kustomize makes of the folders that people apply, and how the API server's own tool is asked about it."""

import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import yaml

from lab.toolchain import Toolchain

Json = dict[str, Any]
ROOT = Path(__file__).parents[2]
KNATIVE = ROOT / "knative"
TRIGGERS = ROOT / "triggers"
FUNCTIONS = sorted(main.parent.name.replace("_", "-") for main in (ROOT / "functions").glob("*/main.py"))
INSTALL = KNATIVE / "install"
VARIANTS = sorted(file.parent for file in (KNATIVE / "variants").glob("*/kustomization.yaml"))
WHOLE = [INSTALL, *VARIANTS]
"""The folders with which all of Kreflex is installed, one at a time."""
SENDERS = sorted(file.parent for file in TRIGGERS.glob("**/kustomization.yaml"))
"""The folders that bring events to it."""


def name_of(folder: Path) -> str:
    """A test's id."""
    return str(folder.relative_to(ROOT))


@cache
def kubectl() -> Path:
    """The lab's kubectl, built if need be."""
    return Toolchain().ensure(["kubectl"])["kubectl"]


def run(*arguments: str | Path, given: str = "") -> subprocess.CompletedProcess[str]:
    """Run kubectl, and fail with its own words."""
    answer = subprocess.run(
        [kubectl(), *arguments], input=given, capture_output=True, text=True, timeout=300, check=False
    )
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer


@cache
def render(folder: Path) -> tuple[Json, ...]:
    """The objects that a folder stands for; read them only, they are shared."""
    text = run("kustomize", folder).stdout
    return tuple(document for document in yaml.load_all(text, yaml.CSafeLoader) if document)


def of_kind(folder: Path, *kinds: str) -> list[Json]:
    """Those of these kinds; a Knative Service is called `ksvc`, because Kubernetes has Services as well."""
    return [document for document in render(folder) if kind_of(document) in kinds]


def kind_of(document: Json) -> str:
    """The kind of an object."""
    return "ksvc" if document["apiVersion"].startswith("serving.knative.dev/") else str(document["kind"])


def pods_of(folder: Path) -> Iterator[tuple[str, Json]]:
    """The name of each workload, and the spec of its pods."""
    for document in of_kind(folder, "ksvc", "Deployment", "CronJob"):
        spec = document["spec"]
        template = spec["jobTemplate"]["spec"]["template"] if document["kind"] == "CronJob" else spec["template"]
        yield document["metadata"]["name"], template["spec"]


def environment_of(folder: Path, pod: Json) -> dict[str, str]:
    """The variables that a pod's only container gets from ConfigMaps and the manifest, later ones over earlier ones."""
    maps = {
        document["metadata"]["name"]: document["data"]
        for document in of_kind(folder, "ConfigMap")
        if "data" in document
    }
    (container,) = pod["containers"]
    merged: dict[str, str] = {}
    for source in container.get("envFrom", []):
        merged |= maps[source["configMapRef"]["name"]]
    return merged | {entry["name"]: entry["value"] for entry in container.get("env", [])}
