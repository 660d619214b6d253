"""Releases as the cluster remembers them: a workload, its revisions, and the pods of each."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from kreflex import progress, templates
from kreflex.ailments import start_of
from kreflex.chaos.changes import left, read
from kreflex.cluster import Reader
from kreflex.decisions import Remember
from kreflex.durations import show_duration
from kreflex.histories import History, Noted, digest, history_of
from kreflex.kinds import RELEASED, path_of
from kreflex.records import HIT_HOW, experiment_of
from kreflex.views import JSON, Pod, Ref, Workload, controller_of, moment, pod_view, time_of, workload_view

_CONTROLLERS = {"kube-controller-manager", "rollouts-controller"}


@dataclass(frozen=True, slots=True)
class Revision:
    """One template that a workload has or had; `template` is what would be written to go back to it.

    `hash` is what its pods are labelled with. `created` is when the cluster first had it: a revision that was gone back
    to is older than its number. The workload's ReleaseHistory tells the rest: between `healthy_at` and `healthy_until`
    it was complete, and all its pods were Ready; `bad` names the record of a rollback away from it; `source` is what
    put it there, as far as known: a revision of Git or of Helm. `experiment` has broken it on purpose.
    """

    hash: str
    number: int
    created: datetime
    template: JSON
    healthy_at: datetime | None = None
    healthy_until: datetime | None = None
    bad: str = ""
    source: str = ""
    experiment: str = ""

    def __str__(self) -> str:
        return f"revision {self.number} ({', '.join(templates.images(self.template))})"


@dataclass(frozen=True, slots=True)
class Release:
    """A Deployment, StatefulSet, DaemonSet or Rollout at one time; `revisions` has the newest first.

    `current` is what it is to run now, `changed_at` since when, as well as that is known. `pods` are those of each
    revision, by its hash. `complete` says that all of it runs, `stuck` that its controller has given up. `body` is the
    object as it was read, `history` what was remembered of it.
    """

    workload: Workload
    labels: Mapping[str, str]
    resource_version: str
    current: Revision
    revisions: tuple[Revision, ...]
    changed_at: datetime
    pods: Mapping[str, tuple[Pod, ...]]
    paused: bool
    complete: bool
    stuck: bool
    body: JSON
    history: History

    @property
    def earlier(self) -> tuple[Revision, ...]:
        """The revisions before the present one, the newest first."""
        return tuple(one for one in self.revisions if one.number < self.current.number)

    @property
    def new_pods(self) -> tuple[Pod, ...]:
        """The pods of the present revision."""
        return self.pods.get(self.current.hash, ())

    @property
    def old_pods(self) -> tuple[Pod, ...]:
        """The pods of all other revisions."""
        return tuple(pod for name, pods in self.pods.items() if name != self.current.hash for pod in pods)

    def ready_since(self, revision: Revision) -> datetime | None:
        """Tell since when all pods that a revision has now are Ready; None if one is not, or if it has none."""
        pods = [pod for pod in self.pods.get(revision.hash, ()) if not pod.terminating]
        times = [pod.ready_since for pod in pods if pod.ready and pod.ready_since is not None]
        return max(times) if times and len(times) == len(pods) else None

    def healthy(self, revision: Revision, least: timedelta, now: datetime) -> bool:
        """Tell whether a revision was really healthy: for so long its pods are Ready, or were seen to be.

        Never true of one that was rolled back from, or that an experiment has made, however its pods are.
        """
        if revision.bad or revision.experiment:
            return False
        since, known = self.ready_since(revision), self.history.of(revision.hash)
        return (since is not None and now - since >= least) or (known is not None and known.proves(least))


@dataclass(frozen=True, slots=True)
class Untold:
    """A workload whose release can't be told; `because` says why, and `passing` whether that is soon over.

    `since` is when the workload was last written, but for its status: that its controller has to see.
    """

    because: str
    passing: bool = False
    since: datetime | None = None


@dataclass(frozen=True, slots=True)
class _Made:
    """What a controller has made of a template: the revision, the object's UID, and the object."""

    revision: Revision
    uid: str
    body: JSON


