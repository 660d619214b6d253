"""What a pod suffers from, told from its status alone, and since when."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from kreflex.demands import warm_up
from kreflex.durations import show_duration
from kreflex.views import JSON, Container, Pod

Kind = Literal["Loop", "Image", "Config", "Start", "Unready", "Gate", "Unplaced", "Waiting"]

IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
CONFIG = {"CreateContainerConfigError"}
START = {"CreateContainerError", "RunContainerError", "PreCreateHookError", "PreStartHookError", "PostStartHookError"}
# How many times the patience a pod that no node takes may wait for a new node, which an autoscaler brings within ten
# minutes or so; and one whose containers are not made, for a large image.
_PLACES, _MAKES = 5, 5
# The kubelet's waits between two runs: 10 s, doubled up to 5 minutes
# (https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy).
_FIRST, _MOST = timedelta(seconds=10), timedelta(minutes=5)


@dataclass(frozen=True, slots=True)
class Limits:
    """From when on something counts; `start` is how long the workload's pods are known to take until they are Ready."""

    restarts_above: int
    patience: timedelta
    start: timedelta = timedelta()


@dataclass(frozen=True, slots=True)
class Ailment:
    """What is wrong with a pod; `said` is what the kubelet or the scheduler says of it."""

    pod: Pod
    kind: Kind
    story: str
    since: datetime
    container: str = ""
    said: str = ""


@dataclass(frozen=True, slots=True)
class Early:
    """It may be failing; who looks at `until` will know."""

    until: datetime


def ailment(pod: Pod, template: JSON, limits: Limits, now: datetime) -> Ailment | Early | None:
    """Tell what a pod suffers from; None for one that is well, that ends, or that is given time to start."""
    if pod.terminating or pod.phase in {"Succeeded", "Failed"}:
        return None
    if not pod.node:
        return _unplaced(pod, limits, now)
    found = [one for one in (_of_container(c, pod, limits, now) for c in pod.containers) if one is not None]
    known = [one for one in found if isinstance(one, Ailment)]
    if known:
        return max(known, key=lambda one: _restarts(pod, one.container))
    return found[0] if found else _unready(pod, template, limits, now)


def _restarts(pod: Pod, container: str) -> int:
    return next((c.restarts for c in pod.containers if c.name == container), 0)


def _unplaced(pod: Pod, limits: Limits, now: datetime) -> Ailment | None:
    if now - pod.created < _PLACES * limits.patience:
        return None
    said = pod.unplaced or "the scheduler says nothing of it"
    return Ailment(pod, "Unplaced", f"no node takes it: {said}", pod.created, said=pod.unplaced)


def _of_container(container: Container, pod: Pod, limits: Limits, now: datetime) -> Ailment | Early | None:
    if container.waiting in IMAGE | CONFIG | START:
        return _held(container, pod, limits, now)
    if container.restarts <= limits.restarts_above or _over(container):
        return None
    ended = container.ended
    down = container.waiting == "CrashLoopBackOff" or container.terminated is not None
    if down and ended is not None:
        story = f"{container.name} restarted {container.restarts} times, last with exit code {ended.exit_code}"
        if ended.reason == "OOMKilled":
            story += " (OOMKilled)"
        return Ailment(pod, "Loop", story, _looping_since(container, pod, now), container.name)
    well_at = container.running_since + limits.patience if container.running_since else None
    # It runs at this moment: it has recovered, or is about to end again.
    return Early(well_at) if well_at is not None and now < well_at else None


def _held(container: Container, pod: Pod, limits: Limits, now: datetime) -> Ailment | None:
    since = pod.unready_since or pod.created
    # A tag may be pushed, and a ConfigMap applied, just after what names it.
    if now - since < limits.patience:
        return None
    waiting = container.waiting or ""
    kind: Kind = "Image" if waiting in IMAGE else "Config" if waiting in CONFIG else "Start"
    words = f": {container.said}" if container.said else ""
    return Ailment(pod, kind, f"{container.name} waits: {waiting}{words}", since, container.name, container.said)


def _over(container: Container) -> bool:
    """Tell whether it has done what it was for."""
    return container.kind == "init" and container.terminated is not None and container.terminated.exit_code == 0


def _looping_since(container: Container, pod: Pod, now: datetime) -> datetime:
    """Tell since when it loops at the latest: the kubelet has waited between so many runs."""
    ended = container.ended
    last = ended.finished_at if ended and ended.finished_at else now
    return max(pod.created, last - waits(container.restarts))


def waits(restarts: int) -> timedelta:
    """Tell how long a kubelet waits in all, up to the start of that restart; the first comes at once."""
    doubling = (min(_FIRST * (1 << turn), _MOST) for turn in range(min(restarts - 1, 5)))
    return sum(doubling, timedelta()) + max(restarts - 6, 0) * _MOST


def _unready(pod: Pod, template: JSON, limits: Limits, now: datetime) -> Ailment | None:
    if pod.ready:
        return None
    apps = [c for c in pod.containers if c.kind == "app"]
    running = [c.running_since for c in apps if c.running_since is not None]
    if not apps or len(running) < len(apps):
        return _waiting(pod, apps, limits, now)
    since = max([pod.unready_since or pod.created, *running])
    if now - since < limits.patience + max(limits.start, timedelta(seconds=warm_up(template))):
        return None
    long = show_duration(now - since)
    if all(c.ready for c in apps):
        return Ailment(pod, "Gate", f"its containers are ready and it is not, for {long}: a readiness gate", since)
    unready = next(c.name for c in apps if not c.ready)
    return Ailment(pod, "Unready", f"{unready} runs and is not ready for {long}", since, unready)


def _waiting(pod: Pod, apps: list[Container], limits: Limits, now: datetime) -> Ailment | None:
    """See a pod whose containers are not even made; one that has crashed just now is another thing."""
    crashed = any(c.restarts or c.ended for c in apps)
    if crashed or now - pod.created < _MAKES * limits.patience:
        return None
    reason = next((c.waiting for c in pod.containers if c.waiting), None) or "nothing"
    said = next((c.said for c in pod.containers if c.said), "")
    long = show_duration(now - pod.created)
    return Ailment(pod, "Waiting", f"its containers are not started after {long} ({reason})", pod.created, said=said)


def start_of(pods: Iterable[Pod]) -> timedelta | None:
    """Tell how long pods that are Ready took for that, from the start of their containers on: the one in the middle.

    One that was not Ready for a moment since, and is again, seems to have taken ages.
    """
    times = sorted(time for time in map(_start, pods) if time is not None)
    return times[len(times) // 2] if times else None


def _start(pod: Pod) -> timedelta | None:
    running = [one.running_since for one in pod.containers if one.kind == "app" and one.running_since is not None]
    if not running or pod.ready_since is None:
        return None
    return max(pod.ready_since - max(running), timedelta())


def well(pod: Pod, limits: Limits, now: datetime) -> bool:
    """Tell whether a pod has been Ready for long enough to be a witness."""
    return not pod.terminating and pod.ready_since is not None and now - pod.ready_since >= limits.patience
