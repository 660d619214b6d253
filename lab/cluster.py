"""A control plane on loopback: etcd, API server, controller manager and scheduler, with TLS, RBAC and an audit log."""

import asyncio
import os
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from lab import audit, kubeconfig, processes
from lab.api import Api, Refused, eventually
from lab.certificates import Authority, Pair, signing_key
from lab.errors import LabError
from lab.paths import Home
from lab.ports import Ports
from lab.processes import Child, ChildDied
from lab.state import MARK, State
from lab.toolchain import Toolchain

PROGRAMS = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
_MASTERS = "system:masters"
# Who may call without a ServiceAccount, and in which groups. kwok may do all: it stands for kubelets of many nodes.
# Ada and Bob are people who may do nothing until somebody lets them.
_USERS = {
    "admin": _MASTERS,
    "ada": "",
    "bob": "",
    "kwok": _MASTERS,
    "system:kube-controller-manager": "",
    "system:kube-scheduler": "",
}
_ATTEMPTS = 4
# Most of these processes are in Go, live for minutes and make garbage all the time: where it is collected a quarter as
# often, tests take a fifth less of the processor, and some memory more.
_GOGC = os.environ.get("GOGC", "400")
_TOKEN_SECONDS = 7 * 24 * 3600


@dataclass(frozen=True)
class Options:
    """How a control plane differs from the usual."""

    audit_reads: bool = False
    detached: bool = False
    """Leave the processes running when this one ends."""
    node_grace_seconds: int = 20
    """How long after a node's last sign of life it is Unknown; several renewals of its lease."""


