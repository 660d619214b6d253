"""How OpenSLO, Sloth and Pyrra write an SLO down, and what their rules are called in Prometheus.

- OpenSLO v1: https://github.com/OpenSLO/OpenSLO#slo
- Sloth: https://github.com/slok/sloth/blob/main/pkg/kubernetes/api/sloth/v1/types.go; the names of its rules:
  pkg/common/conventions/slo.go
- Pyrra: https://github.com/pyrra-dev/pyrra/blob/main/kubernetes/api/v1alpha1/servicelevelobjective_types.go; the names
  of its rules: slo/rules.go, BurnrateName and increaseName
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import timedelta

from kreflex import burn
from kreflex.burn import WINDOW, Alarm, prom_duration, read_duration, windowed, workbook
from kreflex.errors import KreflexError
from kreflex.policy import GROUP
from kreflex.views import JSON

OPENSLO, SLOTH, PYRRA = "openslo.com/v1", "sloth.slok.dev/v1", "pyrra.dev/v1alpha1"
# On an SLO: the labels of the workloads that it is about, as app=cart,tier=web.
WORKLOADS = f"{GROUP}/workloads"
# On one of Sloth's: its window, which Sloth itself is told by a flag for all of them.
SLOTH_WINDOW = f"{GROUP}/slo-window"
# What our own rules record (slorules.py).
RECORDED = "kreflex:slo_errors:ratio"
_MONTH = timedelta(days=30)
_CALENDAR = {"M": 30, "Q": 90, "Y": 365}
_OPERATORS = {"lte": "<=", "lt": "<", "gte": ">=", "gt": ">"}
_QUOTED = r""""(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
_SELECTOR = re.compile(rf"\s*([a-zA-Z_:][\w:]*)?\s*(\{{(?:[^{{}}\"']|{_QUOTED})*\}})?\s*")
_EQUAL = re.compile(rf"([a-zA-Z_]\w*)\s*=\s*({_QUOTED})")
_SUMMED = re.compile(r"\s*sum\s*\((.*)\)\s*", re.DOTALL)
# What Prometheus' clients call counters (https://prometheus.io/docs/practices/naming/#metric-names).
_COUNTERS = ("_total", "_count", "_bucket", "_sum")
_METRICS = ("good", "bad", "total", "raw")
_WHOLE = re.compile(r"\ble\s*=\s*([\"'])(\d+)\1")
_LATENCY = re.compile(r"((?:\d+[smhdwy])*)(?:(\d+)ms)?")

# Objects that others name: by kind, namespace and name.
Named = Mapping[tuple[str, str, str], JSON]


class BadSloError(KreflexError):
    """An SLO that can't be read; says which field, and what to write."""


@dataclass(frozen=True, slots=True)
class Slo:
    """One SLO: what share of events may fail over `window`, and the PromQL that tells what share did.

    `errors` leaves its window open, and so does `records`, which asks for what rules have recorded; `record` is that
    for the whole window, where it has another form. `workloads` are the labels of what it is about. `broken` says why
    it can't be used.
    """

    namespace: str
    name: str
    object: str
    kind: str
    service: str = ""
    objective: float = 0.0
    window: timedelta = _MONTH
    errors: str = ""
    records: str = ""
    record: str = ""
    grouping: tuple[str, ...] = ()
    alarms: tuple[Alarm, ...] = ()
    workloads: tuple[tuple[str, str], ...] = ()
    broken: str = ""

    def __str__(self) -> str:
        return f"SLO {self.key}"

    @property
    def key(self) -> str:
        """How people call it."""
        return f"{self.namespace}/{self.name}"

    @property
    def ours(self) -> str:
        """Ask for what our own rules have recorded, with the window left open."""
        return f'{RECORDED}{{slo_namespace={_quoted(self.namespace)},slo={_quoted(self.name)},window="{WINDOW}"}}'

    @property
    def allowed(self) -> float:
        """The share of events that may fail."""
        return 1 - self.objective

    def called(self, name: str) -> bool:
        """Tell whether somebody means it by this name: its own, or that of the object that it is in."""
        return name in {self.name, self.object}

    def about(self, labels: Mapping[str, str]) -> bool:
        """Tell whether its own annotation selects a workload with these labels."""
        return bool(self.workloads) and dict(self.workloads).items() <= labels.items()


