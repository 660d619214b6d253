"""What a cluster remembers of its releases: which version was really healthy, and which was rolled back from.

A ReplicaSet or a ControllerRevision keeps what a version was, not how it went. A ReleaseHistory stands beside each
workload, and goes with it. Kreflex' own memory, not a change of anybody's objects: it is kept in a dry run, too.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import timedelta

from pydantic import ConfigDict, Field, ValidationError

from kreflex.audit import log
from kreflex.cluster import Reader, Writer
from kreflex.errors import UnavailableError
from kreflex.parts import Part
from kreflex.policy import GROUP
from kreflex.records import API, Target, Time
from kreflex.rule import Check, Rule
from kreflex.views import JSON, Ref

KIND, PLURAL = "ReleaseHistory", "releasehistories"
KEPT = 10
_NAME = 200
# Other fields of a newer version of Kreflex are left alone.
_LENIENT = ConfigDict(extra="ignore")
_OWNED = Check(
    "object.metadata.?ownerReferences.orValue([]).exists_one(o, o.uid == object.spec.workload.uid)",
    "a ReleaseHistory belongs to its workload, and goes with it",
)
RBAC_TO_FIND = (Rule(GROUP, PLURAL, "list"),)
RBAC_TO_READ = (Rule(GROUP, PLURAL, "get"), *RBAC_TO_FIND)
RBAC = (
    Rule(GROUP, PLURAL, "get"),
    Rule(GROUP, PLURAL, "create", checks=(_OWNED,)),
    Rule(GROUP, PLURAL, "patch", fields=("spec", "metadata.ownerReferences"), checks=(_OWNED,)),
)


class Noted(Part):
    """One version of a workload's template, and how it went."""

    model_config = _LENIENT

    hash: str = Field(min_length=1, max_length=253, description="What its pods are labelled with.")
    number: int = Field(ge=0, description="The revision that it was when this was written.")
    template: str = Field("", max_length=64, description="A digest of the template, as the workload has it.")
    images: tuple[str, ...] = Field((), max_length=100)
    healthy_at: Time | None = Field(None, description="Since when all its pods were Ready.")
    healthy_until: Time | None = Field(None, description="When they still were; it is written once they were for long.")
    start_seconds: int | None = Field(None, ge=0, description="How long its pods took until they were Ready.")
    source: str = Field("", max_length=1024, description="What put it there: a revision of Git or of Helm.")
    bad: str = Field(
        "",
        max_length=253,
        description="The Remediation that rolled back from it. It is not gone back to, nor rolled back from again;"
        " empty this field if it is not to blame after all.",
    )

    def proves(self, least: timedelta) -> bool:
        """Tell whether it was seen healthy for so long at least."""
        return bool(self.healthy_at and self.healthy_until and self.healthy_until - self.healthy_at >= least)


class HistorySpec(Part):
    """The versions of a workload of which something is known, the newest first."""

    model_config = _LENIENT

    workload: Target = Field(description="Whose versions they are.")
    revisions: tuple[Noted, ...] = Field((), max_length=KEPT)


@dataclass(frozen=True)
class History:
    """A ReleaseHistory as it was read; `version` is "" for one that is not there yet."""

    workload: Ref
    version: str = ""
    revisions: tuple[Noted, ...] = ()

    def of(self, name: str) -> Noted | None:
        """Tell what is known of the version with this hash."""
        return next((one for one in self.revisions if one.hash == name), None)

    def of_template(self, name: str) -> Noted | None:
        """Tell what is known of the version whose template has this digest."""
        return next((one for one in self.revisions if one.template == name), None)

    def proven(self) -> History:
        """Leave out what was never seen healthy: of all workloads of a cluster no more has to be kept at a time."""
        return replace(self, revisions=tuple(one for one in self.revisions if one.healthy_until is not None))

    def with_(self, noted: Noted) -> tuple[Noted, ...]:
        """Give the versions with this one in the first place; of too many the last are forgotten."""
        return (noted, *(one for one in self.revisions if one.hash != noted.hash))[:KEPT]


