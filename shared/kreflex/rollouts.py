"""Rollouts of Argo: how far one is, and how its canary is aborted or paused. Nothing here promotes or retries one.

https://argo-rollouts.readthedocs.io/en/stable/features/specification/ and, for what an abort does,
https://github.com/argoproj/argo-rollouts/blob/master/pkg/kubectl-argo-rollouts/cmd/abort/abort.go
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kreflex.actions import register
from kreflex.canaryactions import CanaryAction, as_read, served_at
from kreflex.cluster import Reader, Writer
from kreflex.errors import ApiError, ConflictError
from kreflex.gitops import RBAC as READS_GIT
from kreflex.nodes import MARK
from kreflex.policy import GROUP
from kreflex.rule import Check, Rule
from kreflex.views import JSON

_GROUP, HASH = "argoproj.io", "rollouts-pod-template-hash"
_ABORTS = Check(
    "object.?status.?abort.orValue(false) || !oldObject.?status.?abort.orValue(false)",
    "an abort is never taken back: that is a retry, which is for people",
)
_PAUSES = Check(
    "object.?spec.?paused.orValue(false) || !oldObject.?spec.?paused.orValue(false)"
    f" || (object.?status.?abort.orValue(false) && oldObject.metadata.?annotations[?'{MARK}'].hasValue())",
    "what is paused is resumed by people, unless it is aborted and we have paused it",
)
# Changed to have the controller look at an abort that it has missed.
NUDGED = f"{GROUP}/nudged"


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a Rollout is; `weight` is what a traffic router gives the canary, None without one.

    `stands` says that only a person lets it go on, and `at_stable` that nothing but the stable pods gets traffic any
    more, as far as the status tells. `noticed` says that the controller has seen the abort, and `paused_by` which
    record has paused it.
    """

    trial: str
    stable: str
    observed: bool
    aborted: bool
    noticed: bool
    paused: bool
    paused_by: str
    stands: bool
    weight: int | None
    blue_green: bool
    at_stable: bool

    @property
    def trying(self) -> bool:
        """True while a template is tried that is not the stable one."""
        return bool(self.stable) and self.observed and self.trial not in {"", self.stable}


def progress_of(body: JSON) -> Progress:
    """Read how far a Rollout is from its status."""
    spec, status = body.get("spec") or {}, body.get("status") or {}
    trial, stable = str(status.get("currentPodHash", "")), str(status.get("stableRS", ""))
    blue_green = "blueGreen" in (spec.get("strategy") or {})
    weight = _weight(status)
    active = (status.get("blueGreen") or {}).get("activeSelector", "")
    return Progress(
        trial=trial,
        stable=stable,
        # A number in a string (argo-rollouts, pkg/apis/rollouts/v1alpha1/types.go); older than that, a hash.
        observed=str(status.get("observedGeneration", "")) == str(body["metadata"].get("generation", "")),
        aborted=bool(status.get("abort")),
        noticed=bool(status.get("abort") and status.get("abortedAt")),
        paused=bool(spec.get("paused")),
        paused_by=(body["metadata"].get("annotations") or {}).get(MARK, "") if spec.get("paused") else "",
        stands=bool(spec.get("paused")) or _at_open_pause(spec, status),
        weight=weight,
        blue_green=blue_green,
        at_stable=active == stable if blue_green else weight == 0 or (weight is None and _no_pods(status)),
    )


def _at_open_pause(spec: JSON, status: JSON) -> bool:
    """Tell whether it waits at a step, or before a promotion, that only a person ends."""
    if not status.get("pauseConditions"):
        return False
    strategy = spec.get("strategy") or {}
    if "blueGreen" in strategy:
        return "autoPromotionSeconds" not in (strategy["blueGreen"] or {})
    steps, index = (strategy.get("canary") or {}).get("steps") or [], status.get("currentStepIndex")
    step = steps[index] if index is not None and index < len(steps) else {}
    return "pause" in step and not (step["pause"] or {}).get("duration")


def _weight(status: JSON) -> int | None:
    """Without a traffic router the status has no weights: the replicas are the share."""
    weights = (status.get("canary") or {}).get("weights") or {}
    told = (weights.get("canary") or {}).get("weight")
    return None if told is None else int(told)


def _no_pods(status: JSON) -> bool:
    return int(status.get("updatedReplicas") or 0) == 0


