"""Whether this process should be given work: the API server answers, with our rights, and nobody has asked us to end.

A probe costs no call while the API server has answered anything in the last half minute; after that the next one asks,
and so does each one after a call that failed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from kreflex.cluster import Contact
from kreflex.errors import KreflexError, UnavailableError

_FRESH_SECONDS = 30.0


@dataclass
class Lifetime:
    """Whether this process has been asked to end, and what is closed when it does."""

    ending: bool = False
    closers: list[Callable[[], Awaitable[object]]] = field(default_factory=list)


LIFETIME = Lifetime()


class Readiness:
    """Answers readiness probes; `look` reads what every decision needs, `once` what need be seen only once."""

    def __init__(
        self, contact: Contact, look: Callable[[], Awaitable[object]], once: Callable[[], Awaitable[object]]
    ) -> None:
        self._contact = contact
        self._look = look
        self._once = once
        self._seen = False
        self._looking: asyncio.Task[None] | None = None

    async def check(self) -> None:
        """Return when we are ready; raises UnavailableError with the reason why not."""
        if LIFETIME.ending:
            raise UnavailableError("this process is ending; it answers what has begun")
        fresh = time.monotonic() - self._contact.answered < _FRESH_SECONDS and not self._contact.broken
        if not (self._seen and fresh):
            await self._shared()

    async def _shared(self) -> None:
        # However many probe at once, one asks. Shielded: a probe that gives up must not take the answer from others.
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._ask())
            self._looking.add_done_callback(lambda task: task.cancelled() or task.exception())
        await asyncio.shield(self._looking)

    async def _ask(self) -> None:
        try:
            await self._look()
            if not self._seen:
                await self._once()
        except UnavailableError:
            raise
        except KreflexError as error:
            raise UnavailableError(str(error)) from error
        self._seen = True