async def release_of(ref: Ref, reader: Reader) -> Release | Untold | None:
    """Read a workload with its revisions and pods; None if it is gone, was replaced, or is of a kind without releases.

    A reference without a UID means whatever has the name. One read for each collection, by the workload's selector;
    what is the workload's own is told by UID.
    """
    path = path_of(ref) if ref.kind in {kind for _, kind in RELEASED} else None
    body = await reader.get(path) if path else None
    if body is None or (ref.uid and body["metadata"]["uid"] != ref.uid):
        return None
    untold = _strange(body)
    if untold is not None:
        return untold
    workload, chosen = workload_view(body), selector_of(body)
    made, pods, history = await asyncio.gather(
        _made(workload, chosen, reader), _pods(workload.ref, chosen, reader), history_of(workload.ref, reader)
    )
    current = templates.current(body, {one.revision.hash: one.body for one in made})
    found = next((one for one in made if one.revision.hash == current), None)
    if found is None:
        return Untold(f"{workload.ref}: no revision with its present template was found", True, _written(body))
    return _release(body, found, made, pods, history)


def _strange(body: JSON) -> Untold | None:
    """Tell why nothing can be said of a workload that was read."""
    who = f"{body['kind']} {body['metadata']['namespace']}/{body['metadata']['name']}"
    if (body.get("spec") or {}).get("workloadRef"):
        named = body["spec"]["workloadRef"]
        where = f"{named.get('kind')} {named.get('name')}"
        return Untold(f"{who} takes its template from {where} (spec.workloadRef): go back there, by hand")
    if "deletionTimestamp" in body["metadata"]:
        return Untold(f"{who} is being deleted")
    if not progress.seen(body):
        return Untold(f"the controller of {who} has not seen its last change yet", True, _written(body))
    return None


def _written(body: JSON) -> datetime | None:
    fields = body["metadata"].get("managedFields") or ()
    times = [moment(one.get("time")) for one in fields if one.get("subresource") != "status"]
    return max((time for time in times if time is not None), default=None)


def selector_of(body: JSON) -> str:
    """Write a workload's selector as the API server reads it in a query."""
    selector = (body.get("spec") or {}).get("selector") or {}
    equal = [f"{key}={value}" for key, value in sorted((selector.get("matchLabels") or {}).items())]
    return ",".join([*equal, *(_requirement(one) for one in selector.get("matchExpressions") or ())])


def _requirement(one: JSON) -> str:
    key, operator = one["key"], one["operator"]
    if operator in {"In", "NotIn"}:
        return f"{key} {operator.lower()} ({','.join(one.get('values') or ())})"
    return key if operator == "Exists" else f"!{key}"


async def _made(workload: Workload, chosen: str, reader: Reader) -> list[_Made]:
    """Read what the workload's controller has made of its templates."""
    ref = workload.ref
    plural = "controllerrevisions" if ref.kind in {"StatefulSet", "DaemonSet"} else "replicasets"
    path = f"/apis/apps/v1/namespaces/{ref.namespace}/{plural}"
    bodies = [body async for body in reader.list(path, labelSelector=chosen) if _owned(body, ref.uid)]
    # What somebody has given to the workload without the controller's label is none of its revisions.
    return [_view(ref.kind, body) for body in bodies if templates.hash_of(ref.kind, body)]


def _owned(body: JSON, uid: str) -> bool:
    owner = controller_of(body["metadata"])
    return owner is not None and owner.uid == uid


def _view(kind: str, body: JSON) -> _Made:
    meta = body["metadata"]
    revision = Revision(
        hash=templates.hash_of(kind, body),
        number=templates.number_of(kind, body),
        created=time_of(meta["creationTimestamp"]),
        template=templates.template_of(kind, body),
    )
    revision = replace(revision, experiment=_broken_by(meta, revision.template))
    return _Made(revision, meta["uid"], body)


def _broken_by(meta: JSON, template: JSON) -> str:
    """Name the experiment whose fault a template has: controllers give a workload's annotations to what they make.

    The mark alone says nothing: a ReplicaSet keeps that of an experiment that has changed the replicas.
    """
    notes = meta.get("annotations") or {}
    try:
        ours = left({"spec": {"template": template}}, read(notes.get(HIT_HOW, "[]")))
    except (ValueError, TypeError, KeyError):
        return ""
    return (experiment_of(notes) or "") if ours else ""


async def _pods(ref: Ref, chosen: str, reader: Reader) -> list[Pod]:
    path = f"/api/v1/namespaces/{ref.namespace}/pods"
    return [pod_view(body) async for body in reader.list(path, labelSelector=chosen)]


