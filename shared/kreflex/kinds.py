"""The kinds of objects that a function may be told of, and where the API server serves them."""

from __future__ import annotations

from kreflex.rule import Rule
from kreflex.views import Ref

# What owns pods.
OWNING = {
    ("apps", "Deployment"): "deployments",
    ("apps", "ReplicaSet"): "replicasets",
    ("apps", "StatefulSet"): "statefulsets",
    ("apps", "DaemonSet"): "daemonsets",
    ("batch", "Job"): "jobs",
    ("argoproj.io", "Rollout"): "rollouts",
}
# What is released: each has a template, and a history of it that the cluster keeps.
RELEASED = {key: plural for key, plural in OWNING.items() if key[1] not in {"ReplicaSet", "Job"}}
# What shares traffic out between a canary and what is stable.
SHARING = {
    ("networking.k8s.io", "Ingress"): "ingresses",
    ("gateway.networking.k8s.io", "HTTPRoute"): "httproutes",
    ("networking.istio.io", "VirtualService"): "virtualservices",
    ("flagger.app", "Canary"): "canaries",
}
_VERSIONS = {
    "apps": "v1",
    "argoproj.io": "v1alpha1",
    "networking.k8s.io": "v1",
    "gateway.networking.k8s.io": "v1",
    "networking.istio.io": "v1",
    "flagger.app": "v1beta1",
}
_REMEMBERED = {("kreflex.dev", "ReleaseHistory"): "releasehistories", ("kreflex.dev", "Anomaly"): "anomalies"}
_BROKEN = {("kreflex.dev", "Experiment"): "experiments"}
_SERVED = {**OWNING, **SHARING, **_REMEMBERED, **_BROKEN}
# The API version that a kind is read in, where an event or an alert names just the kind.
TOLD = {kind: f"{group}/{_VERSIONS[group]}" for group, kind in (*RELEASED, *SHARING)}
OWNERS = tuple(Rule(group, plural, "get") for (group, _), plural in OWNING.items())
# An apiserver that does not serve a kind grants it all the same.
TO_FIND = tuple(Rule(group, plural, "list") for (group, _), plural in RELEASED.items())


def path_of(ref: Ref) -> str | None:
    """Tell the path of an object of a kind that we know; None for others."""
    return path_in(ref.api_version, ref.kind, ref.namespace, ref.name)


def path_in(api_version: str, kind: str, namespace: str, name: str = "") -> str | None:
    """Tell the path of an object, or of all of its kind in a namespace, or of all; None for a strange kind."""
    group, _, version = api_version.rpartition("/")
    plural = _SERVED.get((group, kind))
    if plural is None:
        return None
    where = f"/namespaces/{namespace}" if namespace else ""
    return f"/apis/{group}/{version}{where}/{plural}{f'/{name}' if name else ''}"


def is_released(ref: Ref) -> bool:
    """Tell whether it is of a kind that has releases: a template, and a history of it."""
    return (ref.api_version.rpartition("/")[0], ref.kind) in RELEASED
