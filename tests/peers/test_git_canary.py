"""canary-aborter where Git owns the weight: Flux' own controller, the stand-in for Argo CD, and a real repository."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from functions.canary_aborter import main as aborter
from kreflex import admission, rights
from kreflex.gitops import SYNC_SUSPENDED
from kreflex.reflex import Arc, Result
from kreflex.serve import REFLEXES
from kreflex.signals import Due, WorkloadSignal
from kreflex.weights import NGINX, NGINX_WEIGHT
from lab import argo_cd, forges, git, gitops, manifests, workloads
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.values import CannedMetrics

HOME, NAME = "kreflex-system", "canary-aborter"
ME = git.Account("kreflex", "secret")
SETTINGS = aborter.CanaryAborterSettings(settle="1s")  # type: ignore[arg-type]
REFLEX = replace(REFLEXES[NAME], settings=SETTINGS)
COMPARISON = {"requests": 'requests{pod=~"{pods}"}', "errors": 'errors{pod=~"{pods}"}'}
INGRESS = "shop/canary-ingress.yaml"


@dataclass
class Shop:
    """Two Deployments and a canary Ingress that come from a repository, and the function that looks after them."""

    here: kit.Place
    arc: Arc[Any]
    forge: forges.Forge
    repository: git.Repository
    by: str

    def path(self, group: str, plural: str) -> str:
        return f"/apis/{group}/v1/namespaces/{self.here.name}/{plural}/shop-canary"

    @property
    def ingress(self) -> str:
        return self.path("networking.k8s.io", "ingresses")

    @property
    def deployment(self) -> str:
        return self.path("apps", "deployments")

    async def weight(self) -> int:
        body = await self.here.plane.api.find(self.ingress)
        return int(body["metadata"]["annotations"][NGINX_WEIGHT]) if body else -1

    async def replicas(self) -> int:
        body = await self.here.plane.api.find(self.deployment)
        return int(body["spec"]["replicas"]) if body else -1

    async def has(self, weight: int, replicas: int) -> None:
        async def found() -> bool:
            return (await self.weight(), await self.replicas()) == (weight, replicas)

        await eventually(found, f"a weight of {weight} and {replicas} replicas", 60)

    async def told(self) -> Result:
        """Go one round of the waker: it finds the canary, and its numbers are looked at."""
        return await self.arc.handle(WorkloadSignal("apps/v1", "Deployment", self.here.name, "shop-canary"))

    async def record(self, **status: str) -> kit.Json:
        """Call for the record, as events and the waker do, until its status is like this."""

        async def found() -> kit.Json | None:
            await self.told()
            for record in await self.here.records():
                await self.arc.handle(Due(self.here.name, record["metadata"]["name"]))
            fitting = [one for one in await self.here.records() if status.items() <= one.get("status", {}).items()]
            return fitting[0] if fitting else None

        record: kit.Json = await eventually(found, f"a record with {status}", 90, pause=0.5)
        return record

    def steps(self, record: kit.Json) -> list[str]:
        return [step["action"] for step in record["status"]["steps"]]

    async def policy(self, **rules: str) -> None:
        named = {"secret": "git-canaries", "repositories": [self.forge.server.url]}
        releases = {"canary": COMPARISON, "git": {**named, "within": "60s", **rules}}
        await self.here.set_policy(functions=[NAME], releases=releases, proof="1s", proveWithin="60s")

    async def syncs(self) -> bool:
        """Whether Git's controller is at work."""
        api = self.here.plane.api
        if self.by == "Flux":
            return not (await api.get(gitops.kustomization_path(self.here.name, "shop")))["spec"].get("suspend")
        body = await api.get(f"{argo_cd.APPLICATIONS}/{self.here.name}")
        return body["spec"]["syncPolicy"]["automated"].get("enabled") is not False

    async def resume(self) -> None:
        if self.by == "Flux":
            await gitops.resume(self.here.plane, self.here.name, "shop")
        else:
            resumed = {"spec": {"syncPolicy": {"automated": {"enabled": True}}}}
            await self.here.plane.api.patch(f"{argo_cd.APPLICATIONS}/{self.here.name}", resumed)


def deployment(name: str, track: str, replicas: int, namespace: str) -> str:
    labels = {"app": "shop", "track": track}
    body = workloads.deployment(name, replicas)
    body["metadata"] |= {"labels": labels, "namespace": namespace}
    body["spec"]["selector"] = {"matchLabels": labels}
    body["spec"]["template"]["metadata"]["labels"] = labels
    service = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": namespace}}
    spec = {"selector": labels, "ports": [{"port": 80}]}
    return yaml.safe_dump_all([body, {**service, "spec": spec}])


def ingress(namespace: str, weight: int) -> str:
    """Write it as people do: with comments, and spaces that no program would write."""
    return f"""# The canary of the shop.
apiVersion: networking.k8s.io/v1
kind:   Ingress
metadata:
  name: shop-canary
  namespace: {namespace}
  annotations:
    {NGINX}: "true"
    {NGINX_WEIGHT}: "{weight}"   # raised by the team, see the runbook
spec:
  ingressClassName: nginx
  rules:
    - host: shop.example
      http:
        paths:
          - {{path: /, pathType: Prefix, backend: {{service: {{name: shop-canary, port: {{number: 80}}}}}}}}
"""


def files(namespace: str, weight: int = 10) -> dict[str, str | None]:
    return {
        "shop/stable.yaml": deployment("shop", "stable", 3, namespace),
        "shop/canary.yaml": deployment("shop-canary", "canary", 1, namespace),
        INGRESS: ingress(namespace, weight),
    }


