"""Chaos: whichever write a runner dies at, all is as before within the TTL; and nothing is hit that has not opted in.

Each case is an experiment of its own, in a namespace of its own, with a process of its own. The process is killed at
one of its writes; it is started again, as Knative does, and woken each second, as a clock would. Or it is stopped there
for so long that a second process takes over, and goes on when that one is in the middle of it, or through.
"""

import asyncio
import contextlib
import itertools
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import aiohttp

from bench import rig
from bench.rig import GROUP, Json
from bench.stage import Process
from lab import audit, nodes
from lab.api import Refused, eventually
from lab.cluster import ControlPlane
from lab.faults import Call, Hit, Strike
from lab.ports import Ports
from lab.workloads import deployment

FOLDER, ACCOUNT = "chaos_runner", "chaos-runner"
OPT_IN, MARK = "kreflex.dev/chaos", "kreflex.dev/chaos-experiment"
HOME = "kreflex-system"
TTL = 60
# What a look and a write may take beyond it, on a machine that is busy with all the others.
SLACK = timedelta(seconds=10)
WIDTH = 4
# Longer than an attempt may take: the first is over while the faults last, the second when all has been taken back.
STOPS = (5.0, 16.0)
# What was in the network then has arrived, and a clock has ticked once more.
AFTER_STOP = 3.0
RUNS = 100
PING = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/bench", "ce-type": "dev.knative.sources.ping"}
Moment = Literal["before", "after", "late"]
MOMENTS: tuple[Moment, ...] = ("before", "after", "late")
HALTS: tuple[Moment, ...] = ("before", "after")
_APPS = "/apis/apps/v1/namespaces"


@dataclass(frozen=True)
class Story:
    """One kind of fault, on a workload of three pods or a node."""

    kind: str
    fault: Json = field(default_factory=dict)
    amount: str | int = "70%"
    targets: Json = field(default_factory=dict)
    interval: str = ""

    @property
    def on_node(self) -> bool:
        """Whether it hits a node, which belongs to all namespaces."""
        return self.kind in {"Cordon", "NodeDrain"}


STORIES = (
    Story("PodKill", interval="2s"),
    Story("Image", {"image": "lab.local/app:2-crash"}, 1),
    Story("NetworkIsolation"),
    Story("Configuration", {"data": {"url": "nowhere", "new": "one"}}, 1),
    Story("ScaleToZero", amount=1),
    Story("PodImage", {"image": "lab.local/app:2-crash"}),
    Story("Environment", {"env": {"DATABASE": "none"}}, 1),
    Story("Probe", amount=1),
    Story("ResourceSqueeze", {"cpu": "10m"}, 1),
    Story("NodeDrain", amount=1),
)


@dataclass
class Case:
    """One kill, at the n-th write of a run; 0 for a run that nobody disturbs."""

    story: Story
    write: int = 0
    moment: Moment = "before"
    blow: Literal["kill", "stop"] = "kill"
    struck: bool = False
    step: str = ""
    writes: int = 0
    where: str = ""
    wrong: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self) -> str:
        word = "killed" if self.blow == "kill" else "stopped"
        at = f"{word} {self.moment} write {self.write} ({self.step})" if self.write else "calm"
        return f"{self.story.kind}: {at}"


