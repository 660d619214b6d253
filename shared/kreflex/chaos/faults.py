"""Faults: each knows what it is about to do, does it, takes it back, and sees by reading that it is taken back."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import ClassVar

from kreflex.actions import evict
from kreflex.chaos.changes import Change, injecting, left, read, reverting, value, write
from kreflex.chaos.corruptions import ISOLATED, UnfitError, changes_of
from kreflex.chaos.experiments import (
    ALLOWED,
    API,
    INJECTED,
    KIND,
    OPT_IN,
    PLACES,
    PRIOR,
    REVERT_BY,
    WORKLOADS,
    Experiment,
    FaultKind,
    Injection,
)
from kreflex.chaos.targets import labels_of, opted_out, place, place_of, ref_of, refuses, restless
from kreflex.cluster import Reader, Writer
from kreflex.drains import evictable
from kreflex.errors import ApiError, ConflictError, DeniedError, GoneError, KreflexError, OutageError, UnavailableError
from kreflex.guards import OPT_OUT
from kreflex.policy import PROTECTED, PROTECTED_LABEL
from kreflex.records import Target
from kreflex.rollouts import progress_of
from kreflex.upkeep import Drain
from kreflex.views import JSON, Pod, controller_of, pod_view

_MOST_PRIOR = 60_000
_INVALID, _UNKNOWN = 422, 404
# What `Back.state` is while a controller has not looked yet.
WAITS = "Waits"


@dataclass(frozen=True)
class Hands:
    """What a fault acts with."""

    reader: Reader
    writer: Writer
    home: str

    def now(self) -> datetime:
        """Tell the API server's time."""
        return self.reader.now()


@dataclass(frozen=True, slots=True)
class Back:
    """What became of taking back: whether it is proven, whose it is now, and what there is to say."""

    proven: bool
    state: str = "Reverted"
    note: str = ""


class TooMuchError(Exception):
    """The state before would not fit where it has to be remembered."""


class Act(ABC):
    """One kind of fault."""

    # Nothing is left to take back: what was taken comes again by its owner.
    lasting: ClassVar[bool] = True

    @abstractmethod
    async def prior(self, experiment: Experiment, body: JSON, hands: Hands) -> str:
        """Tell the state before, and what is going to be changed."""

    async def moves(self, body: JSON, hands: Hands) -> tuple[str, ...]:  # noqa: ARG002
        """Name the namespaces whose pods it breaks though it does not hit them."""
        return ()

    @abstractmethod
    async def inject(self, experiment: Experiment, injection: Injection, hands: Hands) -> str:
        """Do it, as it was planned; what was done already is not done again. Raises ConflictError, GoneError."""

    async def keep_on(self, experiment: Experiment, injection: Injection, hands: Hands) -> str:  # noqa: ARG002
        """Do what takes longer than a moment; what there is to say, if it is news."""
        return ""

    @abstractmethod
    async def revert(self, mark: str, injection: Injection, hands: Hands) -> Back:
        """Take it back, and look whether it is."""


