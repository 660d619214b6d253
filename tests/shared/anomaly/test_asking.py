"""Questions about the past of a series: which moments are asked about, and what the answers teach."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest

from kreflex.anomaly.asking import Answer, Questions, Taught, apart, asked, learnt, moments, questions, taught, teach
from kreflex.anomaly.detector import Floats
from kreflex.anomaly.dialogue import hold, plot
from kreflex.anomaly.feedback import LEAST, Book, Verdict, read_book
from kreflex.anomaly.reading import Matrix
from kreflex.anomaly.replay import Replay, Track
from kreflex.anomaly.store import Folder
from tests.anomalies import a_watch

END = 1_700_000_000.0


def scores(**at: float) -> Floats:
    """Five hours of minutes of a quiet series; `m90=0.8` is what it scored in the minute 90."""
    found = np.full(300, 0.1)
    for name, score in at.items():
        found[int(name[1:])] = score
    return found


def a_replay(**of: Floats) -> Replay:
    """Play series of these scores."""
    values = np.tile(np.arange(300.0), (len(of), 1))
    matrix = Matrix(tuple(of), tuple({"pod": name} for name in of), values, END, 60.0)
    watch = a_watch()
    found = np.array(list(of.values()))
    track = Track(watch.spec.signals[0], matrix, 0, found, found >= 1)
    return Replay(watch, datetime.fromtimestamp(END - 300 * 60, UTC), datetime.fromtimestamp(END, UTC), [track], [])


def says(*verdicts: Verdict | None) -> Callable[[int], Verdict | None]:
    left = iter(verdicts)
    return lambda _: next(left)


def types(*lines: str) -> Callable[[], str]:
    left = iter(lines)
    return lambda: next(left, "")


def test_the_strongest_moments_are_asked_about_an_hour_apart() -> None:
    series = scores(m50=0.8, m51=0.95, m109=0.9, m200=1.5, m280=0.69)
    assert list(moments(series, 60, 5)) == [200, 51]
    assert list(moments(series, 30, 5)) == [200, 51, 109]
    assert list(moments(series, 30, 2)) == [200, 51]


def test_missing_scores_and_quiet_series_are_not_asked_about() -> None:
    assert list(moments(np.full(10, np.nan), 60, 5)) == []
    assert list(moments(scores(m9=0.5), 60, 5)) == []
    assert list(moments(np.zeros(0), 60, 5)) == []


def test_how_near_a_miss_is_depends_on_the_factor() -> None:
    assert list(moments(scores(m9=1.3), 60, 5, factor=2.0)) == []
    assert list(moments(scores(m9=0.5), 60, 5, factor=0.7)) == [9]


def test_two_moments_are_an_hour_apart_or_six_sparse_samples() -> None:
    assert [apart(step) for step in (10.0, 60.0, 300.0, 3600.0)] == [360, 60, 12, 6]


def test_nothing_weaker_than_what_was_dismissed_is_asked_about() -> None:
    series = scores(m50=0.95, m120=0.9, m200=0.8)
    found = asked(series, [50, 120, 200], says("confirmed", "dismissed"))
    assert found == (Answer(0.95, "confirmed"), Answer(0.9, "dismissed"))


def test_what_is_skipped_teaches_nothing() -> None:
    assert asked(scores(m50=0.95, m120=0.9), [50, 120], says(None, "confirmed")) == (Answer(0.9, "confirmed"),)


@pytest.mark.parametrize(
    ("answers", "factor"),
    [
        ([Answer(0.8, "confirmed")], 0.776),
        ([Answer(0.8, "dismissed")], 1.0),
        ([Answer(1.2, "dismissed")], 1.26),
        ([Answer(1.2, "confirmed")], 0.95),
        ([Answer(0.9, "confirmed"), Answer(0.75, "confirmed")], 0.7275),
        ([Answer(0.9, "confirmed"), Answer(0.85, "dismissed")], 0.8925),
        ([Answer(99.0, "dismissed")], 4.0),
        ([Answer(0.1, "confirmed")], LEAST),
    ],
)
def test_answers_move_the_factor_to_just_below_or_just_above(answers: list[Answer], factor: float) -> None:
    assert taught(1.0, answers) == pytest.approx(factor, abs=1e-4)


def test_the_loudest_series_is_asked_about_first() -> None:
    played = a_replay(a=scores(m9=0.8), b=scores(m9=1.8, m200=0.9), c=scores())
    assert [(one.name, one.moments) for one in questions(played, Book(), 5)] == [
        ("memory/b", (9, 200)),
        ("memory/a", (9,)),
    ]


def test_what_was_asked_about_before_is_not_asked_again() -> None:
    played = a_replay(a=scores(m9=0.8, m250=0.75))
    until = played.tracks[0].matrix.times[100]
    assert [one.moments for one in questions(played, Book(asked={"memory/a": until}), 5)] == [(250,)]
    assert questions(played, Book(asked={"memory/a": END}), 5) == []


def test_answers_about_the_same_time_count_once() -> None:
    answers = [Taught("memory/a", (Answer(1.2, "confirmed"),), END)]
    once = learnt(Book(), answers)
    assert once == Book(factors={"memory/a": 0.95}, asked={"memory/a": END})
    assert learnt(once, answers) == once


def test_what_was_asked_about_long_ago_is_forgotten() -> None:
    book = Book(asked={"memory/old": END - 61 * 86_400, "memory/new": END - 59 * 86_400})
    assert learnt(book, [Taught("memory/a", (Answer(0.8, "dismissed"),), END)]) == Book(
        asked={"memory/new": END - 59 * 86_400, "memory/a": END}
    )


def test_answers_go_on_from_what_the_siblings_have_taught() -> None:
    answers = [Taught("memory/a", (Answer(1.2, "confirmed"),), END, factor=1.5)]
    assert learnt(Book(), answers).factors == {"memory/a": 1.164}


async def test_answers_of_two_people_at_once_are_both_kept(tmp_path: Path) -> None:
    store, watch = Folder(tmp_path), a_watch()
    said = [[Taught(f"memory/{pod}", (Answer(0.8, "confirmed"),), END)] for pod in "ab"]
    await asyncio.gather(*(teach(store, watch, one) for one in said))
    book, _ = await read_book(store, watch)
    assert book == Book(factors={"memory/a": 0.776, "memory/b": 0.776}, asked={"memory/a": END, "memory/b": END})


def test_a_person_answers_skips_and_goes() -> None:
    found = questions(a_replay(a=scores(m9=0.9, m200=0.8), b=scores(m9=1.8), c=scores(m9=0.75)), Book(), 5)
    shown: list[str] = []
    heard = hold(found, types("n\n", "what?\n", "s\n", "yes\n", "q\n"), shown.append)
    assert heard == [
        Taught("memory/b", (Answer(1.8, "dismissed"),), END),
        Taught("memory/a", (Answer(0.8, "confirmed"),), END),
    ]
    assert sum(one.startswith("was something wrong here?") for one in shown) == 5


def test_nobody_there_is_no_answer() -> None:
    assert hold(questions(a_replay(a=scores(m9=0.9)), Book(), 5), types(), lambda _: None) == []


def test_a_question_shows_the_moment_and_says_what_it_was() -> None:
    found: list[Questions] = questions(a_replay(a=scores(m70=0.9)), Book(), 5)
    shown: list[str] = []
    hold(found, types("s\n"), shown.append)
    assert shown[0].splitlines() == [
        "",
        "memory a",
        "  " + "".join(bar * count for bar, count in zip("▁▂▃▄▅▆▇█", (10, 10, 10, 10, 10, 10, 10, 11), strict=True)),
        "  " + " " * 60 + "^",
        "  2023-11-14 18:24 UTC, score 0.90 where 1 is an alarm: it would have been none; 10 to 90",
    ]


def test_a_plot_leaves_missing_samples_blank_and_bears_any_numbers() -> None:
    assert plot(np.array([1.0, np.nan, 3.0]), 0) == ("▁ █", "1 to 3")
    assert plot(np.array([2.0, 2.0]), 1) == ("▁▁", "2 to 2")
    assert plot(np.array([np.nan]), 0) == ("", "no samples")
    assert plot(np.array([-1.7e308, 0.0, 1.7e308]), 1)[0] == "▁▅█"
