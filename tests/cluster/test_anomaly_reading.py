"""What a real Prometheus with a past says, in numbers; and what is learnt from it."""

import asyncio
import math
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kreflex.anomaly import learning, reading
from kreflex.anomaly.codec import Bundle, encode
from kreflex.anomaly.detector import About, Bools, Floats, Scores
from kreflex.anomaly.learning import Exclusion, States, forget, load, refresh, state_name
from kreflex.anomaly.reading import Matrix, Samples, Vector, narrowed
from kreflex.anomaly.store import Folder
from kreflex.anomaly.watches import Broken, Watch, WatchSpec
from kreflex.errors import QueryError, UnavailableError
from kreflex.prom import Metrics
from lab.history import Past, prometheus_with

# The newest sample of all; a whole hour.
END = 1_699_999_200
MINUTE, HOUR, DAY = 60, 3600, 86_400
NAN = math.nan


def past() -> Past:
    """Two days of a shop: two old pods, one that came 30 minutes ago, one that went 90 minutes ago, and its like."""
    for pod, since, until in (
        ("cart-a", END - 2 * DAY, END),
        ("cart-b", END - 2 * DAY, END),
        ("cart-c", END - 30 * MINUTE, END),
        ("gone", END - DAY, END - 90 * MINUTE),
    ):
        yield "memory", {"namespace": "shop", "pod": pod, "app": pod[:4]}, minutely(since, until)
    yield "memory", {"namespace": "bank", "pod": "teller", "app": "bank"}, minutely(END - 2 * DAY, END)
    yield "memory_limit", {"namespace": "bank", "pod": "teller", "app": "bank"}, [(END, 5000.0)]
    yield "ratio", {"pod": "none"}, [(END, NAN)]
    yield "ratio", {"pod": "odd"}, [(END, math.inf)]
    yield "ratio", {"pod": 'strange "\\\n$1'}, [(END, 0.5)]
    yield "requests_total", {"pod": "cart-a"}, [(END - 5 * MINUTE + MINUTE * n, float(n % 4)) for n in range(6)]


