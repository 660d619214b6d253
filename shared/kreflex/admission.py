"""Admission policies: each function is held to its rights, even if its code is wrong or somebody gives it more.

`python -m kreflex.admission` writes them into knative/: one for each function, computed from the same declarations as
its RBAC, and one about the records and their approvals.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from kreflex.gitops import SYNC_SUSPENDED
from kreflex.guards import OPT_OUT
from kreflex.leases import NAMESPACE as LEASES
from kreflex.policy import GROUP, PROTECTED, PROTECTED_LABEL
from kreflex.rights import CHAOS, HOME, SCORER, Rights, all_rights, rbac, render
from kreflex.rule import Check, Rule
from kreflex.views import JSON

_API = "admissionregistration.k8s.io/v1"
_OPERATIONS = {"create": "CREATE", "update": "UPDATE", "patch": "UPDATE", "delete": "DELETE"}
_ACCOUNT = "system:serviceaccount:"
APPROVER = "kreflex-approver"
_PERSON = "!(['system:serviceaccounts', 'system:nodes', 'system:unauthenticated'].exists(g, g in variables.groups))"
_KEPT_BY_THE_SERVER = {"generation", "managedFields", "resourceVersion"}
# By these Git's controllers know what is theirs. Not by app.kubernetes.io/instance: Helm sets it, too.
# https://argo-cd.readthedocs.io/en/stable/user-guide/resource_tracking/
# https://fluxcd.io/flux/components/kustomize/kustomizations/#garbage-collection
_GIT_ANNOTATIONS = ("argocd.argoproj.io/tracking-id",)
_GIT_LABELS = ("kustomize.toolkit.fluxcd.io/name", "helm.toolkit.fluxcd.io/name")
_MARKED = " || ".join(
    [f"oldObject.metadata.?annotations[?'{key}'].hasValue()" for key in _GIT_ANNOTATIONS]
    + [f"oldObject.metadata.?labels[?'{key}'].hasValue()" for key in _GIT_LABELS]
)
# Said in a write of its own, before: nothing writes it down by the way.
_GITS = f"({_MARKED}) && !oldObject.metadata.?annotations[?'{SYNC_SUSPENDED}'].hasValue()"

_UNPROTECTED = (
    Check(
        f"!(variables.there in {[*PROTECTED]!r}) && variables.there != variables.home",
        f"nothing is done in {', '.join(PROTECTED)} and Kreflex' own namespace",
    ),
    Check(
        "namespaceObject == null"
        f" || namespaceObject.metadata.?labels[?'{PROTECTED_LABEL}'].orValue('false') == 'false'",
        f"the namespace has the label {PROTECTED_LABEL}",
    ),
)


def policy_of(rights: Rights) -> list[JSON]:
    """Give a function's ValidatingAdmissionPolicy and its binding."""
    writes = {asked: [rule for rule in rights.rules if asks(rule) == asked] for asked in _asked(rights)}
    only = Check(f"variables.asked in {[*writes]!r}", "that is not among what its signature needs")
    checks = [(only, "")]
    for asked, rules in writes.items():
        acts = any(rule in rights.acts for rule in rules)
        checks += [(check, asked) for check in dict.fromkeys(_checks(rules, acts=acts))]
    return _bound(
        f"{rights.name}.{GROUP}",
        {"apiGroups": ["*"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*/*"], "scope": "*"},
        [
            _condition("it", f"{_user()}.startsWith('{_ACCOUNT}') && {_user()}.endsWith(':{rights.name}')"),
            _ours(rights),
        ],
        _variables(rights),
        [_validation(check, asked) for check, asked in checks],
    )


def _asked(rights: Rights) -> list[str]:
    return sorted({asks(rule) for rule in rights.rules} - {""})


def asks(rule: Rule) -> str:
    """Say what a write asks for as `variables.asked` does, such as `CREATE pods/eviction`; "" for a read."""
    if rule.verb not in _OPERATIONS:
        return ""
    resource, _, sub = rule.resource.partition("/")
    whole = f"{resource}.{rule.group}" if rule.group else resource
    return f"{_OPERATIONS[rule.verb]} {whole}/{sub}" if sub else f"{_OPERATIONS[rule.verb]} {whole}"


def _user() -> str:
    return "request.userInfo.username"


def _ours(rights: Rights) -> JSON:
    """Tell our account from a stranger's of the same name: each of ours reads the policies, wherever it lives."""
    reads = f"authorizer.group('{GROUP}').resource('clusterremediationpolicies').check('list').allowed()"
    return _condition("ours", f"{_user()} == '{_ACCOUNT}{HOME}:{rights.name}' || {reads}")


def _variables(rights: Rights) -> dict[str, str]:
    group = "(request.resource.group == '' ? '' : '.' + request.resource.group)"
    sub = "(request.?subResource.orValue('') == '' ? '' : '/' + request.subResource)"
    where = "(variables.there == '' ? '' : ' in namespace ' + variables.there)"
    return {
        "me": f"'{rights.name}'",
        "home": f"{_user()}.split(':')[2]",
        "there": "request.?namespace.orValue('')",
        "asked": f"request.operation + ' ' + request.resource.resource + {group} + {sub}",
        "no": f"variables.me + ' may not ' + variables.asked + {where} + ': '",
        **({"gits": _GITS} if any(rule.fields for rule in rights.acts) else {}),
    }


def _checks(rules: Sequence[Rule], *, acts: bool) -> Iterable[Check]:
    if acts and not all(rule.everywhere for rule in rules):
        yield from _UNPROTECTED
    for rule in rules:
        if rule.where == "home":
            yield Check("variables.there == variables.home", "that is done in its own namespace only")
        if rule.where == "leases":
            yield Check(f"variables.there == '{LEASES}'", f"that is done in namespace {LEASES} only")
        if rule.names:
            yield Check(f"request.name in {[*rule.names]!r}", f"only {', '.join(rule.names)} is meant")
        yield from rule.checks
    if any(_OPERATIONS.get(rule.verb) == "UPDATE" for rule in rules):
        notes = {note for rule in rules for note in rule.notes}
        yield _unchanged({field for rule in rules for field in rule.fields}, notes)
        if acts:
            owned = [field for rule in rules if not rule.despite_git for field in rule.fields]
            yield from (_not_gits(field) for field in owned if not field.startswith("status"))


def _unchanged(fields: set[str], notes: set[str]) -> Check:
    """Hold an update to its fields: beside them and above them everything stays as it was."""
    above = {"", "metadata", *(step.rpartition(".")[0] for step in _steps(fields))}
    same = [_others_same(path, _may_change(path, fields)) for path in sorted(above)]
    may = ", ".join(sorted(fields | notes)) or "nothing"
    return Check(" && ".join([*same, *_noted(notes)]), f"only {may} may change")


def _noted(notes: set[str]) -> Iterable[str]:
    """Let an action leave a note of ours on what it changes, and those of others that are named, and no other.

    Who has opted out has not done so by us, and we don't take it back.
    """
    named = f" || k in {sorted(notes)!r}" if notes else ""
    for one in ("object", "oldObject"):
        yield (
            f"{one}.metadata.?annotations.orValue({{}}).all(k, k.startsWith('{GROUP}/') && k != '{OPT_OUT}'{named}"
            " || object.metadata.?annotations[?k] == oldObject.metadata.?annotations[?k])"
        )


def _steps(fields: set[str]) -> set[str]:
    """Give the fields and every path on the way to them."""
    return {".".join(field.split(".")[: n + 1]) for field in fields for n in range(field.count(".") + 1)}


def _may_change(path: str, fields: set[str]) -> list[str]:
    """Tell what below a path may change, or is held by itself."""
    below = {step.rpartition(".")[2] for step in _steps(fields) if step.rpartition(".")[0] == path}
    return sorted(below | {"": {"metadata"}, "metadata": _KEPT_BY_THE_SERVER | {"annotations"}}.get(path, set()))


def _others_same(path: str, keys: list[str]) -> str:
    new, old = (f"{whole}{_optional(path)}.orValue({{}})" if path else whole for whole in ("object", "oldObject"))
    return f"{new}.all(k, k in {keys!r} || {new}[?k] == {old}[?k]) && {old}.all(k, k in {keys!r} || k in {new})"


def _optional(path: str) -> str:
    return "".join(f".?{part}" for part in path.split("."))


def _same(path: str) -> str:
    return f"object{_optional(path)} == oldObject{_optional(path)}"


def _not_gits(field: str) -> Check:
    return Check(f"!variables.gits || {_same(field)}", f"Git owns {field} of it: change it there")


def _condition(name: str, expression: str) -> JSON:
    return {"name": name, "expression": expression}


def _validation(check: Check, asked: str) -> JSON:
    expression = f"variables.asked != '{asked}' || {check.expression}" if asked else check.expression
    return _told(expression, f"variables.no + {check.message!r}")


def _told(expression: str, message: str) -> JSON:
    return {"expression": expression, "reason": "Forbidden", "messageExpression": message}


def _bound(
    name: str, rule: JSON, conditions: list[JSON], variables: dict[str, str], validations: list[JSON]
) -> list[JSON]:
    return [
        {
            "apiVersion": _API,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": name},
            "spec": {
                "failurePolicy": "Fail",
                "matchConstraints": {"matchPolicy": "Exact", "resourceRules": [rule]},
                "matchConditions": conditions,
                "variables": [_condition(key, expression) for key, expression in variables.items()],
                "validations": validations,
            },
        },
        {
            "apiVersion": _API,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": name},
            "spec": {"policyName": name, "validationActions": ["Deny", "Audit"]},
        },
    ]


def approvals() -> list[JSON]:
    """Give the policy about records: functions write them, people approve, each in his own name."""
    rule = {
        "apiGroups": [GROUP],
        "apiVersions": ["*"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["remediations", "remediations/status"],
        "scope": "Namespaced",
    }
    own = f"variables.user.startsWith('{_ACCOUNT}') && variables.user.endsWith(':' + object.spec.function)"
    return _bound(
        f"approvals.{GROUP}",
        rule,
        [],
        {
            "user": _user(),
            "groups": "request.userInfo.?groups.orValue([])",
            "by": "object.spec.approval.by",
            "old": "oldObject == null ? optional.none() : oldObject.spec.?approval",
            "approves": "has(object.spec.approval) && variables.old != object.spec.?approval",
        },
        [
            _told(
                f"request.operation == 'UPDATE' && request.?subResource.orValue('') == '' || {own}",
                "'only the account of ' + object.spec.function + ' writes its records and their status;"
                " delete this one, and its fault is decided anew'",
            ),
            _told(
                f"!variables.approves || {_PERSON}",
                "'only people approve, and ' + variables.user + ' is none'",
            ),
            _told(
                "!variables.approves || variables.by == variables.user",
                "'spec.approval.by must be who asks: ' + variables.user + ', not ' + variables.by",
            ),
            _told(
                "!variables.approves || authorizer.requestResource.check('approve').allowed()",
                "variables.user + ' needs the verb approve on remediations in namespace ' + request.namespace +"
                f" ', as ClusterRole {APPROVER} gives it'",
            ),
        ],
    )


def experiments() -> list[JSON]:
    """Give the policy about experiments: chaos-runner alone says how far one is, and people approve in their own names.

    Whoever could write a status could have chaos-runner do or take back what nobody has written into a spec.
    """
    rule = {
        "apiGroups": [GROUP],
        "apiVersions": ["*"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["experiments", "experiments/status"],
        "scope": "Namespaced",
    }
    reads = f"authorizer.group('{GROUP}').resource('clusterremediationpolicies').check('list').allowed()"
    runner = f"variables.user.startsWith('{_ACCOUNT}') && variables.user.endsWith(':{CHAOS}') && {reads}"
    return _bound(
        f"experiments.{GROUP}",
        rule,
        [],
        {
            "user": _user(),
            "groups": "request.userInfo.?groups.orValue([])",
            "old": "oldObject == null ? optional.none() : oldObject.spec.?approval",
            "approves": "has(object.spec.approval) && variables.old != object.spec.?approval",
        },
        [
            _told(
                f"request.?subResource.orValue('') != 'status' || ({runner})",
                f"'only the account of {CHAOS} writes the status of experiments;"
                " to end one, set spec.stop to true, or delete it'",
            ),
            _told(f"!variables.approves || {_PERSON}", "'only people approve, and ' + variables.user + ' is none'"),
            _told(
                "!variables.approves || object.spec.approval.by == variables.user",
                "'spec.approval.by must be who asks: ' + variables.user + ', not ' + object.spec.approval.by",
            ),
            _told(
                "!variables.approves || authorizer.requestResource.check('approve').allowed()",
                "variables.user + ' needs the verb approve on experiments in namespace ' + request.namespace +"
                f" ', as ClusterRole {APPROVER} gives it'",
            ),
        ],
    )


def anomalies() -> list[JSON]:
    """Give the policy about anomalies: by them pods may be evicted, so nobody makes them up but who measures.

    People say in their own names whether one was right.
    """
    rule = {
        "apiGroups": [GROUP],
        "apiVersions": ["*"],
        "operations": ["CREATE", "UPDATE"],
        "resources": ["anomalies", "anomalies/status"],
        "scope": "Namespaced",
    }
    reads = f"authorizer.group('{GROUP}').resource('clusterremediationpolicies').check('list').allowed()"
    scorer = f"variables.user.startsWith('{_ACCOUNT}') && variables.user.endsWith(':{SCORER}') && {reads}"
    return _bound(
        f"anomalies.{GROUP}",
        rule,
        [],
        {
            "user": _user(),
            "groups": "request.userInfo.?groups.orValue([])",
            "scorer": scorer,
            "says": "oldObject != null && object.spec.?feedback != oldObject.spec.?feedback",
        },
        [
            _told(
                "request.operation == 'UPDATE' && request.?subResource.orValue('') == '' || variables.scorer",
                f"'only the account of {SCORER} writes anomalies and their status: pods may be evicted for them'",
            ),
            _told(
                f"!variables.says || variables.scorer || {_PERSON}",
                "'only people give feedback, and ' + variables.user + ' is none'",
            ),
            _told(
                "!variables.says || variables.scorer || object.spec.?feedback.?by.orValue(variables.user) =="
                " variables.user",
                "'spec.feedback.by must be who asks: ' + variables.user + ', not ' + object.spec.feedback.by",
            ),
        ],
    )


def approver() -> JSON:
    """Give the ClusterRole for people who approve. Nobody gets it by being an admin of a namespace."""
    rules = [
        Rule(GROUP, resource, verb)
        for resource, verbs in (
            ("anomalies", ("get", "list", "patch", "watch")),
            ("experiments", ("approve", "get", "list", "patch", "watch")),
            ("remediations", ("approve", "get", "list", "patch", "watch")),
            ("clusterremediationpolicies", ("get", "list", "watch")),
            ("remediationpolicies", ("get", "list", "watch")),
        )
        for verb in verbs
    ]
    return {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRole",
        "metadata": {"name": APPROVER},
        "rules": rbac(rules),
    }


def files() -> dict[str, str]:
    """Give every file with its path below knative/."""
    shared = {
        "admission/anomalies.yaml": render(anomalies()),
        "admission/approvals.yaml": render([*approvals(), approver()]),
        "admission/experiments.yaml": render(experiments()),
    }
    return {f"{rights.name}/admission.yaml": render(policy_of(rights)) for rights in all_rights()} | shared


def main() -> None:
    """Write the policies into a folder."""
    arguments = argparse.ArgumentParser(prog="python -m kreflex.admission", description=main.__doc__)
    arguments.add_argument("folder", nargs="?", default="knative", type=Path, help="where they are written")
    folder: Path = arguments.parse_args().folder
    for name, text in files().items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


if __name__ == "__main__":
    main()
