"""Changes of fields that can be taken back exactly: what was there, and what is there instead.

The way to a field names the elements of lists by a key of theirs (`name=app`), not by their place: somebody may have
put another container before it in the meantime.
"""

from __future__ import annotations

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
    if there is wanted or there == wanted:
        return []
    where = pointer(body, path)
    if wanted is ABSENT:
        return [{"op": "remove", "path": where}]
    return [{"op": "add" if there is ABSENT else "replace", "path": where, "value": wanted}]


def injecting(body: JSON, changes: Sequence[Change]) -> list[JSON]:
    """Give the operations that do all changes."""
    return [step for change in changes for step in set_to(body, change.path, change.after)]


def reverting(body: JSON, changes: Sequence[Change]) -> tuple[list[JSON], list[str]]:
    """Give the operations that take the changes back, and name the fields that somebody else has changed since."""
    steps, foreign = [], []
    for change in reversed(changes):
        there = value(body, change.path)
        if there == change.after or there is change.after:
            steps += set_to(body, change.path, change.restored)
        elif there is not change.restored and there != change.restored:
            foreign.append(str(change))
    return steps, foreign


def left(body: JSON, changes: Sequence[Change]) -> list[str]:
    """Name the fields that are still as they were made."""
    return [
        str(change)
        for change in changes
        if (value(body, change.path) == change.after or value(body, change.path) is change.after)
        and not (change.after == change.restored or change.after is change.restored)
    ]
