"""Where one experiment after the other is struck: a workload or a node, and two processes of chaos-runner.

The first one is woken each second, as a clock would, and struck. If it is killed it is started again, as Knative does.
If it is stopped, the second one takes over, and it goes on when that one is in the middle of it, or through.
"""

import asyncio
import contextlib
import itertools
import json
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal

import aiohttp

from bench import rig
from bench.rig import GROUP, Json
from bench.stage import Process
from lab import nodes
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.faults import Call, Hit, Strike
from lab.ports import Ports
from lab.workloads import deployment

FOLDER, ACCOUNT = "chaos_runner", "chaos-runner"
OPT_IN, MARK = "kreflex.dev/chaos", "kreflex.dev/chaos-experiment"
ISOLATED = "kreflex.dev/chaos-isolated"
HOME = "kreflex-system"
APPS = "/apis/apps/v1/namespaces"
PING = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/bench", "ce-type": "dev.knative.sources.ping"}
TTL, DURATION = 60, 3
# What a look and a write may take beyond it, on a machine that is busy with all the others.
SLACK = timedelta(seconds=10)
# Longer than an attempt may take: the short ones are over while the faults last, the long one when all is taken back.
STOPS = (4.0, 4.0, 11.0)
# A call that comes late does so after so many seconds; it has arrived a little after that, and then a clock ticks.
LATE, AFTER = 1.0, 0.5
Moment = Literal["before", "after", "late", "stopped"]
MOMENTS: tuple[Moment, ...] = ("before", "after", "late", "stopped")
OVER = {"Done", "Aborted", "Refused"}
_PODS = {"PodKill", "PodImage", "NetworkIsolation"}


@dataclass(frozen=True)
class Story:
    """One kind of fault, on a workload of three pods or a node."""

    kind: str
    fault: Json = field(default_factory=dict, hash=False)
    amount: str | int = "70%"
    interval: str = ""

    @property
    def on_node(self) -> bool:
        """Whether it hits a node, which belongs to all namespaces."""
        return self.kind in {"Cordon", "NodeDrain"}


@dataclass
class Case:
    """One blow at a write of an experiment: the `turn`-th of its step; no step for a run that nobody disturbs."""

    story: Story
    step: str = ""
    moment: Moment = "before"
    turn: int = 1
    seconds: float = LATE
    tries: int = 0
    struck: bool = False
    steps: Counter[str] = field(default_factory=Counter)
    """The writes of the process that was struck, by their steps."""
    wrong: list[str] = field(default_factory=list)
    took: float = 0.0

    def __str__(self) -> str:
        blow = "stopped at" if self.moment == "stopped" else f"killed {self.moment}"
        return f"{self.story.kind}: {f'{blow} {self.step}' if self.step else 'calm'}"

    def strike(self) -> Strike:
        """The blow, at the write that it is for."""
        seen: Counter[str] = Counter()

        def chosen(call: Call) -> bool:
            if call.writes:
                seen[step_of(call)] += 1
            return call.writes and step_of(call) == self.step and seen[self.step] == self.turn

        if self.moment == "stopped":
            return Strike(chosen, "before" if self.turn == 1 else "after", "stop", self.seconds)
        return Strike(chosen, self.moment, "kill", self.seconds)


def step_of(call: Call) -> str:
    """Name what a write of chaos-runner is: of an experiment by its phase and what has just happened."""
    body = json.loads(call.body) if call.body else {}
    if isinstance(body, list):
        # A patch of what is hit: it brings the mark, or takes it away.
        return f"{call.step}: {'fault' if MARK in call.body.decode() else 'back'}"
    if "/experiments/" not in call.path:
        return call.step
    if not call.path.endswith("/status"):
        return "finalizer set" if body["metadata"]["finalizers"] else "finalizer removed"
    status = body["status"]
    words = [status["phase"], *(line["word"] for line in status["timeline"][-1:])]
    return " ".join(words if status["holder"] else [*words, "let go"])


