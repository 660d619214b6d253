"""What several test folders share: one control plane with simulated nodes for the whole run."""

from collections.abc import AsyncIterator

import pytest

from lab import nodes
from lab.cluster import ControlPlane


@pytest.fixture(scope="session")
async def plane(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """A running control plane with three simulated nodes; each test makes objects under names of its own."""
    async with ControlPlane(tmp_path_factory.mktemp("lab")) as running:
        await nodes.start(running, 3)
        yield running
