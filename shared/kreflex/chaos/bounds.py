"""What the experiment of an engine is bound to: its namespace, its time, and nodes that have opted in themselves.

An engine chooses its targets by its own spec, under its own account. What of such a spec reaches further is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

from kreflex.chaos.corruptions import UnfitError
from kreflex.chaos.experiments import ALLOWED, OPT_IN, Engine, Experiment
from kreflex.chaos.targets import opted_out, place
from kreflex.cluster import Reader
from kreflex.durations import parse_duration
from kreflex.views import JSON

# The faults of LitmusChaos that stay with pods, and those on nodes, by what their names begin or end with; others reach
# for a cloud, or for what nobody here knows. https://litmuschaos.github.io/litmus/experiments/categories/contents/
_OF_PODS = ("pod-", "container-kill", "disk-fill")
_OF_NODES = ("node-", "kubelet-service-kill", "docker-service-kill")
_NAMES, _LABEL = ("TARGET_NODE", "TARGET_NODES"), "NODE_LABEL"
_ELSEWHERE = ("APP_NAMESPACE", "APP_NS")
# They are over at once, so they have no duration.
_ONE_SHOT = {"pod-kill", "container-kill"}


def bound(experiment: Experiment, engine: Engine) -> JSON:
    """Give the engine's spec, bound to the namespace of the experiment; raises UnfitError for one that is not."""
    spec: dict[str, Any] = copy.deepcopy(engine.spec)
    return _litmus(experiment, spec) if engine.kind == "ChaosEngine" else _mesh(experiment, spec)


def _litmus(experiment: Experiment, spec: JSON) -> JSON:
    here, about = experiment.namespace, spec.get("appinfo") or {}
    if about.get("appns", here) != here:
        raise UnfitError(f"appinfo.appns is {about['appns']}: it may only be {here}")
    if spec.get("selectors"):
        raise UnfitError("spec.selectors may name other namespaces: use appinfo")
    for name, text in _environment(spec):
        if name in _ELSEWHERE and text != here:
            raise UnfitError(f"{name} is {text}: it may only be {here}")
    for one in spec.get("experiments") or ():
        if not str(one.get("name", "")).startswith((*_OF_PODS, *_OF_NODES)):
            raise UnfitError(f"nobody here knows what {one.get('name')} reaches: make its ChaosEngine yourself")
    return {**spec, "engineState": "active"}


def _mesh(experiment: Experiment, spec: JSON) -> JSON:
    if spec.get("remoteCluster"):
        raise UnfitError("spec.remoteCluster is another cluster")
    selectors = [("spec.selector", spec.setdefault("selector", {}))]
    if isinstance(spec.get("target"), dict):
        # The other side of the traffic is hit, too.
        selectors.append(("spec.target.selector", spec["target"].setdefault("selector", {})))
    for name, selector in selectors:
        _narrow(name, selector, experiment.namespace)
    if spec.get("action") not in _ONE_SHOT:
        spec["duration"] = _lasting(experiment, spec.get("duration"))
    return spec


def _narrow(name: str, selector: JSON, here: str) -> None:
    """Let it select pods of one namespace, and none that says no."""
    if set(selector.get("namespaces", [here])) != {here} or "pods" in selector or "nodes" in selector:
        raise UnfitError(f"{name} may only select pods by their labels, in namespace {here}")
    selector["namespaces"] = [here]
    no = {"key": OPT_IN, "operator": "NotIn", "values": ["forbidden"]}
    selector["expressionSelectors"] = [*(selector.get("expressionSelectors") or ()), no]


def _lasting(experiment: Experiment, asked: object) -> str:
    """Have the engine itself end it with the TTL, should nobody be there to end it."""
    ttl = experiment.wants.ttl
    if asked is None:
        return f"{ttl.total_seconds():.0f}s"
    try:
        fits = parse_duration(asked) <= ttl
    except ValueError as error:
        raise UnfitError(f"spec.duration {error}") from error
    if not fits:
        raise UnfitError(f"spec.duration is {asked}, longer than the ttl of the experiment")
    return str(asked)


async def nodes_of(engine: Engine, reader: Reader) -> list[str]:
    """Name the nodes that a ChaosEngine may hit; raises UnfitError if one of them has not opted in, or it may hit any.

    A node belongs to everybody: that a namespace has opted in says nothing about it.
    """
    if engine.kind != "ChaosEngine":
        return []
    names: list[str] = []
    for one in engine.spec.get("experiments") or ():
        if not str(one.get("name")).startswith(_OF_NODES):
            continue
        said = {name: text for name, text in _environment({"experiments": [one]}) if text}
        if not said.keys() & {*_NAMES, _LABEL}:
            raise UnfitError(f"{one.get('name')} would choose among all nodes: set TARGET_NODE or NODE_LABEL")
        names += [node.strip() for key in _NAMES for node in said.get(key, "").split(",") if node.strip()]
        names += await _labelled(said[_LABEL], reader) if _LABEL in said else []
    for name in dict.fromkeys(names):
        await _allowed(name, reader)
    return list(dict.fromkeys(names))


def _environment(spec: JSON) -> Iterator[tuple[str, str]]:
    for one in spec.get("experiments") or ():
        for env in ((one.get("spec") or {}).get("components") or {}).get("env") or ():
            yield str(env.get("name", "")), str(env.get("value", ""))


async def _labelled(label: str, reader: Reader) -> list[str]:
    found = [body["metadata"]["name"] async for body in reader.list(place("Node", ""), labelSelector=label)]
    if not found:
        raise UnfitError(f"no node has the label {label}")
    return found


async def _allowed(name: str, reader: Reader) -> None:
    body = await reader.get(place("Node", "", name))
    meta = {} if body is None else body["metadata"]
    said = (meta.get("labels") or {}).get(OPT_IN)
    if said != ALLOWED or opted_out(meta.get("annotations") or {}):
        raise UnfitError(f"node {name} has not the label {OPT_IN}: {ALLOWED}")
