"""Pods that loop and hold still: no restart falls between two calls that are timed."""

import asyncio
import json
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from bench import rig
from bench.rig import Json
from lab.cluster import ControlPlane
from lab.workloads import fault

_AT_ONCE = 16
RESTARTS = 5
# So slow that neither the run nor the back-off ends while the benchmark goes on.
_SPEED = 0.001


async def make(plane: ControlPlane, where: str, count: int, replicas: int = 1) -> list[Json]:
    """Make so many Deployments and wait until their pods are Ready; the pods."""
    await _each([_deployment(plane, where, number, replicas) for number in range(count)])
    return await rig.ready(plane, where, count * replicas, patience=60 + count * replicas / 2)


async def _deployment(plane: ControlPlane, where: str, number: int, replicas: int) -> None:
    await rig.make(plane, where, f"shop-{number}", replicas)


async def fall_ill(plane: ControlPlane, pods: Sequence[Json], restarts: int = RESTARTS) -> list[Json]:
    """Let pods loop; as they are then."""
    return await _each([_loop(plane, pod, restarts) for pod in pods])


async def _each(works: Sequence[Any]) -> list[Any]:
    gate = asyncio.Semaphore(_AT_ONCE)

    async def one(work: Any) -> Any:
        async with gate:
            return await work

    return await asyncio.gather(*(one(work) for work in works))


async def _loop(plane: ControlPlane, pod: Json, restarts: int) -> Json:
    meta = pod["metadata"]
    path = f"/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
    await plane.api.patch(path, {"metadata": {"annotations": fault("crash-loop", speed=_SPEED)}})
    return await plane.api.patch(f"{path}/status", {"status": looping(pod, restarts)})


def looping(pod: Json, restarts: int = RESTARTS) -> Json:
    """The status of a pod whose first container waits in its back-off."""
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"exitCode": 1, "reason": "Error", "startedAt": now, "finishedAt": now}
    first, *others = pod["status"]["containerStatuses"]
    ill = {
        **first,
        "ready": False,
        "started": False,
        "restartCount": restarts,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
    }
    unready = {"status": "False", "reason": "ContainersNotReady", "lastTransitionTime": now}
    conditions = [
        {**one, **unready} if one["type"] in {"Ready", "ContainersReady"} else one
        for one in pod["status"]["conditions"]
    ]
    return {**pod["status"], "conditions": conditions, "containerStatuses": [ill, *others]}


def told(pod: Json, number: int = 0) -> tuple[Mapping[str, str], bytes]:
    """The event by which an ApiServerSource in mode Resource tells of a pod, with an id of its own."""
    meta = pod["metadata"]
    headers = {
        "ce-specversion": "1.0",
        "ce-id": f"{uuid.uuid4()}-{number}",
        "ce-type": "dev.knative.apiserver.resource.update",
        "ce-source": "https://10.96.0.1:443",
        "ce-subject": f"/apis/v1/namespaces/{meta['namespace']}/pods/{meta['name']}",
        "ce-time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "content-type": "application/json",
    }
    return headers, json.dumps({"apiVersion": "v1", "kind": "Pod", **pod}).encode()


def alerts(pods: Sequence[Json]) -> bytes:
    """The body in which an Alertmanager tells that these pods loop."""
    begun = datetime.now(UTC).isoformat()
    labels = {"alertname": "KubePodCrashLooping"}
    told = [
        {
            "status": "firing",
            "labels": {**labels, "namespace": pod["metadata"]["namespace"], "pod": pod["metadata"]["name"]},
            "annotations": {"summary": "Pod is crash looping."},
            "startsAt": begun,
            "endsAt": "0001-01-01T00:00:00Z",
            "generatorURL": "",
            "fingerprint": f"{number:016x}",
        }
        for number, pod in enumerate(pods)
    ]
    body = {
        "version": "4",
        "groupKey": '{}:{alertname="KubePodCrashLooping"}',
        "truncatedAlerts": 0,
        "status": "firing",
        "receiver": rig.FUNCTION,
        "groupLabels": labels,
        "commonLabels": labels,
        "commonAnnotations": {},
        "externalURL": "",
        "alerts": told,
    }
    return json.dumps(body).encode()
