"""SLOs as OpenSLO, Sloth and Pyrra have them, read into one value."""

import re
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml

from kreflex.burn import Alarm, over, prom_duration, pyrra, questions, read_duration, windows, workbook
from kreflex.policy import ErrorBudget, PolicySpec
from kreflex.sloformats import Slo
from kreflex.slos import KEPT, is_slo, load_slos, parse, read_slos
from kreflex.views import JSON
from tests.values import CannedApi

DAY, HOUR, MINUTE = timedelta(days=1), timedelta(hours=1), timedelta(minutes=1)
MONTH = 30 * DAY
BAD, ALL = 'http_requests_total{job="cart",code=~"5.."}', 'http_requests_total{job="cart"}'


def prometheus(query: str) -> JSON:
    return {"metricSource": {"type": "Prometheus", "spec": {"query": query}}}


def ratio(**parts: Any) -> JSON:
    return {"ratioMetric": {"counter": True, **parts}}


def openslo(indicator: JSON | None = None, annotations: JSON | None = None, **spec: Any) -> JSON:
    """An SLO of OpenSLO: 99.9 % of cart's requests do not fail, within 30 days."""
    meta = {"name": "cart-availability", "namespace": "shop", "annotations": annotations or {}}
    body = {
        "service": "cart",
        "indicator": {"spec": indicator or ratio(bad=prometheus(BAD), total=prometheus(ALL))},
        "timeWindow": [{"duration": "30d", "isRolling": True}],
        "budgetingMethod": "Occurrences",
        "objectives": [{"target": 0.999}],
        **spec,
    }
    body = {key: value for key, value in body.items() if value is not None}
    return {"apiVersion": "openslo/v1", "kind": "SLO", "metadata": meta, "spec": body}


def sloth(*slos: JSON, **annotations: str) -> JSON:
    """Sloth's own example, in short."""
    meta = {"name": "sloth-slo-my-service", "namespace": "monitoring", "annotations": annotations}
    spec = {"service": "myservice", "slos": list(slos)}
    return {"apiVersion": "sloth.slok.dev/v1", "kind": "PrometheusServiceLevel", "metadata": meta, "spec": spec}


def sloth_slo(sli: JSON | None = None, objective: float = 99.9) -> JSON:
    events = {"errorQuery": "sum(rate(errors[{{.window}}]))", "totalQuery": "sum(rate(all[{{ .window }}]))"}
    return {"name": "requests-availability", "objective": objective, "sli": sli or {"events": events}}


def pyrra_slo(indicator: JSON, target: str = "99", window: str = "4w") -> JSON:
    meta = {"name": "api-errors", "namespace": "shop"}
    spec = {"target": target, "window": window, "indicator": indicator}
    return {"apiVersion": "pyrra.dev/v1alpha1", "kind": "ServiceLevelObjective", "metadata": meta, "spec": spec}


def the(body: JSON, *others: JSON) -> Slo:
    (slo,) = read_slos([body, *others])
    return slo


# OpenSLO


def test_openslo_s_counters_are_read() -> None:
    bad, total = f"sum(increase({BAD}[{{{{.window}}}}]))", f"sum(increase({ALL}[{{{{.window}}}}]))"
    assert the(openslo(annotations={"kreflex.dev/workloads": "app=cart, tier=web"})) == Slo(
        namespace="shop",
        name="cart-availability",
        object="cart-availability",
        kind="SLO",
        service="cart",
        objective=0.999,
        window=MONTH,
        errors=f"((({bad}) or 0 * ({total})) / ({total}))",
        records='kreflex:slo_errors:ratio{slo_namespace="shop",slo="cart-availability",window="{{.window}}"}',
        alarms=workbook(MONTH),
        workloads=(("app", "cart"), ("tier", "web")),
    )


