"""The audit log says that no account lacks a right and that none has one which it does not use. With real processes."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime, timedelta

import pytest

from kreflex import rights, slos
from lab import audit, callers, crds, manifests, nodes
from lab.api import eventually
from lab.cluster import ControlPlane, Options
from tests import kit
from tests.cluster.reflexes import POLICIES, made, told
from tests.serving import PING, Served, served

LEDGER = "/api/v1/namespaces/kreflex-system/configmaps/kreflex-ledger"
ROLLOUTS = "/apis/argoproj.io/v1alpha1"
POLICY: kit.Json = {
    "owners": ["Deployment", "StatefulSet", "DaemonSet", "Job"],
    "limits": {"maxInFlight": 50, "storm": {"faults": 1000}},
    "proveWithin": "10s",
}
Use = tuple[str, str, str, str]
# node-replacer's rights are about the kinds of many makers: each is used where its action is tested, in
# test_node_actions, and test_node_replacer sees that it lacks none.
DRIVEN = ("restart-loop-killer", "waker")
FOUND = ("restart-loop-killer", "node-replacer", "rollback", "canary-aborter", "chaos-runner")
# What a policy has to switch on: asked for below.
SWITCHED_ON = {("restart-loop-killer", rule.verb, rule.group, rule.resource) for rule in slos.RBAC}


@pytest.fixture(scope="module")
async def own(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A control plane whose audit log has the reads, too, and on which only this test's processes ask."""
    async with ControlPlane(tmp_path_factory.mktemp("rights"), Options(audit_reads=True)) as plane:
        await nodes.start(plane, 2)
        await kit.install(plane)
        await manifests.apply(plane.api, [rollout_crd(), *await asyncio.to_thread(crds.sharing_crds)])
        yield plane


def rollout_crd() -> kit.Json:
    """Argo's kind, as far as its names: what controls pods is read whether its CRD is there or not."""
    schema = {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": True}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "rollouts.argoproj.io"},
        "spec": {
            "group": "argoproj.io",
            "scope": "Namespaced",
            "names": {"kind": "Rollout", "plural": "rollouts", "singular": "rollout"},
            "versions": [{"name": "v1alpha1", "served": True, "storage": True, "schema": schema}],
        },
    }


def looping(name: str, **annotations: str) -> kit.Json:
    template = kit.deployment(name, 1, {kit.FAULT: "crash-loop", kit.SPEED: "100", **annotations})
    found: kit.Json = template["spec"]["template"]
    return found


async def every_kind_of_owner(here: kit.Place) -> None:
    """Make a looping pod of each kind of owner that can be read."""
    for kind in ("Deployment", "StatefulSet", "DaemonSet"):
        name = kind.lower()
        body = {"selector": {"matchLabels": {"app": name}}, "template": looping(name)}
        await made(here, kind, body if kind == "DaemonSet" else {**body, "replicas": 1}, name)
    shy = looping("shy", **{"kreflex.dev/opt-out": "true"})
    await made(here, "Deployment", {"selector": {"matchLabels": {"app": "shy"}}, "template": shy}, "shy")
    job = looping("job")
    job["spec"]["restartPolicy"] = "OnFailure"
    await made(here, "Job", {"template": job, "backoffLimit": 100}, "job")
    await a_rollout(here)


async def a_rollout(here: kit.Place) -> None:
    body = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "metadata": {"name": "rollout"}}
    rollout = await here.plane.api.post(f"{ROLLOUTS}/namespaces/{here.name}/rollouts", body)
    owner = {**body, "name": "rollout", "uid": rollout["metadata"]["uid"], "controller": True}
    del owner["metadata"]
    spec = {"selector": {"matchLabels": {"app": "rollout"}}, "template": looping("rollout"), "replicas": 1}
    meta = {"name": "rollout", "ownerReferences": [owner]}
    await here.plane.api.post(f"/apis/apps/v1/namespaces/{here.name}/replicasets", {"metadata": meta, "spec": spec})