def _release(body: JSON, found: _Made, made: Sequence[_Made], pods: Iterable[Pod], history: History) -> Release:
    by_hash = _by_hash(workload_view(body).ref.uid, made, pods)
    told = {one.revision.hash: _told(one.revision, history.of(one.revision.hash)) for one in made}
    if history.of(found.revision.hash) is None:
        # The same template may be released anew under another hash: after a collision, or by Argo Rollouts.
        told[found.revision.hash] = _told(found.revision, history.of_template(digest(body["spec"]["template"])))
    return Release(
        workload=workload_view(body),
        labels=body["metadata"].get("labels") or {},
        resource_version=body["metadata"]["resourceVersion"],
        current=told[found.revision.hash],
        revisions=tuple(sorted(told.values(), key=lambda one: one.number, reverse=True)),
        changed_at=_changed_at(body, found, made, by_hash.get(found.revision.hash, ())),
        pods=by_hash,
        paused=progress.paused(body),
        complete=progress.complete(body),
        stuck=progress.stuck(body),
        body=body,
        history=history,
    )


def _by_hash(uid: str, made: Iterable[_Made], pods: Iterable[Pod]) -> dict[str, tuple[Pod, ...]]:
    """Sort pods by revision: those of ReplicaSets by whose they are, others by their label."""
    hashes = {one.uid: one.revision.hash for one in made}
    found = defaultdict[str, list[Pod]](list)
    for pod in pods:
        owner = pod.controller.uid if pod.controller else ""
        if owner in hashes or owner == uid:
            found[hashes.get(owner, pod.labels.get(templates.CONTROLLER_HASH, ""))].append(pod)
    return {name: tuple(those) for name, those in found.items()}


def _told(revision: Revision, known: Noted | None) -> Revision:
    if known is None:
        return revision
    return replace(
        revision,
        healthy_at=known.healthy_at,
        healthy_until=known.healthy_until,
        bad=known.bad,
        source=known.source,
    )


def _changed_at(body: JSON, found: _Made, made: Iterable[_Made], pods: Iterable[Pod]) -> datetime:
    """Tell since when the present template is the present one.

    A new one is as old as what was made of it. For one that was gone back to, the cluster keeps no time as such. A
    ControllerRevision is changed only to be numbered anew. Who sets a template is among the workload's managed fields,
    with the time when he last set anything; it may be too late, and never too early. Else its first pod counts.
    """
    created = found.revision.created
    if all(one.revision.created <= created for one in made):
        return created
    if "data" in found.body:
        times = [moment(entry.get("time")) for entry in found.body["metadata"].get("managedFields") or ()]
    else:
        times = [moment(entry.get("time")) for entry in _set_template(body)]
    known = [time for time in times if time is not None] or [min((pod.created for pod in pods), default=created)]
    return max(created, *known)


def _set_template(body: JSON) -> list[JSON]:
    """Give the entries of managed fields of those who have set the template, and are no controller."""
    return [
        entry
        for entry in body["metadata"].get("managedFields") or ()
        if "f:template" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        and entry.get("manager") not in _CONTROLLERS
    ]


def noted(release: Release, revision: Revision) -> Noted:
    """Write down a revision as a ReleaseHistory has it, with what is known of it."""
    # Of the present one as the workload has it: that is what is looked for in a list of workloads.
    template = release.body["spec"]["template"] if revision.hash == release.current.hash else revision.template
    return Noted(
        hash=revision.hash,
        number=revision.number,
        template=digest(template),
        images=templates.images(revision.template),
        healthy_at=revision.healthy_at,
        healthy_until=revision.healthy_until,
        source=revision.source,
        bad=revision.bad,
    )


def to_remember(release: Release, least: timedelta, now: datetime, source: str = "") -> Remember | None:
    """Tell what is to be remembered of a release; None if it was not healthy for `least`, or if that is known.

    One write for each release. `source` is what put it there, a revision of Git or of Helm, where that is known.
    """
    since, known = release.ready_since(release.current), release.history.of(release.current.hash)
    if release.current.experiment or not release.complete or since is None or now - since < least:
        return None
    fresh = replace(release.current, healthy_at=since, healthy_until=now, source=source or release.current.source)
    took = start_of(release.new_pods)
    told = noted(release, fresh).model_copy(update={"start_seconds": int(took.total_seconds()) if took else None})
    if known is not None and known.proves(least) and (known.source, known.template) == (told.source, told.template):
        return None
    because = f"{release.current} is complete, and its pods have been Ready for {show_duration(now - since)}"
    return Remember(because, release.workload.ref, told)


def unremembered(body: JSON, history: History | None, least: timedelta) -> bool:
    """Tell, from a list of workloads, whether one runs well as it is, and nobody has noted that."""
    template = (body.get("spec") or {}).get("template")
    if template is None or not progress.complete(body) or not workload_view(body).ready:
        return False
    if experiment_of(body["metadata"].get("annotations") or {}):
        return False
    known = history.of_template(digest(template)) if history is not None else None
    return known is None or not known.proves(least)
