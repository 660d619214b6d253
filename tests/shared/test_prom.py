"""Prometheus' answers, from a local server."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from kreflex.errors import UnavailableError
from kreflex.prom import Metrics


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
