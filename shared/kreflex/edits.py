"""Numbers in a repository's manifests that are to be 0, while all else stays as it is, to the last space and comment.

Only where the files are applied as they are. What kustomize patches, or Helm renders, nobody can tell from the files.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from kreflex.actions import BlockedError, HopelessError
from kreflex.git import Clone
from kreflex.gitops import ELSEWHERE, UNKNOWN, Manager
from kreflex.manifests import bodies, bounded, documents
from kreflex.undoing import AHEAD, KUSTOMIZE, MANIFESTS, MOST_FILES, kustomization, with_bases
from kreflex.views import JSON, Ref

Place = tuple[str | int, ...]
# With these keys a kustomization changes no number of ours, and no name.
# https://kubectl.docs.kubernetes.io/references/kustomize/kustomization/
_AS_IT_IS = {
    *("apiVersion", "kind", "metadata", "resources", "namespace", "images", "labels", "commonLabels", "buildMetadata"),
    *("configMapGenerator", "secretGenerator", "generatorOptions", "sortOptions", "crds"),
}
_RENDERED = ("Chart.yaml", "jsonnetfile.json")
_RENDERED_ENDS = (".jsonnet", ".tpl", ".cue", ".libsonnet")
# By these an entry of a list is told from its neighbours.
_NAMES = ("name", "destination")
# It is read in Python, where a megabyte takes a second.
_MOST_CHARACTERS = 1_000_000


@dataclass(frozen=True)
class Number:
    """A number of an object that `by` writes from Git; `entry` is what it stands in, in the cluster."""

    ref: Ref
    by: Manager
    place: Place
    now: int
    entry: JSON

    def __str__(self) -> str:
        return f"{self.ref}: {shown(self.place)}"


def shown(place: Place) -> str:
    """Write a place as people do, such as `spec.rules[0].backendRefs[1].weight`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")


@dataclass(frozen=True)
class Edit:
    """What would be pushed: a tree on top of `head`, in which only these numbers differ, each told in words.

    `done` says why there is nothing to do, "" if there is.
    """

    head: str
    tree: str
    changes: tuple[str, ...] = ()
    done: str = ""


async def editing(clone: Clone, numbers: Sequence[Number], record: str) -> Edit:
    """Plan it; raises HopelessError where people have to look, BlockedError where one has to wait."""
    mine = next((one for one in await clone.log(clone.head) if one.record == record), None)
    if mine is not None:
        return Edit(clone.head, "", done=f"{mine.sha[:12]} is in {clone.branch} of {clone.url} already")
    tree, changes = await clone.tree_of(clone.head), list[str]()
    for number in numbers:
        file = await _file_of(clone, number)
        before = await clone.content(tree, file)
        after, was = without(before, number)
        if after != before:
            await _nobody_is_ahead(clone, number, file)
            tree = await clone.with_file(tree, file, after)
            changes.append(f"{file}: {shown(number.place)} of {number.ref} was {was}")
    if not changes:
        return Edit(clone.head, "", done=f"{clone.branch} of {clone.url} says 0 already")
    return Edit(clone.head, tree, tuple(changes))


async def _nobody_is_ahead(clone: Clone, number: Number, file: str) -> None:
    """Leave it to people who are at it already: what they have pushed is not in the cluster yet."""
    newer = await clone.log(f"{number.by.applied}..{clone.head}", paths=[file])
    if any(not one.record for one in newer):
        raise BlockedError(f"{newer[0]} has changed {file}, and is not in the cluster yet: it is waited for", AHEAD)


async def _file_of(clone: Clone, number: Number) -> str:
    """Find the one file that says what an object is."""
    by, ref = number.by, number.ref
    if not await clone.has(by.applied):
        because = f"{by.applied[:12]}, which is in the cluster, is not in {clone.branch} of {clone.url}"
        raise HopelessError(f"{because}: the branch was rewritten, or it is older than what is fetched", UNKNOWN)
    paths = await with_bases(clone, clone.head, by.paths)
    names = await clone.files(clone.head, paths)
    await _as_they_are(clone, names)
    files = [name for name in names if name.endswith(MANIFESTS)]
    if len(files) > MOST_FILES:
        raise HopelessError(f"{by} brings {len(files)} files: which of them has {ref}, nobody looks up", ELSEWHERE)
    if files:
        await clone.fetch_contents(clone.head, files)
    found = [name for name in files if any(_is(one, ref) for one in documents(await clone.content(clone.head, name)))]
    if len(found) != 1:
        told = f"{len(found)} files" if found else "no file"
        raise HopelessError(f"{told} of what {by} brings has {ref} as it is: set {number} to 0 in Git", ELSEWHERE)
    return found[0]


