"""What a canary is: which workload tries a new version, beside which it does, and what gives it its traffic.

A Rollout says so in its status, Flagger in its Canary. Of two Deployments the one is a canary that has the annotation
`kreflex.dev/canary-of: <the stable one>`, or the label `track: canary` beside one with `track: stable`, as in
https://kubernetes.io/docs/concepts/workloads/management/#canary-deployments, or that an nginx Ingress names with
`canary: "true"`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass

from kreflex.cluster import Reader
from kreflex.comparisons import Side
from kreflex.gates import KIND as FLAGGERS
from kreflex.gates import PRIMARY, Analysis, analysis_of
from kreflex.kinds import path_in
from kreflex.policy import GROUP
from kreflex.records import API, fault_key, read_record, record_name
from kreflex.remedies import noted_by
from kreflex.rollouts import HASH, Progress, progress_of
from kreflex.signals import PodSignal, WorkloadSignal
from kreflex.views import JSON, Pod, Ref, Workload, controller_of, pod_view, workload_view
from kreflex.weights import Backends, Share, ingress_services, service_of, share_of

CANARY_OF = f"{GROUP}/canary-of"
TRACK = "track"
_TRIES = 20
_DEPLOYMENTS, _ROLLOUTS = "apps/v1", "argoproj.io/v1alpha1"
_INGRESSES, _ROUTES, _ISTIO = "networking.k8s.io/v1", "gateway.networking.k8s.io/v1", "networking.istio.io/v1"


@dataclass(frozen=True, slots=True)
class NoCanary:
    """The signal means no canary; `final` says that its object is gone for good."""

    because: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Canary:
    """A workload that tries a new version beside a stable one, as both were read.

    One of these says what kind it is: `progress` of a Rollout, `analysis` of Flagger, or the `shares` of a Deployment.
    """

    workload: Workload
    labels: Mapping[str, str]
    version: str
    trial: Side
    stable: Side
    body: JSON
    progress: Progress | None = None
    analysis: Analysis | None = None
    shares: tuple[Share, ...] = ()

    @property
    def hash(self) -> str:
        """The template that is tried."""
        return self.trial.hash


async def canary_of(signal: PodSignal | WorkloadSignal, reader: Reader) -> Canary | NoCanary:
    """Find the canary that a signal means, and read all of it."""
    if isinstance(signal, PodSignal):
        return await _of_pod(signal, reader)
    body = await _read(signal.api_version, signal.kind, signal.namespace, signal.name, reader)
    if body is None or (signal.uid and body["metadata"]["uid"] != signal.uid):
        return NoCanary(f"{signal} is gone", final=bool(signal.uid))
    return await _of(body, reader)


async def _of_pod(signal: PodSignal, reader: Reader) -> Canary | NoCanary:
    pod = await reader.pod(signal.namespace, signal.name)
    if pod is None or (signal.uid and pod.ref.uid != signal.uid):
        return NoCanary(f"{signal} is gone", final=bool(signal.uid))
    top = await reader.top_owner(pod)
    ref = await _tried_by(top.ref, reader) if top is not None else None
    body = await _read(ref.api_version, ref.kind, ref.namespace, ref.name, reader) if ref is not None else None
    if ref is None or body is None or body["metadata"]["uid"] != ref.uid:
        return NoCanary(f"{signal} belongs to nothing that has canaries")
    found = await _of(body, reader)
    if isinstance(found, Canary) and found.progress and pod.labels.get(HASH) == found.stable.hash:
        return NoCanary(f"{signal} is of what is stable")
    return found


async def _tried_by(ref: Ref, reader: Reader) -> Ref | None:
    """Follow an Experiment to the Rollout that has it as a step."""
    if ref.kind != "Experiment" or not ref.api_version.startswith("argoproj.io/"):
        return ref
    body = await reader.get(f"/apis/{ref.api_version}/namespaces/{ref.namespace}/experiments/{ref.name}")
    return None if body is None else controller_of(body["metadata"])


async def _read(api_version: str, kind: str, namespace: str, name: str, reader: Reader) -> JSON | None:
    path = path_in(api_version, kind, namespace, name)
    body = await reader.get(path) if path else None
    # What is read by itself says what it is; what is in a list does not.
    return body and {"apiVersion": api_version, "kind": kind, **body}


async def _of(body: JSON, reader: Reader) -> Canary | NoCanary:
    kind, name = body["kind"], f"{body['kind']} {body['metadata']['namespace']}/{body['metadata']['name']}"
    if kind == "Rollout":
        return await _rollout(body, reader)
    if kind == "Deployment":
        return await _deployment(body, reader)
    if kind == FLAGGERS:
        return await _flaggers(body, reader)
    if kind in {"Ingress", "HTTPRoute", "VirtualService"}:
        return await _behind(body, name, reader)
    return NoCanary(f"{name} has no canaries")


async def _rollout(body: JSON, reader: Reader) -> Canary:
    progress, view = progress_of(body), workload_view(body)
    pods = await _pods(body, reader)
    services = _services_of_strategy(body)
    trial, stable = (
        Side(view.ref.namespace, view.ref.name, hash_, service, tuple(p for p in pods if p.labels.get(HASH) == hash_))
        for hash_, service in zip((progress.trial, progress.stable), services, strict=True)
    )
    meta = body["metadata"]
    return Canary(view, meta.get("labels") or {}, meta["resourceVersion"], trial, stable, body, progress)


def _services_of_strategy(body: JSON) -> tuple[str, str]:
    strategy = (body.get("spec") or {}).get("strategy") or {}
    canary, blue_green = strategy.get("canary") or {}, strategy.get("blueGreen") or {}
    trial = canary.get("canaryService") or blue_green.get("previewService") or ""
    return trial, canary.get("stableService") or blue_green.get("activeService") or ""


async def _flaggers(body: JSON, reader: Reader) -> Canary | NoCanary:
    analysis = analysis_of(body)
    namespace, name = analysis.ref.namespace, analysis.target
    if analysis.target_kind != "Deployment":
        return NoCanary(f"{analysis.ref} is about a {analysis.target_kind or 'workload that it does not name'}")
    found = [await _read(_DEPLOYMENTS, "Deployment", namespace, one, reader) for one in (name, f"{name}{PRIMARY}")]
    if found[0] is None or found[1] is None:
        return NoCanary(f"{analysis.ref} has no Deployments {name} and {name}{PRIMARY}")
    trial, stable = [
        Side(namespace, one, "", f"{analysis.service}{suffix}", await _pods(deployment, reader))
        for one, suffix, deployment in ((name, "-canary", found[0]), (f"{name}{PRIMARY}", PRIMARY, found[1]))
    ]
    version = body["metadata"]["resourceVersion"]
    return Canary(workload_view(found[0]), analysis.labels, version, trial, stable, body, analysis=analysis)


async def _behind(body: JSON, name: str, reader: Reader) -> Canary | NoCanary:
    """Find the canary behind an Ingress or a route, among the Deployments that it sends traffic to."""
    namespace = body["metadata"]["namespace"]
    named = set(_backends(body))
    services = await _all(f"/api/v1/namespaces/{namespace}/services", reader)
    selectors = [one["spec"].get("selector") or {} for one in services if one["metadata"]["name"] in named]
    for deployment in await _deployments(namespace, reader):
        if not any(_selects(selector, _template_labels(deployment)) for selector in selectors):
            continue
        found = await _deployment(deployment, reader)
        if isinstance(found, Canary):
            return found
    return NoCanary(f"{name} sends traffic to no Deployment that is marked as a canary")


def _backends(body: JSON) -> Iterable[str]:
    """Name the Services of a namespace's own that get traffic from an Ingress or a route."""
    spec, namespace = body.get("spec") or {}, body["metadata"]["namespace"]
    if body["kind"] == "Ingress":
        yield from ingress_services(body)
    for rule in spec.get("rules") or () if body["kind"] == "HTTPRoute" else ():
        yield from (one["name"] for one in rule.get("backendRefs") or ())
    for rule in [rule for protocol in ("http", "tls", "tcp") for rule in spec.get(protocol) or ()]:
        yield from (service_of(one["destination"]["host"], namespace)[1] for one in rule.get("route") or ())


