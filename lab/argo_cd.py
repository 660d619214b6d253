"""A stand-in for Argo CD: its own definition of an Application, and a controller that is played here.

Argo CD's application-controller needs Redis and its repo-server, which the lab has not. `Controller` does what matters
to somebody who writes live beside it, by the rules and with the fields of Argo CD 3: automated sync, self-heal, the
tracking annotation, sync status, operation state and history. It is not Argo CD: one source, plain YAML or kustomize,
no Helm, waves, hooks, pruning, projects, windows, or syncs that people ask for. It applies on the server's side, as
Argo CD does with ServerSideApply=true.

https://argo-cd.readthedocs.io/en/stable/user-guide/auto_sync/
"""

import asyncio
import contextlib
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from lab import git, manifests
from lab.api import Api, Refused, eventually
from lab.cluster import ControlPlane
from lab.crds import Archive
from lab.errors import LabError
from lab.gitops import Credentials, at_work
from lab.toolchain import Toolchain

Json = dict[str, Any]
NAMESPACE = "argocd"
ACCOUNT = "argocd-application-controller"
MANAGER = "argocd-controller"
TRACKING = "argocd.argoproj.io/tracking-id"
REFRESH = "argocd.argoproj.io/refresh"
SKIP = "argocd.argoproj.io/skip-reconcile"
APPLICATIONS = f"/apis/argoproj.io/v1alpha1/namespaces/{NAMESPACE}/applications"
_SECRETS = f"/api/v1/namespaces/{NAMESPACE}/secrets"
_REPOSITORY = "argocd.argoproj.io/secret-type=repository"
_DEFINITION = Archive("github.com/argoproj/argo-cd/v3", ("manifests/crds/application-crd.yaml",))
_PAUSE = 0.5
_HISTORY = 10
# What is different in each answer, and says nothing of what is wanted.
_OF_A_WRITE = ("managedFields", "resourceVersion", "generation")


@dataclass(frozen=True)
class Comparison:
    """What Git wants, and what of it is not so in the cluster."""

    revision: str
    wanted: list[Json]
    different: list[Json]
    health: str
    kind: str

    @property
    def status(self) -> str:
        return "OutOfSync" if self.different else "Synced"


