"""What must hold of every function, whoever writes it."""

import ast
import asyncio
import importlib
import inspect
import os
import subprocess
import sys
from io import BytesIO
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import aiohttp
import pytest
import yaml

import kreflex
from kreflex.actions import ACTIONS
from kreflex.auth import CallerSettings
from kreflex.chaos import rights as chaos
from kreflex.errors import SettingsError
from kreflex.rule import Rule
from kreflex.settings import Settings
from kreflex.signals import Signal
from lab import kubeconfig, processes
from lab.ports import Ports

ROOT = Path(__file__).parents[1]
FOLDERS = sorted(main.parent for main in (ROOT / "functions").glob("*/main.py"))
# The waker decides nothing: it calls those that do. Some look after objects of their own, which say what is to be done.
STEWARDS = {"anomaly_scorer", "chaos_runner"}
DECIDING = [folder for folder in FOLDERS if folder.name not in {"waker", *STEWARDS}]
NEEDED = {"waker": {"FUNCTIONS": "restart-loop-killer=http://127.0.0.1:9/"}}
every_function = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
every_deciding_function = pytest.mark.parametrize("folder", DECIDING, ids=lambda folder: folder.name)


def tree(folder: Path) -> ast.Module:
    return ast.parse((folder / "main.py").read_text())


def load(folder: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Import a function with nothing but the settings that it can't do without."""
    for name, value in NEEDED.get(folder.name, {}).items():
        monkeypatch.setenv(name, value)
    return importlib.import_module(f"functions.{folder.name}.main")


def settings_of(module: ModuleType) -> type[Settings]:
    """The settings class that a function defines."""
    (found,) = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Settings) and value.__module__ == module.__name__
    ]
    return found


def kubernetes_name(folder: Path) -> str:
    return folder.name.replace("_", "-")


def answers(question: Any) -> set[Any]:
    """All that a function may return, by its signature."""
    returned = get_type_hints(question)["return"]
    return set(get_args(returned) or (returned,))


def granted(folder: Path) -> list[dict[str, Any]]:
    """The rules of all roles of a function's manifest."""
    manifests = yaml.safe_load_all((ROOT / "knative" / kubernetes_name(folder) / "rbac.yaml").read_text())
    return [rule for manifest in manifests if manifest for rule in manifest.get("rules") or []]


def grants(rules: list[dict[str, Any]], wanted: Rule) -> bool:
    return any(
        wanted.group in rule["apiGroups"] and wanted.resource in rule["resources"] and wanted.verb in rule["verbs"]
        for rule in rules
    )


def test_there_are_functions() -> None:
    assert {"restart_loop_killer", "waker"} <= {folder.name for folder in FOLDERS}


@every_function
def test_opens_with_one_sentence(folder: Path) -> None:
    text = ast.get_docstring(tree(folder)) or ""
    assert (text.count("\n"), text[-1:], text.count(". ")) == (0, ".", 0)