class Ground:
    """A namespace with what may be hit there, and how it is; `home` is where its experiments are."""

    def __init__(self, plane: ControlPlane, *, on_node: bool = False) -> None:
        self._plane = plane
        self._on_node = on_node
        self._node = ""
        self.where = ""

    @property
    def home(self) -> str:
        """Where its experiments are made."""
        return HOME if self._on_node else self.where

    @property
    def target(self) -> str:
        """What is hit, by its name."""
        return self._node or "app"

    async def make(self) -> None:
        """Make a workload that has opted in, and its node if that is to be hit."""
        api = self._plane.api
        self.where = await rig.namespace(self._plane, functions=[ACCOUNT])
        await api.patch(f"/api/v1/namespaces/{self.where}", {"metadata": {"labels": {OPT_IN: "allowed"}}})
        if self._on_node:
            (self._node,) = await nodes.add(api, 1, nodes.Pool(self.where, labels={OPT_IN: "allowed"}))
        body = deployment("app", 3)
        spec = body["spec"]["template"]["spec"]
        spec["terminationGracePeriodSeconds"] = 0
        spec["containers"][0]["env"] = [{"name": "DATABASE", "value": "main"}]
        if self._node:
            spec["nodeSelector"] = {"kubernetes.io/hostname": self._node}
        await api.post(f"{APPS}/{self.where}/deployments", body)
        config = {"metadata": {"name": "app"}, "data": {"url": "here"}}
        await api.post(f"/api/v1/namespaces/{self.where}/configmaps", config)

    async def remove(self) -> None:
        """Take away what costs the others something."""
        await rig.remove(self._plane, f"{GROUP}/clusterremediationpolicies/{self.where}")
        await rig.remove(self._plane, f"{APPS}/{self.where}/deployments/app")
        if self._node:
            await rig.remove(self._plane, f"/api/v1/nodes/{self._node}")

    async def begin(self, name: str, story: Story, **spec: Any) -> str:
        """Make an experiment once all pods are there; its path."""
        path = f"{GROUP}/namespaces/{self.home}/experiments"
        await self._plane.api.post(path, experiment(name, story, self.target, **spec))
        return f"{path}/{name}"

    async def ready(self) -> None:
        """Wait until all pods are there."""
        await rig.ready(self._plane, self.where, 3, "app")

    async def objects(self) -> dict[str, Json]:
        """All that may be hit, without what changes by itself."""
        where, api = self.where, self._plane.api
        found = {
            "deployment": await api.get(f"{APPS}/{where}/deployments/app"),
            "configmap": await api.get(f"/api/v1/namespaces/{where}/configmaps/app"),
            **({"node": await api.get(f"/api/v1/nodes/{self._node}")} if self._node else {}),
        }
        policies = (await api.get(f"/apis/networking.k8s.io/v1/namespaces/{where}/networkpolicies"))["items"]
        turn = await api.find(f"/apis/coordination.k8s.io/v1/namespaces/{self.home}/leases/kreflex-chaos")
        pods = await rig.pods(self._plane, where)
        marked = [pod["metadata"]["name"] for pod in pods if _marks(pod) or ISOLATED in _labels(pod)]
        left = {"policies": len(policies), "turn": turn is not None, "pods": marked}
        return {**{name: _plain(body) for name, body in found.items()}, "left": left}


