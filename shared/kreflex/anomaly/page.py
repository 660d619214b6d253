"""A backtest as one HTML page that stands for itself: no script, no font, nothing from outside, light and dark."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from html import escape

import numpy as np

from kreflex.anomaly import svg
from kreflex.anomaly.backtest import Told, by_series
from kreflex.anomaly.detector import Floats
from kreflex.anomaly.episodes import number, said
from kreflex.anomaly.replay import Raised, Replay, Track

_PLOTS = 40
_QUIET = 4
_ROWS = 200
_POINTS = 700
_WIDTH, _HEIGHT, _STRIP = 960.0, 150.0, 44.0
_TOP = 3.0

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1d2733; --faint: #6b7785; --rule: #dde3ea;
  --line: #2f6db3; --loud: #c8372d; --learnt: #eef2f6; --band: #f6dedb; }
@media (prefers-color-scheme: dark) { :root { --paper: #14191f; --ink: #e3e8ee; --faint: #97a3b0; --rule: #2c3540;
  --line: #6aa7e8; --loud: #ff7a6b; --learnt: #1d252e; --band: #46211f; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1040px; padding: 32px 24px 64px; background: var(--paper); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 24px; margin: 0 0 4px; } h2 { font-size: 18px; margin: 40px 0 8px; }
h3 { font-size: 15px; margin: 28px 0 2px; overflow-wrap: anywhere; }
p { margin: 4px 0; } .faint { color: var(--faint); font-size: 13px; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 5px 12px 5px 0; border-bottom: 1px solid var(--rule); vertical-align: top; }
th { color: var(--faint); font-weight: 500; font-size: 13px; } td.n, th.n { text-align: right; white-space: nowrap; }
.short td:not(:nth-child(4)) { white-space: nowrap; overflow-wrap: normal; }
td { overflow-wrap: anywhere; } .wide { overflow-x: auto; }
svg { width: 100%; height: auto; display: block; } code { font-size: 13px; }
.line { stroke: var(--line); stroke-width: 1.3; } .loud { fill: var(--loud); } .strip { stroke: var(--faint);
  stroke-width: 1; } .limit, .edge { stroke: var(--loud); stroke-dasharray: 4 4; }
.learnt { fill: var(--learnt); } .band { fill: var(--band); } text { fill: var(--faint); font-size: 11px; }
"""


def page(replays: Sequence[Replay]) -> str:
    """Write the page of some backtests."""
    body = "".join(part for replay in replays for part in _of(replay))
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Kreflex: backtest of anomalies</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body>{body}</body></html>\n"
    )


def _of(replay: Replay) -> Iterator[str]:
    watch = replay.watch
    yield f"<h1>{escape(watch.key)}</h1>"
    yield f'<p class="faint">{replay.since:%Y-%m-%d %H:%M} to {replay.until:%Y-%m-%d %H:%M} UTC, tick by tick, as'
    yield f" production would have seen it. What lies before was only learnt from. {len(replay.raised)} anomalies"
    yield " would have been raised.</p>"
    yield _signals(replay)
    yield _anomalies(replay)
    loud = [(track, told) for track in replay.tracks for told in by_series(track)]
    loud.sort(key=lambda pair: (-pair[1].alarms, -pair[1].highest, pair[1].series))
    chosen = [pair for pair in loud if pair[1].alarms]
    if chosen:
        yield f"<h2>Series that were beyond their thresholds{_of_all(len(chosen), _PLOTS)}</h2>"
        yield from (_series(track, told, replay) for track, told in chosen[:_PLOTS])
    quiet = [pair for pair in loud if not pair[1].alarms and pair[1].days]
    if quiet:
        yield f"<h2>Some that were not{_of_all(len(quiet), _QUIET)}</h2>"
        yield from (_series(track, told, replay) for track, told in quiet[:_QUIET])


def _of_all(there: int, most: int) -> str:
    return f" ({most} of {there})" if there > most else ""


def _signals(replay: Replay) -> str:
    wanted = replay.watch.spec.false_alarms_per_series_day
    rows = []
    for track in replay.tracks:
        told = by_series(track)
        days = track.series_days
        cells = [len(told), f"{days:.1f}", sum(one.alarms for one in told), f"{wanted * days:.1f}"]
        rows.append(_row([f"{escape(track.signal.name)}<br><code>{escape(track.signal.query)}</code>"], cells))
    head = _head(["Signal"], ["Series", "Series-days", "Alarms", "False ones borne"])
    return f'<div class="wide"><table>{head}{"".join(rows)}</table></div>'


def _anomalies(replay: Replay) -> str:
    if not replay.raised:
        return ""
    rows = [_anomaly(one) for one in replay.raised[:_ROWS]]
    head = _head(["Since", "Target", "Class", "What was seen", "Leads to"], ["Minutes", "Score"])
    table = f'<div class="wide"><table class="short">{head}{"".join(rows)}</table></div>'
    return f"<h2>Anomalies{_of_all(len(replay.raised), _ROWS)}</h2>{table}"


