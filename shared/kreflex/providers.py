"""Ask a provider's automation for a node's successor, where no object in the cluster makes one."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import ClassVar

from kreflex import calls, trace
from kreflex.actions import BlockedError, register
from kreflex.cluster import Reader, Writer
from kreflex.errors import UnavailableError
from kreflex.ingress import cloudevents
from kreflex.nodeactions import NodeStep
from kreflex.policy import GROUP
from kreflex.rule import Rule
from kreflex.views import JSON

REQUESTED = "dev.kreflex.node.replacement.requested.v1"
_SOURCE = f"{GROUP}/replacements"
# An attempt has to be over before it is another's.
_WITHIN_SECONDS = 10


@dataclass(frozen=True, kw_only=True)
class AskProvider(NodeStep):
    """Send a CloudEvent to `sink` that asks for a node's successor; the answer is an event, too.

    `home` is the namespace of the record that the answer has to name.
    """

    sink: str
    home: str

    rbac: ClassVar[tuple[Rule, ...]] = ()
    verb: ClassVar[str] = "ask the provider to replace"
    past: ClassVar[str] = "AskedProvider"

    async def apply(self, writer: Writer, reader: Reader, mark: str = "") -> str:  # noqa: ARG002 - it changes nothing
        """Send it; a second sending is the same event, by its id."""
        place = trace.current()
        attributes = {"id": f"{mark}/{self.episode}", **(place.extensions if place is not None else {})}
        headers, body = cloudevents.write(_SOURCE, REQUESTED, self.node.name, self._data(mark), attributes)
        try:
            async with asyncio.timeout(_WITHIN_SECONDS):
                await calls.post(self.sink, headers, body)
        except (UnavailableError, TimeoutError) as error:
            because = str(error) or f"{self.sink} did not answer within {_WITHIN_SECONDS}s"
            raise BlockedError(f"nobody could be asked for a new machine: {because}", "ReplacementSink") from error
        return f"{self.sink} was asked"

    def _data(self, mark: str) -> JSON:
        node = self.node
        return {
            "node": node.name,
            "uid": node.ref.uid,
            "providerID": node.provider_id,
            "zone": node.zone,
            "pool": self.pool.ref.name,
            "because": self.because,
            "record": {"namespace": self.home, "name": mark},
            "answer": {
                "type": cloudevents.ANSWERED,
                "data": {"namespace": self.home, "record": mark, "outcome": "Accepted, Done or Failed"},
            },
        }


register(AskProvider)
