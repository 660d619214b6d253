"""What sends traffic to a canary, and what is written to take it away; by values."""

from typing import Any

import pytest

from kreflex.views import JSON
from kreflex.weights import NGINX, NGINX_WEIGHT, Backends, Share, share_of, with_traffic

THOUSAND = {f"{NGINX_WEIGHT}-total": "1000"}
CANARY = Backends("shop", frozenset({"shop-canary"}), {"track": "canary"})


def an_ingress(weight: str = "10", service: str = "shop-canary", **notes: str) -> JSON:
    backend = {"service": {"name": service, "port": {"number": 80}}}
    told = {NGINX: "true", NGINX_WEIGHT: weight, **notes}
    return a_body("networking.k8s.io/v1", "Ingress", {"rules": [{"http": {"paths": [{"backend": backend}]}}]}, told)


def a_route(*backends: JSON) -> JSON:
    return a_body("gateway.networking.k8s.io/v1", "HTTPRoute", {"rules": [{"backendRefs": list(backends)}]})


def a_virtual_service(*routes: JSON, protocol: str = "http") -> JSON:
    return a_body("networking.istio.io/v1", "VirtualService", {protocol: [{"route": list(routes)}]})


def a_body(version: str, kind: str, spec: JSON, notes: dict[str, str] | None = None) -> JSON:
    meta = {"namespace": "shop", "name": "shop", "uid": "uid-1", "resourceVersion": "5", "annotations": notes or {}}
    return {"apiVersion": version, "kind": kind, "metadata": meta, "spec": spec}


def to(host: str, weight: int | None = None, subset: str = "") -> JSON:
    destination = {"host": host, **({"subset": subset} if subset else {})}
    return {"destination": destination, **({} if weight is None else {"weight": weight})}


def found(body: JSON, subsets: Any = None) -> Share:
    share = share_of(body, CANARY, subsets or {})
    assert share is not None
    return share


def told(share: Share) -> tuple[int, dict[str, int], bool]:
    return share.weight, dict(share.weights), share.alone


def test_the_share_of_an_nginx_canary_is_its_annotation_and_is_set_to_nothing() -> None:
    share = found(an_ingress())
    assert told(share) == (10, {NGINX_WEIGHT: 10}, False)
    assert share.changed == {"metadata": {"annotations": {NGINX_WEIGHT: "0"}}}


@pytest.mark.parametrize(
    ("weight", "notes", "alone"),
    [
        ("100", {}, True),
        ("100", {f"{NGINX_WEIGHT}-total": "1000"}, False),
        ("1000", {f"{NGINX_WEIGHT}-total": "1000"}, True),
    ],
)
def test_an_nginx_canary_with_all_of_the_total_leaves_nobody_to_take_over(
    weight: str, notes: dict[str, str], alone: bool
) -> None:
    assert found(an_ingress(weight, **notes)).alone is alone


@pytest.mark.parametrize(
    "body", [an_ingress(service="shop"), an_ingress(**{NGINX: "false"})], ids=["of another Service", "of no canary"]
)
def test_an_ingress_that_is_not_the_canarys_is_nothing_to_do_with_it(body: JSON) -> None:
    assert share_of(body, CANARY, {}) is None


def test_a_weight_of_nginx_that_is_no_number_is_nothing() -> None:
    share = found(an_ingress("many"))
    assert (share.weight, with_traffic([share])) == (0, [])


def test_in_a_route_only_the_canarys_weight_is_changed() -> None:
    stable, canary = {"name": "shop", "weight": 9}, {"name": "shop-canary", "weight": 1, "port": 80}
    share = found(a_route(stable, canary))
    assert told(share) == (1, {"rules[0].backendRefs[1]": 1}, False)
    assert share.changed == {"spec": {"rules": [{"backendRefs": [stable, {**canary, "weight": 0}]}]}}
    # What was read stays as it was.
    assert share.body["spec"]["rules"][0]["backendRefs"][1] == canary


def test_a_backend_without_a_weight_has_one_share_and_one_alone_has_all() -> None:
    assert told(found(a_route({"name": "shop-canary"}))) == (1, {"rules[0].backendRefs[0]": 1}, True)
    assert told(found(a_route({"name": "shop", "weight": 0}, {"name": "shop-canary"})))[2] is True


@pytest.mark.parametrize(
    "backend",
    [
        {"name": "shop-canary", "namespace": "other"},
        {"name": "shop-canary", "kind": "ServiceImport", "group": "multicluster.x-k8s.io"},
        {"name": "shop"},
    ],
    ids=["in another namespace", "of another kind", "of another name"],
)
def test_a_route_to_something_else_is_nothing_to_do_with_it(backend: JSON) -> None:
    assert share_of(a_route(backend), CANARY, {}) is None


@pytest.mark.parametrize("host", ["shop-canary", "shop-canary.shop", "shop-canary.shop.svc.cluster.local"])
def test_a_host_of_istio_is_known_by_each_of_its_names(host: str) -> None:
    share = found(a_virtual_service(to("shop", 95), to(host, 5)))
    assert told(share) == (5, {"http[0].route[1]": 5}, False)
    assert share.changed == {"spec": {"http": [{"route": [to("shop", 95), to(host, 0)]}]}}


def test_a_host_of_another_namespace_is_another_one() -> None:
    assert share_of(a_virtual_service(to("shop-canary.other", 5)), CANARY, {}) is None


def test_a_subset_is_the_canarys_by_the_labels_of_its_pods() -> None:
    subsets = {("shop/shop", "v2"): {"track": "canary"}, ("shop/shop", "v1"): {"track": "stable"}}
    body = a_virtual_service(to("shop", 90, "v1"), to("shop", 10, "v2"))
    assert told(found(body, subsets)) == (10, {"http[0].route[1]": 10}, False)
    assert share_of(body, CANARY, {("shop/shop", "v2"): {}}) is None


@pytest.mark.parametrize("protocol", ["http", "tls", "tcp"])
def test_one_destination_alone_has_everything_and_one_of_several_without_a_weight_nothing(protocol: str) -> None:
    alone = found(a_virtual_service(to("shop-canary"), protocol=protocol))
    assert told(alone) == (100, {f"{protocol}[0].route[0]": 100}, True)
    beside = found(a_virtual_service(to("shop", 100), to("shop-canary"), protocol=protocol))
    assert told(beside) == (0, {f"{protocol}[0].route[1]": 0}, False)


def test_only_what_sends_something_has_to_be_changed() -> None:
    some, none = (
        found(a_route({"name": "shop-canary", "weight": 3})),
        found(a_route({"name": "shop-canary", "weight": 0})),
    )
    assert with_traffic([none, some]) == [some]
