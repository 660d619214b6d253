"""The fast path: equal answers from a kept window and from a new one, limits, and series without a state."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt
import pytest

from kreflex.anomaly.agreement import Place
from kreflex.anomaly.codec import Bundle
from kreflex.anomaly.detector import About, Floats, Scores
from kreflex.anomaly.reading import Matrix, Vector
from kreflex.anomaly.scoring import Scored, Windows, limits_of, score
from tests.anomalies import Loud, a_signal, a_watch

NAN = math.nan
WATCH = a_watch()
MEMORY = WATCH.spec.signals[0]


@dataclass
class Story:
    """Samples of some series, by minute; a minute that is not there is a missing sample."""

    series: Mapping[str, Mapping[int, float]]
    partial: bool = False
    asked: list[str] = field(default_factory=list)

    async def instant(self, query: str, at: float) -> Vector:
        self.asked.append("instant")
        minute = round(at / 60)
        there = [key for key in sorted(self.series) if minute in self.series[key]]
        labels = tuple({"namespace": "shop", "pod": key} for key in there)
        values = np.array([self.series[key][minute] for key in there], dtype=float)
        return Vector(tuple(there), labels, values, at, partial=self.partial)

    async def window(self, query: str, end: float, step: float, samples: int) -> Matrix:
        self.asked.append("window")
        minutes = [round(end / 60) - back for back in range(samples - 1, -1, -1)]
        there = [key for key in sorted(self.series) if self.series[key].keys() & set(minutes)]
        rows = [[self.series[key].get(minute, NAN) for minute in minutes] for key in there]
        labels = tuple({"namespace": "shop", "pod": key} for key in there)
        return Matrix(tuple(there), labels, np.array(rows).reshape(len(there), samples), end, step, (), self.partial)


STORY = {
    "always": {minute: float(minute) for minute in range(100)},
    "comes": dict.fromkeys(range(12, 100), 1.0),
    "flaps": {minute: 2.0 for minute in range(100) if minute % 4},
    "goes": dict.fromkeys(range(14), 3.0),
    "no-number": dict.fromkeys(range(100), NAN),
}


async def test_a_kept_window_says_what_a_new_one_says() -> None:
    kept = Windows(Story(STORY))
    for minute in range(8, 24):
        warm = await kept.recent(WATCH, MEMORY, minute * 60.0, 5)
        cold = await Windows(Story(STORY)).recent(WATCH, MEMORY, minute * 60.0, 5)
        assert (warm.keys, warm.labels, warm.end) == (cold.keys, cold.labels, cold.end)
        assert np.array_equal(warm.values, cold.values, equal_nan=True), minute


async def test_only_the_tick_after_is_gone_on_with() -> None:
    story = Story(STORY)
    windows = Windows(story)
    for minute in (10, 11, 11, 13, 12):
        await windows.recent(WATCH, MEMORY, minute * 60.0, 5)
    assert story.asked == ["window", "instant", "window", "window"]


async def test_what_may_be_incomplete_is_not_gone_on_with() -> None:
    story = Story(STORY, partial=True)
    windows = Windows(story)
    for minute in (10, 11):
        await windows.recent(WATCH, MEMORY, minute * 60.0, 5)
    assert story.asked == ["window", "window"]


def test_a_limit_belongs_to_the_series_that_has_its_labels() -> None:
    labels = [{"namespace": "shop", "pod": "a", "container": "app"}, {"namespace": "bank", "pod": "a"}]
    limit = Vector(("x", "y"), ({"namespace": "shop", "pod": "a"}, {"pod": "b"}), np.array([5.0, 6.0]), 0)
    assert np.array_equal(limits_of(labels, limit), [5.0, NAN], equal_nan=True)


async def test_what_nobody_asks_for_any_more_is_not_kept() -> None:
    windows = Windows(Story(STORY))
    await windows.recent(a_watch(signals=[a_signal("old")]), a_watch().spec.signals[1], 600.0, 5)
    await windows.recent(WATCH, MEMORY, 600.0 + 7140, 5)
    assert len(windows._kept) == 2
    await windows.recent(WATCH, MEMORY, 600.0 + 7200, 5)
    assert len(windows._kept) == 1


async def scored(
    values: dict[str, float],
    known: tuple[str, ...],
    *,
    partial: bool = False,
    detector: Loud | None = None,
    **watch: object,
) -> Scored:
    made, keys = detector or Loud(), tuple(sorted(values))
    rows = np.array([[10.0, 10.0, values[key]] for key in keys])
    recent = Matrix(keys, tuple({"namespace": "shop", "pod": key} for key in keys), rows, 600.0, 60.0, (), partial)
    none = np.zeros(len(known))
    bundle = Bundle("loud", 1, "", 0.0, known, np.zeros(len(known), made.dtype), none, none)
    chosen = a_watch(**watch)
    about = About(60, 600.0, "gauge", 0.05)
    return await score(made, bundle, chosen, chosen.spec.signals[0], recent, about)


async def test_of_a_series_without_a_state_nothing_is_said() -> None:
    found = await scored({"a": 150, "b": 150, "c": 50}, ("a", "c", "gone"))
    assert found.known.tolist() == [True, False, True]
    assert found.scores.score.tolist() == pytest.approx([1.5, NAN, 0.5], nan_ok=True)
    assert [place for place, _ in found.findings()] == [Place("Pod", "shop", "a")]


async def test_only_the_classes_that_a_signal_is_asked_for_are_found() -> None:
    found = await scored({"a": 150}, ("a",), signals=[a_signal(classes=["leak"])])
    assert list(found.findings()) == []
    assert list(found.simmering()) == [Place("Pod", "shop", "a")]


async def test_a_series_is_there_is_not_or_may_be() -> None:
    found = await scored({"a": 150, "b": NAN}, ("a", "b"))
    assert [found.present(one) for one in ("a", "b", "unknown")] == [True, False, False]


class Missed(Loud):
    """Takes a missing sample for an anomaly, too."""

    def score(self, state: npt.NDArray[np.void], recent: Floats, about: About) -> Scores:
        scores = super().score(state, recent, about)
        gone = np.isnan(recent[:, -1])
        return replace(scores, score=np.where(gone, 2.0, scores.score), flag=scores.flag | gone)


@pytest.mark.parametrize(("partial", "found"), [(False, ["a", "b"]), (True, ["a"])])
async def test_what_an_incomplete_answer_leaves_out_is_not_taken_for_absent(partial: bool, found: list[str]) -> None:
    told = await scored({"a": 150, "b": NAN}, ("a", "b"), partial=partial, detector=Missed())
    assert [place.name for place, _ in told.findings()] == found
    assert sorted({place.name for place in told.simmering()}) == found


async def test_a_series_tells_since_when_it_has_samples() -> None:
    found = await scored({"a": 150}, ("a",))
    assert (found.begun("a"), found.begun("unknown")) == (480.0, None)
