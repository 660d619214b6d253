"""Where a release is played: a workload that has been well for a while, its next release, and what befalls its pods.

What befalls pods is decided by the scene's story, and not by the template: that is how the benchmark knows what a
release fails of, and whether the change is the cause.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import aiohttp

from bench import rig
from bench.rig import GROUP, Json
from lab import nodes, workloads
from lab.api import Refused, eventually
from lab.cluster import ControlPlane
from lab.errors import LabError
from lab.nodes import Pool
from lab.workloads import fault

FUNCTION = "rollback"
POOL, HOSTS = "pool", "hosts"
SPEED = 20
GOOD = "v1"
# After what time the benchmark's policy takes a pod for ill, or a revision for healthy. Production waits minutes.
PATIENCE, HEALTHY_FOR = 3, 3
POLICY: Json = {
    "functions": [FUNCTION],
    "owners": ["Deployment", "StatefulSet", "DaemonSet"],
    "proof": "2s",
    "proveWithin": "2m",
}
RELEASES: Json = {"patience": f"{PATIENCE}s", "healthyFor": f"{HEALTHY_FOR}s", "changeWindow": "1h"}
_LIMITS = {"maxInFlight": 1000}
_PLURALS = {"Deployment": "deployments", "StatefulSet": "statefulsets", "DaemonSet": "daemonsets"}
_AT_START = 90.0


@dataclass(frozen=True)
class Blow:
    """What befalls each pod that it is about, as soon as it is seen: a fault of the lab, or a status of its own."""

    about: Callable[[Json], bool]
    notes: Mapping[str, str] = field(default_factory=dict)
    status: Callable[[Json], Json | None] = lambda _: None


@dataclass
class Scene:
    """One workload in a namespace of its own, with neighbours if its story has some."""

    plane: ControlPlane
    where: str
    kind: str
    name: str = "shop"
    pool: str = HOSTS
    replicas: int = 3
    good: Json = field(default_factory=dict)
    """The template that was well."""
    uid: str = ""
    made: list[str] = field(default_factory=list)
    """The nodes of its own."""
    cleared: list[str] = field(default_factory=list)
    """Paths of what it has made outside of its namespace."""
    released_at: datetime | None = None
    pods: dict[str, Json] = field(default_factory=dict)
    _blows: list[Blow] = field(default_factory=list)
    _struck: set[tuple[int, str, str]] = field(default_factory=set)
    _striking: set[asyncio.Task[None]] = field(default_factory=set)

    def path(self, kind: str = "", name: str = "") -> str:
        """The path of this workload, or of another."""
        base = f"/apis/apps/v1/namespaces/{self.where}/{_PLURALS[kind or self.kind]}"
        return f"{base}/{name or self.name}"

    def core(self, collection: str, group: str = "/api/v1") -> str:
        """The path of a collection of this namespace."""
        return f"{group}/namespaces/{self.where}/{collection}"

    async def begin(self, *, probed: bool = True, **spec: Any) -> None:
        """Make the workload at its good version, and wait until it has been well for long enough to be known for it."""
        await self.make(self.name, self.kind, probed=probed, **spec)
        body = await self.body()
        self.good, self.uid = body["spec"]["template"], body["metadata"]["uid"]
        await self.remembered(self.name, self.kind)

    async def make(self, name: str, kind: str = "Deployment", *, probed: bool = True, **spec: Any) -> None:
        """Make a workload, and wait until all of it is well."""
        body = _workload(kind, name, self.replicas, self.pool, probed=probed, **spec)
        await self.plane.api.post(self.path(kind, name).rpartition("/")[0], body)
        await eventually(lambda: self.well(name, kind), f"{self.where}/{name} well", _AT_START, 0.3)

    async def remembered(self, name: str, kind: str) -> None:
        """Wait until Kreflex has noted that a workload's present version is well."""
        path = f"{GROUP}/namespaces/{self.where}/releasehistories/{kind.lower()}-{name}"
        spec = (await self.body(name, kind))["spec"]["template"]["spec"]
        images = {one["image"] for one in spec["containers"]}

        async def noted() -> bool:
            body = await self.plane.api.find(path)
            known = [one for one in body["spec"]["revisions"] if one.get("healthyAt")] if body else []
            return any(images <= set(one["images"]) for one in known)

        await eventually(noted, f"the note that {self.where}/{name} is well", _AT_START, 0.5)

    async def body(self, name: str = "", kind: str = "") -> Json:
        """The workload as it is now."""
        return await self.plane.api.get(self.path(kind, name))

    def of(self, name: str = "") -> list[Json]:
        """The pods of a workload that have not been deleted."""
        wanted = name or self.name
        found = [pod for pod in self.pods.values() if pod["metadata"]["labels"].get("app") == wanted]
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    async def well(self, name: str = "", kind: str = "") -> bool:
        """Whether a workload is complete, with all its pods Ready and of one image."""
        body = await self.body(name, kind)
        status, spec = body.get("status") or {}, body["spec"]
        wanted = status.get("desiredNumberScheduled", spec.get("replicas", 0))
        updated = status.get("updatedReplicas", status.get("updatedNumberScheduled", 0))
        ready = status.get("readyReplicas", status.get("numberReady", 0))
        pods = self.of(name)
        image = spec["template"]["spec"]["containers"][0]["image"]
        return (
            status.get("observedGeneration") == body["metadata"]["generation"]
            and wanted == updated == ready == len(pods) > 0
            and all(nodes.is_ready(pod) and pod["spec"]["containers"][0]["image"] == image for pod in pods)
        )

    async def release(
        self, tag: str = "v2", *, notes: Mapping[str, str] | None = None, pod: Json | None = None, **container: Any
    ) -> None:
        """Release another version: another tag, other fields of its container, of its pods, or annotations."""
        body = await self.body()
        first = body["spec"]["template"]["spec"]["containers"][0]
        changed = {**first, "image": f"{first['image'].rpartition(':')[0]}:{tag}", **container}
        template = {"metadata": {"annotations": dict(notes or {})}, "spec": {"containers": [changed], **(pod or {})}}
        self.released_at = datetime.now(UTC)
        await self.plane.api.patch(self.path(), {"spec": {"template": template}})

    async def complete(self, seconds: float) -> None:
        """Wait until the release is complete, and has been well for so long."""
        await eventually(self.well, f"{self.where}/{self.name} complete", _AT_START, 0.3)
        await asyncio.sleep(seconds)

    async def delete_one(self, index: int = 0) -> None:
        """Let one pod of the workload be replaced, as when its node is emptied."""
        victim = sorted(self.of(), key=lambda pod: str(pod["metadata"]["name"]))[index]
        await self.plane.api.delete(self.core(f"pods/{victim['metadata']['name']}"))

    async def machines(self, count: int) -> list[str]:
        """Make nodes for this scene alone."""
        self.pool = self.where
        self.made = await nodes.add(self.plane.api, count, Pool(self.where, labels={POOL: self.where}))
        return self.made

    @property
    def slow(self) -> bool:
        """Whether what goes wrong shows as slowly as in a cluster."""
        return any(blow.notes.get("lab.kreflex.dev/speed") == "1" for blow in self._blows)

    def strike(self, blow: Blow) -> None:
        """Let something befall the pods that are there, and those that come."""
        self._blows.append(blow)
        for pod in list(self.pods.values()):
            self._strike(pod)

    def see(self, event: str, pod: Json) -> None:
        """Take in what a watch tells of a pod of this namespace."""
        if event == "DELETED":
            self.pods.pop(pod["metadata"]["uid"], None)
            return
        self.pods[pod["metadata"]["uid"]] = pod
        self._strike(pod)

    def _strike(self, pod: Json) -> None:
        if "deletionTimestamp" in pod["metadata"]:
            return
        for number, blow in enumerate(self._blows):
            if blow.about(pod):
                self._spawn(number, "notes", pod, {"metadata": {"annotations": dict(blow.notes)}})
                status = blow.status(pod)
                if status is not None:
                    self._spawn(number, "status", pod, {"status": status})

    def _spawn(self, number: int, what: str, pod: Json, patch: Json) -> None:
        key = (number, what, pod["metadata"]["uid"])
        if key in self._struck:
            return
        self._struck.add(key)
        path = self.core(f"pods/{pod['metadata']['name']}{'/status' if what == 'status' else ''}")
        task = asyncio.create_task(self._send(path, patch))
        self._striking.add(task)
        task.add_done_callback(self._striking.discard)

    async def _send(self, path: str, patch: Json) -> None:
        with contextlib.suppress(Refused):
            await self.plane.api.patch(path, patch)

    async def clear(self) -> None:
        """Take it all away, so that what comes later is not slowed down by it."""
        await asyncio.gather(*self._striking, return_exceptions=True)
        gone = [*self.cleared, f"{GROUP}/clusterremediationpolicies/{self.where}", f"/api/v1/namespaces/{self.where}"]
        for path in [*gone, *(f"/api/v1/nodes/{name}" for name in self.made)]:
            await rig.remove(self.plane, path)


