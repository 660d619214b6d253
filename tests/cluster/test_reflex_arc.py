"""The arc on a real API server: what is done, once, and what is refused. The audit log is the judge."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from functions.restart_loop_killer import main as killer
from kreflex import EvictPod, Settings, World
from kreflex.cluster import Writer
from kreflex.decisions import Skip
from kreflex.errors import ApiError, ConflictError, GoneError, UnavailableError
from kreflex.reflex import Arc, handle_all
from kreflex.serve import REFLEXES
from kreflex.signals import Due, PodSignal, Resolved
from kreflex.views import JSON
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster.reflexes import Ahead, asked, goes_on, handled, the_record, told, woken

KILLER = REFLEXES["restart-loop-killer"]
assert killer.main is not None


@pytest.fixture
async def arc(installed: ControlPlane) -> AsyncIterator[Arc[Any]]:
    async with kit.arc_of(installed, KILLER) as made:
        yield made


def signal(pod: kit.Json) -> PodSignal:
    meta = pod["metadata"]
    return PodSignal(meta["namespace"], meta["name"], meta["uid"])


async def version(here: kit.Place, pod: kit.Json) -> str:
    now = await here.plane.api.get(f"/api/v1/namespaces/{here.name}/pods/{pod['metadata']['name']}")
    text: str = now["metadata"]["resourceVersion"]
    return text


async def test_a_looping_pod_is_evicted_once_and_the_owner_proven_healthy(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)

    first = await arc.handle(signal(pod))
    second = await arc.handle(signal(pod))

    assert (first.outcome, second.outcome) == ("applied", "skipped")
    assert here.evictions() == [pod["metadata"]["uid"]]
    await here.ready_pods("shop", 1)
    (record,) = await here.records()

    async def done() -> kit.Json | None:
        await arc.handle(Due(here.name, record["metadata"]["name"]))
        (now,) = await here.records()
        return now if now["status"]["phase"] == "Done" else None

    assert (await eventually(done, "a verdict"))["status"]["verdict"] == "Recovered"


async def test_a_resolved_alert_looks_at_an_open_verdict_and_evicts_nobody(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    resolved = Resolved(here.name, pod["metadata"]["name"], pod["metadata"]["uid"])

    assert (await arc.handle(resolved)).outcome == "skipped"
    assert await here.records() == []
    await handled(arc, pod)
    await here.ready_pods("shop", 1)

    async def verdict() -> str | None:
        await arc.handle(resolved)
        (record,) = await here.records()
        found: str | None = record["status"].get("verdict")
        return found

    assert await eventually(verdict, "a verdict") == "Recovered"
    assert here.evictions() == [pod["metadata"]["uid"]]


# The look directly before the eviction


async def a_budget_with_room(here: kit.Place) -> None:
    """A PodDisruptionBudget that lets a pod go that is not ready: two of the three are."""
    path = f"/apis/policy/v1/namespaces/{here.name}/poddisruptionbudgets"
    spec = {"minAvailable": 1, "selector": {"matchLabels": {"app": "shop"}}}
    await here.plane.api.post(path, {"metadata": {"name": "shop"}, "spec": spec})

    async def observed() -> Any:
        return (await here.plane.api.get(f"{path}/shop")).get("status", {}).get("disruptionsAllowed")

    await eventually(observed, "a budget with room")


async def is_changed(here: kit.Place, path: str) -> None:
    await here.plane.api.patch(path, {"metadata": {"labels": {"changed": "yes"}}})


async def terminates(here: kit.Place, path: str) -> None:
    await here.plane.api.patch(path, {"metadata": {"finalizers": ["kreflex.dev/test"]}})
    await here.plane.api.delete(path)


async def is_gone(here: kit.Place, path: str) -> None:
    await here.plane.api.delete(path, {"gracePeriodSeconds": 0})

    async def gone() -> bool:
        return await here.plane.api.find(path) is None

    await eventually(gone, "the pod gone")


@pytest.mark.parametrize(
    ("happens", "error"), [(is_changed, ConflictError), (terminates, GoneError), (is_gone, GoneError)]
)
async def test_a_pod_that_is_not_as_it_was_read_costs_no_eviction_and_no_budget(
    here: kit.Place, arc: Arc[Any], happens: Any, error: type[Exception]
) -> None:
    pod, *_ = await here.deployment(replicas=3)
    await here.loop(pod, still=True)
    await a_budget_with_room(here)
    name = pod["metadata"]["name"]
    seen = await arc.reader.pod(here.name, name)
    assert seen is not None

    path = f"/api/v1/namespaces/{here.name}/pods/{name}"
    await happens(here, path)
    with pytest.raises(error):
        await EvictPod("it loops", seen, None).apply(arc.writer, arc.reader)

    assert asked(here) == 0
    budget = await here.plane.api.get(f"/apis/policy/v1/namespaces/{here.name}/poddisruptionbudgets/shop")
    assert budget["status"].get("disruptedPods", {}) == {}
    if happens is terminates:
        await here.plane.api.patch(path, {"metadata": {"finalizers": None}})


# Answers that leave open what was done


class Answering(Writer):
    """Answers an eviction itself; `first` is done before."""

    def __init__(
        self, writer: Writer, error: Exception, first: Callable[[str, JSON], Awaitable[Any]] | None = None
    ) -> None:
        super().__init__(writer._transport)
        self._error, self._first = error, first

    async def create(self, path: str, body: JSON) -> JSON:
        if not path.endswith("/eviction"):
            return await super().create(path, body)
        if self._first is not None:
            await self._first(path, body)
        raise self._error


def broken() -> ApiError:
    return ApiError("500 etcdserver: request timed out", 500)


async def test_an_eviction_that_was_answered_with_an_error_but_done_is_applied(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    arc.writer = Answering(arc.writer, broken(), arc.writer.create)
    assert (await handled(arc, pod)).outcome == "applied"
    assert told(await the_record(here)) == ("Applied", "applied", None)
    assert here.evictions() == [pod["metadata"]["uid"]]


async def test_an_eviction_that_failed_is_tried_again_later_and_its_intent_is_kept(
    here: kit.Place, arc: Arc[Any]
) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    writer, arc.writer = arc.writer, Answering(arc.writer, broken())
    result = await handled(arc, pod)
    assert (result.outcome, result.because) == ("failed", "500 etcdserver: request timed out")
    record = await the_record(here)
    status = record["status"]
    assert told(record) == ("Open", "failed", "Failed")
    assert status["intent"]["action"] == "EvictPod"
    pause = datetime.fromisoformat(status["dueAt"]) - datetime.fromisoformat(status["decidedAt"])
    assert round(pause.total_seconds()) == 30

    arc.writer = writer
    assert (await handled(arc, pod)).outcome == "failed"
    assert (await arc.handle(Due(here.name, record["metadata"]["name"]))).because == "it is not due yet"
    assert here.evictions() == []

    Ahead.of(arc, minutes=1)
    assert (await handled(arc, pod)).outcome == "applied"
    assert here.evictions() == [pod["metadata"]["uid"]]


async def test_of_a_fault_that_is_over_the_record_says_that_an_attempt_with_an_unknown_end_may_have_ended_it(
    here: kit.Place, arc: Arc[Any]
) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    arc.writer = Answering(arc.writer, broken())
    assert (await handled(arc, pod)).outcome == "failed"
    Ahead.of(arc, minutes=1)

    async def nothing(signal: PodSignal, world: World, settings: Settings) -> Skip:
        return Skip("no container loops")

    arc.reflex = replace(arc.reflex, decide=nothing)
    because = "no container loops; an attempt whose end is not known may have done it (EvictPod)"
    assert (await arc.handle(Due(here.name, (await the_record(here))["metadata"]["name"]))).because == because
    record = await the_record(here)
    assert told(record) == ("Done", "skipped", None)
    assert record["status"]["reason"] == because


async def test_a_pod_that_changed_meanwhile_does_not_lengthen_the_wait_after_a_failure(
    here: kit.Place, arc: Arc[Any]
) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    writer, arc.writer = arc.writer, Answering(arc.writer, ConflictError("409 it has changed", 409))
    with pytest.raises(UnavailableError):
        await arc.handle(signal(pod))
    assert told(await the_record(here)) == ("Open", "deferred", "Changed")

    arc.writer = Answering(writer, broken())
    assert (await handled(arc, pod)).outcome == "failed"
    status = (await the_record(here))["status"]
    pause = datetime.fromisoformat(status["dueAt"]) - datetime.fromisoformat(status["decidedAt"])
    assert round(pause.total_seconds()) == 30


async def test_an_eviction_that_failed_and_happened_after_all_is_applied(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    writer, sent = arc.writer, []

    async def note(path: str, body: JSON) -> None:
        sent.append((path, body))

    arc.writer = Answering(writer, broken(), note)
    assert (await handled(arc, pod)).outcome == "failed"
    path, body = sent[-1]

    async def happens() -> bool:
        # It crashes again and again meanwhile.
        body["deleteOptions"]["preconditions"]["resourceVersion"] = await version(here, pod)
        try:
            await writer.create(path, body)
        except ConflictError:
            return False
        return True

    await eventually(happens, "the eviction")

    Ahead.of(arc, minutes=1)
    assert told(await woken(arc, here)) == ("Applied", "applied", None)
    assert here.evictions() == [pod["metadata"]["uid"]]


async def test_who_takes_over_says_that_it_was_found_done(here: kit.Place, arc: Arc[Any]) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    arc.writer = Answering(arc.writer, UnavailableError("the API server did not answer"))
    with pytest.raises(UnavailableError, match="the API server did not answer"):
        await handled(arc, pod)
    record = await the_record(here)
    assert record["status"]["phase"] == "Acting"
    because = record["status"]["reason"]
    await is_gone(here, f"/api/v1/namespaces/{here.name}/pods/{pod['metadata']['name']}")

    Ahead.of(arc, minutes=5)
    record = await woken(arc, here)
    assert told(record) == ("Applied", "applied", None)
    assert record["status"]["reason"] == f"{because} (found done when the attempt was taken over)"
    assert here.evictions() == []


# Verdicts that the ledger asks for


async def test_a_verdict_that_was_found_on_the_way_comes_with_the_next_answer(here: kit.Place, arc: Arc[Any]) -> None:
    await here.policy(limits={"maxInFlight": 1})
    pods = [await here.loop((await here.deployment(name))[0], still=True) for name in ("one", "other")]
    first = await handled(arc, pods[0])
    assert first.changed is not None
    await here.ready_pods("one", 1)
    await asyncio.sleep(2.2)

    results, errors = await handle_all(arc, (signal(pods[1]),), timedelta(seconds=25))
    assert errors == []
    told_of = [(result.about, result.outcome, result.changed and result.changed.status.verdict) for result in results]
    other = await the_other(here, first.changed.name)
    assert told_of == [(other, "applied", None), (first.about, "applied", "Recovered")]
    assert results[1].because.startswith("a successor has been Ready for ")
    assert arc.settled_on_the_way() == []


async def the_other(here: kit.Place, name: str) -> str:
    (other,) = [one["metadata"]["name"] for one in await here.records() if one["metadata"]["name"] != name]
    return f"Remediation {here.name}/{other}"


# A kill between the admission and the claim


class Dying(Writer):
    """Fails at the claim."""

    async def merge(self, path: str, body: JSON) -> JSON:
        if body["status"].get("phase") == "Acting":
            raise UnavailableError("the process dies here")
        return await super().merge(path, body)


async def test_a_refused_record_that_was_admitted_and_left_is_gone_on_with_before_its_time(
    here: kit.Place, arc: Arc[Any]
) -> None:
    pod = await here.loop((await here.deployment())[0], still=True)
    path = f"/apis/apps/v1/namespaces/{here.name}/deployments/shop"
    await here.plane.api.patch(path, {"metadata": {"annotations": {"kreflex.dev/opt-out": "true"}}})
    assert (await handled(arc, pod)).outcome == "refused"
    await here.plane.api.patch(path, {"metadata": {"annotations": {"kreflex.dev/opt-out": None}}})
    await asyncio.sleep(1.1)
    writer, arc.records._writer = arc.records._writer, Dying(arc.writer._transport)
    with pytest.raises(UnavailableError, match="dies here"):
        await handled(arc, pod)
    arc.records._writer = writer
    assert told(await the_record(here)) == ("Open", "refused", "Scope")

    Ahead.of(arc, minutes=2)
    assert told(await goes_on(arc, here, pod)) == ("Applied", "applied", None)
    assert here.evictions() == [pod["metadata"]["uid"]]
