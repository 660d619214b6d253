"""The way back where Git owns a release: a commit that takes the bad one back, pushed or proposed, and its arrival."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import ClassVar

from kreflex import templates
from kreflex.actions import Action, BlockedError, HopelessError, register
from kreflex.cluster import ACT_UNTIL, Reader, Writer
from kreflex.courses import CUT_OFF
from kreflex.decisions import Defer, Refuse, Skip
from kreflex.forges import Forge, Proposal, repository_in
from kreflex.git import RECORD_TRAILER, REVERTS_TRAILER, Access, Clone, access_of, cloned
from kreflex.gitops import ARGO, DENIED, FOREIGN, RBAC, SOURCES, Manager, good_revision, path_of
from kreflex.histories import Histories
from kreflex.records import API, Taken
from kreflex.releaseactions import ReleaseStep, remedy_of
from kreflex.releases import Git
from kreflex.remedies import Remedy, RemedyStep
from kreflex.revisions import Release, Revision, noted
from kreflex.rule import Rule
from kreflex.signals import Course
from kreflex.undoing import Undoing, Wrong, undoing
from kreflex.views import time_of
from kreflex.world import World

# How the note of a step begins that has only proposed something, whatever was asked for.
PROPOSED = "proposed: "
REFRESH = "argocd.argoproj.io/refresh"
# https://fluxcd.io/flux/components/source/gitrepositories/#triggering-a-reconcile
REQUESTED = "reconcile.fluxcd.io/requestedAt"
SECRETS = Rule("", "secrets", "get", "home")
# All of git's work has to fit into one attempt, and leave time for the write that tells of it.
_LONGEST, _RESERVE = timedelta(seconds=20), timedelta(seconds=3)
_SOON, _SOMETIMES = timedelta(seconds=10), timedelta(minutes=1)
TITLE, _BECAUSE = 72, 2000


@dataclass(frozen=True, kw_only=True)
class _InGit(ReleaseStep):
    """Take back in Git what has brought a bad release, so that the version `to` comes back.

    `by` is who writes the release from Git, `rules` are the policy's, and `home` is where its Secret is.
    """

    by: Manager
    to: Revision
    rules: Git
    home: str

    rbac: ClassVar[tuple[Rule, ...]] = (*RBAC, SECRETS)
    remembering: ClassVar[bool] = True

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Push one commit; one that is there already is not made again."""
        access = await access_to(self.rules, self.by, self.home, reader)
        record = f"{self.target.namespace}/{mark}"
        async with cloned(self.by.url, self.by.branch, access, time_for_git(reader.now())) as clone:
            plan = await undoing(clone, self._wrong(record))
            if plan.done:
                return f"{plan.done[:12]} is in {clone.branch} of {clone.url} already"
            begun = await begun_with(record, reader)
            at, summary = begun or (self.release.changed_at, "")
            message = self._message(plan, clone, record, summary)
            commit = await clone.commit(plan.tree, [plan.head], message, self.rules.author, at)
            # Before it is done, so that whoever comes after a kill knows that it was not done by chance.
            current = self.release.current
            await Histories(reader, writer).condemn(self.target, noted(self.release, current), mark)
            if plan.wide or self._proposes:
                return await propose(self.by, self.rules, clone, access, commit, message, record)
            await clone.push(commit, clone.branch)
            return f"pushed {commit[:12]} to {clone.branch} of {clone.url}"

    @property
    def _proposes(self) -> bool:
        return False

    def _wrong(self, record: str) -> Wrong:
        return Wrong(
            workload=self.target,
            paths=self.by.paths,
            applied=self.by.applied,
            good=good_revision(self.by, self.to.source, left_at(self.release, self.to)),
            images=templates.images(self.to.template),
            record=record,
            others=self.by.others,
        )

    def _message(self, plan: Undoing, clone: Clone, record: str, summary: str) -> str:
        """Tell the incident, so that the history of the repository does."""
        good, bad = (f"revision {one.number} ({one.hash})" for one in (self.to, self.release.current))
        proof = f"With it {plan.proof}." if plan.proof else "The files don't tell what is made of them: look at it."
        lines = [
            f"Take back {plan.commits[0].sha[:12]}: {self.target} fails with it"[:TITLE],
            "",
            f"{in_line(self.because)}.",
            *([f"It began with: {in_line(summary)}"] if summary else []),
            "",
            f"It was well with {good}, and is ill with {bad}, which {self.by} has brought from {clone.branch}.",
            "Taken back is only what these commits did to these files, and nothing that came later:",
            *(f"- {in_line(str(commit))}" for commit in plan.commits),
            *(f"  {in_line(file)}" for file in plan.files),
            "",
            proof,
            *([f"Attention: {plan.wide}."] if plan.wide else []),
            "",
            f"{RECORD_TRAILER}: {record}",
            *(f"{REVERTS_TRAILER}: {commit.sha}" for commit in plan.commits),
        ]
        return "\n".join(lines) + "\n"


