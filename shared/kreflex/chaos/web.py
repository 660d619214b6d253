"""Requests of probes: one answer, or why there is none."""

from __future__ import annotations

import aiohttp


async def status_of(url: str, seconds: float) -> int | str:
    """Ask once, without following a redirect; the answer's code, or in words why there is none."""
    timeout = aiohttp.ClientTimeout(total=seconds)
    try:
        async with aiohttp.ClientSession(timeout=timeout) as session, session.get(url, allow_redirects=False) as answer:
            return answer.status
    except TimeoutError:
        return f"no answer within {seconds:g} s"
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return f"no answer: {error}"
