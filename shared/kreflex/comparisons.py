"""Whether a canary fails more of its requests than what is stable: two proportions, and how sure one can be.

The difference of the two is bounded from below by Newcombe's hybrid score interval: with p the share that fails of each
side, and l and u the bounds of Wilson's score interval for each, it is

    p1 - p2 - sqrt((p1 - l1)^2 + (u2 - p2)^2)

(R. G. Newcombe, Interval estimation for the difference between independent proportions: comparison of eleven methods,
Statistics in Medicine 17, 1998, 873-890, method 10; https://doi.org/10.1002/(SICI)1097-0258(19980430)17:8<873::AID-SIM779>3.0.CO;2-I).
It holds for few failures and few requests, where the usual approximation says that nothing can be wrong.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import sqrt

from kreflex.durations import show_duration
from kreflex.errors import UnavailableError
from kreflex.prom import Metrics
from kreflex.releases import Comparison
from kreflex.views import Pod

_PLACE = re.compile(r"\{(namespace|workload|hash|pods|service)\}")
# Of a name that the API server makes, so much is kept of what stands before its random end
# (k8s.io/apiserver, pkg/storage/names/generate.go).
_KEPT = 58
# A longer list of names is no query any more.
_MOST_NAMES = 100
_LOOPS = frozenset({"CrashLoopBackOff", "ImagePullBackOff", "ErrImagePull", "InvalidImageName"})
_LOOPS |= {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}


@dataclass(frozen=True, slots=True)
class Side:
    """One of two versions that serve side by side; `hash` tells its pods from those of other templates."""

    namespace: str
    workload: str
    hash: str
    service: str = ""
    pods: tuple[Pod, ...] = ()

    @property
    def pattern(self) -> str:
        """A regular expression of the names that its pods have and had."""
        parts = (self.workload, self.hash) if self.hash else (self.workload,)
        return _exactly(f"{'-'.join(parts)}-"[:_KEPT]) + "[a-z0-9-]+"

    @property
    def present(self) -> str:
        """A regular expression of the pods that it has now: those of an earlier try of the same version don't count."""
        names = [pod.ref.name for pod in self.pods if not pod.terminating]
        return "|".join(map(_exactly, names)) if 0 < len(names) <= _MOST_NAMES else self.pattern


def _exactly(name: str) -> str:
    return name.replace(".", "[.]")


@dataclass(frozen=True, slots=True)
class Worse:
    """The canary is worse, and this is how much."""

    because: str


@dataclass(frozen=True, slots=True)
class Same:
    """The canary is not worse, as far as this can tell."""

    because: str


@dataclass(frozen=True, slots=True)
class Inconclusive:
    """Nobody can tell: no data, too little of it, or nobody to be asked."""

    because: str


Difference = Worse | Same | Inconclusive


def filled(query: str, side: Side, pods: str = "") -> str:
    """Fill one side into a query; what is filled in stays within the string of PromQL that it stands in."""
    values = {
        "namespace": side.namespace,
        "workload": side.workload,
        "hash": side.hash,
        "service": side.service,
        "pods": pods or side.pattern,
    }
    return _PLACE.sub(lambda place: _quoted(values[place[1]]), query)


def _quoted(value: str) -> str:
    """Leave out what ends a string of PromQL, in any of its quotes; names of Kubernetes have none of it."""
    return re.sub(r"[\\\"'`\s]", "", value)


async def compare(trial: Side, stable: Side, rules: Comparison, metrics: Metrics) -> Difference:
    """Ask Prometheus for both sides, and judge the canary by its requests."""
    both = ((trial, trial.present), (stable, stable.pattern))
    queries = [filled(query, side, pods) for side, pods in both for query in (rules.requests, rules.errors)]
    try:
        # All at once: Flagger, for one, does not wait for long.
        answers = await asyncio.gather(*(metrics.scalar(query) for query in queries))
    except UnavailableError as error:
        return Inconclusive(f"nobody can tell whether the canary is worse: {error}")
    return judged(Count.of(answers[0], answers[1]), Count.of(answers[2], answers[3]), rules)


