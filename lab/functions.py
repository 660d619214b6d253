"""Starts Kreflex' functions as Knative would in a cluster: each with the rights of its own ServiceAccount."""

import importlib.util
from collections.abc import Iterable
from pathlib import Path

from lab import callers, manifests, processes
from lab.cluster import ControlPlane
from lab.paths import REPOSITORY

NAMESPACE = "kreflex-system"
WAKER = "waker"
SCORER = "anomaly_scorer"
_KNATIVE = REPOSITORY / "knative"
_POLICY = REPOSITORY / "lab" / "policy.yaml"


def present() -> list[str]:
    """The folder names of the functions that this checkout has, the waker last; none if kreflex is not installed."""
    if importlib.util.find_spec("kreflex") is None:
        return []
    found = sorted(file.parent.name for file in (REPOSITORY / "functions").glob("*/main.py"))
    return sorted(found, key=lambda name: name == WAKER)


def asked(folders: Iterable[str]) -> list[str]:
    """Those of these functions that the waker asks what they would find, and calls."""
    return [folder for folder in folders if folder not in {WAKER, SCORER}]


def kebab(folder: str) -> str:
    """The name that a function has in Kubernetes."""
    return folder.replace("_", "-")


async def install(plane: ControlPlane, folders: list[str]) -> None:
    """Apply what the functions need: namespace, CRDs, rights, and the lab's policy; and issue a person's token."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    common = [_KNATIVE / "base" / name for name in ("namespace.yaml", "ledger.yaml")]
    own = ("serviceaccount.yaml", "rbac.yaml", "admission.yaml")
    rights = [_KNATIVE / kebab(folder) / name for folder in folders for name in own]
    rights += [_KNATIVE / "admission" / name for name in ("anomalies.yaml", "approvals.yaml", "experiments.yaml")]
    crds = [file for file in sorted((_KNATIVE / "crds").glob("*.yaml")) if file.name != "kustomization.yaml"]
    files = [*common, *crds, *(file for file in rights if file.exists())]
    await manifests.apply(plane.api, [namespace, *manifests.read(*files)], NAMESPACE)
    if _POLICY.exists():
        await manifests.apply(plane.api, manifests.read(_POLICY), NAMESPACE)
    await callers.issue(plane, callers.PERSON)


async def start(plane: ControlPlane, folder: str, port: int, environment: dict[str, str]) -> str:
    """Start a function with its own kubeconfig; its URL."""
    name = kebab(folder)
    url = f"http://127.0.0.1:{port}"
    config = await plane.kubeconfig_for(NAMESPACE, name)
    settings = {
        "HOST": "127.0.0.1",
        "PORT": str(port),
        "KUBECONFIG": str(config),
        "KREFLEX_NAMESPACE": NAMESPACE,
        **callers.SETTINGS,
        **environment,
    }
    if folder in {WAKER, SCORER}:
        settings["TOKEN_FILE"] = str(await callers.issue(plane, name, NAMESPACE))
    command: list[str | Path] = [*processes.python("kreflex", folder)]
    child = plane.start_child(name, command, environment=settings | processes.importable(), url=f"{url}/readyz")
    await child.ready(processes.answers(f"{url}/readyz"))
    return url
