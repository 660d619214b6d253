"""One permission, as whoever needs it declares it: RBAC and admission policies are computed from these.

It stands beside the code that makes the call (an action, a signal, the ledger), so that neither is changed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Check:
    """What admission asks of such a request: a CEL expression that must be true, and what to say if it is not."""

    expression: str
    message: str


@dataclass(frozen=True, slots=True)
class Rule:
    """One permission, as RBAC writes it, and what admission holds a write to.

    `where` is "targets" for the namespaces that are looked after, "home" for Kreflex' own, "leases" for that of the
    nodes' Leases, "cluster" for what is read in all of them at once or belongs to none. `names` are the only objects
    that are meant. `fields` are the only ones that an update may change (`spec.replicas`, dots between); one that Git
    owns is denied then, too. `notes` are annotations that are not ours and that it may change all the same.
    `everywhere` holds in protected namespaces, too: a node can't be emptied without their pods. `despite_git` changes
    its fields where Git owns the object, too: fields that Git's manifests leave alone.
    """

    group: str
    resource: str
    verb: str
    where: Literal["targets", "home", "cluster", "leases"] = "targets"
    names: tuple[str, ...] = ()
    fields: tuple[str, ...] = ()
    checks: tuple[Check, ...] = ()
    notes: tuple[str, ...] = ()
    everywhere: bool = False
    despite_git: bool = False
