"""What is dealt with for good is not looked up again, for a while."""

from kreflex.dealt import Dealt
from kreflex.reflex import Arc
from kreflex.settings import CoreSettings
from kreflex.signals import PodSignal
from tests.cluster.reflexes import REFLEX
from tests.values import CART, CannedApi, a_pod, objects


class Clock:
    """A monotonic time that is stepped."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def test_knows_why_nothing_can_follow_for_a_minute() -> None:
    clock = Clock()
    dealt = Dealt(clock)
    dealt.keep("f/uid", "it has been dealt with")
    clock.seconds = 59.9
    assert dealt.get("f/uid") == "it has been dealt with"
    clock.seconds = 60
    assert dealt.get("f/uid") is None


def test_an_object_without_a_uid_is_never_known() -> None:
    dealt = Dealt(Clock())
    dealt.keep("", "the pod is gone")
    assert dealt.get("") is None


def test_forgets_the_oldest_of_ten_thousand() -> None:
    dealt = Dealt(Clock())
    for number in range(10_001):
        dealt.keep(str(number), "gone")
    assert dealt.get("0") is None
    assert dealt.get("1") == dealt.get("10000") == "gone"


async def test_a_pod_that_is_gone_is_asked_for_once() -> None:
    api = CannedApi()
    arc = Arc(REFLEX, CoreSettings(), api)
    told = [await arc.handle(PodSignal("shop", "cart-1", CART.uid)) for _ in range(3)]
    assert {(one.outcome, one.because) for one in told} == {("skipped", "the pod is gone")}
    assert api.calls == ["GET /api/v1/namespaces/shop/pods/cart-1"]


async def test_a_successor_of_the_same_name_is_looked_at() -> None:
    api = CannedApi(objects(a_pod()))
    arc = Arc(REFLEX, CoreSettings(), api)
    assert (await arc.handle(PodSignal("shop", "cart-1", "uid-of-the-one-before"))).because == "the pod is gone"
    api.objects.clear()
    await arc.handle(PodSignal("shop", "cart-1", CART.uid))
    await arc.handle(PodSignal("shop", "cart-1"))
    assert api.calls == ["GET /api/v1/namespaces/shop/pods/cart-1"] * 3


async def test_a_wrong_name_beside_a_uid_hides_no_fault() -> None:
    # What kube-state-metrics says of others is labelled with its own pod where a scrape does not honour its labels.
    api = CannedApi(objects(a_pod(phase="Succeeded")))
    arc = Arc(REFLEX, CoreSettings(), api)
    assert (await arc.handle(PodSignal("monitoring", "exporter", CART.uid))).because == "the pod is gone"
    assert (await arc.handle(PodSignal("shop", "cart-1", CART.uid))).because == "the pod has succeeded"
