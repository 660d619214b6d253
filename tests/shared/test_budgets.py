"""What is left of an error budget, judged from shares of failed events (from a real Prometheus: tests/cluster)."""

import json
import math
import re
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kreflex.budgets import Budget, budget_of, judge, marks, measure, worst
from kreflex.budgetstatus import line, observe, status, unsaid, written
from kreflex.burn import workbook
from kreflex.errors import UnavailableError
from kreflex.guards import BudgetLeft
from kreflex.prom import Metrics
from kreflex.sloformats import Slo
from kreflex.slorules import groups
from kreflex.views import JSON
from kreflex.world import World
from tests.shared.test_guards import SERVES, a_case, an_eviction, refused
from tests.values import HOUR, NOW, CannedApi, a_policy

MONTH = timedelta(days=30)
SLO = Slo(
    "shop",
    "cart",
    "cart",
    "SLO",
    objective=0.999,
    errors="e{{.window}}",
    records="r{{.window}}",
    alarms=workbook(MONTH),
)
QUIET = dict.fromkeys(("5m", "30m", "1h", "2h", "6h", "1d", "3d", "30d"), 0.0002)
NAN = math.nan


class Answers(Metrics):
    """A Prometheus that has shares of failed events by window, of `r…` or `e…`; others it has not."""

    def __init__(self, **shares: dict[str, float]) -> None:
        super().__init__("")
        self.shares = shares
        self.queries: list[str] = []

    async def vector(self, query: str) -> list[tuple[dict[str, str], float]]:
        self.queries.append(query)
        if "down" in self.shares:
            raise UnavailableError("Prometheus did not answer")
        (known,) = set(re.findall(r"label_replace\((.)", query))
        return [({"kreflex_window": window}, share) for window, share in self.shares.get(known, {}).items()]


def judged(**shares: float) -> Budget:
    """The budget when all windows are quiet but these, named as w5m."""
    return judge(SLO, {(): {**QUIET, **{window[1:]: share for window, share in shares.items()}}})


def test_a_quiet_service_has_budget_left() -> None:
    assert (judged().why, judged().burning) == ("SLO shop/cart: 80% of the error budget of 30d is left", "none")
    assert judged().left == pytest.approx(0.8)
    assert (judged().state, judged().healthy, judged().must_stop) == ("Healthy", True, False)


def test_little_left_counts_as_spent() -> None:
    spent = judged(w30d=0.00081)
    assert spent.why == "SLO shop/cart: 19% of the error budget of 30d is left, below 20%"
    assert (spent.state, spent.healthy, spent.must_stop) == ("Spent", False, True)
    assert judged(w30d=0.003).why == "SLO shop/cart: -200% of the error budget of 30d is left, below 20%"
    assert judge(SLO, {(): {**QUIET, "30d": 0.00081}}, 0.1).state == "Healthy"


@pytest.mark.parametrize(
    ("shares", "burning", "why"),
    [
        ({"w1h": 0.015, "w5m": 0.02}, "page", "it burns 15.0 times too fast over 1h and 5m, more than 14.4 (page)"),
        ({"w6h": 0.0065, "w30m": 0.0061}, "page", "it burns 6.1 times too fast over 6h and 30m, more than 6 (page)"),
        ({"w1d": 0.0031, "w2h": 0.004}, "ticket", "it burns 3.1 times too fast over 1d and 2h, more than 3 (ticket)"),
        ({"w3d": 0.0011, "w6h": 0.0012}, "ticket", "it burns 1.1 times too fast over 3d and 6h, more than 1 (ticket)"),
        ({"w1h": 0.015, "w5m": 0.02, "w1d": 0.004, "w2h": 0.01}, "page", "it burns 15.0 times too fast over 1h and 5m"),
    ],
)
def test_it_burns_while_both_windows_of_an_alert_do(shares: dict[str, float], burning: str, why: str) -> None:
    budget = judged(**shares)
    assert (budget.state, budget.burning) == ("Burning", burning)
    assert why in budget.why
    assert budget.why.endswith("80% of the error budget of 30d is left")
    assert budget.must_stop is (burning == "page")
    assert not budget.healthy


