"""Rolling a release of Helm back: helm itself does it, in a Job, under an account that people have named for it.

A rollback writes every kind of the chart. So many rights no function has; this one may ask for the Job, and no more
(docs/adr/0025).
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from kreflex.actions import BlockedError, HopelessError, register
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError, GoneError
from kreflex.helm import PENDING, Held, Undo, installation_of, stored
from kreflex.helmjobs import CHECKS, RECORD, job_name, job_of, jobs_path
from kreflex.histories import Histories
from kreflex.kinds import RELEASED, path_of
from kreflex.policy import GROUP
from kreflex.releaseactions import ReleaseStep
from kreflex.releases import Helm, Releases
from kreflex.reverts import BACK_BY, BACK_FROM, BACK_TO
from kreflex.revisions import Release, Revision, noted
from kreflex.rule import Rule
from kreflex.views import JSON, time_of

HELM_BACK = f"{GROUP}/rolled-back-helm"
FAILED = "HelmFailed"
_GLANCE, _LATER = timedelta(seconds=3), timedelta(seconds=10)
_FIRST = timedelta(seconds=30)


@dataclass(frozen=True)
class RollBackHelm(ReleaseStep):
    """Have helm roll a release back to a revision, and wait until what it writes is ready."""

    way: Undo
    to: Revision
    rules: Helm

    rbac: ClassVar[tuple[Rule, ...]] = (
        Rule("batch", "jobs", "create", checks=CHECKS),
        Rule("batch", "jobs", "get"),
        # Where the way back is noted. Without `fields`: nothing but notes of ours is changed.
        *(Rule(group, plural, "patch") for (group, _), plural in RELEASED.items()),
    )
    verb: ClassVar[str] = "have Helm roll back"
    past: ClassVar[str] = "RolledBackByHelm"
    remembering: ClassVar[bool] = True

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Remember that the version is bad, leave word which way it goes back, and only then ask for the Job."""
        if self.release.paused:
            raise BlockedError(f"{self.target} is paused: resume it, and it is rolled back", "WorkloadPaused")
        # Where that is done already, the present version may be the good one.
        if begun_undo(self.release, mark) != self.way:
            await self._condemn(writer, reader, mark)
        await self._ask(writer, reader, mark)
        way = self.way
        return f"Job {job_name(way)} takes {way.installation} from revision {way.bad} back to {way.good}"

    async def _condemn(self, writer: Writer, reader: Reader, mark: str) -> None:
        if self.to.bad:
            raise HopelessError(f"{self.to} was rolled back from itself, by {self.to.bad}", "Bad")
        await Histories(reader, writer).condemn(self.target, noted(self.release, self.release.current), mark)
        path, notes = path_of(self.target), notes_of(self.release, self.to, self.way, mark)
        assert path is not None
        # Just the notes, into the object that was read, as it was read.
        meta = {"uid": self.target.uid, "resourceVersion": self.release.resource_version, "annotations": notes}
        await writer.merge(path, {"metadata": meta})

    async def _ask(self, writer: Writer, reader: Reader, mark: str) -> None:
        path = jobs_path(self.way.installation)
        body = job_of(self.way, self.rules, mark)
        try:
            await writer.create(path, body)
        except GoneError as error:
            raise BlockedError(f"no Job can be made: {error}", FAILED) from error
        except ConflictError as error:
            there = await reader.get(f"{path}/{job_name(self.way)}")
            whose = (there or {}).get("metadata", {}).get("annotations", {}).get(RECORD, "nobody")
            if whose != mark:
                because = f"Job {self.target.namespace}/{job_name(self.way)} of {whose} is there already"
                wait = "one rollback of a release at a time; if it has ended, delete it"
                raise BlockedError(f"{because}: {wait}", PENDING) from error


def notes_of(release: Release, to: Revision, undo: Undo, mark: str) -> dict[str, str]:
    """Give the annotations by which whoever goes on knows the way: a kill may come before the Job is there."""
    current = release.current
    return {
        BACK_FROM: f"{current.number}/{current.hash}",
        BACK_TO: f"{to.number}/{to.hash}",
        BACK_BY: mark,
        HELM_BACK: f"{undo.bad}/{undo.good}",
    }


