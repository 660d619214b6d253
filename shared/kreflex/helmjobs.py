"""The Job that runs `helm rollback`, and what admission asks of it: it may run nothing else under that account."""

from __future__ import annotations

import hashlib
import math
from datetime import timedelta

from kreflex.helm import MANAGED_BY, Installation, Undo
from kreflex.policy import GROUP
from kreflex.releases import Helm
from kreflex.rule import Check
from kreflex.views import JSON

RECORD = f"{GROUP}/remediation"
_LABELS = {
    MANAGED_BY: "kreflex",
    # A sidecar would keep the Job from ending: https://istio.io/latest/docs/setup/additional-setup/sidecar-injection/
    "sidecar.istio.io/inject": "false",
}
_CONFINED: JSON = {
    "allowPrivilegeEscalation": False,
    "capabilities": {"drop": ["ALL"]},
    "readOnlyRootFilesystem": True,
    "runAsNonRoot": True,
    "seccompProfile": {"type": "RuntimeDefault"},
}
_RESOURCES = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"cpu": "1", "memory": "512Mi"}}
# A pod that is lost with its node is made again, and helm goes on to the same revision.
_ATTEMPTS = 3
_KEPT = timedelta(days=1)
_NAME_LENGTH = 63
# What helm says no to, it says no to again; what was killed is done again. In this order: who is evicted may well say
# goodbye with 1. https://kubernetes.io/docs/tasks/job/pod-failure-policy/
_FAILURES: JSON = {
    "rules": [
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        {"action": "FailJob", "onExitCodes": {"containerName": "helm", "operator": "In", "values": [1, 2, 126, 127]}},
    ]
}


def job_name(undo: Undo) -> str:
    """Name the Job after what it undoes: of a release with several workloads only one record can have it."""
    name = f"{undo.installation.name}-undo-{undo.bad}".replace(".", "-")
    if len(name) <= _NAME_LENGTH:
        return name
    return f"{name[: _NAME_LENGTH - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def jobs_path(installation: Installation) -> str:
    """Tell where the Jobs of a release are."""
    return f"/apis/batch/v1/namespaces/{installation.namespace}/jobs"


def command_of(undo: Undo, rules: Helm) -> list[str]:
    """Write the command. Always with the revision: without one helm goes back by one, whatever that was."""
    forced = ["--force-conflicts"] if rules.force_conflicts else []
    where, wait = f"--namespace={undo.installation.namespace}", f"--timeout={_seconds(rules.timeout)}s"
    return ["helm", "rollback", undo.installation.name, str(undo.good), where, "--wait", wait, *forced]


def job_of(undo: Undo, rules: Helm, mark: str) -> JSON:
    """Make the Job: it ends by helm's own time limit, for one that is cut off leaves no word."""
    container = {
        "name": "helm",
        "image": rules.image,
        "command": command_of(undo, rules),
        "resources": _RESOURCES,
        "securityContext": _CONFINED,
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    pod: JSON = {
        "serviceAccountName": rules.service_account,
        "restartPolicy": "Never",
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "runAsGroup": 65532},
        "containers": [container],
    }
    notes = {RECORD: mark, "linkerd.io/inject": "disabled"}
    meta = {"labels": _LABELS, "annotations": notes}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": job_name(undo), "namespace": undo.installation.namespace, **meta},
        "spec": {
            "activeDeadlineSeconds": 2 * _seconds(rules.timeout) + 120,
            "backoffLimit": _ATTEMPTS - 1,
            "podFailurePolicy": _FAILURES,
            "ttlSecondsAfterFinished": _seconds(_KEPT),
            "template": {"metadata": meta, "spec": pod},
        },
    }


def _seconds(duration: timedelta) -> int:
    return math.ceil(duration.total_seconds())


_SPEC = "object.spec.template.spec"
# No field that is not needed: what a later Kubernetes adds is not allowed before somebody has looked at it.
_POD_FIELDS = [
    "containers",
    "dnsPolicy",
    "restartPolicy",
    "schedulerName",
    "securityContext",
    "serviceAccount",
    "serviceAccountName",
    "terminationGracePeriodSeconds",
]
_CONTAINER_FIELDS = [
    "command",
    "image",
    "imagePullPolicy",
    "name",
    "resources",
    "securityContext",
    "terminationMessagePath",
    "terminationMessagePolicy",
]
_COMMAND = (
    "c.?command.orValue([]).size() >= 7",
    "c.command[0] == 'helm' && c.command[1] == 'rollback'",
    "c.command[2].matches('^[a-z0-9][-.a-z0-9]*$') && c.command[3].matches('^[1-9][0-9]*$')",
    "c.command[4] == '--namespace=' + variables.there && c.command[5] == '--wait'",
    "c.command[6].matches('^--timeout=[0-9]+s$')",
    "(c.command.size() == 7 || c.command.size() == 8 && c.command[7] == '--force-conflicts')",
)
_UNPRIVILEGED = (
    "c.?securityContext.?runAsNonRoot.orValue(false)",
    "!c.?securityContext.?allowPrivilegeEscalation.orValue(true)",
    "!c.?securityContext.?privileged.orValue(false)",
    "c.?securityContext.?capabilities.?drop.orValue([]) == ['ALL']",
    "!c.?securityContext.?capabilities.?add.hasValue()",
)
_ACCOUNT = f"{_SPEC}.?serviceAccountName.orValue('default')"
_MAY_USE = ".check('use').allowed()"


def _of_containers(*parts: str) -> str:
    return f"{_SPEC}.containers.all(c, {' && '.join(parts)})"


CHECKS = (
    Check(
        f"{_SPEC}.all(k, k in {_POD_FIELDS!r}) && {_SPEC}.containers.size() == 1"
        f" && {_of_containers(f'c.all(k, k in {_CONTAINER_FIELDS!r})')}",
        "its pods have one container and nothing else: no volume, no variable, no part of the host",
    ),
    Check(
        _of_containers(*_COMMAND),
        "it runs helm rollback and nothing else, to a revision that is named, in its own namespace",
    ),
    Check(_of_containers(*_UNPRIVILEGED), "its container has no privilege"),
    Check(
        f"object.spec.template.metadata.?labels['{MANAGED_BY}'].orValue('') == 'kreflex'",
        f"its pods are labelled {MANAGED_BY}=kreflex",
    ),
    Check(
        f"authorizer.group('').resource('serviceaccounts').namespace(variables.there).name({_ACCOUNT}){_MAY_USE}",
        "nobody has given it the verb use on that ServiceAccount (knative/variants/helm)",
    ),
    Check(
        _of_containers(
            f"authorizer.group('{GROUP}').resource('images').namespace(variables.there).name(c.image){_MAY_USE}"
        ),
        f"nobody has given it the verb use on that image, images.{GROUP} (knative/variants/helm)",
    ),
)
"""Whose account and which image it is, people say: by a Role that gives the function the verb `use` on each."""
