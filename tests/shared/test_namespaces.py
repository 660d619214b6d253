"""With NAMESPACES a function looks after these namespaces, and asks the API server nothing about others."""

import pytest

from functions.restart_loop_killer import main as killer
from kreflex.cluster import Reader
from kreflex.errors import SettingsError
from kreflex.reflex import Arc
from kreflex.serve import REFLEXES
from kreflex.settings import CoreSettings
from kreflex.signals import PodSignal
from kreflex.views import Ref
from tests.values import CannedApi, a_pod

assert killer.main is not None
SHOP, CART = (Ref("v1", "Pod", namespace, "cart-1", f"uid-{namespace}") for namespace in ("shop", "cart"))


def test_empty_means_all() -> None:
    assert CoreSettings.from_environment({}).looked_after == ()
    assert CoreSettings.from_environment({"NAMESPACES": "shop,cart"}).looked_after == ("shop", "cart")


@pytest.mark.parametrize("text", ["shop, cart", "Shop", "shop,", "*"])
def test_what_is_no_list_of_namespaces_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="NAMESPACES"):
        CoreSettings.from_environment({"NAMESPACES": text})


async def test_all_pods_are_those_of_the_namespaces() -> None:
    api = CannedApi({f"/api/v1/namespaces/{ref.namespace}/pods/{ref.name}": a_pod(ref) for ref in (SHOP, CART)})
    assert [pod.ref async for pod in Reader(api, ("shop",)).pods()] == [SHOP]
    assert api.calls == ["GET /api/v1/namespaces/shop/pods"]


async def test_a_signal_from_elsewhere_costs_no_call() -> None:
    api = CannedApi()
    arc = Arc(REFLEXES["restart-loop-killer"], CoreSettings(namespaces="shop"), api)
    result = await arc.handle(PodSignal(CART.namespace, CART.name, CART.uid))
    assert (result.outcome, result.because) == ("skipped", "namespace cart is none of those in NAMESPACES")
    assert api.calls == []
