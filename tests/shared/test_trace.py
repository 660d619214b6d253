"""Which trace a request belongs to: W3C's ids, read strictly and passed on."""

import subprocess
import sys
from pathlib import Path

import pytest
import structlog

from kreflex import trace
from kreflex.audit import add_trace
from kreflex.errors import SettingsError
from kreflex.trace import Trace, read

ROOT = Path(__file__).parents[2]
ID, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
PARENT = f"00-{ID}-{SPAN}-01"
PLACE = Trace(ID, SPAN, "01")


def test_reads_what_w3c_describes() -> None:
    assert read(PARENT) == PLACE
    assert read(PARENT).traceparent == PARENT  # type: ignore[union-attr]


def test_reads_a_later_version_as_far_as_it_knows_it() -> None:
    assert read(f"cc-{ID}-{SPAN}-01-what-else") == PLACE
    assert read(f"00-{ID}-{SPAN}-ff") == Trace(ID, SPAN, "03")


@pytest.mark.parametrize(
    "parent",
    [
        "",
        "x",
        None,
        5,
        [PARENT],
        PARENT.upper(),
        f"{PARENT}\n",
        f"{PARENT}\r\nSet-Cookie: a=b",
        f"{PARENT}-more",
        f"ff-{ID}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{ID}-{'0' * 16}-01",
        f"00-{ID[1:]}-{SPAN}-01",
        f"00-{ID}-{SPAN}",
    ],
)
def test_takes_nothing_else_for_a_trace(parent: object) -> None:
    assert read(parent) is None


@pytest.mark.parametrize("state", ["vendor=1", "a@b=x, rojo=00f067aa0ba902b7", "a=1,,b=2", ",".join(["a=1"] * 32)])
def test_passes_on_what_vendors_say(state: str) -> None:
    assert read(PARENT, state) == Trace(ID, SPAN, "01", state)


@pytest.mark.parametrize(
    "state", ["A=1", "a=1\r\nb: c", "a=ü", "a", "a=", "a=1,b", ",".join(["a=1"] * 33), "a=" + "x" * 512, 5]
)
def test_drops_what_no_vendor_may_say(state: object) -> None:
    assert read(PARENT, state) == PLACE


def test_work_goes_on_in_the_trace_of_the_event() -> None:
    with trace.span("process", read(PARENT, "a=1"), kind="consumer") as outer:
        assert (outer.trace.trace_id, outer.trace.flags, outer.trace.state) == (ID, "01", "a=1")
        assert outer.trace.span_id != SPAN
        with trace.span("PodSignal"):
            assert trace.current() == outer.trace
    assert trace.current() is None


def test_what_belongs_to_another_trace_is_done_there() -> None:
    other = Trace("a" * 32, "b" * 16)
    with trace.span("process", PLACE, kind="consumer") as outer:
        with trace.span("Due", other) as inner:
            assert (inner.trace.trace_id, trace.current()) == ("a" * 32, inner.trace)
        assert trace.current() == outer.trace


def test_a_new_trace_is_begun_where_nobody_names_one() -> None:
    with trace.span("process", None) as one, trace.span("PodSignal"):
        assert read(one.trace.traceparent) == one.trace
    with trace.span("process", None) as other:
        assert other.trace.trace_id != one.trace.trace_id


def test_an_error_leaves_no_trace_behind() -> None:
    with pytest.raises(ZeroDivisionError), trace.span("process", PLACE):
        _ = 1 / 0
    assert trace.current() is None


def test_log_lines_of_a_request_name_its_trace() -> None:
    with structlog.testing.capture_logs(processors=[add_trace]) as logs, trace.span("process", PLACE) as span:
        structlog.get_logger().info("it.happened")
    structlog.get_logger().info("later")
    assert logs == [{"event": "it.happened", "log_level": "info", "trace_id": ID, "span_id": span.trace.span_id}]


@pytest.mark.parametrize(
    "environment",
    [{}, {"OTEL_EXPORTER_OTLP_ENDPOINT": ""}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "x", "OTEL_SDK_DISABLED": "true"}],
)
def test_writes_no_spans_without_a_receiver(environment: dict[str, str]) -> None:
    trace.start("killer", environment)
    with trace.call("GET", "/api/v1/pods") as span:
        assert span.trace == Trace("", "")


def test_refuses_a_protocol_that_it_does_not_speak() -> None:
    given = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}
    with pytest.raises(SettingsError, match=r"OTEL_EXPORTER_OTLP_PROTOCOL must be http/protobuf, .* not 'grpc'"):
        trace.start("killer", given)


def test_says_what_to_install() -> None:
    code = """
import sys
sys.modules["opentelemetry"] = None
from kreflex import trace
from kreflex.errors import SettingsError
try:
    trace.start("killer", {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"})
except SettingsError as error:
    print(error)
"""
    assert printed(code) == (
        "OTEL_EXPORTER_OTLP_ENDPOINT is set, but opentelemetry is not installed; install kreflex[otel] or unset it"
    )


def test_imports_nothing_of_opentelemetry_while_it_is_off() -> None:
    code = """
import sys
import functions.restart_loop_killer.main
from kreflex import __main__, trace
trace.start("killer")
print([name for name in sys.modules if name.startswith(("opentelemetry", "google.protobuf"))])
"""
    assert printed(code) == "[]"


def printed(code: str) -> str:
    """What a fresh interpreter prints, with nothing in its environment."""
    done = subprocess.run([sys.executable, "-c", code], env={}, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()
