"""What all actions on canaries have in common: one remediation of several steps, under one approval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from kreflex.actions import Action
from kreflex.cluster import Reader
from kreflex.errors import ConflictError, GoneError
from kreflex.kinds import path_of
from kreflex.views import JSON, Ref, Workload


@dataclass(frozen=True, kw_only=True)
class CanaryAction(Action):
    """A step that takes the traffic from a canary; `course` tells all of it, which is what people approve."""

    workload: Workload
    marks: Mapping[str, str]
    template: str
    episode: str = ""
    course: str = ""

    lasting: ClassVar[bool] = True
    step: ClassVar[bool] = True

    @property
    def target(self) -> Ref:
        """The workload that tries the new version."""
        return self.workload.ref

    @property
    def owner(self) -> Workload | None:
        """Itself: it is what recovers."""
        return self.workload

    @property
    def template_hash(self) -> str:
        """The canary's template."""
        return self.template

    @property
    def controller(self) -> str:
        """A workload has none."""
        return ""

    @property
    def risky(self) -> bool:
        """What it takes away serves badly, and what is stable takes over."""
        return False

    @property
    def labels(self) -> Mapping[str, str]:
        """The workload's labels."""
        return self.marks

    def annotations(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        """The workload's."""
        return ((str(self.target), self.workload.annotations),)

    def plan(self) -> JSON:
        """Tell the whole remediation, the same in each of its steps."""
        return {"target": str(self.target), "uid": self.target.uid, "course": self.course}


async def as_read(ref: Ref, version: str, reader: Reader) -> JSON:
    """Read an object again, which must be the one that was decided about, as it was then."""
    path = path_of(ref)
    body = await reader.get(path) if path else None
    if body is None or body["metadata"]["uid"] != ref.uid:
        raise GoneError(f"{ref} went away by itself", 404)
    if body["metadata"]["resourceVersion"] != version:
        raise ConflictError(f"{ref} has changed since it was looked at", 409)
    return body


def served_at(ref: Ref) -> str:
    """Tell the path of an object of a kind that is known."""
    path = path_of(ref)
    assert path is not None, f"{ref} is of no kind that is known"
    return path
