"""Prometheus, for the questions that the API server can't answer.

Thanos, Mimir and VictoriaMetrics speak its API. Mimir and Thanos want to be told the tenant, and each may want a token.
"""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from kreflex.errors import QueryError, UnavailableError

if TYPE_CHECKING:
    from prometheus_api_client import PrometheusConnect

T = TypeVar("T")
_Asks = Callable[["PrometheusConnect"], object]

_TIMEOUT_SECONDS = 5
# What a look at many series may take; Prometheus itself gives up after two minutes.
_LONG_SECONDS = 20
MOST_SERIES = 50_000
# https://grafana.com/docs/mimir/latest/references/http-api/#authentication
_TENANT = "X-Scope-OrgID"
# These bytes are no part of a label: there the quotes would be escaped, and a label is no list and no `true`.
_WARNINGS, _PARTIAL = b'"warnings":[', b'"isPartial":true'
_BAD_QUERY = (400, 422)


@dataclass(frozen=True)
class Answer(Generic[T]):
    """What was read in an answer, and what it warns of; `partial` if some series may be missing."""

    found: T
    warnings: tuple[str, ...] = ()
    partial: bool = False


class Metrics:
    """Asks one Prometheus; every failure is UnavailableError, because a guard that can't find out refuses."""

    def __init__(self, url: str, tenant: str = "", token_file: str = "") -> None:
        self._url = url.rstrip("/")
        self._tenant = tenant
        self._token_file = token_file
        self._client: PrometheusConnect | None = None
        self._heard = threading.local()

    async def scalar(self, query: str) -> float | None:
        """Evaluate a query that yields one number; None when there is no series."""
        return _one_number(query, await self._now(query))

    async def vector(self, query: str) -> list[tuple[dict[str, str], float]]:
        """Evaluate a query that yields several series now: the labels of each and its number, which may be NaN."""
        return _numbers(query, await self._now(query))

    async def _now(self, query: str) -> list[dict[str, Any]]:
        """Ask for all of it: of a part nobody can tell what the rest would have said."""
        answer = await self._ask(query, lambda client: client.custom_query(query, timeout=_TIMEOUT_SECONDS), series_in)
        if answer.partial:
            raise UnavailableError(f"{query!r} was answered in part: {', '.join(answer.warnings) or 'no reason given'}")
        return answer.found

    async def instant(self, query: str, at: float, read: Callable[[bytes], T]) -> Answer[T]:
        """Evaluate a query that yields many series, at a time; `read` reads the answer, in a thread."""
        params = {"time": f"{at:.3f}", **_bounds()}
        return await self._ask(query, lambda client: client.custom_query(query, params, _LONG_SECONDS + 1), read)

    async def range(self, query: str, start: float, end: float, step: float, read: Callable[[bytes], T]) -> Answer[T]:
        """Evaluate a query at many times; `read` reads the answer, in a thread."""
        times = (datetime.fromtimestamp(start, UTC), datetime.fromtimestamp(end, UTC))
        exact = {"start": f"{start:.3f}", "end": f"{end:.3f}", **_bounds()}
        return await self._ask(
            query, lambda client: client.custom_query_range(query, *times, f"{step:g}", exact, _LONG_SECONDS + 1), read
        )

    async def _ask(self, query: str, ask: _Asks, read: Callable[[bytes], T]) -> Answer[T]:
        if not self._url:
            raise UnavailableError("PROMETHEUS_URL is not set")
        return await asyncio.to_thread(self._answer, query, ask, read)

    def _answer(self, query: str, ask: _Asks, read: Callable[[bytes], T]) -> Answer[T]:
        from prometheus_api_client.exceptions import PrometheusApiClientException  # noqa: PLC0415 - loaded only where it is needed

        self._heard.status, self._heard.content = 0, b""
        try:
            client = self._connect()
            client.headers = self._headers()
            ask(client)
            found = read(self._heard.content)
        except (PrometheusApiClientException, OSError, ValueError, KeyError, TypeError) as error:
            kind = QueryError if self._heard.status in _BAD_QUERY else UnavailableError
            raise kind(f"Prometheus did not answer {query!r}: {_said(self._heard.content) or error}") from error
        finally:
            content, self._heard.content = self._heard.content, b""
        warnings = _warnings(content)
        # Prometheus warns of dubious PromQL in the same place; then nothing is missing.
        partial = _PARTIAL in content or any(not warning.startswith("PromQL ") for warning in warnings)
        return Answer(found, warnings, partial)

    def _headers(self) -> dict[str, str]:
        # Not packed: that takes longer than to send it through a cluster's network.
        headers = {"Accept-Encoding": "identity"}
        if self._tenant:
            headers[_TENANT] = self._tenant
        if self._token_file:
            # Read each time: the kubelet changes it.
            headers["Authorization"] = f"Bearer {Path(self._token_file).read_text().strip()}"
        return headers

    def _connect(self) -> PrometheusConnect:
        import requests  # noqa: PLC0415 - costs as much as the rest of a cold start
        from prometheus_api_client import PrometheusConnect  # noqa: PLC0415
        from urllib3.util.retry import Retry  # noqa: PLC0415

        if self._client is None:
            session = requests.Session()
            session.hooks["response"] = [self._hear]
            # No retries: the answer decides whether to wait, and the event comes again by itself.
            self._client = PrometheusConnect(self._url, retry=Retry(total=0), session=session)
        return self._client

    def _hear(self, response: Any, **_: Any) -> None:
        """Keep the answer as it is, for the client gives the series only, and as objects: of 10,000, 100 MB."""
        self._heard.status, self._heard.content = response.status_code, response.content
        response.json = lambda: {"data": {"result": []}}


def series_in(content: bytes) -> list[dict[str, Any]]:
    """Read the series of an answer as the API gives them."""
    series: list[dict[str, Any]] = json.loads(content)["data"]["result"]
    if not isinstance(series, list):
        raise TypeError("it holds no list of series")
    return series


def _bounds() -> dict[str, str]:
    # What takes longer is ended over there, too, and who yields millions of series gets no more than fit in here.
    return {"timeout": f"{_LONG_SECONDS}s", "limit": str(MOST_SERIES)}


def _warnings(content: bytes) -> tuple[str, ...]:
    at = content.find(_WARNINGS)
    if at < 0:
        return ()
    # The whole of it has been read as JSON before.
    found, _ = json.JSONDecoder().raw_decode(content[at + len(_WARNINGS) - 1 :].decode())
    return tuple(str(one) for one in found)


def _said(content: bytes) -> str:
    try:
        return str(json.loads(content)["error"])
    except (ValueError, KeyError, TypeError):
        return ""


def _numbers(query: str, series: list[dict[str, Any]]) -> list[tuple[dict[str, str], float]]:
    try:
        return [(dict(one["metric"]), float(str(one["value"][1]))) for one in series]
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UnavailableError(f"{query!r} yields no numbers: ask for an instant vector") from error


def _one_number(query: str, series: list[dict[str, Any]]) -> float | None:
    if not series:
        return None
    if len(series) > 1:
        raise UnavailableError(f"{query!r} yields {len(series)} series, not one number: aggregate it")
    try:
        number = float(str(series[0]["value"][1]))
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise UnavailableError(f"{query!r} yields no number: ask for an instant vector of one series") from error
    if not math.isfinite(number):
        raise UnavailableError(f"{query!r} yields {number}")
    return number
