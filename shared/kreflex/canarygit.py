"""The traffic of a canary whose weight Git owns: taken away by a commit there, or live while the sync is suspended."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from kreflex.actions import register
from kreflex.canaries import Canary
from kreflex.cluster import Reader, Writer
from kreflex.decisions import Defer, Refuse
from kreflex.edits import Edit, Number, Place, editing
from kreflex.git import RECORD_TRAILER, Clone, cloned
from kreflex.gitactions import (
    SECRETS,
    TITLE,
    Change,
    RequestSync,
    access_to,
    begun_with,
    followed,
    in_line,
    propose,
    taken_to_its_end,
    time_for_git,
)
from kreflex.gitops import FOREIGN, RBAC, SYNC_SUSPENDED, Manager, manager_of
from kreflex.releases import Git
from kreflex.remedies import Live, Remedy, RemedyStep
from kreflex.rule import Rule
from kreflex.signals import Course
from kreflex.suspensions import SUSPENDED, ForgetSuspension, NoteSuspension, Suspension, loudly
from kreflex.views import JSON, Ref
from kreflex.weights import NGINX_WEIGHT, Share
from kreflex.world import World

_NOTES = (
    Rule("apps", "deployments", "patch"),
    Rule("networking.k8s.io", "ingresses", "patch"),
    Rule("gateway.networking.k8s.io", "httproutes", "patch"),
    Rule("networking.istio.io", "virtualservices", "patch"),
)


@dataclass(frozen=True)
class Owned:
    """What of a canary Git owns, and who writes each of these objects from there, by their UIDs."""

    canary: Canary
    managers: Mapping[str, Manager]

    def __contains__(self, ref: Ref) -> bool:
        return ref.uid in self.managers

    def __bool__(self) -> bool:
        return bool(self.managers)

    def __str__(self) -> str:
        return ", ".join(str(one) for one in self.all)

    @property
    def all(self) -> tuple[Manager, ...]:
        """Each of those who write something of it once."""
        return tuple({one.ref: one for one in self.managers.values()}.values())

    @property
    def told(self) -> str:
        """Name who owns what."""
        names = [str(one.ref) for one in self.canary.shares if one.ref in self]
        mine = [str(self.canary.workload.ref)] if self.canary.workload.ref in self else []
        return f"{self} owns {', '.join([*names, *mine])} in Git"

    @property
    def lives(self) -> tuple[Live, ...]:
        """What is written live where the sync is suspended: the workload first, by which the others are found again."""
        canary = self.canary
        itself = Live(canary.workload.ref, canary.workload.annotations)
        return (itself, *(Live(one.ref, one.annotations) for one in canary.shares if one.ref in self))


async def owned(canary: Canary, reader: Reader, argocd: str) -> Owned:
    """Tell what of a canary, and of what gives it its traffic, Git owns."""
    bodies = {canary.workload.ref.uid: canary.body, **{share.ref.uid: share.body for share in canary.shares}}
    found = {uid: await manager_of(body, reader, argocd) for uid, body in bodies.items()}
    return Owned(canary, {uid: one for uid, one in found.items() if one is not None})


# -- By a commit


@dataclass(frozen=True, kw_only=True)
class _EditInGit(RemedyStep):
    """Set numbers to 0 in the repository from which `by` writes them.

    `rules` are the policy's, and `home` is where its Secret is.
    """

    by: Manager
    numbers: tuple[Number, ...]
    rules: Git
    home: str

    rbac: ClassVar[tuple[Rule, ...]] = (*RBAC, SECRETS)

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - it writes to Git
        """Push one commit; one that is there already is not made again."""
        access = await access_to(self.rules, self.by, self.home, reader)
        record = f"{self.target.namespace}/{mark}"
        async with cloned(self.by.url, self.by.branch, access, time_for_git(reader.now())) as clone:
            edit = await editing(clone, self.numbers, record)
            if edit.done:
                return edit.done
            at, summary = await begun_with(record, reader) or (None, "")
            message = self._message(edit, clone, record, summary)
            commit = await clone.commit(edit.tree, [edit.head], message, self.rules.author, at)
            if self._proposes:
                return await propose(self.by, self.rules, clone, access, commit, message, record)
            await clone.push(commit, clone.branch)
            return f"pushed {commit[:12]} to {clone.branch} of {clone.url}"

    @property
    def _proposes(self) -> bool:
        return False

    def _message(self, edit: Edit, clone: Clone, record: str, summary: str) -> str:
        """Tell the incident, so that the history of the repository does."""
        lines = [
            f"Take the traffic from {self.target}"[:TITLE],
            "",
            f"{in_line(self.because)}.",
            *([f"It began with: {in_line(summary)}"] if summary else []),
            "",
            f"Only these numbers of {clone.branch} change, to 0:",
            *(f"- {in_line(change)}" for change in edit.changes),
            "",
            "To bring the canary back, take this commit back; it is judged anew then.",
            "",
            f"{RECORD_TRAILER}: {record}",
        ]
        return "\n".join(lines) + "\n"


@dataclass(frozen=True, kw_only=True)
class PushEdit(_EditInGit):
    """Push a commit to the branch that is followed."""

    verb: ClassVar[str] = "take in Git the traffic from"
    past: ClassVar[str] = "TookTrafficInGit"


@dataclass(frozen=True, kw_only=True)
class ProposeEdit(_EditInGit):
    """Push a commit to a branch of its own, and open a pull request if a forge is named."""

    verb: ClassVar[str] = "propose to take in Git the traffic from"
    past: ClassVar[str] = "ProposedNoTraffic"

    @property
    def _proposes(self) -> bool:
        return True


_PART = re.compile(r"(\w+)\[(\d+)\]")


def numbers_of(share: Share, by: Manager) -> tuple[Number, ...]:
    """Give the weights of a share that are not 0, each with its place."""
    found = [(_place(said), weight) for said, weight in share.weights.items() if weight]
    return tuple(Number(share.ref, by, place, weight, _at(share.body, place[:-1])) for place, weight in found)


def replicas_of(canary: Canary, by: Manager) -> Number:
    """Give the number of a canary's replicas."""
    return Number(
        canary.workload.ref, by, ("spec", "replicas"), canary.workload.replicas or 0, canary.body.get("spec") or {}
    )


