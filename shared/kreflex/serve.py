"""The HTTP side of a function: requests in, answers out, as each sender understands them."""

from __future__ import annotations

import importlib
import inspect
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from kreflex import ingress, trace
from kreflex.audit import log
from kreflex.auth import CallerSettings, Gate
from kreflex.cluster import Reader, Transport, Writer, load_credentials
from kreflex.decisions import Defer, Verdict
from kreflex.errors import (
    BadEventError,
    ForbiddenError,
    KreflexError,
    SettingsError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
)
from kreflex.ingress import cloudevents
from kreflex.policy import load_policies
from kreflex.prom import Metrics
from kreflex.records import Record
from kreflex.reflex import Arc, Reflex, Result, handle_all
from kreflex.settings import CoreSettings, Settings
from kreflex.signals import Delivery, Due, Resolved, Signal
from kreflex.views import JSON
from kreflex.waking import Waker
from kreflex.world import Treatment, World

S = TypeVar("S", bound=Settings)
Main = Callable[[Request], Awaitable[Response]]

# One function runs in a process; the waker loads several, to ask each what it would find.
REFLEXES: dict[str, Reflex[Any]] = {}

_TOLD = 50


@dataclass(frozen=True)
class Service:
    """What a request meets: who lets it in, what handles it, and what tells whether we are ready for it."""

    gate: Gate
    handle: Callable[[Delivery], Awaitable[Response]]
    ready: Callable[[], Awaitable[object]]


def serve(
    find: Callable[[World, S], AsyncIterator[Signal]],
    decide: Callable[[Signal, World, S], Awaitable[Any]],
    recovered: Callable[[Treatment, World, S], Awaitable[Verdict | Defer]],
) -> Main:
    """Make a function's `main` from its three questions; raises SettingsError with every faulty variable.

    The function's name is its folder's; its settings are read from the environment by the class that `decide` names.
    """
    settings_class: type[S] = get_type_hints(decide)["settings"]
    name = Path(inspect.getfile(decide)).parent.name.replace("_", "-")
    reflex = Reflex(name, find, decide, recovered, settings_class.from_environment())
    REFLEXES[name] = reflex
    core = CoreSettings.from_environment()

    def made() -> Service:
        transport = Transport(load_credentials())
        arc = Arc(reflex, core, transport)
        gate = Gate(CallerSettings.from_environment(), transport)
        return Service(gate, lambda delivery: _handle(arc, delivery), lambda: load_policies(arc.reader))

    return _main(made)


def _main(make: Callable[[], Service]) -> Main:
    services: list[Service] = []

    async def main(request: Request) -> Response:
        # Made at the first request: credentials are needed then, and connections belong to the running loop.
        if not services:
            services.append(make())
        return await answer(request, services[0])

    return main


def wake(urls: Mapping[str, str], retain: timedelta) -> Main:
    """Make the waker's `main`: every tick of a clock is one round; raises SettingsError for an unknown function."""
    core = CoreSettings.from_environment()
    reflexes = [_reflex(name) for name in urls]

    def made() -> Service:
        transport = Transport(load_credentials())
        world = World(Reader(transport), Metrics(core.prometheus_url))
        waker = Waker(urls, reflexes, world, Writer(transport), core, retain)
        gate = Gate(CallerSettings.from_environment(), transport)
        return Service(gate, lambda delivery: _round(waker, delivery), lambda: load_policies(world.cluster))

    return _main(made)


def _reflex(name: str) -> Reflex[Any]:
    try:
        importlib.import_module(f"functions.{name.replace('-', '_')}.main")
    except ModuleNotFoundError as error:
        raise SettingsError(
            [f"FUNCTIONS names {name!r}, but there is no functions/{name.replace('-', '_')}/"]
        ) from error
    return REFLEXES[name]


async def _round(waker: Waker, delivery: Delivery) -> Response:
    if not delivery.tick:
        log.info("request.ignored", why=["only a clock wakes the waker"], **delivery.about)
        return Response(status_code=204)
    failures = await waker.go()
    if failures:
        raise UnavailableError("; ".join(failures[:5]))
    return Response(status_code=204)


async def answer(request: Request, service: Service) -> Response:
    """Answer one request: probes by path, everything else as a delivery; every failure becomes its status code."""
    if request.method == "GET":
        return await _settled(_probe(request.url.path, service.ready))
    began = time.time_ns()
    try:
        # Before the body is read: a stranger's bytes are never parsed.
        await service.gate.admit(request.headers.getlist("authorization"))
        delivery = await read(request)
    except Exception as error:  # noqa: BLE001 - it is raised again, where log lines name the trace
        return await _traced(_fails(error), Delivery(trace=trace.from_headers(request.headers)), began)
    return await _traced(service.handle(delivery), delivery, began)


async def _fails(error: Exception) -> Response:
    raise error


