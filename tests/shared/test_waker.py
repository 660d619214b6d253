"""The waker's round: whom it calls for what, and which records it removes."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer

from functions.restart_loop_killer import main as killer
from kreflex import trace
from kreflex.cluster import Writer
from kreflex.errors import ConflictError, OutageError
from kreflex.serve import REFLEXES
from kreflex.settings import CoreSettings
from kreflex.views import JSON, Ref
from kreflex.waking import Waker
from kreflex.world import World
from tests.values import HOUR, NOW, CannedApi, a_pod, a_record_body, an_empty_ledger, objects, stamp

assert killer.main is not None
NAME = "restart-loop-killer"
RECORDS = "/apis/kreflex.dev/v1alpha1/namespaces/shop/remediations"
RETAIN = timedelta(days=7)


@dataclass
class Function:
    """A function that notes what it is called for."""

    status: int = 204
    calls: list[tuple[str, list[str]]] = field(default_factory=list)
    traces: list[tuple[str, list[str | None]]] = field(default_factory=list)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async def answer(request: web.Request) -> web.Response:
            items = json.loads(await request.read())["items"]
            self.calls.append((request.headers["ce-type"].split(".")[-2], [item["name"] for item in items]))
            traces = [item.get("traceparent") for item in items]
            self.traces.append((request.headers.get("ce-traceparent", ""), traces))
            return web.Response(status=self.status)

        application = web.Application()
        application.router.add_post("/", answer)
        async with TestServer(application) as server:
            yield str(server.make_url("/"))


class Removable(CannedApi):
    """Records can be deleted, under their resourceVersion."""

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        if method != "DELETE":
            return await super().send(method, path, body, **options)
        assert body is not None
        self.calls.append(f"{method} {path}")
        if self.objects[path]["metadata"]["resourceVersion"] != body["preconditions"]["resourceVersion"]:
            raise ConflictError(f"{path} has changed", 409)
        return self.objects.pop(path)


def a_cluster(*records: JSON, pods: tuple[JSON, ...] = (), ledger: str = "[]") -> Removable:
    bodies = {f"{RECORDS}/{body['metadata']['name']}": body for body in records}
    return Removable(bodies | objects(*pods) | an_empty_ledger(ledger))


def a_body(name: str, status: JSON, target: str = "uid-cart-1") -> JSON:
    """A record of a fault of this pod."""
    body = a_record_body(status=status)
    body["metadata"] |= {"name": name, "uid": f"uid-{name}"}
    body["spec"]["target"]["uid"] = target
    return body


def due(name: str, phase: str = "Open", minutes: int = 1) -> JSON:
    return a_body(name, {"phase": phase, "dueAt": stamp(NOW - timedelta(minutes=minutes))}, f"uid-of-{name}")


def settled(name: str = "old", ago: timedelta = RETAIN + HOUR, **status: Any) -> JSON:
    """A record that has been settled for longer than records are kept."""
    told = {"phase": "Done", "outcome": "applied", "verdict": "Recovered", "settledAt": stamp(NOW - ago)}
    return a_body(name, {**told, **status})


async def one_round(api: CannedApi, function: Function) -> list[str]:
    async with function.serving() as url:
        waker = Waker({NAME: url}, [REFLEXES[NAME]], api.world(), Writer(api), CoreSettings(), RETAIN)
        return await waker.go()


async def called(api: CannedApi) -> list[tuple[str, list[str]]]:
    function = Function()
    assert await one_round(api, function) == []
    return function.calls


async def test_calls_nobody_when_nothing_is_due() -> None:
    waiting = a_body("later", {"phase": "Applied", "dueAt": stamp(NOW + HOUR)})
    assert await called(a_cluster()) == []
    assert await called(a_cluster(waiting, settled(ago=HOUR))) == []


async def test_calls_for_what_is_due_what_was_begun_first() -> None:
    api = a_cluster(due("waits"), due("acts", "Acting"), due("waits-longer", minutes=9), due("proves", "Applied"))
    assert await called(api) == [("due", ["proves", "acts", "waits-longer", "waits"])]


async def test_tells_of_faults_that_have_no_record() -> None:
    other = a_pod(Ref("v1", "Pod", "shop", "cart-2", "uid-cart-2"))
    known = a_body("known", {"phase": "Applied", "dueAt": stamp(NOW + HOUR)})
    assert await called(a_cluster(known, pods=(a_pod(), other))) == [("found", ["cart-2"])]


async def test_tells_again_of_a_fault_that_was_over_and_is_back() -> None:
    over = settled(ago=HOUR, outcome="skipped", verdict=None)
    assert await called(a_cluster(over, pods=(a_pod(),))) == [("found", ["cart-1"])]


async def test_calls_in_pieces_that_fit_into_the_time_of_one_request() -> None:
    api = a_cluster(*(due(f"r{number:03}") for number in range(120)))
    assert [len(names) for _, names in await called(api)] == [50, 50, 20]


async def test_a_function_that_is_down_stays_due() -> None:
    function = Function(status=503)
    (failure,) = await one_round(a_cluster(due("waits")), function)
    assert "answered 503" in failure
    assert function.calls == [("due", ["waits"])]


class Blind(Removable):
    """Pods can't be listed."""

    async def send(self, method: str, path: str, body: JSON | None = None, **options: Any) -> JSON:
        if path == "/api/v1/pods":
            raise OutageError(f"GET {path}: 500 etcdserver: leader changed", 500)
        return await super().send(method, path, body, **options)