async def _deployment(body: JSON, reader: Reader) -> Canary | NoCanary:
    view, namespace = workload_view(body), body["metadata"]["namespace"]
    services, ingresses, deployments = await asyncio.gather(
        _all(f"/api/v1/namespaces/{namespace}/services", reader),
        _kind(_INGRESSES, "Ingress", namespace, reader),
        _deployments(namespace, reader),
    )
    mine = _serving(body, services)
    steered = [one for one in ingresses if _steered(one) and set(ingress_services(one)) <= mine]
    if steered:
        return NoCanary(f"{_steered(steered[0])} shares out the traffic of {view.ref}")
    nginx = [one for one in ingresses if share_of(one, Backends(namespace, mine, {}), {})]
    stable = _stable_of(body, deployments, named=bool(nginx))
    if isinstance(stable, str):
        return NoCanary(stable)
    # A Service before both is shared out by the number of their replicas, and is no canary's.
    only = Backends(namespace, mine - _serving(stable, services), _difference(body, stable))
    shares = await _shares(namespace, only, ingresses, reader)
    trial, steady = [await _side(one, services, reader) for one in (body, stable)]
    meta = body["metadata"]
    return Canary(view, meta.get("labels") or {}, meta["resourceVersion"], trial, steady, body, shares=shares)


