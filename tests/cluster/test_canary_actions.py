"""The actions on canaries on a real API server, with the rights that their declarations give and no others."""

import uuid
from collections.abc import AsyncIterator
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import cycle
from typing import Any

import pytest

from functions.canary_aborter import main as aborter
from kreflex import admission, rights
from kreflex.actions import Action
from kreflex.canaries import CANARY_OF, Canary, canary_of
from kreflex.canarygit import ForgetSuspendedShares, NoteSuspendedShare
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.errors import ApiError, ConflictError, DeniedError
from kreflex.gitops import SYNC_SUSPENDED
from kreflex.nodes import MARK
from kreflex.reflex import Arc
from kreflex.remedies import Live, Remedy
from kreflex.rollouts import AbortRollout, PauseRollout, ResumeAborted
from kreflex.serve import REFLEXES
from kreflex.settings import CoreSettings
from kreflex.signals import Due, WorkloadSignal
from kreflex.weights import NGINX, NGINX_WEIGHT, REPLICAS_BEFORE, WEIGHTS_BEFORE, ScaleCanary, TakeTraffic
from lab import audit, crds, manifests, nodes
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster.reflexes import Ahead
from tests.mortal import CutError, Mortal
from tests.values import CannedMetrics

NAME, HOME, MINE, HASH = "canary-aborter", "kreflex-system", "canary-aborter-shop-1", "7d4"
INGRESSES, ROUTES, ISTIO = "networking.k8s.io/v1", "gateway.networking.k8s.io/v1", "networking.istio.io/v1"
PLURALS = {"Ingress": "ingresses", "HTTPRoute": "httproutes", "VirtualService": "virtualservices"}
VERSIONS = {"Ingress": INGRESSES, "HTTPRoute": ROUTES, "VirtualService": ISTIO}
COMPARISON = {"requests": 'requests{pod=~"{pods}"}', "errors": 'errors{pod=~"{pods}"}'}
SETTINGS = aborter.CanaryAborterSettings(settle="0s")  # type: ignore[arg-type]
REFLEX = replace(REFLEXES[NAME], settings=SETTINGS)


def rollouts_crd(group: str = "argoproj.io", *, subresource: bool = True) -> kit.Json:
    """A Rollout that takes any fields, with a status subresource as Argo's own has, or without."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    version = {"name": "v1alpha1", "served": True, "storage": True, "schema": schema}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"rollouts.{group}"},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": "Rollout", "plural": "rollouts", "singular": "rollout", "listKind": "RolloutList"},
            "versions": [{**version, **({"subresources": {"status": {}}} if subresource else {})}],
        },
    }


@dataclass
class Lab:
    """The control plane, and the function's account."""

    plane: ControlPlane
    reader: Reader
    writer: Writer

    async def make(self, *bodies: kit.Json) -> str:
        """Make a namespace with these objects."""
        name = f"c-{uuid.uuid4().hex[:8]}"
        await self.plane.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
        await manifests.apply(self.plane.api, bodies, name)
        return name

    async def get(self, kind: str, namespace: str, name: str) -> kit.Json:
        version, plural = VERSIONS.get(kind, "apps/v1"), PLURALS.get(kind, f"{kind.lower()}s")
        return await self.plane.api.get(f"/apis/{version}/namespaces/{namespace}/{plural}/{name}")

    async def canary(self, namespace: str, kind: str = "Deployment", name: str = "shop-canary") -> Canary:
        signal = WorkloadSignal(
            {**VERSIONS, "Rollout": "argoproj.io/v1alpha1"}.get(kind, "apps/v1"), kind, namespace, name
        )
        found = await canary_of(signal, self.reader)
        assert isinstance(found, Canary), found
        return found

    async def apply(self, action: Action) -> str:
        return await action.apply(self.writer, self.reader, MINE)

    def writes(self, namespace: str) -> list[str]:
        """Tell what our account has changed in a namespace, but for records, as the API server logged it."""
        return [
            f"{entry['verb']} {entry['objectRef']['resource']}/{entry['objectRef'].get('name')}"
            for entry in audit.entries(self.plane.audit_log, namespace)
            if entry["user"]["username"].endswith(f":{NAME}")
            and entry["objectRef"].get("namespace") == namespace
            and entry["verb"] in {"create", "update", "patch", "delete"}
            and entry["objectRef"]["resource"] not in {"remediations", "events"}
            and entry["responseStatus"]["code"] < 300
        ]


