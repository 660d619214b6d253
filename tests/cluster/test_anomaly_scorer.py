"""anomaly-scorer on the real API server, fed by a real Prometheus with a past: what becomes of Anomaly objects.

The detector of these tests takes 100 for the threshold of every series, so that each tick's outcome is known.
"""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from kreflex.anomaly.alerting import Alertmanagers
from kreflex.anomaly.anomalies import Said
from kreflex.anomaly.detector import About, Floats, Scores
from kreflex.anomaly.events import Sink
from kreflex.anomaly.reading import Samples
from kreflex.anomaly.service import Scorer, Terms
from kreflex.anomaly.store import ConfigMaps, Folder, Store
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.errors import ApiError, UnavailableError
from kreflex.prom import Metrics
from kreflex.signals import PodSignal
from kreflex.views import JSON
from lab import audit
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.history import Past, prometheus_with
from lab.workloads import pod
from tests import kit
from tests.anomalies import Inbox, Loud, a_signal, a_spec

HOME = "kreflex-system"
START, MINUTE = 1_699_999_200, 60
ANOMALIES = "/apis/kreflex.dev/v1alpha1/anomalies"
WATCHES = f"/apis/kreflex.dev/v1alpha1/namespaces/{HOME}/anomalywatches"
QUIET = 10.0
NAMES = ("both", "one", "leaks", "leaves", "named-again")


def levels(name: str, signal: str, minute: int) -> float:
    """What a pod's signal is at a minute."""
    loud = {
        ("both", "memory"): range(11, 16),
        ("both", "rss"): range(12, 16),
        ("one", "memory"): range(11, 21),
        ("leaves", "memory"): range(11, 16),
        ("named-again", "memory"): range(11, 31),
    }.get((name, signal), range(0))
    if name == "leaks" and 11 <= minute < 21:
        return 20_000.0
    return 150.0 if minute in loud else QUIET


def past() -> Past:
    for signal in ("memory", "rss"):
        for name in NAMES:
            until = 16 if name == "leaves" else 60
            samples = [(START + m * MINUTE, levels(name, signal, m)) for m in range(-30, until)]
            yield signal, {"namespace": "anom", "pod": name}, samples
        yield (
            f"{signal}_limit",
            {"namespace": "anom", "pod": "leaks"},
            [(START + m * MINUTE, 50_000.0) for m in range(-30, 60)],
        )
    # What nodes and workloads are, by two signals: of one both are loud, of the other only the first.
    for signal, loud in (("busy", ("worn", "worn-alone")), ("load", ("worn",))):
        for name in ("worn", "worn-alone"):
            values = [(m, 150.0 if m >= 11 and name in loud else QUIET) for m in range(-30, 60)]
            labels = {"namespace": "anom", "nodename": name, "deployment": name}
            yield signal, labels, [(START + m * MINUTE, value) for m, value in values]
    for number in range(24):
        samples = [(START + m * MINUTE, 150.0 if m >= 11 and number < 12 else QUIET) for m in range(-30, 60)]
        yield "many", {"namespace": "anom", "pod": f"many-{number:02}"}, samples