class Trial:
    """Plays one case to the end of its experiment, and compares the objects with what they were."""

    def __init__(self, plane: ControlPlane, client: aiohttp.ClientSession, case: Case, ports: Ports) -> None:
        self._plane = plane
        self._client = client
        self._case = case
        self._ports = ports
        self._seen = 0
        self._node = ""

    async def play(self) -> Case:
        """Play it; what went wrong stands in the case."""
        case, begun = self._case, time.monotonic()
        case.where = await rig.namespace(self._plane, functions=[ACCOUNT])
        await self._plane.api.patch(f"/api/v1/namespaces/{case.where}", {"metadata": {"labels": {OPT_IN: "allowed"}}})
        await self._prepare()
        before = await self._objects()
        # One that is stopped goes on when whoever came after it has long been at work.
        stopped = case.blow == "stop"
        strike = Strike(self._chosen, case.moment, case.blow, STOPS[case.write % 2] if stopped else 1.0)
        plan = [strike] if case.write else []
        home = HOME if case.story.on_node else case.where
        processes = [Process(self._plane, FOLDER, self._ports.take(), plan, "", {"NAMESPACES": home})]
        if stopped:
            processes.append(Process(self._plane, FOLDER, self._ports.take(), [], "", {"NAMESPACES": home}))
        await asyncio.gather(*(process.start() for process in processes))
        try:
            experiment = await self._begin(home)
            async with self._woken(processes, strike):
                await self._until_over(experiment)
                if stopped and strike.replica:
                    await strike.over.wait()
                    await asyncio.sleep(AFTER_STOP)
        except TimeoutError as error:
            case.wrong.append(str(error))
        finally:
            await asyncio.gather(*(process.stop() for process in processes))
        case.struck = bool(strike.replica)
        case.step = strike.write.step if strike.write else ""
        case.writes = sum(call.writes for call in processes[0].proxy.calls)
        case.wrong += _differences(before, await self._objects())
        case.seconds = time.monotonic() - begun
        await self._clear(home)
        return case

    def _chosen(self, call: Call) -> bool:
        self._seen += call.writes
        return call.writes and self._seen == self._case.write

    async def _prepare(self) -> None:
        where, api = self._case.where, self._plane.api
        if self._case.story.on_node:
            (self._node,) = await nodes.add(api, 1, nodes.Pool(where, labels={OPT_IN: "allowed"}))
        body = deployment("app", 3)
        spec = body["spec"]["template"]["spec"]
        spec["terminationGracePeriodSeconds"] = 0
        spec["containers"][0]["env"] = [{"name": "DATABASE", "value": "main"}]
        if self._node:
            spec["nodeSelector"] = {"kubernetes.io/hostname": self._node}
        await api.post(f"{_APPS}/{where}/deployments", body)
        await api.post(f"/api/v1/namespaces/{where}/configmaps", {"metadata": {"name": "app"}, "data": {"url": "here"}})
        await rig.ready(self._plane, where, 3, "app")

    async def _begin(self, home: str) -> str:
        story = self._case.story
        name = self._case.where
        targets = {"names": [self._node or "app"]} if story.kind not in _PODS else {}
        spec = {
            "fault": {"kind": story.kind, **story.fault},
            "targets": targets,
            "amount": story.amount,
            "duration": "4s",
            "ttl": f"{TTL}s",
            "recovery": "1s",
            "withoutBudget": "a benchmark that has no Prometheus",
            **({"interval": story.interval} if story.interval else {}),
        }
        body = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Experiment", "metadata": {"name": name}, "spec": spec}
        path = f"{GROUP}/namespaces/{home}/experiments"
        await self._plane.api.post(path, body)
        return f"{path}/{name}"

    @contextlib.asynccontextmanager
    async def _woken(self, processes: Sequence[Process], strike: Strike) -> AsyncIterator[None]:
        """Wake the processes each second, each for itself; the second one only once the first is stopped."""
        waking = [
            asyncio.create_task(self._wake(one, strike if one is not processes[0] else None)) for one in processes
        ]
        try:
            yield
        finally:
            for task in waking:
                task.cancel()
            await asyncio.gather(*waking, return_exceptions=True)

    async def _wake(self, process: Process, strike: Strike | None) -> None:
        headers = {**PING, **rig.caller(self._plane)}
        if strike is not None:
            await eventually(lambda: _struck(strike), "the stop", 300, 0.2)
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with self._client.post(process.url, headers=headers, data=b"{}"):
                    pass
            await asyncio.sleep(1.0)

    async def _until_over(self, path: str) -> None:
        """Wait until the experiment is over and given back."""
        status: Json = {}
        end = time.monotonic() + TTL * 2 + 60
        while time.monotonic() < end:
            body = await self._plane.api.get(path)
            status = body.get("status", {})
            if status.get("phase") in {"Done", "Aborted", "Refused"} and not body["metadata"].get("finalizers"):
                break
            await asyncio.sleep(0.5)
        else:
            raise TimeoutError(f"it did not end: {status.get('phase')}, {status.get('reason')}")
        self._judge(status)

    def _judge(self, status: Json) -> None:
        case = self._case
        if status["phase"] == "Refused":
            case.wrong.append(f"it was refused: {status.get('reason')}")
            return
        until = datetime.fromisoformat(status["revertBy"]) + SLACK
        for one in status["injected"]:
            if one["state"] in {"Intended", "Injected"}:
                case.wrong.append(f"{one['target']['name']} is still {one['state']}")
            elif datetime.fromisoformat(one["revertedAt"]) > until:
                case.wrong.append(f"{one['target']['name']} was taken back at {one['revertedAt']}, after {until}")

    async def _objects(self) -> dict[str, Json]:
        """All that may be hit, without what changes by itself."""
        where, api = self._case.where, self._plane.api
        found = {
            "deployment": await api.get(f"{_APPS}/{where}/deployments/app"),
            "configmap": await api.get(f"/api/v1/namespaces/{where}/configmaps/app"),
            **({"node": await api.get(f"/api/v1/nodes/{self._node}")} if self._node else {}),
        }
        told = {name: _plain(body) for name, body in found.items()}
        policies = (await api.get(f"/apis/networking.k8s.io/v1/namespaces/{where}/networkpolicies"))["items"]
        leases = (await api.get(f"/apis/coordination.k8s.io/v1/namespaces/{where}/leases"))["items"]
        pods = await rig.pods(self._plane, where)
        marked = [
            pod["metadata"]["name"] for pod in pods if _marks(pod) or "kreflex.dev/chaos-isolated" in _labels(pod)
        ]
        return {**told, "left": {"policies": len(policies), "leases": len(leases), "pods": marked}}

    async def _clear(self, home: str) -> None:
        await rig.remove(self._plane, f"{GROUP}/namespaces/{home}/experiments/{self._case.where}")
        await rig.remove(self._plane, f"{GROUP}/clusterremediationpolicies/{self._case.where}")
        await rig.remove(self._plane, f"{_APPS}/{self._case.where}/deployments/app")
        if self._node:
            await rig.remove(self._plane, f"/api/v1/nodes/{self._node}")


