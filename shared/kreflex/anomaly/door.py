"""Deliveries to anomaly-scorer, and how each is answered."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta

from starlette.responses import Response

from kreflex.anomaly import memory
from kreflex.anomaly.alerting import Alertmanagers
from kreflex.anomaly.anomalies import Said
from kreflex.anomaly.events import Sink
from kreflex.anomaly.plugins import detector
from kreflex.anomaly.reading import Samples
from kreflex.anomaly.service import Scorer, Terms
from kreflex.anomaly.store import store_at
from kreflex.audit import log
from kreflex.cluster import Reader, Writer
from kreflex.errors import KreflexError, UnavailableError
from kreflex.exchange import answer_json, problem
from kreflex.prom import Metrics
from kreflex.settings import CoreSettings
from kreflex.signals import Delivery

Handler = Callable[[Delivery], Awaitable[Response]]


class Doors:
    """Makes what handles deliveries; raises SettingsError at once for what can't be used."""

    def __init__(
        self,
        core: CoreSettings,
        detector_name: str,
        state_store: str,
        sink: str,
        alertmanagers: str,
        *,
        retain: timedelta,
        most_open: int,
        alertmanager_token_file: str = "",
    ) -> None:
        memory.share()
        self._core = core
        self._detector = detector(detector_name)
        self._state_store = state_store
        self._sink = Sink(sink)
        self._alertmanagers = Alertmanagers(alertmanagers, alertmanager_token_file)
        self._terms = Terms(core.kreflex_namespace, retain, most_open, core.time_budget)

    def handler(self, reader: Reader, writer: Writer) -> Handler:
        """Make what handles the deliveries of one process."""
        store = store_at(self._state_store, reader, writer, self._core.kreflex_namespace)
        samples = Samples(Metrics(*self._core.metrics))
        scorer = Scorer(reader, writer, samples, store, self._detector, self._sink, self._alertmanagers, self._terms)
        return Door(scorer).handle


class Door:
    """Hands a delivery to the scorer, one at a time: two ticks at once would do everything twice."""

    def __init__(self, scorer: Scorer) -> None:
        self._scorer = scorer
        self._turn = asyncio.Lock()

    async def handle(self, delivery: Delivery) -> Response:
        """Do what a delivery asks for: a clock's tick, feedback, or a look at what an alert is about."""
        if delivery.gate:
            return problem(412, KreflexError("anomaly-scorer opens no gate"))
        heard = [await self._heard(one.namespace, one.anomaly, one.verdict, one.by) for one in delivery.feedback]
        if delivery.tick:
            async with self._turn:
                failures = await self._scorer.go()
            if failures:
                raise UnavailableError("; ".join(failures[:5]))
        events = await self._scorer.look(delivery.signals) if delivery.signals else []
        if not (delivery.tick or events or heard):
            why = list(delivery.ignored[:5]) or ["no clock, no feedback, and no alert of somebody else"]
            log.info("request.ignored", why=why, **delivery.about)
        if not (events or heard):
            return Response(status_code=204)
        looked = [{"target": one["data"]["target"], "found": one["data"]["summary"]} for one in events]
        return answer_json({"looked": looked, "feedback": heard})

    async def _heard(self, namespace: str, name: str, verdict: str, by: str) -> str:
        # Whoever may call may say it; that it came by an event and from no person stays to be seen.
        said = Said.model_validate({"verdict": verdict, "by": f"event:{by or 'unnamed'}"})
        there = await self._scorer.hear(namespace, name, said)
        return f"{namespace}/{name}: {verdict}" if there else f"there is no Anomaly {namespace}/{name}"
