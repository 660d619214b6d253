"""What chaos-runner may do, and what admission holds it to: nothing that people have not opted in."""

from __future__ import annotations

from kreflex import slos
from kreflex.actions import PRECONDITIONS
from kreflex.chaos import engines, experiments, jobs, turns
from kreflex.chaos.corruptions import ISOLATED
from kreflex.chaos.experiments import ALLOWED, INJECTED, OPT_IN
from kreflex.guards import OPT_OUT
from kreflex.kinds import OWNERS
from kreflex.policy import PROTECTED, PROTECTED_LABEL
from kreflex.rule import Check, Rule

_OURS = f"oldObject.metadata.?annotations[?'{INJECTED}'].hasValue()"
_SAID = f"oldObject.metadata.?labels[?'{OPT_IN}']"
_SPACE = f"namespaceObject != null && namespaceObject.metadata.?labels[?'{OPT_IN}'].orValue('') == '{ALLOWED}'"
_WHO = f"nobody has opted in: the label {OPT_IN}: {ALLOWED} is missing"
_IN = f"{_SAID}.orValue('') == '{ALLOWED}' || !{_SAID}.hasValue() && {_SPACE}"
_ITSELF = f"{_SAID}.orValue('') == '{ALLOWED}'"
# What was injected may be taken back, whoever has changed his mind since, and wherever it is.
_OPTED = Check(f"{_OURS} || {_IN}", _WHO)
_OPTED_NOW = Check(_IN, _WHO)
# A node belongs to everybody, and a Lease of the control plane to nobody: these are opted in one by one.
_OPTED_ITSELF = Check(f"{_OURS} || {_ITSELF}", f"{_WHO} on the object itself")
_OPTED_SPACE = Check(_SPACE, f"{_WHO} on the namespace")
_OUT = f"oldObject.metadata.?annotations[?'{OPT_OUT}'].orValue('false').lowerAscii() == 'false'"
_NOT_OUT = Check(f"{_OURS} || {_OUT}", f"it has the annotation {OPT_OUT}")
_OPEN = f"namespaceObject.metadata.?labels[?'{PROTECTED_LABEL}'].orValue('false') == 'false'"
_FREE = Check(
    f"{_OURS} || !(variables.there in {[*PROTECTED]!r}) && variables.there != variables.home"
    f" && namespaceObject != null && {_OPEN}",
    f"nothing is begun in {', '.join(PROTECTED)}, Kreflex' own namespace, and those with the label {PROTECTED_LABEL}",
)
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
_CHANGES = (_FREE, _OPTED, _NOT_OUT, _NOTED, _NOT_GITS)
_MADE = Check(f"object.metadata.?annotations[?'{INJECTED}'].hasValue()", f"what is made has the annotation {INJECTED}")
_MINE = Check(_OURS, f"only what has the annotation {INJECTED} is removed")
_OF_THE_CONTROL_PLANE = Check("variables.there == 'kube-system'", "a Lease of the control plane is in kube-system")
_ISOLATES = Check(
    f"object.spec.podSelector.?matchLabels[?'{ISOLATED}'].hasValue()",
    f"a NetworkPolicy selects what has the label {ISOLATED}",
)
_SEEING = frozenset({"get", "list"})

ACTS = (
    Rule("", "pods", "delete", checks=(_OPTED_NOW, _NOT_OUT)),
    Rule(
        "",
        "pods",
        "patch",
        fields=("metadata.labels", "spec.containers"),
        checks=(*_CHANGES, _ONLY_LABEL),
        everywhere=True,
        despite_git=True,
    ),
    Rule("", "pods/eviction", "create", checks=(PRECONDITIONS,)),
    Rule("", "nodes", "patch", "cluster", fields=("spec.unschedulable",), checks=(_OPTED_ITSELF, _NOT_OUT, _NOTED)),
    *(
        Rule(
            group,
            plural,
            "patch",
            fields=("spec.replicas", "spec.template.spec.containers"),
            checks=_CHANGES,
            everywhere=True,
            despite_git=True,
        )
        for group, plural in (("apps", "deployments"), ("apps", "statefulsets"), ("argoproj.io", "rollouts"))
    ),
    Rule("", "configmaps", "patch", fields=("data",), checks=_CHANGES, everywhere=True, despite_git=True),
    Rule(
        "coordination.k8s.io",
        "leases",
        "patch",
        fields=("spec",),
        checks=(_OF_THE_CONTROL_PLANE, _OPTED_ITSELF, _NOT_OUT, _NOTED),
        everywhere=True,
        despite_git=True,
    ),
    Rule("networking.k8s.io", "networkpolicies", "create", checks=(_MADE, _ISOLATES)),
    Rule("networking.k8s.io", "networkpolicies", "delete", checks=(_MINE,), everywhere=True),
    *jobs.ACTS,
    *(
        Rule(
            rule.group,
            rule.resource,
            rule.verb,
            fields=rule.fields,
            checks={"create": (_MADE, _OPTED_SPACE), "patch": (_MINE,), "delete": (_MINE,)}.get(rule.verb, ()),
            everywhere=rule.verb != "create",
            despite_git=True,
        )
        for rule in engines.RBAC
        if rule.verb not in _SEEING
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
            ("argoproj.io", "rollouts"),
            ("coordination.k8s.io", "leases"),
            ("networking.k8s.io", "networkpolicies"),
        )
        for verb in ("get", "list")
    ),
    *OWNERS,
    Rule("", "nodes", "get", "cluster"),
    Rule("", "nodes", "list", "cluster"),
    Rule("", "namespaces", "get", "cluster"),
    *(rule for rule in engines.RBAC if rule.verb in _SEEING),
    *jobs.RBAC,
)
REST = (*_READ, *experiments.RBAC, *turns.RBAC, *slos.RBAC)
