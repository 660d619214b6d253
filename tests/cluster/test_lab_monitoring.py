"""The real Prometheus scrapes the exporter, its rules fire, and the real Alertmanager calls the receiver."""

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lab import monitoring
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.ports import Ports
from lab.toolchain import Toolchain
from lab.workloads import fault, limited, pod

PODS = "/api/v1/namespaces/default/pods"


@pytest.fixture(scope="module")
async def webhooks() -> AsyncIterator[tuple[int, list[dict[str, Any]]]]:
    """A receiver of alerts: its port, and the bodies that it got."""
    got: list[dict[str, Any]] = []

    async def take(request: web.Request) -> web.Response:
        got.append(await request.json())
        return web.Response()

    application = web.Application()
    application.add_routes([web.post("/", take)])
    runner = web.AppRunner(application)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    yield runner.addresses[0][1], got
    await runner.cleanup()


@pytest.fixture(scope="module")
async def prometheus(plane: ControlPlane, webhooks: tuple[int, list[dict[str, Any]]]) -> AsyncIterator[str]:
    """The URL of a Prometheus that scrapes the lab's exporter each second."""
    receiver = f"http://127.0.0.1:{webhooks[0]}"
    with Ports() as ports:
        exporter = await monitoring.start_metrics(plane, ports.take())
        manager = await monitoring.start_alertmanager(plane, ports.take(), {"restart-loop-killer": receiver})
        targets = {"kube-state-metrics": exporter}
        yield await monitoring.start_prometheus(plane, ports.take(), targets, alertmanager=manager, interval="1s")
    for name in ("prometheus", "alertmanager", "metrics"):
        await plane.stop_child(name)


async def values(url: str, query: str) -> dict[str, float]:
    """The samples of a query, by reason, condition, phase or the like: the label that tells them apart."""
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"{url}/api/v1/query", params={"query": query}) as answer,
    ):
        result = (await answer.json())["data"]["result"]
    return {",".join(one["metric"].values()): float(one["value"][1]) for one in result}


async def test_prometheus_sees_a_leak_grow_until_it_is_killed(plane: ControlPlane, prometheus: str) -> None:
    leak = fault("leak", leak_seconds=8, since=time.time(), speed=100)
    await plane.api.post(PODS, pod("leaks", leak, limited("100Mi")))
    labels = 'namespace="default", pod="leaks", container="app"'
    used = f"max_over_time(container_memory_working_set_bytes{{{labels}}}[1m])"
    assert await eventually(lambda: values(prometheus, f"{used} > 8e7"), "a pod that uses most of its limit")
    limit = f'kube_pod_container_resource_limits{{{labels}, resource="memory"}}'
    assert await values(prometheus, f"max({used}) / max({limit}) > 1") == {}
    killed = f"kube_pod_container_status_last_terminated_reason{{{labels}}}"
    assert await eventually(lambda: values(prometheus, f"sum by (reason) ({killed})"), "its end") == {"OOMKilled": 1.0}
    # What it uses in the first seconds of its eight; in the last three before its end it used more.
    fresh = f"min_over_time(container_memory_working_set_bytes{{{labels}}}[3s]) < 7e7"
    assert await eventually(lambda: values(prometheus, fresh), "a container that has begun anew")
    await plane.api.delete(f"{PODS}/leaks", {"gracePeriodSeconds": 0})


async def test_prometheus_has_the_restarts_and_reasons_of_a_loop(plane: ControlPlane, prometheus: str) -> None:
    made = await plane.api.post(PODS, pod("counted", fault("crash-loop", speed=100)))
    labels = f'namespace="default", pod="counted", uid="{made["metadata"]["uid"]}", container="app"'

    async def counted() -> bool:
        found = await values(prometheus, f"max(kube_pod_container_status_restarts_total{{{labels}}}) >= 5")
        return bool(found)

    await eventually(counted, "5 restarts in Prometheus")
    reason = f'sum by (reason) (kube_pod_container_status_last_terminated_reason{{{labels}, job="kube-state-metrics"}})'
    assert await values(prometheus, reason) == {"Error": 1.0}
    waited = f"max_over_time(kube_pod_container_status_waiting_reason{{{labels}}}[1m])"
    assert await eventually(lambda: values(prometheus, f"sum by (reason) ({waited})"), "a waiting reason")
    phase = 'sum by (phase) (kube_pod_status_phase{pod="counted"} == 1)'
    assert await values(prometheus, phase) == {"Running": 1.0}
    await plane.api.delete(f"{PODS}/counted", {"gracePeriodSeconds": 0})

    async def gone() -> bool:
        return not await values(prometheus, 'kube_pod_info{pod="counted"}')

    await eventually(gone, "a deleted pod's end in Prometheus")


async def test_prometheus_has_the_conditions_of_nodes(plane: ControlPlane, prometheus: str) -> None:
    query = 'sum by (node) (kube_node_status_condition{condition="Ready", status="true"})'
    found = await eventually(lambda: values(prometheus, query), "nodes")
    assert found == {"node-0": 1.0, "node-1": 1.0, "node-2": 1.0}


async def test_the_shipped_rules_are_loaded_and_a_loop_reaches_the_receiver(
    plane: ControlPlane, prometheus: str, webhooks: tuple[int, list[dict[str, Any]]]
) -> None:
    await plane.api.post(PODS, pod("alerting", fault("crash-loop", speed=100)))

    async def told() -> list[dict[str, Any]]:
        alerts = [alert for body in webhooks[1] for alert in body["alerts"]]
        return [alert for alert in alerts if alert["labels"].get("pod") == "alerting"]

    alert = (await eventually(told, "an alert about the pod", patience=60))[0]
    assert alert["labels"]["alertname"] == "KreflexPodRestartLooping"
    assert {"namespace", "pod", "uid", "container"} <= set(alert["labels"])
    await plane.api.delete(f"{PODS}/alerting", {"gracePeriodSeconds": 0})


async def test_the_programs_themselves_find_no_fault_with_the_configuration(
    plane: ControlPlane, prometheus: str
) -> None:
    tools = Toolchain().ensure(["promtool", "amtool"])
    prometheus_file, alertmanager_file = (plane.home.config / f"{name}.yaml" for name in ("prometheus", "alertmanager"))
    for command in (
        [str(tools["promtool"]), "check", "config", str(prometheus_file)],
        [str(tools["amtool"]), "check-config", str(alertmanager_file)],
    ):
        await asyncio.to_thread(subprocess.check_output, command)