async def _struck(strike: Strike) -> bool:
    return bool(strike.replica)


_PODS = {"PodKill", "PodImage", "NetworkIsolation"}


def _plain(body: Json) -> Json:
    spec = {key: value for key, value in body.get("spec", {}).items() if key != "taints"}
    return {"spec": spec, "data": body.get("data"), "marks": _marks(body), "labels": _labels(body)}


def _marks(body: Json) -> dict[str, str]:
    notes = body["metadata"].get("annotations") or {}
    return {key: text for key, text in notes.items() if key.startswith("kreflex.dev/")}


def _labels(body: Json) -> dict[str, str]:
    labels: dict[str, str] = body["metadata"].get("labels") or {}
    return labels


def _differences(before: dict[str, Json], after: dict[str, Json]) -> list[str]:
    return [f"{name} was {before[name]}, and is {after[name]}" for name in before if before[name] != after[name]]


async def in_turn(
    plane: ControlPlane, cases: Sequence[Case], width: int, client: aiohttp.ClientSession, ports: Ports
) -> list[Case]:
    """Play cases side by side, those on nodes one after the other: they share Kreflex' own namespace."""
    places, on_nodes = asyncio.Semaphore(width), asyncio.Lock()
    count = itertools.count(1)

    async def one(case: Case) -> Case:
        async with on_nodes if case.story.on_node else contextlib.nullcontext(), places:
            await Trial(plane, client, case, ports).play()
            if case.write and not case.struck and case.writes:
                # Runs differ by a write or two: this one had fewer than the calm one. Its last one, then.
                case.write = case.writes
                await Trial(plane, client, case, ports).play()
        rig.say(f"{next(count)}/{len(cases)} {case}: {'; '.join(case.wrong) or 'as before'} ({case.seconds:.0f} s)")
        return case

    return list(await asyncio.gather(*(one(case) for case in cases)))


