"""The Kubernetes API as raw JSON: a reader for decisions, a writer for the core, one transport below both.

Nothing of the `kubernetes` package is loaded here: its generated models would double the start time of a function that
is started for one event (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
import math
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import aiohttp

from kreflex import figures, trace, wire
from kreflex.clock import ServerClock
from kreflex.credentials import Credentials
from kreflex.errors import (
    ApiError,
    ConflictError,
    DeniedError,
    GoneError,
    OutageError,
    ThrottledError,
    UnavailableError,
)
from kreflex.kinds import path_in, path_of
from kreflex.nodes import Node, node_view, read_nodes
from kreflex.views import JSON, Pod, Ref, Workload, moment, pod_view, workload_view

T = TypeVar("T")

# How the API server tells that a ValidatingAdmissionPolicy, or somebody's webhook, said no
# (kubernetes, apiserver/pkg/admission/plugin).
_DENIED = ("denied request: ", "denied the request")
_ERRORS: Mapping[int, type[ApiError]] = {404: GoneError, 409: ConflictError, 429: ThrottledError}
_TIMEOUT = aiohttp.ClientTimeout(total=10, sock_connect=3)
TEMPLATE_HASH = "pod-template-hash"
_PAGE = 500
# To pack and unpack megabytes takes longer than to send them through a cluster's network.
_OF_NODES = {"Accept": f"{wire.MEDIA_TYPE},application/json", "Accept-Encoding": "identity"}
# https://kubernetes.io/docs/reference/using-api/api-concepts/#metadata-only-fetches: without a fallback, so that
# who can't give just the metadata gives nothing.
_OF_METADATA = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}
_GENERATIONS = 5
_SHARE_SECONDS = 1.0


@dataclass
class Contact:
    """When the API server has answered last, by the local monotonic clock, and whether the last call went wrong."""

    answered: float = -math.inf
    broken: bool = False


class Transport:
    """Sends requests with the caller's credentials; answers are JSON, failures are ours."""

    def __init__(self, credentials: Credentials) -> None:
        self._credentials = credentials
        self._session: aiohttp.ClientSession | None = None
        self.clock = ServerClock()
        self.contact = Contact()

    async def send(
        self,
        method: str,
        path: str,
        body: JSON | None = None,
        *,
        query: Mapping[str, str] | None = None,
        kind: str = "json",
        nodes: bool = False,
        metadata: bool = False,
        operations: list[JSON] | None = None,
    ) -> JSON:
        """Send one request; raises UnavailableError when nothing comes back, ApiError when the answer is no.

        A page of `nodes` is read as it arrives, and only what `node_view` looks at. Of a list of `metadata` nothing
        else is sent. `operations` are a JSON patch.
        """
        special = {**(_OF_NODES if nodes else {}), **(_OF_METADATA if metadata else {})}
        headers = {"Accept": "application/json", **await self._authorization(), **special}
        data = None
        given = body if operations is None else operations
        if given is not None:
            headers["Content-Type"] = f"application/{kind}"
            data = json.dumps(given, separators=(",", ":")).encode()
        sent, begun = self.clock.tick(), time.monotonic()
        try:
            with trace.call(method, path) as span:
                async with self._open().request(method, path, params=query, data=data, headers=headers) as answer:
                    packed = answer.status < 400 and answer.content_type == wire.MEDIA_TYPE
                    page = await wire.read_page(answer.content) if packed else None
                    content = await answer.read()
                span.tell({"http.response.status_code": answer.status})
        except (EOFError, ValueError) as error:
            self._note(method, 0, begun)
            raise UnavailableError(f"{method} {path} was answered with something that can't be read") from error
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._note(method, 0, begun)
            raise UnavailableError(f"the API server did not answer {method} {path}: {error!r}") from error
        self._note(method, answer.status, begun)
        if answer.status < 500:
            # Beyond that it may be a load balancer's page, with a time of its own.
            self.clock.hear(answer.headers.get("Date"), sent)
        if answer.status >= 400:
            raise _refusal(method, path, answer.status, content)
        return page or _parse(method, path, content, read_nodes if nodes else json.loads)

    def _note(self, method: str, status: int, begun: float) -> None:
        now = time.monotonic()
        # 401: our own token is no good. Other refusals are about one object.
        self.contact.broken = status in {0, 401} or status >= 500
        if not self.contact.broken:
            self.contact.answered = now
        figures.API_REQUESTS.add(method, str(status) if status else "none")
        figures.API_SECONDS.observe(now - begun, method)

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _open(self) -> aiohttp.ClientSession:
        # Not in __init__: the session belongs to the running loop, and an idle function needs none.
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=_tls(self._credentials), limit=64, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(self._credentials.host, connector=connector, timeout=_TIMEOUT)
        return self._session

    async def _authorization(self) -> dict[str, str]:
        # The hook may read a file or run an exec plug-in, but only when the token has expired.
        token = self._credentials.get_api_key_with_prefix("BearerToken", "authorization")
        return {"Authorization": token} if token else {}