class Lane:
    """A ground of its own, on which cases are played one after the other."""

    def __init__(self, plane: ControlPlane, client: aiohttp.ClientSession, ports: Ports, *, on_node: bool) -> None:
        self._plane = plane
        self._client = client
        self._ports = ports
        self._on_node = on_node
        self._count = 0
        self._plan: list[Strike | Hit] = []
        self._ground: Ground
        self._first: Process
        self._second: Process
        self._clock: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Make the ground, and start both processes."""
        self._ground = Ground(self._plane, on_node=self._on_node)
        await self._ground.make()
        settings = {"NAMESPACES": self._ground.home}
        self._first = Process(self._plane, FOLDER, self._ports.take(), self._plan, "", settings)
        self._second = Process(self._plane, FOLDER, self._ports.take(), [], "", settings)
        await asyncio.gather(self._first.start(), self._second.start())
        self._clock = asyncio.create_task(self._wake(self._first))

    async def close(self) -> None:
        """End both processes, and take away what was made."""
        if self._clock is not None:
            self._clock.cancel()
            await asyncio.gather(self._clock, return_exceptions=True)
        await asyncio.gather(self._first.stop(), self._second.stop())
        await self._ground.remove()

    async def play(self, case: Case) -> None:
        """Play one case to the end of its experiment; what it did not leave as it was stands in the case."""
        begun, ground = time.monotonic(), self._ground
        case.tries, case.wrong = case.tries + 1, []
        await ground.ready()
        before = await ground.objects()
        strike = case.strike()
        self._first.proxy.forget()
        self._plan[:] = [strike] if case.step else []
        self._count += 1
        path = await ground.begin(f"{ground.where}-{self._count}", case.story)
        try:
            async with self._heir(strike) if case.moment == "stopped" else contextlib.nullcontext():
                case.wrong += await self._end_of(path)
                if strike.replica and case.moment in {"late", "stopped"}:
                    await strike.over.wait()
                    await asyncio.sleep(LATE + AFTER)
                    await self._ticked()
        except TimeoutError as error:
            case.wrong.append(str(error))
        self._plan.clear()
        case.struck = bool(strike.replica)
        case.steps = Counter(step_of(call) for call in self._first.proxy.writes)
        case.wrong += differences(before, await ground.objects())
        await rig.remove(self._plane, path)
        case.took = time.monotonic() - begun

    async def _wake(self, process: Process) -> None:
        """Wake a process each second: twice for the experiment that is due, as the waker does, then as a clock does."""
        for turn in itertools.count():
            name = f"{self._ground.where}-{self._count}"
            headers, body = due(self._plane, (self._ground.home, name))
            if turn % 3 == 0:
                headers, body = {**PING, **rig.caller(self._plane)}, b"{}"
            await self._tell(process, headers, body)
            await asyncio.sleep(1.0)

    async def _tell(self, process: Process, headers: dict[str, str], body: bytes) -> bool:
        with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
            async with self._client.post(process.url, headers=headers, data=body) as answer:
                return answer.status < 300
        return False

    async def _ticked(self) -> None:
        """Let a clock tick once, so that what came late is found."""
        headers = {**PING, **rig.caller(self._plane)}
        await eventually(lambda: self._tell(self._first, headers, b"{}"), "an answer to a tick", 30, 0.5)

    @asynccontextmanager
    async def _heir(self, strike: Strike) -> AsyncIterator[None]:
        """Wake the second process, too, from the moment on in which the first one stops."""

        async def wake() -> None:
            await eventually(lambda: _struck(strike), "the stop", 300, 0.2)
            await self._wake(self._second)

        waking = asyncio.create_task(wake())
        try:
            yield
        finally:
            waking.cancel()
            await asyncio.gather(waking, return_exceptions=True)

    async def _end_of(self, path: str) -> list[str]:
        """Wait until the experiment is over and given back; what was not taken back in time."""
        status: Json = {}
        end = time.monotonic() + TTL * 2 + 60
        while time.monotonic() < end:
            body = await self._plane.api.get(path)
            status = body.get("status", {})
            if status.get("phase") in OVER and not body["metadata"].get("finalizers"):
                return late(status)
            await asyncio.sleep(0.25)
        raise TimeoutError(f"it did not end: {status.get('phase')}, {status.get('reason')}")


def due(plane: ControlPlane, *experiments: tuple[str, str]) -> tuple[dict[str, str], bytes]:
    """A wake for these experiments alone, as the waker gives it: its headers and its body."""
    items = [{"namespace": namespace, "name": name} for namespace, name in experiments]
    told = {"ce-type": "dev.kreflex.remediation.due.v1", "Content-Type": "application/json"}
    return {**PING, **rig.caller(plane), **told}, json.dumps({"items": items}).encode()


def experiment(name: str, story: Story, target: str, **spec: Any) -> Json:
    """An experiment of a story."""
    whole = {
        "fault": {"kind": story.kind, **story.fault},
        "targets": {"names": [target]} if story.kind not in _PODS else {},
        "amount": story.amount,
        "duration": f"{DURATION}s",
        "ttl": f"{TTL}s",
        "recovery": "1s",
        **({"interval": story.interval} if story.interval else {}),
        **({} if "budget" in spec else {"withoutBudget": "a benchmark that has no Prometheus"}),
        **spec,
    }
    return {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Experiment", "metadata": {"name": name}, "spec": whole}


def late(status: Json) -> list[str]:
    """Tell what was not taken back, or not in its time."""
    if status["phase"] == "Refused":
        return [f"it was refused: {status.get('reason')}"]
    until = datetime.fromisoformat(status["revertBy"]) + SLACK
    told = []
    for one in status["injected"]:
        if one["state"] in {"Intended", "Injected"}:
            told.append(f"{one['target']['name']} is still {one['state']}")
        elif datetime.fromisoformat(one["revertedAt"]) > until:
            told.append(f"{one['target']['name']} was taken back at {one['revertedAt']}, after {until}")
    return told


def differences(before: dict[str, Json], after: dict[str, Json]) -> list[str]:
    """Tell what is not as it was."""
    return [f"{name} was {before[name]}, and is {after[name]}" for name in before if before[name] != after[name]]


async def _struck(strike: Strike) -> bool:
    return bool(strike.replica)


def _plain(body: Json) -> Json:
    spec = {key: value for key, value in body.get("spec", {}).items() if key != "taints"}
    return {"spec": spec, "data": body.get("data"), "marks": _marks(body), "labels": _labels(body)}


def _marks(body: Json) -> dict[str, str]:
    notes = body["metadata"].get("annotations") or {}
    return {key: text for key, text in notes.items() if key.startswith("kreflex.dev/")}


def _labels(body: Json) -> dict[str, str]:
    labels: dict[str, str] = body["metadata"].get("labels") or {}
    return labels
