"""Stop the sync of what Git owns, so that a release can be rolled back live; and say so until somebody resumes it.

Nothing here resumes a sync: Git still has the bad release, which would be back at once. People mend Git, and resume.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar, Generic, TypeVar

from kreflex.actions import BlockedError, HopelessError, register
from kreflex.cluster import Reader, Writer
from kreflex.decisions import Defer, Refuse
from kreflex.errors import ConflictError
from kreflex.gitactions import WayInGit
from kreflex.gitops import ARGO, KUSTOMIZE, RBAC, SUSPENDED_BY, SYNC_SUSPENDED, Manager, is_syncing, path_of
from kreflex.kinds import RELEASED
from kreflex.kinds import path_of as path_of_object
from kreflex.releaseactions import remedy_of
from kreflex.remedies import Live, Remedy, RemedyStep
from kreflex.revisions import Release
from kreflex.rule import Check, Rule
from kreflex.signals import Course
from kreflex.views import JSON, Ref

# What an Application's automation was, where its CRD is too old to switch it off and keep that.
AUTOMATED = "kreflex.dev/suspended-automated"
SUSPENDED = "SyncSuspended"
# A controller that has read its object before it was suspended writes once more. Argo CD heals after five seconds.
# https://argo-cd.readthedocs.io/en/stable/user-guide/auto_sync/#automated-sync-semantics
_UNDER_WAY = timedelta(seconds=10)
_AGAIN = timedelta(seconds=5)
# So often each is suspended; then somebody works against it.
_MOST = 3
_ONLY_OFF = Check(
    "object.spec.?syncPolicy.?automated == oldObject.spec.?syncPolicy.?automated"
    " || !object.spec.?syncPolicy.?automated.hasValue()"
    " || object.spec.syncPolicy.automated.?enabled.orValue(true) == false",
    "a sync is suspended and never resumed: that is for people",
)
_ONLY_SUSPENDED = Check(
    "object.spec.?suspend == oldObject.spec.?suspend || object.spec.?suspend.orValue(false)",
    "a sync is suspended and never resumed: that is for people",
)
_SUSPENDS = (
    Rule(ARGO, "applications", "patch", "cluster", fields=("spec.syncPolicy.automated",), checks=(_ONLY_OFF,)),
    Rule(
        KUSTOMIZE,
        "kustomizations",
        "patch",
        "cluster",
        fields=("spec.suspend",),
        checks=(_ONLY_SUSPENDED,),
        # Flux' own first Kustomization owns most others, and their files don't say `suspend`; see Manager.restored.
        despite_git=True,
    ),
)
_NOTES = tuple(Rule(group, plural, "patch") for (group, _), plural in RELEASED.items())


@dataclass(frozen=True, kw_only=True)
class SuspendSync(RemedyStep):
    """Switch off the automation of an Application, or suspend a Kustomization, with a note of which record did it."""

    by: Manager

    rbac: ClassVar[tuple[Rule, ...]] = (*RBAC, *_SUSPENDS)
    verb: ClassVar[str] = "suspend the sync of"
    past: ClassVar[str] = "SuspendedSync"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Suspend it as it is now; a sync that is under way would write what it has begun."""
        ref, path = self.by.ref, path_of(self.by.ref)
        body = await reader.get(path)
        if body is None or body["metadata"]["uid"] != ref.uid:
            raise ConflictError(f"{ref} is not what it was when it was looked at", 409)
        if self.by.restored:
            raise HopelessError(f"{ref} would be resumed by {self.by.restored}", SUSPENDED)
        meta = {key: body["metadata"][key] for key in ("uid", "resourceVersion")}
        if ref.kind == "Application":
            return await self._automation(body, meta, writer, mark)
        noted = {**meta, "annotations": {SUSPENDED_BY: mark}}
        await writer.merge(path, {"metadata": noted, "spec": {"suspend": True}})
        return f"{ref} is suspended"

    async def _automation(self, body: JSON, meta: JSON, writer: Writer, mark: str) -> str:
        ref, path = self.by.ref, path_of(self.by.ref)
        if is_syncing(body):
            raise BlockedError(f"{ref} is being synced: wait for it, or terminate it", SUSPENDED)
        automated = (body["spec"].get("syncPolicy") or {}).get("automated")
        noted = {SUSPENDED_BY: mark, AUTOMATED: json.dumps(automated)}
        off = {"syncPolicy": {"automated": {"enabled": False}}}
        after = await writer.merge(path, {"metadata": {**meta, "annotations": noted}, "spec": off})
        if after["spec"]["syncPolicy"]["automated"].get("enabled") is not False:
            # Argo CD before 3: its API server has dropped what its CRD does not know.
            meta = {"uid": ref.uid, "resourceVersion": after["metadata"]["resourceVersion"]}
            await writer.merge(path, {"metadata": meta, "spec": {"syncPolicy": {"automated": None}}})
        return f"{ref} is not synced automatically any more"


@dataclass(frozen=True, kw_only=True)
class NoteSuspension(RemedyStep):
    """Note on an object that its sync is suspended: admission lets what Git owns be written only then."""

    noted: Ref

    rbac: ClassVar[tuple[Rule, ...]] = _NOTES
    verb: ClassVar[str] = "note the suspended sync of"
    past: ClassVar[str] = "NotedSuspension"

    @property
    def step_name(self) -> str:
        """Each object that is noted is a step of its own."""
        name = type(self).__name__
        return name if self.noted == self.target else f"{name} {self.noted.kind}/{self.noted.name}"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - nothing depends on it
        """Leave the note."""
        await _note(self.noted, mark, writer)
        return ""


