"""The scenario with Karpenter, run as a person runs it: it checks itself, and its exit code is the answer."""

from pathlib import Path

from tests.lab.test_scenarios import lab


async def test_a_silent_node_is_replaced_and_most_of_a_pool_is_left_alone(tmp_path: Path) -> None:
    home = str(tmp_path)
    try:
        code, output = await lab("scenario", "--home", home, "node-down")
    finally:
        await lab("down", "--home", home)

    assert code == 0, output
    one, most = output.split("nodes of 5 fall silent at once", 1)
    for told in (one, most):
        words = [line.split()[2] for line in told.splitlines() if " s  " in line]
        assert [w for w in words if w in {"verdict", "times"}] == ["verdict", "times"], output
        assert "step       CordonNode" in told
        assert "step       DeleteNodeClaim" in told
        assert ("refused" in words) == (told is most)
    assert "4 of 5 nodes of pool" in most
    assert "1 is tolerated (20%)" in most
