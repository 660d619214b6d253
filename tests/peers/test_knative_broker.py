"""What Knative's own Broker (ingress, channel, filter) does with each answer of a subscriber."""

from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from lab import callers, knative
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.knative import Subscriber
from tests.senders.recorder import HANG, Recorder, Taken, recorder

Json = dict[str, Any]
TAKEN = (200, 202, 204)
FINAL = (400, 401, 403, 413)
RETRIED = (404, 408, 409, 429, 500, 502, 503)
RETRIES = 3
KIND = "test.answer."


def trigger(name: str, filters: list[Json], **delivery: Any) -> Json:
    """A Trigger with short pauses between its tries."""
    pauses = {"retry": RETRIES, "backoffPolicy": "linear", "backoffDelay": "PT0.1S"}
    return {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": name},
        "spec": {"subscriber": {"uri": "http://test.example"}, "filters": filters, "delivery": {**pauses, **delivery}},
    }


@dataclass
class Running:
    """A Broker, and the far ends of its Triggers."""

    broker: knative.Broker
    far: Recorder

    async def send(self, kind: str, number: str, data: Any = None) -> None:
        """Give the Broker an event, which must take it."""
        headers = {
            "ce-specversion": "1.0",
            "ce-id": number,
            "ce-type": kind,
            "ce-source": "/tests/peers",
            "content-type": "application/json",
        }
        async with (
            aiohttp.ClientSession() as session,
            session.post(self.broker.url, json=data or {}, headers=headers) as answer,
        ):
            assert answer.status == 202, await answer.text()

    def tries(self, path: str) -> Counter[str]:
        """Count what arrived there, by event id."""
        return Counter(one.header("ce-id") for one in self.far.at(path))

    async def arrived(self, path: str, *numbers: str) -> None:
        async def all_of_them() -> bool:
            return set(numbers) <= set(self.tries(path))

        await eventually(all_of_them, f"{numbers} at {path}", 60)


async def answer(taken: Taken) -> web.Response:
    """Answer what the event's type asks for."""
    asked = taken.header("ce-type").removeprefix(KIND)
    if asked == "text":
        return web.Response(text="thank you")
    if asked == "reply":
        reply = {"ce-specversion": "1.0", "ce-id": "reply", "ce-type": "test.reply", "ce-source": "/tests/subscriber"}
        return web.json_response({"about": taken.header("ce-id")}, headers=reply)
    return web.Response(status=int(asked))


@pytest.fixture(scope="module")
async def running(installed: ControlPlane) -> AsyncIterator[Running]:
    """A Broker whose subscriber answers as it is asked; what it does not take goes to /dead."""
    await knative.install(installed)
    async with recorder() as far:
        dead = far.script("/dead", 202)
        subscribers = [
            Subscriber(trigger("answers", [{"prefix": {"type": KIND}}]), far.script("/answers", answer), dead),
            Subscriber(trigger("replies", [{"exact": {"type": "test.reply"}}]), far.script("/replies", 202), dead),
            Subscriber(
                trigger("slow", [{"exact": {"type": "test.slow"}}], timeout="PT1S"),
                far.script("/slow", HANG, 202),
                dead,
            ),
        ]
        async with knative.broker(installed, callers.NAMESPACE, subscribers) as made:
            running = Running(made, far)
            # A filter that has not heard of its Trigger yet answers 404.
            await running.send(f"{KIND}202", "warm-up")
            await running.arrived("/answers", "warm-up")
            yield running


async def test_it_is_done_after_2xx_and_after_most_4xx_and_tries_the_rest_again(running: Running) -> None:
    for status in (*TAKEN, *FINAL, *RETRIED):
        await running.send(f"{KIND}{status}", str(status))
    await running.arrived("/dead", *map(str, (*FINAL, *RETRIED)))
    await running.arrived("/answers", *map(str, TAKEN))

    tries = running.tries("/answers")
    assert {status: tries[str(status)] for status in (*TAKEN, *FINAL, *RETRIED)} == (
        dict.fromkeys((*TAKEN, *FINAL), 1) | dict.fromkeys(RETRIED, RETRIES + 1)
    )
    letters = {one.header("ce-id"): one.header("ce-knativeerrorcode") for one in running.far.at("/dead")}
    assert {number: letters.get(str(number)) for number in TAKEN} == dict.fromkeys(TAKEN)
    assert {status: letters[str(status)] for status in (*FINAL, *RETRIED)} == {
        status: str(status) for status in (*FINAL, *RETRIED)
    }


async def test_an_answer_that_does_not_come_in_time_is_asked_for_again(running: Running) -> None:
    await running.send("test.slow", "slow")

    async def again() -> bool:
        return running.tries("/slow")["slow"] == 2

    await eventually(again, "the second try", 60)


async def test_an_answer_with_a_body_that_is_no_event_counts_as_a_failure(running: Running) -> None:
    await running.send(f"{KIND}text", "text")
    await running.arrived("/dead", "text")
    assert running.tries("/answers")["text"] == RETRIES + 1
    (letter,) = [one for one in running.far.at("/dead") if one.header("ce-id") == "text"]
    assert letter.header("ce-knativeerrorcode") == "502"


async def test_a_reply_goes_to_the_broker_and_to_who_asks_for_its_type(running: Running) -> None:
    await running.send(f"{KIND}reply", "question")
    await running.arrived("/replies", "reply")
    (reply,) = running.far.at("/replies")
    assert (reply.header("ce-type"), reply.json) == ("test.reply", {"about": "question"})
    assert running.tries("/answers")["reply"] == 0