def strikes(calm: Sequence[Case], size: int) -> list[Case]:
    """A kill before, after and with each write of each story, and a stop; so many of them if not all are wanted."""
    writes = [(case.story, write) for case in calm for write in range(1, case.writes + 1)]
    found = [Case(story, write, moment) for story, write in writes for moment in MOMENTS]
    found += [Case(story, write, moment, "stop") for story, write in writes for moment in HALTS]
    # The same ones each time, of all stories.
    random.Random(8).shuffle(found)  # noqa: S311
    return found[:size] if size else found


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


async def runs(
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
        await plane.api.post(f"{_APPS}/{where}/deployments", body)
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
    data = json.dumps({"items": [{"namespace": where, "name": "kill"}]}).encode()
    headers = {
        **PING,
        **rig.caller(plane),
        "ce-type": "dev.kreflex.remediation.due.v1",
        "Content-Type": "application/json",
    }

    async def over() -> bool:
        async with client.post(process.url, headers=headers, data=data):
            pass
        phase = (await plane.api.get(f"{path}/kill")).get("status", {}).get("phase")
        return phase in {"Done", "Aborted", "Refused"}

    await eventually(over, f"the end of the experiment in {where}", 120, 0.5)
    for name in ("opted", "plain", "never"):
        await rig.remove(plane, f"{_APPS}/{where}/deployments/{name}")


def _killed(plane: ControlPlane) -> dict[str, list[str]]:
    """The UIDs of the pods that chaos-runner has deleted, as the API server's audit log says."""
    found: dict[str, list[str]] = {}
    for entry in audit.entries(plane.audit_log, ACCOUNT):
        about = entry["objectRef"]
        ours = entry["user"]["username"].endswith(f":{ACCOUNT}") and entry["verb"] == "delete"
        if ours and about.get("resource") == "pods" and entry["responseStatus"]["code"] < 300:
            found.setdefault(about["namespace"], []).append(entry["requestObject"]["preconditions"]["uid"])
    return found


async def measure(size: int = 0, only: str = "") -> dict[str, Any]:
    """Run the benchmark: all kills of all stories, or `size` of them, and a hundred runs among pods of all kinds."""
    begun = time.monotonic()
    chosen = [story for story in STORIES if story.kind.startswith(only)]
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home, Ports() as ports:
        async with (
            rig.cluster(Path(home), folders=[FOLDER]) as plane,
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client,
        ):
            with contextlib.suppress(Refused):
                await rig.set_policy(plane, HOME, functions=[ACCOUNT])
            calm = await in_turn(plane, [Case(story) for story in chosen], WIDTH, client, ports)
            cases = await in_turn(plane, strikes(calm, size), WIDTH, client, ports)
            count = min(RUNS, size) if size else RUNS
            outside, inside, wrong = await runs(plane, count, client, ports)
    left = [case for case in (*calm, *cases) if case.wrong]
    for text in [*(f"{case}: {'; '.join(case.wrong)}" for case in left), *wrong]:
        rig.say(f"WRONG {text}")
    met = sum(case.struck for case in cases)
    figures = {
        "left_behind": len(left),
        "outside": outside,
        "outside_blast_radius": outside,
        "runs": count,
        "killed": inside,
        "kills": sum(case.blow == "kill" for case in cases),
        "stops": sum(case.blow == "stop" for case in cases),
        "blows_met": met,
        "ttl_seconds": TTL,
        "seconds": round(time.monotonic() - begun),
    }
    return {**figures, "holds": not left and not outside and not wrong and met == len(cases)}