def _share(target: object, field: str, *, percent: bool = True) -> float:
    objective = round(float(str(target)) / (100 if percent else 1), 9)
    if not 0 < objective < 1:
        most = "100" if percent else "1"
        raise BadSloError(f"{field} must be above 0 and below {most}, not {target}: without errors there is no budget")
    return objective


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


# A share of bad events. What has never failed has no series of failures: that is 0, where there are events at all.
def _bad_of(bad: str, total: str) -> str:
    return f"((({bad}) or 0 * ({total})) / ({total}))"


def _good_of(good: str, total: str) -> str:
    return f"(1 - ({good}) / ({total}))"


# OpenSLO


def openslo(blank: Slo, body: JSON, named: Named) -> Iterable[Slo]:
    """Read an SLO of OpenSLO; with several objectives each is an SLO of its own, `name-0`, `name-1`."""
    spec = body["spec"]
    if spec.get("budgetingMethod", "Occurrences") != "Occurrences":
        raise BadSloError(f"budgetingMethod {spec['budgetingMethod']} is not read: only Occurrences")
    window, indicator = _openslo_window(spec), _openslo_indicator(spec, named, blank.namespace)
    _from_prometheus(indicator, named, blank.namespace)
    for number, objective in enumerate(spec["objectives"]):
        if "indicator" in objective or "indicatorRef" in objective:
            raise BadSloError("composite SLOs are not read: make an SLO of each objective")
        name = blank.object if len(spec["objectives"]) == 1 else f"{blank.object}-{number}"
        made = replace(
            blank,
            name=name,
            service=str(spec.get("service", "")),
            objective=_openslo_target(objective),
            window=window,
            errors=_openslo_errors(indicator, objective),
            alarms=workbook(window),
        )
        yield replace(made, records=made.ours)


def _openslo_window(spec: JSON) -> timedelta:
    given = spec.get("timeWindow") or []
    if not given:
        return _MONTH
    if "calendar" in given[0] or not given[0].get("isRolling", True):
        raise BadSloError("timeWindow follows the calendar, which is not read: only isRolling: true")
    text = str(given[0]["duration"])
    if text[-1:] in _CALENDAR and text[:-1].isdigit():
        return timedelta(days=int(text[:-1]) * _CALENDAR[text[-1]])
    return read_duration(text)


def _openslo_indicator(spec: JSON, named: Named, namespace: str) -> JSON:
    if "indicator" in spec:
        return dict(spec["indicator"]["spec"])
    name = str(spec.get("indicatorRef", ""))
    body = _called(named, "SLI", namespace, name)
    if body is None:
        raise BadSloError(f"indicatorRef: there is no SLI {namespace}/{name}")
    return dict(body["spec"])


def _called(named: Named, kind: str, namespace: str, name: str) -> JSON | None:
    """Find what an SLO names: in its namespace, or in none, for OpenSLO itself knows no namespaces."""
    return named.get((kind, namespace, name)) or named.get((kind, "", name))


def _from_prometheus(indicator: JSON, named: Named, namespace: str) -> None:
    """See that Prometheus is asked; a source without a type has that of the DataSource that it names."""
    ratio = indicator.get("ratioMetric") or {}
    for metric in (indicator.get("thresholdMetric"), *(ratio.get(part) for part in _METRICS)):
        source = metric["metricSource"] if metric else {}
        kind, ref = source.get("type"), source.get("metricSourceRef")
        if kind is None and ref is not None:
            known = _called(named, "DataSource", namespace, str(ref))
            if known is None:
                raise BadSloError(f"metricSource has no type, and there is no DataSource {ref}: write type: Prometheus")
            kind = known["spec"]["type"]
        if str(kind or "Prometheus").lower() != "prometheus":
            raise BadSloError(f"metricSource of type {kind} is not read: only Prometheus")


def _openslo_target(objective: JSON) -> float:
    if "target" in objective:
        return _share(objective["target"], "target", percent=False)
    if "targetPercent" in objective:
        return _share(objective["targetPercent"], "targetPercent")
    raise BadSloError("an objective has neither target nor targetPercent")