@pytest.mark.parametrize(
    ("indicator", "errors"),
    [
        (
            ratio(good=prometheus("good"), total=prometheus("all")),
            "(1 - (sum(increase(good[5m]))) / (sum(increase(all[5m]))))",
        ),
        (
            ratio(good=prometheus("good"), total=prometheus("all"), counter=False),
            "(1 - (sum(sum_over_time(good[5m]))) / (sum(sum_over_time(all[5m]))))",
        ),
        (
            ratio(good=prometheus("sum(rate(good[{{.window}}]))"), total=prometheus("sum(rate(all[{{ .window }}]))")),
            "(1 - (sum(rate(good[5m]))) / (sum(rate(all[5m]))))",
        ),
        (
            ratio(good=prometheus('sum(good{a="b"})'), total=prometheus("all")),
            '(1 - (sum(increase(good{a="b"}[5m]))) / (sum(increase(all[5m]))))',
        ),
        (
            ratio(raw=prometheus("failed:ratio"), rawType="failure"),
            "(avg(avg_over_time(((failed:ratio) >= -Inf)[5m:1m])) or avg(failed:ratio))",
        ),
        (
            ratio(raw=prometheus("ok:ratio"), rawType="success"),
            "(1 - (avg(avg_over_time(((ok:ratio) >= -Inf)[5m:1m])) or avg(ok:ratio)))",
        ),
        (ratio(raw=prometheus("1 - ok[{{.window}}]"), rawType="failure"), "(1 - ok[5m])"),
    ],
    ids=["good", "gauge", "windowed", "summed", "raw failure", "raw success", "raw windowed"],
)
def test_openslo_s_other_ratios_are_read(indicator: JSON, errors: str) -> None:
    assert over(the(openslo(indicator)).errors, 5 * MINUTE) == errors


def test_openslo_s_thresholds_are_shares_of_time() -> None:
    slo = the(
        openslo({"thresholdMetric": prometheus("latency")}, objectives=[{"op": "lte", "value": 0.2, "target": 0.99}])
    )
    assert over(slo.errors, 5 * MINUTE) == (
        "(avg(1 - avg_over_time((((latency) >= -Inf) <= bool 0.2)[5m:1m])) or 0 * avg(latency))"
    )


def test_a_source_without_a_type_has_that_of_its_data_source() -> None:
    metric = {"metricSource": {"metricSourceRef": "ours", "spec": {"query": "m"}}}
    body = openslo({"ratioMetric": {"raw": metric, "rawType": "failure"}})
    # OpenSLO itself knows no namespaces.
    source = {"apiVersion": "openslo/v1", "kind": "DataSource", "metadata": {"name": "ours"}}
    assert is_slo(source)
    assert the(body, {**source, "spec": {"type": "Prometheus"}}).broken == ""
    assert the(body, {**source, "spec": {"type": "Datadog"}}).broken == (
        "metricSource of type Datadog is not read: only Prometheus"
    )
    assert the(body).broken == "metricSource has no type, and there is no DataSource ours: write type: Prometheus"


def test_each_objective_is_an_slo_of_its_own() -> None:
    slos = read_slos([openslo(objectives=[{"target": 0.99}, {"targetPercent": 99.95}])])
    assert [(slo.name, slo.object, slo.objective) for slo in slos] == [
        ("cart-availability-0", "cart-availability", 0.99),
        ("cart-availability-1", "cart-availability", 0.9995),
    ]


def test_an_indicator_may_be_an_object_of_its_own() -> None:
    meta = {"name": "requests", "namespace": "shop"}
    sli = {
        "apiVersion": "openslo/v1",
        "kind": "SLI",
        "metadata": meta,
        "spec": ratio(bad=prometheus(BAD), total=prometheus(ALL)),
    }
    assert the(openslo()).errors == the(_refers("requests"), sli).errors
    assert the(_refers("requests"), {**sli, "metadata": {"name": "requests"}}).broken == ""
    assert the(_refers("others"), sli).broken == "indicatorRef: there is no SLI shop/others"


def _refers(name: str) -> JSON:
    body = openslo(indicatorRef=name)
    del body["spec"]["indicator"]
    return body


