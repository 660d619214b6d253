"""Who in the cluster writes an object from Git: an Application of Argo CD, a Kustomization or a HelmRelease of Flux.

What Git owns is undone in Git. For that one has to know which repository, branch and path, and which revision is in
the cluster now and which was before it: the controllers write all of it into the status of their own objects.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from kreflex.addresses import address_of, shown
from kreflex.cluster import Reader
from kreflex.errors import OutageError
from kreflex.kinds import OWNING
from kreflex.rule import Rule
from kreflex.views import JSON, Ref, moment

ARGO, KUSTOMIZE, HELM, SOURCES = (
    "argoproj.io",
    "kustomize.toolkit.fluxcd.io",
    "helm.toolkit.fluxcd.io",
    "source.toolkit.fluxcd.io",
)
# https://argo-cd.readthedocs.io/en/stable/user-guide/resource_tracking/
TRACKING = "argocd.argoproj.io/tracking-id"
_INSTANCE = "app.kubernetes.io/instance"
# A list of paths, of which relative ones begin at the Application's:
# https://argo-cd.readthedocs.io/en/stable/operator-manual/high_availability/#manifest-paths-annotation
_GENERATED_FROM = "argocd.argoproj.io/manifest-generate-paths"
SUSPENDED_BY = "kreflex.dev/suspended-by"
# On a workload: that the sync which would undo a live write is suspended, by which record.
SYNC_SUSPENDED = "kreflex.dev/sync-suspended"
ARGO_NAMESPACE = "argocd"
# Who reads must not refuse again at each crash of a pod what people have to mend in Git.
CONFLICT, DENIED, PROTECTED, UNKNOWN, ELSEWHERE = (
    "GitConflict",
    "GitDenied",
    "GitProtected",
    "GitHistory",
    "GitElsewhere",
)
# The repository is none of those that the policy names.
FOREIGN = "GitForeign"
SAME_AGAIN, OWN_ROLLBACK = "SameVersionAgain", "RollbackOfRollback"
IN_GIT = frozenset({CONFLICT, PROTECTED, UNKNOWN, ELSEWHERE})
RBAC = (
    Rule(ARGO, "applications", "get", "cluster"),
    Rule(KUSTOMIZE, "kustomizations", "get", "cluster"),
    Rule(HELM, "helmreleases", "get", "cluster"),
    Rule(SOURCES, "gitrepositories", "get", "cluster"),
)
_VERSIONS = {ARGO: "v1alpha1", KUSTOMIZE: "v1", HELM: "v2", SOURCES: "v1"}
_PLURALS = {
    "Application": "applications",
    "Kustomization": "kustomizations",
    "HelmRelease": "helmreleases",
    "GitRepository": "gitrepositories",
}
# The names under which Git's controllers write fields.
_WRITERS = {"argocd-controller": "Argo CD", "kustomize-controller": "Flux", "helm-controller": "Flux"}
# What Git takes as the name of a branch, without the characters that mean something in what git is asked:
# https://git-scm.com/docs/git-check-ref-format. Others are ranges of versions, which Argo CD resolves to tags.
_BRANCH = re.compile(r"(?!.*(\.\.|//|@\{|/\.|\./))[^-./~^:?*\[\\<>=|,\s\x00-\x1f][^~^:?*\[\\\s\x00-\x1f]*(?<![./])")
_SHA = re.compile(r"[0-9a-f]{64}|[0-9a-f]{40}")
# https://fluxcd.io/flux/components/source/gitrepositories/#artifact: main@sha1:<id>.
_ID = re.compile(r"(?:^|[:/@])([0-9a-f]{64}|[0-9a-f]{40})$")
# With these Flux has not got as far as to apply what it tried.
# https://github.com/fluxcd/pkg, apis/meta/conditions.go
_NOT_APPLIED = {"ArtifactFailed", "BuildFailed", "DependencyNotReady", "PruneFailed", "ReconciliationFailed"}


# Group, kind, namespace and name.
Named = tuple[str, str, str, str]


@dataclass(frozen=True, slots=True)
class Deployed:
    """One revision of Git that was brought into the cluster, and when."""

    revision: str
    at: datetime


@dataclass(frozen=True, slots=True)
class Manager:
    """What writes an object from Git; `held` tells why nothing can be undone in Git by us, "" if nothing does.

    `branch` is "" for the repository's default one, `source` what fetches the repository if that is another object.
    `history` has the newest first, without what is applied now, and `settled` says that it has brought what it tried
    last; one that is `syncing` is about to write, whether it was suspended since or not. `others`
    are the other workloads that it writes, `complaint` is what it says of itself, and `restored` who would put it back
    if it was suspended, "" if nobody would.
    """

    ref: Ref
    resource_version: str = ""
    url: str = ""
    branch: str = ""
    paths: tuple[str, ...] = ()
    applied: str = ""
    history: tuple[Deployed, ...] = ()
    settled: bool = True
    syncing: bool = False
    suspended: bool = False
    suspended_by: str = ""
    others: tuple[str, ...] = ()
    complaint: str = ""
    restored: str = ""
    source: Ref | None = None
    held: str = ""

    def __str__(self) -> str:
        return str(self.ref)


async def manager_of(body: JSON, reader: Reader, argocd: str = ARGO_NAMESPACE) -> Manager | None:
    """Tell who writes an object from Git; None if nobody does. `argocd` is the namespace of Argo CD."""
    meta = body["metadata"]
    annotations, labels = meta.get("annotations") or {}, meta.get("labels") or {}
    if _tracks(annotations.get(TRACKING, ""), body):
        name = annotations[TRACKING].partition(":")[0]
        return await _application(_application_ref(name, argocd), body, reader)
    for group, kind, read in ((KUSTOMIZE, "Kustomization", _kustomization), (HELM, "HelmRelease", _helm_release)):
        if f"{group}/name" in labels:
            where = labels.get(f"{group}/namespace", meta.get("namespace", ""))
            return await read(_ref(group, kind, where, labels[f"{group}/name"]), body, reader)
    if _INSTANCE in labels:
        # Helm sets it, too: only the Application itself proves it.
        listed = await _application(_application_ref(labels[_INSTANCE], argocd), body, reader, listed=True)
        if listed is not None:
            return listed
    return _nameless(body)


def _tracks(tracking: str, body: JSON) -> bool:
    """Tell whether a tracking id is this object's own: copies of an object carry it, and are nobody's."""
    meta, group = body["metadata"], body["apiVersion"].rpartition("/")[0]
    itself = f"{group}/{body['kind']}:{meta.get('namespace', '')}/{meta['name']}"
    return bool(tracking) and tracking.partition(":")[2] == itself


def _application_ref(name: str, argocd: str) -> Ref:
    # An Application outside of Argo CD's own namespace is called <namespace>_<name>; names have no underscore.
    # https://argo-cd.readthedocs.io/en/stable/operator-manual/app-any-namespace/
    namespace, _, name = name.rpartition("_")
    return _ref(ARGO, "Application", namespace or argocd, name)


def _ref(group: str, kind: str, namespace: str, name: str, uid: str = "") -> Ref:
    return Ref(f"{group}/{_VERSIONS[group]}", kind, namespace, name, uid)


def path_of(ref: Ref) -> str:
    """Tell where the API server serves one of the objects of this module."""
    return f"/apis/{ref.api_version}/namespaces/{ref.namespace}/{_PLURALS[ref.kind]}/{ref.name}"


async def _read(ref: Ref, reader: Reader) -> JSON | None:
    try:
        return await reader.get(path_of(ref))
    except OutageError as error:
        if error.status != 404:
            raise
        return None


def _missing(ref: Ref) -> Manager:
    because = (
        f"{ref} writes it from Git and is not in this cluster: it may be in another that manages this one."
        f" If it is gone for good, take its mark off the object"
    )
    return Manager(ref, held=because)


def _stranger(ref: Ref, where: str, *, suspended: bool) -> Manager:
    """Whoever may write a workload may put any mark on it: what he breaks must not be taken back for others."""
    because = f"it does not list it in its {where}: take its mark off the object, or wait for its sync"
    return Manager(ref, held=because, suspended=suspended)


def _nameless(body: JSON) -> Manager | None:
    """Find in an object's managed fields that Git's controllers write its template, though nothing names the object."""
    for entry in body["metadata"].get("managedFields") or ():
        written = ((entry.get("fieldsV1") or {}).get("f:spec") or {}).keys()
        who = _WRITERS.get(entry.get("manager", ""))
        if who is not None and "f:template" in written:
            meta = body["metadata"]
            ref = Ref(body["apiVersion"], body["kind"], meta.get("namespace", ""), meta["name"], meta["uid"])
            return Manager(ref, held=f"{who} has written its template, and nothing on it tells from where")
    return None


# -- Argo CD


def is_syncing(application: JSON) -> bool:
    """Tell whether an Application has an operation that is asked for, or under way: to suspend it does not end that.

    https://github.com/argoproj/argo-cd/blob/master/controller/appcontroller.go (processRequestedAppOperation)
    """
    state = (application.get("status") or {}).get("operationState") or {}
    return bool(application.get("operation")) or state.get("phase") in {"Running", "Terminating"}


async def _application(ref: Ref, body: JSON, reader: Reader, *, listed: bool = False) -> Manager | None:
    found = await _read(ref, reader)
    if listed and (found is None or not _lists(found, body)):
        return None
    if found is None:
        return _missing(ref)
    if not _lists(found, body):
        return _stranger(ref, "status.resources", suspended=not _automated(found.get("spec") or {}))
    meta, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    source = spec.get("source") or {}
    applied = _synced(status)
    history = [
        Deployed(revision_in(one.get("revision", "")), at) for one in status.get("history") or () if (at := _at(one))
    ]
    annotations = meta.get("annotations") or {}
    return Manager(
        ref=_ref(ARGO, "Application", ref.namespace, ref.name, meta["uid"]),
        resource_version=meta["resourceVersion"],
        url=shown(source.get("repoURL", "")),
        branch=_followed(source),
        paths=_argo_paths(source, annotations),
        applied=applied,
        history=_before(history, applied),
        settled=(status.get("operationState") or {}).get("phase", "Succeeded") == "Succeeded",
        syncing=is_syncing(found),
        suspended=not _automated(spec),
        suspended_by=annotations.get(SUSPENDED_BY, ""),
        others=_others(status, body),
        complaint=_argo_complaint(status, spec),
        restored=_argo_restored(meta),
        held=_argo_held(spec, source),
    )


def _lists(application: JSON, body: JSON) -> bool:
    return _itself(body) in [_named(one) for one in (application.get("status") or {}).get("resources") or ()]


def _itself(body: JSON) -> Named:
    meta, group = body["metadata"], body["apiVersion"].rpartition("/")[0]
    return group, body["kind"], meta.get("namespace", ""), meta["name"]


def _named(one: Mapping[str, Any]) -> Named:
    return one.get("group", ""), one.get("kind", ""), one.get("namespace", ""), one.get("name", "")


def _synced(status: JSON) -> str:
    """Tell the revision of the last sync; one that still waits for health is in the cluster, but not in the history."""
    result = (status.get("operationState") or {}).get("syncResult") or {}
    history = status.get("history") or [{}]
    # Whoever may write an Application may write its status: only what is a commit is handed to git.
    return revision_in(str(result.get("revision") or history[-1].get("revision", "")))


def _followed(source: JSON) -> str:
    """Tell the branch that is followed; "" for the default one."""
    target = str(source.get("targetRevision", "HEAD"))
    return "" if target in {"", "HEAD"} else target.removeprefix("refs/heads/")


def _at(one: Mapping[str, Any]) -> datetime | None:
    return moment(one.get("deployedAt"))


def _before(history: Sequence[Deployed], applied: str) -> tuple[Deployed, ...]:
    others = [one for one in history if one.revision and one.revision != applied]
    return tuple(sorted(others, key=lambda one: one.at, reverse=True))


def _automated(spec: JSON) -> bool:
    # https://argo-cd.readthedocs.io/en/stable/user-guide/auto_sync/: without `enabled` it is on.
    automated = (spec.get("syncPolicy") or {}).get("automated")
    return automated is not None and automated.get("enabled") is not False


def _argo_paths(source: JSON, annotations: Mapping[str, str]) -> tuple[str, ...]:
    own = source.get("path", "")
    values = (source.get("helm") or {}).get("valueFiles") or ()
    further = [path for path in annotations.get(_GENERATED_FROM, "").split(";") if path]
    return tuple(dict.fromkeys([inside(own), *(inside(path, own) for path in (*values, *further))]))


def inside(path: str, base: str = "") -> str:
    """Give a path from the top of the repository; a relative one begins at `base`, and "" is all of the repository."""
    parts: list[str] = []
    for part in (path if path.startswith("/") else f"{base}/{path}").split("/"):
        if part == "..":
            parts = parts[:-1]
        elif part not in {"", "."}:
            parts.append(part)
    return "/".join(parts)


def _others(status: JSON, body: JSON) -> tuple[str, ...]:
    itself = (body["kind"], body["metadata"].get("namespace", ""), body["metadata"]["name"])
    found = [_named(one) for one in status.get("resources") or ()]
    return tuple(
        f"{kind} {namespace}/{name}"
        for group, kind, namespace, name in found
        if (group, kind) in OWNING and (kind, namespace, name) != itself
    )


def _argo_complaint(status: JSON, spec: JSON) -> str:
    operation = status.get("operationState") or {}
    if operation.get("phase") in {"Error", "Failed"}:
        return str(operation.get("message", ""))
    said = [one.get("message", "") for one in status.get("conditions") or () if one.get("type", "").endswith("Error")]
    return next(iter(said), "" if _automated(spec) else "it is not synced automatically: somebody has to do it")


def _argo_restored(meta: JSON) -> str:
    owners = [one for one in meta.get("ownerReferences") or () if one["kind"] == "ApplicationSet"]
    if owners:
        return f"ApplicationSet {meta['namespace']}/{owners[0]['name']}"
    parent = (meta.get("annotations") or {}).get(TRACKING, "").partition(":")[0]
    return f"Application {parent}" if parent else ""


def _argo_held(spec: JSON, source: JSON) -> str:
    if spec.get("sources"):
        return "it has several sources, and which of them is to blame nobody can tell"
    if spec.get("sourceHydrator"):
        return "what it applies is made from another branch (sourceHydrator), so it has to be undone there"
    if source.get("chart"):
        return f"its source is the chart {source['chart']} of a Helm repository, not a path in Git"
    return _no_branch(_followed(source)) or _foreign(source.get("repoURL", ""))


def _no_branch(name: str) -> str:
    if not name or (_BRANCH.fullmatch(name) and not _SHA.fullmatch(name)):
        return ""
    return f"it follows {name}, which is no branch: change it there"


def _foreign(url: str) -> str:
    if re.match(r"\w+://[^/]*:[^/]*@", url):
        # It would stand in records and in commits.
        return "the address of its source has a password in it: put that into a Secret"
    if address_of(url) is not None:
        return ""
    return f"its source {shown(url) or 'without an address'} is no Git repository over https or ssh"


# -- Flux


async def _kustomization(ref: Ref, body: JSON, reader: Reader) -> Manager | None:
    found = await _read(ref, reader)
    if found is None:
        return _missing(ref)
    if _itself(body) not in _entries(found.get("status") or {}):
        return _stranger(ref, "status.inventory", suspended=bool((found.get("spec") or {}).get("suspend")))
    meta, spec, status = found["metadata"], found.get("spec") or {}, found.get("status") or {}
    named = spec.get("sourceRef") or {}
    source_ref = _ref(SOURCES, "GitRepository", named.get("namespace") or ref.namespace, named.get("name", ""))
    in_git = named.get("kind") == "GitRepository"
    source = await _read(source_ref, reader) if in_git else None
    of_source = (source or {}).get("spec") or {}
    applied = _attempted(status)
    return Manager(
        ref=_ref(KUSTOMIZE, "Kustomization", ref.namespace, ref.name, meta["uid"]),
        resource_version=meta["resourceVersion"],
        url=shown(of_source.get("url", "")),
        # https://fluxcd.io/flux/components/source/gitrepositories/#branch-example
        branch=(of_source.get("ref") or {}).get("branch", "master"),
        paths=(inside(spec.get("path", "")),),
        applied=applied,
        history=_before(_snapshots(status), applied),
        settled=status.get("lastAttemptedRevision") == status.get("lastAppliedRevision"),
        suspended=bool(spec.get("suspend")),
        suspended_by=(meta.get("annotations") or {}).get(SUSPENDED_BY, ""),
        others=_inventory(status, body),
        complaint=_flux_complaint(status) or _flux_complaint((source or {}).get("status") or {}),
        restored=_flux_restored(meta),
        source=replace(source_ref, uid=source["metadata"]["uid"]) if source is not None else None,
        held=_flux_held(named, source_ref, source),
    )


def _attempted(status: JSON) -> str:
    """Tell the revision that was applied last; Flux itself does not count one whose health it waits for in vain."""
    ready = _ready(status)
    applied, attempted = status.get("lastAppliedRevision", ""), status.get("lastAttemptedRevision", "")
    return revision_in(applied if ready.get("reason") in _NOT_APPLIED else attempted or applied)


def _ready(status: JSON) -> JSON:
    found: JSON = next((one for one in status.get("conditions") or () if one.get("type") == "Ready"), {})
    return found


def _snapshots(status: JSON) -> list[Deployed]:
    found = []
    for one in status.get("history") or ():
        at = moment(one.get("firstReconciled"))
        if at is not None:
            found.append(Deployed(revision_in((one.get("metadata") or {}).get("revision", "")), at))
    return found


def revision_in(text: str) -> str:
    """Find the commit in what a controller calls a revision, such as `main@sha1:…`; "" if there is none."""
    found = _ID.search(text)
    return found.group(1) if found else ""


def _inventory(status: JSON, body: JSON) -> tuple[str, ...]:
    itself = _itself(body)[1:]
    return tuple(
        f"{kind} {namespace}/{name}"
        for group, kind, namespace, name in _entries(status)
        if (group, kind) in OWNING and (kind, namespace, name) != itself
    )


def _entries(status: JSON) -> list[Named]:
    # Entries are called <namespace>_<name>_<group>_<kind>; names of objects have no underscore.
    entries = [one.get("id", "").split("_") for one in (status.get("inventory") or {}).get("entries") or ()]
    return [(group, kind, space, name) for space, name, group, kind in (one for one in entries if len(one) == 4)]


def _flux_complaint(status: JSON) -> str:
    ready = _ready(status)
    return str(ready.get("message", "")) if ready.get("status") == "False" else ""


def _flux_restored(meta: JSON) -> str:
    """Another Kustomization puts back only what its own files say: it may own this one without `suspend`."""
    for entry in meta.get("managedFields") or ():
        spec = (entry.get("fieldsV1") or {}).get("f:spec") or {}
        if "f:suspend" in spec and entry.get("manager") in _WRITERS:
            return f"{_WRITERS[entry['manager']]}, for its own manifest says whether it is suspended"
    return ""


def _flux_held(named: JSON, source_ref: Ref, source: JSON | None) -> str:
    if named.get("kind") != "GitRepository":
        return f"its source is a {named.get('kind')}, not a Git repository"
    if source is None:
        return f"its source {source_ref} is not there"
    pinned = {key: value for key, value in (source["spec"].get("ref") or {}).items() if key != "branch" and value}
    if pinned:
        return f"{source_ref} follows {', '.join(f'{k} {v}' for k, v in pinned.items())}, not a branch: change it there"
    branch = str((source["spec"].get("ref") or {}).get("branch", ""))
    return _no_branch(branch) or _foreign(source["spec"].get("url", ""))


async def _helm_release(ref: Ref, body: JSON, reader: Reader) -> Manager | None:  # noqa: ARG001 - as the others
    found = await _read(ref, reader)
    if found is None:
        return _missing(ref)
    spec, status = found.get("spec") or {}, found.get("status") or {}
    retries = ((spec.get("upgrade") or {}).get("remediation") or {}).get("retries", 0)
    failures = status.get("upgradeFailures", 0)
    # https://fluxcd.io/flux/components/helm/helmreleases/#upgrade-remediation: negative is without end.
    if retries < 0 or (retries and failures <= retries):
        held = f"it remediates itself: {failures} of {retries if retries > 0 else 'endless'} retries are spent"
    else:
        held = "its chart's version and its values are in Git, and which of them to take back nobody can tell"
    return Manager(_ref(HELM, "HelmRelease", ref.namespace, ref.name, found["metadata"]["uid"]), held=held)


# -- Which revision was good


def source_of(manager: Manager) -> str:
    """Tell what a release came from, as its history keeps it; "" while a sync is under way that may bring another."""
    return f"git:{manager.applied}" if manager.applied and manager.settled else ""


def good_revision(manager: Manager, source: str, left_at: datetime) -> str:
    """Tell the revision of Git that was in the cluster when the good version was there last; "" if nobody knows.

    `source` is what the release's own history says. Else it is the newest that had been brought into the cluster before
    `left_at`, when the next version came. The end of a sync is written, so that of the next version is not earlier.
    """
    return revision_in(source) or next((one.revision for one in manager.history if one.at < left_at), "")
