"""What is around a release: the nodes of its pods, what else fails in its namespace, and which releases to look at.

Read in a few lists, and only when it matters.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime

from pydantic import ValidationError

from kreflex import progress
from kreflex.ailments import Limits
from kreflex.causes import Around, neighbours
from kreflex.cluster import Reader
from kreflex.histories import History, histories
from kreflex.kinds import RELEASED, TOLD
from kreflex.policy import GROUP
from kreflex.records import API, TARGET, read_record
from kreflex.releases import Releases
from kreflex.remedies import noted_by
from kreflex.revisions import Release, Revision, unremembered
from kreflex.views import JSON, Pod, Ref, time_of
from kreflex.world import World


async def around(release: Release, limits: Limits, reader: Reader) -> Around:
    """Read the nodes, and the pods of the other workloads of the namespace."""
    namespace = release.workload.ref.namespace
    fleet, made, pods = await asyncio.gather(reader.fleet(), _made(namespace, reader), _others(release, reader))
    return Around({node.name: node for node in fleet}, neighbours(pods, made, limits, reader.now()))


async def _made(namespace: str, reader: Reader) -> dict[str, datetime]:
    """Tell when each ReplicaSet was made: so old is its template at least."""
    path = f"/apis/apps/v1/namespaces/{namespace}/replicasets"

    async def read() -> dict[str, datetime]:
        metas = [body["metadata"] async for body in reader.list_metadata(path)]
        return {meta["uid"]: time_of(meta["creationTimestamp"]) for meta in metas}

    # The waker tells of all that fails at once, and much of it may be in one namespace.
    return await reader.share(f"made in {namespace}", read)


async def _others(release: Release, reader: Reader) -> list[Pod]:
    own, namespace = {pod.ref.uid for pods in release.pods.values() for pod in pods}, release.workload.ref.namespace

    async def read() -> list[Pod]:
        return [pod async for pod in reader.pods(namespace)]

    pods = await reader.share(f"pods of {namespace}", read)
    return [pod for pod in pods if pod.ref.uid not in own]


async def failed_before(release: Release, revision: Revision, world: World) -> str:
    """Tell which record says that a revision failed, too, when the present one took its place; "" if none does.

    Nothing else tells that somebody has released into an outage: controllers replace first what is not available. Its
    pods that have been Ready since before say nothing against that, for they may need a dependency only to start.
    """
    ready = [pod.ready_since for pod in release.pods.get(revision.hash, ()) if pod.ready and pod.ready_since]
    ref = release.workload.ref
    path = f"/apis/{API}/namespaces/{ref.namespace}/remediations"
    chosen = f"{GROUP}/function={world.function},{TARGET}={ref.uid[:63]}"
    async for body in world.cluster.list(path, labelSelector=chosen):
        try:
            record = read_record(body)
        except ValidationError:
            # Somebody else's object; the waker tells of it.
            continue
        settled = record.status.settled_at
        # Both times are cut off to whole seconds; a record of the earlier revision can't be younger than its end.
        open_then = record.created <= release.changed_at and (settled is None or settled >= release.changed_at)
        same = record.episode.partition("/")[0] == revision.hash and record.status.verdict is None
        told_at = record.status.decided_at or record.created
        noted = [revision.healthy_until] if revision.healthy_until is not None else []
        if open_then and same and all(at <= told_at for at in (*noted, *ready)):
            return record.name
    return ""


async def worth_a_look(world: World) -> AsyncIterator[tuple[Ref, str]]:
    """Find the workloads that are not complete, or that run well while nobody has noted it; each with the reason."""
    known = {history.workload.uid: history.proven() async for history in histories(world.cluster)}
    for _, kind in RELEASED:
        async for body in world.cluster.everywhere(TOLD[kind], kind):
            meta = body["metadata"]
            ref = Ref(TOLD[kind], kind, meta["namespace"], meta["name"], meta["uid"])
            whole = {**body, "kind": kind, "apiVersion": TOLD[kind]}
            why = await _why(ref, whole, known.get(ref.uid), world)
            if why:
                yield ref, why


async def _why(ref: Ref, body: JSON, history: History | None, world: World) -> str:
    if (body.get("spec") or {}).get("replicas", 1) == 0 or "deletionTimestamp" in body["metadata"]:
        return ""
    if not progress.complete(body):
        return "its release is not complete"
    if noted_by(body["metadata"].get("annotations") or {}, world.function):
        return "its sync is suspended"
    rules = await world.releases(ref, body["metadata"].get("labels") or {})
    least = rules.healthy_for if isinstance(rules, Releases) else Releases().healthy_for
    return "nobody has noted that it is well" if unremembered(body, history, least) else ""


def seems_well(body: JSON) -> bool:
    """Tell whether a workload, as an event carries it, says nothing of a failure: its pods' own events say more.

    Anybody may send an event, so nothing is taken for granted of what it carries.
    """
    status = body.get("status")
    conditions = status.get("conditions") if isinstance(status, dict) else None
    told = [one for one in conditions if isinstance(one, dict)] if isinstance(conditions, list) else []
    failed = any(one.get("type") == "ReplicaFailure" and one.get("status") == "True" for one in told)
    return not failed and all(one.get("reason") != "ProgressDeadlineExceeded" for one in told)
