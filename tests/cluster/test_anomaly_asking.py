"""`backtest --ask` at a terminal, with a real Prometheus and a real API server: what is answered moves thresholds."""

import asyncio
import math
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest

from kreflex.anomaly.feedback import Book, read_book
from kreflex.anomaly.store import Folder
from kreflex.anomaly.watches import Watch, read_watch
from lab.cluster import ControlPlane
from lab.history import Past, prometheus_with
from tests import kit

END, MINUTE, DAY = 1_699_999_200, 60, 86_400
HOME = "kreflex-system"
WATCHES = f"/apis/kreflex.dev/v1alpha1/namespaces/{HOME}/anomalywatches"
JUMPS, NEARLY = (f'memory/{{namespace="shop",pod="{pod}"}}' for pod in ("jumps", "nearly"))
SPEC = {
    "target": {"kind": "Pod", "nameLabel": "pod"},
    "history": "24h",
    "signals": [{"name": "memory", "query": "memory", "kind": "gauge"}],
}


def past() -> Past:
    """Two days of two pods that breathe with the day; one has jumped, and the other has nearly."""
    rng = np.random.default_rng(7)
    times = np.arange(END - 2 * DAY, END + 1, MINUTE)
    day = 100 + 20 * np.sin(times / DAY * 2 * math.pi)
    for pod, height in (("jumps", 100.0), ("nearly", 3.0)):
        values = day + rng.normal(0, 1, len(times))
        values[-90:-80] += height
        yield "memory", {"namespace": "shop", "pod": pod}, zip(times.tolist(), values.round(3).tolist(), strict=True)


@pytest.fixture(scope="module")
async def prometheus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with prometheus_with(tmp_path_factory.mktemp("past"), past()) as url:
        yield url


@pytest.fixture
async def watch(installed: ControlPlane) -> AsyncIterator[Watch]:
    metadata = {"name": "w-asked", "namespace": HOME}
    body = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "AnomalyWatch", "metadata": metadata, "spec": SPEC}
    made = read_watch(await installed.api.post(WATCHES, body))
    assert isinstance(made, Watch)
    yield made
    await installed.api.delete(f"{WATCHES}/w-asked")


async def asks(plane: ControlPlane, url: str, folder: Path, said: str) -> subprocess.CompletedProcess[str]:
    words = ["--prometheus", url, "--watch", f"{HOME}/w-asked", "--at", str(END + 6), "--last", "2d", "--ask", "5"]
    where = ["--state-store", f"file://{folder}/store", "--html", str(folder / "page.html")]
    config = str(plane.kubeconfig)
    return await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "functions.anomaly_scorer", "backtest", *words, *where],
        env={"KUBECONFIG": config, "PATH": os.environ["PATH"], "PYTHONPATH": "shared"},
        input=said,
        cwd=kit.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


async def test_answers_are_kept_and_nobody_is_asked_twice(
    installed: ControlPlane, prometheus: str, watch: Watch, tmp_path: Path
) -> None:
    told = await asks(installed, prometheus, tmp_path, "y\nq\n")
    assert (told.returncode, told.stderr.count("was something wrong here?")) == (0, 2), told.stderr
    assert f"{JUMPS}: its factor was 1, and is 0.95\n" in told.stderr
    assert await kept(tmp_path, watch) == Book(factors={JUMPS: 0.95}, asked={JUMPS: END})
    again = await asks(installed, prometheus, tmp_path, "n\n")
    assert (again.returncode, again.stderr.count("was something wrong here?")) == (0, 1), again.stderr
    assert 'memory {namespace="shop",pod="nearly"}\n' in again.stderr
    book = await kept(tmp_path, watch)
    assert book.asked == {JUMPS: END, NEARLY: END}
    assert book.factors == {JUMPS: 0.95, NEARLY: pytest.approx(1.12, abs=0.02)}


async def kept(folder: Path, watch: Watch) -> Book:
    """Read the book that the command has written."""
    book, _ = await read_book(Folder(folder / "store"), watch)
    return book
