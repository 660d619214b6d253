"""How far a roll-out is, read from a workload as `kubectl rollout status` reads it, and as Argo Rollouts tells it."""

from __future__ import annotations

import math
from collections.abc import Callable

from kreflex.views import JSON

_TIMED_OUT = "ProgressDeadlineExceeded"


def seen(body: JSON) -> bool:
    """Tell whether the controller has seen the workload as it is now; until then its status is about the past."""
    # Argo Rollouts writes the number as text.
    observed = str((body.get("status") or {}).get("observedGeneration", "0"))
    return observed.isdecimal() and int(observed) >= int(body["metadata"].get("generation", 0))


def complete(body: JSON) -> bool:
    """Tell whether all pods that should be of the present template are, and are available.

    The rules are kubectl's, pkg/polymorphichelpers/rollout_status.go, and for a Rollout those of its own controller.
    What waits for somebody to delete its pods (OnDelete), of which kubectl says nothing, is complete once all are new.
    """
    return seen(body) and _COMPLETE[body["kind"]](body.get("spec") or {}, body.get("status") or {})


def stuck(body: JSON) -> bool:
    """Tell whether its controller has given up waiting for the present template, by `progressDeadlineSeconds`."""
    conditions = (body.get("status") or {}).get("conditions") or ()
    return seen(body) and any(
        one.get("type") == "Progressing" and one.get("status") == "False" and one.get("reason") == _TIMED_OUT
        for one in conditions
    )


def at_once(daemon_set: JSON) -> int:
    """Tell on how many nodes a DaemonSet may be away, or have two pods, while it is updated; a percentage rounds up."""
    rules = ((daemon_set.get("spec") or {}).get("updateStrategy") or {}).get("rollingUpdate") or {}
    wanted = int((daemon_set.get("status") or {}).get("desiredNumberScheduled", 0))
    told = (_share(rules.get(name, 0), wanted) for name in ("maxSurge", "maxUnavailable"))
    return next((most for most in told if most), 1)


def _share(said: int | str, wanted: int) -> int:
    text = str(said)
    return math.ceil(int(text[:-1]) * wanted / 100) if text.endswith("%") else int(text)


def paused(body: JSON) -> bool:
    """Tell whether somebody has paused it; a Rollout that stands at a step of its own is not meant."""
    return bool((body.get("spec") or {}).get("paused"))


def _deployment(spec: JSON, status: JSON) -> bool:
    updated = status.get("updatedReplicas", 0)
    wanted, there, available = spec.get("replicas", 1), status.get("replicas", 0), status.get("availableReplicas", 0)
    late = any(one.get("reason") == _TIMED_OUT for one in status.get("conditions") or ())
    return bool(not late and updated >= wanted and there <= updated and available >= updated)


def _stateful_set(spec: JSON, status: JSON) -> bool:
    strategy = spec.get("updateStrategy") or {}
    wanted, updated = spec.get("replicas", 1), status.get("updatedReplicas", 0)
    partition = (strategy.get("rollingUpdate") or {}).get("partition") or 0
    return bool(status.get("readyReplicas", 0) >= wanted and updated >= wanted - partition)


def _daemon_set(_: JSON, status: JSON) -> bool:
    wanted = status.get("desiredNumberScheduled", 0)
    return bool(status.get("updatedNumberScheduled", 0) >= wanted and status.get("numberAvailable", 0) >= wanted)


def _rollout(_: JSON, status: JSON) -> bool:
    promoted = status.get("stableRS") == status.get("currentPodHash") and bool(status.get("stableRS"))
    return promoted and status.get("phase") == "Healthy"


_COMPLETE: dict[str, Callable[[JSON, JSON], bool]] = {
    "Deployment": _deployment,
    "StatefulSet": _stateful_set,
    "DaemonSet": _daemon_set,
    "Rollout": _rollout,
}
