"""What chaos-runner does when it is woken: it carries on what is due, and takes back what nobody remembers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import timedelta

from pydantic import ValidationError
from starlette.responses import Response

from kreflex import trace
from kreflex.audit import log
from kreflex.chaos.experiments import API, FINAL, KIND, Experiment, read_experiment
from kreflex.chaos.news import FINISHED, SOURCE, finished
from kreflex.chaos.orphans import Orphans
from kreflex.chaos.runner import Runner, Terms
from kreflex.cluster import Reader, Writer
from kreflex.errors import KreflexError, UnavailableError
from kreflex.exchange import answer_json, problem
from kreflex.ingress import cloudevents
from kreflex.settings import CoreSettings
from kreflex.signals import Delivery, Due
from kreflex.views import JSON
from kreflex.world import World

_MOST = 100


async def due(world: World) -> AsyncIterator[JSON]:
    """Name the experiments that chaos-runner should look at now: one list, for the waker."""
    now = world.now()
    async for body in world.cluster.everywhere(API, KIND):
        try:
            experiment = read_experiment(body)
        except ValidationError as error:
            # One whose status nobody can read must not keep the others from being taken back.
            log.warning("experiment.unreadable", experiment=body["metadata"]["name"], error=str(error))
            continue
        if experiment.due(now):
            yield {"namespace": experiment.namespace, "name": experiment.name}


class Chaos:
    """Handles the deliveries of chaos-runner."""

    def __init__(
        self, world: World, writer: Writer, core: CoreSettings, hosts: frozenset[str], linger: timedelta
    ) -> None:
        self._world = world
        self._reader: Reader = world.cluster
        budget = min(core.time_budget, linger) if linger else core.time_budget
        self._runner = Runner(world, writer, Terms(core.act_within, budget, hosts))
        self._orphans = Orphans(world, writer)
        self._width = core.concurrency

    async def handle(self, delivery: Delivery) -> Response:
        """Go on with the experiments that are named, or with all that are due when a clock ticks."""
        asked: Sequence[Due] = (*delivery.experiments, *delivery.due)
        if delivery.tick:
            asked = (*asked, *[Due(one["namespace"], one["name"]) async for one in due(self._world)])
        if delivery.ignored and not asked:
            log.info("request.ignored", why=list(delivery.ignored[:5]), **delivery.about)
        named = list(dict.fromkeys((one.namespace, one.record) for one in asked))
        # Beside it: what is known to be due does not wait for a look at the whole cluster.
        (done, failed), left = await asyncio.gather(
            self._go_on(named), self._orphans.take_back() if delivery.tick else _nothing()
        )
        errors = [*failed, *left]
        if errors:
            return problem(503, KreflexError("; ".join(errors[:5])))
        ended = [one for one in done if one.status.phase in FINAL]
        if delivery.wants_event and ended:
            return _event(ended)
        told = [{"about": str(one), "phase": one.status.phase, "because": one.status.reason} for one in done[:50]]
        return answer_json({"experiments": told, "ignored": list(delivery.ignored[:50])})

    async def sweep(self, _: Delivery) -> Response:
        """Take back what no experiment answers for any more, and nothing else; raises UnavailableError."""
        errors = await self._orphans.take_back()
        if errors:
            raise UnavailableError("; ".join(errors[:5]))
        return Response(status_code=204)

    async def _go_on(self, named: list[tuple[str, str]]) -> tuple[list[Experiment], list[str]]:
        """Carry all of them on side by side: each waits most of its time."""
        places = asyncio.Semaphore(_MOST)

        async def one(namespace: str, name: str) -> Experiment | str | None:
            async with places:
                try:
                    return await self._runner.go_on(namespace, name)
                except (KreflexError, ValidationError) as error:
                    # The others are carried on all the same.
                    log.warning("experiment.failed", experiment=f"{namespace}/{name}", error=str(error))
                    return f"Experiment {namespace}/{name}: {error}"

        found = await asyncio.gather(*(one(*where) for where in named), return_exceptions=True)
        for unforeseen in (one for one in found if isinstance(one, BaseException)):
            # When all of the others are done with.
            raise unforeseen
        return [o for o in found if isinstance(o, Experiment)], [o for o in found if isinstance(o, str)]


async def _nothing() -> list[str]:
    return []


def _event(ended: Sequence[Experiment]) -> Response:
    """Reply with the end of experiments: rollback and canary-aborter hear of what did not hold."""
    place = trace.current()
    extensions = place.extensions if place is not None else {}
    subject = f"{ended[0].namespace}/{ended[0].name}" if len(ended) == 1 else f"{len(ended)} experiments"
    data: JSON = finished(ended[0]) if len(ended) == 1 else {"items": [finished(one) for one in ended]}
    headers, body = cloudevents.write(SOURCE, FINISHED, subject, data, extensions)
    return Response(body, 200, dict(headers))
