"""What people and other functions hear of an experiment: a Kubernetes Event on it, and a CloudEvent of its end."""

from __future__ import annotations

import hashlib
import socket
from datetime import datetime
from typing import Literal

from kreflex.audit import log
from kreflex.chaos.experiments import API, FUNCTION, KIND, Experiment
from kreflex.cluster import Writer
from kreflex.errors import KreflexError
from kreflex.policy import GROUP
from kreflex.views import JSON

SOURCE = f"{GROUP}/functions/{FUNCTION}"
FINISHED = "dev.kreflex.experiment.finished.v1"


async def tell(
    writer: Writer, experiment: Experiment, kind: Literal["Normal", "Warning"], reason: str, note: str, now: datetime
) -> None:
    """Write the Event of one change; the same told twice in a run is one Event."""
    digest = hashlib.sha256(f"{experiment.uid}/{reason}/{experiment.status.run}/{note}".encode()).hexdigest()[:10]
    body: JSON = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{experiment.name[:200]}.{digest}", "namespace": experiment.namespace},
        "eventTime": now.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "reportingController": SOURCE.replace("/functions", ""),
        "reportingInstance": socket.gethostname()[:128] or FUNCTION,
        "action": "Experiment",
        "reason": reason[:128],
        "type": kind,
        "note": note[:1000],
        "regarding": {
            "apiVersion": API,
            "kind": KIND,
            "namespace": experiment.namespace,
            "name": experiment.name,
            "uid": experiment.uid,
        },
    }
    try:
        await writer.create(f"/apis/events.k8s.io/v1/namespaces/{experiment.namespace}/events", body)
    except KreflexError as error:
        if getattr(error, "reason", "") != "AlreadyExists":
            log.warning("event.not_written", experiment=str(experiment), error=str(error))


def finished(experiment: Experiment) -> JSON:
    """Give the data of the event of an experiment's end: what it was about, and how it went."""
    status = experiment.status
    first = next(iter(status.injected), None)
    about = (first.owner or first.target) if first is not None else None
    target = about.model_dump(mode="json", by_alias=True) if about is not None else None
    healed = status.remediation
    return {
        "namespace": experiment.namespace,
        "name": experiment.name,
        "uid": experiment.uid,
        "run": status.run,
        "phase": status.phase,
        "verdict": status.verdict,
        "score": status.score,
        "because": status.reason,
        "target": target or experiment_target(experiment),
        "remediation": healed.model_dump(mode="json", by_alias=True) if healed is not None else None,
        "lost": status.lost,
    }


def experiment_target(experiment: Experiment) -> JSON:
    """Name the experiment itself, where it has hit nothing."""
    return {
        "apiVersion": API,
        "kind": KIND,
        "namespace": experiment.namespace,
        "name": experiment.name,
        "uid": experiment.uid,
    }
