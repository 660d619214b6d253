"""Templates of pods as controllers keep them, and as they would be written back into their workload."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from typing import Any

from kreflex.views import HASH_LABELS, JSON

TEMPLATE_HASH, CONTROLLER_HASH, ROLLOUT_HASH = HASH_LABELS
_NUMBERS = {"Deployment": "deployment.kubernetes.io/revision", "Rollout": "rollout.argoproj.io/revision"}
_LABELS = {"Deployment": TEMPLATE_HASH, "Rollout": ROLLOUT_HASH}
# https://argo-rollouts.readthedocs.io/en/stable/features/ephemeral-metadata/
_EPHEMERAL = "rollout.argoproj.io/ephemeral-metadata"
_TERMS = ("requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution")


def hash_of(kind: str, made: JSON) -> str:
    """Tell what the pods of a ReplicaSet or a ControllerRevision of such a workload are labelled with."""
    meta = made["metadata"]
    if kind == "StatefulSet":
        return str(meta["name"])
    return str((meta.get("labels") or {}).get(_LABELS.get(kind, CONTROLLER_HASH), ""))


def number_of(kind: str, made: JSON) -> int:
    """Tell the revision; 0 for what its controller has not numbered yet."""
    if "data" in made:
        return int(made.get("revision", 0))
    text = (made["metadata"].get("annotations") or {}).get(_NUMBERS[kind], "")
    return int(text) if text.isdecimal() else 0


def template_of(kind: str, made: JSON) -> JSON:
    """Give the template from which it was made, without what its controller has added."""
    if "data" in made:
        return _plain({key: value for key, value in made["data"]["spec"]["template"].items() if key != "$patch"})
    template = _plain(copy.deepcopy(made["spec"]["template"]))
    _remove(template["metadata"], "labels", [_LABELS[kind]])
    if kind == "Rollout":
        _unmake(template, (made["metadata"].get("annotations") or {}).get(_EPHEMERAL, ""))
    return template


def _plain(template: JSON) -> JSON:
    """Leave out an empty time of creation, which API servers before 1.34 write."""
    meta = {key: value for key, value in (template.get("metadata") or {}).items() if key != "creationTimestamp"}
    return {**template, "metadata": meta}


def _remove(body: JSON, key: str, names: list[str]) -> None:
    left = {name: value for name, value in (body.get(key) or {}).items() if name not in names}
    body.pop(key, None)
    if left:
        body[key] = left


def _unmake(template: JSON, ephemeral: str) -> None:
    """Take out what Argo Rollouts puts into its ReplicaSets: metadata of the canary or of stable, and anti-affinity.

    `kubectl argo rollouts undo` leaves both in. (argo-rollouts, utils/replicaset/canary.go and replicaset.go)
    """
    added: Any = json.loads(ephemeral) if ephemeral else {}
    for key in ("labels", "annotations"):
        _remove(template["metadata"], key, list((added or {}).get(key) or ()))
    affinity = template["spec"].get("affinity") or {}
    apart = affinity.get("podAntiAffinity") or {}
    for term in _TERMS:
        left = [one for one in apart.pop(term, None) or () if not _injected(one)]
        if left:
            apart[term] = left
    if not apart:
        affinity.pop("podAntiAffinity", None)
    if not affinity:
        template["spec"].pop("affinity", None)


def _injected(term: JSON) -> bool:
    selector = term.get("podAffinityTerm", term).get("labelSelector") or {}
    return any(one["key"] == ROLLOUT_HASH for one in selector.get("matchExpressions") or ())


def current(workload: JSON, made: Mapping[str, JSON]) -> str:
    """Tell the hash of what was made of the workload's present template; "" if nothing was yet."""
    kind, status = workload["kind"], workload.get("status") or {}
    if kind == "StatefulSet":
        return str(status.get("updateRevision", ""))
    if kind == "Rollout":
        return str(status.get("currentPodHash", ""))
    if kind == "DaemonSet":
        # The one that fits is numbered above all others, in the same turn in which the DaemonSet is seen.
        return max(made, key=lambda name: number_of(kind, made[name]), default="")
    wanted = _plain(workload["spec"]["template"])
    # Of several that are the same, the oldest: so does the controller (kubernetes, deployment_util.go).
    same = [name for name, body in made.items() if template_of(kind, body) == wanted]
    return min(same, key=lambda name: str(made[name]["metadata"]["creationTimestamp"]), default="")


def images(template: JSON) -> tuple[str, ...]:
    """Name the images of a template, those of init containers first, each once."""
    return tuple(dict.fromkeys(str(one.get("image", "")) for one in _containers(template)))


def config_maps(template: JSON) -> tuple[str, ...]:
    """Name the ConfigMaps without which no pod of a template starts."""
    spec = template["spec"]
    named = [name for one in _containers(template) for name in _of_container(one)]
    named += [name for one in spec.get("volumes") or () for name in _of_volume(one)]
    return tuple(dict.fromkeys(named))


def probed(template: JSON, container: str) -> bool:
    """Tell whether a container counts as ready only when a probe says so."""
    return any(one["name"] == container and one.get("readinessProbe") for one in _containers(template))


def _containers(template: JSON) -> Iterator[JSON]:
    yield from template["spec"].get("initContainers") or ()
    yield from template["spec"].get("containers") or ()


def _of_container(container: JSON) -> Iterator[str]:
    for source in container.get("envFrom") or ():
        yield from _needed(source.get("configMapRef"))
    for variable in container.get("env") or ():
        yield from _needed((variable.get("valueFrom") or {}).get("configMapKeyRef"))


def _of_volume(volume: JSON) -> Iterator[str]:
    yield from _needed(volume.get("configMap"))
    for source in (volume.get("projected") or {}).get("sources") or ():
        yield from _needed(source.get("configMap"))


def _needed(source: JSON | None) -> Iterator[str]:
    if source and source.get("name") and not source.get("optional"):
        yield source["name"]
