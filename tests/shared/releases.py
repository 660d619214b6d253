"""Releases as values: a Deployment with two ReplicaSets, as an API server tells of them, unless told otherwise."""

from datetime import timedelta
from typing import Any

from kreflex.revisions import Release, release_of
from kreflex.views import JSON, Ref
from tests.values import CART_DEPLOYMENT, CART_SET, MINUTE, NOW, CannedApi, a_pod, owned_by, stamp

APPS = "/apis/apps/v1/namespaces/shop"
HISTORY = "/apis/kreflex.dev/v1alpha1/namespaces/shop/releasehistories/deployment-cart"
NEW_SET = Ref("apps/v1", "ReplicaSet", "shop", "cart-9f2", "uid-cart-9f2")


def a_template(image: str = "cart:1", labels: dict[str, str] | None = None, **spec: Any) -> JSON:
    containers = [{"name": "app", "image": image}]
    return {"metadata": {"labels": {"app": "cart", **(labels or {})}}, "spec": {"containers": containers, **spec}}


def a_deployment(image: str = "cart:2", status: JSON | None = None, meta: JSON | None = None, **spec: Any) -> JSON:
    """Three replicas, of which one is of the new template and not available."""
    found = {"observedGeneration": 2, "replicas": 4, "updatedReplicas": 1, "availableReplicas": 3, "readyReplicas": 3}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "namespace": "shop",
            "name": "cart",
            "uid": CART_DEPLOYMENT.uid,
            "generation": 2,
            "resourceVersion": "41",
            "labels": {"tier": "web"},
            **(meta or {}),
        },
        "spec": {
            "replicas": 3,
            "selector": {"matchLabels": {"app": "cart"}},
            "template": a_template(image),
            **spec,
        },
        "status": {**found, **(status or {})},
    }


def a_set(ref: Ref, number: int, image: str, ago: timedelta, owner: Ref = CART_DEPLOYMENT) -> JSON:
    """A ReplicaSet as the Deployment controller makes it."""
    name = ref.name.rpartition("-")[2]
    return {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "metadata": {
            "namespace": "shop",
            "name": ref.name,
            "uid": ref.uid,
            "labels": {"app": "cart", "pod-template-hash": name},
            "annotations": {"deployment.kubernetes.io/revision": str(number)},
            "creationTimestamp": stamp(NOW - ago),
            "ownerReferences": owned_by(owner),
        },
        "spec": {"template": a_template(image, {"pod-template-hash": name})},
    }


def a_pod_of(made: Ref, name: str, ready_for: timedelta | None = None, age: timedelta = 10 * MINUTE) -> JSON:
    ref = Ref("v1", "Pod", "shop", name, f"uid-{name}")
    labels = {"app": "cart", "pod-template-hash": made.name.rpartition("-")[2]}
    return a_pod(ref, owner=made, labels=labels, ready_for=ready_for, age=age)


def a_history(*revisions: JSON, uid: str = CART_DEPLOYMENT.uid) -> JSON:
    workload = {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "cart", "uid": uid}
    meta = {"namespace": "shop", "name": "deployment-cart", "resourceVersion": "5"}
    return {"metadata": meta, "spec": {"workload": workload, "revisions": list(revisions)}}


def everything(*more: JSON, deployment: JSON | None = None, history: JSON | None = None) -> dict[str, JSON]:
    """A bad release of an hour's standing predecessor: what an API server has, by path."""
    sets = [a_set(CART_SET, 1, "cart:1", 600 * MINUTE), a_set(NEW_SET, 2, "cart:2", 5 * MINUTE)]
    pods = [a_pod_of(CART_SET, "cart-7d4-a", 60 * MINUTE, 60 * MINUTE), a_pod_of(NEW_SET, "cart-9f2-a", age=5 * MINUTE)]
    found = {f"{APPS}/deployments/cart": deployment or a_deployment()}
    found |= {
        f"{APPS}/replicasets/{one['metadata']['name']}": one for one in (*sets, *more) if "template" in one["spec"]
    }
    found |= {
        f"/api/v1/namespaces/shop/pods/{one['metadata']['name']}": one
        for one in (*pods, *more)
        if "template" not in one["spec"]
    }
    return found | ({HISTORY: history} if history else {})


async def the_release(*more: JSON, **about: Any) -> Release:
    release = await release_of(CART_DEPLOYMENT, CannedApi(everything(*more, **about)).pair()[0])
    assert isinstance(release, Release), release
    return release
