"""Rollback by Git in the fault matrix: a commit, a pull request that a person merges, and a rollback beside Git.

Each workload comes from a repository of its own on a real Git server, brought by the lab's stand-in for Argo CD. What
the function does at the Git server and at the forge goes through its fault proxy, like its calls of the API server.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from bench import rig
from bench.release_scenarios import BAD, FUNCTION, GOOD, RELEASES, ROLLBACK, clear, crashing, running, told, unwell
from bench.release_scenarios import body as release_body
from bench.rig import Json
from bench.scenarios import Scenario
from bench.stage import Event, Stage
from lab import argo_cd, forges, git, manifests
from lab.api import eventually
from lab.cluster import ControlPlane

# As many as fall ill in one case: three blows, and once more without any.
COUNT = 4
ME = git.Account("kreflex", "secret")
_LOGIN = "git-login"
# Under which key of a workload stands where it comes from.
SOURCE, _FILE = "source", "apps/shop.yaml"
MADE, _OPENED = 120.0, 240.0
# git's work has to fit into an attempt, which keeps three seconds for itself.
ACT_WITHIN = 20.0
SKIPPED = {"metadata": {"annotations": {argo_cd.SKIP: "true"}}}
FOLLOWED = {"metadata": {"annotations": {argo_cd.SKIP: None}}}
_RECORD = "Kreflex-Record:"


@dataclass(frozen=True)
class Source:
    """Where a workload comes from."""

    repository: git.Repository
    forge: forges.Forge

    @property
    def pulls(self) -> list[forges.Pull]:
        return [one for one in self.forge.pulls if one.repository == self.repository]


@asynccontextmanager
async def at_work(on: Stage) -> AsyncIterator[None]:
    """Run a Git server with a forge, and the stand-in for Argo CD."""
    login = {"stringData": {"username": ME.name, "password": ME.password}}
    secret = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": _LOGIN, "namespace": "kreflex-system"}}
    await manifests.apply(on.plane.api, [{**secret, **login}])
    await argo_cd.install(on.plane)
    folder: Path = on.plane.home.data / "git-server"
    async with argo_cd.running(on.plane, 1), forges.serving(folder, ME) as on.forge:
        yield


def shops(**of_git: str) -> Any:
    """Make workloads that are well, each from a repository, with a policy that says this of Git."""

    async def make(on: Stage, where: str) -> list[Json]:
        await set_policy(on, where, FUNCTION, RELEASES, **of_git)
        names = names_of(where)
        sources = [await follow(on, where, name, _files(where, name, GOOD)) for name in names]
        await eventually(lambda: running(on.plane, where, names), f"the shops of {where}", MADE, 0.5)
        for name in names:
            # Each look at a repository costs git's time: only what is played is looked at.
            await on.plane.api.patch(f"{argo_cd.APPLICATIONS}/{name}", SKIPPED)
        return [await _thing(on.plane, where, name, source) for name, source in zip(names, sources, strict=True)]

    return make


def names_of(where: str) -> list[str]:
    """Name the workloads of a case, each as what brings it."""
    return [f"{where}-{number}" for number in range(COUNT)]


async def set_policy(on: Stage, where: str, function: str, releases: Json, **of_git: str) -> None:
    """Let a function work in a namespace, and say this of Git."""
    assert on.forge is not None, "the Git server does not run"
    rules = {"secret": _LOGIN, "repositories": [on.forge.server.url], "within": "3m", **of_git}
    if "forge" in rules:
        rules["api"] = on.forge.server.url
    own = {"proof": "1s", "proveWithin": "4m", "releases": {**releases, "git": rules}}
    await rig.set_policy(on.plane, where, {"maxInFlight": 1}, functions=[function], **own)


async def follow(on: Stage, where: str, name: str, files: dict[str, str | None]) -> Source:
    """Bring a namespace what is in the files of a new repository."""
    assert on.forge is not None, "the Git server does not run"
    repository = await on.forge.server.make(f"team/{name}", files)
    await argo_cd.follow(on.plane, where, name, repository, ME, "apps")
    return Source(repository, on.forge)


async def _thing(plane: ControlPlane, where: str, name: str, source: Source) -> Json:
    found = await plane.api.get(f"/apis/apps/v1/namespaces/{where}/deployments/{name}")
    return {**found, "kind": "Deployment", SOURCE: source}


def _files(where: str, name: str, tag: str) -> dict[str, str | None]:
    made = release_body("Deployment", name, tag)
    made["metadata"]["namespace"] = where
    return {_FILE: yaml.safe_dump(made)}


async def release(plane: ControlPlane, thing: Json) -> Json:
    """A workload whose new version, which came by Git, crashes."""
    name, where = thing["metadata"]["name"], thing["metadata"]["namespace"]
    await plane.api.patch(f"{argo_cd.APPLICATIONS}/{name}", FOLLOWED)
    await thing[SOURCE].repository.commit(f"Release {BAD}", _files(where, name, BAD))
    return {**await crashing(plane, thing), SOURCE: thing[SOURCE]}


def announced(thing: Json) -> Event:
    """The event that tells of the workload."""
    return told({key: value for key, value in thing.items() if key != SOURCE})


async def taken_back(plane: ControlPlane, where: str, thing: Json) -> str:
    """Git says the good version again, and all of it runs."""
    name, source = thing["metadata"]["name"], thing[SOURCE]
    if {_FILE: await source.repository.file(_FILE)} != _files(where, name, GOOD):
        return "Git does not say the good version"
    return await unwell(plane, where, name)


async def suspended(plane: ControlPlane, where: str, thing: Json) -> str:
    """Git says the bad version, is not listened to, and all of the good one runs."""
    name, source = thing["metadata"]["name"], thing[SOURCE]
    body = await plane.api.get(f"{argo_cd.APPLICATIONS}/{name}")
    if body["spec"]["syncPolicy"]["automated"].get("enabled") is not False:
        return "its sync is not suspended"
    if {_FILE: await source.repository.file(_FILE)} != _files(where, name, BAD):
        return "Git was changed"
    return await unwell(plane, where, name)


async def twice_in_git(_: ControlPlane, __: str, thing: Json) -> list[str]:
    """Commits and pull requests: there is one of each, and no branch that nobody asked for."""
    source, name = thing[SOURCE], thing["metadata"]["name"]
    reverts = [one for one in await source.repository.log() if _RECORD in one.message and len(one.parents) == 1]
    branches = [branch for branch in await source.repository.branches() if branch != git.MAIN]
    wrong = f"{len(reverts)} commits of ours are in main of {name}" if len(reverts) != 1 else ""
    asked = f"{len(branches)} branches and {len(source.pulls)} pull requests of {name}"
    strange = asked if not len(branches) == len(source.pulls) <= 1 else ""
    return [one for one in (wrong, strange) if one]


async def untouched_git(_: ControlPlane, __: str, thing: Json) -> list[str]:
    """Nothing was pushed at all."""
    source = thing[SOURCE]
    known = (len(await source.repository.log()), list(await source.repository.branches()), len(source.pulls))
    return [] if known == (2, [git.MAIN], 0) else [f"{known} in the repository of {thing['metadata']['name']}"]


async def merge(_: ControlPlane, __: str, thing: Json) -> None:
    """A person merges the pull request as soon as there is one."""
    source: Source = thing[SOURCE]

    async def opened() -> forges.Pull | None:
        return next(iter(source.pulls), None)

    await source.forge.merge(await eventually(opened, "a pull request", _OPENED, 0.3))


async def clear_all(on: Stage, where: str) -> None:
    """Remove the workloads, and what brings them first."""
    for name in names_of(where):
        for path in (f"{argo_cd.APPLICATIONS}/{name}", f"/api/v1/namespaces/{argo_cd.NAMESPACE}/secrets/repo-{name}"):
            await rig.remove(on.plane, path)
        await rig.remove(on.plane, f"/apis/apps/v1/namespaces/{where}/deployments/{name}")
    await clear(on, where)


COMMIT = replace(
    ROLLBACK,
    variant="by a commit",
    prepare=shops(mode="Commit"),
    fall_ill=release,
    event=announced,
    healed=taken_back,
    twice=twice_in_git,
    writes=(),
    act_within=ACT_WITHIN,
    needs=at_work,
    proxied=True,
    clear=clear_all,
)
PULL_REQUEST = replace(
    COMMIT, variant="by a pull request", prepare=shops(mode="PullRequest", forge="GitHub"), meanwhile=merge
)
SUSPENSION = replace(
    COMMIT,
    variant="beside Git",
    prepare=shops(mode="Suspend"),
    healed=suspended,
    twice=untouched_git,
    writes=("patch applications", "patch deployments"),
    # That its sync is suspended is told for as long as it is.
    aside="/suspended/",
)
GIT_SCENARIOS: tuple[Scenario, ...] = (COMMIT, PULL_REQUEST, SUSPENSION)
