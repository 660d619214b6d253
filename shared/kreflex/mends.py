"""Have a remediator of medik8s mend a node: an object is made from its template, followed, and taken back at the end.

As Node Healthcheck makes them (https://github.com/medik8s/node-healthcheck-operator, internal/controller/resources).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from kreflex.actions import BlockedError, register
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError, OutageError
from kreflex.nodeactions import NodeStep
from kreflex.nodes import MARK, Node
from kreflex.rule import Check, Rule
from kreflex.upkeep import Template
from kreflex.views import JSON, Ref

_NODE, _TEMPLATE = "remediation.medik8s.io/node-name", "remediation.medik8s.io/template-name"
_CONTROL_PLANE = "remediation.medik8s.io/isControlPlaneNode"
# Our account may make these and no others.
KNOWN = {
    "SelfNodeRemediationTemplate": "self-node-remediation.medik8s.io",
    "FenceAgentsRemediationTemplate": "fence-agents-remediation.medik8s.io",
    "MachineDeletionRemediationTemplate": "machine-deletion-remediation.medik8s.io",
    "Metal3RemediationTemplate": "infrastructure.cluster.x-k8s.io",
}
_METAL3 = "Metal3RemediationTemplate"
_OURS = {
    verb: Check(
        f"{body}.metadata.?annotations[?'{MARK}'].hasValue()",
        f"remediations are made, and taken back, with the annotation {MARK}",
    )
    for verb, body in (("create", "object"), ("delete", "oldObject"))
}


def _plural(template: str) -> str:
    return f"{template.removesuffix('Template').lower()}s"


_READS = tuple(Rule(group, _plural(kind), "get", "cluster") for kind, group in KNOWN.items())
_TEMPLATES = tuple(Rule(group, f"{kind.lower()}s", "get", "cluster") for kind, group in KNOWN.items())


def _writes(verb: str) -> tuple[Rule, ...]:
    return tuple(Rule(group, _plural(kind), verb, "cluster", checks=(_OURS[verb],)) for kind, group in KNOWN.items())


@dataclass(frozen=True, slots=True)
class Mending:
    """How far a remediator is with a node; `by` names the record that asked it, "" if somebody else did."""

    ref: Ref
    by: str
    processing: bool
    succeeded: bool | None
    machine_was_off: bool
    leaving: bool
    message: str

    @property
    def failed(self) -> bool:
        """True when it has stopped without success."""
        return self.succeeded is False and not self.processing


async def remediation_of(node: Node, template: Template, reader: Reader) -> Mending | None:
    """Read the object that was made for a node from a template; None if there is none."""
    body = await reader.get(_path(template, node.name))
    if body is None:
        return None
    meta, status = body["metadata"], body.get("status") or {}
    said = {one["type"]: one for one in status.get("conditions") or ()}
    return Mending(
        Ref(template.api_version, _kind(template), template.namespace, node.name, meta["uid"]),
        (meta.get("annotations") or {}).get(MARK, ""),
        said.get("Processing", {}).get("status") == "True" or status.get("phase") in {"Running", "Waiting"},
        {"True": True, "False": False}.get(said.get("Succeeded", {}).get("status", ""), _metal3(status)),
        said.get("FenceAgentActionSucceeded", {}).get("status") == "True",
        "deletionTimestamp" in meta,
        str(said.get("Succeeded", {}).get("message") or said.get("Succeeded", {}).get("reason", "")),
    )


def _metal3(status: JSON) -> bool | None:
    """Metal3's remediation has no conditions, and of success it says nothing."""
    return False if status.get("phase") in {"Deleting", "Failed"} else None


def _kind(template: Template) -> str:
    return template.kind.removesuffix("Template")


def _path(template: Template, name: str = "") -> str:
    base = f"/apis/{template.api_version}/namespaces/{template.namespace}/{_plural(template.kind)}"
    return f"{base}/{name}" if name else base


