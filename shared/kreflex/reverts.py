"""The way back to an earlier template, written live: what Kubernetes and Argo Rollouts call undo.

The workload's own rules bring it about: its strategy, its surge, its steps. What Git or Helm owns is not undone here.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from kreflex import templates
from kreflex.actions import BlockedError, EvictPod, HopelessError, evict, register
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError, GoneError
from kreflex.histories import Histories
from kreflex.kinds import RELEASED, path_of
from kreflex.policy import GROUP
from kreflex.releaseactions import ReleaseStep
from kreflex.revisions import Revision, noted
from kreflex.rule import Check, Rule
from kreflex.views import JSON, Pod

BACK_FROM, BACK_TO, BACK_BY = (f"{GROUP}/rolled-back-{one}" for one in ("from", "to", "by"))
_CHANGED = "object.spec.?template != oldObject.spec.?template"
_NOTED = Check(
    f"!({_CHANGED}) || [{', '.join(repr(one) for one in (BACK_FROM, BACK_TO, BACK_BY))}].all("
    "k, object.metadata.?annotations[?k].hasValue())",
    f"a template is written with the annotations {BACK_FROM}, {BACK_TO} and {BACK_BY}",
)
_NOT_PAUSED = Check(
    f"!({_CHANGED}) || !oldObject.spec.?paused.orValue(false)", "somebody has paused it: resume it, or wait for him"
)
# An API server counts a DaemonSet's templates there, whoever writes one.
_COUNTED = {"daemonsets": ("deprecated.daemonset.template.generation",)}
_WRITES = tuple(
    Rule(
        group, plural, "patch", fields=("spec.template",), checks=(_NOTED, _NOT_PAUSED), notes=_COUNTED.get(plural, ())
    )
    for (group, _), plural in RELEASED.items()
)


@dataclass(frozen=True)
class RevertTemplate(ReleaseStep):
    """Put an earlier template back into its workload, exactly as it was.

    What it needs has to be there still: its ConfigMaps are looked for, for one with a hash in its name may have been
    pruned. Secrets are not, for nobody gives a function the right to read them: if one is missing, the new pods say so,
    and the pods that run are kept as far as the workload's strategy keeps them.
    """

    to: Revision
    # Who owns the template in Git, if anybody does.
    manager: str = ""

    rbac: ClassVar[tuple[Rule, ...]] = (*_WRITES, Rule("", "configmaps", "get"))
    verb: ClassVar[str] = "roll back"
    past: ClassVar[str] = "RolledBack"
    remembering: ClassVar[bool] = True

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Remember that the present version is bad, and then go back: who comes after a kill knows which it was."""
        if self.release.paused:
            raise BlockedError(f"{self.target} is paused: resume it, and it is rolled back", "WorkloadPaused")
        if self.to.bad:
            raise HopelessError(f"{self.to} was rolled back from itself, by {self.to.bad}", "Bad")
        missing = await missing_config(self.target.namespace, self.to, reader)
        if missing:
            raise HopelessError(f"{' and '.join(missing)} of {self.to} is gone: make it again", "ConfigMap")
        current = self.release.current
        await Histories(reader, writer).condemn(self.target, noted(self.release, current), mark)
        path = path_of(self.target)
        assert path is not None
        await writer.patch(path, self._patch(mark))
        return f"from {current} to {self.to}"

    def _patch(self, mark: str) -> list[JSON]:
        """Write the template and our notes, into the object that was read, as it was read.

        A patch that sets another UID or resourceVersion than the object has is answered 409.
        """
        notes = {BACK_FROM: _name(self.release.current), BACK_TO: _name(self.to), BACK_BY: mark}
        known = self.release.body["metadata"].get("annotations") or {}
        return [
            {"op": "add", "path": "/metadata/uid", "value": self.target.uid},
            {"op": "add", "path": "/metadata/resourceVersion", "value": self.release.resource_version},
            {"op": "add", "path": "/metadata/annotations", "value": {**known, **notes}},
            {"op": "replace", "path": "/spec/template", "value": self.to.template},
        ]


def _name(revision: Revision) -> str:
    return f"{revision.number}/{revision.hash}"


async def missing_config(namespace: str, revision: Revision, reader: Reader) -> list[str]:
    """Name the ConfigMaps that are not there any more, and without which no pod of a revision starts."""
    names = templates.config_maps(revision.template)
    paths = [f"/api/v1/namespaces/{namespace}/configmaps/{name}" for name in names]
    found = await asyncio.gather(*(reader.get(path) for path in paths))
    return [f"ConfigMap {namespace}/{name}" for name, body in zip(names, found, strict=True) if body is None]


@dataclass(frozen=True)
class EvictStuck(ReleaseStep):
    """Evict the pods of a version that was rolled back from, where they keep their controller from going on.

    A StatefulSet waits for a pod that never becomes Ready, even after its template was put right.
    https://kubernetes.io/docs/concepts/workloads/controllers/statefulset/#forced-rollback
    """

    pods: tuple[Pod, ...]

    rbac: ClassVar[tuple[Rule, ...]] = EvictPod.rbac
    verb: ClassVar[str] = "evict stuck pods of"
    past: ClassVar[str] = "EvictedStuck"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - nothing to undo
        """Evict each, as it was read; one that is Ready now, or is of the present template, is left alone."""
        left = [await self._evict(pod, writer, reader) for pod in self.pods]
        gone = [pod.ref.name for pod, evicted in zip(self.pods, left, strict=True) if evicted]
        return f"evicted {', '.join(gone)}" if gone else "they went away by themselves"

    async def _evict(self, pod: Pod, writer: Writer, reader: Reader) -> bool:
        if pod.ready or pod.template_hash == self.release.current.hash:
            raise ConflictError(f"{pod.ref} is not stuck", 409)
        try:
            await evict(pod, writer, reader)
        except GoneError:
            return False
        return True


register(RevertTemplate, EvictStuck)
