"""A Prometheus with a past: samples are written into its storage before it starts, and it scrapes nothing.

Questions to it name their time, so that the past may be that of any day.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from lab import processes
from lab.errors import LabError
from lab.ports import Ports
from lab.toolchain import Toolchain

Labels = Mapping[str, str]
Sample = tuple[float, float]
Past = Iterable[tuple[str, Labels, Iterable[Sample]]]


@asynccontextmanager
async def prometheus_with(folder: Path, past: Past, *options: str) -> AsyncIterator[str]:
    """Run a Prometheus that has these series (name, labels, samples: when and how much); its URL.

    The series of one name stand together, and the samples of one series are in the order of time.
    """
    programs = Toolchain().ensure(["prometheus", "promtool"])
    storage, written, config = folder / "prometheus", folder / "past.txt", folder / "prometheus.yaml"
    _write(written, past)
    await _store(programs["promtool"], written, storage)
    config.write_text("scrape_configs: []\n")
    with Ports() as ports:
        port = ports.take()
        command: list[str | Path] = [
            programs["prometheus"],
            f"--config.file={config}",
            f"--storage.tsdb.path={storage}",
            "--storage.tsdb.retention.time=100y",
            f"--web.listen-address=127.0.0.1:{port}",
            "--log.level=warn",
            *options,
        ]
        url = f"http://127.0.0.1:{port}"
        async with processes.start("prometheus", command, folder / "prometheus.log") as child:
            await child.ready(processes.answers(f"{url}/-/ready"))
            yield url


def _write(file: Path, past: Past) -> None:
    """Write OpenMetrics (https://prometheus.io/docs/prometheus/latest/storage, "Backfilling")."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w") as lines:
        for name, labels, samples in past:
            named = ",".join(f'{key}="{_escaped(labels[key])}"' for key in sorted(labels))
            series = f"{name}{{{named}}}"
            lines.writelines(f"{series} {value!r} {at:.3f}\n" for at, value in samples)
        lines.write("# EOF\n")


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


async def _store(promtool: Path, written: Path, storage: Path) -> None:
    arguments = ["tsdb", "create-blocks-from", "openmetrics", "--quiet", str(written), str(storage)]
    process = await asyncio.create_subprocess_exec(
        promtool, *arguments, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    if process.returncode:
        raise LabError(f"promtool did not take {written}: {said.decode(errors='replace').strip()}")
