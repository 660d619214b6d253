"""Where the lab's programs come from: KUBEBUILDER_ASSETS, PATH, the cache, or a build."""

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from lab import builds

# How a program tells its version, and which versions do. A foreign one is used only if it fits:
# a kubectl of another minor version, say, is passed over.
_KUBERNETES = r"v1\.36\.\d+"
_FITS: Mapping[str, tuple[tuple[str, ...], str]] = {
    "etcd": (("--version",), r"etcd Version: 3\.[56]\."),
    "kube-apiserver": (("--version",), _KUBERNETES),
    "kube-controller-manager": (("--version",), _KUBERNETES),
    "kube-scheduler": (("--version",), _KUBERNETES),
    "kubectl": (("version", "--client"), rf"Client Version: {_KUBERNETES}"),
    "kwok": (("--version",), r"v0\.[78]\.\d+"),
    "prometheus": (("--version",), r"version 3\."),
    "promtool": (("--version",), r"version 3\."),
    "alertmanager": (("--version",), r"version 0\.(2[89]|3\d)\."),
    "amtool": (("--version",), r"version 0\.(2[89]|3\d)\."),
    "nats-server": (("--version",), r"v2\.1\d\."),
}
PROGRAMS = tuple(program for module in builds.MODULES for program in module.programs)
PEERS = tuple(program for module in builds.MODULES for program in module.peers)


@dataclass
class Toolchain:
    """Finds the lab's programs, and builds those that are nowhere."""

    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)

    def find(self, program: str) -> Path | None:
        """The path of a program that need not be built, or None."""
        built = builds.module_of(program).built(program)
        for candidate in (self._asset(program), self._on_path(program)):
            if candidate is not None and _fits(program, candidate):
                return candidate
        return built if built.exists() else None

    def ensure(self, programs: Iterable[str] = PROGRAMS) -> dict[str, Path]:
        """The paths of these programs; those that are missing are built, which takes minutes, once."""
        wanted = tuple(programs)
        missing = [name for name in wanted if self.find(name) is None]
        if missing:
            builds.build(missing)
        return {name: self.find(name) or builds.module_of(name).built(name) for name in wanted}

    def _asset(self, program: str) -> Path | None:
        directory = self.environment.get("KUBEBUILDER_ASSETS")
        return _executable(Path(directory) / program) if directory else None

    def _on_path(self, program: str) -> Path | None:
        # The adapter has no version to ask for, so that any build of it could be on PATH.
        if program not in _FITS:
            return None
        found = shutil.which(program, path=self.environment.get("PATH", ""))
        return Path(found) if found else None


def _executable(file: Path) -> Path | None:
    return file if os.access(file, os.X_OK) else None


def _fits(program: str, candidate: Path) -> bool:
    if program not in _FITS:
        return True
    arguments, pattern = _FITS[program]
    try:
        answer = subprocess.run([candidate, *arguments], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return re.search(pattern, answer.stdout + answer.stderr) is not None
