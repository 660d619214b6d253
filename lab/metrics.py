"""An exporter of the cluster's state under the names of kube-state-metrics, as far as the lab's alerts need them.

kube-state-metrics itself cannot be built from its Go module; this stands in its place in the lab, and nowhere else.
Names and labels are those of its documentation. Remediations are exported as a CustomResourceState configuration of
kube-state-metrics would export them. How much memory is used (lab.memory), kubelets would tell.
"""

import argparse
import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from lab import memory
from lab.api import Api, Refused, from_kubeconfig

Thing = Mapping[str, Any]
Labels = Mapping[str, str]
Sample = tuple[str, Labels, float]
_PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
_STATUSES = ("true", "false", "unknown")


def pod_samples(pod: Thing) -> Iterator[Sample]:
    """What is said of a pod."""
    metadata, spec, status = pod["metadata"], pod["spec"], pod.get("status", {})
    labels = {"namespace": metadata["namespace"], "pod": metadata["name"], "uid": metadata["uid"]}
    owner = _controller(metadata)
    node = spec.get("nodeName", "")
    addresses = {"node": node, "pod_ip": status.get("podIP", ""), "host_ip": status.get("hostIP", "")}
    made_by = {"created_by_kind": owner["owner_kind"], "created_by_name": owner["owner_name"]}
    yield "kube_pod_info", labels | addresses | made_by, 1
    yield "kube_pod_owner", labels | owner, 1
    yield from _times("kube_pod", metadata, labels)
    yield from _time("kube_pod_start_time", status.get("startTime"), labels)
    for phase in _PHASES:
        yield "kube_pod_status_phase", labels | {"phase": phase}, status.get("phase") == phase
    if reason := status.get("reason"):
        yield "kube_pod_status_reason", labels | {"reason": reason}, 1
    for kind, name in (("Ready", "ready"), ("PodScheduled", "scheduled")):
        yield from _condition(f"kube_pod_status_{name}", status, kind, labels)
    yield from memory.limit_samples(pod)
    for container in status.get("containerStatuses", ()):
        yield from container_samples("kube_pod_container", container, labels)
    for container in status.get("initContainerStatuses", ()):
        yield from container_samples("kube_pod_init_container", container, labels)


def container_samples(prefix: str, container: Thing, pod: Labels) -> Iterator[Sample]:
    """What is said of a container."""
    labels = {**pod, "container": container["name"]}
    state, last = container.get("state", {}), container.get("lastState", {})
    yield f"{prefix}_status_restarts_total", labels, container.get("restartCount", 0)
    yield f"{prefix}_status_ready", labels, container.get("ready", False)
    for name in ("running", "waiting", "terminated"):
        yield f"{prefix}_status_{name}", labels, name in state
    for name in ("waiting", "terminated"):
        if reason := state.get(name, {}).get("reason"):
            yield f"{prefix}_status_{name}_reason", labels | {"reason": reason}, 1
    if ended := last.get("terminated"):
        yield f"{prefix}_status_last_terminated_reason", labels | {"reason": ended.get("reason", "")}, 1
        yield f"{prefix}_status_last_terminated_exitcode", labels, ended.get("exitCode", 0)
        yield from _time(f"{prefix}_status_last_terminated_timestamp", ended.get("finishedAt"), labels)
    yield from _time(f"{prefix}_state_started", state.get("running", {}).get("startedAt"), labels)


def node_samples(node: Thing) -> Iterator[Sample]:
    """What is said of a node."""
    metadata, spec, status = node["metadata"], node.get("spec", {}), node.get("status", {})
    labels = {"node": metadata["name"]}
    info = status.get("nodeInfo", {})
    yield "kube_node_info", labels | {"kubelet_version": info.get("kubeletVersion", "")}, 1
    yield from _times("kube_node", metadata, labels)
    yield "kube_node_spec_unschedulable", labels, spec.get("unschedulable", False)
    for taint in spec.get("taints", ()):
        about = {"key": taint["key"], "value": taint.get("value", ""), "effect": taint["effect"]}
        yield "kube_node_spec_taint", labels | about, 1
    for condition in status.get("conditions", ()):
        for one in _STATUSES:
            about = {"condition": condition["type"], "status": one}
            yield "kube_node_status_condition", labels | about, condition["status"].lower() == one