@pytest.fixture(scope="module")
async def lab(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Lab]:
    async with ControlPlane(tmp_path_factory.mktemp("canaries")) as plane:
        await nodes.start(plane, 1)
        await kit.install(plane)
        allowed = rights.rights_of(REFLEX)
        bodies = [*crds.sharing_crds(), rollouts_crd(), *rights.manifests(allowed), *admission.policy_of(allowed)]
        await manifests.apply(plane.api, bodies)
        transport = Transport(load_credentials(str(await plane.kubeconfig_for(HOME, NAME))))
        made = Lab(plane, Reader(transport), Writer(transport))
        await eventually(lambda: denies(made), "the admission policy at work")
        yield made
        await transport.close()


async def denies(lab: Lab) -> bool:
    """Whether admission keeps our account from what RBAC alone would allow it."""
    try:
        name = await lab.make(*pair())
        path = f"/apis/apps/v1/namespaces/{name}/deployments/shop"
        await lab.writer.merge(path, {"spec": {"replicas": 5}})
    except DeniedError:
        return True
    except ApiError:
        return False
    return False


def a_service(name: str, selector: kit.Json) -> kit.Json:
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": selector, "ports": [{"port": 80}]},
    }


def a_deployment(name: str, track: str, replicas: int, **metadata: Any) -> kit.Json:
    """One of two Deployments of one application, that their label `track` tells apart."""
    body = kit.deployment(name, replicas)
    labels = {"app": "shop", "track": track}
    body["metadata"] |= {"labels": labels, **metadata}
    body["spec"]["selector"] = {"matchLabels": labels}
    body["spec"]["template"]["metadata"]["labels"] = labels
    return body


def pair(replicas: int = 1, **metadata: Any) -> list[kit.Json]:
    """A stable Deployment and its canary, each with a Service, and one Service before both."""
    return [
        a_deployment("shop", "stable", 3),
        a_deployment("shop-canary", "canary", replicas, **metadata),
        a_service("shop-all", {"app": "shop"}),
        a_service("shop", {"app": "shop", "track": "stable"}),
        a_service("shop-canary", {"app": "shop", "track": "canary"}),
    ]


def an_ingress(name: str, service: str, **annotations: str) -> kit.Json:
    backend = {"service": {"name": service, "port": {"number": 80}}}
    rule = {"host": "shop.example", "http": {"paths": [{"path": "/", "pathType": "Prefix", "backend": backend}]}}
    return {
        "apiVersion": INGRESSES,
        "kind": "Ingress",
        "metadata": {"name": name, "annotations": annotations},
        "spec": {"ingressClassName": "nginx", "rules": [rule]},
    }


def nginx(**more: str) -> list[kit.Json]:
    canary = {NGINX: "true", NGINX_WEIGHT: "10", f"{NGINX}-by-header": "x-canary", "team": "shop", **more}
    return [an_ingress("shop", "shop"), an_ingress("shop-canary", "shop-canary", **canary)]


def a_route() -> kit.Json:
    def backend(name: str, weight: int) -> kit.Json:
        headers = {"set": [{"name": "x-backend", "value": name}]}
        filters = [{"type": "RequestHeaderModifier", "requestHeaderModifier": headers}]
        return {"name": name, "port": 80, "weight": weight, "filters": filters}

    path = [{"path": {"type": "PathPrefix", "value": "/"}}]
    rules = [
        {
            "matches": path,
            "timeouts": {"request": "5s"},
            "backendRefs": [backend("shop", 90), backend("shop-canary", 10)],
        },
        {"matches": [{"path": {"type": "Exact", "value": "/health"}}], "backendRefs": [backend("shop", 1)]},
    ]
    spec = {"hostnames": ["shop.example"], "parentRefs": [{"name": "gateway"}], "rules": rules}
    return {"apiVersion": ROUTES, "kind": "HTTPRoute", "metadata": {"name": "shop"}, "spec": spec}


