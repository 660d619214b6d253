"""Duplicates: events of faults that are dealt with cost little, whether the process knows that or has to look."""

import asyncio
import json
import tempfile
import uuid
from pathlib import Path
from typing import Any

import aiohttp

from bench import flood, judge, patients, rig
from bench.rig import Json
from lab import functions
from lab.api import eventually
from lab.cluster import ControlPlane, Options
from lab.ports import Ports

EVENTS, FAULTS, ALERTS = 10_000, 20, 50


async def run(plane: ControlPlane, url: str, events: int) -> dict[str, Any]:
    """Let faults come to their end, and tell of them again and again; the figures."""
    where = await rig.namespace(plane, proof="1s")
    pods = await patients.fall_ill(plane, await patients.make(plane, where, FAULTS))
    child, headers = plane.children[rig.FUNCTION], rig.caller(plane)
    messages = [patients.told(pod) for pod in pods]
    await flood.flood(child, url, messages, FAULTS, headers)
    await eventually(lambda: _settled(plane, url, where), "the verdicts", patience=60, pause=0.5)
    known = await flood.flood(child, url, messages, events, headers)
    # An alert has no UID: its pod is asked for each time, since another may have the name by now.
    body = patients.alerts([pods[number % FAULTS] for number in range(ALERTS)])
    alerts = await flood.flood(child, url, [({"content-type": "application/json"}, body)], events // 500, headers)
    calls = len(judge.between(plane, known.begun, known.ended))
    evicted, _ = judge.disruptions(plane, where, {pod["metadata"]["uid"] for pod in pods})
    return {
        "events": events,
        "per_second": round(known.per_second),
        "calls": calls,
        "cpu_seconds": round(known.cpu_seconds, 2),
        "alerts_per_second": round(ALERTS * alerts.per_second),
        "disruptions_per_fault": evicted.total() / FAULTS,
        "goals_reached": known.per_second >= 500,
        "stretch_reached": known.per_second >= 2000,
        "holds": set(evicted.values()) == {1} and set(known.answers) == {204} and set(alerts.answers) == {200},
    }


async def _settled(plane: ControlPlane, url: str, where: str) -> bool:
    """Ask for each open verdict, as the waker does; whether there is none left."""
    records = await rig.records(plane, where)
    still = [one["metadata"] for one in records if one.get("status", {}).get("phase") != "Done"]
    if still:
        async with aiohttp.ClientSession(headers=rig.caller(plane)) as client:
            await asyncio.gather(*(_wake(client, url, meta) for meta in still))
    return not still


async def _wake(client: aiohttp.ClientSession, url: str, meta: Json) -> None:
    headers = {
        "ce-specversion": "1.0",
        "ce-id": str(uuid.uuid4()),
        "ce-type": "dev.kreflex.remediation.due.v1",
        "ce-source": "bench",
        "content-type": "application/json",
    }
    items = [{"namespace": meta["namespace"], "name": meta["name"]}]
    async with client.post(url, data=json.dumps({"items": items}), headers=headers) as answer:
        await answer.read()


async def measure(size: int = 0) -> dict[str, Any]:
    """Send 10,000 events, or `size`, about 20 faults that are over."""
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home, Ports() as ports:
        async with rig.cluster(Path(home), 1, Options(audit_reads=True)) as plane:
            url = await functions.start(plane, rig.FOLDER, ports.take(), rig.callers(plane))
            return await run(plane, url, size or EVENTS)
