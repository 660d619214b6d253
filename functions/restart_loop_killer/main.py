"""Evict a pod whose container restarts again and again, or that leaks, where a new pod can help."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from pydantic import Field

from kreflex import (
    Anomaly,
    Container,
    Defer,
    Duration,
    EvictAnomalous,
    EvictPod,
    Ineffective,
    Pod,
    PodSignal,
    Recovered,
    Refuse,
    Settings,
    Skip,
    Treatment,
    UnavailableError,
    Unknown,
    World,
    agreed_anomalies,
    doubt,
    first_certain,
    open_anomalies,
    parse_duration,
    serve,
    show_duration,
    story,
)

IMAGE = {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "RegistryUnavailable"}
CONFIG = {"CreateContainerConfigError", "CreateContainerError", "RunContainerError"}
# What the runtime reports as the end of a container that could not be started at all.
START = {"StartError", "ContainerCannotRun"}
# A kubelet forgets its back-off after ten minutes without a crash:
# https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/#restart-policy
CALM = timedelta(minutes=10)
# creationTimestamp and the times of conditions have whole seconds, the fraction cut off.
SECOND = timedelta(seconds=1)


class RestartLoopSettings(Settings):
    """When restarts are a loop."""

    restarts_above: int = Field(3, ge=0, description="Strictly more restarts than this, of one container.")
    restart_window: Duration = Field(parse_duration("1h"), description="Only restarts in this window count.")
    waiting_patience: Duration = Field(
        parse_duration("2m"), description="How long an image or a config may be missing."
    )


@dataclass(frozen=True, slots=True)
class Loop:
    """A container that loops now: what it does, in words, and why a new pod would do the same, if it would."""

    container: Container
    story: str
    cause: str | None


async def find(world: World, settings: RestartLoopSettings) -> AsyncIterator[PodSignal]:
    """Look at every pod once; the cheap questions only."""
    seen = await agreed_anomalies(world.cluster)
    async for pod in world.cluster.pods():
        if exempt(pod):
            continue
        loop, anomalies = worst_loop(pod, world, settings), seen.get(pod.ref.uid, ())
        summary = loop.story if loop else await allowed_story(anomalies, pod, world) if anomalies else None
        if summary is not None:
            yield PodSignal(pod.ref.namespace, pod.ref.name, pod.ref.uid, summary)


async def decide(
    signal: PodSignal, world: World, settings: RestartLoopSettings
) -> EvictPod | EvictAnomalous | Defer | Refuse | Skip:
    """Evict a looping pod, unless its successor would loop for the same cause; or one with an anomaly, if allowed."""
    if signal.seen is not None and (exempt(signal.seen) or worst_loop(signal.seen, world, settings) is None):
        return Skip("the event shows no loop")
    pod = await world.cluster.pod(signal.namespace, signal.name)
    if pod is None or (signal.uid and pod.ref.uid != signal.uid):
        return Skip("the pod is gone", final=bool(signal.uid))
    reason = exempt(pod)
    if reason is not None:
        return Skip(reason)
    loops = loops_of(pod, world, settings)
    hopeless = next((loop for loop in loops if loop.cause is not None), None)
    if hopeless is not None:
        return Refuse(hopeless.story, hopeless.cause or "")
    looping = await evict_for(loops, pod, world, settings)
    return looping or await evict_anomalous(pod, rest(signal, pod, world, settings), world)


async def evict_for(
    loops: list[Loop], pod: Pod, world: World, settings: RestartLoopSettings
) -> EvictPod | Refuse | Skip | None:
    """Evict for the first of these containers that restarted often enough in the window; None if there is none."""
    rare, window = None, show_duration(settings.restart_window)
    for loop in loops:
        restarts = await restarts_in_window(pod, loop.container, world, settings)
        if isinstance(restarts, Refuse):
            return restarts
        if restarts > settings.restarts_above:
            because = f"{loop.story}: {restarts} restarts in {window_of(pod, world, settings)}"
            return EvictPod(because, pod, await world.cluster.top_owner(pod))
        rare = rare or Skip(f"{loop.container.name} restarted {restarts} times in {window}")
    return rare


async def evict_anomalous(pod: Pod, otherwise: Defer | Skip, world: World) -> EvictAnomalous | Defer | Refuse | Skip:
    """Evict for an anomaly of which the policies allow that; `otherwise` is what is to be done without one.

    Whoever sent the signal is not believed, only what anomaly-scorer has written down of this very pod.
    """
    found = await open_anomalies(pod.ref, world.cluster)
    if not found:
        return otherwise
    terms = await world.anomalies(pod.ref.namespace, pod.labels)
    if isinstance(terms, str):
        return Refuse(terms, "Policy")
    anomaly = first_certain(found, terms, world.now())
    if anomaly is None:
        doubts = Skip("; ".join(doubt(one, terms, world.now()) or "" for one in found))
        return otherwise if isinstance(otherwise, Defer) else doubts
    return EvictAnomalous(story(anomaly), pod, await world.cluster.top_owner(pod), anomaly.spec.class_)


async def allowed_story(found: Sequence[Anomaly], pod: Pod, world: World) -> str | None:
    """Tell the anomaly that a pod may be evicted for; None if there is none."""
    terms = await world.anomalies(pod.ref.namespace, pod.labels)
    anomaly = None if isinstance(terms, str) else first_certain(found, terms, world.now())
    return story(anomaly) if anomaly else None


def rest(signal: PodSignal, pod: Pod, world: World, settings: RestartLoopSettings) -> Defer | Skip:
    """Leave a pod that does not loop now; one with a record is watched until it has run for as long as loops take."""
    began = [
        container.running_since
        for container in pod.containers
        if container.running_since and container.restarts > settings.restarts_above
    ]
    calm = max(began) + CALM if began and signal.recorded else None
    if calm is not None and world.now() < calm:
        return Defer("it runs again at this moment, and may crash again", until=calm)
    return Skip("no container loops")


async def recovered(
    treatment: Treatment, world: World, settings: RestartLoopSettings
) -> Recovered | Ineffective | Unknown | Defer:
    """Watch the pods that came after: one must be Ready for the proof, and none may loop or go on restarting."""
    owner = treatment.owner
    if owner is None:
        return Unknown("nothing owned the pod, so nothing could bring it back")
    pods = [pod async for pod in world.cluster.pods(owner.namespace, **siblings(treatment))]
    if any(pod.ref.uid == treatment.target.uid and not pod.terminating for pod in pods):
        return Defer("the list of its pods is older than the eviction", until=world.now() + treatment.proof)
    successors = [pod for pod in pods if succeeds(pod, treatment)]
    same = await same_again(successors, treatment, world)
    if same is not None:
        return same
    return judge(successors, treatment, world, settings) if successors else await without_successor(treatment, world)


async def same_again(successors: list[Pod], treatment: Treatment, world: World) -> Ineffective | None:
    """See whether a pod that came after shows the anomaly that its predecessor was evicted for."""
    kind = treatment.prior.get("anomaly")
    for pod in successors if kind else ():
        for anomaly in await open_anomalies(pod.ref, world.cluster):
            if anomaly.spec.class_ == kind:
                return Ineffective(f"its successor {pod.ref.name} shows the same: {story(anomaly)}")
    return None


def judge(
    successors: list[Pod], treatment: Treatment, world: World, settings: RestartLoopSettings
) -> Recovered | Ineffective | Defer:
    """Judge the pods that came after."""
    now = world.now()
    for pod in successors:
        loop = worst_loop(pod, world, settings)
        if loop is not None:
            return Ineffective(f"its successor {pod.ref.name} loops too: {loop.story}")
    if any(pod.phase == "Succeeded" for pod in successors):
        return Recovered("a successor ran to its end")
    shaky = next((pod for pod in successors if unsteady(pod, settings)), None)
    if shaky is not None:
        return Defer(f"its successor {shaky.ref.name} has restarted, too", until=now + treatment.proof)
    since = min((pod.ready_since for pod in successors if pod.ready_since), default=None)
    if since is not None:
        # It may have become Ready at the end of the second that its condition names.
        proof = max(now - since - SECOND, timedelta(0))
        ready = f"a successor has been Ready for {show_duration(proof)}"
        return Recovered(ready) if proof >= treatment.proof else Defer(ready, until=now + treatment.proof - proof)
    return Defer(f"{successors[0].ref.name} is not Ready yet", until=now + treatment.proof)


def unsteady(pod: Pod, settings: RestartLoopSettings) -> bool:
    """Tell whether a pod is no proof of health: it has restarted and is down, or has restarted as often as a loop."""
    most = max((container.restarts for container in pod.containers), default=0)
    return most > settings.restarts_above or (most > 0 and not pod.ready)


async def without_successor(treatment: Treatment, world: World) -> Unknown | Defer:
    """Wait for a pod to come, unless none can: its owner may be gone, smaller, or at another release."""
    now, owner = world.now(), treatment.owner
    workload = await world.cluster.workload(owner.ref) if owner else None
    if owner and workload is None and world.cluster.knows(owner.ref):
        return Unknown("its owner is gone")
    if workload is not None and workload.replicas == 0:
        return Unknown("its owner was scaled to zero")
    if now - treatment.acted_at < treatment.proof:
        return Defer("no successor has appeared yet", until=treatment.acted_at + treatment.proof)
    if workload is not None and workload.replicas is not None and workload.ready == workload.replicas:
        return Unknown("no pod of this template came after it: its owner is smaller now, or at another release")
    return Defer("no successor has appeared yet", until=now + treatment.proof)


def exempt(pod: Pod) -> str | None:
    """Say why a pod is never touched, whatever the policies allow."""
    if pod.terminating:
        return "the pod is terminating"
    if pod.phase in {"Succeeded", "Failed"}:
        return f"the pod has {pod.phase.lower()}"
    if pod.mirror:
        return "it is a static pod: its kubelet would restart the same"
    return None


def worst_loop(pod: Pod, world: World, settings: RestartLoopSettings) -> Loop | None:
    """Find the container that loops and has restarted most."""
    return next(iter(loops_of(pod, world, settings)), None)


def loops_of(pod: Pod, world: World, settings: RestartLoopSettings) -> list[Loop]:
    """Find all containers that loop, the one that has restarted most first."""
    loops = [loop for c in pod.containers if (loop := loop_of(c, pod, world, settings)) is not None]
    return sorted(loops, key=lambda loop: loop.container.restarts, reverse=True)


def loop_of(container: Container, pod: Pod, world: World, settings: RestartLoopSettings) -> Loop | None:
    """See whether one container loops now, or can't start at all."""
    if container.waiting in IMAGE | CONFIG:
        cause = "ImagePull" if container.waiting in IMAGE else "Config"
        patient = world.now() - (pod.unready_since or pod.created) < settings.waiting_patience
        return None if patient else Loop(container, f"{container.name} waits: {container.waiting}", cause)
    ended = container.ended
    down = container.waiting == "CrashLoopBackOff" or container.terminated is not None
    if not down or ended is None or container.restarts <= settings.restarts_above or done(container, pod):
        return None
    if ended.finished_at is not None and world.now() - ended.finished_at > CALM:
        # No kubelet waits so long: it is the kubelet that is ill, and what it says is old.
        return None
    story = f"{container.name} restarted {container.restarts} times, last with exit code {ended.exit_code}"
    return Loop(container, story, cause_of(container))