def minutely(since: int, until: int) -> Iterator[tuple[float, float]]:
    # The sample says its own minute, so that a test sees which one it got.
    return ((at, float(at % DAY // MINUTE)) for at in range(since, until + 1, MINUTE))


@pytest.fixture(scope="module")
async def url(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    async with prometheus_with(tmp_path_factory.mktemp("past"), past()) as address:
        yield address


@pytest.fixture
def samples(url: str) -> Samples:
    return Samples(Metrics(url))


def minute(at: float) -> float:
    return at % DAY // MINUTE


def pods(found: Vector | Matrix) -> list[str]:
    return [labels["pod"] for labels in found.labels]


async def test_the_newest_samples_are_in_the_order_of_their_keys(samples: Samples) -> None:
    found = await samples.instant('memory{namespace="shop"}', END)
    assert found.keys == (
        '{app="cart",namespace="shop",pod="cart-a"}',
        '{app="cart",namespace="shop",pod="cart-b"}',
        '{app="cart",namespace="shop",pod="cart-c"}',
    )
    assert found.values.tolist() == [minute(END)] * 3
    assert (found.at, found.warnings, found.partial) == (END, (), False)


async def test_what_is_no_number_is_missing(samples: Samples) -> None:
    found = await samples.instant("ratio", END)
    assert found.keys == ('{pod="none"}', '{pod="odd"}', '{pod="strange \\"\\\\\\n$1"}')
    assert np.isnan(found.values).tolist() == [True, True, False]


async def test_a_window_has_a_place_for_each_sample(samples: Samples) -> None:
    found = await samples.window("memory", END, MINUTE, 120)
    assert pods(found) == ["teller", "cart-a", "cart-b", "cart-c", "gone"]
    assert found.times.tolist() == [END - MINUTE * n for n in range(119, -1, -1)]
    whole = [minute(at) for at in found.times]
    assert found.values[0].tolist() == found.values[1].tolist() == whole
    # Prometheus looks back 5 minutes for the last sample.
    assert np.isnan(found.values[3]).tolist() == [True] * 89 + [False] * 31
    assert np.isnan(found.values[4]).tolist() == [False] * 34 + [True] * 86


async def test_rows_are_given_in_any_order_and_missing_ones_are_empty(samples: Samples) -> None:
    found = await samples.window('memory{app="cart"}', END, MINUTE, 3)
    rows = found.of(["unknown", found.keys[1], found.keys[0]])
    assert np.isnan(rows[0]).all()
    assert rows[1:].tolist() == found.values[[1, 0]].tolist()


async def test_a_long_window_is_asked_in_pieces(samples: Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = await samples.window("memory", END, MINUTE, 2 * 1440)
    monkeypatch.setattr(reading, "_MOST_POINTS", 1000)
    pieces = await samples.window("memory", END, MINUTE, 2 * 1440)
    assert pieces.keys == whole.keys
    assert np.array_equal(pieces.values, whole.values, equal_nan=True)


async def test_more_points_than_prometheus_gives_at_once(samples: Samples) -> None:
    found = await samples.window('memory{pod="teller"}', END, 10, 2 * 8640)
    assert found.values.shape == (1, 17_280)
    assert np.isfinite(found.values).all()


async def test_a_rate_is_not_negative_where_the_counter_began_anew(samples: Samples) -> None:
    found = await samples.window("rate(requests_total[3m])", END, MINUTE, 4)
    assert (found.values[np.isfinite(found.values)] >= 0).all()
    assert np.isfinite(found.values[0, -1])


async def test_a_query_is_narrowed_to_the_series_of_some_labels(samples: Samples) -> None:
    wanted = [("shop", "cart-b"), ("bank", "teller"), ("shop", "nobody")]
    found = await samples.instant(narrowed("memory * 2", ("namespace", "pod"), wanted), END)
    assert pods(found) == ["teller", "cart-b"]
    strange = await samples.instant(narrowed("ratio", ("pod",), [('strange "\\\n$1',), ("\N{SHOPPING TROLLEY}",)]), END)
    assert strange.values.tolist() == [0.5]


async def test_since_when_series_are_there_is_one_question(samples: Samples) -> None:
    found = await samples.first_seen("memory", END, DAY, HOUR)
    since = dict(zip(pods(found), found.values, strict=True))
    assert since == {"teller": END - DAY + HOUR, "cart-a": END - DAY + HOUR, "cart-b": END - DAY + HOUR} | {
        "cart-c": END,
        "gone": END - DAY + HOUR,
    }


@pytest.mark.parametrize(
    ("query", "because"),
    [
        ("memory{", "unexpected end of input"),
        ("1", "yields a plain number, not series"),
        ("memory + on (namespace) memory", "many-to-many matching not allowed|duplicate series"),
        ('label_replace(memory, "pod", "x", "", "")', "same labelset"),
        ('{__name__=~"memory|memory_limit"}', "twice, under two metric names"),
    ],
)
async def test_a_query_that_prometheus_can_not_answer_is_told_as_such(
    samples: Samples, query: str, because: str
) -> None:
    with pytest.raises(QueryError, match=because):
        await samples.instant(query, END)


async def test_a_prometheus_that_is_down_is_unavailable_and_no_bad_query() -> None:
    with pytest.raises(UnavailableError) as caught:
        await Samples(Metrics("http://127.0.0.1:9")).instant("memory", END)
    assert not isinstance(caught.value, QueryError)


class Counts:
    """A detector that counts what it is shown; a state is how often it learnt, and of how many samples."""

    name = "counts"
    version = 1
    window = 5
    dtype = np.dtype([("learnt", "i4"), ("updates", "i4"), ("samples", "i4"), ("like", "i4"), ("last", "f8")])

    def __init__(self) -> None:
        self.asked: list[tuple[str, About, int, int]] = []

    def learn(self, history: Floats, about: About, excluded: Bools | None = None) -> np.ndarray[Any, Any]:
        self.asked.append(("learn", about, *history.shape))
        state = np.zeros(len(history), self.dtype)
        state["learnt"] = 1
        if about.siblings is not None:
            state["like"] = [np.sum(about.siblings == one) for one in about.siblings]
        return self._shown(state, history, excluded)

    def update(
        self, state: np.ndarray[Any, Any], recent: Floats, about: About, excluded: Bools | None = None
    ) -> np.ndarray[Any, Any]:
        self.asked.append(("update", about, *recent.shape))
        new = state.copy()
        new["updates"] += 1
        masked = None if excluded is None else excluded[:, self.window - 1 :]
        return self._shown(new, recent[:, self.window - 1 :], masked)

    def _shown(self, state: np.ndarray[Any, Any], values: Floats, excluded: Bools | None) -> np.ndarray[Any, Any]:
        good = np.isfinite(values) if excluded is None else np.isfinite(values) & ~excluded
        state["samples"] += good.sum(axis=1)
        state["last"] = values[:, -1]
        return state

    def score(self, state: np.ndarray[Any, Any], recent: Floats, about: About) -> Scores:
        raise AssertionError("nobody asks for scores here")


def a_watch(query: str = "memory", **spec: Any) -> Watch:
    whole = {
        "target": {"kind": "Pod", "nameLabel": "pod"},
        "signals": [{"name": "memory", "query": query, "kind": "memory"}],
        "history": "24h",
        **spec,
    }
    return Watch("kreflex-system", "pods", "5b0e", 1, WatchSpec.model_validate(whole))


@pytest.fixture
def store(tmp_path: Path) -> Folder:
    return Folder(tmp_path / "states")


def table(bundle: Bundle) -> dict[str, tuple[Any, ...]]:
    return {key.split('pod="')[1][:-2]: one.item() for key, one in zip(bundle.keys, bundle.state, strict=True)}


async def test_new_series_are_learnt_from_history_and_kept(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch(), Counts()
    learnt = await refresh(store, samples, watch, watch.spec.signals[0], detector, END + 7)
    assert (learnt.new, learnt.updated, learnt.pending, learnt.written) == (4, 0, 0, True)
    # The young one from what there is of it, the old ones from the whole history, of which both ends count.
    day, now = 1441, minute(END)
    assert table(learnt.bundle) == {
        "teller": (1, 0, day, 0, now),
        "cart-a": (1, 0, day, 0, now),
        "cart-b": (1, 0, day, 0, now),
        "cart-c": (1, 0, 31, 0, now),
    }
    kept = await load(store, watch, watch.spec.signals[0], detector)
    assert kept is not None
    assert table(kept) == table(learnt.bundle)


async def test_known_series_learn_on_from_whole_pieces_of_an_hour(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch('memory{app="cart"}'), Counts()
    signal = watch.spec.signals[0]
    await refresh(store, samples, watch, signal, detector, END - 100 * MINUTE)
    assert not (await refresh(store, samples, watch, signal, detector, END - 70 * MINUTE)).written
    first = await refresh(store, samples, watch, signal, detector, END - 50 * MINUTE)
    assert (first.updated, first.written) == (2, True)
    learnt = await refresh(store, samples, watch, signal, detector, END)
    assert (learnt.new, learnt.updated) == (1, 2)
    # 40 samples of the first hour were new to them: what they had learnt at its begin does not count twice.
    assert {pod: row[:3] for pod, row in table(learnt.bundle).items()} == {
        "cart-a": (1, 2, 1441 + 100),
        "cart-b": (1, 2, 1441 + 100),
        "cart-c": (1, 0, 31),
    }
    assert [about.end for what, about, _, _ in detector.asked if what == "update"] == [END - HOUR, END]


async def test_a_signal_that_is_far_behind_learns_anew(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch('memory{pod="teller"}'), Counts()
    signal = watch.spec.signals[0]
    await refresh(store, samples, watch, signal, detector, END - 7 * HOUR)
    learnt = await refresh(store, samples, watch, signal, detector, END + MINUTE)
    assert (learnt.new, learnt.updated, table(learnt.bundle)["teller"][:3]) == (1, 0, (1, 0, 1441))


async def test_one_that_is_a_little_behind_catches_up(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch('memory{pod="teller"}'), Counts()
    signal = watch.spec.signals[0]
    await refresh(store, samples, watch, signal, detector, END - 5 * HOUR)
    learnt = await refresh(store, samples, watch, signal, detector, END)
    assert (learnt.new, learnt.updated, table(learnt.bundle)["teller"][:3]) == (0, 1, (1, 5, 1441 + 300))


async def test_a_new_pod_is_learnt_together_with_some_of_its_siblings(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch(siblings=["namespace", "app"]), Counts()
    signal = watch.spec.signals[0]
    before = await refresh(store, samples, watch, signal, detector, END - HOUR)
    learnt = await refresh(store, samples, watch, signal, detector, END - 10 * MINUTE)
    assert learnt.new == 1
    rows = table(learnt.bundle)
    # A day of the three carts, and of no teller; what the siblings themselves have learnt stays.
    assert detector.asked[-1][0] == "learn"
    assert detector.asked[-1][2:] == (3, 1441)
    assert rows["cart-c"] == (1, 0, 21, 3, minute(END - 10 * MINUTE))
    assert rows.items() >= table(before.bundle).items()


async def test_what_was_not_normal_is_excluded(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch('memory{app=~"cart|bank"}'), Counts()
    excluded = [
        Exclusion({"pod": "cart-a"}, END - 9 * MINUTE, END),
        Exclusion({"namespace": "bank"}, END - 3 * DAY, END - DAY + 99 * MINUTE),
        Exclusion({"namespace": "bank", "pod": "cart-a"}, 0, END),
    ]
    learnt = await refresh(store, samples, watch, watch.spec.signals[0], detector, END, excluded)
    assert {pod: row[2] for pod, row in table(learnt.bundle).items()} == {
        "cart-a": 1441 - 10,
        "cart-b": 1441,
        "cart-c": 31,
        "teller": 1441 - 100,
    }


async def test_the_limit_of_each_series_is_told(samples: Samples, store: Folder) -> None:
    signals = [{"name": "memory", "query": 'memory{app=~"cart|bank"}', "limit": "memory_limit"}]
    watch, detector = a_watch(signals=signals), Counts()
    await refresh(store, samples, watch, watch.spec.signals[0], detector, END)
    limits = [list(about.limit) for _, about, _, _ in detector.asked if about.limit is not None]
    # The young one was learnt by itself, before the others.
    assert [[None if math.isnan(one) else one for one in some] for some in limits] == [[None], [5000.0, None, None]]


async def test_what_has_vanished_is_forgotten_after_a_day(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch('memory{pod=~"gone|teller"}'), Counts()
    signal = watch.spec.signals[0]
    old = await refresh(store, samples, watch, signal, detector, END - 2 * HOUR)
    assert set(table(old.bundle)) == {"gone", "teller"}
    kept = await refresh(store, samples, watch, signal, detector, END)
    assert set(table(kept.bundle)) == {"gone", "teller"}
    bundle = replace(kept.bundle, seen=kept.bundle.seen - DAY)
    await store.write(state_name(watch, signal), encode(bundle), await store.version(state_name(watch, signal)))
    learnt = await refresh(store, samples, watch, signal, detector, END + MINUTE)
    assert (set(table(learnt.bundle)), learnt.dropped, learnt.written) == ({"teller"}, 1, True)


async def test_a_damaged_state_is_told_and_learnt_anew(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch(), Counts()
    signal, name = watch.spec.signals[0], state_name(watch, watch.spec.signals[0])
    whole = await refresh(store, samples, watch, signal, detector, END)
    kept = await store.read(name)
    assert kept is not None
    await store.write(name, kept.content[:-1], kept.version)
    assert await load(store, watch, signal, detector) is None
    again = await refresh(store, samples, watch, signal, detector, END)
    assert again.told == (
        "the state of kreflex-system/pods memory is learnt anew: its checksum is wrong: it is damaged",
    )
    assert again.written
    assert table(again.bundle) == table(whole.bundle)
    assert (await refresh(store, samples, watch, signal, detector, END)).told == ()


async def test_another_query_and_another_detector_learn_anew(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch(), Counts()
    await refresh(store, samples, watch, watch.spec.signals[0], detector, END)
    other = a_watch("memory * 2")
    assert await load(store, other, other.spec.signals[0], detector) is None
    learnt = await refresh(store, samples, other, other.spec.signals[0], detector, END)
    assert learnt.told[0].endswith("the signal's query, or the watch's interval, is another one")
    newer = Counts()
    newer.version = 2
    learnt = await refresh(store, samples, other, other.spec.signals[0], newer, END)
    assert learnt.told[0].endswith("it is that of counts 1, not of counts 2")


async def test_two_replicas_at_once_come_to_one_state(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch(), Counts()
    signal = watch.spec.signals[0]
    both = await asyncio.gather(*(refresh(store, samples, watch, signal, detector, END) for _ in range(2)))
    assert sorted(one.written for one in both) == [False, True]
    assert encode(both[0].bundle) == encode(both[1].bundle)


async def test_what_does_not_fit_into_the_time_waits(
    samples: Samples, store: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_batch", lambda _: 1)
    watch, detector = a_watch('memory{app=~"cart|bank"}'), Counts()
    signal, pending = watch.spec.signals[0], []
    for number in range(4):
        learnt = await refresh(store, samples, watch, signal, detector, END + number, seconds=0)
        pending.append((learnt.new, learnt.pending))
    assert pending == [(1, 3), (1, 2), (1, 1), (1, 0)]


async def test_too_many_series_are_learnt_from_samples_that_are_far_apart(
    samples: Samples, store: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(learning, "_POINTS", 400)
    watch, detector = a_watch('memory{pod=~"cart-a|cart-b"}'), Counts()
    learnt = await refresh(store, samples, watch, watch.spec.signals[0], detector, END)
    # 200 samples fit for each: every 8 minutes. What is newest is shown to it as it is.
    assert [(what, about.step, count) for what, about, _, count in detector.asked] == [
        ("learn", 8 * MINUTE, 181),
        ("update", MINUTE, 64),
    ]
    assert {row[:3] for row in table(learnt.bundle).values()} == {(1, 1, 181 + 60)}


async def test_nothing_is_concluded_while_prometheus_is_down(samples: Samples, store: Folder) -> None:
    watch, detector = a_watch(), Counts()
    signal = watch.spec.signals[0]
    before = await refresh(store, samples, watch, signal, detector, END - HOUR)
    with pytest.raises(UnavailableError):
        await refresh(store, Samples(Metrics("http://127.0.0.1:9")), watch, signal, detector, END)
    kept = await load(store, watch, signal, detector)
    assert kept is not None
    assert encode(kept) == encode(before.bundle)


async def test_a_state_is_read_once_a_version(samples: Samples, store: Folder) -> None:
    watch, detector, states = a_watch(), Counts(), States(store)
    signal = watch.spec.signals[0]
    assert await states.load(watch, signal, detector) is None
    await refresh(store, samples, watch, signal, detector, END - HOUR)
    first = await states.load(watch, signal, detector)
    assert first is not None
    assert await states.load(watch, signal, detector) is first
    await refresh(store, samples, watch, signal, detector, END)
    second = await states.load(watch, signal, detector)
    assert second is not None
    assert second.tick == END
    other = a_watch("memory * 2")
    assert await states.load(other, other.spec.signals[0], detector) is None


async def test_what_nobody_watches_any_more_is_forgotten(store: Folder) -> None:
    watch = a_watch()
    broken = Broken("shop", "broken", "77aa", 1, "spec.signals: Field required")
    kept = ("5b0e.feedback.book", "5b0e.memory", "77aa.cpu")
    for name in (*kept, "5b0e.cpu", "dead.memory"):
        await store.write(name, b"", "")
    assert set(await forget(store, [watch, broken])) == {"5b0e.cpu", "dead.memory"}
    assert await store.names() == kept


async def test_a_piece_that_not_all_had_time_for_is_gone_on_with(
    samples: Samples, store: Folder, monkeypatch: pytest.MonkeyPatch
) -> None:
    watch, detector = a_watch('memory{pod=~"cart-a|cart-b|teller"}'), Counts()
    signal, updated = watch.spec.signals[0], []
    await refresh(store, samples, watch, signal, detector, END - 70 * MINUTE)
    monkeypatch.setattr(learning, "_batch", lambda _: 1)
    for number in range(4):
        learnt = await refresh(store, samples, watch, signal, detector, END - HOUR + number, seconds=0)
        updated.append(learnt.updated)
    assert updated == [1, 1, 1, 0]
    kept = await load(store, watch, signal, detector)
    assert kept is not None
    assert {row[:3] for row in table(kept).values()} == {(1, 1, 1441 + 10)}
