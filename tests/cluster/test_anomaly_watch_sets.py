"""The sets that ship: each query is answered by a real Prometheus that has the metrics of kube-prometheus."""

from collections.abc import AsyncIterator, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from kreflex.anomaly.reading import Samples
from kreflex.anomaly.scoring import limits_of
from kreflex.anomaly.watches import Signal, Watch, read_watch
from kreflex.prom import Metrics
from lab.cluster import ControlPlane
from lab.history import Labels, Past, Sample, prometheus_with
from tests import kit

FOLDER = Path(__file__).parents[2] / "knative" / "anomaly-watches"
END = 1_699_999_200
CONTAINER = {"namespace": "shop", "pod": "cart-7d4-x2x9k", "container": "app", "image": "cart:1", "node": "n1"}
POD = {"namespace": "shop", "pod": "cart-7d4-x2x9k"}
# The container of a pod that no workload owns, and cAdvisor's sums of a pod, and of all.
SUMS = [{**CONTAINER, "container": ""}, {"id": "/"}]
NODE = {"instance": "10.0.0.7:9100", "job": "node-exporter"}
DISK = {**NODE, "device": "/dev/vda1", "fstype": "ext4", "mountpoint": "/"}
EXPORTED = {"job": "kube-state-metrics", "instance": "10.0.0.9:8080"}


def metrics() -> Iterator[tuple[str, Labels, float]]:
    """Tell name and labels of each metric as kube-prometheus has it, and how much it grows each minute."""
    for labels in (CONTAINER, *SUMS):
        yield "container_memory_working_set_bytes", labels, 1e6
        yield "container_memory_rss", labels, 1e6
        yield "container_cpu_usage_seconds_total", {**labels, "cpu": "total"}, 6.0
        yield "container_cpu_cfs_throttled_periods_total", labels, 60.0
        yield "container_cpu_cfs_periods_total", labels, 600.0
    yield "container_network_receive_bytes_total", {**POD, "interface": "eth0"}, 6000.0
    yield "kube_pod_container_status_restarts_total", {**EXPORTED, **POD, "container": "app"}, 0.0
    for resource in ("cpu", "memory"):
        labels = {**EXPORTED, **POD, "container": "app", "resource": resource}
        yield "kube_pod_container_resource_limits", labels, 0.0
    workload = {"workload": "cart", "workload_type": "deployment"}
    yield "namespace_workload_pod:kube_pod_owner:relabel", {**POD, **workload}, 0.0
    for name in ("spec_replicas", "status_replicas_unavailable"):
        yield f"kube_deployment_{name}", {**EXPORTED, "namespace": "shop", "deployment": "cart"}, 0.0
    for kind, grows in (("used", 1.0), ("hard", 0.0)):
        quota = {"namespace": "shop", "resourcequota": "team", "resource": "requests.memory", "type": kind}
        yield "kube_resourcequota", {**EXPORTED, **quota}, grows
    yield from of_a_node()
    service = {"namespace": "shop", "service": "cart", "pod": "cart-7d4-x2x9k"}
    yield "http_requests_total", {**service, "code": "200"}, 600.0
    for le, grows in (("0.1", 300.0), ("1", 600.0), ("+Inf", 600.0)):
        yield "http_request_duration_seconds_bucket", {**service, "le": le}, grows


def of_a_node() -> Iterator[tuple[str, Labels, float]]:
    for cpu in ("0", "1"):
        yield "node_cpu_seconds_total", {**NODE, "cpu": cpu, "mode": "idle"}, 30.0
    yield "node_load1", NODE, 0.0
    yield "node_memory_MemTotal_bytes", NODE, 0.0
    yield "node_memory_MemAvailable_bytes", NODE, -0.001
    for one in (DISK, {**DISK, "mountpoint": "/var/lib/kubelet"}, {**DISK, "device": "tmpfs", "fstype": "tmpfs"}):
        yield "node_filesystem_size_bytes", one, 0.0
        yield "node_filesystem_avail_bytes", one, -0.001
    for name in ("bytes", "errs", "drop"):
        yield f"node_network_receive_{name}_total", {**NODE, "device": "eth0"}, 60.0
        yield f"node_network_transmit_{name}_total", {**NODE, "device": "eth0"}, 60.0
    yield "node_uname_info", {**NODE, "nodename": "n1", "release": "6.1"}, 0.0


def past() -> Past:
    for name, together in groupby(sorted(metrics(), key=lambda one: one[0]), key=lambda one: one[0]):
        for _, labels, grows in together:
            yield name, labels, _samples(grows)


def _samples(grows: float) -> Iterator[Sample]:
    return ((END - 60.0 * (30 - n), 1.0 + grows * n) for n in range(31))


@pytest.fixture(scope="module")
async def samples(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Samples]:
    async with prometheus_with(tmp_path_factory.mktemp("past"), past()) as url:
        yield Samples(Metrics(url))


def bodies() -> list[dict[str, Any]]:
    return [yaml.safe_load(file.read_text()) for file in sorted(FOLDER.glob("*.yaml")) if file.stem != "kustomization"]


def watches() -> list[Watch]:
    found = [read_watch(body) for body in bodies()]
    assert all(isinstance(one, Watch) for one in found), found
    return [one for one in found if isinstance(one, Watch)]


SIGNALS = [(watch, signal) for watch in watches() for signal in watch.spec.signals]
TARGETS = {
    "Pod": ("shop", "cart-7d4-x2x9k"),
    "Node": ("", "n1"),
    "Deployment": ("shop", "cart"),
    "Service": ("shop", "cart"),
    "ResourceQuota": ("shop", "team"),
}


@pytest.mark.parametrize(("watch", "signal"), SIGNALS, ids=[f"{watch.name}-{one.name}" for watch, one in SIGNALS])
async def test_each_query_yields_one_series_that_names_its_target(
    samples: Samples, watch: Watch, signal: Signal
) -> None:
    found = await samples.instant(signal.query, END)
    assert [watch.target(labels) for labels in found.labels] == [TARGETS[watch.spec.target.kind]], found
    assert np.isfinite(found.values).all()
    assert found.warnings == ()
    assert all(watch.siblings(found.labels[0])) or signal.name == "received"
    if signal.limit:
        limit = await samples.instant(signal.limit, END)
        assert np.isfinite(limits_of(found.labels, limit)).all()


async def test_a_service_without_errors_has_a_share_of_none(samples: Samples) -> None:
    (query,) = [signal.query for watch, signal in SIGNALS if (watch.name, signal.name) == ("http-services", "errors")]
    assert (await samples.instant(query, END)).values.tolist() == [0.0]


async def test_they_are_accepted_by_the_api_server(installed: ControlPlane) -> None:
    said = kit.kubectl(installed, "apply", "--dry-run=server", "-k", str(FOLDER))
    assert sorted(line.split()[0] for line in said.splitlines()) == [
        f"anomalywatch.kreflex.dev/{name}" for name in ("deployments", "http-services", "nodes", "pods", "quotas")
    ]
