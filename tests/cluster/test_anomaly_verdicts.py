"""From a leak in Prometheus to an eviction, and from its verdict to the thresholds, on a real API server."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kreflex.anomaly.alerting import Alertmanagers
from kreflex.anomaly.events import Sink
from kreflex.anomaly.feedback import read_book
from kreflex.anomaly.reading import Samples
from kreflex.anomaly.service import Scorer, Terms
from kreflex.anomaly.store import Folder
from kreflex.anomaly.watches import read_watches
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.prom import Metrics
from kreflex.views import JSON
from lab.history import Past, prometheus_with
from tests import kit
from tests.anomalies import Loud, a_signal, a_spec
from tests.cluster.reflexes import an_arc, settled, signal, the_record

HOME, STEP = "kreflex-system", 10
API = "/apis/kreflex.dev/v1alpha1/namespaces"
# Verdicts are asked for as often.
ASKED = 600


def past(pods: list[kit.Json], leaks: str) -> Past:
    """What Prometheus says of these pods from now on, for a quarter of an hour: one of them leaks."""
    now = time.time() // STEP * STEP
    for name in ("memory", "rss", "memory_limit"):
        for one in pods:
            meta = one["metadata"]
            usual = 20_000.0 if meta["name"] == leaks else 10.0
            value = 50_000.0 if name == "memory_limit" else usual
            samples = [(now + n * STEP, value) for n in range(90)]
            yield name, {"namespace": meta["namespace"], "pod": meta["name"]}, samples


class Clocked(Reader):
    """A reader whose clock may be put forward."""

    at: datetime | None = None

    def now(self) -> datetime:
        return self.at or super().now()


@asynccontextmanager
async def scoring(here: kit.Place, url: str, store: Folder) -> AsyncIterator[tuple[Scorer, Clocked]]:
    """anomaly-scorer with its own account's rights."""
    transport = Transport(load_credentials(str(await here.plane.kubeconfig_for(HOME, "anomaly-scorer"))))
    reader, terms = Clocked(transport), Terms(HOME, timedelta(days=7), 5, timedelta(seconds=25))
    parts = (Writer(transport), Samples(Metrics(url)), store, Loud(), Sink(""), Alertmanagers(""), terms)
    try:
        yield Scorer(reader, *parts), reader
    finally:
        await transport.close()


async def the_anomaly(here: kit.Place) -> JSON:
    (found,) = (await here.plane.api.get(f"{API}/{here.name}/anomalies"))["items"]
    made: JSON = found
    return made


@pytest.mark.parametrize(
    ("verdict", "feedback", "factor"), [("Recovered", "confirmed", 0.97), ("Ineffective", "doubted", 1.1)]
)
async def test_the_verdict_of_an_eviction_moves_the_thresholds_that_led_to_it(
    here: kit.Place, tmp_path: Path, verdict: str, feedback: str, factor: float
) -> None:
    leaks, *others = await here.deployment(replicas=2)
    await here.policy(anomalies={"classes": ["leak"]})
    signals = [a_signal("memory", limit="memory_limit"), a_signal("rss")]
    spec = a_spec(interval=f"{STEP}s", history="10m", siblings=["namespace"], signals=signals)
    body = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "AnomalyWatch", "metadata": {"name": "leaks"}}
    await here.plane.api.post(f"{API}/{here.name}/anomalywatches", {**body, "spec": spec})
    store, told = Folder(tmp_path / "store"), past([leaks, *others], leaks["metadata"]["name"])
    async with (
        prometheus_with(tmp_path, told) as url,
        scoring(here, url, store) as (scorer, reader),
        an_arc(here.plane) as arc,
    ):
        assert (await scorer.go(), await scorer.go()) == ([], [])
        found = await the_anomaly(here)
        assert (found["spec"]["class"], found["status"]["agreed"]) == ("leak", True), found["status"]["because"]
        assert (await arc.handle(signal(leaks))).outcome == "applied"
        record = (await the_record(here))["metadata"]["name"]
        assert await settled(arc, here, record) == "Recovered"
        if verdict != "Recovered":
            path = f"{API}/{here.name}/remediations/{record}/status"
            async with here.plane.api_with(await here.plane.token("restart-loop-killer", HOME)) as killer:
                await killer.patch(path, {"status": {"verdict": verdict}})

        reader.at = datetime.fromtimestamp((time.time() // ASKED + 1) * ASKED + 2, UTC)
        assert await scorer.go() == []
        (watch,) = [one for one in (await read_watches(reader)).good if one.namespace == here.name]
    status = (await the_anomaly(here))["status"]
    assert (status["phase"], status["feedback"], status["feedbackBy"]) == (
        "Resolved",
        feedback,
        f"Remediation {record}",
    )
    assert [one["factor"] for one in status["signals"]] == [factor, factor]
    book, _ = await read_book(store, watch)
    # Who comes after it learns half of that.
    assert book.factor("rss", '{pod="another"}', (here.name,)) == round(factor**0.5, 4)
