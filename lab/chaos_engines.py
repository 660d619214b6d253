"""The engines of chaos in the lab: their kinds are served, and what their controllers do is played.

LitmusChaos' module can't be had through the Go proxy, so a definition that takes any spec stands in for its
ChaosEngine; what it understands and answers is as documented:
https://litmuschaos.github.io/litmus/experiments/chaos-resources/chaos-engine/contents/
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane

Json = dict[str, Any]
Do = Callable[[list[str]], Awaitable[None]]
GROUP = "litmuschaos.io"
ENGINES = f"/apis/{GROUP}/v1alpha1/chaosengines"
_LOOK_SECONDS = 0.3
_FAULT = "kubelet-service-kill"


def definition() -> Json:
    """A ChaosEngine that takes any spec."""
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    version = {
        "name": "v1alpha1",
        "served": True,
        "storage": True,
        "schema": {"openAPIV3Schema": {"type": "object", "properties": {"spec": anything, "status": anything}}},
    }
    names = {"kind": "ChaosEngine", "listKind": "ChaosEngineList", "plural": "chaosengines", "singular": "chaosengine"}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"chaosengines.{GROUP}"},
        "spec": {"group": GROUP, "names": names, "scope": "Namespaced", "versions": [version]},
    }


async def install(plane: ControlPlane) -> None:
    """Serve ChaosEngines."""
    path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/chaosengines.{GROUP}"
    await plane.api.apply(path, definition())

    async def served() -> bool:
        try:
            return await plane.api.find(ENGINES) is not None
        except Refused:
            return False

    await eventually(served, "ChaosEngines")


@asynccontextmanager
async def litmus(plane: ControlPlane, silence: Do, heal: Do) -> AsyncIterator[None]:
    """Play LitmusChaos' operator for kubelet-service-kill: kubelets fall silent until it is told to stop."""
    await install(plane)
    playing = asyncio.create_task(_play(plane.api, silence, heal))
    try:
        yield
    finally:
        playing.cancel()
        await asyncio.gather(playing, return_exceptions=True)


async def _play(api: Api, silence: Do, heal: Do) -> None:
    while True:
        for body in (await api.get(ENGINES))["items"]:
            state, status = body["spec"].get("engineState"), body.get("status", {}).get("engineStatus")
            nodes = targets(body)
            if state == "active" and status is None:
                await _say(api, body, "initialized", "Running", "Awaited")
                await silence(nodes)
            elif state == "stop" and status == "initialized":
                await heal(nodes)
                await _say(api, body, "stopped", "Aborted", "Stopped")
        await asyncio.sleep(_LOOK_SECONDS)


def targets(body: Json) -> list[str]:
    """The nodes that an engine is told to hit."""
    return [
        env["value"]
        for one in body["spec"].get("experiments", [])
        if one["name"] == _FAULT
        for env in one["spec"]["components"]["env"]
        if env["name"] == "TARGET_NODE"
    ]


async def _say(api: Api, body: Json, engine: str, status: str, verdict: str) -> None:
    meta = body["metadata"]
    path = f"/apis/{GROUP}/v1alpha1/namespaces/{meta['namespace']}/chaosengines/{meta['name']}"
    told = [{"name": _FAULT, "status": status, "verdict": verdict}]
    await api.patch(path, {"status": {"engineStatus": engine, "experiments": told}})