async def _as_they_are(clone: Clone, names: Sequence[str]) -> None:
    for name in names:
        folder, _, last = name.rpartition("/")
        if last in _RENDERED or last.endswith(_RENDERED_ENDS):
            raise HopelessError(f"{name} renders what is applied: take the canary's traffic away there", ELSEWHERE)
        said = await kustomization(clone, clone.head, folder, last) if last in KUSTOMIZE else {}
        strange = sorted(set(said) - _AS_IT_IS) if isinstance(said, dict) else ["no mapping"]
        if strange:
            because = f"{name} has {', '.join(strange)}, so that the files don't tell what is applied"
            raise HopelessError(f"{because}: take the canary's traffic away there", ELSEWHERE)


# -- One file


def without(content: bytes, number: Number) -> tuple[bytes, str]:
    """Give a file in which a number is 0 and all else is as it was, and what it was; raises HopelessError."""
    text, place = content.decode(), number.place
    nodes = [node for node in _nodes(text) if _is(_plain(node), number.ref)]
    if len(nodes) != 1:
        raise HopelessError(f"{number.ref} is {len(nodes)} times in its file: which one counts?", ELSEWHERE)
    entry = _plain(_at(nodes[0], place[:-1], number))
    if any(isinstance(entry, dict) and entry.get(name) != number.entry.get(name) for name in _NAMES):
        raise HopelessError(f"{number} is something else in Git than in the cluster: look at both", ELSEWHERE)
    scalar = _at(nodes[0], place, number)
    start, end, was = scalar.start_mark.index, scalar.end_mark.index, str(scalar.value)
    written = text[start:end]
    if not was.isdigit() or written not in {was, f"'{was}'", f'"{was}"'}:
        raise HopelessError(f"{number} is written as {written[:40]} in Git, and not as a number", ELSEWHERE)
    after = text[:start] + written.replace(was, "0") + text[end:]
    _only_that(text, after, number)
    return after.encode(), was


def _only_that(before: str, after: str, number: Number) -> None:
    """Look at all of the file once more: an anchor, for one, may stand for other places, too."""
    old, new = (_unshared(text) for text in (before, after))
    for body in _flat(old):
        if _is(body, number.ref):
            _set_to_0(body, number.place)
    if old != new:
        raise HopelessError(f"{number} can't be changed in its file by itself", ELSEWHERE)


def _unshared(text: str) -> list[Any]:
    """Read a file so that what an anchor stands for is there as often as it is named."""
    read: list[Any] = json.loads(json.dumps(bodies(text), default=str))
    return read


def _set_to_0(body: Any, place: Place) -> None:
    for step in place[:-1]:
        body = body[step]
    body[place[-1]] = type(body[place[-1]])(0)


def _at(node: Any, place: Place, number: Number) -> Any:
    """Follow a place from node to node."""
    for step in place:
        node = _child(node, step)
        if node is None:
            raise HopelessError(f"its file in Git does not say {number}: write it there", ELSEWHERE)
    return node


def _child(node: Any, step: str | int) -> Any:
    if node.id == "sequence" and isinstance(step, int):
        return node.value[step] if step < len(node.value) else None
    if node.id == "mapping":
        return next((value for key, value in node.value if key.value == step), None)
    return None


def _nodes(text: str) -> Iterator[Any]:
    """Give the nodes of the objects in a file, those in a List, too."""
    import yaml  # noqa: PLC0415 - a function is started for one event, and few look into Git

    if len(text) > _MOST_CHARACTERS:
        raise HopelessError(f"its file in Git has more than {_MOST_CHARACTERS} characters: write it there", ELSEWHERE)
    for root in yaml.compose_all(text, yaml.SafeLoader):
        if not bounded(root):
            raise HopelessError("its file in Git is too large once it is read: write it there", ELSEWHERE)
        items = _items(root)
        yield from ([root] if items is None else items)


def _items(root: Any) -> list[Any] | None:
    keys = {key.value: value for key, value in root.value} if root.id == "mapping" else {}
    listed = keys.get("items")
    return listed.value if listed is not None and "kind" in keys and keys["kind"].value == "List" else None


def _plain(node: Any) -> Any:
    """Make of a node what it means."""
    import yaml  # noqa: PLC0415 - as above

    return yaml.SafeLoader("").construct_document(node)


def _flat(read: Sequence[Any]) -> Iterator[Any]:
    for body in read:
        items = body.get("items") if isinstance(body, dict) and body.get("kind") == "List" else [body]
        yield from items if isinstance(items, list) else []


def _is(body: object, ref: Ref) -> bool:
    meta = body.get("metadata") if isinstance(body, Mapping) else None
    if not isinstance(body, Mapping) or not isinstance(meta, Mapping):
        return False
    group = str(body.get("apiVersion", "")).rpartition("/")[0]
    same = (group, body.get("kind"), meta.get("name")) == (ref.api_version.rpartition("/")[0], ref.kind, ref.name)
    return same and meta.get("namespace") in {None, "", ref.namespace}