def _steered(body: JSON) -> Ref | None:
    """Tell which controller of rollouts writes the shares in an Ingress or a route."""
    owner = controller_of(body["metadata"])
    return owner if owner is not None and owner.kind in {FLAGGERS, "Rollout"} else None


def marked(body: JSON) -> bool:
    """Tell whether a Deployment says itself that it is a canary."""
    noted = body["metadata"].get("annotations") or {}
    return CANARY_OF in noted or _track(body) == "canary"


def may_try(pod: Pod) -> bool:
    """Tell whether a pod may be a canary's, by its labels alone: most pods are none, and cost no call."""
    return HASH in pod.labels or pod.labels.get(TRACK) == "canary"


def _track(body: JSON) -> str:
    return str((body["metadata"].get("labels") or {}).get(TRACK) or _template_labels(body).get(TRACK, ""))


def _stable_of(body: JSON, deployments: list[JSON], *, named: bool) -> JSON | str:
    """Find the Deployment that a canary stands beside; in words, why there is none or nobody can tell."""
    me, uid = body["metadata"]["name"], body["metadata"]["uid"]
    others = [one for one in deployments if one["metadata"]["uid"] != uid]
    said = (body["metadata"].get("annotations") or {}).get(CANARY_OF)
    if said is not None:
        beside = [one for one in others if one["metadata"]["name"] == said]
        return beside[0] if beside else f"{CANARY_OF} of Deployment {me} names {said}, which is not there"
    if not marked(body) and not named:
        return f"Deployment {me} is no canary: neither {CANARY_OF} nor {TRACK}: canary, nor an nginx canary's Ingress"
    others = [one for one in others if not marked(one) and _alike(body, one)]
    tracked = [one for one in others if _track(one) == "stable"] or others
    if len(tracked) != 1:
        names = ", ".join(sorted(one["metadata"]["name"] for one in tracked)) or "none"
        return f"beside Deployment {me} could stand {names}: say which in its annotation {CANARY_OF}"
    return tracked[0]


def _alike(body: JSON, other: JSON) -> bool:
    """Tell whether two Deployments are of one application: by its name, or else by all labels but their track."""
    mine, theirs = _template_labels(body), _template_labels(other)
    for label in ("app.kubernetes.io/name", "app"):
        if label in mine:
            return mine[label] == theirs.get(label)
    return {k: v for k, v in mine.items() if k != TRACK} == {k: v for k, v in theirs.items() if k != TRACK}


async def _shares(namespace: str, canary: Backends, ingresses: list[JSON], reader: Reader) -> tuple[Share, ...]:
    routes, services, rules = await asyncio.gather(
        _kind(_ROUTES, "HTTPRoute", namespace, reader),
        _kind(_ISTIO, "VirtualService", namespace, reader),
        _all(f"/apis/{_ISTIO}/namespaces/{namespace}/destinationrules", reader),
    )
    subsets = {
        ("/".join(service_of(rule["spec"]["host"], namespace)), subset["name"]): subset.get("labels") or {}
        for rule in rules
        for subset in rule["spec"].get("subsets") or ()
    }
    bodies = (body for body in (*ingresses, *routes, *services) if _steered(body) is None)
    found = (share_of(body, canary, subsets) for body in bodies)
    return tuple(share for share in found if share is not None)