class Changing(Act):
    """Changes fields of an object, with a note of what they were on the object itself."""

    async def prior(self, experiment: Experiment, body: JSON, hands: Hands) -> str:
        """Write the fields as they are, and as they will be."""
        text = write(changes_of(experiment, body, hands.now()))
        if len(text) > _MOST_PRIOR:
            raise TooMuchError(f"the state before takes {len(text)} bytes, more than the {_MOST_PRIOR} to remember")
        return text

    async def inject(self, experiment: Experiment, injection: Injection, hands: Hands) -> str:
        """Change the object that was chosen; one that carries our mark is changed already."""
        body = await _same(injection, hands.reader)
        notes = body["metadata"].get("annotations") or {}
        if notes.get(INJECTED) == experiment.mark:
            return ""
        if INJECTED in notes:
            raise ConflictError(f"{injection.target.ref} is in the hands of {notes[INJECTED]}", 409)
        self.fits(injection, body)
        changes = read(injection.prior)
        if any(_differs(body, one) for one in changes):
            raise ConflictError(f"{injection.target.ref} has changed since it was chosen", 409)
        until = injection.model_dump(mode="json", by_alias=True)["revertBy"]
        marked = {**notes, INJECTED: experiment.mark, REVERT_BY: until, PRIOR: injection.prior}
        await hands.writer.patch(place_of(injection.target.ref), _patch(body, marked, injecting(body, changes)))
        return f"{injection.fault} of {injection.target.ref}"

    def fits(self, injection: Injection, body: JSON) -> None:
        """Raise UnfitError for one that may not be changed just now."""

    async def revert(self, mark: str, injection: Injection, hands: Hands) -> Back:
        """Put the fields back that still are as we made them, and read whether they are."""
        path = place_of(injection.target.ref)
        body = await hands.reader.get(path)
        if body is None or body["metadata"]["uid"] != injection.target.uid:
            return Back(proven=True, state="Gone", note="it is gone by itself")
        notes = body["metadata"].get("annotations") or {}
        changes = read(injection.prior)
        if notes.get(INJECTED) != mark:
            return _without_mark(body, changes)
        steps, foreign = reverting(body, changes)
        kept = {key: text for key, text in notes.items() if key not in {INJECTED, REVERT_BY, PRIOR}}
        try:
            await hands.writer.patch(path, _patch(body, kept, steps))
        except ApiError as error:
            if error.status != _INVALID or not foreign:
                raise
            # As a probe with two handlers, ours and the one that somebody else has set meanwhile.
            await hands.writer.patch(path, _patch(body, kept, []))
            told = f"somebody else has set {', '.join(foreign)}, and beside it the rest can't be put back"
            return Back(proven=True, state="Foreign", note=f"{told}: {', '.join(left(body, changes))}: {error}"[:500])
        return _proof(await hands.reader.get(path), injection, changes, foreign)


def _differs(body: JSON, change: Change) -> bool:
    there = value(body, change.path)
    return there is not change.before and there != change.before


def _without_mark(body: JSON, changes: tuple[Change, ...]) -> Back:
    still = left(body, changes)
    if still:
        how = "put it back by hand, as status.injected has it in prior"
        told = f"{', '.join(still)} is as we made it, but our mark is gone, so we may not touch it: {how}"
        return Back(proven=False, state="Stuck", note=told[-500:])
    return Back(proven=True, note="it was never done, or is taken back already")


def _proof(body: JSON | None, injection: Injection, changes: tuple[Change, ...], foreign: list[str]) -> Back:
    if body is None or body["metadata"]["uid"] != injection.target.uid:
        return Back(proven=True, state="Gone", note="it is gone by itself")
    still = left(body, changes)
    if still or INJECTED in (body["metadata"].get("annotations") or {}):
        return Back(proven=False, note=f"{', '.join(still) or 'our mark'} is still there")
    if foreign:
        return Back(proven=True, state="Foreign", note=f"somebody else has set {', '.join(foreign)}: it is left")
    return Back(proven=True)


def _patch(body: JSON, notes: JSON, steps: list[JSON]) -> list[JSON]:
    """Change the object that was read, as it was read: another UID or resourceVersion is answered 409."""
    meta = body["metadata"]
    if notes:
        noted = [{"op": "add", "path": "/metadata/annotations", "value": notes}]
    else:
        noted = [{"op": "remove", "path": "/metadata/annotations"}] if "annotations" in meta else []
    return [
        {"op": "add", "path": "/metadata/uid", "value": meta["uid"]},
        {"op": "add", "path": "/metadata/resourceVersion", "value": meta["resourceVersion"]},
        *steps,
        *noted,
    ]


