"""A real API server that knows the kinds of Knative, Argo and Prometheus accepts each folder that people apply."""

import json
import re
import subprocess
from pathlib import Path

import pytest

from lab.cluster import ControlPlane
from tests.manifests import rendered

every_whole = pytest.mark.parametrize("folder", rendered.WHOLE, ids=rendered.name_of)


def test_every_object_passes_a_dry_run_of_the_server(cluster: ControlPlane) -> None:
    """Once where folders share it; and the server has nothing to warn of."""
    every = [document for folder in (*rendered.WHOLE, *rendered.SENDERS) for document in rendered.render(folder)]
    distinct = {json.dumps(document, sort_keys=True): document for document in every}
    arguments = ("--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts")
    answer = asked(cluster, "apply", *arguments, given=[*distinct.values()])
    assert len(answer.stdout.splitlines()) == len(distinct)
    assert answer.stderr == ""


@every_whole
def test_can_be_applied(cluster: ControlPlane, folder: Path) -> None:
    config = f"--kubeconfig={cluster.kubeconfig}"
    answer = rendered.run(config, "apply", "--server-side", "--validate=strict", "--force-conflicts", "-k", folder)
    assert len(answer.stdout.splitlines()) == len(rendered.render(folder))


def test_removing_it_leaves_what_others_use_too(cluster: ControlPlane) -> None:
    page = (rendered.ROOT / "docs" / "install.md").read_text()
    (selector,) = re.findall(r"^kubectl delete -k knative/install --selector '(.*)' ", page, re.MULTILINE)
    selected = ("delete", "-k", rendered.INSTALL, "--selector", selector)
    config = f"--kubeconfig={cluster.kubeconfig}"
    rendered.run(config, "apply", "--server-side", "--force-conflicts", "-k", rendered.INSTALL)
    removed = rendered.run(config, *selected, "--dry-run=server", "--ignore-not-found").stdout
    assert 'namespace "kreflex-system" deleted' in removed
    assert 'namespace "medik8s-leases"' not in removed


def test_the_namespace_lets_all_pods_in(cluster: ControlPlane) -> None:
    """Pods are made from templates by others, and refused then: by the namespace's pod security, or for a typo."""
    folders = (*rendered.WHOLE, rendered.TRIGGERS / "knative-eventing")
    pods = [as_pod(f"{name}-{i}", pod) for i, folder in enumerate(folders) for name, pod in rendered.pods_of(folder)]
    for folder in folders:
        accounts = rendered.of_kind(folder, "ServiceAccount")
        asked(cluster, "apply", "--server-side", "--force-conflicts", given=accounts)
    answer = asked(cluster, "create", "--dry-run=server", "--validate=strict", given=pods)
    assert (len(answer.stdout.splitlines()), answer.stderr) == (len(pods), "")


def asked(cluster: ControlPlane, *arguments: str, given: list[rendered.Json]) -> subprocess.CompletedProcess[str]:
    """Run kubectl with these objects."""
    objects = json.dumps({"apiVersion": "v1", "kind": "List", "items": given})
    return rendered.run(f"--kubeconfig={cluster.kubeconfig}", *arguments, "-f", "-", given=objects)


def as_pod(name: str, spec: rendered.Json) -> rendered.Json:
    """A pod as the controllers would make it: without what only Knative knows, and with a probe's port filled in."""
    spec = {key: value for key, value in spec.items() if key not in {"containerConcurrency", "timeoutSeconds"}}
    (container,) = spec["containers"]
    probes = {key: _with_port(value) for key, value in container.items() if key.endswith("Probe")}
    spec["containers"] = [{**container, **probes}]
    metadata = {"name": name, "namespace": "kreflex-system"}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def _with_port(probe: rendered.Json) -> rendered.Json:
    return {**probe, "httpGet": {"port": 8080, **probe["httpGet"]}}


def test_an_unknown_field_of_a_kind_of_others_is_refused(cluster: ControlPlane) -> None:
    """The test of the tests: Knative's own definitions keep such a field in silence."""
    trigger = {
        "apiVersion": "eventing.knative.dev/v1",
        "kind": "Trigger",
        "metadata": {"name": "wrong", "namespace": "kreflex-system"},
        "spec": {"broker": "b", "filter_": {}, "subscriber": {"uri": "http://somewhere/"}},
    }
    with pytest.raises(AssertionError, match="filter_"):
        asked(cluster, "create", "--dry-run=server", "--validate=strict", given=[trigger])