@pytest.fixture(scope="module")
async def prometheus(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    # As soon as a sample is missing, so is its series; otherwise Prometheus looks back for 5 minutes.
    async with prometheus_with(tmp_path_factory.mktemp("past"), past(), "--query.lookback-delta=59s") as url:
        yield url


@pytest.fixture(scope="module")
async def pods(installed: ControlPlane) -> AsyncIterator[ControlPlane]:
    """The pods that the series are about, in a namespace of this module."""
    await installed.api.post("/api/v1/namespaces", {"metadata": {"name": "anom"}})
    for name in NAMES:
        await installed.api.post("/api/v1/namespaces/anom/pods", pod(name))
    yield installed
    await installed.api.delete("/api/v1/namespaces/anom")


class At(Reader):
    """A reader whose clock stands where the test puts it."""

    minute = 0.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(START + self.minute * MINUTE + 6, UTC)


class Killed(BaseException):
    """The process is gone."""


class Mortal(Writer):
    """A writer that is killed at its n-th write, before it or after."""

    def __init__(self, transport: Transport, at: int, when: str) -> None:
        super().__init__(transport)
        self.left, self.when = at, when

    async def _send(self, method: str, path: str, body: JSON | None, **options: Any) -> JSON:
        self.left -= 1
        if self.left == 0 and self.when == "before":
            raise Killed
        answer = await super()._send(method, path, body, **options)
        if self.left == 0:
            raise Killed
        return answer


class Stage:
    """One test: a watch of its own, and scorers that are made anew as replicas and after kills are."""

    def __init__(self, plane: ControlPlane, url: str, transport: Transport, folder: Path) -> None:
        self.plane, self.url, self.transport = plane, url, transport
        self.store: Store = Folder(folder)
        self.sink, self.inbox = "", Inbox()
        self.watch = ""

    async def declare(self, name: str, **spec: Any) -> None:
        self.watch = name
        metadata = {"name": name, "namespace": HOME}
        body = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "AnomalyWatch", "metadata": metadata}
        await self.plane.api.post(WATCHES, {**body, "spec": a_spec(**spec)})

    def scorer(
        self, writer: Writer | None = None, url: str = "", detector: Loud | None = None, **terms: Any
    ) -> "Ticking":
        reader = At(self.transport)
        samples = Samples(Metrics(url or self.url))
        given = {"home": HOME, "retain": timedelta(days=7), "most_open": 5, "budget": timedelta(seconds=25), **terms}
        made = Scorer(
            reader,
            writer or Writer(self.transport),
            samples,
            self.store,
            detector or Loud(),
            Sink(self.sink),
            Alertmanagers(""),
            Terms(**given),
        )
        return Ticking(reader, made)

    async def found(self) -> list[JSON]:
        bodies = (await self.plane.api.get(ANOMALIES))["items"]
        mine = [one for one in bodies if one["spec"]["watch"] == f"{HOME}/{self.watch}"]
        # A name ends with a hash of the UID, so it tells no order.
        return sorted(
            mine, key=lambda one: (one["spec"]["since"], one["spec"]["target"]["name"], one["metadata"]["name"])
        )

    async def told(self) -> list[tuple[str, str, str, bool]]:
        """Target, class, phase and agreement of each anomaly of this watch."""
        return [
            (
                one["spec"]["target"]["name"],
                one["spec"]["class"],
                one.get("status", {}).get("phase", ""),
                one.get("status", {}).get("agreed", False),
            )
            for one in await self.found()
        ]


class Ticking:
    """A scorer, and the clock that it sees."""

    def __init__(self, reader: At, scorer: Scorer) -> None:
        self.reader, self.scorer = reader, scorer

    async def at(self, *minutes: int) -> list[str]:
        failures: list[str] = []
        for minute in minutes:
            self.reader.minute = minute
            failures = await self.scorer.go()
        return failures


@pytest.fixture
async def stage(pods: ControlPlane, prometheus: str, tmp_path: Path) -> AsyncIterator[Stage]:
    account = await pods.kubeconfig_for(HOME, "anomaly-scorer")
    transport = Transport(load_credentials(str(account)))
    made = Stage(pods, prometheus, transport, tmp_path / "store")
    async with made.inbox.serving() as sink:
        made.sink = sink
        yield made
    await transport.close()
    await pods.api.delete(f"{WATCHES}/{made.watch}")
    for one in await made.found():
        meta = one["metadata"]
        await pods.api.delete(f"/apis/kreflex.dev/v1alpha1/namespaces/{meta['namespace']}/anomalies/{meta['name']}")


def only(*names: str) -> JSON:
    """A spec that watches these pods alone."""
    chosen = f'{{pod=~"{"|".join(names)}"}}'
    signals = [a_signal(one, query=f"{one}{chosen}", limit=f"{one}_limit") for one in ("memory", "rss")]
    return {"signals": signals}


def minutes(body: JSON, *path: str) -> float:
    """When something was, in minutes of the story."""
    value: Any = body
    for step in path:
        value = value[step]
    return (datetime.fromisoformat(value).timestamp() - START) / MINUTE


