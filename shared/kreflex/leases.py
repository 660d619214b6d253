"""The Lease of a node, by which all who remediate nodes keep out of each other's way.

Names, times and what counts as held are those of https://github.com/medik8s/common, pkg/lease, so that Node Healthcheck
and Node Maintenance understand ours as we understand theirs.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError, GoneError, OutageError
from kreflex.rule import Check, Rule
from kreflex.views import JSON, Ref, moment

NAMESPACE = "medik8s-leases"
HOLDER = "kreflex/"
_API = "coordination.k8s.io"
_PATH = f"/apis/{_API}/v1/namespaces/{NAMESPACE}/leases"
_TRIES = 3
# Whose clock goes ahead of the API server's by more than this is not believed to hold a Lease from the future.
_AHEAD = timedelta(minutes=1)
_MISSING = (
    f"who is at work on a node is told by a Lease in namespace {NAMESPACE}, which is not there:"
    f" kubectl create namespace {NAMESPACE}, and apply rbac.yaml of this function again"
)
_HOLDS = Check(
    f"object.spec.?holderIdentity.orValue('').startsWith('{HOLDER}')", f"a Lease is held in the name of {HOLDER}…"
)
RBAC = (
    Rule(_API, "leases", "get", "leases"),
    Rule(_API, "leases", "create", "leases", checks=(_HOLDS,)),
    Rule(_API, "leases", "update", "leases", fields=("metadata.ownerReferences", "spec"), checks=(_HOLDS,)),
    Rule(
        _API,
        "leases",
        "delete",
        "leases",
        checks=(
            Check(
                f"oldObject.spec.?holderIdentity.orValue('').startsWith('{HOLDER}')",
                f"only a Lease that {HOLDER}… holds is given back",
            ),
        ),
    ),
)


def lease_of(node: str) -> str:
    """Name the Lease of a node."""
    return f"node-{node}".lower()


async def taken(reader: Reader, name: str, holder: str) -> str | None:
    """Tell in words who else holds a Lease now, without a write; None if nobody does, or nobody can tell."""
    try:
        body = await reader.get(f"{_PATH}/{name}")
    except OutageError as error:
        if error.status != 403:
            raise
        # Whoever takes it is told what is missing.
        return None
    return _by_another((body or {}).get("spec") or {}, name, holder, reader.now())


def _by_another(spec: JSON, name: str, holder: str, now: datetime) -> str | None:
    until = _valid_until(spec, now)
    if until is None or spec.get("holderIdentity") == holder:
        return None
    who = spec.get("holderIdentity") or "somebody"
    return f"{who} is at work on it until {until:%H:%M:%S} UTC, by Lease {NAMESPACE}/{name}"


class Leases:
    """Takes, renews and gives back the Leases of nodes."""

    def __init__(self, reader: Reader, writer: Writer) -> None:
        self._reader = reader
        self._writer = writer

    async def hold(self, name: str, holder: str, duration: timedelta, node: Ref | None = None) -> str | None:
        """Take a Lease, or renew our own; tell in words why it can't be had. With its node, it goes when that goes."""
        for _ in range(_TRIES):
            try:
                return await self._hold(name, holder, duration, node)
            except ConflictError:
                # Somebody was quicker: look who.
                continue
            except GoneError as error:
                # Else it was given back between our reading and our writing.
                if f'namespaces "{NAMESPACE}" not found' in str(error):
                    return _MISSING
            except OutageError as error:
                if error.status != 403:
                    raise
                return f"the Leases in namespace {NAMESPACE} are not for us, apply rbac.yaml of this function: {error}"
        return f"Lease {NAMESPACE}/{name} is taken by many at this moment"

    async def _hold(self, name: str, holder: str, duration: timedelta, node: Ref | None) -> str | None:
        now, body = self._reader.now(), await self._reader.get(f"{_PATH}/{name}")
        if body is None:
            spec = {"leaseTransitions": 0, **_held(holder, duration, now, now)}
            await self._writer.create(_PATH, _lease({"name": name, "namespace": NAMESPACE}, spec, node))
            return None
        spec = body.get("spec") or {}
        until = _valid_until(spec, now)
        if spec.get("holderIdentity") != holder:
            if until is not None:
                return _by_another(spec, name, holder, now)
            spec = {**spec, "leaseTransitions": spec.get("leaseTransitions", 0) + 1, "acquireTime": None}
        elif until is not None and until >= now + duration:
            return None
        acquired = moment(spec.get("acquireTime")) or now
        spec = {**spec, **_held(holder, duration, acquired, now)}
        await self._writer.replace(f"{_PATH}/{name}", _lease(body["metadata"], spec, node))
        return None

    async def release(self, name: str, holder: str) -> None:
        """Give a Lease back, if it is ours; it is deleted, as medik8s does."""
        for _ in range(_TRIES):
            try:
                return await self._release(f"{_PATH}/{name}", holder)
            except GoneError:
                return None
            except ConflictError:
                continue
        return None

    async def _release(self, path: str, holder: str) -> None:
        body = await self._reader.get(path)
        if body is None or (body.get("spec") or {}).get("holderIdentity") != holder:
            return
        meta = body["metadata"]
        preconditions = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
        await self._writer.delete(path, {"preconditions": preconditions})


def _valid_until(spec: JSON, now: datetime) -> datetime | None:
    """Tell until when somebody holds a Lease; None for one that is over, or never was held."""
    renewed, seconds = moment(spec.get("renewTime")), spec.get("leaseDurationSeconds")
    if renewed is None or seconds is None or renewed > now + _AHEAD:
        return None
    until = renewed + timedelta(seconds=seconds)
    return until if until >= now else None


def _held(holder: str, duration: timedelta, acquired: datetime, now: datetime) -> JSON:
    return {
        "holderIdentity": holder,
        "leaseDurationSeconds": max(1, round(duration.total_seconds())),
        "acquireTime": _micro(acquired),
        "renewTime": _micro(now),
    }


def _micro(time: datetime) -> str:
    return time.astimezone(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")


def _lease(meta: JSON, spec: JSON, node: Ref | None) -> JSON:
    owners: list[dict[str, Any]] = []
    if node is not None:
        owners = [{"apiVersion": node.api_version, "kind": node.kind, "name": node.name, "uid": node.uid}]
    meta = {**meta, "ownerReferences": owners} if owners else meta
    return {"apiVersion": f"{_API}/v1", "kind": "Lease", "metadata": meta, "spec": spec}
