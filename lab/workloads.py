"""What runs in the lab (pods, their controllers, their budgets), and the annotations that break it."""

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


def stateful_set(name: str, replicas: int = 1, spec: Manifest | None = None) -> Manifest:
    """A StatefulSet: its pods have names that no second pod may bear."""
    body = deployment(name, replicas, spec=spec)
    return {**body, "kind": "StatefulSet", "spec": {**body["spec"], "serviceName": name}}


def daemon_set(name: str, spec: Manifest | None = None) -> Manifest:
    """A DaemonSet: one pod on each node, whatever is wrong with the node."""
    body = deployment(name, spec={**(spec or pod_spec()), "tolerations": [{"operator": "Exists"}]})
    del body["spec"]["replicas"]
    return {**body, "kind": "DaemonSet"}


def static_pod(name: str, node: Manifest) -> Manifest:
    """The mirror of a static pod: what a node's kubelet runs from a file, and shows to the API server."""
    about = node["metadata"]
    body = pod(f"{name}-{about['name']}", {"kubernetes.io/config.mirror": name, "kubernetes.io/config.source": "file"})
    owner = {"apiVersion": "v1", "kind": "Node", "name": about["name"], "uid": about["uid"], "controller": True}
    body["metadata"]["ownerReferences"] = [owner]
    body["spec"] |= {"nodeName": about["name"], "tolerations": [{"operator": "Exists", "effect": "NoExecute"}]}
    return body


def budget(name: str, **limit: int | str) -> Manifest:
    """A PodDisruptionBudget of the app of this name: `minAvailable=2`, or `maxUnavailable="25%"`."""
    return {
        "apiVersion": "policy/v1",
        "kind": "PodDisruptionBudget",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": name}}, **limit},
    }


def scratch(spec: Manifest | None = None) -> Manifest:
    """The same pods with an emptyDir, whose content is lost with the pod."""
    return {**(spec or pod_spec()), "volumes": [{"name": "scratch", "emptyDir": {}}]}


def release(tag: str, spec: Manifest | None = None) -> Manifest:
    """The same pods with images of this tag; `v2-crash` or `v2-unready-5s` is a bad one, see lab/stages/tags.json."""
    body = spec or pod_spec()
    images = [{**one, "image": f"{one['image'].rpartition(':')[0]}:{tag}"} for one in body["containers"]]
    return {**body, "containers": images}


def limited(memory: str, spec: Manifest | None = None) -> Manifest:
    """The same pods with a limit of their memory, such as 256Mi: how much of it they use is in lab/memory.py."""
    body = spec or pod_spec()
    bounds = {"limits": {"memory": memory}, "requests": {"memory": "1Mi"}}
    return {**body, "containers": [{**one, "resources": bounds} for one in body["containers"]]}


def on(node: str, spec: Manifest | None = None) -> Manifest:
    """The same pods, put on a node without the scheduler."""
    return {**(spec or pod_spec()), "nodeName": node}


def lasting(grace_seconds: int, spec: Manifest | None = None) -> Manifest:
    """The same pods with another grace period than 30 s, of which they take what `termination-seconds` says."""
    return {**(spec or pod_spec()), "terminationGracePeriodSeconds": grace_seconds}


def _container(name: str) -> Manifest:
    return {"name": name, "image": f"lab.local/{name}:1"}