@pytest.mark.parametrize(
    ("body", "broken"),
    [
        (openslo(budgetingMethod="Timeslices"), "budgetingMethod Timeslices is not read: only Occurrences"),
        (
            openslo(timeWindow=[{"duration": "1M", "calendar": {"timeZone": "UTC"}}]),
            "timeWindow follows the calendar, which is not read: only isRolling: true",
        ),
        (
            openslo(timeWindow=[{"duration": "soon", "isRolling": True}]),
            "must be a duration like 30d, 4w or 1h, not 'soon'",
        ),
        (
            openslo(objectives=[{"target": 1}]),
            "target must be above 0 and below 1, not 1: without errors there is no budget",
        ),
        (
            openslo(objectives=[{"targetPercent": 100}]),
            "targetPercent must be above 0 and below 100, not 100: without errors there is no budget",
        ),
        (
            openslo(objectives=[{"target": 0.9, "indicatorRef": "x"}]),
            "composite SLOs are not read: make an SLO of each objective",
        ),
        (
            openslo(ratio(bad=prometheus("a / b"), total=prometheus("b"))),
            "'a / b' must be a metric with its labels, or a query with {{.window}} where its window is",
        ),
        (
            openslo(ratio(bad=prometheus('a{x="y"} / b{z="1"}'), total=prometheus("b"))),
            """'a{x="y"} / b{z="1"}' must be a metric with its labels, or a query with""",
        ),
        (
            openslo(ratio(bad={"metricSource": {"type": "Datadog", "spec": {}}}, total=prometheus("b"))),
            "metricSource of type Datadog is not read: only Prometheus",
        ),
        (
            openslo({"ratioMetric": {"bad": prometheus("a"), "total": prometheus('b_total{c="d"}')}}),
            """ratioMetric.counter is missing, and b_total{c="d"} is called as counters are: write counter: true""",
        ),
        (
            openslo(
                {"thresholdMetric": prometheus("a[{{.window}}]")}, objectives=[{"op": "lt", "value": 1, "target": 0.9}]
            ),
            "thresholdMetric is asked each minute: write a time for {{.window}}, such as 5m",
        ),
        (openslo(annotations={"kreflex.dev/workloads": "cart"}), "annotation kreflex.dev/workloads must be labels"),
        (openslo(objectives=[{"value": 1}]), "an objective has neither target nor targetPercent"),
        (openslo(objectives=None), "its spec is not as a SLO has it: KeyError('objectives')"),
        (openslo(timeWindow=[{"duration": f"{10**12}M"}]), "its spec is not as a SLO has it: OverflowError"),
    ],
)
def test_what_can_t_be_read_is_there_and_says_why(body: JSON, broken: str) -> None:
    slo = the(body)
    assert (slo.key, slo.errors) == ("shop/cart-availability", "")
    assert broken in slo.broken


def test_an_slo_has_to_say_where_its_workloads_are() -> None:
    body = openslo()
    del body["metadata"]["namespace"]
    assert the(body).broken == "metadata.namespace is missing: that of the workloads that it is about"


@pytest.mark.parametrize(
    ("duration", "window"), [("1M", 30 * DAY), ("1Q", 90 * DAY), ("4w", 28 * DAY), ("12h", 12 * HOUR), ("7d", 7 * DAY)]
)
def test_openslo_s_windows_are_read(duration: str, window: timedelta) -> None:
    assert the(openslo(timeWindow=[{"duration": duration, "isRolling": True}])).window == window


# Sloth


def test_sloth_s_are_called_as_sloth_calls_them_and_their_rules_are_used() -> None:
    slo = the(sloth(sloth_slo()))
    assert (slo.key, slo.service, slo.objective, slo.window) == (
        "monitoring/myservice-requests-availability",
        "myservice",
        0.999,
        MONTH,
    )
    assert over(slo.records, HOUR) == (
        'slo:sli_error:ratio_rate1h{sloth_service="myservice",sloth_slo="requests-availability"}'
    )
    assert over(slo.records, MONTH).startswith("slo:sli_error:ratio_rate30d{")
    assert over(slo.errors, HOUR) == ("(((sum(rate(errors[1h]))) or 0 * (sum(rate(all[1h])))) / (sum(rate(all[1h]))))")
    assert slo.called("sloth-slo-my-service")
    assert slo.called("myservice-requests-availability")


def test_sloth_s_other_indicators_are_read() -> None:
    raw = the(sloth(sloth_slo({"raw": {"errorRatioQuery": "1 - up_ratio[{{.window}}]"}})))
    plugin = the(sloth(sloth_slo({"plugin": {"id": "theirs"}})))
    assert over(raw.errors, HOUR) == "(1 - up_ratio[1h])"
    assert (plugin.errors, plugin.broken) == ("", "")


def test_sloth_s_window_is_what_the_annotation_says() -> None:
    slo = the(sloth(sloth_slo(), **{"kreflex.dev/slo-window": "28d"}))
    assert over(slo.records, slo.window).startswith("slo:sli_error:ratio_rate4w{")


def test_one_broken_slo_of_sloth_leaves_the_others() -> None:
    good, bad = read_slos(
        [sloth(sloth_slo(), {**sloth_slo({"events": {"errorQuery": "a", "totalQuery": "b"}}), "name": "b"})]
    )
    assert (good.broken, bad.broken) == ("", "'a' must have {{.window}} where its window is")


# Pyrra


