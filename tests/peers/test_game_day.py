"""The game day, run as a person runs it: its experiments pass, and each fails when its function is switched off."""

from collections.abc import AsyncIterator

import pytest

from lab.paths import Home
from tests.lab.test_scenarios import lab, scenario

ACTS = {"pods": "restart-loop-killer", "canary": "canary-aborter", "node": "node-replacer"}


@pytest.fixture(scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    """A lab that the first scenario boots."""
    where = tmp_path_factory.mktemp("day")
    yield Home.at(where)
    await lab("down", "--home", str(where))


async def test_the_functions_heal_what_is_broken_on_purpose(home: Home) -> None:
    code, output = await scenario(home, "game-day", "--report", str(home.root / "report"))
    assert code == 0, output
    report = (home.root / "report" / "game-day.md").read_text()
    assert "3 of 3 experiments passed" in report
    for function in ACTS.values():
        assert f"{function}: Recovered" in report


@pytest.mark.parametrize(("act", "function"), ACTS.items())
async def test_an_experiment_fails_when_its_function_is_switched_off(home: Home, act: str, function: str) -> None:
    code, output = await scenario(home, "game-day", "--act", act, "--without", function)
    assert code == 1, output
    assert f"{function} did nothing about it" in output
    assert "was not taken back" not in output
