"""The alert rules say what they should, judged by Prometheus' own promtool."""

import subprocess
from pathlib import Path

import pytest
import yaml

from lab.toolchain import Toolchain

PROMETHEUS = Path(__file__).parents[2] / "triggers" / "prometheus"
RULES = sorted(PROMETHEUS.glob("*.rules.yaml"))
TESTS = sorted((PROMETHEUS / "tests").glob("*.test.yaml"))


@pytest.fixture(scope="module")
def promtool() -> Path:
    return Toolchain().ensure(["promtool"])["promtool"]


def run(*command: str | Path) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def alerts(rules: Path) -> list[dict[str, str]]:
    return [rule for group in yaml.safe_load(rules.read_text())["groups"] for rule in group["rules"]]


def test_there_are_rules_and_each_file_has_its_tests() -> None:
    assert [rules.name.removesuffix(".rules.yaml") for rules in RULES] == ["kreflex", "stock"]
    assert [test.name.removesuffix(".test.yaml") for test in TESTS] == ["kreflex", "stock"]


@pytest.mark.parametrize("rules", RULES, ids=lambda path: path.name)
def test_prometheus_accepts_the_rules(promtool: Path, rules: Path) -> None:
    run(promtool, "check", "rules", "--lint=all", "--lint-fatal", rules)


@pytest.mark.parametrize("test", TESTS, ids=lambda path: path.name)
def test_the_rules_fire_when_they_should(promtool: Path, test: Path) -> None:
    run(promtool, "test", "rules", test)


@pytest.mark.parametrize("rules", RULES, ids=lambda path: path.name)
def test_each_alert_is_tried_by_a_test(rules: Path) -> None:
    text = (PROMETHEUS / "tests" / rules.name.replace(".rules.", ".test.")).read_text()
    assert [rule["alert"] for rule in alerts(rules) if rule["alert"] not in text] == []


def test_our_alerts_are_called_after_us() -> None:
    assert [r["alert"] for r in alerts(PROMETHEUS / "kreflex.rules.yaml") if not r["alert"].startswith("Kreflex")] == []