async def test_an_anomaly_opens_agrees_and_is_over(stage: Stage) -> None:
    await stage.declare("w-story", **only("both"))
    scorer = stage.scorer()
    assert await scorer.at(10) == []  # Learns.
    assert await scorer.at(11) == []
    (alone,) = await stage.found()
    assert (alone["metadata"]["namespace"], alone["spec"]["target"]["name"]) == ("anom", "both")
    assert alone["metadata"]["name"].startswith("anomaly-both-")
    assert (alone["status"]["agreed"], alone["status"]["score"], alone["status"]["model"]) == (False, 1.5, "loud/1")
    assert alone["status"]["because"] == "1 of the 2 signals that have to agree: memory"
    assert minutes(alone, "status", "freshUntil") == 17
    await scorer.at(12)
    (agreed,) = await stage.found()
    assert agreed["status"]["because"] == "2 signals agree within 5m: memory, rss"
    assert agreed["status"]["agreed"]
    assert [(one["name"], one["evidence"]) for one in agreed["status"]["signals"]] == [
        ("memory", {"value": 150.0, "expected": 10.0}),
        ("rss", {"value": 150.0, "expected": 10.0}),
    ]
    await scorer.at(*range(13, 20))
    assert await stage.told() == [("both", "anomaly", "Open", True)]
    await scorer.at(20, 21)
    (over,) = await stage.found()
    assert over["status"]["phase"] == "Resolved"
    assert "freshUntil" not in over["status"]
    assert [event["type"].split(".")[3] for event in stage.inbox.got] == ["detected", "detected", "resolved"]
    assert over["status"]["told"] == ["detected", "agreed", "resolved"]


def writes(stage: Stage) -> list[tuple[str, str]]:
    """What the function has written of anomalies, as the API server logged it."""
    entries = audit.entries(stage.plane.audit_log, ":anomaly-scorer")
    return [
        (entry["verb"], entry["objectRef"].get("subresource", ""))
        for entry in entries
        if entry["objectRef"].get("resource") == "anomalies" and entry["verb"] not in {"get", "list", "watch"}
    ]


async def test_what_it_writes_is_little(stage: Stage) -> None:
    await stage.declare("w-little", **only("both"))
    before = len(writes(stage))
    await stage.scorer().at(*range(10, 24))
    # Made, seen and told; agreed and told; written down again after three ticks; over and told.
    written = writes(stage)[before:]
    assert written == [("create", ""), *[("patch", "status")] * 7]


async def test_one_signal_alone_never_leads_to_a_remediation(stage: Stage) -> None:
    await stage.declare("w-alone", **only("one"), remediations=[{"class": "anomaly", "function": "rollback"}])
    await stage.scorer().at(*range(10, 20))
    (found,) = await stage.found()
    assert (found["status"]["agreed"], found["status"]["remediation"]) == (False, "")


@pytest.mark.parametrize(
    ("kind", "label", "path", "spec"),
    [
        ("Node", "nodename", "/api/v1/nodes", {}),
        ("Deployment", "deployment", "/apis/apps/v1/namespaces/anom/deployments", kit.deployment("worn", 0)["spec"]),
    ],
)
async def test_a_node_or_a_workload_is_ill_when_its_signals_agree_and_not_for_one_alone(
    stage: Stage, kind: str, label: str, path: str, spec: JSON
) -> None:
    for name in ("worn", "worn-alone"):
        await stage.plane.api.post(path, {"metadata": {"name": name}, "spec": spec})
    signals = [a_signal("busy"), a_signal("load")]
    led = [{"class": "anomaly", "function": "node-replacer"}]
    await stage.declare("w-worn", target={"kind": kind, "nameLabel": label}, signals=signals, remediations=led)
    await stage.scorer().at(*range(10, 14))
    assert [
        (one["spec"]["target"]["kind"], one["spec"]["target"]["name"], one["status"]["agreed"])
        for one in await stage.found()
    ] == [(kind, "worn", True), (kind, "worn-alone", False)]
    both, alone = [one["status"] for one in await stage.found()]
    assert (both["remediation"], both["because"]) == ("node-replacer", "2 signals agree within 5m: busy, load")
    assert (alone["remediation"], alone["because"]) == ("", "1 of the 2 signals that have to agree: busy")
    where = {one["metadata"]["namespace"] for one in await stage.found()}
    assert where == {HOME if kind == "Node" else "anom"}
    for name in ("worn", "worn-alone"):
        await stage.plane.api.delete(f"{path}/{name}")


