"""The engines of others: LitmusChaos and Chaos Mesh. Their experiment is made, followed, and ended.

What they inject they take back themselves; ours to see to is that their object ends, and is gone.
https://litmuschaos.github.io/litmus/experiments/chaos-resources/chaos-engine/engine-state/
https://chaos-mesh.org/docs/clean-up-chaos-experiments/
"""

from __future__ import annotations

import json
from datetime import datetime

from kreflex.chaos.bounds import bound, nodes_of
from kreflex.chaos.experiments import API, INJECTED, KIND, REVERT_BY, Experiment, Injection
from kreflex.chaos.faults import Act, Back, Hands, namespaces_of, pods_seen
from kreflex.cluster import Reader
from kreflex.errors import ConflictError, OutageError
from kreflex.records import Target
from kreflex.rule import Rule
from kreflex.views import JSON, Ref

LITMUS, MESH = "litmuschaos.io", "chaos-mesh.org"
PLURALS = {
    "ChaosEngine": "chaosengines",
    "PodChaos": "podchaos",
    "NetworkChaos": "networkchaos",
    "StressChaos": "stresschaos",
    "IOChaos": "iochaos",
    "DNSChaos": "dnschaos",
    "TimeChaos": "timechaos",
    "HTTPChaos": "httpchaos",
}
_VERBS = ("get", "list", "create", "patch", "delete")
RBAC = tuple(
    Rule(LITMUS if kind == "ChaosEngine" else MESH, plural, verb, fields=("spec",) if verb == "patch" else ())
    for kind, plural in PLURALS.items()
    for verb in _VERBS
)


def group_of(kind: str) -> str:
    """Tell whose a kind is."""
    return LITMUS if kind == "ChaosEngine" else MESH


def place(kind: str, namespace: str, name: str = "") -> str:
    """Tell where the API server serves an engine's objects."""
    where = f"/namespaces/{namespace}" if namespace else ""
    base = f"/apis/{group_of(kind)}/v1alpha1{where}/{PLURALS[kind]}"
    return f"{base}/{name}" if name else base


async def engine_intent(experiment: Experiment, now: datetime, reader: Reader) -> Injection:
    """Say which object is about to be made. Its UID is the experiment's: it has none yet."""
    engine, status = experiment.wants.fault.engine, experiment.status
    assert engine is not None, "the model sees to it"
    assert status.revert_by is not None, "it is set when an experiment begins"
    bound(experiment, engine)
    name = f"{experiment.name[:40]}-{status.run}-{experiment.uid[:8]}"
    ref = Ref(f"{group_of(engine.kind)}/v1alpha1", engine.kind, experiment.namespace, name, experiment.uid)
    nodes = await nodes_of(engine, reader)
    return Injection(
        fault="Engine",
        target=Target.of(ref),
        round=status.rounds,
        intended_at=now,
        revert_by=status.revert_by,
        prior=json.dumps(nodes),
        moves=namespaces_of([pod for node in nodes for pod in await pods_seen(node, reader)]),
    )


class EngineRun(Act):
    """An object of LitmusChaos or Chaos Mesh."""

    async def prior(self, experiment: Experiment, body: JSON, hands: Hands) -> str:  # noqa: ARG002
        """Nothing was there before."""
        return ""

    async def inject(self, experiment: Experiment, injection: Injection, hands: Hands) -> str:
        """Make the object; one of this name is ours, for it has our UID in it."""
        engine, ref = experiment.wants.fault.engine, injection.target.ref
        assert engine is not None, "the model sees to it"
        until = injection.model_dump(mode="json", by_alias=True)["revertBy"]
        body: JSON = {
            "apiVersion": ref.api_version,
            "kind": ref.kind,
            "metadata": {
                "name": ref.name,
                "namespace": ref.namespace,
                "annotations": {INJECTED: experiment.mark, REVERT_BY: until},
                "ownerReferences": [{"apiVersion": API, "kind": KIND, "name": experiment.name, "uid": experiment.uid}],
            },
            "spec": bound(experiment, engine),
        }
        try:
            await hands.writer.create(place(ref.kind, ref.namespace), body)
        except ConflictError as error:
            if error.reason != "AlreadyExists":
                raise
        return f"{ref.kind} {ref.name} is made"

    async def keep_on(self, experiment: Experiment, injection: Injection, hands: Hands) -> str:  # noqa: ARG002
        """Tell how far the engine is, in its own words."""
        ref = injection.target.ref
        body = await _found(place(ref.kind, ref.namespace, ref.name), hands)
        status = (body or {}).get("status") or {}
        if ref.kind == "ChaosEngine":
            told = [
                f"{one.get('name')} {one.get('status')} {one.get('verdict', '')}".strip()
                for one in status.get("experiments") or ()
            ]
            return f"{ref.kind} {status.get('engineStatus', 'unseen')}: {', '.join(told)}".rstrip(": ")
        phase = (status.get("experiment") or {}).get("desiredPhase", "unseen")
        done = [one["type"] for one in status.get("conditions") or () if one.get("status") == "True"]
        return f"{ref.kind} {phase}: {', '.join(sorted(done))}".rstrip(": ")

    async def revert(self, mark: str, injection: Injection, hands: Hands) -> Back:
        """Stop it, delete it, and see that it is gone: its finalizers keep it until all is taken back."""
        ref = injection.target.ref
        path = place(ref.kind, ref.namespace, ref.name)
        body = await _found(path, hands)
        if body is None:
            return Back(proven=True, note="the engine's object is gone")
        if (body["metadata"].get("annotations") or {}).get(INJECTED) != mark:
            return Back(proven=False, note=f"{ref} is somebody else's")
        if ref.kind == "ChaosEngine" and (told := await _stop(path, body, hands)):
            return Back(proven=False, note=told)
        if "deletionTimestamp" not in body["metadata"]:
            await hands.writer.delete(path, {"preconditions": {"uid": body["metadata"]["uid"]}})
        gone = await hands.reader.get(path) is None
        return Back(proven=gone, note="the engine's object is gone" if gone else await _waits(path, hands))


async def _waits(path: str, hands: Hands) -> str:
    """Say for whom an engine's object waits, and what people can do if he never comes."""
    body = await _found(path, hands)
    held = ", ".join((body or {"metadata": {}})["metadata"].get("finalizers") or ())
    return f"the engine still takes it back: it goes when its controller takes {held or 'it'} away" if body else ""


async def _found(path: str, hands: Hands) -> JSON | None:
    """Read the engine's object; one of a kind that is served no more is gone with all its like."""
    try:
        return await hands.reader.get(path)
    except OutageError as error:
        if error.status != 404:
            raise
        return None


async def _stop(path: str, body: JSON, hands: Hands) -> str:
    """Tell a ChaosEngine to stop, and say what is waited for; "" if it has."""
    if body["spec"].get("engineState") != "stop":
        meta = {"uid": body["metadata"]["uid"], "resourceVersion": body["metadata"]["resourceVersion"]}
        await hands.writer.merge(path, {"metadata": meta, "spec": {"engineState": "stop"}})
        return "the engine is told to stop"
    return "" if _stopped(body) else "the engine has not stopped yet"


def _stopped(body: JSON) -> bool:
    """An engine that never saw its object has nothing to stop."""
    state = (body.get("status") or {}).get("engineStatus")
    return state in {None, "", "stopped", "completed"}


ENGINE = EngineRun()