@every_function
def test_imports_the_top_of_kreflex_and_the_standard_library_only(folder: Path) -> None:
    """And `Field` and `field_validator`, with which settings are described."""
    described = {"pydantic.Field", "pydantic.field_validator"}
    top = {f"kreflex.{name}" for name in kreflex.__all__}
    imported = {
        f"{node.module}.{alias.name}" if isinstance(node, ast.ImportFrom) else alias.name
        for node in ast.walk(tree(folder))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert {name for name in imported - described - top if name.split(".")[0] not in sys.stdlib_module_names} == set()


@every_function
def test_main_is_last_and_a_coroutine_function(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    last = tree(folder).body[-1]
    assert isinstance(last, ast.Assign)
    assert ast.unparse(last.targets[0]) == "main"
    assert inspect.iscoroutinefunction(load(folder, monkeypatch).main)


@every_deciding_function
def test_settings_find_decide_and_recovered_come_in_this_order(folder: Path) -> None:
    body = [node for node in tree(folder).body if isinstance(node, ast.ClassDef | ast.AsyncFunctionDef)]
    names = ["Settings" if node.name.endswith("Settings") else node.name for node in body]
    assert [name for name in names if name in {"Settings", "find", "decide", "recovered"}] == [
        "Settings",
        "find",
        "decide",
        "recovered",
    ]


@every_deciding_function
def test_answers_with_known_decisions_and_verdicts_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = load(folder, monkeypatch)
    decisions = {kreflex.Defer, kreflex.Refuse, kreflex.Remember, kreflex.Skip, *ACTIONS.values()}
    verdicts = {kreflex.Defer, *get_args(kreflex.Verdict)}
    assert answers(module.decide) <= decisions
    assert kreflex.Skip in answers(module.decide)
    assert answers(module.recovered) <= verdicts


@every_deciding_function
def test_takes_known_signals_only(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accepted = get_type_hints(load(folder, monkeypatch).decide)["signal"]
    assert set(get_args(accepted) or (accepted,)) <= set(get_args(Signal) or (Signal,))


@every_deciding_function
def test_may_do_what_its_signature_says(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    actions = [answer for answer in answers(load(folder, monkeypatch).decide) if answer in ACTIONS.values()]
    missing = [rule for action in actions for rule in action.rbac if not grants(granted(folder), rule)]
    assert missing == []


@every_function
def test_may_not_do_what_only_other_functions_do(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    decide = getattr(load(folder, monkeypatch), "decide", None)
    mine = [rule for answer in (answers(decide) if decide else ()) for rule in getattr(answer, "rbac", ())]
    mine += chaos.ACTS if folder.name == "chaos_runner" else ()
    # Two actions may need the same right for different things: what each may do with it is for admission.
    own = {(rule.group, rule.resource, rule.verb) for rule in mine}
    writes = {rule for action in ACTIONS.values() for rule in action.rbac if rule.verb not in {"get", "list"}}
    others = [rule for rule in writes if (rule.group, rule.resource, rule.verb) not in own]
    assert [rule for rule in others if grants(granted(folder), rule)] == []


@every_function
def test_asks_for_no_wildcard(folder: Path) -> None:
    assert [rule for rule in granted(folder) if "*" in str(rule)] == []


@every_function
def test_has_a_page_that_names_each_setting(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (ROOT / "docs" / "functions" / f"{kubernetes_name(folder)}.md").read_text()
    fields = settings_of(load(folder, monkeypatch)).model_fields
    assert [name.upper() for name in fields if f"`{name.upper()}`" not in page] == []


@every_function
def test_each_setting_has_a_type_and_says_what_it_is_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fields = settings_of(load(folder, monkeypatch)).model_fields
    assert [name for name, field in fields.items() if field.annotation is None or not field.description] == []


@every_function
def test_names_all_settings_that_it_can_not_read_at_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_of(load(folder, monkeypatch))
    names = [name.upper() for name in settings.model_fields]
    with pytest.raises(SettingsError) as caught:
        settings.from_environment(dict.fromkeys(names, "not { a value"))
    assert [name for name in names if not any(fault.startswith(f"{name} ") for fault in caught.value.faults)] == []


@every_function
def test_does_not_start_with_rubbish_and_names_all_of_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = [name.upper() for name in settings_of(load(folder, monkeypatch)).model_fields]
    callers = [name.upper() for name in CallerSettings.model_fields]
    names = ["KUBECONFIG", "PORT", "PROMETHEUS_URL", *callers, *own]
    environment = {**os.environ, **dict.fromkeys(names, "not { a value")}
    command = [sys.executable, "-m", "kreflex", folder.name]
    answer = subprocess.run(
        command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    assert answer.returncode > 0
    assert "Traceback" not in answer.stderr
    assert [name for name in names if f"  {name} " not in answer.stderr] == []


@every_function
async def test_lets_nobody_in_who_does_not_show_who_he_is(folder: Path, tmp_path: Path) -> None:
    """With no setting but who may call: 401, the body not looked at, and not one connection to the API server."""
    connections: list[object] = []
    upstream = await asyncio.start_server(lambda _, writer: connections.append(writer), "127.0.0.1", 0)
    port = upstream.sockets[0].getsockname()[1]
    file = kubeconfig.write(tmp_path / "config", f"http://127.0.0.1:{port}", tmp_path / "none", "me", "token")
    log, known = tmp_path / "log", {"CALLERS_ACCOUNTS": "kreflex-system/waker", **NEEDED.get(folder.name, {})}
    known["DRAIN_GRACE"] = "0s"
    with Ports() as ports:
        served = str(ports.take())
        environment = {"HOST": "127.0.0.1", "PORT": served, "KUBECONFIG": str(file), **known, **processes.importable()}
        command = processes.python("kreflex", folder.name)
        url = f"http://127.0.0.1:{served}"
        async with (
            upstream,
            processes.start(folder.name, command, log, environment=environment) as child,
            aiohttp.ClientSession() as client,
        ):
            await child.ready(processes.answers(f"{url}/healthz"))
            for headers in (
                {},
                {"ce-specversion": "1.0"},
                {"Authorization": "Basic eDp5"},
                {"Authorization": "Bearer x"},
            ):
                # Who looks at this body answers 400, or 413 for its size.
                async with client.post(url, data=BytesIO(b"{" * 2**21), headers=headers) as answer:
                    assert (answer.status, answer.content_type) == (401, "application/json"), await answer.text()
                    assert answer.headers["WWW-Authenticate"] == 'Bearer realm="kreflex"'
    assert connections == []
