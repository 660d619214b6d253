"""The example configuration sends each alert to whom it concerns, judged by Alertmanager's own amtool."""

import subprocess
from pathlib import Path

import pytest
import yaml

from lab.toolchain import Toolchain

TRIGGERS = Path(__file__).parents[2] / "triggers"
EXAMPLE = TRIGGERS / "alertmanager" / "alertmanager.yaml"


@pytest.fixture(scope="module")
def amtool() -> Path:
    return Toolchain().ensure(["amtool"])["amtool"]


def receivers(amtool: Path, alert: str, **labels: str) -> set[str]:
    """Ask amtool who hears of an alert with these labels."""
    given = [f'{name}="{value}"' for name, value in {"alertname": alert, "namespace": "shop", **labels}.items()]
    command: list[str | Path] = [amtool, "config", "routes", "test", f"--config.file={EXAMPLE}", *given]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return set(answer.stdout.strip().split(","))


def test_alertmanager_accepts_the_example(amtool: Path) -> None:
    answer = subprocess.run([amtool, "check-config", EXAMPLE], capture_output=True, text=True, timeout=300, check=False)
    assert (answer.returncode, "SUCCESS" in answer.stdout) == (0, True), answer.stdout + answer.stderr


def test_the_fast_rule_wakes_the_function_and_no_person(amtool: Path) -> None:
    heard = receivers(amtool, "KreflexPodRestartLooping", function="restart-loop-killer", severity="none")
    assert heard == {"restart-loop-killer", "rollback", "nobody"}


def test_the_stock_rule_wakes_both_functions_that_it_concerns_and_people(amtool: Path) -> None:
    heard = receivers(amtool, "KubePodCrashLooping", severity="warning")
    assert heard == {"restart-loop-killer", "rollback", "people"}


def test_the_stock_rules_about_workloads_wake_the_function_for_releases_and_people(amtool: Path) -> None:
    stock = yaml.safe_load((TRIGGERS / "prometheus" / "stock.rules.yaml").read_text())["groups"]
    about = {rule["alert"] for group in stock if group["name"] == "kubernetes-apps" for rule in group["rules"]}
    assert len(about) > 7
    for name in about - {"KubePodCrashLooping"}:
        assert receivers(amtool, name) == {"rollback", "people"}, name


@pytest.mark.parametrize(
    ("label", "woken"),
    [
        ("rollback", {"rollback"}),
        ("canary-aborter", {"canary-aborter"}),
        ("rollback,canary-aborter", {"rollback", "canary-aborter"}),
        ("canary-aborter,rollback", {"rollback", "canary-aborter"}),
        ("anomaly-scorer", {"anomaly-scorer"}),
        ("not-rollback", set()),
    ],
)
def test_an_alert_of_ones_own_names_the_functions_that_it_wakes(amtool: Path, label: str, woken: set[str]) -> None:
    assert receivers(amtool, "CartErrors", deployment="cart", kreflex=label) == {*woken, "people"}


def test_what_became_of_a_remediation_is_for_people_only(amtool: Path) -> None:
    rules = yaml.safe_load((TRIGGERS / "prometheus" / "kreflex.rules.yaml").read_text())["groups"]
    ours = [rule["alert"] for group in rules if group["name"] == "kreflex-records" for rule in group["rules"]]
    assert ours
    assert {name: receivers(amtool, name, function="restart-loop-killer") for name in ours} == {
        name: {"people"} for name in ours
    }


def test_the_stock_rules_about_nodes_wake_the_function_for_nodes_and_people(amtool: Path) -> None:
    stock = yaml.safe_load((TRIGGERS / "prometheus" / "stock.rules.yaml").read_text())["groups"]
    groups = ("kubernetes-system-kubelet", "node-exporter")
    about_nodes = {rule["alert"] for group in stock if group["name"] in groups for rule in group["rules"]}
    assert len(about_nodes) > 4
    for name in (*about_nodes, "KubeletDown", "NodeRAIDDegraded"):
        assert receivers(amtool, name, node="node-1") == {"node-replacer", "people"}, name


def test_an_anomaly_wakes_the_function_that_its_watch_names_and_people(amtool: Path) -> None:
    told = {"kind": "Pod", "pod": "cart-1", "severity": "critical", "watch": "kreflex-system/pods"}
    assert receivers(amtool, "KreflexAnomaly", **told, remediation="restart-loop-killer") == {
        "restart-loop-killer",
        "people",
    }
    assert receivers(amtool, "KreflexAnomaly", **told) == {"people"}
    assert receivers(amtool, "SomethingElse", **told, remediation="restart-loop-killer") == {"people"}


def test_other_alerts_are_for_people_only(amtool: Path) -> None:
    assert receivers(amtool, "KubeClientErrors", instance="10.0.0.1:6443") == {"people"}


def routes_to(name: str) -> list[dict[str, object]]:
    routes = yaml.safe_load(EXAMPLE.read_text())["route"]["routes"]
    return [one for one in routes if one["receiver"] == name]


def test_all_nodes_of_an_outage_come_together() -> None:
    (route,) = routes_to("node-replacer")
    assert route["group_by"] == ["cluster", "alertname"]


def test_the_prometheus_operator_is_told_the_same() -> None:
    file = TRIGGERS / "prometheus-operator" / "alertmanagerconfig.yaml"
    told = [
        (one["receiver"], [f'{m["name"]} {m["matchType"]} "{m["value"]}"' for m in one["matchers"]], one["groupBy"])
        for one in yaml.safe_load(file.read_text())["spec"]["route"]["routes"]
    ]
    functions = {receiver for receiver, _, _ in told}
    routes = yaml.safe_load(EXAMPLE.read_text())["route"]["routes"]
    ours = [one for one in routes if one["receiver"] in functions]
    assert told == [(one["receiver"], one["matchers"], one["group_by"]) for one in ours]


def test_no_route_to_a_function_keeps_an_alert_from_the_next() -> None:
    told = yaml.safe_load((TRIGGERS / "prometheus-operator" / "alertmanagerconfig.yaml").read_text())["spec"]["route"]
    routes = [*told["routes"][:-1], *yaml.safe_load(EXAMPLE.read_text())["route"]["routes"]]
    ours = [one for one in routes if one["receiver"] not in {"people", "nobody"}]
    assert [one["receiver"] for one in ours if not one.get("continue")] == []


def test_the_pods_of_one_owner_come_together() -> None:
    """No pod's name and no UID in group_by: they would make one request of each replica."""
    route = yaml.safe_load(EXAMPLE.read_text())["route"]["routes"][0]
    assert route["group_by"] == ["cluster", "alertname", "namespace"]
