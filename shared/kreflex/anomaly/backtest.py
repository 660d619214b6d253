"""What a watch would have raised in the past, in numbers and in words, before anyone switches it on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from kreflex.anomaly.replay import Raised, Replay, Track

_SERIES = 15
_RAISED = 40


@dataclass(frozen=True)
class Told:
    """How often one series was beyond its threshold: alarms, each counted once however long it lasts."""

    signal: str
    series: str
    alarms: int
    days: float
    highest: float


def alarms(flags: Iterable[bool], calm: int = 6) -> int:
    """Count the alarms of one series; one is over after so many quiet ticks."""
    count, quiet = 0, calm
    for flag in flags:
        if flag:
            count += quiet >= calm
            quiet = 0
        else:
            quiet += 1
    return count


def by_series(track: Track) -> list[Told]:
    """Tell of each series of a signal, the loudest first."""
    told = []
    for row, key in enumerate(track.matrix.keys):
        scores = track.scores[row]
        seen = np.isfinite(scores)
        days = float(seen.sum()) * track.matrix.step / 86_400
        highest = float(np.max(scores[seen])) if seen.any() else 0.0
        count = alarms(track.flags[row, track.learnt :].tolist()) if track.flags[row].any() else 0
        told.append(Told(track.signal.name, key, count, days, highest))
    return sorted(told, key=lambda one: (-one.alarms, -one.highest, one.series))


def figures(replay: Replay) -> dict[str, object]:
    """Give the figures of a backtest, for programs."""
    wanted = replay.watch.spec.false_alarms_per_series_day
    told = [one for track in replay.tracks for one in by_series(track)]
    return {
        "watch": replay.watch.key,
        "since": replay.since.isoformat(),
        "until": replay.until.isoformat(),
        "series": len(told),
        "series_days": round(replay.series_days, 3),
        "raised": [
            {
                "target": str(one.place),
                "class": one.class_,
                "since": one.since.isoformat(),
                "last_seen": one.last_seen.isoformat(),
                "score": round(one.score, 2),
                "agreed": one.agreed,
                "remediation": one.remediation,
            }
            for one in replay.raised
        ],
        "alarms": sum(one.alarms for one in told),
        "false_alarms_expected": round(wanted * replay.series_days, 3),
        "signals": {
            track.signal.name: {
                "series": len(track.matrix.keys),
                "series_days": round(track.series_days, 3),
                "alarms": sum(one.alarms for one in by_series(track)),
            }
            for track in replay.tracks
        },
    }


def report(replay: Replay) -> Iterator[str]:
    """Tell what would have been raised, line by line."""
    wanted, watch = replay.watch.spec.false_alarms_per_series_day, replay.watch
    span = f"{replay.since:%Y-%m-%d %H:%M} to {replay.until:%Y-%m-%d %H:%M} UTC"
    yield f"{watch.key}: {span}, as production would have seen it"
    for track in replay.tracks:
        told = by_series(track)
        count, days = sum(one.alarms for one in told), track.series_days
        borne = f"{wanted * days:.1f} false ones are borne ({wanted:g} per series-day)"
        yield f"  {track.signal.name}: {len(told)} series, {days:.1f} series-days; {count} alarms, and {borne}"
        loud = [one for one in told if one.alarms]
        for one in loud[:_SERIES]:
            yield f"    {one.alarms:4d} alarms, highest score {one.highest:.2f}, in {one.days:.1f} days: {one.series}"
        if len(loud) > _SERIES:
            yield f"    and {len(loud) - _SERIES} series more"
    yield from _raised(replay)


def _raised(replay: Replay) -> Iterator[str]:
    if not replay.raised:
        yield "  nothing would have been raised"
        return
    classes = ", ".join(f"{count} {name}" for name, count in Counter(one.class_ for one in replay.raised).most_common())
    acted = sum(bool(one.remediation) for one in replay.raised)
    yield f"  raised: {len(replay.raised)} anomalies ({classes}); {acted} of them name a remediation"
    for one in replay.raised[:_RAISED]:
        yield f"    {line(one)}"
    if len(replay.raised) > _RAISED:
        yield f"    and {len(replay.raised) - _RAISED} more, see the page"


def line(one: Raised) -> str:
    """Tell of one anomaly."""
    lasted = (one.last_seen - one.since).total_seconds() / 60
    led = f" -> {one.remediation}" if one.remediation else ""
    agreed = "agreed" if one.agreed else "not agreed"
    return f"{one.since:%m-%d %H:%M} {one.place}: {one.class_}, score {one.score:.2f}, {lasted:.0f} min, {agreed}{led}"
