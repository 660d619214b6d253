"""The alert rules say what they should, judged by Prometheus' own promtool."""

import ast
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from lab.toolchain import Toolchain

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROMETHEUS = ROOT / "triggers" / "prometheus"
RULES = sorted(PROMETHEUS.glob("*.rules.yaml"))
TESTS = sorted((PROMETHEUS / "tests").glob("*.test.yaml"))

# Where the pages of functions name the causes that they hand on.
CAUSES = {
    "restart-loop-killer": "Causes that it hands on",
    "node-replacer": "Causes that it hands on",
    "rollback": "When it leaves a release alone",
    "canary-aborter": "Causes that it hands on",
}
# Which argument is the cause.
WHERE = {"Refuse": 1, "refuse": 1, "BlockedError": 1, "HopelessError": 1, "Elsewhere": 0}
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
    "DisruptionBudget": "it is asked again, and the budget may allow it then",
    "Template": "the ladder's time ends, and HeldUp tells it",
    "ReplacementSink": "the same",
    "Remediation": "somebody else is at work on the node",
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


def test_each_cause_is_explained_and_told_to_people_or_known_to_be_told_by_others() -> None:
    (rule,) = [one for one in alerts(PROMETHEUS / "kreflex.rules.yaml") if one["alert"] == "KreflexFaultHandedOn"]
    found = re.search(r'guard=~"([^"]+)"', rule["expr"])
    assert found
    told = re.compile(found[1])
    pages = "".join(page.read_text() for page in (*DOCS.glob("functions/*.md"), DOCS / "operations.md"))
    causes = raised() | {cause for function, title in CAUSES.items() for cause in named(function, title)}
    assert len(causes) > 60
    assert {cause for cause in causes if f"`{cause}`" not in pages and not re.match("Git|Helm", cause)} == set()
    assert {cause for cause in causes if not told.fullmatch(cause)} == set(TOLD_BY_OTHERS)
    # What people's own rules refuse has the name of a guard; none of these is a cause.
    assert {guard for guard in ("Paused", "Frozen", "Admission", "Scope", "Useless") if told.fullmatch(guard)} == set()


def named(function: str, title: str) -> set[str]:
    """The causes in the table of a page."""
    table = (DOCS / "functions" / f"{function}.md").read_text().partition(f"## {title}\n")[2].partition("\n## ")[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    return {cause for cell in cells for cause in re.findall("`([A-Za-z]+)`", cell)}


def raised() -> set[str]:
    """The causes that the code names where it refuses, also by a constant of the module."""
    found = set()
    for file in (*(ROOT / "shared" / "kreflex").glob("*.py"), *(ROOT / "functions").glob("*/main.py")):
        tree = ast.parse(file.read_text())
        constants = {
            target.id: node.value.value
            for node in tree.body
            if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
            for target in node.targets
            if isinstance(target, ast.Name)
        }
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            name = getattr(call.func, "attr", getattr(call.func, "id", ""))
            for given in call.args[WHERE[name] :][:1] if name in WHERE else ():
                cause = given.value if isinstance(given, ast.Constant) else constants.get(getattr(given, "id", ""))
                found |= {cause} if isinstance(cause, str) else set()
    return found


def test_our_alerts_are_called_after_us() -> None:
    assert [r["alert"] for r in alerts(PROMETHEUS / "kreflex.rules.yaml") if not r["alert"].startswith("Kreflex")] == []
