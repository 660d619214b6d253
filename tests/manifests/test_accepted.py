"""A real API server that knows the kinds of Knative, Argo and Prometheus accepts each folder that people apply."""

from pathlib import Path

import pytest
import yaml

from lab.cluster import ControlPlane
from tests.manifests import rendered

every_folder = pytest.mark.parametrize("folder", [*rendered.WHOLE, *rendered.SENDERS], ids=rendered.name_of)
every_whole = pytest.mark.parametrize("folder", rendered.WHOLE, ids=rendered.name_of)


@every_folder
def test_passes_a_dry_run_of_the_server(cluster: ControlPlane, folder: Path) -> None:
    arguments = ("--server-side", "--dry-run=server", "--validate=strict", "--force-conflicts")
    answer = rendered.run(f"--kubeconfig={cluster.kubeconfig}", "apply", *arguments, "-k", folder)
    assert len(answer.stdout.splitlines()) == len(rendered.render(folder))
    assert answer.stderr == ""


@every_whole
def test_can_be_applied_and_its_pods_are_let_into_the_namespace(cluster: ControlPlane, folder: Path) -> None:
    config = f"--kubeconfig={cluster.kubeconfig}"
    rendered.run(config, "apply", "--server-side", "--validate=strict", "--force-conflicts", "-k", folder)
    for name, pod in rendered.pods_of(folder):
        rendered.run(config, "create", "--dry-run=server", "--validate=strict", "-f", "-", given=as_pod(name, pod))


def as_pod(name: str, spec: rendered.Json) -> str:
    """A pod as the controllers would make it: without what only Knative knows, and with a probe's port filled in."""
    spec = {key: value for key, value in spec.items() if key not in {"containerConcurrency", "timeoutSeconds"}}
    (container,) = spec["containers"]
    probes = {key: _with_port(value) for key, value in container.items() if key.endswith("Probe")}
    spec["containers"] = [{**container, **probes}]
    metadata = {"name": name, "namespace": "kreflex-system"}
    return yaml.safe_dump({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})


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
    config = f"--kubeconfig={cluster.kubeconfig}"
    with pytest.raises(AssertionError, match="filter_"):
        rendered.run(
            config, "create", "--dry-run=server", "--validate=strict", "-f", "-", given=yaml.safe_dump(trigger)
        )