@dataclass
class Controller:
    """Plays the application-controller for Applications in its namespace."""

    api: Api
    home: Path
    kubectl: Path
    self_heal_after: float = 5.0
    """Seconds since the last sync; Argo CD's --self-heal-timeout-seconds has the same default."""

    async def serve(self) -> None:
        """Compare and sync all Applications until cancelled."""
        while True:
            for name in [one["metadata"]["name"] for one in (await self.api.get(APPLICATIONS))["items"]]:
                # As it is now: Argo CD has a watch, and does not act for minutes on what it read with the others.
                one = await self.api.find(f"{APPLICATIONS}/{name}")
                if one is not None and one["metadata"].get("annotations", {}).get(SKIP) != "true":
                    # It may be gone meanwhile.
                    with contextlib.suppress(Refused):
                        await self._reconcile(one)
            await asyncio.sleep(_PAUSE)

    async def _reconcile(self, one: Json) -> None:
        try:
            compared = await self._compare(one)
        except LabError as error:
            await self._write(
                one, {"sync": {"status": "Unknown"}, "conditions": [_condition("ComparisonError", error)]}
            )
            return
        status = _status(one, compared)
        operation = self._operation(one, compared)
        if operation:
            status |= await self._sync(one, compared, operation)
        await self._write(one, status)

    async def _compare(self, one: Json) -> Comparison:
        source, mirror = one["spec"]["source"], git.Mirror(self.home / one["metadata"]["uid"])
        credentials = await self._credentials(source["repoURL"])
        branch = source.get("targetRevision", "HEAD").replace("HEAD", git.MAIN)
        trust = credentials.trust(mirror.directory)
        revision = await mirror.fetch(source["repoURL"], credentials.account, branch, trust)
        kind, wanted = await self._render(mirror, revision, source.get("path", "."))
        wanted = [_tracked(one, manifest) for manifest in wanted]
        live = [await self.api.find(await self._path(manifest)) for manifest in wanted]
        different = [manifest for manifest, now in zip(wanted, live, strict=True) if await self._differs(manifest, now)]
        return Comparison(revision, wanted, different, _health(live), kind)

    async def _credentials(self, url: str) -> Credentials:
        for secret in (await self.api.get(_SECRETS, labelSelector=_REPOSITORY))["items"]:
            credentials = Credentials.of(secret)
            if credentials.content["url"] == url:
                return credentials
        return Credentials({})

    async def _render(self, mirror: git.Mirror, revision: str, path: str) -> tuple[str, list[Json]]:
        with tempfile.TemporaryDirectory(dir=self.home) as folder:
            await mirror.export(revision, Path(folder))
            place = Path(folder) / path
            if not place.is_dir():
                raise LabError(f"{path}: app path does not exist")
            if (place / "kustomization.yaml").exists():
                return "Kustomize", await self._kustomized(place)
            return "Directory", manifests.read(*sorted(place.glob("*.yaml")))

    async def _kustomized(self, place: Path) -> list[Json]:
        code, output, errors = await git.ended(self.kubectl, "kustomize", place)
        if code != 0:
            raise LabError(f"kustomize build: {errors.decode().strip()}")
        return manifests.parsed(output.decode())

    async def _path(self, manifest: Json) -> str:
        return await manifests.path_of(self.api, manifest)

    async def _differs(self, manifest: Json, live: Json | None) -> bool:
        """Whether to apply it would change anything: the API server knows best."""
        if live is None:
            return True
        try:
            after = await self.api.apply(await self._path(manifest), manifest, MANAGER, dryRun="All")
        except Refused:
            # It is the sync that fails, and says why.
            return True
        return _essence(after) != _essence(live)

    def _operation(self, one: Json, compared: Comparison) -> Json | None:
        """The sync that is due now, or None."""
        automated = one["spec"].get("syncPolicy", {}).get("automated")
        if automated is None or automated.get("enabled") is False or not compared.different:
            return None
        sync: Json = {"revision": compared.revision}
        last = one.get("status", {}).get("operationState", {})
        if last.get("syncResult", {}).get("revision") == compared.revision:
            # Once for each commit, unless what is live was changed since.
            if last["phase"] != "Succeeded" or not automated.get("selfHeal") or self._rests(last):
                return None
            attempts = last["operation"]["sync"].get("autoHealAttemptsCount", 0) + 1
            # A sync of some resources only is not in the history.
            sync |= {
                "resources": [_named(manifest) for manifest in compared.different],
                "autoHealAttemptsCount": attempts,
            }
        return {"sync": sync, "initiatedBy": {"automated": True}, "retry": {"limit": 5}}

    def _rests(self, last: Json) -> bool:
        since = datetime.now(UTC) - datetime.fromisoformat(last["finishedAt"])
        return since.total_seconds() < self.self_heal_after

    async def _sync(self, one: Json, compared: Comparison, operation: Json) -> Json:
        started, source = _now(), one["spec"]["source"]
        phase, message = "Succeeded", "successfully synced (all tasks run)"
        try:
            for manifest in compared.different:
                await self.api.apply(await self._path(manifest), manifest, MANAGER)
        except Refused as refusal:
            phase, message = "Failed", f"one or more objects failed to apply, reason: {refusal}"
        state = {
            "operation": operation,
            "phase": phase,
            "message": message,
            "startedAt": started,
            "finishedAt": _now(),
            "syncResult": {
                "revision": compared.revision,
                "source": source,
                "resources": [_result(manifest) for manifest in compared.different],
            },
        }
        if phase != "Succeeded":
            return {"operationState": state, "conditions": [_condition("SyncError", message)]}
        # That it is Synced, the next comparison says.
        history = {} if "resources" in operation["sync"] else {"history": _history(one, compared.revision, started)}
        return {"operationState": state, **history}

    async def _write(self, one: Json, status: Json) -> None:
        metadata, before = one["metadata"], one.get("status", {})
        path = f"{APPLICATIONS}/{metadata['name']}"
        if REFRESH in metadata.get("annotations", {}):
            await self.api.patch(path, {"metadata": {"annotations": {REFRESH: None}}})
        wanted = {"controllerNamespace": NAMESPACE, "conditions": [], **status}
        if {**before, **wanted} != before:
            # An Application has no status subresource.
            await self.api.patch(path, {"status": {**wanted, "reconciledAt": _now()}})


