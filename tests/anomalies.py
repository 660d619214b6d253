"""What tests of anomalies build with: a detector whose thresholds anyone can see, watches, and a sink."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from aiohttp import web
from aiohttp.test_utils import TestServer

from kreflex.anomaly.detector import CLASSES, About, Bools, Floats, Scores
from kreflex.anomaly.watches import Watch, WatchSpec
from kreflex.views import JSON

LEAK = 10_000.0


class Loud:
    """Takes 100 for the threshold of every series, and 10,000 and more for a leak."""

    name = "loud"
    version = 1
    window = 3
    dtype = np.dtype([("seen", "f8")])

    def learn(self, history: Floats, about: About, excluded: Bools | None = None) -> npt.NDArray[np.void]:
        state = np.zeros(len(history), self.dtype)
        state["seen"] = np.isfinite(history).sum(axis=1)
        return state

    def update(
        self, state: npt.NDArray[np.void], recent: Floats, about: About, excluded: Bools | None = None
    ) -> npt.NDArray[np.void]:
        new = state.copy()
        new["seen"] += 1
        return new

    def score(self, state: npt.NDArray[np.void], recent: Floats, about: About) -> Scores:
        value = recent[:, -1]
        leaks = np.nan_to_num(value) >= LEAK
        factor = 1.0 if about.factor is None else about.factor
        score = np.where(leaks, value / LEAK, value / 100) / factor
        kind = np.where(leaks, CLASSES.index("leak"), CLASSES.index("anomaly")).astype(np.uint8)
        expected = np.full(len(value), 10.0)
        return Scores(score, np.nan_to_num(score) >= 1, kind, {"value": value, "expected": expected})


def a_signal(name: str = "memory", **more: Any) -> JSON:
    return {"name": name, "query": name, "kind": "gauge", **more}


def a_spec(**more: Any) -> JSON:
    """The spec of a watch of pods with two signals, as people write it."""
    spec: JSON = {
        "target": {"kind": "Pod", "nameLabel": "pod"},
        "history": "1h",
        "signals": [a_signal("memory"), a_signal("rss")],
        "remediations": [{"class": "leak", "function": "restart-loop-killer"}],
    }
    return {**spec, **more}


def a_watch(**more: Any) -> Watch:
    return Watch("kreflex-system", "pods", "uid-watch", 1, WatchSpec.model_validate(a_spec(**more)))


@dataclass
class Inbox:
    """Takes events; with another status it refuses them."""

    status: int = 202
    got: list[Any] = field(default_factory=list)

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[str]:
        async def take(request: web.Request) -> web.Response:
            if self.status < 300:
                self.got.append(await request.json())
            return web.Response(status=self.status)

        application = web.Application()
        application.router.add_post("/{path:.*}", take)
        async with TestServer(application) as server:
            yield str(server.make_url("/"))
