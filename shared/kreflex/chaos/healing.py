"""Remediation under test: what the platform did about the fault by itself, and how soon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime

from pydantic import ValidationError

from kreflex.audit import log
from kreflex.chaos.experiments import Experiment, Healed, Injection
from kreflex.cluster import Reader
from kreflex.policy import GROUP, VERSION
from kreflex.records import Record, read_record


def began(experiment: Experiment) -> datetime | None:
    """Tell when the first fault was there."""
    return min((one.injected_at for one in experiment.status.injected if one.injected_at is not None), default=None)


async def healed_by(experiment: Experiment, function: str, home: str, reader: Reader) -> Healed | None:
    """Find the record of a function about what was hit, made after it was; the one that is furthest."""
    since = began(experiment)
    if since is None:
        return None
    found = [
        record
        for namespace in sorted({experiment.namespace, home})
        async for record in _records(namespace, function, reader)
        # The API server's creation times have whole seconds.
        if record.created >= since.replace(microsecond=0) and _about(record, experiment)
    ]
    if not found:
        return None
    return _told(max(found, key=lambda one: (_RANK[one.status.phase], one.created)), since)


_RANK = {"Open": 0, "Acting": 1, "Applied": 2, "Done": 3}


async def _records(namespace: str, function: str, reader: Reader) -> AsyncIterator[Record]:
    path = f"/apis/{GROUP}/{VERSION}/namespaces/{namespace}/remediations"
    async for body in reader.list(path, labelSelector=f"{GROUP}/function={function}"):
        try:
            yield read_record(body)
        except ValidationError as error:
            # Nobody can say what it has done; the experiment has its end all the same.
            log.warning("remediation.unreadable", record=body["metadata"]["name"], error=str(error))


def _about(record: Record, experiment: Experiment) -> bool:
    return any(_hit(record, one) for one in experiment.status.injected)


def _hit(record: Record, injection: Injection) -> bool:
    """Tell whether a record is about what was hit, its owner, or what an engine was told to hit."""
    target, owner = record.spec.target, record.spec.owner
    uids = {target.uid, *((owner.uid, owner.controller) if owner is not None else ())} - {""}
    hit = {injection.target.uid, *((injection.owner.uid,) if injection.owner is not None else ())}
    return bool(uids & hit) or (injection.fault == "Engine" and target.name in injection.nodes)


def _told(record: Record, since: datetime) -> Healed:
    status = record.status
    recovered = status.verdict == "Recovered" and status.settled_at is not None
    # It was healthy for as long as the proof takes when that was said.
    healthy = (
        status.settled_at - status.proof if recovered and status.settled_at and status.proof else status.settled_at
    )
    return Healed(
        record=f"{record.namespace}/{record.name}",
        function=record.spec.function,
        verdict=status.verdict,
        opened_after=_after(record.created, since),
        acted_after=_after(status.acted_at, since),
        mttr=_after(healthy, since) if recovered else None,
        because=(status.verdict_reason or status.reason or "")[:500],
    )


def _after(at: datetime | None, since: datetime) -> float | None:
    return None if at is None else round(max(0.0, (at - since).total_seconds()), 1)
