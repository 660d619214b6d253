"""An eviction by itself: what it looks at, what it sends, and what it makes of the answer."""

from typing import Any

import pytest

from kreflex import EvictPod
from kreflex.actions import BlockedError
from kreflex.errors import ApiError, ConflictError, GoneError, ThrottledError
from kreflex.views import JSON, Ref
from tests.values import CART, CannedApi, a_pod, objects, the_pod

EVICTION = "POST /api/v1/namespaces/shop/pods/cart-1/eviction"
NEXT = Ref("v1", "Pod", "shop", CART.name, "uid-of-the-next")


class Evicting(CannedApi):
    """Answers an eviction with success, or with an error."""

    def __init__(self, bodies: dict[str, JSON], error: ApiError | None = None) -> None:
        super().__init__(bodies)
        self.error = error
        self.sent: list[JSON | None] = []

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        if method != "POST":
            return await super().send(method, path, body, **options)
        self.calls.append(f"{method} {path}")
        self.sent.append(body)
        if self.error is not None:
            raise self.error
        return {}


async def evict(api: Evicting) -> None:
    """Evict the looping pod as it was read: in version 7."""
    reader, writer = api.pair()
    await EvictPod("it loops", the_pod(), None).apply(writer, reader)


def later(body: JSON, version: str) -> JSON:
    return {**body, "metadata": {**body["metadata"], "resourceVersion": version}}


async def test_evicts_the_pod_that_was_read_and_no_later_one() -> None:
    api = Evicting(objects(a_pod()))
    await evict(api)
    assert api.calls == ["GET /api/v1/namespaces/shop/pods/cart-1", EVICTION]
    assert api.sent == [
        {
            "apiVersion": "policy/v1",
            "kind": "Eviction",
            "metadata": {"namespace": "shop", "name": "cart-1"},
            "deleteOptions": {"preconditions": {"uid": CART.uid, "resourceVersion": "7"}},
        }
    ]


@pytest.mark.parametrize(
    ("there", "error", "because"),
    [
        ([], GoneError, "Pod shop/cart-1 went away by itself"),
        ([a_pod(NEXT)], GoneError, "Pod shop/cart-1 went away by itself"),
        ([a_pod(terminating=True)], GoneError, "Pod shop/cart-1 went away by itself"),
        ([later(a_pod(), "8")], ConflictError, "Pod shop/cart-1 has changed since it was looked at"),
        ([later(a_pod(terminating=True), "8")], GoneError, "Pod shop/cart-1 went away by itself"),
    ],
    ids=["gone", "replaced", "terminating", "changed", "changed and terminating"],
)
async def test_asks_for_no_eviction_of_a_pod_that_is_not_as_it_was_read(
    there: list[JSON], error: type[ApiError], because: str
) -> None:
    api = Evicting(objects(*there))
    with pytest.raises(error, match=f"^{because}$"):
        await evict(api)
    assert api.writes == []


@pytest.mark.parametrize(
    ("answer", "cause"),
    [
        (ThrottledError("429 no", 429, causes=("DisruptionBudget",)), "DisruptionBudget"),
        (ApiError("500 This pod has more than one PodDisruptionBudget", 500), "SeveralBudgets"),
    ],
)
async def test_the_no_of_a_disruption_budget_is_no_failure(answer: ApiError, cause: str) -> None:
    with pytest.raises(BlockedError) as blocked:
        await evict(Evicting(objects(a_pod()), answer))
    assert blocked.value.cause == cause


async def test_another_error_is_what_it_is() -> None:
    answer = ApiError("500 etcd is full", 500)
    with pytest.raises(ApiError) as error:
        await evict(Evicting(objects(a_pod()), answer))
    assert error.value is answer
