"""Error budgets in a real Prometheus with days behind it: asked for directly, and by the rules that are generated."""

import asyncio
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import aiohttp
import pytest
import yaml

from kreflex import budgetstatus
from kreflex.budgets import Budget, measure
from kreflex.prom import Metrics
from kreflex.sloformats import Slo
from kreflex.slorules import rules_file
from kreflex.slos import parse, read_slos
from lab import manifests
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.history import Past, prometheus_with
from lab.toolchain import Toolchain
from tests import kit

HOUR, DAY = 3600, 86_400
# Samples are by the minute where short windows look, and rarer before. They go on after now, for the tests take time.
STEPS = ((4 * DAY, 1800), (7 * HOUR, 60))
AHEAD = HOUR // 2
HOME = "kreflex-system"
OPENSLO = """
apiVersion: openslo/v1
kind: SLO
metadata: {name: NAME, namespace: shop}
spec:
  service: NAME
  indicator:
    spec:
      ratioMetric:
        counter: true
        bad: {metricSource: {type: Prometheus, spec: {query: 'requests_total{service="NAME",code="500"}'}}}
        total: {metricSource: {type: Prometheus, spec: {query: 'requests_total{service="NAME"}'}}}
  timeWindow: [{duration: 30d, isRolling: true}]
  budgetingMethod: Occurrences
  objectives: [{target: 0.999}]
---
"""
# Of what nobody asks for at night, as rules record it: what is not a number there tells nothing.
NIGHT = """
apiVersion: openslo/v1
kind: SLO
metadata: {name: night-ratio, namespace: shop}
spec:
  indicator: {spec: {ratioMetric: {raw: {metricSource: {spec: {query: failed_ratio}}}, rawType: failure}}}
  objectives: [{target: 0.999}]
---
apiVersion: openslo/v1
kind: SLO
metadata: {name: night-latency, namespace: shop}
spec:
  indicator: {spec: {thresholdMetric: {metricSource: {spec: {query: latency_p99}}}}}
  objectives: [{target: 0.999, op: lte, value: 0.2}]
"""
SLOTH = """
apiVersion: sloth.slok.dev/v1
kind: PrometheusServiceLevel
metadata: {name: sloth, namespace: shop}
spec:
  service: carts
  slos:
    - name: requests
      objective: 99.9
      sli: {plugin: {id: theirs}}
"""
PYRRA = """
apiVersion: pyrra.dev/v1alpha1
kind: ServiceLevelObjective
metadata: {name: paths, namespace: shop}
spec:
  target: "99.9"
  window: 4w
  indicator:
    ratio:
      errors: {metric: 'paths_total{code="500"}'}
      total: {metric: paths_total}
      grouping: [path]
"""
# Of each service: what share of its requests has failed in the last so many seconds, and before.
FAILED: dict[str, tuple[tuple[float, float], ...]] = {
    "quiet": ((0.0001, 9 * DAY),),
    "page": ((0.02, 2 * HOUR), (0.0001, 9 * DAY)),
    "ticket": ((0.004, 26 * HOUR), (0.0001, 9 * DAY)),
    "spent": ((0.0001, 80 * HOUR), (0.02, 84 * HOUR), (0.0001, 9 * DAY)),
}


def times(now: int, ahead: int) -> list[int]:
    ends = [*(since for since, _ in STEPS[1:]), -ahead]
    return [at for (since, step), end in zip(STEPS, ends, strict=True) for at in range(now - since, now - end, step)]


def counted(
    now: int, failed: tuple[tuple[float, float], ...] = (), until: int = 0, ahead: int = AHEAD
) -> Iterator[tuple[float, float]]:
    """A counter of events: a hundred a second, and ten since 27 hours ago; of those that failed if that is said."""
    value, last = 0.0, now - STEPS[0][0]
    for at in times(now, ahead):
        share = next((share for share, ago in failed if now - at < ago), 1.0)
        value, last = value + (10 if now - at < 27 * HOUR else 100) * (at - last) * share, at
        if now - at >= until:
            yield at, value


def services(now: int, *names: str, ahead: int = AHEAD) -> Past:
    for name in names:
        yield "requests_total", {"service": name, "code": "500"}, counted(now, FAILED[name], ahead=ahead)
        yield "requests_total", {"service": name, "code": "200"}, counted(now, ahead=ahead)


