"""How fast an error budget burns: the windows that are looked at, and the PromQL that tells.

The windows and shares are those of Google's SRE workbook, chapter 5, table 5-8
(https://sre.google/workbook/alerting-on-slos/): 2 % of a month's budget in an hour is 14.4 times too fast, and so on.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Literal

Severity = Literal["page", "ticket"]
# What Sloth has its users write for the window (https://sloth.dev/specs/default/), and we in our own templates.
WINDOW = "{{.window}}"
TAG = "kreflex_window"
_PLACE = re.compile(r"\{\{\s*\.window\s*\}\}")
_MONTH = timedelta(days=30)
# Severity, long window, short window, and the share of a month's budget that is gone after the long one.
_WORKBOOK: tuple[tuple[Severity, timedelta, timedelta, float], ...] = (
    ("page", timedelta(hours=1), timedelta(minutes=5), 0.02),
    ("page", timedelta(hours=6), timedelta(minutes=30), 0.05),
    ("ticket", timedelta(days=1), timedelta(hours=2), 0.1),
    ("ticket", timedelta(days=3), timedelta(hours=6), 0.1),
)
# https://github.com/pyrra-dev/pyrra/blob/main/slo/rules.go, Windows: shares of the SLO's own window.
_PYRRA: tuple[tuple[Severity, float, float, float], ...] = (
    ("page", 1 / (28 * 24), 1 / (28 * 24 * 12), 14),
    ("page", 6 / (28 * 24), 0.5 / (28 * 24), 7),
    ("ticket", 1 / 28, 2 / (28 * 24), 2),
    ("ticket", 1 / 7, 6 / (28 * 24), 1),
)
_UNITS = (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400, "y": 365 * 86400}
_DURATION = re.compile(r"(?:\d+[smhdwy])+")
# A rate needs two samples, and a minute between them is usual.
_SHORTEST = timedelta(minutes=5)
# A query is sent in the URL, which a proxy may cut at 8 KiB; escaped, a letter takes up to three.
_LONGEST = 2000


@dataclass(frozen=True, slots=True)
class Alarm:
    """A burn-rate alert: it is on while `long` and `short` both burn more than `factor` times too fast."""

    severity: Severity
    long: timedelta
    short: timedelta
    factor: float


def workbook(window: timedelta) -> tuple[Alarm, ...]:
    """Give the workbook's alerts for an SLO's window.

    From 28 to 31 days they look at 1h and 5m, 6h and 30m, 1d and 2h, 3d and 6h; for other windows these are scaled.
    """
    scale = 1.0 if timedelta(days=28) <= window <= timedelta(days=31) else window / _MONTH
    return tuple(
        _scaled(severity, long * scale, short * scale, share, window) for severity, long, short, share in _WORKBOOK
    )


def _scaled(severity: Severity, long: timedelta, short: timedelta, share: float, window: timedelta) -> Alarm:
    long, short = max(_minutes(long), 3 * _SHORTEST), max(_minutes(short), _SHORTEST)
    return Alarm(severity, long, short, round(share * (window / long), 4))


def pyrra(window: timedelta) -> tuple[Alarm, ...]:
    """Give the alerts that Pyrra makes for an SLO's window.

    Of a day it makes rules over no time at all, which tell nothing: there it is five minutes.
    """
    return tuple(
        Alarm(severity, _minutes(window * long) or _SHORTEST, _minutes(window * short) or _SHORTEST, factor)
        for severity, long, short, factor in _PYRRA
    )


def _minutes(duration: timedelta) -> timedelta:
    # Half a minute counts as one, as Go's Duration.Round has it.
    return timedelta(minutes=int(duration / timedelta(minutes=1) + 0.5))


def windows(alarms: Iterable[Alarm]) -> tuple[timedelta, ...]:
    """Give the windows that alerts look at, the shortest first."""
    return tuple(sorted({window for alarm in alarms for window in (alarm.long, alarm.short)}))


def prom_duration(duration: timedelta) -> str:
    """Write a duration as Prometheus does: `4w`, `30d`, `1h`, `1d12h`.

    The names of Sloth's and Pyrra's rules end in it: years and weeks only where nothing is left over
    (https://github.com/prometheus/common/blob/main/model/time.go, Duration.String).
    """
    seconds = int(duration.total_seconds())
    for unit in ("y", "w"):
        if seconds and seconds % _SECONDS[unit] == 0:
            return f"{seconds // _SECONDS[unit]}{unit}"
    written = ""
    for unit, size in _UNITS:
        number, seconds = divmod(seconds, size)
        written += f"{number}{unit}" if number else ""
    return written or "0s"


def read_duration(text: str) -> timedelta:
    """Read a duration of Prometheus, such as `30d`, `4w` or `1d12h`; raises ValueError for anything else, and for 0."""
    if not _DURATION.fullmatch(text):
        raise ValueError(f"must be a duration like 30d, 4w or 1h, not {text!r}")
    seconds = sum(int(number) * _SECONDS[unit] for number, unit in re.findall(r"(\d+)([smhdwy])", text))
    if not 0 < seconds <= 10 * _SECONDS["y"]:
        raise ValueError(f"must be longer than nothing, and ten years at most, not {text!r}")
    return timedelta(seconds=seconds)


def windowed(text: str) -> bool:
    """Tell whether a query leaves its window open."""
    return _PLACE.search(text) is not None


def over(template: str, window: timedelta) -> str:
    """Put a window into a query that leaves it open."""
    return _PLACE.sub(prom_duration(window), template)


def questions(asked: Mapping[timedelta, str]) -> tuple[str, ...]:
    """Put one query for each window together, in as few as fit: each series tells its window by the label TAG."""
    tagged = [f'label_replace({query}, "{TAG}", "{prom_duration(window)}", "", "")' for window, query in asked.items()]
    whole: list[str] = []
    for one in tagged:
        if whole and len(whole[-1]) + len(one) <= _LONGEST:
            whole[-1] += f" or {one}"
        else:
            whole.append(one)
    return tuple(whole)
