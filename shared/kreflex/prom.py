"""Prometheus, for the few questions that the API server can't answer."""

from __future__ import annotations

import asyncio
import math
from typing import TYPE_CHECKING

from kreflex.errors import UnavailableError

if TYPE_CHECKING:
    from prometheus_api_client import PrometheusConnect

_TIMEOUT_SECONDS = 5


class Metrics:
    """Asks one Prometheus; every failure is UnavailableError, because a guard that can't find out refuses."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._client: PrometheusConnect | None = None

    async def scalar(self, query: str) -> float | None:
        """Evaluate a query that yields one number; None when there is no series."""
        if not self._url:
            raise UnavailableError("PROMETHEUS_URL is not set")
        return await asyncio.to_thread(self._ask, query)

    def _ask(self, query: str) -> float | None:
        from prometheus_api_client.exceptions import PrometheusApiClientException  # noqa: PLC0415 - loaded only where it is needed

        try:
            series = self._connect().custom_query(query, timeout=_TIMEOUT_SECONDS)
        except (PrometheusApiClientException, OSError, ValueError, KeyError, TypeError) as error:
            raise UnavailableError(f"Prometheus did not answer {query!r}: {error}") from error
        return _one_number(query, series)

    def _connect(self) -> PrometheusConnect:
        from prometheus_api_client import PrometheusConnect  # noqa: PLC0415 - costs as much as the rest of a cold start
        from urllib3.util.retry import Retry  # noqa: PLC0415

        if self._client is None:
            # No retries: the answer decides whether to wait, and the event comes again by itself.
            self._client = PrometheusConnect(self._url, retry=Retry(total=0))
        return self._client


def _one_number(query: str, series: list[dict[str, list[object]]]) -> float | None:
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