def test_pyrra_s_ratios_are_read_and_its_rules_are_used() -> None:
    indicator = {"errors": {"metric": BAD}, "total": {"metric": ALL}}
    slo = the(pyrra_slo({"ratio": indicator}))
    assert (slo.key, slo.objective, slo.window, slo.alarms) == ("shop/api-errors", 0.99, 28 * DAY, pyrra(28 * DAY))
    assert over(slo.errors, HOUR) == (
        f"(((sum(rate({BAD}[1h]))) or 0 * (sum(rate({ALL}[1h])))) / (sum(rate({ALL}[1h]))))"
    )
    assert over(slo.records, HOUR) == 'http_requests:burnrate1h{slo="api-errors",job="cart"}'
    bad = 'sum(http_requests:increase4w{job="cart",code=~"5..",slo="api-errors"})'
    total = 'sum(http_requests:increase4w{job="cart",slo="api-errors"})'
    assert slo.record == f"((({bad}) or 0 * ({total})) / ({total}))"


def test_pyrra_s_groups_are_kept_apart() -> None:
    indicator = {"errors": {"metric": BAD}, "total": {"metric": ALL}, "grouping": ["path", "job"]}
    slo = the(pyrra_slo({"ratio": indicator}))
    assert slo.grouping == ("job", "path")
    assert f"sum by (job, path) (rate({BAD}[1h]))" in over(slo.errors, HOUR)
    # A label that is grouped by has many values, and the rule keeps each.
    assert over(slo.records, HOUR) == 'http_requests:burnrate1h{slo="api-errors"}'


@pytest.mark.parametrize(
    ("indicator", "errors", "record"),
    [
        (
            {"latency": {"success": {"metric": 'd_bucket{le="1"}'}, "total": {"metric": "d_count"}}},
            # As it is called before Prometheus 3, and since.
            '(1 - (sum(rate(d_bucket{le=~"1([.]0)?"}[1h]))) / (sum(rate(d_count{}[1h]))))',
            '(1 - (sum(d:increase4w{le="1",slo="api-errors"})) / (sum(d:increase4w{le="",slo="api-errors"})))',
        ),
        (
            {"latencyNative": {"latency": "200ms", "total": {"metric": "d"}}},
            "(1 - histogram_fraction(0, 0.2, sum(rate(d{}[1h]))))",
            '(1 - (sum(d:increase4w{le="0.2",slo="api-errors"})) / (sum(d:increase4w{le="",slo="api-errors"})))',
        ),
        (
            {"bool_gauge": {"metric": 'up{job="cart"}'}},
            '(1 - (sum(sum_over_time(up{job="cart"}[1h]))) / (sum(count_over_time(up{job="cart"}[1h]))))',
            '(1 - (sum(up:sum4w{job="cart",slo="api-errors"})) / (sum(up:count4w{job="cart",slo="api-errors"})))',
        ),
    ],
    ids=["latency", "native", "gauge"],
)
def test_pyrra_s_other_indicators_are_read(indicator: JSON, errors: str, record: str) -> None:
    slo = the(pyrra_slo(indicator))
    assert (over(slo.errors, HOUR), slo.record) == (errors, record)


@pytest.mark.parametrize(("latency", "seconds"), [("200ms", "0.2"), ("1s", "1.0"), ("1s500ms", "1.5")])
def test_pyrra_s_latencies_are_durations(latency: str, seconds: str) -> None:
    slo = the(pyrra_slo({"latencyNative": {"latency": latency, "total": {"metric": "d"}}}))
    assert f"histogram_fraction(0, {seconds}, " in slo.errors


def test_what_pyrra_would_not_take_is_broken() -> None:
    native = {"latencyNative": {"latency": "soon", "total": {"metric": "d"}}}
    assert the(pyrra_slo(native)).broken == "latency must be a duration like 200ms or 1s, not 'soon'"
    assert "must be above 0 and below 100" in the(pyrra_slo({"bool_gauge": {"metric": "up"}}, target="100")).broken
    assert "is not known" in the(pyrra_slo({"rate": {"total": {"metric": "up"}}})).broken
    assert "must be a metric with its labels" in the(pyrra_slo({"bool_gauge": {"metric": "a + b"}})).broken


# Windows


def test_a_month_has_the_workbook_s_windows() -> None:
    assert workbook(MONTH) == (
        Alarm("page", HOUR, 5 * MINUTE, 14.4),
        Alarm("page", 6 * HOUR, 30 * MINUTE, 6.0),
        Alarm("ticket", DAY, 2 * HOUR, 3.0),
        Alarm("ticket", 3 * DAY, 6 * HOUR, 1.0),
    )


def test_four_weeks_have_the_same_windows_and_shares() -> None:
    assert [(alarm.long, alarm.factor) for alarm in workbook(28 * DAY)] == [
        (HOUR, 13.44),
        (6 * HOUR, 5.6),
        (DAY, 2.8),
        (3 * DAY, 0.9333),
    ]