def _anomaly(one: Raised) -> str:
    told = "; ".join(said(seen) for seen in one.signals[:4])
    led = one.remediation or ("people" if one.agreed else "a look: one signal alone")
    lasted = (one.last_seen - one.since).total_seconds() / 60
    words = [f"{one.since:%m-%d %H:%M}", str(one.place), one.class_, told, led]
    return _row([escape(word) for word in words], [f"{lasted:.0f}", f"{one.score:.2f}"])


def _row(words: Iterable[object], numbers: Iterable[object]) -> str:
    cells = "".join(f"<td>{word}</td>" for word in words) + "".join(f'<td class="n">{one}</td>' for one in numbers)
    return f"<tr>{cells}</tr>"


def _head(words: Iterable[str], numbers: Iterable[str]) -> str:
    cells = "".join(f"<th>{word}</th>" for word in words) + "".join(f'<th class="n">{one}</th>' for one in numbers)
    return f"<tr>{cells}</tr>"


def _series(track: Track, told: Told, replay: Replay) -> str:
    row = track.matrix.keys.index(told.series)
    title = f"{told.signal} of {told.series}"
    count = f"{told.alarms} alarm{'' if told.alarms == 1 else 's'}"
    note = f"{count} in {told.days:.1f} days; the highest score was {told.highest:.2f}, and 1 is the threshold"
    spans = [
        (_index(one.since.timestamp(), track), _index(one.last_seen.timestamp(), track))
        for one in replay.raised
        if (told.signal, told.series) in one.series
    ]
    return f'<h3>{escape(title)}</h3><p class="faint">{note}</p>{_plot(track, row, spans, title)}'


def _index(at: float, track: Track) -> float:
    matrix = track.matrix
    return float(matrix.values.shape[1] - 1 - (matrix.end - at) / matrix.step)


def _plot(track: Track, row: int, spans: Sequence[tuple[float, float]], title: str) -> str:
    values, scores, flags = track.matrix.values[row], track.scores[row], track.flags[row]
    low, high = thinned(values)
    frame = svg.Frame.around(_WIDTH, _HEIGHT, [low, high])
    scale = (frame.samples - 1) / max(len(values) - 1, 1)
    drawn = [f'<rect class="learnt" x="0" y="0" width="{frame.x(track.learnt * scale):g}" height="{_HEIGHT:g}"/>']
    drawn += [_band(frame, begin * scale, end * scale) for begin, end in spans]
    drawn += [svg.line(frame, low, 'class="line"'), svg.line(frame, high, 'class="line"')]
    drawn += [
        f'<circle class="loud" cx="{frame.x(at * scale):g}" cy="{frame.y(values[at]):g}" r="2.5"/>'
        for at in _first_of_runs(flags)
        if math.isfinite(values[at])
    ]
    drawn.append(f'<text x="6" y="12">{number(frame.high)}</text>')
    drawn.append(f'<text x="6" y="{_HEIGHT - 4:g}">{number(frame.low)}</text>')
    drawn.append(_times(track))
    return svg.picture(frame, "".join(drawn), title) + _strip(scores)


def _band(frame: svg.Frame, begin: float, end: float) -> str:
    left, right = frame.x(begin), frame.x(end)
    return f'<rect class="band" x="{left:g}" y="0" width="{max(right - left, 2):g}" height="{_HEIGHT:g}"/>'


def _times(track: Track) -> str:
    matrix = track.matrix
    begin = datetime.fromtimestamp(matrix.end - (matrix.values.shape[1] - 1) * matrix.step, UTC)
    end = datetime.fromtimestamp(matrix.end, UTC)
    return f'<text x="{_WIDTH / 2:g}" y="12" text-anchor="middle">{begin:%m-%d %H:%M} to {end:%m-%d %H:%M}</text>'


def _strip(scores: Floats) -> str:
    """Draw the scores below, cut off where they are far beyond the threshold."""
    _, high = thinned(np.minimum(scores, _TOP))
    frame = svg.Frame(_WIDTH, _STRIP, 0.0, _TOP, len(high))
    edge = frame.y(1.0)
    drawn = f'<path class="edge" d="M4 {edge:g}H{_WIDTH - 4:g}"/>' + svg.line(frame, high, 'class="strip"')
    return svg.picture(frame, f'{drawn}<text x="6" y="{edge - 3:g}">score 1</text>', "score")


def _first_of_runs(flags: Iterable[bool]) -> list[int]:
    """Choose of samples beyond the threshold, one after the other, the first and each tenth."""
    chosen, run = [], 0
    for index, flag in enumerate(flags):
        run = run + 1 if flag else 0
        if run % 10 == 1:
            chosen.append(index)
    return chosen


def thinned(values: Floats) -> tuple[list[float], list[float]]:
    """Give the lowest and the highest of each few samples: what is drawn has as many points as can be seen."""
    size = max(1, math.ceil(len(values) / _POINTS))
    padded = np.concatenate((values, np.full(-len(values) % size, np.nan))).reshape(-1, size)
    low, high = np.full(len(padded), np.nan), np.full(len(padded), np.nan)
    some = np.isfinite(padded).any(axis=1)
    low[some], high[some] = np.nanmin(padded[some], axis=1), np.nanmax(padded[some], axis=1)
    return low.tolist(), high.tolist()
