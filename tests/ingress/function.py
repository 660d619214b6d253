"""A function for these tests: /echo shows how a request was read, elsewhere the arc of restart-loop-killer answers."""

from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from functions.restart_loop_killer import main as killer
from kreflex import trace
from kreflex.auth import CallerSettings, Gate
from kreflex.cluster import Contact
from kreflex.exchange import answer_json
from kreflex.readiness import Readiness
from kreflex.reflex import Arc
from kreflex.serve import REFLEXES, Service, _handle, answer
from kreflex.settings import CoreSettings
from kreflex.signals import Delivery, Due, Resolved, Signal
from kreflex.views import JSON
from tests.ingress.surroundings import API

assert killer.main is not None
# Who may call is not asked here: tests/shared/test_auth.py does that.
GATE = Gate(CallerSettings(callers="network"), API)


def told(said: Signal | Due | Resolved) -> JSON:
    """What was said, with its own trace if it has one."""
    fields = {name: value for name, value in asdict(said).items() if name != "trace"}
    return {**fields, "trace": said.trace.traceparent} if said.trace else fields


async def echo(delivery: Delivery) -> Response:
    signals = [{**told(one), "seen": one.seen is not None} for one in delivery.signals]
    due, resolved = [told(one) for one in delivery.due], [told(one) for one in delivery.resolved]
    rest = {"ignored": delivery.ignored, "wants_event": delivery.wants_event, "tick": delivery.tick}
    place = trace.current()
    assert place is not None
    about = {"about": dict(delivery.about), "trace": place.extensions}
    return answer_json({"signals": signals, "due": due, "resolved": resolved, **rest, **about})


async def ready() -> None:
    await API.send("GET", "/readyz")


READINESS = Readiness(Contact(), ready, GATE.check)


async def main(request: Request) -> Response:
    if request.url.path == "/echo":
        return await answer(request, Service(GATE, echo, READINESS))
    # A new one for each request: it remembers what it has dealt with, and the next test sends the same again.
    arc = Arc(REFLEXES["restart-loop-killer"], CoreSettings(), API)
    return await answer(request, Service(GATE, lambda delivery: _handle(arc, delivery), READINESS))
