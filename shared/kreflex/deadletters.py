"""`python -m kreflex.deadletters`: the sink for events that could not be delivered; it writes each into its log.

Nothing else is done with them, because nothing is lost with them: the waker finds what they were about. Many of them
mean that a function is not reached, and that faults wait for the waker's minute.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import timedelta

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from kreflex.audit import configure_logging, log
from kreflex.server import Server

# What a Knative dispatcher adds: https://knative.dev/docs/eventing/event-delivery/
_ERROR = {"destination": "knativeerrordest", "code": "knativeerrorcode", "answer": "knativeerrordata"}
_ABOUT = ("id", "type", "source", "subject")
_MOST_BYTES = 2**20
_LONGEST = 500


async def receive(request: Request) -> Response:
    """Log one event, in binary or in structured mode; whatever comes is answered 204, for there is no one behind us."""
    attributes = _attributes(request.headers, await _beginning(request))
    named = {key: attributes.get(key, "")[:_LONGEST] for key in _ABOUT}
    wrong = {key: attributes.get(name, "")[:_LONGEST] for key, name in _ERROR.items()}
    log.warning("event.undelivered", **named, **wrong)
    return Response(status_code=204)


async def _beginning(request: Request) -> bytes:
    body = bytearray()
    async for chunk in request.stream():
        if len(body) <= _MOST_BYTES:
            body += chunk
    return bytes(body)


def _attributes(headers: Mapping[str, str], body: bytes) -> dict[str, str]:
    if "ce-specversion" in headers:
        return {name.removeprefix("ce-"): value for name, value in headers.items() if name.startswith("ce-")}
    try:
        event = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return {name: str(value) for name, value in event.items()} if isinstance(event, dict) else {}


async def healthy(_: Request) -> Response:
    """Tell that the process serves."""
    return Response("ok")


def main() -> None:
    """Serve on $HOST:$PORT until SIGTERM."""
    configure_logging()
    routes = [Route("/", receive, methods=["POST"]), Route("/healthz", healthy), Route("/readyz", healthy)]
    host = os.environ.get("HOST", "0.0.0.0")  # noqa: S104 - a pod is reached through its own address
    Server(Starlette(routes=routes), host, int(os.environ.get("PORT", "8080")), timedelta(seconds=1)).run()


if __name__ == "__main__":
    main()
