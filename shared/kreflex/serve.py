"""The HTTP side of a function: requests in, answers out, as each sender understands them."""

from __future__ import annotations

import importlib
import inspect
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from starlette.requests import Request
from starlette.responses import Response

from kreflex import figures, ingress, trace
from kreflex.audit import log
from kreflex.auth import NETWORK, UNGUARDED, CallerSettings, Gate
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
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
from kreflex.exchange import Body, EarlyAnswer, Seldom, answer_json, problem
from kreflex.ingress import cloudevents
from kreflex.policy import GROUP, load_policies
from kreflex.prom import Metrics
from kreflex.readiness import LIFETIME, Readiness
from kreflex.records import Record
from kreflex.reflex import Arc, Asked, Reflex, Result, handle_all
from kreflex.settings import CoreSettings, Settings
from kreflex.signals import Answered, Delivery, NodeSignal, PodSignal, Resolved, Signal, WorkloadSignal
from kreflex.views import JSON
from kreflex.waking import Waker
from kreflex.world import Treatment, World

S = TypeVar("S", bound=Settings)
Main = Callable[[Request], Awaitable[Response]]
Handler = Callable[[Delivery], Awaitable[Response]]

# One function runs in a process; the waker loads several, to ask each what it would find.
REFLEXES: dict[str, Reflex[Any]] = {}
# Functions that look after objects of their own: each names what is due, so that the waker calls it.
ERRANDS: dict[str, Callable[[World], AsyncIterator[JSON]]] = {}

# What a clock wakes, beside the waker: `python -m kreflex.once` does the same without a server.
CLOCKED: dict[str, Callable[[Reader, Writer], Handler]] = {}

_TOLD = 50
# A request more is told to come again. Each may hold a body of 32 MiB.
_MOST_REQUESTS = 200
_SENDERS = frozenset({"alertmanager", "argo-events", "cloudevents", "flagger"})
_STRANGERS = Seldom()


@dataclass(frozen=True)
class Service:
    """What a request meets: who lets it in, what handles it, and what tells whether we are ready for it."""

    gate: Gate
    handle: Handler
    readiness: Readiness

    @classmethod
    def of(cls, transport: Transport, reader: Reader, handle: Handler) -> Service:
        """Make a service that lets in whom the environment names; raises SettingsError."""
        gate = Gate(CallerSettings.from_environment(), transport)
        LIFETIME.closers.append(transport.close)
        return cls(gate, handle, Readiness(transport.contact, lambda: load_policies(reader), gate.check))


