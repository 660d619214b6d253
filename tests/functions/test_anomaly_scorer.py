"""`python -m functions.anomaly_scorer` at a terminal: what it explains, what a backtest tells, and its exit codes."""

import argparse
import asyncio
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterator
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from functions.anomaly_scorer import __main__ as command
from kreflex.anomaly.replay import TooMuchError
from kreflex.anomaly.watches import Watch
from lab.history import Past, prometheus_with
from tests.kit import ROOT

END, MINUTE, DAY = 1_699_999_200, 60, 86_400
WATCH = """
apiVersion: kreflex.dev/v1alpha1
kind: AnomalyWatch
metadata: {name: pods, namespace: kreflex-system}
spec:
  target: {kind: Pod, nameLabel: pod}
  history: 24h
  signals:
    - {name: memory, query: memory, kind: memory, limit: memory_limit}
    - {name: rss, query: rss, kind: memory}
"""


def past() -> Past:
    """Two days of four pods that breathe with the day; in the last hours one jumps, in both of its signals."""
    rng = np.random.default_rng(7)
    times = np.arange(END - 2 * DAY, END + 1, MINUTE)
    day = 100 + 20 * np.sin(times / DAY * 2 * math.pi)
    for name in ("memory", "rss"):
        for pod in ("a", "b", "c", "jumps"):
            values = day + rng.normal(0, 1, len(times))
            if pod == "jumps":
                values[-90:-45] += 300
            yield name, {"namespace": "shop", "pod": pod}, zip(times.tolist(), values.round(3).tolist(), strict=True)
    for name in ("container_memory_working_set_bytes", "namespace_workload_pod:kube_pod_owner:relabel"):
        labels = {"namespace": "shop", "pod": "shipped", "workload": "shipped"}
        of = {**labels, "container": "app", "image": "shop:1"} if name.startswith("container") else labels
        yield name, of, [(END - MINUTE * n, 1.0) for n in range(2000, -1, -1)]
    yield (
        "memory_limit",
        {"namespace": "shop", "pod": "jumps"},
        [(END - 10 * MINUTE * n, 1000.0) for n in range(300, -1, -1)],
    )


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus with that past, for programs that have no loop of ours."""
    with asyncio.Runner() as runner:
        made = prometheus_with(tmp_path_factory.mktemp("past"), past())
        yield runner.run(made.__aenter__())
        runner.run(made.__aexit__(None, None, None))


def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "functions.anomaly_scorer", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)


def test_what_is_as_ever_ends_with_0_and_what_is_not_with_1(url: str) -> None:
    quiet = run("--prometheus", url, "--query", 'memory{pod="a"}', "--at", str(END - 100 * MINUTE))
    assert (quiet.returncode, quiet.stdout) == (0, "0 of 1 series are beyond their thresholds\n"), quiet.stderr
    loud = run("--prometheus", url, "--query", "memory", "--at", str(END - 85 * MINUTE), "--history", "24h")
    assert loud.returncode == 1, loud.stdout + loud.stderr
    assert loud.stdout.startswith('{namespace="shop",pod="jumps"}  query\n  BEYOND ITS THRESHOLD: ')
    assert loud.stdout.endswith("\n1 of 4 series are beyond their thresholds\n")


def test_explains_each_series_when_asked(url: str) -> None:
    told = run("--prometheus", url, "--query", "memory", "--at", str(END - 85 * MINUTE), "--explain", "--json")
    series = {one["series"]: one for one in json.loads(told.stdout)["series"]}
    assert len(series) == 4
    a, jumps = series['{namespace="shop",pod="a"}'], series['{namespace="shop",pod="jumps"}']
    assert a["below"] < a["value"] < a["above"] < jumps["value"]
    assert jumps["above"] < jumps["value"]
    assert (a["flag"], jumps["flag"], jumps["score"] >= 1) == (False, True, True)


def test_of_what_is_not_there_nothing_can_be_said(url: str) -> None:
    assert run("--prometheus", url, "--query", "unknown", "--at", str(END)).returncode == 2
    down = run("--prometheus", "http://127.0.0.1:9", "--query", "memory", "--at", str(END))
    assert (down.returncode, "did not answer" in down.stderr) == (2, True)


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--prometheus", "http://x"], "--query, or --watch"),
        (["--query", "up"], "--prometheus, or PROMETHEUS_URL"),
        (["--prometheus", "http://x", "--query", "up", "--detector", "none"], "DETECTOR must be one of calibrated"),
        (["--prometheus", "http://x", "--query", "up", "--history", "5"], "must be a duration"),
        (["--prometheus", "http://x", "--query", "up", "--interval", "2h"], "must be 1s at least, and 1h at most"),
    ],
)
def test_who_asks_in_a_wrong_way_is_told_how(words: list[str], told: str) -> None:
    answer = run(*words)
    assert (answer.returncode, told in answer.stderr) == (64, True), answer.stderr


def test_a_backtest_tells_what_would_have_been_raised(url: str, tmp_path: Path) -> None:
    watch, html = tmp_path / "watch.yaml", tmp_path / "page.html"
    watch.write_text(WATCH)
    where = ("--prometheus", url, "--watch", watch, "--at", str(END + 6), "--last", "2d", "--html", html)
    told = run("backtest", *where)
    assert told.returncode == 0, told.stderr
    lines = told.stdout.splitlines()
    assert lines[0] == "kreflex-system/pods: 2023-11-13 22:01 to 2023-11-14 22:00 UTC, as production would have seen it"
    assert re.match(r"  memory: 4 series, 4\.0 series-days; \d+ alarms, and 0\.2 false ones are borne", lines[1])
    figures, again = (
        json.loads(run("backtest", *where[:7], "6h", *where[8:], "--json").stdout)["watches"][0] for _ in range(2)
    )
    raised = [one for one in figures["raised"] if one["target"] == "Pod shop/jumps"]
    assert len(raised) >= 1
    assert any(one["agreed"] and one["since"].startswith("2023-11-14T20:3") for one in raised), figures["raised"]
    assert figures["false_alarms_expected"] == pytest.approx(0.05 * figures["series_days"], abs=0.01)
    assert figures == again
    assert outside(html) == []


def test_a_backtest_of_nothing_that_is_named_plays_the_sets_that_ship(url: str, tmp_path: Path) -> None:
    where = ("--prometheus", url, "--last", "6h", "--at", str(END + 6), "--html", tmp_path / "page.html")
    told = run("backtest", *where)
    assert told.returncode == 0, told.stderr
    names = [line.partition(":")[0] for line in told.stdout.splitlines() if "as production would have seen it" in line]
    shipped = [file.stem for file in sorted((ROOT / "knative" / "anomaly-watches").glob("[!k]*.yaml"))]
    assert [name.partition("/")[2] for name in names] == shipped
    assert "  memory: 1 series, " in told.stdout


async def test_what_is_too_much_is_left_out_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    async def replay(_: object, __: object, watch: Watch, *___: object) -> str:
        if watch.name == "pods":
            raise TooMuchError("9000 series of 7 days are too many")
        return watch.name

    monkeypatch.setattr(command, "replay", replay)
    given, nothing = argparse.Namespace(at=0.0, last=timedelta(days=7)), object()
    watches = command._from_file(ROOT / "knative" / "anomaly-watches")

    async def played(*chosen: Watch) -> tuple[Any, dict[str, str]]:
        return await command._played(given, chosen, nothing, nothing)  # type: ignore[arg-type]

    names, left = await played(*watches)
    assert names == ["deployments", "http-services", "nodes", "quotas"]
    assert left == {"kreflex-system/pods": "9000 series of 7 days are too many"}
    with pytest.raises(TooMuchError):
        await played(*(one for one in watches if one.name == "pods"))


def outside(html: Path) -> list[tuple[str, Any]]:
    """Tell what a page would load or run."""
    found: list[tuple[str, Any]] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            given = dict(attrs)
            if tag in {"script", "link", "img", "iframe"} or {"src", "href", "onload"} & given.keys():
                found.append((tag, given))

    text = html.read_text()
    Reader().feed(text)
    assert text.count("<svg") > 4
    assert "url(" not in text
    assert "@import" not in text
    return found
