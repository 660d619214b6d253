"""The shop as a release of Helm: made, upgraded and rolled back by helm itself, which runs in Jobs."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

from lab import helm, jobs, manifests, workloads
from lab.paths import REPOSITORY
from lab.scenarios.place import SPEED, Place
from lab.scenarios.rules import own_policy
from lab.scenarios.shop import PATIENCE, Shop
from lab.scenarios.timeline import ScenarioFailed, say
from lab.toolchain import Toolchain
from lab.visitor import Visitor

_VARIANT = REPOSITORY / "knative" / "variants" / "helm"


@dataclass
class HelmShop(Shop):
    """A Deployment that is part of a release of Helm."""

    chart: helm.Release | None = None

    @property
    def title(self) -> str:
        """What is released, as people say it."""
        return "release of Helm"

    async def make(self, tag: str = "v1") -> None:
        """Install the release, and wait until all of it is well."""
        await self._release.install(**self._values(tag))
        await self.place.until(lambda: self.runs(tag), f"{self.name} at {tag} that is well", PATIENCE)

    async def set_image(self, tag: str) -> None:
        """Upgrade the release to another image, and not wait for its pods, as many pipelines do."""
        answer = await self._release.upgrade(**self._values(tag))
        if answer.code != 0:
            raise ScenarioFailed(f"helm upgrade: {answer.error}")

    async def check_undone(self, since: datetime) -> None:
        """Raise ScenarioFailed unless helm has rolled back, once, and rollback has written no template."""
        revisions = await self._release.history()
        told = "; ".join(f"{one['revision']} {one['status']}: {one['description']}" for one in revisions)
        say(f"helm history {self.name}: {told}")
        if self.templates(since):
            raise ScenarioFailed(f"rollback wrote what is Helm's: {self.templates(since)[0]}")
        if revisions[-1].get("rollback_revision") != 1 or len(revisions) != 3:
            raise ScenarioFailed(f"helm did not roll back to revision 1: {told}")

    @property
    def _release(self) -> helm.Release:
        assert self.chart is not None, "it is given with the Shop"
        return self.chart

    def _values(self, tag: str) -> dict[str, object]:
        notes = workloads.fault(speed=SPEED)
        return {"image": f"lab.local/{self.name}:{tag}", "replicas": self.replicas, "podAnnotations": notes}


@asynccontextmanager
async def helm_shop(place: Place) -> AsyncIterator[HelmShop]:
    """Let Jobs run, and give the namespace what the shipped variant for Helm gives."""
    assert place.home is not None, "this plays in the lab alone"
    if Toolchain().find(helm.PROGRAM) is None:
        say("Helm is built from its source now, once; with two cores that takes some minutes")
    (settings,) = manifests.read(_VARIANT / "policy.yaml")
    async with Visitor(place.home) as plane, jobs.running(plane):
        say("Jobs of Kreflex run as processes of this machine, with the tokens of their accounts")
        await manifests.apply(plane.api, _permits(place.namespace), place.namespace)
        rules = {**settings["spec"]["releases"]["helm"], "timeout": "1m"}
        async with own_policy(place, plane.api, helm=rules):
            yield HelmShop(place, "Deployment", chart=helm.Release(plane, place.namespace))


def _permits(namespace: str) -> list[manifests.Manifest]:
    bodies = manifests.read(_VARIANT / "shop" / "account.yaml", _VARIANT / "shop" / "role.yaml")
    for body in bodies:
        for subject in body.get("subjects", []):
            if subject["namespace"] == "shop":
                subject["namespace"] = namespace
    return bodies
