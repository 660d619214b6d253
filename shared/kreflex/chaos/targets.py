"""What an experiment may hit: what is selected, people have opted in, and nobody else is at work on."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from kreflex.chaos.experiments import ALLOWED, INJECTED, NODES, OPT_IN, PODS, Experiment, FaultKind, Targets
from kreflex.cluster import Reader
from kreflex.errors import UnavailableError
from kreflex.guards import OPT_OUT
from kreflex.policy import PROTECTED, PROTECTED_LABEL, Expression, Selector
from kreflex.rollouts import progress_of
from kreflex.views import HASH_LABELS, JSON, Ref, controller_of

_PLURALS = {
    "Pod": ("v1", "pods"),
    "Node": ("v1", "nodes"),
    "ConfigMap": ("v1", "configmaps"),
    "Deployment": ("apps/v1", "deployments"),
    "ReplicaSet": ("apps/v1", "replicasets"),
    "StatefulSet": ("apps/v1", "statefulsets"),
    "DaemonSet": ("apps/v1", "daemonsets"),
    "Rollout": ("argoproj.io/v1alpha1", "rollouts"),
    "Lease": ("coordination.k8s.io/v1", "leases"),
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies"),
}
_TRACK = ("track", "canary")


def kind_of(fault: FaultKind, targets: Targets) -> str:
    """Tell the kind of the objects that a fault hits."""
    if fault in PODS:
        return "Pod"
    if fault in NODES:
        return "Node"
    return {"Configuration": "ConfigMap", "LeaderLoss": "Lease"}.get(fault, targets.kind)


def place(kind: str, namespace: str, name: str = "") -> str:
    """Tell where the API server serves an object that may be hit, or all of its kind in a namespace."""
    version, plural = _PLURALS[kind]
    base = f"/api/{version}" if version == "v1" else f"/apis/{version}"
    where = "" if kind == "Node" or not namespace else f"/namespaces/{namespace}"
    return f"{base}{where}/{plural}{f'/{name}' if name else ''}"


def place_of(ref: Ref) -> str:
    """Tell the path of an object that may be hit."""
    return place(ref.kind, ref.namespace, ref.name)


def ref_of(body: JSON, kind: str) -> Ref:
    """Name an object as a list or a read has it."""
    meta = body["metadata"]
    return Ref(_PLURALS[kind][0], kind, meta.get("namespace", ""), meta["name"], meta["uid"])


@dataclass(frozen=True)
class Choice:
    """What may be hit, what of it was chosen, and why it is no more."""

    eligible: tuple[JSON, ...]
    chosen: tuple[JSON, ...]
    because: str = ""


async def forbidden(experiment: Experiment, home: str, reader: Reader) -> str | None:
    """Tell why nothing at all may be hit where an experiment is."""
    where, kind = experiment.namespace, experiment.wants.fault.kind
    if where in PROTECTED:
        return f"namespace {where} is protected"
    shared = {**dict.fromkeys(NODES, "node"), "LeaderLoss": "leader of the control plane"}.get(kind)
    if shared is not None and where != home:
        return f"a {shared} belongs to everybody: an experiment on one is made in namespace {home}"
    if where == home:
        return None if shared is not None else f"namespace {home} is Kreflex' own"
    body = await reader.get(f"/api/v1/namespaces/{where}")
    if ending := _ending(where, body):
        return ending
    labels = (body or {}).get("metadata", {}).get("labels") or {}
    if labels.get(PROTECTED_LABEL, "false") != "false":
        return f"namespace {where} has the label {PROTECTED_LABEL}"
    if labels.get(OPT_IN, ALLOWED) != ALLOWED:
        return f"namespace {where} has the label {OPT_IN}: {labels[OPT_IN]}"
    if kind == "Engine" and labels.get(OPT_IN) != ALLOWED:
        return f"an engine chooses for itself: namespace {where} needs the label {OPT_IN}: {ALLOWED}"
    return None


async def ending(namespace: str, reader: Reader) -> str:
    """Tell that a namespace goes, with all that is in it; "" if it stays, or if nobody can tell."""
    try:
        return _ending(namespace, await reader.get(f"/api/v1/namespaces/{namespace}")) if namespace else ""
    except UnavailableError:
        return ""


def _ending(namespace: str, body: JSON | None) -> str:
    if body is None:
        return f"namespace {namespace} is gone"
    return f"namespace {namespace} is being deleted" if "deletionTimestamp" in body["metadata"] else ""


async def labels_of(namespace: str, reader: Reader) -> Mapping[str, str]:
    """Read the labels of a namespace."""
    body = await reader.get(f"/api/v1/namespaces/{namespace}")
    return (body or {}).get("metadata", {}).get("labels") or {}


async def eligible(experiment: Experiment, reader: Reader) -> list[JSON]:
    """Read what may be hit now: selected, opted in, not opted out, and in nobody's hands."""
    spec, kind = experiment.wants, kind_of(experiment.wants.fault.kind, experiment.wants.targets)
    # A Lease of the control plane is in no namespace where people try things out: it has to be opted in by itself.
    where = "kube-system" if kind == "Lease" else experiment.namespace
    allowed = kind not in {"Node", "Lease"} and (await labels_of(where, reader)).get(OPT_IN) == ALLOWED
    chosen = query(spec.targets.selector)
    given = {"labelSelector": chosen} if chosen else {}
    # Rollouts are served only where their CRD is.
    listed = reader.list_served if kind == "Rollout" else reader.list
    found = [body async for body in listed(place(kind, where), **given)]
    usable = [one for one in found if _usable(one, spec.targets, allowed=allowed)]
    if spec.targets.canary and kind == "Pod":
        usable = [one for one in usable if await _of_canary(one, reader)]
    return sorted(usable, key=lambda one: str(one["metadata"]["name"]))


