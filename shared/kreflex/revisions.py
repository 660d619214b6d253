"""Releases as the cluster remembers them: a workload, its revisions, and the pods of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime

from kreflex.views import JSON, Pod, Workload


@dataclass(frozen=True, slots=True)
class Revision:
    """One template that a workload has or had; `template` is what would be written to go back to it.

    `hash` is what its pods are labelled with. `created` is when the cluster first had it: a revision that was gone back to
    is older than its number. `healthy_at` is when it was seen complete, all its pods available, and `bad` names the record
    of a rollback away from it, both from the workload's ReleaseHistory; `source` is what put it there, as far as known: a
    revision of Git or of Helm.
    """

    hash: str
    number: int
    created: datetime
    template: JSON
    healthy_at: datetime | None = None
    healthy_until: datetime | None = None
    bad: str = ""
    source: str = ""


@dataclass(frozen=True, slots=True)
class Release:
    """A Deployment, StatefulSet, DaemonSet or Rollout at one time; `revisions` has the newest first.

    `current` is what it is to run now, `changed_at` since when, as well as that is known. `pods` are those of each
    revision, by its hash. `body` is the object as it was read.
    """

    workload: Workload
    labels: Mapping[str, str]
    resource_version: str
    current: Revision
    revisions: tuple[Revision, ...]
    changed_at: datetime
    pods: Mapping[str, tuple[Pod, ...]]
    paused: bool
    complete: bool
    stuck: bool
    body: JSON

    @property
    def earlier(self) -> tuple[Revision, ...]:
        """The revisions before the present one, the newest first."""
        return tuple(one for one in self.revisions if one.number < self.current.number)

    @property
    def new_pods(self) -> tuple[Pod, ...]:
        """The pods of the present revision."""
        return self.pods.get(self.current.hash, ())

    @property
    def old_pods(self) -> tuple[Pod, ...]:
        """The pods of all other revisions."""
        return tuple(pod for name, pods in self.pods.items() if name != self.current.hash for pod in pods)
