"""Functions for these tests: /echo shows what is read, /nodes and /releases find all well, else the killer answers."""

from collections.abc import AsyncIterator
from dataclasses import asdict

from starlette.requests import Request
from starlette.responses import Response

from functions.restart_loop_killer import main as killer
from kreflex import Settings, Skip, Treatment, Unknown, World, trace
from kreflex.auth import CallerSettings, Gate
from kreflex.cluster import Contact
from kreflex.exchange import answer_json
from kreflex.readiness import Readiness
from kreflex.reflex import Arc, Reflex
from kreflex.serve import REFLEXES, Service, _handle, answer
from kreflex.settings import CoreSettings
from kreflex.signals import Answered, Delivery, Due, NodeSignal, Resolved, Signal, WorkloadSignal
from kreflex.views import JSON
from tests.ingress.surroundings import API

assert killer.main is not None
# Who may call is not asked here: tests/shared/test_auth.py does that.
GATE = Gate(CallerSettings(callers="network"), API)


async def find(world: World, settings: Settings) -> AsyncIterator[NodeSignal]:
    async for body in world.cluster.list("/api/v1/nodes"):
        yield NodeSignal(body["metadata"]["name"])


async def decide(signal: NodeSignal, world: World, settings: Settings) -> Skip:
    return Skip("the node is well")


async def recovered(treatment: Treatment, world: World, settings: Settings) -> Unknown:
    return Unknown("nothing was done")


async def decide_of_release(signal: WorkloadSignal, world: World, settings: Settings) -> Skip:
    return Skip("the release is well")


NODES = Reflex("node-watcher", find, decide, recovered, Settings())
RELEASES = Reflex("release-watcher", find, decide_of_release, recovered, Settings())


def told(said: Signal | Due | Resolved | Answered) -> JSON:
    """What was said, with its own trace if it has one."""
    fields = {name: value for name, value in asdict(said).items() if name != "trace"}
    return {**fields, "trace": said.trace.traceparent} if said.trace else fields


async def echo(delivery: Delivery) -> Response:
    signals = [{**told(one), "seen": one.seen is not None} for one in delivery.signals]
    due, resolved = [told(one) for one in delivery.due], [told(one) for one in delivery.resolved]
    answered = [told(one) for one in delivery.answered]
    rest = {"ignored": delivery.ignored, "wants_event": delivery.wants_event, "tick": delivery.tick}
    place = trace.current()
    assert place is not None
    about = {"about": dict(delivery.about), "trace": place.extensions}
    return answer_json({"signals": signals, "due": due, "resolved": resolved, "answered": answered, **rest, **about})


async def ready() -> None:
    await API.send("GET", "/readyz")


READINESS = Readiness(Contact(), ready, GATE.check)


async def main(request: Request) -> Response:
    if request.url.path == "/echo":
        return await answer(request, Service(GATE, echo, READINESS))
    # A new one for each request: it remembers what it has dealt with, and the next test sends the same again.
    reflex = {"/nodes": NODES, "/releases": RELEASES}.get(request.url.path, REFLEXES["restart-loop-killer"])
    arc = Arc(reflex, CoreSettings(), API)
    return await answer(request, Service(GATE, lambda delivery: _handle(arc, delivery), READINESS))