def istio() -> list[kit.Json]:
    """A VirtualService over the subsets of one host, as Istio's own examples have them."""
    subsets = [{"name": track, "labels": {"track": track}} for track in ("stable", "canary")]
    route = [
        {"destination": {"host": "shop-all", "subset": "stable"}, "weight": 75},
        {"destination": {"host": "shop-all", "subset": "canary"}, "weight": 25},
    ]
    http = [{"name": "all", "timeout": "5s", "route": route}]
    spec = {"hosts": ["shop.example"], "http": http}
    rule = {"host": "shop-all", "subsets": subsets}
    return [
        {"apiVersion": ISTIO, "kind": "DestinationRule", "metadata": {"name": "shop"}, "spec": rule},
        {"apiVersion": ISTIO, "kind": "VirtualService", "metadata": {"name": "shop"}, "spec": spec},
    ]


def step(canary: Canary) -> dict[str, Any]:
    return {"because": "it fails", "workload": canary.workload, "marks": canary.labels, "template": HASH}


def changed(before: kit.Json, after: kit.Json) -> tuple[dict[str, str | None], kit.Json]:
    """Tell the annotations that were added or changed, and the spec of what was read before and after."""
    old, new = (body["metadata"].get("annotations") or {} for body in (before, after))
    notes = {key: value for key, value in new.items() if old.get(key) != value}
    return notes | {key: None for key in old if key not in new}, after["spec"]


# The traffic


async def test_of_an_nginx_canary_only_the_weight_goes_to_zero_and_what_it_was_stands_beside_it(lab: Lab) -> None:
    here = await lab.make(*pair(), *nginx())
    before, stable = [await lab.get("Ingress", here, name) for name in ("shop-canary", "shop")]
    canary = await lab.canary(here)
    (share,) = canary.shares

    assert await lab.apply(TakeTraffic(**step(canary), share=share)) == f"Ingress {here}/shop-canary gave it 10"

    notes = {NGINX_WEIGHT: "0", MARK: MINE, WEIGHTS_BEFORE: f'{{"{NGINX_WEIGHT}": 10}}'}
    after = await lab.get("Ingress", here, "shop-canary")
    assert changed(before, after) == (notes, before["spec"])
    assert await lab.get("Ingress", here, "shop") == stable
    assert lab.writes(here) == ["patch ingresses/shop-canary"]
    assert [share.weight for share in (await lab.canary(here)).shares] == [0]


async def test_of_a_route_of_the_gateway_api_only_the_canarys_weight_changes(lab: Lab) -> None:
    here = await lab.make(*pair(), a_route())
    before = await lab.get("HTTPRoute", here, "shop")
    canary = await lab.canary(here)
    (share,) = canary.shares

    await lab.apply(TakeTraffic(**step(canary), share=share))

    wanted = deepcopy(before["spec"])
    wanted["rules"][0]["backendRefs"][1]["weight"] = 0
    notes = {MARK: MINE, WEIGHTS_BEFORE: '{"rules[0].backendRefs[1]": 10}'}
    assert changed(before, await lab.get("HTTPRoute", here, "shop")) == (notes, wanted)
    assert lab.writes(here) == ["patch httproutes/shop"]


async def test_of_a_virtual_service_the_subset_of_the_canary_gets_nothing(lab: Lab) -> None:
    here = await lab.make(*pair(), *istio())
    before = await lab.get("VirtualService", here, "shop")
    canary = await lab.canary(here)
    (share,) = canary.shares

    await lab.apply(TakeTraffic(**step(canary), share=share))

    wanted = deepcopy(before["spec"])
    wanted["http"][0]["route"][1]["weight"] = 0
    notes = {MARK: MINE, WEIGHTS_BEFORE: '{"http[0].route[1]": 25}'}
    assert changed(before, await lab.get("VirtualService", here, "shop")) == (notes, wanted)
    assert lab.writes(here) == ["patch virtualservices/shop"]


