"""canary-aborter in the fault matrix where Git owns the weight: a commit, a pull request, and live beside Git.

Each canary comes with what is stable, and with the Ingress that shares out their traffic, from a repository of its own.
Its new version crashes; what is stable is well all the time.
"""

from dataclasses import replace
from typing import Any

import yaml

from bench import rig
from bench.git_scenarios import (
    ACT_WITHIN,
    FOLLOWED,
    MADE,
    SKIPPED,
    SOURCE,
    announced,
    at_work,
    clear_all,
    follow,
    merge,
    names_of,
    set_policy,
    twice_in_git,
    untouched_git,
)
from bench.release_scenarios import BAD, GOOD, nobody
from bench.release_scenarios import body as release_body
from bench.rig import Json
from bench.scenarios import Scenario
from bench.stage import Stage
from lab import argo_cd, nodes
from lab.api import eventually
from lab.cluster import ControlPlane

FUNCTION = "canary-aborter"
# What is stable, and what is tried beside it.
STABLE, CANARY = 2, 1
WEIGHT = 20
_NGINX = "nginx.ingress.kubernetes.io/canary"
_FOLDER, _INGRESS = "apps", "apps/ingress.yaml"
_PATIENCE = 120.0


def shops(**of_git: str) -> Any:
    """Make canaries that are well, each from a repository, with a policy that says this of Git."""

    async def make(on: Stage, where: str) -> list[Json]:
        await set_policy(on, where, FUNCTION, {"patience": "2s"}, **of_git)
        names = names_of(where)
        sources = [await follow(on, where, name, files(where, name)) for name in names]
        await eventually(lambda: _running(on.plane, where, names), f"the canaries of {where}", MADE, 0.5)
        for name in names:
            await on.plane.api.patch(f"{argo_cd.APPLICATIONS}/{name}", SKIPPED)
        return [
            {**await _canary(on.plane, where, name), SOURCE: source}
            for name, source in zip(names, sources, strict=True)
        ]

    return make


def files(where: str, name: str, tag: str = GOOD, weight: int = WEIGHT) -> dict[str, str | None]:
    """What a repository says: the canary is called as what brings it, so that each step is counted by one name."""
    return {
        f"{_FOLDER}/stable.yaml": _version(where, f"{name}-stable", name, "stable", STABLE, GOOD),
        f"{_FOLDER}/canary.yaml": _version(where, name, name, "canary", CANARY, tag),
        _INGRESS: _ingress(where, name, weight),
    }


def _version(where: str, name: str, app: str, track: str, replicas: int, tag: str) -> str:
    """One of the two, with a Service of its own; the new one is there alone, not beside its last."""
    labels = {"app": app, "track": track}
    made = release_body("Deployment", name, tag)
    made["metadata"] |= {"labels": labels, "namespace": where}
    made["spec"] |= {"replicas": replicas, "selector": {"matchLabels": labels}, "strategy": {"type": "Recreate"}}
    made["spec"]["template"]["metadata"]["labels"] = labels
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": where}}
    return yaml.safe_dump_all([made, {**service, "spec": {"selector": labels, "ports": [{"port": 80}]}}])


def _ingress(where: str, name: str, weight: int) -> str:
    """As people write it: with a comment, which has to stay."""
    return f"""# The canary of {name}.
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata:
  name: {name}
  namespace: {where}
  annotations:
    {_NGINX}: "true"
    {_NGINX}-weight: "{weight}"   # see the runbook
spec:
  ingressClassName: nginx
  rules:
    - host: {name}.example
      http:
        paths:
          - {{path: /, pathType: Prefix, backend: {{service: {{name: {name}, port: {{number: 80}}}}}}}}
"""


async def _canary(plane: ControlPlane, where: str, name: str) -> Json:
    return {**await plane.api.get(f"/apis/apps/v1/namespaces/{where}/deployments/{name}"), "kind": "Deployment"}


