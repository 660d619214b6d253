"""`python -m functions.chaos_runner` at a terminal and in a pipeline: what it says, and its exit codes."""

import asyncio
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import yaml

from kreflex.chaos.runner import Runner
from lab import kubeconfig
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster import chaos

DENIAL = {
    "apiVersion": "admissionregistration.k8s.io/v1",
    "kind": "ValidatingAdmissionPolicy",
    "metadata": {"name": "no-storms"},
    "spec": {
        "matchConstraints": {
            "resourceRules": [
                {
                    "apiGroups": ["kreflex.dev"],
                    "apiVersions": ["*"],
                    "resources": ["experiments"],
                    "operations": ["CREATE"],
                }
            ]
        },
        "validations": [{"expression": "object.metadata.name != 'denied'", "message": "not today"}],
    },
}
ADMISSION = "/apis/admissionregistration.k8s.io/v1/validatingadmission"


@pytest.fixture(scope="module")
async def ready(installed: ControlPlane) -> AsyncIterator[ControlPlane]:
    """The control plane with chaos-runner's rights, and with a policy of somebody else's."""
    await chaos.install(installed)
    await installed.api.post(f"{ADMISSION}policies", DENIAL)
    binding = {"policyName": "no-storms", "validationActions": ["Deny"]}
    await installed.api.post(f"{ADMISSION}policybindings", {"metadata": {"name": "no-storms"}, "spec": binding})
    yield installed
    for kind in ("policybindings", "policies"):
        await installed.api.delete(f"{ADMISSION}{kind}/no-storms")


@pytest.fixture
async def shop(ready: ControlPlane) -> kit.Place:
    """A namespace that has opted in, with one workload."""
    here = await kit.place(ready)
    await chaos.opt_in(here)
    await here.deployment("cart", 1)
    return here


def written(folder: Path, name: str, **spec: object) -> Path:
    file = folder / f"{name}.yaml"
    kind = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Experiment", "metadata": {"name": name}}
    fault = {"kind": "Image", "image": "shop:2"}
    file.write_text(yaml.safe_dump({**kind, "spec": {**chaos.QUICK, "fault": fault, "amount": 1, **spec}}))
    return file


async def run(config: Path, *words: str | Path) -> tuple[int | None, str, str]:
    """Run the command; its exit code, what it tells, and what it complains of."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "functions.chaos_runner", *map(str, words)),
        cwd=kit.ROOT,
        env={"PATH": "", "KUBECONFIG": str(config), "PYTHONPATH": f"{kit.ROOT}:{kit.ROOT / 'shared'}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    told, complaint = await process.communicate()
    return process.returncode, told.decode(), complaint.decode()


@asynccontextmanager
async def carried_on(runner: Runner, namespace: str, name: str) -> AsyncIterator[None]:
    """Wake the runner for this experiment once a second, as events of its object would."""

    async def waking() -> None:
        while True:
            await runner.go_on(namespace, name)
            await asyncio.sleep(1)

    task = asyncio.create_task(waking())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_one_that_passes_ends_with_0_and_its_report_is_there(shop: kit.Place, tmp_path: Path) -> None:
    config, file = shop.plane.kubeconfig, written(tmp_path, "passes")
    async with chaos.runner(shop.plane) as runner, carried_on(runner, shop.name, "passes"):
        code, told, complaint = await run(config, "run", file, "-n", shop.name)
    assert (code, complaint) == (0, ""), told
    assert told.splitlines()[-1].startswith(f"Experiment {shop.name}/passes: Passed")
    code, told, _ = await run(config, "report", "-n", shop.name, "--html", tmp_path / "day.html")
    assert (code, "passes" in (tmp_path / "day.html").read_text()) == (0, True), told


async def test_one_that_nothing_may_be_hit_by_ends_with_2(shop: kit.Place, tmp_path: Path) -> None:
    file = written(tmp_path, "refused", amount="50%")
    async with chaos.runner(shop.plane) as runner, carried_on(runner, shop.name, "refused"):
        code, told, complaint = await run(shop.plane.kubeconfig, "run", file, "-n", shop.name)
    assert (code, "Refused" in told) == (2, True), told + complaint


async def test_one_that_admission_denies_ends_with_2(shop: kit.Place, tmp_path: Path) -> None:
    file = written(tmp_path, "denied")
    code, told, complaint = await run(shop.plane.kubeconfig, "run", file, "-n", shop.name)
    assert (code, told, "not today" in complaint) == (2, "", True), complaint


async def test_one_that_nobody_carries_on_ends_with_3(shop: kit.Place, tmp_path: Path) -> None:
    file = written(tmp_path, "waits")
    code, _, complaint = await run(shop.plane.kubeconfig, "run", file, "-n", shop.name, "--timeout", "2s")
    assert (code, complaint) == (
        3,
        f"Experiment {shop.name}/waits is not over; it goes on, and is taken back by itself\n",
    )


async def test_an_api_server_that_is_away_ends_with_3(tmp_path: Path) -> None:
    config = kubeconfig.write(tmp_path / "config", "http://127.0.0.1:9", tmp_path / "none", "me", "token")
    code, _, complaint = await run(config, "run", written(tmp_path, "unheard"))
    assert (code, "Traceback" in complaint, complaint != "") == (3, False, True), complaint


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"fault": {"kind": "Fire"}}, "spec.fault.kind"),
        ({"duration": "for ever"}, "spec.duration"),
        (None, "is no Experiment of kreflex.dev/v1alpha1"),
    ],
)
async def test_what_is_no_experiment_ends_with_64(
    spec: dict[str, object] | None, words: str, shop: kit.Place, tmp_path: Path
) -> None:
    file = written(tmp_path, "wrong", **(spec or {}))
    if spec is None:
        file.write_text("kind: Pod\n")
    code, _, complaint = await run(shop.plane.kubeconfig, "run", file, "-n", shop.name)
    assert (code, words in complaint, "Traceback" in complaint) == (64, True, False), complaint