@dataclass(frozen=True, kw_only=True)
class ForgetSuspension(RemedyStep):
    """Take the notes away, the workload's last, by which the others are found: somebody has resumed the sync."""

    step: ClassVar[bool] = False
    undo: ClassVar[bool] = True
    rbac: ClassVar[tuple[Rule, ...]] = _NOTES
    verb: ClassVar[str] = "forget the suspended sync of"
    past: ClassVar[str] = "ForgotSuspension"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - nothing depends on it
        """Remove the notes."""
        others = [one.ref for one in self.lives if one.ref != self.target]
        for ref in (*others, self.target):
            await _note(ref, None, writer)
        return ""


async def _note(ref: Ref, mark: str | None, writer: Writer) -> None:
    path = path_of_object(ref)
    assert path is not None, f"{ref} is of no kind that is known"
    await writer.merge(path, {"metadata": {"uid": ref.uid, "annotations": {SYNC_SUSPENDED: mark}}})


N = TypeVar("N", bound=NoteSuspension)


@dataclass(frozen=True)
class Suspension(Generic[N]):
    """What is to be written live, for which remediation, and who would put it back; `note` is how that is noted."""

    remedy: Remedy
    because: str
    lives: tuple[Live, ...]
    managers: tuple[Manager, ...]
    note: type[N]

    def refused(self, because: str, cause: str) -> Refuse:
        """Leave it to people."""
        return Refuse(because, cause, episode=self.remedy.episode, about=self.remedy.workload)


def suspend(wanted: Suspension[N], course: Course | None, now: datetime) -> SuspendSync | N | Defer | Refuse | None:
    """Choose the next step until what Git owns may be written live; None when it may."""
    held = next((because for one in wanted.managers if (because := _no_suspension(one))), "")
    if held:
        return wanted.refused(held, "Git")
    names = ", ".join(str(one) for one in wanted.managers)
    because = f"{wanted.because}; {names} would put it back, so that its sync is suspended"
    unnoted = next((one for one in wanted.lives if SYNC_SUSPENDED not in one.annotations), None)
    if unnoted is not None:
        # First: whoever comes after a kill finds by it that somebody has to be told.
        return wanted.note(because, remedy=wanted.remedy, lives=wanted.lives, noted=unnoted.ref)
    taken = course.took(SuspendSync.__name__) if course is not None else None
    running = next((one for one in wanted.managers if not one.suspended), None)
    if running is not None and taken is not None and taken.count >= _MOST * len(wanted.managers):
        return wanted.refused(f"somebody resumes {running} again and again", "Rewritten")
    if running is not None:
        return SuspendSync(because, remedy=wanted.remedy, lives=wanted.lives, by=running)
    if taken is not None and now < taken.last + _UNDER_WAY:
        until = taken.last + _UNDER_WAY
        return Defer(
            f"what {names} has begun may still be written", until, wanted.remedy.episode, wanted.remedy.workload
        )
    busy = next((one for one in wanted.managers if one.syncing), None)
    if busy is not None:
        because = f"{busy} is suspended and still being synced: wait for it, or terminate it"
        return Defer(because, now + _AGAIN, wanted.remedy.episode, wanted.remedy.workload)
    return None


def _no_suspension(by: Manager) -> str:
    if not by.resource_version:
        return f"{by} owns it in Git and can't be suspended: {by.held}"
    if by.restored and not by.suspended:
        return f"{by} can't be suspended, for it would be resumed by {by.restored}"
    return ""


def step_to_suspend(
    way: WayInGit, course: Course | None, now: datetime
) -> SuspendSync | NoteSuspension | Defer | Refuse | None:
    """Choose the next step until the template of a release that Git owns may be written live; None when it may."""
    remedy = remedy_of(way.release, way.episode, way.course)
    itself = Live(remedy.workload.ref, remedy.workload.annotations)
    return suspend(Suspension(remedy, way.because, (itself,), (way.by,), NoteSuspension), course, now)


def still_suspended(release: Release, by: Manager | None) -> ForgetSuspension | Refuse:
    """Say of a workload with our note how its sync is resumed; take the note away when that was done."""
    episode = f"suspended/{release.workload.annotations.get(SYNC_SUSPENDED, '')}"
    if by is None or not by.suspended:
        return ForgetSuspension(f"{by or 'its controller'} is at work again", remedy=remedy_of(release, episode))
    done = f"Kreflex has rolled {release.workload.ref} back live"
    return Refuse(loudly((by,), done, "the bad release"), SUSPENDED, episode=episode, about=release.workload)


def loudly(managers: Sequence[Manager], done: str, bad: str) -> str:
    """Say what is suspended since when, what that means, and how to go on."""
    names, how = ", ".join(str(one) for one in managers), "; ".join(_resuming(one) for one in managers)
    return (
        f"{names} is suspended since {done}: nothing that is in Git comes into the cluster."
        f" Mend Git, where {bad} still is, and then: {how}"
    )


def _resuming(by: Manager) -> str:
    if by.ref.kind == "Kustomization":
        return f"flux resume kustomization {by.ref.name} -n {by.ref.namespace}"
    patch = json.dumps({"spec": {"syncPolicy": {"automated": {"enabled": True}}}})
    return f"kubectl -n {by.ref.namespace} patch application {by.ref.name} --type merge -p '{patch}'"


register(SuspendSync, NoteSuspension, ForgetSuspension)
