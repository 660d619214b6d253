"""What Git manages on the lab: Flux, and the stand-in for Argo CD, each with a real repository and real pushes."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from lab import argo_cd, git, gitops, nodes
from lab.api import eventually
from lab.certificates import Authority
from lab.cluster import ControlPlane
from tests import kit

Json = dict[str, Any]
WRITER = git.Account("kreflex", "may-write")
READER = git.Account("reader", "may-read", writes=False)
PLAIN, OVERLAY = "apps/shop", "overlays/production"


def release(image: str) -> dict[str, str]:
    """The files of a release: a Deployment, and an overlay of kustomize on it that sets the image."""
    body = kit.deployment("shop", 1, containers=[{"name": "app", "image": image}])
    name, _, tag = image.partition(":")
    overlay = {"resources": ["../../base"], "images": [{"name": name, "newTag": tag}]}
    return {
        f"{PLAIN}/deployment.yaml": yaml.safe_dump(body),
        "base/deployment.yaml": yaml.safe_dump(body),
        "base/kustomization.yaml": yaml.safe_dump({"resources": ["deployment.yaml"]}),
        f"{OVERLAY}/kustomization.yaml": yaml.safe_dump(overlay),
    }


@dataclass
class Shop:
    """A namespace whose Deployment comes from a repository, and a working copy of that."""

    plane: ControlPlane
    name: str
    repository: git.Repository
    copy: Path

    @property
    def path(self) -> str:
        return f"/apis/apps/v1/namespaces/{self.name}/deployments/shop"

    async def head(self) -> str:
        return (await self.repository.branches())[git.MAIN]

    async def release(self, image: str) -> str:
        """Commit a release in the working copy, and push it; its commit."""
        for file, content in release(image).items():
            (self.copy / file).write_text(content)
        await git.git("commit", "--quiet", "-a", "-m", f"Release {image}", directory=self.copy)
        return await self.push()

    async def revert(self) -> str:
        """Revert the newest commit, and push that; its commit."""
        await git.git("revert", "--no-edit", "HEAD", directory=self.copy)
        return await self.push()

    async def push(self) -> str:
        await git.git("push", "--quiet", directory=self.copy)
        return await self.head()

    async def deployment(self) -> Json:
        return await self.plane.api.get(self.path)

    async def image(self) -> str:
        body = await self.deployment()
        return str(body["spec"]["template"]["spec"]["containers"][0]["image"])

    async def set_image(self, image: str) -> None:
        """Change the image in the cluster, as `kubectl set image` does."""
        kit.kubectl(self.plane, "set", "image", "deployment/shop", f"app={image}", f"--namespace={self.name}")

    async def becomes(self, image: str) -> None:
        async def found() -> bool:
            return await self.image() == image

        await eventually(found, f"{image} in {self.name}")

    async def stays(self, image: str, seconds: float) -> None:
        """Watch that nothing but this image is there for so long."""
        with pytest.raises(Exception, match="not within"):
            await eventually(lambda: self._is_other_than(image), "another image", seconds)

    async def _is_other_than(self, image: str) -> bool:
        return await self.image() != image


@pytest.fixture(scope="module")
async def server(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[git.Server]:
    async with git.serving(tmp_path_factory.mktemp("git"), WRITER, READER) as running:
        yield running


@pytest.fixture
async def shop(plane: ControlPlane, server: git.Server, tmp_path: Path) -> Shop:
    """A repository with a first release, that nothing applies yet."""
    name = f"t-{uuid.uuid4().hex[:8]}"
    await plane.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    repository = await server.make(f"team/{name}", release("shop:1"))
    await git.git("clone", "--quiet", WRITER.in_url(repository.url), tmp_path / "copy")
    return Shop(plane, name, repository, tmp_path / "copy")


@pytest.fixture(scope="module")
async def flux(plane: ControlPlane) -> AsyncIterator[None]:
    await gitops.install(plane)
    async with gitops.running(plane):
        yield


@pytest.fixture(scope="module")
async def argo(plane: ControlPlane) -> AsyncIterator[None]:
    await argo_cd.install(plane)
    async with argo_cd.running(plane, self_heal_after=2.0):
        yield


@pytest.fixture
async def by_flux(flux: None, shop: Shop) -> AsyncIterator[Shop]:
    """A shop that Flux has applied once."""
    await gitops.follow(shop.plane, shop.name, "shop", shop.repository, READER, PLAIN)
    await gitops.applied(shop.plane, shop.name, "shop", await shop.head())
    yield shop
    await gitops.remove(shop.plane, shop.name, "shop")


@pytest.fixture
async def by_argo(argo: None, shop: Shop) -> AsyncIterator[Shop]:
    """A shop that the stand-in for Argo CD has synced once."""
    await argo_cd.follow(shop.plane, shop.name, shop.name, shop.repository, READER, PLAIN)
    await argo_cd.synced(shop.plane, shop.name, await shop.head())
    yield shop
    await argo_cd.remove(shop.plane, shop.name)


async def test_flux_says_whose_a_deployment_is_and_from_which_commit(by_flux: Shop) -> None:
    first = await by_flux.head()
    body = await by_flux.deployment()
    kustomization = await by_flux.plane.api.get(gitops.kustomization_path(by_flux.name, "shop"))
    source = await by_flux.plane.api.get(gitops.source_path(by_flux.name, "shop"))

    assert body["metadata"]["labels"] == {
        "app": "shop",
        "kustomize.toolkit.fluxcd.io/name": "shop",
        "kustomize.toolkit.fluxcd.io/namespace": by_flux.name,
    }
    assert ("kustomize-controller", "Apply") in managers(body)
    status = kustomization["status"]
    assert status["lastAppliedRevision"] == status["lastAttemptedRevision"] == f"main@sha1:{first}"
    assert status["inventory"] == {"entries": [{"id": f"{by_flux.name}_shop_apps_Deployment", "v": "v1"}]}
    assert nodes.condition(kustomization, "Ready") == "True"
    assert source["status"]["artifact"]["revision"] == f"main@sha1:{first}"
    assert nodes.condition(source, "Ready") == "True"


async def test_flux_undoes_what_is_changed_live(by_flux: Shop) -> None:
    await by_flux.set_image("shop:0")
    await by_flux.becomes("shop:1")


async def test_flux_applies_a_release_and_its_revert(by_flux: Shop) -> None:
    bad = await by_flux.release("shop:2")
    await gitops.applied(by_flux.plane, by_flux.name, "shop", bad)
    assert await by_flux.image() == "shop:2"

    good = await by_flux.revert()
    kustomization = await gitops.applied(by_flux.plane, by_flux.name, "shop", good)
    assert await by_flux.image() == "shop:1"
    assert kustomization["status"]["lastAppliedRevision"] == f"main@sha1:{good}"


async def test_a_suspended_flux_leaves_a_live_change_until_it_is_resumed(by_flux: Shop) -> None:
    await gitops.suspend(by_flux.plane, by_flux.name, "shop")
    await by_flux.set_image("shop:0")
    await by_flux.release("shop:2")
    await by_flux.stays("shop:0", 12)

    await gitops.resume(by_flux.plane, by_flux.name, "shop")
    await by_flux.becomes("shop:2")


async def test_flux_applies_an_overlay_of_kustomize(flux: None, shop: Shop) -> None:
    await gitops.follow(shop.plane, shop.name, "shop", shop.repository, READER, OVERLAY)
    await gitops.applied(shop.plane, shop.name, "shop", await shop.release("shop:7"))
    assert await shop.image() == "shop:7"
    await gitops.remove(shop.plane, shop.name, "shop")


async def test_flux_says_that_its_credentials_are_refused(flux: None, shop: Shop) -> None:
    await gitops.follow(shop.plane, shop.name, "shop", shop.repository, git.Account("reader", "wrong"), PLAIN)

    async def refused() -> Json | None:
        body = await shop.plane.api.get(gitops.source_path(shop.name, "shop"))
        return body if nodes.condition(body, "Ready") == "False" else None

    body = await eventually(refused, "a refusal")
    assert nodes.condition(body, "FetchFailed") == "True"
    assert {one["reason"] for one in body["status"]["conditions"]} == {"AuthenticationFailed"}
    assert "wrong" not in str(body["status"])
    await gitops.remove(shop.plane, shop.name, "shop")


async def test_flux_trusts_the_authority_in_its_secret(flux: None, shop: Shop, tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with git.serving(tmp_path / "server", READER, pair=authority.issue("git")) as safe:
        repository = await safe.make("team/shop", release("shop:5"))
        trust = authority.pem.decode()
        await gitops.follow(shop.plane, shop.name, "shop", repository, READER, PLAIN, authority=trust)
        await gitops.applied(shop.plane, shop.name, "shop", (await repository.branches())["main"])
        assert await shop.image() == "shop:5"
        await gitops.remove(shop.plane, shop.name, "shop")


async def test_argo_cd_says_whose_a_deployment_is_and_from_which_commit(by_argo: Shop) -> None:
    first = await by_argo.head()
    body = await by_argo.deployment()
    application = await argo_cd.synced(by_argo.plane, by_argo.name, first)
    source = {"repoURL": by_argo.repository.url, "targetRevision": "main", "path": PLAIN}

    mark = f"{by_argo.name}:apps/Deployment:{by_argo.name}/shop"
    assert body["metadata"]["annotations"][argo_cd.TRACKING] == mark
    assert (argo_cd.MANAGER, "Apply") in managers(body)
    status = application["status"]
    (entry,) = status["history"]
    assert (entry["id"], entry["revision"], entry["source"]) == (0, first, source)
    assert status["sync"]["comparedTo"]["source"] == source
    state = status["operationState"]
    assert (state["phase"], state["syncResult"]["revision"]) == ("Succeeded", first)
    place = {"group": "apps", "kind": "Deployment", "name": "shop", "version": "v1", "namespace": by_argo.name}
    assert status["resources"] == [{**place, "status": "Synced"}]


async def test_argo_cd_heals_what_is_changed_live_and_its_history_says_nothing_of_it(by_argo: Shop) -> None:
    first = await by_argo.head()
    await by_argo.set_image("shop:0")
    await by_argo.becomes("shop:1")

    async def told() -> Json | None:
        status: Json = (await argo_cd.synced(by_argo.plane, by_argo.name, first))["status"]
        return status if "resources" in status["operationState"]["operation"]["sync"] else None

    status = await eventually(told, "the self-heal in the status")
    assert status["operationState"]["operation"]["sync"] == {
        "revision": first,
        "resources": [{"group": "apps", "kind": "Deployment", "name": "shop"}],
        "autoHealAttemptsCount": 1,
    }
    assert [entry["revision"] for entry in status["history"]] == [first]


async def test_argo_cd_syncs_a_release_and_its_revert(by_argo: Shop) -> None:
    first = await by_argo.head()
    bad = await by_argo.release("shop:2")
    await argo_cd.synced(by_argo.plane, by_argo.name, bad)
    assert await by_argo.image() == "shop:2"

    good = await by_argo.revert()
    application = await argo_cd.synced(by_argo.plane, by_argo.name, good)
    assert await by_argo.image() == "shop:1"
    history = [(entry["id"], entry["revision"]) for entry in application["status"]["history"]]
    assert history == [(0, first), (1, bad), (2, good)]


async def test_argo_cd_tries_a_commit_that_is_refused_once_and_says_why(by_argo: Shop) -> None:
    first = await by_argo.head()
    broken = kit.deployment("shop", -1, containers=[{"name": "app", "image": "shop:2"}])
    bad = await by_argo.repository.commit("Break it", {f"{PLAIN}/deployment.yaml": yaml.safe_dump(broken)})

    async def failed() -> Json | None:
        status: Json = (await by_argo.plane.api.get(f"{argo_cd.APPLICATIONS}/{by_argo.name}"))["status"]
        return status if status["operationState"]["phase"] == "Failed" else None

    status = await eventually(failed, "a failed sync")
    await asyncio.sleep(3)  # Longer than self-heal would wait.
    again = await failed()

    assert again is not None
    assert again["operationState"] == status["operationState"]
    assert again["operationState"]["syncResult"]["revision"] == again["sync"]["revision"] == bad
    assert "must be greater than or equal to 0" in again["operationState"]["message"]
    assert [entry["revision"] for entry in again["history"]] == [first]
    assert await by_argo.image() == "shop:1"


async def test_without_automated_sync_argo_cd_leaves_a_live_change_until_it_is_resumed(by_argo: Shop) -> None:
    await argo_cd.suspend(by_argo.plane, by_argo.name)
    await by_argo.set_image("shop:0")
    await by_argo.release("shop:2")
    await by_argo.stays("shop:0", 5)
    application = await by_argo.plane.api.get(f"{argo_cd.APPLICATIONS}/{by_argo.name}")
    assert application["status"]["sync"]["status"] == "OutOfSync"

    await argo_cd.resume(by_argo.plane, by_argo.name)
    await by_argo.becomes("shop:2")


async def test_without_self_heal_argo_cd_leaves_a_live_change_until_the_next_commit(argo: None, shop: Shop) -> None:
    await argo_cd.follow(shop.plane, shop.name, shop.name, shop.repository, READER, OVERLAY, automated={"prune": False})
    await argo_cd.synced(shop.plane, shop.name, await shop.head())
    await shop.set_image("shop:0")
    await shop.stays("shop:0", 5)

    await argo_cd.synced(shop.plane, shop.name, await shop.release("shop:2"))
    assert await shop.image() == "shop:2"
    await argo_cd.remove(shop.plane, shop.name)


def managers(body: Json) -> list[tuple[str, str]]:
    """Who has written an object, and how."""
    return [(entry["manager"], entry["operation"]) for entry in body["metadata"]["managedFields"]]
