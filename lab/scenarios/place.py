"""Where a scenario plays: a namespace of its own, a workload that can be broken, and an eye on both."""

import asyncio
import contextlib
import json
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import Any

from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.errors import UnavailableError
from lab import audit, state, workloads
from lab.paths import Home
from lab.scenarios.timeline import ScenarioFailed, Timeline

Json = dict[str, Any]
SPEED = 20
# The first restart that the function acts on, by default.
LOOP = 4
_LOOK_SECONDS = 0.1
_LOG_SECONDS = 5.0
# A kubelet's fourth restart comes after 70 to 150 seconds; in the lab all that is divided by SPEED.
_PATIENCE = {True: 90.0, False: 900.0}
_SICK = "/state/sick"


class Place:
    """One scenario's namespace. What changes in it is noted with its time."""

    def __init__(self, name: str, home: Home | None, transport: Transport, image: str) -> None:
        self.namespace = f"kreflex-{name}-{uuid.uuid4().hex[:6]}"
        self.home = home
        self.image = image
        self.reader = Reader(transport)
        self.writer = Writer(transport)
        self.timeline = Timeline()
        self.pods: dict[str, Json] = {}
        self.remediations: dict[str, Json] = {}
        self.tells_pods = True
        """Whether each pod that is Ready or restarts is worth a line."""
        self._seen: set[str] = set()

    @classmethod
    @asynccontextmanager
    async def open(
        cls, name: str, home: Home | None, kubeconfig: Path | None, image: str, *, keep: bool
    ) -> AsyncIterator["Place"]:
        """Make the namespace, watch it, and delete it afterwards."""
        config = kubeconfig or Path(state.read(home)["endpoints"]["kubeconfig"] if home else "")
        transport = Transport(load_credentials(str(config)))
        place = cls(name, home, transport, image)
        try:
            await place.writer.create("/api/v1/namespaces", {"metadata": {"name": place.namespace}})
            watching = asyncio.create_task(place._watch())
            try:
                yield place
            finally:
                watching.cancel()
                await asyncio.gather(watching, return_exceptions=True)
                if not keep:
                    await place.writer.delete(f"/api/v1/namespaces/{place.namespace}", {})
        finally:
            await transport.close()

    @property
    def simulated(self) -> bool:
        """True in the lab, where an annotation makes a pod ill."""
        return self.home is not None

    def path(self, collection: str, group: str = "/api/v1") -> str:
        """The path of a collection of this namespace."""
        return f"{group}/namespaces/{self.namespace}/{collection}"

    async def deploy(self, name: str, replicas: int, *, sick: bool = False) -> None:
        """Make a Deployment and wait for its pods; a sick one loops from its template, and so do all successors."""
        if self.simulated:
            notes = workloads.fault("crash-loop", speed=SPEED) if sick else {}
            body = workloads.deployment(name, replicas, notes)
        else:
            config = {"metadata": {"name": name}, "data": {"sick": "yes"}}
            await self.writer.create(self.path("configmaps"), config)
            body = _real_deployment(name, replicas, self.image)
        await self.writer.create(self.path("deployments", "/apis/apps/v1"), body)
        if not sick and self.simulated:
            await self.until(lambda: len(self.ready(name)) == replicas, f"{replicas} Ready pods of {name}")

    async def break_one(self, name: str) -> str:
        """Make one pod of a Deployment loop, and no pod that comes after it; the pod's name."""
        if self.simulated:
            victim: str = self.ready(name)[0]["metadata"]["name"]
            notes = {"metadata": {"annotations": workloads.fault("crash-loop", speed=SPEED)}}
            await self.writer.merge(self.path(f"pods/{victim}"), notes)
        else:
            # The pods copied the illness from the ConfigMap when they began; successors begin healthy.
            await self.until(lambda: bool(self.looping(name, 1)), f"a restart in {name}")
            await self.writer.merge(self.path(f"configmaps/{name}"), {"data": {"sick": "no"}})
            victim = self.looping(name, 1)[0]["metadata"]["name"]
        self.timeline.add("fault", f"pod {victim} begins to crash")
        return victim

    def of(self, name: str) -> list[Json]:
        """The pods of a Deployment."""
        return [pod for pod in self.pods.values() if pod["metadata"].get("labels", {}).get("app") == name]

    def ready(self, name: str) -> list[Json]:
        """Those that are Ready and stay."""
        return [pod for pod in self.of(name) if is_ready(pod)]

    def looping(self, name: str, restarts: int) -> list[Json]:
        """Those with a container that has restarted so often."""
        return [pod for pod in self.of(name) if _restarts(pod) >= restarts]

    def records(self, pod: str | None = None, **status: str) -> list[Json]:
        """The Remediations here, of one pod or with this status."""
        return [
            record
            for record in self.remediations.values()
            if (pod is None or record["spec"]["target"]["name"] == pod)
            and status.items() <= record.get("status", {}).items()
        ]

    async def until(self, found: Callable[[], bool], what: str, patience: float | None = None) -> None:
        """Wait for something to be seen; raises ScenarioFailed when it does not come."""
        patience = patience or _PATIENCE[self.simulated]
        end = asyncio.get_running_loop().time() + patience
        while not found():
            if asyncio.get_running_loop().time() > end:
                raise ScenarioFailed(f"no {what} within {patience:.0f} s")
            await asyncio.sleep(_LOOK_SECONDS / 2)

    def evictions(self) -> list[tuple[datetime, str, int]]:
        """When which pod was evicted, by UID, with the API server's answer, from its audit log; none without one."""
        if self.home is None:
            return []
        return [
            (
                datetime.fromisoformat(entry["requestReceivedTimestamp"]),
                entry["requestObject"]["deleteOptions"]["preconditions"]["uid"],
                entry["responseStatus"]["code"],
            )
            for entry in audit.entries(self.home.audit_log)
            if entry["objectRef"].get("subresource") == "eviction"
            and entry["objectRef"].get("namespace") == self.namespace
        ]

    @contextmanager
    def silent(self, *senders: str) -> Iterator[None]:
        """Stop some of the lab's senders where they are (SIGSTOP), and let them go on afterwards."""
        processes = state.identities(self.home) if self.home else {}
        for sender in senders:
            processes[sender].send(SIGSTOP)
        try:
            yield
        finally:
            for sender in senders:
                processes[sender].send(SIGCONT)

    async def settled(self, record: Json, function: str = "restart-loop-killer") -> None:
        """Wait a moment until a function's log has the verdict: it is logged when the record has been written."""
        end = asyncio.get_running_loop().time() + _LOG_SECONDS
        while self.home is not None and asyncio.get_running_loop().time() < end:
            verdicts = (one for one in lines_of(self.home.log(function)) if one["event"] == "remediation.settled")
            if any(str(one.get("record", "")).endswith(f"/{record['metadata']['name']}") for one in verdicts):
                return
            await asyncio.sleep(_LOOK_SECONDS / 2)

    def tell_what_was_logged(self) -> None:
        """Add to the timeline what the function's log and the relay's journal say of this namespace."""
        if self.home is None:
            return
        for line in lines_of(self.home.log("restart-loop-killer")):
            if f"Remediation {self.namespace}/" in str(line.get("record", "")):
                self._tell_log_line(line)

    def _tell_log_line(self, line: Json) -> None:
        at, event, because = datetime.fromisoformat(line["timestamp"]), line["event"], line.get("because", "")
        target = self._target(line["record"])
        if event == "remediation.opened":
            self.timeline.add(*self.sender(line), at=at)
            self.timeline.add("decision", f"{line['decision']} {target}: {because}", at=at)
        elif event == "guards.passed":
            self.timeline.add("guards", f"all pass: {', '.join(line['guards'])}", at=at)
        elif event == "remediation.applied":
            self.timeline.add("action", f"{target} is evicted, under its UID and resourceVersion", at=at)
        elif event == "remediation.settled":
            self.timeline.add("verdict", f"{line['verdict']}: {because}", at=at)
        elif event in {"remediation.refused", "remediation.deferred", "remediation.failed", "remediation.skipped"}:
            word = event.rpartition(".")[2]
            self.timeline.add(word, f"{target}, by {line.get('guard', 'itself')}: {because}", at=at)

    def _target(self, record: str) -> str:
        name = record.rpartition("/")[2]
        found = (r for r in self.remediations.values() if r["metadata"]["name"] == name)
        return next((r["spec"]["target"]["name"] for r in found), name)

    def sender(self, line: Json) -> tuple[str, str]:
        """Who told of a fault, as a line of a function's log says."""
        source = line["source"]
        if source == "apiserver":
            kind = (
                next((e["type"] for e in lines_of(self.home.events) if e["id"] == line["delivery"]), "")
                if self.home
                else ""
            )
            return "event", f"CloudEvent {kind} from ApiServerSource, through the relay"
        if source == "alertmanager":
            first = "anomaly-scorer raises it" if line.get("decision") == "EvictAnomalous" else "Prometheus fires"
            return "alert", f"{first}, Alertmanager posts (fingerprint {line['delivery']})"
        return "waker", "the waker found it: no event had told"

    async def _watch(self) -> None:
        while True:
            # While definitions of others are installed, the API server may not serve ours for a moment.
            with contextlib.suppress(UnavailableError):
                await asyncio.gather(
                    self._look("pods", self.path("pods"), self.pods),
                    self._look("records", self.path("remediations", "/apis/kreflex.dev/v1alpha1"), self.remediations),
                )
            await asyncio.sleep(_LOOK_SECONDS)

    def _worth_telling(self, kind: str) -> bool:
        return self.tells_pods if kind == "pods" else not self.simulated

    async def _look(self, kind: str, path: str, known: dict[str, Json]) -> None:
        found = {body["metadata"]["uid"]: body async for body in self.reader.list(path)}
        now = datetime.now(UTC)
        for uid, body in found.items():
            # In the lab the function's log tells the steps of a record, with finer times.
            for what, text, at in _facts(kind, body) if self._worth_telling(kind) else ():
                if f"{uid} {text}" not in self._seen:
                    self._seen.add(f"{uid} {text}")
                    self.timeline.add(what, text, at=at or now)
        known.clear()
        known.update(found)


