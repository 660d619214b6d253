"""The function behind a sender: its real process, on the lab's API server, to which the door can be shut."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from lab import functions, kubeconfig
from lab.cluster import ControlPlane
from lab.ports import Ports
from tests import kit

FOLDER, NAME = "restart_loop_killer", "restart-loop-killer"


@dataclass
class Door:
    """Passes connections on to a port of loopback; while it is shut, every connection breaks."""

    to: int
    port: int = 0
    _open: bool = True
    _server: asyncio.Server | None = None
    _writers: set[asyncio.StreamWriter] = field(default_factory=set)

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    def shut(self) -> None:
        self._open = False
        for writer in self._writers:
            writer.transport.abort()

    def open(self) -> None:
        self._open = True

    async def stop(self) -> None:
        self.shut()
        assert self._server is not None
        self._server.close()
        await self._server.wait_closed()

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not self._open:
            writer.transport.abort()
            return
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self.to)
        both = {writer, far_writer}
        self._writers |= both
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        finally:
            self._writers -= both


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    with suppress(OSError):
        writer.close()
        await writer.wait_closed()


@dataclass
class Function:
    """A running restart-loop-killer."""

    url: str
    door: Door
    log: Path
    _begin: int = 0

    def shut_door(self) -> None:
        """Take the API server away; what was said before is forgotten."""
        self._begin = self.log.stat().st_size
        self.door.shut()

    def said(self, *words: str) -> bool:
        """Whether a line of its log has all these words."""
        lines = self.log.read_bytes()[self._begin :].decode().splitlines()
        return any(all(word in line for word in words) for line in lines)


@asynccontextmanager
async def a_function(plane: ControlPlane, **settings: str) -> AsyncIterator[Function]:
    """Run restart-loop-killer as the lab does, but for its way to the API server: that leads through a door."""
    door = Door(int(plane.url.rpartition(":")[2]))
    await door.start()
    token = await plane.token(NAME, functions.NAMESPACE)
    config = plane.home.secrets / "door.kubeconfig"
    url = f"https://127.0.0.1:{door.port}"
    kubeconfig.write(config, url, plane.authority, NAME, token, functions.NAMESPACE)
    try:
        with Ports() as ports:
            url = await functions.start(plane, FOLDER, ports.take(), {"KUBECONFIG": str(config), **settings})
            yield Function(url, door, plane.home.log(NAME))
    finally:
        if NAME in plane.children:
            await plane.stop_child(NAME)
        await door.stop()


def alert(pod: kit.Json) -> dict[str, str]:
    """The labels of the alert that this pod loops."""
    meta = pod["metadata"]
    names = {"namespace": meta["namespace"], "pod": meta["name"], "uid": meta["uid"]}
    return {"alertname": "KubePodCrashLooping", "container": "app", **names}
