"""Kreflex installed on the shared control plane, and a namespace for each test."""

from collections.abc import AsyncIterator

import pytest

from lab.cluster import ControlPlane
from tests import kit


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
