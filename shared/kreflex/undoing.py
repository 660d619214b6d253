"""What is to be taken back in Git, and whether it would help: the commits of a path between a good and a bad revision.

Only what they did below the paths is taken back, since only that has come into the cluster. Nothing is written here.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from kreflex.actions import BlockedError, HopelessError
from kreflex.git import Clone, Commit, Conflict
from kreflex.gitops import CONFLICT, ELSEWHERE, OWN_ROLLBACK, SAME_AGAIN, UNKNOWN, inside
from kreflex.kinds import OWNING
from kreflex.manifests import bodies, documents
from kreflex.views import JSON, Ref

AHEAD = "GitAhead"
# A release that consists of more commits than this is no release; nor is a folder of more files a workload's.
_MOST_COMMITS, MOST_FILES, _MOST_BASES = 50, 200, 20
_LOOK_BACK = 20
KUSTOMIZE = ("kustomization.yaml", "kustomization.yml", "Kustomization")
_RENDERED = (*KUSTOMIZE, "Chart.yaml", "jsonnetfile.json")
MANIFESTS = (".yaml", ".yml", ".json")
_NAMED = 5


@dataclass(frozen=True)
class Wrong:
    """What is ill: a workload that Git's `applied` revision has brought below `paths`.

    `good` is the last good revision, "" if it has to be found by the `images` that the workload had then. `others` are
    the other workloads that come from the same place.
    """

    workload: Ref
    paths: tuple[str, ...]
    applied: str
    good: str
    images: tuple[str, ...]
    record: str
    others: tuple[str, ...] = ()


@dataclass(frozen=True)
class Undoing:
    """What would be pushed: a tree on top of `head`, without what `commits` did to `files`.

    `proof` tells how one knows that the workload is as it was then, "" if the files don't tell; `wide` tells what else
    would change with it, "" if nothing would. `done` is the commit that has done all of it already.
    """

    head: str
    tree: str
    commits: tuple[Commit, ...]
    files: tuple[str, ...]
    proof: str = ""
    wide: str = ""
    done: str = ""


async def undoing(clone: Clone, wrong: Wrong) -> Undoing:
    """Plan it; raises HopelessError where people have to look, BlockedError where one has to wait."""
    if not await clone.has(wrong.applied):
        because = f"{wrong.applied[:12]}, which is in the cluster, is not in {clone.branch} of {clone.url}"
        raise HopelessError(f"{because}: the branch was rewritten, or it is older than what is fetched", UNKNOWN)
    ours = [commit for commit in await clone.log(clone.head) if commit.record]
    mine = next((commit for commit in ours if commit.record == wrong.record), None)
    if mine is not None:
        return Undoing(clone.head, "", (), (), done=mine.sha)
    paths = await with_bases(clone, wrong.applied, wrong.paths)
    await _nobody_is_ahead(clone, wrong, paths)
    good = wrong.good or await _found_by_images(clone, wrong, paths)
    commits, then = await _since_ours(clone, good, wrong, paths, await _between(clone, good, wrong, paths))
    await _never_again(clone, wrong, paths, commits, ours)
    tree = await clone.tree_of(clone.head)
    for commit in commits:
        tree = await _without(clone, commit, tree, paths)
    await _as_it_was(clone, then, wrong, paths, commits, tree)
    files = await clone.changed(await clone.tree_of(clone.head), tree)
    if not files:
        raise HopelessError(f"what {_listed(commits)} did below {_shown(paths)} has been taken back already", ELSEWHERE)
    plan = Undoing(clone.head, tree, commits, files)
    return await _judged(clone, wrong, plan, paths)


async def _nobody_is_ahead(clone: Clone, wrong: Wrong, paths: Sequence[str]) -> None:
    """Leave it to people who are at it already: what they have pushed is not in the cluster yet."""
    newer = await clone.log(f"{wrong.applied}..{clone.head}", paths=paths)
    # A merge that has kept the files of one side is in no log of them.
    if newer or not await _same_trees(clone, wrong.applied, clone.head, paths):
        what = _listed(newer) or f"{clone.head[:12]}, a merge,"
        raise BlockedError(f"{what} is newer than what is in the cluster, and may mend it: it is waited for", AHEAD)


async def _between(clone: Clone, good: str, wrong: Wrong, paths: Sequence[str]) -> tuple[Commit, ...]:
    if not await clone.has(good):
        raise HopelessError(f"{good[:12]}, which was good, is not in {clone.branch} of {clone.url}", UNKNOWN)
    # A merge is taken back as a whole, by its difference to what was there before it.
    commits = await clone.log("--first-parent", f"{good}..{wrong.applied}", paths=paths)
    # What has taken the traffic from a canary was ours, too, and no part of the release.
    commits = [one for one in commits if one.reverts or not one.record]
    since = f"between {good[:12]}, which was good, and {wrong.applied[:12]}, which is in the cluster"
    if not commits:
        because = f"nothing below {_shown(paths)} has changed {since}"
        raise HopelessError(
            f"{because}: what is wrong comes from elsewhere, such as the controller's own settings", ELSEWHERE
        )
    if len(commits) > _MOST_COMMITS:
        raise HopelessError(f"{len(commits)} commits lie {since}: too many to take back", ELSEWHERE)
    return tuple(commits)


async def _since_ours(
    clone: Clone, good: str, wrong: Wrong, paths: Sequence[str], commits: tuple[Commit, ...]
) -> tuple[tuple[Commit, ...], str]:
    """Leave out what a rollback of ours has taken back since: what it went back to was good, and is told, too."""
    ours = next((one for one in await clone.log(f"{good}..{wrong.applied}", paths=paths) if one.reverts), None)
    if ours is None:
        return commits, good
    # The oldest that has it is itself, or the merge by which it came.
    *since, arrival = [one for one in commits if await clone.has(ours.sha, one.sha)]
    if not since:
        because = f"{ours} is a rollback of Kreflex itself ({ours.record})"
        raise HopelessError(f"{because}: what it went back to fails as well", OWN_ROLLBACK)
    return tuple(since), arrival.sha


async def _never_again(
    clone: Clone, wrong: Wrong, paths: Sequence[str], commits: Sequence[Commit], ours: Sequence[Commit]
) -> None:
    """Refuse to take back again what we have taken back once."""
    reverted = {sha: commit for commit in ours[:_LOOK_BACK] for sha in commit.reverts}
    again = next((reverted[commit.sha] for commit in commits if commit.sha in reverted), None)
    for sha, commit in reverted.items():
        if again is None and await _same_files(clone, sha, wrong.applied, paths):
            again = commit
    if again is not None:
        raise HopelessError(f"{again} has taken this version back before ({again.record}): people decide", SAME_AGAIN)


async def _same_files(clone: Clone, one: str, other: str, paths: Sequence[str]) -> bool:
    return any([await clone.tree_of(one, path) for path in paths]) and await _same_trees(clone, one, other, paths)


async def _same_trees(clone: Clone, one: str, other: str, paths: Sequence[str]) -> bool:
    trees = [[await clone.tree_of(revision, path) for path in paths] for revision in (one, other)]
    return trees[0] == trees[1]


async def _as_it_was(
    clone: Clone, then: str, wrong: Wrong, paths: Sequence[str], commits: Sequence[Commit], tree: str
) -> None:
    """Refuse what would bring another state than the one that was good: what was merged in between may be part of it.

    Who merges the main branch into his own, and pushes that as the main one, makes all that the others did before look
    like a part of his merge.
    """
    between = await clone.log("--first-parent", f"{then}..{wrong.applied}", paths=paths)
    if len(between) == len(commits) and not await _same_trees(clone, then, tree, paths):
        because = f"without {_listed(commits)} it would not be as in {then[:12]}, which was good"
        raise HopelessError(
            f"{because}: branches were merged in between in another way; people have to do it", CONFLICT
        )


async def _without(clone: Clone, commit: Commit, tree: str, paths: Sequence[str]) -> str:
    if not commit.parents:
        raise HopelessError(f"{commit} has nothing before it, or that is too old to be fetched", UNKNOWN)
    try:
        return await clone.without(commit, tree, paths)
    except Conflict as conflict:
        files = ", ".join(conflict.files[:_NAMED])
        because = f"{commit} can't be taken back: {files} was changed again since"
        raise HopelessError(f"{because}; people have to do it", CONFLICT) from conflict


# -- What the files say


async def _judged(clone: Clone, wrong: Wrong, plan: Undoing, paths: Sequence[str]) -> Undoing:
    """Tell what would be in the cluster then, as far as files tell that are applied as they are."""
    if await _rendered(clone, plan.head, paths):
        wide = f"its files also make {_some(wrong.others)}" if wrong.others else _shared(plan.files, wrong.paths)
        return Undoing(plan.head, plan.tree, plan.commits, plan.files, wide=wide)
    before, after = await _manifests(clone, plan.head, plan.files), await _manifests(clone, plan.tree, plan.files)
    touched = [key for key in {**before, **after} if before.get(key) != after.get(key)]
    own = next((key for key in touched if _is(key, wrong.workload)), None)
    others = [f"{kind} {name}" for group, kind, _, name in touched if (group, kind) in OWNING]
    others = [name for name in others if name != f"{wrong.workload.kind} {wrong.workload.name}"]
    proof = ""
    if own is not None:
        images = images_in(after.get(own) or {})
        if images != wrong.images:
            because = f"Git would have {_some(images) or 'no'} for {wrong.workload} then, not {_some(wrong.images)}"
            raise HopelessError(f"taking back {_listed(plan.commits)} does not bring it back: {because}", ELSEWHERE)
        proof = f"{wrong.workload} has {_some(images)} again, as when it was well"
    wide = f"it also changes {_some(others)}" if others else ""
    return Undoing(plan.head, plan.tree, plan.commits, plan.files, proof, wide)


def _shared(files: Sequence[str], paths: Sequence[str]) -> str:
    """Tell which files others may be made of, too: a base, a chart, or all that somebody has named beside the path."""
    outside = [file for file in files if file != paths[0] and not _covers(paths[0], file)]
    return f"{_some(outside)} is not below {_shown(paths[:1])}, so others may be made of it" if outside else ""


async def _rendered(clone: Clone, revision: str, paths: Sequence[str]) -> bool:
    names = {file.rpartition("/")[2] for file in await clone.files(revision, paths)}
    return any(name in _RENDERED or name.endswith((".jsonnet", ".tpl", ".cue")) for name in names)


Key = tuple[str, str, str, str]


async def _manifests(clone: Clone, tree: str, files: Sequence[str]) -> dict[Key, JSON]:
    """Read the objects in files, by group, kind, namespace and name."""
    found: dict[Key, JSON] = {}
    for file in [name for name in files if name.endswith(MANIFESTS)][:MOST_FILES]:
        found |= {_key(body): body for body in await _objects(clone, tree, file)}
    return found


async def _objects(clone: Clone, tree: str, file: str) -> list[JSON]:
    content = await clone.content(tree, file)
    # Beside the loop: a long file takes seconds, in which others would not be answered.
    return await asyncio.to_thread(lambda: list(documents(content)))


def _key(body: JSON) -> Key:
    meta, group = body["metadata"], str(body["apiVersion"]).rpartition("/")[0]
    return group, str(body["kind"]), str(meta.get("namespace") or ""), str(meta.get("name", ""))


def _is(key: Key, workload: Ref) -> bool:
    group = workload.api_version.rpartition("/")[0]
    return key in [(group, workload.kind, where, workload.name) for where in ("", workload.namespace)]


def images_in(workload: Mapping[str, object]) -> tuple[str, ...]:
    """Give the images of a workload's template, sorted."""
    spec: object = workload
    for key in ("spec", "template", "spec"):
        spec = spec.get(key) if isinstance(spec, Mapping) else None
    if not isinstance(spec, Mapping):
        return ()
    listed = [spec.get(key) for key in ("containers", "initContainers")]
    containers = [one for some in listed if isinstance(some, list) for one in some]
    return tuple(sorted(str(one.get("image", "")) for one in containers if isinstance(one, Mapping)))


