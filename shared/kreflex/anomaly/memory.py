"""Memory that a tick has used is given back: what is read of 10,000 series is several times as much as what is kept.

Both are words of glibc alone (https://man7.org/linux/man-pages/man3/mallopt.3.html, malloc_trim.3.html); elsewhere
nothing is done.
"""

from __future__ import annotations

import contextlib
import ctypes

_ARENA_MAX = -8
_ARENAS = 2


def share() -> None:
    """Let threads share what they get memory from: each else keeps its own, and answers are read in many threads."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_ARENA_MAX, _ARENAS)


def give_back() -> None:
    """Give back what is free."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