def _workload(kind: str, name: str, replicas: int, pool: str, *, probed: bool, **spec: Any) -> Json:
    container: Json = {"name": "app", "image": f"lab.local/{name}:{GOOD}"}
    if probed:
        container["readinessProbe"] = {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 1}
    container |= spec.pop("container", {})
    own = {
        "containers": [container],
        "nodeSelector": {POOL: pool},
        "terminationGracePeriodSeconds": 0,
        **spec.pop("pod", {}),
    }
    makers: dict[str, Callable[[], Json]] = {
        "Deployment": lambda: workloads.deployment(name, replicas, spec=own),
        "StatefulSet": lambda: workloads.stateful_set(name, replicas, own),
        "DaemonSet": lambda: workloads.daemon_set(name, own),
    }
    body = makers[kind]()
    body["spec"] |= spec
    # Set aside from what differs between two versions: a fast kubelet is no part of a release.
    body["spec"]["template"]["metadata"]["annotations"] = fault(speed=SPEED)
    return body


class Theatre:
    """All scenes of a control plane: one watch shows each of them its pods."""

    def __init__(self, plane: ControlPlane) -> None:
        self.plane = plane
        self.scenes: dict[str, Scene] = {}

    async def scene(self, kind: str, replicas: int, releases: Mapping[str, str]) -> Scene:
        """Make a scene with a policy of its own, which says this of releases beside the usual."""
        where = await rig.namespace(self.plane, _LIMITS, **POLICY, releases={**RELEASES, **releases})
        made = self.scenes[where] = Scene(self.plane, where, kind, replicas=replicas)
        return made

    async def watch(self) -> None:
        """Show all scenes their pods, for ever."""
        while True:
            # It tells first of all that are there.
            for scene in self.scenes.values():
                scene.pods.clear()
            with contextlib.suppress(aiohttp.ClientError, LabError, OSError, TimeoutError):
                async for event in self.plane.api.watch("/api/v1/pods", resourceVersion="0"):
                    self._show(event)
            await asyncio.sleep(0.2)

    def _show(self, event: Json) -> None:
        if event["type"] in {"ADDED", "MODIFIED", "DELETED"}:
            scene = self.scenes.get(event["object"]["metadata"]["namespace"])
            if scene is not None:
                scene.see(event["type"], event["object"])


@asynccontextmanager
async def theatre(plane: ControlPlane) -> AsyncIterator[Theatre]:
    """Open a theatre on a control plane with a pool of nodes for all."""
    await nodes.add(plane.api, 3, Pool("host", labels={POOL: HOSTS}))
    made = Theatre(plane)
    watching = asyncio.create_task(made.watch())
    try:
        yield made
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)


Story = Callable[[Scene], Awaitable[None]]
