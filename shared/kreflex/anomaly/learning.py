"""The slow path: what is new is learnt from history, what is known learns on, what has vanished is forgotten."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from kreflex.anomaly.codec import Bundle
from kreflex.anomaly.detector import Detector
from kreflex.anomaly.reading import Samples
from kreflex.anomaly.store import Store
from kreflex.anomaly.watches import Signal, Watch


@dataclass(frozen=True)
class Exclusion:
    """When series with these labels were not normal: an incident, an experiment. In seconds since 1970."""

    labels: Mapping[str, str]
    since: float
    until: float


@dataclass(frozen=True)
class Learnt:
    """What a refresh came to. `pending` are new series that wait for the next one; `told` is for people."""

    bundle: Bundle
    new: int = 0
    updated: int = 0
    dropped: int = 0
    pending: int = 0
    written: bool = False
    told: tuple[str, ...] = ()


def state_name(watch: Watch, signal: Signal) -> str:
    """Name the state of a signal in the store."""
    return f"{watch.uid}.{signal.name}"


async def load(store: Store, watch: Watch, signal: Signal, detector: Detector) -> Bundle | None:
    """Read the state of a signal; None if there is none that can be used. For the fast path, which never learns."""
    raise NotImplementedError


async def refresh(
    store: Store,
    samples: Samples,
    watch: Watch,
    signal: Signal,
    detector: Detector,
    now: float,
    excluded: Sequence[Exclusion] = (),
) -> Learnt:
    """Bring the state of a signal up to date, and write it; another replica that was quicker is fine."""
    raise NotImplementedError
