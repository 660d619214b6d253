"""When a probe asks the API server, and when it does not."""

import asyncio
import math
import time
from collections.abc import Iterator

import pytest

from kreflex.cluster import Contact
from kreflex.errors import KreflexError, UnavailableError
from kreflex.readiness import LIFETIME, Readiness


class Asked:
    """Counts how often the cluster was looked at; an answer is noted in the contact, as the transport does."""

    def __init__(self) -> None:
        self.contact = Contact()
        self.looks = self.firsts = 0
        self.wrong: KreflexError | None = None
        self.readiness = Readiness(self.contact, self.look, self.first)

    async def look(self) -> None:
        self.looks += 1
        await asyncio.sleep(0)
        self.contact.broken = self.wrong is not None
        if self.wrong is not None:
            raise self.wrong
        self.contact.answered = time.monotonic()

    async def first(self) -> None:
        self.firsts += 1

    async def check(self, times: int = 1) -> tuple[int, int]:
        await asyncio.gather(*(self.readiness.check() for _ in range(times)))
        return self.looks, self.firsts


@pytest.fixture
def ending() -> Iterator[None]:
    """A process that was asked to end."""
    LIFETIME.ending = True
    yield
    LIFETIME.ending = False


async def test_many_probes_at_once_ask_once_and_then_no_more() -> None:
    asked = Asked()
    assert await asked.check(20) == (1, 1)
    assert await asked.check(20) == (1, 1)


async def test_asks_again_when_nothing_was_heard_for_a_while() -> None:
    asked = Asked()
    await asked.check()
    asked.contact.answered = -math.inf
    assert await asked.check() == (2, 1)


async def test_asks_again_when_the_last_call_went_wrong() -> None:
    asked = Asked()
    await asked.check()
    asked.contact.broken = True
    assert await asked.check() == (2, 1)
    assert await asked.check() == (2, 1)


@pytest.mark.parametrize("wrong", [UnavailableError("down"), KreflexError("may not list")])
async def test_is_not_ready_until_the_answer_is_good(wrong: KreflexError) -> None:
    asked = Asked()
    asked.wrong = wrong
    for _ in range(2):
        with pytest.raises(UnavailableError, match=str(wrong)):
            await asked.check()
    asked.wrong = None
    assert await asked.check() == (3, 1)


async def test_a_probe_that_gives_up_leaves_the_answer_to_the_others() -> None:
    asked = Asked()
    first, second = (asyncio.ensure_future(asked.readiness.check()) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert asked.looks == 1


async def test_who_ends_is_not_ready_and_asks_nobody(ending: None) -> None:
    asked = Asked()
    with pytest.raises(UnavailableError, match="this process is ending"):
        await asked.check()
    assert asked.looks == 0
