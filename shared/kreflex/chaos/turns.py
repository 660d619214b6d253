"""One experiment in a namespace at a time: a Lease there, held in the experiment's name."""

from __future__ import annotations

from datetime import datetime, timedelta

from kreflex.audit import log
from kreflex.chaos.experiments import FINAL, FINALIZER, Experiment, Experiments
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError, GoneError
from kreflex.rule import Check, Rule
from kreflex.views import JSON, moment

NAME = "kreflex-chaos"
HOLDER = "kreflex-chaos/"
_API = "coordination.k8s.io"
_OURS = Check(f"object.spec.?holderIdentity.orValue('').startsWith('{HOLDER}')", f"a Lease is held as {HOLDER}…")
RBAC = (
    Rule(_API, "leases", "create", checks=(_OURS, Check(f"object.metadata.name == '{NAME}'", f"only {NAME} is made"))),
    Rule(
        _API,
        "leases",
        "delete",
        checks=(
            Check(
                f"request.name == '{NAME}' && oldObject.spec.?holderIdentity.orValue('').startsWith('{HOLDER}')",
                f"only a Lease that {HOLDER}… holds is given back",
            ),
        ),
    ),
)


async def take(experiment: Experiment, until: datetime, reader: Reader, writer: Writer) -> str | None:
    """Take the turn of a namespace; tell in words who has it otherwise."""
    path, now = _path(experiment.namespace), reader.now()
    body = await reader.get(f"{path}/{NAME}")
    if body is not None:
        spec = body.get("spec") or {}
        holder, renewed = spec.get("holderIdentity", ""), moment(spec.get("renewTime"))
        if holder == _holder(experiment):
            return None
        seconds = int(spec.get("leaseDurationSeconds") or 0)
        if renewed is not None and now < renewed + timedelta(seconds=seconds):
            return f"{holder.removeprefix(HOLDER).rpartition('/')[0]} runs in this namespace"
        await _remove(body, path, writer)
    try:
        await writer.create(path, _lease(experiment, now, until))
    except ConflictError:
        return "another experiment has just begun in this namespace"
    return None


async def give_back(experiment: Experiment, reader: Reader, writer: Writer) -> None:
    """Let others begin."""
    path = _path(experiment.namespace)
    body = await reader.get(f"{path}/{NAME}")
    if body is not None and (body.get("spec") or {}).get("holderIdentity") == _holder(experiment):
        await _remove(body, path, writer)


async def clear(namespace: str, experiments: Experiments, reader: Reader, writer: Writer) -> None:
    """Remove the turns of experiments that are over: a write that came late, after all was given back."""
    path = f"/apis/{_API}/v1{f'/namespaces/{namespace}' if namespace else ''}/leases"
    async for body in reader.list(path, fieldSelector=f"metadata.name={NAME}"):
        holder, where = (body.get("spec") or {}).get("holderIdentity") or "", body["metadata"]["namespace"]
        name, _, uid = holder.removeprefix(HOLDER).rpartition("/")
        if not holder.startswith(HOLDER) or not name:
            continue
        try:
            found = await experiments.get(where, name)
        except ValueError as error:
            # Its Lease is over with its TTL; that of another experiment is not kept by it.
            log.warning("experiment.unreadable", experiment=f"{where}/{name}", error=str(error))
            continue
        if found is None or found.uid != uid or (found.status.phase in FINAL and FINALIZER not in found.finalizers):
            await _remove(body, _path(where), writer)


async def _remove(body: JSON, path: str, writer: Writer) -> None:
    meta = body["metadata"]
    try:
        options = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
        await writer.delete(f"{path}/{NAME}", {"preconditions": options})
    except (ConflictError, GoneError):
        return


def _path(namespace: str) -> str:
    return f"/apis/{_API}/v1/namespaces/{namespace}/leases"


def _holder(experiment: Experiment) -> str:
    return f"{HOLDER}{experiment.name}/{experiment.uid}"


def _lease(experiment: Experiment, now: datetime, until: datetime) -> JSON:
    moment_ = now.isoformat(timespec="microseconds").replace("+00:00", "Z")
    return {
        "apiVersion": f"{_API}/v1",
        "kind": "Lease",
        "metadata": {"name": NAME, "namespace": experiment.namespace},
        "spec": {
            "holderIdentity": _holder(experiment),
            "leaseDurationSeconds": max(1, round((until - now).total_seconds())),
            "acquireTime": moment_,
            "renewTime": moment_,
        },
    }
