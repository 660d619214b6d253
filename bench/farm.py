"""What the benchmarks of nodes run on: node-replacer as a process, its policy, events of nodes, and its requests."""

import asyncio
import contextlib
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

import aiohttp

from bench import rig
from bench.rig import GROUP, Json
from lab import audit, callers, claims, functions, manifests, nodes
from lab.api import Refused, eventually
from lab.cluster import ControlPlane, Options
from lab.processes import Child
from lab.toolchain import Toolchain

FUNCTION, FOLDER = "node-replacer", "node_replacer"
ACCOUNT = f"system:serviceaccount:{functions.NAMESPACE}:{FUNCTION}"
WAKER = f"system:serviceaccount:{functions.NAMESPACE}:{functions.WAKER}"
RECORDS = f"{GROUP}/namespaces/{functions.NAMESPACE}/remediations"
# The core shares what it has read for a second: one decision must not live on another's reads.
FORGOTTEN = 1.2
_ILL = [{"type": "Ready", "status": status, "for": "1s"} for status in ("False", "Unknown")]
_LIMITS = {"cooldown": "0s", "rates": [{"count": 1000, "window": "1h"}], "maxInFlight": 5}
# Of our Triggers: backoffDelay PT1S, exponential.
_RETRIES = (1, 2, 4, 8)
_WRITES = {"create", "update", "patch", "delete"}
_ASKS = "tokenreviews"


@asynccontextmanager
async def farm(home: Path, count: int) -> AsyncIterator[ControlPlane]:
    """A control plane with kwok, room for so many nodes, NodeClaims that nobody looks after, and no policy yet."""
    options = Options(audit_reads=True, node_grace_seconds=nodes.grace_seconds(count))
    async with ControlPlane(home, options) as plane:
        await nodes.start(plane, 0, room=count)
        await functions.install(plane, [FOLDER, functions.WAKER])
        await manifests.apply(plane.api, [claims.CRD])
        served = (f"{GROUP}/remediations", f"{GROUP}/clusterremediationpolicies", claims.CLAIMS)
        await eventually(lambda: _answered(plane, served), "the custom resources")
        for one in (await plane.api.get(f"{GROUP}/clusterremediationpolicies"))["items"]:
            await plane.api.delete(f"{GROUP}/clusterremediationpolicies/{one['metadata']['name']}")
        yield plane


async def _answered(plane: ControlPlane, paths: Iterable[str]) -> bool:
    # A CRD is established a moment before its objects can be had.
    with contextlib.suppress(Refused):
        for path in paths:
            await plane.api.get(path)
        return True
    return False


async def policy(plane: ControlPlane, mode: str, **upkeep: Any) -> None:
    """Set what is allowed with nodes; it holds when this returns."""
    spec = {"functions": [FUNCTION], "mode": mode, "owners": ["Node"], "proof": "1s", "proveWithin": "10m"}
    body = {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "ClusterRemediationPolicy",
        "metadata": {"name": "nodes"},
        "spec": {**spec, "limits": _LIMITS, "nodes": {"conditions": _ILL, **upkeep}},
    }
    await plane.api.apply(f"{GROUP}/clusterremediationpolicies/nodes", body)
    await asyncio.sleep(FORGOTTEN)


async def start(plane: ControlPlane, port: int) -> tuple[Child, str]:
    """Start node-replacer, which asks its callers who they are; its process and its URL."""
    url = await functions.start(plane, FOLDER, port, rig.callers(plane))
    return plane.children[FUNCTION], url


async def start_waker(plane: ControlPlane, port: int, url: str) -> tuple[Child, str]:
    """Start the waker, which wakes node-replacer; its process and its URL."""
    waker = await functions.start(plane, functions.WAKER, port, {"FUNCTIONS": f"{FUNCTION}={url}/"})
    return plane.children[functions.WAKER], waker


@dataclass(frozen=True)
class Call:
    """One call: when it began and ended by the wall clock, and what it was answered."""

    begun: float
    ended: float
    status: int
    text: str

    @property
    def seconds(self) -> float:
        """How long it took."""
        return self.ended - self.begun


