"""What is told of an Anomaly: pictures, events and alerts; a real Alertmanager takes them, and forgets them."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import aiohttp
import pytest

from kreflex.anomaly.alerting import Alertmanagers, alert_of, severity, until
from kreflex.anomaly.anomalies import Anomaly, AnomalySpec, AnomalyStatus
from kreflex.anomaly.events import DETECTED, RESOLVED, Sink, event_of
from kreflex.anomaly.svg import sparkline
from kreflex.anomaly.telling import alerts_of, untold
from kreflex.errors import UnavailableError
from kreflex.ingress import cloudevents
from kreflex.records import Target
from kreflex.views import Ref
from lab import processes
from lab.ports import Ports
from lab.toolchain import Toolchain
from tests.anomalies import Inbox
from tests.values import CART, MINUTE, NOW, stamp

SEEN = {"name": "memory", "class": "leak", "score": 2.0, "at": NOW, "series": "{}", "evidence": {"value": 5.0}}


def an_anomaly(since: datetime = NOW, target: Ref = CART, **status: Any) -> Anomaly:
    told = {"watch": "kreflex-system/pods", "target": Target.of(target), "class": "leak", "since": since}
    given = {"signals": [SEEN], "score": 2.0, "summary": "it leaks", "because": "2 signals agree", **status}
    spec, made = AnomalySpec.model_validate(told), AnomalyStatus.model_validate(given)
    return Anomaly("shop", "leak-cart-1", "uid-anomaly", "1", spec, made)


def test_a_picture_is_svg_and_broken_where_samples_are_missing() -> None:
    drawn = ET.fromstring(sparkline([1.0, 2.0, float("nan"), 3.0, 4.0], 5.0, "memory of <cart>"))
    assert drawn.tag == "{http://www.w3.org/2000/svg}svg"
    assert drawn[0].text == "memory of <cart>"
    assert [child.tag.rpartition("}")[2] for child in drawn] == ["title", "polyline", "polyline", "path", "circle"]


@pytest.mark.parametrize("values", [[], [float("nan")] * 3, [7.0], [0.0] * 5, [1e300, -1e300], [5e-324, 0.0]])
def test_any_series_can_be_drawn(values: list[float]) -> None:
    text = sparkline(values)
    ET.fromstring(text)
    assert "nan" not in text
    assert "inf" not in text


def test_equal_anomalies_give_equal_events() -> None:
    event = event_of(DETECTED, an_anomaly(), {"memory/{}": "<svg/>"}, {"memory": "up"})
    assert event == event_of(DETECTED, an_anomaly(), {"memory/{}": "<svg/>"}, {"memory": "up"})
    assert (event["type"], event["subject"]) == ("dev.kreflex.anomaly.detected.v1", "shop/leak-cart-1")
    assert event["data"]["signals"][0] | {"svg": "<svg/>", "query": "up", "score": 2.0} == event["data"]["signals"][0]


def test_each_change_is_an_event_of_its_own() -> None:
    words = ("detected", "agreed", "resolved")
    ids = {event_of(RESOLVED if word == "resolved" else DETECTED, an_anomaly(), word=word)["id"] for word in words}
    assert len(ids) == 3
    assert event_of(DETECTED, an_anomaly(NOW + MINUTE))["id"] not in ids


def test_functions_understand_the_event() -> None:
    body = json.dumps(event_of(DETECTED, an_anomaly())).encode()
    (signal,) = cloudevents.parse({"content-type": "application/cloudevents+json"}, body).signals
    assert (signal.namespace, signal.name) == ("shop", "cart-1")


def test_each_change_is_told_once() -> None:
    assert untold(an_anomaly()) == "detected"
    assert untold(an_anomaly(told=("detected",))) == ""
    assert untold(an_anomaly(told=("detected",), agreed=True)) == "agreed"
    assert untold(an_anomaly(phase="Resolved", told=("detected",))) == "resolved"
    assert untold(an_anomaly(phase="Resolved", told=("detected", "resolved"))) == ""
    # It came and went while there was no sink; or nobody has seen it yet.
    assert untold(an_anomaly(phase="Resolved")) == ""
    assert untold(an_anomaly(signals=[])) == ""


async def test_the_sink_gets_structured_json_and_a_few_tries() -> None:
    inbox = Inbox()
    async with inbox.serving() as url:
        await Sink(url).send({"a": 1})
        assert inbox.got == [{"a": 1}]
        inbox.status = 503
        with pytest.raises(UnavailableError, match="503"):
            await Sink(url).send({"a": 2})
        with pytest.raises(UnavailableError, match="did not take the event within"):
            await Sink(url).send({"a": 2}, 0.1)
    await Sink("").send({"a": 3})


def test_an_alert_names_its_object_and_only_what_agrees_names_a_remediation() -> None:
    anomaly = an_anomaly()
    labels = {
        "alertname": "KreflexAnomaly",
        "class": "leak",
        "severity": "warning",
        "kind": "Pod",
        "watch": "kreflex-system/pods",
        "namespace": "shop",
        "pod": "cart-1",
        "uid": "uid-cart-1",
    }
    assert alert_of(anomaly, NOW)["labels"] == labels
    agreed = an_anomaly(agreed=True, remediation="restart-loop-killer")
    more = {"severity": "critical", "remediation": "restart-loop-killer"}
    assert alert_of(agreed, NOW)["labels"] == {**labels, **more}
    node = an_anomaly(target=Ref("v1", "Node", "", "node-1", "uid"))
    assert alert_of(node, NOW)["labels"] | {"node": "node-1"} == alert_of(node, NOW)["labels"]
    assert "namespace" not in alert_of(node, NOW)["labels"]
    assert severity(anomaly) == "warning"


def test_an_alert_that_is_over_is_told_so_for_a_few_ticks() -> None:
    over = an_anomaly(phase="Resolved", resolvedAt=NOW)
    assert [one["endsAt"] for one in alerts_of(over, MINUTE, NOW + 3 * MINUTE)] == [stamp(NOW).replace("Z", ".000Z")]
    assert alerts_of(over, MINUTE, NOW + 4 * MINUTE) == []
    assert until(NOW, timedelta(seconds=1)) == NOW + 3 * MINUTE
    assert alerts_of(an_anomaly(signals=[]), MINUTE, NOW) == []


@pytest.fixture(scope="module")
async def alertmanager(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The URL of a real Alertmanager."""
    folder, program = tmp_path_factory.mktemp("alertmanager"), Toolchain().ensure(["alertmanager"])["alertmanager"]
    config = folder / "alertmanager.yaml"
    config.write_text("route: {receiver: people}\nreceivers: [{name: people}]\n")
    with Ports() as ports:
        address = f"127.0.0.1:{ports.take()}"
        command: list[str | Path] = [
            program,
            f"--config.file={config}",
            f"--storage.path={folder}",
            f"--web.listen-address={address}",
            "--cluster.listen-address=",
        ]
        async with processes.start("alertmanager", command, folder / "log") as child:
            await child.ready(processes.answers(f"http://{address}/-/ready"))
            yield f"http://{address}"


