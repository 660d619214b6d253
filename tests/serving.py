"""A function as a process behind a fault proxy: what it is asked, what it asks, and how it ends."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from lab import callers, functions, kubeconfig, processes
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.faults import FaultProxy, Hit
from lab.ports import Ports
from lab.processes import Child

KILLER, FOLDER = "restart-loop-killer", "restart_loop_killer"
PING = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/test", "ce-type": "dev.knative.sources.ping"}


@dataclass
class Served:
    """A function that runs; `plan` is what happens to its calls of the API server."""

    plane: ControlPlane
    url: str
    child: Child
    proxy: FaultProxy
    client: aiohttp.ClientSession
    plan: list[Hit] = field(default_factory=list)

    async def post(self, headers: dict[str, str], body: Any = b"") -> tuple[int, str]:
        """Send something; the answer's status and text."""
        async with self.client.post(self.url, headers=headers, data=body) as answer:
            return answer.status, await answer.text()

    async def get(self, path: str) -> tuple[int, str]:
        """Ask for a probe; 0 for no answer."""
        try:
            async with self.client.get(f"{self.url}{path}") as answer:
                return answer.status, await answer.text()
        except (aiohttp.ClientError, OSError) as error:
            return 0, repr(error)

    async def becomes(self, path: str, status: int) -> str:
        """Wait until a probe is answered so; its text."""

        async def answered() -> str | None:
            found, text = await self.get(path)
            return (text or "-") if found == status else None

        text: str = await eventually(answered, f"{path} answered {status}")
        return text

    def steps(self) -> list[str]:
        """What the function has asked the API server for."""
        return [call.step for call in self.proxy.calls]


@asynccontextmanager
async def served(plane: ControlPlane, folder: str = FOLDER, **settings: str) -> AsyncIterator[Served]:
    """Run a function with the rights of its account; it ends with the block, if it has not before."""
    plan: list[Hit] = []
    name = functions.kebab(folder)
    running: list[Child] = []
    proxy = FaultProxy(name, plane.url, plane.authority, lambda: running[0], plan)
    with Ports() as ports:
        port = ports.take()
        token = await plane.token(name, functions.NAMESPACE)
        file = plane.home.secrets / f"{name}.{port}.kubeconfig"
        kubeconfig.write(file, await proxy.start(), plane.authority, name, token, functions.NAMESPACE)
        environment = {"HOST": "127.0.0.1", "PORT": str(port), "KUBECONFIG": str(file), **callers.SETTINGS, **settings}
        child = processes.start(
            f"{name}-{port}",
            processes.python("kreflex", folder),
            plane.home.log(f"{name}-{port}"),
            environment=environment | processes.importable(),
        )
        running.append(child)
        try:
            async with child, aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=60)) as client:
                url = f"http://127.0.0.1:{port}"
                await child.ready(processes.answers(f"{url}/healthz"))
                yield Served(plane, url, child, proxy, client, plan)
        finally:
            await proxy.stop()
