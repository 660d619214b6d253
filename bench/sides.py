"""Two ways to serve: a function as a pod runs it, and an empty one under `functions-framework --asgi`.

Both run as in the image: a bare interpreter, and of the packages only those of requirements-image.lock. A package that
is there for the lab alone may be loaded by others when it is found, and would slow both.
"""

import asyncio
import compileall
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import aiohttp

from bench import patients, rig
from bench.rig import Json
from lab import functions
from lab.cluster import ControlPlane
from lab.paths import REPOSITORY
from lab.ports import Ports
from lab.processes import Child

_EMPTY = Path(__file__).with_name("empty_function.py")
_PATIENCE = 60.0


@dataclass
class Side:
    """How to start one of them: its name, its command for a port, its settings, and what it is told."""

    name: str
    command: Callable[[int], list[str | Path]]
    environment: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes
    status: int

    def start(self, plane: ControlPlane, port: int) -> Child:
        """Spawn it, with Python's bytecode cached and without options."""
        paths = (packages(plane.home.data / "packages"), REPOSITORY, REPOSITORY / "shared")
        settings = {"HOST": "127.0.0.1", "PORT": str(port), "PYTHONPATH": ":".join(map(str, paths)), **self.environment}
        # Debian's OpenSSL has a folder of certificates and no file; aiohttp would read this machine's at its import.
        settings["SSL_CERT_FILE"] = str(plane.home.config / "none.pem")
        return plane.start_child(f"{self.name}-{port}", self.command(port), settings)


def packages(folder: Path) -> Path:
    """Make a folder that has what the image has, as links to what is installed here."""
    if not folder.exists():
        folder.mkdir()
        pinned = (REPOSITORY / "requirements-image.lock").read_text()
        for name in re.findall(r"^([A-Za-z0-9._-]+)==", pinned, re.MULTILINE):
            found = distribution(name)
            for part in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
                if not (folder / part).exists():
                    (folder / part).symlink_to(Path(str(found.locate_file(part))))
        # As the Dockerfile does. Left to the first start, it would be missing where PYTHONDONTWRITEBYTECODE is set.
        compileall.compile_dir(folder, maxlevels=0, quiet=1)
        for tree in (REPOSITORY / "shared", REPOSITORY / "functions"):
            compileall.compile_dir(tree, quiet=1)
        compileall.compile_file(_EMPTY, quiet=1)
    return folder


def _python(module: str, *arguments: str) -> list[str | Path]:
    # The interpreter that the virtual environment was made of: it sees none of the environment's packages.
    return [Path(sys.base_prefix) / "bin" / "python3", "-m", module, *arguments]


async def ours(plane: ControlPlane, pod: Json) -> Side:
    """restart-loop-killer with the files that a kubelet gives a pod, told of a loop that is over: one real read."""
    folder = plane.home.secrets / "service-account"
    folder.mkdir(exist_ok=True)
    (folder / "token").write_text(await plane.token(rig.FUNCTION, functions.NAMESPACE))
    shutil.copy(plane.authority, folder / "ca.crt")
    host, _, port = plane.url.removeprefix("https://").rpartition(":")
    environment = {
        "KUBERNETES_SERVICE_HOST": host,
        "KUBERNETES_SERVICE_PORT": port,
        "SERVICE_ACCOUNT_FOLDER": str(folder),
        **rig.callers(plane),
    }
    headers, body = patients.told({**pod, "status": patients.looping(pod)})
    headers = {**headers, **rig.caller(plane)}
    return Side("ours", lambda _: _python("kreflex", rig.FOLDER), environment, headers, body, 204)


def empty(like: Side) -> Side:
    """The empty function, sent the same body."""

    def command(port: int) -> list[str | Path]:
        where = ["--host", "127.0.0.1", "--port", str(port)]
        return _python("functions_framework", "--asgi", "--target", "main", "--source", str(_EMPTY), *where)

    return Side("empty", command, {}, like.headers, like.body, 200)


async def first_answer(client: aiohttp.ClientSession, side: Side, port: int, child: Child) -> float:
    """Send it its event from the first moment at which it listens; the monotonic time of the whole answer."""
    limit = time.monotonic() + _PATIENCE
    while child.alive and time.monotonic() < limit:
        try:
            async with client.post(f"http://127.0.0.1:{port}/", data=side.body, headers=side.headers) as answer:
                text = await answer.text()
                if answer.status != side.status:
                    raise RuntimeError(f"{side.name} answered {answer.status} {text}\n{child.last_lines()}")
                return time.monotonic()
        except aiohttp.ClientConnectionError:
            await asyncio.sleep(0.002)
    raise RuntimeError(f"{side.name} did not answer\n{child.last_lines()}")


async def started(plane: ControlPlane, side: Side, ports: Ports) -> tuple[Child, str, float]:
    """Start it and tell it of one event; the process, its URL, and the seconds from spawn to answer."""
    port = ports.take()
    async with aiohttp.ClientSession() as client:
        begun = time.monotonic()
        child = side.start(plane, port)
        seconds = await first_answer(client, side, port, child) - begun
    return child, f"http://127.0.0.1:{port}/", seconds


async def healthy_pod(plane: ControlPlane) -> Json:
    """A pod that is well, in a namespace whose policy is Auto."""
    where = await rig.namespace(plane)
    pod: Any = (await patients.make(plane, where, 1))[0]
    return dict(pod)
