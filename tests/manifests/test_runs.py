"""A function and the waker's CronJob run with just the settings and the rights that a variant gives them."""

import asyncio
import os
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from lab import callers, functions, processes
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.ports import Ports
from tests.manifests import rendered
from tests.manifests.rendered import KNATIVE, Json

FUNCTION = "restart-loop-killer"
HOME = "kreflex-system"
RECORDS = "/apis/kreflex.dev/v1alpha1/namespaces/{}/remediations"


async def looping_pod(cluster: ControlPlane, namespace: str, name: str = "cart") -> None:
    """A bare pod that has restarted nine times; no kubelet is here to say so."""
    container = {"name": "app", "image": "shop:1"}
    body: Json = {"metadata": {"name": name}, "spec": {"containers": [container]}}
    pods = f"/api/v1/namespaces/{namespace}/pods"

    async def account() -> Json | None:
        return await cluster.api.find(f"/api/v1/namespaces/{namespace}/serviceaccounts/default")

    await eventually(account, f"the default account of {namespace}", patience=60)
    await cluster.api.post(pods, body)
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    ended = {"exitCode": 1, "reason": "Error", "startedAt": now, "finishedAt": now}
    status = {
        "name": "app",
        "image": "shop:1",
        "imageID": "",
        "ready": False,
        "restartCount": 9,
        "state": {"waiting": {"reason": "CrashLoopBackOff"}},
        "lastState": {"terminated": ended},
    }
    await cluster.api.patch(f"{pods}/{name}/status", {"status": {"phase": "Running", "containerStatuses": [status]}})


async def records(cluster: ControlPlane, namespace: str) -> list[tuple[str, str]]:
    """The function and the pod of each record of a namespace."""
    items = (await cluster.api.get(RECORDS.format(namespace)))["items"]
    return [(item["spec"]["function"], item["spec"]["target"]["name"]) for item in items]


async def one_round(cluster: ControlPlane, environment: dict[str, str], url: str) -> tuple[int | None, str]:
    """What the CronJob's container does; its exit code and its log."""
    given = {
        "PATH": os.environ["PATH"],
        **environment,
        **processes.importable(),
        "FUNCTIONS": f"{FUNCTION}={url}/",
        "KUBECONFIG": str(await cluster.kubeconfig_for(HOME, "waker")),
        "TOKEN_FILE": str(await callers.issue(cluster, "waker", HOME)),
    }
    command = (sys.executable, "-m", "kreflex.once")
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(*command, env=given, stdout=pipe, stderr=asyncio.subprocess.STDOUT)
    output, _ = await asyncio.wait_for(process.communicate(), 120)
    return process.returncode, output.decode()


@pytest.fixture(scope="module")
async def namespaced(cluster: ControlPlane) -> Path:
    """The variant for the namespace `shop`, applied."""
    folder = KNATIVE / "variants" / "namespaced"
    config = f"--kubeconfig={cluster.kubeconfig}"
    # What another test has applied would give more rights.
    for kind in ("clusterrole", "clusterrolebinding"):
        names = [f"kreflex:{name}" for name in rendered.FUNCTIONS]
        rendered.run(config, "delete", "--ignore-not-found", kind, *names)
    rendered.run(config, "apply", "--server-side", "--force-conflicts", "-k", folder)
    return folder


async def test_a_round_of_the_cronjob_wakes_a_function_for_its_namespaces_only(
    cluster: ControlPlane, namespaced: Path
) -> None:
    pods = dict(rendered.pods_of(namespaced))
    environments = {name: rendered.environment_of(namespaced, pod) for name, pod in pods.items()}
    for namespace in ("monitoring", "shop"):
        await looping_pod(cluster, namespace)
    with Ports() as ports:
        url = await functions.start(cluster, "restart_loop_killer", ports.take(), environments[FUNCTION])
    try:
        code, log = await one_round(cluster, environments["waker"], url)
        assert code == 0, log
        assert await records(cluster, "shop") == [(FUNCTION, "cart")]
        assert await records(cluster, "monitoring") == []
    finally:
        await cluster.stop_child(FUNCTION)


async def test_a_round_that_reaches_no_function_ends_the_job_with_an_error(
    cluster: ControlPlane, namespaced: Path
) -> None:
    environment = rendered.environment_of(namespaced, dict(rendered.pods_of(namespaced))["waker"])
    await looping_pod(cluster, "shop", "unheard")
    with Ports() as ports:
        code, log = await one_round(cluster, environment, f"http://127.0.0.1:{ports.take()}")
    assert (code, "did not answer" in log) == (1, True), log
