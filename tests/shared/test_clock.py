"""The API server's time from its Date headers, stepped by hand."""

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from kreflex.clock import ServerClock

START = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)


@dataclass
class Bench:
    """A server whose clock is `ahead` of the local monotonic one, which stands at 1000 at first."""

    ahead: timedelta = timedelta()
    ticks: float = 1000.0
    clock: ServerClock = field(init=False)

    def __post_init__(self) -> None:
        self.clock = ServerClock(lambda: self.ticks)

    @property
    def truth(self) -> datetime:
        return START + timedelta(seconds=self.ticks - 1000) + self.ahead

    def call(self, way_back: float = 0.0) -> None:
        """One request whose answer takes `way_back` seconds."""
        sent, date = self.ticks, format_datetime(self.truth.replace(microsecond=0), usegmt=True)
        self.ticks += way_back
        self.clock.hear(date, sent)

    @property
    def error(self) -> timedelta:
        return self.truth - self.clock.now()


def test_tells_the_local_time_before_the_first_answer() -> None:
    bench = Bench()
    assert abs(datetime.now(UTC) - bench.clock.now()) < timedelta(seconds=5)
    bench.clock.hear(None, 0)
    assert abs(datetime.now(UTC) - bench.clock.now()) < timedelta(seconds=5)


def test_goes_on_between_two_answers() -> None:
    bench = Bench()
    bench.call()
    bench.ticks += 90
    assert bench.clock.now() == START + timedelta(seconds=90)


def test_comes_close_to_the_truth_although_the_header_has_whole_seconds() -> None:
    bench = Bench(ahead=timedelta(milliseconds=900))
    for _ in range(20):
        bench.call()
        bench.ticks += 0.37
    assert timedelta() <= bench.error < timedelta(milliseconds=100)


def test_is_never_ahead_of_the_server() -> None:
    bench = Bench(ahead=timedelta(milliseconds=500))
    for pause in (0.1, 3.7, 0.25, 12.6):
        bench.call(way_back=pause / 10)
        assert bench.error >= timedelta()
        bench.ticks += pause


def test_an_answer_that_lay_unread_while_the_process_was_stopped_takes_no_time_back() -> None:
    bench = Bench()
    bench.call()
    bench.call(way_back=60)
    assert bench.error < timedelta(seconds=1)


@pytest.mark.parametrize("jump", [timedelta(minutes=-5), timedelta(minutes=5)])
def test_follows_a_server_whose_clock_is_set_when_two_answers_say_so(jump: timedelta) -> None:
    bench = Bench()
    bench.call()
    bench.ahead = jump
    bench.call()
    assert bench.error == jump
    bench.ticks += 3
    bench.call()
    assert bench.error == timedelta()


@pytest.mark.parametrize("wrong", [timedelta(hours=-1), timedelta(hours=1)])
def test_one_answer_of_a_server_whose_clock_is_wrong_changes_nothing(wrong: timedelta) -> None:
    bench = Bench()
    bench.call()
    for _ in range(3):
        bench.ahead = wrong
        bench.call()
        bench.ahead = timedelta()
        bench.call()
        assert bench.error == timedelta()


@pytest.mark.parametrize("date", ["", "yesterday", "Sat, 21 Nov 2026 15:00:00 -0000"])
def test_a_date_that_is_none_tells_nothing(date: str) -> None:
    bench = Bench()
    bench.call()
    bench.clock.hear(date, bench.ticks)
    assert bench.error == timedelta()