async def test_an_alert_about_an_ingress_or_a_route_means_the_canary_behind_it(lab: Lab) -> None:
    here = await lab.make(*pair(), *nginx(), a_route(), *istio())
    named = [
        ("Ingress", "shop-canary"),
        ("HTTPRoute", "shop"),
        ("VirtualService", "shop"),
        ("Deployment", "shop-canary"),
    ]
    found = [await lab.canary(here, kind, name) for kind, name in named]
    assert [(one.workload.ref.name, one.stable.workload, len(one.shares)) for one in found] == 4 * [
        ("shop-canary", "shop", 3)
    ]


async def test_a_share_that_has_changed_since_it_was_read_is_left_alone(lab: Lab) -> None:
    here = await lab.make(*pair(), *nginx())
    canary = await lab.canary(here)
    path = f"/apis/{INGRESSES}/namespaces/{here}/ingresses/shop-canary"
    await lab.plane.api.patch(path, {"metadata": {"annotations": {NGINX_WEIGHT: "20"}}})
    with pytest.raises(ConflictError):
        await lab.apply(TakeTraffic(**step(canary), share=canary.shares[0]))
    assert lab.writes(here) == []


async def test_a_canary_is_scaled_to_nothing_and_says_what_it_had(lab: Lab) -> None:
    here = await lab.make(*pair(replicas=2))
    before = await lab.get("Deployment", here, "shop-canary")

    async def scaled() -> str | None:
        now = await lab.canary(here)
        try:
            return await lab.apply(ScaleCanary(**step(now), version=now.version, replicas=2))
        except ConflictError:
            return None  # Its controller writes how many pods are there.

    assert await eventually(scaled, "the canary scaled") == "it had 2 replicas"
    notes, spec = changed(before, await lab.get("Deployment", here, "shop-canary"))
    assert {key: notes.get(key) for key in (MARK, REPLICAS_BEFORE)} == {MARK: MINE, REPLICAS_BEFORE: "2"}
    assert spec == {**before["spec"], "replicas": 0}
    assert lab.writes(here) == ["patch deployments/shop-canary"]


@pytest.mark.parametrize(
    ("path", "patch", "why"),
    [
        ("apps/v1/{}/deployments/shop-canary", {"spec": {"replicas": 5}}, "to 0 and to nothing else"),
        ("apps/v1/{}/deployments/shop-canary", {"spec": {"replicas": 0}}, REPLICAS_BEFORE),
        ("apps/v1/{}/deployments/shop-canary", {"spec": {"paused": True}}, "only"),
        (INGRESSES + "/{}/ingresses/shop-canary", {"metadata": {"annotations": {NGINX_WEIGHT: "50"}}}, "to 0"),
        (INGRESSES + "/{}/ingresses/shop", {"metadata": {"annotations": {NGINX_WEIGHT: "0"}}}, "to 0"),
        (INGRESSES + "/{}/ingresses/shop-canary", {"metadata": {"annotations": {NGINX: "false"}}}, "only"),
        (INGRESSES + "/{}/ingresses/shop-canary", {"spec": {"ingressClassName": "mine"}}, "only"),
        (ISTIO + "/{}/virtualservices/shop", {"spec": {"hosts": ["mine"]}}, "only"),
        (ISTIO + "/{}/virtualservices/shop", {"spec": {"http": []}}, "of http only weights"),
        (
            ROUTES + "/{}/httproutes/shop",
            {"spec": {"rules": [{"backendRefs": [{"name": "mine", "port": 80}]}]}},
            "weights",
        ),
    ],
)
async def test_admission_lets_nothing_else_through(lab: Lab, path: str, patch: kit.Json, why: str) -> None:
    here = await lab.make(*pair(), *nginx(), a_route(), *istio())
    with pytest.raises(DeniedError, match=why):
        await lab.writer.merge("/apis/" + path.format(f"namespaces/{here}"), patch)
    assert lab.writes(here) == []


