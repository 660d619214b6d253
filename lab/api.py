"""A plain client of the API server for the lab itself: JSON in, JSON out."""

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import yaml

from lab.errors import LabError

Json = dict[str, Any]
_MERGE = "application/merge-patch+json"
_APPLY = "application/apply-patch+yaml"


class Refused(LabError):
    """The API server answered with an error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(f"{status}: {message}")
        self.status = status


class Api:
    """Requests to one API server with one bearer token."""

    def __init__(self, url: str, token: str, authority: bytes) -> None:
        self.url = url
        self._context = ssl.create_default_context(cadata=authority.decode())
        self._headers = {"Authorization": f"Bearer {token}"}
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def get(self, path: str, **query: str) -> Json:
        return await self._send("GET", path, query=query)

    async def find(self, path: str, **query: str) -> Json | None:
        """As get, but None for what does not exist."""
        try:
            return await self.get(path, **query)
        except Refused as refusal:
            if refusal.status == 404:
                return None
            raise

    async def post(self, path: str, body: Json) -> Json:
        return await self._send("POST", path, body)

    async def put(self, path: str, body: Json) -> Json:
        return await self._send("PUT", path, body)

    async def patch(self, path: str, body: Json) -> Json:
        """A merge patch: null removes a key."""
        return await self._send("PATCH", path, body, content_type=_MERGE)

    async def delete(self, path: str, body: Json | None = None) -> Json:
        return await self._send("DELETE", path, body)

    async def apply(self, path: str, body: Json, manager: str = "kreflex-lab", **more: str) -> Json:
        """Server-side apply, as the lab or as somebody whom it plays."""
        query = {"fieldManager": manager, "force": "true", **more}
        return await self._send("PATCH", path, body, query=query, content_type=_APPLY)

    async def watch(self, path: str, **query: str) -> AsyncIterator[Json]:
        """Watch events ({type, object}) until the server ends the watch."""
        unlimited = aiohttp.ClientTimeout(total=None, sock_connect=5)
        query = {"watch": "true", "allowWatchBookmarks": "true", **query}
        async with self._open().get(self.url + path, params=query, ssl=self._context, timeout=unlimited) as answer:
            await _complain(answer)
            # aiohttp bounds the length of a line; an object may be longer.
            rest = b""
            async for chunk in answer.content.iter_any():
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    yield json.loads(line)

    async def _send(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        query: dict[str, str] | None = None,
        content_type: str = "application/json",
    ) -> Json:
        data = None if body is None else json.dumps(body)
        headers = {"Content-Type": content_type}
        request = self._open().request(
            method, self.url + path, params=query, data=data, headers=headers, ssl=self._context
        )
        async with request as answer:
            await _complain(answer)
            result: Json = await answer.json(content_type=None)
            return result

    def _open(self) -> aiohttp.ClientSession:
        if self._session is None:
            limit = aiohttp.ClientTimeout(total=30)
            self._session = aiohttp.ClientSession(headers=self._headers, timeout=limit)
        return self._session


async def _complain(answer: aiohttp.ClientResponse) -> None:
    if answer.status < 400:
        return
    text = await answer.text()
    with contextlib.suppress(ValueError, KeyError, TypeError):
        text = json.loads(text)["message"]
    raise Refused(answer.status, text)


async def eventually(found: Any, what: str, patience: float = 90.0, pause: float = 0.1) -> Any:
    """Ask an asynchronous question again and again until the answer is true; that answer."""
    loop = asyncio.get_running_loop()
    limit = loop.time() + patience
    while True:
        answer = await found()
        if answer:
            return answer
        if loop.time() > limit:
            raise LabError(f"{what}: not within {patience:.0f} s")
        await asyncio.sleep(pause)


def from_kubeconfig(file: Path) -> Api:
    """A client with the rights of a kubeconfig that the lab has written."""
    config = yaml.safe_load(file.read_text())
    cluster, user = config["clusters"][0]["cluster"], config["users"][0]["user"]
    authority = Path(cluster["certificate-authority"]).read_bytes()
    return Api(cluster["server"], user["token"], authority)
