"""A process that is killed at one of its writes."""

from typing import Any

from kreflex.cluster import Transport
from tests import kit


class CutError(Exception):
    """The process ended here."""


class Mortal(Transport):
    """Ends with one of its writes: before the API server has got it, or before its answer is heard."""

    def __init__(self, credentials: Any, last: int, *, arrives: bool) -> None:
        super().__init__(credentials)
        self._left = last
        self._arrives = arrives

    async def send(self, method: str, path: str, body: kit.Json | None = None, **options: Any) -> kit.Json:
        if self._left < 0:
            raise CutError
        self._left -= method != "GET"
        if self._left < 0 and not self._arrives:
            raise CutError
        answer = await super().send(method, path, body, **options)
        if self._left < 0:
            raise CutError
        return answer
