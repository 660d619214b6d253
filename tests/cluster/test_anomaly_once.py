"""What the CronJob of anomaly-scorer runs: one process a tick, which leaves all that it knows in the cluster."""

import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest

from kreflex.views import JSON
from lab import processes
from lab.history import Past, prometheus_with
from lab.workloads import pod
from tests import kit
from tests.anomalies import Inbox, a_spec
from tests.manifests import rendered

HOME, MINUTE = "kreflex-system", 60
ANOMALIES = "/apis/kreflex.dev/v1alpha1/namespaces/{}/anomalies"
WATCHES = "/apis/kreflex.dev/v1alpha1/namespaces/{}/anomalywatches"
PLAIN = rendered.KNATIVE / "variants" / "plain"


def past(namespace: str, loud: bool) -> Past:
    """Two hours of noise, and a few minutes more than there are; the last minutes of one pod are ten times as high."""
    now = time.time() // MINUTE * MINUTE
    for number, signal in enumerate(("memory", "rss")):
        for place, name in enumerate(("calm", "loud")):
            values = np.random.default_rng(10 * number + place).normal(10, 1, 136)
            if loud and name == "loud":
                values[118:] = 100
            samples = [(now + (m - 120) * MINUTE, float(value)) for m, value in enumerate(values)]
            yield signal, {"namespace": namespace, "pod": name}, samples


@asynccontextmanager
async def prometheus(folder: Path, place: kit.Place, *, loud: bool) -> AsyncIterator[str]:
    async with prometheus_with(folder / str(loud), past(place.name, loud)) as url:
        yield url


async def tick(place: kit.Place, prometheus: str, alertmanager: str) -> tuple[int | None, str]:
    """What the CronJob's container does, with its settings and its rights; its exit code and its log."""
    environment = rendered.environment_of(PLAIN, dict(rendered.pods_of(PLAIN))["anomaly-scorer"])
    given = {
        "PATH": os.environ["PATH"],
        **environment,
        **processes.importable(),
        "KUBECONFIG": str(await place.plane.kubeconfig_for(HOME, "anomaly-scorer")),
        "PROMETHEUS_URL": prometheus,
        "ALERTMANAGER_URL": alertmanager.rstrip("/"),
    }
    command = (sys.executable, "-m", "kreflex.once", "anomaly-scorer")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=given, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode, output.decode()


@pytest.fixture
async def watched(here: kit.Place) -> AsyncIterator[kit.Place]:
    """Two pods, and a watch of them; no other watch is there meanwhile."""
    for name in ("calm", "loud"):
        await here.plane.api.post(f"/api/v1/namespaces/{here.name}/pods", pod(name))
    body = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "AnomalyWatch", "metadata": {"name": "ticks"}}
    await here.plane.api.post(WATCHES.format(here.name), {**body, "spec": a_spec(history="2h", remediations=[])})
    yield here
    await here.plane.api.delete(f"{WATCHES.format(here.name)}/ticks")


async def found(place: kit.Place) -> list[JSON]:
    items: list[JSON] = (await place.plane.api.get(ANOMALIES.format(place.name)))["items"]
    return items


def alerts_of(place: kit.Place, inbox: Inbox) -> list[JSON]:
    """The alerts of this namespace: those of other tests' anomalies are told of, too."""
    return [alert for posted in inbox.got for alert in posted if alert["labels"].get("namespace") == place.name]


async def test_ticks_of_the_cronjob_learn_find_and_tell_each_in_a_process_of_its_own(
    watched: kit.Place, tmp_path: Path
) -> None:
    inbox = Inbox()
    async with inbox.serving() as alertmanager:
        async with prometheus(tmp_path, watched, loud=False) as calm:
            code, log = await tick(watched, calm, alertmanager)
        assert (code, await found(watched), alerts_of(watched, inbox)) == (0, [], []), log

        async with prometheus(tmp_path, watched, loud=True) as loud:
            code, log = await tick(watched, loud, alertmanager)
        assert code == 0, log
        (anomaly,) = before = await found(watched)
        assert (anomaly["spec"]["target"]["name"], anomaly["status"]["agreed"]) == ("loud", True)
        assert anomaly["status"]["because"] == "2 signals agree within 5m: memory, rss"
        (alert,) = alerts_of(watched, inbox)
        assert (alert["labels"]["alertname"], alert["labels"]["pod"]) == ("KreflexAnomaly", "loud")

        code, log = await tick(watched, "http://127.0.0.1:9", alertmanager)
        assert (code, "Prometheus did not answer" in log) == (1, True), log
        assert await found(watched) == before
