"""A storm of looping pods, told once: never more in flight than allowed, and everything settled in the end."""

import asyncio
from pathlib import Path
from typing import Any

from bench import rig, storm_pods
from functions.restart_loop_killer import main as killer
from kreflex.cluster import Writer
from kreflex.reflex import Arc
from kreflex.serve import REFLEXES
from kreflex.signals import PodSignal
from kreflex.views import JSON
from tests import kit

assert killer.main is not None
KILLER = REFLEXES["restart-loop-killer"]


async def test_a_storm_stays_within_its_limits_and_is_settled_without_another_alert(tmp_path: Path) -> None:
    async with rig.cluster(tmp_path) as plane, rig.rig(plane, 2, 10) as running:
        found = await storm_pods.run(running, pods=24, owners=4, in_flight=3, patience=240)

    assert storm_pods.breaches(found) == []
    assert found["settled"] == 24


class Hesitant(Writer):
    """Waits before it claims a record, once it has been admitted."""

    def __init__(self, writer: Writer) -> None:
        super().__init__(writer._transport)
        self.waits, self.go_on = asyncio.Event(), asyncio.Event()

    async def merge(self, path: str, body: JSON) -> JSON:
        if body["status"]["phase"] == "Acting":
            self.waits.set()
            await self.go_on.wait()
        return await super().merge(path, body)


async def test_a_fault_that_came_back_holds_its_slot_before_it_acts(here: kit.Place) -> None:
    pods = [await here.loop(pod, speed="10") for pod in await here.deployment(replicas=2)]
    signals = [PodSignal(here.name, pod["metadata"]["name"], pod["metadata"]["uid"]) for pod in pods]
    async with kit.arc_of(here.plane, KILLER) as first, kit.arc_of(here.plane, KILLER) as second:
        await closed(here, first, signals[0])

        first.records._writer = hesitant = Hesitant(first.writer)
        acting = asyncio.create_task(first.handle(signals[0]))
        await asyncio.wait_for(hesitant.waits.wait(), 10)
        other = await second.handle(signals[1])
        hesitant.go_on.set()

        assert (await acting).outcome == "applied"
        assert (other.outcome, here.evictions()) == ("deferred", [signals[0].uid])


async def closed(here: kit.Place, arc: Arc[Any], signal: PodSignal) -> None:
    """Leave a record that was closed because the fault was over for a while."""
    await here.policy(frozen=True)
    assert (await arc.handle(signal)).outcome == "refused"
    (record,) = await here.records()
    path = f"{kit.REMEDIATIONS.removesuffix('/remediations')}/namespaces/{here.name}/remediations"
    status = {**record["status"], "phase": "Done", "outcome": "skipped", "guard": None, "dueAt": None}
    await arc.writer.merge(f"{path}/{record['metadata']['name']}/status", {"status": status})
    await here.policy()