@pytest.fixture(scope="module")
async def forge(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[forges.Forge]:
    login = {"stringData": {"username": ME.name, "password": ME.password}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "git-canaries", "namespace": HOME}, **login}
    await manifests.apply(installed.api, [secret])
    async with forges.serving(Path(tmp_path_factory.mktemp("git")), ME) as forge:
        yield forge


@pytest.fixture(scope="module")
async def controllers(installed: ControlPlane) -> AsyncIterator[None]:
    await gitops.install(installed)
    await argo_cd.install(installed)
    allowed = rights.rights_of(REFLEX)
    await manifests.apply(installed.api, [*rights.manifests(allowed), *admission.policy_of(allowed)])
    async with gitops.running(installed), argo_cd.running(installed, 1):
        yield


@pytest.fixture(params=["Flux", "Argo CD"])
async def shop(
    request: pytest.FixtureRequest, installed: ControlPlane, controllers: None, forge: forges.Forge, here: kit.Place
) -> AsyncIterator[Shop]:
    repository = await forge.server.make(f"team/{here.name}", files(here.name))
    if request.param == "Flux":
        await gitops.follow(installed, here.name, "shop", repository, ME, "shop")
    else:
        await argo_cd.follow(installed, here.name, here.name, repository, ME, "shop")
    async with kit.arc_of(installed, REFLEX) as arc:
        arc.world = replace(arc.world, metrics=CannedMetrics(200, 40, 1800, 4))
        made = Shop(here, arc, forge, repository, request.param)
        await made.has(10, 1)
        await here.ready_pods("shop", 4)
        yield made
    if request.param == "Flux":
        await gitops.remove(installed, here.name, "shop")
    else:
        await argo_cd.remove(installed, here.name)


async def test_what_is_written_live_beside_git_is_undone(shop: Shop) -> None:
    await shop.here.plane.api.patch(shop.ingress, {"metadata": {"annotations": {NGINX_WEIGHT: "0"}}})
    await shop.has(10, 1)


async def test_the_weight_goes_to_zero_in_git_and_all_else_in_the_file_stays_as_it_was(shop: Shop) -> None:
    await shop.policy(mode="Commit")
    before = (await shop.repository.branches())[git.MAIN]
    record = await shop.record(verdict="Recovered")
    assert shop.steps(record) == ["PushEdit", "RequestSync"]
    (commit, *_) = await shop.repository.log()
    assert commit.parents == (before,)
    changed = {name: await shop.repository.file(name) for name in files("")}
    assert changed == files(shop.here.name, weight=0)
    assert f"- {INGRESS}: metadata.annotations.{NGINX_WEIGHT} of Ingress" in commit.message
    assert f"Kreflex-Record: {shop.here.name}/{record['metadata']['name']}" in commit.message
    # What has no traffic harms nobody, and Git says that it is there.
    await shop.has(0, 1)


async def test_a_pull_request_is_waited_for_and_the_record_says_that_the_traffic_is_not_off_yet(shop: Shop) -> None:
    await shop.policy(mode="PullRequest", forge="Gitea", api=f"{shop.forge.server.url}/api/v1")
    waiting = await shop.record(outcome="deferred")
    ref = f"Ingress {shop.here.name}/shop-canary"
    assert f"waits for people: until it is merged, {ref} has " in waiting["status"]["reason"]
    assert await shop.weight() == 10
    pull = next(one for one in shop.forge.pulls if one.repository == shop.repository)
    await shop.forge.merge(pull)
    record = await shop.record(verdict="Recovered")
    assert shop.steps(record)[0] == "ProposeEdit"
    await shop.has(0, 1)


async def test_with_its_sync_suspended_it_is_taken_live_and_said_until_somebody_resumes_it(shop: Shop) -> None:
    await shop.policy(mode="Suspend")
    before = await shop.repository.log()
    record = await shop.record(verdict="Recovered")
    assert shop.steps(record) == [
        "NoteSuspendedShare",
        "NoteSuspendedShare Ingress/shop-canary",
        "SuspendSync",
        "TakeTraffic Ingress/shop-canary",
        "ScaleCanary",
    ]
    await asyncio.sleep(6)
    assert (await shop.weight(), await shop.replicas(), await shop.syncs()) == (0, 0, False)
    assert await shop.repository.log() == before
    told = await shop.record(guard="SyncSuspended")
    assert "Mend Git, where the canary's traffic still is, and then:" in told["status"]["reason"]

    await shop.repository.commit("Take the canary back", {INGRESS: ingress(shop.here.name, 0)})
    await shop.resume()
    name = told["metadata"]["name"]

    async def forgotten() -> bool:
        await shop.told()
        bodies = [await shop.here.plane.api.get(path) for path in (shop.deployment, shop.ingress)]
        return not any(SYNC_SUSPENDED in body["metadata"]["annotations"] for body in bodies)

    await eventually(forgotten, "the notes gone", 60, pause=0.5)

    async def settled() -> str | None:
        await shop.arc.handle(Due(shop.here.name, name))
        (verdict,) = [
            one["status"].get("verdict") for one in await shop.here.records() if one["metadata"]["name"] == name
        ]
        return str(verdict) if verdict else None

    assert await eventually(settled, "a verdict", 60, pause=0.5) == "Recovered"


async def test_by_the_policy_it_is_left_to_people(shop: Shop) -> None:
    await shop.policy(mode="Refuse")
    record = await shop.record(outcome="refused")
    assert record["status"]["guard"] == "Git"
    assert (
        f"Ingress {shop.here.name}/shop-canary, Deployment {shop.here.name}/shop-canary in Git"
        in (record["status"]["reason"])
    )
    await shop.has(10, 1)