async def test_a_leak_that_two_signals_show_names_its_remediation(stage: Stage) -> None:
    await stage.declare("w-leak", **only("leaks"))
    await stage.scorer().at(10, 11)
    (found,) = await stage.found()
    assert (found["spec"]["class"], found["status"]["remediation"]) == ("leak", "restart-loop-killer")
    (event,) = stage.inbox.got
    data = event["data"]
    assert (event["type"], event["time"]) == ("dev.kreflex.anomaly.detected.v1", "2023-11-14T22:11:00.000Z")
    assert (data["class"], data["agreed"], data["target"]["uid"]) == ("leak", True, found["spec"]["target"]["uid"])
    assert [one["evidence"]["limit"] for one in data["signals"]] == [50_000.0, 50_000.0]
    assert all(one["svg"].startswith("<svg ") and one["query"].startswith(one["name"]) for one in data["signals"])


async def test_two_replicas_at_each_tick_make_one_object_of_one_episode(stage: Stage) -> None:
    await stage.declare("w-two", **only("both", "one"))
    first, second = stage.scorer(), stage.scorer()
    for minute in range(10, 28):
        await asyncio.gather(first.at(minute), second.at(minute))
    assert await stage.told() == [("both", "anomaly", "Resolved", True), ("one", "anomaly", "Resolved", False)]
    kinds = {event["id"]: event["type"].split(".")[3] for event in stage.inbox.got}
    assert sorted(kinds.values()) == ["detected", "detected", "detected", "resolved", "resolved"]


@pytest.mark.parametrize("when", ["before", "after"])
async def test_a_kill_at_any_write_leaves_nothing_lost_and_nothing_doubled(stage: Stage, when: str) -> None:
    await stage.declare("w-killed", **only("both"))
    await stage.scorer().at(10)
    for number in range(1, 9):
        mortal = stage.scorer(Mortal(stage.transport, number, when))
        try:
            await mortal.at(*range(11, 22))
        except Killed:
            # Somebody else goes on with the tick, without what that process knew.
            await stage.scorer().at(*range(int(mortal.reader.minute), 22))
        else:
            assert number > 3
        (found,) = await stage.found()
        assert await stage.told() == [("both", "anomaly", "Resolved", True)]
        kinds = {event["id"]: event["type"].split(".")[3] for event in stage.inbox.got}
        assert sorted(kinds.values()) == ["detected", "detected", "resolved"], number
        assert found["status"]["told"] == ["detected", "agreed", "resolved"]
        meta = found["metadata"]
        path = f"/apis/kreflex.dev/v1alpha1/namespaces/{meta['namespace']}/anomalies/{meta['name']}"
        await stage.plane.api.delete(path)
        stage.inbox.got.clear()


async def test_without_prometheus_nothing_is_opened_and_nothing_is_over(stage: Stage) -> None:
    await stage.declare("w-blind", **only("both"))
    await stage.scorer().at(10, 11)
    before = await stage.found()
    failures = await stage.scorer(url="http://127.0.0.1:9").at(*range(12, 40))
    assert len(failures) == 2
    assert "Prometheus did not answer" in failures[0]
    assert await stage.found() == before
    await stage.scorer().at(40)
    assert [one[2] for one in await stage.told()] == ["Resolved"]


async def test_what_the_sink_did_not_take_is_delivered_at_the_next_tick(stage: Stage) -> None:
    await stage.declare("w-sink", **only("one"))
    stage.inbox.status = 503
    scorer = stage.scorer(budget=timedelta(seconds=3))
    await scorer.at(10)
    (failure,) = await scorer.at(11)
    assert "waits for the next tick" in failure
    assert await stage.told() == [("one", "anomaly", "Open", False)]
    stage.inbox.status = 202
    await scorer.at(12)
    assert [event["data"]["target"]["name"] for event in stage.inbox.got] == ["one"]


