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
        raise UnavailableError(f"{url} did not answer: {error!r}") from error
    if answer.status >= 300:
        raise UnavailableError(f"{url} answered {answer.status}: {text[:300]}")


def _shown(token_file: str) -> dict[str, str]:
    if not token_file:
        return {}
    # Read for each call: the kubelet changes a projected token long before it expires.
    try:
        return {"Authorization": f"Bearer {Path(token_file).read_text().strip()}"}
    except (OSError, UnicodeDecodeError) as error:
        raise UnavailableError(f"the token for functions can't be read, see TOKEN_FILE: {error}") from error
