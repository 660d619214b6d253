"""Traffic of a canary that no controller of rollouts steers: shares in Ingresses and routes, and replicas.

The share first, the replicas after: who is connected is not cut off. Only the canary's own share is changed, to 0;
what is stable gets all of it then, and is itself never written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import ClassVar

from kreflex.actions import register
from kreflex.canaryactions import CanaryAction, as_read, served_at
from kreflex.cluster import Reader, Writer
from kreflex.gitops import RBAC as READS_GIT
from kreflex.nodes import MARK
from kreflex.policy import GROUP
from kreflex.rule import Check, Rule
from kreflex.views import JSON, Ref

# https://github.com/kubernetes/ingress-nginx/blob/main/docs/user-guide/nginx-configuration/annotations.md#canary
NGINX = "nginx.ingress.kubernetes.io/canary"
NGINX_WEIGHT = f"{NGINX}-weight"
# What it was, for the person who brings it back.
WEIGHTS_BEFORE, REPLICAS_BEFORE = f"{GROUP}/weights-before", f"{GROUP}/replicas-before"
_PROTOCOLS = ("http", "tls", "tcp")


@dataclass(frozen=True, slots=True)
class Backends:
    """What one of two versions is called where traffic is shared out: names of Services, and labels of its pods."""

    namespace: str
    services: frozenset[str]
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Share:
    """What sends traffic to a canary, as it was read: `weight` is the largest share that one of its rules gives it.

    `weights` are all of them, by their places. `changed` is what a merge patch sets to take them away. `alone` says
    that a rule sends traffic to the canary and to nobody else, so that nothing would be left to take it over.
    """

    ref: Ref
    version: str
    annotations: Mapping[str, str]
    labels: Mapping[str, str]
    weight: int
    weights: Mapping[str, int]
    changed: JSON
    body: JSON = field(repr=False)
    alone: bool = False


def share_of(body: JSON, canary: Backends, subsets: Mapping[tuple[str, str], Mapping[str, str]]) -> Share | None:
    """Tell what an Ingress, an HTTPRoute or a VirtualService sends to a canary; None if that is nothing to do with it.

    `subsets` are the labels of the subsets that DestinationRules make of a host.
    """
    kind = body["kind"]
    if kind == "Ingress":
        return _ingress(body, canary)
    if kind == "HTTPRoute":
        return _http_route(body, canary)
    return _virtual_service(body, canary, subsets)


def _ingress(body: JSON, canary: Backends) -> Share | None:
    noted = body["metadata"].get("annotations") or {}
    if noted.get(NGINX) != "true" or not (named := set(ingress_services(body))) or not named <= canary.services:
        return None
    told = str(noted.get(NGINX_WEIGHT, "0"))
    weight = int(told) if told.isdigit() else 0
    changed = {"metadata": {"annotations": {NGINX_WEIGHT: "0"}}}
    # The stable Ingress of the same host is another one: nginx takes nothing from it that the canary does not get.
    total = str(noted.get(f"{NGINX_WEIGHT}-total", "100"))
    full = weight >= (int(total) if total.isdigit() else 100)
    return _share(body, {NGINX_WEIGHT: weight}, changed, alone=full)


def ingress_services(body: JSON) -> Iterator[str]:
    """Name the Services that an Ingress sends traffic to."""
    spec = body.get("spec") or {}
    paths = [path for rule in spec.get("rules") or () for path in (rule.get("http") or {}).get("paths") or ()]
    for backend in [path["backend"] for path in paths] + [b for b in (spec.get("defaultBackend"),) if b]:
        if "service" in backend:
            yield backend["service"]["name"]


def _http_route(body: JSON, canary: Backends) -> Share | None:
    rules = deepcopy((body.get("spec") or {}).get("rules") or [])
    weights, alone = dict[str, int](), False
    for number, rule in enumerate(rules):
        ours, others = [], 0
        for index, backend in enumerate(rule.get("backendRefs") or ()):
            # https://gateway-api.sigs.k8s.io/reference/spec/#backendref: 1 where none is said, a proportion otherwise.
            weight = backend.get("weight", 1)
            if _is_service(backend, canary, body["metadata"]["namespace"]):
                weights[f"rules[{number}].backendRefs[{index}]"] = weight
                ours.append(backend)
            else:
                others += weight
        alone = alone or (bool(ours) and others == 0)
        for backend in ours:
            backend["weight"] = 0
    return _share(body, weights, {"spec": {"rules": rules}}, alone=alone) if weights else None


def _is_service(backend: JSON, canary: Backends, namespace: str) -> bool:
    kind = (backend.get("group", ""), backend.get("kind", "Service"))
    here = backend.get("namespace", namespace) == canary.namespace
    return kind == ("", "Service") and here and backend["name"] in canary.services


def _virtual_service(
    body: JSON, canary: Backends, subsets: Mapping[tuple[str, str], Mapping[str, str]]
) -> Share | None:
    spec = body.get("spec") or {}
    changed = {protocol: deepcopy(spec[protocol]) for protocol in _PROTOCOLS if spec.get(protocol)}
    weights, alone = dict[str, int](), False
    for protocol, rules in changed.items():
        for number, rule in enumerate(rules):
            routes = rule.get("route") or []
            ours, others = [], 0
            for index, route in enumerate(routes):
                # https://istio.io/latest/docs/reference/config/networking/virtual-service/#HTTPRouteDestination: a
                # proportion; one destination alone gets everything.
                weight = route.get("weight", 100 if len(routes) == 1 else 0)
                if _is_destination(route.get("destination") or {}, canary, body["metadata"]["namespace"], subsets):
                    weights[f"{protocol}[{number}].route[{index}]"] = weight
                    ours.append(route)
                else:
                    others += weight
            alone = alone or (bool(ours) and others == 0)
            for route in ours:
                route["weight"] = 0
    return _share(body, weights, {"spec": changed}, alone=alone) if weights else None


def _is_destination(
    destination: JSON, canary: Backends, namespace: str, subsets: Mapping[tuple[str, str], Mapping[str, str]]
) -> bool:
    host, subset = service_of(destination.get("host", ""), namespace), destination.get("subset", "")
    if host in {(canary.namespace, name) for name in canary.services}:
        return True
    labels = subsets.get(("/".join(host), subset)) if subset else None
    return bool(labels) and labels is not None and labels.items() <= canary.labels.items()


def service_of(host: str, namespace: str) -> tuple[str, str]:
    """Tell the namespace and name of the Service that a host of Istio means; a short one is of `namespace`."""
    name, _, rest = host.partition(".")
    return (rest.split(".")[0] if rest else namespace, name)


def _share(body: JSON, weights: Mapping[str, int], changed: JSON, *, alone: bool) -> Share:
    meta = body["metadata"]
    return Share(
        ref=Ref(body["apiVersion"], body["kind"], meta["namespace"], meta["name"], meta["uid"]),
        version=meta["resourceVersion"],
        annotations=meta.get("annotations") or {},
        labels=meta.get("labels") or {},
        weight=max(weights.values()),
        weights=weights,
        changed=changed,
        body=body,
        alone=alone and max(weights.values()) > 0,
    )


_SAME_WEIGHT = f"object.metadata.?annotations[?'{NGINX_WEIGHT}'] == oldObject.metadata.?annotations[?'{NGINX_WEIGHT}']"
# An annotation is no field of Git's: this one is, all the same.
_NOT_GITS = Check(f"!variables.gits || {_SAME_WEIGHT}", f"Git owns {NGINX_WEIGHT} of it: change it there")
_ONLY_DOWN = Check(
    f"{_SAME_WEIGHT} || int(object.metadata.?annotations[?'" + NGINX_WEIGHT + "'].orValue('0')) == 0"
    " && object.metadata.?annotations[?'" + NGINX + "'].orValue('') == 'true'",
    f"of an Ingress only the canary's share is changed, to 0 ({NGINX_WEIGHT})",
)


def _shares(rules: str, backends: str, name: str) -> Check:
    """Write in CEL that of a list of rules nothing but weights is changed, and none of them to more."""
    new, old = (f"{one}.spec.?{rules}.orValue([])" for one in ("object", "oldObject"))
    named = f".map(r, r.?{backends}.orValue([]).map(b, b.{name}))"
    rest = ".map(r, r.?match.orValue(r.?matches.orValue([])))"
    lower = (
        f"{new}.all(r, r.?{backends}.orValue([]).all(b, {old}.exists(o, o.?{backends}.orValue([]).exists(p,"
        f" p.{name} == b.{name} && p.?weight.orValue(100) >= b.?weight.orValue(0)))))"
    )
    return Check(
        f"{new}{named} == {old}{named} && {new}{rest} == {old}{rest} && {lower}",
        f"of {rules} only weights are changed, and none to more",
    )


def _reads(*resources: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple(Rule(group, resource, verb) for group, resource in resources for verb in ("get", "list"))


_READS = _reads(
    ("", "services"),
    ("networking.k8s.io", "ingresses"),
    ("gateway.networking.k8s.io", "httproutes"),
    ("networking.istio.io", "virtualservices"),
    ("networking.istio.io", "destinationrules"),
)


@dataclass(frozen=True, kw_only=True)
class TakeTraffic(CanaryAction):
    """Set the canary's share in an Ingress, an HTTPRoute or a VirtualService to 0; all else stays as it was read."""

    share: Share

    rbac: ClassVar[tuple[Rule, ...]] = (
        *_READS,
        *READS_GIT,
        Rule("networking.k8s.io", "ingresses", "patch", notes=(NGINX_WEIGHT,), checks=(_ONLY_DOWN, _NOT_GITS)),
        Rule(
            "gateway.networking.k8s.io",
            "httproutes",
            "patch",
            fields=("spec.rules",),
            checks=(_shares("rules", "backendRefs", "name"),),
        ),
        Rule(
            "networking.istio.io",
            "virtualservices",
            "patch",
            fields=tuple(f"spec.{protocol}" for protocol in _PROTOCOLS),
            checks=tuple(_shares(protocol, "route", "destination") for protocol in _PROTOCOLS),
        ),
    )
    verb: ClassVar[str] = "take the traffic from"
    past: ClassVar[str] = "TookTraffic"

    @property
    def step_name(self) -> str:
        """Each Ingress and each route is a step of its own."""
        return f"{type(self).__name__} {self.share.ref.kind}/{self.share.ref.name}"

    def annotations(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        """The workload's, and those of what is changed."""
        return (*super().annotations(), (str(self.share.ref), self.share.annotations))

    def prior(self) -> dict[str, str]:
        """The weights that were read."""
        weights = {place: str(weight) for place, weight in self.share.weights.items()}
        return {"changed": str(self.share.ref), "resourceVersion": self.share.version, **weights}

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Write no share for the canary, and beside it what it had and which record took it."""
        ref, share = self.share.ref, self.share
        await as_read(ref, share.version, reader)
        notes = {MARK: mark, WEIGHTS_BEFORE: json.dumps(dict(share.weights), sort_keys=True)}
        mine = (share.changed.get("metadata") or {}).get("annotations") or {}
        meta = {"uid": ref.uid, "resourceVersion": share.version, "annotations": {**notes, **mine}}
        await writer.merge(served_at(ref), {**share.changed, "metadata": meta})
        return f"{ref} gave it {share.weight}"


_TO_NOTHING = Check(
    f"object.spec.replicas == oldObject.spec.replicas || (object.spec.replicas == 0"
    f" && object.metadata.?annotations[?'{REPLICAS_BEFORE}'].hasValue())",
    f"a canary is scaled to 0 and to nothing else, with the annotation {REPLICAS_BEFORE}",
)


@dataclass(frozen=True, kw_only=True)
class ScaleCanary(CanaryAction):
    """Scale a canary Deployment to 0. A HorizontalPodAutoscaler leaves a workload without replicas alone."""

    version: str
    replicas: int

    rbac: ClassVar[tuple[Rule, ...]] = (
        *_READS,
        *READS_GIT,
        Rule("apps", "deployments", "get"),
        Rule("apps", "deployments", "patch", fields=("spec.replicas",), checks=(_TO_NOTHING,)),
    )
    verb: ClassVar[str] = "scale to 0"
    past: ClassVar[str] = "ScaledCanary"

    def prior(self) -> dict[str, str]:
        """How many replicas it had."""
        return {"resourceVersion": self.version, "replicas": str(self.replicas)}

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Scale what was read, and leave on it how many replicas it had and which record took them."""
        await as_read(self.target, self.version, reader)
        notes = {MARK: mark, REPLICAS_BEFORE: str(self.replicas)}
        meta = {"uid": self.target.uid, "resourceVersion": self.version, "annotations": notes}
        await writer.merge(served_at(self.target), {"metadata": meta, "spec": {"replicas": 0}})
        return f"it had {self.replicas} replicas"


def with_traffic(shares: Iterable[Share]) -> list[Share]:
    """Choose those that send anything to the canary."""
    return [share for share in shares if share.weight > 0]


register(TakeTraffic, ScaleCanary)
