"""Runs the Jobs of Kreflex as processes of this machine, for in the lab no pod really runs.

It stands for the kubelet of their pods, and of no others: pods with these two LABELS whose owner is a Job. kwok's
stages leave those alone (stages/library.jq: is_process). A process has a token of its pod's ServiceAccount in a
kubeconfig, an empty folder, the lab's programs on PATH, and the container's environment. Nothing is mounted: where the
terminationMessagePath stands in the command or in the environment, the path of a file in that folder is put. A pod's
first container is all of it, and it runs once (`restartPolicy: Never`).
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shlex
import signal
import sys
import tempfile
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import aiohttp

from lab import kubeconfig, processes
from lab.api import Api, Refused, eventually, from_kubeconfig
from lab.cluster import ControlPlane
from lab.errors import LabError
from lab.paths import Home
from lab.processes import Child, dies_with
from lab.state import MARK
from lab.toolchain import Toolchain

Json = dict[str, Any]
PROGRAM = "jobs"
LABELS = {"app.kubernetes.io/managed-by": "kreflex"}
"""What the template of a Job's pods has to say, so that its command runs here."""
_JOB_NAME = "batch.kubernetes.io/job-name"
_SELECTOR = ",".join([*(f"{key}={value}" for key, value in LABELS.items()), _JOB_NAME])
_SYSTEM_PATH = "/usr/bin:/bin"
_LOOK_SECONDS = 0.2
_TOKEN_SECONDS = 3607
_MESSAGE_FILE = "termination-log"
_READY = "ready for Jobs"
_AWAY = (LabError, aiohttp.ClientError, TimeoutError, OSError)
# What a kubelet takes of a container's message, or of its log instead:
# https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
_MESSAGE_BYTES, _LOG_BYTES, _LOG_LINES = 4096, 2048, 80
_CAN_NOT_START, _KILLED = 128, 137
_REFERENCE = re.compile(r"\$\$|\$\(([A-Za-z_.-][\w.-]*)\)")


class CanNotRunError(LabError):
    """What a pod asks for can't be had here."""


@dataclass(frozen=True)
class End:
    """How a container ended."""

    code: int
    reason: str = ""
    message: str = ""

    @property
    def state(self) -> Json:
        """What a container's status says of it, but for the times."""
        reason = self.reason or ("Completed" if self.code == 0 else "Error")
        return {"exitCode": self.code, "reason": reason, **({"message": self.message} if self.message else {})}


@dataclass(frozen=True)
class Order:
    """What a pod wants run."""

    pod: Json

    @property
    def uid(self) -> str:
        uid: str = self.pod["metadata"]["uid"]
        return uid

    @property
    def namespace(self) -> str:
        namespace: str = self.pod["metadata"]["namespace"]
        return namespace

    @property
    def name(self) -> str:
        name: str = self.pod["metadata"]["name"]
        return name

    @property
    def path(self) -> str:
        return f"/api/v1/namespaces/{self.namespace}/pods/{self.name}"

    @property
    def account(self) -> str:
        return self.pod["spec"].get("serviceAccountName") or "default"

    @property
    def container(self) -> Json:
        container: Json = self.pod["spec"]["containers"][0]
        return container

    @property
    def owner(self) -> Json | None:
        """The Job that it is of."""
        owners = self.pod["metadata"].get("ownerReferences", [])
        return next((one for one in owners if one["kind"] == "Job" and one.get("controller")), None)

    @property
    def job(self) -> str:
        """Its Job's namespace and name."""
        return f"{self.namespace}/{self.pod['metadata']['labels'][_JOB_NAME]}"

    @property
    def scheduled(self) -> bool:
        return bool(self.pod["spec"].get("nodeName"))

    @property
    def over(self) -> bool:
        return self.pod["status"].get("phase") in ("Succeeded", "Failed")

    @property
    def grace_seconds(self) -> float | None:
        """How long its process has left to end by itself, None while it may go on."""
        metadata = self.pod["metadata"]
        return metadata.get("deletionGracePeriodSeconds", 0) if "deletionTimestamp" in metadata else None

    def environment(self, folder: Path) -> dict[str, str]:
        """The container's own variables."""
        found: dict[str, str] = {}
        for one in self.container.get("env", []):
            text = self._field(one) if one.get("valueFrom") else expanded(one.get("value", ""), found)
            found[one["name"]] = self._moved(text, folder)
        return found

    def _moved(self, text: str, folder: Path) -> str:
        path = self.container.get("terminationMessagePath")
        return text.replace(path, str(folder / _MESSAGE_FILE)) if path else text

    def command(self, folder: Path) -> list[str]:
        """The command and its arguments, with $(NAME) replaced as a kubelet does."""
        if self.owner is None:
            raise CanNotRunError("the lab runs pods of Jobs only, and this one has no Job")
        if self.pod["spec"].get("restartPolicy") != "Never":
            raise CanNotRunError("the lab runs the pod of a Job once: set restartPolicy to Never")
        command = self.container.get("command")
        if not command:
            raise CanNotRunError(f"the lab does not know the entrypoint of {self.container['image']}: set command")
        known = self.environment(folder)
        return [self._moved(expanded(part, known), folder) for part in [*command, *self.container.get("args", [])]]

    def _field(self, variable: Json) -> str:
        path = (variable["valueFrom"].get("fieldRef") or {}).get("fieldPath", "")
        fields = {"metadata.name": self.name, "metadata.namespace": self.namespace, "metadata.uid": self.uid}
        fields["spec.serviceAccountName"] = self.account
        if path not in fields:
            raise CanNotRunError(f"env {variable['name']}: of valueFrom the lab knows fieldRef to {', '.join(fields)}")
        return fields[path]

    def status(self, state: Json, phase: str) -> Json:
        """The pod's status with its only container in this state, as a kubelet writes it."""
        now = _now()
        running = phase == "Running"
        reason = {} if running else {"reason": "PodCompleted" if phase == "Succeeded" else "PodFailed"}
        old = {one["type"]: one for one in self.pod["status"].get("conditions", [])}
        for kind in ("Initialized", "PodReadyToStartContainers", "ContainersReady", "Ready"):
            value = "True" if running or kind == "Initialized" else "False"
            since = old[kind]["lastTransitionTime"] if old.get(kind, {}).get("status") == value else now
            said = reason if kind in ("ContainersReady", "Ready") else {}
            old[kind] = {"type": kind, "status": value, "lastTransitionTime": since, **said}
        container = {
            "name": self.container["name"],
            "image": self.container["image"],
            "imageID": "",
            "containerID": f"process://{self.uid}",
            "ready": running,
            "started": running,
            "restartCount": 0,
            "state": state,
        }
        return {
            "phase": phase,
            "startTime": self.pod["status"].get("startTime") or now,
            "conditions": list(old.values()),
            "containerStatuses": [container],
        }


