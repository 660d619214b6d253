"""What is learnt, as bytes: equal states are equal bytes, and a damaged or a foreign one is known as such."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from kreflex.errors import KreflexError

State = npt.NDArray[np.void]


class StateError(KreflexError):
    """A state that can't be used: it is damaged, or another detector's. It is learnt anew."""


@dataclass(frozen=True)
class Bundle:
    """What is known of the series of one signal of a watch; the arrays have one entry a series, sorted by key."""

    detector: str
    version: int
    meaning: str
    """What it is about: watch, query, step."""
    tick: float
    """Until when all of it has learnt."""
    keys: tuple[str, ...]
    state: State
    until: npt.NDArray[np.float64]
    """Until when each has learnt."""
    seen: npt.NDArray[np.float64]
    """When each was there last."""


def encode(bundle: Bundle) -> bytes:
    """Give a bundle's bytes."""
    raise NotImplementedError


def decode(content: bytes, dtype: np.dtype[np.void]) -> Bundle:
    """Read a bundle; raises StateError if it can't be used."""
    raise NotImplementedError