def past(now: int) -> Past:
    yield from services(now, *FAILED)
    yield "requests_total", {"service": "flawless", "code": "200"}, counted(now)
    yield "requests_total", {"service": "idle", "code": "200"}, [(at, 7) for at in times(now, AHEAD)]
    yield "requests_total", {"service": "gone", "code": "200"}, counted(now, until=HOUR)
    for path, failed in (("/", FAILED["quiet"]), ("/pay", FAILED["page"])):
        yield "paths_total", {"path": path, "code": "500"}, counted(now, failed)
        yield "paths_total", {"path": path, "code": "200"}, counted(now)
    for name, share in (("failed_ratio", 0.0004), ("latency_p99", 0.1)):
        yield name, {}, [(at, math.nan if at % HOUR < HOUR / 2 else share) for at in times(now, AHEAD)]
    # What Sloth's rules record of an indicator that only Sloth knows.
    labels = {"sloth_service": "carts", "sloth_slo": "requests", "sloth_id": "carts-requests"}
    for window in ("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d"):
        samples = [(at, 0.0004) for at in range(now - 600, now + AHEAD, 60)]
        yield f"slo:sli_error:ratio_rate{window}", {**labels, "sloth_window": window}, samples


def openslo(*names: str) -> tuple[Slo, ...]:
    return read_slos(parse("".join(OPENSLO.replace("NAME", name) for name in names), "slos"))


