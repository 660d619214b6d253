"""A small picture of a series, as SVG that stands for itself: no script, no font, nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

Numbers = Sequence[float]
_PAD = 4.0


@dataclass(frozen=True)
class Frame:
    """How large a picture is, and which values it has room for."""

    width: float
    height: float
    low: float
    high: float
    samples: int

    @classmethod
    def around(cls, width: float, height: float, lines: Iterable[Numbers]) -> Frame:
        """Make room for all of these lines; a line that is level stands in the middle."""
        rows = [list(line) for line in lines]
        finite = [value for row in rows for value in row if math.isfinite(value)]
        low, high = (min(finite), max(finite)) if finite else (0.0, 1.0)
        room = (high - low) * 0.05 or abs(high) * 0.05 or 1.0
        return cls(width, height, low - room, high + room, max((len(row) for row in rows), default=1))

    def x(self, index: float) -> float:
        """Tell where a sample is."""
        return round(_PAD + index * (self.width - 2 * _PAD) / max(self.samples - 1, 1), 1)

    def y(self, value: float) -> float:
        """Tell where a value is."""
        share = (value - self.low) / (self.high - self.low)
        return round(self.height - _PAD - share * (self.height - 2 * _PAD), 1)


def line(frame: Frame, values: Numbers, style: str) -> str:
    """Draw a line that is broken where samples are missing; one sample between two gaps is a dot."""
    parts = []
    for run in _runs(values):
        points = [f"{frame.x(index):g},{frame.y(values[index]):g}" for index in run]
        if len(points) == 1:
            points.append(points[0])
        parts.append(f'<polyline {style} fill="none" stroke-linecap="round" points="{" ".join(points)}"/>')
    return "".join(parts)


def _runs(values: Numbers) -> list[list[int]]:
    runs: list[list[int]] = []
    for index, value in enumerate(values):
        if not math.isfinite(value):
            continue
        if runs and runs[-1][-1] == index - 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return runs


def sparkline(values: Numbers, limit: float = math.nan, title: str = "") -> str:
    """Draw the last samples of a series, the newest marked, and the limit if it is near."""
    near = math.isfinite(limit) and limit <= 2 * max((value for value in values if math.isfinite(value)), default=0)
    frame = Frame.around(240, 60, [values, [limit] if near else []])
    drawn = [line(frame, values, 'stroke="#3572b0" stroke-width="1.5"')]
    if near:
        top = frame.y(limit)
        drawn.append(f'<path d="M{_PAD:g} {top:g}H{frame.width - _PAD:g}" stroke="#c0392b" stroke-dasharray="4 3"/>')
    last = len(values) - 1
    if last >= 0 and math.isfinite(values[last]):
        drawn.append(f'<circle cx="{frame.x(last):g}" cy="{frame.y(values[last]):g}" r="3" fill="#c0392b"/>')
    return picture(frame, "".join(drawn), title)


def picture(frame: Frame, inside: str, title: str = "") -> str:
    """Put a frame around what was drawn."""
    named = f"<title>{escape(title)}</title>" if title else ""
    size = f'width="{frame.width:g}" height="{frame.height:g}" viewBox="0 0 {frame.width:g} {frame.height:g}"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" role="img" {size}>{named}{inside}</svg>'
