"""What a function may answer."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from kreflex.histories import Noted
from kreflex.views import Ref, Workload


@dataclass(frozen=True, slots=True)
class Skip:
    """Nothing is wrong, or nothing is left to do. It leaves no record.

    `final` says that nothing can ever be wrong again with the object of this UID: it is gone.
    """

    because: str
    final: bool = False


@dataclass(frozen=True, slots=True)
class Remember:
    """All is well with this version of a workload, and that is to be remembered. It leaves no record.

    The workload's ReleaseHistory is Kreflex' own memory: it is written in every mode.
    """

    because: str
    workload: Ref
    noted: Noted


@dataclass(frozen=True, slots=True)
class Defer:
    """It is too early to tell; look again at `until`.

    `episode` tells this fault from an earlier one of the same object; see `Action.episode`. `about` is what is ill,
    where that is not the signal's object.
    """

    because: str
    until: datetime
    episode: str = ""
    about: Workload | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Something is wrong, and this function must not touch it. `cause` is one word, for the next function or people.

    Recorded, told as an Event on the object, and handed on as a CloudEvent. Without an event it is asked anew after
    `again`. `about` is what is ill, where that is not the signal's object.
    """

    because: str
    cause: str
    again: timedelta = timedelta(hours=1)
    episode: str = ""
    about: Workload | None = None


@dataclass(frozen=True, slots=True)
class Recovered:
    """The verdict that the owner has been healthy for the proof that the policy asks for."""

    because: str


@dataclass(frozen=True, slots=True)
class Ineffective:
    """The verdict that the fault is there again, or still."""

    because: str


@dataclass(frozen=True, slots=True)
class Unknown:
    """The verdict that nobody can tell any more; it counts as not recovered."""

    because: str


Verdict = Recovered | Ineffective | Unknown
