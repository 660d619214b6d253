"""Reading the cluster: whose a pod is."""

from typing import Any

import pytest

from kreflex.views import JSON, Ref
from tests.values import CART_DEPLOYMENT, CART_SET, CannedApi, a_workload, objects, the_pod, the_workload

LABELS = {"app": "cart", "pod-template-hash": "7d4"}
DEPLOYMENT, SET = (f"GET /apis/apps/v1/namespaces/shop/{path}" for path in ("deployments/cart", "replicasets/cart-7d4"))


def a_deployment(**selector: Any) -> JSON:
    body = a_workload()
    body["spec"]["selector"] = selector or {"matchLabels": {"app": "cart"}}
    return body


async def test_the_top_owner_is_the_last_in_the_row_of_controllers() -> None:
    api = CannedApi(objects(a_workload(), a_workload(CART_SET, owner=CART_DEPLOYMENT)))
    assert await api.world().cluster.top_owner(the_pod()) == the_workload()
    assert await api.world().cluster.top_owner(the_pod(owner=None)) is None


async def test_owners_that_name_each_other_come_to_an_end() -> None:
    api = CannedApi(objects(a_workload(owner=CART_SET), a_workload(CART_SET, owner=CART_DEPLOYMENT)))
    found = await api.world().cluster.top_owner(the_pod())
    assert found is not None
    assert found.ref in {CART_DEPLOYMENT, CART_SET}


def test_tells_which_kinds_it_can_read() -> None:
    cluster = CannedApi().world().cluster
    assert cluster.knows(CART_DEPLOYMENT)
    assert not cluster.knows(Ref("x/v1", "Machine", "shop", "cart", "uid-cart"))


async def test_a_deployment_is_found_without_its_replica_set() -> None:
    api = CannedApi(objects(a_deployment()))
    found = await api.world().cluster.top_owner(the_pod(labels=LABELS))
    assert found == the_workload()
    assert api.calls == [DEPLOYMENT]


async def test_the_controller_of_a_deployment_is_followed_further() -> None:
    above = Ref("example.com/v1", "Shop", "shop", "cart", "uid-of-the-shop")
    deployment = {**a_workload(owner=above), "spec": a_deployment()["spec"]}
    found = await CannedApi(objects(deployment)).world().cluster.top_owner(the_pod(labels=LABELS))
    assert found is not None
    assert found.ref == above


@pytest.mark.parametrize(
    "selector",
    [
        {"matchLabels": {"app": "till"}},
        {"matchLabels": {}},
        {"matchExpressions": [{"key": "app", "operator": "Exists"}]},
    ],
    ids=["of others", "of nothing", "too clever for us"],
)
async def test_a_deployment_that_may_have_another_pod_is_not_believed(selector: JSON) -> None:
    other = Ref("example.com/v1", "Canary", "shop", "cart", "uid-of-the-canary")
    api = CannedApi(objects(a_deployment(**selector), a_workload(CART_SET, owner=other)))
    found = await api.world().cluster.top_owner(the_pod(labels=LABELS))
    assert found is not None
    assert found.ref == other
    assert api.calls == [DEPLOYMENT, SET]


async def test_a_replica_set_whose_deployment_is_gone_is_the_top() -> None:
    api = CannedApi(objects(a_workload(CART_SET)))
    found = await api.world().cluster.top_owner(the_pod(labels=LABELS))
    assert found == the_workload(ref=CART_SET)


@pytest.mark.parametrize("labels", [{}, {"pod-template-hash": "88f"}, {"pod-template-hash": "cart-7d4"}])
async def test_a_name_that_no_deployment_gave_is_looked_up(labels: dict[str, str]) -> None:
    api = CannedApi(objects(a_deployment(), a_workload(CART_SET)))
    await api.world().cluster.top_owner(the_pod(labels=labels))
    assert api.calls == [SET]