@dataclass(frozen=True, kw_only=True)
class RolloutStep(CanaryAction):
    """A step with a Rollout, as it was read."""

    version: str

    def prior(self) -> dict[str, str]:
        """The version that was read, and the template that was tried."""
        return {"resourceVersion": self.version, "canary": self.template}


@dataclass(frozen=True, kw_only=True)
class AbortRollout(RolloutStep):
    """Abort the canary, as `kubectl argo rollouts abort` does; `spec` stays as it is."""

    rbac: ClassVar[tuple[Rule, ...]] = (
        Rule(_GROUP, "rollouts", "get"),
        Rule(_GROUP, "experiments", "get"),
        Rule(_GROUP, "rollouts/status", "patch", fields=("status.abort",), checks=(_ABORTS,)),
        Rule(_GROUP, "rollouts", "patch", fields=("status.abort",), checks=(_ABORTS,)),
    )
    verb: ClassVar[str] = "abort the canary of"
    past: ClassVar[str] = "AbortedCanary"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - a status has no marks
        """Abort what was read, unless the canary has become stable or another is tried meanwhile.

        A status keeps no annotations, so the record alone says who has aborted it. What is aborted already is changed
        in an annotation: the controller does not notice what is written to a Rollout right after a write of its own
        (writeBackToInformer in argo-rollouts, rollout/controller.go), and the same abort again would change nothing.
        """
        body = await as_read(self.target, self.version, reader)
        progress = progress_of(body)
        if progress.stable == self.template or progress.trial != self.template:
            # The controller would take the abort of what is fully promoted back (argo-rollouts, rollout/controller.go).
            return "it was not aborted: the canary is none any more"
        meta: JSON = {"uid": self.target.uid, "resourceVersion": self.version}
        path, patch = served_at(self.target), {"metadata": meta, "status": {"abort": True}}
        if progress.aborted:
            await writer.merge(path, {"metadata": {**meta, "annotations": {NUDGED: self.version}}})
            return "it was aborted already, and the controller is to look at it once more"
        try:
            await writer.merge(f"{path}/status", patch)
        except ApiError as error:
            if error.status != 404:
                raise
            # A cluster whose definition of Rollouts has no status subresource; if it is the Rollout that is gone, this
            # says so, too.
            await writer.merge(path, patch)
        return ""


@dataclass(frozen=True, kw_only=True)
class PauseRollout(RolloutStep):
    """Keep a canary where it is while nobody can tell whether it is worse; people resume it."""

    rbac: ClassVar[tuple[Rule, ...]] = (
        *READS_GIT,
        Rule(_GROUP, "rollouts", "get"),
        Rule(_GROUP, "rollouts", "patch", fields=("spec.paused",), checks=(_PAUSES,)),
    )
    verb: ClassVar[str] = "pause the canary of"
    past: ClassVar[str] = "PausedCanary"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Pause what was read, with a note by which the pause is known as ours."""
        body = await as_read(self.target, self.version, reader)
        if progress_of(body).stands:
            return "it was paused already"
        meta = {"uid": self.target.uid, "resourceVersion": self.version, "annotations": {MARK: mark}}
        await writer.merge(served_at(self.target), {"metadata": meta, "spec": {"paused": True}})
        return "people resume it: kubectl argo rollouts promote, or abort"


@dataclass(frozen=True, kw_only=True)
class ResumeAborted(RolloutStep):
    """Take our own pause back from a Rollout that is aborted: paused, it would keep the canary's pods.

    Nothing is promoted by that: what is aborted stays aborted until somebody retries it.
    """

    undo: ClassVar[bool] = True
    rbac: ClassVar[tuple[Rule, ...]] = PauseRollout.rbac
    verb: ClassVar[str] = "resume the aborted"
    past: ClassVar[str] = "ResumedAborted"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Resume what was read, if it is aborted and this record has paused it."""
        progress = progress_of(await as_read(self.target, self.version, reader))
        if not progress.aborted or progress.paused_by != mark:
            raise ConflictError(f"{self.target} is not aborted, or it is not ours to be resumed", 409)
        meta = {"uid": self.target.uid, "resourceVersion": self.version, "annotations": {MARK: None}}
        await writer.merge(served_at(self.target), {"metadata": meta, "spec": {"paused": None}})
        return ""


register(AbortRollout, PauseRollout, ResumeAborted)
