"""Many signals in one body: a few at a time, in order, and none is lost."""

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any

from kreflex.errors import UnavailableError
from kreflex.reflex import Arc, Result, handle_all
from kreflex.settings import CoreSettings
from kreflex.signals import PodSignal
from kreflex.views import JSON
from tests.cluster.reflexes import REFLEX
from tests.values import CannedApi

LONG = timedelta(minutes=5)


class Busy(CannedApi):
    """An API server that knows no pod, and counts the tasks of the one who asks; of some pods it says nothing."""

    def __init__(self, *silent: str) -> None:
        super().__init__()
        self.most, self.silent = 0, silent
        self.asked: Counter[str] = Counter()
        self.together: set[str] = set()

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        self.most = max(self.most, len(asyncio.all_tasks()))
        if path.endswith(self.silent):
            raise UnavailableError("the API server did not answer")
        self.asked[path] += 1
        self.together |= {path for path, number in self.asked.items() if number > 1}
        try:
            return await super().send(method, path, body, **options)
        finally:
            self.asked[path] -= 1


def pods(number: int) -> tuple[PodSignal, ...]:
    return tuple(PodSignal("shop", f"cart-{index}", f"uid-{index}") for index in range(number))


async def handled(api: CannedApi, number: int, budget: timedelta = LONG) -> tuple[list[Result], list[Exception]]:
    return await handle_all(Arc(REFLEX, CoreSettings(concurrency=4), api), pods(number), budget)


async def test_handles_a_burst_in_order_with_a_few_tasks() -> None:
    api, before = Busy(), len(asyncio.all_tasks())
    results, errors = await handled(api, 1000)
    assert [result.about for result in results] == [str(pod) for pod in pods(1000)]
    assert errors == []
    assert api.most == before + 4


async def test_one_that_fails_loses_no_other() -> None:
    results, errors = await handled(Busy("cart-3", "cart-5"), 10)
    assert len(results) == 8
    assert {type(error) for error in errors} == {UnavailableError}
    assert len(errors) == 2


async def test_what_does_not_fit_is_one_error_with_its_number() -> None:
    api = Busy()
    results, errors = await handled(api, 1000, timedelta())
    assert (results, api.calls) == ([], [])
    assert [str(error) for error in errors] == ["1000 signals did not fit into 0s; send them again"]


async def test_alerts_about_one_pod_take_turns() -> None:
    # Where each knows a UID of its own, nothing is remembered from one to the next.
    one_pod = tuple(PodSignal("shop", "cart", f"uid-{index}") for index in range(8))
    api = Busy()
    results, errors = await handle_all(Arc(REFLEX, CoreSettings(concurrency=4), api), one_pod, LONG)
    assert (len(results), errors, len(api.calls)) == (8, [], 8)
    assert api.together == set()


async def test_nothing_takes_nothing() -> None:
    assert await handled(Busy(), 0) == ([], [])
