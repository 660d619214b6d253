"""What all actions on nodes have in common: one remediation of several steps, under one approval and one Lease."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from kreflex.actions import Action
from kreflex.nodes import Node, template_of
from kreflex.views import JSON, Ref, Workload


@dataclass(frozen=True, kw_only=True)
class NodeAction(Action):
    """A step of the remediation of a node of `pool`; `course` tells all of it, which is what people approve."""

    node: Node
    pool: Workload
    episode: str = ""
    course: str = ""

    lasting: ClassVar[bool] = True
    leased: ClassVar[bool] = True

    @property
    def target(self) -> Ref:
        """The node."""
        return self.node.ref

    @property
    def owner(self) -> Workload | None:
        """The node's pool."""
        return self.pool

    @property
    def kind(self) -> str:
        """A policy allows it by naming Node among its owners, whatever the pool is made of."""
        return "Node"

    @property
    def template_hash(self) -> str:
        """What the pool's nodes are made from, where the provider says so."""
        return template_of(self.node)

    @property
    def controller(self) -> str:
        """A node has none."""
        return ""

    @property
    def risky(self) -> bool:
        """A node that is Ready serves."""
        return self.node.ready

    @property
    def labels(self) -> Mapping[str, str]:
        """The node's labels."""
        return self.node.labels

    def annotations(self) -> tuple[tuple[str, Mapping[str, str]], ...]:
        """The node's."""
        return ((str(self.target), self.node.annotations),)

    def plan(self) -> JSON:
        """Tell the whole remediation, the same in each of its steps."""
        return {"target": str(self.target), "uid": self.target.uid, "course": self.course}

    def prior(self) -> dict[str, str]:
        """The node's version, and what of it a remediation changes."""
        return {
            "resourceVersion": self.node.resource_version,
            "ready": str(self.node.ready).lower(),
            "unschedulable": str(self.node.unschedulable).lower(),
        }

    @property
    def path(self) -> str:
        """Where the API server serves the node."""
        return f"/api/v1/nodes/{self.node.name}"

    def changed(self, annotations: Mapping[str, str | None], spec: JSON) -> JSON:
        """Write a merge patch that the API server takes only for the node that was read, as it was read."""
        meta = {"uid": self.target.uid, "resourceVersion": self.node.resource_version, "annotations": annotations}
        return {"metadata": meta, "spec": spec}


@dataclass(frozen=True)
class NodeStep(NodeAction):
    """One of several; it says nothing about whether the node is well again."""

    step: ClassVar[bool] = True