async def _running(plane: ControlPlane, where: str, names: list[str]) -> bool:
    found = [await rig.pods(plane, where, name) for name in names]
    return all(len(pods) == STABLE + CANARY and all(map(nodes.is_ready, pods)) for pods in found)


async def release(plane: ControlPlane, thing: Json) -> Json:
    """A canary whose new version, which came by Git, crashes again and again."""
    name, where = thing["metadata"]["name"], thing["metadata"]["namespace"]
    await plane.api.patch(f"{argo_cd.APPLICATIONS}/{name}", FOLLOWED)
    await thing[SOURCE].repository.commit(f"Try {BAD}", files(where, name, BAD))

    async def crashes() -> Json | None:
        failing = [pod for pod in await rig.pods(plane, where, name) if _restarts(pod) > 1 and not nodes.is_ready(pod)]
        return await _canary(plane, where, name) if failing else None

    ill: Json = await eventually(crashes, f"the crash of {where}/{name}", _PATIENCE, 0.3)
    return {**ill, SOURCE: thing[SOURCE]}


def _restarts(pod: Json) -> int:
    return max((one["restartCount"] for one in pod["status"].get("containerStatuses", [])), default=0)


async def taken_in_git(plane: ControlPlane, where: str, thing: Json) -> str:
    """Git gives the canary no traffic, and says nothing else anew; the cluster has it so, and what is stable serves."""
    name = thing["metadata"]["name"]
    wanted = files(where, name, BAD, 0)
    if {file: await thing[SOURCE].repository.file(file) for file in wanted} != wanted:
        return "Git does not say that and nothing else"
    return await _served(plane, where, name, CANARY)


async def taken_live(plane: ControlPlane, where: str, thing: Json) -> str:
    """Git is not listened to, and the canary has neither traffic nor pods."""
    name = thing["metadata"]["name"]
    body = await plane.api.get(f"{argo_cd.APPLICATIONS}/{name}")
    if body["spec"]["syncPolicy"]["automated"].get("enabled") is not False:
        return "its sync is not suspended"
    return await _served(plane, where, name, 0)


async def _served(plane: ControlPlane, where: str, name: str, replicas: int) -> str:
    body = await plane.api.get(f"/apis/networking.k8s.io/v1/namespaces/{where}/ingresses/{name}")
    weight = body["metadata"]["annotations"][f"{_NGINX}-weight"]
    left = (await _canary(plane, where, name))["spec"]["replicas"]
    if (weight, left) != ("0", replicas):
        return f"the canary has a weight of {weight} and {left} replicas"
    steady = [pod for pod in await rig.pods(plane, where, name) if pod["metadata"]["labels"]["track"] == "stable"]
    well = sum(map(nodes.is_ready, steady))
    return "" if well == len(steady) == STABLE else f"{well} of {len(steady)} pods of what is stable are Ready"


async def clear(on: Stage, where: str) -> None:
    """Remove the canaries, and what brings them first."""
    await clear_all(on, where)
    for name in names_of(where):
        await rig.remove(on.plane, f"/apis/apps/v1/namespaces/{where}/deployments/{name}-stable")


COMMIT = Scenario(
    FUNCTION,
    shops(mode="Commit"),
    release,
    announced,
    taken_in_git,
    variant="by a commit",
    evicts=nobody,
    twice=twice_in_git,
    act_within=ACT_WITHIN,
    needs=at_work,
    proxied=True,
    clear=clear,
)
PULL_REQUEST = replace(
    COMMIT, variant="by a pull request", prepare=shops(mode="PullRequest", forge="GitHub"), meanwhile=merge
)
SUSPENSION = replace(
    COMMIT,
    variant="beside Git",
    prepare=shops(mode="Suspend"),
    healed=taken_live,
    twice=untouched_git,
    writes=("patch applications", "patch deployments"),
    # That its sync is suspended is told for as long as it is.
    aside="/suspended/",
)
CANARY_SCENARIOS: tuple[Scenario, ...] = (COMMIT, PULL_REQUEST, SUSPENSION)