APPS = ("deployment", "statefulset", "daemonset", "job", "rollout", "shy")


async def ill_pods(here: kit.Place, *apps: str) -> list[kit.Json]:
    """Wait until each of these apps has a pod that loops."""

    async def found() -> list[kit.Json] | None:
        pods = [next((pod for pod in await here.pods(app) if restarts(pod) > 4), None) for app in apps]
        return None if None in pods else [pod for pod in pods if pod]

    pods: list[kit.Json] = await eventually(found, f"a looping pod of {', '.join(apps)}", patience=120)
    return pods


def restarts(pod: kit.Json) -> int:
    return max((c["restartCount"] for c in pod["status"].get("containerStatuses", [])), default=0)


def alert(pods: list[kit.Json]) -> bytes:
    """What Alertmanager would send about these pods."""
    alerts = [
        {"status": "firing", "labels": {"alertname": "Loop", "namespace": m["namespace"], "pod": m["name"]}}
        for m in (pod["metadata"] for pod in pods)
    ]
    about = {"version": "4", "groupKey": "g", "status": "firing", "receiver": "r", "truncatedAlerts": 0}
    common = {"groupLabels": {}, "commonLabels": {}, "commonAnnotations": {}, "externalURL": ""}
    return json.dumps({**about, **common, "alerts": alerts}).encode()


# What was used, and what was granted


def used(plane: ControlPlane) -> dict[Use, list[tuple[str, int]]]:
    """Tell what the accounts asked for: of which namespace and object, and how it was answered."""
    uses: dict[Use, list[tuple[str, int]]] = {}
    accounts = {f"system:serviceaccount:kreflex-system:{name}": name for name in DRIVEN}
    for entry in audit.entries(plane.audit_log):
        name = accounts.get(entry["user"]["username"])
        if name is not None:
            about = entry["objectRef"]
            resource = "/".join(filter(None, (about["resource"], about.get("subresource"))))
            use = (name, entry["verb"], about.get("apiGroup", ""), resource)
            place = f"{about.get('namespace', '')}/{about.get('name', '')}"
            uses.setdefault(use, []).append((place, entry["responseStatus"]["code"]))
    return uses