def _tls(credentials: Credentials) -> ssl.SSLContext | bool:
    if not credentials.host.startswith("https"):
        return False
    context = ssl.create_default_context(cafile=credentials.ssl_ca_cert)
    if not credentials.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if credentials.cert_file:
        context.load_cert_chain(credentials.cert_file, credentials.key_file)
    return context


def _parse(method: str, path: str, content: bytes, read: Callable[[bytes], Any]) -> JSON:
    try:
        body: Any = read(content)
    except ValueError as error:
        raise UnavailableError(f"{method} {path} was answered with something that can't be read") from error
    if not isinstance(body, dict):
        raise UnavailableError(f"{method} {path} was answered with something that is no object")
    return body


def _refusal(method: str, path: str, status: int, content: bytes) -> ApiError | UnavailableError:
    try:
        body = json.loads(content)
        details = body.get("details") or {}
        causes = tuple(str(cause.get("reason", "")) for cause in details.get("causes") or ())
        message, reason = str(body.get("message", "")), str(body.get("reason", ""))
    except (ValueError, AttributeError):
        message, reason, causes = content[:200].decode(errors="replace"), "", ()
    text = f"{method} {path}: {status} {' '.join(message.split())}"
    if any(words in message for words in _DENIED):
        # Before its code is looked at, for a webhook gives any: KubeVirt's says 429 while it moves a machine away.
        return DeniedError(text, status, reason, causes)
    # A 500 of the eviction API is an answer ("more than one PodDisruptionBudget"), not an outage.
    if status in {502, 503, 504} or (status == 429 and "DisruptionBudget" not in causes):
        return UnavailableError(text)
    if status == 404 and reason != "NotFound":
        # No word about the object: nobody may conclude that it is gone.
        return OutageError(f"{text}: the API server does not serve this resource now", status, reason, causes)
    # 403: that's what it says for a moment when it starts, too, before it has read its roles.
    # 410: a list took so long that the place where it was has been forgotten.
    kind = OutageError if status in {401, 403, 410} or status >= 500 else _ERRORS.get(status, ApiError)
    return kind(text, status, reason, causes)


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _failed(reading: asyncio.Task[Any]) -> bool:
    return reading.done() and (reading.cancelled() or reading.exception() is not None)


def deployment_path(pod: Pod) -> str | None:
    """Tell the path of the Deployment that a pod's ReplicaSet is named after; None if it is named in another way.

    A Deployment calls its ReplicaSets `<Deployment>-<template hash>`, and labels their pods with that hash
    (kubernetes, pkg/controller/deployment/sync.go).
    """
    made, template = pod.controller, pod.labels.get(TEMPLATE_HASH)
    if made is None or not template or (made.api_version, made.kind) != ("apps/v1", "ReplicaSet"):
        return None
    name = made.name.removesuffix(f"-{template}")
    return None if name in {"", made.name} else f"/apis/apps/v1/namespaces/{made.namespace}/deployments/{name}"


def _selects(workload: JSON, pod: Pod) -> bool:
    """Tell whether a workload's selector, in its plain form, selects a pod."""
    selector = (workload.get("spec") or {}).get("selector") or {}
    labels = selector.get("matchLabels") or {}
    return bool(labels) and not selector.get("matchExpressions") and labels.items() <= pod.labels.items()


