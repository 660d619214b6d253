"""Durations as Kubernetes users write them: `90s`, `5m`, `1h30m`."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Annotated

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

PATTERN = r"^([0-9]+h)?([0-9]+m)?([0-9]+s)?$"
_PARTS = re.compile(PATTERN)
# Ten years: times that are added up stay dates, and a policy with more is refused instead of failing later.
MOST = timedelta(days=3650)


def parse_duration(text: object) -> timedelta:
    """Read `1h30m`, `5m`, `90s`; raises ValueError for anything else, and for more than ten years."""
    if isinstance(text, timedelta):
        return text
    match = _PARTS.fullmatch(text) if isinstance(text, str) and text else None
    if match is None:
        raise ValueError(f"must be a duration like 90s, 5m or 1h30m, not {text!r}")
    hours, minutes, seconds = (int(part[:-1]) if part else 0 for part in match.groups())
    total = 3600 * hours + 60 * minutes + seconds
    if total > MOST.total_seconds():
        raise ValueError(f"must not be longer than {show_duration(MOST)}, which is ten years, not {text!r}")
    return timedelta(seconds=total)


def show_duration(duration: timedelta) -> str:
    """Write a duration the way it is read, in whole seconds: `1h30m`, `45s`, `0s`; less than nothing is `0s` too."""
    # Two replicas may differ by a moment about what is now.
    seconds = max(0, round(duration.total_seconds()))
    parts = ((seconds // 3600, "h"), (seconds % 3600 // 60, "m"), (seconds % 60, "s"))
    return "".join(f"{number}{unit}" for number, unit in parts if number) or "0s"


Duration = Annotated[
    timedelta,
    BeforeValidator(parse_duration),
    PlainSerializer(show_duration, return_type=str),
    WithJsonSchema({"type": "string", "pattern": PATTERN, "minLength": 2, "maxLength": 20}),
]
