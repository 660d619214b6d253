"""Where a benchmark ran: the machine, the versions and the commit; nothing that tells whose machine it is."""

import os
import platform
import re
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from lab.paths import REPOSITORY

_PACKAGES = ("aiohttp", "functions-framework", "httptools", "kubernetes", "pydantic", "starlette", "uvicorn", "uvloop")
_SOURCES = ("bench", "functions", "knative", "lab", "pyproject.toml", "requirements.lock", "shared")


def describe() -> dict[str, Any]:
    """The machine, the versions of what is measured, and the commit."""
    return {"machine": _machine(), "versions": _versions(), "commit": _commit()}


def _machine() -> dict[str, Any]:
    memory = re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())
    model = re.search(r"model name\s*:\s*(.+)", Path("/proc/cpuinfo").read_text())
    return {
        "cpu": model[1] if model else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "ram_gib": round(int(memory[1]) / 2**20, 1) if memory else None,
        "kernel": platform.release().partition("-")[0],
        "load": round(os.getloadavg()[0], 1),
    }


def _versions() -> dict[str, str]:
    pinned = (REPOSITORY / "lab" / "go" / "kubernetes" / "go.mod").read_text()
    kubernetes = re.search(r"k8s\.io/kubernetes (v\S+)", pinned)
    return {
        "python": platform.python_version(),
        "kube-apiserver": kubernetes[1] if kubernetes else "unknown",
        **{name: version(name) for name in _PACKAGES},
    }


def _commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(REPOSITORY), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603

    changed = "+changes" if git("status", "--porcelain", "--untracked-files=no", "--", *_SOURCES) else ""
    return f"{git('rev-parse', '--short=12', 'HEAD')}{changed}"
