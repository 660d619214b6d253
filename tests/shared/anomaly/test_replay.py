"""The past of a watch, played again: what it learns from, as production does."""

from datetime import timedelta

import numpy as np
import numpy.typing as npt

from kreflex.anomaly.detector import About, Bools, Floats
from kreflex.anomaly.reading import Matrix, Vector
from kreflex.anomaly.replay import replay
from tests.anomalies import Loud, a_signal, a_watch

HOURS = 40
RISES = 3


class Watched(Loud):
    """Notes how many of the last sixty samples of the only series it may learn from."""

    def __init__(self) -> None:
        self.learnt: list[int] = []

    def update(
        self, state: npt.NDArray[np.void], recent: Floats, about: About, excluded: Bools | None = None
    ) -> npt.NDArray[np.void]:
        self.learnt.append(60 if excluded is None else int((~excluded[0, -60:]).sum()))
        return super().update(state, recent, about, excluded)


class Risen:
    """One pod, whose memory is beyond the threshold from the third hour of what is played on."""

    async def instant(self, query: str, at: float) -> Vector:
        raise AssertionError("no signal has a limit")

    async def window(self, query: str, end: float, step: float, samples: int) -> Matrix:
        values = np.full((1, samples), 10.0)
        values[0, 60 + RISES * 60 :] = 150.0
        return Matrix(("a",), ({"namespace": "shop", "pod": "a"},), values, end, step)


async def test_an_open_anomaly_is_not_learnt_from_for_a_day() -> None:
    detector, watch = Watched(), a_watch(signals=[a_signal()], history="1h")
    played = await replay(Risen(), detector, watch, 1_700_000_000 // 60 * 60.0, timedelta(hours=HOURS))
    assert len(played.raised) == 1
    before, during, after = detector.learnt[:RISES], detector.learnt[RISES : RISES + 24], detector.learnt[RISES + 25 :]
    assert (before, during, set(after)) == ([60] * RISES, [0] * 24, {60})
