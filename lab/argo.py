"""Argo Events on loopback: its event sources, its sensors, and NATS JetStream between them; its controller is left out.

What the controller does is done here: it hands each process its object and the bus in environment variables.
"""

import asyncio
import base64
import json
import secrets
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from lab import processes
from lab.api import eventually
from lab.certificates import Authority
from lab.cluster import ControlPlane
from lab.errors import LabError
from lab.ports import Ports
from lab.processes import Child
from lab.toolchain import Toolchain

Json = dict[str, Any]
PROGRAMS = ("argo_events", "nats-server")
NAMESPACE = "argo-events"
# As its controller sets them, but for one replica: manifests/base/controller-manager/controller-config.yaml.
_STREAM = "maxMsgs: 1000000\nmaxAge: 72h\nmaxBytes: 1GB\nreplicas: 1\nduplicates: 300s\nretention: 0\ndiscard: 0\n"
# Where the library that elects a leader keeps its state, whoever runs it: github.com/nats-io/graft.
_ELECTION = Path("/tmp/graft.log")  # noqa: S108


@dataclass(frozen=True)
class Bus:
    """An EventBus, and the control plane beside it."""

    plane: ControlPlane
    url: str
    monitor: str

    @asynccontextmanager
    async def source(self, manifest: Json, account: str = "default") -> AsyncIterator[Child]:
        """Run an EventSource with the rights of this account, until it has begun to listen."""
        async with self._running("eventsource", "EVENTSOURCE_OBJECT", manifest, account) as child:
            await _says(child, "Eventing server started")
            yield child

    @asynccontextmanager
    async def sensor(self, manifest: Json) -> AsyncIterator[Child]:
        """Run a Sensor whose triggers have one dependency each, until all have subscribed: what came before is lost."""
        before = await self._consumers()
        async with self._running("sensor", "SENSOR_OBJECT", manifest, "default") as child:

            async def subscribed() -> bool:
                _alive(child)
                return await self._consumers() >= before + len(manifest["spec"]["triggers"])

            await eventually(subscribed, f"{child.name}: its triggers' subscriptions", 90)
            yield child

    async def _consumers(self) -> int:
        async with aiohttp.ClientSession() as session, session.get(f"{self.monitor}/jsz") as answer:
            count: int = (await answer.json(content_type=None))["consumers"]
            return count

    @asynccontextmanager
    async def _running(self, part: str, variable: str, manifest: Json, account: str) -> AsyncIterator[Child]:
        program = Toolchain().ensure(PROGRAMS)["argo_events"]
        name = f"{part}-{manifest['metadata']['name']}-{secrets.token_hex(2)}"
        bus = {"jetstream": {"url": self.url, "streamConfig": _STREAM}}
        environment = {
            variable: _encoded(manifest),
            "EVENTBUS_CONFIG": _encoded(bus),
            "EVENTBUS_SUBJECT": f"eventbus-{NAMESPACE}",
            "POD_NAME": name,
            "KUBECONFIG": str(await self.plane.kubeconfig_for(NAMESPACE, account)),
        }
        child = self.plane.start_child(name, [program, part], environment)
        try:
            yield child
        finally:
            await self.plane.stop_child(name)


@asynccontextmanager
async def bus(plane: ControlPlane) -> AsyncIterator[Bus]:
    """Run NATS with JetStream. It serves TLS, which Argo Events always asks for."""
    program = Toolchain().ensure(PROGRAMS)["nats-server"]
    home = plane.home.data / f"nats-{secrets.token_hex(2)}"
    home.mkdir()
    pair = Authority(home).issue("nats")
    with Ports() as ports:
        port, health = ports.take(), ports.take()
        config = home / "nats.conf"
        tls = {"cert_file": str(pair.certificate), "key_file": str(pair.key)}
        settings: Json = {"listen": f"127.0.0.1:{port}", "http": f"127.0.0.1:{health}", "tls": tls}
        config.write_text(json.dumps({**settings, "jetstream": {"store_dir": str(home / "store")}}))
        monitor = f"http://127.0.0.1:{health}"
        child = plane.start_child("nats", [program, f"--config={config}"], url=f"{monitor}/healthz")
        try:
            await child.ready(processes.answers(f"{monitor}/healthz"))
            yield Bus(plane, f"nats://127.0.0.1:{port}", monitor)
        finally:
            await plane.stop_child("nats")
            await asyncio.to_thread(_ELECTION.unlink, missing_ok=True)


def _encoded(body: Mapping[str, Any]) -> str:
    return base64.b64encode(json.dumps(body).encode()).decode()


async def _says(child: Child, words: str) -> None:
    async def said() -> bool:
        _alive(child)
        return words in child.log.read_text(errors="replace")

    await eventually(said, f"{child.name}: {words!r}", 60)


def _alive(child: Child) -> None:
    if not child.alive:
        raise LabError(f"{child.name} has ended\n{child.last_lines()}")