async def begun_with(record: str, reader: Reader) -> tuple[datetime, str] | None:
    """Read of a record when it began, so that each attempt makes the same commit, and what was seen."""
    namespace, _, name = record.partition("/")
    body = await reader.get(f"/apis/{API}/namespaces/{namespace}/remediations/{name}")
    if body is None:
        return None
    return time_of(body["metadata"]["creationTimestamp"]), str(body["spec"]["fault"].get("summary", ""))


async def propose(by: Manager, rules: Git, clone: Clone, access: Access, commit: str, message: str, record: str) -> str:
    """Push a commit to the branch of its record, and open a pull request if a forge is named; nothing twice."""
    head = branch_of(record.rpartition("/")[2])
    known = await clone.remote_head(head)
    if known is None:
        await clone.push(commit, head)
    elif known.record != record:
        raise BlockedError(f"{head} of {clone.url} is there already, and is not ours: remove it", DENIED)
    forge = forge_of(rules, by, access)
    if forge is None:
        return f"{PROPOSED}branch {head} of {clone.url}, to be merged into {clone.branch}"
    title, _, text = message.partition("\n")
    proposal = await forge.propose(head, clone.branch, title, text.strip())
    return f"{PROPOSED}{proposal.url}"


@dataclass(frozen=True, kw_only=True)
class PushRevert(_InGit):
    """Push a commit to the branch that is followed; where it would change other workloads, too, only propose it."""

    verb: ClassVar[str] = "take back in Git the release of"
    past: ClassVar[str] = "TookBackInGit"


@dataclass(frozen=True, kw_only=True)
class ProposeRevert(_InGit):
    """Push a commit to a branch of its own, and open a pull request if a forge is named."""

    verb: ClassVar[str] = "propose to take back in Git the release of"
    past: ClassVar[str] = "ProposedInGit"

    @property
    def _proposes(self) -> bool:
        return True


@dataclass(frozen=True, kw_only=True)
class RequestSync(RemedyStep):
    """Ask Git's controller to look into the repository now; it would by itself, minutes later."""

    by: Manager

    rbac: ClassVar[tuple[Rule, ...]] = (
        *RBAC,
        Rule(ARGO, "applications", "patch", "cluster", notes=(REFRESH,)),
        Rule(SOURCES, "gitrepositories", "patch", "cluster", notes=(REQUESTED,)),
    )
    verb: ClassVar[str] = "ask for a sync of"
    past: ClassVar[str] = "AskedForSync"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Leave the note for which the controllers look; another value each time, for Flux."""
        asked = self.by.source or self.by.ref
        note = {REFRESH: "normal"} if asked.kind == "Application" else {REQUESTED: f"{reader.now().isoformat()} {mark}"}
        await writer.merge(path_of(asked), {"metadata": {"uid": asked.uid, "annotations": note}})
        return f"{asked} was asked"


def left_at(release: Release, good: Revision) -> datetime:
    """Tell when a version was left for the next one."""
    later = [one for one in release.revisions if good.number < one.number < release.current.number]
    return min([release.changed_at, *(one.created for one in later)])


def branch_of(mark: str) -> str:
    """Name the branch of a proposal after its record."""
    return f"kreflex/{mark}"


async def access_to(rules: Git, by: Manager, home: str, reader: Reader) -> Access:
    """Read the Secret that the policy names, for a repository that it names, too; raises HopelessError for others.

    Whoever may write an Application or a GitRepository could else have our credentials sent to a host of his own.
    """
    foreign = rules.refuses(by.url)
    if foreign:
        raise HopelessError(foreign, FOREIGN)
    if not rules.secret:
        return access_of(None)
    secret = await reader.get(f"/api/v1/namespaces/{home}/secrets/{rules.secret}")
    if secret is None:
        raise BlockedError(
            f"Secret {home}/{rules.secret} is not there: a policy's releases.git.secret names it", DENIED
        )
    return access_of(secret)


def forge_of(rules: Git, by: Manager, access: Access) -> Forge | None:
    """Tell whose API is asked about pull requests; None if the policy names none."""
    return Forge(rules.forge, rules.api, repository_in(by.url), access) if rules.forge else None


def time_for_git(now: datetime) -> float:
    """Tell when git has to be done with this attempt, by the loop's clock."""
    until = ACT_UNTIL.get()
    left = _LONGEST if until is None else min(_LONGEST, until - now - _RESERVE)
    return asyncio.get_running_loop().time() + max(left.total_seconds(), 0)


def in_line(text: str) -> str:
    """Keep a text in its line: what somebody else has written must not look like a trailer of ours."""
    return " ".join(text.split())[:_BECAUSE].rstrip(".")


