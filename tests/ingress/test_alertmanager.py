"""Alertmanager's webhook through the real ASGI application."""

from typing import Any

import pytest
from structlog.testing import capture_logs

from kreflex.ingress.alertmanager import MOST_BYTES
from kreflex.views import JSON
from tests.ingress.conftest import Answer, Caller
from tests.ingress.surroundings import API

HEADERS = {"content-type": "application/json", "user-agent": "Alertmanager/0.29.0"}
SIGNAL = {
    "namespace": "shop",
    "name": "cart-1",
    "uid": "uid-cart-1",
    "summary": "KubePodCrashLooping: Pod is crash looping.",
    "seen": False,
    "source": "alertmanager",
    "delivery": "5ef77f1f8a3ecb8d",
}


def an_alert(status: Any = "firing", annotations: Any = None, **labels: Any) -> JSON:
    """The stock alert about a looping pod; a label that is None is left out."""
    told = {
        "alertname": "KubePodCrashLooping",
        "container": "app",
        "namespace": "shop",
        "pod": "cart-1",
        "uid": "uid-cart-1",
        "severity": "warning",
        **labels,
    }
    return {
        "status": status,
        "labels": {name: value for name, value in told.items() if value is not None},
        "annotations": {"summary": "Pod is crash looping."} if annotations is None else annotations,
        "startsAt": "2026-05-01T11:45:00.113Z",
        "endsAt": "0001-01-01T00:00:00Z",
        "generatorURL": "http://prometheus/graph?g0.expr=up",
        "fingerprint": "5ef77f1f8a3ecb8d",
    }


def a_webhook(*alerts: Any, **about: Any) -> JSON:
    """A body of version 4."""
    return {
        "receiver": "kreflex",
        "status": "firing",
        "alerts": list(alerts),
        "groupLabels": {"alertname": "KubePodCrashLooping"},
        "commonLabels": {},
        "commonAnnotations": {},
        "externalURL": "http://alertmanager",
        "version": "4",
        "groupKey": '{}:{alertname="KubePodCrashLooping"}',
        "truncatedAlerts": 0,
        **about,
    }


async def sent(caller: Caller, body: Any, path: str = "/echo") -> Answer:
    return await caller.post(body, HEADERS, path)


async def test_reads_each_firing_alert(caller: Caller) -> None:
    answer = await sent(caller, a_webhook(an_alert(), an_alert(pod="cart-2", uid=None)))
    assert (answer.status, answer.json["signals"]) == (200, [SIGNAL, {**SIGNAL, "name": "cart-2", "uid": ""}])
    assert not answer.json["wants_event"]


async def test_a_resolved_alert_asks_for_the_verdict_and_for_nothing_else(caller: Caller) -> None:
    answer = await sent(caller, a_webhook(an_alert("resolved"), an_alert(), status="resolved"))
    assert answer.json["resolved"] == [{"namespace": "shop", "name": "cart-1", "uid": "uid-cart-1"}]
    assert answer.json["signals"] == [SIGNAL]


async def test_a_resolved_alert_costs_the_read_of_one_record(caller: Caller) -> None:
    answer = await sent(caller, a_webhook(an_alert("resolved")), "/")
    (result,) = answer.json["results"]
    assert result["because"] == "nothing was done about it whose success is open"
    assert (len(API.calls), API.writes) == (1, [])
    assert API.calls[0].startswith(
        "GET /apis/kreflex.dev/v1alpha1/namespaces/shop/remediations/restart-loop-killer-cart-1-"
    )


async def test_a_resolved_alert_that_names_no_uid_costs_nothing(caller: Caller) -> None:
    assert ((await sent(caller, a_webhook(an_alert("resolved", uid=None)), "/")).status, API.calls) == (200, [])


async def test_tells_the_log_which_group_sent_and_why(caller: Caller) -> None:
    reason = "repeat interval elapsed"
    answer = await sent(caller, a_webhook(an_alert(), notification_reason=reason, groupLabels={"namespace": "shop"}))
    assert answer.json["about"] == {
        "sender": "alertmanager",
        "group": '{}:{alertname="KubePodCrashLooping"}',
        "reason": reason,
        "receiver": "kreflex",
    }
    assert answer.json["signals"] == [SIGNAL]


async def test_says_that_alerts_were_cut_off(caller: Caller) -> None:
    answer = await sent(caller, a_webhook(an_alert(), truncatedAlerts=7))
    assert answer.json["ignored"] == ["7 alerts were cut off by max_alerts; the waker finds what they are about"]
    assert answer.json["signals"] == [SIGNAL]


