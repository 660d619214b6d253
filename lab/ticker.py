"""Wakes a function again and again, as Knative's PingSource would each minute."""

import argparse
import asyncio
import contextlib
import uuid
from datetime import UTC, datetime
from pathlib import Path

import aiohttp

from lab import bearer

_PATIENCE = 60


async def tick(url: str, seconds: float, token_file: Path) -> None:
    """POST a PingSource's event to a URL each so many seconds, for ever; who does not answer is asked again."""
    limit = aiohttp.ClientTimeout(total=_PATIENCE)
    async with aiohttp.ClientSession(timeout=limit) as session:
        while True:
            with contextlib.suppress(aiohttp.ClientError, TimeoutError, OSError):
                async with session.post(url, data=b"{}", headers=_headers() | bearer.shown(token_file)) as answer:
                    await answer.read()
            await asyncio.sleep(seconds)


def _headers() -> dict[str, str]:
    return {
        "ce-specversion": "1.0",
        "ce-id": str(uuid.uuid4()),
        "ce-type": "dev.knative.sources.ping",
        "ce-source": "/apis/v1/namespaces/kreflex-system/pingsources/waker",
        "ce-time": datetime.now(UTC).isoformat(),
        "content-type": "application/json",
    }


def main() -> None:
    """Run until ended."""
    parser = argparse.ArgumentParser(prog="python -m lab.ticker", description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--token-file", type=Path, required=True)
    arguments = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(tick(arguments.url, arguments.seconds, arguments.token_file))


if __name__ == "__main__":
    main()
