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
    given = [f"{name}={value}" for name, value in {"alertname": alert, "namespace": "shop", **labels}.items()]
    command: list[str | Path] = [amtool, "config", "routes", "test", f"--config.file={EXAMPLE}", *given]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return set(answer.stdout.strip().split(","))


def test_alertmanager_accepts_the_example(amtool: Path) -> None:
    answer = subprocess.run([amtool, "check-config", EXAMPLE], capture_output=True, text=True, timeout=60, check=False)
    assert (answer.returncode, "SUCCESS" in answer.stdout) == (0, True), answer.stdout + answer.stderr


def test_the_fast_rule_wakes_the_function_and_no_person(amtool: Path) -> None:
    heard = receivers(amtool, "KreflexPodRestartLooping", function="restart-loop-killer", severity="none")
    assert heard == {"restart-loop-killer", "nobody"}


def test_the_stock_rule_wakes_the_function_and_people(amtool: Path) -> None:
    assert receivers(amtool, "KubePodCrashLooping", severity="warning") == {"restart-loop-killer", "people"}


def test_what_became_of_a_remediation_is_for_people_only(amtool: Path) -> None:
    rules = yaml.safe_load((TRIGGERS / "prometheus" / "kreflex.rules.yaml").read_text())["groups"]
    ours = [rule["alert"] for group in rules if group["name"] == "kreflex-records" for rule in group["rules"]]
    assert ours
    assert {name: receivers(amtool, name, function="restart-loop-killer") for name in ours} == {
        name: {"people"} for name in ours
    }


def test_other_alerts_are_for_people_only(amtool: Path) -> None:
    assert receivers(amtool, "KubeNodeNotReady", node="node-1") == {"people"}


def test_the_pods_of_one_owner_come_together() -> None:
    """No pod's name and no UID in group_by: they would make one request of each replica."""
    route = yaml.safe_load(EXAMPLE.read_text())["route"]["routes"][0]
    assert route["group_by"] == ["cluster", "alertname", "namespace"]