async def test_admission_lets_no_weight_rise(lab: Lab) -> None:
    here = await lab.make(*pair(), a_route())
    rules = (await lab.get("HTTPRoute", here, "shop"))["spec"]["rules"]
    rules[0]["backendRefs"][1]["weight"] = 11
    with pytest.raises(DeniedError, match="none to more"):
        await lab.writer.merge(f"/apis/{ROUTES}/namespaces/{here}/httproutes/shop", {"spec": {"rules": rules}})
    assert lab.writes(here) == []


async def test_a_weight_that_git_owns_is_written_only_after_a_note_of_its_suspended_sync(
    lab: Lab,
) -> None:
    here = await lab.make(*pair(), *nginx())
    path = f"/apis/{INGRESSES}/namespaces/{here}/ingresses/shop-canary"
    await lab.plane.api.patch(path, {"metadata": {"labels": {"kustomize.toolkit.fluxcd.io/name": "shop"}}})
    canary = await lab.canary(here)
    with pytest.raises(DeniedError, match=f"Git owns {NGINX_WEIGHT} of it: change it there"):
        await lab.apply(TakeTraffic(**step(canary), share=canary.shares[0]))
    both = {"annotations": {NGINX_WEIGHT: "0", SYNC_SUSPENDED: MINE}}
    with pytest.raises(DeniedError, match="Git owns"):
        await lab.writer.merge(path, {"metadata": both})

    remedy = Remedy(canary.workload, canary.labels, HASH)
    (share,) = canary.shares
    lives = (Live(canary.workload.ref, canary.workload.annotations), Live(share.ref, share.annotations))
    for one in lives:
        await lab.apply(NoteSuspendedShare("it fails", remedy=remedy, lives=lives, noted=one.ref))
    noted = await lab.canary(here)
    await lab.apply(TakeTraffic(**step(noted), share=noted.shares[0]))
    assert [share.weight for share in (await lab.canary(here)).shares] == [0]

    await lab.apply(ForgetSuspendedShares("it is resumed", remedy=remedy, lives=lives))
    left = [await lab.get(kind, here, "shop-canary") for kind in ("Deployment", "Ingress")]
    assert [SYNC_SUSPENDED in one["metadata"]["annotations"] for one in left] == [False, False]


# Rollouts


async def a_rollout(lab: Lab, status: kit.Json, **spec: Any) -> str:
    """Make a Rollout that no controller follows, with this status; returns its namespace."""
    selector = {"matchLabels": {"app": "shop"}}
    body = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Rollout",
        "metadata": {"name": "shop"},
        "spec": {"replicas": 3, "selector": selector, "strategy": {"canary": {}}, **spec},
    }
    here = await lab.make(body)
    whole = {"currentPodHash": HASH, "stableRS": "old", "observedGeneration": "1", **status}
    await lab.plane.api.patch(f"{rollout_path(here)}/status", {"status": whole})
    return here


def rollout_path(here: str) -> str:
    return f"/apis/argoproj.io/v1alpha1/namespaces/{here}/rollouts/shop"


async def test_a_rollout_is_aborted_in_its_status_and_nowhere_else(lab: Lab) -> None:
    here = await a_rollout(lab, {"phase": "Paused"})
    before, canary = await lab.plane.api.get(rollout_path(here)), await lab.canary(here, "Rollout", "shop")
    assert await lab.apply(AbortRollout(**step(canary), version=canary.version)) == ""
    after = await lab.plane.api.get(rollout_path(here))
    assert (after["spec"], after["status"]) == (before["spec"], {**before["status"], "abort": True})
    assert lab.writes(here) == ["patch rollouts/shop"]


