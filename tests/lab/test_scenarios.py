"""The scenarios, run as a person runs them. Each checks itself by the audit log; its exit code is the answer."""

import asyncio
import re
import subprocess
import sys
from collections.abc import AsyncIterator
from typing import Any

import pytest

from lab import audit
from lab.api import Api, eventually, from_kubeconfig
from lab.paths import Home


@pytest.fixture(scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    """A whole lab of this module's own: scenarios stop its senders for a while."""
    where = tmp_path_factory.mktemp("scenarios")
    assert (await lab("up", "--home", str(where)))[0] == 0
    yield Home.at(where)
    await lab("down", "--home", str(where))


async def lab(*arguments: str) -> tuple[int, str]:
    """Run `python -m lab`; its exit code, and all that it says."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "lab", *arguments, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    output, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


async def scenario(home: Home, *arguments: str) -> tuple[int, str]:
    return await lab("scenario", "--home", str(home.root), *arguments)


async def test_a_crash_loop_is_healed_on_the_fast_path_and_on_the_stock_path(home: Home) -> None:
    code, output = await scenario(home, "crash-loop")

    assert code == 0, output
    fast, stock = output.split("stock path", 1)
    for told in (fast, stock):
        # A pod that changes just then is read again: what was answered 409 did nothing.
        done = "\n".join(line for line in told.splitlines() if "answered 409" not in line)
        words = [word for word in words_of(done) if word in {"decision", "audit", "verdict"}]
        assert words == ["decision", "audit", "verdict"], output
        assert "requests at 50 a second" in told
    assert "CloudEvent dev.knative.apiserver.resource.update" in fast
    assert "Alertmanager posts" in stock


async def test_a_useless_deletion_is_stopped_and_told_to_people(home: Home) -> None:
    code, output = await scenario(home, "useless-deletion")

    assert code == 0, output
    assert output.count("answered 201") == 3
    assert "did not help" in output


async def test_a_leak_is_found_in_prometheus_and_the_pod_is_evicted_before_it_is_killed(home: Home) -> None:
    code, output = await scenario(home, "leak")
    assert code == 0, output
    # By the alert alone; the scenario checks that nothing else was touched, and the verdict.
    for told in ("begins to leak", "2 signals agree", "anomaly-scorer raises it", "EvictAnomalous", "Recovered"):
        assert told in output, output


async def test_a_bad_release_is_taken_back_once_and_one_that_is_not_to_blame_is_left_alone(home: Home) -> None:
    code, output = await scenario(home, "bad-release")

    assert code == 0, output
    acts = [
        [word for word in words_of(act) if word in {"step", "verdict", "refused"}]
        for act in re.split("The same bad version again|A dependency is down", output)
    ]
    assert acts == [["step", "verdict"], ["refused"], ["refused"]], output
    assert "requests at 50 a second" in output
    assert "SameVersionAgain" in output
    assert "by Dependency" in output


def words_of(told: str) -> list[str]:
    """The words of a timeline's lines."""
    return [line.split()[2] for line in told.splitlines() if " s  " in line]


async def test_a_cluster_of_ones_own_needs_a_yes(home: Home) -> None:
    code, output = await lab("scenario", "crash-loop", "--kubeconfig", str(home.kubeconfig))

    assert code == 1
    assert "--yes" in output


async def test_no_machine_of_a_cluster_of_ones_own_is_broken(home: Home) -> None:
    code, output = await lab("scenario", "node-down", "--kubeconfig", str(home.kubeconfig), "--yes")

    assert (code, output) == (1, "lab: node-down breaks machines, so it plays in the lab only\n")


async def test_in_a_cluster_of_ones_own_only_one_namespace_is_touched(home: Home) -> None:
    """The lab plays the user's cluster; this test plays its kubelet, which would run the looping container."""
    begin = len(list(audit.entries(home.audit_log)))
    config = str(home.kubeconfig)
    async with from_kubeconfig(home.kubeconfig) as api:
        running = asyncio.create_task(lab("scenario", "crash-loop", "--kubeconfig", config, "--yes"))
        pod = await eventually(lambda: _a_pod(api), "the scenario's pods", patience=60)
        path = f"/api/v1/namespaces/{pod['namespace']}/pods/{pod['name']}"
        notes = {"lab.kreflex.dev/fault": "crash-loop", "lab.kreflex.dev/speed": "20"}
        await api.patch(path, {"metadata": {"annotations": notes}})
        code, output = await running

    assert code == 0, output
    assert "is healthy again" in output
    written = [entry for entry in list(audit.entries(home.audit_log))[begin:] if _by_scenario(entry)]
    namespaces = {entry["objectRef"].get("namespace") or entry["objectRef"]["name"] for entry in written}
    assert namespaces == {pod["namespace"]}


async def _a_pod(api: Api) -> dict[str, Any] | None:
    found = (await api.get("/api/v1/pods"))["items"]
    own = [p for p in found if p["metadata"]["namespace"].startswith("kreflex-crash-loop-")]
    own = [p for p in own if p["status"].get("phase") == "Running" and "deletionTimestamp" not in p["metadata"]]
    return own[0]["metadata"] if len(own) == 3 else None


def _by_scenario(entry: dict[str, Any]) -> bool:
    # The test itself annotates one pod as another client of the same user.
    write = entry["verb"] in {"create", "update", "patch", "delete"}
    return write and entry["user"]["username"] == "admin" and entry["responseStatus"]["code"] < 300


async def test_an_unknown_scenario_names_those_that_exist(home: Home) -> None:
    code, output = await scenario(home, "volcano")

    assert (code, "crash-loop" in output) == (1, True)
