"""The fault proxy: which call is which, and what a caller gets to see of each trouble."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from lab.api import eventually
from lab.certificates import Authority
from lab.faults import Call, FaultProxy, Hit, nth
from lab.troubles import LONG, SHORT, TROUBLES, Trouble

PODS = "/api/v1/namespaces/shop/pods"
RECORDS = "/apis/kreflex.dev/v1alpha1/namespaces/shop/remediations"
NODE, CLAIM = "/api/v1/nodes/blue-1", "/apis/karpenter.sh/v1/nodeclaims/blue-1"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/medik8s-leases/leases"
SHOP = "/apis/apps/v1/namespaces/shop/deployments/shop"
NOON = datetime(2026, 5, 1, 12, tzinfo=UTC)


def call(method: str, path: str, body: Any = None) -> Call:
    return Call(method, path, json.dumps(body).encode())


@pytest.mark.parametrize(
    ("made", "step"),
    [
        (call("GET", f"{PODS}/cart-1"), "read pods"),
        (call("GET", "/api/v1/pods"), "list pods"),
        (call("GET", "/apis/kreflex.dev/v1alpha1/remediationpolicies"), "list remediationpolicies"),
        (call("GET", "/api/v1/namespaces/shop"), "read namespaces"),
        (call("POST", RECORDS), "record"),
        (call("PATCH", f"{RECORDS}/one/status", {"status": {"phase": "Acting"}}), "Acting"),
        (call("DELETE", f"{RECORDS}/one"), "delete remediations"),
        (call("PUT", "/api/v1/namespaces/kreflex-system/configmaps/kreflex-ledger"), "ledger"),
        (call("POST", f"{PODS}/cart-1/eviction"), "eviction"),
        (call("POST", "/apis/events.k8s.io/v1/namespaces/shop/events"), "event"),
        (call("POST", "/apis/authentication.k8s.io/v1/tokenreviews"), "create tokenreviews"),
        (call("PATCH", NODE, {"spec": {"unschedulable": True}}), "cordon"),
        (call("PATCH", NODE, {"spec": {"unschedulable": None}}), "uncordon"),
        (call("PATCH", NODE, {"spec": {"taints": [{"key": "a"}]}}), "taint"),
        (call("PATCH", NODE, {"spec": {"taints": None}}), "untaint"),
        (call("GET", NODE), "read nodes"),
        (call("POST", LEASES), "lease"),
        (call("PUT", f"{LEASES}/node-blue-1"), "renewal"),
        (call("DELETE", f"{LEASES}/node-blue-1"), "release"),
        (call("PATCH", CLAIM, {"metadata": {}}), "bound"),
        (call("DELETE", CLAIM), "replacement"),
        (call("PATCH", SHOP, {"metadata": {"annotations": {}}}), "note deployments"),
        (call("PATCH", SHOP, {"metadata": {}, "spec": {"replicas": 1}}), "patch deployments"),
        (call("PATCH", SHOP, [{"op": "add", "path": "/metadata/uid", "value": "1"}]), "patch deployments"),
        (call("POST", "/team/shop.git/git-upload-pack"), "fetch"),
        (call("POST", "/team/shop.git/git-receive-pack"), "push"),
        (call("POST", "/api/v4/projects/team%2Fshop/merge_requests"), "pull request"),
    ],
)
def test_a_call_is_known_by_its_step(made: Call, step: str) -> None:
    assert made.step == step


def test_a_review_and_a_fetch_change_nothing() -> None:
    assert not call("POST", "/apis/authentication.k8s.io/v1/tokenreviews").writes
    assert not call("POST", "/team/shop.git/git-upload-pack").writes
    assert call("POST", "/team/shop.git/git-receive-pack").writes
    assert call("POST", f"{PODS}/cart-1/eviction").writes


def test_the_past_is_a_list_at_a_revision() -> None:
    past = "resourceVersion=7&resourceVersionMatch=Exact"
    assert call("GET", PODS).at(7) == f"{PODS}?{past}"
    assert call("GET", f"{PODS}/cart-1").at(7) == f"{PODS}?{past}&fieldSelector=metadata.name%3Dcart-1"


def test_one_namespace_is_all_that_a_narrowed_process_sees() -> None:
    everywhere = call("GET", "/api/v1/pods")
    assert everywhere.narrowed("shop", "/api/v1/pods?limit=500") == f"{PODS}?limit=500"
    assert everywhere.narrowed("", "/api/v1/pods?limit=500") == "/api/v1/pods?limit=500"
    policies = "/apis/kreflex.dev/v1alpha1/remediationpolicies"
    assert call("GET", policies).narrowed("shop", policies) == policies


class Server:
    """Notes what it is asked, and answers that it is noon."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(f"{request.method} {request.path}")
        headers = {"Date": format_datetime(NOON, usegmt=True)}
        return web.json_response({"metadata": {"resourceVersion": "7"}, "fill": "x" * 5000}, headers=headers)


