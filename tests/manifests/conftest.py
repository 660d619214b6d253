"""A control plane that knows the kinds of Knative, Argo Events and the Prometheus operator, and does no more."""

import json
from collections.abc import AsyncIterator

import pytest

from lab import crds
from lab.cluster import ControlPlane
from tests.manifests import rendered

# The namespaces of others that the manifests name.
_OTHERS = ("argo-events", "knative-eventing", "monitoring", "shop")


@pytest.fixture(scope="session")
async def cluster(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[ControlPlane]:
    """Their definitions are those of their modules, made strict: a field that none of them describes is refused."""
    async with ControlPlane(tmp_path_factory.mktemp("manifests")) as plane:
        config = f"--kubeconfig={plane.kubeconfig}"
        rendered.run(
            config,
            "create",
            "-f",
            "-",
            given=json.dumps({"apiVersion": "v1", "kind": "List", "items": crds.strict_crds()}),
        )
        for namespace in _OTHERS:
            rendered.run(config, "create", "namespace", namespace)
        # As docs/install.md says: the definitions first, for nothing that uses them is accepted before.
        rendered.run(config, "apply", "--server-side", "-k", rendered.KNATIVE / "crds")
        rendered.run(config, "wait", "--for=condition=Established", "crd", "--all", "--timeout=120s")
        rendered.run(config, "apply", "--server-side", "-k", rendered.KNATIVE / "base")
        yield plane