async def test_what_is_due_is_called_for_although_nobody_knows_what_is_ill() -> None:
    api, function = Blind(a_cluster(due("waits"), settled()).objects), Function()
    because = f"what {NAME} would find is not known: GET /api/v1/pods: 500 etcdserver: leader changed"
    assert await one_round(api, function) == [because]
    assert function.calls == [("due", ["waits"])]
    assert api.writes == []


async def test_a_record_is_carried_on_in_the_trace_that_opened_it_and_the_round_has_its_own() -> None:
    opened = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    waits, function = due("waits"), Function()
    waits["spec"]["fault"]["traceparent"] = opened
    with trace.span("round") as span:
        await one_round(a_cluster(waits, due("without", minutes=0)), function)
    assert function.traces == [(span.trace.traceparent, [opened, None])]


async def test_removes_what_was_settled_long_ago() -> None:
    api = a_cluster(settled("old"), settled("new", ago=RETAIN - HOUR))
    await called(api)
    assert [path for path in api.objects if path.startswith(RECORDS)] == [f"{RECORDS}/new"]


async def test_keeps_a_record_while_its_fault_persists() -> None:
    api = a_cluster(settled(), pods=(a_pod(),))
    await called(api)
    assert api.writes == []


async def test_keeps_a_record_while_a_limit_refers_to_it() -> None:
    entry = {
        "uid": "uid-old",
        "ns": "shop",
        "rec": "old",
        "own": "o",
        "tpl": "",
        "pol": [],
        "rv": "1",
        "at": 0,
        "st": "",
    }
    api = a_cluster(settled(), ledger=json.dumps([entry]))
    await called(api)
    assert api.writes == []


async def test_keeps_a_record_that_changed_at_this_moment() -> None:
    api = a_cluster(settled())
    body = api.objects[f"{RECORDS}/old"]

    class Changing(Removable):
        def before(self, method: str) -> None:
            if self.calls[-1] == "GET /api/v1/pods":
                self.objects[f"{RECORDS}/old"] = {**body, "metadata": {**body["metadata"], "resourceVersion": "2"}}

    changing = Changing(api.objects)
    await called(changing)
    assert f"{RECORDS}/old" in changing.objects


async def test_writes_nothing_but_records() -> None:
    api = a_cluster(due("waits"), settled(), settled("older"), pods=(replaced(),))
    await called(api)
    assert sorted(api.writes) == [f"DELETE {RECORDS}/old", f"DELETE {RECORDS}/older"]


def replaced() -> JSON:
    """A looping pod that none of the records is about."""
    return a_pod(Ref("v1", "Pod", "shop", "cart-9", "uid-cart-9"))


async def test_calls_who_looks_after_objects_of_his_own_for_those_that_are_due() -> None:
    async def errand(_: World) -> AsyncIterator[JSON]:
        yield {"namespace": "shop", "name": "storm"}

    async def nothing(_: World) -> AsyncIterator[JSON]:
        for item in list[JSON]():
            yield item

    for due, calls in ((errand, [("due", ["storm"])]), (nothing, [])):
        function, api = Function(), a_cluster()
        async with function.serving() as url:
            urls = {"chaos-runner": url}
            waker = Waker(urls, [], api.world(), Writer(api), CoreSettings(), RETAIN, {"chaos-runner": due})
            assert await waker.go() == []
        assert function.calls == calls
