"""Two real Alertmanagers that gossip: usually one notifies. When both do, the function acts once."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from lab import callers, senders
from lab.api import eventually
from lab.senders import Alertmanager
from tests import kit
from tests.senders.recorder import HANG, Answer, Recorder, Taken, recorder
from tests.senders.surroundings import Function, alert

Json = dict[str, Any]
PEERS = ("a", "b")


@dataclass
class Pair:
    """Two Alertmanagers, one cluster. Each has a path of its own at the recorder."""

    peers: dict[str, Alertmanager]
    far: Recorder

    async def tell(self, labels: dict[str, str]) -> None:
        """Tell both of an alert, as Prometheus does."""
        for peer in self.peers.values():
            await peer.tell(labels)

    def told(self) -> list[str]:
        """Name the peers whose notifications arrived, in order."""
        return [one.path.strip("/") for one in self.far.taken]


@asynccontextmanager
async def pair(
    home: Path, times: Json, *answers: Answer, peer_timeout: str = "1s", **webhook: Any
) -> AsyncIterator[Pair]:
    """Run two peers whose receiver gives these answers."""
    async with recorder() as far:
        configs = {peer: config(far.script(f"/{peer}", *answers), times, **webhook) for peer in PEERS}
        async with senders.alertmanagers(home, configs, peer_timeout=peer_timeout) as peers:
            yield Pair(peers, far)


def config(url: str, times: Json, **webhook: Any) -> Json:
    """A configuration that tells one receiver of each alert."""
    return {
        "route": {"receiver": "function", "group_by": ["..."], "group_wait": "0s", **times},
        "receivers": [{"name": "function", "webhook_configs": [{"url": url, **webhook}]}],
    }


async def test_usually_one_of_two_peers_notifies(tmp_path: Path) -> None:
    times = {"group_interval": "1s", "repeat_interval": "4h"}
    # Long enough for the first to notify and to gossip of it, even where much else goes on.
    async with pair(tmp_path, times, 200, peer_timeout="4s") as running:
        before = {name: await looked(peer) for name, peer in running.peers.items()}
        await running.tell({"alertname": "Case", "pod": "cart-1"})

        async def both_looked() -> bool:
            # Each looks into the common log of notifications before it sends, and again at each group_interval.
            return all([await looked(peer) >= before[name] + 2 for name, peer in running.peers.items()])

        await eventually(both_looked, "both peers consider the alert twice", 60)
        assert len(running.told()) == 1


async def looked(peer: Alertmanager) -> float:
    return await peer.metric("alertmanager_nflog_queries_total")


async def test_a_peer_that_dies_before_its_answer_is_followed_by_the_other(tmp_path: Path) -> None:
    async with pair(tmp_path, {"group_interval": "1h", "repeat_interval": "4h"}, HANG) as running:
        await running.tell({"alertname": "Case", "pod": "cart-1"})

        async def first() -> list[str]:
            return running.told()

        dead = (await eventually(first, "a notification"))[0]
        running.peers[dead].child.kill()

        async def followed() -> bool:
            return set(running.told()) == set(PEERS)

        await eventually(followed, "the other peer's notification")


async def test_what_both_peers_tell_meets_in_one_record_and_one_eviction(
    here: kit.Place, function: Function, tmp_path: Path
) -> None:
    pod = await here.loop((await here.deployment())[0], speed="20")
    statuses: list[int] = []
    token = str(await callers.issue(here.plane, "alertmanager"))
    shown = {"authorization": {"credentials_file": token}}

    async def hand_on(taken: Taken) -> web.Response:
        headers = {name: value for name, value in taken.headers.items() if name != "Host"}
        async with (
            aiohttp.ClientSession() as session,
            session.post(function.url, data=taken.body, headers=headers) as got,
        ):
            statuses.append(got.status)
        # The function has acted, and the first peer never hears of it.
        return web.Response(status=500 if len(statuses) == 1 else got.status)

    async with pair(tmp_path, {"group_interval": "1s", "repeat_interval": "1s"}, hand_on, http_config=shown) as running:
        await running.tell(alert(pod))

        async def acted() -> list[int]:
            return statuses

        await eventually(acted, "the function's first answer")
        dead = running.told()[0]
        running.peers[dead].child.kill()

        async def other() -> bool:
            # Again and again, should the pod run at the moment when it is looked at.
            return len(statuses) > 2 and set(running.told()) == set(PEERS) and bool(here.evictions())

        await eventually(other, "the other peer's notification", 60)

    assert set(statuses) == {200}
    assert here.evictions() == [pod["metadata"]["uid"]]
    assert len(await here.records()) == 1
