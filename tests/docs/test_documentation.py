"""What the documentation says is there: its links, commands, words and examples."""

import re
import shlex
import subprocess
from datetime import timedelta
from pathlib import Path

import pytest
import yaml

from functions.rollback.__main__ import _ENDS, _arguments, _wish
from kreflex import figures
from kreflex.auth import CallerSettings
from kreflex.pipeline import Wish
from kreflex.policy import PolicySpec, read_policy
from lab.toolchain import Toolchain

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def example(text: str, title: str) -> str:
    """The code block after the comment `<!-- example: title -->`."""
    found = re.search(rf"<!-- example: {title} -->\n```\w+\n(.*?)```", text, re.DOTALL)
    assert found, f"there is no example {title!r}"
    return found[1]


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?://|#)([^)#\s]+)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE))
    assert named - targets == set()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_files_that_are_named_exist(page: Path) -> None:
    top = "functions|shared|knative|triggers|lab|tests|docs"
    named = re.findall(rf"(?:apply -f |`)((?:{top})/[\w./-]+)", page.read_text())
    assert [path for path in named if not (ROOT / path).exists()] == []


def test_each_guard_is_explained() -> None:
    code = "\n".join(file.read_text() for file in (ROOT / "shared" / "kreflex").glob("*.py"))
    names = set(re.findall(r'(?:Refusal|Denial)\(\s*"(\w+)"', code)) | set(
        re.findall(r'_awaiting\(case, "(\w+)"', code)
    )
    assert len(names) > 10
    assert {guard for guard in names if f"`{guard}`" not in OPERATIONS} == set()


def test_each_setting_about_callers_is_explained() -> None:
    page = (ROOT / "docs" / "callers.md").read_text()
    names = [name.upper() for name in (*CallerSettings.model_fields, "token_file", "drain_grace")]
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_each_metric_is_explained() -> None:
    assert [metric.name for metric in figures._ALL if f"| `{metric.name}` |" not in OPERATIONS] == []


def test_the_example_receiver_is_alertmanager_s(tmp_path: Path) -> None:
    receivers = example((ROOT / "docs" / "callers.md").read_text(), "alertmanager")
    file = tmp_path / "alertmanager.yaml"
    file.write_text(f"route: {{receiver: restart-loop-killer}}\n{receivers}")
    amtool = Toolchain().ensure(["amtool"])["amtool"]
    subprocess.run([amtool, "check-config", file], check=True, capture_output=True, timeout=300)


def test_the_example_policy_is_valid() -> None:
    body = yaml.safe_load(example(OPERATIONS, "policy"))
    policy = read_policy({**body, "metadata": {**body["metadata"], "uid": "1"}})
    assert policy.broken == ""
    assert isinstance(policy.spec, PolicySpec)


PIPELINE = (ROOT / "docs" / "pipeline.md").read_text()
# What a pipeline fills in; all else is the name of the version.
VALUES = {
    "workflow.parameters.workload": "deployment/cart",
    "workflow.parameters.image": "shop/cart:v2",
    "params.workload": "deployment/cart",
    "params.image": "shop/cart:v2",
}
FILLED_IN = re.compile(r"\$?\{\{ ?([\w.]+) ?\}\}|\$\(([\w.]+)\)|\$(CI_\w+)")


def commands() -> dict[str, str]:
    """What each example for pipelines calls."""
    argo, tekton, gitlab, github = (
        yaml.safe_load(example(PIPELINE, title)) for title in ("argo-workflows", "tekton", "gitlab", "github")
    )
    (container,), (step,) = [one["container"] for one in argo["spec"]["templates"]], tekton["spec"]["steps"]
    return {
        "argo-workflows": " ".join(container["command"] + container["args"]),
        "tekton": " ".join(step["command"] + step["args"]),
        "gitlab": gitlab["healthy"]["script"][0],
        "github": github["jobs"]["deploy"]["steps"][-1]["run"],
        "page": re.findall(r"^python -m functions.rollback .*$", PIPELINE, re.MULTILINE)[0],
    }


def words(command: str) -> list[str]:
    """The arguments of a command, with values for what a pipeline fills in."""
    _, _, rest = command.partition("-m functions.rollback ")
    return shlex.split(FILLED_IN.sub(lambda found: VALUES.get(next(filter(None, found.groups())), "v2"), rest))


@pytest.mark.parametrize("title", ["argo-workflows", "tekton", "gitlab", "github", "page"])
def test_each_pipeline_calls_the_command_as_it_wants_to_be_called(title: str) -> None:
    given = _wish(_arguments().parse_args(words(commands()[title])))
    asks = title in {"argo-workflows", "tekton"}
    url, token = (
        ("http://rollback.kreflex-system.svc.cluster.local/", "/var/run/secrets/kreflex/token") if asks else ("", "")
    )
    minutes, proof = timedelta(minutes=10), timedelta(seconds=30)
    assert given == Wish("Deployment", "shop", "cart", minutes, proof, "shop/cart:v2", url, token)


def test_each_option_and_exit_code_of_the_pipeline_is_explained() -> None:
    options = [option for action in _arguments()._actions for option in action.option_strings]
    assert [one for one in options if one not in {"-h", "--help"} and f"`{one}`" not in PIPELINE] == []
    assert re.findall(r"^\| (\d+) \| `([\w-]+)` \|", PIPELINE, re.MULTILINE) == [
        (str(code), word) for code, word in _ENDS.items()
    ]


def test_the_example_of_an_alert_is_a_rule_whose_labels_wake_functions(tmp_path: Path) -> None:
    rules, (rule,) = example(OPERATIONS, "errors"), yaml.safe_load(example(OPERATIONS, "errors"))["groups"][0]["rules"]
    (tmp_path / "errors.yaml").write_text(rules)
    promtool, amtool = (Toolchain().ensure([tool])[tool] for tool in ("promtool", "amtool"))
    subprocess.run([promtool, "check", "rules", tmp_path / "errors.yaml"], check=True, capture_output=True, timeout=300)
    routes = ROOT / "triggers" / "alertmanager" / "alertmanager.yaml"
    labels = {"alertname": rule["alert"], "namespace": "shop", "deployment": "cart", **rule["labels"]}
    asked: list[str | Path] = [
        amtool,
        "config",
        "routes",
        "test",
        f"--config.file={routes}",
        *(f'{k}="{v}"' for k, v in labels.items()),
    ]
    heard = subprocess.run(asked, check=True, capture_output=True, text=True, timeout=300).stdout.strip()
    assert set(heard.split(",")) == {"rollback", "canary-aborter", "people"}


def test_the_recipe_for_the_prometheus_operator_keeps_the_rules(tmp_path: Path) -> None:
    recipe = example(OPERATIONS, "prometheusrule").replace("> prometheusrule.yaml", f"> {tmp_path / 'rule.yaml'}")
    subprocess.run(["bash", "-euc", recipe], cwd=ROOT, check=True, timeout=300)
    rule = yaml.safe_load((tmp_path / "rule.yaml").read_text())
    assert rule["spec"] == yaml.safe_load((ROOT / "triggers" / "prometheus" / "kreflex.rules.yaml").read_text())
