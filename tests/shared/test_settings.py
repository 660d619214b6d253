"""Settings from the environment."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import Field

from kreflex.durations import Duration, parse_duration
from kreflex.errors import SettingsError
from kreflex.settings import CoreSettings, Settings

ROOT = Path(__file__).parents[2]


class SomeSettings(Settings):
    """One of each kind."""

    threshold: int = Field(3, ge=1)
    window: Duration = parse_duration("1h")
    target: str


def faults(**environment: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        SomeSettings.from_environment(environment)
    return caught.value.faults


def test_reads_variables_in_capitals_and_leaves_others_alone() -> None:
    read = SomeSettings.from_environment({"TARGET": "x", "WINDOW": "90s", "PATH": "/bin"})
    assert read == SomeSettings(threshold=3, window=timedelta(seconds=90), target="x")


def test_names_every_fault_at_once_with_what_was_given() -> None:
    assert faults(THRESHOLD="five", WINDOW="5 minutes") == [
        "THRESHOLD Input should be a valid integer, unable to parse string as an integer (it is 'five')",
        "WINDOW must be a duration like 90s, 5m or 1h30m, not '5 minutes' (it is '5 minutes')",
        "TARGET must be set",
    ]


def test_a_number_has_its_bounds() -> None:
    assert faults(THRESHOLD="0", TARGET="x") == ["THRESHOLD Input should be greater than or equal to 1 (it is '0')"]


def test_every_function_knows_its_surroundings_without_being_told() -> None:
    core = CoreSettings.from_environment({})
    assert (core.kreflex_namespace, core.prometheus_url) == ("kreflex-system", "")
    assert core.act_within > timedelta()


@pytest.mark.parametrize(
    ("name", "value"),
    [("PROMETHEUS_URL", "prometheus:9090"), ("KREFLEX_NAMESPACE", "Kreflex"), ("CONCURRENCY", "0"), ("ACT_WITHIN", "")],
)
def test_names_what_is_wrong_with_the_surroundings(name: str, value: str) -> None:
    with pytest.raises(SettingsError, match=f"^{name} "):
        CoreSettings.from_environment({name: value})


def test_the_surroundings_are_reported_together_with_the_rest() -> None:
    assert faults(TARGET="x", THRESHOLD="0", PROMETHEUS_URL="prometheus:9090")[1].startswith("PROMETHEUS_URL ")


def test_a_function_that_can_not_start_names_everything_at_once() -> None:
    wrong = {
        "RESTARTS_ABOVE": "x",
        "PROMETHEUS_URL": "x",
        "PORT": "x",
        "KUBECONFIG": "/nowhere",
        "PATH": os.environ["PATH"],
    }
    command = [sys.executable, "-m", "kreflex", "restart-loop-killer"]
    started = subprocess.run(command, env=wrong, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    named = [line.split()[0] for line in started.stderr.splitlines()[1:]]
    assert named == ["PORT", "KUBECONFIG", "RESTARTS_ABOVE", "PROMETHEUS_URL", "CALLERS_ACCOUNTS"], started.stderr
    assert started.returncode == 1