def _facts(kind: str, body: Json) -> list[tuple[str, str, datetime | None]]:
    """What is worth telling of a pod or a record: its word, the text, and the time where the object tells it."""
    name = body["metadata"]["name"]
    if kind == "records":
        return [_step(body["spec"]["target"]["name"], step) for step in body.get("status", {}).get("history", [])]
    restarts = _restarts(body)
    if restarts >= LOOP:
        return [("fault", f"{name} has restarted {restarts} times", None)]
    return [("pod", f"{name} is Ready", None)] if is_ready(body) and not restarts else []


def _step(target: str, step: Json) -> tuple[str, str, datetime]:
    at, phase, reason = datetime.fromisoformat(step["at"]), step["phase"], step.get("reason", "")
    if phase == "Acting":
        return "acting", f"evict {target}: {reason}", at
    if phase == "Applied":
        return "action", f"{target} evicted, under its UID and resourceVersion; the verdict is open", at
    if phase == "Done":
        return "verdict", f"{target}: {reason}", at
    return step.get("outcome", "open"), f"{target}: {reason}", at


def is_ready(pod: Json) -> bool:
    """Whether a pod is Ready and stays."""
    conditions = pod["status"].get("conditions", [])
    ready = any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)
    return ready and "deletionTimestamp" not in pod["metadata"]


