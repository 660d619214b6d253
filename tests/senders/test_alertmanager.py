"""What the real Alertmanager does with each answer, and what it sends."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest

from lab import senders
from lab.api import eventually
from tests.senders import recordings
from tests.senders.recorder import HANG, Recorder, Taken, recorder

Json = dict[str, Any]
TAKEN = ("200", "202", "204")
FINAL = ("400", "401", "404", "408", "409", "413", "429")
RETRIED = ("500", "503")
# Times: Alertmanager's patience between two notifications of one group. In the first hour nothing is sent anew.
LONG, SHORT = "1h", "1s"


def config(routes: list[tuple[Json, Json]]) -> Json:
    """A configuration of routes, each for the alerts of one case and to a receiver of its own."""
    return {
        "route": {
            "receiver": "nobody",
            "group_by": ["alertname"],
            "group_wait": "0s",
            "repeat_interval": "4h",
            "routes": [route for route, _ in routes],
        },
        "receivers": [{"name": "nobody"}, *(receiver for _, receiver in routes)],
    }


def route(case: str, url: str, interval: str, **webhook: Any) -> tuple[Json, Json]:
    """A route for the alerts with this label, and its receiver."""
    matched = {"matchers": [f'case="{case}"'], "receiver": case, "group_interval": interval}
    return matched, {"name": case, "webhook_configs": [{"url": url, "send_resolved": True, **webhook}]}


@dataclass
class Sent:
    """An Alertmanager after it has notified everybody, and who got what."""

    manager: senders.Alertmanager
    far: Recorder
    absent: Recorder

    def counts(self, *cases: str) -> dict[str, int]:
        return {case: self.far.count(f"/{case}") for case in cases}


@pytest.fixture(scope="module")
async def sent(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sent]:
    """One alert for each answer."""
    async with recorder() as far, recorder(listening=False) as absent:
        routes = [route(code, far.script(f"/{code}", int(code)), LONG) for code in (*TAKEN, *FINAL, *RETRIED)]
        routes += [route(f"{code}-again", far.script(f"/{code}-again", int(code)), SHORT) for code in ("200", *FINAL)]
        routes += [
            route("healed", far.script("/healed", 503, 200), LONG),
            route("hang", far.script("/hang", HANG, 200), LONG, timeout="1s"),
            route("refused", absent.url + "/refused", LONG),
            route("resolved", far.script("/resolved", 200), SHORT),
            route("group", far.script("/group", 200), SHORT),
            route("truncated", far.script("/truncated", 200), SHORT, max_alerts=2),
        ]
        for together, _ in routes[-2:]:
            together["group_wait"] = "2s"
        home = tmp_path_factory.mktemp("alertmanager")
        async with senders.alertmanagers(home, {"alertmanager": config(routes)}) as running:
            manager = running["alertmanager"]
            await manager.tell(*({"alertname": "Case", "case": one["receiver"]} for one, _ in routes[:-2]))
            yield Sent(manager, far, absent)


async def test_after_2xx_it_is_done(sent: Sent) -> None:
    async def others_went_on() -> bool:
        return min(sent.counts("400-again", "500").values()) > 3

    await eventually(others_went_on, "the failing receivers are told again")
    assert sent.counts(*TAKEN, "200-again") == dict.fromkeys((*TAKEN, "200-again"), 1)


async def test_4xx_is_not_retried(sent: Sent) -> None:
    async def others_went_on() -> bool:
        return min(sent.counts(*RETRIED).values()) > 3

    await eventually(others_went_on, "the failing receivers are told again")
    assert sent.counts(*FINAL) == dict.fromkeys(FINAL, 1)


async def test_4xx_is_sent_again_at_each_group_interval(sent: Sent) -> None:
    cases = [f"{code}-again" for code in FINAL]

    async def again() -> bool:
        return min(sent.counts(*cases).values()) > 2

    await eventually(again, "each 4xx sent three times")


async def test_5xx_is_retried_until_it_is_taken(sent: Sent) -> None:
    async def others_went_on() -> bool:
        return min(sent.counts(*RETRIED).values()) > 3

    await eventually(others_went_on, "the failing receivers are told again")
    assert sent.counts("healed") == {"healed": 2}


async def test_an_answer_that_does_not_come_in_time_is_retried(sent: Sent) -> None:
    async def again() -> bool:
        return sent.counts("hang") == {"hang": 2}

    await eventually(again, "the receiver that hung is told again")


async def test_a_refused_connection_is_retried_until_somebody_listens(sent: Sent) -> None:
    async def tried() -> bool:
        return sent.manager.said("receiver=refused", "will retry", "connection refused")

    await eventually(tried, "refused connections")
    await sent.absent.listen()

    async def told() -> bool:
        return sent.absent.count("/refused") == 1

    await eventually(told, "the alert after the receiver came up", 60)


async def test_one_body_tells_of_a_whole_group(sent: Sent) -> None:
    labels = {"alertname": "Group", "case": "group", "namespace": "shop"}
    await sent.manager.tell({**labels, "pod": "cart-1"}, {**labels, "pod": "cart-2"})

    async def told() -> Taken | None:
        bodies = [one for one in sent.far.at("/group") if len(one.json["alerts"]) == 2]
        return bodies[0] if bodies else None

    taken: Taken = await eventually(told, "both alerts in one body")
    body = taken.json
    assert (body["version"], body["status"], body["truncatedAlerts"]) == ("4", "firing", 0)
    assert body["notification_reason"] == "first notification"
    assert (body["groupLabels"], body["commonLabels"]) == ({"alertname": "Group"}, labels)
    assert {alert["labels"]["pod"] for alert in body["alerts"]} == {"cart-1", "cart-2"}
    # No id of the event: the alert's labels say what it is about, and its fingerprint is made of them.
    assert not {"id", "eventId"} & set(body)
    assert not [name for name in taken.headers if name.lower().startswith("ce-")]
    recordings.compare(taken, "alertmanager/group")


async def test_what_max_alerts_cuts_off_is_counted(sent: Sent) -> None:
    labels = {"alertname": "Many", "case": "truncated"}
    await sent.manager.tell(*({**labels, "pod": f"cart-{number}"} for number in range(5)))

    async def told() -> Taken | None:
        bodies = [one for one in sent.far.at("/truncated") if one.json["truncatedAlerts"]]
        return bodies[0] if bodies else None

    taken: Taken = await eventually(told, "a truncated body")
    assert (len(taken.json["alerts"]), taken.json["truncatedAlerts"]) == (2, 3)
    recordings.compare(taken, "alertmanager/truncated")


async def test_what_is_over_is_told_as_resolved(sent: Sent) -> None:
    labels = {"alertname": "Case", "case": "resolved"}

    async def told() -> list[Taken]:
        return sent.far.at("/resolved")

    await eventually(told, "the alert")
    await sent.manager.tell(labels, over=True)

    async def over() -> bool:
        return bool(sent.far.at("/resolved")[-1].json["status"] == "resolved")

    await eventually(over, "the end of the alert")
    taken = sent.far.at("/resolved")[-1]
    assert taken.json["notification_reason"] == "all alerts resolved"
    assert [alert["status"] for alert in taken.json["alerts"]] == ["resolved"]
    recordings.compare(taken, "alertmanager/resolved")
