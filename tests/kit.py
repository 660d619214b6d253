"""What the tests of the core build with: an installed Kreflex, workloads with faults, and the audit log's view."""

import asyncio
import subprocess
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from kreflex.cluster import Transport
from kreflex.credentials import load_credentials
from kreflex.reflex import Arc, Reflex
from kreflex.schemas import all_crds
from kreflex.settings import CoreSettings
from lab import audit
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.manifests import listed
from lab.toolchain import Toolchain

Json = dict[str, Any]
ROOT = Path(__file__).parent.parent
FAULT, SPEED = "lab.kreflex.dev/fault", "lab.kreflex.dev/speed"
# A kubelet so slow that its next word comes in days.
STILL = "0.00001"
FUNCTIONS = ("anomaly-scorer", "node-replacer", "restart-loop-killer", "rollback", "waker")
REMEDIATIONS = "/apis/kreflex.dev/v1alpha1/remediations"


def kubectl(plane: ControlPlane, *arguments: str, config: Path | None = None) -> str:
    """Run kubectl as a person with all rights, or with another's; raises with its own words when it fails."""
    program = Toolchain().ensure(["kubectl"])["kubectl"]
    command: list[str | Path] = [program, f"--kubeconfig={config or plane.kubeconfig}", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


async def install(plane: ControlPlane) -> None:
    """Apply what a user applies: CRDs, namespace, ledger, permissions, admission policies."""
    kubectl(plane, "apply", "--server-side", "-k", str(ROOT / "knative/crds"))
    own = [f"knative/{function}/{name}.yaml" for function in FUNCTIONS for name in ("rbac", "admission")]
    common = ("knative/base/namespace.yaml", "knative/base/ledger.yaml", "knative/admission/approvals.yaml")
    kubectl(plane, "apply", "--server-side", *(f"--filename={ROOT / file}" for file in (*common, *own)))
    kubectl(plane, "wait", "--for=condition=Established", "crd", "--all", "--timeout=120s")
    for crd in all_crds().values():
        await listed(plane.api, f"/apis/{crd['spec']['group']}/v1alpha1/{crd['spec']['names']['plural']}")


@dataclass
class Place:
    """One namespace of a test, with a cluster policy for it alone."""

    plane: ControlPlane
    name: str

    async def policy(self, **spec: Any) -> None:
        """Set this namespace's policy: Auto and quick, unless told otherwise; it holds when this returns."""
        await self.set_policy(**spec)
        await asyncio.sleep(1.1)  # The core may share a reading of the policies for a second.

    async def set_policy(self, **spec: Any) -> None:
        """Set this namespace's policy, for functions that have not yet read any."""
        limits = {
            "cooldown": "0s",
            "maxInFlight": 5,
            "rates": [{"count": 1000, "window": "1h"}],
            **spec.pop("limits", {}),
        }
        scope = {"namespaces": [self.name], **spec.pop("scope", {})}
        body = {"mode": "Auto", "proof": "1s", "proveWithin": "30s", **spec, "limits": limits, "scope": scope}
        await self.plane.api.apply(
            f"/apis/kreflex.dev/v1alpha1/clusterremediationpolicies/{self.name}",
            {
                "apiVersion": "kreflex.dev/v1alpha1",
                "kind": "ClusterRemediationPolicy",
                "metadata": {"name": self.name},
                "spec": body,
            },
        )

    async def deployment(self, name: str = "shop", replicas: int = 1, **template: Any) -> list[Json]:
        """Make a Deployment and wait until its pods are Ready; returns the pods."""
        body = deployment(name, replicas, **template)
        await self.plane.api.post(f"/apis/apps/v1/namespaces/{self.name}/deployments", body)
        return await self.ready_pods(name, replicas)

    async def ready_pods(self, app: str, count: int) -> list[Json]:
        """Wait until an app has this many Ready pods and no other."""

        async def found() -> list[Json] | None:
            pods = await self.pods(app)
            return pods if len(pods) == count and all(is_ready(pod) for pod in pods) else None

        pods: list[Json] = await eventually(found, f"{count} Ready pods of {app}")
        return pods

    async def pods(self, app: str) -> list[Json]:
        """Read an app's pods."""
        answer = await self.plane.api.get(f"/api/v1/namespaces/{self.name}/pods", labelSelector=f"app={app}")
        items: list[Json] = answer["items"]
        return items

    async def loop(
        self, pod: Json, fault: str = "crash-loop", speed: str = "100", restarts: int = 4, *, still: bool = False
    ) -> Json:
        """Give a pod a fault, and wait until it shows, at the end of a run; for a pod that nothing heals meanwhile.

        A `still` one stays as it is then: one that changes each moment is hard to evict under its resourceVersion.
        """
        path = await self.fault(pod, fault, speed)

        async def looping() -> Json | None:
            body = await self.plane.api.get(path)
            status = body["status"]
            statuses = status.get("initContainerStatuses", []) + status["containerStatuses"]
            worst = max(statuses, key=lambda c: c["restartCount"])
            waits = any("ImagePull" in c["state"].get("waiting", {}).get("reason", "") for c in statuses)
            return body if waits or (worst["restartCount"] >= restarts and "running" not in worst["state"]) else None

        async def stands() -> Json | None:
            if await looping() is None:
                return None
            stopped = await self.plane.api.patch(path, {"metadata": {"annotations": {SPEED: STILL}}})
            # What its kubelet was just about to write, it has written by then.
            await asyncio.sleep(0.3)
            body = await looping()
            if body is not None and body["metadata"]["resourceVersion"] == stopped["metadata"]["resourceVersion"]:
                return body
            await self.fault(pod, fault, speed)
            return None

        found: Json = await eventually(stands if still else looping, f"{pod['metadata']['name']} looping", 60)
        return found

    async def fault(self, pod: Json, fault: str = "crash-loop", speed: str = "100") -> str:
        """Give a pod a fault; returns its path."""
        path = f"/api/v1/namespaces/{self.name}/pods/{pod['metadata']['name']}"
        await self.plane.api.patch(path, {"metadata": {"annotations": {FAULT: fault, SPEED: speed}}})
        return path

    async def records(self) -> list[Json]:
        """Read this namespace's Remediations."""
        answer = await self.plane.api.get(f"/apis/kreflex.dev/v1alpha1/namespaces/{self.name}/remediations")
        items: list[Json] = answer["items"]
        return items

    def writes(self, user: str = "restart-loop-killer") -> list[Json]:
        """Tell what a function has written here, as the API server logged it."""
        return [
            entry
            for entry in audit.entries(self.plane.audit_log, self.name)
            if entry["user"]["username"].endswith(f":{user}")
            and entry["objectRef"].get("namespace") == self.name
            and entry["verb"] in {"create", "update", "patch", "delete"}
        ]

    def evictions(self) -> list[str]:
        """Tell the UIDs of the pods whose eviction was accepted, once for each acceptance, whoever asked."""
        return evictions(self.plane, self.name)


def evictions(plane: ControlPlane, namespace: str | None = None) -> list[str]:
    """Tell the UIDs of evicted pods from the audit log, in a namespace or in all."""
    return [
        entry["requestObject"]["deleteOptions"]["preconditions"]["uid"]
        for entry in audit.entries(plane.audit_log, namespace or "")
        if entry["objectRef"].get("subresource") == "eviction"
        and entry["responseStatus"]["code"] < 300
        and (namespace is None or entry["objectRef"]["namespace"] == namespace)
    ]


async def place(plane: ControlPlane) -> Place:
    """Make a namespace for one test."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    await plane.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    made = Place(plane, name)
    await made.set_policy()  # The first pod of this namespace takes longer than a second to loop.
    return made


async def clear(here: Place) -> None:
    """Take away what runs in a namespace: pods that crash for ever would be most of what the next tests wait for."""
    apps = ("deployments", "statefulsets", "daemonsets", "replicasets")
    owners = [f"/apis/apps/v1/namespaces/{here.name}/{plural}" for plural in apps]
    owners.append(f"/apis/batch/v1/namespaces/{here.name}/jobs")
    # From the top down, or they would be made anew.
    for path in owners:
        await here.plane.api.delete(path, {"propagationPolicy": "Background"})
    await here.plane.api.delete(f"/api/v1/namespaces/{here.name}/pods", {"gracePeriodSeconds": 0})


@asynccontextmanager
async def arc_of(plane: ControlPlane, reflex: Reflex[Any], **settings: str) -> AsyncIterator[Arc[Any]]:
    """Run a function's arc in this process, with its own account's rights and no others."""
    path = await plane.kubeconfig_for("kreflex-system", reflex.name)
    transport = Transport(load_credentials(str(path)))
    try:
        yield Arc(reflex, CoreSettings.model_validate(settings), transport)
    finally:
        await transport.close()


def deployment(name: str, replicas: int, annotations: dict[str, str] | None = None, **spec: Any) -> Json:
    """Build a Deployment with one container, unless `containers` says otherwise."""
    containers = spec.pop("containers", [{"name": "app", "image": "shop:1"}])
    labels = {"app": name}
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name, "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": labels},
            "template": {
                "metadata": {"labels": labels, "annotations": annotations or {}},
                "spec": {"containers": containers, "terminationGracePeriodSeconds": 0, **spec},
            },
        },
    }


def is_ready(pod: Json) -> bool:
    """Tell whether a pod is Ready and stays."""
    conditions = pod["status"].get("conditions", [])
    return "deletionTimestamp" not in pod["metadata"] and any(
        c["type"] == "Ready" and c["status"] == "True" for c in conditions
    )


def manifests(path: str) -> list[Json]:
    """Read the objects of a YAML file of this repository."""
    return [body for body in yaml.safe_load_all((ROOT / path).read_text()) if body]
