"""Rollback in the fault matrix: a bad release of a Deployment, and one of a StatefulSet, whose stuck pod has to go."""

import json
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime

from bench import rig
from bench.rig import Json
from bench.scenarios import Scenario
from bench.stage import Event, Stage
from lab import nodes, workloads
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.workloads import fault

FUNCTION = "rollback"
GOOD, BAD = "v1", "v2-crash"
# As many as fall ill in one case.
COUNT, PODS, DEADLINE = 4, 2, 2
_PATIENCE = 120.0
_PLURALS = {"Deployment": "deployments", "StatefulSet": "statefulsets"}
RELEASES = {"patience": "2s", "healthyFor": "2s", "changeWindow": "1h"}
Making = Callable[[Stage, str], Awaitable[list[Json]]]


def shops(kind: str) -> Making:
    """Make workloads of a kind that are well, with a policy of their own."""

    async def make(on: Stage, where: str) -> list[Json]:
        told = {"functions": [FUNCTION], "proof": "1s", "proveWithin": "2m", "releases": RELEASES}
        await rig.set_policy(on.plane, where, {"maxInFlight": 1}, **told)
        made = [
            await on.plane.api.post(f"{_base(where, kind)}", body(kind, f"shop-{number}")) for number in range(COUNT)
        ]
        names = [one["metadata"]["name"] for one in made]
        await eventually(lambda: running(on.plane, where, names), f"the {kind}s of {where}", _PATIENCE, 0.5)
        return [{**await on.plane.api.get(f"{_base(where, kind)}/{name}"), "kind": kind} for name in names]

    return make


def _base(where: str, kind: str) -> str:
    return f"/apis/apps/v1/namespaces/{where}/{_PLURALS[kind]}"


def body(kind: str, name: str, tag: str = GOOD) -> Json:
    """A workload whose pods tell soon how they are."""
    probe = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}
    container = {"name": "app", "image": f"lab.local/shop:{tag}", "readinessProbe": probe}
    spec = {"containers": [container], "terminationGracePeriodSeconds": 0}
    if kind == "StatefulSet":
        made = workloads.stateful_set(name, PODS, spec)
    else:
        made = workloads.deployment(name, PODS, spec=spec)
        # Soon after that its status tells of it.
        made["spec"]["progressDeadlineSeconds"] = DEADLINE
    made["spec"]["template"]["metadata"]["annotations"] = fault(speed=60)
    return made


async def running(plane: ControlPlane, where: str, names: list[str]) -> bool:
    """Tell whether all of these run their good version."""
    return not any([await unwell(plane, where, name) for name in names])


async def unwell(plane: ControlPlane, where: str, name: str) -> str:
    """What keeps a workload from running its good version; "" if nothing does."""
    found = await rig.pods(plane, where, name)
    ready = [pod for pod in found if nodes.is_ready(pod) and _tag(pod) == GOOD]
    return "" if len(ready) == len(found) == PODS else f"{len(ready)} of {len(found)} pods of {name} are well"


def _tag(pod: Json) -> str:
    return str(pod["spec"]["containers"][0]["image"]).rpartition(":")[2]


async def release(plane: ControlPlane, thing: Json) -> Json:
    """A workload whose new version crashes, for long enough to be seen."""
    where, name, kind = thing["metadata"]["namespace"], thing["metadata"]["name"], thing["kind"]
    container = {**thing["spec"]["template"]["spec"]["containers"][0], "image": f"lab.local/shop:{BAD}"}
    patch = {"spec": {"template": {"spec": {"containers": [container]}}}}
    await plane.api.patch(f"{_base(where, kind)}/{name}", patch)
    return await crashing(plane, thing)


async def crashing(plane: ControlPlane, thing: Json) -> Json:
    """Wait until the new version of a workload has crashed for long enough to be seen; the workload."""
    where, name, kind = thing["metadata"]["namespace"], thing["metadata"]["name"], thing["kind"]

    async def shows() -> Json | None:
        found = await plane.api.get(f"{_base(where, kind)}/{name}")
        failing = [pod for pod in await rig.pods(plane, where, name) if _tag(pod) == BAD and _restarts(pod) > 3]
        timed_out = thing["spec"].get("progressDeadlineSeconds") != DEADLINE or _timed_out(found)
        return {**found, "kind": kind} if failing and timed_out else None

    ill: Json = await eventually(shows, f"the crash of {where}/{name}", _PATIENCE, 0.3)
    return ill


def _restarts(pod: Json) -> int:
    return max((one["restartCount"] for one in pod["status"].get("containerStatuses", [])), default=0)


def _timed_out(workload: Json) -> bool:
    return any(one.get("reason") == "ProgressDeadlineExceeded" for one in workload["status"].get("conditions", []))


def told(thing: Json) -> Event:
    """The event by which an ApiServerSource in mode Resource tells of a workload, with an id of its own."""
    meta, kind = thing["metadata"], thing["kind"]
    headers = {
        "ce-specversion": "1.0",
        "ce-id": str(uuid.uuid4()),
        "ce-type": "dev.knative.apiserver.resource.update",
        "ce-source": "https://10.96.0.1:443",
        "ce-subject": f"/apis/apps/v1/namespaces/{meta['namespace']}/{_PLURALS[kind]}/{meta['name']}",
        "ce-kind": kind,
        "ce-name": meta["name"],
        "ce-namespace": meta["namespace"],
        "ce-time": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
        "content-type": "application/json",
    }
    return headers, json.dumps({"apiVersion": "apps/v1", **thing}).encode()


async def taken_back(plane: ControlPlane, where: str, thing: Json) -> str:
    """The good version is there again, and all of it runs."""
    found = await plane.api.get(f"{_base(where, thing['kind'])}/{thing['metadata']['name']}")
    if found["spec"]["template"]["spec"] != {**thing["spec"]["template"]["spec"], "containers": _good(thing)}:
        return "its template is not the good one"
    return await unwell(plane, where, thing["metadata"]["name"])


def _good(thing: Json) -> list[Json]:
    return [{**thing["spec"]["template"]["spec"]["containers"][0], "image": f"lab.local/shop:{GOOD}"}]


async def nobody(_: ControlPlane, __: str, ___: Json) -> list[str]:
    """No pod has to be evicted."""
    return []


async def stuck(plane: ControlPlane, where: str, thing: Json) -> list[str]:
    """The pods of the bad version: they would never be Ready, and keep the StatefulSet from going back."""
    found = await rig.pods(plane, where, thing["metadata"]["name"])
    return [pod["metadata"]["uid"] for pod in found if _tag(pod) == BAD]


async def clear(on: Stage, where: str) -> None:
    """Remove the workloads."""
    for plural in _PLURALS.values():
        for number in range(COUNT):
            await rig.remove(on.plane, f"/apis/apps/v1/namespaces/{where}/{plural}/shop-{number}")


ROLLBACK = Scenario(
    FUNCTION,
    shops("Deployment"),
    release,
    told,
    taken_back,
    variant="of a Deployment",
    evicts=nobody,
    writes=("patch deployments",),
    clear=clear,
)
STUCK = replace(
    ROLLBACK,
    variant="of a StatefulSet",
    prepare=shops("StatefulSet"),
    evicts_ill=stuck,
    writes=("patch statefulsets",),
)
RELEASE_SCENARIOS = (ROLLBACK, STUCK)
