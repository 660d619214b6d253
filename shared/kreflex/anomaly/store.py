"""Where states are kept between two calls: in ConfigMaps, in a folder, or in an object store (docs/adr/0027)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Stored:
    """What is kept under a name, and the version of it that a write may replace."""

    content: bytes
    version: str


class Store(Protocol):
    """Keeps bytes under names; a name is lower-case letters, digits, dots and dashes, 200 at most."""

    async def read(self, name: str) -> Stored | None:
        """Read what is kept; None if nothing is."""
        ...

    async def version(self, name: str) -> str:
        """Tell the version of what is kept, without reading it; "" if nothing is."""
        ...

    async def write(self, name: str, content: bytes, version: str) -> str:
        """Replace the version that was read ("" for none), and give the new one.

        Raises ConflictError if somebody else has written since.
        """
        ...

    async def names(self) -> tuple[str, ...]:
        """Tell what is kept."""
        ...

    async def delete(self, name: str) -> None:
        """Forget what is kept; nothing happens if there is nothing."""
        ...
