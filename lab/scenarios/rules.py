"""A policy of a scenario's own about releases, beside the lab's: of one release only one policy may say what is bad."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from lab.api import Api
from lab.scenarios.place import Json, Place

_POLICIES = "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies"
_USUAL = "lab-releases"


@asynccontextmanager
async def own_policy(place: Place, api: Api, **releases: Any) -> AsyncIterator[None]:
    """Let the lab's policy for releases hold here with these rules besides, until the block ends."""
    usual = await api.get(f"{_POLICIES}/{_USUAL}")
    spec: Json = usual["spec"]
    elsewhere = [*spec["scope"].get("excludeNamespaces", []), place.namespace]
    own = {**spec, "scope": {"namespaces": [place.namespace]}, "releases": {**spec["releases"], **releases}}
    about = {"apiVersion": usual["apiVersion"], "kind": usual["kind"], "metadata": {"name": place.namespace}}
    await api.patch(f"{_POLICIES}/{_USUAL}", {"spec": {"scope": {"excludeNamespaces": elsewhere}}})
    await api.post(_POLICIES, {**about, "spec": own})
    try:
        yield
    finally:
        await api.delete(f"{_POLICIES}/{place.namespace}")
        found = (await api.get(f"{_POLICIES}/{_USUAL}"))["spec"]["scope"].get("excludeNamespaces", [])
        left = [name for name in found if name != place.namespace]
        await api.patch(f"{_POLICIES}/{_USUAL}", {"spec": {"scope": {"excludeNamespaces": left}}})
