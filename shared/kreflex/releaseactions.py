"""What all actions on a release have in common: one remediation of several steps, under one approval."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from kreflex.actions import Action
from kreflex.remedies import Remedy
from kreflex.revisions import Release
from kreflex.views import JSON, Ref, Workload


@dataclass(frozen=True, kw_only=True)
class ReleaseAction(Action):
    """A step of the remediation of a release; `course` tells all of it, which is what people approve."""

    release: Release
    episode: str = ""
    course: str = ""

    lasting: ClassVar[bool] = True

    @property
    def target(self) -> Ref:
        """The workload, whatever else a step changes."""
        return self.release.workload.ref

    @property
    def owner(self) -> Workload | None:
        """The workload itself."""
        return self.release.workload

    @property
    def template_hash(self) -> str:
        """The template that it is to run now."""
        return self.release.current.hash

    @property
    def controller(self) -> str:
        """A workload that is released has none that counts."""
        return ""

    @property
    def risky(self) -> bool:
        """Pods are replaced as the workload's own rules say, so nothing that serves is taken away."""
        return False

    @property
    def labels(self) -> Mapping[str, str]:
        """The workload's labels."""
        return self.release.labels

    def annotations(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        """The workload's."""
        return ((str(self.target), self.release.workload.annotations),)

    def plan(self) -> JSON:
        """Tell the whole remediation, the same in each of its steps."""
        return {"target": str(self.target), "uid": self.target.uid, "course": self.course}

    def prior(self) -> dict[str, str]:
        """The workload's version, and what it was to run."""
        current = self.release.current
        return {"resourceVersion": self.release.resource_version, "hash": current.hash, "revision": str(current.number)}


@dataclass(frozen=True)
class ReleaseStep(ReleaseAction):
    """One of several; it says nothing about whether the release is well again."""

    step: ClassVar[bool] = True


def remedy_of(release: Release, episode: str = "", course: str = "") -> Remedy:
    """Give what the steps of a release's remediation have in common that write other objects."""
    return Remedy(release.workload, release.labels, release.current.hash, episode, course)