@asynccontextmanager
async def proxied(home: Path, *plan: Hit, name: str = "one") -> AsyncIterator[tuple[Server, str]]:
    """A server behind a proxy with a plan; the proxy's URL."""
    server, application = Server(), web.Application()
    application.router.add_route("*", "/{path:.*}", server.answer)
    async with TestServer(application) as upstream:
        proxy = FaultProxy(name, str(upstream.make_url("")).rstrip("/"), Authority(home).file, _nobody, plan)
        await proxy.start()
        try:
            yield server, proxy.url
        finally:
            await proxy.stop()


def _nobody() -> Any:
    raise AssertionError("nobody is to be killed here")


async def said(url: str, method: str = "POST", patience: float = 90) -> tuple[int | str, timedelta]:
    """The status of the answer, or what became of it; and how wrong the clock in it is."""
    limit = aiohttp.ClientTimeout(total=patience)
    async with aiohttp.ClientSession(timeout=limit) as session:
        try:
            async with session.request(method, f"{url}{PODS}/cart-1/eviction") as answer:
                moment = datetime.strptime(answer.headers["Date"], "%a, %d %b %Y %H:%M:%S %Z").replace(tzinfo=UTC)
                await answer.read()
                return answer.status, moment - NOON
        except aiohttp.ClientPayloadError:
            return "half an answer", timedelta()
        except (aiohttp.ClientError, OSError):
            return "no answer", timedelta()


BRIEF = [one for one in TROUBLES if not one.older and not one.holds and not one.keeps]


@pytest.mark.parametrize("trouble", BRIEF, ids=lambda trouble: trouble.name)
async def test_a_trouble_meets_one_call_as_it_says(tmp_path: Path, trouble: Trouble) -> None:
    hit = Hit(nth("eviction", 2), trouble)
    async with proxied(tmp_path, hit) as (server, url):
        assert (await said(url))[0] == 200
        status, shift = await said(url)
        after = await said(url)

    expected: dict[str, int | str] = {"before": "no answer", "within": "half an answer"}
    assert status == expected.get(trouble.breaks, trouble.says.status if trouble.says else 200)
    assert len(server.asked) == (3 if trouble.arrives else 2)
    if not trouble.says and not trouble.breaks:
        assert shift == trouble.shift
    assert after == (200, trouble.shift if trouble.lasting else timedelta())
    assert hit.replicas == ["one"]


def _something(asked: list[str]) -> Callable[[], Awaitable[bool]]:
    async def told() -> bool:
        return bool(asked)

    return told


async def test_a_slow_request_arrives_although_nobody_waits_for_it(tmp_path: Path) -> None:
    slow = Trouble("slow", holds=1.0)
    async with proxied(tmp_path, Hit(nth("eviction"), slow)) as (server, url):
        assert (await said(url, patience=0.2))[0] == "no answer"
        await eventually(_something(server.asked), "the request")
    assert server.asked == [f"POST {PODS}/cart-1/eviction"]


async def test_something_else_may_happen_before_the_call_arrives_and_after(tmp_path: Path) -> None:
    seen: list[int] = []

    async def look() -> None:
        seen.append(len(server.asked))

    async with proxied(tmp_path, Hit(nth("eviction"), Trouble("none"), first=look, then=look)) as (server, url):
        await said(url)
    assert seen == [0, 1]


async def test_each_of_several_replicas_meets_it_once(tmp_path: Path) -> None:
    hit = Hit(nth("eviction"), Trouble("lost", arrives=False, breaks="before"), each=True)
    for name in ("one", "other"):
        async with proxied(tmp_path, hit, name=name) as (server, url):
            assert (await said(url))[0] == "no answer"
            assert (await said(url))[0] == 200
        assert len(server.asked) == 1
    assert hit.replicas == ["one", "other"]


def test_what_is_too_slow_takes_longer_than_a_function_waits() -> None:
    from kreflex.cluster import _TIMEOUT  # noqa: PLC0415 - only this test needs it

    assert _TIMEOUT.total is not None
    assert SHORT < _TIMEOUT.total < LONG
