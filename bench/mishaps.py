"""What may happen to the cluster itself in the middle of a remediation, and how it is mended a moment later."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

from bench import rig
from lab import functions, manifests, processes
from lab.api import Refused
from lab.cluster import ControlPlane
from lab.errors import LabError
from lab.paths import REPOSITORY

T = TypeVar("T")
LEDGER = f"/api/v1/namespaces/{functions.NAMESPACE}/configmaps/kreflex-ledger"
_RECORDS = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/remediations.kreflex.dev"


@dataclass(frozen=True)
class Mishap:
    """What goes wrong, and who mends it `seconds` later; both are told the namespace of the remediation."""

    name: str
    happens: Callable[[ControlPlane, str], Awaitable[object]]
    mended: Callable[[ControlPlane, str], Awaitable[object]]
    seconds: float = 2.0
    forgets: bool = False
    """Whether the ledger has lost entries by then."""
    orphans: bool = False
    """Whether a remediation that was begun has no record any more; what it did is done all the same."""


async def patiently(work: Callable[[], Awaitable[T]], patience: float = 60.0) -> T:
    """Do something as soon as the API server lets us."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + patience
    while True:
        try:
            return await work()
        except (LabError, aiohttp.ClientError, TimeoutError, OSError) as error:
            if loop.time() > limit or (isinstance(error, Refused) and error.status in {400, 422}):
                raise
            await asyncio.sleep(0.3)


async def _server_dies(plane: ControlPlane, _: str) -> None:
    server = plane.children["kube-apiserver"]
    server.kill()
    await server.ended()


async def _server_starts(plane: ControlPlane, _: str) -> None:
    old = plane.children["kube-apiserver"]
    new = plane.start_child(old.name, old.command, url=f"{plane.url}/readyz")
    await new.ready(processes.answers(f"{plane.url}/readyz", processes.trusting(plane.authority)), 120)


async def _store_stops(plane: ControlPlane, _: str) -> None:
    plane.children["etcd"].pause()


async def _store_goes_on(plane: ControlPlane, _: str) -> None:
    plane.children["etcd"].resume()


async def _ledger_is_deleted(plane: ControlPlane, _: str) -> None:
    await plane.api.delete(LEDGER)


async def _ledger_is_applied(plane: ControlPlane, _: str) -> None:
    bodies = manifests.read(REPOSITORY / "knative" / "base" / "ledger.yaml")
    await manifests.apply(plane.api, bodies, functions.NAMESPACE)


async def _ledger_is_rubbish(plane: ControlPlane, _: str) -> None:
    await plane.api.patch(LEDGER, {"data": {"entries": '[{"uid": 1}, "rubbish'}})


async def _ledger_is_emptied(plane: ControlPlane, _: str) -> None:
    await plane.api.patch(LEDGER, {"data": {"entries": "[]"}})


async def _policy_breaks(plane: ControlPlane, where: str) -> None:
    # The API server's pattern does not know how long a duration may be.
    spec = {"limits": {"storm": {"faults": 100, "cooldown": "99999999999h"}}}
    await plane.api.patch(f"{rig.GROUP}/clusterremediationpolicies/{where}", {"spec": spec})


async def _policy_is_mended(plane: ControlPlane, where: str) -> None:
    path = f"{rig.GROUP}/clusterremediationpolicies/{where}"
    await plane.api.patch(path, {"spec": {"limits": {"storm": None}}})


async def _records_are_not_served(plane: ControlPlane, _: str) -> None:
    await _serve_records(plane, served=False)


async def _records_are_served(plane: ControlPlane, _: str) -> None:
    await _serve_records(plane, served=True)


async def _serve_records(plane: ControlPlane, *, served: bool) -> None:
    crd: dict[str, Any] = await plane.api.get(_RECORDS)
    versions = [{**version, "served": served} for version in crd["spec"]["versions"]]
    await plane.api.patch(_RECORDS, {"spec": {"versions": versions}})


async def _records_are_deleted(plane: ControlPlane, where: str) -> None:
    for record in await rig.records(plane, where):
        await plane.api.delete(f"{rig.GROUP}/namespaces/{where}/remediations/{record['metadata']['name']}")


async def _nothing(_: ControlPlane, __: str) -> None:
    return


# In the order of the steps at which they hurt most: see `bench.faults.MISHAP_STEPS`.
MISHAPS = (
    Mishap("policy made invalid", _policy_breaks, _policy_is_mended),
    Mishap("ledger deleted", _ledger_is_deleted, _ledger_is_applied, forgets=True),
    Mishap("ledger filled with rubbish", _ledger_is_rubbish, _ledger_is_emptied, forgets=True),
    Mishap("etcd stopped", _store_stops, _store_goes_on, seconds=4.0),
    Mishap("API server restarted", _server_dies, _server_starts),
    Mishap("record deleted", _records_are_deleted, _nothing, seconds=0.0, orphans=True),
    Mishap("records not served", _records_are_not_served, _records_are_served, seconds=4.0),
    # Longer than a function waits for an answer.
    Mishap("etcd stopped for long", _store_stops, _store_goes_on, seconds=13.0),
)