def deployment_samples(deployment: Thing) -> Iterator[Sample]:
    """What is said of a Deployment."""
    metadata, status = deployment["metadata"], deployment.get("status", {})
    labels = {"namespace": metadata["namespace"], "deployment": metadata["name"]}
    yield from _workload("kube_deployment", deployment, labels)
    yield "kube_deployment_spec_replicas", labels, deployment["spec"].get("replicas", 1)
    yield "kube_deployment_spec_paused", labels, deployment["spec"].get("paused", False)
    for key in ("replicas", "readyReplicas", "availableReplicas", "unavailableReplicas", "updatedReplicas"):
        yield f"kube_deployment_status_replicas{_suffix(key)}", labels, status.get(key, 0)
    for condition in status.get("conditions", ()):
        for one in _STATUSES:
            about = {"condition": condition["type"], "reason": condition.get("reason", ""), "status": one}
            yield "kube_deployment_status_condition", labels | about, condition["status"].lower() == one


def replicaset_samples(replicaset: Thing) -> Iterator[Sample]:
    """What is said of a ReplicaSet."""
    metadata, status = replicaset["metadata"], replicaset.get("status", {})
    labels = {"namespace": metadata["namespace"], "replicaset": metadata["name"]}
    yield from _workload("kube_replicaset", replicaset, labels)
    yield "kube_replicaset_owner", labels | _controller(metadata), 1
    yield "kube_replicaset_spec_replicas", labels, replicaset["spec"].get("replicas", 1)
    for key in ("replicas", "readyReplicas"):
        yield f"kube_replicaset_status{_snake(key)}", labels, status.get(key, 0)


def statefulset_samples(statefulset: Thing) -> Iterator[Sample]:
    """What is said of a StatefulSet."""
    metadata, status = statefulset["metadata"], statefulset.get("status", {})
    labels = {"namespace": metadata["namespace"], "statefulset": metadata["name"]}
    yield from _workload("kube_statefulset", statefulset, labels)
    yield "kube_statefulset_replicas", labels, statefulset["spec"].get("replicas", 1)
    for key in ("replicas", "readyReplicas", "availableReplicas", "currentReplicas", "updatedReplicas"):
        yield f"kube_statefulset_status_replicas{_suffix(key)}", labels, status.get(key, 0)
    for key in ("currentRevision", "updateRevision"):
        yield f"kube_statefulset_status{_snake(key)}", labels | {"revision": status.get(key, "")}, 1


def daemonset_samples(daemonset: Thing) -> Iterator[Sample]:
    """What is said of a DaemonSet."""
    metadata, status = daemonset["metadata"], daemonset.get("status", {})
    labels = {"namespace": metadata["namespace"], "daemonset": metadata["name"]}
    yield from _workload("kube_daemonset", daemonset, labels)
    for key in (
        "currentNumberScheduled",
        "desiredNumberScheduled",
        "numberAvailable",
        "numberMisscheduled",
        "numberReady",
        "numberUnavailable",
        "updatedNumberScheduled",
    ):
        yield f"kube_daemonset_status{_snake(key)}", labels, status.get(key, 0)


def remediation_samples(remediation: Thing) -> Iterator[Sample]:
    """What is said of a Remediation; an open verdict is an empty label, which to Prometheus is none."""
    metadata, status = remediation["metadata"], remediation.get("status", {})
    labels = {
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "function": remediation.get("spec", {}).get("function", ""),
        **{key: status.get(key) or "" for key in ("phase", "outcome", "guard", "verdict")},
    }
    yield "kreflex_remediation_info", labels, 1
    named = {name: labels[name] for name in ("namespace", "name")}
    due = status.get("dueAt")
    yield "kreflex_remediation_due_timestamp_seconds", named, datetime.fromisoformat(due).timestamp() if due else 0


def anomaly_samples(anomaly: Thing) -> Iterator[Sample]:
    """What is said of an Anomaly."""
    metadata, spec, status = anomaly["metadata"], anomaly.get("spec", {}), anomaly.get("status", {})
    named = {"namespace": metadata["namespace"], "name": metadata["name"]}
    about = {key: spec.get(key) or "" for key in ("class", "watch")}
    went = {key: status.get(key) or "" for key in ("phase", "remediation", "feedback")}
    yield "kreflex_anomaly_info", named | about | went, 1
    fresh = status.get("freshUntil")
    until = datetime.fromisoformat(fresh).timestamp() if fresh else 0
    yield "kreflex_anomaly_fresh_until_timestamp_seconds", named, until
    for one in status.get("signals", []):
        series = {"signal": one["name"], "series": one.get("series") or ""}
        yield "kreflex_anomaly_threshold_factor", named | series, one.get("factor", 1)


