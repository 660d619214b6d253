"""Flagger's canaries: Flagger itself shifts their traffic back, when its rollback webhook says so.

It asks at each interval of its analysis, and takes every answer up to 202 for "roll back now"
(https://github.com/fluxcd/flagger/blob/v1.36.1/pkg/controller/webhook.go). So the gate is open while the record of
just this version says that it was opened, and closed in every other case (docs/adr/0024).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from kreflex.actions import Action, register
from kreflex.cluster import Reader, Writer
from kreflex.rule import Rule
from kreflex.views import JSON, Ref, Workload

KIND, API = "Canary", "flagger.app/v1beta1"
# https://github.com/fluxcd/flagger/blob/v1.36.1/pkg/apis/flagger/v1beta1/status.go
UNDER_WAY = frozenset({"Progressing", "Waiting", "WaitingPromotion"})
PRIMARY = "-primary"


@dataclass(frozen=True, slots=True)
class Analysis:
    """How far a Canary of Flagger is; `version` names the template that is tried."""

    ref: Ref
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    phase: str
    version: str
    weight: int
    target_kind: str
    target: str
    service: str
    gated: bool


def analysis_of(body: JSON) -> Analysis:
    """Read a Canary of Flagger."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body.get("status") or {}
    target = spec.get("targetRef") or {}
    hooks = (spec.get("analysis") or {}).get("webhooks") or ()
    return Analysis(
        ref=Ref(API, KIND, meta["namespace"], meta["name"], meta["uid"]),
        labels=meta.get("labels") or {},
        annotations=meta.get("annotations") or {},
        phase=str(status.get("phase", "")),
        version=str(status.get("lastAppliedSpec", "")),
        weight=int(status.get("canaryWeight") or 0),
        target_kind=str(target.get("kind", "")),
        target=str(target.get("name", "")),
        service=str((spec.get("service") or {}).get("name") or target.get("name", "")),
        gated=any(hook.get("type") == "rollback" for hook in hooks),
    )


@dataclass(frozen=True, kw_only=True)
class OpenGate(Action):
    """Let Flagger roll its canary back: nothing is written, the record is the answer when it asks."""

    analysis: Analysis
    workload: Workload
    # A Canary, by its own name for the version.
    episode: str = ""

    rbac: ClassVar[tuple[Rule, ...]] = (Rule("flagger.app", "canaries", "get"), Rule("apps", "deployments", "get"))
    verb: ClassVar[str] = "let Flagger roll back"
    past: ClassVar[str] = "OpenedGate"

    @property
    def target(self) -> Ref:
        """The Canary."""
        return self.analysis.ref

    @property
    def owner(self) -> Workload | None:
        """The workload that it is about."""
        return self.workload

    @property
    def template_hash(self) -> str:
        """The version that is tried."""
        return self.analysis.version[:63]

    @property
    def controller(self) -> str:
        """It has none."""
        return ""

    @property
    def risky(self) -> bool:
        """What is taken away serves badly, and Flagger's primary takes over."""
        return False

    @property
    def labels(self) -> Mapping[str, str]:
        """The Canary's labels."""
        return self.analysis.labels

    def annotations(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        """The Canary's and its workload's."""
        return (
            (str(self.target), self.analysis.annotations),
            (str(self.workload.ref), self.workload.annotations),
        )

    def plan(self) -> JSON:
        """Tell which version is rolled back."""
        return {**super().plan(), "version": self.analysis.version}

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - Flagger does it
        """Do nothing: the record that says that it was applied is the open gate."""
        return ""


register(OpenGate)
