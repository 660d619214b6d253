"""Prometheus' answers, from a local server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kreflex.errors import QueryError, UnavailableError
from kreflex.prom import Answer, Metrics, series_in


@asynccontextmanager
async def a_prometheus(result: Any, status: int = 200) -> AsyncIterator[Metrics]:
    """A server that answers every query with this result, or with this text."""

    async def answer(_: web.Request) -> web.Response:
        if isinstance(result, str):
            return web.Response(text=result, status=status)
        return web.json_response(
            {"status": "success", "data": {"resultType": "vector", "result": result}}, status=status
        )

    application = web.Application()
    application.router.add_get("/api/v1/query", answer)
    async with TestServer(application) as server:
        yield Metrics(str(server.make_url("/")).rstrip("/"))


def a_series(value: str) -> dict[str, Any]:
    return {"metric": {}, "value": [1.0, value]}


@pytest.mark.parametrize(("value", "number"), [("4.2", 4.2), ("0", 0.0), ("-1", -1.0)])
async def test_reads_one_number(value: str, number: float) -> None:
    async with a_prometheus([a_series(value)]) as metrics:
        assert await metrics.scalar("q") == number


async def test_no_series_is_no_number() -> None:
    async with a_prometheus([]) as metrics:
        assert await metrics.scalar("q") is None


@pytest.mark.parametrize(
    ("result", "because"),
    [
        ([a_series("1"), a_series("2")], "yields 2 series, not one number: aggregate it"),
        ([a_series("NaN")], "yields nan"),
        ([a_series("+Inf")], "yields inf"),
        ([{"metric": {}, "values": [[1.0, "1"]]}], "yields no number"),
        ([a_series("many")], "yields no number"),
        ([{"metric": {}, "value": []}], "yields no number"),
        ("{", "did not answer"),
        ("{}", "did not answer"),
    ],
)
async def test_what_is_not_one_number_is_unknown(result: Any, because: str) -> None:
    async with a_prometheus(result) as metrics:
        with pytest.raises(UnavailableError, match=because):
            await metrics.scalar("q")


@pytest.mark.parametrize("status", [400, 422, 500, 503])
async def test_an_error_is_unknown(status: int) -> None:
    async with a_prometheus("no", status) as metrics:
        with pytest.raises(UnavailableError, match="Prometheus did not answer 'q'"):
            await metrics.scalar("q")


@pytest.mark.parametrize(
    ("url", "because"), [("", "PROMETHEUS_URL is not set"), ("http://127.0.0.1:9", "did not answer")]
)
async def test_a_prometheus_that_is_not_there_is_unknown(url: str, because: str) -> None:
    with pytest.raises(UnavailableError, match=because):
        await Metrics(url).scalar("q")


@asynccontextmanager
async def a_server(text: str, status: int = 200) -> AsyncIterator[tuple[str, list[web.Request]]]:
    """A server that answers all with this text, and what it was asked."""
    asked: list[web.Request] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request)
        return web.Response(text=text, status=status, content_type="application/json")

    application = web.Application()
    application.router.add_get("/{path:.*}", answer)
    async with TestServer(application) as server:
        yield str(server.make_url("")), asked


NOTHING = '{"status":"success","data":{"resultType":"vector","result":[]}}'
# As the documentation of each has it: https://prometheus.io/docs/prometheus/latest/querying/api/#format-overview,
# https://thanos.io/tip/components/query.md/#partial-response, https://docs.victoriametrics.com/cluster-victoriametrics/
THANOS = NOTHING[:-1] + ',"warnings":["No StoreAPIs matched for this query","it said: \\"no\\""]}'
DUBIOUS = NOTHING[:-1] + ',"warnings":["PromQL warning: bucket label \\"le\\" is missing"],"infos":["PromQL info: x"]}'
VICTORIA = '{"status":"success","isPartial":true,' + NOTHING[len('{"status":"success",') :]


@pytest.mark.parametrize(
    ("text", "warnings", "partial"),
    [
        (NOTHING, (), False),
        (THANOS, ("No StoreAPIs matched for this query", 'it said: "no"'), True),
        (DUBIOUS, ('PromQL warning: bucket label "le" is missing',), False),
        (VICTORIA, (), True),
    ],
)
async def test_a_partial_answer_is_told(text: str, warnings: tuple[str, ...], partial: bool) -> None:
    async with a_server(text) as (url, _):
        assert await Metrics(url).instant("q", 1.0, series_in) == Answer([], warnings, partial)


async def test_who_needs_all_of_it_does_not_take_a_part() -> None:
    whole = VICTORIA.replace('"result":[]', '"result":[{"metric":{},"value":[1,"0.9"]}]')
    async with a_server(whole) as (url, _):
        for ask in (Metrics(url).scalar, Metrics(url).vector):
            with pytest.raises(UnavailableError, match="'q' was answered in part: no reason given"):
                await ask("q")


async def test_who_asks_is_told_in_each_request(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("first\n")
    async with a_server(NOTHING) as (url, asked):
        metrics = Metrics(f"{url}/prometheus/", tenant="shop", token_file=str(token))
        await metrics.instant("q", 1_700_000_000.5, series_in)
        token.write_text("second\n")
        await metrics.range("q", 60, 180, 60, series_in)
    first, second = asked
    assert [one.headers["X-Scope-OrgID"] for one in asked] == ["shop", "shop"]
    assert [one.headers["Authorization"] for one in asked] == ["Bearer first", "Bearer second"]
    bounds = {"query": "q", "timeout": "20s", "limit": "50000"}
    assert (first.path, dict(first.query)) == ("/prometheus/api/v1/query", {**bounds, "time": "1700000000.500"})
    assert (second.path, dict(second.query)) == (
        "/prometheus/api/v1/query_range",
        {**bounds, "start": "60.000", "end": "180.000", "step": "60"},
    )


async def test_a_token_that_is_not_there_is_unavailable(tmp_path: Path) -> None:
    async with a_server(NOTHING) as (url, asked):
        with pytest.raises(UnavailableError, match="No such file"):
            await Metrics(url, token_file=str(tmp_path / "none")).instant("q", 1.0, series_in)
    assert asked == []


@pytest.mark.parametrize(("status", "kind"), [(400, QueryError), (422, QueryError), (503, UnavailableError)])
async def test_a_bad_query_is_told_from_a_prometheus_in_trouble(status: int, kind: type[UnavailableError]) -> None:
    async with a_server('{"status":"error","errorType":"x","error":"parse error: no"}', status) as (url, _):
        with pytest.raises(UnavailableError, match="Prometheus did not answer 'q': parse error: no") as caught:
            await Metrics(url).instant("q", 1.0, series_in)
    assert type(caught.value) is kind
