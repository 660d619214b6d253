"""The actions of a rollback, as values: what they say of themselves, and in which order they write."""

from dataclasses import replace
from typing import Any

import pytest

from kreflex.actions import ACTIONS, BlockedError, HopelessError
from kreflex.errors import ConflictError, UnavailableError
from kreflex.reverts import EvictStuck, RevertTemplate, missing_config
from kreflex.revisions import Release
from kreflex.views import JSON
from tests.shared.releases import APPS, HISTORY, a_deployment, a_template, the_release
from tests.values import CART_DEPLOYMENT, CannedApi

CONFIG = "/api/v1/namespaces/shop/configmaps"


class Api(CannedApi):
    """Keeps what is written; one write may be answered with an error."""

    def __init__(self, objects: dict[str, JSON] | None = None, fails: str = "") -> None:
        super().__init__(objects)
        self.fails = fails
        self.written: list[tuple[str, str, Any]] = []

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        if method == "GET":
            return await super().send(method, path, body, **options)
        if self.fails and self.fails in path:
            raise UnavailableError("it did not answer")
        self.written.append((method, path, options.get("operations") or body))
        return {}


def back(release: Release, **about: Any) -> RevertTemplate:
    return RevertTemplate("it crashes", release.earlier[0], release=release, episode="9f2/2", course="undo", **about)


async def test_both_are_steps_of_one_remediation_of_the_workload() -> None:
    release = await the_release()
    revert = back(release)
    evict = EvictStuck("it is stuck", release.new_pods, release=release, episode="9f2/2", course="undo")
    assert revert.plan_hash() == evict.plan_hash() != replace(revert, course="another").plan_hash()
    for one in (revert, evict):
        assert ACTIONS[one.step_name] is type(one)
        assert (one.target, one.kind, one.template_hash, one.episode) == (CART_DEPLOYMENT, "Deployment", "9f2", "9f2/2")
        assert (one.step, one.lasting, one.undo, one.risky) == (True, True, False, False)
        assert one.prior() == {"resourceVersion": "41", "hash": "9f2", "revision": "2"}
    assert (revert.manager, back(release, manager="Application argocd/shop").manager) == ("", "Application argocd/shop")


async def test_the_version_is_condemned_first_and_then_its_predecessor_is_put_back() -> None:
    release, api = await the_release(deployment=a_deployment(meta={"annotations": {"theirs": "yes"}})), Api()
    note = await back(release).apply(api.pair()[1], api.pair()[0], "rollback-cart-1")
    assert note == "from revision 2 (cart:2) to revision 1 (cart:1)"
    (_, path, history), revert = api.written
    assert (path, history["spec"]["revisions"][0]["bad"]) == (HISTORY.rpartition("/")[0], "rollback-cart-1")
    notes = {
        "theirs": "yes",
        "kreflex.dev/rolled-back-from": "2/9f2",
        "kreflex.dev/rolled-back-to": "1/7d4",
        "kreflex.dev/rolled-back-by": "rollback-cart-1",
    }
    assert revert == (
        "PATCH",
        f"{APPS}/deployments/cart",
        [
            {"op": "add", "path": "/metadata/uid", "value": "uid-cart"},
            {"op": "add", "path": "/metadata/resourceVersion", "value": "41"},
            {"op": "add", "path": "/metadata/annotations", "value": notes},
            {"op": "replace", "path": "/spec/template", "value": a_template("cart:1")},
        ],
    )


async def test_nothing_is_reverted_that_could_not_be_remembered() -> None:
    release, api = await the_release(), Api(fails="releasehistories")
    with pytest.raises(UnavailableError):
        await back(release).apply(api.pair()[1], api.pair()[0], "rollback-cart-1")
    assert api.written == []


async def test_what_is_paused_or_bad_itself_is_refused_before_anything_is_written() -> None:
    paused, api = await the_release(deployment=a_deployment(paused=True)), Api()
    with pytest.raises(BlockedError, match="Deployment shop/cart is paused: resume it, and it is rolled back"):
        await back(paused).apply(api.pair()[1], api.pair()[0])
    release = await the_release()
    bad = replace(back(release), to=replace(release.earlier[0], bad="r-1"))
    with pytest.raises(HopelessError, match=r"revision 1 \(cart:1\) was rolled back from itself, by r-1"):
        await bad.apply(api.pair()[1], api.pair()[0])
    assert (api.written, api.calls) == ([], [])


async def test_config_maps_are_looked_for_and_those_that_are_optional_are_not() -> None:
    needs: JSON = {
        "volumes": [
            {"name": "a", "configMap": {"name": "in-volume"}},
            {"name": "b", "projected": {"sources": [{"configMap": {"name": "projected"}}, {"secret": {"name": "s"}}]}},
            {"name": "c", "configMap": {"name": "may-be-missing", "optional": True}},
            {"name": "d", "emptyDir": {}},
        ],
        "initContainers": [{"name": "i", "image": "i:1", "envFrom": [{"configMapRef": {"name": "of-init"}}]}],
        "containers": [
            {
                "name": "app",
                "image": "cart:1",
                "env": [
                    {"name": "A", "value": "1"},
                    {"name": "B", "valueFrom": {"configMapKeyRef": {"name": "of-key", "key": "b"}}},
                ],
            }
        ],
    }
    release = await the_release()
    wanted = replace(release.earlier[0], template=a_template(**needs))
    there: dict[str, JSON] = {f"{CONFIG}/in-volume": {"metadata": {}}, f"{CONFIG}/of-key": {"metadata": {}}}
    api = CannedApi(there)
    assert await missing_config("shop", wanted, api.pair()[0]) == ["ConfigMap shop/of-init", "ConfigMap shop/projected"]
    assert "may-be-missing" not in str(api.calls)


async def test_a_pod_that_serves_is_not_evicted_as_stuck() -> None:
    release, api = await the_release(), Api()
    with pytest.raises(ConflictError, match="Pod shop/cart-7d4-a is not stuck"):
        await EvictStuck("stuck", release.old_pods, release=release).apply(api.pair()[1], api.pair()[0])
    assert api.written == []