def opted_out(notes: Mapping[str, str]) -> bool:
    """Tell whether annotations keep all that is automatic away."""
    return notes.get(OPT_OUT, "false").lower() != "false"


def refuses(meta: JSON) -> str:
    """Tell why an object that was chosen may not be hit after all; "" if it still may."""
    said = (meta.get("labels") or {}).get(OPT_IN, ALLOWED)
    if said != ALLOWED:
        return f"it has the label {OPT_IN}: {said}"
    return f"it has the annotation {OPT_OUT}" if opted_out(meta.get("annotations") or {}) else ""


def restless(body: JSON) -> str:
    """Tell what Argo is doing with a Rollout, or waits for; "" for one that rests at its stable version.

    Its phases are those of https://argo-rollouts.readthedocs.io/en/stable/features/specification/ (status.phase).
    """
    progress, status = progress_of(body), body.get("status") or {}
    if not progress.observed:
        return "Argo has not seen its newest spec yet"
    if progress.trial != progress.stable:
        how = "was aborted" if progress.aborted else "is being rolled out"
        return f"version {progress.trial} {how}, and {progress.stable or 'none'} is the stable one"
    if progress.paused:
        return "it is paused, so nothing that is changed would be rolled out"
    phase = status.get("phase", "Healthy")
    return "" if phase == "Healthy" else f"it is {phase}: {status.get('message') or 'Argo does not say why'}"


def _usable(body: JSON, targets: Targets, *, allowed: bool) -> bool:
    meta = body["metadata"]
    said = (meta.get("labels") or {}).get(OPT_IN)
    notes = meta.get("annotations") or {}
    if targets.names and meta["name"] not in targets.names:
        return False
    if said != ALLOWED and not (allowed and said is None):
        return False
    if opted_out(notes) or INJECTED in notes or "deletionTimestamp" in meta:
        return False
    return (body.get("status") or {}).get("phase") not in {"Succeeded", "Failed"}


async def _of_canary(pod: JSON, reader: Reader) -> bool:
    """Tell whether a pod belongs to a canary: by its label, or because its Rollout is between two versions."""
    labels = pod["metadata"].get("labels") or {}
    if labels.get(_TRACK[0]) == _TRACK[1]:
        return True
    template = next((labels[one] for one in HASH_LABELS if one in labels), "")
    owner = controller_of(pod["metadata"])
    if owner is None or owner.kind != "ReplicaSet":
        return False
    made = await reader.get(place_of(owner))
    above = controller_of(made["metadata"]) if made else None
    if above is None or above.kind != "Rollout":
        return False
    status = (await reader.get(place_of(above)) or {}).get("status") or {}
    return bool(template) and template == status.get("currentPodHash") and template != status.get("stableRS")


def count(amount: int | str, of: int) -> int:
    """Turn an amount into a number; percent rounds down, so that 50% of one pod is none."""
    text = str(amount)
    wanted = math.floor(of * int(text[:-1]) / 100) if text.endswith("%") else int(text)
    return max(0, min(wanted, of))


def choose(experiment: Experiment, bodies: Sequence[JSON], earlier: Iterable[str], of: int) -> Choice:
    """Choose without replacement, the same for the same experiment, run and round; `of` is what percent is taken of."""
    hit = set(earlier)
    fresh = [one for one in bodies if one["metadata"]["uid"] not in hit]
    wanted = count(experiment.wants.amount, of)
    if not fresh or wanted < 1:
        because = f"{experiment.wants.amount} of {of} that may be hit is none" if of else _nothing(experiment)
        return Choice(tuple(bodies), (), because)
    status = experiment.status
    # Not for secrets: so that a run can be understood, and played again.
    lot = random.Random(f"{experiment.uid}/{status.run}/{status.rounds}")  # noqa: S311
    return Choice(tuple(bodies), tuple(lot.sample(fresh, min(wanted, len(fresh)))))


def _nothing(experiment: Experiment) -> str:
    kind = kind_of(experiment.wants.fault.kind, experiment.wants.targets)
    none = f"no {kind} that is selected has the label {OPT_IN}: {ALLOWED}, itself or by its namespace"
    return f"{none}, or this cluster knows no {kind}s" if kind == "Rollout" else none


def query(selector: Selector) -> str:
    """Write a label selector as a list's parameter has it."""
    pairs = [f"{key}={wanted}" for key, wanted in sorted(selector.match_labels.items())]
    return ",".join([*pairs, *(_expression(one) for one in selector.match_expressions)])


def _expression(one: Expression) -> str:
    values = f"({','.join(one.values)})"
    return {
        "In": f"{one.key} in {values}",
        "NotIn": f"{one.key} notin {values}",
        "Exists": one.key,
        "DoesNotExist": f"!{one.key}",
    }[one.operator]