def watch_samples(watch: Thing) -> Iterator[Sample]:
    """What is said of an AnomalyWatch."""
    metadata = watch["metadata"]
    named = {"namespace": metadata["namespace"], "name": metadata["name"]}
    yield "kreflex_anomaly_watch_info", named | {"problem": watch.get("status", {}).get("problem") or ""}, 1


def experiment_samples(experiment: Thing) -> Iterator[Sample]:
    """What is said of an Experiment."""
    metadata, status = experiment["metadata"], experiment.get("status", {})
    named = {"namespace": metadata["namespace"], "name": metadata["name"]}
    yield "kreflex_experiment_info", named | {key: status.get(key) or "" for key in ("phase", "guard", "verdict")}, 1
    until = status.get("revertBy")
    yield (
        "kreflex_experiment_revert_by_timestamp_seconds",
        named,
        datetime.fromisoformat(until).timestamp() if until else 0,
    )


def _workload(prefix: str, thing: Thing, labels: Labels) -> Iterator[Sample]:
    metadata = thing["metadata"]
    yield from _times(prefix, metadata, labels)
    yield f"{prefix}_metadata_generation", labels, metadata.get("generation", 0)
    yield f"{prefix}_status_observed_generation", labels, thing.get("status", {}).get("observedGeneration", 0)


def _suffix(key: str) -> str:
    """`readyReplicas` → `_ready`, `replicas` → nothing."""
    return _snake(key.removesuffix("Replicas")) if key != "replicas" else ""


def _snake(key: str) -> str:
    return "_" + "".join(f"_{letter.lower()}" if letter.isupper() else letter for letter in key)


def _controller(metadata: Thing) -> dict[str, str]:
    for owner in metadata.get("ownerReferences", ()):
        if owner.get("controller"):
            return {"owner_kind": owner["kind"], "owner_name": owner["name"], "owner_is_controller": "true"}
    return {"owner_kind": "", "owner_name": "", "owner_is_controller": ""}


def _times(prefix: str, metadata: Thing, labels: Labels) -> Iterator[Sample]:
    yield from _time(f"{prefix}_created", metadata.get("creationTimestamp"), labels)
    yield from _time(f"{prefix}_deletion_timestamp", metadata.get("deletionTimestamp"), labels)


def _time(name: str, moment: str | None, labels: Labels) -> Iterator[Sample]:
    if moment:
        yield name, labels, datetime.fromisoformat(moment).timestamp()


def _condition(name: str, status: Thing, kind: str, labels: Labels) -> Iterator[Sample]:
    for condition in status.get("conditions", ()):
        if condition["type"] == kind:
            for one in _STATUSES:
                yield name, {**labels, "condition": one}, condition["status"].lower() == one


KINDS: Mapping[str, Callable[[Thing], Iterable[Sample]]] = {
    "/api/v1/pods": pod_samples,
    "/api/v1/nodes": node_samples,
    "/apis/apps/v1/deployments": deployment_samples,
    "/apis/apps/v1/replicasets": replicaset_samples,
    "/apis/apps/v1/statefulsets": statefulset_samples,
    "/apis/apps/v1/daemonsets": daemonset_samples,
    "/apis/kreflex.dev/v1alpha1/remediations": remediation_samples,
    "/apis/kreflex.dev/v1alpha1/anomalies": anomaly_samples,
    "/apis/kreflex.dev/v1alpha1/anomalywatches": watch_samples,
    "/apis/kreflex.dev/v1alpha1/experiments": experiment_samples,
}


CHANGING: Mapping[str, Callable[[Thing, float], Iterable[Sample]]] = {"/api/v1/pods": memory.memory_samples}


def _line(sample: Sample) -> str:
    name, labels, value = sample
    inner = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
    return f"{name}{{{inner}}} {float(value):.15g}"


