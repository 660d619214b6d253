"""How much memory the lab's containers use, under the names of a kubelet's cAdvisor.

One that has a limit uses two fifths of it, give or take. One that leaks (lab/stages/faults.yaml) uses more from second
to second, until it is at its limit: then kwok ends it as the kernel would. Nothing is kept: it follows from the pod and
the time.
"""

import random
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from lab.workloads import PREFIX

Sample = tuple[str, Mapping[str, str], float]
LEAK = "leak"
LEAK_SECONDS = 60.0
"""How long it takes from two fifths to the limit, as the stage has it."""
_USED = 0.4
_UNITS = {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "k": 10**3, "M": 10**6, "G": 10**9}


def limits(pod: Mapping[str, Any]) -> dict[str, float]:
    """The memory limits of its containers, in bytes, of those that have one."""
    containers = pod.get("spec", {}).get("containers", ())
    told = {one["name"]: one.get("resources", {}).get("limits", {}).get("memory") for one in containers}
    return {name: quantity(text) for name, text in told.items() if text}


def quantity(text: str) -> float:
    """A quantity of Kubernetes, such as 256Mi, in bytes."""
    unit = next((unit for unit in _UNITS if text.endswith(unit)), "")
    return float(text.removesuffix(unit)) * _UNITS.get(unit, 1)


def limit_samples(pod: Mapping[str, Any]) -> Iterator[Sample]:
    """What kube-state-metrics says of these limits."""
    about = {**_named(pod), "uid": pod["metadata"]["uid"], "node": pod["spec"].get("nodeName", "")}
    for container, limit in limits(pod).items():
        of = {**about, "container": container, "resource": "memory", "unit": "byte"}
        yield "kube_pod_container_resource_limits", of, limit


def memory_samples(pod: Mapping[str, Any], now: float) -> Iterator[Sample]:
    """What cAdvisor says of the containers that run now and have a limit."""
    bounds = limits(pod)
    for status in pod.get("status", {}).get("containerStatuses", ()):
        name, running = status["name"], status.get("state", {}).get("running")
        if name not in bounds or running is None:
            continue
        # As a kubelet is scraped by kube-prometheus; the lab's Prometheus honors labels.
        scraped = {"job": "kubelet", "metrics_path": "/metrics/cadvisor", "node": pod["spec"].get("nodeName", "")}
        labels = {**scraped, **_named(pod), "container": name, "image": status.get("image", ""), "id": f"/{name}"}
        used = working_set(pod, name, datetime.fromisoformat(running["startedAt"]).timestamp(), now)
        yield "container_spec_memory_limit_bytes", labels, bounds[name]
        yield "container_memory_working_set_bytes", labels, used
        # Without what the kernel could write back at once; it has a flutter of its own.
        yield "container_memory_rss", labels, used * (0.9 + 0.004 * _flutter(pod, f"{name}/rss", now))


def working_set(pod: Mapping[str, Any], container: str, started: float, now: float) -> float:
    """How much memory a container uses that has run since `started`, in whole pages."""
    limit = limits(pod)[container]
    base = _USED * limit
    calm = base * (1 + 0.01 * _flutter(pod, container, now))
    since = _leaks_since(pod, container, started)
    grown = 0.0 if since is None else (limit - base) * max(0.0, now - since) / _seconds(pod)
    return min(limit, calm + grown) // 4096 * 4096


def _leaks_since(pod: Mapping[str, Any], container: str, started: float) -> float | None:
    notes = pod["metadata"].get("annotations", {})
    first = pod["spec"]["containers"][0]["name"]
    if notes.get(f"{PREFIX}fault") != LEAK or notes.get(f"{PREFIX}container", first) != container:
        return None
    # A container that was started anew has given everything back.
    return max(started, float(notes.get(f"{PREFIX}since", 0)))


def _seconds(pod: Mapping[str, Any]) -> float:
    return float(pod["metadata"].get("annotations", {}).get(f"{PREFIX}leak-seconds", LEAK_SECONDS))


def _flutter(pod: Mapping[str, Any], what: str, now: float) -> float:
    """A number about 0, rarely beyond -1 or 1, that is the same for the same second."""
    return random.Random(f"{pod['metadata']['uid']}/{what}/{int(now)}").gauss(0, 0.35)  # noqa: S311 - noise


def _named(pod: Mapping[str, Any]) -> dict[str, str]:
    return {"namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"]}
