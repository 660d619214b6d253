"""The relay filters, retries as a Trigger does, and hands replies on."""

import asyncio
import io
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field

import aiohttp
import pytest
from aiohttp import web

from lab.api import eventually
from lab.filters import Expression, passes
from lab.relay import Journal, Relay, Retries, Subscriber

QUICK = Retries(count=3, pause=0.01, timeout=5)
POD_CHANGED = {"ce-specversion": "1.0", "ce-id": "1", "ce-type": "pod.changed", "ce-source": "/lab", "ce-subject": "a"}


@dataclass
class Function:
    """A function that answers with these statuses in turn, and 204 from then on."""

    name: str
    types: tuple[str, ...] = ()
    filters: tuple[Expression, ...] = ()
    statuses: list[int] = field(default_factory=list)
    reply: dict[str, str] | None = None
    got: list[str] = field(default_factory=list)
    calls: int = 0
    url: str = ""

    async def answer(self, request: web.Request) -> web.Response:
        self.calls += 1
        status = self.statuses.pop(0) if self.statuses else 204
        if status >= 300:
            return web.Response(status=status)
        self.got.append(request.headers.get("ce-type") or (await request.json())["type"])
        return web.Response(status=200, headers=self.reply) if self.reply else web.Response(status=204)


@dataclass
class Running:
    """A relay that runs, and its journal."""

    url: str
    journal: io.StringIO

    async def send(self, headers: dict[str, str] | None = None, body: bytes = b"{}") -> int:
        wanted = headers or POD_CHANGED
        async with aiohttp.ClientSession() as session, session.post(self.url, data=body, headers=wanted) as answer:
            return answer.status

    def steps(self) -> list[str]:
        return [json.loads(line)["step"] for line in self.journal.getvalue().splitlines()]


@asynccontextmanager
async def served(application: web.Application) -> AsyncIterator[str]:
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        # A test that fails must not leave sockets to the next one.
        await runner.cleanup()


@asynccontextmanager
async def relaying(*functions: Function, retries: Retries = QUICK) -> AsyncIterator[Running]:
    async with AsyncExitStack() as stack:
        for function in functions:
            if not function.url:
                application = web.Application()
                application.add_routes([web.post("/", function.answer)])
                function.url = await stack.enter_async_context(served(application))
        subscribers = tuple(Subscriber(one.name, one.url, one.types, one.filters) for one in functions)
        journal = io.StringIO()
        relay = Relay(subscribers, Journal(journal), retries)
        yield Running(await stack.enter_async_context(served(relay.application())), journal)


async def until(condition: Callable[[], bool]) -> None:
    async def true() -> bool:
        return condition()

    await eventually(true, "what is waited for", patience=30, pause=0.01)


async def test_an_event_goes_to_those_who_want_its_type() -> None:
    pods, pings, everything = Function("pods", ("pod.",)), Function("pings", ("ping",)), Function("everything")
    async with relaying(pods, pings, everything) as relay:
        assert await relay.send() == 202
        await until(lambda: bool(pods.got and everything.got))
    assert (pods.got, pings.got, everything.got) == (["pod.changed"], [], ["pod.changed"])


async def test_an_event_goes_to_those_whose_filters_it_passes() -> None:
    pods = Function("pods", filters=({"any": [{"exact": {"kind": "Pod"}}, {"prefix": {"type": "app"}}]},))
    nodes = Function("nodes", filters=({"not": {"exact": {"kind": "Pod"}}}, {"suffix": {"type": "val"}}))
    async with relaying(pods, nodes) as relay:
        await relay.send(POD_CHANGED | {"ce-kind": "Pod"})
        await relay.send(POD_CHANGED | {"ce-type": "approval"})
        await until(lambda: len(pods.got) == 2 and len(nodes.got) == 1)
    assert (sorted(pods.got), nodes.got) == (["approval", "pod.changed"], ["approval"])


def test_a_filter_of_a_dialect_that_is_not_known_is_refused() -> None:
    with pytest.raises(ValueError, match="no filter is called 'cesql' here"):
        passes({"cesql": "type = 'a'"}, {})


def test_what_an_event_lacks_passes_no_filter_that_asks_for_it() -> None:
    assert not any(passes({dialect: {"kind": ""}}, {}) for dialect in ("exact", "prefix", "suffix"))


async def test_a_structured_event_is_understood_and_passed_on_as_it_came() -> None:
    pods = Function("pods", ("pod.",))
    body = json.dumps({"specversion": "1.0", "id": "1", "type": "pod.changed", "source": "/lab"}).encode()
    async with relaying(pods) as relay:
        assert await relay.send({"content-type": "application/cloudevents+json"}, body) == 202
        await until(lambda: pods.got == ["pod.changed"])


async def test_what_is_no_event_is_refused() -> None:
    async with relaying() as relay:
        assert await relay.send({"content-type": "application/json"}) == 400


@pytest.mark.parametrize("status", [404, 408, 409, 429, 500, 503])
async def test_these_answers_are_retried(status: int) -> None:
    busy = Function("busy", statuses=[status, status])
    async with relaying(busy) as relay:
        await relay.send()
        # The relay writes a step down a moment after the function has answered.
        await until(lambda: len(relay.steps()) == 4)
        assert (busy.got, relay.steps()) == (["pod.changed"], ["received", "failed", "failed", "delivered"])


@pytest.mark.parametrize("status", [400, 401, 413, 422])
async def test_these_answers_are_final(status: int) -> None:
    strict = Function("strict", statuses=[status])
    async with relaying(strict) as relay:
        await relay.send()
        await until(lambda: len(relay.steps()) == 2)
        await asyncio.sleep(0.1)
        assert (strict.calls, relay.steps()) == (1, ["received", "delivered"])


async def test_an_event_is_dropped_aloud_when_no_tries_are_left() -> None:
    dead = Function("dead", url="http://127.0.0.1:9/")
    async with relaying(dead) as relay:
        await relay.send()
        await until(lambda: "dropped" in relay.steps())
        assert relay.steps() == ["received", *["failed"] * 4, "dropped"]


async def test_by_default_a_function_may_be_down_for_a_minute_and_a_half() -> None:
    assert sum(Retries().pauses()) > 90


async def test_a_reply_reaches_the_others_and_never_its_sender() -> None:
    reply = {"ce-specversion": "1.0", "ce-id": "2", "ce-type": "pod.healed", "ce-source": "/first"}
    first, second = Function("first", reply=reply), Function("second", ("pod.healed",))
    async with relaying(first, second) as relay:
        await relay.send()
        await until(lambda: second.got == ["pod.healed"])
        await asyncio.sleep(0.1)
        assert first.got == ["pod.changed"]


async def test_two_functions_that_answer_each_other_end() -> None:
    reply = {"ce-specversion": "1.0", "ce-id": "2", "ce-type": "pod.changed", "ce-source": "/x"}
    first, second = Function("first", reply=reply), Function("second", reply=reply)
    async with relaying(first, second) as relay:
        await relay.send()
        await asyncio.sleep(1)
        assert first.calls + second.calls < 50


async def test_a_slow_function_does_not_hold_up_the_others() -> None:
    dead, quick = Function("dead", url="http://127.0.0.1:9/"), Function("quick")
    async with relaying(dead, quick, retries=Retries(count=3, pause=30)) as relay:
        for _ in range(100):
            await relay.send()
        await until(lambda: len(quick.got) == 100)