@pytest.mark.parametrize(
    "shares", [{"w1h": 0.02}, {"w5m": 0.02}, {"w1h": 0.0143, "w5m": 0.0143}, {"w1h": 0.02, "w5m": NAN}]
)
def test_one_window_alone_is_no_burn(shares: dict[str, float]) -> None:
    assert judged(**shares).state == "Healthy"


def test_what_is_not_measured_any_more_is_unknown() -> None:
    shares = {window: share for window, share in QUIET.items() if window != "5m"}
    budget = judge(SLO, {(): shares})
    assert budget == Budget(None, "none", "SLO shop/cart: Prometheus has no data of the last 5m: is it still measured?")
    assert (budget.state, budget.healthy, budget.must_stop) == ("Unknown", False, True)


def test_a_window_that_is_not_recorded_is_unknown_and_no_calm() -> None:
    shares = {window: share for window, share in QUIET.items() if window != "1h"}
    because = "SLO shop/cart: Prometheus has no data of the last 1h: is it still measured?"
    assert judge(SLO, {(): shares}) == Budget(None, "none", because)


def test_without_any_events_nobody_can_tell() -> None:
    because = "SLO shop/cart: there were no events within 30d, or Prometheus does not have them"
    assert judged(w30d=NAN) == Budget(None, "none", because)


def test_a_share_that_is_none_is_unknown_and_no_budget_without_end() -> None:
    assert judged(w30d=-98.5).why == "SLO shop/cart: the share of its events that failed is -98.5: mend its query"
    assert judged(w30d=-98.5).state == "Unknown"
    assert (judged(w30d=-0.01).left, judged(w30d=-0.01).state) == (1.0, "Healthy")


def test_the_worst_group_counts_and_is_named_and_a_group_without_events_does_not() -> None:
    grouped = replace(SLO, grouping=("job", "path"))
    groups: dict[tuple[str, ...], dict[str, float]] = {
        ("cart", "/"): QUIET,
        ("cart", "/pay"): {**QUIET, "30d": 0.0009},
        ("cart", "/old"): dict.fromkeys(QUIET, NAN),
    }
    assert judge(grouped, groups).why == (
        "SLO shop/cart (job=cart, path=/pay): 10% of the error budget of 30d is left, below 20%"
    )


def test_a_new_group_that_burns_is_not_passed_over() -> None:
    grouped = replace(SLO, grouping=("path",))
    budget = judge(grouped, {("/",): QUIET, ("/new",): {"5m": 0.5, "1h": 0.5}})
    assert budget == Budget(
        None,
        "none",
        "SLO shop/cart (path=/new): it burns 500.0 times too fast over 1h and 5m, more than 14.4 (page);"
        " there were no events within 30d, or Prometheus does not have them",
    )
    assert judge(grouped, {("/",): QUIET, ("/new",): {"5m": 0.0}}).state == "Healthy"


def test_what_stops_most_is_the_worst() -> None:
    healthy, ticket, page = Budget(0.9, "none", ""), Budget(0.3, "ticket", ""), Budget(0.8, "page", "")
    spent, unknown = Budget(0.1, "none", ""), Budget(None, "none", "")
    assert [worst(some) for some in ([healthy, ticket], [ticket, page], [page, spent], [spent, unknown])] == [
        ticket,
        page,
        spent,
        unknown,
    ]


# Asking


async def test_what_is_recorded_is_asked_first_and_suffices() -> None:
    metrics = Answers(r=QUIET, e={})
    assert (await measure(SLO, metrics)).state == "Healthy"
    assert [query.count("label_replace(r") for query in metrics.queries] == [8]


