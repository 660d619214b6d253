"""What the tests of chaos build with: a runner in this process under its own account, and experiments."""

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import yaml

from bench import burning
from kreflex import rights
from kreflex.chaos.experiments import FINAL, Experiment, path, read_experiment
from kreflex.chaos.runner import Runner, Terms
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.prom import Metrics
from kreflex.world import World
from lab import manifests
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.manifests import listed
from tests import kit

prometheus = burning.prometheus
FUNCTION = "chaos-runner"
ALLOWED = {"kreflex.dev/chaos": "allowed"}
TERMS = Terms(timedelta(seconds=30), timedelta(seconds=25), frozenset({"127.0.0.1"}))
QUICK = {
    "duration": "1s",
    "ttl": "1m",
    "recovery": "20s",
    "withoutBudget": "a test that has no Prometheus",
}


async def install(plane: ControlPlane) -> None:
    """Apply what chaos-runner needs beside the rest of Kreflex."""
    files = ["crds/experiments.yaml", "admission/experiments.yaml"]
    files += ["chaos-runner/rbac.yaml", "chaos-runner/admission.yaml"]
    kit.kubectl(plane, "apply", "--server-side", *(f"--filename={kit.ROOT}/knative/{file}" for file in files))
    kit.kubectl(plane, "wait", "--for=condition=Established", "crd/experiments.kreflex.dev", "--timeout=120s")
    await listed(plane.api, "/apis/kreflex.dev/v1alpha1/experiments")


@asynccontextmanager
async def runner(
    plane: ControlPlane,
    transport: type[Transport] = Transport,
    prometheus_url: str = "",
    terms: Terms = TERMS,
    home: str = "kreflex-system",
    namespaces: tuple[str, ...] = (),
    **given: Any,
) -> AsyncIterator[Runner]:
    """A runner with its own account's rights and no others."""
    config = await plane.kubeconfig_for(home, FUNCTION)
    made = transport(load_credentials(str(config)), **given)
    try:
        world = World(Reader(made, namespaces), Metrics(prometheus_url), FUNCTION, home)
        yield Runner(world, Writer(made), terms)
    finally:
        await made.close()


async def bind(here: kit.Place) -> str:
    """Make an account of a home of its own that is bound to this namespace, as the namespaced variant does."""
    home = f"home-{here.name}"
    await here.plane.api.post("/api/v1/namespaces", {"metadata": {"name": home}})
    bound = rights.manifests(rights.rights_of_chaos(namespaced=True), home, [here.name])
    # Not the roles of the account that is installed.
    own = json.loads(json.dumps(bound).replace("kreflex:chaos-runner", f"kreflex:{home}"))
    await manifests.apply(here.plane.api, own)
    return home


async def opt_in(here: kit.Place) -> None:
    """Let chaos into a namespace."""
    await here.plane.api.patch(f"/api/v1/namespaces/{here.name}", {"metadata": {"labels": ALLOWED}})


async def make(plane: ControlPlane, namespace: str, name: str = "storm", **spec: Any) -> Experiment:
    """Make an experiment: quick, and with a reason for having no budget."""
    body = {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": name},
        "spec": {**QUICK, **spec},
    }
    return read_experiment(await plane.api.post(path(namespace), body))


async def read(plane: ControlPlane, namespace: str, name: str = "storm") -> Experiment:
    """Read an experiment as it is now."""
    return read_experiment(await plane.api.get(path(namespace, name)))


async def play(runner_: Runner, experiment: Experiment) -> Experiment:
    """Wake the runner again and again, as the waker does, until the experiment is over."""
    plane_reader = runner_.experiments

    async def over() -> Experiment | None:
        await runner_.go_on(experiment.namespace, experiment.name)
        found = await plane_reader.get(experiment.namespace, experiment.name)
        return found if found is not None and found.status.phase in FINAL else None

    ended: Experiment = await eventually(over, f"the end of {experiment}", 60)
    return ended


def notes(body: kit.Json) -> dict[str, str]:
    """What of an object's annotations is ours."""
    found = body["metadata"].get("annotations") or {}
    return {key: text for key, text in found.items() if key.startswith("kreflex.dev/")}


async def injected(plane: ControlPlane, path_: str) -> kit.Json | None:
    """The object, once something was injected into it."""
    body = await plane.api.get(path_)
    return body if "kreflex.dev/chaos-experiment" in notes(body) else None


def home_policy() -> tuple[str, kit.Json]:
    """A policy that lets chaos-runner work on what is in no namespace of its own."""
    return (
        "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies/chaos-home",
        {
            "apiVersion": "kreflex.dev/v1alpha1",
            "kind": "ClusterRemediationPolicy",
            "metadata": {"name": "chaos-home"},
            "spec": {"mode": "Auto", "functions": [FUNCTION], "scope": {"namespaces": ["kreflex-system"]}},
        },
    )


async def slo(plane: ControlPlane, namespace: str, app: str) -> str:
    """Write an SLO of an app of a namespace down; its name."""
    ratio = {"counter": True, "bad": _source(f'bad{{app="{app}"}}'), "total": _source(f'all{{app="{app}"}}')}
    document = {
        "apiVersion": "openslo/v1",
        "kind": "SLO",
        "metadata": {"name": app, "namespace": namespace, "annotations": {"kreflex.dev/workloads": f"app={app}"}},
        "spec": {
            "service": app,
            "indicator": {"spec": {"ratioMetric": ratio}},
            "timeWindow": [{"duration": "30d", "isRolling": True}],
            "budgetingMethod": "Occurrences",
            "objectives": [{"target": 0.999}],
        },
    }
    name = f"slos-{namespace}"
    meta = {"name": name, "labels": {"kreflex.dev/slos": "true"}}
    body = {"metadata": meta, "data": {"slo.yaml": yaml.safe_dump(document)}}
    await plane.api.post("/api/v1/namespaces/kreflex-system/configmaps", body)
    return app


def _source(query: str) -> kit.Json:
    return {"metricSource": {"type": "Prometheus", "spec": {"query": query}}}
