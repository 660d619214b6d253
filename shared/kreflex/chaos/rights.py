"""What chaos-runner may do, and what admission holds it to: nothing that people have not opted in."""

from __future__ import annotations

from kreflex import slos
from kreflex.actions import PRECONDITIONS
from kreflex.chaos import engines, experiments, turns
from kreflex.chaos.corruptions import ISOLATED
from kreflex.chaos.experiments import ALLOWED, INJECTED, OPT_IN
from kreflex.kinds import OWNERS
from kreflex.rule import Check, Rule

_OURS = f"oldObject.metadata.?annotations[?'{INJECTED}'].hasValue()"
_SAID = f"oldObject.metadata.?labels[?'{OPT_IN}']"
_SPACE = f"namespaceObject != null && namespaceObject.metadata.?labels[?'{OPT_IN}'].orValue('') == '{ALLOWED}'"
_WHO = f"nobody has opted in: the label {OPT_IN}: {ALLOWED} is missing"
# What was injected may be taken back, whoever has changed his mind since.
_OPTED = Check(f"{_OURS} || {_SAID}.orValue('') == '{ALLOWED}' || !{_SAID}.hasValue() && {_SPACE}", _WHO)
# A node belongs to everybody, and a Lease of the control plane to nobody: these are opted in one by one.
_OPTED_ITSELF = Check(f"{_OURS} || {_SAID}.orValue('') == '{ALLOWED}'", f"{_WHO} on the object itself")
_OPTED_SPACE = Check(_SPACE, f"{_WHO} on the namespace")
_NOTED = Check(
    f"{_OURS} || object.metadata.?annotations[?'{INJECTED}'].hasValue()",
    f"what is changed carries the annotation {INJECTED}",
)
_NOT_GITS = Check(f"!variables.gits || {_OURS}", "Git owns it and would put it back: experiment with what it makes")
_ONLY_LABEL = Check(
    " && ".join(
        f"{one}.metadata.?labels.orValue({{}}).all(k, k == '{ISOLATED}'"
        " || object.metadata.?labels[?k] == oldObject.metadata.?labels[?k])"
        for one in ("object", "oldObject")
    ),
    f"of a pod's labels, only {ISOLATED} may change",
)
_CHANGES = (_OPTED, _NOTED, _NOT_GITS)
_MADE = Check(f"object.metadata.?annotations[?'{INJECTED}'].hasValue()", f"what is made has the annotation {INJECTED}")
_MINE = Check(_OURS, f"only what has the annotation {INJECTED} is removed")

ACTS = (
    Rule("", "pods", "delete", checks=(_OPTED,)),
    Rule(
        "",
        "pods",
        "patch",
        fields=("metadata.labels", "spec.containers"),
        checks=(*_CHANGES, _ONLY_LABEL),
        despite_git=True,
    ),
    Rule("", "pods/eviction", "create", checks=(PRECONDITIONS,)),
    Rule("", "nodes", "patch", "cluster", fields=("spec.unschedulable",), checks=(_OPTED_ITSELF, _NOTED)),
    *(
        Rule("apps", plural, "patch", fields=("spec.replicas", "spec.template"), checks=_CHANGES, despite_git=True)
        for plural in ("deployments", "statefulsets")
    ),
    Rule("", "configmaps", "patch", fields=("data",), checks=_CHANGES, despite_git=True),
    Rule(
        "coordination.k8s.io",
        "leases",
        "patch",
        fields=("spec",),
        checks=(_OPTED_ITSELF, _NOTED),
        everywhere=True,
        despite_git=True,
    ),
    Rule("networking.k8s.io", "networkpolicies", "create", checks=(_MADE,)),
    Rule("networking.k8s.io", "networkpolicies", "delete", checks=(_MINE,)),
    *(
        Rule(
            rule.group,
            rule.resource,
            rule.verb,
            fields=rule.fields,
            checks={"create": (_MADE, _OPTED_SPACE), "patch": (_MINE,), "delete": (_MINE,)}.get(rule.verb, ()),
            despite_git=True,
        )
        for rule in engines.RBAC
        if rule.verb != "get"
    ),
)
_READ = (
    *(
        Rule(group, plural, verb)
        for group, plural in (
            ("", "pods"),
            ("", "configmaps"),
            ("apps", "deployments"),
            ("apps", "statefulsets"),
            ("coordination.k8s.io", "leases"),
            ("networking.k8s.io", "networkpolicies"),
        )
        for verb in ("get", "list")
    ),
    *OWNERS,
    Rule("", "nodes", "get", "cluster"),
    Rule("", "nodes", "list", "cluster"),
    Rule("", "namespaces", "get", "cluster"),
    *(rule for rule in engines.RBAC if rule.verb == "get"),
)
REST = (*_READ, *experiments.RBAC, *turns.RBAC, *slos.RBAC)