def done(container: Container, pod: Pod) -> bool:
    """Tell whether a container that has ended is not started again: that is no loop."""
    ended = container.terminated
    if ended is None:
        return False
    if container.kind == "init":
        return ended.exit_code == 0 or pod.restart_policy == "Never"
    if container.kind == "sidecar":
        return False
    return pod.restart_policy == "Never" or (pod.restart_policy == "OnFailure" and ended.exit_code == 0)


def cause_of(container: Container) -> str | None:
    """Name the cause that a new pod would inherit; None where a new pod may help."""
    ended = container.ended
    if ended is None:
        return None
    if ended.reason == "OOMKilled":
        return "OOMKilled"
    if ended.reason in START:
        return "Config"
    return "ExitZero" if ended.exit_code == 0 else None


async def restarts_in_window(
    pod: Pod, container: Container, world: World, settings: RestartLoopSettings
) -> int | Refuse:
    """Count restarts in the window: the pod's own count while it is younger, else what Prometheus saw."""
    if world.now() - pod.created <= settings.restart_window:
        return container.restarts
    metric = "kube_pod_init_container_status_restarts_total" if container.kind != "app" else METRIC
    labels = f'namespace="{pod.ref.namespace}",pod="{pod.ref.name}",uid="{pod.ref.uid}",container="{container.name}"'
    seconds = int(settings.restart_window.total_seconds())
    try:
        count = await world.metrics.scalar(f"max(increase({metric}{{{labels}}}[{seconds}s]))")
    except UnavailableError as error:
        window = show_duration(settings.restart_window)
        return Refuse(f"how often {container.name} restarted in {window} is unknown: {error}", UNKNOWN, AGAIN)
    if count is None:
        return Refuse(f"Prometheus has no restarts of {container.name} ({metric})", UNKNOWN, AGAIN)
    return round(count)


METRIC = "kube_pod_container_status_restarts_total"
UNKNOWN = "RestartsUnknown"
AGAIN = timedelta(minutes=10)


def window_of(pod: Pod, world: World, settings: RestartLoopSettings) -> str:
    """Give the time in which the restarts were counted, for people."""
    return show_duration(min(world.now() - pod.created, settings.restart_window))


def siblings(treatment: Treatment) -> dict[str, str]:
    """Ask for the pods of one template only, where its label is known: in a storm each verdict reads pods."""
    owner = treatment.owner
    label = TEMPLATE_LABELS.get(owner.kind) if owner else None
    return {"labelSelector": f"{label}={owner.template_hash}"} if owner and label and owner.template_hash else {}


TEMPLATE_LABELS = {"Deployment": "pod-template-hash", "Rollout": "rollouts-pod-template-hash"}


def succeeds(pod: Pod, treatment: Treatment) -> bool:
    """Tell whether a pod came after the one that was treated, from the same template."""
    owner = treatment.owner
    if owner is None or pod.controller is None or pod.ref.uid == treatment.target.uid or pod.terminating:
        return False
    return pod.controller.uid == owner.controller and pod.created >= treatment.acted_at - SECOND


main = serve(find, decide, recovered)
