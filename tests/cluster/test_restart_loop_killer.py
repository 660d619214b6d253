"""restart-loop-killer on a real API server, with the faults as a kubelet shows them."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kreflex.reflex import Arc
from kreflex.signals import PodSignal
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster.reflexes import (
    SPEED,
    Ahead,
    a_template,
    an_arc,
    changes,
    events,
    forbidden,
    handled,
    made,
    settled,
    signal,
    the_record,
    told,
    woken,
)


@pytest.fixture
async def arc(installed: ControlPlane) -> AsyncIterator[Arc[Any]]:
    async with an_arc(installed) as running:
        yield running


def uid(pod: kit.Json) -> str:
    text: str = pod["metadata"]["uid"]
    return text


async def a_pod_with(here: kit.Place, fault: str, **spec: Any) -> kit.Json:
    """A Deployment's only pod, broken from its start."""
    body = kit.deployment("shop", 1, {kit.FAULT: fault, kit.SPEED: SPEED}, **spec)
    await here.plane.api.post(f"/apis/apps/v1/namespaces/{here.name}/deployments", body)

    async def there() -> Any:
        return await here.pods("shop")

    pods: list[kit.Json] = await eventually(there, "a pod")
    return pods[0]


async def broken(here: kit.Place, pod: kit.Json) -> kit.Json:
    """The pod, once it loops or can't start."""

    async def ill() -> Any:
        body = await here.plane.api.get(f"/api/v1/namespaces/{here.name}/pods/{pod['metadata']['name']}")
        statuses = body["status"].get("initContainerStatuses", []) + body["status"].get("containerStatuses", [])
        waits = {one["state"].get("waiting", {}).get("reason") for one in statuses}
        loops = [one for one in statuses if one["restartCount"] > 3 and "running" not in one["state"]]
        return body if loops or waits & {"ErrImagePull", "ImagePullBackOff", "CreateContainerConfigError"} else None

    found: kit.Json = await eventually(ill, "the fault")
    return found


@pytest.mark.parametrize(
    ("fault", "guard"),
    [("oom-killed", "OOMKilled"), ("exit-zero", "ExitZero"), ("image-pull", "ImagePull"), ("config-error", "Config")],
)
async def test_hands_on_what_a_new_pod_would_inherit(here: kit.Place, arc: Arc[Any], fault: str, guard: str) -> None:
    pod = await broken(here, await a_pod_with(here, fault))
    refused = await handled(arc, pod)
    assert refused.outcome == "refused"
    assert told(await the_record(here)) == ("Open", "refused", guard)
    assert await events(here) == [(f"Kreflex{guard}", f"Pod {pod['metadata']['name']}", refused.because)]

    before = changes(here)
    for _ in range(3):
        await handled(arc, pod)
        if fault in {"image-pull", "config-error"}:
            # The others run for a moment now and then, which closes their record until the next crash.
            await woken(arc, here)
    assert changes(here) == before
    assert here.evictions() == []


async def test_evicts_a_pod_whose_init_container_crashes(here: kit.Place, arc: Arc[Any]) -> None:
    init = [{"name": "prepare", "image": "shop:1"}]
    pod = await broken(here, await a_pod_with(here, "init-crash", initContainers=init))
    done = await handled(arc, pod)
    assert done.because.startswith("prepare restarted ")
    assert here.evictions() == [uid(pod)]


async def test_evicts_a_pod_whose_sidecar_crashes(here: kit.Place, arc: Arc[Any]) -> None:
    sidecars = [{"name": "mesh", "image": "mesh:1", "restartPolicy": "Always"}]
    (pod,) = await here.deployment(initContainers=sidecars)
    path = f"/api/v1/namespaces/{here.name}/pods/{pod['metadata']['name']}"
    await here.plane.api.patch(path, {"metadata": {"annotations": {"lab.kreflex.dev/container": "mesh"}}})
    done = await handled(arc, await here.loop(pod, still=True))
    assert done.because.startswith("mesh restarted ")
    assert here.evictions() == [uid(pod)]


