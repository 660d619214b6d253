"""One trace from the event to the reply, the record, the log lines and the spans of a function that is a process."""

import json
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from lab import callers
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.serving import PING, Served, served

SENDER = "b7ad6b7169203331"
EVENT = PING | {"ce-type": "dev.knative.apiserver.resource.update", "content-type": "application/json"}


@dataclass
class Receiver:
    """Takes spans as an OpenTelemetry collector does."""

    url: str = ""
    spans: list[Span] = field(default_factory=list)
    services: set[str] = field(default_factory=set)

    async def take(self, request: web.Request) -> web.Response:
        told = ExportTraceServiceRequest.FromString(await request.read())
        for resource in told.resource_spans:
            self.services |= {a.value.string_value for a in resource.resource.attributes if a.key == "service.name"}
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return web.Response(content_type="application/x-protobuf")

    async def span(self, trace_id: str, name: str, span_id: str = "") -> Span:
        """Wait for a span of a trace."""

        async def found() -> Span | None:
            named = (s for s in self.spans if (s.trace_id.hex(), s.name) == (trace_id, name))
            return next((s for s in named if span_id in {"", s.span_id.hex()}), None)

        span: Span = await eventually(found, f"span {name} of {trace_id}")
        return span

    def below(self, span: Span) -> list[Span]:
        """Tell the spans that it waited for; they ended first, so they are here."""
        return [s for s in self.spans if s.parent_span_id == span.span_id]


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    made = Receiver()
    application = web.Application()
    application.router.add_post("/v1/traces", made.take)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()


async def send(function: Served, body: Any, **headers: str) -> tuple[dict[str, str], int]:
    """Send an event; the answer's headers and status."""
    data = json.dumps(body).encode()
    async with function.client.post(
        function.url, headers=callers.headers(function.plane) | headers, data=data
    ) as answer:
        await answer.read()
        return dict(answer.headers), answer.status


async def act(function: Served, pod: Any, **header: str) -> tuple[str, dict[str, str]]:
    """Tell of a looping pod until something is done, for it may run just now; the trace of all tries, and the reply."""
    ((name, value),), trace_id = header.items(), uuid.uuid4().hex

    async def acted() -> tuple[str, dict[str, str]] | None:
        parent = {name.replace("_", "-"): value.format(trace_id)}
        reply, status = await send(function, pod, **EVENT, **parent)
        return (trace_id, reply) if status == 200 else None

    found: tuple[str, dict[str, str]] = await eventually(acted, "a reply")
    return found


def lines(function: Served) -> list[dict[str, Any]]:
    """Tell what the function has logged."""
    return [json.loads(line) for line in function.child.log.read_text().splitlines() if line.startswith("{")]


def attributes(span: Span) -> dict[str, Any]:
    return {one.key: one.value.string_value or one.value.int_value for one in span.attributes}


@pytest.fixture(scope="module")
async def collector() -> AsyncIterator[Receiver]:
    async with receiver() as made:
        yield made


@pytest.fixture(scope="module")
async def function(installed: ControlPlane, collector: Receiver) -> AsyncIterator[Served]:
    """restart-loop-killer, which tells of its spans ten times a second."""
    await callers.issue(installed, callers.PERSON)
    spans = {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url, "OTEL_BSP_SCHEDULE_DELAY": "100"}
    async with served(installed, **spans) as running:
        yield running


async def test_a_trace_goes_from_the_event_to_everything_that_comes_of_it(
    here: kit.Place, function: Served, collector: Receiver
) -> None:
    pod = await here.loop((await here.deployment())[0])
    trace_id, reply = await act(function, pod, ce_traceparent=f"00-{{}}-{SENDER}-01")
    replied = reply["ce-traceparent"].split("-")
    process = await collector.span(trace_id, "process", replied[2])
    (signal,) = collector.below(process)
    calls = collector.below(signal)
    signals = {span.span_id.hex() for span in collector.spans if span.name == "PodSignal"}
    (record,) = await here.records()
    logged = [line for line in lines(function) if record["metadata"]["name"] in line.get("record", "")]

    assert collector.services == {"restart-loop-killer"}
    assert (process.kind, process.parent_span_id.hex()) == (Span.SPAN_KIND_CONSUMER, SENDER)
    assert signal.name == "PodSignal"
    assert attributes(process)["http.response.status_code"] == 200
    assert attributes(signal)["kreflex.outcome"] == record["status"]["outcome"]
    assert {span.kind for span in calls} == {Span.SPAN_KIND_CLIENT}
    path = f"/api/v1/namespaces/{here.name}/pods/{pod['metadata']['name']}"
    assert ("GET", path) in [(span.name, attributes(span)["url.path"]) for span in calls]
    opened = record["spec"]["fault"]["traceparent"].split("-")
    assert (opened[1], replied[1], opened[2] in signals) == (trace_id, trace_id, True)
    assert {line["trace_id"] for line in logged} == {trace_id}
    assert {line["span_id"] for line in logged} <= signals


async def test_what_the_waker_calls_for_goes_on_in_the_trace_of_the_record(
    here: kit.Place, function: Served, collector: Receiver
) -> None:
    """The round has a trace of its own; the record is carried on in the one that opened it."""
    waking = "a" * 32
    pod = await here.loop((await here.deployment())[0])
    opening, _ = await act(function, pod, traceparent=f"00-{{}}-{SENDER}-01")
    (record,) = await here.records()
    opened = record["spec"]["fault"]["traceparent"]
    item = {"namespace": here.name, "name": record["metadata"]["name"], "traceparent": opened}
    due = {"ce-type": "dev.kreflex.remediation.due.v1", "ce-traceparent": f"00-{waking}-{SENDER}-01"}
    await send(function, {"items": [item]}, **EVENT | due)

    round_ = await collector.span(waking, "process")
    carried = await collector.span(opening, "Due")
    assert carried.parent_span_id.hex() == opened.split("-")[2]
    assert [link.span_id for link in carried.links] == [round_.span_id]


async def test_a_receiver_that_is_down_is_no_reason_to_fail(installed: ControlPlane) -> None:
    nowhere = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1", "OTEL_EXPORTER_OTLP_TIMEOUT": "1"}
    await callers.issue(installed, callers.PERSON)
    async with served(installed, **nowhere, DRAIN_GRACE="0s") as function:
        assert (await send(function, {}, **PING))[1] == 204
        await function.child.stop(patience=30)
        assert function.child.exit_code == 0
