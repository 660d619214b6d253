"""Which trace a request belongs to, carried from the event to the reply, the record, the log lines and the spans.

The ids are those of W3C Trace Context. They are passed on whoever sent them; spans are written only where
OTEL_EXPORTER_OTLP_ENDPOINT is set, and only then is OpenTelemetry imported.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from kreflex.errors import SettingsError

Kind = Literal["consumer", "internal", "client"]

# https://www.w3.org/TR/trace-context/#traceparent-header: a later version may add fields at the end.
_PARENT = re.compile(r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?")
_KEY = r"[a-z0-9][-_*/a-z0-9]{0,240}(@[a-z][-_*/a-z0-9]{0,13})?"
_VALUE = r"[\x20-\x2b\x2d-\x3c\x3e-\x7e]{0,255}[\x21-\x2b\x2d-\x3c\x3e-\x7e]"
_MEMBER = re.compile(rf"[ \t]*({_KEY}={_VALUE})?[ \t]*")
_FLAGS = 0b11
_MOST_STATE, _MOST_MEMBERS = 512, 32
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")


@dataclass(frozen=True, slots=True)
class Trace:
    """One place in a trace: ids in lower-case hexadecimal digits, 32 and 16 of them; the flags are two digits."""

    trace_id: str
    span_id: str
    flags: str = "00"
    state: str = ""

    @property
    def traceparent(self) -> str:
        """The place as W3C writes it."""
        return f"00-{self.trace_id}-{self.span_id}-{self.flags}"

    @property
    def extensions(self) -> dict[str, str]:
        """The attributes of a CloudEvent that was sent from here."""
        return {"traceparent": self.traceparent, **({"tracestate": self.state} if self.state else {})}


class Span(Protocol):
    """A piece of work; `trace` names it."""

    @property
    def trace(self) -> Trace:
        """Where the work stands in its trace."""

    def tell(self, attributes: Mapping[str, str | int]) -> None:
        """Say more about the work, in the names of OpenTelemetry's conventions."""

    def end(self, error: BaseException | None) -> None:
        """The work is over."""


class Recorder(Protocol):
    """Writes spans."""

    def begin(self, name: str, kind: Kind, parent: Trace | None, link: Trace | None, began: int | None) -> Span:
        """Begin a span, at `began` in nanoseconds since 1970 or now."""

    def close(self) -> None:
        """Send what is left."""


@dataclass(frozen=True, slots=True)
class _Unrecorded:
    trace: Trace

    def tell(self, attributes: Mapping[str, str | int]) -> None:
        """Nobody listens."""

    def end(self, error: BaseException | None) -> None:
        """Nobody listens."""


_UNRECORDED = nullcontext[Span](_Unrecorded(Trace("", "")))
_current: ContextVar[Trace | None] = ContextVar("trace", default=None)
_recorders: list[Recorder] = []


def read(parent: object, state: object = "") -> Trace | None:
    """Read a traceparent and its tracestate; None for what is none, since nobody's work may fail because of it."""
    found = _PARENT.fullmatch(parent) if isinstance(parent, str) else None
    if found is None or found[1] == "ff" or (found[1] == "00" and found[5]):
        return None
    if not found[2].strip("0") or not found[3].strip("0"):
        return None
    # Flags that later versions define are not ours to pass on.
    flags = f"{int(found[4], 16) & _FLAGS:02x}"
    return Trace(found[2], found[3], flags, state if isinstance(state, str) and _is_state(state) else "")


def _is_state(text: str) -> bool:
    members = text.split(",")
    return len(text) <= _MOST_STATE and len(members) <= _MOST_MEMBERS and all(map(_MEMBER.fullmatch, members))


def from_headers(headers: Mapping[str, str]) -> Trace | None:
    """Read the place that HTTP headers name; the sender's own tracing sets them where the event has none."""
    return read(headers.get("traceparent"), headers.get("tracestate"))


def current() -> Trace | None:
    """Tell where the running work stands; None outside of a request."""
    return _current.get()


@contextmanager
def span(
    name: str, parent: Trace | None = None, *, kind: Kind = "internal", began: int | None = None
) -> Iterator[Span]:
    """Do a piece of work in the trace of `parent`, else in the current one, else in a new one."""
    around = _current.get()
    foreign = parent is not None and around is not None and parent.trace_id != around.trace_id
    above = parent if parent is not None and (foreign or around is None) else around
    made = _begin(name, kind, above, around if foreign else None, began)
    token = _current.set(made.trace)
    try:
        yield made
    except BaseException as error:
        made.end(error)
        raise
    else:
        made.end(None)
    finally:
        _current.reset(token)


def _begin(name: str, kind: Kind, parent: Trace | None, link: Trace | None, began: int | None) -> Span:
    if _recorders:
        return _recorders[0].begin(name, kind, parent, link, began)
    if parent is None:
        return _Unrecorded(Trace(os.urandom(16).hex(), os.urandom(8).hex()))
    # A span within a request that nobody records needs no name of its own.
    internal = kind == "internal" and link is None
    return _Unrecorded(parent if internal else replace(parent, span_id=os.urandom(8).hex()))


@contextmanager
def _call(method: str, path: str) -> Iterator[Span]:
    with span(method, kind="client") as made:
        made.tell({"http.request.method": method, "url.path": path})
        yield made


def call(method: str, path: str) -> AbstractContextManager[Span]:
    """Do an HTTP call; recorded within a request only, and free of cost where nothing is recorded."""
    return _call(method, path) if _recorders and current() is not None else _UNRECORDED


def start(service: str, environment: Mapping[str, str] | None = None) -> None:
    """Write spans from now on, if the environment names a receiver; raises SettingsError if they can't be written.

    The variables are OpenTelemetry's: https://opentelemetry.io/docs/specs/otel/protocol/exporter/
    """
    given = os.environ if environment is None else environment
    endpoint = next((name for name in _ENDPOINTS if given.get(name)), None)
    if endpoint is None or given.get("OTEL_SDK_DISABLED", "").lower() == "true":
        return
    protocol = next((name for name in _PROTOCOLS if given.get(name)), None)
    if protocol is not None and given[protocol] != "http/protobuf":
        raise SettingsError([f"{protocol} must be http/protobuf, the only one here, not {given[protocol]!r}"])
    try:
        from kreflex.otel import Otel  # noqa: PLC0415 - who has no receiver pays nothing for the import
    except ModuleNotFoundError as error:
        raise SettingsError(
            [f"{endpoint} is set, but {error.name} is not installed; install kreflex[otel] or unset it"]
        ) from error
    _recorders[:] = [Otel(service)]


def stop() -> None:
    """Send what is left, and write no spans any more."""
    recorders, _recorders[:] = _recorders[:], []
    for recorder in recorders:
        recorder.close()
