"""Argo Rollouts itself on the lab's control plane, and Rollouts for it to roll out.

Its pods are kwok's, so nothing measures what they serve: without a traffic router the weight of a canary is its share
of the replicas, and with nginx it is what stands in the annotations of an Ingress that no nginx reads.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from lab import builds, manifests, processes, workloads
from lab.api import Api, eventually
from lab.cluster import ControlPlane
from lab.ports import Ports
from lab.processes import Child
from lab.toolchain import Toolchain

Json = dict[str, Any]
PROGRAM = "rollouts-controller"
NAMESPACE = "argo-rollouts"
ACCOUNT = "argo-rollouts"
GROUP = "argoproj.io"
VERSION = f"{GROUP}/v1alpha1"
HASH = "rollouts-pod-template-hash"
"""The label of ReplicaSets and pods, and the key in Service selectors, that tells the template of a Rollout's pod."""
REVISION = "rollout.argoproj.io/revision"
"""The annotation of a Rollout and of its ReplicaSets; another one than a Deployment's."""
PAUSE: Json = {"pause": {}}
"""The step at which a canary waits until somebody promotes it."""
_MODULE = "github.com/argoproj/argo-rollouts"
_HOST = "shop.example"


async def install(plane: ControlPlane) -> None:
    """Apply the definitions of Argo Rollouts, and give its account the rights of its own role."""
    folder = builds.source(PROGRAM, _MODULE) / "manifests"
    definitions = sorted((folder / "crds").glob("*-crd.yaml"))
    (role,) = manifests.read(folder / "role" / "argo-rollouts-clusterrole.yaml")
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    await manifests.apply(plane.api, [namespace, *manifests.read(*definitions)])
    await manifests.grant(plane.api, NAMESPACE, ACCOUNT, role["rules"])


async def start(plane: ControlPlane) -> Child:
    """Start the controller, which is installed already."""
    program = Toolchain().ensure([PROGRAM])[PROGRAM]
    config = await plane.kubeconfig_for(NAMESPACE, ACCOUNT)
    with Ports() as ports:
        # It listens on all addresses, and can't be told otherwise.
        health, metrics = ports.take(), ports.take()
        command: list[str | Path] = [
            program,
            f"--kubeconfig={config}",
            f"--healthzPort={health}",
            f"--metricsPort={metrics}",
            "--leader-elect=false",
            "--loglevel=warn",
        ]
        url = f"http://127.0.0.1:{health}/healthz"
        child = plane.start_child(PROGRAM, command, url=url)
        await child.ready(processes.answers(url))
    return child


@asynccontextmanager
async def running(plane: ControlPlane) -> AsyncIterator[Child]:
    """Run the controller, which is installed already."""
    child = await start(plane)
    try:
        yield child
    finally:
        await plane.stop_child(PROGRAM)


def collection(namespace: str) -> str:
    """The path of a namespace's Rollouts."""
    return f"/apis/{VERSION}/namespaces/{namespace}/rollouts"


def canary(name: str, replicas: int, steps: Sequence[Json], spec: Json | None = None, **strategy: Any) -> Json:
    """A Rollout that goes on by steps; without a traffic router its weights are shares of the replicas."""
    return _rollout(name, replicas, {"canary": {"steps": list(steps), **strategy}}, spec)


def blue_green(name: str, replicas: int, spec: Json | None = None, **strategy: Any) -> Json:
    """A Rollout whose new pods stand behind Service `<name>-preview`, until somebody promotes them to `<name>`."""
    services = {"activeService": name, "previewService": f"{name}-preview", "autoPromotionEnabled": False}
    return _rollout(name, replicas, {"blueGreen": {**services, **strategy}}, spec)


def through_nginx(name: str) -> Json:
    """What the strategy of a canary says whose weight nginx has: on the Ingresses that `surroundings` makes."""
    routing = {"nginx": {"stableIngress": name}}
    return {"canaryService": f"{name}-canary", "stableService": name, "trafficRouting": routing}


def weight(percent: int) -> Json:
    """A step that gives the canary this share of the traffic."""
    return {"setWeight": percent}


def experiment(seconds: int) -> Json:
    """A step that runs a pod of the new and one of the old template side by side, with no share of the traffic."""
    templates = [{"name": spec, "specRef": spec} for spec in ("stable", "canary")]
    return {"experiment": {"duration": f"{seconds}s", "templates": templates}}


def analysis(template: str) -> Json:
    """A step that goes on if a run of this AnalysisTemplate succeeds; if it fails, the controller aborts by itself."""
    return {"analysis": {"templates": [{"templateName": template}]}}


