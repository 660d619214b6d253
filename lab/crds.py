"""The custom resource definitions of others, taken from their Go modules: those that manifests here are made for."""

import hashlib
import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from lab.errors import LabError
from lab.golang import environment, find_go
from lab.paths import PACKAGE, cache_directory

Json = dict[str, Any]
_PINS = PACKAGE / "go" / "crds"
_UNKNOWN = "x-kubernetes-preserve-unknown-fields"


class _Loader(yaml.CSafeLoader):
    """In C, because these are long; and a bare `=`, which YAML 1.1 gives a meaning that nobody uses, is a string."""


_Loader.add_constructor("tag:yaml.org,2002:value", lambda _, node: str(node.value))


@dataclass(frozen=True)
class Archive:
    """A Go module, and what is taken from it."""

    module: str
    files: tuple[str, ...]

    @property
    def pinned(self) -> str:
        """`module@version`, as go.mod has it."""
        for line in (_PINS / "go.mod").read_text().splitlines():
            words = line.split()
            if words[:1] == [self.module]:
                return f"{self.module}@{words[1]}"
        raise LabError(f"{_PINS / 'go.mod'} does not pin {self.module}")

    def fetch(self) -> list[Path]:
        """The files, from the lab's cache or the module; raises LabError when it can't be had."""
        # By its files, too: another checkout may have taken fewer of them.
        files = hashlib.sha256("\n".join(self.files).encode()).hexdigest()[:8]
        home = cache_directory() / "crds" / f"{self.pinned.replace('/', '_')}-{files}"
        if not home.exists():
            self._extract(home)
        return [home / name.replace("/", "_") for name in self.files]

    def _extract(self, home: Path) -> None:
        source = _download(self.pinned)
        draft = home.with_name(f".{home.name}.{os.getpid()}")
        shutil.rmtree(draft, ignore_errors=True)
        draft.mkdir(parents=True)
        for name in self.files:
            shutil.copyfile(source / name, draft / name.replace("/", "_"))
        try:
            draft.replace(home)
        except OSError:
            # Somebody else was quicker: what is there is the same.
            shutil.rmtree(draft)
            if not home.exists():
                raise


KNATIVE_SERVING = Archive("knative.dev/serving", ("config/core/300-resources/service.yaml",))
KNATIVE_EVENTING = Archive(
    "knative.dev/eventing",
    tuple(
        f"config/core/resources/{name}.yaml"
        for name in ("apiserversource", "broker", "pingsource", "sinkbindings", "trigger")
    ),
)
ARGO_EVENTS = Archive(
    "github.com/argoproj/argo-events",
    (
        *(f"manifests/base/crds/argoproj.io_{name}.yaml" for name in ("eventbus", "eventsources", "sensors")),
        # Its CRDs let everything pass; this is what it generates from its Go types.
        "api/jsonschema/schema.json",
        # Which versions of NATS its controller knows.
        "manifests/base/controller-manager/controller-config.yaml",
    ),
)
PROMETHEUS_OPERATOR = Archive(
    "github.com/prometheus-operator/prometheus-operator",
    tuple(
        f"example/prometheus-operator-crd/monitoring.coreos.com_{name}.yaml"
        for name in ("alertmanagerconfigs", "podmonitors", "prometheusrules")
    ),
)
GATEWAY_API = Archive("sigs.k8s.io/gateway-api", ("config/crd/standard/gateway.networking.k8s.io_httproutes.yaml",))
ISTIO = Archive("istio.io/api", ("kubernetes/customresourcedefinitions.gen.yaml",))
FLAGGER = Archive("github.com/fluxcd/flagger", ("artifacts/flagger/crd.yaml",))
# What shares out the traffic of canaries.
_SHARING = {"HTTPRoute", "VirtualService", "DestinationRule", "Canary"}
ARCHIVES = (KNATIVE_SERVING, KNATIVE_EVENTING, ARGO_EVENTS, PROMETHEUS_OPERATOR)


def sharing_crds() -> list[Json]:
    """The definitions of what shares out the traffic of canaries, as their projects ship them."""
    files = [file for archive in (GATEWAY_API, ISTIO, FLAGGER) for file in archive.fetch()]
    documents = [document for file in files for document in yaml.load_all(file.read_text(), _Loader) if document]
    found = [one for one in documents if one["kind"] == "CustomResourceDefinition"]
    return [one for one in found if one["spec"]["names"]["kind"] in _SHARING]


def strict_crds() -> list[Json]:
    """All definitions, made strict: a field that a schema does not describe is an error, not kept in silence."""
    files = [file for archive in ARCHIVES for file in archive.fetch() if file.suffix == ".yaml"]
    documents = [document for file in files for document in yaml.load_all(file.read_text(), _Loader) if document]
    return [_strict(document) for document in documents if document["kind"] == "CustomResourceDefinition"]


def _strict(crd: Json) -> Json:
    # Its webhook is no part of the module's definition, and one version is enough to ask about.
    spec = {key: value for key, value in crd["spec"].items() if key != "conversion"}
    spec["versions"] = [version for version in spec["versions"] if version["storage"]]
    metadata = {key: crd["metadata"].get(key) for key in ("name", "annotations") if crd["metadata"].get(key)}
    return {**crd, "metadata": metadata, "spec": _without_escapes(spec)}


def _without_escapes(schema: Any) -> Any:
    """Let unknown fields be only where nothing is known: `properties` beside the escape describe all that there is.

    Descriptions go as well: they are most of the text, and the API server works through it each time.
    """
    if isinstance(schema, list):
        return [_without_escapes(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    known = bool(schema.get("properties"))
    kept = {
        key: value for key, value in schema.items() if not (key == _UNKNOWN and known) and not _is_prose(key, value)
    }
    return {key: _without_escapes(value) for key, value in kept.items()}


def _is_prose(key: str, value: Any) -> bool:
    return key == "description" and isinstance(value, str)


def _download(pinned: str) -> Path:
    go = find_go(print)
    answer = subprocess.run(
        [go, "mod", "download", "-json", pinned],
        cwd=_PINS,
        env=environment(go),
        capture_output=True,
        text=True,
        check=False,
    )
    told: Json = json.loads(answer.stdout) if answer.stdout.strip() else {}
    if answer.returncode != 0 or "Dir" not in told:
        raise LabError(
            f"{pinned} could not be downloaded: {told.get('Error') or answer.stderr.strip()}\n"
            f"If it is the network, try again: what is done is kept in {cache_directory()}."
        )
    return Path(told["Dir"])