def serve(
    find: Callable[[World, S], AsyncIterator[Signal]],
    decide: Callable[[Any, World, S], Awaitable[Any]],
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
        return Service.of(transport, arc.reader, lambda delivery: _handle(arc, delivery))

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
    for name in urls:
        _load(name)
    reflexes = [REFLEXES[name] for name in urls if name in REFLEXES]
    errands = {name: ERRANDS[name] for name in urls if name in ERRANDS}

    def made() -> Service:
        transport = Transport(load_credentials())
        world = World(Reader(transport, core.looked_after), Metrics(*core.metrics))
        waker = Waker(urls, reflexes, world, Writer(transport), core, retain, errands)
        return Service.of(transport, world.cluster, lambda delivery: _round(waker, delivery))

    return _main(made)


def experiment(name: str, hosts: frozenset[str], linger: timedelta) -> Main:
    """Make chaos-runner's `main`; `hosts` are those that probes may ask beside Services of their own namespace."""
    # Only it needs this, and a function starts for one event.
    from kreflex.chaos import service  # noqa: PLC0415

    core = CoreSettings.from_environment()
    ERRANDS[name] = service.due

    def chaos(reader: Reader, writer: Writer) -> service.Chaos:
        world = World(reader, Metrics(*core.metrics), name, core.kreflex_namespace)
        return service.Chaos(world, writer, core, hosts, linger)

    # What is due, the waker has the server do, whose pods probes come from.
    CLOCKED[name] = lambda reader, writer: chaos(reader, writer).sweep
    return _main(lambda: _clocked(lambda reader, writer: chaos(reader, writer).handle, core))


def score_watches(detector: str, state_store: str, sink: str, alertmanagers: str, **terms: Any) -> Main:
    """Make anomaly-scorer's `main`; raises SettingsError for a detector or a store that there is not."""
    # numpy would begin with a thread and a buffer for each core, for products of matrices; there are none here.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    # Only it needs numpy.
    from kreflex.anomaly.door import Doors  # noqa: PLC0415

    core = CoreSettings.from_environment()
    opened = Doors(core, detector, state_store, sink, alertmanagers, **terms)
    CLOCKED["anomaly-scorer"] = opened.handler

    return _main(lambda: _clocked(opened.handler, core))


def _clocked(handler: Callable[[Reader, Writer], Handler], core: CoreSettings) -> Service:
    transport = Transport(load_credentials())
    reader = Reader(transport, core.looked_after)
    return Service.of(transport, reader, handler(reader, Writer(transport)))


def _load(name: str) -> None:
    try:
        importlib.import_module(f"functions.{name.replace('-', '_')}.main")
    except ModuleNotFoundError as error:
        raise SettingsError(
            [f"FUNCTIONS names {name!r}, but there is no functions/{name.replace('-', '_')}/"]
        ) from error


async def _round(waker: Waker, delivery: Delivery) -> Response:
    if not delivery.tick:
        log.info("request.ignored", why=["only a clock wakes the waker"], **delivery.about)
        if delivery.gate:
            # See _gate: whatever is below would be taken for a yes.
            return problem(412, KreflexError("only a clock wakes the waker"))
        return Response(status_code=204)
    failures = await waker.go()
    if failures:
        raise UnavailableError("; ".join(failures[:5]))
    return Response(status_code=204)


async def answer(request: Request, service: Service) -> Response:
    """Answer one request: probes by path, everything else as a delivery; every failure becomes its status code."""
    if request.method == "GET":
        return await _probe(request.url.path, service)
    response = await _answer(request, service, time.time_ns())
    if LIFETIME.ending:
        # Who kept the connection would meet a closed one with the next request.
        response.headers["Connection"] = "close"
    return response


async def _answer(request: Request, service: Service, began: int) -> Response:
    nothing, body = Delivery(trace=trace.from_headers(request.headers)), Body(request.receive)
    try:
        # Before the body is read: a stranger's bytes are never parsed, and he takes nobody's place.
        await service.gate.admit(request.headers.getlist("authorization"))
        with _place():
            delivery = ingress.parse(request.headers, await body.read(ingress.most_bytes(request.headers)))
            body.let_go()
            return await _traced(service.handle(delivery), delivery, began)
    except Exception as error:  # noqa: BLE001 - it is raised again, where log lines name the trace
        response = await _traced(_fails(error), nothing, began)
        return response if body.whole else EarlyAnswer(response)
    finally:
        body.let_go()


@contextmanager
def _place() -> Iterator[None]:
    if figures.IN_FLIGHT.value >= _MOST_REQUESTS:
        raise UnavailableError(f"{_MOST_REQUESTS} requests are being answered already; come again")
    figures.IN_FLIGHT.value += 1
    try:
        yield
    finally:
        figures.IN_FLIGHT.value -= 1


async def _fails(error: Exception) -> Response:
    raise error


async def _traced(work: Awaitable[Response], delivery: Delivery, began: int) -> Response:
    with trace.span("process", delivery.trace, kind="consumer", began=began) as span:
        response = await _settled(work)
        about = {f"kreflex.{name}": value for name, value in delivery.about.items()}
        span.tell({"http.response.status_code": response.status_code, **about})
        seconds = (time.time_ns() - began) / 1e9
        figures.REQUESTS.observe(seconds, _sender(delivery), str(response.status_code))
        return response


def _sender(delivery: Delivery) -> str:
    # One of a few words: it becomes a label, and a source is whatever somebody wrote into his event.
    sender = "cloudevents" if delivery.wants_event else delivery.about.get("sender", "")
    return sender if sender in _SENDERS else "unknown"


async def _settled(work: Awaitable[Response]) -> Response:
    try:
        return await work
    except UnauthenticatedError as error:
        return _stranger(401, error)
    except ForbiddenError as error:
        return _stranger(403, error)
    except BadEventError as error:
        return _refusal(400, error)
    except TooLargeError as error:
        return _refusal(413, error)
    except UnavailableError as error:
        log.warning("request.unavailable", error=str(error))
        return problem(503, error)
    except Exception as error:  # noqa: BLE001 - see the next line
        # The one place that catches everything: a bug is a 500 with its traceback, and the sender comes again.
        log.exception("request.failed")
        return problem(500, KreflexError(f"{type(error).__name__}: {error}"))


async def _probe(path: str, service: Service) -> Response:
    # No token is asked for: a kubelet has none, and nothing that is told here names an object of the cluster.
    if path == "/healthz":
        return Response("ok")
    if path == "/metrics":
        return Response(figures.render(), media_type=figures.CONTENT_TYPE)
    if path == "/readyz":
        try:
            await service.readiness.check()
        except UnavailableError as error:
            return Response(f"not ready: {error}", 503)
        return Response(f"ok; {UNGUARDED}" if NETWORK in service.gate.modes else "ok")
    return problem(404, KreflexError(f"{path} is not served; events are POSTed to /"))


def _stranger(status: int, error: KreflexError) -> Response:
    _STRANGERS.warn("request.stranger", status=status, error=str(error))
    return problem(status, error)


def _refusal(status: int, error: KreflexError) -> Response:
    log.warning("request.refused", status=status, error=str(error))
    return problem(status, error)


async def _handle(arc: Arc[Any], delivery: Delivery) -> Response:
    delivery = _heeded(arc.reflex, delivery)
    if delivery.ignored:
        log.info("request.ignored", count=len(delivery.ignored), why=list(delivery.ignored[:5]), **delivery.about)
    asked: tuple[Asked, ...] = (*delivery.signals, *delivery.due, *delivery.resolved, *delivery.answered)
    results, errors = await handle_all(arc, asked, arc.core.time_budget)
    for result in results:
        figures.SIGNALS.add(result.outcome)
    for error in errors:
        figures.SIGNALS.add("unavailable" if isinstance(error, UnavailableError) else "error")
        if not isinstance(error, UnavailableError):
            log.error("signal.failed", error=repr(error), exc_info=error)
    if delivery.gate and not errors:
        return await _gate(arc, delivery, results)
    if errors:
        # The rest is not lost: what is recorded is a duplicate when the sender comes again.
        status = 503 if all(isinstance(error, UnavailableError) for error in errors) else 500
        return problem(status, KreflexError("; ".join(str(error) for error in errors[:5])))
    return _event(arc.reflex.name, results) if delivery.wants_event else _summary(delivery, results)


def _heeded(reflex: Reflex[Any], delivery: Delivery) -> Delivery:
    """Leave out what the function is not for: an alert may name a pod and its node, and both stand in the delivery.

    And what it has said itself, in a reply or in a record: that would wake it again and again.
    """
    heeds = reflex.heeds
    delivery = _of_others(reflex, delivery)
    strange: list[Signal | Resolved | Answered] = [one for one in delivery.signals if not isinstance(one, heeds)]
    strange += delivery.resolved if PodSignal not in heeds else ()
    strange += delivery.answered if NodeSignal not in heeds else ()
    if not strange:
        return delivery
    return replace(
        delivery,
        signals=tuple(one for one in delivery.signals if isinstance(one, heeds)),
        resolved=delivery.resolved if PodSignal in heeds else (),
        answered=delivery.answered if NodeSignal in heeds else (),
        ignored=(*delivery.ignored, *(f"{one} is not for {reflex.name}" for one in strange)),
    )


def _of_others(reflex: Reflex[Any], delivery: Delivery) -> Delivery:
    mine, said = f"{reflex.name}-", f"{GROUP}/functions/{reflex.name}"
    return replace(
        delivery,
        signals=tuple(one for one in delivery.signals if one.source != said),
        # By its name, so that another function's record costs no call.
        due=tuple(one for one in delivery.due if one.record.startswith(mine)),
    )


async def _gate(arc: Arc[Any], delivery: Delivery, results: Sequence[Result]) -> Response:
    """Answer who takes each success for a yes: 200 only while a record says so, and 412 in every other case.

    412, because retryablehttp, which Flagger calls with, repeats 429 and what is 500 or more.
    """
    opened = [await arc.opened(signal) for signal in delivery.signals if isinstance(signal, WorkloadSignal)]
    if opened and all(opened):
        return _summary(delivery, results)
    told = [result.because for result in results] or list(delivery.ignored)
    return problem(412, KreflexError("; ".join(told) or "there is nothing to roll back"))


def _summary(delivery: Delivery, results: Sequence[Result]) -> Response:
    told = [{"about": r.about, "outcome": r.outcome, "because": r.because} for r in results[:_TOLD]]
    return answer_json({"results": told, "ignored": list(delivery.ignored[:_TOLD])})


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