def digest(template: JSON) -> str:
    """Name a template, the same in each process, without reading what its controller made of it."""
    return hashlib.sha256(json.dumps(template, sort_keys=True).encode()).hexdigest()[:16]


def history_name(workload: Ref) -> str:
    """Name a workload's history after its kind and name."""
    whole = f"{workload.kind.lower()}-{workload.name}"
    if len(whole) <= _NAME:
        return whole
    return f"{whole[:_NAME].rstrip('-.')}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def history_path(workload: Ref) -> str:
    """Tell where a workload's history is."""
    return f"/apis/{API}/namespaces/{workload.namespace}/{PLURAL}/{history_name(workload)}"


async def history_of(workload: Ref, reader: Reader) -> History:
    """Read what is remembered of a workload; that of an earlier one of the same name tells nothing of this one."""
    body = await reader.get(history_path(workload))
    if body is None:
        return History(workload)
    found = _read(body)
    same = found.workload.uid == workload.uid
    return History(workload, body["metadata"]["resourceVersion"], found.revisions if same else ())


async def histories(reader: Reader) -> AsyncIterator[History]:
    """Read what is remembered of all workloads: to find what is not noted yet.

    One that can't be read is left out. Whoever looks at its workload is told so, and the others are found.
    """
    async for body in reader.everywhere(API, KIND):
        try:
            found = _read(body)
        except UnavailableError as error:
            log.warning("history.unreadable", because=str(error))
            continue
        yield History(found.workload.ref, body["metadata"]["resourceVersion"], found.revisions)


def _read(body: JSON) -> HistorySpec:
    try:
        return HistorySpec.model_validate(body.get("spec") or {})
    except ValidationError as error:
        name = f"{body['metadata']['namespace']}/{body['metadata']['name']}"
        raise UnavailableError(f"{KIND} {name} can't be read; mend or delete it: {error}") from error


class Histories:
    """Writes the histories; each change is conditioned on what was read a moment before."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def note(self, workload: Ref, noted: Noted) -> None:
        """Remember how a version goes; that it was rolled back from once is never forgotten thereby.

        Raises ConflictError if somebody else has just written.
        """
        history = await history_of(workload, self._reader)
        known = history.of(noted.hash)
        if known is not None and known.bad:
            noted = noted.model_copy(update={"bad": known.bad})
        if noted != known:
            await self._write(history, noted)

    async def condemn(self, workload: Ref, noted: Noted, record: str) -> None:
        """Remember that a version is rolled back from, and by which record, before that is done.

        Done again by the same record it changes nothing. Raises ConflictError if somebody else has just written.
        """
        history = await history_of(workload, self._reader)
        known = history.of(noted.hash)
        if known is None or not known.bad:
            await self._write(history, (known or noted).model_copy(update={"bad": record}))

    async def _write(self, history: History, noted: Noted) -> None:
        workload, path = history.workload, history_path(history.workload)
        spec = HistorySpec(workload=Target.of(workload), revisions=history.with_(noted))
        meta = {"ownerReferences": [_owner(workload)]}
        body: JSON = {"metadata": meta, "spec": spec.model_dump(mode="json", by_alias=True, exclude_none=True)}
        if history.version:
            await self._writer.merge(path, {**body, "metadata": {**meta, "resourceVersion": history.version}})
            return
        named = {**meta, "name": history_name(workload), "namespace": workload.namespace}
        await self._writer.create(path.rpartition("/")[0], {"apiVersion": API, "kind": KIND, **body, "metadata": named})


def _owner(workload: Ref) -> JSON:
    # No controller: a workload's own controller adopts what it controls, and this is not of its kind.
    return {
        "apiVersion": workload.api_version,
        "kind": workload.kind,
        "name": workload.name,
        "uid": workload.uid,
    }
