"""The scenarios of releases with the programs of others, run as a person runs them: each checks itself."""

from collections.abc import AsyncIterator

import pytest

from lab.paths import Home
from tests.lab.test_scenarios import lab, scenario, words_of


@pytest.fixture(scope="module")
async def home(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Home]:
    """A whole lab, on which the programs of others are installed by the scenarios."""
    where = tmp_path_factory.mktemp("releases")
    assert (await lab("up", "--home", str(where)))[0] == 0
    yield Home.at(where)
    await lab("down", "--home", str(where))


@pytest.mark.parametrize("kind", ["statefulset", "daemonset", "helm", "rollout"])
async def test_a_bad_version_of_each_kind_is_taken_back_once(home: Home, kind: str) -> None:
    code, output = await scenario(home, "bad-release", "--kind", kind)

    assert code == 0, output
    healed, again, *_ = output.split("The same bad version again")
    assert "verdict" in words_of(healed)
    assert "SameVersionAgain" in again


async def test_what_git_owns_comes_back_when_it_is_undone_live_and_holds_when_it_is_reverted(home: Home) -> None:
    code, output = await scenario(home, "bad-release-gitops")

    assert code == 0, output
    live, in_git = output.split("The same, reverted in Git", 1)
    assert "undone live it does not hold" in live
    assert "PushRevert" in in_git
    assert "Kreflex-Reverts: " in in_git


async def test_a_canary_is_aborted_by_numbers_and_only_paused_without_them(home: Home) -> None:
    code, output = await scenario(home, "bad-canary")

    assert code == 0, output
    failing, unknown = output.split("A canary of which nobody can tell", 1)
    assert "AbortRollout" in failing
    assert "told to send 0 % to the canary" in failing
    assert ("PauseRollout" in unknown, "AbortRollout" in unknown) == (True, False)
