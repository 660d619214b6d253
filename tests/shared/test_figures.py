"""The text of /metrics."""

import tomllib
from pathlib import Path

from kreflex import figures
from kreflex.figures import Counter, Gauge, Histogram, Info


def text(*metrics: figures.Metric) -> list[str]:
    return "".join(figures._lines(metrics)).splitlines()


def test_a_counter_counts_for_each_set_of_labels() -> None:
    counter = Counter("pods_total", "Pods.", ("verb", "code"))
    counter.add("GET", "200")
    counter.add("POST", "201")
    counter.add("GET", "200")
    assert text(counter) == [
        "# HELP pods_total Pods.",
        "# TYPE pods_total counter",
        'pods_total{verb="GET",code="200"} 2',
        'pods_total{verb="POST",code="201"} 1',
    ]


def test_a_gauge_has_its_value_of_now() -> None:
    assert text(Gauge("busy", "Busy.", 2)) == ["# HELP busy Busy.", "# TYPE busy gauge", "busy 2"]


def test_a_histogram_s_buckets_hold_all_that_took_no_longer() -> None:
    histogram = Histogram("took_seconds", "Took.", ("verb",))
    for seconds in (0.001, 0.003, 0.5, 60.0):
        histogram.observe(seconds, "GET")
    buckets = {line.split('le="')[1].split('"')[0]: line.split()[-1] for line in text(histogram) if "_bucket" in line}
    assert buckets == {
        "0.001": "1",
        "0.0025": "1",
        **dict.fromkeys(("0.005", "0.01", "0.025", "0.05", "0.1", "0.25"), "2"),
        **dict.fromkeys(("0.5", "1", "2.5", "5", "10", "25"), "3"),
        "+Inf": "4",
    }
    assert text(histogram)[-2:] == ['took_seconds_sum{verb="GET"} 60.504', 'took_seconds_count{verb="GET"} 4']


def test_what_stands_in_a_label_can_not_end_it() -> None:
    info = Info("callers_info", "Callers.", [{"mode": 'a"} 1\n\\'}])
    assert text(info)[-1] == 'callers_info{mode="a\\"} 1\\n\\\\"} 1'


def test_nothing_counted_is_no_series() -> None:
    assert text(Counter("pods_total", "Pods.", ("verb",))) == ["# HELP pods_total Pods.", "# TYPE pods_total counter"]


def test_the_build_is_told() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert f'kreflex_build_info{{version="{project["version"]}",python="' in figures.render()
