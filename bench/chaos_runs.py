"""A hundred experiments among pods that have opted in and others: nobody else is hit, and no more than was said."""

import asyncio
import random
from dataclasses import dataclass, field

import aiohttp

from bench import rig
from bench.chaos_lane import ACCOUNT, APPS, FOLDER, OPT_IN, OVER, due
from bench.rig import GROUP
from bench.stage import Process
from lab import audit
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.faults import Hit, Strike
from lab.ports import Ports
from lab.workloads import deployment

WIDTH = 4


@dataclass
class Run:
    """One experiment that kills pods, among pods that have opted in and others."""

    where: str
    amount: int | str
    allowed: bool
    uids: dict[str, set[str]] = field(default_factory=dict)

    @property
    def fair(self) -> set[str]:
        """The pods that may be hit."""
        mine = {"opted", "plain"} if self.allowed else {"opted"}
        return {uid for name in mine for uid in self.uids[name]}

    @property
    def most(self) -> int:
        """How many at most; percent rounds down."""
        text, of = str(self.amount), len(self.fair)
        return min(of, of * int(text[:-1]) // 100 if text.endswith("%") else int(text))


async def play(
    plane: ControlPlane, count: int, client: aiohttp.ClientSession, ports: Ports
) -> tuple[int, int, list[str]]:
    """Kill pods in many namespaces at once; how many pods outside were hit, how many inside, and what went wrong."""
    lot = random.Random(17)  # noqa: S311
    amounts: list[int | str] = [1, 2, 5, "10%", "25%", "34%", "50%", "99%", "100%"]
    process = Process(plane, FOLDER, ports.take(), list[Strike | Hit](), "", {})
    await process.start()
    places = asyncio.Semaphore(WIDTH)

    async def one(index: int) -> Run:
        async with places:
            run = Run("", lot.choice(amounts), allowed=index % 2 == 0)
            await _play(plane, client, process, run)
        return run

    try:
        played = await asyncio.gather(*(one(index) for index in range(count)))
    finally:
        await process.stop()
    killed = _killed(plane)
    outside = [uid for run in played for uid in killed.get(run.where, []) if uid not in run.fair]
    inside = sum(len(killed.get(run.where, [])) for run in played)
    wrong = [
        f"{run.where}: {len(killed.get(run.where, []))} of {len(run.fair)} killed for {run.amount}, not {run.most}"
        for run in played
        if len(killed.get(run.where, [])) != run.most
    ]
    return len(outside), inside, wrong


async def _play(plane: ControlPlane, client: aiohttp.ClientSession, process: Process, run: Run) -> None:
    run.where = where = await rig.namespace(plane, functions=[ACCOUNT])
    if run.allowed:
        await plane.api.patch(f"/api/v1/namespaces/{where}", {"metadata": {"labels": {OPT_IN: "allowed"}}})
    for name, label in (("opted", "allowed"), ("plain", ""), ("never", "forbidden")):
        body = deployment(name, 3)
        body["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 0
        if label:
            body["spec"]["template"]["metadata"]["labels"] |= {OPT_IN: label}
        await plane.api.post(f"{APPS}/{where}/deployments", body)
    found = await rig.ready(plane, where, 9)
    for pod in found:
        run.uids.setdefault(pod["metadata"]["labels"]["app"], set()).add(pod["metadata"]["uid"])
    spec = {
        "fault": {"kind": "PodKill"},
        "amount": run.amount,
        "duration": "1s",
        "ttl": "30s",
        "recovery": "1s",
        "withoutBudget": "a benchmark that has no Prometheus",
    }
    body = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Experiment", "metadata": {"name": "kill"}, "spec": spec}
    path = f"{GROUP}/namespaces/{where}/experiments"
    await plane.api.post(path, body)
    headers, data = due(plane, (where, "kill"))

    async def over() -> bool:
        async with client.post(process.url, headers=headers, data=data):
            pass
        phase = (await plane.api.get(f"{path}/kill")).get("status", {}).get("phase")
        return phase in OVER

    await eventually(over, f"the end of the experiment in {where}", 120, 0.5)
    for name in ("opted", "plain", "never"):
        await rig.remove(plane, f"{APPS}/{where}/deployments/{name}")


def _killed(plane: ControlPlane) -> dict[str, list[str]]:
    """The UIDs of the pods that chaos-runner has deleted, as the API server's audit log says."""
    found: dict[str, list[str]] = {}
    for entry in audit.entries(plane.audit_log, ACCOUNT):
        about = entry["objectRef"]
        ours = entry["user"]["username"].endswith(f":{ACCOUNT}") and entry["verb"] == "delete"
        if ours and about.get("resource") == "pods" and entry["responseStatus"]["code"] < 300:
            found.setdefault(about["namespace"], []).append(entry["requestObject"]["preconditions"]["uid"])
    return found
