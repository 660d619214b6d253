"""Who else is at work on a node, as other objects than the node tell. Whoever is not installed is not at work."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterable, Mapping
from datetime import datetime, timedelta

from kreflex.cluster import Reader
from kreflex.errors import OutageError
from kreflex.fleet import AT_WORK, STALE, Stop
from kreflex.nodes import Node
from kreflex.rule import Rule
from kreflex.views import JSON, time_of

RBAC = (
    Rule("apps", "daemonsets", "list", "cluster"),
    Rule("batch", "jobs", "list", "cluster"),
    Rule("config.openshift.io", "clusterversions", "list", "cluster"),
    Rule("cluster.x-k8s.io", "clusters", "get", "cluster"),
)
# https://github.com/kubereboot/kured, pkg/daemonsetlock: on its DaemonSet, whatever that is called.
LOCK = "weave.works/kured-node-lock"
# https://github.com/rancher/system-upgrade-controller, pkg/upgrade/job: on the Job that upgrades a node.
UPGRADES = "upgrade.cattle.io/node"
_LABEL_VALUE = 63
_OPENSHIFT = "machineconfiguration.openshift.io/currentConfig"
_CLUSTER = ("cluster.x-k8s.io/cluster-namespace", "cluster.x-k8s.io/cluster-name")


async def at_work(node: Node, reader: Reader, now: datetime) -> Stop | None:
    """Tell who is at work on a node or on all of them, and how we know; None if nobody is."""
    found = await asyncio.gather(
        _kured(node, reader, now), _job(node, reader), _cluster_version(node, reader), _topology(node, reader)
    )
    return next((Stop("AtWork", words, now + AT_WORK) for words in found if words), None)


async def _kured(node: Node, reader: Reader, now: datetime) -> str | None:
    async for body in _served(reader, "/apis/apps/v1/daemonsets"):
        meta = body["metadata"]
        lock = (meta.get("annotations") or {}).get(LOCK)
        if lock and _holds(node.name, lock, now):
            return f"kured is restarting it: it holds the lock of DaemonSet {meta['namespace']}/{meta['name']}"
    return None


def _holds(name: str, lock: str, now: datetime) -> bool:
    """Tell whether a node holds kured's lock; one that can't be read is anybody's."""
    try:
        read = json.loads(lock)
        locks = read.get("locks") or () if "maxOwners" in read else (read,)
        return any(one["nodeID"] == name and now < _until(one) for one in locks)
    except (ValueError, KeyError, TypeError, AttributeError):
        return True


def _until(lock: Mapping[str, object]) -> datetime:
    # In nanoseconds, and 0 for ever: as long as for kured's annotation, for a machine may never come back.
    given = timedelta(microseconds=int(str(lock.get("TTL") or 0)) / 1000)
    return time_of(str(lock["created"])) + (min(given, STALE) if given else STALE)


async def _job(node: Node, reader: Reader) -> str | None:
    if len(node.name) > _LABEL_VALUE:
        return None
    async for body in _served(reader, "/apis/batch/v1/jobs", labelSelector=f"{UPGRADES}={node.name}"):
        if (body.get("status") or {}).get("active"):
            meta = body["metadata"]
            return f"the system-upgrade-controller is upgrading it: Job {meta['namespace']}/{meta['name']} is active"
    return None


async def _cluster_version(node: Node, reader: Reader) -> str | None:
    if _OPENSHIFT not in node.annotations:
        return None
    async for body in _served(reader, "/apis/config.openshift.io/v1/clusterversions"):
        for said in _conditions(body):
            if (said.get("type"), said.get("status")) == ("Progressing", "True"):
                return f"OpenShift is being upgraded: ClusterVersion {body['metadata']['name']} is Progressing"
    return None


async def _topology(node: Node, reader: Reader) -> str | None:
    """Tell of an upgrade by a ClusterClass. A MachineDeployment that rolls out takes ill machines first by itself."""
    namespace, name = (node.annotations.get(key, "") for key in _CLUSTER)
    if not namespace or not name:
        return None
    body = await _cluster(reader, namespace, name)
    for said in _conditions(body or {}):
        reason = str(said.get("reason", ""))
        if (said.get("type"), said.get("status")) == ("TopologyReconciled", "False") and "Upgrad" in reason:
            return f"Cluster {namespace}/{name} is being upgraded: TopologyReconciled is False ({reason})"
    return None


async def _cluster(reader: Reader, namespace: str, name: str) -> JSON | None:
    """Read a Cluster in the version that is served here; the Cluster API may as well be served by another cluster."""
    for version in ("v1beta2", "v1beta1"):
        try:
            return await reader.get(f"/apis/cluster.x-k8s.io/{version}/namespaces/{namespace}/clusters/{name}")
        except OutageError as error:
            _unless_missing(error)
    return None


def _conditions(body: JSON) -> Iterable[JSON]:
    status = body.get("status") or {}
    return (*(status.get("conditions") or ()), *((status.get("v1beta2") or {}).get("conditions") or ()))


async def _served(reader: Reader, path: str, **query: str) -> AsyncIterator[JSON]:
    try:
        async for body in reader.list(path, **query):
            yield body
    except OutageError as error:
        _unless_missing(error)


def _unless_missing(error: OutageError) -> None:
    """Raise anything but the answer that nothing of this kind is served."""
    if error.status != 404:
        raise error
