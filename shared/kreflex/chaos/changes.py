"""Changes of fields that can be taken back exactly: what was there, and what is there instead.

The way to a field names the elements of lists by a key of theirs (`name=app`), not by their place: somebody may have
put another container before it in the meantime.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from kreflex.views import JSON


class _Absent:
    def __repr__(self) -> str:
        return "nothing"


ABSENT = _Absent()
Path = tuple[str, ...]


@dataclass(frozen=True)
class Change:
    """One field: what it was, and what it is made. `back` is what it gets in the end, where that is something else."""

    path: Path
    before: Any
    after: Any
    back: Any = None

    @property
    def restored(self) -> Any:
        """What the field has when all is over."""
        return self.before if self.back is None else self.back

    def __str__(self) -> str:
        return ".".join(self.path)


def write(changes: Sequence[Change]) -> str:
    """Write changes for the record; the same changes give the same text."""
    return json.dumps([_written(one) for one in changes], separators=(",", ":"), sort_keys=True)


def _written(change: Change) -> JSON:
    told = {"before": change.before, "after": change.after, "back": change.back}
    kept = {key: value for key, value in told.items() if value is not ABSENT and not (key == "back" and value is None)}
    return {"path": list(change.path), **kept}


def read(text: str) -> tuple[Change, ...]:
    """Read what `write` has written."""
    return tuple(
        Change(tuple(one["path"]), one.get("before", ABSENT), one.get("after", ABSENT), one.get("back"))
        for one in json.loads(text)
    )


def value(body: Any, path: Path) -> Any:
    """Read a field; ABSENT if it is not there."""
    for token in path:
        key = _key(body, token)
        if key is None:
            return ABSENT
        body = body[key]
    return body


def _key(body: Any, token: str) -> Any:
    """Find what a token names in an object or a list; None if it is not there."""
    if isinstance(body, dict):
        return token if token in body else None
    if isinstance(body, list):
        name, _, wanted = token.partition("=")
        return next((i for i, one in enumerate(body) if isinstance(one, dict) and str(one.get(name)) == wanted), None)
    return None


def pointer(body: Any, path: Path) -> str:
    """Give the JSON pointer of a field, as the object is now; a new element of a list is added at its end."""
    steps = []
    for token in path:
        key = _key(body, token)
        place = token if key is None and isinstance(body, dict) else key
        steps.append("-" if place is None else str(place).replace("~", "~0").replace("/", "~1"))
        body = None if key is None else body[key]
    return "/" + "/".join(steps)


def set_to(body: JSON, path: Path, wanted: Any) -> list[JSON]:
    """Give the operations of a JSON patch that make a field what is wanted; none if it is."""
    there = value(body, path)
    if there == wanted:
        return []
    where = pointer(body, path)
    if wanted is ABSENT:
        return [{"op": "remove", "path": where}]
    return [{"op": "add" if there is ABSENT else "replace", "path": where, "value": wanted}]


def injecting(body: JSON, changes: Sequence[Change]) -> list[JSON]:
    """Give the operations that do all changes."""
    return _in_turn(body, [(change.path, change.after) for change in changes])


def _in_turn(body: JSON, wanted: Sequence[tuple[Path, Any]]) -> list[JSON]:
    """Give the operations for fields one after the other: each finds the lists as the ones before it have left them."""
    working, steps = copy.deepcopy(body), []
    for path, wish in wanted:
        found = set_to(working, path, wish)
        if found:
            _put(working, path, wish)
        steps += found
    return steps


def _put(body: Any, path: Path, wanted: Any) -> None:
    for token in path[:-1]:
        body = body[_key(body, token)]
    key = _key(body, path[-1])
    if wanted is ABSENT:
        del body[key]
    elif key is None and isinstance(body, list):
        body.append(wanted)
    else:
        body[path[-1] if key is None else key] = wanted


def reverting(body: JSON, changes: Sequence[Change]) -> tuple[list[JSON], list[str]]:
    """Give the operations that take the changes back, and name the fields that somebody else has changed since."""
    wanted, foreign = [], []
    for change in reversed([part for one in changes for part in _parts(body, one)]):
        there = value(body, change.path)
        if there == change.after:
            wanted.append((change.path, change.restored))
        elif there != change.restored:
            foreign.append(str(change))
    return _in_turn(body, wanted), foreign


def _parts(body: JSON, change: Change) -> Sequence[Change]:
    """Split what was made of nothing where somebody has added to it since: only ours is taken away then.

    Values by name, such as labels or variables. A probe is one thing: half of one is none.
    """
    there, after = value(body, change.path), change.after
    if change.before is not ABSENT or there == after or type(there) is not type(after):
        return (change,)
    if isinstance(after, list):
        return [Change((*change.path, f"name={one['name']}"), ABSENT, one) for one in after]
    if not isinstance(after, dict) or not _by_name(after):
        return (change,)
    inner = [Change((*change.path, key), ABSENT, one) for key, one in after.items()]
    return [part for one in inner for part in _parts(body, one)]


def _by_name(told: JSON) -> bool:
    return all(isinstance(one, str) or (isinstance(one, dict) and _by_name(one)) for one in told.values())


def left(body: JSON, changes: Sequence[Change]) -> list[str]:
    """Name the fields that are still as they were made."""
    parts = [part for one in changes for part in _parts(body, one)]
    return [str(one) for one in parts if value(body, one.path) == one.after and one.after != one.restored]