class Reader:
    """Reads the cluster. Decisions get this and nothing that writes.

    With `namespaces`, "all pods" are those of these namespaces: its account may see no others then.
    """

    def __init__(self, transport: Transport, namespaces: tuple[str, ...] = ()) -> None:
        self._transport = transport
        self._namespaces = namespaces
        self._shared: dict[str, tuple[float, asyncio.Task[Any]]] = {}

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The only namespaces that are looked after; empty for all."""
        return self._namespaces

    def now(self) -> datetime:
        """Tell the API server's time."""
        return self._transport.clock.now()

    async def get(self, path: str) -> JSON | None:
        """Read one object; None if it does not exist."""
        try:
            return await self._transport.send("GET", path)
        except GoneError:
            return None

    async def list(self, path: str, **query: str) -> AsyncIterator[JSON]:
        """Read a collection page by page, 500 objects each; nothing keeps more than one page in memory."""
        async for item in self._items(path, query):
            yield item

    async def list_metadata(self, path: str, **query: str) -> AsyncIterator[JSON]:
        """Read the metadata of a collection; what is in the objects never comes into this process."""
        async for item in self._items(path, query, metadata=True):
            yield item

    async def list_served(self, path: str, **query: str) -> AsyncIterator[JSON]:
        """Read a collection as `list` does; what no CRD has made known to the API server has no objects."""
        try:
            async for item in self._items(path, query):
                yield item
        except OutageError as error:
            if error.status != 404:
                raise

    async def everywhere(self, api_version: str, kind: str) -> AsyncIterator[JSON]:
        """Read all objects of a kind that we know, in the namespaces that are looked after."""
        for namespace in self._namespaces or ("",):
            path = path_in(api_version, kind, namespace)
            if path is not None:
                async for item in self.list_served(path):
                    yield item

    async def _items(
        self, path: str, query: dict[str, str], *, nodes: bool = False, metadata: bool = False
    ) -> AsyncIterator[JSON]:
        query = {"limit": str(_PAGE), **query}
        while True:
            page = await self._transport.send("GET", path, query=query, nodes=nodes, metadata=metadata)
            for item in page.get("items") or ():
                yield item
            query["continue"] = page["metadata"].get("continue", "")
            if not query["continue"]:
                return

    async def share(self, key: str, read: Callable[[], Awaitable[T]]) -> T:
        """Let the signals of one burst share a read: the answer may be up to a second old."""
        now = time.monotonic()
        found = self._shared.get(key)
        if found is None or now - found[0] > _SHARE_SECONDS or _failed(found[1]):
            self._shared = {k: v for k, v in self._shared.items() if now - v[0] <= _SHARE_SECONDS}
            found = self._shared[key] = (now, asyncio.ensure_future(read()))
        # Shielded: one caller that is cancelled must not cancel the read of the others.
        answer: T = await asyncio.shield(found[1])
        return answer

    async def pod(self, namespace: str, name: str) -> Pod | None:
        """Read a pod, always afresh: what is acted on is what was looked at."""
        body = await self.get(f"/api/v1/namespaces/{namespace}/pods/{name}")
        return None if body is None else pod_view(body)

    async def pods(self, namespace: str = "", **query: str) -> AsyncIterator[Pod]:
        """Read the pods of a namespace, or of all."""
        wanted = (namespace,) if namespace else self._namespaces
        paths = [f"/api/v1/namespaces/{one}/pods" for one in wanted] or ["/api/v1/pods"]
        for path in paths:
            async for body in self.list(path, **query):
                yield pod_view(body)

    async def node(self, name: str) -> Node | None:
        """Read a node by its name, or by an address of it: always afresh."""
        body = await self.get(f"/api/v1/nodes/{name}")
        if body is not None:
            return node_view(body)
        return None if not _is_address(name) else await self._node_at(name)

    async def _node_at(self, address: str) -> Node | None:
        async for node in self.nodes():
            if address in node.addresses:
                return node
        return None

    async def nodes(self, **query: str) -> AsyncIterator[Node]:
        """Read all nodes, slimly: what nobody looks at is left in the bytes."""
        async for body in self._items("/api/v1/nodes", query, nodes=True):
            yield node_view(body)

    async def fleet(self) -> tuple[Node, ...]:
        """Read all nodes, once for all the signals of a burst: the answer may be up to a second old."""

        async def read() -> tuple[Node, ...]:
            return tuple([node async for node in self.nodes()])

        return await self.share("nodes", read)

    async def pods_on(self, node: str) -> AsyncIterator[Pod]:
        """Read the pods of a node, of all namespaces."""
        async for body in self.list("/api/v1/pods", fieldSelector=f"spec.nodeName={node}"):
            yield pod_view(body)

    async def heard(self, node: str) -> datetime | None:
        """Tell when a node's kubelet has last renewed its Lease; None if it has none."""
        lease = await self.get(f"/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/{node}")
        return moment((lease.get("spec") or {}).get("renewTime")) if lease else None

    async def workload(self, ref: Ref) -> Workload | None:
        """Read what a reference names; None if it is gone, was replaced, or is of a kind that we don't know."""
        path = path_of(ref)
        body = await self.share(path, lambda: self.get(path)) if path else None
        view = None if body is None else workload_view(body)
        return view if view is not None and view.ref.uid == ref.uid else None

    async def is_there(self, ref: Ref) -> bool:
        """Tell whether an object of a kind that we know is there, and is still the same."""
        path = path_of(ref)
        body = await self.get(path) if path else None
        return body is not None and body["metadata"]["uid"] == ref.uid

    def knows(self, ref: Ref) -> bool:
        """Tell whether `workload` can read objects of this kind."""
        return path_of(ref) is not None

    async def top_owner(self, pod: Pod) -> Workload | None:
        """Follow the controllers of a pod to the top; None for a pod that nothing controls.

        A controller of a kind that we don't know ends the way: it is named, without replicas.
        """
        found = await self._deployment(pod)
        ref = pod.controller if found is None else found.controller
        # Bounded: nothing keeps two objects from naming each other as controller.
        for _ in range(_GENERATIONS):
            if ref is None:
                break
            found = await self.workload(ref) or Workload(ref, {}, None, None, None)
            ref = found.controller
        return found

    async def _deployment(self, pod: Pod) -> Workload | None:
        """Read a pod's Deployment without the ReplicaSet between them, if name, hash and selector leave no doubt.

        One read less of eight (docs/adr/0015). The Deployment itself is read: it may have opted out just now.
        """
        path = deployment_path(pod)
        body = await self.share(path, lambda: self.get(path)) if path else None
        return workload_view(body) if body is not None and _selects(body, pod) else None