def granted() -> set[Use]:
    """Tell what the shipped manifests grant."""
    return {
        (name, verb, rule["apiGroups"][0], resource)
        for name in DRIVEN
        for body in kit.manifests(f"knative/{name}/rbac.yaml")
        for rule in body.get("rules", [])
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def declared(where: str) -> set[Use]:
    """Tell what is declared to be asked there."""
    return {
        (given.name, rule.verb, rule.group, rule.resource)
        for given in rights.all_rights()
        if given.name in DRIVEN
        for rule in given.rules
        if rule.where == where
    }


# The drive through everything


async def test_no_right_is_missing_and_none_is_unused(own: ControlPlane) -> None:
    here = await kit.place(own)
    await every_kind_of_owner(here)
    token = await callers.issue(own, "waker", "kreflex-system")
    async with served(own) as function:
        # No node is ill, and no release: the waker lists them to see that. What it finds of others is left alone here.
        others = ",".join(f"{name}={function.url}" for name in FOUND)
        names = {"FUNCTIONS": others, "TOKEN_FILE": str(token), "RETAIN": "1s"}
        async with served(own, "waker", **names) as waker:
            await drive_through(here, function, waker)

    uses = used(own)
    assert {use: asked for use, asked in uses.items() if any(code == 403 for _, code in asked)} == {}
    assert set(uses) - granted() == set()
    answered = {use for use, asked in uses.items() if any(code < 300 for _, code in asked)}
    assert granted() - SWITCHED_ON - answered == set()
    ledger = uses["restart-loop-killer", "update", "", "configmaps"]
    assert {code for _, code in ledger} >= {200, 409}
    assert {place for use in declared("home") - SWITCHED_ON for place, _ in uses[use]} == {
        "kreflex-system/kreflex-ledger"
    }
    assert {place for use in declared("cluster") - SWITCHED_ON for place, _ in uses[use]} == {"/"}


async def test_the_slos_of_a_policy_may_be_read(own: ControlPlane) -> None:
    asked: kit.Json = {"user": "system:serviceaccount:kreflex-system:restart-loop-killer"}
    answers = []
    for rule in slos.RBAC:
        about = {"group": rule.group, "resource": rule.resource, "verb": rule.verb}
        place = {"namespace": "kreflex-system"} if rule.where == "home" else {}
        body = {"spec": {**asked, "resourceAttributes": {**about, **place}}}
        answers.append((await own.api.post("/apis/authorization.k8s.io/v1/subjectaccessreviews", body))["status"])
    assert [answer["allowed"] for answer in answers] == [True] * len(slos.RBAC)


async def drive_through(here: kit.Place, function: Served, waker: Served) -> None:
    """Alerts, evictions, refusals, a plan that a person approves, the ledger's conflict, verdicts, and a removal."""
    await callers.issue(here.plane, callers.PERSON)
    shown = callers.headers(here.plane)

    async def tell(pods: list[kit.Json]) -> None:
        assert (await function.post(shown, alert(pods)))[0] in {200, 503}

    async def wake() -> None:
        assert (await waker.post({**shown, **PING}))[0] in {204, 503}

    async def until(reached: Callable[[list[kit.Json]], bool], drive: Callable[[], Awaitable[None]], what: str) -> None:
        async def there() -> bool:
            await drive()
            return reached(await here.records())

        await eventually(there, what, patience=120, pause=0.3)

    await here.policy(**POLICY)
    ill = await ill_pods(here, *APPS)
    await until(lambda records: len(records) == len(ill), lambda: tell(ill), "a record of each")
    await until(lambda records: any(told(r)[1] == "applied" for r in records), lambda: tell(ill), "an eviction")
    await until(lambda records: any(told(r)[1] == "refused" for r in records), lambda: tell(ill), "a refusal")
    await until(lambda records: any(r["status"].get("verdict") for r in records), wake, "a verdict")

    await here.policy(**POLICY, mode="Approve")
    await made(here, "Deployment", {"selector": {"matchLabels": {"app": "late"}}, "template": looping("late")}, "late")
    late = await ill_pods(here, "late")
    await until(lambda records: bool(of(records, "late", "awaiting-approval")), lambda: tell(late), "a plan that waits")
    # The function has read the ledger; somebody else writes it before it admits what is approved now.
    ledger = await here.plane.api.get(LEDGER)
    note = {"annotations": {"example.com/note": "somebody was here"}}
    await here.plane.api.put(LEDGER, {**ledger, "metadata": {**ledger["metadata"], **note}})
    await approve(here, of(await here.records(), "late", "awaiting-approval"))
    await until(lambda records: bool(of(records, "late", "applied")), wake, "what was approved")

    # A refused pod goes away, and nobody tells: its record is closed, and then removed.
    await here.plane.api.delete(f"/apis/apps/v1/namespaces/{here.name}/deployments/shy")
    await here.policy(**POLICY)
    await until(lambda records: not of(records, "shy"), wake, "a record removed")


def of(records: list[kit.Json], app: str, outcome: str = "") -> kit.Json:
    return next((r for r in records if f"-{app}-" in r["metadata"]["name"] and outcome in {"", told(r)[1]}), {})


async def approve(here: kit.Place, record: kit.Json) -> None:
    until = datetime.fromisoformat(record["status"]["decidedAt"]) + timedelta(hours=1)
    approval = {"planHash": record["status"]["planHash"], "by": "admin", "until": f"{until:%Y-%m-%dT%H:%M:%SZ}"}
    path = f"{POLICIES}/namespaces/{here.name}/remediations/{record['metadata']['name']}"
    await here.plane.api.patch(path, {"spec": {"approval": approval}})
