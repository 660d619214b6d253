"""Who a function is to the API server: a pod's service account, or a kubeconfig."""

import subprocess
import sys
from pathlib import Path

import pytest

from kreflex.credentials import InPod, load_credentials
from kreflex.errors import SettingsError


def a_folder(tmp_path: Path, token: str = "first\n") -> Path:
    (tmp_path / "ca.crt").write_text("a certificate")
    (tmp_path / "token").write_text(token)
    return tmp_path


class Clock:
    seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


def shown(credentials: InPod) -> str:
    header: str = credentials.get_api_key_with_prefix("BearerToken", "authorization")
    return header


def test_a_pod_knows_its_server_and_whom_to_trust(tmp_path: Path) -> None:
    found = InPod("10.96.0.1", "443", a_folder(tmp_path))
    assert (found.host, found.ssl_ca_cert) == ("https://10.96.0.1:443", str(tmp_path / "ca.crt"))
    assert InPod("fd00::1", "6443", tmp_path).host == "https://[fd00::1]:6443"


def test_a_renewed_token_is_shown_within_a_minute(tmp_path: Path) -> None:
    clock = Clock()
    found = InPod("10.96.0.1", "443", a_folder(tmp_path), clock)
    (tmp_path / "token").write_text("second")
    assert shown(found) == "Bearer first"
    clock.seconds = 60
    assert shown(found) == "Bearer second"


@pytest.mark.parametrize("now", ["missing", "empty"])
def test_a_token_that_can_not_be_read_for_a_moment_leaves_the_last_one(tmp_path: Path, now: str) -> None:
    clock = Clock()
    found = InPod("10.96.0.1", "443", a_folder(tmp_path), clock)
    (tmp_path / "token").unlink()
    if now == "empty":
        (tmp_path / "token").touch()
    clock.seconds = 60
    assert shown(found) == "Bearer first"
    (tmp_path / "token").write_text("third")
    assert shown(found) == "Bearer third"


@pytest.mark.parametrize(
    ("missing", "fault"), [("ca.crt", r"ca\.crt is missing: .*automountServiceAccountToken"), ("token", "token can't")]
)
def test_says_which_file_is_missing(tmp_path: Path, missing: str, fault: str) -> None:
    (a_folder(tmp_path) / missing).unlink()
    with pytest.raises(SettingsError, match=fault):
        InPod("10.96.0.1", "443", tmp_path)


def test_an_empty_token_is_none(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="token is empty"):
        InPod("10.96.0.1", "443", a_folder(tmp_path, "\n"))


def test_a_kubeconfig_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="KUBECONFIG can't be used"):
        load_credentials(str(tmp_path / "none"))


def test_a_pod_loads_neither_the_kubernetes_package_nor_the_prometheus_client(tmp_path: Path) -> None:
    program = """
import sys
from kreflex.credentials import load_credentials
import kreflex.serve
print(load_credentials().host, [name for name in ("kubernetes", "prometheus_api_client") if name in sys.modules])
"""
    environment = {
        "KUBERNETES_SERVICE_HOST": "10.96.0.1",
        "SERVICE_ACCOUNT_FOLDER": str(a_folder(tmp_path)),
        "PYTHONPATH": ":".join(sys.path),
    }
    said = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout == "https://10.96.0.1:443 []\n"
