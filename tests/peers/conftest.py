"""These need the larger programs of others, which `make test-peers` builds; `make test` leaves this folder out."""

from collections.abc import AsyncIterator

import pytest

from lab.cluster import ControlPlane
from tests import kit
from tests.senders.surroundings import Function, a_function


@pytest.fixture(scope="session")
async def installed(plane: ControlPlane) -> ControlPlane:
    """The control plane, with Kreflex's CRDs, permissions and ledger."""
    await kit.install(plane)
    return plane


@pytest.fixture
async def here(installed: ControlPlane) -> AsyncIterator[kit.Place]:
    """A namespace of this test's own, with a quick Auto policy."""
    made = await kit.place(installed)
    yield made
    await kit.clear(made)


@pytest.fixture(scope="session")
async def function(installed: ControlPlane) -> AsyncIterator[Function]:
    """A running function that asks its callers for tokens."""
    async with a_function(installed) as running:
        yield running
