"""Questions at a terminal: what a moment looked like, in text, and whether something was wrong then."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial

import numpy as np

from kreflex.anomaly.asking import Questions, Taught, asked
from kreflex.anomaly.detector import Floats
from kreflex.anomaly.episodes import number
from kreflex.anomaly.feedback import Verdict

_BARS = "▁▂▃▄▅▆▇█"
_BEFORE, _AFTER = 60, 20
_ANSWERS: dict[str, Verdict] = {"y": "confirmed", "n": "dismissed"}


def plot(values: Floats, at: int) -> tuple[str, str]:
    """Draw the samples around one, and what they lie between; a blank stands for a missing sample."""
    near = values[max(0, at - _BEFORE) : at + _AFTER + 1]
    there = near[np.isfinite(near)]
    if not len(there):
        return "", "no samples"
    low, high = float(there.min()), float(there.max())
    # Each is divided first: the difference of the largest numbers is none.
    width = high / 8 - low / 8 or 1.0
    heights = np.clip(np.nan_to_num((near / 8 - low / 8) / width * 8, nan=0.0), 0, 7).astype(int)
    bars = (_BARS[height] if seen else " " for height, seen in zip(heights, np.isfinite(near), strict=True))
    return "".join(bars), f"{number(low)} to {number(high)}"


def hold(found: Sequence[Questions], read: Callable[[], str], tell: Callable[[str], None]) -> list[Taught]:
    """Ask a person about series after series; what was said until he had enough of it."""
    person, heard = _Person(read, tell), []
    for one in found:
        answers = asked(one.track.scores[one.row], one.moments, partial(person.asked, one))
        if answers:
            heard.append(Taught(one.name, answers, one.track.matrix.end, one.factor))
    return heard


@dataclass
class _Person:
    read: Callable[[], str]
    tell: Callable[[str], None]
    enough: bool = False

    def asked(self, about: Questions, at: int) -> Verdict | None:
        """Show a moment, and wait for an answer; None for none, and whatever comes after the person has gone."""
        if self.enough:
            return None
        self.tell(shown(about, at))
        while True:
            self.tell("was something wrong here? y(es), n(o), s(kip) or q(uit): ")
            said = self.read()[:1].lower()
            # Where nobody is there, a line has not even an end.
            self.enough = said in {"q", ""}
            if said in _ANSWERS or said in {"s", "q", ""}:
                return _ANSWERS.get(said)


def shown(about: Questions, at: int) -> str:
    """Tell of one moment what a person needs to judge it."""
    matrix, score = about.track.matrix, about.track.scores[about.row, at]
    kind = "it would have been one" if score >= about.factor else "it would have been none"
    bars, between = plot(matrix.values[about.row], at)
    when = datetime.fromtimestamp(matrix.times[at], UTC)
    head = f"{about.track.signal.name} {about.series}"
    place = " " * min(at, _BEFORE) + "^"
    told = f"{when:%Y-%m-%d %H:%M} UTC, score {score / about.factor:.2f} where 1 is an alarm: {kind}; {between}"
    return f"\n{head}\n  {bars}\n  {place}\n  {told}\n"
