"""CloudEvents in a batch: each is read as if it had come alone, and a bad one does not lose the rest."""

import json
import sys
from typing import Any

import pytest
from structlog.testing import capture_logs

from kreflex import ingress
from kreflex.errors import BadEventError
from kreflex.ingress.cloudevents import FOUND, MOST_BATCH_BYTES, MOST_BYTES, PING
from kreflex.views import JSON
from tests.ingress.conftest import Answer, Caller
from tests.ingress.surroundings import API
from tests.ingress.test_cloudevents import SEEN, TRACE, attributes
from tests.values import RUNNING, a_pod, a_status

HEADERS = {"content-type": "application/cloudevents-batch+json; charset=UTF-8"}


def an_event(data: Any = None, **about: str) -> JSON:
    return {**attributes(**about), "data": a_pod() if data is None else data}


async def batched(caller: Caller, *events: Any, path: str = "/echo") -> Answer:
    return await caller.post(list(events), HEADERS, path)


async def test_reads_each_event_of_a_batch(caller: Caller) -> None:
    record = {"kind": "Remediation", "metadata": {"namespace": "shop", "name": "r-1"}}
    answer = await batched(caller, an_event(), an_event(id="event-2"), an_event(record), an_event(type=PING))
    assert answer.json["signals"] == [SEEN, {**SEEN, "delivery": "event-2"}]
    assert (answer.json["due"], answer.json["tick"]) == ([{"namespace": "shop", "record": "r-1"}], True)


async def test_a_batch_is_answered_with_a_summary_and_never_with_an_event(caller: Caller) -> None:
    answer = await batched(caller, an_event(), an_event(type="com.example.order"), path="/")
    assert (answer.status, answer.headers["content-type"]) == (200, "application/json")
    (result,) = answer.json["results"]
    assert (result["about"], result["because"]) == ("pod shop/cart-1", "the pod is gone")
    assert answer.json["ignored"] == ["com.example.order is for no function here"]


BAD: list[tuple[Any, str]] = [
    (5, "[0]: must be an object"),
    (None, "[0]: must be an object"),
    ({}, "[0].specversion: is missing"),
    ({**an_event(), "type": ""}, "[0].type: is missing"),
    ({**an_event(), "source": 5}, "[0].source: must be a string, not 5"),
    (an_event("{"), "[0].data: is not JSON"),
    ({**attributes(), "data_base64": "?"}, "[0].data_base64: is not base64"),
    (an_event({"kind": "Pod"}), "[0].data: is not a whole Pod"),
    (an_event({"items": [5]}, type=FOUND), "[0].data.items[0]: must be an object"),
]


@pytest.mark.parametrize(("bad", "error"), BAD)
async def test_one_bad_event_does_not_lose_the_rest(caller: Caller, bad: Any, error: str) -> None:
    answer = await batched(caller, bad, an_event())
    assert (answer.status, answer.json["signals"]) == (200, [SEEN])
    (told,) = answer.json["ignored"]
    assert told.startswith(error)


@pytest.mark.parametrize(("bad", "error"), BAD)
async def test_a_batch_of_nothing_but_bad_events_is_refused(caller: Caller, bad: Any, error: str) -> None:
    answer = await batched(caller, bad, bad, path="/")
    assert (answer.status, API.calls) == (400, [])
    assert answer.json["error"].startswith(error)


async def test_the_log_says_which_event_was_bad(caller: Caller) -> None:
    healthy = an_event(a_pod(app=[a_status(state=RUNNING)]))
    with capture_logs() as logs:
        await batched(caller, healthy, healthy, {}, path="/")
    (logged,) = [entry for entry in logs if entry["event"] == "request.ignored"]
    assert (logged["why"], logged["events"]) == (["[2].specversion: is missing"], "3")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        (b"", "body: is empty"),
        (b"{", "body: is not JSON"),
        (b"{}", "body: must be a list of CloudEvents, not an object"),
        (b"5", "body: must be a list of CloudEvents, not 5"),
        (b"null", "body: must be a list of CloudEvents, not None"),
        (b"[" * 100_000, "body: is nested too deeply"),
    ],
)
async def test_refuses_what_is_no_batch(caller: Caller, body: bytes, error: str) -> None:
    answer = await caller.post(body, HEADERS)
    assert answer.status == 400
    assert answer.json["error"].startswith(error)


async def test_an_empty_batch_is_one(caller: Caller) -> None:
    answer = await batched(caller, path="/")
    assert (answer.status, answer.json) == (200, {"results": [], "ignored": []})


async def test_one_event_that_is_too_large_does_not_lose_the_rest(caller: Caller) -> None:
    large = an_event({**a_pod(), "padding": "x" * MOST_BYTES})
    answer = await batched(caller, an_event(), large)
    assert (answer.status, answer.json["signals"]) == (200, [SEEN])
    assert answer.json["ignored"] == [f"[1] is larger than {MOST_BYTES} bytes"]
    assert (await batched(caller, large)).status == 413


async def test_a_text_counts_as_the_bytes_that_it_has(caller: Caller) -> None:
    # In ASCII it would be twice as long, and too large.
    event = an_event({**a_pod(), "note": "事" * (MOST_BYTES // 4)})
    body = json.dumps([event, event], ensure_ascii=False).encode()
    assert len(body) > MOST_BYTES
    assert (await caller.post(body, HEADERS, "/echo")).json["ignored"] == []


def nested(depth: int) -> str:
    return json.dumps(an_event("?")).replace('"?"', "[" * depth + "]" * depth)


def is_read(*events: str) -> bool:
    try:
        ingress.parse(HEADERS, f"[{','.join(events)}]".encode())
    except BadEventError as error:
        return "nested too deeply" not in str(error)
    return True


def test_however_deep_an_event_is_nested_it_is_read_or_refused() -> None:
    limit, large = sys.getrecursionlimit(), json.dumps(an_event("x" * MOST_BYTES))
    deepest = max(depth for depth in range(limit) if is_read(nested(depth)))
    # To write an event, as its size is told, takes more depth than to read it takes.
    for depth in range(deepest - 10, deepest + 1):
        is_read(nested(depth), large)
    assert not is_read(nested(deepest + 1), large)


async def test_a_batch_over_the_limit_is_too_large_and_one_under_it_is_not(caller: Caller) -> None:
    event = json.dumps(an_event())
    body = f"[{event}{' ' * (MOST_BATCH_BYTES - len(event) - 2)}]".encode()
    assert (await caller.post(body, HEADERS, "/echo")).json["signals"] == [SEEN]
    assert (await caller.post(body + b" ", HEADERS, "/echo")).status == 413


async def test_each_event_keeps_its_own_trace(caller: Caller) -> None:
    answer = await batched(caller, an_event(traceparent=TRACE), an_event(id="event-2"))
    assert answer.json["signals"] == [{**SEEN, "trace": TRACE}, {**SEEN, "delivery": "event-2"}]
    assert answer.json["trace"]["traceparent"][3:35] != TRACE[3:35]
