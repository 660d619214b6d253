"""The lab runs the Jobs of Kreflex as processes: whose command, with whose rights, and what is seen of its end."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lab import jobs
from lab.api import Api, eventually
from lab.cluster import ControlPlane
from lab.processes import Identity

Json = dict[str, Any]
TOLD = "/dev/termination-log"


@dataclass
class Place:
    """A namespace of one test."""

    plane: ControlPlane
    name: str

    @property
    def api(self) -> Api:
        return self.plane.api

    async def make(self, body: Json) -> None:
        await self.api.post(jobs.collection(self.name), body)

    async def ended(self, name: str = "work", patience: float = 90) -> tuple[str, str]:
        """The condition that ends a Job, and its reason."""
        condition = await jobs.ended(self.api, self.name, name, patience)
        return condition["type"], condition["reason"]

    async def pods(self) -> list[Json]:
        items: list[Json] = (await self.api.get(f"/api/v1/namespaces/{self.name}/pods"))["items"]
        return items

    async def terminated(self) -> Json:
        """How the container of the only pod ended, but for the times."""
        (pod,) = await self.pods()
        state = pod["status"]["containerStatuses"][0]["state"]["terminated"]
        return {key: value for key, value in state.items() if not key.endswith("At")}


@pytest.fixture(scope="module")
async def runner(plane: ControlPlane) -> AsyncIterator[ControlPlane]:
    async with jobs.running(plane, ["kubectl"]):
        yield plane


@pytest.fixture
async def here(plane: ControlPlane) -> Place:
    name = f"jobs-{uuid.uuid4().hex[:8]}"
    await plane.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    await plane.api.post(f"/api/v1/namespaces/{name}/serviceaccounts", {"metadata": {"name": "worker"}})
    return Place(plane, name)


def shell(script: str, **spec: Any) -> Json:
    return jobs.job("work", "worker", "sh", "-c", script, **spec)


def container(body: Json) -> Json:
    made: Json = body["spec"]["template"]["spec"]["containers"][0]
    return made


async def written(file: Path) -> str:
    """Wait until a process has written a line into a file."""

    async def text() -> str | None:
        return _line(file)

    found: str = await eventually(text, f"a line in {file}")
    return found.strip()


def _line(file: Path) -> str | None:
    text = file.read_text() if file.exists() else ""
    return text if text.endswith("\n") else None


async def process_ends(pid: int) -> None:
    async def gone() -> bool:
        return Identity.of(pid) is None

    await eventually(gone, f"the end of process {pid}")


@pytest.mark.usefixtures("runner")
async def test_a_command_has_the_rights_of_its_pod_s_account(here: Place) -> None:
    body = shell("kubectl auth whoami -o jsonpath={.status.userInfo.username} >$(TOLD)")
    container(body)["terminationMessagePath"] = TOLD
    container(body)["env"] = [{"name": "TOLD", "value": TOLD}]
    await here.make(body)

    assert await here.ended() == ("Complete", "CompletionsReached")
    who = f"system:serviceaccount:{here.name}:worker"
    assert await here.terminated() == {"exitCode": 0, "reason": "Completed", "message": who}


@pytest.mark.usefixtures("runner")
async def test_the_environment_is_the_container_s_and_the_folder_is_empty(here: Place) -> None:
    body = shell('echo "$NAMESPACE $GREETING $(GREETING) $(nobody) $(ls)"; exit 1')
    field = {"fieldRef": {"fieldPath": "metadata.namespace"}}
    container(body)["env"] = [
        {"name": "NAMESPACE", "valueFrom": field},
        {"name": "NAME", "value": "Ada"},
        {"name": "GREETING", "value": "hello-$(NAME)"},
    ]
    # What is no variable of the container stays for the shell.
    container(body)["command"][2] = container(body)["command"][2].replace("$(nobody)", "$$(nobody)")
    await here.make(body)

    assert await here.ended() == ("Failed", "BackoffLimitExceeded")
    said = (await here.terminated())["message"]
    assert said.splitlines()[-1].split() == [here.name, "hello-Ada", "hello-Ada"]


@pytest.mark.usefixtures("runner")
async def test_a_failed_command_fails_its_job_and_the_end_of_its_output_is_kept(here: Place) -> None:
    await here.make(shell("seq 1 100; echo 'Error: no such release' >&2; exit 3"))

    assert await here.ended() == ("Failed", "BackoffLimitExceeded")
    numbers = "".join(f"{number}\n" for number in range(22, 101))
    message = f"{numbers}Error: no such release\n"
    assert await here.terminated() == {"exitCode": 3, "reason": "Error", "message": message}


@pytest.mark.usefixtures("runner")
async def test_a_program_that_the_lab_does_not_have_is_named(here: Place) -> None:
    await here.make(jobs.job("work", "worker", "terraform", "apply"))

    assert await here.ended() == ("Failed", "BackoffLimitExceeded")
    message = 'exec: "terraform": executable file not found in $PATH: the lab has no such program'
    assert await here.terminated() == {"exitCode": 128, "reason": "StartError", "message": message}


@pytest.mark.usefixtures("runner")
async def test_the_command_of_a_pod_without_the_label_is_never_run(here: Place, tmp_path: Path) -> None:
    body = shell(f"touch {tmp_path}/ran")
    body["spec"]["template"]["metadata"]["labels"] = {"app.kubernetes.io/managed-by": "Helm"}
    await here.make(body)

    assert await here.ended() == ("Complete", "CompletionsReached")
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("runner")
async def test_a_pod_with_the_label_that_is_of_no_job_is_not_run(here: Place, tmp_path: Path) -> None:
    template = shell(f"touch {tmp_path}/ran")["spec"]["template"]
    labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": "work"}
    pod = {"metadata": {"name": "work", "labels": labels}, "spec": template["spec"]}
    await here.api.post(f"/api/v1/namespaces/{here.name}/pods", pod)

    async def failed() -> bool:
        (found,) = await here.pods()
        return bool(found["status"]["phase"] == "Failed")

    await eventually(failed, "the end of a pod without a Job")
    message = "the lab runs pods of Jobs only, and this one has no Job"
    assert await here.terminated() == {"exitCode": 128, "reason": "StartError", "message": message}
    assert not (tmp_path / "ran").exists()


@pytest.mark.usefixtures("runner")
async def test_it_is_said_aloud_that_a_process_runs(here: Place) -> None:
    await here.make(shell("exit 0"))
    await here.ended()

    said = f"Job {here.name}/work runs as a process of this machine, with the token of account {here.name}/worker"
    assert f"lab: {said}: sh -c 'exit 0'\n" in here.plane.home.log(jobs.PROGRAM).read_text()
    events = (await here.api.get(f"/api/v1/namespaces/{here.name}/events"))["items"]
    about = [(one["involvedObject"]["kind"], one["message"]) for one in events if one["reason"] == "RunsAsProcess"]
    assert about == [("Job", f"lab: {said}")]


@pytest.mark.usefixtures("runner")
async def test_the_process_of_a_deleted_job_ends_and_its_pod_goes(here: Place, tmp_path: Path) -> None:
    await here.make(shell(f"echo $$$$ >{tmp_path}/pid; exec sleep 300"))
    pid = int(await written(tmp_path / "pid"))
    await here.api.delete(f"{jobs.collection(here.name)}/work", {"propagationPolicy": "Background"})

    await process_ends(pid)

    async def gone() -> bool:
        return not await here.pods()

    await eventually(gone, "the end of the pod")


@pytest.mark.usefixtures("runner")
async def test_a_job_past_its_deadline_is_ended_and_failed(here: Place, tmp_path: Path) -> None:
    await here.make(shell(f"echo $$$$ >{tmp_path}/pid; exec sleep 300", activeDeadlineSeconds=2))
    pid = int(await written(tmp_path / "pid"))

    assert await here.ended() == ("Failed", "DeadlineExceeded")
    await process_ends(pid)


@pytest.mark.usefixtures("runner")
async def test_a_process_that_does_not_end_is_killed_after_its_grace(here: Place, tmp_path: Path) -> None:
    script = f"trap 'echo asked >>{tmp_path}/asked' TERM; echo $$$$ >{tmp_path}/pid; while :; do sleep 0.1; done"
    await here.make(shell(script, grace_seconds=1))
    pid = int(await written(tmp_path / "pid"))
    await here.api.delete(f"{jobs.collection(here.name)}/work", {"propagationPolicy": "Background"})

    await process_ends(pid)
    assert (tmp_path / "asked").read_text() == "asked\n"


@pytest.mark.usefixtures("runner")
async def test_many_run_side_by_side(here: Place, tmp_path: Path) -> None:
    """Each waits for the files of all."""
    script = f"touch {tmp_path}/$NAME; while [ $(ls {tmp_path} | wc -l) -lt 12 ]; do sleep 0.1; done"
    for number in range(12):
        body = jobs.job(f"work-{number}", "worker", "sh", "-c", script)
        container(body)["env"] = [{"name": "NAME", "value": str(number)}]
        await here.make(body)

    ends = [await here.ended(f"work-{number}") for number in range(12)]
    assert ends == [("Complete", "CompletionsReached")] * 12


async def test_a_process_ends_with_its_runner_and_the_next_runner_says_so(
    runner: ControlPlane, here: Place, tmp_path: Path
) -> None:
    await here.make(shell(f"echo $$$$ >{tmp_path}/pid; exec sleep 300"))
    pid = int(await written(tmp_path / "pid"))

    async def running() -> bool:
        (pod,) = await here.pods()
        return bool(pod["status"]["phase"] == "Running")

    await eventually(running, "a Running pod")
    runner.children[jobs.PROGRAM].kill()
    await process_ends(pid)

    await runner.stop_child(jobs.PROGRAM)
    await jobs.start(runner, ["kubectl"])
    assert await here.ended() == ("Failed", "BackoffLimitExceeded")
    said = "the lab's runner was started anew, and its processes ended"
    assert await here.terminated() == {"exitCode": 137, "reason": "ContainerStatusUnknown", "message": said}
