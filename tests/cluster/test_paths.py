"""The event path and the waker each heal alone, and what is only waiting costs nothing. All with real processes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from bench import judge, rig
from lab.api import eventually
from lab.cluster import ControlPlane

ROUNDS = 30


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A control plane that nothing of other tests is left on: its waker sees every pod."""
    async with rig.cluster(tmp_path_factory.mktemp("paths")) as plane:
        yield plane


async def looping(plane: ControlPlane, where: str, count: int) -> set[str]:
    """Make Deployments of two pods and let one pod of each loop; the UIDs of those."""
    for number in range(count):
        await rig.make(plane, where, f"shop-{number}", 2)
    await rig.ready(plane, where, 2 * count)
    ill = [(await rig.pods(plane, where, f"shop-{number}"))[0] for number in range(count)]
    for pod in ill:
        await rig.break_pod(plane, pod)
    return {pod["metadata"]["uid"] for pod in ill}


async def states(plane: ControlPlane, where: str) -> list[tuple[str, str]]:
    """Each record's phase, and its verdict or outcome."""
    found = [record.get("status", {}) for record in await rig.records(plane, where)]
    return sorted((s.get("phase", ""), s.get("verdict") or s.get("outcome") or "") for s in found)


async def await_states(plane: ControlPlane, where: str, expected: list[tuple[str, str]]) -> None:
    async def reached() -> bool:
        return await states(plane, where) == expected

    await eventually(reached, f"{expected} in {where}", patience=90)


async def test_without_any_event_the_waker_alone_heals(own: ControlPlane) -> None:
    where = await rig.namespace(own)
    async with rig.rig(own, 1) as running:
        ill = await looping(own, where, 4)
        await running.start_waker(1.0)

        await await_states(own, where, [("Done", "Recovered")] * 4)
        await rig.ready(own, where, 8)

    assert set(running.balancer.requests) == {"waker"}
    assert sorted(uid for uid, _ in judge.evictions(own, where)) == sorted(ill)


async def test_without_the_waker_events_alone_heal(own: ControlPlane) -> None:
    where = await rig.namespace(own, proof="10m", proveWithin="20m")
    async with rig.rig(own, 1) as running:
        await running.start_events()
        ill = await looping(own, where, 4)

        # The verdict on a pod that stays healthy comes from the waker: nothing happens that an event could tell.
        await await_states(own, where, [("Applied", "applied")] * 4)
        await rig.ready(own, where, 8)

    assert set(running.balancer.requests) == {"apiserver"}
    assert sorted(uid for uid, _ in judge.evictions(own, where)) == sorted(ill)


async def test_open_records_that_wait_cause_no_write_and_no_call(own: ControlPlane) -> None:
    waits: dict[str, dict[str, Any]] = {
        "Applied": {"proof": "10m", "proveWithin": "20m"},
        "refused": {"frozen": True},
        "dry run": {"mode": "DryRun"},
        "approval": {"mode": "Approve"},
    }
    expected = [[("Applied", "applied")], [("Open", "refused")], [("Open", "refused")], [("Open", "awaiting-approval")]]
    places = [await rig.namespace(own, **spec) for spec in waits.values()]
    async with rig.rig(own, 1) as running, rig.session(own) as client:
        for where in places:
            await looping(own, where, 1)
        waker = await running.start_waker()
        wake = {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "dev.knative.sources.ping", "ce-source": "/test"}

        async def waiting() -> bool:
            await client.post(waker, headers=wake)
            return [await states(own, where) for where in places] == expected

        await eventually(waiting, "records that wait", patience=60)
        # The Events of the decisions are written after the records.
        await asyncio.sleep(1)
        writes, calls = len(list(judge.writes(own))), running.balancer.requests["waker"]

        for _ in range(ROUNDS):
            async with client.post(waker, headers=wake) as answer:
                assert answer.status == 204
        assert running.balancer.requests["waker"] == calls

        for where in places[1:]:
            for pod in await rig.pods(own, where):
                for _ in range(5):
                    assert await rig.tell(client, f"{running.balancer.url}/copies", pod) in {200, 204}
        made = [(w["verb"], w["requestURI"]) for w in judge.writes(own)][writes:]

    assert made == []
