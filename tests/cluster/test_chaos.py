"""Experiments on a real API server, by chaos-runner's own account."""

import asyncio
import contextlib
import os
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kreflex.chaos import experiments
from kreflex.chaos.changes import value
from kreflex.chaos.experiments import OPT_IN
from kreflex.chaos.orphans import Orphans
from kreflex.chaos.runner import Runner, Terms
from kreflex.cluster import Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.errors import DeniedError
from kreflex.policy import PROTECTED_LABEL
from lab import chaos_engines, kubeconfig, nodes, processes
from lab.api import Refused, eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster import chaos
from tests.cluster.reflexes import an_arc, handled
from tests.cluster.test_approval import Plan, let_approve
from tests.manifests import rendered
from tests.mortal import CutError, Mortal

PLAIN = rendered.KNATIVE / "variants" / "plain"
POD = ("spec", "template", "spec", "containers", "name=app")


@pytest.fixture(scope="module")
async def ready(installed: ControlPlane) -> ControlPlane:
    """The control plane with chaos-runner's rights."""
    await chaos.install(installed)
    return installed


@pytest.fixture
async def runner(ready: ControlPlane) -> AsyncIterator[Runner]:
    async with chaos.runner(ready) as made:
        yield made


@pytest.fixture
async def shop(ready: ControlPlane) -> kit.Place:
    """A namespace that has opted in, and whose policy lets everything pass."""
    here = await kit.place(ready)
    await chaos.opt_in(here)
    return here


async def test_kills_half_of_the_pods_rounded_down_and_they_come_again(shop: kit.Place, runner: Runner) -> None:
    pods = {pod["metadata"]["uid"] for pod in await shop.deployment("cart", 3)}
    ready = {"name": "cart", "path": "status.readyReplicas", "operator": ">=", "value": "3"}
    made = await chaos.make(
        shop.plane,
        shop.name,
        fault={"kind": "PodKill"},
        amount="50%",
        probes=[{"name": "cart", "object": ready, "when": ["Before", "After"]}],
    )
    ended = await chaos.play(runner, made)
    hit = [one.target.uid for one in ended.status.injected]
    assert (ended.status.phase, ended.status.verdict, ended.status.score) == ("Done", "Passed", 100.0), ended.status
    assert len(hit) == 1
    assert set(hit) <= pods
    left = {pod["metadata"]["uid"] for pod in await shop.ready_pods("cart", 3)}
    assert pods - left == set(hit)


