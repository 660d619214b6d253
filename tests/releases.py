"""Releases as values: a Deployment with a healthy earlier revision, and what its pods do."""

from datetime import datetime, timedelta
from typing import Any

from kreflex import Pod, Ref
from kreflex.ailments import Limits
from kreflex.histories import History, Noted
from kreflex.releases import Releases
from kreflex.revisions import Release, Revision
from kreflex.views import JSON, pod_view, workload_view
from tests.values import MINUTE, NOW, RUNNING, a_pod, a_status, a_workload, ended, stamp

SHOP = Ref("apps/v1", "Deployment", "shop", "shop", "uid-shop")
LIMITS = Limits(restarts_above=2, patience=2 * MINUTE)
RULES = Releases()
DAY = timedelta(days=1)
CHANGED = 10 * MINUTE


def a_template(image: str = "shop:1", **spec: Any) -> JSON:
    """The template of pods with one container `app`; `container` adds to it."""
    container = {"name": "app", "image": image, **spec.pop("container", {})}
    return {"metadata": {"labels": {"app": "shop"}}, "spec": {"containers": [container], **spec}}


def a_pod_of(number: int, name: str = "", node: str = "blue-1", **about: Any) -> Pod:
    """A pod of one revision; Ready for as long as it is old, unless it has `app` or `ready_for`."""
    name = name or f"shop-{number}"
    about = {"age": CHANGED - MINUTE if number > 1 else DAY, **about}
    if "app" not in about:
        about = {"app": [a_status(state=RUNNING, restarts=0, last={})], "ready_for": about["age"], **about}
    body = a_pod(Ref("v1", "Pod", "shop", name, f"uid-{name}"), labels={"app": "shop"}, **about)
    if node:
        body["spec"]["nodeName"] = node
    return pod_view(body)


def looping(number: int, name: str = "", restarts: int = 4, code: int = 1, **about: Any) -> Pod:
    """A pod that crashes again and again."""
    end = ended(code)
    return a_pod_of(number, name, app=[a_status(restarts=restarts, state=end, last=end)], **about)


def held(number: int, reason: str, message: str = "", **about: Any) -> Pod:
    """A pod whose container can't be started, for the reason that the kubelet gives."""
    state = {"waiting": {"reason": reason, **({"message": message} if message else {})}}
    return a_pod_of(number, app=[a_status(restarts=0, state=state, last={})], phase="Pending", **about)


def unready(number: int, name: str = "", ago: timedelta = 5 * MINUTE, **about: Any) -> Pod:
    """A pod that runs, and is not Ready for so long."""
    status = a_status(restarts=0, state={"running": {"startedAt": stamp(NOW - ago)}}, last={})
    return a_pod_of(number, name, **{"age": ago, "app": [{**status, "ready": False}], **about})


def unplaced(number: int, said: str, ago: timedelta = 10 * MINUTE) -> Pod:
    """A pod that no node takes."""
    body = a_pod(Ref("v1", "Pod", "shop", f"shop-{number}", f"uid-shop-{number}"), age=ago, phase="Pending")
    told = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": said}
    body["status"] = {"phase": "Pending", "conditions": [told]}
    return pod_view(body)


def a_revision(
    number: int, template: JSON | None = None, bad: str = "", healthy_at: datetime | None = None
) -> Revision:
    """Revision 2 has the image shop:2."""
    template = template or a_template(f"shop:{number}")
    created = NOW - (CHANGED if number > 1 else DAY)
    return Revision(f"h{number}", number, created, template, healthy_at=healthy_at, bad=bad)


def a_release(
    *pods: Pod,
    old: tuple[Pod, ...] = (),
    new: JSON | None = None,
    before: JSON | None = None,
    revisions: tuple[Revision, ...] | None = None,
    healthy: tuple[int, ...] = (1,),
    changed_ago: timedelta = CHANGED,
    kind: str = "Deployment",
    conditions: tuple[JSON, ...] = (),
    annotations: dict[str, str] | None = None,
    labels: dict[str, str] | None = None,
    spec: JSON | None = None,
    status: JSON | None = None,
    paused: bool = False,
    complete: bool = False,
    stuck: bool = False,
) -> Release:
    """A release of shop:2 by `pods`, ten minutes after shop:1 was healthy; `old` are the pods of shop:1 that are left.

    `healthy` are the revisions of which the history says that they were healthy for an hour.
    """
    made = revisions or (a_revision(2, new), a_revision(1, before))
    ref = Ref("apps/v1" if kind != "Rollout" else "argoproj.io/v1alpha1", kind, "shop", "shop", "uid-shop")
    body = a_workload(ref, annotations=annotations, replicas=3, ready=len(old))
    body["spec"] = {**body["spec"], "template": made[0].template, **(spec or {})}
    body["status"] = {**body["status"], "conditions": list(conditions), **(status or {})}
    body["metadata"] |= {"labels": labels or {}, "resourceVersion": "7"}
    began = NOW - DAY
    noted = tuple(
        Noted(hash=f"h{number}", number=number, healthy_at=began, healthy_until=began + 60 * MINUTE)
        for number in healthy
    )
    told = tuple(_told(one, healthy, began) for one in made)
    return Release(
        workload=workload_view(body),
        labels=labels or {},
        resource_version="7",
        current=told[0],
        revisions=told,
        changed_at=NOW - changed_ago,
        pods={made[0].hash: pods, **({made[1].hash: old} if old else {})},
        paused=paused,
        complete=complete,
        stuck=stuck,
        body=body,
        history=History(ref, "1", noted),
    )


def _told(revision: Revision, healthy: tuple[int, ...], began: datetime) -> Revision:
    at = began if revision.number in healthy else revision.healthy_at
    return Revision(revision.hash, revision.number, revision.created, revision.template, at, at, revision.bad)