async def test_what_is_behind_is_asked_if_not_all_is_recorded() -> None:
    metrics = Answers(r={"5m": 0.9, "30d": 0.9}, e=QUIET)
    assert (await measure(SLO, metrics)).left == pytest.approx(0.8)
    assert len(metrics.queries) == 2


async def test_what_our_rules_record_counts_where_neither_sloth_nor_pyrra_runs() -> None:
    metrics = Answers(p={"30d": 0.0}, k={"30d": 0.0})
    for kind, records in (("ServiceLevelObjective", "p{{.window}}"), ("PrometheusServiceLevel", "")):
        await measure(replace(SLO, kind=kind, records=records, record=records, errors="", alarms=()), metrics)
    ours = 'kreflex:slo_errors:ratio{slo_namespace="shop",slo="cart",window="30d"}'
    tag = '"kreflex_window", "30d", "", ""'
    assert metrics.queries == [f"label_replace(p30d or {ours}, {tag})", f"label_replace({ours}, {tag})"]


async def test_the_rules_go_by_what_they_record() -> None:
    made = [replace(SLO, kind="ServiceLevelObjective", records="p{{.window}}")]
    rules = [rule["expr"] for group in groups(made) for rule in group["rules"]]
    assert len(rules) == 13
    assert not any("p30d" in rule or "p1h" in rule for rule in rules)


async def test_of_a_plug_in_only_what_is_recorded_is_known() -> None:
    metrics = Answers(r={**QUIET, "30d": 0.0005})
    assert (await measure(replace(SLO, errors=""), metrics)).left == pytest.approx(0.5)
    assert len(metrics.queries) == 1


async def test_what_is_recorded_as_no_number_is_counted_anew() -> None:
    # As Sloth's rules have it for 30 days of a service that nobody asked for five minutes.
    metrics = Answers(r={**QUIET, "30d": NAN}, e=QUIET)
    assert (await measure(SLO, metrics)).left == pytest.approx(0.8)
    assert (await measure(SLO, Answers(r={**QUIET, "30d": NAN}, e={**QUIET, "30d": NAN}))).state == "Unknown"


async def test_a_prometheus_that_does_not_answer_leaves_it_unknown() -> None:
    because = "SLO shop/cart: the error budget is unknown: Prometheus did not answer"
    assert await measure(SLO, Answers(down={})) == Budget(None, "none", because)


async def test_a_broken_slo_is_unknown_and_nothing_is_asked() -> None:
    metrics = Answers(r=QUIET)
    budget = await measure(replace(SLO, broken="target is missing"), metrics)
    assert (budget.why, metrics.queries) == ("SLO shop/cart can't be used: target is missing", [])


# Whose


def an_slo(name: str = "cart", namespace: str = "shop", workloads: str = "") -> JSON:
    metric = {"metricSource": {"spec": {"query": "e"}}}
    spec = {
        "indicator": {"spec": {"ratioMetric": {"raw": metric, "rawType": "failure"}}},
        "objectives": [{"target": 0.999}],
    }
    notes = {"kreflex.dev/workloads": workloads} if workloads else {}
    return {"metadata": {"name": name, "namespace": namespace, "annotations": notes}, "spec": spec}


class Everything(Answers):
    """A Prometheus in which each SLO is as its name says: `spent`, or healthy."""

    async def vector(self, query: str) -> list[tuple[dict[str, str], float]]:
        share = 0.002 if "spent" in query else 0.0001
        return [({"kreflex_window": window}, share) for window in (*QUIET, "1h")]


def a_world(*slos: JSON) -> World:
    paths = {
        f"/apis/openslo.com/v1/namespaces/{body['metadata']['namespace']}/slos/{body['metadata']['name']}": body
        for body in slos
    }
    return World(CannedApi(paths).world().cluster, Everything())


async def state(about: str | dict[str, Any], *slos: JSON, namespace: str = "shop") -> str:
    return (await budget_of(namespace, about, a_world(*slos))).state