# Until when who acts has the record for himself: a process that was stopped in the middle must not go on after that.
ACT_UNTIL: ContextVar[datetime | None] = ContextVar("ACT_UNTIL", default=None)


@contextmanager
def acting_until(deadline: datetime | None) -> Iterator[None]:
    """Let nothing be written by what runs in this context after the deadline, by the API server's time."""
    before = ACT_UNTIL.set(deadline)
    try:
        yield
    finally:
        ACT_UNTIL.reset(before)


class Writer:
    """Changes the cluster: what the core does for a function."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create(self, path: str, body: JSON) -> JSON:
        """Create an object; raises ConflictError if it exists."""
        return await self._send("POST", path, body)

    async def replace(self, path: str, body: JSON) -> JSON:
        """Replace an object as it was read; raises ConflictError if somebody changed it since."""
        return await self._send("PUT", path, body)

    async def merge(self, path: str, body: JSON) -> JSON:
        """Merge fields into an object; with `metadata.resourceVersion` only into the one that was read."""
        return await self._send("PATCH", path, body, kind="merge-patch+json")

    async def patch(self, path: str, operations: list[JSON]) -> JSON:
        """Change an object by a JSON patch; one that sets `/metadata/resourceVersion` is for what was read only."""
        return await self._send("PATCH", path, None, kind="json-patch+json", operations=operations)

    async def delete(self, path: str, body: JSON) -> None:
        """Delete an object under the preconditions that `body` (DeleteOptions) states."""
        await self._send("DELETE", path, body)

    async def _send(self, method: str, path: str, body: JSON | None, **options: Any) -> JSON:
        until = ACT_UNTIL.get()
        if until is not None and self._transport.clock.now() >= until:
            raise UnavailableError(
                f"{method} {path} was left undone: the attempt took too long, others may be at it now"
            )
        return await self._transport.send(method, path, body, **options)
