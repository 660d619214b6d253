"""Git owns a bad release: undone live it is there again within seconds; reverted in Git it stays away."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from lab import git, gitops, manifests
from lab.cluster import ControlPlane
from lab.scenarios.place import Place
from lab.scenarios.rules import own_policy
from lab.scenarios.shop import FUNCTION, PATIENCE, Shop
from lab.scenarios.timeline import ScenarioFailed, say
from lab.scenarios.traffic import Count, traffic
from lab.scenarios.writes import written
from lab.toolchain import Toolchain
from lab.visitor import Visitor

GOOD, BAD, FOLDER, FILE = "v1", "v2-crash", "apps", "apps/shop.yaml"
ME = git.Account("kreflex", "secret")
_SECRET = "git-rollback"  # noqa: S105 - its name
_HOME = "kreflex-system"
_FLUX = f"system:serviceaccount:{gitops.NAMESPACE}:{gitops.ACCOUNT}"
# Longer than Flux waits between two looks.
_STILL = 8.0


@dataclass
class Owned:
    """A Deployment that Flux applies from a repository."""

    shop: Shop
    plane: ControlPlane
    repository: git.Repository

    async def commit(self, tag: str) -> str:
        """Release a version by a commit, and wait until Flux has applied it; the commit."""
        place = self.shop.place
        sha = await self.repository.commit(f"Release shop {tag}", files(self.shop, tag))
        place.timeline.add("fault" if "-" in tag else "release", f"commit {sha[:8]} releases shop {tag}")
        await gitops.applied(self.plane, place.namespace, self.shop.name, sha)
        place.timeline.add("flux", f"has applied {sha[:8]}")
        return sha


def files(shop: Shop, tag: str) -> dict[str, str | None]:
    """What Git says of a version."""
    body = shop.manifest(tag)
    body["metadata"]["namespace"] = shop.place.namespace
    return {FILE: yaml.safe_dump(body)}


async def play(place: Place) -> None:
    """Play both acts on one Deployment."""
    place.tells_pods = False
    async with owned(place) as mine:
        await place.until(lambda: mine.shop.runs(GOOD), f"shop at {GOOD} that is well", PATIENCE)
        say(f"waiting until {GOOD} has been well for so long that it is noted as healthy, with its commit")
        await mine.shop.remembered(GOOD)
        async with traffic(place, mine.shop.name) as count:
            since = datetime.now(UTC)
            # As if nobody watched: whoever undoes it by hand is alone.
            with place.silent(FUNCTION):
                bad = await mine.commit(BAD)
                await undone_live(mine, since)
            await reverted(mine, bad, since, count)


@asynccontextmanager
async def owned(place: Place) -> AsyncIterator[Owned]:
    """Serve a repository on loopback, let Flux apply it, and remove that afterwards."""
    assert place.home is not None, "this plays in the lab alone"
    if Toolchain().find(gitops.PROGRAM) is None:
        say("Flux' kustomize-controller is built from its source now, once; with two cores that takes some minutes")
    with TemporaryDirectory(prefix="kreflex-git-") as folder:
        async with git.serving(Path(folder), ME) as server, Visitor(place.home) as plane:
            say("installing Flux: kustomize-controller is its own; source-controller, which can't be built, is played")
            await gitops.install(plane)
            await manifests.apply(plane.api, [_login()])
            shop = Shop(place, "Deployment")
            async with gitops.running(plane), own_policy(place, plane.api, git=_rules(server)):
                repository = await server.make("team/shop", files(shop, GOOD))
                await gitops.follow(plane, place.namespace, shop.name, repository, ME, FOLDER)
                try:
                    yield Owned(shop, plane, repository)
                finally:
                    await gitops.remove(plane, place.namespace, shop.name)


def _login() -> manifests.Manifest:
    login = {"username": ME.name, "password": ME.password}
    about = {"name": _SECRET, "namespace": _HOME}
    return {"apiVersion": "v1", "kind": "Secret", "metadata": about, "stringData": login}


def _rules(server: git.Server) -> dict[str, Any]:
    return {"mode": "Commit", "secret": _SECRET, "repositories": [server.url], "within": "1m"}


async def undone_live(mine: Owned, since: datetime) -> None:
    """Undo it by hand, and see Flux apply the bad version again."""
    shop, place = mine.shop, mine.shop.place
    begun = datetime.now(UTC)
    place.timeline.add("person", f"undoes it by hand: {GOOD} is written into the cluster")
    await shop.set_image(GOOD)
    seconds = 0.0
    while await shop.image() != BAD:
        seconds = (datetime.now(UTC) - begun).total_seconds()
        if seconds > PATIENCE:
            raise ScenarioFailed("what was undone by hand was not applied again")
        await asyncio.sleep(0.1)
    place.timeline.add("flux", f"applies {BAD} again {seconds:.1f} s later: undone live it does not hold")
    place.timeline.tell("A bad release that Git owns, undone live", since)
    again = written(shop.log, begun, _FLUX, "deployments", namespace=place.namespace)
    if not any(one.code < 300 for one in again):
        raise ScenarioFailed("the audit log has no write of Flux after the undo")


async def reverted(mine: Owned, bad: str, since: datetime, count: Count) -> None:
    """Wait until rollback has reverted the commit and Flux has applied that, tell it, and check that it holds."""
    shop, place = mine.shop, mine.shop.place
    begun = datetime.now(UTC)
    await place.until(lambda: bool(shop.records(since, outcome="applied")), "rollback", PATIENCE)
    await place.until(lambda: shop.runs(GOOD), f"shop that runs {GOOD} again", PATIENCE)
    place.timeline.add("recovered", f"all {shop.replicas} pods of shop run {GOOD} again, and are Ready")
    place.timeline.add("client", str(count))
    await place.until(lambda: bool(shop.records(since, phase="Done")), "verdict", PATIENCE)
    await asyncio.sleep(_STILL)
    shop.tell_what_was_logged(since)
    (revert, release, *_) = await mine.repository.log()
    place.timeline.tell("The same, reverted in Git: it holds", begun)
    print(f"\ncommit {revert.sha} by {revert.author}\n\n{revert.message}", flush=True)
    record = shop.records(since, phase="Done")[0]
    if record["status"].get("verdict") != "Recovered":
        raise ScenarioFailed(f"the verdict is {record['status'].get('verdict')}")
    if (release.sha, revert.parents) != (bad, (bad,)) or record["metadata"]["name"] not in revert.message:
        raise ScenarioFailed(f"{revert.sha} is not a revert of {bad} that names its record")
    if await shop.image() != GOOD or not shop.runs(GOOD):
        raise ScenarioFailed(f"{GOOD} did not hold")
    if shop.writes(since):
        raise ScenarioFailed(f"rollback wrote live what Git owns: {shop.writes(since)[0]}")
