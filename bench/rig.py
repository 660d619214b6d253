"""What the fault benchmarks run on: replicas of a function behind fault proxies, a balancer, the waker and senders."""

import asyncio
import contextlib
import itertools
import json
import sys
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import yaml
from aiohttp import web

from lab import events, functions, kubeconfig, nodes, processes
from lab.api import Refused, eventually
from lab.callers import SETTINGS, headers, issue
from lab.cluster import ControlPlane, Options
from lab.faults import FaultProxy, Strike
from lab.ports import Ports
from lab.processes import Child
from lab.relay import Subscriber
from lab.toolchain import Toolchain
from lab.workloads import deployment, fault

Json = dict[str, Any]
FUNCTION, FOLDER = "restart-loop-killer", "restart_loop_killer"
GROUP = "/apis/kreflex.dev/v1alpha1"
_RELAYED = ("dev.knative.apiserver.resource.add", "dev.knative.apiserver.resource.update")


@asynccontextmanager
async def cluster(
    home: Path, count: int = 3, options: Options | None = None, folders: Sequence[str] = (FOLDER,)
) -> AsyncIterator[ControlPlane]:
    """A control plane of the benchmark's own with nodes and an installed Kreflex, without any policy."""
    async with ControlPlane(home, options) as plane:
        await nodes.start(plane, count)
        await functions.install(plane, [*folders, functions.WAKER])
        await eventually(lambda: _served(plane), "Kreflex's custom resources")
        for policy in (await plane.api.get(f"{GROUP}/clusterremediationpolicies"))["items"]:
            await plane.api.delete(f"{GROUP}/clusterremediationpolicies/{policy['metadata']['name']}")
        yield plane


async def _served(plane: ControlPlane) -> bool:
    # A CRD is established a moment before its objects can be had.
    try:
        for plural in ("remediations", "remediationpolicies", "clusterremediationpolicies"):
            await plane.api.get(f"{GROUP}/{plural}")
    except Refused:
        return False
    return True


def caller(plane: ControlPlane) -> dict[str, str]:
    """The headers by which a sender shows who it is."""
    return headers(plane)


def callers(_: ControlPlane) -> dict[str, str]:
    """The settings of a function that asks its callers who they are."""
    return dict(SETTINGS)


async def namespace(plane: ControlPlane, limits: Json | None = None, **spec: Any) -> str:
    """Make a namespace with an Auto policy for it alone; its name."""
    name = f"b-{uuid.uuid4().hex[:8]}"
    await plane.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    await set_policy(plane, name, limits, **spec)

    async def usable() -> bool:
        return await plane.api.find(f"/api/v1/namespaces/{name}/serviceaccounts/default") is not None

    await eventually(usable, f"the ServiceAccount of {name}")
    return name


async def set_policy(plane: ControlPlane, name: str, limits: Json | None = None, **spec: Any) -> None:
    """Set the policy of a namespace: Auto, without a rest, unless told otherwise."""
    usual = {"cooldown": "0s", "maxInFlight": 100, "rates": [{"count": 3000, "window": "1h"}]}
    body = {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "ClusterRemediationPolicy",
        "metadata": {"name": name},
        "spec": {
            "functions": [FUNCTION],
            "mode": "Auto",
            "proof": "1s",
            "proveWithin": "1m",
            **spec,
            "scope": {"namespaces": [name]},
            "limits": {**usual, **(limits or {})},
        },
    }
    await plane.api.apply(f"{GROUP}/clusterremediationpolicies/{name}", body)