@dataclass(frozen=True, slots=True)
class Count:
    """How many requests there were, and how many of them failed."""

    requests: float
    failed: float

    @classmethod
    def of(cls, requests: float | None, failed: float | None) -> Count | None:
        """Read two answers; None without requests. A counter that has never counted a failure has no series."""
        if requests is None:
            return None
        # Both are extrapolated by Prometheus, each by itself.
        return cls(max(requests, 0.0), min(max(failed or 0.0, 0.0), max(requests, 0.0)))

    @property
    def share(self) -> float:
        """The share that failed."""
        return self.failed / self.requests if self.requests else 0.0

    def __str__(self) -> str:
        return f"{self.share:.1%} of {self.requests:.0f}"


def judged(trial: Count | None, stable: Count | None, rules: Comparison) -> Difference:
    """Judge two counts."""
    if trial is None or stable is None:
        missing = "the canary" if trial is None else "what is stable"
        return Inconclusive(f"Prometheus has no requests of {missing}, and no data is no failure")
    told = f"the canary fails {trial} requests, what is stable {stable}"
    if min(trial.requests, stable.requests) < rules.least_requests:
        return Inconclusive(f"{told}: fewer than {rules.least_requests:.0f} of one, so nobody can tell")
    if trial.share < rules.at_least or trial.share - stable.share < rules.worse_by:
        return Same(f"{told}: below {rules.at_least:.1%}, or not {rules.worse_by:.1%} more than what is stable")
    surely = lower_bound(trial.failed, trial.requests, stable.failed, stable.requests, rules.confidence)
    if surely <= 0:
        return Inconclusive(f"{told}: with a confidence of {rules.confidence * 100:g}% that may be chance")
    return Worse(f"{told}: {surely:.1%} more at least, with a confidence of {rules.confidence * 100:g}%")


def lower_bound(failed: float, requests: float, other_failed: float, other_requests: float, confidence: float) -> float:
    """Tell by how much the first share is higher than the second at least, at this one-sided confidence."""
    low, _ = wilson(failed, requests, confidence)
    _, high = wilson(other_failed, other_requests, confidence)
    first, second = failed / requests, other_failed / other_requests
    return first - second - sqrt((first - low) ** 2 + (high - second) ** 2)


def wilson(failed: float, requests: float, confidence: float) -> tuple[float, float]:
    """Give the bounds of Wilson's score interval (E. B. Wilson, 1927), each at this one-sided confidence."""
    from statistics import NormalDist  # noqa: PLC0415 - for few events, and it is slow to load

    z = NormalDist().inv_cdf(confidence)
    share, squared = failed / requests, z * z
    middle = share + squared / (2 * requests)
    half = z * sqrt(share * (1 - share) / requests + squared / (4 * requests * requests))
    whole = 1 + squared / requests
    return max(0.0, (middle - half) / whole), min(1.0, (middle + half) / whole)


def by_pods(trial: Sequence[Pod], stable: Sequence[Pod], patience: timedelta, now: datetime) -> Difference:
    """Judge a canary by what its pods do, where no requests are counted."""
    mine = [pod for pod in trial if not pod.terminating]
    ill = [pod for pod in mine if failing(pod, patience, now)]
    if not mine:
        return Inconclusive("the canary has no pods")
    if not ill:
        waiting = sum(not pod.ready for pod in mine)
        return (
            Inconclusive(f"{waiting} of {len(mine)} pods of the canary are not Ready yet")
            if waiting
            else Same(f"all {len(mine)} pods of the canary are Ready, and the policy counts no requests")
        )
    well = sum(pod.ready for pod in stable)
    told = f"{len(ill)} of {len(mine)} pods of the canary fail ({_complaint(ill[0], now)})"
    if not well or any(failing(pod, patience, now) for pod in stable):
        return Inconclusive(f"{told}, but what is stable is not well either, so nobody can tell")
    return Worse(f"{told}, and all {well} of what is stable are well")


def failing(pod: Pod, patience: timedelta, now: datetime) -> bool:
    """Tell whether a pod crashes again and again, can't start, or is not Ready for longer than a new one may need."""
    loops = any(not c.ready and (c.restarts > 1 or c.waiting in _LOOPS) for c in pod.containers)
    since = pod.unready_since or pod.created
    return not pod.ready and (loops or now - since > patience)


def _complaint(pod: Pod, now: datetime) -> str:
    worst = max(pod.containers, key=lambda c: c.restarts, default=None)
    if worst is not None and (worst.restarts > 1 or worst.waiting in _LOOPS):
        return f"{pod.ref.name}: {worst.name} {worst.waiting or 'crashes'}, restarted {worst.restarts} times"
    return f"{pod.ref.name}: not Ready for {show_duration(now - (pod.unready_since or pod.created))}"
