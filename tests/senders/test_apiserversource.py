"""What Knative's own ApiServerSource adapter sends of pods, and what it does with each answer."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

from lab import callers, events
from lab.api import eventually
from lab.workloads import pod
from tests import kit
from tests.senders import recordings
from tests.senders.recorder import Recorder, Taken, recorder
from tests.senders.surroundings import Function

Json = dict[str, Any]
RESOURCE, REFERENCE = "dev.knative.apiserver.resource", "dev.knative.apiserver.ref"
TAKEN = (200, 202, 204)
FINAL = (400, 401, 408, 409, 500)
RETRIED = (404, 413, 429, 503)
TRIES = 6
"""One, and five retries after 50 ms, 100 ms and so on: pkg/adapter/apiserver/events/events.go."""


@asynccontextmanager
async def adapter(here: kit.Place, sink: str, **options: Any) -> AsyncIterator[None]:
    """Run the adapter on the pods of one namespace."""
    await events.start_adapter(here.plane, sink, name="adapter-of-test", namespaces=[here.name], **options)
    try:
        yield
    finally:
        await here.plane.stop_child("adapter-of-test")


async def make(here: kit.Place, name: str) -> None:
    """Make a pod that no node will take, so that few events follow."""
    body = pod(name)
    body["spec"]["nodeSelector"] = {"kubernetes.io/hostname": "nowhere"}
    await here.plane.api.post(f"/api/v1/namespaces/{here.name}/pods", body)


def told(far: Recorder, name: str, kind: str = "add") -> list[Taken]:
    """Tell what came of one kind about one pod, each try."""
    return [
        one
        for one in far.taken
        if one.header("ce-subject").endswith(f"/pods/{name}") and one.header("ce-type").endswith(f".{kind}")
    ]


async def arrived(far: Recorder, name: str, kind: str = "add") -> Taken:
    """Wait for an event; all that are older have arrived by then, or are given up."""

    async def some() -> list[Taken]:
        return told(far, name, kind)

    found: list[Taken] = await eventually(some, f"the {kind} of {name}", 60)
    return found[0]


def code(taken: Taken) -> int:
    """The answer that the pod's name asks for, to the event of its making."""
    name = taken.header("ce-subject").rpartition("/")[2]
    asked = name.removeprefix("answer-")
    return int(asked) if asked.isdigit() and taken.header("ce-type").endswith(".add") else 200


async def test_in_resource_mode_the_object_comes_whole_and_not_what_was_there_before(here: kit.Place) -> None:
    await make(here, "before")
    async with recorder() as far, adapter(here, far.url):
        await make(here, "cart")
        added, updated = await arrived(far, "cart"), await arrived(far, "cart", "update")
        await here.plane.api.delete(f"/api/v1/namespaces/{here.name}/pods/cart", {"gracePeriodSeconds": 0})
        deleted = await arrived(far, "cart", "delete")

    assert told(far, "before") == []
    assert added.header("ce-type") == f"{RESOURCE}.add"
    assert added.header("ce-subject") == f"/apis/v1/namespaces/{here.name}/pods/cart"
    assert (added.json["kind"], added.json["metadata"]["name"]) == ("Pod", "cart")
    assert "status" in updated.json
    assert len({one.header("ce-id") for one in far.taken}) == len(far.taken)
    for name, taken in (("added", added), ("updated", updated), ("deleted", deleted)):
        recordings.compare(taken, f"apiserversource/resource-{name}")


async def test_a_node_comes_whole_also_when_it_was_deleted(here: kit.Place) -> None:
    name = f"worker-{here.name}"
    path, ready = f"/api/v1/nodes/{name}", {"type": "Ready", "status": "False", "reason": "KubeletNotReady"}
    async with recorder() as far, adapter(here, far.url, kinds=["nodes"]):
        await here.plane.api.post("/api/v1/nodes", {"metadata": {"name": name}})
        await here.plane.api.patch(f"{path}/status", {"status": {"conditions": [ready]}})
        updated = await arrived_node(far, name, "update", "KubeletNotReady")
        await here.plane.api.delete(path, {})
        deleted = await arrived_node(far, name, "delete")

    assert (updated.header("ce-kind"), updated.header("ce-name")) == ("Node", name)
    assert (updated.header("ce-namespace"), updated.header("ce-subject")) == ("", f"/apis/v1/namespaces//nodes/{name}")
    assert (deleted.json["kind"], deleted.json["metadata"]["name"]) == ("Node", name)
    for kind, taken in (("updated", updated), ("deleted", deleted)):
        recordings.compare(taken, f"apiserversource/node-{kind}")


async def arrived_node(far: Recorder, name: str, kind: str, word: str = "") -> Taken:
    """Wait for an event of one kind about a node, with a word in it."""

    async def some() -> list[Taken]:
        about = (one for one in far.taken if one.header("ce-subject").endswith(f"/nodes/{name}"))
        return [one for one in about if one.header("ce-type").endswith(f".{kind}") and word in one.body.decode()]

    found: list[Taken] = await eventually(some, f"the {kind} of {name}", 60)
    return found[-1]


async def test_in_reference_mode_only_the_name_comes(here: kit.Place) -> None:
    async with recorder() as far, adapter(here, far.url, mode="Reference"):
        await make(here, "cart")
        added = await arrived(far, "cart")
    assert added.header("ce-type") == f"{REFERENCE}.add"
    assert added.json == {"apiVersion": "v1", "kind": "Pod", "name": "cart", "namespace": here.name}
    recordings.compare(added, "apiserversource/reference-added")


async def test_it_tries_some_answers_again_five_times_in_two_seconds_and_then_gives_up(here: kit.Place) -> None:
    async def answer(taken: Taken) -> web.Response:
        return web.Response(status=code(taken))

    async with recorder() as far:
        far.script("/", answer)
        async with adapter(here, far.url):
            for status in (*TAKEN, *FINAL, *RETRIED):
                await make(here, f"answer-{status}")
            await make(here, "last")
            await arrived(far, "last")

    tries = {status: len(told(far, f"answer-{status}")) for status in (*TAKEN, *FINAL, *RETRIED)}
    assert tries == dict.fromkeys(TAKEN + FINAL, 1) | dict.fromkeys(RETRIED, TRIES)


async def test_what_it_has_given_up_does_not_come_again(here: kit.Place) -> None:
    log = here.plane.home.log("adapter-of-test")
    async with recorder(listening=False) as far, adapter(here, far.url):
        await make(here, "lost")

        async def given_up() -> bool:
            lines = log.read_text().splitlines()
            return any("failed to send" in line and f"{here.name}/pods/lost" in line for line in lines)

        await eventually(given_up, "an event that is given up")
        await far.listen()
        await make(here, "later")
        await arrived(far, "later")
    assert told(far, "lost") == []


async def test_a_looping_pod_is_evicted_once_although_the_first_events_met_a_dead_api_server(
    here: kit.Place, function: Function
) -> None:
    (victim,) = await here.deployment()
    async with adapter(here, function.url, audience=callers.AUDIENCE):
        function.shut_door()
        try:
            await here.loop(victim, speed="20")

            async def refused() -> bool:
                return function.said("request.unavailable")

            await eventually(refused, "an answer 503")
            assert here.evictions() == []
        finally:
            function.door.open()

        async def evicted() -> list[str]:
            return here.evictions()

        await eventually(evicted, "the eviction", 90)
    assert here.evictions() == [victim["metadata"]["uid"]]
