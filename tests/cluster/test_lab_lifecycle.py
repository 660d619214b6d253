"""A lab comes up whole, goes down clean, lives beside another, and leaves nothing behind when it is killed."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lab import nodes, state
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.errors import LabError
from lab.paths import REPOSITORY, Home
from lab.processes import Identity

PATIENCE = 120


def lab(*arguments: str, home: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lab", arguments[0], "--home", str(home), *arguments[1:]]
    return subprocess.run(command, capture_output=True, text=True, cwd=REPOSITORY, timeout=PATIENCE, check=False)


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Path]:
    """A home whose lab is taken down at the end."""
    directory = tmp_path / "lab"
    yield directory
    lab("down", home=directory)


def strays(home: Path) -> list[Identity]:
    return state.strays(Home(home))


def test_up_json_status_up_again_and_down(home: Path) -> None:
    endpoints = json.loads(lab("up", "--json", "--only", "kwok", "--nodes", "2", home=home).stdout)
    assert {"home", "kubeconfig", "api", "audit_log", "env"} <= set(endpoints)

    status = json.loads(lab("status", "--json", home=home).stdout)
    assert {name: one["health"] for name, one in status["processes"].items()} == dict.fromkeys(
        ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kwok"), "healthy"
    )
    sourced = f"source {home}/env && kubectl get nodes -o name"
    answer = subprocess.run(["bash", "-c", sourced], capture_output=True, text=True, check=True)
    assert answer.stdout.split() == ["node/node-0", "node/node-1"]

    again = lab("up", "--json", home=home)
    assert "up already" in again.stderr
    assert json.loads(again.stdout) == endpoints

    down = lab("down", home=home)
    assert (down.returncode, down.stderr) == (0, "lab: down\n")
    assert strays(home) == []
    assert lab("status", home=home).returncode == 1
    assert "no lab is up" in lab("down", home=home).stderr


def test_a_lab_that_was_killed_wherever_it_was_hinders_nobody(home: Path) -> None:
    assert lab("up", "--only", "control-plane", home=home).returncode == 0
    for identity in state.living(Home(home)).values():
        identity.send(signal.SIGKILL)
    assert lab("status", home=home).returncode == 1
    assert lab("up", "--only", "control-plane", home=home).returncode == 0
    assert lab("status", home=home).returncode == 0


async def test_up_that_is_killed_half_way_is_cleared_away_by_the_next(home: Path) -> None:
    command = [sys.executable, "-m", "lab", "up", "--home", str(home)]
    starting = await asyncio.create_subprocess_exec(*command, cwd=REPOSITORY, stdout=DEVNULL, stderr=DEVNULL)

    async def begun() -> Any:
        return "kube-apiserver" in state.identities(Home(home))

    await eventually(begun, "a lab half-way up", pause=0.02)
    starting.send_signal(signal.SIGKILL)
    await starting.wait()
    left = {one.pid for one in strays(home)}
    assert left

    again = await asyncio.to_thread(lab, "up", "--only", "control-plane", home=home)
    assert again.returncode == 0, again.stderr
    assert not left & {one.pid for one in strays(home)}
    assert state.is_up(Home(home))


async def test_a_lab_in_the_foreground_dies_with_its_parent(tmp_path: Path) -> None:
    program = f"""
import asyncio
from lab.cluster import ControlPlane
async def main():
    async with ControlPlane({str(tmp_path)!r}):
        print("up", flush=True)
        await asyncio.sleep(600)
asyncio.run(main())
"""
    parent = await asyncio.create_subprocess_exec(sys.executable, "-c", program, cwd=REPOSITORY, stdout=PIPE)
    assert parent.stdout is not None
    assert await parent.stdout.readline() == b"up\n"
    children = state.living(Home(tmp_path))
    assert len(children) == 4
    parent.kill()
    await parent.wait()

    async def gone() -> bool:
        return not state.living(Home(tmp_path))

    await eventually(gone, "the end of its children", patience=10)


async def test_two_labs_live_side_by_side(plane: ControlPlane, tmp_path: Path) -> None:
    async with ControlPlane(tmp_path) as other:
        await nodes.start(other, 1)
        await other.api.post("/api/v1/namespaces", {"metadata": {"name": "only-here"}})
        assert await plane.api.find("/api/v1/namespaces/only-here") is None
        assert len((await other.api.get("/api/v1/nodes"))["items"]) == 1
    assert all(child.alive for child in plane.children.values())


async def test_a_home_has_one_lab_at_a_time(plane: ControlPlane) -> None:
    with pytest.raises(LabError, match="another process is at work"):
        await ControlPlane(plane.home).start()
    assert lab("down", home=plane.home.root).returncode == 1
    assert all(child.alive for child in plane.children.values())


def test_a_process_that_got_an_old_pid_is_left_alone(home: Path) -> None:
    stranger = subprocess.Popen(["sleep", "600"])
    try:
        entry = {"pid": stranger.pid, "started": 1, "log": "x", "url": ""}
        Home.at(home).state.write_text(json.dumps({"complete": True, "processes": {"etcd": entry}, "endpoints": {}}))
        assert lab("down", home=home).returncode == 0
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_down_does_not_end_the_shell_that_has_sourced_the_environment(home: Path) -> None:
    Home.at(home)
    shell = subprocess.Popen(["sleep", "600"], env=os.environ | {"KREFLEX_LAB_HOME": str(home)})
    try:
        assert lab("down", home=home).returncode == 0
        assert shell.poll() is None
    finally:
        shell.kill()
        shell.wait()
