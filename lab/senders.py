"""Programs of others that send events, each alone on loopback, so that it can be seen what an answer means to it."""

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import yaml

from lab import processes
from lab.api import eventually
from lab.ports import Ports
from lab.processes import Child
from lab.toolchain import Toolchain

Json = dict[str, Any]
# Production's patience would make tests of minutes.
_GOSSIP = {
    "gossip-interval": "20ms",
    "pushpull-interval": "1s",
    "probe-interval": "200ms",
    "probe-timeout": "100ms",
    "settle-timeout": "10s",
    "reconnect-interval": "1s",
}


@dataclass
class Alertmanager:
    """A running Alertmanager."""

    child: Child
    url: str

    async def tell(self, *alerts: Mapping[str, str], over: bool = False) -> None:
        """Tell it of alerts with these labels that fire since now, or that they are over."""
        now = datetime.now(UTC).isoformat()
        bodies: list[Json] = [
            {"labels": dict(labels), "annotations": {"summary": f"{labels['alertname']} in a test"}}
            | ({"endsAt": now} if over else {})
            for labels in alerts
        ]
        async with aiohttp.ClientSession() as session, session.post(f"{self.url}/api/v2/alerts", json=bodies) as answer:
            answer.raise_for_status()

    async def metric(self, name: str, **labels: str) -> float:
        """The sum of the samples of one of its own metrics that have these labels."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        samples = re.findall(rf"^{name}(\{{.*\}})? (\S+)$", text, re.MULTILINE)
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return sum(float(value) for had, value in samples if all(one in had for one in wanted))

    def said(self, *words: str) -> bool:
        """Whether a line of its log has all these words."""
        return any(all(word in line for word in words) for line in self.child.log.read_text().splitlines())

    async def settled(self, peers: int) -> bool:
        """Whether it sees so many members of its cluster, itself among them, and notifies already."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/api/v2/status") as answer:
            cluster = (await answer.json())["cluster"]
        return cluster["status"] == "ready" and len(cluster.get("peers", ())) == peers


@asynccontextmanager
async def alertmanagers(
    home: Path, configs: Mapping[str, Json], *, peer_timeout: str = "1s"
) -> AsyncIterator[dict[str, Alertmanager]]:
    """Run an Alertmanager with each of these configurations; several are one cluster, in the order of their names.

    The second waits for `peer_timeout` before it looks whether the first has notified.
    """
    program = Toolchain().ensure(["alertmanager"])["alertmanager"]
    async with AsyncExitStack() as stack:
        ports = stack.enter_context(Ports())
        gossip = {name: f"127.0.0.1:{ports.take()}" for name in configs} if len(configs) > 1 else {}
        running = {}
        for name, config in configs.items():
            (home / f"{name}.yaml").write_text(yaml.safe_dump(config))
            url = f"http://127.0.0.1:{ports.take()}"
            command: list[str | Path] = [program, *_arguments(home, name, url), *_cluster(name, gossip, peer_timeout)]
            child = processes.start(name, command, home / f"{name}.log")
            await stack.enter_async_context(child)
            running[name] = Alertmanager(child, url)
        for one in running.values():
            await one.child.ready(processes.answers(f"{one.url}/-/ready"))
            if gossip:
                await eventually(lambda one=one: one.settled(len(gossip)), f"{one.child.name} in its cluster", 60)
        yield running


def _arguments(home: Path, name: str, url: str) -> list[str]:
    return [
        f"--config.file={home / f'{name}.yaml'}",
        f"--storage.path={home / name}",
        f"--web.listen-address={url.removeprefix('http://')}",
        # It calls itself by the machine's name otherwise.
        "--web.external-url=http://alertmanager.example",
        "--log.level=debug",
    ]


def _cluster(name: str, gossip: Mapping[str, str], peer_timeout: str) -> list[str]:
    if not gossip:
        return ["--cluster.listen-address="]
    return [
        f"--cluster.listen-address={gossip[name]}",
        f"--cluster.peer-name={name}",
        f"--cluster.peer-timeout={peer_timeout}",
        *(f"--cluster.peer={address}" for peer, address in gossip.items() if peer != name),
        *(f"--cluster.{key}={value}" for key, value in _GOSSIP.items()),
    ]
