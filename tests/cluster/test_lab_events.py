"""Knative's own adapter tells the relay of pods, and the relay tells the functions."""

import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from aiohttp import web

from lab import events
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.ports import Ports
from lab.relay import Subscriber
from lab.workloads import fault, pod

PODS = "/api/v1/namespaces/default/pods"


@dataclass
class Sink:
    """A function that takes note; while it is down it answers 503."""

    down: bool = False
    got: list[tuple[str, str, dict[str, Any]]] = field(default_factory=list)

    async def take(self, request: web.Request) -> web.Response:
        if self.down:
            return web.Response(status=503)
        self.got.append((request.headers["ce-type"], request.headers["ce-subject"], await request.json()))
        return web.Response(status=204)

    def told(self, name: str) -> list[tuple[str, dict[str, Any]]]:
        return [(kind, body) for kind, subject, body in self.got if subject.endswith(f"/pods/{name}")]


@pytest.fixture(scope="module")
async def sink(plane: ControlPlane) -> AsyncIterator[Sink]:
    """What the adapter's events arrive at."""
    sink = Sink()
    application = web.Application()
    application.add_routes([web.post("/", sink.take)])
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    subscriber = Subscriber("sink", f"http://127.0.0.1:{runner.addresses[0][1]}", ("dev.knative.apiserver.resource.",))
    with Ports() as ports:
        relay = await events.start_relay(plane, ports.take(), [subscriber])
        await events.start_adapter(plane, relay)
    yield sink
    for name in ("adapter", "relay"):
        await plane.stop_child(name)
    await runner.cleanup()


async def test_a_pod_s_life_arrives_whole_and_in_resource_mode(plane: ControlPlane, sink: Sink) -> None:
    await plane.api.post(PODS, pod("told", fault("crash-loop", speed=100)))

    async def restarted() -> bool:
        statuses = [body.get("status", {}).get("containerStatuses", [{}]) for _, body in sink.told("told")]
        return any(one[0].get("restartCount", 0) >= 4 for one in statuses)

    await eventually(restarted, "an event with 4 restarts")
    await plane.api.delete(f"{PODS}/told", {"gracePeriodSeconds": 0})

    async def deleted() -> bool:
        return "dev.knative.apiserver.resource.delete" in {kind for kind, _ in sink.told("told")}

    await eventually(deleted, "the event of its end")
    kind, body = sink.told("told")[0]
    assert (kind, body["kind"]) == ("dev.knative.apiserver.resource.add", "Pod")


async def test_nothing_is_lost_while_the_function_is_down(plane: ControlPlane, sink: Sink) -> None:
    sink.down = True
    await plane.api.post(PODS, pod("missed"))

    async def tried() -> bool:
        lines = [json.loads(line) for line in plane.home.events.read_text().splitlines()]
        return any(line["step"] == "failed" and line["subject"].endswith("/pods/missed") for line in lines)

    await eventually(tried, "a failed delivery")
    assert sink.told("missed") == []
    sink.down = False

    async def ready() -> bool:
        conditions = [body["status"].get("conditions", []) for _, body in sink.told("missed")]
        return any(one["type"] == "Ready" and one["status"] == "True" for those in conditions for one in those)

    await eventually(ready, "the event of its readiness")
    assert "dev.knative.apiserver.resource.add" in {kind for kind, _ in sink.told("missed")}
    await plane.api.delete(f"{PODS}/missed", {"gracePeriodSeconds": 0})


async def test_the_adapter_may_read_pods_and_nothing_else(plane: ControlPlane, sink: Sink) -> None:
    review = {
        "spec": {
            "user": "system:serviceaccount:kreflex-lab:apiserversource",
            "resourceAttributes": {"verb": "delete", "resource": "pods", "namespace": "default"},
        }
    }
    answer = await plane.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", review)
    assert answer["status"]["allowed"] is False
