"""Kreflex installed on the shared control plane, its function, and a namespace for each test."""

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
async def here(installed: ControlPlane) -> kit.Place:
    """A namespace of this test's own, with a quick Auto policy."""
    return await kit.place(installed)


@pytest.fixture(scope="session")
async def function(installed: ControlPlane) -> AsyncIterator[Function]:
    """A running function that asks its callers for tokens."""
    async with a_function(installed) as running:
        yield running
