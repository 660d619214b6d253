"""The Dockerfile and its lock file; tests/peers/test_image.py does what they say."""

import json
import re
from pathlib import Path

from tests.manifests import image
from tests.manifests.rendered import ROOT

BUILD, FINAL = image.stages()


def pins(file: Path) -> dict[str, str]:
    """Each package of a lock file with its version and its hashes."""
    blocks = re.split(r"\n(?=\S+==)", file.read_text())
    found = (re.match(r"(\S+)==(\S+) \\\n((?: +--hash=\S+(?: \\)?\n)+)", block) for block in blocks)
    return {match[1]: f"{match[2]} {' '.join(match[3].split())}" for match in found if match}


def test_the_image_has_the_packages_that_are_tested_and_no_others() -> None:
    all_, ours = (pins(ROOT / name) for name in ("requirements.lock", "requirements-image.lock"))
    assert ours
    assert {name: pin for name, pin in ours.items() if all_.get(name) != pin} == {}, "run `make lock`"
    assert not {"pytest", "hypothesis", "mypy", "cryptography", "rich"} & set(ours)


def test_what_is_copied_is_there_and_passes_the_dockerignore() -> None:
    ignored, *allowed = [
        line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")
    ]
    copied = [one.words[0] for one in image.only(BUILD, "COPY")]
    assert ignored == "*"
    assert [name for name in copied if not (ROOT / name).exists()] == []
    assert {f"!{name}" for name in copied} | {"**/__pycache__"} == set(allowed)


def test_packages_are_installed_by_hash_and_nothing_is_compiled_later() -> None:
    install, compile_ = (one.rest for one in image.only(BUILD, "RUN"))
    assert {"--require-hashes", "--no-deps", "--only-binary=:all:"} <= set(install.split())
    assert "compileall" in compile_


def test_it_runs_as_nobody_and_serves_the_function_that_is_named() -> None:
    ((user,), (entry,)) = (image.only(FINAL, name) for name in ("USER", "ENTRYPOINT"))
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user.rest)
    assert json.loads(entry.rest) == ["python", "-m", "kreflex"]