class Sender:
    """Somebody who may call, over connections that stay open."""

    def __init__(self, plane: ControlPlane) -> None:
        limit = aiohttp.ClientTimeout(total=120)
        self._client = aiohttp.ClientSession(headers=callers.headers(plane), timeout=limit)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.close()

    async def tell(self, url: str, body: Json, kind: str = "Node") -> Call:
        """Tell what an ApiServerSource tells of a node, or of a Remediation, that has changed."""
        told = {"apiVersion": "v1", "kind": kind, **body}
        return await self._send(url, "dev.knative.apiserver.resource.update", json.dumps(told))

    async def tick(self, url: str) -> Call:
        """Tell what a PingSource tells each minute."""
        return await self._send(url, "dev.knative.sources.ping", "{}")

    async def _send(self, url: str, kind: str, body: str) -> Call:
        headers = {
            "ce-specversion": "1.0",
            "ce-id": str(uuid.uuid4()),
            "ce-type": kind,
            "ce-source": "https://127.0.0.1",
            "ce-time": datetime.now(UTC).isoformat(),
            "content-type": "application/json",
        }
        begun = time.time()
        for pause in (*_RETRIES, None):
            async with self._client.post(url, data=body, headers=headers) as answer:
                text = await answer.text()
                if answer.status != 503 or pause is None:
                    return Call(begun, time.time(), answer.status, text)
            await asyncio.sleep(pause)
        raise AssertionError("the last try has no pause")


async def kubectl(plane: ControlPlane, *arguments: str) -> Call:
    """Run kubectl as the administrator, its output thrown away and its discovery cached; how long it took."""
    program = (await asyncio.to_thread(Toolchain().ensure, ["kubectl"]))["kubectl"]
    cache = f"--cache-dir={plane.home.data / 'kubectl'}"
    begun = time.time()
    process = await asyncio.create_subprocess_exec(
        program,
        f"--kubeconfig={plane.kubeconfig}",
        cache,
        *arguments,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    _, said = await process.communicate()
    if process.returncode:
        raise RuntimeError(f"kubectl {' '.join(arguments)}: {said.decode(errors='replace')}")
    return Call(begun, time.time(), 0, said.decode(errors="replace"))


async def records(plane: ControlPlane) -> list[Json]:
    """Read the records of all nodes."""
    items: list[Json] = (await plane.api.get(RECORDS))["items"]
    return items


async def forget(plane: ControlPlane) -> None:
    """Delete all records of nodes, so that the next event opens a new one."""
    for record in await records(plane):
        await plane.api.delete(f"{RECORDS}/{record['metadata']['name']}")


@dataclass(frozen=True)
class Asked:
    """What was asked of the API server within a time, by one account."""

    entries: tuple[Json, ...]

    @property
    def calls(self) -> int:
        """All requests."""
        return len(self.entries)

    @property
    def writes(self) -> int:
        """Requests that write; a question whose answer is made for it is none."""
        return len(self.written)

    @property
    def written(self) -> list[str]:
        """What kind of object each of them was about."""
        return [_resource(e) for e in self.entries if e["verb"] in _WRITES and _resource(e) != _ASKS]

    def lists(self, resource: str) -> int:
        """How often a kind was listed in all namespaces, or some of it; the pages of one list are one."""
        return sum("continue=" not in entry["requestURI"] for entry in self._lists(resource))

    def pages(self, resource: str) -> int:
        """In how many pages."""
        return len(self._lists(resource))

    @property
    def whole_pods(self) -> int:
        """Lists of pods that are not of one node."""
        return sum("spec.nodeName" not in entry["requestURI"] for entry in self._lists("pods"))

    @property
    def names(self) -> list[str]:
        """Each request in a word or two, in the order of their arrival."""
        return [f"{entry['verb']} {_resource(entry)}" for entry in self.entries]

    def _lists(self, resource: str) -> list[Json]:
        return [entry for entry in self.entries if entry["verb"] == "list" and _resource(entry) == resource]


def _resource(entry: Json) -> str:
    meant = entry.get("objectRef") or {}
    return "/".join(filter(None, (meant.get("resource"), meant.get("subresource")))) or str(entry["requestURI"])


def arrival(entry: Json) -> float:
    """When the API server received a request, by the wall clock."""
    return datetime.fromisoformat(entry["requestReceivedTimestamp"]).timestamp()


def asked(plane: ControlPlane, begun: float, ended: float, account: str = ACCOUNT) -> Asked:
    """Tell from the audit log what an account asked for within a time."""
    entries = (e for e in audit.entries(plane.audit_log) if e["user"]["username"] == account)
    return Asked(tuple(sorted((e for e in entries if begun <= arrival(e) <= ended), key=arrival)))