async def _traced(work: Awaitable[Response], delivery: Delivery, began: int) -> Response:
    with trace.span("process", delivery.trace, kind="consumer", began=began) as span:
        response = await _settled(work)
        about = {f"kreflex.{name}": value for name, value in delivery.about.items()}
        span.tell({"http.response.status_code": response.status_code, **about})
        return response


async def _settled(work: Awaitable[Response]) -> Response:
    try:
        return await work
    except UnauthenticatedError as error:
        return _refusal(401, error)
    except ForbiddenError as error:
        return _refusal(403, error)
    except BadEventError as error:
        return _refusal(400, error)
    except TooLargeError as error:
        return _refusal(413, error)
    except UnavailableError as error:
        log.warning("request.unavailable", error=str(error))
        return _problem(503, error)
    except Exception as error:  # noqa: BLE001 - see the next line
        # The one place that catches everything: a bug is a 500 with its traceback, and the sender comes again.
        log.exception("request.failed")
        return _problem(500, KreflexError(f"{type(error).__name__}: {error}"))


async def read(request: Request) -> Delivery:
    """Read a request into a delivery; raises BadEventError or TooLargeError."""
    most, body = ingress.most_bytes(request.headers), bytearray()
    try:
        async for chunk in request.stream():
            body += chunk
            if len(body) > most:
                raise TooLargeError(f"the body is larger than {most} bytes")
    except ClientDisconnect as error:
        raise BadEventError("body", "ended before it was whole") from error
    return ingress.parse(request.headers, body)


async def _probe(path: str, ready: Callable[[], Awaitable[object]]) -> Response:
    if path == "/healthz":
        return Response("ok")
    if path == "/readyz":
        await ready()
        return Response("ok")
    return _problem(404, KreflexError(f"{path} is not served; events are POSTed to /"))


def _refusal(status: int, error: KreflexError) -> Response:
    log.warning("request.refused", status=status, error=str(error))
    refusal = _problem(status, error)
    if status == 401:
        refusal.headers["WWW-Authenticate"] = 'Bearer realm="kreflex"'
    return refusal


def _problem(status: int, error: KreflexError) -> Response:
    return _json({"error": str(error)[:2000]}, status)


def _json(body: JSON, status: int = 200) -> Response:
    # In ASCII: half a surrogate pair, which JSON may hold, can't be encoded otherwise.
    return Response(json.dumps(body), status, media_type="application/json")


async def _handle(arc: Arc[Any], delivery: Delivery) -> Response:
    if delivery.ignored:
        log.info("request.ignored", count=len(delivery.ignored), why=list(delivery.ignored[:5]), **delivery.about)
    asked: tuple[Signal | Due | Resolved, ...] = (*delivery.signals, *delivery.due, *delivery.resolved)
    results, errors = await handle_all(arc, asked, arc.core.time_budget)
    for error in errors:
        if not isinstance(error, UnavailableError):
            log.error("signal.failed", error=repr(error), exc_info=error)
    if errors:
        # The rest is not lost: what is recorded is a duplicate when the sender comes again.
        status = 503 if all(isinstance(error, UnavailableError) for error in errors) else 500
        return _problem(status, KreflexError("; ".join(str(error) for error in errors[:5])))
    return _event(arc.reflex.name, results) if delivery.wants_event else _summary(delivery, results)


def _summary(delivery: Delivery, results: Sequence[Result]) -> Response:
    told = [{"about": r.about, "outcome": r.outcome, "because": r.because} for r in results[:_TOLD]]
    return _json({"results": told, "ignored": list(delivery.ignored[:_TOLD])})


def _event(name: str, results: Sequence[Result]) -> Response:
    changed = [result.changed for result in results if result.changed is not None]
    if not changed:
        return Response(status_code=204)
    kind = _kind(changed[0]) if len(changed) == 1 else "changed"
    subject = f"{changed[0].namespace}/{changed[0].name}" if len(changed) == 1 else f"{len(changed)} remediations"
    data: JSON = {"items": [_told(record) for record in changed]}
    source = f"kreflex.dev/functions/{name}"
    place = trace.current()
    extensions = place.extensions if place is not None else {}
    headers, body = cloudevents.write(source, f"dev.kreflex.remediation.{kind}.v1", subject, data, extensions)
    return Response(body, 200, dict(headers))


def _kind(record: Record) -> str:
    status = record.status
    return (status.verdict or status.outcome or status.phase).lower()


def _told(record: Record) -> JSON:
    status = record.status
    return {
        "namespace": record.namespace,
        "name": record.name,
        "function": record.spec.function,
        "target": record.spec.target.model_dump(mode="json", by_alias=True),
        "owner": record.spec.owner.model_dump(mode="json", by_alias=True) if record.spec.owner else None,
        "phase": status.phase,
        "outcome": status.outcome,
        "cause": status.guard,
        "reason": status.reason,
        "verdict": status.verdict,
        "verdictReason": status.verdict_reason,
    }