async def firing(url: str) -> list[dict[str, Any]]:
    async with aiohttp.ClientSession() as client, client.get(f"{url}/api/v2/alerts") as answer:
        found: list[dict[str, Any]] = await answer.json()
        return found


async def test_a_real_alertmanager_takes_it_once_and_is_told_when_it_is_over(alertmanager: str) -> None:
    now = datetime.now(UTC)
    anomaly = an_anomaly(now - MINUTE, agreed=True, remediation="restart-loop-killer")
    managers = Alertmanagers(f"{alertmanager}/,http://127.0.0.1:9")
    for ahead in (1, 2):
        await managers.tell([alert_of(anomaly, now + ahead * MINUTE)])
    (alert,) = await firing(alertmanager)
    assert (alert["labels"]["remediation"], alert["annotations"]["anomaly"]) == (
        "restart-loop-killer",
        "shop/leak-cart-1",
    )
    over = replace(anomaly, status=anomaly.status.model_copy(update={"phase": "Resolved", "resolved_at": now}))
    await managers.tell(alerts_of(over, MINUTE, datetime.now(UTC)))
    assert await firing(alertmanager) == []


async def test_no_alertmanager_at_all_is_an_outage() -> None:
    await Alertmanagers("").tell([{"labels": {}}])
    with pytest.raises(UnavailableError, match="no Alertmanager took 1 alerts"):
        await Alertmanagers("http://127.0.0.1:9").tell([alert_of(an_anomaly(), NOW)])


@pytest.mark.parametrize("url", ["http://ann:secret@127.0.0.1:9", "http://ann:secret@no-such-host.invalid/hook"])
async def test_a_password_in_an_address_is_not_told(url: str) -> None:
    with pytest.raises(UnavailableError) as told:
        await Alertmanagers(url).tell([{"labels": {}}])
    assert "secret" not in f"{told.value}"
    assert "did not answer" in f"{told.value}"