async def test_an_abort_that_was_missed_is_brought_to_notice_in_an_annotation(lab: Lab) -> None:
    here = await a_rollout(lab, {"abort": True})
    before, canary = await lab.plane.api.get(rollout_path(here)), await lab.canary(here, "Rollout", "shop")
    await lab.apply(AbortRollout(**step(canary), version=canary.version))
    after = await lab.plane.api.get(rollout_path(here))
    assert after["metadata"]["annotations"] == {"kreflex.dev/nudged": before["metadata"]["resourceVersion"]}
    assert (after["spec"], after["status"]) == (before["spec"], before["status"])


@pytest.mark.parametrize("status", [{"stableRS": HASH}, {"currentPodHash": "another"}])
async def test_what_is_no_canary_any_more_is_not_aborted(lab: Lab, status: kit.Json) -> None:
    here = await a_rollout(lab, status)
    canary = await lab.canary(here, "Rollout", "shop")
    assert "none any more" in await lab.apply(AbortRollout(**step(canary), version=canary.version))
    assert lab.writes(here) == []


async def test_a_pause_says_whose_it_is_and_is_taken_back_only_from_what_is_aborted(lab: Lab) -> None:
    here = await a_rollout(lab, {})
    canary = await lab.canary(here, "Rollout", "shop")
    assert "people resume it" in await lab.apply(PauseRollout(**step(canary), version=canary.version))
    paused = await lab.plane.api.get(rollout_path(here))
    assert (paused["spec"]["paused"], paused["metadata"]["annotations"]) == (True, {MARK: MINE})

    canary = await lab.canary(here, "Rollout", "shop")
    with pytest.raises(ConflictError):
        await lab.apply(ResumeAborted(**step(canary), version=canary.version))
    with pytest.raises(DeniedError, match="is resumed by people"):
        await lab.writer.merge(rollout_path(here), {"spec": {"paused": None}})

    await lab.plane.api.patch(f"{rollout_path(here)}/status", {"status": {"abort": True}})
    canary = await lab.canary(here, "Rollout", "shop")
    await lab.apply(ResumeAborted(**step(canary), version=canary.version))
    resumed = await lab.plane.api.get(rollout_path(here))
    assert ("paused" in resumed["spec"], resumed["metadata"].get("annotations")) == (False, None)


async def test_an_abort_is_never_taken_back(lab: Lab) -> None:
    here = await a_rollout(lab, {"abort": True})
    with pytest.raises(DeniedError, match="that is a retry"):
        await lab.writer.merge(f"{rollout_path(here)}/status", {"status": {"abort": False}})
    with pytest.raises(DeniedError, match="only"):
        await lab.writer.merge(f"{rollout_path(here)}/status", {"status": {"promoteFull": True}})
    assert lab.writes(here) == []


