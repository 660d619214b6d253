"""Helm itself on the lab: releases of a small chart, and what is needed to roll one back."""

import asyncio
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lab import manifests
from lab.cluster import ControlPlane
from lab.errors import LabError
from lab.paths import PACKAGE
from lab.state import MARK
from lab.toolchain import Toolchain

Json = dict[str, Any]
PROGRAM = "helm"
CHART = PACKAGE / "charts" / "shop"
"""A Deployment, a Service and a ConfigMap, each called as the release."""
ROLLBACK_RULES: list[Json] = [
    # Its own memory: a Secret a revision. The oldest are deleted past --history-max.
    {"apiGroups": [""], "resources": ["secrets"], "verbs": ["get", "list", "create", "update", "delete"]},
    # Each kind of the chart. Server-side apply is a patch; what only the undone revision had is deleted, what only the
    # restored one had is created.
    {"apiGroups": [""], "resources": ["configmaps", "services"], "verbs": ["get", "create", "patch", "delete"]},
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "create", "patch", "delete"]},
]
"""What `helm rollback` of CHART asks for."""
WAIT_RULES: list[Json] = [
    # --wait watches the chart's kinds in the whole namespace, and looks below a Deployment.
    {"apiGroups": [""], "resources": ["configmaps", "services"], "verbs": ["list", "watch"]},
    {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["list", "watch"]},
    {"apiGroups": ["apps"], "resources": ["replicasets"], "verbs": ["list"]},
    {"apiGroups": [""], "resources": ["pods"], "verbs": ["list"]},
]
"""What it asks for besides with --wait."""


@dataclass(frozen=True)
class Answer:
    """What helm has said."""

    code: int
    out: str
    error: str


async def helm(plane: ControlPlane, *arguments: str, config: Path | None = None) -> Answer:
    """Run helm to its end as the administrator, or with another's kubeconfig; whoever stops waiting ends it."""
    program = (await asyncio.to_thread(Toolchain().ensure, [PROGRAM]))[PROGRAM]
    process = await asyncio.create_subprocess_exec(
        program,
        *arguments,
        env=_environment(plane, config or plane.kubeconfig),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        out, error = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Answer(process.returncode or 0, out.decode(), error.decode())


def _environment(plane: ControlPlane, config: Path) -> dict[str, str]:
    folder = plane.home.data / "helm"
    ours = {"HOME": str(folder), "KUBECONFIG": str(config), MARK: str(plane.home.root)}
    return ours | {"PATH": os.environ.get("PATH", "")}


async def must(plane: ControlPlane, *arguments: str) -> str:
    """Run helm as the administrator; what it wrote, or an error with its own words."""
    answer = await helm(plane, *arguments)
    if answer.code != 0:
        raise LabError(f"helm {' '.join(arguments)} ended with code {answer.code}:\n{answer.error.strip()}")
    return answer.out


async def account(plane: ControlPlane, namespace: str, name: str, rules: Sequence[Json]) -> None:
    """Make a ServiceAccount that may do these things in its namespace, and nothing elsewhere."""
    group = "rbac.authorization.k8s.io"
    common = {"apiVersion": f"{group}/v1", "metadata": {"name": name}}
    subject = {"kind": "ServiceAccount", "name": name, "namespace": namespace}
    role = {"apiGroup": group, "kind": "Role", "name": name}
    bodies: list[Json] = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}},
        {**common, "kind": "Role", "rules": list(rules)},
        {**common, "kind": "RoleBinding", "roleRef": role, "subjects": [subject]},
    ]
    await manifests.apply(plane.api, bodies, namespace)


@dataclass(frozen=True)
class Release:
    """A release of CHART by this name in this namespace."""

    plane: ControlPlane
    namespace: str
    name: str = "shop"

    @property
    def deployment(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.namespace}/deployments/{self.name}"

    async def install(self, *flags: str, **values: Any) -> None:
        """Install it, and wait until its pods are Ready."""
        await must(self.plane, "install", self.name, str(CHART), *self._where, "--wait", *flags, *_values(values))

    async def upgrade(self, *flags: str, **values: Any) -> Answer:
        """Make a new revision with other values than the chart's; whether it succeeds depends on them."""
        chart = [self.name, str(CHART), *self._where]
        return await helm(self.plane, "upgrade", *chart, *flags, *_values(values))

    async def rollback(self, revision: int = 0, *flags: str, config: Path | None = None) -> Answer:
        """Go back to a revision; to the one before the newest if none is named, whatever that one is."""
        wanted = [str(revision)] if revision else []
        return await helm(self.plane, "rollback", self.name, *wanted, *self._where, *flags, config=config)

    async def history(self) -> list[Json]:
        """Its revisions, the oldest first."""
        found: list[Json] = json.loads(await must(self.plane, "history", self.name, *self._where, "-o", "json"))
        return found

    async def statuses(self) -> list[str]:
        """What Helm says of each revision, the oldest first."""
        return [one["status"] for one in await self.history()]

    async def secrets(self) -> list[Json]:
        """Where Helm keeps the revisions, the oldest first."""
        path = f"/api/v1/namespaces/{self.namespace}/secrets"
        items = (await self.plane.api.get(path, labelSelector=f"owner=helm,name={self.name}"))["items"]
        return sorted(items, key=lambda one: int(one["metadata"]["labels"]["version"]))

    @property
    def _where(self) -> list[str]:
        return ["--namespace", self.namespace]


def _values(values: Mapping[str, Any]) -> list[str]:
    return [part for key, value in values.items() for part in ("--set-json", f"{key}={json.dumps(value)}")]
