"""Many requests to one process, and what they cost it."""

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import aiohttp

from bench import effort
from lab.processes import Child

Message = tuple[Mapping[str, str], bytes]
_CONNECTIONS = 8


@dataclass(frozen=True)
class Cost:
    """What the requests cost the process, between which wall clock times, and how they were answered."""

    requests: int
    cpu_seconds: float
    begun: float
    ended: float
    answers: Mapping[int, int]

    @property
    def per_second(self) -> float:
        """Requests for each second of processor time."""
        return self.requests / max(self.cpu_seconds, 0.01)


async def flood(
    child: Child, url: str, messages: Sequence[Message], count: int, headers: Mapping[str, str] | None = None
) -> Cost:
    """Send so many of the messages, in turn, over eight connections that stay open."""
    answers: Counter[int] = Counter()
    turn = itertools.islice(itertools.cycle(messages), count)
    connector = aiohttp.TCPConnector(limit=_CONNECTIONS)
    async with aiohttp.ClientSession(headers=headers, connector=connector) as client:

        async def send_all() -> None:
            for told, body in turn:
                async with client.post(url, data=body, headers=told) as answer:
                    await answer.read()
                    answers[answer.status] += 1

        begun, used = time.time(), effort.cpu_seconds(child.pid)
        await asyncio.gather(*(send_all() for _ in range(_CONNECTIONS)))
        return Cost(count, effort.cpu_seconds(child.pid) - used, begun, time.time(), answers)
