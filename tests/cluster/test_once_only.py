"""Once only, at the moments that are worst: an attempt that died is taken over. The audit log is the judge."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from functions.restart_loop_killer import main as killer
from kreflex.cluster import Writer
from kreflex.errors import UnavailableError
from kreflex.reflex import Arc
from kreflex.serve import REFLEXES
from kreflex.signals import Due, PodSignal
from kreflex.views import JSON
from lab.api import eventually
from tests import kit

assert killer.main is not None
KILLER = REFLEXES["restart-loop-killer"]


class Stumbling(Writer):
    """Does something else before it asks for an eviction."""

    def __init__(self, writer: Writer, first: Callable[[str, JSON], Awaitable[Any]]) -> None:
        super().__init__(writer._transport)
        self._first = first

    async def create(self, path: str, body: JSON) -> JSON:
        if path.endswith("/eviction"):
            await self._first(path, body)
        return await super().create(path, body)


@asynccontextmanager
async def an_attempt_that_died(here: kit.Place, pod: kit.Json) -> AsyncIterator[tuple[Arc[Any], Due]]:
    """A record whose first attempt was cut off at its eviction, past its deadline; and the arc that comes next."""

    async def die(_: str, __: JSON) -> None:
        raise UnavailableError("the process dies here")

    async with kit.arc_of(here.plane, KILLER, act_within="1s") as first:
        first.writer = Stumbling(first.writer, die)
        with pytest.raises(UnavailableError):
            await first.handle(signal(pod))
    (record,) = await here.records()
    assert record["status"]["phase"] == "Acting"
    # The deadline, and the second by which a clock that has heard only one Date header may be behind.
    await asyncio.sleep(2.5)
    async with kit.arc_of(here.plane, KILLER) as second:
        yield second, Due(here.name, record["metadata"]["name"])


def signal(pod: kit.Json) -> PodSignal:
    meta = pod["metadata"]
    return PodSignal(meta["namespace"], meta["name"], meta["uid"])


async def test_an_attempt_whose_record_is_deleted_meanwhile_has_applied_all_the_same(here: kit.Place) -> None:
    pod = await here.loop((await here.deployment())[0], speed="10", restarts=4)
    records = f"/apis/kreflex.dev/v1alpha1/namespaces/{here.name}/remediations"

    async def delete_the_record(_: str, __: JSON) -> None:
        (record,) = await here.records()
        await here.plane.api.delete(f"{records}/{record['metadata']['name']}")

    async with kit.arc_of(here.plane, KILLER) as arc:
        arc.writer = Stumbling(arc.writer, delete_the_record)
        assert (await arc.handle(signal(pod))).outcome == "applied"
    assert (await here.records(), here.evictions()) == ([], [pod["metadata"]["uid"]])


@pytest.mark.parametrize("grace", [0, 30])
async def test_a_late_eviction_by_a_dead_attempt_is_recorded_as_applied(here: kit.Place, grace: int) -> None:
    pod = await here.loop((await here.deployment(terminationGracePeriodSeconds=grace))[0], speed="10", restarts=4)

    async with an_attempt_that_died(here, pod) as (arc, due):
        late = arc.writer
        arc.writer = Stumbling(late, late.create)
        await arc.handle(due)

        assert here.evictions() == [pod["metadata"]["uid"]]
        status = (await here.records())[0]["status"]
        assert (status["phase"], status["outcome"]) == ("Applied", "applied"), status

        async def settled() -> str | None:
            await arc.handle(due)
            verdict: str | None = (await here.records())[0]["status"].get("verdict")
            return verdict

        assert await eventually(settled, "the verdict") == "Recovered"