CONTAINER = {
    "name": "app",
    "image": "shop:1",
    "env": [{"name": "DATABASE", "value": "main"}, {"name": "OTHER", "value": "kept"}],
    "readinessProbe": {"httpGet": {"path": "/", "port": 80}, "periodSeconds": 7},
    "resources": {"limits": {"cpu": "500m"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
}
WORKLOADS: dict[str, tuple[dict[str, Any], tuple[str, ...], object]] = {
    "ScaleToZero": ({}, ("spec", "replicas"), 0),
    "Image": ({"image": "shop:2-crash"}, (*POD, "image"), "shop:2-crash"),
    "Environment": ({"env": {"DATABASE": "none"}}, (*POD, "env", "name=DATABASE", "value"), "none"),
    "Probe": ({}, (*POD, "readinessProbe", "tcpSocket", "port"), 1),
    "ResourceSqueeze": ({"cpu": "10m"}, (*POD, "resources", "requests", "cpu"), "10m"),
}


@pytest.mark.parametrize("kind", WORKLOADS)
async def test_a_changed_workload_is_as_before_in_the_end(shop: kit.Place, runner: Runner, kind: str) -> None:
    given, field, wanted = WORKLOADS[kind]
    await shop.deployment("cart", 1, containers=[CONTAINER])
    path = f"/apis/apps/v1/namespaces/{shop.name}/deployments/cart"
    before = await shop.plane.api.get(path)
    made = await chaos.make(shop.plane, shop.name, fault={"kind": kind, **given}, duration="3s")
    waking = asyncio.create_task(chaos.play(runner, made))
    during = await eventually(lambda: chaos.injected(shop.plane, path), "the fault", 60)
    ended, after = await waking, await shop.plane.api.get(path)
    assert value(during, field) == wanted
    assert [one.state for one in ended.status.injected] == ["Reverted"], ended.status
    assert (ended.status.phase, ended.status.verdict, ended.status.score) == ("Done", "Passed", None)
    assert after["spec"] == before["spec"]
    assert chaos.notes(after) == chaos.notes(before)


async def test_a_config_map_gets_its_values_back(shop: kit.Place, runner: Runner) -> None:
    path = f"/api/v1/namespaces/{shop.name}/configmaps/cart"
    body = {"metadata": {"name": "cart", "annotations": {"mine": "yes"}}, "data": {"url": "http://db", "kept": "yes"}}
    await shop.plane.api.post(path.rpartition("/")[0], body)
    made = await chaos.make(
        shop.plane,
        shop.name,
        fault={"kind": "Configuration", "data": {"url": "http://nowhere", "new": "one"}},
        targets={"names": ["cart"]},
        duration="3s",
    )
    waking = asyncio.create_task(chaos.play(runner, made))
    during = await eventually(lambda: chaos.injected(shop.plane, path), "the fault", 60)
    ended, after = await waking, await shop.plane.api.get(path)
    assert during["data"] == {"url": "http://nowhere", "new": "one", "kept": "yes"}
    assert [one.state for one in ended.status.injected] == ["Reverted"], ended.status
    assert (after["data"], after["metadata"]["annotations"]) == (body["data"], {"mine": "yes"})


async def test_pods_are_cut_off_by_a_policy_that_goes_with_the_mark(shop: kit.Place, runner: Runner) -> None:
    before = [pod["metadata"]["labels"] for pod in await shop.deployment("cart", 2)]
    made = await chaos.make(shop.plane, shop.name, fault={"kind": "NetworkIsolation"}, duration="3s")
    waking = asyncio.create_task(chaos.play(runner, made))
    policies = f"/apis/networking.k8s.io/v1/namespaces/{shop.name}/networkpolicies"

    async def cut_off() -> list[kit.Json]:
        pods = await shop.pods("cart")
        marked = [one for one in pods if "kreflex.dev/chaos-isolated" in one["metadata"]["labels"]]
        return marked if (await shop.plane.api.get(policies))["items"] else []

    (marked,) = await eventually(cut_off, "a pod that is cut off", 90)
    (policy,) = (await shop.plane.api.get(policies))["items"]
    ended = await waking
    chosen = policy["spec"]["podSelector"]["matchLabels"]
    assert chosen.items() <= marked["metadata"]["labels"].items()
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    assert [one.state for one in ended.status.injected] == ["Reverted"], ended.status
    assert (await shop.plane.api.get(policies))["items"] == []
    assert [pod["metadata"]["labels"] for pod in await shop.pods("cart")] == before


async def test_a_node_is_drained_and_gets_pods_again(ready: ControlPlane, runner: Runner) -> None:
    pool = nodes.Pool(f"chaos-{uuid.uuid4().hex[:6]}", labels=chaos.ALLOWED)
    (name,) = await nodes.add(ready.api, 1, pool)
    here = await kit.place(ready)
    await here.deployment("cart", 2, nodeSelector={"kubernetes.io/hostname": name})
    kept = [await kit.place(ready), await kit.place(ready)]
    for where, label in zip(kept, (PROTECTED_LABEL, OPT_IN), strict=True):
        await where.deployment("stays", 1, nodeSelector={"kubernetes.io/hostname": name})
        labels = {label: "true" if label == PROTECTED_LABEL else "forbidden"}
        await ready.api.patch(f"/api/v1/namespaces/{where.name}", {"metadata": {"labels": labels}})
    kept.append(await kit.place(ready))
    out = {"kreflex.dev/opt-out": "true"}
    await kept[-1].deployment("stays", 1, annotations=out, nodeSelector={"kubernetes.io/hostname": name})
    await ready.api.apply(*chaos.home_policy())
    wanted = {"fault": {"kind": "NodeDrain"}, "targets": {"names": [name, "node-0"]}, "amount": "100%"}
    made = await chaos.make(ready, "kreflex-system", name, **wanted, duration="3s")
    ended = await chaos.play(runner, made)
    after = await ready.api.get(f"/api/v1/nodes/{name}")
    await ready.api.delete(f"/api/v1/nodes/{name}")
    assert [(one.target.name, one.state) for one in ended.status.injected] == [(name, "Reverted")], ended.status
    assert len(set(here.evictions())) == 2
    assert [where.evictions() for where in kept] == [[], [], []]
    assert not after["spec"].get("unschedulable")
    assert chaos.notes(after) == {}


async def test_a_leader_loses_a_lease_that_has_opted_in_by_itself(ready: ControlPlane, runner: Runner) -> None:
    name = f"leader-{uuid.uuid4().hex[:6]}"
    path = "/apis/coordination.k8s.io/v1/namespaces/kube-system/leases"
    spec = {"holderIdentity": "someone", "leaseDurationSeconds": 15}
    await ready.api.post(path, {"metadata": {"name": name, "labels": chaos.ALLOWED}, "spec": spec})
    await ready.api.post(path, {"metadata": {"name": f"{name}-other"}, "spec": spec})
    await ready.api.apply(*chaos.home_policy())
    made = await chaos.make(
        ready,
        "kreflex-system",
        name,
        fault={"kind": "LeaderLoss"},
        targets={"names": [name, f"{name}-other"]},
        amount="100%",
        duration="2s",
    )
    waking = asyncio.create_task(chaos.play(runner, made))
    during = await eventually(lambda: chaos.injected(ready, f"{path}/{name}"), "the fault", 60)
    ended, after = await waking, await ready.api.get(f"{path}/{name}")
    assert during["spec"]["holderIdentity"] == f"kreflex-chaos/{name}"
    assert [one.target.name for one in ended.status.injected] == [name]
    assert (after["spec"].get("holderIdentity", ""), chaos.notes(after)) == ("", {})
    assert (await ready.api.get(f"{path}/{name}-other"))["spec"]["holderIdentity"] == "someone"


async def refusal(runner: Runner, shop: kit.Place, **spec: Any) -> tuple[str, str | None, str | None]:
    """Wake the runner once for a new experiment; its phase, and who says why not."""
    made = await chaos.make(shop.plane, shop.name, f"no-{uuid.uuid4().hex[:6]}", **spec)
    await runner.go_on(made.namespace, made.name)
    status = (await chaos.read(shop.plane, shop.name, made.name)).status
    return status.phase, status.guard, status.reason


async def test_does_not_begin_and_says_why(shop: kit.Place, runner: Runner) -> None:
    await shop.deployment("cart", 1)
    kill: dict[str, Any] = {"fault": {"kind": "PodKill"}}
    never = {"name": "never", "object": {"name": "cart", "path": "status.readyReplicas", "value": "7"}}
    assert await refusal(runner, shop, **kill, amount="50%") == (
        "Refused",
        "Targets",
        "50% of 1 that may be hit is none",
    )
    assert await refusal(runner, shop, **kill, probes=[never]) == (
        "Refused",
        "SteadyState",
        "not steady before it: never: 1 == 7",
    )
    assert (await refusal(runner, shop, **kill, targets={"names": ["other"]}))[:2] == ("Refused", "Targets")
    assert (await refusal(runner, shop, fault={"kind": "Image"}))[:2] == ("Refused", "Spec")
    assert (await refusal(runner, shop, fault={"kind": "Cordon"}))[:2] == ("Refused", "Scope")
    with pytest.raises(Refused, match="begin and end are the same: a whole day is from 00:00 to 24:00"):
        await refusal(runner, shop, **kill, hours={"begin": "00:00", "end": "00:00"})
    with pytest.raises(Refused, match="begin and end are the same"):
        await refusal(runner, shop, **kill, hours={"begin": "16:00"})
    assert (await refusal(runner, shop, **kill, hours={"days": [in_three_days()]}))[:2] == ("Pending", "Hours")
    assert (await refusal(runner, shop, **kill, withoutBudget=None))[:2] == ("Pending", "ErrorBudget")
    await shop.policy(mode="DryRun")
    assert (await refusal(runner, shop, **kill))[:2] == ("Pending", "DryRun")
    await shop.policy(frozen=True)
    assert (await refusal(runner, shop, **kill))[:2] == ("Pending", "Frozen")
    leases = f"/apis/coordination.k8s.io/v1/namespaces/{shop.name}/leases"
    assert (await shop.plane.api.get(leases))["items"] == []
    deleted = [entry for entry in shop.writes("chaos-runner") if entry["verb"] == "delete"]
    assert {entry["objectRef"]["resource"] for entry in deleted} <= {"leases"}


def in_three_days() -> str:
    return f"{datetime.now(UTC) + timedelta(days=3):%a}"


async def test_hits_nothing_where_nobody_has_opted_in(ready: ControlPlane, runner: Runner) -> None:
    here = await kit.place(ready)
    await here.deployment("cart", 2)
    assert (await refusal(runner, here, fault={"kind": "PodKill"}))[:2] == ("Refused", "Targets")


async def test_the_api_server_denies_chaos_runner_what_has_not_opted_in(ready: ControlPlane) -> None:
    here = await kit.place(ready)
    (pod,) = await here.deployment("cart", 1)
    config = await ready.kubeconfig_for("kreflex-system", "chaos-runner")
    transport = Transport(load_credentials(str(config)))
    writer = Writer(transport)
    deployment = f"/apis/apps/v1/namespaces/{here.name}/deployments/cart"
    try:
        with pytest.raises(DeniedError, match="nobody has opted in"):
            await writer.delete(f"/api/v1/namespaces/{here.name}/pods/{pod['metadata']['name']}", {})
        with pytest.raises(DeniedError, match="nobody has opted in"):
            await writer.merge(deployment, {"spec": {"replicas": 0}})
        await chaos.opt_in(here)
        with pytest.raises(DeniedError, match=r"carries the annotation kreflex\.dev/chaos-experiment"):
            await writer.merge(deployment, {"spec": {"replicas": 0}})
        note = {"metadata": {"annotations": {"kreflex.dev/chaos-experiment": "x"}}, "spec": {"paused": True}}
        with pytest.raises(DeniedError, match=r"only spec\.replicas, spec\.template\.spec\.containers may change"):
            await writer.merge(deployment, note)
    finally:
        await transport.close()


async def test_a_budget_that_is_burnt_in_the_middle_aborts_and_all_is_as_before(ready: ControlPlane) -> None:
    shop = await kit.place(ready)
    await chaos.opt_in(shop)
    await shop.deployment("cart", 1)
    path = f"/apis/apps/v1/namespaces/{shop.name}/deployments/cart"
    before = await ready.api.get(path)
    async with chaos.prometheus() as burning, chaos.runner(ready, prometheus_url=burning.url) as runner:
        name = await chaos.slo(ready, shop.name, "cart")
        spec: dict[str, Any] = {
            "fault": {"kind": "Image", "image": "shop:2"},
            "budget": {"slo": name},
            "withoutBudget": None,
        }
        made = await chaos.make(ready, shop.name, **spec, duration="50s")
        waking = asyncio.create_task(runner.go_on(made.namespace, made.name))
        await eventually(lambda: chaos.injected(ready, path), "the fault", 60)
        burning.errors = 0.5
        await waking
        ended = await chaos.read(ready, shop.name)
        again = await refusal(runner, shop, **spec)
    after = await ready.api.get(path)
    assert (ended.status.phase, ended.status.verdict) == ("Aborted", "Failed"), ended.status
    assert (ended.status.aborted or "").startswith("ErrorBudget: Spent: ")
    assert [one.state for one in ended.status.injected] == ["Reverted"]
    assert ended.status.budget[0].left == 1.0
    assert (after["spec"], chaos.notes(after)) == (before["spec"], chaos.notes(before))
    assert again[:2] == ("Pending", "ErrorBudget")


async def test_one_that_is_deleted_goes_when_all_is_taken_back(shop: kit.Place, runner: Runner) -> None:
    await shop.deployment("cart", 1)
    path = f"/apis/apps/v1/namespaces/{shop.name}/deployments/cart"
    before = await shop.plane.api.get(path)
    made = await chaos.make(shop.plane, shop.name, fault={"kind": "ScaleToZero"}, duration="50s")
    waking = asyncio.create_task(runner.go_on(made.namespace, made.name))
    await eventually(lambda: chaos.injected(shop.plane, path), "the fault", 60)
    with contextlib.suppress(Refused):
        await shop.plane.api.delete(experiments.path(shop.name, "storm"))
    await waking

    async def gone() -> bool:
        await runner.go_on(made.namespace, made.name)
        return await shop.plane.api.find(experiments.path(shop.name, "storm")) is None

    await eventually(gone, "the end of the experiment", 90)
    after = await shop.plane.api.get(path)
    assert (after["spec"], chaos.notes(after)) == (before["spec"], chaos.notes(before))


NOBODY = {"function": "nobody", "within": "50s"}


async def test_a_namespace_that_is_deleted_in_the_middle_goes_and_the_run_ends(ready: ControlPlane) -> None:
    """Also where chaos-runner is bound to it, and its RoleBinding there goes before the experiment."""

    async def deleted(*, bound: bool) -> tuple[str, str | None, list[str]]:
        here = await kit.place(ready)
        await chaos.opt_in(here)
        given: dict[str, Any] = {"home": await chaos.bind(here), "namespaces": (here.name,)} if bound else {}
        path = f"/api/v1/namespaces/{here.name}/configmaps/cart"
        await ready.api.post(path.rpartition("/")[0], {"metadata": {"name": "cart"}, "data": {"url": "here"}})
        fault = {"kind": "Configuration", "data": {"url": "nowhere"}}
        async with chaos.runner(ready, **given) as runner:
            made = await chaos.make(
                ready, here.name, fault=fault, targets={"names": ["cart"]}, duration="50s", expects=NOBODY
            )
            waking = asyncio.create_task(runner.go_on(made.namespace, made.name))
            await eventually(lambda: chaos.injected(ready, path), "the fault", 60)
            await ready.api.delete(f"/api/v1/namespaces/{here.name}")
            ended = await waking
        await eventually(lambda: gone(ready, f"/api/v1/namespaces/{here.name}"), "the end of the namespace", 90)
        assert ended is not None
        return ended.status.phase, ended.status.verdict, [one.state for one in ended.status.injected]

    for told in await asyncio.gather(deleted(bound=False), deleted(bound=True)):
        assert told in (("Aborted", "Failed", ["Gone"]), ("Aborted", "Failed", ["Reverted"]))


async def gone(plane: ControlPlane, path: str) -> bool:
    return await plane.api.find(path) is None


async def tick(plane: ControlPlane, **given: str) -> tuple[int | None, str]:
    """What the CronJob's container does, with its settings and its rights; its exit code and its log."""
    environment = {
        "PATH": os.environ["PATH"],
        **rendered.environment_of(PLAIN, dict(rendered.pods_of(PLAIN))["chaos-sweep"]),
        **processes.importable(),
        "KUBECONFIG": str(await plane.kubeconfig_for("kreflex-system", "chaos-runner")),
        **given,
    }
    command = (sys.executable, "-m", "kreflex.once", "chaos-runner")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, env=environment, stdout=pipe, stderr=asyncio.subprocess.STDOUT
    )
    output, _ = await process.communicate()
    return process.returncode, output.decode()


async def test_a_tick_of_the_cronjob_that_reaches_nobody_fails_its_job(ready: ControlPlane, tmp_path: Path) -> None:
    config = kubeconfig.write(tmp_path / "config", "http://127.0.0.1:9", tmp_path / "none", "me", "token")
    code, log = await tick(ready, KUBECONFIG=str(config))
    assert (code, "did not answer" in log, "Traceback" in log) == (1, True, False), log


@pytest.mark.parametrize("by", ["a tick of the function", "a tick of the CronJob"])
async def test_what_no_experiment_answers_for_is_taken_back_from_the_object_itself(
    by: str, shop: kit.Place, runner: Runner
) -> None:
    await shop.deployment("cart", 1)
    path = f"/apis/apps/v1/namespaces/{shop.name}/deployments/cart"
    before = await shop.plane.api.get(path)
    made = await chaos.make(shop.plane, shop.name, fault={"kind": "Image", "image": "shop:2"}, duration="50s")
    waking = asyncio.create_task(runner.go_on(made.namespace, made.name))
    await eventually(lambda: chaos.injected(shop.plane, path), "the fault", 60)
    waking.cancel()
    await asyncio.gather(waking, return_exceptions=True)
    where = experiments.path(shop.name, "storm")
    await shop.plane.api.patch(where, {"metadata": {"finalizers": None}})
    await shop.plane.api.delete(where)
    if by == "a tick of the CronJob":
        code, log = await tick(shop.plane, NAMESPACES=shop.name)
        assert code == 0, log
    else:
        assert await Orphans(runner._world, runner._writer).take_back() == []
    after = await shop.plane.api.get(path)
    assert (after["spec"], chaos.notes(after)) == (before["spec"], chaos.notes(before))


async def test_a_process_that_dies_at_any_write_leaves_nothing_behind(shop: kit.Place) -> None:
    """A few of the writes; `python -m bench chaos` has all of them, of all faults."""
    await shop.deployment("cart", 1)
    path = f"/apis/apps/v1/namespaces/{shop.name}/deployments/cart"
    before = await shop.plane.api.get(path)
    hasty = Terms(timedelta(seconds=2), timedelta(seconds=25), frozenset())
    for last, arrives in ((4, True), (5, False), (5, True), (6, False)):
        name = f"cut-{last}-{arrives}".lower()
        made = await chaos.make(shop.plane, shop.name, name, fault={"kind": "Image", "image": "shop:2"}, duration="6s")
        async with chaos.runner(shop.plane, Mortal, terms=hasty, last=last, arrives=arrives) as mortal:
            with pytest.raises(CutError):
                await mortal.go_on(made.namespace, made.name)
        async with chaos.runner(shop.plane, terms=hasty) as heir:
            ended = await chaos.play(heir, made)
        after = await shop.plane.api.get(path)
        assert {one.state for one in ended.status.injected} == {"Reverted"}, ended.status
        assert (after["spec"], chaos.notes(after)) == (before["spec"], chaos.notes(before))


async def test_an_engine_is_made_followed_stopped_and_gone(shop: kit.Place, runner: Runner) -> None:
    silent: list[str] = []

    async def silence(names: list[str]) -> None:
        silent.extend(names)

    async def heal(names: list[str]) -> None:
        silent[:] = [name for name in silent if name not in names]

    pool = nodes.Pool(f"chaos-{uuid.uuid4().hex[:6]}", labels=chaos.ALLOWED)
    (node,) = await nodes.add(shop.plane.api, 1, pool)
    env = [{"name": "TARGET_NODE", "value": node}]
    fault = {"name": "kubelet-service-kill", "spec": {"components": {"env": env}}}
    engine = {"kind": "ChaosEngine", "spec": {"experiments": [fault]}}
    async with chaos_engines.litmus(shop.plane, silence, heal):
        made = await chaos.make(
            shop.plane, shop.name, fault={"kind": "Engine", "engine": engine}, targets={"selector": {}}, duration="3s"
        )
        waking = asyncio.create_task(chaos.play(runner, made))

        async def hit() -> list[str]:
            return [*silent]

        during = await eventually(hit, "the engine's fault", 90)
        ended = await waking
        left = (await shop.plane.api.get(chaos_engines.ENGINES))["items"]
    told = [line.text for line in ended.status.timeline if line.word == "fault"]
    await shop.plane.api.delete(f"/api/v1/nodes/{node}")
    assert during == [node]
    assert (ended.status.verdict, silent, left) == ("Passed", [], [])
    assert "ChaosEngine initialized: kubelet-service-kill Running Awaited" in told


async def test_what_is_broken_is_taken_back_though_its_namespace_is_protected_by_then(
    shop: kit.Place, runner: Runner
) -> None:
    await shop.deployment("cart", 1)
    path = f"/apis/apps/v1/namespaces/{shop.name}/deployments/cart"
    before = await shop.plane.api.get(path)
    made = await chaos.make(shop.plane, shop.name, fault={"kind": "ScaleToZero"}, duration="50s")
    waking = asyncio.create_task(chaos.play(runner, made))
    await eventually(lambda: chaos.injected(shop.plane, path), "the fault", 60)
    protected = {"metadata": {"labels": {PROTECTED_LABEL: "true", OPT_IN: None}}}
    await shop.plane.api.patch(f"/api/v1/namespaces/{shop.name}", protected)
    ended, after = await waking, await shop.plane.api.get(path)
    assert ended.status.aborted == f"Scope: namespace {shop.name} has the label {PROTECTED_LABEL}"
    assert [one.state for one in ended.status.injected] == ["Reverted"], ended.status
    assert (after["spec"], chaos.notes(after)) == (before["spec"], chaos.notes(before))


async def test_a_job_made_from_a_cron_job_is_a_probe(shop: kit.Place, runner: Runner) -> None:
    await shop.deployment("cart", 1)
    container = {"name": "check", "image": "check:1"}
    pod = {"metadata": {"labels": {"app": "check"}}, "spec": {"containers": [container], "restartPolicy": "Never"}}
    spec = {"schedule": "0 0 1 1 *", "suspend": True, "jobTemplate": {"spec": {"template": pod}}}
    batch = f"/apis/batch/v1/namespaces/{shop.name}"
    meta = {"name": "check", "labels": chaos.ALLOWED}
    await shop.plane.api.post(f"{batch}/cronjobs", {"metadata": meta, "spec": spec})
    made = await chaos.make(
        shop.plane,
        shop.name,
        fault={"kind": "PodKill"},
        amount="100%",
        targets={"selector": {"matchLabels": {"app": "cart"}}},
        probes=[{"name": "sells", "job": {"cronJob": "check"}, "when": ["Before", "After"]}],
    )
    ended = await chaos.play(runner, made)
    found = (await shop.plane.api.get(f"{batch}/jobs"))["items"]
    await shop.plane.api.delete(f"{batch}/jobs", {"propagationPolicy": "Background"})
    assert (ended.status.verdict, ended.status.score) == ("Passed", 100.0), ended.status
    assert len(found) == 2
    assert {owner["uid"] for one in found for owner in one["metadata"]["ownerReferences"]} == {made.uid}


async def test_chaos_runner_makes_no_job_that_never_ends(shop: kit.Place, runner: Runner) -> None:
    pod = {"spec": {"containers": [{"name": "a", "image": "a:1"}], "restartPolicy": "Never"}}
    body = {"metadata": {"name": "endless"}, "spec": {"template": pod}}
    with pytest.raises(DeniedError, match="a Job is a probe of an experiment, which owns it, ends within 5 minutes"):
        await runner._writer.create(f"/apis/batch/v1/namespaces/{shop.name}/jobs", body)


async def test_a_person_approves_an_experiment_and_nobody_else_does(shop: kit.Place, runner: Runner) -> None:
    await shop.deployment("cart", 1)
    await shop.policy(mode="Approve")
    await let_approve(shop)
    made = await chaos.make(shop.plane, shop.name, fault={"kind": "PodKill"})
    await runner.go_on(shop.name, made.name)
    waits = await chaos.read(shop.plane, shop.name)
    command = (waits.status.reason or "").split(". To approve: ")[1]
    assert (waits.status.phase, waits.status.guard) == ("Pending", "Approve")
    assert [one for one in shop.writes("chaos-runner") if one["verb"] == "delete"] == []
    assert "needs the verb approve on experiments" in types(shop, command, "bob").stderr
    assert "spec.approval.by must be who asks: ada, not eve" in types(shop, by_another(command), "ada").stderr
    assert types(shop, command, "ada").returncode == 0
    ended = await chaos.play(runner, made)
    assert (ended.status.phase, ended.status.verdict) == ("Done", "Passed"), ended.status


def by_another(command: str) -> str:
    return command.replace("'\"$(kubectl auth whoami -o jsonpath={.status.userInfo.username})\"'", "eve")


def types(here: kit.Place, command: str, user: str) -> subprocess.CompletedProcess[str]:
    return Plan(here, {}).types(command, user)


async def test_nobody_but_chaos_runner_says_how_far_an_experiment_is(shop: kit.Place) -> None:
    made = await chaos.make(shop.plane, shop.name, fault={"kind": "PodKill"})
    status = {"status": {"phase": "Reverting"}}
    with pytest.raises(Refused, match="only the account of chaos-runner writes the status of experiments"):
        await shop.plane.api.patch(f"{experiments.path(shop.name, made.name)}/status", status)


async def test_a_remediation_says_whose_fault_on_purpose_it_is(shop: kit.Place) -> None:
    (pod,) = await shop.deployment("cart", 1)
    await shop.loop(pod, still=True)
    mark = {"metadata": {"annotations": {"kreflex.dev/chaos-experiment": f"{shop.name}/storm/u-1"}}}
    path = f"/apis/apps/v1/namespaces/{shop.name}/deployments/cart"
    await shop.plane.api.patch(path, mark)
    async with an_arc(shop.plane) as arc:
        await handled(arc, pod)
    (record,) = await shop.records()
    assert record["spec"]["fault"]["experiment"] == f"{shop.name}/storm"