def _status(one: Json, compared: Comparison) -> Json:
    different = [_named(manifest) for manifest in compared.different]
    return {
        "sync": _sync_status(one, compared),
        "health": {"status": compared.health},
        "sourceType": compared.kind,
        "resources": [
            {**_placed(manifest), "status": "OutOfSync" if _named(manifest) in different else "Synced"}
            for manifest in compared.wanted
        ],
    }


def _sync_status(one: Json, compared: Comparison) -> Json:
    to = {"source": one["spec"]["source"], "destination": one["spec"]["destination"]}
    return {"status": compared.status, "revision": compared.revision, "comparedTo": to}


def _history(one: Json, revision: str, started: str) -> list[Json]:
    before = one.get("status", {}).get("history", [])
    entry = {
        "id": before[-1]["id"] + 1 if before else 0,
        "revision": revision,
        "source": one["spec"]["source"],
        "deployStartedAt": started,
        "deployedAt": _now(),
        "initiatedBy": {"automated": True},
    }
    return [*before, entry][-one["spec"].get("revisionHistoryLimit", _HISTORY) :]


def _tracked(one: Json, manifest: Json) -> Json:
    """A manifest in its namespace, with the annotation that says whose it is."""
    metadata = {"namespace": one["spec"]["destination"]["namespace"], **manifest["metadata"]}
    group = _group(manifest)
    where = f"{group}/{manifest['kind']}:{metadata['namespace']}/{metadata['name']}"
    mark = {TRACKING: f"{one['metadata']['name']}:{where}"}
    return {**manifest, "metadata": {**metadata, "annotations": {**metadata.get("annotations", {}), **mark}}}


def _group(manifest: Json) -> str:
    group, slash, _ = manifest["apiVersion"].partition("/")
    return group if slash else ""


def _named(manifest: Json) -> Json:
    kind = {"kind": manifest["kind"], "name": manifest["metadata"]["name"]}
    return ({"group": group} if (group := _group(manifest)) else {}) | kind


def _placed(manifest: Json) -> Json:
    version = manifest["apiVersion"].rpartition("/")[2]
    return {**_named(manifest), "version": version, "namespace": manifest["metadata"]["namespace"]}


def _result(manifest: Json) -> Json:
    kind = ".".join(filter(None, (manifest["kind"].lower(), _group(manifest))))
    message = f"{kind}/{manifest['metadata']['name']} serverside-applied"
    said = {"status": "Synced", "message": message, "hookPhase": "Running", "syncPhase": "Sync"}
    return {"group": "", **_placed(manifest), **said}


def _essence(body: Json) -> Json:
    metadata = {key: value for key, value in body["metadata"].items() if key not in _OF_A_WRITE}
    return {**body, "metadata": metadata}


def _health(live: list[Json | None]) -> str:
    """The worst health of what is there; only a Deployment's is looked at."""
    if None in live:
        return "Missing"
    found = [_deployment_health(body) for body in live if body and body["kind"] == "Deployment"]
    return next((one for one in ("Degraded", "Progressing") if one in found), "Healthy")


