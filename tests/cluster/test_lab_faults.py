"""What kwok shows of a broken pod is what a 1.36 kubelet shows."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from lab import workloads
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.nodes import condition, is_ready
from lab.workloads import fault, pod, pod_spec, release

PODS = "/api/v1/namespaces/default/pods"
SPEED = 100


@asynccontextmanager
async def running(plane: ControlPlane, manifest: dict[str, Any]) -> AsyncIterator[str]:
    """A pod, removed at the end."""
    path = f"{PODS}/{manifest['metadata']['name']}"
    await plane.api.post(PODS, manifest)
    yield path
    await plane.api.delete(path, {"gracePeriodSeconds": 0})


async def statuses(plane: ControlPlane, name: str, until: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
    """Every state of a pod that a watch sees, up to one."""
    seen: list[dict[str, Any]] = []

    async def watch() -> None:
        async for event in plane.api.watch(PODS, fieldSelector=f"metadata.name={name}", resourceVersion="0"):
            if event["type"] in ("ADDED", "MODIFIED"):
                seen.append(event["object"])
                if until(event["object"]):
                    return

    await asyncio.wait_for(watch(), 60)
    return seen


def container(thing: dict[str, Any], name: str = "app") -> dict[str, Any]:
    status = thing.get("status", {})
    all_of_them = status.get("initContainerStatuses", []) + status.get("containerStatuses", [])
    return next((one for one in all_of_them if one["name"] == name), {})


def told(thing: dict[str, Any], name: str = "app") -> tuple[int, str, str]:
    """(restartCount, state, lastState) of a container, in words."""
    one = container(thing, name)
    return one.get("restartCount", 0), words(one.get("state", {})), words(one.get("lastState", {}))


def words(state: dict[str, Any]) -> str:
    return " ".join(f"{kind}:{about.get('reason', '')}".rstrip(":") for kind, about in state.items())


def restarts(count: int, name: str = "app") -> Callable[[dict[str, Any]], bool]:
    return lambda thing: container(thing, name).get("restartCount", 0) >= count


async def reaches(plane: ControlPlane, path: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    async def there() -> dict[str, Any] | None:
        thing = await plane.api.get(path)
        return thing if wanted(thing) else None

    found: dict[str, Any] = await eventually(there, f"{path} as wanted")
    return found


async def test_a_healthy_pod_gets_an_address_and_becomes_ready(plane: ControlPlane) -> None:
    async with running(plane, pod("healthy", spec=pod_spec("app", init=("prepare",), sidecars=("mesh",)))) as path:
        thing = await reaches(plane, path, is_ready)
    assert thing["status"]["phase"] == "Running"
    assert thing["status"]["podIP"].startswith("10.244.")
    assert told(thing, "prepare") == (0, "terminated:Completed", "")
    assert told(thing, "mesh") == told(thing, "app") == (0, "running", "")


async def test_a_crash_loop_passes_from_terminated_to_running_until_the_back_off_is_longer_than_a_minute(
    plane: ControlPlane,
) -> None:
    async with running(plane, pod("loop", fault("crash-loop", speed=SPEED))):
        seen = [told(thing) for thing in await statuses(plane, "loop", restarts(5))]
    assert list(dict.fromkeys(seen[seen.index((0, "running", "")) :])) == [
        (0, "running", ""),
        (0, "terminated:Error", ""),
        (1, "running", "terminated:Error"),
        (1, "terminated:Error", "terminated:Error"),
        (2, "running", "terminated:Error"),
        (2, "terminated:Error", "terminated:Error"),
        (3, "running", "terminated:Error"),
        (3, "terminated:Error", "terminated:Error"),
        (4, "running", "terminated:Error"),
        (4, "terminated:Error", "terminated:Error"),
        (4, "waiting:CrashLoopBackOff", "terminated:Error"),
        (5, "running", "terminated:Error"),
    ]


async def test_a_crash_has_exit_code_and_times_and_takes_readiness_away(plane: ControlPlane) -> None:
    async with running(plane, pod("times", fault("crash-loop", speed=2, exit_code=3))):
        seen = await statuses(plane, "times", lambda thing: "terminated" in container(thing).get("state", {}))
    end = container(seen[-1])["state"]["terminated"]
    assert (end["exitCode"], end["reason"]) == (3, "Error")
    assert end["startedAt"] <= end["finishedAt"]
    assert [condition(seen[-1], kind) for kind in ("Ready", "ContainersReady", "Initialized")] == [
        "False",
        "False",
        "True",
    ]
    assert seen[-1]["status"]["phase"] == "Running"
    ready = next(one for one in seen[-1]["status"]["conditions"] if one["type"] == "Ready")
    assert (ready["reason"], ready["message"]) == ("ContainersNotReady", "containers with unready status: [app]")


async def test_the_back_off_doubles(plane: ControlPlane) -> None:
    # 10, 20 and 40 seconds, eight times as fast.
    async with running(plane, pod("back-off", fault("crash-loop", speed=8, run_seconds=0))):
        loop = asyncio.get_running_loop()
        moments: dict[int, float] = {}

        def note(thing: dict[str, Any]) -> bool:
            moments.setdefault(container(thing).get("restartCount", 0), loop.time())
            return 4 in moments

        await statuses(plane, "back-off", note)
    pauses = [moments[count + 1] - moments[count] for count in (1, 2, 3)]
    assert pauses == pytest.approx([1.25, 2.5, 5.0], abs=0.8)


async def test_without_the_annotation_the_pod_recovers(plane: ControlPlane) -> None:
    async with running(plane, pod("cured", fault("crash-loop", speed=SPEED))) as path:
        await reaches(plane, path, restarts(5))
        await plane.api.patch(path, {"metadata": {"annotations": dict.fromkeys(fault("crash-loop", speed=1))}})

        async def stays_ready() -> bool:
            # A crash that had begun before may still come; one a second would be seen.
            first = await reaches(plane, path, is_ready)
            await asyncio.sleep(3)
            later = await plane.api.get(path)
            return is_ready(later) and told(later) == (container(first)["restartCount"], "running", "terminated:Error")

        await eventually(stays_ready, "a cured pod")


async def test_an_annotation_breaks_a_pod_that_runs(plane: ControlPlane) -> None:
    async with running(plane, pod("broken")) as path:
        await reaches(plane, path, is_ready)
        await plane.api.patch(path, {"metadata": {"annotations": fault("crash-loop", speed=SPEED)}})
        await reaches(plane, path, restarts(4))


@pytest.mark.parametrize(("name", "code", "reason"), [("oom-killed", 137, "OOMKilled"), ("exit-zero", 0, "Completed")])
async def test_other_ends_loop_as_well(plane: ControlPlane, name: str, code: int, reason: str) -> None:
    async with running(plane, pod(name, fault(name, speed=SPEED))) as path:
        thing = await reaches(plane, path, restarts(2))
    last = container(thing)["lastState"]["terminated"]
    assert (last["exitCode"], last["reason"]) == (code, reason)


async def test_only_the_named_container_loops(plane: ControlPlane) -> None:
    spec = pod_spec("app", "log", sidecars=("mesh",))
    async with running(plane, pod("sidecar", fault("crash-loop", speed=SPEED, container="mesh"), spec)) as path:
        thing = await reaches(plane, path, restarts(3, "mesh"))
    assert told(thing, "app") == told(thing, "log") == (0, "running", "")
    assert thing["status"]["phase"] == "Running"


async def test_a_crashing_init_container_keeps_the_others_waiting(plane: ControlPlane) -> None:
    async with running(plane, pod("init", fault("init-crash", speed=SPEED), pod_spec(init=("prepare",)))) as path:
        thing = await reaches(plane, path, restarts(3, "prepare"))
        assert told(thing) == (0, "waiting:PodInitializing", "")
        assert (thing["status"]["phase"], condition(thing, "Initialized")) == ("Pending", "False")
        await plane.api.patch(path, {"metadata": {"annotations": dict.fromkeys(fault("init-crash"))}})
        await reaches(plane, path, is_ready)


async def test_an_image_that_cannot_be_pulled_takes_turns_between_two_reasons(plane: ControlPlane) -> None:
    async with running(plane, pod("pull", fault("image-pull", speed=SPEED))) as path:
        reasons: set[str] = set()

        def both(thing: dict[str, Any]) -> bool:
            reasons.add(told(thing)[1])
            return {"waiting:ErrImagePull", "waiting:ImagePullBackOff"} <= reasons

        thing = (await statuses(plane, "pull", both))[-1]
        assert (thing["status"]["phase"], condition(thing, "Ready")) == ("Pending", "False")
        await plane.api.patch(path, {"metadata": {"annotations": dict.fromkeys(fault("image-pull"))}})
        await reaches(plane, path, is_ready)


async def test_a_missing_config_map_keeps_the_container_from_being_made(plane: ControlPlane) -> None:
    async with running(plane, pod("config", fault("config-error"), pod_spec("app", "log"))) as path:
        thing = await reaches(plane, path, lambda one: told(one)[1] == "waiting:CreateContainerConfigError")
    assert told(thing, "log") == (0, "running", "")
    assert "not found" in container(thing)["state"]["waiting"]["message"]


async def test_a_slow_start_runs_before_it_is_ready(plane: ControlPlane) -> None:
    async with running(plane, pod("slow", fault("slow-start", delay_seconds=2))) as path:
        thing = await reaches(plane, path, lambda one: told(one)[1] == "running")
        assert condition(thing, "Ready") == "False"
        await reaches(plane, path, is_ready)


async def test_a_pod_whose_probe_fails_runs_and_is_never_ready(plane: ControlPlane) -> None:
    async with running(plane, pod("unready", fault("unready"), pod_spec("app", "log"))) as path:
        seen = await statuses(plane, "unready", lambda thing: told(thing)[1] == "running")
        await said(plane, "unready", "Readiness probe failed: HTTP probe failed with statuscode: 503")
        thing = await plane.api.get(path)
        assert told(thing) == told(thing, "log") == (0, "running", "")
        assert (container(thing)["ready"], container(thing, "log")["ready"]) == (False, True)
        assert not any(is_ready(one) for one in [*seen, thing])
        await plane.api.patch(path, {"metadata": {"annotations": {f"{workloads.PREFIX}fault": None}}})
        await reaches(plane, path, is_ready)


async def said(plane: ControlPlane, name: str, message: str) -> None:
    async def found() -> bool:
        events = await plane.api.get("/api/v1/namespaces/default/events", fieldSelector=f"involvedObject.name={name}")
        return any(one["message"] == message for one in events["items"])

    await eventually(found, f"an Event of {name} that says {message}")


@pytest.mark.parametrize("tag", ["2-crash-1s", "2-unready-1s"])
async def test_a_fault_may_come_after_some_seconds_of_being_well(plane: ControlPlane, tag: str) -> None:
    async with running(plane, pod(f"late-{tag}", spec=release(tag, probed()))) as path:
        await reaches(plane, path, is_ready)
        await reaches(plane, path, lambda one: not is_ready(one))
        if "crash" in tag:
            await reaches(plane, path, restarts(1))


async def test_a_number_of_seconds_may_also_be_an_annotation(plane: ControlPlane) -> None:
    async with running(plane, pod("later", fault("crash-loop", after_seconds=1, speed=SPEED))) as path:
        await reaches(plane, path, is_ready)
        await reaches(plane, path, restarts(2))


@pytest.mark.parametrize(
    ("tag", "shows"),
    [
        ("2-crash", "terminated:Error"),
        ("2-oom", "terminated:OOMKilled"),
        ("2-exit", "terminated:Completed"),
        ("2-pull", "waiting:ErrImagePull"),
        ("2-config", "waiting:CreateContainerConfigError"),
        ("2-unready", "running"),
    ],
)
async def test_the_tag_of_an_image_says_what_is_wrong_with_its_container(
    plane: ControlPlane, tag: str, shows: str
) -> None:
    spec = pod_spec("log", "app")
    spec["containers"][1]["image"] = f"lab.local:5000/shop:{tag}"
    async with running(plane, pod(f"tag-{tag}", spec=spec)) as path:
        thing = await reaches(plane, path, lambda one: told(one)[1] == shows)
        await reaches(plane, path, lambda one: told(one, "log")[1] == "running")
    assert not container(thing)["ready"]


async def test_an_annotation_goes_before_the_tag_of_an_image(plane: ControlPlane) -> None:
    async with running(plane, pod("before", fault("none"), release("2-crash"))) as path:
        await reaches(plane, path, is_ready)


KINDS: dict[str, Callable[[str, dict[str, Any]], dict[str, Any]]] = {
    "deployments": lambda name, spec: workloads.deployment(name, 2, spec=spec),
    "statefulsets": lambda name, spec: workloads.stateful_set(name, 2, spec),
    "daemonsets": workloads.daemon_set,
}


@pytest.mark.parametrize("by", ["tag", "annotation"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_bad_release_breaks_the_pods_of_the_new_template_and_leaves_the_others_well(
    plane: ControlPlane, kind: str, by: str
) -> None:
    name, path = f"released-by-{by}", f"/apis/apps/v1/namespaces/default/{kind}"
    await plane.api.post(path, KINDS[kind](name, probed()))
    await ready_pods(plane, name, 2)
    # A DaemonSet may have more nodes, whose pods are Ready a moment later.
    old = [one["metadata"]["uid"] for one in (await plane.api.get(PODS, labelSelector=f"app={name}"))["items"]]
    bad = {"spec": release("2-crash", probed())} if by == "tag" else {"metadata": {"annotations": fault("crash-loop")}}
    await plane.api.patch(f"{path}/{name}", {"spec": {"template": bad}})

    async def a_new_one_has_crashed() -> bool:
        pods = (await plane.api.get(PODS, labelSelector=f"app={name}"))["items"]
        return any(restarts(1)(one) and one["metadata"]["uid"] not in old for one in pods)

    await eventually(a_new_one_has_crashed, "a crash of the new release")
    assert set(await ready_pods(plane, name, 1)) <= set(old)
    await plane.api.delete(f"{path}/{name}", {"propagationPolicy": "Foreground"})
    await eventually(lambda: gone(plane, f"{path}/{name}"), f"the end of {name}")


async def test_without_a_probe_a_bad_release_replaces_all_pods_for_each_is_ready_for_a_moment(
    plane: ControlPlane,
) -> None:
    path = "/apis/apps/v1/namespaces/default/deployments"
    await plane.api.post(path, workloads.deployment("unprobed", 2))
    old = await ready_pods(plane, "unprobed", 2)
    await plane.api.patch(f"{path}/unprobed", {"spec": {"template": {"spec": release("2-crash")}}})

    async def all_are_new() -> bool:
        pods = (await plane.api.get(PODS, labelSelector="app=unprobed"))["items"]
        return bool(pods) and not any(one["metadata"]["uid"] in old for one in pods)

    await eventually(all_are_new, "a release that is through")
    await plane.api.delete(f"{path}/unprobed", {"propagationPolicy": "Background"})


def probed() -> dict[str, Any]:
    """A pod of which a crashed container is not Ready in between."""
    spec = pod_spec()
    spec["containers"][0]["readinessProbe"] = {"httpGet": {"port": 80}}
    return spec


async def ready_pods(plane: ControlPlane, app: str, count: int) -> list[str]:
    """The UIDs of the Ready pods, once there are so many."""

    async def found() -> list[str] | None:
        pods = (await plane.api.get(PODS, labelSelector=f"app={app}"))["items"]
        ready = [one["metadata"]["uid"] for one in pods if is_ready(one)]
        return ready if len(ready) >= count else None

    uids: list[str] = await eventually(found, f"{count} Ready pods of {app}")
    return uids


async def gone(plane: ControlPlane, path: str) -> bool:
    return await plane.api.find(path) is None


async def test_a_deleted_pod_is_terminating_for_a_moment_and_its_owner_replaces_it(plane: ControlPlane) -> None:
    deployments = "/apis/apps/v1/namespaces/default/deployments"
    await plane.api.post(deployments, workloads.deployment("replaced"))
    selected = {"labelSelector": "app=replaced"}

    async def one_ready() -> Any:
        items = (await plane.api.get(PODS, **selected))["items"]
        ready = [one for one in items if is_ready(one) and "deletionTimestamp" not in one["metadata"]]
        return ready[0] if ready else None

    first = await eventually(one_ready, "a ready replica")
    deleted = await plane.api.delete(f"{PODS}/{first['metadata']['name']}")
    assert deleted["metadata"]["deletionTimestamp"]
    assert await plane.api.find(f"{PODS}/{first['metadata']['name']}") is not None
    second = await eventually(one_ready, "another replica")
    assert second["metadata"]["uid"] != first["metadata"]["uid"]
    await plane.api.delete(f"{deployments}/replaced", {"propagationPolicy": "Background"})


async def test_a_job_completes(plane: ControlPlane) -> None:
    jobs = "/apis/batch/v1/namespaces/default/jobs"
    spec = {**pod_spec(), "restartPolicy": "Never"}
    await plane.api.post(jobs, {"metadata": {"name": "task"}, "spec": {"template": {"spec": spec}}})
    await reaches(plane, f"{jobs}/task", lambda one: one.get("status", {}).get("succeeded") == 1)
    await plane.api.delete(f"{jobs}/task", {"propagationPolicy": "Background"})
