import numpy as np

from kreflex.anomaly.detector import About, Detector
from kreflex.anomaly.engine import Calibrated

ABOUT = About(step=60.0, end=1_700_000_040.0, kind="cpu", false_alarms=0.05)


def noise(series: int = 2, samples: int = 2000) -> np.ndarray:
    return 10 + np.random.default_rng(7).normal(size=(series, samples))


def test_flags_a_value_far_off_and_no_usual_one() -> None:
    detector: Detector = Calibrated()
    history = noise()
    state = detector.learn(history, ABOUT)
    recent = history[:, -detector.window :].copy()
    recent[:, -1] = [10, 40]
    assert detector.score(state, recent, ABOUT).flag.tolist() == [False, True]