async def _found_by_images(clone: Clone, wrong: Wrong, paths: Sequence[str]) -> str:
    """Find the newest revision before the present one in which the workload has the images of when it was well."""
    files = [name for name in await clone.files(wrong.applied, paths) if name.endswith(MANIFESTS)]
    plain = len(files) <= MOST_FILES and not await _rendered(clone, wrong.applied, paths)
    file = await _file_of(clone, wrong, files) if plain else None
    earlier = await clone.log("--first-parent", f"-{_LOOK_BACK}", wrong.applied, paths=[file]) if file else []
    for later, commit in pairwise(earlier):
        read = [body for body in await _objects(clone, commit.sha, file or "") if _is(_key(body), wrong.workload)]
        if any(images_in(body) == wrong.images for body in read):
            # Up to there nothing was wrong, whatever else was committed since.
            return later.parents[0]
    because = f"nobody knows which commit brought {_some(wrong.images)}, with which {wrong.workload} was well"
    raise HopelessError(f"{because}: neither its history nor its controller's nor its files tell", UNKNOWN)


async def _file_of(clone: Clone, wrong: Wrong, files: Sequence[str]) -> str | None:
    for file in files:
        if any(_is(_key(body), wrong.workload) for body in await _objects(clone, wrong.applied, file)):
            return file
    return None