def _place(said: str) -> Place:
    if said == NGINX_WEIGHT:
        return ("metadata", "annotations", NGINX_WEIGHT)
    steps = [step for name, index in _PART.findall(said) for step in (name, int(index))]
    return ("spec", *steps, "weight")


def _at(body: JSON, place: Place) -> JSON:
    found: Any = body
    for step in place:
        found = found[step]
    return dict(found)


@dataclass(frozen=True)
class WayByGit:
    """What is needed to choose the next step: the numbers that are to be 0 in Git, and for which remediation."""

    remedy: Remedy
    numbers: tuple[Number, ...]
    rules: Git
    because: str

    @property
    def by(self) -> Manager:
        """Who is asked to bring it; others that follow the same branch see it by themselves."""
        return self.numbers[0].by

    def refused(self, because: str, cause: str = "Git") -> Refuse:
        """Leave it to people."""
        return Refuse(f"{self.because}. {because}", cause, episode=self.remedy.episode, about=self.remedy.workload)


async def step_by_git(
    way: WayByGit, course: Course | None, world: World
) -> PushEdit | ProposeEdit | RequestSync | Defer | Refuse:
    """Choose the next step: set the numbers to 0 in Git, wait for people who merge it, and for its arrival."""
    pushed = taken_to_its_end(course, PushEdit) or taken_to_its_end(course, ProposeEdit)
    if pushed is not None:
        said = ", ".join(f"{one.ref} has {one.place[-1]} {one.now}" for one in way.numbers)
        return await followed(Change(way.remedy, way.by, way.rules, said), pushed, course, world)
    for one in way.numbers:
        if one.by.held:
            return way.refused(f"{one.by} owns {one.ref} in Git, and {one.by.held}")
        if not one.by.applied:
            return way.refused(f"{one.by} does not tell which revision of Git it has applied")
        foreign = way.rules.refuses(one.by.url)
        if foreign:
            return way.refused(f"{one.by} owns {one.ref} in Git, and {foreign}", FOREIGN)
    if len({(one.by.url, one.by.branch) for one in way.numbers}) > 1:
        names = ", ".join(sorted({one.by.url for one in way.numbers}))
        return way.refused(f"what gives it traffic is in several places of Git ({names}): set it to 0 there")
    kind = PushEdit if way.rules.mode == "Commit" else ProposeEdit
    return kind(way.because, remedy=way.remedy, by=way.by, numbers=way.numbers, rules=way.rules, home=world.home)


# -- Live, while the sync is suspended


@dataclass(frozen=True, kw_only=True)
class NoteSuspendedShare(NoteSuspension):
    """Note on a canary, or on what gives it traffic, that its sync is suspended."""

    rbac: ClassVar[tuple[Rule, ...]] = _NOTES


@dataclass(frozen=True, kw_only=True)
class ForgetSuspendedShares(ForgetSuspension):
    """Take the notes from a canary and from what gives it traffic: somebody has resumed the sync."""

    rbac: ClassVar[tuple[Rule, ...]] = _NOTES


def suspension(remedy: Remedy, because: str, gits: Owned) -> Suspension[NoteSuspendedShare]:
    """Tell what has to be suspended and noted until a canary's traffic may be taken live."""
    return Suspension(remedy, because, gits.lives, gits.all, NoteSuspendedShare)


def told_until_resumed(remedy: Remedy, gits: Owned) -> ForgetSuspendedShares | Refuse:
    """Say of a canary with our note how its sync is resumed; take the notes away when that was done."""
    ref = remedy.workload.ref
    suspended = tuple(one for one in gits.all if one.suspended)
    if not suspended:
        shares = gits.canary.shares
        noted = tuple(Live(one.ref, one.annotations) for one in shares if SYNC_SUSPENDED in one.annotations)
        because = f"{gits or 'its controller'} is at work again"
        return ForgetSuspendedShares(because, remedy=remedy, lives=noted)
    done = f"Kreflex has taken the traffic from {ref} live"
    because = loudly(suspended, done, "the canary's traffic")
    return Refuse(because, SUSPENDED, episode=remedy.episode, about=remedy.workload)


register(PushEdit, ProposeEdit, NoteSuspendedShare, ForgetSuspendedShares)
