"""What the Dockerfile says, done without docker: its commands run in a folder, and functions start from that folder.

Here and not in `make test`, because the packages are downloaded and compiled: half a minute of both cores.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lab import processes
from lab.ports import Ports
from tests.manifests import image
from tests.manifests.rendered import ROOT

# Without `site` it finds no package but those that PYTHONPATH names: not this environment's.
PYTHON = Path(sys.base_prefix) / "bin" / f"python{sys.version_info.major}.{sys.version_info.minor}"
KUBECONFIG = """
apiVersion: v1
kind: Config
current-context: c
contexts: [{name: c, context: {cluster: c, user: u}}]
clusters: [{name: c, cluster: {server: "http://127.0.0.1:9"}}]
users: [{name: u, user: {token: t}}]
"""


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder /app of the image."""
    root = tmp_path_factory.mktemp("image") / "app"
    root.mkdir()
    # `python` is this one, whose pip installs into the folder.
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
    for instruction in image.stages()[0]:
        if instruction.name == "COPY":
            source, target = instruction.words
            copy(source, target, root)
        elif instruction.name == "RUN":
            answer = subprocess.run(
                instruction.rest, shell=True, cwd=root, env=environment, capture_output=True, text=True, check=False
            )
            assert answer.returncode == 0, answer.stdout + answer.stderr
    return root


def copy(source: str, target: str, root: Path) -> None:
    """COPY, as .dockerignore lets it."""
    if (ROOT / source).is_dir():
        shutil.copytree(ROOT / source, root / target, ignore=shutil.ignore_patterns("__pycache__"))
    else:
        shutil.copy(ROOT / source, root / target)


def files(app: Path) -> set[Path]:
    return set(app.rglob("*"))


@pytest.mark.parametrize("function", ["node-replacer", "restart-loop-killer", "waker"])
async def test_serves_each_function_and_writes_nothing(app: Path, function: str, tmp_path: Path) -> None:
    config = tmp_path / "kubeconfig"
    config.write_text(KUBECONFIG)
    before = files(app)
    with Ports() as ports:
        port = ports.take()
        settings = {
            "HOST": "127.0.0.1",
            "PORT": str(port),
            "KUBECONFIG": str(config),
            "CALLERS_ACCOUNTS": "kreflex-system/waker",
            "FUNCTIONS": "restart-loop-killer=http://127.0.0.1:9/",
        }
        command: list[str | Path] = [PYTHON, "-S", "-m", "kreflex", function]
        child = processes.start(
            function, command, tmp_path / "log", environment=image.environment(app) | settings, directory=app
        )
        try:
            await child.ready(processes.answers(f"http://127.0.0.1:{port}/healthz"))
            await child.ready(processes.answers(f"http://127.0.0.1:{port}/metrics"))
        finally:
            await child.stop()
    assert files(app) == before


def test_nothing_is_left_to_compile(app: Path) -> None:
    """What a start would have to compile, each time, because it can't keep it."""
    sources = [file for part in ("kreflex", "functions") for file in (app / part).rglob("*.py")]
    tag = sys.implementation.cache_tag
    compiled = [file.parent / "__pycache__" / f"{file.stem}.{tag}.pyc" for file in sources]
    assert sources
    assert [file for file in compiled if not file.exists()] == []


@pytest.mark.parametrize(
    "module", ["kreflex.once", "kreflex.deadletters", "kreflex.anomaly.objects", "opentelemetry.sdk.trace"]
)
def test_has_all_that_its_other_commands_import(app: Path, module: str) -> None:
    command: list[str | Path] = [PYTHON, "-S", "-c", f"import {module}"]
    answer = subprocess.run(
        command, cwd=app, env=image.environment(app), capture_output=True, text=True, timeout=300, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")