@pytest.mark.parametrize(
    "bad",
    [
        5,
        None,
        {},
        {"labels": "x"},
        an_alert(pod=None),
        an_alert(namespace=None),
        an_alert(pod=""),
        an_alert(pod=5),
        an_alert(pod="../secrets/x"),
        an_alert(pod="cart-1/log"),
        an_alert(namespace="shop?x"),
        an_alert(pod="\ud800", alertname="\udfff"),
        an_alert(pod="x" * 254),
        an_alert(status="strange"),
        an_alert(status=["firing"]),
        an_alert(uid="\ud800"),
        an_alert(uid=5),
        {"status": "firing", "labels": {}},
    ],
)
async def test_one_bad_alert_does_not_lose_the_rest(caller: Caller, bad: Any) -> None:
    answer = await sent(caller, a_webhook(bad, an_alert()))
    assert (answer.status, answer.json["signals"]) == (200, [SIGNAL])
    assert len(answer.json["ignored"]) == 1
    assert (await sent(caller, a_webhook(bad), "/")).status == 200
    assert API.calls == []


@pytest.mark.parametrize("annotations", [{}, [], "x", {"summary": ""}, {"summary": {"a": 1}}])
async def test_an_alert_without_a_summary_is_called_by_its_name(caller: Caller, annotations: Any) -> None:
    (signal,) = (await sent(caller, a_webhook(an_alert(annotations=annotations)))).json["signals"]
    assert signal["summary"].startswith("KubePodCrashLooping")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        (a_webhook(version="3"), "version: must be '4', not '3'"),
        (a_webhook(version=4), "version: must be '4', not 4"),
        (a_webhook(alerts={}), "alerts: must be a list"),
        (a_webhook(alerts=None), "alerts: must be a list"),
        (a_webhook(version={"a": 1}), "version: must be '4', not an object"),
        ({"alerts": []}, "body: is no CloudEvent"),
        ([], "body: must be an object, not a list"),
        (None, "body: must be an object, not None"),
        (b"", "body: is empty"),
        (b"{", "body: is not JSON"),
        (b"\xff", "body: is not JSON"),
        (b"[" * 100_000, "body: is nested too deeply"),
        (b'{"alerts":[{"startsAt":NaN}],"groupKey":"","version":"4"}', "body: is not JSON: NaN is no number"),
        (b"alerts=1", "body: is not JSON"),
    ],
)
async def test_names_what_is_wrong_with_the_body(caller: Caller, body: Any, field: str) -> None:
    answer = await sent(caller, body)
    assert answer.status == 400
    assert answer.json["error"].startswith(field)


async def test_a_body_over_the_limit_is_too_large_and_one_under_it_is_not(caller: Caller) -> None:
    rest = len(b'{"alerts":[],"groupKey":"","version":"4","x":""}')
    body = b'{"alerts":[],"groupKey":"","version":"4","x":"' + b"x" * (MOST_BYTES - rest) + b'"}'
    assert (await sent(caller, body)).status == 200
    assert (await sent(caller, body + b" ")).status == 413


async def test_answers_503_when_one_of_many_met_a_dead_dependency(caller: Caller) -> None:
    API.down = True
    answer = await sent(caller, a_webhook(*(an_alert(pod=f"cart-{n}") for n in range(20))), "/")
    assert answer.status == 503


async def test_tells_what_became_of_each_alert(caller: Caller) -> None:
    answer = await sent(caller, a_webhook(an_alert()), "/")
    gone = {"about": "pod shop/cart-1", "outcome": "skipped", "because": "the pod is gone"}
    assert (answer.status, answer.json) == (200, {"results": [gone], "ignored": []})


async def test_logs_what_it_leaves_out(caller: Caller) -> None:
    body = a_webhook(*(an_alert(pod=None) for _ in range(6)), an_alert(), truncatedAlerts=7, receiver=None)
    with capture_logs() as logs:
        await sent(caller, body, "/")
    (logged,) = [entry for entry in logs if entry["event"] == "request.ignored"]
    assert logged == {
        "event": "request.ignored",
        "log_level": "info",
        "count": 7,
        "why": ["KubePodCrashLooping names no pod, no workload and no node"] * 5,
        "sender": "alertmanager",
        "group": '{}:{alertname="KubePodCrashLooping"}',
    }


async def test_logs_nothing_when_nothing_is_left_out(caller: Caller) -> None:
    with capture_logs() as logs:
        await sent(caller, a_webhook(an_alert()), "/")
    assert [entry for entry in logs if entry["event"] == "request.ignored"] == []
