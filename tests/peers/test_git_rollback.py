"""rollback where Git owns a release: Flux' own controller, the stand-in for Argo CD, and a real repository."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from functions.rollback import main as rollback
from kreflex.reflex import Arc, Result
from kreflex.serve import REFLEXES
from kreflex.signals import Due, WorkloadSignal
from lab import argo_cd, forges, git, gitops, manifests, workloads
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit

assert rollback.main is not None
HOME = "kreflex-system"
ME = git.Account("kreflex", "secret")
RELEASES = {"changeWindow": "10m", "patience": "3s", "healthyFor": "1s"}


@dataclass
class Shop:
    """A Deployment that comes from a repository, and the function that looks after it."""

    here: kit.Place
    arc: Arc[Any]
    forge: forges.Forge
    repository: git.Repository

    @property
    def path(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.here.name}/deployments/shop"

    async def release(self, tag: str, branch: str = git.MAIN) -> str:
        """Commit a version, and wait until it is in the cluster."""
        commit = await self.repository.commit(f"Release shop {tag}", files(self.here.name, tag), branch)
        await self.runs(tag)
        return commit

    async def runs(self, tag: str) -> None:
        async def found() -> bool:
            body = await self.here.plane.api.find(self.path)
            image = body["spec"]["template"]["spec"]["containers"][0]["image"] if body else ""
            return bool(image.endswith(f":{tag}"))

        await eventually(found, f"shop:{tag}", 60)

    async def told(self) -> Result:
        """Tell the function of the workload, as alerts do."""
        return await self.arc.handle(WorkloadSignal("apps/v1", "Deployment", self.here.name, "shop", summary="told"))

    async def remembered(self) -> str:
        """Have the version remembered as healthy; which revision of Git it came from."""

        async def found() -> str | None:
            await self.told()
            path = f"/apis/kreflex.dev/v1alpha1/namespaces/{self.here.name}/releasehistories/deployment-shop"
            body = await self.here.plane.api.find(path)
            return body["spec"]["revisions"][0].get("source") if body else None

        source: str = await eventually(found, "a memory of where it came from", 90, pause=0.5)
        return source

    async def record(self, **status: str) -> kit.Json:
        """Call for the record, as events and the waker do, until its status is like this."""

        async def found() -> kit.Json | None:
            await self.told()
            records = [one for one in await self.here.records() if "/" not in one["metadata"]["name"]]
            for record in records:
                await self.arc.handle(Due(self.here.name, record["metadata"]["name"]))
            fitting = [one for one in await self.here.records() if status.items() <= one.get("status", {}).items()]
            return fitting[0] if fitting else None

        record: kit.Json = await eventually(found, f"a record with {status}", 90, pause=0.5)
        return record

    def steps(self, record: kit.Json) -> list[str]:
        return [step["action"] for step in record["status"]["steps"]]

    async def policy(self, **rules: str) -> None:
        named = {"secret": "git-rollback", "repositories": [self.forge.server.url]}
        releases = {**RELEASES, "git": {**named, "within": "60s", **rules}}
        await self.here.policy(releases=releases, proof="1s", proveWithin="60s")


def files(namespace: str, tag: str) -> dict[str, str | None]:
    spec = workloads.pod_spec()
    spec["terminationGracePeriodSeconds"] = 0
    spec["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/", "port": 80}}
    body = workloads.deployment("shop", 2, spec=workloads.release(tag, spec))
    body["spec"]["template"]["metadata"]["annotations"] = {f"{workloads.PREFIX}speed": "100"}
    body["metadata"]["namespace"] = namespace
    return {"apps/shop.yaml": yaml.safe_dump(body)}


@pytest.fixture(scope="module")
async def forge(installed: ControlPlane, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[forges.Forge]:
    login = {"stringData": {"username": ME.name, "password": ME.password}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "git-rollback", "namespace": HOME}, **login}
    await manifests.apply(installed.api, [secret])
    async with forges.serving(Path(tmp_path_factory.mktemp("git")), ME) as forge:
        yield forge


@pytest.fixture(scope="module")
async def controllers(installed: ControlPlane) -> AsyncIterator[None]:
    await gitops.install(installed)
    await argo_cd.install(installed)
    async with gitops.running(installed), argo_cd.running(installed, 1):
        yield


@pytest.fixture(params=["Flux", "Argo CD"])
async def shop(
    request: pytest.FixtureRequest, installed: ControlPlane, controllers: None, forge: forges.Forge, here: kit.Place
) -> AsyncIterator[Shop]:
    repository = await forge.server.make(f"team/{here.name}", files(here.name, "1"))
    if request.param == "Flux":
        await gitops.follow(installed, here.name, "shop", repository, ME, "apps")
    else:
        await argo_cd.follow(installed, here.name, here.name, repository, ME, "apps")
    async with kit.arc_of(installed, REFLEXES["rollback"]) as arc:
        made = Shop(here, arc, forge, repository)
        await made.runs("1")
        yield made
    if request.param == "Flux":
        await gitops.remove(installed, here.name, "shop")
    else:
        await argo_cd.remove(installed, here.name)


async def test_a_bad_release_is_taken_back_in_git_and_healthy_again_without_people(shop: Shop) -> None:
    await shop.policy(mode="Commit")
    good = (await shop.repository.branches())[git.MAIN]
    assert await shop.remembered() == f"git:{good}"
    bad = await shop.release("2-crash")
    record = await shop.record(verdict="Recovered")
    assert shop.steps(record) == ["PushRevert", "RequestSync"]
    (revert, release, *_) = await shop.repository.log()
    assert (release.sha, revert.parents) == (bad, (bad,))
    assert f"Kreflex-Record: {shop.here.name}/{record['metadata']['name']}" in revert.message
    assert await shop.repository.file("apps/shop.yaml") == files(shop.here.name, "1")["apps/shop.yaml"]
    await shop.runs("1")


async def test_the_same_version_again_is_left_to_people(shop: Shop) -> None:
    await shop.policy(mode="Commit")
    await shop.remembered()
    await shop.release("2-crash")
    await shop.record(verdict="Recovered")
    await shop.release("2-crash")
    record = await shop.record(outcome="refused")
    assert record["status"]["guard"] == "SameVersionAgain"
    assert len(await shop.repository.log()) == 4


async def test_a_pull_request_is_waited_for_and_then_it_is_healthy(shop: Shop) -> None:
    await shop.policy(mode="PullRequest", forge="Gitea", api=f"{shop.forge.server.url}/api/v1")
    await shop.remembered()
    await shop.release("2-crash")

    async def proposed() -> forges.Pull | None:
        await shop.told()
        return next((one for one in shop.forge.pulls if one.repository == shop.repository), None)

    pull: forges.Pull = await eventually(proposed, "a pull request", 60, pause=0.5)
    waiting = await shop.record(outcome="deferred")
    assert "waits for people" in waiting["status"]["reason"]
    await shop.forge.merge(pull)
    record = await shop.record(verdict="Recovered")
    assert shop.steps(record)[0] == "ProposeRevert"
    await shop.runs("1")


async def test_with_its_sync_suspended_it_is_rolled_back_live_and_said_until_somebody_resumes_it(shop: Shop) -> None:
    await shop.policy(mode="Suspend")
    await shop.remembered()
    bad = await shop.release("2-crash")
    record = await shop.record(verdict="Recovered")
    assert shop.steps(record) == ["NoteSuspension", "SuspendSync", "RevertTemplate"]
    await shop.runs("1")
    assert (await shop.repository.log())[0].sha == bad
    told = await shop.record(guard="SyncSuspended")
    assert "Mend Git, where the bad release still is" in told["status"]["reason"]
