"""One chart of a game day: a band for each fault, a row for each probe, the budget, and what the functions did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from html import escape
from itertools import pairwise

from kreflex.chaos.experiments import Experiment, Probed
from kreflex.chaos.healing import began

_WIDTH, _LEFT, _ROW, _TOP = 1000.0, 240.0, 22.0, 30.0
_TICKS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21600, 86400)


@dataclass(frozen=True)
class Scale:
    """From times to places."""

    start: datetime
    end: datetime

    def x(self, at: datetime) -> float:
        """Give the place of a time, within the chart."""
        share = (at - self.start) / (self.end - self.start)
        return round(_LEFT + min(max(share, 0.0), 1.0) * (_WIDTH - _LEFT - 10), 1)


def chart(experiments: Sequence[Experiment]) -> str:
    """Draw it as SVG in the colours of the page; "" where nothing has begun."""
    begun = [one for one in experiments if one.status.started_at is not None]
    if not begun:
        return ""
    times = [line.at for one in begun for line in one.status.timeline]
    times += [at for one in begun for at in (one.status.started_at, one.status.finished_at) if at is not None]
    scale = Scale(min(times), max(*times, min(times) + timedelta(seconds=1)))
    parts, y = list[str](), _TOP
    for one in begun:
        drawn = _rows(one, scale, y)
        parts += drawn
        y += _ROW * (len(_names(one)) + 1) + 6
    return (
        f'<svg viewBox="0 0 {_WIDTH:g} {y + 6:g}" role="img" aria-label="Time line of the game day" '
        f'font-family="system-ui,sans-serif" font-size="12">{_axis(scale, y)}{"".join(parts)}</svg>'
    )


def _axis(scale: Scale, height: float) -> str:
    seconds = (scale.end - scale.start).total_seconds()
    step = next((one for one in _TICKS if seconds / one <= 10), _TICKS[-1])
    marks = []
    for number in range(int(seconds // step) + 1):
        x = scale.x(scale.start + timedelta(seconds=number * step))
        marks.append(
            f'<line x1="{x}" y1="18" x2="{x}" y2="{height:g}" stroke="var(--line)"/>'
            f'<text x="{x}" y="12" text-anchor="middle" fill="var(--faint)">{_told(number * step)}</text>'
        )
    return "".join(marks)


def _told(seconds: int) -> str:
    return f"{seconds} s" if seconds < 120 else f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"


def _names(one: Experiment) -> list[str]:
    rows = ["fault", *(probe.name for probe in one.status.probes)]
    rows += ["error budget"] if one.status.budget else []
    return rows + (["remediation"] if one.spec and one.spec.expects else [])


def _rows(one: Experiment, scale: Scale, y: float) -> list[str]:
    status, height = one.status, _ROW * len(_names(one))
    title = (one.spec.title if one.spec else "") or one.name
    parts = [f'<text x="0" y="{y + 15:g}" font-weight="600" fill="var(--ink)">{escape(title)}: {status.verdict}</text>']
    y += _ROW
    since, until = began(one), status.reverting_at or status.finished_at or scale.end
    if since is not None:
        x = scale.x(since)
        parts.append(
            f'<rect x="{x}" y="{y:g}" width="{max(scale.x(until) - x, 2):.1f}" height="{height:g}" fill="var(--band)"/>'
        )
    for index, name in enumerate(_names(one)):
        parts.append(f'<text x="12" y="{y + index * _ROW + 15:g}" fill="var(--faint)">{escape(_short(name))}</text>')
    parts += _faults(one, scale, y)
    for index, probe in enumerate(status.probes, 1):
        parts += _probe(one, probe, scale, y + index * _ROW)
    row = y + (len(status.probes) + 1) * _ROW
    if status.budget:
        parts.append(_budget(one, scale, row))
        row += _ROW
    return parts + (_healing(one, scale, row) if one.spec and one.spec.expects else [])


def _short(name: str) -> str:
    return name if len(name) <= 34 else f"{name[:33]}…"


def _faults(one: Experiment, scale: Scale, y: float) -> list[str]:
    parts = []
    for injection in one.status.injected:
        if injection.injected_at is None:
            continue
        x, end = scale.x(injection.injected_at), scale.x(injection.reverted_at or scale.end)
        told = escape(f"{injection.fault} of {injection.target.name}: {injection.state}")
        parts.append(
            f'<rect x="{x}" y="{y + 5:g}" width="{max(end - x, 3):.1f}" height="12" rx="3" fill="var(--bad)">'
            f"<title>{told}</title></rect>"
        )
    return parts


def _probe(one: Experiment, probe: Probed, scale: Scale, y: float) -> list[str]:
    end = one.status.reverting_at or one.status.finished_at or scale.end
    turns = [*((turn.at, turn.ok) for turn in probe.turns), (end, True)]
    parts = [_bar(scale.x(a), scale.x(b), y, ok=ok, name=probe.name) for (a, ok), (b, _) in pairwise(turns)]
    for at, ok in ((one.status.started_at, probe.before), (one.status.finished_at, probe.after)):
        if at is not None and ok is not None:
            colour = "good" if ok else "bad"
            parts.append(f'<circle cx="{scale.x(at)}" cy="{y + 11:g}" r="4.5" fill="var(--{colour})"/>')
    return parts


def _bar(x: float, end: float, y: float, *, ok: bool, name: str) -> str:
    colour, word = ("good", "passes") if ok else ("bad", "fails")
    return (
        f'<rect x="{x}" y="{y + 8:g}" width="{max(end - x, 2):.1f}" height="6" fill="var(--{colour})">'
        f"<title>{escape(name)} {word}</title></rect>"
    )


def _budget(one: Experiment, scale: Scale, y: float) -> str:
    last = one.status.budget[-1]
    # Levels are noted when they change: the last one held until the end.
    levels = (*one.status.budget, last.model_copy(update={"at": one.status.finished_at or last.at}))
    points = " ".join(f"{scale.x(at.at)},{y + 19 - 16 * min(max(at.left, 0.0), 1.0):.1f}" for at in levels)
    return (
        f'<polyline points="{points}" fill="none" stroke="var(--budget)" stroke-width="2"/>'
        f'<text x="{scale.x(last.at) + 4:g}" y="{y + 15:g}" fill="var(--budget)">{last.left:.0%}</text>'
    )


def _healing(one: Experiment, scale: Scale, y: float) -> list[str]:
    healed, since = one.status.remediation, began(one)
    if healed is None or since is None or not healed.record:
        return [f'<text x="{_LEFT:g}" y="{y + 15:g}" fill="var(--bad)">nobody did anything</text>']
    spans = [(healed.opened_after, "noticed"), (healed.acted_after, "acted"), (healed.mttr, "healthy")]
    found = [(scale.x(since + timedelta(seconds=after)), word, after) for after, word in spans if after is not None]
    parts = []
    if len(found) > 1:
        parts.append(
            f'<line x1="{found[0][0]}" y1="{y + 11:g}" x2="{found[-1][0]}" y2="{y + 11:g}" stroke="var(--heal)" '
            'stroke-width="4"/>'
        )
    for x, word, after in found:
        told = escape(f"{healed.function} {word} after {after:g} s")
        parts.append(f'<circle cx="{x}" cy="{y + 11:g}" r="5" fill="var(--heal)"><title>{told}</title></circle>')
    return parts
