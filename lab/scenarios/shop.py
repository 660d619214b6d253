"""A workload whose releases are good or bad, in a scenario: what rollback does about them, told and judged."""

from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from lab import rollouts, workloads
from lab.api import eventually
from lab.scenarios.place import SPEED, Json, Place, is_ready, lines_of
from lab.scenarios.timeline import ScenarioFailed, say
from lab.scenarios.writes import Write, written
from lab.toolchain import Toolchain
from lab.visitor import Visitor

FUNCTION = "rollback"
ACCOUNT = f"system:serviceaccount:kreflex-system:{FUNCTION}"
HISTORIES = "/apis/kreflex.dev/v1alpha1"
KINDS = {"deployment": "Deployment", "statefulset": "StatefulSet", "daemonset": "DaemonSet", "rollout": "Rollout"}
_GROUPS = {"Rollout": f"/apis/{rollouts.VERSION}"}
PATIENCE = 240.0


@dataclass
class Shop:
    """One workload in the scenario's namespace."""

    place: Place
    kind: str
    name: str = "shop"
    replicas: int = 3
    _told: set[str] = field(default_factory=set)

    @property
    def title(self) -> str:
        """What is released, as people say it."""
        return self.kind

    @property
    def path(self) -> str:
        """The path of the workload."""
        return f"{self._collection}/{self.name}"

    @property
    def _collection(self) -> str:
        return self.place.path(f"{self.kind.lower()}s", _GROUPS.get(self.kind, "/apis/apps/v1"))

    @property
    def log(self) -> Path:
        """The API server's audit log."""
        assert self.place.home is not None, "this plays in the lab alone"
        return self.place.home.audit_log

    async def make(self, tag: str = "v1") -> None:
        """Make the workload, and wait until all of it is well."""
        await self.place.writer.create(self._collection, self.manifest(tag))
        await self.place.until(lambda: self.runs(tag), f"{self.name} at {tag} that is well", PATIENCE)

    def manifest(self, tag: str) -> Json:
        """The workload at a version."""
        spec, notes = workloads.release(tag, self._pod()), workloads.fault(speed=SPEED)
        if self.kind == "StatefulSet":
            body = workloads.stateful_set(self.name, self.replicas, spec)
        elif self.kind == "DaemonSet":
            body = workloads.daemon_set(self.name, spec)
        elif self.kind == "Rollout":
            body = rollouts.canary(self.name, self.replicas, [], spec)
        else:
            body = workloads.deployment(self.name, self.replicas, spec=spec)
        body["spec"]["template"]["metadata"]["annotations"] = notes
        return body

    def _pod(self) -> Json:
        return {"containers": [{"name": self.name, "image": f"lab.local/{self.name}:v1"}]}

    async def release(self, tag: str) -> None:
        """Give the workload another image."""
        self.place.timeline.add("fault" if "-" in tag else "release", f"{self.kind} {self.name} is released as {tag}")
        await self.set_image(tag)

    async def set_image(self, tag: str) -> None:
        """Write another image into the template."""
        containers = [{"name": self.name, "image": f"lab.local/{self.name}:{tag}"}]
        await self.place.writer.merge(self.path, {"spec": {"template": {"spec": {"containers": containers}}}})

    async def image(self) -> str:
        """The tag that the workload's template has."""
        body = await self.place.reader.get(self.path)
        if body is None:
            raise ScenarioFailed(f"{self.name} is gone")
        return str(body["spec"]["template"]["spec"]["containers"][0]["image"]).rpartition(":")[2]

    async def remembered(self, tag: str) -> None:
        """Wait until Kreflex knows of a version that it was really healthy."""
        path = self.place.path(f"releasehistories/{self.kind.lower()}-{self.name}", HISTORIES)

        async def noted() -> bool:
            body = await self.place.reader.get(path)
            healthy = [one for one in body["spec"]["revisions"] if one.get("healthyAt")] if body else []
            return any(image.endswith(f":{tag}") for one in healthy for image in one.get("images", ()))

        await eventually(noted, f"the note that {tag} of {self.name} is healthy", PATIENCE, 0.5)

    def runs(self, tag: str) -> bool:
        """Whether all pods are Ready, and of this version."""
        pods = [pod for pod in self.place.of(self.name) if "deletionTimestamp" not in pod["metadata"]]
        images = {str(pod["spec"]["containers"][0]["image"]).rpartition(":")[2] for pod in pods}
        return len(pods) >= self.replicas and images == {tag} and all(is_ready(pod) for pod in pods)

    def records(self, since: datetime, function: str = FUNCTION, **status: str) -> list[Json]:
        """A function's records of this workload since then, the oldest first."""
        found = [
            record
            for record in self.place.records(self.name, **status)
            if record["spec"]["function"] == function and _created(record) >= since.replace(microsecond=0)
        ]
        return sorted(found, key=_created)

    def writes(self, since: datetime) -> list[Write]:
        """What rollback has written to workloads and pods here since then, as the audit log says."""
        kinds = ("deployments", "statefulsets", "daemonsets", "rollouts", "pods")
        found = written(self.log, since, ACCOUNT, *kinds, namespace=self.place.namespace)
        return [one for one in found if one.code < 300]

    def templates(self, since: datetime) -> list[Write]:
        """Of these the writes of a template."""
        return [one for one in self.writes(since) if "/spec/template" in _paths(one)]

    async def check_undone(self, since: datetime) -> None:
        """Raise ScenarioFailed unless rollback has written the template back, once."""
        if len(self.templates(since)) != 1:
            raise ScenarioFailed(f"the audit log has {len(self.templates(since))} writes of the template, not one")

    def tell_what_was_logged(self, since: datetime, function: str = FUNCTION) -> None:
        """Add to the timeline what a function's log says of this workload, and of rollback what the audit log has."""
        assert self.place.home is not None, "this plays in the lab alone"
        for line in lines_of(self.place.home.log(function)):
            ours = f"{self.place.namespace}/{function}-{self.name}-" in str(line.get("record", ""))
            if "timestamp" not in line or not ours:
                continue
            at = datetime.fromisoformat(line["timestamp"])
            for word, text in self._lines(line) if at >= since else ():
                if text not in self._told:
                    self._told.add(text)
                    self.place.timeline.add(word, text, at=at)
        for write in self.writes(since):
            self.place.timeline.add("audit", f"{write} ({', '.join(_paths(write)) or write.resource})", at=write.at)

    def _lines(self, line: Json) -> Iterator[tuple[str, str]]:
        event, because = line["event"], line.get("because", "")
        if event == "remediation.opened":
            yield self.place.sender(line)
            yield "decision", f"{line['decision']}: {because}"
        elif event == "guards.passed":
            yield "guards", f"all pass: {', '.join(line['guards'])}"
        elif event == "course.step":
            note = f" ({line['note']})" if line.get("note") else ""
            yield "step", f"{line['step']}{note}"
        elif event == "remediation.settled":
            yield "verdict", f"{line['verdict']}: {because}"
        elif event in {"remediation.refused", "remediation.deferred", "remediation.failed", "course.held_up"}:
            word = "deferred" if event.startswith("course") else event.rpartition(".")[2]
            yield word, f"by {line.get('guard', 'itself')}: {because}"


def _paths(write: Write) -> list[str]:
    patch: Iterable[Json] = write.body.get("patch", ())
    return [path for path in (str(one.get("path", "")) for one in patch) if path.startswith("/spec")]


def _created(record: Json) -> datetime:
    return datetime.fromisoformat(record["metadata"]["creationTimestamp"])


@asynccontextmanager
async def open_shop(place: Place, kind: str) -> AsyncIterator[Shop]:
    """Give a shop of a kind, with the controller of one that is no part of Kubernetes."""
    if kind != "Rollout":
        yield Shop(place, kind)
        return
    assert place.home is not None, "this plays in the lab alone"
    if Toolchain().find(rollouts.PROGRAM) is None:
        say("Argo Rollouts is built from its source now, once; with two cores that takes up to eight minutes")
    async with Visitor(place.home) as plane:
        say("installing Argo Rollouts, whose own controller rolls out")
        await rollouts.install(plane)
        async with rollouts.running(plane):
            yield Shop(place, kind)
