"""Stop the sync of what Git owns, so that a release can be rolled back live; and say so until somebody resumes it.

Nothing here resumes a sync: Git still has the bad release, which would be back at once. People mend Git, and resume.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from kreflex.actions import BlockedError, HopelessError, register
from kreflex.cluster import Reader, Writer
from kreflex.decisions import Defer, Refuse
from kreflex.errors import ConflictError
from kreflex.gitactions import WayInGit
from kreflex.gitops import ARGO, KUSTOMIZE, RBAC, SUSPENDED_BY, SYNC_SUSPENDED, Manager, path_of
from kreflex.kinds import RELEASED
from kreflex.kinds import path_of as path_of_workload
from kreflex.releaseactions import ReleaseStep
from kreflex.revisions import Release
from kreflex.rule import Check, Rule
from kreflex.signals import Course
from kreflex.views import JSON

# What an Application's automation was, where its CRD is too old to switch it off and keep that.
AUTOMATED = "kreflex.dev/suspended-automated"
SUSPENDED = "SyncSuspended"
# A controller that has read its object before it was suspended writes once more. Argo CD heals after five seconds.
# https://argo-cd.readthedocs.io/en/stable/user-guide/auto_sync/#automated-sync-semantics
_UNDER_WAY = timedelta(seconds=10)
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
class SuspendSync(ReleaseStep):
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
        if ((body.get("status") or {}).get("operationState") or {}).get("phase") == "Running":
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
class NoteSuspension(ReleaseStep):
    """Note on the workload that its sync is suspended: admission lets its template be written only then."""

    rbac: ClassVar[tuple[Rule, ...]] = _NOTES
    verb: ClassVar[str] = "note the suspended sync of"
    past: ClassVar[str] = "NotedSuspension"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - as it was read
        """Leave the note."""
        await writer.merge(_path(self.release), _noted(self.release, mark))
        return ""


@dataclass(frozen=True, kw_only=True)
class ForgetSuspension(ReleaseStep):
    """Take the note away: somebody has resumed the sync."""

    step: ClassVar[bool] = False
    undo: ClassVar[bool] = True
    rbac: ClassVar[tuple[Rule, ...]] = _NOTES
    verb: ClassVar[str] = "forget the suspended sync of"
    past: ClassVar[str] = "ForgotSuspension"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - as it was read
        """Remove the note."""
        await writer.merge(_path(self.release), _noted(self.release, None))
        return ""


def _path(release: Release) -> str:
    path = path_of_workload(release.workload.ref)
    assert path is not None
    return path


def _noted(release: Release, mark: str | None) -> JSON:
    meta = {"uid": release.workload.ref.uid, "resourceVersion": release.resource_version}
    return {"metadata": {**meta, "annotations": {SYNC_SUSPENDED: mark}}}


def step_to_suspend(
    way: WayInGit, course: Course | None, now: datetime
) -> SuspendSync | NoteSuspension | Defer | Refuse | None:
    """Choose the next step until what Git owns may be written live; None when it may."""
    by, release = way.by, way.release
    if not by.resource_version:
        return way.refused(f"{by} owns it in Git and can't be suspended: {by.held}", "Git")
    if by.restored and not by.suspended:
        return way.refused(f"{by} can't be suspended, for it would be resumed by {by.restored}", "Git")
    because = f"{way.because}; {by} would put it back, so that its sync is suspended"
    if SYNC_SUSPENDED not in release.workload.annotations:
        # First: whoever comes after a kill finds by it that somebody has to be told.
        return NoteSuspension(because, release=release, episode=way.episode, course=way.course)
    if not by.suspended:
        return SuspendSync(because, release=release, episode=way.episode, course=way.course, by=by)
    taken = course.took(SuspendSync.__name__) if course is not None else None
    if taken is not None and now < taken.last + _UNDER_WAY:
        return way.deferred(f"what {by} has begun may still be written", taken.last + _UNDER_WAY)
    return None


def still_suspended(release: Release, by: Manager | None) -> ForgetSuspension | Refuse:
    """Say of a workload with our note how its sync is resumed; take the note away when that was done."""
    episode = f"suspended/{release.workload.annotations.get(SYNC_SUSPENDED, '')}"
    if by is None or not by.suspended:
        return ForgetSuspension(f"{by or 'its controller'} is at work again", release=release, episode=episode)
    because = f"{by} is suspended since Kreflex has rolled {release.workload.ref} back live"
    how = f"mend Git, where the bad release still is, and then: {_resuming(by)}"
    return Refuse(
        f"{because}: nothing that is in Git comes into the cluster. {how}",
        SUSPENDED,
        episode=episode,
        about=release.workload,
    )


def _resuming(by: Manager) -> str:
    if by.ref.kind == "Kustomization":
        return f"flux resume kustomization {by.ref.name} -n {by.ref.namespace}"
    patch = json.dumps({"spec": {"syncPolicy": {"automated": {"enabled": True}}}})
    return f"kubectl -n {by.ref.namespace} patch application {by.ref.name} --type merge -p '{patch}'"


register(SuspendSync, NoteSuspension, ForgetSuspension)
