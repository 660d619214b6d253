"""Counts and durations of this process, in Prometheus' text format.

They tell how quickly a function answers, and are gone with its pod; what became of faults is told by the records. The
library prometheus-client would do the same and costs each cold start 10 to 20 ms (docs/adr/0012).
"""

from __future__ import annotations

import platform
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

# As in pyproject.toml, which a test compares; not asked of importlib.metadata: the image has no metadata of Kreflex.
VERSION = "0.1.0.dev0"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From an irrelevant event to the longest request: the time budget is 25 seconds.
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 25.0)


class Metric(Protocol):
    """A metric with all its series."""

    name: str
    help: str
    kind: str

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Tell each sample's suffix, labels and value."""


@dataclass
class Counter:
    """A number that only grows, for each set of labels."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: str = "counter"
    _values: dict[tuple[str, ...], float] = field(default_factory=dict)

    def add(self, *values: str) -> None:
        """Count one."""
        self._values[values] = self._values.get(values, 0.0) + 1

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Tell each sample."""
        for values, number in sorted(self._values.items()):
            yield "", dict(zip(self.labels, values, strict=True)), number


@dataclass
class Gauge:
    """A number that grows and shrinks."""

    name: str
    help: str
    value: float = 0.0
    kind: str = "gauge"

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Tell the only sample."""
        yield "", {}, self.value


@dataclass
class Info:
    """Facts, as labels of series that are always 1."""

    name: str
    help: str
    facts: list[dict[str, str]] = field(default_factory=list)
    kind: str = "gauge"

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Tell each fact."""
        for fact in self.facts:
            yield "", fact, 1.0


@dataclass
class Histogram:
    """How long something took, in seconds, for each set of labels."""

    name: str
    help: str
    labels: tuple[str, ...] = ()
    kind: str = "histogram"
    _counts: dict[tuple[str, ...], list[int]] = field(default_factory=dict)
    _sums: dict[tuple[str, ...], float] = field(default_factory=dict)

    def observe(self, seconds: float, *values: str) -> None:
        """Count one that took so long."""
        counts = self._counts.setdefault(values, [0] * (len(_SECONDS) + 1))
        counts[bisect_left(_SECONDS, seconds)] += 1
        self._sums[values] = self._sums.get(values, 0.0) + seconds

    def samples(self) -> Iterator[tuple[str, dict[str, str], float]]:
        """Tell each bucket, the sum and the count."""
        for values, counts in sorted(self._counts.items()):
            labels = dict(zip(self.labels, values, strict=True))
            total = 0
            for bound, count in zip((*(f"{one:g}" for one in _SECONDS), "+Inf"), counts, strict=True):
                total += count
                yield "_bucket", {**labels, "le": bound}, total
            yield "_sum", labels, self._sums[values]
            yield "_count", labels, total


REQUESTS = Histogram(
    "kreflex_request_duration_seconds", "How long a request took until its answer.", ("sender", "status")
)
IN_FLIGHT = Gauge("kreflex_requests_in_flight", "Requests of known callers that are being answered.")
SIGNALS = Counter("kreflex_signals_total", "What became of signals, as this process saw it.", ("outcome",))
API_REQUESTS = Counter("kreflex_api_requests_total", "Requests to the API server.", ("verb", "code"))
API_SECONDS = Histogram("kreflex_api_request_duration_seconds", "How long the API server took to answer.", ("verb",))
CALLERS = Info("kreflex_callers_info", "How callers are told apart; network: they are not.")
BUILD = Info("kreflex_build_info", "Which Kreflex this is.")
_ALL: tuple[Metric, ...] = (REQUESTS, IN_FLIGHT, SIGNALS, API_REQUESTS, API_SECONDS, CALLERS, BUILD)


def render() -> str:
    """Write all metrics in the text format 0.0.4."""
    if not BUILD.facts:
        BUILD.facts.append({"version": VERSION, "python": platform.python_version()})
    return "".join(_lines(_ALL))


def _lines(metrics: Sequence[Metric]) -> Iterator[str]:
    for metric in metrics:
        yield f"# HELP {metric.name} {metric.help}\n# TYPE {metric.name} {metric.kind}\n"
        for suffix, labels, value in metric.samples():
            told = ",".join(f'{name}="{_escaped(text)}"' for name, text in labels.items())
            yield f"{metric.name}{suffix}{{{told}}} {value:.12g}\n" if told else f"{metric.name}{suffix} {value:.12g}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")
