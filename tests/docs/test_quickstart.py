"""The commands of the quick start do what the page says, in a lab of their own."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "quickstart.md").read_text()


def commands(title: str) -> str:
    """The commands of the section whose title ends so."""
    section = re.search(rf"^## \d+\. {title}\n(.*?)(?=^## |\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert section, f"the page has no section {title!r}"
    return "\n".join(re.findall(r"```sh\n(.*?)```", section[1], re.DOTALL))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A lab as `make lab` boots it, elsewhere than in the checkout."""
    directory = tmp_path_factory.mktemp("quickstart")
    lab = [sys.executable, "-m", "lab"]
    subprocess.run([*lab, "up", "--home", directory], cwd=ROOT, check=True, timeout=1800)
    yield directory
    subprocess.run([*lab, "down", "--home", directory], cwd=ROOT, check=True, timeout=300)


def shell(home: Path, script: str) -> str:
    command = ["bash", "-eu", "-c", f"source {home}/env\n{script}"]
    answer = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=600, check=False)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def verdicts(home: Path, function: str = "restart-loop-killer") -> dict[str, str]:
    """Of each record of a function the verdict, or the guard that refused."""
    chosen = f"kubectl get remediations -A -l kreflex.dev/function={function} -o json"
    records = json.loads(shell(home, chosen))["items"]
    return {
        record["spec"]["owner"]["name"]: record["status"].get("verdict") or record["status"]["guard"]
        for record in records
    }


def test_the_quick_start_heals_one_pod_and_refuses_another(home: Path) -> None:
    shell(home, commands("Look around"))
    shell(home, commands("Break a pod"))
    healed = shell(home, commands("Watch it heal"))
    assert "cart" in healed
    assert verdicts(home) == {"cart": "Recovered"}

    shell(home, commands("Break what a new pod can't heal"))
    assert verdicts(home) == {"cart": "Recovered", "search": "OOMKilled"}
    assert verdicts(home, "rollback") == {"cart": "FirstRelease", "search": "NoHealthyRevision"}

    shell(home, commands("Stop everything"))
    assert "true" in shell(home, "kubectl get clusterremediationpolicy lab -o jsonpath='{.spec.frozen}'")
