"""The alert rules say what they should, judged by Prometheus' own promtool."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from lab.toolchain import Toolchain

PROMETHEUS = Path(__file__).parents[2] / "triggers" / "prometheus"
RULES = sorted(PROMETHEUS.glob("*.rules.yaml"))
TESTS = sorted((PROMETHEUS / "tests").glob("*.test.yaml"))

# Where the pages of functions name the causes that they hand on.
CAUSES = {
    "restart-loop-killer": "Causes that it hands on",
    "node-replacer": "Causes that it hands on",
    "rollback": "When it leaves a release alone",
    "canary-aborter": "Causes that it hands on",
}
# What is nothing to be told of by KreflexFaultHandedOn, and why.
TOLD_BY_OTHERS = {
    "FirstRelease": "restart-loop-killer and the alert that has woken it tell it",
    "SomePods": "they are for restart-loop-killer",
    "TooLate": "it is no matter of a release",
    "ImageUnknown": "it is asked again after a minute",
    "Promoted": "rollback hears of it",
    "Declined": "a person has declined it",
    "Uncordoned": "a person has uncordoned it",
    "SyncSuspended": "KreflexSyncSuspended tells it",
    "Policy": "it is refused at once, and the waker asks again when the policy is mended",
}


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


def test_each_cause_that_a_page_names_is_told_to_people_or_by_somebody_else() -> None:
    (rule,) = [one for one in alerts(PROMETHEUS / "kreflex.rules.yaml") if one["alert"] == "KreflexFaultHandedOn"]
    found = re.search(r'guard=~"([^"]+)"', rule["expr"])
    assert found
    told = re.compile(found[1])
    for function, title in CAUSES.items():
        page = (PROMETHEUS.parents[1] / "docs" / "functions" / f"{function}.md").read_text()
        table = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
        cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
        named = {cause.replace("…", "") for cell in cells for cause in re.findall("`([^`]+)`", cell)}
        assert len(named) > 4
        assert {cause for cause in named if not told.fullmatch(cause)} <= set(TOLD_BY_OTHERS), function


def test_our_alerts_are_called_after_us() -> None:
    assert [r["alert"] for r in alerts(PROMETHEUS / "kreflex.rules.yaml") if not r["alert"].startswith("Kreflex")] == []
