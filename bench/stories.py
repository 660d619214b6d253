"""What can go wrong with a release, by its own fault or by another's; each begins with a version that was well."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from bench import rig
from bench.rig import Json
from bench.scene import HOSTS, POOL, Blow, Scene
from lab import nodes
from lab.api import eventually
from lab.workloads import fault

DEPLOYMENT, STATEFUL_SET, DAEMON_SET = KINDS = ("Deployment", "StatefulSet", "DaemonSet")
Play = Callable[[Scene], Awaitable[None]]
_CRASH = fault("crash-loop")
# As long as a kubelet waits: since when a container loops is reckoned from that.
_LOOP = fault("crash-loop", speed=1)
_SETTINGS: Json = {"envFrom": [{"configMapRef": {"name": "settings"}}]}
_SECRET: Json = {"envFrom": [{"secretRef": {"name": "db"}}]}
_PASSWORD: Json = {
    "env": [{"name": "PASSWORD", "valueFrom": {"secretKeyRef": {"name": "db", "key": "password"}}}],
}
# The kubelet of the lab would say other words after a while: at this speed that is a day.
_HELD = {**fault("image-pull"), **fault(speed="0.00001")}


@dataclass(frozen=True)
class Story:
    """What happens to a workload; whether its change is to blame for it; and to which kinds it can happen."""

    name: str
    play: Play
    blamed: bool
    kinds: tuple[str, ...]
    releases: Mapping[str, str] = field(default_factory=dict)
    """What its policy says of releases beside the usual."""
    replicas: tuple[int, ...] = (2, 3, 4)


STORIES: list[Story] = []


def _story(blamed: bool, kinds: Iterable[str], **more: Any) -> Callable[[Play], Play]:  # noqa: FBT001 - by two names only
    def add(play: Play) -> Play:
        STORIES.append(Story(getattr(play, "__name__", "").replace("_", "-"), play, blamed, tuple(kinds), **more))
        return play

    return add


def bad(*kinds: str, **more: Any) -> Callable[[Play], Play]:
    """A release that is bad, and has to be taken back."""
    return _story(True, kinds or KINDS, **more)


def innocent(*kinds: str, **more: Any) -> Callable[[Play], Play]:
    """A release that has nothing to do with what goes wrong, and has to stay."""
    return _story(False, kinds or KINDS, **more)


# Bad releases.


@bad()
async def crashes(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v2-crash")


@bad()
async def crashes_without_a_probe(scene: Scene) -> None:
    await scene.begin(probed=False)
    await scene.release("v2-crash")


@bad()
async def needs_more_memory_than_its_limit(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v2-oom")


@bad()
async def ends_as_if_its_work_were_done(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v2-exit")


@bad()
async def an_init_container_crashes(scene: Scene) -> None:
    await scene.begin()
    first = {"initContainers": [{"name": "migrate", "image": "lab.local/migrate:v2"}]}
    await scene.release(notes=fault("init-crash"), pod=first)


@bad()
async def is_never_ready(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v2-unready")


@bad()
async def has_a_tag_that_nobody_pushed(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v2-pull")


@bad()
async def names_a_config_map_that_nobody_made(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v2-config", **_SETTINGS)


@bad()
async def crashes_after_a_while(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v2-crash-6s")


@bad()
async def is_ready_for_a_while_only(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v2-unready-6s")


@bad(DEPLOYMENT, STATEFUL_SET)
async def asks_for_nodes_that_nobody_has(scene: Scene) -> None:
    await scene.begin()
    await scene.release(pod={"nodeSelector": {POOL: HOSTS, "disk": "nvme"}})


@bad(DEPLOYMENT)
async def asks_for_more_than_its_quota(scene: Scene) -> None:
    await scene.begin(container=_asks(cpu="100m"))
    await _quota(scene, {"requests.cpu": "2"})
    await scene.release(**_asks(cpu="5"))


@bad()
async def has_a_bad_setting_in_the_same_image(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v1", notes=_CRASH, env=[{"name": "DB", "value": "nowhere"}])


@bad()
async def follows_another_bad_one(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v2-unready")
    await asyncio.sleep(1)
    await scene.release("v3-crash")


@bad()
async def follows_a_good_one(scene: Scene) -> None:
    await scene.begin()
    await scene.release("v2")
    await scene.complete(1)
    await scene.remembered(scene.name, scene.kind)
    scene.good = (await scene.body())["spec"]["template"]
    await scene.release("v3-crash")


@bad()
async def crashes_beside_healthy_neighbours(scene: Scene) -> None:
    await asyncio.gather(scene.make("cart"), scene.make("orders", STATEFUL_SET))
    await scene.begin()
    await scene.release("v2-crash")


# What is no fault of the release.


@innocent()
async def its_dependency_fails_in_the_middle(scene: Scene) -> None:
    await scene.begin()
    await scene.release()
    await _a_new_pod(scene)
    scene.strike(Blow(_all, _LOOP))


@innocent()
async def its_dependency_and_a_neighbours_fails_soon_after(scene: Scene) -> None:
    await scene.make("cart")
    await scene.begin()
    await scene.release()
    await scene.complete(4)
    scene.strike(Blow(_all, _LOOP))


@innocent()
async def its_dependency_is_away_and_ends_probes(scene: Scene) -> None:
    await scene.begin()
    await scene.release()
    await _a_new_pod(scene)
    scene.strike(Blow(_all, fault("unready")))


@innocent()
async def its_dependency_is_needed_at_the_start_only(scene: Scene) -> None:
    """An old pod that had to start anew fails as well; those that have started run on.

    Their controller replaces the one that fails first. What is left is what a bad release leaves, so it has to have
    failed for long enough to be noticed.
    """
    await scene.begin()
    scene.strike(Blow(_not_one_of(scene), _LOOP))
    await scene.delete_one()
    await _noticed(scene)
    await scene.release()


@innocent()
async def it_failed_before(scene: Scene) -> None:
    await scene.begin()
    scene.strike(Blow(_all, _LOOP))
    await asyncio.sleep(40)
    await scene.release()


@innocent(DAEMON_SET)
async def one_node_is_ill(scene: Scene) -> None:
    ill, *_ = await scene.machines(3)
    await scene.begin()
    await nodes.break_node(scene.plane.api, ill, "memory-pressure")
    await nodes.shows(scene.plane.api, ill, "MemoryPressure", "True")
    scene.strike(Blow(_new_on(ill), _LOOP))
    await scene.release()


@innocent(DEPLOYMENT, STATEFUL_SET)
async def its_only_node_is_not_ready(scene: Scene) -> None:
    (ill,) = await scene.machines(1)
    await scene.begin()
    await scene.release()
    await scene.complete(1)
    await nodes.break_node(scene.plane.api, ill, "not-ready")
    scene.strike(Blow(_all, fault("unready")))


@innocent(DEPLOYMENT, DAEMON_SET, replicas=(6,))
async def it_fails_on_one_node_alone(scene: Scene) -> None:
    ill, *_ = await scene.machines(3)
    await scene.begin()
    scene.strike(Blow(_new_on(ill), _LOOP))
    # A DaemonSet would stop at the first, which tells nobody anything.
    together = {"rollingUpdate": {"maxUnavailable": 3}} if scene.kind == DAEMON_SET else None
    if together:
        await scene.plane.api.patch(scene.path(), {"spec": {"updateStrategy": together}})
    await scene.release()


@innocent(DEPLOYMENT)
async def the_quota_of_pods_is_used_up(scene: Scene) -> None:
    await scene.begin()
    await _quota(scene, {"pods": str(len(scene.of()))})
    await scene.release()


@innocent(STATEFUL_SET, DAEMON_SET)
async def the_quota_was_lowered(scene: Scene) -> None:
    await scene.begin()
    await _quota(scene, {"pods": "1"})
    await scene.release()


@innocent(DEPLOYMENT)
async def the_quota_of_cpu_is_used_up(scene: Scene) -> None:
    await scene.begin(container=_asks(cpu="1"))
    await _quota(scene, {"requests.cpu": str(len(scene.of()))})
    await scene.release(**_asks(cpu="1"))


@innocent()
async def a_limit_was_set_meanwhile(scene: Scene) -> None:
    await scene.begin(container={"resources": {"limits": {"cpu": "2"}, "requests": {"cpu": "100m"}}})
    limit = {"metadata": {"name": "small"}, "spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}}]}}
    await scene.plane.api.post(scene.core("limitranges"), limit)
    await asyncio.sleep(1)
    await scene.release()


@innocent()
async def an_admission_webhook_is_down(scene: Scene) -> None:
    await scene.begin()
    rule = {"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["pods"]}
    hook = {
        "name": "guard.example.com",
        "clientConfig": {"url": "https://127.0.0.1:1/"},
        "rules": [rule],
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": scene.where}},
        "sideEffects": "None",
        "admissionReviewVersions": ["v1"],
        "timeoutSeconds": 1,
    }
    path = "/apis/admissionregistration.k8s.io/v1/validatingwebhookconfigurations"
    scene.cleared.append(f"{path}/{scene.where}")
    await scene.plane.api.post(path, {"metadata": {"name": scene.where}, "webhooks": [hook]})
    await asyncio.sleep(1)
    await scene.release()


@innocent()
async def its_account_was_deleted(scene: Scene) -> None:
    await scene.plane.api.post(scene.core("serviceaccounts"), {"metadata": {"name": "runner"}})
    await scene.begin(pod={"serviceAccountName": "runner"})
    await scene.plane.api.delete(scene.core("serviceaccounts/runner"))
    await asyncio.sleep(1)
    await scene.release()


@innocent()
async def a_config_map_of_both_was_deleted(scene: Scene) -> None:
    await scene.begin(container=_SETTINGS)
    await scene.release("v2-config")


@innocent()
async def a_secret_of_both_was_deleted(scene: Scene) -> None:
    await scene.begin(container=_SECRET)
    await _release_that_waits(scene, "CreateContainerConfigError", 'secret "db" not found')


@innocent()
async def a_key_of_a_secret_of_both_is_gone(scene: Scene) -> None:
    await scene.begin(container=_PASSWORD)
    said = f"couldn't find key password in Secret {scene.where}/db"
    await _release_that_waits(scene, "CreateContainerConfigError", said)


# Containerd's words, of several kinds of trouble of one registry.
_PULLS = {
    "the-registry-is-away": "dial tcp 10.0.0.7:443: i/o timeout",
    "the-registry-refuses": "dial tcp 10.0.0.7:443: connect: connection refused",
    "the-registry-is-ill": "unexpected status from HEAD request to https://lab.local/v2/shop/manifests/v2: "
    "503 Service Unavailable",
    "the-registry-has-had-enough": "429 Too Many Requests - Server message: toomanyrequests: You have reached your "
    "pull rate limit",
    "the-credentials-of-the-registry-are-old": "failed to authorize: failed to fetch oauth token: unexpected status "
    "from GET request to https://lab.local/token: 401 Unauthorized",
}


def _pulls(said: str) -> Play:
    async def play(scene: Scene) -> None:
        await scene.begin()
        image = f"lab.local/{scene.name}:v2"
        words = f'failed to pull and unpack image "{image}": failed to resolve reference "{image}": {said}'
        await _release_that_waits(scene, "ErrImagePull", words)

    return play


STORIES += [Story(name, _pulls(said), blamed=False, kinds=KINDS) for name, said in _PULLS.items()]


@innocent()
async def the_runtime_of_the_node_is_slow(scene: Scene) -> None:
    await scene.begin()
    await _release_that_waits(scene, "CreateContainerError", "context deadline exceeded")


@innocent(DEPLOYMENT, STATEFUL_SET)
async def its_nodes_are_cordoned(scene: Scene) -> None:
    names = await scene.machines(2)
    await scene.begin()
    for name in names:
        await scene.plane.api.patch(f"/api/v1/nodes/{name}", {"spec": {"unschedulable": True}})
    await asyncio.sleep(1)
    await scene.release()


@innocent(DEPLOYMENT, replicas=(3,))
async def its_nodes_are_full(scene: Scene) -> None:
    await scene.machines(1)
    await scene.begin(container=_asks(cpu="10"))
    await scene.release(**_asks(cpu="10"))


@innocent(DEPLOYMENT, STATEFUL_SET)
async def it_was_scaled_beyond_what_its_dependency_bears(scene: Scene) -> None:
    await scene.begin()
    await scene.release()
    await scene.complete(1)
    await scene.remembered(scene.name, scene.kind)
    scene.strike(Blow(_not_one_of(scene), _LOOP))
    await scene.plane.api.patch(scene.path(), {"spec": {"replicas": 2 * scene.replicas + 1}})


@innocent(releases={"changeWindow": "8s"})
async def it_was_changed_long_ago(scene: Scene) -> None:
    await scene.begin()
    await scene.release()
    await scene.complete(12)
    scene.strike(Blow(_all, _LOOP))


@innocent(replicas=(4,))
async def one_pod_of_it_has_bad_luck(scene: Scene) -> None:
    await scene.begin()
    await scene.release()
    await scene.complete(5)
    unlucky = min(scene.pods)
    scene.strike(Blow(lambda pod: pod["metadata"]["uid"] == unlucky, _LOOP))


@innocent()
async def it_takes_its_time_to_start(scene: Scene) -> None:
    probe = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1, "initialDelaySeconds": 8}
    await scene.begin()
    await scene.release(notes=fault("slow-start", delay_seconds=9), readinessProbe=probe)


@innocent()
async def it_is_restarted_while_its_dependency_is_down(scene: Scene) -> None:
    await scene.begin()
    scene.strike(Blow(_all, _LOOP))
    await asyncio.sleep(2)
    await scene.release("v1", notes={"kubectl.kubernetes.io/restartedAt": "now"})


def _all(_: Json) -> bool:
    return True


def _is_new(pod: Json) -> bool:
    return not str(pod["spec"]["containers"][0]["image"]).endswith(":v1")


def _new_on(node: str) -> Callable[[Json], bool]:
    return lambda pod: _is_new(pod) and pod["spec"].get("nodeName") == node


def _not_one_of(scene: Scene) -> Callable[[Json], bool]:
    """Any pod that is not there yet."""
    known = set(scene.pods)
    return lambda pod: pod["metadata"]["uid"] not in known


def _asks(**requests: str) -> Json:
    return {"resources": {"requests": requests}}


async def _a_new_pod(scene: Scene) -> None:
    async def there() -> bool:
        return any(_is_new(pod) for pod in scene.of())

    await eventually(there, f"a new pod in {scene.where}")


async def _noticed(scene: Scene) -> None:
    """Wait until there is a record that says that something of the workload fails."""

    async def recorded() -> bool:
        return bool(await rig.records_about(scene.plane, scene.where, [scene.uid]))

    await eventually(recorded, f"a record about {scene.where}/{scene.name}", 120, 0.5)


async def _quota(scene: Scene, hard: Json) -> None:
    path = scene.core("resourcequotas")
    await scene.plane.api.post(path, {"metadata": {"name": "limits"}, "spec": {"hard": hard}})

    async def counted() -> bool:
        found = await scene.plane.api.get(f"{path}/limits")
        return bool(found.get("status", {}).get("used", {}).keys() >= hard.keys())

    await eventually(counted, f"the quota of {scene.where}")


async def _release_that_waits(scene: Scene, reason: str, said: str) -> None:
    """Release another version, whose containers wait for this reason."""

    def status(pod: Json) -> Json | None:
        known = pod.get("status", {}).get("containerStatuses")
        if not known or not _is_new(pod):
            return None
        return {
            "containerStatuses": [{**one, "state": {"waiting": {"reason": reason, "message": said}}} for one in known]
        }

    scene.strike(Blow(_is_new, status=status))
    await scene.release(notes=_HELD)