async def test_where_rollouts_have_no_status_subresource_the_object_itself_is_aborted(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    async with ControlPlane(tmp_path_factory.mktemp("old-rollouts")) as plane:
        await kit.install(plane)
        allowed = rights.rights_of(REFLEX)
        await manifests.apply(plane.api, [rollouts_crd(subresource=False), *rights.manifests(allowed)])
        transport = Transport(load_credentials(str(await plane.kubeconfig_for(HOME, NAME))))
        lab = Lab(plane, Reader(transport), Writer(transport))
        here = await lab.make()
        status = {"currentPodHash": HASH, "stableRS": "old", "observedGeneration": "1"}
        meta = {"name": "shop", "namespace": here}
        body = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": meta, "spec": {}, "status": status}
        await plane.api.post(rollout_path(here).removesuffix("/shop"), body)
        canary = await lab.canary(here, "Rollout", "shop")
        await lab.apply(AbortRollout(**step(canary), version=canary.version))
        assert (await plane.api.get(rollout_path(here)))["status"] == {**status, "abort": True}
        await transport.close()


# The whole way


async def test_a_canary_that_fails_more_gets_no_traffic_after_one_signal_and_what_is_stable_is_never_written(
    lab: Lab,
) -> None:
    here = kit.Place(lab.plane, await lab.make(*pair(), *nginx()))
    for name in ("shop", "shop-canary"):
        await ready(lab, here.name, name)
    await here.policy(functions=[NAME], releases={"canary": COMPARISON})
    stable = (await lab.get("Deployment", here.name, "shop"))["metadata"]["generation"]
    async with kit.arc_of(lab.plane, REFLEX) as arc:
        arc.world = replace(arc.world, metrics=CannedMetrics(200, 40, 1800, 4))
        alert = WorkloadSignal("apps/v1", "Deployment", here.name, "shop-canary", summary="ErrorRate: a fifth fails")
        await arc.handle(alert)
        weight = (await lab.get("Ingress", here.name, "shop-canary"))["metadata"]["annotations"][NGINX_WEIGHT]
        assert weight == "0"

        async def done() -> kit.Json | None:
            (record,) = await here.records()
            await arc.handle(Due(here.name, record["metadata"]["name"]))
            (record,) = await here.records()
            return record if record["status"]["phase"] == "Done" else None

        record = await eventually(done, "a verdict", pause=0.3)
    status = record["status"]
    assert (status["verdict"], [one["action"] for one in status["steps"]]) == (
        "Recovered",
        ["TakeTraffic Ingress/shop-canary", "ScaleCanary"],
    )
    told = [one["note"] for one in await events(lab, here.name) if one["reason"] == "KreflexTakeTraffic"]
    assert [note.partition(":")[0] for note in told] == [
        "the canary fails 20.0% of 200 requests, what is stable 0.2% of 1800"
    ]
    after = await lab.get("Deployment", here.name, "shop")
    assert (after["metadata"]["generation"], after["spec"]["replicas"]) == (stable, 3)
    assert sorted(set(lab.writes(here.name))) == ["patch deployments/shop-canary", "patch ingresses/shop-canary"]


async def test_without_enough_requests_nothing_is_done_and_people_are_told(lab: Lab) -> None:
    here = kit.Place(lab.plane, await lab.make(*pair(), *nginx()))
    await ready(lab, here.name, "shop-canary")
    await here.policy(functions=[NAME], releases={"canary": COMPARISON})
    async with kit.arc_of(lab.plane, REFLEX) as arc:
        arc.world = replace(arc.world, metrics=CannedMetrics(12, 12, 100, 0))
        told = await arc.handle(WorkloadSignal("apps/v1", "Deployment", here.name, "shop-canary", summary="ErrorRate"))
    assert (told.outcome, "fewer than 50" in told.because, lab.writes(here.name)) == ("refused", True, [])
    (record,) = await here.records()
    assert record["status"]["guard"] == "Inconclusive"


async def test_what_git_owns_is_left_to_git(lab: Lab) -> None:
    tracked = {"argocd.argoproj.io/tracking-id": "shop:networking.k8s.io/Ingress:NAMESPACE/shop-canary"}
    here = kit.Place(lab.plane, await lab.make(*pair(), *nginx()))
    path = f"/apis/{INGRESSES}/namespaces/{here.name}/ingresses/shop-canary"
    noted = {key: value.replace("NAMESPACE", here.name) for key, value in tracked.items()}
    await lab.plane.api.patch(path, {"metadata": {"annotations": noted}})
    for name in ("shop", "shop-canary"):
        await ready(lab, here.name, name)
    await here.policy(functions=[NAME], releases={"canary": COMPARISON})
    async with kit.arc_of(lab.plane, REFLEX) as arc:
        arc.world = replace(arc.world, metrics=CannedMetrics(200, 40, 1800, 4))
        told = await arc.handle(WorkloadSignal("apps/v1", "Deployment", here.name, "shop-canary", summary="ErrorRate"))
    assert (told.outcome, "in Git" in told.because, lab.writes(here.name)) == ("refused", True, [])


async def test_an_annotation_names_what_a_canary_stands_beside(lab: Lab) -> None:
    first, second, *services = pair()
    third = a_deployment("shop-blue", "stable", 1)
    here = await lab.make(first, second, third, *services)
    signal = WorkloadSignal("apps/v1", "Deployment", here, "shop-canary")
    unsure = await canary_of(signal, lab.reader)
    assert not isinstance(unsure, Canary)
    assert (
        unsure.because
        == f"beside Deployment shop-canary could stand shop, shop-blue: say which in its annotation {CANARY_OF}"
    )
    path = f"/apis/apps/v1/namespaces/{here}/deployments/shop-canary"
    await lab.plane.api.patch(path, {"metadata": {"annotations": {CANARY_OF: "shop-blue"}}})
    assert (await lab.canary(here)).stable.workload == "shop-blue"


async def ready(lab: Lab, namespace: str, name: str) -> None:
    """Wait until all pods of a Deployment are Ready."""

    async def found() -> bool:
        body = await lab.get("Deployment", namespace, name)
        return bool(body.get("status", {}).get("readyReplicas") == body["spec"]["replicas"])

    await eventually(found, f"the pods of {name} Ready")


async def events(lab: Lab, namespace: str) -> list[kit.Json]:
    items: list[kit.Json] = (await lab.plane.api.get(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events"))["items"]
    return items


# Killed in between


async def killed_at(lab: Lab, last: int, *, arrives: bool) -> tuple[bool, kit.Place, kit.Json]:
    """Let the function die at one of its writes, and another carry on half a minute later; tells whether it died."""
    here = kit.Place(lab.plane, await lab.make(*pair(), *nginx()))
    for name in ("shop", "shop-canary"):
        await ready(lab, here.name, name)
    await here.set_policy(functions=[NAME], releases={"canary": COMPARISON}, limits={"maxInFlight": 100})
    alert = WorkloadSignal("apps/v1", "Deployment", here.name, "shop-canary", summary="ErrorRate: a fifth fails")
    died, worse = False, Worse4()
    mortal = Mortal(load_credentials(str(await lab.plane.kubeconfig_for(HOME, NAME))), last, arrives=arrives)
    first = Arc(REFLEX, CoreSettings(), mortal)
    first.world = replace(first.world, metrics=worse)
    try:
        await first.handle(alert)
    except CutError:
        died = True
    await mortal.close()
    async with kit.arc_of(lab.plane, REFLEX) as arc:
        Ahead.of(arc, seconds=40)
        arc.world = replace(arc.world, cluster=arc.reader, metrics=worse)

        async def done() -> kit.Json | None:
            records = await here.records()
            if not records:
                await arc.handle(alert)
                return None
            await arc.handle(Due(here.name, records[0]["metadata"]["name"]))
            (record,) = await here.records()
            return record if record["status"]["phase"] == "Done" else None

        record = await eventually(done, f"a verdict after write {last}", 60, pause=0.3)
    return died, here, record


class Worse4(CannedMetrics):
    """A Prometheus that says each time that the canary is worse."""

    def __init__(self) -> None:
        super().__init__()
        self._answers = cycle((200.0, 40.0, 1800.0, 4.0))

    async def scalar(self, query: str) -> float | None:
        self.queries.append(query)
        return next(self._answers)


@pytest.mark.parametrize("arrives", [False, True])
async def test_killed_at_any_write_another_brings_it_to_the_same_end(lab: Lab, *, arrives: bool) -> None:
    died = 0
    for last in range(20):
        dead, here, record = await killed_at(lab, last, arrives=arrives)
        died += dead
        ingress, canary = (
            await lab.get("Ingress", here.name, "shop-canary"),
            await lab.get("Deployment", here.name, "shop-canary"),
        )
        told = (
            record["status"]["verdict"],
            ingress["metadata"]["annotations"][NGINX_WEIGHT],
            canary["spec"]["replicas"],
        )
        assert told == ("Recovered", "0", 0), last
        before = (
            ingress["metadata"]["annotations"][WEIGHTS_BEFORE],
            canary["metadata"]["annotations"][REPLICAS_BEFORE],
        )
        assert before == (f'{{"{NGINX_WEIGHT}": 10}}', "1"), last
        assert sorted(lab.writes(here.name)) == ["patch deployments/shop-canary", "patch ingresses/shop-canary"], last
        if not dead:
            break
    assert died >= 8