async def _same(injection: Injection, reader: Reader) -> JSON:
    body = await reader.get(place_of(injection.target.ref))
    if body is None or body["metadata"]["uid"] != injection.target.uid or "deletionTimestamp" in body["metadata"]:
        raise GoneError(f"{injection.target.ref} went away by itself", 404)
    if refuses(body["metadata"]):
        raise UnfitError(refuses(body["metadata"]))
    return body


class OfWorkload(Changing):
    """Changes a workload. Of a Rollout, Argo has to have taken up what is put back."""

    def fits(self, injection: Injection, body: JSON) -> None:
        """Leave a Rollout alone that is not at rest."""
        if injection.target.kind == "Rollout" and (why := restless(body)):
            raise UnfitError(why)

    async def prior(self, experiment: Experiment, body: JSON, hands: Hands) -> str:
        """Write the fields as for all; what a Rollout refers to is left alone, for Argo releases what changes there."""
        kind, here = experiment.wants.targets.kind, experiment.namespace
        if kind != "Rollout":
            found = await hands.reader.share(f"referred/{here}", lambda: _referred(here, hands.reader))
            if by := found.get((kind, body["metadata"]["name"])):
                what = f"it is the template of Rollout {by}, and Argo would release what is changed in it"
                raise UnfitError(f"{what}: experiment with the pods of that Rollout")
        return await super().prior(experiment, body, hands)

    async def revert(self, mark: str, injection: Injection, hands: Hands) -> Back:
        """Put the fields back; a Rollout's are when Argo runs nothing of ours as its stable version."""
        if injection.target.kind != "Rollout":
            return await super().revert(mark, injection, hands)
        try:
            back = await super().revert(mark, injection, hands)
            body = await hands.reader.get(place_of(injection.target.ref))
        except OutageError as error:
            # Until its time is over it may be that the API server only does not know the kind yet.
            if error.status != _UNKNOWN or isinstance(error, DeniedError) or hands.now() <= injection.revert_by:
                raise
            return Back(proven=True, state="Gone", note="Rollouts are served no more")
        if not back.proven or back.state != "Reverted" or injection.spared or body is None:
            return back
        return _taken_up(back, body, injection, hands.now())


async def _referred(namespace: str, reader: Reader) -> dict[tuple[str, str], str]:
    """Tell by kind and name which workloads the Rollouts of a namespace take their template from.

    Argo notes nothing on these: https://argo-rollouts.readthedocs.io/en/stable/migrating/
    """
    found: dict[tuple[str, str], str] = {}
    async for body in reader.list_served(place("Rollout", namespace)):
        ref = (body.get("spec") or {}).get("workloadRef") or {}
        found[ref.get("kind", ""), ref.get("name", "")] = body["metadata"]["name"]
    return found


def _taken_up(back: Back, body: JSON, injection: Injection, now: datetime) -> Back:
    """Tell what Argo has made of a Rollout whose fields are as before."""
    progress = progress_of(body)
    if not progress.observed:
        told = "its fields are as before, but Argo has not seen that yet"
        if now <= injection.revert_by:
            return Back(proven=False, state=WAITS, note=told)
        # Its controller may miss what others write right after a write of its own, until somebody writes again
        # (writeBackToInformer in github.com/argoproj/argo-rollouts, rollout/controller.go).
        how = "see that its controller runs, and change an annotation of the Rollout, so that it looks again"
        return Back(proven=False, state="Stuck", note=f"{told}: {how}")
    # While the version that was stable still is, what was changed was never more than a trial.
    if progress.stable not in {injection.stable, progress.trial}:
        told = f"what was changed had become stable, so Argo releases what is put back: {restless(body)}"
        return Back(proven=False, state="Stuck", note=f"{told}: promote it if it waits, or retry it"[:500])
    return replace(back, note="Argo has seen it") if injection.injected_at else back


