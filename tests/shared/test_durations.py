"""Durations as people write them."""

from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kreflex.durations import MOST, parse_duration, show_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90s", 90), ("5m", 300), ("1h30m", 5400), ("1h1m1s", 3661), ("0s", 0), ("168h", 604800), ("87600h", 315360000)],
)
def test_reads_hours_minutes_and_seconds(text: str, seconds: int) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "rubbish", ["", "5", "m", "5 m", "1.5h", "-5m", "5m1h", "5d", "5m\n", "\u0665m", 5, None, [], True]
)
def test_refuses_what_is_no_duration_and_says_how_one_looks(rubbish: object) -> None:
    with pytest.raises(ValueError, match="must be a duration like 90s, 5m or 1h30m, not "):
        parse_duration(rubbish)


@pytest.mark.parametrize("text", ["87600h1s", "99999999999999999h", "9999999999999999999s"])
def test_refuses_more_than_ten_years_instead_of_overflowing(text: str) -> None:
    with pytest.raises(ValueError, match="must not be longer than 87600h"):
        parse_duration(text)


@given(st.integers(min_value=0, max_value=int(MOST.total_seconds())))
def test_what_is_shown_reads_as_the_same(seconds: int) -> None:
    assert parse_duration(show_duration(timedelta(seconds=seconds))) == timedelta(seconds=seconds)


def test_shows_a_moment_before_now_as_nothing() -> None:
    assert show_duration(timedelta(seconds=-1)) == "0s"