def expanded(text: str, known: Mapping[str, str]) -> str:
    """A text with $(NAME) replaced; what is not known stays, and $$ is a $."""

    def value(match: re.Match[str]) -> str:
        return "$" if match[0] == "$$" else known.get(match[1], match[0])

    return _REFERENCE.sub(value, text)


def last_words(log: Path) -> str:
    """What a failed container says with terminationMessagePolicy FallbackToLogsOnError."""
    end = log.read_bytes()[-_LOG_BYTES:].decode(errors="replace")
    return "".join(end.splitlines(keepends=True)[-_LOG_LINES:])


@dataclass
class Runner:
    """The kubelet of these pods."""

    api: Api
    home: Home
    tools: Path
    """The folder with the lab's programs."""
    _ended: dict[str, asyncio.Future[float]] = field(default_factory=dict)
    """For each pod that is played: when it shall end, the seconds of grace that it has."""

    async def serve(self) -> None:
        """Look after the pods until cancelled; it bears an API server that is away for a while."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                with contextlib.suppress(*_AWAY):
                    await self._look(tasks)
                await asyncio.sleep(_LOOK_SECONDS)

    async def _look(self, tasks: asyncio.TaskGroup) -> None:
        items = (await self.api.get("/api/v1/pods", labelSelector=_SELECTOR))["items"]
        orders = {order.uid: order for order in map(Order, items)}
        for uid, order in orders.items():
            if uid not in self._ended and order.scheduled:
                self._ended[uid] = asyncio.get_running_loop().create_future()
                tasks.create_task(self._play(order))
        for uid, ended in self._ended.items():
            # A pod that is gone was deleted without grace.
            grace = orders[uid].grace_seconds if uid in orders else 0
            if grace is not None and not ended.done():
                ended.set_result(grace)

    async def _play(self, order: Order) -> None:
        """Run a pod from its start to its end, and write down both."""
        if not order.over:
            await self._end(order)
        await self._bury(order)

    async def _end(self, order: Order) -> None:
        began = _now()
        if order.pod["status"].get("phase") == "Running":
            # Its process ended with the one that came before us.
            end = End(_KILLED, "ContainerStatusUnknown", "the lab's runner was started anew, and its processes ended")
        else:
            end = await self._run(order, began)
        state = {"terminated": {**end.state, "startedAt": began, "finishedAt": _now()}}
        _tell(f"Job {order.job} ended with code {end.code}")
        await self._write(order, order.status(state, "Succeeded" if end.code == 0 else "Failed"))

    async def _run(self, order: Order, began: str) -> End:
        with tempfile.TemporaryDirectory(prefix="kreflex-lab-job-") as folder:
            try:
                process = await self._start(order, Path(folder))
            except (CanNotRunError, OSError) as error:
                return End(_CAN_NOT_START, "StartError", str(error))
            except Refused as refusal:
                return End(_CAN_NOT_START, "StartError", f"no token of account {order.account}: {refusal}")
            await self._write(order, order.status({"running": {"startedAt": began}}, "Running"))
            code = await self._code(order, process)
            return End(code, message=self._message(order, code, Path(folder) / _MESSAGE_FILE))

    def _message(self, order: Order, code: int, file: Path) -> str:
        if file.exists() and file.stat().st_size:
            return file.read_bytes()[:_MESSAGE_BYTES].decode(errors="replace")
        falls_back = order.container.get("terminationMessagePolicy") == "FallbackToLogsOnError"
        return last_words(self._log(order)) if code and falls_back else ""

    async def _start(self, order: Order, folder: Path) -> Process:
        command = order.command(folder)
        environment = await self._environment(order, folder)
        await self._announce(order, command)
        with self._log(order).open("ab") as output:
            return await asyncio.create_subprocess_exec(
                _executable(command[0], environment["PATH"]),
                *command[1:],
                cwd=folder,
                env=environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=asyncio.subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=dies_with(os.getpid()),
            )

    async def _environment(self, order: Order, folder: Path) -> dict[str, str]:
        ours = {
            "HOME": str(folder),
            "TMPDIR": str(folder),
            MARK: str(self.home.root),
            **order.environment(folder),
            "PATH": f"{self.tools}:{_SYSTEM_PATH}",
        }
        if order.pod["spec"].get("automountServiceAccountToken") is not False:
            ours["KUBECONFIG"] = str(await self._kubeconfig(order))
        return ours

    async def _kubeconfig(self, order: Order) -> Path:
        # Bound to the pod, as a kubelet's: it is worth nothing any more when the pod is gone.
        bound = {"kind": "Pod", "apiVersion": "v1", "name": order.name, "uid": order.uid}
        spec = {"expirationSeconds": _TOKEN_SECONDS, "boundObjectRef": bound}
        path = f"/api/v1/namespaces/{order.namespace}/serviceaccounts/{order.account}/token"
        token = (await self.api.post(path, {"spec": spec}))["status"]["token"]
        file = self.home.secrets / f"job-{order.uid}.kubeconfig"
        authority = self.home.secrets / "ca.crt"
        return kubeconfig.write(file, self.api.url, authority, order.account, token, order.namespace)

    async def _code(self, order: Order, process: Process) -> int:
        ended = self._ended[order.uid]
        exited = asyncio.create_task(process.wait())
        either: tuple[asyncio.Future[Any], ...] = (exited, ended)
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if not exited.done() and ended.result() > 0:
            _signal(process, signal.SIGTERM)
            await asyncio.wait([exited], timeout=ended.result())
        # Also what it has left behind: with a container's first process all others end.
        _signal(process, signal.SIGKILL)
        code = await exited
        return code if code >= 0 else 128 - code

    async def _write(self, order: Order, status: Json) -> None:
        await self._insist("PATCH", order, partial(self.api.patch, f"{order.path}/status", self._body(order, status)))

    @staticmethod
    def _body(order: Order, status: Json) -> Json:
        return {"metadata": {"uid": order.uid}, "status": status}

    async def _bury(self, order: Order) -> None:
        """Let a pod go that was deleted meanwhile, now that its process has ended."""
        ended = self._ended[order.uid]
        if not ended.done():
            await ended
        body = {"gracePeriodSeconds": 0, "preconditions": {"uid": order.uid}}
        await self._insist("DELETE", order, partial(self.api.delete, order.path, body))
        (self.home.secrets / f"job-{order.uid}.kubeconfig").unlink(missing_ok=True)
        del self._ended[order.uid]

    @staticmethod
    async def _insist(verb: str, order: Order, ask: Callable[[], Awaitable[Json]]) -> None:
        """Ask the API server until it has answered; a pod that is gone, or another of its name, is no matter."""
        while True:
            try:
                await ask()
                return
            except Refused as refusal:
                if refusal.status in (404, 409, 422):
                    return
                _tell(f"{verb} {order.path}: {refusal}")
            except _AWAY:
                pass
            await asyncio.sleep(_LOOK_SECONDS)

    async def _announce(self, order: Order, command: Sequence[str]) -> None:
        account = f"{order.namespace}/{order.account}"
        said = f"Job {order.job} runs as a process of this machine, with the token of account {account}"
        _tell(f"{said}: {shlex.join(command)}")
        assert order.owner is not None
        about = {key: order.owner[key] for key in ("apiVersion", "kind", "name", "uid")}
        event = {
            "metadata": {"generateName": f"{order.owner['name']}-", "namespace": order.namespace},
            "involvedObject": {**about, "namespace": order.namespace},
            "type": "Normal",
            "reason": "RunsAsProcess",
            "message": f"lab: {said}",
            "source": {"component": "kreflex-lab"},
            "firstTimestamp": _now(),
            "lastTimestamp": _now(),
            "count": 1,
        }
        # The namespace may be ending.
        with contextlib.suppress(Refused):
            await self.api.post(f"/api/v1/namespaces/{order.namespace}/events", event)

    def _log(self, order: Order) -> Path:
        return self.home.log(f"job-{order.namespace}-{order.name}")


def _executable(name: str, path: str) -> str:
    for folder in [""] if "/" in name else path.split(":"):
        file = Path(folder) / name
        if os.access(file, os.X_OK):
            return str(file)
    raise CanNotRunError(f'exec: "{name}": executable file not found in $PATH: the lab has no such program')


def _signal(process: Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _tell(text: str) -> None:
    print(f"lab: {text}", flush=True)


def job(name: str, account: str, *command: str, grace_seconds: int = 30, **spec: Any) -> Json:
    """A Job that runs here, once; a failed one tells the end of its output."""
    container = {
        "name": "main",
        "image": "lab.local/tools:1",
        "command": list(command),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    pod = {
        "serviceAccountName": account,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": grace_seconds,
        "containers": [container],
    }
    template = {"metadata": {"labels": LABELS}, "spec": pod}
    body = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}}
    return {**body, "spec": {"backoffLimit": 0, **spec, "template": template}}


async def ended(api: Api, namespace: str, name: str, patience: float = 90) -> Json:
    """Wait until a Job is Complete or Failed; its condition that says so."""

    async def over() -> Json | None:
        status = (await api.get(f"{collection(namespace)}/{name}")).get("status", {})
        found = [one for one in status.get("conditions", []) if one["type"] in ("Complete", "Failed")]
        return next((one for one in found if one["status"] == "True"), None)

    condition: Json = await eventually(over, f"the end of Job {namespace}/{name}", patience)
    return condition


def collection(namespace: str) -> str:
    """Where the Jobs of a namespace are."""
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


async def start(plane: ControlPlane, programs: Sequence[str] = ("helm", "kubectl")) -> Child:
    """Start the runner on a control plane with nodes; a Job's command may be one of these programs."""
    paths = await asyncio.to_thread(Toolchain().ensure, programs)
    arguments = ["--home", str(plane.home.root), "--programs", json.dumps({name: str(paths[name]) for name in paths})]
    log = plane.home.log(PROGRAM)
    old = _read(log)

    async def listens() -> bool:
        return _READY in _read(log)[len(old) :]

    child = plane.start_child(PROGRAM, processes.python("lab.jobs", *arguments), processes.importable())

    await child.ready(listens)
    return child