class Kill(Act):
    """Deletes a pod; its owner makes another one."""

    lasting = False

    async def prior(self, experiment: Experiment, body: JSON, hands: Hands) -> str:  # noqa: ARG002
        """The version that is killed, and no later one."""
        meta = body["metadata"]
        if controller_of(meta) is None:
            raise TooMuchError("nothing owns it, so nothing would bring it back")
        return json.dumps({"node": body["spec"].get("nodeName", "")})

    async def inject(self, experiment: Experiment, injection: Injection, hands: Hands) -> str:
        """Delete the pod that was chosen, unless it is on its way already."""
        body = await _same(injection, hands.reader)
        meta = body["metadata"]
        options: JSON = {
            "gracePeriodSeconds": experiment.wants.fault.grace_seconds,
            "preconditions": {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]},
        }
        await hands.writer.delete(place_of(injection.target.ref), options)
        return f"{injection.target.ref} is killed"

    async def revert(self, mark: str, injection: Injection, hands: Hands) -> Back:  # noqa: ARG002
        """A dead pod stays dead: the probes say whether another one has come."""
        return Back(proven=True, note="its owner replaces it")


class Draining(Changing):
    """Cordons a node and evicts what runs there, as `kubectl drain` does; in the end new pods may come again."""

    async def moves(self, body: JSON, hands: Hands) -> tuple[str, ...]:
        """Name the namespaces of the pods that it will evict; written down before any is."""
        return namespaces_of(await _evictable(body["metadata"]["name"], hands))

    async def keep_on(self, experiment: Experiment, injection: Injection, hands: Hands) -> str:  # noqa: ARG002
        """Ask once more for what is left; a PodDisruptionBudget may keep it, and that is told."""
        name = injection.target.name
        gone, kept = [], []
        for pod in await _evictable(name, hands):
            try:
                if await _opted_out(pod, hands.reader):
                    continue
                await evict(pod, hands.writer, hands.reader)
                gone.append(pod.ref.name)
            except (ConflictError, GoneError):
                continue
            except KreflexError as error:
                if isinstance(error, UnavailableError) and not isinstance(error, OutageError):
                    # Nobody answers, or the time of this attempt is over: others may be at it now.
                    raise
                # By a PodDisruptionBudget, or as nothing is evicted in a namespace that is being deleted: the others go
                # all the same (kubectl, pkg/drain/drain.go).
                kept.append(f"{pod.ref.name}: {error}")
        if gone:
            return f"evicted {', '.join(gone)} from {name}"
        return f"{name} keeps {kept[0]}" if kept else ""


def namespaces_of(pods: Iterable[Pod]) -> tuple[str, ...]:
    """Name the namespaces of pods, as many as are remembered."""
    return tuple(sorted({pod.ref.namespace for pod in pods})[:PLACES])


async def _evictable(node: str, hands: Hands) -> Sequence[Pod]:
    pods = await _may_go(await pods_seen(node, hands.reader), hands)
    return evictable(pods, Drain()).evictable


async def pods_seen(node: str, reader: Reader) -> list[Pod]:
    """Read the pods of a node, in the namespaces that are looked after."""
    return [pod async for pod in reader.pods(fieldSelector=f"spec.nodeName={node}")]


async def _may_go(pods: list[Pod], hands: Hands) -> list[Pod]:
    """Leave the pods of protected namespaces, and those that are kept out by their label or their namespace's."""
    spaces = {pod.ref.namespace for pod in pods} - {*PROTECTED, hands.home}
    labels = {space: await labels_of(space, hands.reader) for space in sorted(spaces)}
    free = {space: said for space, said in labels.items() if said.get(PROTECTED_LABEL, "false") == "false"}
    return [
        pod
        for pod in pods
        if pod.ref.namespace in free and pod.labels.get(OPT_IN, free[pod.ref.namespace].get(OPT_IN, ALLOWED)) == ALLOWED
    ]


async def _opted_out(pod: Pod, reader: Reader) -> str:
    """Tell whether a pod or its owner has opted out of what is done automatically."""
    top = await reader.top_owner(pod)
    said = {"the pod": pod.annotations, **({} if top is None else {str(top.ref): top.annotations})}
    return next((f"{name} has the annotation {OPT_OUT}" for name, one in said.items() if opted_out(one)), "")


