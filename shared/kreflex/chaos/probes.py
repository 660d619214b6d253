"""Probes: is the steady state there? One that can't find out, fails."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import urlsplit

from kreflex.chaos.changes import ABSENT, value
from kreflex.chaos.experiments import TURNS, Comparison, Experiment, Http, Probe, Probed, Thing, Turn
from kreflex.chaos.jobs import look_at
from kreflex.chaos.targets import place
from kreflex.chaos.web import status_of
from kreflex.cluster import Writer
from kreflex.errors import KreflexError
from kreflex.world import World

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {
    "==": operator.eq,
    "!=": operator.ne,
    "<": operator.lt,
    "<=": operator.le,
    ">": operator.gt,
    ">=": operator.ge,
}


@dataclass(frozen=True, slots=True)
class Seen:
    """What one look has found."""

    ok: bool
    said: str


@dataclass(frozen=True)
class Eyes:
    """What probes look with."""

    world: World
    writer: Writer
    hosts: frozenset[str]

    async def look(self, probe: Probe, experiment: Experiment, turn: str) -> Seen | None:
        """Look once; None while its Job of this turn runs. Whatever goes wrong is a failure with its reason."""
        try:
            if probe.job is not None:
                ended = await look_at(probe, experiment, turn, self.world.cluster, self.writer)
                return None if ended is None else Seen(*ended)
            return await self._at_once(probe, experiment.namespace)
        except KreflexError as error:
            return Seen(ok=False, said=str(error)[:200])

    async def _at_once(self, probe: Probe, namespace: str) -> Seen:
        if probe.http is not None:
            return await _ask(probe.http, namespace, self.hosts)
        if probe.promql is not None:
            number = await self.world.metrics.scalar(probe.promql.query)
            return _compared(probe.promql, ABSENT if number is None else number)
        assert probe.object is not None, "the model sees to it"
        return _compared(probe.object, await _field(probe.object, namespace, self.world))


async def _ask(asked: Http, namespace: str, hosts: frozenset[str]) -> Seen:
    host = urlsplit(asked.url).hostname or ""
    if not reachable(host, namespace, hosts):
        return Seen(ok=False, said=f"{host} is no Service of {namespace}, and PROBE_HOSTS does not name it")
    code = await status_of(asked.url, asked.timeout.total_seconds())
    return Seen(code in asked.codes, f"answered {code}" if isinstance(code, int) else code[:200])


def reachable(host: str, namespace: str, hosts: frozenset[str]) -> bool:
    """Tell whether a probe may ask a host: who writes an experiment must not reach more by us than by himself."""
    labels = host.split(".")
    service = len(labels) >= 3 and labels[-2:] != ["cluster", "local"] and labels[1:3] == [namespace, "svc"]
    whole = labels[1:] == [namespace, "svc", "cluster", "local"]
    return host in hosts or whole or (service and len(labels) == 3)


async def _field(thing: Thing, namespace: str, world: World) -> Any:
    body = await world.cluster.get(place(thing.kind, namespace, thing.name))
    return ABSENT if body is None else value(body, tuple(thing.path.split(".")))


def _compared(wanted: Comparison, found: Any) -> Seen:
    if found is ABSENT:
        return Seen(ok=False, said="there is no such value")
    left: float | str
    right: float | str
    try:
        left, right = float(found), float(wanted.value)
    except (TypeError, ValueError):
        left, right = _text(found), wanted.value
    return Seen(_COMPARE[wanted.operator](left, right), f"{_text(found)} {wanted.operator} {wanted.value}")


def _text(found: Any) -> str:
    return str(found).lower() if isinstance(found, bool) else str(found)[:100]


def noted(probed: Probed, seen: Seen, now: datetime) -> Probed:
    """Add what was seen during an experiment."""
    turns = probed.turns
    if not turns or turns[-1].ok != seen.ok:
        turns = (*turns, Turn(at=now, ok=seen.ok, said=seen.said[:200]))[-TURNS:]
    return probed.model_copy(
        update={
            "passed": probed.passed + seen.ok,
            "failed": probed.failed + (not seen.ok),
            "in_a_row": 0 if seen.ok else probed.in_a_row + 1,
            "last": now,
            "turns": turns,
        }
    )
