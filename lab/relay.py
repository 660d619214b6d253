"""Hands CloudEvents on to the functions. It is not a Broker: the lab's first tier has none.

It does what a Broker with Triggers does for one cluster at peace: filters by type, retries as a Trigger's delivery
does, and brings a function's reply to the other subscribers. It keeps events in memory only, bounded, knows no
dead-letter sink, and loses what it holds when it is killed. Nothing may rest on it, nor on a Broker.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TextIO

import aiohttp
from aiohttp import web

from lab import bearer
from lab.filters import passes

# Knative retries these: https://github.com/knative/eventing/blob/main/pkg/kncloudevents/retries.go (SelectiveRetry)
_RETRIED = {404, 408, 409, 429}
_STRUCTURED = "application/cloudevents+json"
_LIMIT = 1024 * 1024
_HOPS = 10
_WAITING = 2000
_AT_ONCE = 40


@dataclass(frozen=True)
class Subscriber:
    """Who wants which events."""

    name: str
    url: str
    types: tuple[str, ...] = ()
    """Prefixes of the types that it wants; none means all."""
    filters: tuple[Mapping[str, Any], ...] = ()
    """As a Trigger has them: it wants what passes all of them."""

    def wants(self, event: "Event") -> bool:
        """Whether the event is for it; its own replies never are."""
        if self.name == event.sender or (self.types and not event.type.startswith(self.types)):
            return False
        return all(passes(one, event.attributes) for one in self.filters)


@dataclass(frozen=True)
class Retries:
    """How a delivery is repeated: `count` times, with pauses that double from `pause` seconds on."""

    count: int = 9
    pause: float = 0.2
    timeout: float = 60.0

    def pauses(self) -> Iterable[float]:
        """The pauses before the repetitions."""
        return (self.pause * 2**number for number in range(self.count))


@dataclass(frozen=True)
class Event:
    """A CloudEvent as it came, and what of it the relay has to know."""

    headers: Mapping[str, str]
    body: bytes
    id: str
    type: str
    source: str
    subject: str
    sender: str = ""
    hops: int = 0
    attributes: Mapping[str, str] = field(default_factory=dict)
    """All of them, extensions too."""

    @classmethod
    def read(cls, headers: Mapping[str, str], body: bytes, sender: str = "", hops: int = 0) -> "Event | None":
        """The event in a request or an answer, binary or structured, or None if there is none."""
        lowered = {key.lower(): value for key, value in headers.items()}
        content_type = lowered.get("content-type", "")
        kept = {key: value for key, value in lowered.items() if key.startswith("ce-") or key == "traceparent"}
        if content_type:
            kept["content-type"] = content_type
        if content_type.startswith(_STRUCTURED):
            attributes = _attributes(body)
        else:
            attributes = {key.removeprefix("ce-"): value for key, value in kept.items() if key.startswith("ce-")}
        if "type" not in attributes or "id" not in attributes:
            return None
        values = {key: str(attributes.get(key, "")) for key in ("id", "type", "source", "subject")}
        told = {key: str(value) for key, value in attributes.items() if key != "data"}
        return cls(kept, body, sender=sender, hops=hops, attributes=told, **values)


def _attributes(body: bytes) -> dict[str, Any]:
    try:
        content = json.loads(body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


class Journal:
    """Every step of every event, a line of JSON each."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, step: str, event: Event, **more: object) -> None:
        """Add a line; it is in the file at once."""
        line = {
            "at": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "step": step,
            "id": event.id,
            "type": event.type,
            "source": event.source,
            "subject": event.subject,
            **more,
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()


@dataclass
class Relay:
    """Takes events at POST / and brings each to all who want it."""

    subscribers: tuple[Subscriber, ...]
    journal: Journal
    retries: Retries = field(default_factory=Retries)
    waiting: int = _WAITING
    at_once: int = _AT_ONCE
    token_file: Path | None = None
    """Who calls must show who it is; read anew for each event, because a token is changed while it is held."""

    def __post_init__(self) -> None:
        # One queue a subscriber: a function that is down must not hold up the others.
        self._queues = {one.name: asyncio.Queue[Event](self.waiting) for one in self.subscribers}

    def application(self) -> web.Application:
        """The web application: POST / and GET /healthz."""
        application = web.Application(client_max_size=_LIMIT)
        application.add_routes([web.post("/", self._receive), web.get("/healthz", self._health)])
        application.cleanup_ctx.append(self._work)
        return application

    async def _health(self, _: web.Request) -> web.Response:
        return web.json_response({name: queue.qsize() for name, queue in self._queues.items()})

    async def _receive(self, request: web.Request) -> web.Response:
        event = Event.read(request.headers, await request.read())
        if event is None:
            return web.Response(status=400, text="this is not a CloudEvent: ce-type and ce-id are needed")
        self.journal.write("received", event)
        await self._hand_on(event)
        return web.Response(status=202)

    async def _hand_on(self, event: Event) -> None:
        for subscriber in self.subscribers:
            if subscriber.wants(event):
                # A full queue makes the sender wait: ApiServerSource sends the next event when this one is taken.
                await self._queues[subscriber.name].put(event)

    async def _work(self, _: web.Application) -> Any:
        limit = aiohttp.ClientTimeout(total=self.retries.timeout)
        async with aiohttp.ClientSession(timeout=limit, connector=aiohttp.TCPConnector(limit=0)) as session:
            tasks = [
                asyncio.create_task(self._serve(subscriber, session))
                for subscriber in self.subscribers
                for _ in range(self.at_once)
            ]
            yield
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _serve(self, subscriber: Subscriber, session: aiohttp.ClientSession) -> None:
        queue = self._queues[subscriber.name]
        while True:
            event = await queue.get()
            reply = await self._deliver(event, subscriber, session)
            if reply is not None:
                self.journal.write("replied", reply, subscriber=subscriber.name, to=event.id)
                # Not awaited here: two functions with full queues that answer each other would stand still.
                self._pass_reply(reply)

    def _pass_reply(self, reply: Event) -> None:
        for subscriber in self.subscribers:
            if subscriber.wants(reply):
                try:
                    self._queues[subscriber.name].put_nowait(reply)
                except asyncio.QueueFull:
                    self.journal.write("dropped", reply, subscriber=subscriber.name, why="the queue is full")

    async def _deliver(self, event: Event, subscriber: Subscriber, session: aiohttp.ClientSession) -> Event | None:
        pauses = iter(self.retries.pauses())
        attempt = 1
        while True:
            begin = time.monotonic()
            status, reply = await self._send(event, subscriber, session)
            seconds = round(time.monotonic() - begin, 4)
            again = status == 0 or status in _RETRIED or status >= 500
            step = "failed" if again else "delivered"
            self.journal.write(step, event, subscriber=subscriber.name, status=status, attempt=attempt, seconds=seconds)
            pause = next(pauses, None) if again else None
            if pause is None:
                if again:
                    self.journal.write("dropped", event, subscriber=subscriber.name, why="no tries left")
                return reply
            await asyncio.sleep(pause)
            attempt += 1

    async def _send(
        self, event: Event, subscriber: Subscriber, session: aiohttp.ClientSession
    ) -> tuple[int, Event | None]:
        """The answer's status, 0 for none, and the event that it carried."""
        try:
            shown = bearer.shown(self.token_file) if self.token_file else {}
            async with session.post(subscriber.url, data=event.body, headers={**event.headers, **shown}) as answer:
                body = await answer.content.read(_LIMIT)
                if answer.status >= 300 or event.hops >= _HOPS:
                    return answer.status, None
                return answer.status, Event.read(answer.headers, body, subscriber.name, event.hops + 1)
        except (aiohttp.ClientError, TimeoutError, OSError):
            return 0, None


def read_subscribers(file: Path) -> tuple[Subscriber, ...]:
    """The subscribers in a JSON file: a list of {name, url, types, filters}."""
    entries = json.loads(file.read_text())
    return tuple(
        Subscriber(one["name"], one["url"], tuple(one.get("types", ())), tuple(one.get("filters", ())))
        for one in entries
    )


def main() -> None:
    """Run the relay until it is ended."""
    parser = argparse.ArgumentParser(prog="python -m lab.relay", description=__doc__)
    parser.add_argument("--subscribers", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--token-file", type=Path)
    arguments = parser.parse_args()

    subscribers = read_subscribers(arguments.subscribers)
    names = ", ".join(subscriber.name for subscriber in subscribers) or "nobody"
    print(f"The lab's relay, which is not a Broker, hands events on to {names}.", flush=True)
    with arguments.journal.open("a") as file:
        asyncio.run(_run(Relay(subscribers, Journal(file), token_file=arguments.token_file), arguments.port))


async def _run(relay: Relay, port: int) -> None:
    runner = web.AppRunner(relay.application(), access_log=None, handle_signals=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, reuse_address=True).start()
    try:
        await asyncio.Event().wait()
    finally:
        await runner.cleanup()


if __name__ == "__main__":
    main()
