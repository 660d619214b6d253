"""Flux on a control plane: its own kustomize-controller, and a source-controller that is played here.

Flux's source-controller can't be built from the public module proxy, which has no archive of one of its modules
(github.com/fluxcd/pkg/artifact). What it does for a GitRepository is done by `Sources`: it fetches the branch with git
and the Secret's credentials, offers the archive over HTTP, and writes the status as Flux does. It knows branches, and
neither tags, ranges of versions, signatures nor files to ignore. All that is applied to the cluster, and how, is Flux'.
"""

import asyncio
import base64
import contextlib
import hashlib
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from lab import builds, git, manifests, processes
from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane
from lab.crds import Archive
from lab.errors import LabError
from lab.ports import Ports
from lab.toolchain import Toolchain

Json = dict[str, Any]
PROGRAM = "kustomize_controller"
NAMESPACE = "flux-system"
ACCOUNT = "kustomize-controller"
SOURCE_ACCOUNT = "source-controller"
KUSTOMIZE = "kustomize.toolkit.fluxcd.io"
SOURCE = "source.toolkit.fluxcd.io"
REQUESTED = "reconcile.fluxcd.io/requestedAt"
"""The annotation by which people and programs ask Flux to look now; its value is any that is new."""
_MODULE = "github.com/fluxcd/kustomize-controller"
# kustomize-controller watches all three.
_SOURCES = Archive(
    "github.com/fluxcd/source-controller",
    tuple(f"config/crd/bases/{SOURCE}_{kind}.yaml" for kind in ("buckets", "gitrepositories", "ocirepositories")),
)
_EVERY_SOURCE = f"/apis/{SOURCE}/v1/gitrepositories"
_PAUSE = 0.2
_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


def kustomization_path(namespace: str, name: str) -> str:
    """The path of a Kustomization."""
    return f"/apis/{KUSTOMIZE}/v1/namespaces/{namespace}/kustomizations/{name}"


def source_path(namespace: str, name: str) -> str:
    """The path of a GitRepository."""
    return f"/apis/{SOURCE}/v1/namespaces/{namespace}/gitrepositories/{name}"


@dataclass
class Sources:
    """Plays source-controller for GitRepositories with a branch."""

    api: Api
    home: Path
    url: str = ""
    _due: dict[str, float] = field(default_factory=dict)

    async def serve(self) -> None:
        """Keep artifacts of all GitRepositories until cancelled."""
        while True:
            for one in (await self.api.get(_EVERY_SOURCE))["items"]:
                if self._is_due(one):
                    await self._reconcile(one)
            await asyncio.sleep(_PAUSE)

    def _is_due(self, one: Json) -> bool:
        if one["spec"].get("suspend"):
            return False
        status, metadata = one.get("status", {}), one["metadata"]
        requested = metadata.get("annotations", {}).get(REQUESTED)
        new = status.get("observedGeneration") != metadata["generation"]
        asked = requested is not None and requested != status.get("lastHandledReconcileAt")
        return new or asked or asyncio.get_running_loop().time() >= self._due.get(metadata["uid"], 0.0)

    async def _reconcile(self, one: Json) -> None:
        metadata = one["metadata"]
        self._due[metadata["uid"]] = asyncio.get_running_loop().time() + seconds(one["spec"]["interval"])
        try:
            artifact = await self._artifact(one)
            told = f"stored artifact for revision '{artifact['revision']}'"
            await self._tell(
                one, artifact, {"Ready": ("True", "Succeeded"), "ArtifactInStorage": ("True", "Succeeded")}, told
            )
        except LabError as error:
            why = "AuthenticationFailed" if "Authentication failed" in str(error) else "GitOperationFailed"
            told = f"failed to checkout and determine revision: {error}"
            await self._tell(one, None, {"Ready": ("False", why), "FetchFailed": ("True", why)}, told)

    async def _artifact(self, one: Json) -> Json:
        """The artifact of the newest commit, made if it is not there yet."""
        metadata, spec = one["metadata"], one["spec"]
        branch = spec.get("ref", {}).get("branch", "master")
        credentials = await self._credentials(one)
        mirror = git.Mirror(self.home / "mirrors" / metadata["uid"])
        sha = await mirror.fetch(spec["url"], credentials.account, branch, credentials.trust(mirror.directory))
        present = one.get("status", {}).get("artifact", {})
        if present.get("revision") == f"{branch}@sha1:{sha}":
            return dict(present)
        path = f"gitrepository/{metadata['namespace']}/{metadata['name']}/{sha}.tar.gz"
        content = await mirror.archive(sha)
        file = self.home / "artifacts" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
        return {
            "digest": f"sha256:{hashlib.sha256(content).hexdigest()}",
            "lastUpdateTime": _now(),
            "path": path,
            "revision": f"{branch}@sha1:{sha}",
            "size": len(content),
            "url": f"{self.url}/{path}",
        }

    async def _credentials(self, one: Json) -> "Credentials":
        if "secretRef" not in one["spec"]:
            return Credentials({})
        namespace, name = one["metadata"]["namespace"], one["spec"]["secretRef"]["name"]
        secret = await self.api.find(f"/api/v1/namespaces/{namespace}/secrets/{name}")
        if secret is None:
            raise LabError(f"failed to get secret '{namespace}/{name}': secrets \"{name}\" not found")
        return Credentials.of(secret)

    async def _tell(self, one: Json, artifact: Json | None, said: dict[str, tuple[str, str]], message: str) -> None:
        before, metadata = one.get("status", {}), one["metadata"]
        generation = metadata["generation"]
        wanted = [
            {"type": kind, "status": status, "reason": why, "message": message, "observedGeneration": generation}
            for kind, (status, why) in said.items()
        ]
        status: Json = {"observedGeneration": generation, "conditions": _timed(wanted, before.get("conditions", []))}
        if artifact:
            status["artifact"] = artifact
        if requested := metadata.get("annotations", {}).get(REQUESTED):
            status["lastHandledReconcileAt"] = requested
        if {**before, **status} == before:
            return
        # It may be gone meanwhile.
        with contextlib.suppress(Refused):
            await self.api.patch(f"{source_path(metadata['namespace'], metadata['name'])}/status", {"status": status})


