"""Releases of Helm: which one a workload belongs to, how far it is, and which revision of it is known to be healthy.

Helm keeps each revision in a Secret, whose labels tell its number and status. Only this metadata is ever read: the rest
holds all values of the chart, passwords among them (docs/adr/0025).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from kreflex.cluster import Reader
from kreflex.durations import show_duration
from kreflex.errors import OutageError
from kreflex.releases import Releases
from kreflex.revisions import Release, Revision
from kreflex.views import JSON, moment, time_of

# https://helm.sh/docs/chart_best_practices/labels/; Helm itself sets them on all that it writes.
MANAGED_BY = "app.kubernetes.io/managed-by"
_NAME, _NAMESPACE = "meta.helm.sh/release-name", "meta.helm.sh/release-namespace"
# https://github.com/helm/helm/blob/v4.0.0/pkg/release/v1/util and chartutil/validate_name.go: at most 53 characters.
_VALID = re.compile(r"[a-z0-9]([-.a-z0-9]{0,51}[a-z0-9])?")
# What Helm itself goes back to: https://github.com/helm/helm/blob/v4.0.0/pkg/action/upgrade.go, failRelease.
_WORKED = {"superseded", "deployed"}
_PENDING = "pending-"
_SOON = timedelta(minutes=10)
ACCOUNT, IMAGE, RIGHTS, HISTORY, PENDING, UNPROVEN, DRIFT, ELSEWHERE = (
    "HelmAccount",
    "HelmImage",
    "HelmRights",
    "HelmHistory",
    "HelmPending",
    "HelmUnproven",
    "HelmDrift",
    "HelmElsewhere",
)


@dataclass(frozen=True, slots=True)
class Installation:
    """A release of Helm, as what it has written names it."""

    name: str
    namespace: str

    def __str__(self) -> str:
        return f"Helm's release {self.namespace}/{self.name}"

    def source(self, version: int) -> str:
        """Name a revision of it in a ReleaseHistory."""
        return f"helm/{self.name}/{version}"

    def by_hand(self, version: str = "REVISION") -> str:
        """Tell people how to look at it, and how to go back."""
        where = f"--namespace {self.namespace}"
        return f"helm history {self.name} {where}; helm rollback {self.name} {version} {where} --wait"


@dataclass(frozen=True, slots=True)
class Stored:
    """One revision, as the labels of its Secret tell; `at` is when it was begun."""

    version: int
    status: str
    at: datetime

    @property
    def pending(self) -> bool:
        """True while Helm is at work on it, or for ever if that was cut off."""
        return self.status.startswith(_PENDING)


@dataclass(frozen=True, slots=True)
class Held:
    """Why Helm is not asked to go back; `until` is when that may be over by itself, None if people have to look."""

    cause: str
    because: str
    until: datetime | None = None
    again: timedelta = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Undo:
    """The way back: from this revision of a release to that one."""

    installation: Installation
    bad: int
    good: int


def installation_of(body: JSON) -> Installation | None:
    """Tell which release of Helm an object belongs to; None if to none."""
    labels, notes = body["metadata"].get("labels") or {}, body["metadata"].get("annotations") or {}
    if labels.get(MANAGED_BY) != "Helm" or _NAME not in notes:
        return None
    return Installation(notes[_NAME], notes.get(_NAMESPACE, body["metadata"]["namespace"]))


async def stored(installation: Installation, reader: Reader) -> tuple[Stored, ...] | None:
    """List the revisions of a release, the newest first; None if nobody has given us the right."""
    path, chosen = f"/api/v1/namespaces/{installation.namespace}/secrets", f"owner=helm,name={installation.name}"
    try:
        metas = [body["metadata"] async for body in reader.list_metadata(path, labelSelector=chosen)]
    except OutageError as error:
        if error.status != 403:
            raise
        return None
    found = [_stored(meta) for meta in metas if str(meta["labels"].get("version", "")).isdecimal()]
    return tuple(sorted(found, key=lambda one: one.version, reverse=True))


def _stored(meta: JSON) -> Stored:
    labels: Mapping[str, str] = meta["labels"]
    return Stored(int(labels["version"]), labels.get("status", ""), time_of(meta["creationTimestamp"]))


async def helm_source(release: Release, least: timedelta, reader: Reader) -> str:
    """Tell which revision of Helm a healthy release is, to be remembered; "" if none is, or nobody can tell.

    It must have been there for as long as health has to last: what was healthy before it says nothing about it.
    """
    installation = installation_of(release.body)
    if installation is None or _strange(installation, release):
        return ""
    newest = next(iter(await stored(installation, reader) or ()), None)
    proven = newest is not None and newest.status == "deployed" and reader.now() - newest.at >= least
    return installation.source(newest.version) if newest is not None and proven else ""


def _strange(installation: Installation, release: Release) -> str:
    """Tell why an annotation is not believed: whoever writes it could point at a release of others."""
    if not _VALID.fullmatch(installation.name):
        return f"{installation.name!r} is no name of a release of Helm"
    if installation.namespace != release.workload.ref.namespace:
        return f"{installation} is kept in another namespace than {release.workload.ref}"
    return ""


async def helm_way_back(release: Release, to: Revision, rules: Releases, reader: Reader) -> Undo | Held | None:
    """Find the revision of Helm with which a workload was healthy; None for what is not Helm's.

    `to` is the version of the workload that was. A revision that nobody has seen healthy is never taken: Helm calls
    `superseded` whatever came before, and also what never worked.
    """
    installation = installation_of(release.body)
    if installation is None:
        return None
    strange = _strange(installation, release)
    if strange:
        return Held(ELSEWHERE, f"{strange}: go back by hand")
    revisions = await stored(installation, reader)
    held = _unable(installation, rules, revisions) or _in_the_way(installation, revisions or (), rules, reader)
    return held or _chosen(release, to, installation, revisions or (), rules)


def _unable(installation: Installation, rules: Releases, revisions: Sequence[Stored] | None) -> Held | None:
    """Tell which setting is missing without which nothing can be done."""
    by_hand = f"or go back by hand: {installation.by_hand()}"
    if not rules.helm.service_account:
        setting = "name a ServiceAccount of the namespace in the policy (releases.helm.serviceAccount)"
        return Held(ACCOUNT, f"it is part of {installation}: {setting}, {by_hand}")
    if not rules.helm.image:
        setting = "name an image with helm in the policy (releases.helm.image)"
        return Held(IMAGE, f"it is part of {installation}: {setting}, {by_hand}")
    if revisions is None:
        right = f"apply knative/variants/helm to namespace {installation.namespace}"
        because = f"the revisions of {installation} can't be seen: its Secrets may not be listed; {right}, {by_hand}"
        return Held(RIGHTS, because, again=_SOON)
    if not revisions:
        because = f"{installation} has no Secret: Helm keeps it elsewhere (HELM_DRIVER), or it was taken over"
        return Held(HISTORY, f"{because}; go back by hand")
    return None


def _in_the_way(
    installation: Installation, revisions: Sequence[Stored], rules: Releases, reader: Reader
) -> Held | None:
    """See whether somebody is at work on a release, or has died of it."""
    newest = revisions[0]
    told = f"revision {newest.version} of {installation} is {newest.status}"
    if newest.pending:
        until = newest.at + rules.stuck_after
        if reader.now() < until:
            return Held(PENDING, f"{told} since {newest.at:%H:%M:%S}: somebody is at work", until)
        age = show_duration(reader.now() - newest.at)
        because = f"{told} for {age}: whoever did it has died, or still waits"
        return Held(PENDING, f"{because}. See that nobody is at it, and then: {installation.by_hand()}")
    if newest.status.startswith("uninstall"):
        return Held(PENDING, f"{told}: nothing is gone back to")
    return None


def _chosen(
    release: Release, to: Revision, installation: Installation, revisions: Sequence[Stored], rules: Releases
) -> Undo | Held:
    newest, stranger = revisions[0], _changed_by(release)
    if stranger or to.source == installation.source(newest.version):
        because = f"{stranger or 'somebody'} has changed {release.workload.ref} beside Helm"
        again = f"to write again what revision {newest.version} of {installation} says"
        return Held(DRIFT, f"{because}, which Helm can't undo; {again}: {installation.by_hand(str(newest.version))}")
    worked = [one for one in revisions[1:] if one.status in _WORKED]
    found = [one for one in worked if to.source == installation.source(one.version)]
    seen = [one for one in worked[:1] if _seen(one, release, to, revisions, rules.healthy_for)]
    good = max((one.version for one in (*found, *seen)), default=None)
    if good is None:
        many = f"none of the {len(worked)} earlier revisions of {installation} that have worked"
        because = f"{many} is known to have brought {to}, which was healthy"
        return Held(UNPROVEN, f"{because}: choose one by hand: {installation.by_hand()}")
    return Undo(installation, newest.version, good)


def _changed_by(release: Release) -> str:
    """Name who has set the template last, if that was not Helm: what Helm goes back to would not undo it."""
    entries = [
        (time, str(entry.get("manager", "")))
        for entry in release.body["metadata"].get("managedFields") or ()
        if "f:template" in ((entry.get("fieldsV1") or {}).get("f:spec") or {})
        and (time := moment(entry.get("time"))) is not None
    ]
    # Helm is called by its own name, as part of another's (terraform-provider-helm), or as its file is called.
    last = max(entries, default=None)
    return last[1] if last is not None and "helm" not in last[1].lower() else ""


def _seen(one: Stored, release: Release, to: Revision, revisions: Sequence[Stored], least: timedelta) -> bool:
    """Tell whether a workload was healthy at the version `to` with a revision of Helm, though nobody has noted that.

    It had this version all the while if no other was made until the next revision of Helm came; what is known of its
    health in that time is known of this revision, then.
    """
    until = min((next_ for next_ in revisions if next_.version > one.version), key=lambda next_: next_.version).at
    after = min((next_ for next_ in release.revisions if next_.number > to.number), key=lambda next_: next_.number)
    meanwhile = any(one.at <= other.created < until for other in release.revisions if other.hash != to.hash)
    if meanwhile or after.created < until:
        return False
    ready = release.ready_since(to)
    spans = [(ready, until)] if ready is not None else []
    if to.healthy_at and to.healthy_until:
        spans.append((to.healthy_at, to.healthy_until))
    return any(min(end, until) - max(begin, one.at) >= least for begin, end in spans)
