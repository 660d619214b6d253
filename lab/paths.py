"""Where a lab keeps its state, and where all labs keep what they have built."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).parent
REPOSITORY = PACKAGE.parent


def cache_directory() -> Path:
    """The directory for binaries and Go's caches, shared by all labs of this user."""
    if chosen := os.environ.get("KREFLEX_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "kreflex"


@dataclass(frozen=True)
class Home:
    """The files of one lab."""

    root: Path

    @classmethod
    def at(cls, directory: Path | str) -> "Home":
        """A home in this directory, which is made if need be; only its owner may read it, for it holds keys."""
        root = Path(directory).absolute()
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        return cls(root)

    @property
    def state(self) -> Path:
        return self.root / "state.json"

    @property
    def lock(self) -> Path:
        return self.root / "lock"

    @property
    def env(self) -> Path:
        return self.root / "env"

    @property
    def kubeconfig(self) -> Path:
        return self.root / "kubeconfig"

    @property
    def audit_log(self) -> Path:
        return self.root / "audit.log"

    @property
    def events(self) -> Path:
        return self.root / "events.jsonl"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def config(self) -> Path:
        return self.root / "config"

    @property
    def data(self) -> Path:
        return self.root / "data"

    def log(self, process: str) -> Path:
        """The log file of a process."""
        return self.logs / f"{process}.log"

    def wipe(self) -> None:
        """Remove what a former lab left, and make the directories of a new one."""
        for directory in (self.logs, self.secrets, self.config, self.data):
            shutil.rmtree(directory, ignore_errors=True)
        for file in (self.state, self.env, self.kubeconfig, self.audit_log, self.events):
            file.unlink(missing_ok=True)
        for directory in (self.logs, self.secrets, self.config, self.data):
            directory.mkdir(mode=0o700)
