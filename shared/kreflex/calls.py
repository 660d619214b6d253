"""Calls from the waker to functions: one CloudEvent, one answer."""

from __future__ import annotations

from collections.abc import Mapping

import aiohttp

from kreflex.errors import UnavailableError

_TIMEOUT = aiohttp.ClientTimeout(total=35, sock_connect=10)


async def post(url: str, headers: Mapping[str, str], body: bytes) -> None:
    """Send one event; raises UnavailableError unless it is answered 2xx."""
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.post(url, data=body, headers=headers) as answer,
        ):
            text = await answer.text()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UnavailableError(f"{url} did not answer: {error!r}") from error
    if answer.status >= 300:
        raise UnavailableError(f"{url} answered {answer.status}: {text[:300]}")