@dataclass(frozen=True)
class Prometheus:
    """A Prometheus with a month of events, and the folder with its configuration."""

    url: str
    folder: Path

    async def budget(self, slo: Slo) -> Budget:
        return await measure(slo, Metrics(self.url))

    async def state(self, name: str) -> str:
        (slo,) = openslo(name)
        budget = await self.budget(slo)
        return f"{budget.state} {budget.burning}"

    async def evaluate(self, *slos: Slo) -> None:
        """Give it the rules of these SLOs, to be evaluated each second."""
        content = yaml.safe_load(rules_file(slos))
        for group in content["groups"]:
            group["interval"] = "1s"
        (self.folder / "slos.rules.yaml").write_text(yaml.safe_dump(content))
        config = {"rule_files": ["slos.rules.yaml"], "global": {"evaluation_interval": "1s"}}
        (self.folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
        async with aiohttp.ClientSession() as session, session.post(f"{self.url}/-/reload") as answer:
            assert answer.status == 200, await answer.text()

    async def firing(self) -> list[tuple[str, str, str]]:
        """Which SLOs burn, by which alert."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/api/v1/alerts") as answer:
            alerts = (await answer.json())["data"]["alerts"]
        told = [alert["labels"] for alert in alerts if alert["state"] == "firing"]
        return sorted((labels["slo"], labels["severity"], labels["long"]) for labels in told)


@pytest.fixture(scope="module")
async def prometheus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Prometheus]:
    folder = tmp_path_factory.mktemp("month")
    async with prometheus_with(folder, past(int(time.time())), "--web.enable-lifecycle") as url:
        yield Prometheus(url, folder)


@pytest.mark.parametrize(
    ("name", "state"),
    [
        ("quiet", "Healthy none"),
        ("page", "Burning page"),
        ("ticket", "Burning ticket"),
        ("spent", "Spent none"),
        ("flawless", "Healthy none"),
        ("idle", "Unknown none"),
        ("gone", "Unknown none"),
        ("nowhere", "Unknown none"),
    ],
)
async def test_the_budget_is_told_without_any_rules(prometheus: Prometheus, name: str, state: str) -> None:
    assert await prometheus.state(name) == state


async def test_what_is_left_is_a_number(prometheus: Prometheus) -> None:
    quiet, page, spent = [await prometheus.budget(slo) for slo in openslo("quiet", "page", "spent")]
    assert quiet.left == pytest.approx(0.9, abs=0.01)
    assert page.why.startswith("SLO shop/page: it burns ")
    assert "times too fast over 1h and 5m, more than 14.4 (page); " in page.why
    # There are events of four days only: of 69 hours with many events and 27 with a tenth of that, 2 % failed in four.
    assert spent.left == pytest.approx(1 - (4 * 0.02 + 67.7 * 0.0001) / 71.7 / 0.001, abs=0.05)


async def test_minutes_in_which_nothing_could_be_measured_are_neither_good_nor_bad(prometheus: Prometheus) -> None:
    found = [await prometheus.budget(slo) for slo in read_slos(parse(NIGHT, "night"))]
    assert [(one.state, one.left) for one in found] == [("Healthy", pytest.approx(0.6)), ("Healthy", 1.0)]


async def test_what_only_sloth_s_rules_know_is_taken_from_them(prometheus: Prometheus) -> None:
    (slo,) = read_slos(parse(SLOTH, "sloth"))
    assert (await prometheus.budget(slo)).left == pytest.approx(0.6)


async def test_of_pyrra_s_groups_the_worst_counts(prometheus: Prometheus) -> None:
    (slo,) = read_slos(parse(PYRRA, "pyrra"))
    budget = await prometheus.budget(slo)
    assert budget.why.startswith("SLO shop/paths (path=/pay): it burns ")
    assert budget.burning == "page"


async def test_the_generated_rules_record_the_same_and_fire(tmp_path: Path) -> None:
    # Rules can't record what is older than what is there, so that nothing goes on after now here.
    now = int(time.time())
    async with prometheus_with(tmp_path, services(now, "quiet", "page", ahead=0), "--web.enable-lifecycle") as url:
        prometheus, slos = Prometheus(url, tmp_path), openslo("quiet", "page")
        await prometheus.evaluate(*slos)
        # Without a query of their own they know only what is recorded.
        recorded = [replace(slo, errors="") for slo in slos]

        async def all_known() -> bool:
            return all([(await prometheus.budget(slo)).left is not None for slo in recorded])

        await eventually(all_known, "what the rules record")
        found = [await prometheus.budget(slo) for slo in recorded]
        direct = [await prometheus.budget(slo) for slo in slos]
        assert [(one.state, one.burning) for one in found] == [("Healthy", "none"), ("Burning", "page")]
        assert [one.left for one in found] == pytest.approx([one.left for one in direct], abs=0.01)
        left = await Metrics(url).scalar('kreflex:slo_budget_left:ratio{slo="quiet",slo_namespace="shop"}')
        assert left == pytest.approx(found[0].left, abs=0.01)

        async def fires() -> bool:
            return await prometheus.firing() == [("page", "critical", "1h"), ("page", "critical", "6h")]

        await eventually(fires, "the alerts of page, and of no other")


# The command, as processes under the accounts that are shipped.


@pytest.fixture(scope="module")
async def shipped(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """The control plane with the writer's account, that of a gate, and SLOs in a ConfigMap and as custom resources."""
    folder = kit.ROOT / "knative" / "error-budget"
    names = [folder / name for name in ("rbac.yaml", "serviceaccount.yaml", "gates/rbac.yaml")]
    await installed.api.apply(
        "/api/v1/namespaces/shop", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop"}}
    )
    await manifests.apply(installed.api, manifests.read(*names))
    await manifests.apply(installed.api, [manifests.definition("sloth.slok.dev/v1", "PrometheusServiceLevel")])
    await manifests.apply(installed.api, manifests.parsed(SLOTH))
    kept = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "slos", "namespace": HOME, "labels": {"kreflex.dev/slos": "true"}},
        "data": {"slos.yaml": "".join(OPENSLO.replace("NAME", name) for name in ("quiet", "page", "spent", "idle"))},
    }
    await manifests.apply(installed.api, [kept])
    yield installed
    await installed.api.delete(f"/api/v1/namespaces/{HOME}/configmaps/slos")


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    complaint: str


async def slo(plane: ControlPlane, account: tuple[str, str], url: str, *words: str) -> Ended:
    """Run the command with an account's kubeconfig."""
    config = await plane.kubeconfig_for(account[0], account[1])
    environment = {"KUBECONFIG": str(config), "PROMETHEUS_URL": url, "PATH": os.environ["PATH"], "PYTHONPATH": "shared"}
    command = [sys.executable, "-m", "kreflex", "slo", *words]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, cwd=kit.ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    return Ended(done.returncode, done.stdout, done.stderr)


WRITER, GATE = (HOME, "error-budget"), ("shop", "error-budget-gate")


