"""The Kubernetes API as raw JSON: a reader for decisions, a writer for the core, one transport below both.

Credentials, kubeconfig and exec plug-ins are the `kubernetes` package's; its generated models are never loaded, because
they would double the start time of a function that is started for one event (docs/adr/0002).
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

import aiohttp
from kubernetes import config as credentials
from kubernetes.client.configuration import Configuration

from kreflex import figures, trace
from kreflex.clock import ServerClock
from kreflex.errors import (
    ApiError,
    ConflictError,
    GoneError,
    OutageError,
    SettingsError,
    ThrottledError,
    UnavailableError,
)
from kreflex.rule import Rule
from kreflex.views import JSON, Pod, Ref, Workload, pod_view, workload_view

T = TypeVar("T")

_PLURALS = {
    ("apps", "Deployment"): "deployments",
    ("apps", "ReplicaSet"): "replicasets",
    ("apps", "StatefulSet"): "statefulsets",
    ("apps", "DaemonSet"): "daemonsets",
    ("batch", "Job"): "jobs",
    ("argoproj.io", "Rollout"): "rollouts",
}
OWNERS = tuple(Rule(group, plural, "get") for (group, _), plural in _PLURALS.items())
_ERRORS: Mapping[int, type[ApiError]] = {404: GoneError, 409: ConflictError, 429: ThrottledError}
_TIMEOUT = aiohttp.ClientTimeout(total=10, sock_connect=3)
_PAGE = 500
_GENERATIONS = 5
_SHARE_SECONDS = 1.0


def load_credentials(kubeconfig: str | None = None) -> Configuration:
    """Read a kubeconfig: the one given, else this pod's service account, else KUBECONFIG or ~/.kube/config.

    Raises SettingsError when none of them can be used.
    """
    configuration = Configuration()
    in_pod = "KUBERNETES_SERVICE_HOST" in os.environ and "KUBECONFIG" not in os.environ
    load = credentials.load_incluster_config if in_pod and kubeconfig is None else credentials.load_kube_config
    given = {} if kubeconfig is None else {"config_file": kubeconfig}
    try:
        load(client_configuration=configuration, **given)
    except (credentials.ConfigException, OSError) as error:
        raise SettingsError([f"KUBECONFIG can't be used, and this is no pod of a cluster: {error}"]) from error
    return configuration


@dataclass
class Contact:
    """When the API server has answered last, by the local monotonic clock, and whether the last call went wrong."""

    answered: float = -math.inf
    broken: bool = False


class Transport:
    """Sends requests with the caller's credentials; answers are JSON, failures are ours."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration
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
    ) -> JSON:
        """Send one request; raises UnavailableError when nothing comes back, ApiError when the answer is no."""
        headers = {"Accept": "application/json", **await self._authorization()}
        data = None
        if body is not None:
            headers["Content-Type"] = f"application/{kind}"
            data = json.dumps(body, separators=(",", ":")).encode()
        sent, begun = self.clock.tick(), time.monotonic()
        try:
            with trace.call(method, path) as span:
                async with self._open().request(method, path, params=query, data=data, headers=headers) as answer:
                    content = await answer.read()
                span.tell({"http.response.status_code": answer.status})
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            self._note(method, 0, begun)
            raise UnavailableError(f"the API server did not answer {method} {path}: {error!r}") from error
        self._note(method, answer.status, begun)
        self.clock.hear(answer.headers.get("Date"), sent)
        if answer.status >= 400:
            raise _refusal(method, path, answer.status, content)
        return _parse(method, path, content)

    def _note(self, method: str, status: int, begun: float) -> None:
        now = time.monotonic()
        # 401: our own token is no good. Other refusals are about one object.
        self.contact.broken = status in {0, 401, 502, 503, 504}
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
            connector = aiohttp.TCPConnector(ssl=_tls(self._configuration), limit=64, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(self._configuration.host, connector=connector, timeout=_TIMEOUT)
        return self._session

    async def _authorization(self) -> dict[str, str]:
        # The hook may read a file or run an exec plug-in, but only when the token has expired.
        token = self._configuration.get_api_key_with_prefix("BearerToken", "authorization")
        return {"Authorization": token} if token else {}


def _tls(configuration: Configuration) -> ssl.SSLContext | bool:
    if not configuration.host.startswith("https"):
        return False
    context = ssl.create_default_context(cafile=configuration.ssl_ca_cert)
    if not configuration.verify_ssl:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    if configuration.cert_file:
        context.load_cert_chain(configuration.cert_file, configuration.key_file)
    return context


def _parse(method: str, path: str, content: bytes) -> JSON:
    try:
        body = json.loads(content)
    except ValueError as error:
        raise UnavailableError(f"{method} {path} was answered with something that is not JSON") from error
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


def _failed(reading: asyncio.Task[Any]) -> bool:
    return reading.done() and (reading.cancelled() or reading.exception() is not None)


def path_of(ref: Ref) -> str | None:
    """Tell the path of an object of a kind that we know; None for others."""
    group, _, version = ref.api_version.rpartition("/")
    plural = _PLURALS.get((group, ref.kind))
    return f"/apis/{group}/{version}/namespaces/{ref.namespace}/{plural}/{ref.name}" if plural else None


class Reader:
    """Reads the cluster. Decisions get this and nothing that writes."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport
        self._shared: dict[str, tuple[float, asyncio.Task[Any]]] = {}

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
        query = {"limit": str(_PAGE), **query}
        while True:
            page = await self._transport.send("GET", path, query=query)
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
        path = f"/api/v1/namespaces/{namespace}/pods" if namespace else "/api/v1/pods"
        async for body in self.list(path, **query):
            yield pod_view(body)

    async def workload(self, ref: Ref) -> Workload | None:
        """Read what a reference names; None if it is gone, was replaced, or is of a kind that we don't know."""
        path = path_of(ref)
        body = await self.share(path, lambda: self.get(path)) if path else None
        view = None if body is None else workload_view(body)
        return view if view is not None and view.ref.uid == ref.uid else None

    def knows(self, ref: Ref) -> bool:
        """Tell whether `workload` can read objects of this kind."""
        return path_of(ref) is not None

    async def top_owner(self, pod: Pod) -> Workload | None:
        """Follow the controllers of a pod to the top; None for a pod that nothing controls.

        A controller of a kind that we don't know ends the way: it is named, without replicas.
        """
        ref, found = pod.controller, None
        # Bounded: nothing keeps two objects from naming each other as controller.
        for _ in range(_GENERATIONS):
            if ref is None:
                break
            found = await self.workload(ref) or Workload(ref, {}, None, None, None)
            ref = found.controller
        return found


class Writer:
    """Changes the cluster: what the core does for a function."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def create(self, path: str, body: JSON) -> JSON:
        """Create an object; raises ConflictError if it exists."""
        return await self._transport.send("POST", path, body)

    async def replace(self, path: str, body: JSON) -> JSON:
        """Replace an object as it was read; raises ConflictError if somebody changed it since."""
        return await self._transport.send("PUT", path, body)

    async def merge(self, path: str, body: JSON) -> JSON:
        """Merge fields into an object; with `metadata.resourceVersion` only into the one that was read."""
        return await self._transport.send("PATCH", path, body, kind="merge-patch+json")

    async def delete(self, path: str, body: JSON) -> None:
        """Delete an object under the preconditions that `body` (DeleteOptions) states."""
        await self._transport.send("DELETE", path, body)