@dataclass(frozen=True)
class Credentials:
    """What a Secret for a repository holds: `username` and `password`, and `ca.crt` for a private authority."""

    content: dict[str, str]

    @classmethod
    def of(cls, secret: Json) -> "Credentials":
        return cls({key: base64.b64decode(value).decode() for key, value in secret.get("data", {}).items()})

    @property
    def account(self) -> git.Account | None:
        if "password" not in self.content:
            return None
        return git.Account(self.content.get("username", ""), self.content["password"])

    def trust(self, directory: Path) -> str:
        """The file of the authority, beside a directory, or nothing."""
        if "ca.crt" not in self.content:
            return ""
        file = directory.with_suffix(".crt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(self.content["ca.crt"])
        return str(file)


def seconds(duration: str) -> float:
    """What a duration of Go's means: `1m30s` is 90."""
    return sum(float(number) * _SECONDS[unit] for number, unit in re.findall(r"([0-9.]+)(ms|s|m|h)", duration))


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def _timed(wanted: list[Json], before: list[Json]) -> list[Json]:
    """Conditions with the time since when they are so."""
    since = {(one["type"], one["status"]): one["lastTransitionTime"] for one in before}
    return [{"lastTransitionTime": since.get((one["type"], one["status"]), _now()), **one} for one in wanted]


async def install(plane: ControlPlane) -> None:
    """Apply Flux' definitions, and let kustomize-controller do everything, as Flux' own installation does."""
    folder = builds.source(PROGRAM, _MODULE) / "config" / "crd" / "bases"
    definitions = manifests.read(*sorted(folder.glob("*.yaml")), *_SOURCES.fetch())
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    await manifests.apply(plane.api, [namespace, *definitions])
    await manifests.grant(plane.api, NAMESPACE, ACCOUNT, [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])
    source = {"apiGroups": [SOURCE], "resources": ["gitrepositories", "gitrepositories/status"], "verbs": ["*"]}
    secrets = {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get"]}
    await manifests.grant(plane.api, NAMESPACE, SOURCE_ACCOUNT, [source, secrets])


@asynccontextmanager
async def running(plane: ControlPlane) -> AsyncIterator[None]:
    """Run Flux, which is installed already."""
    program = (await asyncio.to_thread(Toolchain().ensure, [PROGRAM]))[PROGRAM]
    config = await plane.kubeconfig_for(NAMESPACE, ACCOUNT)
    temporary = plane.home.data / "flux"
    temporary.mkdir(parents=True, exist_ok=True)
    with Ports() as ports:
        health, metrics = ports.take(), ports.take()
        command: list[str | Path] = [
            program,
            f"--health-addr=127.0.0.1:{health}",
            f"--metrics-addr=127.0.0.1:{metrics}",
            # What it fetches is on this machine: a failure is none that passes.
            "--http-retry=1",
        ]
        environment = {"KUBECONFIG": str(config), "RUNTIME_NAMESPACE": NAMESPACE, "TMPDIR": str(temporary)}
        url = f"http://127.0.0.1:{health}/readyz"
        async with _sources(plane):
            child = plane.start_child(PROGRAM, command, environment, url=url)
            try:
                await child.ready(processes.answers(url))
                yield
            finally:
                await plane.stop_child(PROGRAM)


@asynccontextmanager
async def _sources(plane: ControlPlane) -> AsyncIterator[None]:
    home = plane.home.data / "flux-sources"
    artifacts = home / "artifacts"
    artifacts.mkdir(parents=True, exist_ok=True)
    application = web.Application()
    application.add_routes([web.static("/", artifacts)])
    runner = web.AppRunner(application)
    await runner.setup()
    async with plane.api_with(await plane.token(SOURCE_ACCOUNT, NAMESPACE)) as api:
        try:
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            async with at_work(Sources(api, home, f"http://127.0.0.1:{runner.addresses[0][1]}").serve()):
                yield
        finally:
            await runner.cleanup()


@asynccontextmanager
async def at_work(work: Any) -> AsyncIterator[None]:
    """Let a coroutine run beside what is done here; an error of it is raised at the end."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def follow(
    plane: ControlPlane,
    namespace: str,
    name: str,
    repository: git.Repository,
    account: git.Account,
    path: str,
    *,
    branch: str = git.MAIN,
    interval: str = "5s",
    authority: str = "",
    **spec: Any,
) -> None:
    """Have Flux apply a path of a repository to a namespace: a Secret, a GitRepository and a Kustomization."""
    trust = {"ca.crt": authority} if authority else {}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"{name}-git"},
        "stringData": {"username": account.name, "password": account.password, **trust},
    }
    source = {
        "apiVersion": f"{SOURCE}/v1",
        "kind": "GitRepository",
        "metadata": {"name": name},
        "spec": {
            "interval": "1s",
            "url": repository.url,
            "ref": {"branch": branch},
            "secretRef": {"name": f"{name}-git"},
        },
    }
    kustomization = {
        "apiVersion": f"{KUSTOMIZE}/v1",
        "kind": "Kustomization",
        "metadata": {"name": name},
        "spec": {
            "interval": interval,
            "path": f"./{path}",
            "prune": True,
            "sourceRef": {"kind": "GitRepository", "name": name},
            "targetNamespace": namespace,
            **spec,
        },
    }
    await manifests.apply(plane.api, [secret, source, kustomization], namespace)


async def applied(plane: ControlPlane, namespace: str, name: str, commit: str, branch: str = git.MAIN) -> Json:
    """Wait until Flux has applied a commit; the Kustomization."""

    async def found() -> Json | None:
        one = await plane.api.get(kustomization_path(namespace, name))
        return one if one.get("status", {}).get("lastAppliedRevision") == f"{branch}@sha1:{commit}" else None

    kustomization: Json = await eventually(found, f"{commit[:8]} by {namespace}/{name}", 60)
    return kustomization


async def suspend(plane: ControlPlane, namespace: str, name: str) -> None:
    """Stop Flux from applying anything, as `flux suspend kustomization` does."""
    await plane.api.patch(kustomization_path(namespace, name), {"spec": {"suspend": True}})


async def resume(plane: ControlPlane, namespace: str, name: str) -> None:
    """Let Flux apply again, as `flux resume kustomization` does."""
    await plane.api.patch(kustomization_path(namespace, name), {"spec": {"suspend": None}})


async def remove(plane: ControlPlane, namespace: str, name: str) -> None:
    """Delete a Kustomization with what it has applied, and its source."""
    path = kustomization_path(namespace, name)
    await plane.api.delete(path)

    async def gone() -> bool:
        return await plane.api.find(path) is None

    await eventually(gone, f"the end of the Kustomization {namespace}/{name}", 60)
    await plane.api.delete(source_path(namespace, name))
    await plane.api.delete(f"/api/v1/namespaces/{namespace}/secrets/{name}-git")