@dataclass(frozen=True, kw_only=True)
class WayInGit:
    """What is needed to choose the next step: the bad release, the version to go back to, and who owns it in Git."""

    release: Release
    to: Revision
    by: Manager
    rules: Git
    because: str
    episode: str
    # The whole remediation in words, where that is not all done in Git.
    course: str = ""

    @property
    def bad(self) -> str:
        """The hash of the version that is taken back."""
        return self.episode.partition("/")[0] or self.release.current.hash

    @property
    def plan(self) -> str:
        """Tell the whole of it, as people approve it."""
        how = "propose" if self.rules.mode == "PullRequest" else "push"
        where = f"{self.by.branch or 'the default branch'} of {self.by.url}"
        return f"{how} a commit for {where} that brings back {self.to.hash} instead of {self.bad}"

    def refused(self, because: str, cause: str) -> Refuse:
        """Leave it to people."""
        return Refuse(because, cause, episode=self.episode, about=self.release.workload)

    def deferred(self, because: str, until: datetime) -> Defer:
        """Look again later."""
        return Defer(because, until, self.episode, self.release.workload)


async def step_in_git(
    way: WayInGit, course: Course | None, world: World
) -> PushRevert | ProposeRevert | RequestSync | Defer | Refuse | Skip:
    """Choose the next step: take it back in Git, wait for people who merge it, and for its arrival in the cluster."""
    if way.release.current.hash != way.bad:
        return Skip(f"{way.by} has brought {way.release.current.hash} instead of {way.bad}")
    pushed = taken_to_its_end(course, PushRevert) or taken_to_its_end(course, ProposeRevert)
    if pushed is None:
        return _first(way, world)
    remedy = remedy_of(way.release, way.episode, way.plan)
    return await followed(Change(remedy, way.by, way.rules), pushed, course, world)


@dataclass(frozen=True)
class Change:
    """A commit that was pushed or proposed, for which remediation, and who is to bring it.

    `meanwhile` says what lasts until people have merged it.
    """

    remedy: Remedy
    by: Manager
    rules: Git
    meanwhile: str = ""

    def refused(self, because: str, cause: str) -> Refuse:
        """Leave it to people."""
        return Refuse(because, cause, episode=self.remedy.episode, about=self.remedy.workload)

    def deferred(self, because: str, until: datetime) -> Defer:
        """Look again later."""
        return Defer(because, until, self.remedy.episode, self.remedy.workload)


async def followed(change: Change, pushed: Taken, course: Course | None, world: World) -> RequestSync | Defer | Refuse:
    """Wait for people who merge what is proposed, and for its arrival in the cluster, which the caller sees."""
    since, by = pushed.last, change.by
    if pushed.note.startswith(PROPOSED):
        proposal = await _proposal(change, course, world)
        if proposal is not None and proposal.state == "closed":
            return change.refused(f"people have closed {proposal.url} without merging it", "Declined")
        if proposal is None or proposal.state == "open":
            waits = f"{pushed.note.removeprefix(PROPOSED)} waits for people"
            told = f"{waits}: until it is merged, {change.meanwhile}" if change.meanwhile else waits
            return change.deferred(told, world.now() + _SOMETIMES)
    asked = taken_to_its_end(course, RequestSync)
    if asked is None or asked.last < since:
        return RequestSync(f"{by} follows it", remedy=change.remedy, by=by)
    late = asked.last + change.rules.within
    if world.now() >= late:
        because = by.complaint or "it says nothing of why"
        return change.refused(f"{by} has not brought what Git says since {since:%H:%M:%S}: {because}", "GitLate")
    return change.deferred(f"{by} is to bring what Git says", min(late, world.now() + _SOON))


def taken_to_its_end(course: Course | None, kind: type[Action]) -> Taken | None:
    """Tell of a step that was taken to its end; of one that was cut off only Git knows, so it is taken again."""
    found = course.took(kind.__name__) if course is not None else None
    return found if found is not None and found.note != CUT_OFF else None


def _first(way: WayInGit, world: World) -> PushRevert | ProposeRevert | Refuse:
    if way.by.held:
        return way.refused(f"{way.by} owns it in Git, and {way.by.held}", "Git")
    if not way.by.applied:
        return way.refused(f"{way.by} does not tell which revision of Git it has applied", "Git")
    foreign = way.rules.refuses(way.by.url)
    if foreign:
        return way.refused(f"{way.by} owns it in Git, and {foreign}", FOREIGN)
    kind = PushRevert if way.rules.mode == "Commit" else ProposeRevert
    return kind(
        way.because,
        release=way.release,
        episode=way.episode,
        course=way.plan,
        by=way.by,
        to=way.to,
        rules=way.rules,
        home=world.home,
    )


async def _proposal(change: Change, course: Course | None, world: World) -> Proposal | None:
    try:
        access = await access_to(change.rules, change.by, world.home, world.cluster)
        forge = forge_of(change.rules, change.by, access)
        if forge is None or course is None:
            return None
        return await forge.proposal(branch_of(course.record), change.by.branch)
    except BlockedError:
        # Whether it was merged is seen in the cluster, too.
        return None


register(PushRevert, ProposeRevert, RequestSync)
