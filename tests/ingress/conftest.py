"""A function behind the real ASGI application of functions_framework, and a caller without a network."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from functions_framework.aio import create_asgi_app

from tests.ingress.surroundings import API


@dataclass(frozen=True)
class Answer:
    """What came back."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Caller:
    """Sends requests to an ASGI application as a server would."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def post(
        self, body: Any, headers: dict[str, str] | None = None, path: str = "/", method: str = "POST"
    ) -> Answer:
        """Send bytes as they are, everything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        # In pieces, as large bodies come.
        pieces = [content[start : start + 65536] for start in range(0, len(content), 65536)] or [b""]
        scope = {
            "type": "http",
            "http_version": "1.1",
            "method": method,
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "headers": [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()],
        }
        answer: dict[str, Any] = {"body": b""}

        async def receive() -> dict[str, Any]:
            if not pieces:
                return {"type": "http.disconnect"}
            piece = pieces.pop(0)
            return {"type": "http.request", "body": piece, "more_body": bool(pieces)}

        async def send(message: dict[str, Any]) -> None:
            answer["body"] += message.get("body", b"")
            answer.update({key: message[key] for key in ("status", "headers") if key in message})

        await self._app(scope, receive, send)
        told = {name.decode(): value.decode("latin-1") for name, value in answer["headers"]}
        return Answer(answer["status"], told, answer["body"])

    async def get(self, path: str) -> Answer:
        return await self.post(b"", path=path, method="GET")


@pytest.fixture(scope="session")
def application() -> Any:
    source = str(Path(__file__).with_name("function.py"))
    return create_asgi_app(target="main", source=source, signature_type="http")  # type: ignore[no-untyped-call]


@pytest.fixture
def caller(application: Any) -> Caller:
    """The function; its API server answers, and has nothing."""
    API.objects, API.calls, API.down = {}, [], False
    return Caller(application)