def begun_undo(release: Release, mark: str) -> Undo | None:
    """Read from a workload the way back that a record has begun; None if it has not."""
    notes, installation = release.workload.annotations, installation_of(release.body)
    bad, _, good = notes.get(HELM_BACK, "").partition("/")
    if notes.get(BACK_BY) != mark or installation is None or not (bad.isdecimal() and good.isdecimal()):
        return None
    return Undo(installation, int(bad), int(good))


async def helm_went(release: Release, mark: str, rules: Releases, reader: Reader) -> Held | Undo | None:
    """Tell how a rollback goes that a record has begun: None once it is over and has worked.

    An Undo is to be asked for again: it was cut off before its Job was there, or its Job was taken away.
    """
    undo = begun_undo(release, mark)
    if undo is None:
        return None
    job = await reader.get(f"{jobs_path(undo.installation)}/{job_name(undo)}")
    if job is None:
        return await _without_job(undo, rules, reader)
    ended = _ended(job)
    if ended is None:
        return await _running(job, reader)
    if ended["type"] == "Complete":
        return None
    said = await _last_words(job, reader) or str(ended.get("message", "")) or str(ended.get("reason", ""))
    return Held(FAILED, f"helm could not roll {undo.installation} back to revision {undo.good}: {said}{_advice(said)}")


async def _without_job(undo: Undo, rules: Releases, reader: Reader) -> Held | Undo | None:
    newest = next(iter(await stored(undo.installation, reader) or ()), None)
    if newest is None or newest.version <= undo.bad or newest.status == "pending-rollback":
        return undo
    if newest.pending:
        because = f"revision {newest.version} of {undo.installation} is {newest.status}: somebody is at work"
        until = newest.at + rules.stuck_after
        return Held(PENDING, because, until if reader.now() < until else None)
    if newest.status == "deployed":
        return None
    because = f"revision {newest.version} of {undo.installation} is {newest.status}, and its Job is gone"
    return Held(FAILED, f"{because}: {undo.installation.by_hand(str(undo.good))}")


def _ended(job: JSON) -> JSON | None:
    for said in (job.get("status") or {}).get("conditions") or ():
        if said.get("type") in {"Complete", "Failed"} and said.get("status") == "True":
            found: JSON = said
            return found
    return None


async def _running(job: JSON, reader: Reader) -> Held:
    """Tell what the Job is waiting for: an image or an account that is not there is never told by its end."""
    now = reader.now()
    young = now - time_of(job["metadata"]["creationTimestamp"]) < _FIRST
    waits = [_waiting(pod) for pod in await _pods(job, reader)]
    said = next((one for one in waits if one), "helm is at work")
    return Held(PENDING, f"Job {job['metadata']['name']}: {said}", now + (_GLANCE if young else _LATER))


def _waiting(pod: JSON) -> str:
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        waiting = status["state"].get("waiting")
        if waiting:
            return f"{waiting.get('reason', '')}: {waiting.get('message', '')}".strip(": ")
    return ""


async def _last_words(job: JSON, reader: Reader) -> str:
    """Read what the container has said at its end, of the pod that was the last."""
    for pod in sorted(await _pods(job, reader), key=_created, reverse=True):
        for status in (pod.get("status") or {}).get("containerStatuses") or ():
            said = str((status["state"].get("terminated") or {}).get("message", ""))
            if said:
                # Helm's own words begin with Error, after what it has warned of.
                return " ".join(said[max(said.rfind("Error: "), 0) :].split())[:600]
    return ""


def _created(pod: JSON) -> datetime:
    return time_of(pod["metadata"]["creationTimestamp"])


async def _pods(job: JSON, reader: Reader) -> list[JSON]:
    meta = job["metadata"]
    path, chosen = f"/api/v1/namespaces/{meta['namespace']}/pods", f"batch.kubernetes.io/controller-uid={meta['uid']}"
    return [pod async for pod in reader.list(path, labelSelector=chosen)]


def _advice(said: str) -> str:
    """Tell what to do about what helm says most often."""
    if "conflict" in said:
        return (
            ". Somebody else has set that field since: set it back, or let the policy take it (releases.helm."
            "forceConflicts). What helm wrote before that stays"
        )
    if "forbidden" in said:
        return ". Give the account that right (knative/variants/helm)"
    return ""


register(RollBackHelm)
