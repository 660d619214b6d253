"""How many requests are answered at a time."""

from collections.abc import Iterator

import pytest

from kreflex import figures
from tests.ingress.conftest import Caller
from tests.ingress.surroundings import API

PING = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "me", "ce-type": "dev.knative.sources.ping"}


@pytest.fixture
def crowded() -> Iterator[None]:
    figures.IN_FLIGHT.value = 200
    yield
    figures.IN_FLIGHT.value = 0


async def test_a_request_too_many_is_told_to_come_again(caller: Caller, crowded: None) -> None:
    answer = await caller.post({}, PING)
    assert (answer.status, answer.json["error"]) == (503, "200 requests are being answered already; come again")
    assert figures.IN_FLIGHT.value == 200
    assert API.calls == []


@pytest.mark.parametrize("headers", [PING, {}])
async def test_a_request_gives_its_place_back(caller: Caller, headers: dict[str, str]) -> None:
    assert (await caller.post({}, headers)).status in {204, 400}
    assert figures.IN_FLIGHT.value == 0
