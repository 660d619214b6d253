"""Applies manifests as `kubectl apply --server-side` would, and grants rights to ServiceAccounts."""

import asyncio
from collections.abc import Iterable, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import yaml

from lab.api import Api, Refused, eventually
from lab.errors import LabError

Manifest = dict[str, Any]
# What others need before they can be applied goes first.
_FIRST = ("Namespace", "CustomResourceDefinition", "ServiceAccount", "ClusterRole", "Role")


def read(*files: Path) -> list[Manifest]:
    """All manifests in these files."""
    return [document for file in files for document in parsed(file.read_text())]


def parsed(text: str) -> list[Manifest]:
    """All manifests in a text."""
    # The loader in C: definitions of others have tens of thousands of lines.
    return [document for document in yaml.load_all(text, yaml.CSafeLoader) if document]


async def apply(api: Api, manifests: Iterable[Manifest], namespace: str = "default") -> None:
    """Apply manifests, those that others need first; what names no namespace gets this one.

    Kinds that are defined by them can be read and written when this returns.
    """
    paths: dict[tuple[str, str], str] = {}
    for _, of_a_rank in groupby(sorted(manifests, key=_rank), key=_rank):
        applied = list(of_a_rank)
        for manifest in applied:
            kind = (manifest["apiVersion"], manifest["kind"])
            if kind not in paths:
                paths[kind] = await _collection(api, *kind)
            metadata = manifest["metadata"]
            home = metadata.get("namespace", namespace)
            await api.apply(f"{paths[kind].format(namespace=home)}/{metadata['name']}", manifest)
        await asyncio.gather(*(_served(api, one) for one in applied if one["kind"] == "CustomResourceDefinition"))


async def path_of(api: Api, manifest: Manifest, namespace: str = "default") -> str:
    """Where the API server keeps an object."""
    collection = await _collection(api, manifest["apiVersion"], manifest["kind"])
    home = manifest["metadata"].get("namespace", namespace)
    return f"{collection.format(namespace=home)}/{manifest['metadata']['name']}"


async def grant(api: Api, namespace: str, service_account: str, rules: Sequence[Manifest], *, role: str = "") -> None:
    """Let a ServiceAccount do these things in the whole cluster, beside what it may by another role."""
    name = f"lab:{role or service_account}"
    group = "rbac.authorization.k8s.io"
    subject = {"kind": "ServiceAccount", "name": service_account, "namespace": namespace}
    referred = {"apiGroup": group, "kind": "ClusterRole", "name": name}
    common = {"apiVersion": f"{group}/v1", "metadata": {"name": name}}
    await apply(
        api,
        [
            {**common, "kind": "ClusterRole", "rules": list(rules)},
            {**common, "kind": "ClusterRoleBinding", "roleRef": referred, "subjects": [subject]},
        ],
    )


def definition(api_version: str, kind: str, labels: dict[str, str] | None = None) -> Manifest:
    """A definition of a namespaced kind whose spec and status may hold anything."""
    group, _, name = api_version.partition("/")
    plural = f"{kind.lower()}s"
    anything = {"type": "object", "x-kubernetes-preserve-unknown-fields": True}
    schema = {"type": "object", "properties": {"spec": anything, "status": anything}}
    version = {"name": name, "served": True, "storage": True, "subresources": {"status": {}}}
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{plural}.{group}", "labels": labels or {}},
        "spec": {
            "group": group,
            "scope": "Namespaced",
            "names": {"kind": kind, "plural": plural, "singular": kind.lower()},
            "versions": [{**version, "schema": {"openAPIV3Schema": schema}}],
        },
    }


async def listed(api: Api, collection: str) -> None:
    """Wait until a kind can be listed: its storage is (re)initializing (429) for a while after it is established."""

    async def served() -> bool:
        try:
            # Discovery and the cache of what is listed follow the CRD, each in its own time: at first 404, then 429.
            return await api.find(collection, limit="1") is not None
        except Refused as refusal:
            if refusal.status != 429:
                raise
            return False

    await eventually(served, collection)


def _rank(manifest: Manifest) -> int:
    kind = manifest["kind"]
    return _FIRST.index(kind) if kind in _FIRST else len(_FIRST)


async def _collection(api: Api, version: str, kind: str) -> str:
    """The path of a kind's collection, with {namespace} in it if the kind has one."""
    root = f"/apis/{version}" if "/" in version else f"/api/{version}"

    async def known() -> Any:
        # Discovery comes a moment after a CRD is established.
        resources = (await api.find(root) or {"resources": []})["resources"]
        return next((one for one in resources if one["kind"] == kind and "/" not in one["name"]), None)

    resource = await eventually(known, f"the kind {kind} of {version}", patience=10)
    middle = "/namespaces/{namespace}" if resource["namespaced"] else ""
    return f"{root}{middle}/{resource['name']}"


async def _served(api: Api, definition: Manifest) -> None:
    await _established(api, definition["metadata"]["name"])
    spec = definition["spec"]
    root, plural = f"/apis/{spec['group']}", spec["names"]["plural"]
    for version in (one["name"] for one in spec["versions"] if one["served"]):
        await listed(api, f"{root}/{version}/{plural}")


async def _established(api: Api, name: str) -> None:
    async def established() -> bool:
        path = f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{name}"
        conditions = (await api.get(path)).get("status", {}).get("conditions") or []
        broken = [one["message"] for one in conditions if one["type"] == "NonStructuralSchema"]
        if broken:
            raise LabError(f"{name}: {broken[0]}")
        return any(one["type"] == "Established" and one["status"] == "True" for one in conditions)

    await eventually(established, f"the CRD {name}")