def _restarts(pod: Json) -> int:
    return max((c["restartCount"] for c in pod["status"].get("containerStatuses", [])), default=0)


def lines_of(file: Path) -> Iterator[Json]:
    """The lines of JSON in a file."""
    for line in file.read_text(errors="replace").splitlines() if file.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            # A warning of a library, or a line that is being written.
            continue


def _real_deployment(name: str, replicas: int, image: str) -> Json:
    """A Deployment whose pods copy their illness from a ConfigMap when they begin, and keep it through restarts."""
    body = workloads.deployment(name, replicas)
    state_volume, config = {"name": "state", "emptyDir": {}}, {"name": "config", "configMap": {"name": name}}
    body["spec"]["template"]["spec"] = {
        "terminationGracePeriodSeconds": 1,
        "volumes": [state_volume, config],
        "initContainers": [
            {
                "name": "catch",
                "image": image,
                "command": ["sh", "-c", f"cp /config/sick {_SICK}"],
                "volumeMounts": [
                    {"name": "state", "mountPath": "/state"},
                    {"name": "config", "mountPath": "/config"},
                ],
            }
        ],
        "containers": [
            {
                "name": "app",
                "image": image,
                "command": ["sh", "-c", f'[ "$(cat {_SICK})" = yes ] && sleep 2 && exit 1; exec sleep 1000000'],
                "volumeMounts": [{"name": "state", "mountPath": "/state"}],
            }
        ],
    }
    return body