def _openslo_errors(indicator: JSON, objective: JSON) -> str:
    if "thresholdMetric" in indicator:
        sign, query = _OPERATORS[objective["op"]], _query(indicator["thresholdMetric"])
        if windowed(query):
            raise BadSloError(f"thresholdMetric is asked each minute: write a time for {WINDOW}, such as 5m")
        good = f"avg_over_time(({_known(query)} {sign} bool {float(objective['value'])})[{WINDOW}:1m])"
        return f"(avg(1 - {good}) or 0 * avg({query}))"
    ratio = indicator["ratioMetric"]
    if "raw" in ratio:
        mean = _raw(_query(ratio["raw"]))
        return {"success": f"(1 - {mean})", "failure": mean}[ratio["rawType"]]
    total = _events(ratio["total"], ratio)
    return (
        _bad_of(_events(ratio["bad"], ratio), total)
        if "bad" in ratio
        else _good_of(_events(ratio["good"], ratio), total)
    )


def _known(query: str) -> str:
    """Leave out what is not a number: no events in a minute are neither good nor bad.

    Where nothing else is left, what there is now tells that from what is not measured any more.
    """
    return f"(({query}) >= -Inf)"


def _raw(query: str) -> str:
    if windowed(query):
        return f"({query})"
    plain = _plain(query)
    return f"(avg(avg_over_time({_known(plain)}[{WINDOW}:1m])) or avg({plain}))"


def _query(metric: JSON) -> str:
    spec = metric["metricSource"]["spec"]
    return str(spec["query"] if "query" in spec else spec["promql"])


def _events(metric: JSON, ratio: JSON) -> str:
    """Count events over the open window: OpenSLO names a metric, Sloth's users write a query with the window in it."""
    query = _query(metric)
    if windowed(query):
        return query
    # As OpenSLO's own example has it: it is summed in any case.
    summed = _SUMMED.fullmatch(query)
    plain = _plain(summed[1] if summed else query)
    if "counter" not in ratio and plain.partition("{")[0].strip().endswith(_COUNTERS):
        raise BadSloError(f"ratioMetric.counter is missing, and {plain} is called as counters are: write counter: true")
    # A gauge is the number of events since the sample before.
    return f"sum({'increase' if ratio.get('counter') else 'sum_over_time'}({plain}[{WINDOW}]))"


def _plain(query: str) -> str:
    if _SELECTOR.fullmatch(query) is None or not query.strip():
        raise BadSloError(f"{query!r} must be a metric with its labels, or a query with {WINDOW} where its window is")
    return query.strip()


# Sloth


def sloth(blank: Slo, body: JSON) -> Iterable[Slo]:
    """Read a PrometheusServiceLevel: each of its slos is called as Sloth calls it, `service-name`."""
    spec, notes = body["spec"], body["metadata"].get("annotations") or {}
    window, service = read_duration(str(notes.get(SLOTH_WINDOW, "30d"))), str(spec["service"])
    for slo in spec["slos"]:
        name = str(slo["name"])
        made = replace(
            blank,
            name=f"{service}-{name}",
            service=service,
            window=window,
            records=f"slo:sli_error:ratio_rate{WINDOW}{{sloth_service={_quoted(service)},sloth_slo={_quoted(name)}}}",
            alarms=workbook(window),
        )
        try:
            yield replace(made, objective=_share(slo["objective"], "objective"), errors=_sloth_errors(slo["sli"]))
        except BadSloError as error:
            yield replace(made, broken=str(error))


def _sloth_errors(sli: JSON) -> str:
    if "raw" in sli:
        return f"({_open(sli['raw']['errorRatioQuery'])})"
    if "events" in sli:
        return _bad_of(_open(sli["events"]["errorQuery"]), _open(sli["events"]["totalQuery"]))
    # Only Sloth knows its plug-ins; what it has recorded by them suffices.
    return ""


def _open(query: object) -> str:
    if not windowed(str(query)):
        raise BadSloError(f"{query!r} must have {WINDOW} where its window is")
    return str(query)


# Pyrra


def pyrra(blank: Slo, body: JSON) -> Iterable[Slo]:
    """Read a ServiceLevelObjective; with a grouping the worst of its groups counts."""
    spec, name = body["spec"], blank.object
    window = read_duration(str(spec["window"]))
    (kind, indicator), *more = spec["indicator"].items()
    if more:
        raise BadSloError("indicator has more than one kind: leave one")
    grouping = tuple(sorted(str(label) for label in indicator.get("grouping") or ()))
    total = _Metric.of(indicator["metric"] if kind == "bool_gauge" else indicator["total"]["metric"])
    summed = f"sum by ({', '.join(grouping)}) " if grouping else "sum"
    yield replace(
        blank,
        objective=_share(spec["target"], "target"),
        window=window,
        errors=_pyrra_errors(kind, indicator, total, summed),
        records=total.burnrate(name, grouping),
        record=_pyrra_record(kind, indicator, total, summed, name, prom_duration(window)),
        grouping=grouping,
        alarms=burn.pyrra(window),
    )


