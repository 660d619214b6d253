"""Pods and Deployments for the lab, and the annotations that break them."""

from typing import Any

Manifest = dict[str, Any]
PREFIX = "lab.kreflex.dev/"


def fault(name: str | None = None, **notes: object) -> dict[str, str]:
    """The annotations of a fault; see lab/stages/faults.yaml. `run_seconds=2` becomes lab.kreflex.dev/run-seconds."""
    annotations = {f"{PREFIX}{key.replace('_', '-')}": str(value) for key, value in notes.items()}
    return annotations if name is None else {f"{PREFIX}fault": name, **annotations}


def pod_spec(*containers: str, init: tuple[str, ...] = (), sidecars: tuple[str, ...] = ()) -> Manifest:
    """The spec of a pod with containers of these names, `app` by default."""
    spec: Manifest = {"containers": [_container(name) for name in containers or ("app",)]}
    first = [_container(name) for name in init] + [{**_container(name), "restartPolicy": "Always"} for name in sidecars]
    return {**spec, "initContainers": first} if first else spec


def pod(name: str, annotations: dict[str, str] | None = None, spec: Manifest | None = None) -> Manifest:
    """A bare pod."""
    metadata = {"name": name, "annotations": annotations or {}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec or pod_spec()}


def deployment(
    name: str, replicas: int = 1, annotations: dict[str, str] | None = None, spec: Manifest | None = None
) -> Manifest:
    """A Deployment; annotations on its template break every pod of it, the successors too."""
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {"metadata": {"labels": labels, "annotations": annotations or {}}, "spec": spec or pod_spec()},
        },
    }


def _container(name: str) -> Manifest:
    return {"name": name, "image": f"lab.local/{name}:1"}
