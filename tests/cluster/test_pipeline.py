"""`python -m functions.rollback` as a step of a pipeline: a process, under the account that the page shows."""

import asyncio
import json
import os
import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from lab import audit, callers, functions, manifests, processes, workloads
from lab.cluster import ControlPlane
from lab.ports import Ports
from tests import kit
from tests.docs.test_documentation import example

ROLE = example((kit.ROOT / "docs" / "pipeline.md").read_text(), "pipeline-role")
RELEASES = {"changeWindow": "10m", "patience": "3s", "healthyFor": "1s"}
FAST = {f"{workloads.PREFIX}speed": "100"}
TIME = re.compile(r"^\d\d:\d\d:\d\d ", re.MULTILINE)


@pytest.fixture(scope="module")
async def url(installed: ControlPlane) -> AsyncIterator[str]:
    """Where the function listens."""
    with Ports() as ports:
        settings = {"CALLERS_ACCOUNTS": "*/pipeline", "NEW_POD_RESTARTS_ABOVE": "1"}
        started = await functions.start(installed, "rollback", ports.take(), settings)
    yield started
    await installed.stop_child("rollback")


@dataclass(frozen=True)
class Ended:
    """How a step ended."""

    code: int | None
    lines: list[str]
    complaint: str

    @property
    def last(self) -> str:
        return TIME.sub("", self.lines[-1]) if self.lines else ""


@dataclass
class Ci:
    """A pipeline's account in a namespace of its own."""

    here: kit.Place
    config: Path
    token: Path

    async def make(self, tag: str = "1", kind: str = "Deployment") -> None:
        """Make a workload of two pods with a readiness probe."""
        spec = workloads.pod_spec()
        spec["terminationGracePeriodSeconds"] = 0
        spec["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/", "port": 80}}
        release = workloads.release(tag, spec)
        deployed = kind == "Deployment"
        made = workloads.deployment("cart", 2, spec=release) if deployed else workloads.stateful_set("cart", 2, release)
        made["spec"]["template"]["metadata"]["annotations"] = FAST
        await self.here.plane.api.post(self.path(kind).rpartition("/")[0], made)

    def path(self, kind: str = "Deployment") -> str:
        return f"/apis/apps/v1/namespaces/{self.here.name}/{kind.lower()}s/cart"

    async def image(self) -> str:
        (container,) = (await self.here.plane.api.get(self.path()))["spec"]["template"]["spec"]["containers"]
        return str(container["image"])

    async def release(self, tag: str) -> str:
        """Release another version; its image."""
        body = await self.here.plane.api.get(self.path())
        (container,) = body["spec"]["template"]["spec"]["containers"]
        image = f"{container['image'].rpartition(':')[0]}:{tag}"
        spec = {"template": {"spec": {"containers": [{**container, "image": image}]}}}
        await self.here.plane.api.patch(self.path(), {"spec": spec})
        return image

    async def step(
        self,
        *words: str,
        workload: str = "deployment/cart",
        config: Path | None = None,
        then: Callable[[], Awaitable[object]] | None = None,
    ) -> Ended:
        """Run the command, as a pipeline does; what is to happen meanwhile happens after its first line."""
        command = [sys.executable, "-m", "functions.rollback", workload, "--namespace", self.here.name, *words]
        given = {"PATH": os.environ["PATH"], "KUBECONFIG": str(config or self.config), **processes.importable()}
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(*command, env=given, cwd=kit.ROOT, stdout=pipe, stderr=pipe)
        first = b""
        if then is not None:
            assert process.stdout is not None
            first = await asyncio.wait_for(process.stdout.readline(), 60)
            await then()
        output, complaint = await asyncio.wait_for(process.communicate(), 150)
        return Ended(process.returncode, (first + output).decode().splitlines(), complaint.decode())

    async def asking(self, url: str, *words: str) -> Ended:
        """Run it so that it asks the function."""
        return await self.step("--function-url", url, "--token-file", str(self.token), "--proof", "1s", *words)


@pytest.fixture
async def ci(here: kit.Place) -> Ci:
    """A pipeline with the rights of the page and a token for the function, in a namespace with a policy."""
    plane = here.plane
    await here.policy(functions=["rollback"], owners=["Deployment", "StatefulSet"], releases=RELEASES)
    shown = yaml.safe_load_all(ROLE.replace("namespace: shop", f"namespace: {here.name}"))
    await manifests.apply(plane.api, list(shown))
    config = await plane.kubeconfig_for(here.name, "pipeline")
    return Ci(here, config, await callers.issue(plane, "pipeline", here.name))


async def test_a_release_that_is_well_is_0_and_nobody_is_asked(ci: Ci) -> None:
    await ci.make()
    ended = await ci.step("--proof", "2s", "--within", "60s")
    assert (ended.code, ended.complaint) == (0, "")
    assert re.fullmatch(r"healthy: revision 1 \(\S+:1\) is complete, and its pods have been Ready for \d+s", ended.last)


async def test_a_bad_release_is_rolled_back_and_1_when_that_has_helped(ci: Ci, url: str) -> None:
    await ci.make()
    assert (await ci.step("--proof", "2s")).code == 0
    good = await ci.image()
    bad = await ci.release("2-crash")
    ended = await ci.asking(url, "--image", bad, "--within", "100s")
    (record,) = await ci.here.records()
    assert (ended.code, ended.complaint) == (1, ""), ended
    assert ended.last.startswith("rolled-back: the release was rolled back, and is healthy again: revision 3")
    assert ended.last.endswith(f"(Remediation {ci.here.name}/{record['metadata']['name']})")
    assert (await ci.image(), record["status"]["verdict"]) == (good, "Recovered")

    # The next step of the pipeline came late; it is told the same, and does not take the old version for the new one.
    again = await ci.step("--image", bad, "--proof", "1s", "--within", "20s")
    assert (again.code, again.last) == (1, ended.last)