def _escape(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


@dataclass
class Mirror:
    """All objects of one kind, as lines that are ready to be scraped."""

    api: Api
    path: str
    describe: Callable[[Thing], Iterable[Sample]]
    changing: Callable[[Thing, float], Iterable[Sample]] | None = None
    """What is said of one that changes without an event, at the time of a scrape."""
    lines: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    whole: dict[str, Thing] = field(default_factory=dict)
    """Those of which something changes."""
    complete: bool = False

    async def follow(self) -> None:
        """List and watch for ever; a kind that does not exist is asked for again each few seconds."""
        while True:
            try:
                await self._list_and_watch()
            except Refused as refusal:
                # 404: the CRD is not there, or not there yet. 410: the watch is too old, list again.
                self.complete = self.complete or refusal.status == 404
                await asyncio.sleep(0 if refusal.status == 410 else 3)
            except (aiohttp.ClientError, TimeoutError, OSError):
                await asyncio.sleep(1)

    async def _list_and_watch(self) -> None:
        answer = await self.api.get(self.path)
        self.lines, self.whole = {}, {}
        for thing in answer["items"]:
            self._keep(thing)
        self.complete = True
        # Listed anew each minute: a connection that is lost without a word must not keep old figures for ever.
        version = answer["metadata"]["resourceVersion"]
        async for event in self.api.watch(self.path, resourceVersion=version, timeoutSeconds="60"):
            self._take(event["type"], event["object"])

    def _take(self, kind: str, thing: Thing) -> None:
        if kind == "ERROR":
            raise Refused(thing.get("code", 500), thing.get("message", ""))
        if kind == "DELETED":
            self.lines.pop(thing["metadata"]["uid"], None)
            self.whole.pop(thing["metadata"]["uid"], None)
        elif kind in ("ADDED", "MODIFIED"):
            self._keep(thing)

    def _keep(self, thing: Thing) -> None:
        uid = thing["metadata"]["uid"]
        self.lines[uid] = [(sample[0], _line(sample)) for sample in self.describe(thing)]
        if self.changing is not None and any(self.changing(thing, time.time())):
            self.whole[uid] = thing
        else:
            self.whole.pop(uid, None)

    def now(self, at: float) -> Iterator[tuple[str, str]]:
        """The lines as they are at a time, each with the name of its metric."""
        for lines in self.lines.values():
            yield from lines
        if self.changing is not None:
            for thing in self.whole.values():
                yield from ((sample[0], _line(sample)) for sample in self.changing(thing, at))


class Exporter:
    """Serves the lines of all kinds, each metric's together."""

    def __init__(self, api: Api) -> None:
        self._mirrors = [Mirror(api, path, describe, CHANGING.get(path)) for path, describe in KINDS.items()]

    def application(self) -> web.Application:
        """The web application: /metrics and /healthz."""
        application = web.Application()
        application.add_routes([web.get("/metrics", self._metrics), web.get("/healthz", self._health)])
        application.cleanup_ctx.append(self._follow)
        return application

    async def _follow(self, _: web.Application) -> Any:
        tasks = [asyncio.create_task(mirror.follow()) for mirror in self._mirrors]
        yield
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _metrics(self, _: web.Request) -> web.Response:
        return web.Response(text=self.text(), headers={"Content-Type": "text/plain; version=0.0.4"})

    async def _health(self, _: web.Request) -> web.Response:
        ready = all(mirror.complete for mirror in self._mirrors)
        return web.Response(status=200 if ready else 503)

    def text(self) -> str:
        """Everything, in the text format of Prometheus."""
        metrics: dict[str, list[str]] = {}
        for mirror in self._mirrors:
            for name, line in mirror.now(time.time()):
                metrics.setdefault(name, []).append(line)
        parts: list[str] = []
        for name, together in sorted(metrics.items()):
            kind = "counter" if name.endswith("_total") else "gauge"
            parts += [f"# TYPE {name} {kind}", *together]
        return "\n".join(parts) + "\n"


def main() -> None:
    """Run the exporter until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m lab.metrics", description=__doc__)
    parser.add_argument("--kubeconfig", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    arguments = parser.parse_args()

    exporter = Exporter(from_kubeconfig(arguments.kubeconfig))
    with contextlib.suppress(KeyboardInterrupt):
        web.run_app(exporter.application(), host="127.0.0.1", port=arguments.port, access_log=None)


if __name__ == "__main__":
    main()