async def test_a_cured_pod_is_left_alone_however_often_it_restarted(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    path = f"/api/v1/namespaces/{here.name}/pods/{pod['metadata']['name']}"
    await here.plane.api.patch(path, {"metadata": {"annotations": {kit.FAULT: None}}})
    await here.ready_pods("shop", 1)
    assert (await arc.handle(signal(pod))).outcome == "skipped"
    assert (await here.records(), here.evictions()) == ([], [])


async def test_a_refused_fault_that_heals_by_itself_is_closed(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    await here.policy(frozen=True)
    await handled(arc, pod)
    path = f"/api/v1/namespaces/{here.name}/pods/{pod['metadata']['name']}"
    await here.plane.api.patch(path, {"metadata": {"annotations": {kit.FAULT: None}}})
    await here.ready_pods("shop", 1)
    Ahead.of(arc, hours=2)
    assert told(await woken(arc, here)) == ("Done", "skipped", None)

    Ahead.of(arc, hours=0)
    await here.policy()
    await here.loop(pod, speed=SPEED)
    assert (await handled(arc, pod)).outcome == "applied"
    assert told(await the_record(here)) == ("Applied", "applied", None)


async def test_the_pod_of_a_stateful_set_is_proven_by_its_successor_of_the_same_name(
    here: kit.Place, arc: Arc[Any]
) -> None:
    spec = {"selector": {"matchLabels": {"app": "shop"}}, "serviceName": "shop", "template": a_template()}
    await made(here, "StatefulSet", spec)
    (pod,) = await here.ready_pods("shop", 1)
    await here.loop(pod, speed=SPEED)
    done = await handled(arc, pod)
    assert done.changed is not None

    async def replaced() -> Any:
        (next_,) = await here.pods("shop") or [pod]
        return kit.is_ready(next_) and uid(next_) != uid(pod)

    await eventually(replaced, "a successor")
    assert (await arc.handle(signal(pod))).because == "the pod is gone"
    assert await settled(arc, here, done.changed.name) == "Recovered"
    assert here.evictions() == [uid(pod)]
    assert [event[:2] for event in await events(here)] == [("KreflexRecovered", "StatefulSet shop")]


async def test_a_pod_that_took_over_the_name_is_left_alone(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], speed=SPEED)
    earlier = PodSignal(here.name, pod["metadata"]["name"], "uid-of-an-earlier-pod")
    assert (await arc.handle(earlier)).because == "the pod is gone"
    assert (await here.records(), here.evictions()) == ([], [])


async def test_a_record_whose_pod_is_gone_is_closed_for_good(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], speed=SPEED)
    await here.policy(mode="DryRun")
    await handled(arc, pod)
    await here.plane.api.delete(f"/api/v1/namespaces/{here.name}/pods/{pod['metadata']['name']}")

    async def gone() -> bool:
        return uid(pod) not in [uid(one) for one in await here.pods("shop")]

    await eventually(gone, "the pod gone")
    Ahead.of(arc, hours=2)
    assert told(await woken(arc, here)) == ("Done", "skipped", "Gone")
    before = changes(here)
    await woken(arc, here)
    assert changes(here) == before


async def test_a_record_tells_the_whole_story(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], speed=SPEED)
    done = await handled(arc, pod)
    assert done.changed is not None
    assert await settled(arc, here, done.changed.name) == "Recovered"

    record = await the_record(here)
    spec, status = record["spec"], record["status"]
    labels = {"kreflex.dev/function": "restart-loop-killer", "kreflex.dev/target": pod["metadata"]["uid"]}
    assert record["metadata"]["labels"] == labels
    assert (spec["target"]["kind"], spec["target"]["uid"]) == ("Pod", uid(pod))
    assert (spec["owner"]["kind"], spec["owner"]["name"]) == ("Deployment", "shop")
    assert spec["owner"]["templateHash"] == pod["metadata"]["labels"]["pod-template-hash"]
    assert spec["fault"]["key"] == f"restart-loop-killer/{uid(pod)}"
    assert status["policies"] == [here.name]
    assert [step["phase"] for step in status["history"]][-3:] == ["Acting", "Applied", "Done"]
    times = [datetime.fromisoformat(status[name]) for name in ("actedAt", "appliedAt", "settledAt")]
    assert times == sorted(times)
    assert abs(datetime.now(UTC) - times[0]) < timedelta(minutes=1)
    assert [event[0] for event in await events(here)] == ["KreflexRecovered"]


async def test_recovers_only_after_the_whole_proof(here: kit.Place, arc: Arc[Any]) -> None:
    await here.policy(proof="4s")
    pod = await here.loop((await here.deployment())[0], still=True)
    done = await handled(arc, pod)
    assert done.changed is not None
    await here.ready_pods("shop", 1)
    assert told(await woken(arc, here)) == ("Applied", "applied", None)
    assert (await handled(arc, pod)).outcome == "skipped"
    assert await settled(arc, here, done.changed.name) == "Recovered"
    status = (await the_record(here))["status"]
    proven = datetime.fromisoformat(status["settledAt"]) - datetime.fromisoformat(status["actedAt"])
    assert proven >= timedelta(seconds=4)


async def test_nobody_knows_when_the_owner_is_deleted(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    done = await handled(arc, pod)
    assert done.changed is not None
    path = f"/apis/apps/v1/namespaces/{here.name}/deployments/shop"
    await here.plane.api.delete(path, {"propagationPolicy": "Foreground"})

    async def gone() -> bool:
        return await here.plane.api.find(path) is None and not await here.pods("shop")

    await eventually(gone, "the Deployment gone")
    await asyncio.sleep(1.1)
    assert await settled(arc, here, done.changed.name) == "Unknown"
    assert (await the_record(here))["status"]["verdictReason"] == "its owner is gone"


async def test_its_own_rights_have_sufficed_for_all_of_this(installed: ControlPlane) -> None:
    assert forbidden(installed) == []
