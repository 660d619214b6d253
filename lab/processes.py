"""Child processes: started with a log file, waited for, stopped, and told apart from strangers with the same pid."""

import asyncio
import ctypes
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

from lab.errors import LabError
from lab.paths import REPOSITORY

Check = Callable[[], Awaitable[bool]]
_PR_SET_PDEATHSIG = 1
# Loaded before any fork: the code between fork and exec should not import or allocate much.
_libc = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


@dataclass(frozen=True)
class Identity:
    """A process that cannot be mistaken: the pid, and when the kernel started it (a pid alone is used again)."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> "Identity | None":
        """Who has this pid now, or None if nobody has or only a zombie."""
        try:
            stat = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        # The command's name is in brackets and may hold spaces and brackets itself.
        fields = stat.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @property
    def alive(self) -> bool:
        return Identity.of(self.pid) == self

    def send(self, number: signal.Signals) -> bool:
        """Signal the process if it is still the same one."""
        if not self.alive:
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True

    def as_json(self) -> dict[str, int]:
        return asdict(self)


class Child:
    """A running child process of this one."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        identity = Identity.of(process.pid)
        self.name = name
        self.log = log
        self.identity = identity or Identity(process.pid, -1)
        self._process = process

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def pid(self) -> int:
        return self.identity.pid

    @property
    def command(self) -> list[str]:
        """What was started, so that it can be started again."""
        return [str(part) for part in self._process.args]  # type: ignore[union-attr]

    @property
    def exit_code(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        return self._process.poll()

    @property
    def alive(self) -> bool:
        return self.exit_code is None

    def kill(self) -> None:
        """End it at once, as a crash would."""
        self._signal(signal.SIGKILL)

    def pause(self) -> None:
        """Stop it where it is (SIGSTOP): it keeps its connections and its locks, and loses time."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self.alive:
            self._process.send_signal(number)

    async def stop(self, patience: float = 5.0) -> None:
        """Ask it to end, and kill it if it does not."""
        self._signal(signal.SIGTERM)
        self.resume()
        if await self.ended(patience) is None:
            self.kill()
            await self.ended(patience)

    async def ended(self, patience: float = 5.0) -> int | None:
        """Wait until it has ended; the exit code, or None if it still runs."""
        limit = time.monotonic() + patience
        while self.alive and time.monotonic() < limit:
            await asyncio.sleep(0.02)
        return self.exit_code

    async def ready(self, check: Check, patience: float = 120.0) -> None:
        """Wait until the check passes; a process that ends meanwhile is reported with the end of its log."""
        limit = time.monotonic() + patience
        while not await check():
            if not self.alive:
                raise ChildDied(self)
            if time.monotonic() > limit:
                raise LabError(f"{self.name} is not ready after {patience:.0f} s\n{self.last_lines()}")
            await asyncio.sleep(0.05)

    def last_lines(self, count: int = 15) -> str:
        """The end of the log, with its path."""
        return last_lines(self.log, count)


class ChildDied(LabError):
    """A process ended before it was ready."""

    def __init__(self, child: Child) -> None:
        super().__init__(f"{child.name} ended with code {child.exit_code} before it was ready\n{child.last_lines()}")
        text = child.log.read_text(errors="replace") if child.log.exists() else ""
        self.port_was_taken = "address already in use" in text


def last_lines(log: Path, count: int = 15) -> str:
    """The end of a log file, with its path."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except FileNotFoundError:
        lines = []
    return "\n".join([f"--- the end of {log}", *lines[-count:]])


def start(
    name: str,
    command: Sequence[str | Path],
    log: Path,
    *,
    environment: Mapping[str, str] | None = None,
    directory: Path | None = None,
    detached: bool = False,
) -> Child:
    """Start a child whose output goes to a log file.

    It dies with its parent unless it is detached; `environment` is added to the parent's, without proxies.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=_clean(os.environ) | dict(environment or {}),
            cwd=directory,
            start_new_session=True,
            # The function only calls two C functions, and the lab starts children from its main thread.
            preexec_fn=None if detached else dies_with(os.getpid()),  # noqa: PLW1509
        )
    return Child(name, process, log)


def python(module: str, *arguments: str) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *arguments]


def _clean(environment: Mapping[str, str]) -> dict[str, str]:
    # Everything is on loopback; a proxy or a foreign kubeconfig would only lead children astray.
    foreign = {"http_proxy", "https_proxy", "all_proxy", "kubeconfig"}
    return {key: value for key, value in environment.items() if key.lower() not in foreign}


def dies_with(parent: int) -> Callable[[], None]:
    """What a child runs before its program, so that the kernel kills it when its parent is gone."""

    def ask_the_kernel() -> None:
        if _libc is not None:
            _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
            # The parent may have died before the kernel knew what to do then.
            if os.getppid() != parent:
                os._exit(1)

    return ask_the_kernel


def answers(url: str, context: ssl.SSLContext | None = None) -> Check:
    """A check that a URL answers 200."""

    async def check() -> bool:
        limit = aiohttp.ClientTimeout(total=2)
        try:
            async with (
                aiohttp.ClientSession(timeout=limit) as session,
                session.get(url, ssl=_or_default(context)) as answer,
            ):
                return answer.status == 200
        except (aiohttp.ClientError, TimeoutError, OSError):
            return False

    return check


def _or_default(context: ssl.SSLContext | None) -> Any:
    return True if context is None else context


async def stop_all(identities: Sequence[Identity], patience: float = 5.0) -> None:
    """Ask processes to end, together, and kill those that do not; strangers with their pids are left alone."""
    for one in identities:
        one.send(signal.SIGTERM)
        one.send(signal.SIGCONT)
    limit = time.monotonic() + patience
    while any(one.alive for one in identities) and time.monotonic() < limit:
        await asyncio.sleep(0.05)
    for one in identities:
        one.send(signal.SIGKILL)
    while any(one.alive for one in identities) and time.monotonic() < limit + 5:
        await asyncio.sleep(0.02)


def trusting(authority: Path) -> ssl.SSLContext:
    """A TLS context that trusts this authority alone."""
    return ssl.create_default_context(cafile=str(authority))


def importable() -> dict[str, str]:
    """The environment in which a child that runs a module of the lab finds it, wherever it is started."""
    return {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{REPOSITORY / 'shared'}", "PYTHONUNBUFFERED": "1"}