class Isolating(Changing):
    """Keeps all traffic from some pods, by a NetworkPolicy that goes with the experiment."""

    async def inject(self, experiment: Experiment, injection: Injection, hands: Hands) -> str:
        """Make the policy first: it selects nothing until a pod is marked."""
        try:
            await hands.writer.create(place("NetworkPolicy", experiment.namespace), isolation(experiment))
        except ConflictError as error:
            if error.reason != "AlreadyExists":
                raise
        return await super().inject(experiment, injection, hands)

    async def revert(self, mark: str, injection: Injection, hands: Hands) -> Back:
        """Take the mark from the pod, and the policy away, whichever pod is the last."""
        back = await super().revert(mark, injection, hands)
        namespace, name, uid = mark.split("/")
        path = place("NetworkPolicy", namespace, policy_name(name, uid))
        body = await hands.reader.get(path)
        if body is not None:
            try:
                await hands.writer.delete(path, {"preconditions": {"uid": body["metadata"]["uid"]}})
            except GoneError:
                return back
            if await hands.reader.get(path) is not None:
                return Back(proven=False, note="the NetworkPolicy is still there")
        return back


def policy_name(name: str, uid: str) -> str:
    """Name the NetworkPolicy of an experiment."""
    return f"chaos-{name[:60].rstrip('.-')}-{uid[:8]}"


def isolation(experiment: Experiment) -> JSON:
    """Give the NetworkPolicy that lets nothing in or out of what is marked; it goes when the experiment goes."""
    until = experiment.status.model_dump(mode="json", by_alias=True)["revertBy"]
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": policy_name(experiment.name, experiment.uid),
            "namespace": experiment.namespace,
            "annotations": {INJECTED: experiment.mark, REVERT_BY: until or ""},
            "ownerReferences": [{"apiVersion": API, "kind": KIND, "name": experiment.name, "uid": experiment.uid}],
        },
        "spec": {"podSelector": {"matchLabels": {ISOLATED: experiment.uid}}, "policyTypes": ["Ingress", "Egress"]},
    }


_CHANGING = Changing()
_ACTS: dict[FaultKind, Act] = {
    "PodKill": Kill(),
    "NodeDrain": Draining(),
    "NetworkIsolation": Isolating(),
    **dict.fromkeys(WORKLOADS, OfWorkload()),
}


def act_of(kind: FaultKind) -> Act:
    """Give what does a kind of fault."""
    if kind == "Engine":
        from kreflex.chaos.engines import ENGINE  # noqa: PLC0415 - it stands on this module

        return ENGINE
    return _ACTS.get(kind, _CHANGING)


async def intent(experiment: Experiment, body: JSON, kind: str, now: datetime, hands: Hands) -> Injection:
    """Say what is about to be done to one object, with the state before it."""
    act = act_of(experiment.wants.fault.kind)
    target, status = ref_of(body, kind), experiment.status
    # Who would be healed, as the functions see it.
    pod = pod_view(body) if kind == "Pod" else None
    top = None if pod is None else await hands.reader.top_owner(pod)
    if top is not None and opted_out(top.annotations):
        raise UnfitError(f"{top.ref} has the annotation {OPT_OUT}")
    owner = controller_of(body["metadata"]) if top is None else top.ref
    assert status.revert_by is not None, "it is set when an experiment begins"
    return Injection(
        fault=experiment.wants.fault.kind,
        target=Target.of(target),
        owner=None if owner is None else Target.of(owner),
        round=status.rounds,
        prior=await act.prior(experiment, body, hands),
        moves=await act.moves(body, hands),
        stable=progress_of(body).stable if kind == "Rollout" else "",
        intended_at=now,
        revert_by=status.revert_by,
    )
