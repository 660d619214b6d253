"""The sink for events that could not be delivered: what arrives stands in its log."""

import io
import json
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import pytest

from lab import processes
from lab.ports import Ports

CODE = {
    "ce-knativeerrordest": "http://somewhere/",
    "ce-knativeerrorcode": "503",
    "ce-knativeerrordata": "no API server",
}
EVENT = {"id": "1", "type": "dev.knative.apiserver.resource.update", "source": "here", "subject": "/apis/v1/pods/cart"}
TOLD = {"destination": "http://somewhere/", "code": "503", "answer": "no API server"}


@dataclass
class Sink:
    """A running one."""

    url: str
    log: Path

    async def send(self, headers: dict[str, str], body: bytes) -> int:
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.url, headers=headers, data=io.BytesIO(body)) as answer,
        ):
            return answer.status

    def told(self) -> dict[str, str]:
        """Its last line."""
        line: dict[str, str] = json.loads(self.log.read_text().splitlines()[-1])
        return {key: line[key] for key in (*EVENT, *TOLD)}


@pytest.fixture(scope="module")
async def sink(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Sink]:
    with Ports() as ports:
        port = ports.take()
        settings = {"HOST": "127.0.0.1", "PORT": str(port), **processes.importable()}
        log = tmp_path_factory.mktemp("dead-letters") / "log"
        command = [sys.executable, "-m", "kreflex.deadletters"]
        child = processes.start("dead-letters", command, log, environment=settings)
        url = f"http://127.0.0.1:{port}"
        try:
            await child.ready(processes.answers(f"{url}/healthz"))
            yield Sink(url, log)
        finally:
            await child.stop()


async def test_says_what_was_not_delivered_and_why(sink: Sink) -> None:
    headers = {"ce-specversion": "1.0", **{f"ce-{key}": value for key, value in EVENT.items()}, **CODE}
    assert await sink.send(headers, b'{"kind": "Pod"}') == 204
    assert sink.told() == {**EVENT, **TOLD}


async def test_reads_structured_events_as_well(sink: Sink) -> None:
    event = {"specversion": "1.0", **EVENT, **{key.removeprefix("ce-"): value for key, value in CODE.items()}}
    headers = {"content-type": "application/cloudevents+json"}
    assert await sink.send(headers, json.dumps(event).encode()) == 204
    assert sink.told() == {**EVENT, **TOLD}


@pytest.mark.parametrize("body", [b"", b"\xff", b"[1]", b"[" * 100_000, b"x" * 2**21])
async def test_takes_whatever_comes(sink: Sink, body: bytes) -> None:
    assert await sink.send({}, body) == 204
    assert set(sink.told().values()) == {""}
