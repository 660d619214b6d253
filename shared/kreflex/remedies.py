"""Steps that belong to the remediation of a workload and write other objects: its routes, what syncs it, Git."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from kreflex.actions import Action
from kreflex.gitops import SYNC_SUSPENDED
from kreflex.views import JSON, Ref, Workload


@dataclass(frozen=True)
class Remedy:
    """What all steps of one remediation have in common; `course` tells all of it, which is what people approve."""

    workload: Workload
    labels: Mapping[str, str]
    template: str
    episode: str = ""
    course: str = ""


@dataclass(frozen=True)
class Live:
    """An object that is to be written in the cluster although Git owns it."""

    ref: Ref
    annotations: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class RemedyStep(Action):
    """One step of a remediation; `lives` are the objects that are written live in the course of it, by themselves."""

    remedy: Remedy
    lives: tuple[Live, ...] = ()

    lasting: ClassVar[bool] = True
    step: ClassVar[bool] = True

    @property
    def target(self) -> Ref:
        """The workload, whatever else a step changes."""
        return self.remedy.workload.ref

    @property
    def owner(self) -> Workload | None:
        """The workload itself: it is what recovers."""
        return self.remedy.workload

    @property
    def template_hash(self) -> str:
        """The template that the remediation is about."""
        return self.remedy.template

    @property
    def controller(self) -> str:
        """A workload has none that counts."""
        return ""

    @property
    def risky(self) -> bool:
        """Nothing that serves is taken away by it."""
        return False

    @property
    def episode(self) -> str:
        """The fault of this version."""
        return self.remedy.episode

    @property
    def labels(self) -> Mapping[str, str]:
        """The workload's labels."""
        return self.remedy.labels

    def annotations(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        """The workload's, and those of what is written live later: who has opted out is not even prepared for."""
        own = (str(self.target), self.remedy.workload.annotations)
        return (own, *((str(one.ref), one.annotations) for one in self.lives if one.ref != self.target))

    def plan(self) -> JSON:
        """Tell the whole remediation, the same in each of its steps."""
        return {"target": str(self.target), "uid": self.target.uid, "course": self.remedy.course}


def noted_by(annotations: Mapping[str, str], function: str) -> str:
    """Name the record by which a function has suspended what syncs the object with these annotations, or ""."""
    record = annotations.get(SYNC_SUSPENDED, "")
    return record if record.startswith(f"{function}-") else ""