@dataclass(frozen=True, kw_only=True)
class MakeRemediation(NodeStep):
    """Make the object from a template by which a remediator begins with a node; `machine` is what Metal3 asks for."""

    template: Template
    machine: Ref | None = None

    rbac: ClassVar[tuple[Rule, ...]] = (*_READS, *_writes("create"), *_TEMPLATES)
    verb: ClassVar[str] = "repair"
    past: ClassVar[str] = "Repaired"

    @property
    def step_name(self) -> str:
        """Each kind of repair is a step of its own."""
        return f"{type(self).__name__} {_kind(self.template)}"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Make it, unless it is there; what somebody else has made stays his."""
        spec = await self._spec(reader)
        try:
            await writer.create(_path(self.template), self._body(spec, mark))
        except ConflictError:
            found = await remediation_of(self.node, self.template, reader)
            if found is None or found.leaving:
                raise
            if found.by != mark:
                raise BlockedError(
                    f"{found.ref} is there already: {_whose(found)} is at work on it", "Remediation"
                ) from None
            return f"{found.ref} was there already"
        return f"{_kind(self.template)} {self.template.namespace}/{self.node.name} is made"

    async def _spec(self, reader: Reader) -> JSON:
        template = self.template
        named = f"{template.kind} {template.namespace}/{template.name} ({template.api_version})"
        if KNOWN.get(template.kind) != template.api_version.partition("/")[0]:
            raise BlockedError(f"{named} is none of those that are known: {', '.join(KNOWN)}", "Template")
        base = f"/apis/{template.api_version}/namespaces/{template.namespace}"
        try:
            body = await reader.get(f"{base}/{template.kind.lower()}s/{template.name}")
        except OutageError as error:
            if error.status != 404:
                raise
            raise BlockedError(
                f"{named} is of no kind that this cluster serves: is its operator there?", "Template"
            ) from error
        if body is None:
            raise BlockedError(f"{named} is not there", "Template")
        spec: JSON = ((body.get("spec") or {}).get("template") or {}).get("spec") or {}
        return spec

    def _body(self, spec: JSON, mark: str) -> JSON:
        template, machine = self.template, self.machine
        meta: JSON = {
            "name": self.node.name,
            "namespace": template.namespace,
            "annotations": {_NODE: self.node.name, _TEMPLATE: template.name, MARK: mark},
            "labels": {
                "app.kubernetes.io/managed-by": "kreflex",
                **({_CONTROL_PLANE: ""} if self.node.control_plane else {}),
            },
        }
        # It goes with its owner: one that is left behind would be about the next node of this name. A Machine as owner
        # is for Self Node Remediation the sign of another way of being asked.
        owner = machine if machine is not None and template.kind == _METAL3 else self.target
        named = {"apiVersion": owner.api_version, "kind": owner.kind, "name": owner.name, "uid": owner.uid}
        meta["ownerReferences"] = [named]
        return {"apiVersion": template.api_version, "kind": _kind(template), "metadata": meta, "spec": spec}


@dataclass(frozen=True, kw_only=True)
class EndRemediation(NodeStep):
    """Take back what was made from a template: the node is well, or it was in vain."""

    template: Template

    undo: ClassVar[bool] = True
    rbac: ClassVar[tuple[Rule, ...]] = (*_READS, *_writes("delete"))
    verb: ClassVar[str] = "end the repair of"
    past: ClassVar[str] = "EndedRepair"

    @property
    def step_name(self) -> str:
        """Each kind of repair is a step of its own."""
        return f"{type(self).__name__} {_kind(self.template)}"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:
        """Delete it as it is now, if it is this record's."""
        path = _path(self.template, self.node.name)
        body = await reader.get(path)
        if body is None:
            return "it was gone already"
        meta = body["metadata"]
        if (meta.get("annotations") or {}).get(MARK) != mark:
            raise ConflictError(f"{_kind(self.template)} {self.template.namespace}/{self.node.name} is not ours", 409)
        if "deletionTimestamp" not in meta:
            preconditions = {"uid": meta["uid"], "resourceVersion": meta["resourceVersion"]}
            await writer.delete(path, {"preconditions": preconditions})
        return ""


def _whose(found: Mending) -> str:
    return f"record {found.by}" if found.by else "somebody else"


register(MakeRemediation, EndRemediation)
