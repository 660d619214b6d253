"""Spans for OpenTelemetry, sent with OTLP over HTTP. Imported by trace.py alone, and only where a receiver is named."""

from __future__ import annotations

import os
from collections.abc import Mapping

from opentelemetry import trace as api
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from kreflex.trace import Kind, Trace

_KINDS = {"consumer": api.SpanKind.CONSUMER, "internal": api.SpanKind.INTERNAL, "client": api.SpanKind.CLIENT}


class Otel:
    """Writes spans under the name of a function, unless OTEL_SERVICE_NAME gives another."""

    def __init__(self, service: str) -> None:
        named = "service.name=" in os.environ.get("OTEL_RESOURCE_ATTRIBUTES", "") or os.environ.get("OTEL_SERVICE_NAME")
        resource = Resource.create({} if named else {"service.name": service})
        self._provider = TracerProvider(resource=resource)
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("kreflex")

    def begin(self, name: str, kind: Kind, parent: Trace | None, link: Trace | None, began: int | None) -> OtelSpan:
        """Begin a span."""
        context = Context()
        if parent is not None:
            context = api.set_span_in_context(api.NonRecordingSpan(_place(parent)), context)
        links = [api.Link(_place(link))] if link is not None else []
        return OtelSpan(
            self._tracer.start_span(name, context=context, kind=_KINDS[kind], links=links, start_time=began)
        )

    def close(self) -> None:
        """Send what is left."""
        self._provider.shutdown()


class OtelSpan:
    """One of OpenTelemetry's spans."""

    def __init__(self, span: api.Span) -> None:
        self._span = span
        context = span.get_span_context()
        self.trace = Trace(
            api.format_trace_id(context.trace_id),
            api.format_span_id(context.span_id),
            f"{int(context.trace_flags):02x}",
            context.trace_state.to_header(),
        )

    def tell(self, attributes: Mapping[str, str | int]) -> None:
        """Say more about the work."""
        self._span.set_attributes(dict(attributes))

    def end(self, error: BaseException | None) -> None:
        """The work is over."""
        if error is not None:
            self._span.record_exception(error)
            self._span.set_status(api.StatusCode.ERROR, str(error))
        self._span.end()


def _place(trace: Trace) -> api.SpanContext:
    return api.SpanContext(
        trace_id=int(trace.trace_id, 16),
        span_id=int(trace.span_id, 16),
        is_remote=True,
        trace_flags=api.TraceFlags(int(trace.flags, 16)),
        trace_state=api.TraceState.from_header([trace.state]),
    )
