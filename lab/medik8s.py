"""medik8s on a control plane: its Node Healthcheck operator as it is, and a remediator that is played here.

Self Node Remediation itself runs on the machines, and reboots them by their watchdog; there are none here. What it
writes into its objects is written by `Remediator`, whose reboot takes the faults of a node away.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from lab import builds, manifests, nodes, processes
from lab.api import Api, Refused
from lab.certificates import Authority
from lab.cluster import ControlPlane
from lab.ports import Ports
from lab.toolchain import Toolchain

Json = dict[str, Any]
PROGRAM = "node_healthcheck"
NAMESPACE = "medik8s"
ACCOUNT = "node-healthcheck"
LEASES = "/apis/coordination.k8s.io/v1/namespaces/medik8s-leases/leases"
CHECKS = "/apis/remediation.medik8s.io/v1alpha1/nodehealthchecks"
GROUP = "self-node-remediation.medik8s.io"
VERSION = f"{GROUP}/v1alpha1"
REMEDIATIONS = f"/apis/{VERSION}/namespaces/{NAMESPACE}/selfnoderemediations"
TEMPLATE = "reboot"
NODE_NAME = "remediation.medik8s.io/node-name"
TIMED_OUT = "remediation.medik8s.io/nhc-timed-out"
_MODULE = "github.com/medik8s/node-healthcheck-operator"
_FINALIZER = f"{GROUP}/snr-finalizer"
_PAUSE = 0.2
Outcome = Literal["mends", "fails", "hangs"]


@dataclass
class Remediator:
    """Plays Self Node Remediation: answers each remediation object, and reboots its node."""

    api: Api
    outcome: Outcome = "mends"
    rebooted: list[str] = field(default_factory=list)

    async def serve(self) -> None:
        """Answer remediation objects until cancelled."""
        while True:
            for one in (await self.api.get(REMEDIATIONS))["items"]:
                # It may be gone meanwhile.
                with _unless_gone():
                    await self._answer(one)
            await asyncio.sleep(_PAUSE)

    async def _answer(self, one: Json) -> None:
        metadata = one["metadata"]
        path = f"{REMEDIATIONS}/{metadata['name']}"
        if "deletionTimestamp" in metadata:
            await self.api.patch(path, {"metadata": {"finalizers": None}})
        elif TIMED_OUT in metadata.get("annotations", {}):
            await self._tell(path, one, "RemediationTimeoutByNHC", processing="False", succeeded="False")
        elif not one.get("status"):
            await self.api.patch(path, {"metadata": {"finalizers": [_FINALIZER]}})
            await self._tell(path, one, "RemediationStarted", processing="True", succeeded="Unknown")
        elif nodes.condition(one, "Processing") == "True":
            await self._end(path, one)

    async def _end(self, path: str, one: Json) -> None:
        if self.outcome == "mends":
            name = one["metadata"].get("annotations", {}).get(NODE_NAME, one["metadata"]["name"])
            await nodes.heal_node(self.api, name)
            self.rebooted.append(name)
            await self._tell(path, one, "RemediationFinishedSuccessfully", processing="False", succeeded="True")
        elif self.outcome == "fails":
            await self._tell(path, one, "RemediationSkippedNodeNotFound", processing="False", succeeded="False")

    async def _tell(self, path: str, one: Json, reason: str, *, processing: str, succeeded: str) -> None:
        wanted = {"Processing": processing, "Succeeded": succeeded}
        if all(nodes.condition(one, kind) == status for kind, status in wanted.items()):
            return
        said = {"reason": reason, "message": "", "lastTransitionTime": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"}
        conditions = [{"type": kind, "status": status, **said} for kind, status in wanted.items()]
        await self.api.patch(f"{path}/status", {"status": {"conditions": conditions}})


@contextlib.contextmanager
def _unless_gone() -> Iterator[None]:
    try:
        yield
    except Refused as refusal:
        if refusal.status != 404:
            raise


async def install(plane: ControlPlane) -> None:
    """Apply the definitions of Node Healthcheck and of the remediator, and a template for it called TEMPLATE."""
    folder = builds.source(PROGRAM, _MODULE) / "config"
    (role,) = manifests.read(folder / "rbac" / "role.yaml")
    definitions = [
        *manifests.read(folder / "crd" / "bases" / "remediation.medik8s.io_nodehealthchecks.yaml"),
        manifests.definition(VERSION, "SelfNodeRemediation"),
        manifests.definition(VERSION, "SelfNodeRemediationTemplate"),
    ]
    template = {
        "apiVersion": VERSION,
        "kind": "SelfNodeRemediationTemplate",
        "metadata": {"name": TEMPLATE},
        "spec": {"template": {"spec": {"remediationStrategy": "ResourceDeletion"}}},
    }
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    await manifests.apply(plane.api, [namespace, *definitions, template], NAMESPACE)
    ours = {"apiGroups": [GROUP], "resources": ["*"], "verbs": ["*"]}
    # Its own role lets it say nothing of a NodeHealthCheck, whose Events are in namespace default.
    events = {"apiGroups": [""], "resources": ["events"], "verbs": ["create", "patch"]}
    await manifests.grant(plane.api, NAMESPACE, ACCOUNT, [*role["rules"], ours, events])


@asynccontextmanager
async def remediating(plane: ControlPlane, outcome: Outcome = "mends") -> AsyncIterator[Remediator]:
    """Play the remediator, which is installed already."""
    remediator = Remediator(plane.api, outcome)
    task = asyncio.create_task(remediator.serve())
    try:
        yield remediator
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def running(plane: ControlPlane) -> AsyncIterator[None]:
    """Run Node Healthcheck, which is installed already.

    Its webhooks want port 9443 on all addresses, and can't be told otherwise: it runs once on a machine.
    """
    program = (await asyncio.to_thread(Toolchain().ensure, [PROGRAM]))[PROGRAM]
    config = await plane.kubeconfig_for(NAMESPACE, ACCOUNT)
    with Ports() as ports:
        health = ports.take()
        command: list[str | Path] = [
            program,
            f"--kubeconfig={config}",
            f"--health-probe-bind-address=127.0.0.1:{health}",
            "--metrics-bind-address=0",
            "--leader-elect=false",
        ]
        # It looks for its certificate below the folder for temporary files.
        environment = {"DEPLOYMENT_NAMESPACE": NAMESPACE, "TMPDIR": str(_certificate(plane))}
        url = f"http://127.0.0.1:{health}/readyz"
        child = plane.start_child(PROGRAM, command, environment, url=url)
        try:
            await child.ready(processes.answers(url))
            yield
        finally:
            await plane.stop_child(PROGRAM)


def _certificate(plane: ControlPlane) -> Path:
    home = plane.home.secrets / PROGRAM
    folder = home / "k8s-webhook-server" / "serving-certs"
    folder.mkdir(parents=True, exist_ok=True)
    Authority(folder).issue("tls")
    return home


async def make_check(plane: ControlPlane, name: str, selector: dict[str, str], **spec: Any) -> None:
    """Have Node Healthcheck look after nodes with these labels: those not Ready for a second get TEMPLATE's remedy."""
    template = {"apiVersion": VERSION, "kind": "SelfNodeRemediationTemplate", "namespace": NAMESPACE, "name": TEMPLATE}
    ill = [{"type": "Ready", "status": status, "duration": "1s"} for status in ("False", "Unknown")]
    wanted = {"minHealthy": "0%", "unhealthyConditions": ill, "remediationTemplate": template, **spec}
    body = {
        "apiVersion": "remediation.medik8s.io/v1alpha1",
        "kind": "NodeHealthCheck",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": selector}} | {key: value for key, value in wanted.items() if value},
    }
    await plane.api.apply(f"{CHECKS}/{name}", body)