def _difference(body: JSON, stable: JSON) -> dict[str, str]:
    """Give the labels of a canary's pods that the stable ones don't have: by these a subset is the canary's."""
    theirs = _template_labels(stable)
    return {name: value for name, value in _template_labels(body).items() if theirs.get(name) != value}


async def _side(body: JSON, services: list[JSON], reader: Reader) -> Side:
    pods = await _pods(body, reader)
    newest = max(pods, key=lambda pod: pod.created, default=None)
    meta = body["metadata"]
    # Its own first: another may stand before both.
    names = sorted(_serving(body, services), key=lambda name: (name != meta["name"], name))
    hash_ = newest.template_hash if newest is not None else ""
    return Side(meta["namespace"], meta["name"], hash_, names[0] if names else "", pods)


async def _pods(body: JSON, reader: Reader) -> tuple[Pod, ...]:
    """Read the pods that a workload selects."""
    spec, namespace = body.get("spec") or {}, body["metadata"]["namespace"]
    labels = (spec.get("selector") or {}).get("matchLabels") or {}
    # A Rollout that takes its template from a Deployment may have no selector of its own.
    wanted = ",".join(f"{key}={value}" for key, value in labels.items()) or (body.get("status") or {}).get("selector")
    if not wanted:
        return ()
    found = [pod_view(one) async for one in reader.list(f"/api/v1/namespaces/{namespace}/pods", labelSelector=wanted)]
    return tuple(pod for pod in found if labels.items() <= pod.labels.items())


def _template_labels(body: JSON) -> Mapping[str, str]:
    template = (body.get("spec") or {}).get("template") or {}
    return (template.get("metadata") or {}).get("labels") or {}


def _serving(body: JSON, services: list[JSON]) -> frozenset[str]:
    labels = _template_labels(body)
    return frozenset(one["metadata"]["name"] for one in services if _selects(one["spec"].get("selector") or {}, labels))


def _selects(selector: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    return bool(selector) and selector.items() <= labels.items()


async def _deployments(namespace: str, reader: Reader) -> list[JSON]:
    return await _kind(_DEPLOYMENTS, "Deployment", namespace, reader)


async def _kind(api_version: str, kind: str, namespace: str, reader: Reader) -> list[JSON]:
    path = path_in(api_version, kind, namespace)
    assert path is not None, f"{kind} is of no kind that is known"
    return [{"apiVersion": api_version, "kind": kind, **body} for body in await _all(path, reader)]


async def _all(path: str, reader: Reader) -> list[JSON]:
    """Read all there is; what the cluster does not serve has no objects."""
    return [body async for body in reader.list_served(path)]


async def tried(reader: Reader, function: str = "") -> AsyncIterator[Ref]:
    """Find what tries a new version now: Rollouts, and Deployments that say themselves that they are canaries.

    Besides, the Deployments whose sync this function has suspended: people are told until somebody resumes it.
    """
    async for body in reader.everywhere(_ROLLOUTS, "Rollout"):
        progress = progress_of(body)
        if progress.trying and not progress.aborted:
            yield _ref(body, _ROLLOUTS, "Rollout")
    async for body in reader.everywhere(_DEPLOYMENTS, "Deployment"):
        suspended = noted_by(body["metadata"].get("annotations") or {}, function)
        if suspended or (marked(body) and body["spec"].get("replicas", 1) > 0):
            yield _ref(body, _DEPLOYMENTS, "Deployment")


async def this_try(function: str, ref: Ref, version: str, reader: Reader) -> str:
    """Name the fault of a version as it is tried now: what was dealt with once is tried again under another name."""
    for number in range(1, _TRIES):
        episode = version if number == 1 else f"{version}/{number}"
        name = record_name(function, ref.name, fault_key(function, ref.uid, episode))
        body = await reader.get(f"/apis/{API}/namespaces/{ref.namespace}/remediations/{name}")
        if body is None or not read_record(body).final:
            return episode
    return f"{version}/{_TRIES}"


def _ref(body: JSON, api_version: str, kind: str) -> Ref:
    meta = body["metadata"]
    return Ref(api_version, kind, meta["namespace"], meta["name"], meta["uid"])