async def test_an_slo_is_named_in_its_namespace_or_in_another() -> None:
    slos = an_slo(), an_slo("spent"), an_slo("spent", "bank")
    assert await state("cart", *slos) == "Healthy"
    assert await state("spent", *slos) == "Spent"
    assert await state("bank/spent", *slos) == "Spent"
    assert await state("shop/cart", *slos, namespace="") == "Healthy"


async def test_a_workload_names_its_slos_and_the_worst_counts() -> None:
    slos = an_slo(), an_slo("spent")
    assert await state({"kreflex.dev/slo": "cart"}, *slos) == "Healthy"
    assert await state({"kreflex.dev/slo": "cart, spent"}, *slos) == "Spent"


async def test_an_slo_may_select_its_workloads() -> None:
    slos = an_slo(), an_slo("spent", workloads="app=cart,tier=web")
    assert await state({"app": "cart", "tier": "web"}, *slos) == "Spent"
    assert await state({"kreflex.dev/slo": "cart", "app": "cart", "tier": "web"}, *slos) == "Spent"
    assert await state({"kreflex.dev/slo": "cart", "app": "cart"}, *slos) == "Healthy"


async def test_an_slo_that_is_not_there_is_unknown() -> None:
    budget = await budget_of("shop", {"kreflex.dev/slo": "cart,checkout"}, a_world(an_slo()))
    because = "SLO shop/checkout can't be used: it is not there: is it written as its object is called?"
    assert budget == Budget(None, "none", because)


async def test_a_workload_that_no_slo_is_about_is_unknown() -> None:
    budget = await budget_of("shop", {"app": "cart"}, a_world(an_slo()))
    because = "no SLO is about it: name one of namespace shop by the annotation kreflex.dev/slo"
    assert budget == Budget(None, "none", because)


async def test_slos_that_can_t_be_read_are_unknown() -> None:
    api = CannedApi()
    api.down = True
    budget = await budget_of("shop", "cart", World(api.world().cluster, Everything()))
    assert budget.why == "the error budget is unknown: the SLOs can't be read: the API server did not answer"


def test_an_object_tells_by_its_marks_and_those_of_its_template() -> None:
    template = {"metadata": {"labels": {"app": "cart", "a": "1"}, "annotations": {"kreflex.dev/slo": "old"}}}
    body = {
        "metadata": {"labels": {"a": "2"}, "annotations": {"kreflex.dev/slo": "cart"}},
        "spec": {"template": template},
    }
    assert marks(body) == {"app": "cart", "a": "2", "kreflex.dev/slo": "cart"}
    assert marks({"app": "cart"}) == {"app": "cart"}


# The guard


async def guarded(limits: JSON, *slos: JSON, annotations: dict[str, str] | None = None) -> tuple[str, str] | None:
    world = a_world(*slos)
    action = an_eviction(**SERVES, workload={"annotations": annotations or {}})
    policy = a_policy(limits={"errorBudget": limits})
    found = await refused(BudgetLeft(world.metrics, world.cluster), a_case(policy, action=action))
    return None if found is None else (found[0], found[1].partition(". To approve")[0])


async def test_a_policy_names_the_slo() -> None:
    slos = an_slo(), an_slo("spent")
    assert await guarded({"slo": "cart"}, *slos) is None
    because = "SLO shop/spent: -100% of the error budget of 30d is left, below 20% (all): a person decides"
    assert await guarded({"slo": "spent"}, *slos) == ("ErrorBudget", because)


async def test_without_a_name_it_is_that_of_the_workload() -> None:
    slos = an_slo(), an_slo("spent")
    assert await guarded({}, *slos, annotations={"kreflex.dev/slo": "cart"}) is None
    found = await guarded({"least": 0.5}, *slos, annotations={"kreflex.dev/slo": "spent"})
    assert found is not None
    assert "below 50%" in found[1]
    unknown = await guarded({}, *slos)
    assert unknown == (
        "ErrorBudget",
        "no SLO is about it: name one of namespace shop by the annotation kreflex.dev/slo (all): a person decides",
    )


