"""Argo Events with the shipped EventSources and Sensor, and the real function, which acts on the real API server."""

import copy
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import aiohttp
from aiohttp import web

from lab import argo, callers, manifests
from lab.api import eventually
from lab.ports import Ports
from tests import kit
from tests.senders import recordings
from tests.senders.recorder import Recorder, Taken, recorder
from tests.senders.surroundings import Function, alert

Json = dict[str, Any]
(SENSOR,) = kit.manifests("triggers/argo-events/restart-loop-killer.yaml")
SOURCES = kit.manifests("triggers/argo-events/eventsources.yaml")
RIGHTS = kit.manifests("triggers/argo-events/rbac.yaml")


def sensor(url: str, authorization: str) -> Json:
    """The shipped Sensor, but for the URL, and with the token in a plain header: secrets are mounted in pods only."""
    made = copy.deepcopy(SENSOR)
    for trigger in made["spec"]["triggers"]:
        http = trigger["template"]["http"]
        del http["secureHeaders"]
        http["url"] = url
        http["headers"]["Authorization"] = authorization
    return made


def source(name: str, port: int = 0) -> Json:
    """A shipped EventSource, its webhook on this port and without the secret that is mounted in pods only."""
    made = copy.deepcopy(next(one for one in SOURCES if one["metadata"]["name"] == name))
    for hook in made["spec"].get("webhook", {}).values():
        hook["port"] = str(port)
        del hook["authSecret"]
    # Its calendar would wake the waker each minute.
    made["spec"].pop("calendar", None)
    return made


@dataclass
class Way:
    """From the event sources to the function, past a recorder that hands on."""

    far: Recorder
    hook: str
    answers: list[int] = field(default_factory=list)

    async def told(self, kind: str) -> Taken:
        """Wait for what the sensor sent of this kind."""

        async def some() -> list[Taken]:
            return [one for one in self.far.taken if one.header("ce-type") == kind]

        found: list[Taken] = await eventually(some, kind, 90)
        return found[0]

    async def post(self, body: Json) -> None:
        """Send the webhook of the event source what Alertmanager would."""
        async with aiohttp.ClientSession() as session, session.post(self.hook, json=body) as answer:
            assert answer.status == 200, await answer.text()


@asynccontextmanager
async def way(here: kit.Place, function: Function, *sources: str) -> AsyncIterator[Way]:
    """Run these EventSources, the Sensor and the bus between them."""
    await callers.issue(here.plane, "argo")
    async with AsyncExitStack() as stack:
        far = await stack.enter_async_context(recorder())
        # A connection that is kept may be closed by the function at the moment when it is used again.
        connector = aiohttp.TCPConnector(force_close=True)
        session = await stack.enter_async_context(aiohttp.ClientSession(connector=connector))
        port = stack.enter_context(Ports()).take()
        made = Way(far, f"http://127.0.0.1:{port}/alerts")

        async def hand_on(taken: Taken) -> web.Response:
            headers = {name: value for name, value in taken.headers.items() if name != "Host"}
            async with session.post(function.url, data=taken.body, headers=headers) as answer:
                made.answers.append(answer.status)
                return web.Response(status=answer.status, body=await answer.read())

        url = far.script("/", hand_on)
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": argo.NAMESPACE}}
        await manifests.apply(here.plane.api, [namespace, *RIGHTS], argo.NAMESPACE)
        bus = await stack.enter_async_context(argo.bus(here.plane))
        await stack.enter_async_context(bus.sensor(sensor(url, callers.headers(here.plane, "argo")["Authorization"])))
        for name in sources:
            await stack.enter_async_context(bus.source(source(name, port), "kreflex-eventsource"))
        yield made


async def test_changes_of_a_looping_pod_become_one_eviction(here: kit.Place, function: Function) -> None:
    (victim,) = await here.deployment()
    async with way(here, function, "kreflex") as made:
        await here.fault(victim, speed="20")
        await eventually(lambda: evicted(here), "the eviction", 90)
        taken = await made.told("io.argoproj.events.resource")
    assert here.evictions() == [victim["metadata"]["uid"]]
    # 503 is told to a second event while the first is acted on.
    assert set(made.answers) <= {200, 204, 503}, made.answers
    assert (taken.json["type"], taken.json["body"]["kind"]) == ("UPDATE", "Pod")
    recordings.compare(without_token(taken), "argo-events/resource")


async def test_an_alert_that_meets_a_dead_api_server_comes_again(here: kit.Place, function: Function) -> None:
    victim = await here.loop((await here.deployment())[0], speed="20")
    webhook = {
        "version": "4",
        "groupKey": "{}:{}",
        "status": "firing",
        "alerts": [{"status": "firing", "labels": alert(victim), "annotations": {}}],
    }
    async with way(here, function, "kreflex-alerts") as made:
        function.shut_door()
        try:
            await made.post(webhook)

            async def refused() -> bool:
                return made.answers[:1] == [503]

            await eventually(refused, "an answer 503", 60)
            assert here.evictions() == []
        finally:
            function.door.open()

        async def again() -> bool:
            return len(made.answers) > 1 and made.answers[-1] < 300

        await eventually(again, "the same alert once more", 90)

        async def done() -> bool:
            # Told again, should the pod run at the moment when it is looked at.
            if not here.evictions():
                await made.post(webhook)
            return bool(here.evictions())

        await eventually(done, "the eviction", 60, 3)
        taken = await made.told("io.argoproj.events.webhook")
    assert here.evictions() == [victim["metadata"]["uid"]]
    recordings.compare(without_token(taken), "argo-events/webhook")


async def test_what_can_t_be_understood_goes_round_its_retries_and_is_logged(
    here: kit.Place, function: Function
) -> None:
    async with way(here, function, "kreflex-alerts") as made:
        await made.post({"version": "5", "groupKey": "{}:{}", "alerts": []})

        async def refused() -> bool:
            return made.answers.count(400) > 1

        # Argo does not tell 400 from 503: what its policy doesn't allow is tried again.
        await eventually(refused, "400 twice", 60)
    assert here.evictions() == []


async def evicted(here: kit.Place) -> bool:
    return bool(here.evictions())


def without_token(taken: Taken) -> Taken:
    """What may be kept."""
    return Taken(taken.path, {**taken.headers, "Authorization": "Bearer a-token"}, taken.body)