def job_analysis(name: str, spec: Json) -> Json:
    """An AnalysisTemplate whose one measurement is the end of a Job with such pods."""
    template = {"spec": {**spec, "restartPolicy": "Never"}}
    metric = {"name": "job", "provider": {"job": {"spec": {"backoffLimit": 0, "template": template}}}}
    return {
        "apiVersion": VERSION,
        "kind": "AnalysisTemplate",
        "metadata": {"name": name},
        "spec": {"metrics": [metric]},
    }


def surroundings(name: str) -> list[Json]:
    """The Services of a Rollout (stable or active, canary, preview) and its nginx Ingress."""
    services = [_service(f"{name}{suffix}", name) for suffix in ("", "-canary", "-preview")]
    backend = {"service": {"name": name, "port": {"number": 80}}}
    path = {"path": "/", "pathType": "Prefix", "backend": backend}
    ingress = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "Ingress",
        "metadata": {"name": name},
        "spec": {"ingressClassName": "nginx", "rules": [{"host": _HOST, "http": {"paths": [path]}}]},
    }
    return [*services, ingress]


async def make(api: Api, namespace: str, rollout: Json) -> Json:
    """Make a Rollout and what it needs, and wait until it is Healthy."""
    name = rollout["metadata"]["name"]
    await manifests.apply(api, [*surroundings(name), rollout], namespace)
    return await until(api, namespace, name, healthy)


async def release(api: Api, namespace: str, name: str, tag: str) -> str:
    """Give a Rollout another image; returns the hash of the new template, once the controller has seen it."""
    path = f"{collection(namespace)}/{name}"
    old = await settled(api, namespace, name)
    spec = workloads.release(tag, old["spec"]["template"]["spec"])
    changed = await api.patch(path, {"spec": {"template": {"spec": {"containers": spec["containers"]}}}})
    seen = await until(api, namespace, name, lambda one: observed(one, changed["metadata"]["generation"]))
    found: str = seen["status"]["currentPodHash"]
    return found


async def until(api: Api, namespace: str, name: str, wanted: Callable[[Json], bool], patience: float = 90) -> Json:
    """Wait until a Rollout is as wanted."""

    async def found() -> Json | None:
        rollout = await api.get(f"{collection(namespace)}/{name}")
        return rollout if wanted(rollout) else None

    rollout: Json = await eventually(found, f"Rollout {name} as wanted", patience)
    return rollout


async def settled(api: Api, namespace: str, name: str) -> Json:
    """Wait until the controller has written nothing to a Rollout for half a second.

    After each write it puts the Rollout as it wrote it over what it has heard meanwhile (writeBackToInformer in
    github.com/argoproj/argo-rollouts rollout/controller.go), so it does not notice what others change just then.
    """
    seen: list[str] = []

    async def still() -> Json | None:
        rollout = await api.get(f"{collection(namespace)}/{name}")
        seen.append(rollout["metadata"]["resourceVersion"])
        return rollout if len(seen) > 5 and len(set(seen[-6:])) == 1 else None

    rollout: Json = await eventually(still, f"Rollout {name} at rest")
    return rollout


def observed(rollout: Json, generation: int) -> bool:
    """Tell whether the controller has seen this generation of the spec; it writes the number as a string."""
    return int(rollout.get("status", {}).get("observedGeneration", 0)) >= generation


def healthy(rollout: Json) -> bool:
    """Tell whether all that is wanted is out: no release is under way, and none was aborted."""
    return _phase(rollout) == "Healthy" and observed(rollout, rollout["metadata"]["generation"])


def degraded(rollout: Json) -> bool:
    """Tell whether a release was aborted, or made no progress in time."""
    return _phase(rollout) == "Degraded"


def waits(rollout: Json, step: int | None = None) -> bool:
    """Tell whether a Rollout stands at a pause, and at this step of a canary if one is named."""
    status = rollout.get("status", {})
    return bool(status.get("pauseConditions")) and step in (None, status.get("currentStepIndex"))


async def replica_sets(api: Api, namespace: str, name: str) -> dict[str, Json]:
    """The ReplicaSets of a Rollout, by the hash of their template."""
    sets = (await api.get(f"/apis/apps/v1/namespaces/{namespace}/replicasets", labelSelector=f"app={name}"))["items"]
    return {one["metadata"]["labels"][HASH]: one for one in sets}


def _phase(rollout: Json) -> str | None:
    phase: str | None = rollout.get("status", {}).get("phase")
    return phase


def _rollout(name: str, replicas: int, strategy: Json, spec: Json | None) -> Json:
    body = workloads.deployment(name, replicas, spec=spec)
    return {**body, "apiVersion": VERSION, "kind": "Rollout", "spec": {**body["spec"], "strategy": strategy}}


def _service(name: str, app: str) -> Json:
    spec = {"selector": {"app": app}, "ports": [{"port": 80}]}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