async def test_a_release_that_nothing_can_be_done_about_is_2_with_the_reason(ci: Ci, url: str) -> None:
    await ci.make("1-crash")
    ended = await ci.asking(url, "--within", "60s")
    (record,) = await ci.here.records()
    told = record["status"]
    assert (ended.code, record["spec"]["function"], told["guard"]) == (2, "rollback", "FirstRelease"), ended
    name = f"{ci.here.name}/{record['metadata']['name']}"
    assert ended.last == f"people: the release is not rolled back: {told['reason']} (Remediation {name})"


async def test_an_approval_that_nobody_gives_is_2_with_the_command_that_would(ci: Ci, url: str) -> None:
    await ci.here.policy(mode="Approve", functions=["rollback"], owners=["Deployment"], releases=RELEASES)
    await ci.make()
    assert (await ci.step("--proof", "2s")).code == 0
    await ci.release("2-crash")
    ended = await ci.asking(url, "--within", "30s")
    assert (ended.code, "kubectl" in ended.last, ended.last.partition(":")[0]) == (2, True, "people"), ended


async def test_what_is_not_healthy_in_time_and_nobody_cares_for_is_3(ci: Ci) -> None:
    await ci.make("1-unready", "StatefulSet")
    ended = await ci.step("--within", "6s", workload="statefulset/cart")
    assert ended.code == 3
    assert re.fullmatch(r"late: not healthy within 6s: revision 1 \(\S+\): 0 of 2 pods Ready", ended.last), ended


async def test_check_asks_nobody_whatever_the_environment_says(ci: Ci, url: str) -> None:
    await ci.make("1-crash")
    assert (await ci.asking(url, "--check", "--within", "15s")).code == 3
    assert await ci.here.records() == []


async def test_waits_for_the_image_that_git_brings_later(ci: Ci) -> None:
    await ci.make()
    image = f"{(await ci.image()).rpartition(':')[0]}:2"
    ended = await ci.step("--image", image, "--proof", "1s", "--within", "60s", then=lambda: ci.release("2"))
    assert (ended.code, f"not yet {image}" in ended.lines[0]) == (0, True), ended
    assert f"healthy: revision 2 ({image}) is complete" in ended.last


async def test_what_somebody_changes_meanwhile_is_2(ci: Ci) -> None:
    await ci.make("1-unready")
    ended = await ci.step("--within", "60s", then=lambda: ci.release("2"))
    assert (ended.code, "somebody has changed Deployment" in ended.last) == (2, True), ended


async def test_it_is_64_to_ask_in_a_wrong_way(ci: Ci, tmp_path: Path) -> None:
    nobody = await ci.here.plane.kubeconfig_for(ci.here.name, "default")
    await ci.make()
    asked = {
        "no kind": ci.step(workload="cart"),
        "strange": ci.step(workload="pod/cart"),
        "no URL": ci.step("--rollback"),
        "no duration": ci.step("--within", "soon"),
        "not there": ci.step(workload="deployment/basket"),
        "no rights": ci.step(config=nobody),
        "no cluster": ci.step(config=tmp_path / "none"),
    }
    answers = dict(zip(asked, await asyncio.gather(*asked.values()), strict=True))
    assert {title: ended.code for title, ended in answers.items()} == dict.fromkeys(answers, 64)
    told = {title: (ended.complaint or ended.last).splitlines()[-1] for title, ended in answers.items()}
    assert "'cart' is no KIND/NAME with a kind of" in told["no kind"]
    assert "--rollback needs --function-url" in told["no URL"]
    assert "must be a duration like 90s" in told["no duration"]
    assert f"there is no Deployment basket in namespace {ci.here.name}" in told["not there"]
    assert 'cannot get resource "deployments"' in told["no rights"]


async def test_a_token_that_the_function_does_not_know_is_told_and_the_release_still_followed(
    ci: Ci, url: str, tmp_path: Path
) -> None:
    await ci.make("1-crash")
    (tmp_path / "token").write_text("wrong")
    words = ("--function-url", url, "--token-file", str(tmp_path / "token"), "--within", "14s")
    ended = await ci.step(*words)
    assert ended.code == 3
    assert [line for line in ended.lines if f"trouble: {url}" in line and "answered 401" in line]


async def test_in_json_each_line_is_an_object_and_the_last_one_has_the_end(ci: Ci) -> None:
    await ci.make("1-unready")
    ended = await ci.step("--json", "--within", "4s")
    *lines, last = [json.loads(line) for line in ended.lines]
    assert {tuple(sorted(line)) for line in lines} == {("about", "at", "text")}
    assert (last["end"], last["code"], last["record"]) == ("late", 3, "")
    assert last["text"].endswith(lines[-1]["text"])


async def test_it_may_write_nothing_and_does_not_try(ci: Ci) -> None:
    await ci.make()
    assert (await ci.step("--proof", "1s")).code == 0
    tried = [
        entry["verb"]
        for entry in audit.entries(ci.here.plane.audit_log, ci.here.name)
        if entry["user"]["username"] == f"system:serviceaccount:{ci.here.name}:pipeline"
    ]
    assert tried == []