async def make(plane: ControlPlane, where: str, app: str, replicas: int) -> None:
    """Make a Deployment whose pods end at once."""
    body = deployment(app, replicas)
    body["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = 0
    await plane.api.post(f"/apis/apps/v1/namespaces/{where}/deployments", body)


async def pods(plane: ControlPlane, where: str, app: str = "") -> list[Json]:
    """Read a namespace's pods, or an app's."""
    chosen = {"labelSelector": f"app={app}"} if app else {}
    items: list[Json] = (await plane.api.get(f"/api/v1/namespaces/{where}/pods", **chosen))["items"]
    return items


async def ready(plane: ControlPlane, where: str, count: int, app: str = "", patience: float = 120) -> list[Json]:
    """Wait until there are so many Ready pods and no other."""

    async def found() -> list[Json] | None:
        items = await pods(plane, where, app)
        alive = [pod for pod in items if "deletionTimestamp" not in pod["metadata"] and nodes.is_ready(pod)]
        return items if len(alive) == len(items) == count else None

    items: list[Json] = await eventually(found, f"{count} Ready pods of {app or where}", patience, 0.25)
    return items


async def break_pod(plane: ControlPlane, pod: Json, speed: int = 60) -> None:
    """Make a pod loop; its successor will not."""
    meta = pod["metadata"]
    path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
    await plane.api.patch(path, {"metadata": {"annotations": fault("crash-loop", speed=speed)}})


async def records(plane: ControlPlane, where: str) -> list[Json]:
    """Read a namespace's Remediations."""
    items: list[Json] = (await plane.api.get(f"{GROUP}/namespaces/{where}/remediations"))["items"]
    return items


async def records_about(plane: ControlPlane, where: str, uids: Sequence[str]) -> list[Json]:
    """Read the Remediations of these objects, of however many others the namespace has some."""
    chosen = {"labelSelector": f"kreflex.dev/target in ({','.join(uids)})"}
    items: list[Json] = (await plane.api.get(f"{GROUP}/namespaces/{where}/remediations", **chosen))["items"]
    return items


async def remove(plane: ControlPlane, path: str) -> None:
    """Delete an object, if it is still there; what it owns follows."""
    if await plane.api.find(path) is not None:
        with contextlib.suppress(Refused):
            await plane.api.delete(path, {"propagationPolicy": "Background"})


class Replica:
    """One process of the function; it writes through its own fault proxy, and is started again whenever it dies."""

    def __init__(
        self, plane: ControlPlane, name: str, port: int, plan: list[Strike], settings: Mapping[str, str]
    ) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.name = name
        self.proxy = FaultProxy(name, plane.url, plane.authority, lambda: self.child, plan)
        self.child: Child
        self.starts = 0
        self._plane = plane
        self._port = port
        self._settings = settings
        self._keeper: asyncio.Task[None] | None = None
        self._environment: dict[str, str] = {}

    async def start(self) -> None:
        """Start the process, and wait until it serves."""
        url = await self.proxy.start()
        token = await self._plane.token(FUNCTION, functions.NAMESPACE)
        file = self._plane.home.secrets / f"{self.name}.kubeconfig"
        kubeconfig.write(file, url, self._plane.authority, FUNCTION, token, functions.NAMESPACE)
        self._environment = {
            "HOST": "127.0.0.1",
            "PORT": str(self._port),
            "KUBECONFIG": str(file),
            **callers(self._plane),
            **self._settings,
            **processes.importable(),
        }
        self._spawn()
        await self.child.ready(processes.answers(f"{self.url}/readyz"))
        self._keeper = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            await asyncio.gather(self._keeper, return_exceptions=True)
        if self.starts:
            await self._plane.stop_child(self.name)
        await self.proxy.stop()

    def _spawn(self) -> None:
        command: list[str | Path] = [*processes.python("kreflex", FOLDER)]
        self.child = self._plane.start_child(self.name, command, self._environment, self.url)
        self.starts += 1

    async def _keep(self) -> None:
        while True:
            await self.child.ended(3600)
            if not self.child.alive:
                self._spawn()


class Balancer:
    """One address for all replicas, as a Service gives; it counts who told what of which pod.

    Each sender has a path of its own, as in `url/waker`; the function is called at `/`.
    """

    def __init__(self, replicas: Sequence[str]) -> None:
        self.url = ""
        self.requests: Counter[str] = Counter()
        self.told: dict[str, Counter[str]] = {}
        self._turn = itertools.cycle(replicas)
        self._runner: web.AppRunner | None = None
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> str:
        """Listen on a free port; the URL."""
        self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0, force_close=True))
        application = web.Application(client_max_size=64 * 2**20)
        application.router.add_post("/{sender:.*}", self._serve)
        self._runner = web.AppRunner(application, access_log=None, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{self._runner.addresses[0][1]}"
        return self.url

    async def stop(self) -> None:
        """Stop to listen."""
        if self._runner is not None:
            await self._runner.cleanup()
        if self._session is not None:
            await self._session.close()

    def count(self, pod: str) -> None:
        """Count deliveries about this pod from now on."""
        self.told.setdefault(pod, Counter())

    async def _serve(self, request: web.Request) -> web.Response:
        assert self._session is not None, "the balancer has not been started"
        body, sender = await request.read(), request.match_info["sender"].strip("/")
        self.requests[sender] += 1
        text = body.decode(errors="replace")
        for pod, senders in self.told.items():
            if pod in text:
                senders[sender] += 1
        headers = {
            key: value for key, value in request.headers.items() if key.lower() not in {"host", "content-length"}
        }
        try:
            async with self._session.post(next(self._turn), data=body, headers=headers) as answer:
                content = await answer.read()
                kept = {k: v for k, v in answer.headers.items() if k.lower().startswith(("ce-", "content-type"))}
                return web.Response(body=content, status=answer.status, headers=kept)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            # The replica died, or starts: what a Service's proxy says then.
            return web.Response(status=503, text=repr(error))


@dataclass
class Rig:
    """Everything that runs in a fault benchmark."""

    plane: ControlPlane
    replicas: list[Replica]
    balancer: Balancer
    plan: list[Strike]
    ports: Ports
    act_within: float
    alertmanagers: list[str] = field(default_factory=list)
    waker: str = ""
    _names: list[str] = field(default_factory=list)

    async def start_waker(self, seconds: float = 0.0, **settings: str) -> str:
        """Start the waker, and wake it each so many seconds; 0 leaves that for later. Its URL."""
        environment = {
            "FUNCTIONS": f"{FUNCTION}={self.balancer.url}/waker",
            "ACT_WITHIN": f"{self.act_within:g}s",
            **settings,
        }
        self.waker = await functions.start(self.plane, functions.WAKER, self.ports.take(), environment)
        self._names.append(functions.WAKER)
        if seconds:
            await self.wake(seconds)
        return self.waker

    async def wake(self, seconds: float) -> None:
        """Wake the waker each so many seconds from now on."""
        await events.start_ticker(self.plane, self.waker, seconds)
        self._names.append("ticker")

    async def start_events(self) -> None:
        """Start Knative's ApiServerSource adapter and the relay, which tell the function of each change of a pod."""
        subscriber = Subscriber(FUNCTION, f"{self.balancer.url}/apiserver", _RELAYED)
        relay = await events.start_relay(self.plane, self.ports.take(), [subscriber])
        self._names.append("relay")
        await events.start_adapter(self.plane, relay)
        self._names.append("adapter")

    async def start_alertmanager(self, name: str) -> None:
        """Start one Alertmanager that tells each alert at once, and again each second while it fires."""
        program = (await asyncio.to_thread(Toolchain().ensure, ["alertmanager"]))["alertmanager"]
        token = await issue(self.plane, "alertmanager")
        shown = {"authorization": {"type": "Bearer", "credentials_file": str(token)}}
        hook = {"url": f"{self.balancer.url}/{name}", "send_resolved": True, "http_config": shown}
        times = {"group_wait": "0s", "group_interval": "1s", "repeat_interval": "1s"}
        config = {
            "route": {"receiver": FUNCTION, "group_by": ["..."], **times},
            "receivers": [{"name": FUNCTION, "webhook_configs": [hook]}],
        }
        file, port = self.plane.home.config / f"{name}.yaml", self.ports.take()
        file.write_text(yaml.safe_dump(config))
        command: list[str | Path] = [
            program,
            f"--config.file={file}",
            f"--storage.path={self.plane.home.data / name}",
            f"--web.listen-address=127.0.0.1:{port}",
            "--cluster.listen-address=",
            "--log.level=error",
        ]
        url = f"http://127.0.0.1:{port}"
        child = self.plane.start_child(name, command, url=f"{url}/-/ready")
        self._names.append(name)
        await child.ready(processes.answers(f"{url}/-/ready"))
        self.alertmanagers.append(url)

    async def stop(self) -> None:
        """End all processes, the senders first."""
        for name in reversed(self._names):
            await self.plane.stop_child(name)
        await asyncio.gather(*(replica.stop() for replica in self.replicas))
        await self.balancer.stop()
        self.ports.release()


@asynccontextmanager
async def rig(plane: ControlPlane, replicas: int = 2, act_within: float = 3.0, **settings: str) -> AsyncIterator[Rig]:
    """Run so many replicas of restart-loop-killer behind fault proxies and a balancer."""
    plan: list[Strike] = []
    settings = {"ACT_WITHIN": f"{act_within:g}s", **settings}
    ports = Ports()
    made = [Replica(plane, f"killer-{number}", ports.take(), plan, settings) for number in range(replicas)]
    balancer = Balancer([replica.url for replica in made])
    running = Rig(plane, made, balancer, plan, ports, act_within)
    try:
        await balancer.start()
        await asyncio.gather(*(replica.start() for replica in made))
        yield running
    finally:
        await running.stop()


@asynccontextmanager
async def session(plane: ControlPlane) -> AsyncIterator[aiohttp.ClientSession]:
    """A client for senders that may call; who does not answer within a minute is given up."""
    async with aiohttp.ClientSession(headers=caller(plane), timeout=aiohttp.ClientTimeout(total=60)) as client:
        yield client


async def tell(client: aiohttp.ClientSession, url: str, pod: Json) -> int:
    """Send an ApiServerSource's event of a pod, with an id of its own each time; the answer's status, 0 for none."""
    meta = pod["metadata"]
    headers = {
        "ce-specversion": "1.0",
        "ce-id": str(uuid.uuid4()),
        "ce-type": "dev.knative.apiserver.resource.update",
        "ce-source": "https://127.0.0.1",
        "ce-subject": f"/apis/v1/namespaces/{meta['namespace']}/pods/{meta['name']}",
        "ce-time": datetime.now(UTC).isoformat(),
        "content-type": "application/json",
    }
    body = json.dumps({"apiVersion": "v1", "kind": "Pod", **pod})
    with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
        async with client.post(url, data=body, headers=headers) as answer:
            await answer.read()
            return answer.status
    return 0


async def alert(client: aiohttp.ClientSession, url: str, pod: Json, *, age: float, over: bool = False) -> None:
    """Tell an Alertmanager that a pod loops since `age` seconds, or that this is over."""
    now, meta = datetime.now(UTC), pod["metadata"]
    body: Json = {
        "labels": {"alertname": "KubePodCrashLooping", "namespace": meta["namespace"], "pod": meta["name"]},
        "annotations": {"summary": "Pod is crash looping."},
        "startsAt": (now - timedelta(seconds=age)).isoformat(),
    }
    if over:
        body["endsAt"] = now.isoformat()
    async with client.post(f"{url}/api/v2/alerts", json=[body]) as answer:
        answer.raise_for_status()


async def until(condition: Callable[[], bool], patience: float, pause: float = 0.1) -> bool:
    """Wait for a condition that costs nothing to ask; whether it came true."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + patience
    while not condition():
        if loop.time() > limit:
            return False
        await asyncio.sleep(pause)
    return True


def say(line: str) -> None:
    """Show progress to a person."""
    sys.stderr.write(f"{line}\n")
    sys.stderr.flush()
