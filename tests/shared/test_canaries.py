"""Which workload is a canary, beside which it stands, and what gives it its traffic; by values."""

from typing import Any

import pytest

from kreflex.canaries import CANARY_OF, Canary, NoCanary, canary_of, marked, may_try
from kreflex.signals import PodSignal, WorkloadSignal
from kreflex.views import JSON, Ref, pod_view
from kreflex.weights import NGINX, NGINX_WEIGHT
from tests.values import CannedApi, a_pod, owned_by

APPS = "/apis/apps/v1/namespaces/shop/deployments"
SIGNAL = WorkloadSignal("apps/v1", "Deployment", "shop", "shop-canary")


def a_deployment(name: str, track: str = "", app: str = "shop", **notes: str) -> JSON:
    labels = {"app": app, **({"track": track} if track else {})}
    meta = {"namespace": "shop", "name": name, "uid": f"uid-{name}", "resourceVersion": "3", "labels": labels}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [{"name": "app", "image": "shop:1"}]}}
    spec = {"replicas": 1, "selector": {"matchLabels": labels}, "template": template}
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {**meta, "annotations": notes}, "spec": spec}


def a_service(name: str, **selector: str) -> JSON:
    return {"metadata": {"namespace": "shop", "name": name}, "spec": {"selector": selector}}


def an_ingress(owner: Ref | None = None, weight: str = "20") -> JSON:
    backend = {"service": {"name": "shop-canary", "port": {"number": 80}}}
    owners = owned_by(owner) if owner else []
    notes = {NGINX: "true", NGINX_WEIGHT: weight}
    meta = {"namespace": "shop", "name": "canary", "uid": "uid-in", "resourceVersion": "1", "annotations": notes}
    spec = {"rules": [{"http": {"paths": [{"backend": backend}]}}]}
    return {"metadata": {**meta, "ownerReferences": owners}, "spec": spec}


SERVICES = (a_service("shop-canary", app="shop", track="canary"), a_service("shop", app="shop"))
PATHS = {"Deployment": APPS, "Service": "/api/v1/namespaces/shop/services"}
INGRESSES = "/apis/networking.k8s.io/v1/namespaces/shop/ingresses"


def an_api(*deployments: JSON, services: Any = SERVICES, ingresses: Any = ()) -> CannedApi:
    objects = {f"{APPS}/{one['metadata']['name']}": one for one in deployments}
    objects |= {f"{PATHS['Service']}/{one['metadata']['name']}": one for one in services}
    return CannedApi(objects | {f"{INGRESSES}/{one['metadata']['name']}": one for one in ingresses})


async def found(*deployments: JSON, **more: Any) -> Canary | NoCanary:
    return await canary_of(SIGNAL, an_api(*deployments, **more).world().cluster)


async def stable_of(*deployments: JSON) -> str:
    canary = await found(*deployments)
    return canary.stable.workload if isinstance(canary, Canary) else canary.because


TRIAL, STABLE = a_deployment("shop-canary", "canary"), a_deployment("shop", "stable")


async def test_a_canary_stands_beside_the_one_that_its_annotation_names_whatever_its_labels_are() -> None:
    named = a_deployment("shop-canary", **{CANARY_OF: "web"})
    assert await stable_of(named, STABLE, a_deployment("web", app="web")) == "web"


async def test_an_annotation_that_names_nobody_is_no_canary() -> None:
    because = await stable_of(a_deployment("shop-canary", "canary", **{CANARY_OF: "web"}), STABLE)
    assert because == f"{CANARY_OF} of Deployment shop-canary names web, which is not there"


async def test_a_track_is_enough_beside_one_of_the_same_application() -> None:
    assert await stable_of(TRIAL, STABLE, a_deployment("cart", "stable", app="cart")) == "shop"


async def test_of_several_that_it_could_stand_beside_none_is_chosen() -> None:
    because = "beside Deployment shop-canary could stand shop, shop-2: say which in its annotation"
    assert await stable_of(TRIAL, STABLE, a_deployment("shop-2", "stable")) == f"{because} {CANARY_OF}"
    assert await stable_of(TRIAL, STABLE, a_deployment("shop-2")) == "shop"


async def test_a_canary_beside_which_nobody_stands_is_none() -> None:
    assert "could stand none" in await stable_of(TRIAL, a_deployment("shop-canary-2", "canary"))


async def test_what_says_nothing_of_itself_is_no_canary_and_the_stable_one_neither() -> None:
    because = "Deployment shop-canary is no canary: neither kreflex.dev/canary-of nor track: canary"
    assert await stable_of(a_deployment("shop-canary"), STABLE) == f"{because}, nor an nginx canary's Ingress"
    told = await canary_of(
        WorkloadSignal("apps/v1", "Deployment", "shop", "shop"), an_api(TRIAL, STABLE).world().cluster
    )
    assert isinstance(told, NoCanary)


async def test_its_traffic_is_that_of_the_services_that_are_its_own() -> None:
    canary = await found(TRIAL, STABLE, ingresses=[an_ingress()])
    assert isinstance(canary, Canary)
    assert [(share.ref.kind, share.weight) for share in canary.shares] == [("Ingress", 20)]
    assert (canary.trial.service, canary.stable.service) == ("shop-canary", "shop")


async def test_a_service_before_both_is_shared_out_by_replicas_and_is_no_share() -> None:
    both = (a_service("shop-canary", app="shop"),)
    canary = await found(TRIAL, STABLE, services=both, ingresses=[an_ingress()])
    assert isinstance(canary, Canary)
    assert canary.shares == ()


async def test_whose_traffic_a_controller_of_rollouts_shares_out_is_left_to_it() -> None:
    flagger = Ref("flagger.app/v1beta1", "Canary", "shop", "shop", "uid-flagger")
    told = await found(TRIAL, STABLE, ingresses=[an_ingress(flagger)])
    assert isinstance(told, NoCanary)
    assert told.because == "Canary shop/shop shares out the traffic of Deployment shop/shop-canary"


@pytest.mark.parametrize(("uid", "final"), [("", False), ("another", True)])
async def test_a_canary_that_is_gone_or_replaced_is_none(uid: str, final: bool) -> None:
    signal = WorkloadSignal("apps/v1", "Deployment", "shop", "shop-canary", uid)
    told = await canary_of(signal, an_api(*([TRIAL] if uid else [])).world().cluster)
    assert isinstance(told, NoCanary)
    assert told.final is final


async def test_a_pod_that_is_gone_means_no_canary() -> None:
    told = await canary_of(PodSignal("shop", "shop-canary-1", "uid-1"), an_api(TRIAL, STABLE).world().cluster)
    assert isinstance(told, NoCanary)
    assert told.final


def test_most_pods_are_no_canarys_by_their_labels_alone() -> None:
    ref = Ref("v1", "Pod", "shop", "one", "uid-one")
    tried = [may_try(pod_view(a_pod(ref, labels=labels))) for labels in ({"track": "canary"}, {"track": "stable"}, {})]
    assert tried == [True, False, False]
    assert [marked(body) for body in (TRIAL, STABLE, a_deployment("x", **{CANARY_OF: "y"}))] == [True, False, True]
