"""A step of a deployment pipeline: follow one release until it is healthy, or until what has become of it is known.

It writes nothing to the cluster. What is done about a bad release is decided by the function, under its own rights and
policies; the pipeline may tell it where to look, so that nobody has to wait for an event or the waker.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from kreflex import calls
from kreflex.cluster import Reader
from kreflex.durations import show_duration
from kreflex.errors import OutageError, UnavailableError
from kreflex.ingress import cloudevents
from kreflex.kinds import RELEASED, TOLD
from kreflex.policy import GROUP
from kreflex.records import API, TARGET, Record, read_record
from kreflex.reverts import BACK_FROM, BACK_TO
from kreflex.revisions import Release, Revision, Untold, release_of
from kreflex.templates import images
from kreflex.views import Container, Pod, Ref

HEALTHY, ROLLED_BACK, PEOPLE, LATE, USAGE = 0, 1, 2, 3, 64
KINDS = {kind.lower(): kind for _, kind in RELEASED}
FUNCTION = "rollback"
_SOURCE = f"{GROUP}/pipeline"
_LOOK_SECONDS = 2.0
_ASK_SECONDS = 10.0
# The waker comes each minute, and a verdict that is due waits for it where nobody asks.
_AFTER = 90.0
# What asking again does not mend, but for the moment in which an API server starts.
_HOPELESS, _TRIES = {401, 403, 404}, 3
# How long ago a rollback may be, for a pipeline that comes late to take it for one of its own release.
_LATELY = timedelta(hours=1)

Word = Literal["release", "record", "trouble"]


@dataclass(frozen=True, slots=True)
class Wish:
    """What a pipeline waits for: this workload healthy for `proof`, `within` a time, and running this image if it says.

    With a `url` the function there is asked to look as long as the release is not well.
    """

    kind: str
    namespace: str
    name: str
    within: timedelta
    proof: timedelta
    image: str = ""
    url: str = ""
    token_file: str = ""

    @property
    def ref(self) -> Ref:
        """The workload, whatever its UID is."""
        return Ref(TOLD[self.kind], self.kind, self.namespace, self.name, "")


@dataclass(frozen=True, slots=True)
class End:
    """How it ended: the exit code, why, and the name of the record that tells the rest."""

    code: int
    text: str
    record: str = ""


class Pipeline:
    """Follows a release; `tell` hears of each change, once."""

    def __init__(self, wish: Wish, reader: Reader, tell: Callable[[Word, str], None]) -> None:
        self._wish = wish
        self._reader = reader
        self._tell = tell
        self._said: dict[Word, str] = {}
        self._meant: tuple[str, str] | None = None
        """The UID of the workload, and the episode that a rollback of this release would have."""
        self._limit = time.monotonic() + wish.within.total_seconds()
        self._asked = time.monotonic()
        self._failures = 0
        self._waits: End | None = None

    async def run(self) -> End:
        """Look again and again, until there is an end."""
        while True:
            end = await self._try()
            if end is not None:
                return end
            if time.monotonic() >= self._limit:
                return self._waits or End(LATE, self._late())
            await asyncio.sleep(_LOOK_SECONDS)

    async def _try(self) -> End | None:
        try:
            end = await self._look()
        except UnavailableError as error:
            return self._failed(error)
        self._failures = 0
        return end

    def _failed(self, error: UnavailableError) -> End | None:
        self._say("trouble", str(error))
        hopeless = isinstance(error, OutageError) and error.status in _HOPELESS
        self._failures = self._failures + 1 if hopeless else 0
        return End(USAGE, str(error)) if self._failures >= _TRIES else None

    def _say(self, word: Word, text: str) -> None:
        if self._said.get(word) != text:
            self._said[word] = text
            self._tell(word, text)

    def _late(self) -> str:
        state = self._said.get("release") or self._said.get("trouble") or "nothing is known of it"
        return f"not healthy within {show_duration(self._wish.within)}: {state}"

    async def _look(self) -> End | None:
        wish = self._wish
        release = await release_of(wish.ref, self._reader)
        if release is None:
            where = f"in namespace {wish.namespace}"
            if self._meant is not None:
                return End(PEOPLE, f"{wish.kind} {wish.name} was deleted {where}")
            return End(USAGE, f"there is no {wish.kind} {wish.name} {where}")
        if isinstance(release, Untold):
            self._say("release", release.because)
            return None if release.passing else End(PEOPLE, release.because)
        if self._meant is None:
            self._meant = await self._means(release)
        return await self._judge(release, *self._meant) if self._meant else None

    async def _means(self, release: Release) -> tuple[str, str] | None:
        """Name what a rollback of the wished release is a remediation of; None while it is not there yet.

        It may have been rolled back before we came. From Git, it may come long after the push.
        """
        notes, current, uid = release.workload.annotations, release.current, release.workload.ref.uid
        runs = self._wish.image in images(current.template) if self._wish.image else None
        if runs:
            return uid, _episode(current)
        number, _, bad = notes.get(BACK_FROM, "").partition("/")
        if bad and notes.get(BACK_TO, "").rpartition("/")[2] == current.hash:
            record = await self._record(uid, f"{bad}/{number}")
            if record is not None and _acted(record, self._reader.now()):
                return uid, f"{bad}/{number}"
        if runs is None:
            return uid, _episode(current)
        self._say("release", f"it runs {current}, and not yet {self._wish.image}")
        return None

    async def _judge(self, release: Release, uid: str, episode: str) -> End | None:
        record = await self._record(uid, episode)
        if record is not None and _acted(record, self._reader.now()):
            return await self._follow(record)
        current = release.current
        if _episode(current) != episode:
            return End(PEOPLE, f"somebody has changed {release.workload.ref} meanwhile: it is to run {current}")
        since, now = release.ready_since(current) if release.complete else None, self._reader.now()
        if since is not None and now - since >= self._wish.proof:
            return End(HEALTHY, f"{current} is complete, and its pods have been Ready for {show_duration(now - since)}")
        self._say("release", _state(release))
        if record is not None:
            return await self._follow(record)
        if since is None:
            await self._ask(cloudevents.FOUND, _found(release))
        return None

    async def _record(self, uid: str, episode: str) -> Record | None:
        """Find the record of this release: the newest, if a broken policy has made one that names no release."""
        chosen = f"{GROUP}/function={FUNCTION},{TARGET}={uid[:63]}"
        path = f"/apis/{API}/namespaces/{self._wish.namespace}/remediations"
        found = [read_record(body) async for body in self._reader.list(path, labelSelector=chosen)]
        ours = [one for one in found if one.episode in {"", episode}]
        return max(ours, key=lambda one: one.created, default=None)

    async def _follow(self, record: Record) -> End | None:
        """Tell how far a remediation is, and what it means for the pipeline."""
        status = record.status
        became = status.verdict or status.outcome or status.phase
        reason = status.verdict_reason or status.reason or ""
        self._say("record", f"{record} is {became.lower()}: {reason}" if reason else f"{record} is {became.lower()}")
        if status.phase == "Done" and status.outcome == "applied":
            if status.verdict == "Recovered":
                return End(ROLLED_BACK, f"the release was rolled back, and is healthy again: {reason}", str(record))
            return End(PEOPLE, f"the release was rolled back, and is not healthy: {reason}", str(record))
        if status.outcome == "refused":
            return End(PEOPLE, f"the release is not rolled back: {reason}", str(record))
        if status.outcome in {"awaiting-approval", "failed"}:
            self._waits = End(PEOPLE, reason, str(record))
        if status.prove_by is not None:
            left = (status.prove_by - self._reader.now()).total_seconds() + _AFTER
            self._limit = max(self._limit, time.monotonic() + left)
        if status.due_at is not None and status.due_at <= self._reader.now():
            await self._ask(cloudevents.DUE, {"namespace": record.namespace, "name": record.name})
        return None

    async def _ask(self, kind: str, item: dict[str, str]) -> None:
        """Ask the function to look, if we know where it is, and not each time that we do."""
        if not self._wish.url or time.monotonic() - self._asked < _ASK_SECONDS:
            return
        self._asked = time.monotonic()
        headers, body = cloudevents.write(_SOURCE, kind, self._wish.name, {"items": [item]}, {})
        await calls.post(self._wish.url, headers, body, self._wish.token_file)


def _episode(revision: Revision) -> str:
    return f"{revision.hash}/{revision.number}"


def _acted(record: Record, now: datetime) -> bool:
    """Tell whether something is done about a release, or was just a while ago."""
    if record.status.phase in {"Acting", "Applied"}:
        return True
    settled = record.status.settled_at
    return record.status.outcome == "applied" and settled is not None and now - settled < _LATELY


def _found(release: Release) -> dict[str, str]:
    ref = release.workload.ref
    summary = f"a pipeline waits for {release.current} of {ref}"
    return {"kind": ref.kind, "namespace": ref.namespace, "name": ref.name, "uid": ref.uid, "summary": summary}


def _state(release: Release) -> str:
    """Tell in a line how far a release is."""
    pods = [pod for pod in release.new_pods if not pod.terminating]
    ready = sum(pod.ready for pod in pods)
    text = f"{release.current}: {ready} of {_wanted(release)} pods Ready"
    ill = [one for one in (_ailing(pod) for pod in pods) if one]
    late = ["its controller has given up waiting"] if release.stuck else []
    return "; ".join([text, *ill[:2], *late])


def _wanted(release: Release) -> int:
    spec, status = release.body.get("spec") or {}, release.body.get("status") or {}
    daemon = release.workload.ref.kind == "DaemonSet"
    return int(status.get("desiredNumberScheduled", 0) if daemon else spec.get("replicas", 1))


def _ailing(pod: Pod) -> str:
    told = [one for one in (_trouble(container) for container in pod.containers) if one]
    return f"{pod.ref.name}: {', '.join(told)}" if told and not pod.ready else ""


def _trouble(container: Container) -> str:
    restarts = f"{container.name} restarted {container.restarts} times" if container.restarts else ""
    waits = f"{container.name} waits: {container.waiting}" if container.waiting else ""
    return waits or restarts
