"""How much memory the lab's containers use, by values."""

from datetime import UTC, datetime
from typing import Any

import pytest

from lab import memory
from lab.workloads import fault, limited, pod

START = datetime(2026, 8, 1, 10, 0, tzinfo=UTC)
BEGAN = START.timestamp()
MIB = 2**20


def a_pod(limit: str = "100Mi", **notes: Any) -> dict[str, Any]:
    """A running pod; one with notes leaks."""
    body = pod("cart-1", fault("leak", **notes) if notes else None, limited(limit))
    body["metadata"] |= {"namespace": "shop", "uid": "u1"}
    state = {"running": {"startedAt": START.isoformat()}}
    return {**body, "status": {"containerStatuses": [{"name": "app", "image": "app:1", "state": state}]}}


def used(body: dict[str, Any], seconds: float) -> float:
    """What it uses so long after its start, in MiB."""
    return memory.working_set(body, "app", BEGAN, BEGAN + seconds) / MIB


def test_a_healthy_pod_uses_two_fifths_of_its_limit() -> None:
    assert all(abs(used(a_pod(), second) - 40) < 1 for second in range(0, 3600, 7))


def test_what_leaks_reaches_its_limit_in_time_and_no_more() -> None:
    leaks = a_pod(since=BEGAN + 100, leak_seconds=60)
    assert [round(used(leaks, second) / 10) for second in (90, 115, 130, 160, 500)] == [4, 6, 7, 10, 10]


def test_a_container_that_was_started_anew_begins_to_leak_anew() -> None:
    leaks = a_pod(since=BEGAN - 1000, leak_seconds=60)
    assert abs(used(leaks, 0) - 40) < 1


def test_equal_times_give_equal_numbers_and_pods_differ() -> None:
    other = a_pod()
    other["metadata"] = {**other["metadata"], "uid": "u2"}
    assert used(a_pod(), 5) == used(a_pod(), 5) != used(other, 5)


def test_a_scrape_tells_what_a_kubelet_and_kube_state_metrics_tell() -> None:
    told = {name: labels for name, labels, _ in memory.memory_samples(a_pod(), BEGAN + 5)}
    assert set(told) == {
        "container_spec_memory_limit_bytes",
        "container_memory_working_set_bytes",
        "container_memory_rss",
    }
    labels = told["container_memory_rss"]
    assert {name: labels[name] for name in ("job", "metrics_path", "namespace", "pod", "container")} == {
        "job": "kubelet",
        "metrics_path": "/metrics/cadvisor",
        "namespace": "shop",
        "pod": "cart-1",
        "container": "app",
    }
    ((name, labels, value),) = memory.limit_samples(a_pod())
    assert (name, labels["resource"], labels["uid"], value) == (
        "kube_pod_container_resource_limits",
        "memory",
        "u1",
        100 * MIB,
    )


def test_what_does_not_run_or_has_no_limit_uses_nothing() -> None:
    down = a_pod()
    down["status"]["containerStatuses"][0]["state"] = {"terminated": {}}
    assert list(memory.memory_samples(down, BEGAN)) == []
    boundless = a_pod()
    del boundless["spec"]["containers"][0]["resources"]
    assert [*memory.memory_samples(boundless, BEGAN), *memory.limit_samples(boundless)] == []


@pytest.mark.parametrize(("text", "bytes_"), [("256Mi", 256 * MIB), ("1Gi", 2**30), ("128M", 128e6), ("1000", 1000)])
def test_reads_quantities(text: str, bytes_: float) -> None:
    assert memory.quantity(text) == bytes_