def test_a_policy_has_one_way_to_tell() -> None:
    both = a_policy(limits={"errorBudget": {"slo": "cart", "query": "x"}})
    assert both.broken == "limits.errorBudget: query and slo exclude each other"


# What is written


async def test_what_is_written_is_read_again_while_it_is_fresh() -> None:
    spent = judged(w30d=0.0009)
    body = status([(SLO, spent), (replace(SLO, namespace=""), spent)], NOW, "kreflex-system")
    assert body["spec"] == {
        "observedAt": "2026-05-01T12:00:00.000Z",
        "freshUntil": "2026-05-01T12:05:00.000Z",
        "budgets": [
            {
                "namespace": "shop",
                "slo": "cart",
                "state": "Spent",
                "burning": "none",
                "left": "10%",
                "why": "SLO shop/cart: 10% of the error budget of 30d is left, below 20%",
            }
        ],
    }
    api = CannedApi({"/apis/kreflex.dev/v1alpha1/namespaces/kreflex-system/errorbudgetstatuses/current": body})
    reader = api.world().cluster
    assert await written(reader, "kreflex-system", ["shop/cart", "shop/pay"]) == [
        line("shop", "cart", spent),
        unsaid("shop/pay", "there is no SLO shop/pay among those that are written down"),
    ]
    api.watch.moment = NOW + HOUR
    because = "nobody has looked at the error budgets since 2026-05-01 12:00:00 UTC"
    assert await written(reader, "kreflex-system", ["shop/cart"]) == [unsaid("shop/cart", because)]


async def test_what_is_not_written_is_unknown() -> None:
    because = "there is no ErrorBudgetStatus kreflex-system/current: is CronJob error-budget there?"
    assert await written(CannedApi().world().cluster, "kreflex-system", ["shop/cart"]) == [unsaid("shop/cart", because)]


async def test_what_is_written_by_another_version_is_unknown() -> None:
    body = {"spec": {"observedAt": "yesterday"}}
    api = CannedApi({"/apis/kreflex.dev/v1alpha1/namespaces/kreflex-system/errorbudgetstatuses/current": body})
    (found,) = await written(api.world().cluster, "kreflex-system", ["shop/cart"])
    assert found.state == "Unknown"
    assert found.why.startswith("ErrorBudgetStatus kreflex-system/current can't be read")


def test_one_strange_slo_hides_no_other() -> None:
    long, nowhere = replace(SLO, name="n" * 300), replace(SLO, namespace="n" * 64)
    far = judged(w30d=1e30)
    found = status([(long, far), (nowhere, judged()), (SLO, judged())], NOW, "kreflex-system")["spec"]["budgets"]
    assert [(one["namespace"], len(one["slo"]), one["state"]) for one in found] == [
        ("shop", 253, "Spent"),
        ("shop", 4, "Healthy"),
    ]


def test_of_very_many_the_ill_ones_are_written_and_it_fits() -> None:
    why = "w" * 500
    healthy, ill = Budget(1.0, "none", why), Budget(0.0, "none", why)
    many = [(replace(SLO, name=f"slo-{number}"), ill if number == 2100 else healthy) for number in range(2101)]
    body = status(many, NOW, "kreflex-system")
    assert len(body["spec"]["budgets"]) == 2000
    assert body["spec"]["budgets"][0]["slo"] == "slo-2100"
    assert len(json.dumps(body)) < 1_000_000


async def test_whom_there_was_no_time_to_ask_is_unknown() -> None:
    ((_, found),) = await observe([SLO], Answers(), 0.2, seconds=0)
    assert found.why == "SLO shop/cart: Prometheus was too slow to be asked, after 0 s with the others"