async def test_a_signal_that_its_detector_fails_on_leaves_the_others_as_they_are(stage: Stage) -> None:
    class Odd(Loud):
        def score(self, state: npt.NDArray[np.void], recent: Floats, about: About) -> Scores:
            if about.kind == "traffic":
                raise ValueError("a model of somebody's own")
            return super().score(state, recent, about)

    memory, rss = only("both")["signals"]
    await stage.declare("w-odd", signals=[{**memory, "kind": "traffic"}, rss])
    (failure,) = await stage.scorer(detector=Odd()).at(*range(10, 14))
    assert failure == f'{HOME}/w-odd memory: ValueError("a model of somebody\'s own")'
    assert await stage.told() == [("both", "anomaly", "Open", False)]


async def test_a_watch_that_takes_too_long_is_given_up_and_told(stage: Stage) -> None:
    class Slow(Folder):
        async def version(self, name: str) -> str:
            await asyncio.sleep(60)
            return ""

        async def read(self, name: str) -> Any:
            await asyncio.sleep(60)

    await stage.declare("w-slow", **only("one"))
    stage.store = Slow(Path("/nowhere"))
    (failure,) = await stage.scorer(budget=timedelta(seconds=2)).at(10)
    assert failure == f"{HOME}/w-slow: it took more than 1 s: make its queries cheaper, by recording rules"


async def test_what_can_not_be_written_of_one_target_leaves_the_others_as_they_are(stage: Stage) -> None:
    class Refused(Writer):
        async def _send(self, method: str, path: str, body: JSON | None, **options: Any) -> JSON:
            if method == "POST" and body and body["kind"] == "Anomaly" and body["spec"]["target"]["name"] == "both":
                raise ApiError("the namespace is being terminated", 403)
            return await super()._send(method, path, body, **options)

    await stage.declare("w-refused", **only("both", "one"))
    await stage.scorer(Refused(stage.transport)).at(*range(10, 13))
    assert await stage.told() == [("one", "anomaly", "Open", False)]


async def test_without_its_states_nothing_is_opened_and_nothing_is_lost(stage: Stage) -> None:
    class Broken(Folder):
        async def version(self, name: str) -> str:
            raise UnavailableError("the disk is gone")

        async def read(self, name: str) -> Any:
            raise UnavailableError("the disk is gone")

    await stage.declare("w-store", **only("one"))
    await stage.scorer().at(10, 11)
    before, whole = await stage.found(), stage.store
    stage.store = Broken(Path("/nowhere"))
    (failure,) = await stage.scorer().at(*range(12, 30))
    assert failure.endswith("the disk is gone")
    assert await stage.found() == before
    stage.store = whole
    await stage.scorer().at(30)
    assert [one[2] for one in await stage.told()] == ["Resolved"]


async def test_what_went_with_its_pod_is_over_and_its_successor_starts_anew(stage: Stage) -> None:
    await stage.declare("w-gone", **only("leaves", "named-again"))
    scorer = stage.scorer()
    await scorer.at(10, 11)
    path = "/api/v1/namespaces/anom/pods"
    for name in ("leaves", "named-again"):
        await stage.plane.api.delete(f"{path}/{name}", {"gracePeriodSeconds": 0})
    await eventually(lambda: _gone(stage, f"{path}/named-again"), "the pod to be gone")
    await stage.plane.api.post(path, pod("named-again"))
    await scorer.at(16, 17)
    found = await stage.found()
    because = {one["status"].get("resolvedBecause"): one["spec"]["target"]["name"] for one in found}
    assert because == {
        "Pod anom/leaves is gone": "leaves",
        "Pod anom/named-again is gone": "named-again",
        None: "named-again",
    }
    assert len({one["spec"]["target"]["uid"] for one in found}) == 3


async def _gone(stage: Stage, path: str) -> bool:
    return await Reader(stage.transport).get(path) is None


async def test_half_of_all_series_at_once_are_one_anomaly_of_the_watch(stage: Stage) -> None:
    await stage.declare("w-storm", signals=[a_signal("many")])
    scorer = stage.scorer()
    await scorer.at(10, 11)
    (found,) = await stage.found()
    assert (found["metadata"]["namespace"], found["spec"]["class"]) == (HOME, "storm")
    assert found["spec"]["target"]["kind"] == "AnomalyWatch"
    assert found["status"]["because"] == "12 of 24 series at once: look at Prometheus and the network first"
    assert not found["status"]["agreed"]


