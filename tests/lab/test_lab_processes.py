"""Children can be told from strangers, killed, paused and waited for."""

import asyncio
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lab import processes
from lab.errors import LabError
from lab.ports import Ports
from lab.processes import Child, ChildDied, Identity


@pytest.fixture
async def child(tmp_path: Path) -> AsyncIterator[Child]:
    """A child that counts in its log."""
    program = "import itertools, time\nfor n in itertools.count(): print(n, flush=True); time.sleep(0.01)"
    async with processes.start("counter", [sys.executable, "-c", program], tmp_path / "counter.log") as running:
        await running.ready(lambda: grows(running))
        yield running


async def grows(child: Child) -> bool:
    before = child.log.stat().st_size
    await asyncio.sleep(0.1)
    return child.log.stat().st_size > before


async def test_a_killed_child_is_dead_and_its_identity_with_it(child: Child) -> None:
    assert child.identity.alive
    child.kill()
    assert await child.ended() == -signal.SIGKILL
    assert not child.identity.alive


async def test_a_paused_child_stands_still_until_it_is_resumed(child: Child) -> None:
    child.pause()
    await asyncio.sleep(0.05)
    assert not await grows(child)
    child.resume()
    assert await grows(child)


async def test_a_paused_child_can_be_stopped(child: Child) -> None:
    child.pause()
    await child.stop(patience=2)
    assert child.exit_code == -signal.SIGTERM


async def test_a_child_that_ignores_the_request_is_killed(tmp_path: Path) -> None:
    program = "import signal, time; signal.signal(15, signal.SIG_IGN); print('on', flush=True); time.sleep(600)"
    stubborn = processes.start("stubborn", [sys.executable, "-c", program], tmp_path / "log")
    await stubborn.ready(lambda: grown(stubborn))
    await stubborn.stop(patience=0.2)
    assert stubborn.exit_code == -signal.SIGKILL


async def grown(child: Child) -> bool:
    return child.log.stat().st_size > 0


async def test_a_child_that_dies_before_it_is_ready_is_reported_with_its_log(tmp_path: Path) -> None:
    program = "import sys; sys.exit('bind: address already in use')"
    child = processes.start("server", [sys.executable, "-c", program], tmp_path / "log")
    with pytest.raises(ChildDied, match=r"server ended with code 1 .*\n.*log\nbind: address") as caught:
        await child.ready(never)
    assert caught.value.port_was_taken


async def test_a_child_that_is_never_ready_is_reported(child: Child) -> None:
    with pytest.raises(LabError, match="counter is not ready after 0 s"):
        await child.ready(never, patience=0.1)


async def never() -> bool:
    return False


async def test_another_start_time_is_another_process(child: Child) -> None:
    stranger = Identity(child.pid, child.identity.started + 1)
    assert not stranger.alive
    assert not stranger.send(signal.SIGKILL)
    assert child.alive


async def test_stop_all_leaves_strangers_alone(child: Child) -> None:
    await processes.stop_all([Identity(child.pid, 1)], patience=0.2)
    assert child.alive


async def test_children_get_no_proxy_and_no_foreign_kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://elsewhere")
    monkeypatch.setenv("KUBECONFIG", "elsewhere")
    program = "import os; print(os.environ.get('HTTPS_PROXY'), os.environ.get('KUBECONFIG'), os.environ['OURS'])"
    child = processes.start("env", [sys.executable, "-c", program], tmp_path / "log", environment={"OURS": "1"})
    await child.ended()
    assert child.log.read_text() == "None None 1\n"


def test_a_held_port_is_given_to_nobody_else() -> None:
    with Ports() as ports, Ports() as others:
        taken = [ports.take() for _ in range(50)] + [others.take() for _ in range(50)]
    assert len(set(taken)) == 100


async def test_a_held_port_can_be_bound_by_its_owner() -> None:
    with Ports() as ports:
        server = await asyncio.start_server(lambda *_: None, "127.0.0.1", ports.take())
    server.close()
    await server.wait_closed()
