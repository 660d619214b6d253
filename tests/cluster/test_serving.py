"""How a function as a process answers its probes, tells its figures, bears bad clients, and ends."""

import asyncio
import json
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from bench import patients, rig
from lab import callers
from lab.cluster import ControlPlane
from lab.faults import Hit, nth
from lab.toolchain import Toolchain
from lab.troubles import Trouble, refusal
from tests import kit
from tests.serving import PING, Served, served

DOWN = Trouble("down", arrives=False, says=refusal(503, "ServiceUnavailable", "apiserver is shutting down"))
POLICIES = "list clusterremediationpolicies"


@pytest.fixture(scope="module")
async def function(installed: ControlPlane) -> AsyncIterator[Served]:
    """restart-loop-killer, with a person's token."""
    await callers.issue(installed, callers.PERSON)
    async with served(installed) as running:
        yield running


def person(plane: ControlPlane) -> dict[str, str]:
    return PING | callers.headers(plane)


async def raw(function: Served, head: str, body: bytes = b"") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send a request by hand, or a part of one."""
    host, port = function.url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(f"POST / HTTP/1.1\r\nHost: {host}\r\n{head}\r\n".encode() + body)
    return reader, writer


def complaints(promtool: Path, text: str) -> str:
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


async def test_is_ready_when_the_policies_are_read_and_asks_no_more_then(installed: ControlPlane) -> None:
    async with served(installed) as function:
        function.plan.append(Hit(lambda call: call.step == POLICIES, DOWN))
        status, text = await function.get("/readyz")
        assert (status, "apiserver is shutting down" in text) == (503, True)
        assert await function.get("/readyz") == (200, "ok")
        asked = function.steps()
        assert {*asked} == {POLICIES, "list remediationpolicies", "create tokenreviews"}
        assert asked.count("create tokenreviews") == 1
        assert [await function.get("/readyz") for _ in range(20)] == [(200, "ok")] * 20
        assert [(await function.get("/healthz"))[0] for _ in range(3)] == [200] * 3
        assert function.steps() == asked

        # A call of its own that fails is news enough.
        await callers.issue(installed, callers.PERSON)
        hits = [
            Hit(lambda call: call.step == "create tokenreviews", DOWN),
            Hit(lambda call: call.step == POLICIES, DOWN),
        ]
        function.plan.extend(hits)
        assert (await function.post(person(installed), b"{}"))[0] == 503
        # The policies that were read may be shared for a second.
        await function.becomes("/readyz", 503)
        assert await function.get("/readyz") == (200, "ok")


async def test_is_not_ready_without_its_rights_and_ends_at_once_when_idle(
    installed: ControlPlane,
) -> None:
    async with served(installed) as function:
        no = refusal(403, "Forbidden", 'tokenreviews.authentication.k8s.io is forbidden: User "x" cannot create')
        function.plan.append(
            Hit(lambda call: call.step == "create tokenreviews", Trouble("403", arrives=False, says=no))
        )
        status, text = await function.get("/readyz")
        assert (status, "tokenreviews.authentication.k8s.io is forbidden" in text) == (503, True)
        function.child._signal(signal.SIGTERM)
        assert await function.child.ended(30) == 0


async def test_promtool_finds_no_fault_with_the_figures(function: Served) -> None:
    pod = {"metadata": {"namespace": "nowhere", "name": "secret-name", "uid": "1"}}
    url, headers = function.url, person(function.plane)
    assert await rig.tell(function.client, url, pod) == 401
    assert (await function.post(headers, b"{}"))[0] == 204
    assert (await function.post(PING | callers.headers(function.plane) | {"ce-id": ""}, b"{}"))[0] == 400
    await function.becomes("/readyz", 200)
    async with function.client.get(f"{url}/metrics") as answer:
        assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
        text = await answer.text()
    promtool = Toolchain().ensure(["promtool"])["promtool"]
    assert await asyncio.to_thread(complaints, promtool, text) == ""
    counted = set(re.findall(r"kreflex_request_duration_seconds_count(\{.*?\}) [1-9]", text))
    assert {'{sender="unknown",status="401"}', '{sender="cloudevents",status="204"}'} <= counted
    assert 'kreflex_api_requests_total{verb="POST",code="201"}' in text
    assert 'kreflex_callers_info{mode="tokenreview"} 1' in text
    assert "kreflex_requests_in_flight 0\n" in text
    assert "secret-name" not in text


async def test_a_stranger_s_answer_comes_before_the_body_is_sent(function: Served) -> None:
    reader, writer = await raw(function, "Content-Length: 1000000000\r\nExpect: 100-continue\r\n")
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode()
    assert head.startswith("HTTP/1.1 401 ")
    assert "connection: close" in head.lower()
    writer.close()


async def test_a_stranger_who_sends_much_reads_the_answer_at_the_end(function: Served) -> None:
    piece = b"x" * 2**16
    reader, writer = await raw(function, f"Content-Length: {len(piece) * 200}\r\n")
    for _ in range(200):
        writer.write(piece)
        await writer.drain()
    answer = (await asyncio.wait_for(reader.read(), 30)).decode()
    assert answer.startswith("HTTP/1.1 401 ")
    assert "the header Authorization is missing" in answer
    writer.close()


async def test_who_does_not_finish_a_request_is_not_waited_for(function: Served) -> None:
    shown = f"Authorization: {callers.headers(function.plane)['Authorization']}\r\n"
    slow, slow_writer = await raw(function, f"{shown}Content-Length: 100\r\n", b'{"version"')
    host, port = function.url.removeprefix("http://").split(":")
    silent, silent_writer = await asyncio.open_connection(host, int(port))
    silent_writer.write(b"POST / HTTP/1.1\r\nHost: x\r\n")

    head = (await asyncio.wait_for(slow.readuntil(b"\r\n\r\n"), 60)).decode()
    assert head.startswith("HTTP/1.1 400 ")
    assert "body: was not whole after 10 seconds" in (await slow.readuntil(b"}")).decode()
    assert await asyncio.wait_for(silent.read(), 60) == b""
    for writer in (slow_writer, silent_writer):
        writer.close()


async def test_ends_softly(installed: ControlPlane, here: kit.Place) -> None:
    """SIGTERM between the writes of a remediation: it is finished and answered, nothing new begins, exit code 0."""
    await callers.issue(installed, callers.PERSON)
    ill = await patients.fall_ill(installed, await here.deployment())
    async with served(installed) as function:
        await function.becomes("/readyz", 200)
        arrived, go_on = asyncio.Event(), asyncio.Event()

        async def held() -> None:
            arrived.set()
            await go_on.wait()

        function.plan.append(Hit(nth("eviction"), Trouble("held"), first=held))
        headers, body = patients.told(ill[0])
        answer = asyncio.create_task(function.post({**headers, **callers.headers(installed)}, body))
        await asyncio.wait_for(arrived.wait(), 60)

        function.child._signal(signal.SIGTERM)
        await function.becomes("/healthz", 0)
        assert function.child.alive
        go_on.set()
        status, text = await asyncio.wait_for(answer, 60)
        assert (status, json.loads(text)["items"][0]["phase"]) == (200, "Applied")
        assert await function.child.ended(60) == 0
        assert "nclosed" not in function.child.log.read_text()
    (record,) = await here.records()
    assert record["status"]["phase"] == "Applied"
    assert here.evictions() == [ill[0]["metadata"]["uid"]]


async def test_serves_a_while_who_has_not_heard_that_it_ends_until_a_second_signal(installed: ControlPlane) -> None:
    await callers.issue(installed, callers.PERSON)
    async with served(installed, DRAIN_GRACE="20s") as function:
        function.child._signal(signal.SIGTERM)
        assert "this process is ending" in await function.becomes("/readyz", 503)
        async with function.client.post(function.url, headers=person(installed), data=b"{}") as answer:
            assert (answer.status, answer.headers["Connection"]) == (204, "close")
        function.child._signal(signal.SIGINT)
        assert await function.child.ended(30) == -signal.SIGINT