async def test_of_more_targets_than_are_told_one_by_one_the_rest_is_told_once(stage: Stage) -> None:
    await stage.declare("w-many", signals=[a_signal("memory")])
    await stage.scorer(most_open=2).at(10, 11)
    assert sorted(await stage.told()) == [
        ("both", "anomaly", "Open", False),
        ("leaks", "leak", "Open", False),
        ("w-many", "storm", "Open", False),
    ]


async def test_a_dismissal_moves_the_threshold_of_the_series_and_survives_learning_anew(stage: Stage) -> None:
    await stage.declare("w-said", **only("one"))
    scorer = stage.scorer()
    await scorer.at(10, 11)
    (found,) = await stage.found()
    path = f"/apis/kreflex.dev/v1alpha1/namespaces/anom/anomalies/{found['metadata']['name']}"
    by = "admin"
    said = json.dumps({"spec": {"feedback": {"verdict": "Dismissed", "by": by}}})
    kit.kubectl(stage.plane, "patch", "anomaly", "-n", "anom", found["metadata"]["name"], "--type=merge", "-p", said)
    await scorer.at(12)
    told = (await stage.plane.api.get(path))["status"]
    assert (told["feedback"], told["feedbackBy"]) == ("dismissed", by)
    assert [one["factor"] for one in told["signals"]] == [1.575]
    for name in await stage.store.names():
        if "feedback" not in name:
            await stage.store.delete(name)
    await stage.scorer().at(13)  # Learns anew.
    await stage.scorer().at(19)
    (over,) = await stage.found()
    assert over["status"]["phase"] == "Resolved"


async def test_feedback_by_event_is_written_down_as_such(stage: Stage) -> None:
    await stage.declare("w-event", **only("one"))
    scorer = stage.scorer()
    await scorer.at(10, 11)
    (found,) = await stage.found()
    said = Said(verdict="Confirmed", by="event:pager")
    assert await scorer.scorer.hear("anom", found["metadata"]["name"], said)
    assert not await scorer.scorer.hear("anom", "unknown", said)
    await scorer.at(12)
    (found,) = await stage.found()
    assert (found["status"]["feedback"], found["status"]["feedbackBy"]) == ("confirmed", "event:pager")
    assert [one["factor"] for one in found["status"]["signals"]] == [0.95]


async def test_an_alert_is_looked_at_and_what_is_found_is_noted(stage: Stage) -> None:
    await stage.declare("w-look", **only("one"))
    scorer = stage.scorer()
    await scorer.at(10, 11)
    scorer.reader.minute = 12
    (event,) = await scorer.scorer.look([PodSignal("anom", "one", summary="KubePodNotReady: it is not")])
    assert event["type"] == "dev.kreflex.anomaly.evidence.v1"
    assert event["data"]["summary"] == "memory is 150, 10 was expected (1.5 times its threshold)"
    (found,) = await stage.found()
    assert [one["found"] for one in found["status"]["looked"]] == [event["data"]["summary"]]
    assert await scorer.scorer.look([PodSignal("anom", "one", summary="KreflexAnomaly: our own")]) == []


async def test_what_was_over_long_ago_is_removed(stage: Stage) -> None:
    await stage.declare("w-old", **only("one"))
    scorer = stage.scorer(retain=timedelta(minutes=20))
    await scorer.at(*range(10, 30))
    assert [one[2] for one in await stage.told()] == ["Resolved"]
    await scorer.at(50)
    assert await stage.told() == []


async def test_what_no_watch_looks_at_any_more_is_over(stage: Stage) -> None:
    await stage.declare("w-orphan", **only("one"))
    scorer = stage.scorer()
    await scorer.at(10, 11)
    await stage.plane.api.delete(f"{WATCHES}/w-orphan")
    await scorer.at(12)
    (found,) = await stage.found()
    assert found["status"]["resolvedBecause"] == "its AnomalyWatch is gone"
    await stage.declare("w-orphan", **only("one"))


async def test_states_may_live_in_the_cluster_itself(stage: Stage) -> None:
    await stage.declare("w-maps", **only("one"))
    stage.store = ConfigMaps(Reader(stage.transport), Writer(stage.transport), HOME)
    await stage.scorer().at(10)
    await stage.scorer().at(11)
    assert await stage.told() == [("one", "anomaly", "Open", False)]
    for name in await stage.store.names():
        await stage.store.delete(name)