def test_other_windows_are_scaled_down_to_what_can_be_measured() -> None:
    assert [(alarm.long, alarm.short) for alarm in workbook(7 * DAY)] == [
        (15 * MINUTE, 5 * MINUTE),
        (84 * MINUTE, 7 * MINUTE),
        (336 * MINUTE, 28 * MINUTE),
        (1008 * MINUTE, 84 * MINUTE),
    ]


def test_pyrra_s_windows_are_its_own() -> None:
    assert pyrra(28 * DAY) == (
        Alarm("page", HOUR, 5 * MINUTE, 14),
        Alarm("page", 6 * HOUR, 30 * MINUTE, 7),
        Alarm("ticket", DAY, 2 * HOUR, 2),
        Alarm("ticket", 4 * DAY, 6 * HOUR, 1),
    )
    assert windows(pyrra(28 * DAY))[0] == 5 * MINUTE
    # Of a day its shortest window would be eleven seconds, which it rounds to none.
    assert pyrra(DAY)[0] == Alarm("page", 2 * MINUTE, 5 * MINUTE, 14)


@pytest.mark.parametrize(
    ("duration", "text"),
    [
        (30 * DAY, "30d"),
        (28 * DAY, "4w"),
        (365 * DAY, "1y"),
        (36 * HOUR, "1d12h"),
        (90 * MINUTE, "1h30m"),
        (7 * DAY, "1w"),
    ],
)
def test_durations_are_written_as_prometheus_does(duration: timedelta, text: str) -> None:
    assert (prom_duration(duration), read_duration(text)) == (text, duration)


@pytest.mark.parametrize("text", ["", "0d", "5", "d", "-1d", "1.5d", "99999999y", "1month"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"must be"):
        read_duration(text)


def test_questions_that_are_long_are_asked_apart() -> None:
    short, long = "a" * 30, "b" * 1990
    first, second = questions({HOUR: short, DAY: short, MONTH: long})
    hour, day = (f'label_replace({short}, "kreflex_window", "{window}", "", "")' for window in ("1h", "1d"))
    assert first == f"{hour} or {day}"
    assert second == f'label_replace({long}, "kreflex_window", "30d", "", "")'


# Where they are


def test_only_what_is_an_slo_is_read() -> None:
    assert [is_slo(body) for body in (openslo(), sloth(), pyrra_slo({}))] == [True, True, True]
    assert [is_slo(body) for body in (None, "x", {}, {"kind": "SLO", "apiVersion": "n9/v1", "metadata": {}})] == [
        False
    ] * 4


async def test_slos_are_read_from_custom_resources_and_from_our_own_config_maps() -> None:
    text = "apiVersion: openslo/v1\nkind: SLO\nmetadata: {name: kept, namespace: shop}\nspec: {}\n---\nkind: Service\n"
    elsewhere = text.replace("namespace: shop", "namespace: bank")
    meta = {"name": "slos", "namespace": "kreflex-system", "labels": {KEPT: "true"}}
    stored = {key: value for key, value in openslo().items() if key in {"metadata", "spec"}}
    api = CannedApi(
        {
            "/apis/openslo.com/v1/namespaces/shop/slos/cart-availability": stored,
            "/api/v1/namespaces/kreflex-system/configmaps/slos": {
                "metadata": meta,
                "data": {"a": text, "b": elsewhere},
            },
        }
    )
    found = await load_slos(api.world().cluster, "kreflex-system", "shop")
    assert [(slo.key, bool(slo.broken)) for slo in found] == [("shop/cart-availability", False), ("shop/kept", True)]


@pytest.mark.parametrize("text", ["a: [", "day: 2026-02-30", "[" * 5000])
def test_a_file_that_is_no_yaml_is_a_broken_slo(text: str) -> None:
    (slo,) = read_slos(parse(text, "slos.yaml"))
    assert slo.name == "slos.yaml"
    assert slo.broken.startswith("it is no YAML: ")


def test_the_examples_of_the_page_are_read() -> None:
    page = (Path(__file__).parents[2] / "docs" / "error-budget.md").read_text()
    config, policy = [
        yaml.safe_load(text) for text in re.findall(r"<!-- example: [a-z]+ -->\n```yaml\n(.*?)```", page, re.DOTALL)
    ]
    (slo,) = read_slos(body for name, text in config["data"].items() for body in parse(text, name))
    assert (slo.key, slo.broken, slo.workloads) == ("shop/cart-availability", "", (("app", "cart"),))
    read = PolicySpec.model_validate(policy["spec"])
    assert read.limits.error_budget == ErrorBudget()
