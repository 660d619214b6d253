"""Who we are to the API server: this pod's service account, read here; anything else by the `kubernetes` package.

A function starts for one event, and that package would make the start a third longer (docs/adr/0015). It is loaded
where a kubeconfig is used: on a person's machine, in tests, in the lab.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from kreflex.errors import SettingsError

# Where a kubelet puts them: https://kubernetes.io/docs/tasks/run-application/access-api-from-pod/
FOLDER = "/var/run/secrets/kubernetes.io/serviceaccount"
# A kubelet renews the token long before it expires, and the file with it.
_TOKEN_SECONDS = 60.0


class Credentials(Protocol):
    """Where the API server is, whom to trust, and what to show; the `kubernetes` package's Configuration is one."""

    host: Any
    ssl_ca_cert: Any
    verify_ssl: Any
    cert_file: Any
    key_file: Any

    def get_api_key_with_prefix(self, identifier: Any, alias: Any = None) -> Any:
        """Give the value of the Authorization header; None if there is none to show."""


class InPod:
    """A pod's service account: address from the environment, certificate and token from the files of its kubelet.

    Raises SettingsError when one of them is missing.
    """

    verify_ssl: Any = True
    cert_file: Any = None
    key_file: Any = None

    def __init__(self, host: str, port: str, folder: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        address = f"[{host}]" if ":" in host else host
        self.host: Any = f"https://{address}:{port}"
        self.ssl_ca_cert: Any = str(folder / "ca.crt")
        self._token_file = folder / "token"
        self._monotonic = monotonic
        if not Path(self.ssl_ca_cert).is_file():
            raise SettingsError([f"{self.ssl_ca_cert} is missing: the pod needs automountServiceAccountToken"])
        try:
            self._read()
        except OSError as error:
            raise SettingsError([f"this pod's token can't be read: {error}"]) from error

    def get_api_key_with_prefix(self, identifier: Any, alias: Any = None) -> Any:  # noqa: ARG002 - see Credentials
        """Give the token, read anew each minute."""
        if self._monotonic() - self._read_at >= _TOKEN_SECONDS:
            # A file that can't be read at this moment leaves the last token, which is good for some time.
            with contextlib.suppress(OSError):
                self._read()
        return f"Bearer {self._token}"

    def _read(self) -> None:
        token = self._token_file.read_text().strip()
        if not token:
            raise OSError(f"{self._token_file} is empty")
        self._token, self._read_at = token, self._monotonic()


def load_credentials(kubeconfig: str | None = None) -> Credentials:
    """Read the kubeconfig given, else this pod's service account, else KUBECONFIG or ~/.kube/config.

    SERVICE_ACCOUNT_FOLDER names another folder than the kubelet's. Raises SettingsError when none can be used.
    """
    host = os.environ.get("KUBERNETES_SERVICE_HOST")
    if host and kubeconfig is None and "KUBECONFIG" not in os.environ:
        folder = Path(os.environ.get("SERVICE_ACCOUNT_FOLDER", FOLDER))
        return InPod(host, os.environ.get("KUBERNETES_SERVICE_PORT", "443"), folder)
    return _from_kubeconfig(kubeconfig)


def _from_kubeconfig(kubeconfig: str | None) -> Credentials:
    from kubernetes import config  # noqa: PLC0415 - a third of a cold start, and a pod has no kubeconfig
    from kubernetes.client.configuration import Configuration  # noqa: PLC0415

    configuration: Credentials = Configuration()
    load: Callable[..., None] = config.load_kube_config
    given = {} if kubeconfig is None else {"config_file": kubeconfig}
    try:
        load(client_configuration=configuration, **given)
    except (config.ConfigException, OSError) as error:
        raise SettingsError([f"KUBECONFIG can't be used, and this is no pod of a cluster: {error}"]) from error
    return configuration