def _read(log: Path) -> str:
    return log.read_text(errors="replace") if log.exists() else ""


@asynccontextmanager
async def running(plane: ControlPlane, programs: Sequence[str] = ("helm", "kubectl")) -> AsyncIterator[Child]:
    """Run the runner; the processes of its Jobs end with it."""
    child = await start(plane, programs)
    try:
        yield child
    finally:
        await plane.stop_child(PROGRAM)


def _link(tools: Path, programs: Mapping[str, str]) -> None:
    tools.mkdir(exist_ok=True)
    for name, target in programs.items():
        (tools / name).unlink(missing_ok=True)
        (tools / name).symlink_to(target)


async def _serve(home: Home, programs: Mapping[str, str]) -> None:
    tools = home.data / "job-programs"
    _link(tools, programs)
    # kwok's account stands for all kubelets.
    async with from_kubeconfig(home.secrets / "kwok.kubeconfig") as api:
        said = ", ".join(f"{key}={value}" for key, value in LABELS.items())
        _tell(f"{_READY}: the commands of those whose pods are labelled {said} run on this machine")
        await Runner(api, home, tools).serve()


def main() -> None:
    """Run until ended."""
    parser = argparse.ArgumentParser(prog="python -m lab.jobs", description=__doc__)
    parser.add_argument("--home", type=Path, required=True)
    parser.add_argument("--programs", type=json.loads, required=True)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(Home.at(arguments.home), arguments.programs))
    sys.exit(0)


if __name__ == "__main__":
    main()
