"""Calls from the waker to functions: one CloudEvent, one answer."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import aiohttp

from kreflex.errors import UnavailableError

_TIMEOUT = aiohttp.ClientTimeout(total=35, sock_connect=10)


async def post(url: str, headers: Mapping[str, str], body: bytes, token_file: str = "") -> None:
    """Send one event, with the token that is in the file now; raises UnavailableError unless it is answered 2xx."""
    headers = {**headers, **_shown(token_file)}
    try:
        async with (
            aiohttp.ClientSession(timeout=_TIMEOUT) as session,
            session.post(url, data=body, headers=headers) as answer,
        ):
            text = await answer.text()
    except (aiohttp.ClientError, TimeoutError, OSError) as error:
        raise UnavailableError(f"{shown(url)} did not answer: {_said(error, url)}") from error
    if answer.status >= 300:
        raise UnavailableError(f"{shown(url)} answered {answer.status}: {text[:300]}")


def shown(url: str) -> str:
    """Give a URL as it may stand in a log: without the name and the password that it may have."""
    scheme, sign, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{sign}{place.rpartition('@')[2]}{slash}{path}" if sign else url


def _said(error: Exception, url: str) -> str:
    return repr(error).replace(url, shown(url))


def _shown(token_file: str) -> dict[str, str]:
    if not token_file:
        return {}
    # Read for each call: the kubelet changes a projected token long before it expires.
    try:
        return {"Authorization": f"Bearer {Path(token_file).read_text().strip()}"}
    except (OSError, UnicodeDecodeError) as error:
        raise UnavailableError(f"the token for functions can't be read, see TOKEN_FILE: {error}") from error