def _deployment_health(body: Json) -> str:
    status, wanted = body.get("status", {}), body["spec"].get("replicas", 1)
    reasons = [one.get("reason") for one in status.get("conditions", [])]
    if "ProgressDeadlineExceeded" in reasons:
        return "Degraded"
    counts = [status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas")]
    current = status.get("observedGeneration") == body["metadata"]["generation"]
    return "Healthy" if current and counts == [wanted] * 3 else "Progressing"


def _condition(kind: str, message: object) -> Json:
    return {"type": kind, "message": str(message)}


def _now() -> str:
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


async def install(plane: ControlPlane) -> None:
    """Apply the definition of an Application, and give the controller its rights: all of them, as Argo CD's has."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    await manifests.apply(plane.api, [namespace, *manifests.read(*_DEFINITION.fetch())])
    await manifests.grant(plane.api, NAMESPACE, ACCOUNT, [{"apiGroups": ["*"], "resources": ["*"], "verbs": ["*"]}])


@asynccontextmanager
async def running(plane: ControlPlane, self_heal_after: float = 5.0) -> AsyncIterator[Controller]:
    """Play the application-controller, which is installed already."""
    kubectl = (await asyncio.to_thread(Toolchain().ensure, ["kubectl"]))["kubectl"]
    home = plane.home.data / "argo-cd"
    home.mkdir(parents=True, exist_ok=True)
    async with plane.api_with(await plane.token(ACCOUNT, NAMESPACE)) as api:
        controller = Controller(api, home, kubectl, self_heal_after)
        async with at_work(controller.serve()):
            yield controller


async def follow(
    plane: ControlPlane,
    namespace: str,
    name: str,
    repository: git.Repository,
    account: git.Account,
    path: str,
    *,
    branch: str = git.MAIN,
    authority: str = "",
    automated: Json | None = None,
) -> None:
    """Have Argo CD apply a path of a repository to a namespace; automated sync and self-heal are on."""
    trust = {"ca.crt": authority} if authority else {}
    login = {"type": "git", "url": repository.url, "username": account.name, "password": account.password}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": f"repo-{name}", "labels": dict([_REPOSITORY.split("=")])},
        "stringData": login | trust,
    }
    application = {
        "apiVersion": "argoproj.io/v1alpha1",
        "kind": "Application",
        "metadata": {"name": name},
        "spec": {
            "project": "default",
            "source": {"repoURL": repository.url, "targetRevision": branch, "path": path},
            "destination": {"server": "https://kubernetes.default.svc", "namespace": namespace},
            "syncPolicy": {"automated": {"selfHeal": True} if automated is None else automated},
        },
    }
    await manifests.apply(plane.api, [secret, application], NAMESPACE)


async def synced(plane: ControlPlane, name: str, commit: str) -> Json:
    """Wait until a commit was synced; the Application."""

    async def found() -> Json | None:
        one = await plane.api.get(f"{APPLICATIONS}/{name}")
        sync = one.get("status", {}).get("sync", {})
        return one if (sync.get("status"), sync.get("revision")) == ("Synced", commit) else None

    application: Json = await eventually(found, f"{commit[:8]} by {name}", 60)
    return application


async def suspend(plane: ControlPlane, name: str) -> None:
    """Switch automated sync off, as `argocd app set --sync-policy none` does."""
    await plane.api.patch(f"{APPLICATIONS}/{name}", {"spec": {"syncPolicy": {"automated": None}}})


async def resume(plane: ControlPlane, name: str) -> None:
    """Switch automated sync with self-heal on."""
    await plane.api.patch(f"{APPLICATIONS}/{name}", {"spec": {"syncPolicy": {"automated": {"selfHeal": True}}}})


async def refreshed(plane: ControlPlane, name: str) -> None:
    """Wait until Argo CD has looked at an Application as it is now; what it had begun before is over then."""
    path = f"{APPLICATIONS}/{name}"
    await plane.api.patch(path, {"metadata": {"annotations": {REFRESH: "normal"}}})

    async def done() -> bool:
        return REFRESH not in (await plane.api.get(path))["metadata"].get("annotations", {})

    await eventually(done, f"a refresh of Application {name}")


async def remove(plane: ControlPlane, name: str) -> None:
    """Delete an Application, and leave what it has applied."""
    await plane.api.delete(f"{APPLICATIONS}/{name}")
    await plane.api.delete(f"{_SECRETS}/repo-{name}")
