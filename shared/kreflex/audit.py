"""What people see of a decision: a log line with fields, and a Kubernetes Event on the object."""

from __future__ import annotations

import hashlib
import socket
from typing import Literal

import structlog

from kreflex import trace
from kreflex.cluster import Writer
from kreflex.errors import KreflexError
from kreflex.policy import GROUP
from kreflex.records import Record
from kreflex.rule import Check, Rule
from kreflex.views import JSON

log: structlog.stdlib.BoundLogger = structlog.get_logger("kreflex")

_NOTE = 1000
RBAC = (
    Rule(
        "events.k8s.io",
        "events",
        "create",
        checks=(
            Check(
                f"object.?reportingController.orValue('') == '{GROUP}/' + variables.me",
                "an Event says which function wrote it",
            ),
        ),
    ),
)


def configure_logging() -> None:
    """Write one JSON object a line to stdout, with the time in UTC."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            add_trace,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.dict_tracebacks,
            structlog.processors.JSONRenderer(),
        ],
        cache_logger_on_first_use=True,
    )


def add_trace(_: object, __: str, entry: structlog.typing.EventDict) -> structlog.typing.EventDict:
    """Name the trace in a line that is logged within a request, as OpenTelemetry's log correlation does."""
    place = trace.current()
    return entry if place is None else {**entry, "trace_id": place.trace_id, "span_id": place.span_id}


class Announcer:
    """Writes Kubernetes Events. One that can't be written is logged: the record holds the same."""

    def __init__(self, writer: Writer, function: str) -> None:
        self._writer = writer
        self._function = function

    async def tell(self, record: Record, kind: Literal["Normal", "Warning"], reason: str, note: str) -> None:
        """Write the Event of one change of a record; the same change told twice is one Event."""
        target, owner = record.spec.target, record.spec.owner
        # A pool may be no more than a label of its nodes.
        regarding = target if owner is None or record.status.verdict is None or target.kind == "Node" else owner
        # The API server takes those about what is in no namespace here only (kubernetes, pkg/apis/core/validation).
        namespace = target.namespace or "default"
        digest = hashlib.sha256(f"{record.uid}/{reason}/{record.status.attempt}".encode()).hexdigest()[:10]
        now = record.status.history[-1].model_dump(mode="json")["at"].replace("Z", "000Z")
        body: JSON = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": f"{record.name}.{digest}", "namespace": namespace},
            "eventTime": now,
            "reportingController": f"{GROUP}/{self._function}",
            "reportingInstance": socket.gethostname()[:128] or self._function,
            "action": "Remediate",
            "reason": reason[:128],
            "type": kind,
            "note": note[:_NOTE],
            "regarding": {
                "apiVersion": regarding.api_version,
                "kind": regarding.kind,
                "namespace": regarding.namespace,
                "name": regarding.name,
                "uid": regarding.uid,
            },
        }
        try:
            await self._writer.create(f"/apis/events.k8s.io/v1/namespaces/{namespace}/events", body)
        except KreflexError as error:
            if getattr(error, "reason", "") != "AlreadyExists":
                log.warning("event.not_written", record=str(record), error=str(error))
