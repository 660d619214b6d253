"""ApiServerSource, Knative's Broker with the shipped Trigger, and the real function: event, eviction, reply."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from lab import callers, events, knative
from lab.api import eventually
from lab.knative import Broker, Subscriber
from tests import kit
from tests.senders import recordings
from tests.senders.recorder import Recorder, Taken, recorder
from tests.senders.surroundings import Function

Json = dict[str, Any]
(SHIPPED,) = kit.manifests("triggers/knative-eventing/restart-loop-killer.yaml")
UPDATE = "dev.knative.apiserver.resource.update"


def beside(name: str, filters: list[Json]) -> Json:
    """A Trigger beside the shipped one."""
    spec = {"subscriber": {"uri": "http://test.example"}, "filters": filters}
    return {**SHIPPED, "metadata": {"name": name}, "spec": spec}


@asynccontextmanager
async def broker(here: kit.Place, function: Function) -> AsyncIterator[tuple[Broker, Recorder]]:
    """A Broker with the shipped Trigger, a copy of it that only takes note, and one for replies."""
    await knative.install(here.plane)
    async with recorder() as far:
        dead = far.script("/dead", 202)
        subscribers = [
            Subscriber(SHIPPED, function.url, dead, account="trigger-oidc"),
            Subscriber(beside("copy", SHIPPED["spec"]["filters"]), far.script("/copy", 202)),
            Subscriber(beside("replies", [{"prefix": {"type": "dev.kreflex."}}]), far.script("/replies", 202)),
        ]
        async with knative.broker(here.plane, callers.NAMESPACE, subscribers) as made:
            yield made, far


@asynccontextmanager
async def source(here: kit.Place, sink: str) -> AsyncIterator[None]:
    """Run the ApiServerSource adapter on the pods of one namespace."""
    await events.start_adapter(here.plane, sink, name="adapter-of-test", namespaces=[here.name])
    try:
        yield
    finally:
        await here.plane.stop_child("adapter-of-test")


async def first(far: Recorder, path: str, word: str) -> Taken:
    """Wait for what is sent there and has this word in its subject."""

    async def some() -> list[Taken]:
        return [one for one in far.at(path) if word in one.header("ce-subject")]

    found: list[Taken] = await eventually(some, f"{word} at {path}", 90)
    return found[0]


async def test_an_event_becomes_one_eviction_and_its_reply_an_event(here: kit.Place, function: Function) -> None:
    (victim,) = await here.deployment()
    async with broker(here, function) as (made, far), source(here, made.url):
        await here.fault(victim, speed="20")
        reply = await first(far, "/replies", here.name)
        update = await first(far, "/copy", victim["metadata"]["name"])

        assert here.evictions() == [victim["metadata"]["uid"]]
        assert reply.header("ce-type").startswith("dev.kreflex.remediation.")
        assert reply.json["items"][0]["function"] == "restart-loop-killer"
        assert {one.header("ce-type") for one in far.at("/copy")} == {UPDATE}
        assert far.count("/dead") == 0
        recordings.compare(update, "knative/trigger-update")
        recordings.compare(reply, "knative/trigger-reply")


async def test_what_meets_a_dead_api_server_comes_again(here: kit.Place, function: Function) -> None:
    victim = await here.loop((await here.deployment())[0], speed="20")
    async with broker(here, function) as (made, _):
        function.shut_door()
        try:
            await send(made, {"apiVersion": "v1", "kind": "Pod", **victim})

            async def refused() -> bool:
                return function.said("request.unavailable")

            await eventually(refused, "an answer 503", 60)
            assert here.evictions() == []
        finally:
            function.door.open()

        async def evicted() -> list[str]:
            # Told again, should the pod run at the moment when it is looked at.
            if not here.evictions():
                await send(made, {"apiVersion": "v1", "kind": "Pod", **victim})
            return here.evictions()

        await eventually(evicted, "the eviction", 90, 3)
    assert here.evictions() == [victim["metadata"]["uid"]]


async def test_what_can_t_be_understood_is_tried_once_and_goes_to_the_dead_letters(
    here: kit.Place, function: Function
) -> None:
    async with broker(here, function) as (made, far):
        await send(made, ["no pod"])

        async def dead() -> bool:
            return far.count("/dead") == 1

        await eventually(dead, "a dead letter", 60)
        assert far.at("/dead")[0].header("ce-knativeerrorcode") == "400"
    assert here.evictions() == []


async def send(made: Broker, data: Any) -> None:
    """Give the Broker an update of a pod."""
    headers = {
        "ce-specversion": "1.0",
        "ce-id": "of-a-test",
        "ce-type": UPDATE,
        "ce-source": "https://127.0.0.1",
        "ce-subject": "/apis/v1/namespaces/test/pods/test",
        "ce-kind": "Pod",
        "content-type": "application/json",
    }
    async with aiohttp.ClientSession() as session, session.post(made.url, json=data, headers=headers) as answer:
        assert answer.status == 202, await answer.text()