@dataclass(frozen=True, slots=True)
class _Metric:
    """A metric with its labels, which Pyrra's rules turn into a name of their own."""

    name: str
    matchers: str

    @classmethod
    def of(cls, text: object) -> _Metric:
        found = _SELECTOR.fullmatch(str(text))
        if found is None or not str(text).strip():
            raise BadSloError(f"{text!r} must be a metric with its labels")
        return cls(found[1] or "", (found[2] or "{}")[1:-1].strip().strip(","))

    def __str__(self) -> str:
        return f"{self.name}{{{self.matchers}}}"

    @property
    def base(self) -> str:
        return self.name.removesuffix("_total").removesuffix("_count")

    def burnrate(self, slo: str, grouping: tuple[str, ...]) -> str:
        """Ask for the rules of a window that is open; they keep the labels that were asked to be equal."""
        others = {*grouping, "le", "slo", "__name__"}
        same = "".join(f",{key}={value}" for key, value in _EQUAL.findall(self.matchers) if key not in others)
        return f"{self.base}:burnrate{WINDOW}{{slo={_quoted(slo)}{same}}}" if self.base else ""

    def increase(self, window: str, *more: str) -> str:
        return self.recorded(f"{self.base.removesuffix('_bucket')}:increase{window}", *more)

    def recorded(self, rule: str, *more: str) -> str:
        inside = ",".join(one for one in (self.matchers, *more) if one)
        return f"{rule}{{{inside}}}"


def _pyrra_errors(kind: str, indicator: JSON, total: _Metric, summed: str) -> str:
    events = f"{summed}(rate({total}[{WINDOW}]))"
    match kind:
        case "ratio":
            return _bad_of(f"{summed}(rate({_Metric.of(indicator['errors']['metric'])}[{WINDOW}]))", events)
        case "latency":
            # Prometheus 3 writes le="1" as le="1.0", and Pyrra asks for both
            # (https://github.com/pyrra-dev/pyrra/blob/main/slo/prometheus3.go).
            success = _WHOLE.sub(r'le=~"\2([.]0)?"', str(_Metric.of(indicator["success"]["metric"])))
            return _good_of(f"{summed}(rate({success}[{WINDOW}]))", events)
        case "latencyNative":
            return f"(1 - histogram_fraction(0, {_seconds(indicator['latency'])}, {events}))"
        case "bool_gauge":
            return _good_of(
                f"{summed}(sum_over_time({total}[{WINDOW}]))", f"{summed}(count_over_time({total}[{WINDOW}]))"
            )
    raise BadSloError(f"indicator {kind} is not known: ratio, latency, latencyNative or bool_gauge")


def _seconds(latency: object) -> float:
    found = _LATENCY.fullmatch(str(latency))
    if found is None or not found[0]:
        raise BadSloError(f"latency must be a duration like 200ms or 1s, not {latency!r}")
    return (read_duration(found[1]).total_seconds() if found[1] else 0) + int(found[2] or 0) / 1000


def _pyrra_record(kind: str, indicator: JSON, total: _Metric, summed: str, name: str, window: str) -> str:
    """Ask for the whole window as Pyrra's rules have recorded it."""
    if not total.base:
        return ""
    slo = f"slo={_quoted(name)}"
    if kind == "ratio":
        bad = _Metric.of(indicator["errors"]["metric"])
        return _bad_of(f"{summed}({bad.increase(window, slo)})", f"{summed}({total.increase(window, slo)})")
    if kind == "bool_gauge":
        good, every = (total.recorded(f"{total.name}:{part}{window}", slo) for part in ("sum", "count"))
        return _good_of(f"{summed}({good})", f"{summed}({every})")
    everything = total.increase(window, 'le=""', slo)
    if kind == "latencyNative":
        fast = total.increase(window, f'le="{_seconds(indicator["latency"]):.15g}"', slo)
    else:
        fast = _Metric.of(indicator["success"]["metric"]).increase(window, slo)
    return _good_of(f"{summed}({fast})", f"{summed}({everything})")
