"""A model behind KServe's V2 inference protocol; it gives raw scores, and the threshold is calibrated here.

POST /v2/models/NAME/infer, as https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol says.
The model takes `recent`, FP64 of the shape [series, window], and answers with `score`, FP64 of the shape [series].
"""

from __future__ import annotations

import json
import math
import os
import urllib.error
import urllib.request

import numpy as np

from kreflex.anomaly.detector import About, Bools, Floats, Scores
from kreflex.errors import SettingsError, UnavailableError
from kreflex_detectors.tails import left_out, scores, threshold, windows

_SECONDS = 5
_BATCH = 2000
# So many windows of a series' past are scored to calibrate it.
_WINDOWS = 500


class KServe:
    """Asks a model server for the raw scores."""

    name = "kserve"
    version = 1
    window = 60
    dtype = np.dtype([("high", "f8"), ("seen", "f4")])

    def __init__(self) -> None:
        url, model = os.environ.get("KSERVE_URL", ""), os.environ.get("KSERVE_MODEL", "anomaly")
        if not url.startswith(("http://", "https://")):
            raise SettingsError([f"KSERVE_URL must be where the model server answers, not {url!r}"])
        self._url = f"{url.rstrip('/')}/v2/models/{model}/infer"

    def learn(self, history: Floats, about: About, excluded: Bools | None = None) -> np.ndarray:
        state = np.zeros(len(history), self.dtype)
        state["high"] = np.nan
        for row, values in enumerate(left_out(history, excluded)):
            seen = windows(values, self.window)
            seen = seen[:: max(1, math.ceil(len(seen) / _WINDOWS))]
            if len(seen):
                state[row] = (threshold(self._raw(seen), about), len(seen))
        return state

    def update(self, state: np.ndarray, recent: Floats, about: About, excluded: Bools | None = None) -> np.ndarray:
        fresh, new = self.learn(recent, about, excluded), state.copy()
        known, told = np.isfinite(state["high"]), np.isfinite(fresh["high"])
        # Slowly downwards, at once upwards: an hour that was quiet says little about the next one.
        both = known & told
        new["high"][both] = np.maximum(fresh["high"][both], 0.98 * state["high"][both])
        new[told & ~known] = fresh[told & ~known]
        return new

    def score(self, state: np.ndarray, recent: Floats, about: About) -> Scores:
        raw, recent = np.full(len(state), np.nan), np.asarray(recent, dtype=float)
        whole = np.isfinite(recent).all(axis=1) & np.isfinite(state["high"])
        if whole.any():
            raw[whole] = self._raw(recent[whole])
        return scores(raw, state["high"], recent, about)

    def _raw(self, seen: Floats) -> Floats:
        return np.concatenate([self._ask(seen[start : start + _BATCH]) for start in range(0, len(seen), _BATCH)])

    def _ask(self, seen: Floats) -> Floats:
        told = {"name": "recent", "shape": list(seen.shape), "datatype": "FP64", "data": seen.ravel().tolist()}
        body = json.dumps({"inputs": [told], "outputs": [{"name": "score"}]}).encode()
        request = urllib.request.Request(self._url, body, {"Content-Type": "application/json"})  # noqa: S310 - checked above
        try:
            with urllib.request.urlopen(request, timeout=_SECONDS) as answer:  # noqa: S310
                outputs = {one["name"]: one["data"] for one in json.load(answer)["outputs"]}
            found = np.array(outputs["score"], dtype=float)
        except (OSError, ValueError, KeyError, TypeError, urllib.error.URLError) as error:
            raise UnavailableError(f"the model server did not answer {self._url}: {error!r}") from error
        if found.shape != (len(seen),):
            raise UnavailableError(f"{self._url} answered with the shape {found.shape} for {len(seen)} series")
        return found
