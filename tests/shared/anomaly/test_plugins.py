"""Detectors by name: the one that ships, those of other packages, and the worked examples."""

import http.server
import importlib
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from kreflex.anomaly.detector import About, Detector, Floats
from kreflex.anomaly.plugins import detector
from kreflex.errors import SettingsError, UnavailableError
from tests.kit import ROOT

EXAMPLES = ROOT / "docs" / "examples" / "detectors"
ABOUT = About(60, 1_700_000_000, "gauge", 0.05)


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples as pip would install them: importable, and with their entry points."""
    info = tmp_path / "kreflex_detectors-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kreflex-detectors\nVersion: 0.1.0\n")
    wanted = (EXAMPLES / "pyproject.toml").read_text().partition('[project.entry-points."kreflex.detectors"]\n')[2]
    broken = 'broken = "kreflex_detectors.tails:windows"\n'
    lines = (wanted + broken).replace('"', "")
    (info / "entry_points.txt").write_text(f"[kreflex.detectors]\n{lines}")
    for folder in (tmp_path, EXAMPLES):
        monkeypatch.syspath_prepend(str(folder))


def test_the_one_that_ships_has_a_name() -> None:
    assert detector().name == detector("calibrated").name == "calibrated"


def test_a_strange_name_is_told_with_those_that_there_are(installed: None) -> None:
    with pytest.raises(SettingsError, match="one of broken, calibrated, deviation, kserve, neighbours, not 'none'"):
        detector("none")


def test_what_can_not_be_made_is_told_at_start(installed: None) -> None:
    with pytest.raises(SettingsError, match=r"DETECTOR 'broken' .* can't be made: TypeError"):
        detector("broken")
    with pytest.raises(SettingsError, match="KSERVE_URL must be where the model server answers, not ''"):
        detector("kserve")


class Model(http.server.BaseHTTPRequestHandler):
    """A model server that speaks V2: the raw score is how far the last sample is from the median of its window."""

    broken = False

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        (told,) = body["inputs"]
        seen = np.array(told["data"]).reshape(told["shape"])
        raw = abs(seen[:, -1] - np.median(seen, axis=1))
        data: list[float] = raw.tolist()[1 if Model.broken else 0 :]
        output = {"name": "score", "shape": [len(data)], "datatype": "FP64", "data": data}
        answer = json.dumps({"model_name": "residual", "outputs": [output]}).encode()
        self.send_response(200 if self.path == "/v2/models/residual/infer" else 404)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Model)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("KSERVE_URL", f"http://127.0.0.1:{server.server_port}/")
    monkeypatch.setenv("KSERVE_MODEL", "residual")
    yield
    server.shutdown()
    server.server_close()
    thread.join()


def history(samples: int = 600) -> Floats:
    rng = np.random.default_rng(3)
    return rng.normal(100, 1, (3, samples)).round(6)


def finds_a_jump(made: Detector) -> None:
    """Whatever it is: it is quiet on more of the same, loud on a jump, and says nothing of what is missing."""
    past = history()
    state = made.learn(past[:, :540], ABOUT)
    assert state.dtype == made.dtype
    state = made.update(state, past[:, 480 - made.window + 1 : 540], ABOUT)
    recent = past[:, -made.window :].copy()
    quiet = made.score(state, recent, ABOUT)
    recent[0, -1] += 60
    recent[2, -1] = np.nan
    loud = made.score(state, recent, ABOUT)
    assert quiet.flag.tolist() == [False, False, False]
    assert loud.flag.tolist() == [True, False, False]
    assert np.isnan(loud.score).tolist() == [False, False, True]
    again = made.score(
        made.update(made.learn(past[:, :540], ABOUT), past[:, 480 - made.window + 1 : 540], ABOUT), recent, ABOUT
    )
    assert np.array_equal(again.score, loud.score, equal_nan=True)
    dismissed = About(60, 1_700_000_000, "gauge", 0.05, factor=np.array([2.0, 1.0, 1.0]))
    assert made.score(state, recent, dismissed).score[0] == pytest.approx(loud.score[0] / 2)


def test_a_model_behind_kserve_finds_a_jump(installed: None, model: None) -> None:
    finds_a_jump(detector("kserve"))


def test_a_model_server_that_fails_is_an_outage_and_no_answer(
    installed: None, model: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = detector("kserve")
    monkeypatch.setattr(Model, "broken", True)
    with pytest.raises(UnavailableError, match=r"the shape \(\d+,\) for \d+ series"):
        made.learn(history(), ABOUT)
    monkeypatch.setenv("KSERVE_MODEL", "unknown")
    with pytest.raises(UnavailableError, match="404"):
        detector("kserve").learn(history(), ABOUT)


@pytest.mark.parametrize(("name", "needs"), [("neighbours", "sklearn"), ("deviation", "river")])
def test_the_other_examples_find_a_jump_where_they_are_installed(installed: None, name: str, needs: str) -> None:
    try:
        importlib.import_module(needs)
    except ImportError:
        pytest.skip(f"NOT TESTED: {needs} is not installed; pip install './docs/examples/detectors[{name}]'")
    finds_a_jump(detector(name))