class ControlPlane:
    """A control plane of which this process is the parent; it is blank at each start."""

    def __init__(
        self, home: Home | Path | str, options: Options | None = None, programs: Mapping[str, Path] | None = None
    ) -> None:
        self.home = home if isinstance(home, Home) else Home.at(home)
        self.options = options or Options()
        self.children: dict[str, Child] = {}
        self.state = State(self.home)
        self.url = ""
        self._programs = programs
        self._tokens: dict[str, str] = {}
        self._api: Api | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def kubeconfig(self) -> Path:
        """The administrator's kubeconfig."""
        return self.home.kubeconfig

    @property
    def audit_log(self) -> Path:
        return self.home.audit_log

    @property
    def authority(self) -> Path:
        """The certificate that signs the API server's."""
        return self.home.secrets / "ca.crt"

    @property
    def api(self) -> Api:
        """A client with the administrator's rights."""
        if self._api is None:
            self._api = self.api_with(self._tokens["admin"])
        return self._api

    def api_with(self, token: str) -> Api:
        """A client with this token's rights."""
        return Api(self.url, token, self.authority.read_bytes())

    def token_of(self, user: str) -> str:
        """The token of one of the lab's own users."""
        return self._tokens[user]

    def kubeconfig_of(self, user: str) -> Path:
        """The path of a kubeconfig of one of the lab's own users."""
        file = self.home.secrets / f"{user}.kubeconfig"
        return kubeconfig.write(file, self.url, self.authority, user, self._tokens[user])

    async def start(self) -> None:
        """Boot from blank, and again with other ports if somebody took one of ours."""
        programs = self._programs
        if programs is None:
            programs = await asyncio.to_thread(Toolchain().ensure, PROGRAMS)
        for attempt in range(1, _ATTEMPTS + 1):
            await self.state.begin()
            try:
                await self._boot(programs)
                return
            except ChildDied as death:
                await self.stop()
                if not death.port_was_taken or attempt == _ATTEMPTS:
                    raise
            except BaseException:
                await self.stop()
                raise

    async def leave(self) -> None:
        """Let the processes run on their own; for a detached control plane only."""
        if self._api is not None:
            await self._api.close()
            self._api = None
        self.state.unlock()

    async def stop(self) -> None:
        """Stop everything; the API server before etcd, for one that lost its etcd never ends."""
        if self._api is not None:
            await self._api.close()
            self._api = None
        last = [child for name, child in self.children.items() if name == "etcd"]
        early = [child for name, child in self.children.items() if name not in ("etcd", "kube-apiserver")]
        server = [child for name, child in self.children.items() if name == "kube-apiserver"]
        for group in (early, server, last):
            await asyncio.gather(*(child.stop() for child in group))
        self.children.clear()
        self.state.end()

    def start_child(
        self,
        name: str,
        command: Sequence[str | Path],
        environment: Mapping[str, str] | None = None,
        url: str = "",
        log: Path | None = None,
    ) -> Child:
        """Start one more process of this lab: in its state file, with a log in its home, ended with it."""
        file = log or self.home.log(name)
        marked = {MARK: str(self.home.root), "GOGC": _GOGC, **(environment or {})}
        child = processes.start(name, command, file, environment=marked, detached=self.options.detached)
        self.children[name] = child
        self.state.record(child, url)
        return child

    async def stop_child(self, name: str) -> None:
        """End one process of this lab, for good."""
        await self.children.pop(name).stop()
        self.state.forget(name)

    async def token(self, service_account: str, namespace: str, audience: str = "") -> str:
        """A token of a ServiceAccount, which is made (with its namespace) if it does not exist.

        It is for the API server, unless an audience is named.
        """
        await self._make("/api/v1/namespaces", namespace)
        accounts = f"/api/v1/namespaces/{namespace}/serviceaccounts"
        await self._make(accounts, service_account)
        audiences = {"audiences": [audience]} if audience else {}
        spec = {"expirationSeconds": _TOKEN_SECONDS, **audiences}
        answer = await self.api.post(f"{accounts}/{service_account}/token", {"spec": spec})
        token: str = answer["status"]["token"]
        return token

    async def kubeconfig_for(self, namespace: str, service_account: str) -> Path:
        """The path of a kubeconfig with the rights of a ServiceAccount and no others."""
        token = await self.token(service_account, namespace)
        file = self.home.secrets / f"{namespace}.{service_account}.kubeconfig"
        return kubeconfig.write(file, self.url, self.authority, service_account, token, namespace)

    async def _make(self, collection: str, name: str) -> None:
        try:
            await self.api.post(collection, {"metadata": {"name": name}})
        except Refused as refusal:
            if refusal.status != 409:
                raise

    async def _boot(self, programs: Mapping[str, Path]) -> None:
        self._tokens = {user: secrets.token_urlsafe(32) for user in _USERS}
        authority = Authority(self.home.secrets)
        with Ports() as ports:
            store = await self._start_etcd(programs["etcd"], authority, ports)
            await self._start_server(programs["kube-apiserver"], authority, store, ports)
            managers = [
                self._start_controller_manager(programs["kube-controller-manager"], authority, ports),
                self._start_scheduler(programs["kube-scheduler"], authority, ports),
            ]
            await asyncio.gather(*managers)
        await self._await_defaults()

    async def _start_etcd(self, program: Path, authority: Authority, ports: Ports) -> "Store":
        server, peer, metrics = (ports.take() for _ in range(3))
        pair = authority.issue("etcd")
        url, peers, health = f"https://127.0.0.1:{server}", f"http://127.0.0.1:{peer}", f"http://127.0.0.1:{metrics}"
        command = [
            program,
            "--name=lab",
            f"--data-dir={self.home.data / 'etcd'}",
            f"--listen-client-urls={url}",
            f"--advertise-client-urls={url}",
            f"--listen-peer-urls={peers}",
            f"--initial-advertise-peer-urls={peers}",
            f"--initial-cluster=lab={peers}",
            f"--listen-metrics-urls={health}",
            # Without a certificate of this lab nobody comes past the API server.
            "--client-cert-auth",
            f"--cert-file={pair.certificate}",
            f"--key-file={pair.key}",
            f"--trusted-ca-file={authority.file}",
            # The data is worth nothing after a power cut.
            "--unsafe-no-fsync",
            "--quota-backend-bytes=8589934592",
            "--auto-compaction-mode=revision",
            "--auto-compaction-retention=100000",
            "--log-level=warn",
        ]
        child = self.start_child("etcd", [str(part) for part in command], url=f"{health}/health")
        await child.ready(processes.answers(f"{health}/health"))
        return Store(url, authority.issue("etcd-client"), authority.file)

    async def _start_server(self, program: Path, authority: Authority, store: "Store", ports: Ports) -> None:
        port = ports.take()
        self.url = f"https://127.0.0.1:{port}"
        serving, accounts = authority.issue("kube-apiserver"), signing_key(self.home.secrets)
        policy = self.home.config / "audit-policy.yaml"
        policy.write_text(audit.policy(reads=self.options.audit_reads))
        command = [
            program,
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            # The kubernetes Service's endpoints may not be on loopback; nobody needs them here.
            "--endpoint-reconciler-type=none",
            f"--secure-port={port}",
            f"--etcd-servers={store.url}",
            f"--etcd-cafile={store.authority}",
            f"--etcd-certfile={store.pair.certificate}",
            f"--etcd-keyfile={store.pair.key}",
            f"--tls-cert-file={serving.certificate}",
            f"--tls-private-key-file={serving.key}",
            f"--token-auth-file={self._write_tokens()}",
            "--authorization-mode=Node,RBAC",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={accounts.certificate}",
            f"--service-account-signing-key-file={accounts.key}",
            "--service-cluster-ip-range=10.96.0.0/16",
            f"--audit-policy-file={policy}",
            f"--audit-log-path={self.home.audit_log}",
            # Each line is in the file before the caller has its answer; and one file, never rotated.
            "--audit-log-mode=blocking",
            "--audit-log-maxsize=0",
            "--max-requests-inflight=3000",
            "--max-mutating-requests-inflight=1500",
            "--profiling=false",
        ]
        child = self.start_child("kube-apiserver", [str(part) for part in command], url=f"{self.url}/readyz")
        kubeconfig.write(self.home.kubeconfig, self.url, authority.file, "admin", self._tokens["admin"])
        for user, file in (
            ("system:kube-controller-manager", "controller-manager"),
            ("system:kube-scheduler", "scheduler"),
            ("kwok", "kwok"),
        ):
            path = self.home.secrets / f"{file}.kubeconfig"
            kubeconfig.write(path, self.url, authority.file, user, self._tokens[user])
        await child.ready(self._server_is_ready)

    async def _server_is_ready(self) -> bool:
        try:
            await self.api.get("/api/v1/namespaces/kube-system")
            # RBAC's own roles come a moment after the server: without them the controllers start in vain.
            return (
                await self.api.find("/apis/rbac.authorization.k8s.io/v1/clusterroles/system:kube-scheduler") is not None
            )
        except (OSError, LabError, TimeoutError):
            return False

    async def _start_controller_manager(self, program: Path, authority: Authority, ports: Ports) -> None:
        port = ports.take()
        config = self.home.secrets / "controller-manager.kubeconfig"
        await self._start_manager(
            "kube-controller-manager",
            authority,
            port,
            [
                program,
                f"--kubeconfig={config}",
                f"--service-account-private-key-file={self.home.secrets / 'service-accounts.key'}",
                f"--root-ca-file={authority.file}",
                "--use-service-account-credentials",
                # A lab wants to see a lost node soon.
                "--node-monitor-period=1s",
                f"--node-monitor-grace-period={self.options.node_grace_seconds}s",
                "--node-startup-grace-period=60s",
                "--concurrent-deployment-syncs=20",
                "--concurrent-replicaset-syncs=20",
                "--concurrent-namespace-syncs=20",
                "--concurrent-gc-syncs=20",
                "--kube-api-qps=500",
                "--kube-api-burst=1000",
            ],
        )

    async def _start_scheduler(self, program: Path, authority: Authority, ports: Ports) -> None:
        config = self.home.secrets / "scheduler.kubeconfig"
        settings = [f"--kubeconfig={config}", "--kube-api-qps=500", "--kube-api-burst=1000"]
        await self._start_manager("kube-scheduler", authority, ports.take(), [program, *settings])

    async def _start_manager(self, name: str, authority: Authority, port: int, command: list[str | Path]) -> None:
        pair = authority.issue(name)
        serving = [
            "--bind-address=127.0.0.1",
            f"--secure-port={port}",
            f"--tls-cert-file={pair.certificate}",
            f"--tls-private-key-file={pair.key}",
            "--leader-elect=false",
            "--profiling=false",
        ]
        url = f"https://127.0.0.1:{port}/healthz"
        child = self.start_child(name, [*command, *serving], url=url)
        await child.ready(processes.answers(url, processes.trusting(authority.file)))

    def _write_tokens(self) -> Path:
        file = self.home.secrets / "tokens.csv"
        file.touch(mode=0o600)
        lines = [f'{self._tokens[user]},{user},{user},"{groups}"' for user, groups in _USERS.items()]
        file.write_text("\n".join(lines) + "\n")
        return file

    async def _await_defaults(self) -> None:
        # A pod is refused until the controller manager has made its namespace's ServiceAccount.
        async def made() -> bool:
            return await self.api.find("/api/v1/namespaces/default/serviceaccounts/default") is not None

        await eventually(made, "the default ServiceAccount")


@dataclass(frozen=True)
class Store:
    """How the API server reaches etcd."""

    url: str
    pair: Pair
    authority: Path