async def with_bases(clone: Clone, revision: str, paths: Sequence[str]) -> tuple[str, ...]:
    """Follow kustomizations to the folders and files that they are made of: these come into the cluster, too."""
    seen, left = dict.fromkeys(paths), list(paths)
    while left and len(seen) < _MOST_BASES:
        folder = left.pop()
        for said in [await kustomization(clone, revision, folder, name) for name in KUSTOMIZE]:
            further = [path for one in _local(said) if (path := inside(one, folder)) not in seen]
            seen |= dict.fromkeys(further)
            left += further
    return tuple(path for path in seen if not any(_covers(other, path) for other in seen))


async def kustomization(clone: Clone, revision: str, folder: str, name: str) -> object:
    content = await clone.content(revision, f"{folder}/{name}".lstrip("/"))
    return next(iter(await asyncio.to_thread(bodies, content)), None)


def _local(said: object) -> Iterator[str]:
    for key in ("resources", "components", "bases"):
        listed = said.get(key) if isinstance(said, dict) else None
        for path in listed if isinstance(listed, list) else ():
            if isinstance(path, str) and "://" not in path and "?ref=" not in path:
                yield path


def _covers(other: str, path: str) -> bool:
    return other != path and (other == "" or path.startswith(f"{other}/"))


def _listed(commits: Sequence[Commit]) -> str:
    return _some([str(commit) for commit in commits])


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _shown(paths: Sequence[str]) -> str:
    return _some([path or "the top of the repository" for path in paths])
