"""`python -m functions.chaos_runner` at a terminal and in a pipeline: what it says, and its exit codes."""

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import yaml

from functions.chaos_runner import __main__ as command
from kreflex.chaos import experiments
from kreflex.chaos.experiments import read_experiment
from kreflex.chaos.runner import Runner
from kreflex.errors import KreflexError, OutageError, UnavailableError
from kreflex.views import JSON
from lab import kubeconfig
from lab.api import Refused, eventually
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
async def ready(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """The control plane with chaos-runner's rights, and with a policy of somebody else's."""
    await chaos.install(installed)
    await installed.api.post(f"{ADMISSION}policies", DENIAL)
    binding = {"policyName": "no-storms", "validationActions": ["Deny"]}
    await installed.api.post(f"{ADMISSION}policybindings", {"metadata": {"name": "no-storms"}, "spec": binding})

    async def denied() -> bool:
        body = yaml.safe_load(written(tmp_path_factory.mktemp("denied"), "denied").read_text())
        try:
            await installed.api.post(f"{experiments.path('default')}?dryRun=All", body)
        except Refused as refused:
            return "not today" in str(refused)
        return False

    await eventually(denied, "the policy that denies")
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
    if words[0] == "run" and "--timeout" not in words:
        # What goes wrong is told before the test's own time is up.
        words = (*words, "--timeout", "5m")
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
            with contextlib.suppress(KreflexError):
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
    # Nobody else's tick shall begin with it.
    await shop.plane.api.delete(experiments.path(shop.name, "waits"))


async def test_an_account_that_may_not_make_it_ends_with_64(shop: kit.Place, tmp_path: Path) -> None:
    config = await shop.plane.kubeconfig_for(shop.name, "nobody")
    code, _, complaint = await run(config, "run", written(tmp_path, "forbidden"), "-n", shop.name)
    assert (code, "cannot create resource" in complaint) == (64, True), complaint


class Hardly:
    """A reader that fails so often, and then answers."""

    def __init__(self, answer: JSON | None, *errors: KreflexError) -> None:
        self._answer = answer
        self._errors = list(errors)

    async def get(self, path: str) -> JSON | None:
        assert path.endswith("/experiments/storm")
        if self._errors:
            raise self._errors.pop(0)
        return self._answer


AWAY = UnavailableError("the API server does not answer")
FORBIDDEN = OutageError("GET is forbidden", 403, "Forbidden", ())
MADE = {
    "metadata": {
        "name": "storm",
        "namespace": "shop",
        "uid": "1",
        "resourceVersion": "1",
        "creationTimestamp": "2026-11-22T12:00:00Z",
    },
    "spec": {"fault": {"kind": "PodKill"}},
}


async def asked(*errors: KreflexError, monkeypatch: pytest.MonkeyPatch, seconds: float = 60) -> JSON | None:
    monkeypatch.setattr(command, "_LOOK_SECONDS", 0.01)
    end = asyncio.get_running_loop().time() + seconds
    reader: Any = Hardly({"kind": "Experiment"}, *errors)
    return await command._found(read_experiment(MADE), reader, end)


async def test_waits_on_while_the_api_server_is_away_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = await asked(AWAY, AWAY, FORBIDDEN, FORBIDDEN, AWAY, monkeypatch=monkeypatch)
    assert found == {"kind": "Experiment"}
    assert capsys.readouterr().err == f"{AWAY}\n{FORBIDDEN}\n{AWAY}\n"


async def test_gives_up_when_asking_again_mends_nothing_and_says_what_becomes_of_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OutageError) as forbidden:
        await asked(FORBIDDEN, FORBIDDEN, FORBIDDEN, monkeypatch=monkeypatch)
    with pytest.raises(UnavailableError) as away:
        await asked(AWAY, monkeypatch=monkeypatch, seconds=0)
    assert [command._code_of(error) for error in (forbidden.value, away.value)] == [64, 3]
    assert capsys.readouterr().err.count("Experiment shop/storm can't be followed; it goes on") == 2


async def test_an_api_server_that_is_away_ends_with_3(tmp_path: Path) -> None:
    config = kubeconfig.write(tmp_path / "config", "http://127.0.0.1:9", tmp_path / "none", "me", "token")
    code, _, complaint = await run(config, "run", written(tmp_path, "unheard"))
    assert (code, "Traceback" in complaint, complaint != "") == (3, False, True), complaint


@pytest.mark.parametrize(
    ("spec", "words"),
    [
        ({"fault": {"kind": "Fire"}}, "spec.fault.kind"),
        ({"duration": "for ever"}, "spec.duration"),
        ("kind: Pod\n", "is no Experiment of kreflex.dev/v1alpha1"),
        ("a: [b\n", "is no YAML"),
        ("{apiVersion: kreflex.dev/v1alpha1, kind: Experiment}\n", "has no metadata"),
    ],
)
async def test_what_is_no_experiment_ends_with_64(
    spec: dict[str, object] | str, words: str, shop: kit.Place, tmp_path: Path
) -> None:
    file = written(tmp_path, "wrong", **(spec if isinstance(spec, dict) else {}))
    if isinstance(spec, str):
        file.write_text(spec)
    code, _, complaint = await run(shop.plane.kubeconfig, "run", file, "-n", shop.name)
    assert (code, words in complaint, "Traceback" in complaint) == (64, True, False), complaint
