"""Keep new pods from a node, tell its volumes that its machine is off, and take both back: only what was ours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kreflex.actions import register
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError, GoneError
from kreflex.nodeactions import NodeStep
from kreflex.nodes import MARK
from kreflex.policy import GROUP
from kreflex.rule import Check, Rule
from kreflex.views import JSON

OUT_OF_SERVICE = "node.kubernetes.io/out-of-service"
TAINTED = f"{GROUP}/out-of-service"
# https://kubernetes.io/docs/concepts/cluster-administration/node-shutdown/#non-graceful-node-shutdown
_TAINT = {"key": OUT_OF_SERVICE, "value": "nodeshutdown", "effect": "NoExecute"}


def _ours(changed: str, after: str, note: str) -> str:
    """Write in CEL that something changes only with our note: on what is made, or on what is taken back."""
    return f"!({changed}) || ({after} ? object : oldObject).metadata.?annotations[?'{note}'].hasValue()"


_OURS_TO_CORDON = Check(
    _ours(
        "object.spec.?unschedulable.orValue(false) != oldObject.spec.?unschedulable.orValue(false)",
        "object.spec.?unschedulable.orValue(false)",
        MARK,
    ),
    f"a node is cordoned with the annotation {MARK}, and uncordoned only if it has it",
)
_TAINTS = {one: f"{one}.spec.?taints.orValue([])" for one in ("object", "oldObject")}
_ONLY_OUT_OF_SERVICE = Check(
    " && ".join(
        f"{_TAINTS[one]}.all(t, t.key == '{OUT_OF_SERVICE}' || t in {_TAINTS[other]})"
        for one, other in (("object", "oldObject"), ("oldObject", "object"))
    ),
    f"of the taints, only {OUT_OF_SERVICE} may change",
)
_OURS_TO_TAINT = Check(
    _ours(
        " != ".join(f"{taints}.exists(t, t.key == '{OUT_OF_SERVICE}')" for taints in _TAINTS.values()),
        f"{_TAINTS['object']}.exists(t, t.key == '{OUT_OF_SERVICE}')",
        TAINTED,
    ),
    f"{OUT_OF_SERVICE} is set with the annotation {TAINTED}, and removed only if it is there",
)
_OFF = Check(
    f"{_TAINTS['oldObject']}.exists(t, t.key == '{OUT_OF_SERVICE}')"
    f" || !{_TAINTS['object']}.exists(t, t.key == '{OUT_OF_SERVICE}')"
    " || !oldObject.?status.?conditions.orValue([]).exists(c, c.type == 'Ready' && c.status == 'True')",
    f"a node that is Ready is not {OUT_OF_SERVICE}",
)
_CORDONS = (Rule("", "nodes", "patch", "cluster", fields=("spec.unschedulable",), checks=(_OURS_TO_CORDON,)),)
_TAINTS_NODES = (
    Rule("", "nodes", "get", "cluster"),
    Rule("", "nodes", "patch", "cluster", fields=("spec.taints",), checks=(_ONLY_OUT_OF_SERVICE, _OURS_TO_TAINT, _OFF)),
)


@dataclass(frozen=True)
class CordonNode(NodeStep):
    """Keep new pods away from a node, with a note by which the cordon is known as ours."""

    rbac: ClassVar[tuple[Rule, ...]] = _CORDONS
    verb: ClassVar[str] = "cordon"
    past: ClassVar[str] = "Cordoned"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - as it was read
        """Cordon the node that was read; one that somebody else has cordoned stays his."""
        if self.node.unschedulable:
            if self.node.annotations.get(MARK) == mark:
                return "it was cordoned already"
            raise ConflictError(f"{self.target} is cordoned by somebody else", 409)
        await writer.merge(self.path, self.changed({MARK: mark}, {"unschedulable": True}))
        return ""


@dataclass(frozen=True)
class UncordonNode(NodeStep):
    """Let pods come to a node again that we have cordoned; `of` names another record, which is over, if it was its."""

    of: str = ""

    undo: ClassVar[bool] = True
    rbac: ClassVar[tuple[Rule, ...]] = _CORDONS
    verb: ClassVar[str] = "uncordon"
    past: ClassVar[str] = "Uncordoned"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - as it was read
        """Uncordon the node that was read, if the cordon is this record's, and remove the note."""
        if self.node.annotations.get(MARK) != (self.of or mark):
            raise ConflictError(f"the cordon of {self.target} is not ours", 409)
        await writer.merge(self.path, self.changed({MARK: None}, {"unschedulable": None}))
        # Why it was is what people are told if the node is as ill as before.
        return self.because


@dataclass(frozen=True)
class TaintOutOfService(NodeStep):
    """Say that a node's machine is off, so that its pods are removed and its volumes let go at once.

    Only for a machine that is off for certain: one that runs on would write to disks that another has by then.
    """

    rbac: ClassVar[tuple[Rule, ...]] = _TAINTS_NODES
    verb: ClassVar[str] = "taint as out of service"
    past: ClassVar[str] = "TaintedOutOfService"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Taint the node that was read, if its kubelet says nothing and nobody else has tainted it."""
        if self.node.ready:
            raise ConflictError(f"{self.target} is not off: its kubelet says that it is Ready", 409)
        body = await _as_read(self, reader)
        taints = _taints(body)
        if len(_others(taints)) < len(taints):
            if self.node.annotations.get(TAINTED) == mark:
                return "it was tainted already"
            raise ConflictError(f"{self.target} was tainted by somebody else", 409)
        await writer.merge(self.path, self.changed({TAINTED: mark}, {"taints": [*taints, _TAINT]}))
        return ""


@dataclass(frozen=True)
class UntaintNode(NodeStep):
    """Remove the taint that we have set, once the node is back; `of` names another record, which is over."""

    of: str = ""

    undo: ClassVar[bool] = True
    rbac: ClassVar[tuple[Rule, ...]] = _TAINTS_NODES
    verb: ClassVar[str] = "untaint"
    past: ClassVar[str] = "Untainted"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Untaint the node that was read, if the taint is this record's, and remove the note."""
        if self.node.annotations.get(TAINTED) != (self.of or mark):
            raise ConflictError(f"the taint of {self.target} is not ours", 409)
        taints = _others(_taints(await _as_read(self, reader)))
        # Null and not an empty list: that is how a node without taints was before.
        await writer.merge(self.path, self.changed({TAINTED: None}, {"taints": taints or None}))
        return ""


async def _as_read(action: NodeStep, reader: Reader) -> JSON:
    """Read the node whole: a list is replaced whole, and what the view leaves out of a taint must not get lost."""
    body = await reader.get(action.path)
    if body is None or body["metadata"]["uid"] != action.target.uid:
        raise GoneError(f"{action.target} went away by itself", 404)
    if body["metadata"]["resourceVersion"] != action.node.resource_version:
        raise ConflictError(f"{action.target} has changed since it was looked at", 409)
    return body


def _taints(body: JSON) -> list[JSON]:
    return list(body["spec"].get("taints") or ())


def _others(taints: list[JSON]) -> list[JSON]:
    return [taint for taint in taints if taint["key"] != OUT_OF_SERVICE]


register(CordonNode, UncordonNode, TaintOutOfService, UntaintNode)
