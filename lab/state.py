"""What runs in a lab's home: the file by which `down` and `status` find the processes that `up` started."""

import fcntl
import json
import os
from pathlib import Path
from typing import Any, TextIO

from lab.errors import LabError
from lab.paths import Home
from lab.processes import Child, Identity, stop_all

_LAST = ("kube-apiserver", "etcd")
MARK = "KREFLEX_LAB_CHILD"
"""The environment variable by which a lab knows its children; its value is the home."""


class State:
    """The state file of a lab that is being started or runs; a lock keeps a second one out of its home."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self._content: dict[str, Any] = {}
        self._lock: TextIO | None = None

    async def begin(self) -> None:
        """Take the home for a blank lab; refused while another lab lives in it."""
        if self._lock is None:
            self._lock = lock(self.home)
        if is_up(self.home):
            self.unlock()
            raise LabError(f"a lab is up in {self.home.root} already: `python -m lab down` ends it")
        await stop_leftovers(self.home)
        self.home.wipe()
        self._content = {"complete": False, "processes": {}, "endpoints": {}}
        self._save()

    def end(self) -> None:
        """Give the home back."""
        self._content = {}
        self.home.state.unlink(missing_ok=True)
        self.unlock()

    def unlock(self) -> None:
        """Let others have the home, with the state as it is."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def record(self, child: Child, url: str = "") -> None:
        """Write down a process as soon as it runs, so that it can be found whatever happens next."""
        entry = {**child.identity.as_json(), "log": str(child.log), "url": url}
        self._content["processes"][child.name] = entry
        self._save()

    def forget(self, name: str) -> None:
        """Strike out a process that was ended on purpose."""
        self._content["processes"].pop(name, None)
        self._save()

    def complete(self, endpoints: dict[str, str]) -> None:
        """Write down that the lab is up, and where things can be reached."""
        self._content |= {"complete": True, "endpoints": endpoints}
        self._save()

    def _save(self) -> None:
        write(self.home.state, json.dumps(self._content, indent=1))


def lock(home: Home) -> TextIO:
    """Take a home's lock; it goes when the process does, however it ends."""
    file = home.lock.open("a")
    # Children must not hold it: a lab that was killed would lock its home for as long as one of them lives.
    os.set_inheritable(file.fileno(), False)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise LabError(f"another process is at work on the lab in {home.root}") from None
    return file


def read(home: Home) -> dict[str, Any]:
    """The state file's content, or an empty lab."""
    try:
        content: dict[str, Any] = json.loads(home.state.read_text())
    except (FileNotFoundError, ValueError):
        return {"complete": False, "processes": {}, "endpoints": {}}
    return content


def identities(home: Home) -> dict[str, Identity]:
    """All processes that the lab has started, dead or alive, in the order of their start."""
    return {name: Identity(entry["pid"], entry["started"]) for name, entry in read(home)["processes"].items()}


def living(home: Home) -> dict[str, Identity]:
    """The processes of the lab that still run."""
    return {name: identity for name, identity in identities(home).items() if identity.alive}


def is_up(home: Home) -> bool:
    """Whether a lab was brought up whole, and something of it still runs."""
    return bool(read(home).get("complete")) and bool(living(home))


async def stop_leftovers(home: Home) -> None:
    """End all that runs for this home, also what was started in the instant before a kill and never written down."""
    running = living(home)
    known = set(running.values())
    running |= {f"stray {one.pid}": one for one in strays(home) if one not in known}
    for group in _shutdown_order(running):
        await stop_all(group)


def strays(home: Home) -> list[Identity]:
    """The processes that carry this home's mark in their environment."""
    mark = f"{MARK}={home.root}".encode()
    found = []
    for directory in Path("/proc").glob("[0-9]*"):
        try:
            environment = (directory / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        identity = Identity.of(int(directory.name)) if mark in environment else None
        if identity is not None and identity.pid != os.getpid():
            found.append(identity)
    return found


def _shutdown_order(running: dict[str, Identity]) -> list[list[Identity]]:
    """Groups to end one after the other; an API server that lost its etcd never ends, so etcd goes last."""
    others = [identity for name, identity in running.items() if name not in _LAST]
    return [others, *([running[name]] for name in _LAST if name in running)]


def write(file: Path, text: str) -> None:
    """Replace a file in one step: a reader sees the old or the new one, also after a kill."""
    draft = file.with_name(file.name + ".new")
    draft.write_text(text)
    draft.replace(file)