async def test_the_writer_writes_down_what_the_gate_reads(shipped: ControlPlane, prometheus: Prometheus) -> None:
    path = f"/apis/kreflex.dev/v1alpha1/namespaces/{HOME}/errorbudgetstatuses/{budgetstatus.NAME}"
    done = await slo(shipped, WRITER, prometheus.url, "status", "--write", "--json")
    assert (done.code, done.complaint) == (0, "")
    told = [json.loads(one) for one in done.out.splitlines()]
    states = {f"{one['namespace']}/{one['slo']}": one["state"] for one in told}
    assert states == {
        "shop/quiet": "Healthy",
        "shop/page": "Burning",
        "shop/spent": "Spent",
        "shop/idle": "Unknown",
        "shop/carts-requests": "Healthy",
    }
    lines = (await shipped.api.get(path))["spec"]["budgets"]
    assert {f"{one['namespace']}/{one['slo']}": one["state"] for one in lines} == states

    names = ("quiet", "spent", "idle")
    asked = [await slo(shipped, GATE, "", "check", "--written", "--slo", f"shop/{name}") for name in names]
    assert [done.code for done in asked] == [0, 1, 2]
    assert asked[1].out.startswith("Spent    SLO shop/spent: ")
    several = await slo(shipped, GATE, "", "check", "--written", "--slo", "shop/quiet", "--slo", "shop/page")
    assert several.code == 1


async def answered(plane: ControlPlane, url: str, *words: str) -> Ended:
    """Check once more while nobody can tell: a machine that is busy makes Prometheus late."""

    async def check() -> Ended | None:
        done = await slo(plane, WRITER, url, "check", "--slo", "shop/quiet", *words)
        return done if done.code != 2 else None

    ended: Ended = await eventually(check, "an answer of Prometheus")
    return ended


async def test_a_check_may_ask_prometheus_itself(shipped: ControlPlane, prometheus: Prometheus) -> None:
    healthy = await answered(shipped, prometheus.url)
    assert (healthy.code, healthy.out) == (0, "Healthy  SLO shop/quiet: 90% of the error budget of 30d is left\n")
    strict = await answered(shipped, prometheus.url, "--least", "0.95")
    assert (strict.code, strict.out) == (
        1,
        "Spent    SLO shop/quiet: 90% of the error budget of 30d is left, below 95%\n",
    )
    nameless = await slo(shipped, WRITER, prometheus.url, "check", "--slo", "quiet")
    assert (nameless.code, "--slo 'quiet' must be NAMESPACE/NAME" in nameless.complaint) == (64, True)


async def test_a_prometheus_that_is_down_is_written_down_as_unknown(shipped: ControlPlane) -> None:
    done = await slo(shipped, WRITER, "http://127.0.0.1:9", "status", "--write", "--namespace", "shop")
    assert (done.code, done.complaint) == (0, "")
    assert {line.partition(" ")[0] for line in done.out.splitlines()} == {"Unknown"}


async def test_a_cluster_that_is_down_leaves_it_open(prometheus: Prometheus, tmp_path: Path) -> None:
    config = tmp_path / "nobody"
    cluster = {"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}
    context = {"name": "c", "context": {"cluster": "c", "user": "c"}}
    whole = {
        "clusters": [cluster],
        "contexts": [context],
        "users": [{"name": "c", "user": {"token": "t"}}],
        "current-context": "c",
    }
    config.write_text(yaml.safe_dump({"apiVersion": "v1", "kind": "Config", **whole}))
    environment = {"KUBECONFIG": str(config), "PROMETHEUS_URL": prometheus.url, "PYTHONPATH": "shared"}
    command = [sys.executable, "-m", "kreflex", "slo", "check", "--written", "--slo", "shop/quiet"]
    done = await asyncio.to_thread(
        subprocess.run, command, env=environment, cwd=kit.ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 2
    assert "the API server did not answer" in done.stderr


def test_prometheus_takes_the_rules_without_a_word(tmp_path: Path) -> None:
    promtool = Toolchain().ensure(["promtool"])["promtool"]
    (tmp_path / "slos.yaml").write_text(f"{OPENSLO}{SLOTH}---{PYRRA}".replace("NAME", "cart"))
    command = [sys.executable, "-m", "kreflex", "slo", "rules", "--plain"]
    own, every = (
        subprocess.run(
            [*command, *more, tmp_path / "slos.yaml"],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
            cwd=kit.ROOT,
        )
        for more in ([], ["--all"])
    )
    for number, done in enumerate((own, every)):
        file = tmp_path / f"{number}.rules.yaml"
        file.write_text(done.stdout)
        checked = subprocess.run(
            [promtool, "check", "rules", "--lint=all", "--lint-fatal", file],
            capture_output=True,
            check=False,
            text=True,
        )
        assert checked.returncode == 0, checked.stderr
    groups = yaml.safe_load(own.stdout)["groups"]
    assert [group["name"] for group in groups] == [
        "kreflex-slo-shop-cart",
        "kreflex-slo-shop-cart-budget",
        "kreflex-slo-shop-cart-alerts",
    ]
