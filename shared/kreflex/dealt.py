"""Faults that are dealt with for good, so that hearing of them again costs nothing.

No limit and no promise rests on it: what is forgotten is looked up again. Only what can't change is kept: a record that
is final, and an object that is gone under its UID. A record that somebody deletes, so that its fault is treated once
more, is missed for a minute at most.
"""

from __future__ import annotations

from collections.abc import Callable

_SECONDS = 60.0
_MOST = 10_000


class Dealt:
    """Keeps the keys of such faults for a minute each, and ten thousand at most."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._known: dict[str, tuple[float, str]] = {}

    def keep(self, key: str, because: str) -> None:
        """Remember why nothing can follow; an empty key is no fault."""
        if key:
            self._known.pop(key, None)
            self._known[key] = (self._monotonic() + _SECONDS, because)
        if len(self._known) > _MOST:
            del self._known[next(iter(self._known))]

    def get(self, key: str) -> str | None:
        """Tell why nothing can follow; None for what is not known, or no longer."""
        until, because = self._known.get(key, (0.0, ""))
        return because if self._monotonic() < until else None
