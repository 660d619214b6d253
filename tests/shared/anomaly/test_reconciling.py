"""What becomes of what was found: who may act for it."""

import math
from dataclasses import replace
from datetime import datetime, timedelta

import numpy as np
import pytest

from kreflex.anomaly.agreement import Judgement, Place
from kreflex.anomaly.anomalies import Seen
from kreflex.anomaly.detector import About, Scores
from kreflex.anomaly.reading import Matrix
from kreflex.anomaly.reconciling import Round
from kreflex.anomaly.scoring import Scored
from kreflex.views import Pod
from tests.anomalies import a_watch
from tests.values import MINUTE, NOW, the_pod

WATCH = a_watch()


def a_round(missing: int) -> Round:
    """A tick at NOW of one series of ten minutes, in which the first samples are missing."""
    values = np.full((1, 10), 1.0)
    values[0, :missing] = np.nan
    recent = Matrix(("s",), ({"namespace": "shop", "pod": "cart-1"},), values, NOW.timestamp(), 60.0)
    scores = Scores(np.ones(1), np.ones(1, bool), np.zeros(1, np.uint8), {})
    signal, about = WATCH.spec.signals[0], About(60.0, recent.end, "memory", 0.05)
    scored = Scored(WATCH, signal, recent, scores, np.ones(1, bool), about)
    return Round(WATCH, NOW.timestamp(), "loud/1", 10, {signal.name: scored})


def sober(missing: int, age: timedelta, agreed: bool = True, pod: Pod | None = None) -> Judgement:
    """What is said of a pod of this age whose series begins so many minutes after the window does."""
    at = datetime.fromtimestamp(NOW.timestamp(), NOW.tzinfo)
    seen = Seen.model_validate({"name": "memory", "class": "leak", "score": 2.0, "series": "s", "at": at})
    judgement = Judgement(Place("Pod", "shop", "cart-1"), "leak", 2.0, (seen,), agreed, "they agree")
    return a_round(missing).sober(judgement, pod or the_pod(age=age))


@pytest.mark.parametrize(("age", "agreed"), [(2 * MINUTE, False), (8 * MINUTE, True), (60 * MINUTE, True)])
def test_nobody_acts_for_what_was_seen_of_a_pod_of_the_same_name_before(age: timedelta, agreed: bool) -> None:
    # Its series has samples of the last nine minutes; a clock may be a minute off.
    assert sober(0, age).agreed == agreed


def test_it_says_why() -> None:
    because = f"samples of a pod of its name that was there before {NOW - 2 * MINUTE:%Y-%m-%d %H:%M:%S} UTC count here"
    assert sober(0, 2 * MINUTE).because == because


def test_the_series_of_a_young_pod_itself_counts() -> None:
    assert sober(8, 2 * MINUTE).agreed


def test_what_does_not_agree_or_belongs_to_nobody_stays_as_it_is() -> None:
    assert sober(0, 2 * MINUTE, agreed=False).because == "they agree"
    alone = replace(the_pod(age=2 * MINUTE), controller=None)
    assert sober(0, 2 * MINUTE, pod=alone).agreed


def blank(*newest: float) -> bool:
    """Whether all series are missing at once, of which these are the newest samples."""
    round_ = a_round(0)
    (scored,) = round_.scored.values()
    count = len(newest)
    values = np.column_stack([np.ones((count, 9)), np.array(newest)])
    keys = tuple(f"s{number}" for number in range(count))
    recent = Matrix(keys, ({},) * count, values, scored.recent.end, 60.0)
    known = np.ones(count, bool)
    return replace(round_, scored={"memory": replace(scored, recent=recent, known=known)}).blank


def test_all_series_at_once_are_missing_for_a_reason_of_prometheus() -> None:
    gone = math.nan
    assert [blank(gone, gone, gone), blank(gone, gone, 1.0), blank(gone, gone)] == [True, False, False]
