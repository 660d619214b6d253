"""Jobs as probes: one is made from a CronJob's template, and has to succeed in time.

The template is not in the experiment: who may write an experiment is not for that allowed to run any pod under any
account of the namespace. A CronJob was made by somebody who is, and its label says that chaos-runner may use it.
"""

from __future__ import annotations

import copy
import hashlib
import re
from datetime import datetime, timedelta

from kreflex.chaos.experiments import ALLOWED, API, INJECTED, KIND, OPT_IN, Experiment, JobOf, Probe
from kreflex.cluster import Reader, Writer
from kreflex.errors import ConflictError
from kreflex.rule import Check, Rule
from kreflex.views import JSON, moment

# It stays so long for people who want to read its logs; nothing of ours deletes it.
KEPT = timedelta(hours=1)
# A Job that is over by its own deadline, and whose controller has not said so.
_SILENT = timedelta(seconds=30)
_MADE = Check(
    f"object.metadata.?annotations[?'{INJECTED}'].hasValue()"
    f" && object.metadata.?ownerReferences.orValue([]).exists(o, o.kind == '{KIND}' && o.apiVersion == '{API}')"
    " && object.spec.?activeDeadlineSeconds.orValue(3600) <= 300"
    f" && object.spec.?ttlSecondsAfterFinished.orValue(86400) <= {KEPT.total_seconds():.0f}",
    "a Job is a probe of an experiment, which owns it, ends within 5 minutes and is removed within the hour",
)
ACTS = (Rule("batch", "jobs", "create", checks=(_MADE,)),)
RBAC = (Rule("batch", "jobs", "get"), Rule("batch", "cronjobs", "get"))


async def look_at(
    probe: Probe, experiment: Experiment, turn: str, reader: Reader, writer: Writer
) -> tuple[bool, str] | None:
    """Tell how the Job of a turn has ended, and in words; made if it is not there, None while it runs."""
    asked = probe.job
    assert asked is not None, "who asks sees to it"
    name, path = name_of(probe, experiment, turn), f"/apis/batch/v1/namespaces/{experiment.namespace}"
    body = await reader.get(f"{path}/jobs/{name}")
    if body is not None:
        return ended(body, asked, reader.now())
    template = await reader.get(f"{path}/cronjobs/{asked.cron_job}")
    why = unusable(template, asked.cron_job)
    if template is None or why:
        return False, why
    try:
        await writer.create(f"{path}/jobs", made(name, template, probe, experiment))
    except ConflictError as error:
        if error.reason != "AlreadyExists":
            raise
    return None


def unusable(cron_job: JSON | None, name: str) -> str:
    """Tell why no Job is made from a CronJob; "" if one is."""
    if cron_job is None:
        return f"there is no CronJob {name} in this namespace"
    said = (cron_job["metadata"].get("labels") or {}).get(OPT_IN)
    return "" if said == ALLOWED else f"CronJob {name} has not the label {OPT_IN}: {ALLOWED}"


def name_of(probe: Probe, experiment: Experiment, turn: str) -> str:
    """Name the Job of one turn: whoever comes after a kill finds it, and makes no second one."""
    key = f"{experiment.uid}/{probe.name}/{turn}"
    readable = re.sub(r"[^a-z0-9-]", "-", f"{experiment.name[:20]}-{probe.name[:20]}")
    return f"chaos-{readable}-{hashlib.sha256(key.encode()).hexdigest()[:8]}"


def made(name: str, cron_job: JSON, probe: Probe, experiment: Experiment) -> JSON:
    """Give the Job: the CronJob's template with an end, out of reach of the experiment's own fault."""
    assert probe.job is not None, "who asks sees to it"
    template = copy.deepcopy(cron_job["spec"]["jobTemplate"])
    pod = template["spec"]["template"]
    labels = (pod.get("metadata") or {}).get("labels") or {}
    pod["metadata"] = {**(pod.get("metadata") or {}), "labels": {**labels, OPT_IN: "forbidden"}}
    spec = {key: value for key, value in template["spec"].items() if key not in {"suspend", "selector"}}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": name,
            "namespace": experiment.namespace,
            "labels": (template.get("metadata") or {}).get("labels") or {},
            "annotations": {INJECTED: experiment.mark},
            "ownerReferences": [{"apiVersion": API, "kind": KIND, "name": experiment.name, "uid": experiment.uid}],
        },
        "spec": {
            **spec,
            "activeDeadlineSeconds": max(1, round(probe.job.within.total_seconds())),
            "ttlSecondsAfterFinished": round(KEPT.total_seconds()),
        },
    }


def ended(body: JSON, asked: JobOf, now: datetime) -> tuple[bool, str] | None:
    """Tell how a Job has ended; None while it runs."""
    name = body["metadata"]["name"]
    said = {one["type"]: one for one in (body.get("status") or {}).get("conditions") or () if one["status"] == "True"}
    if "Complete" in said:
        return True, f"Job {name} succeeded"
    if "Failed" in said:
        why = said["Failed"].get("message") or said["Failed"].get("reason") or "it does not say why"
        return False, f"Job {name} failed: {why}"
    begun = moment(body["metadata"].get("creationTimestamp")) or now
    return (False, f"Job {name} has not ended in time") if now > begun + asked.within + _SILENT else None
