"""Rollback by Helm in the fault matrix: a bad upgrade, which helm itself takes back, in a Job that runs in the lab."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime

import yaml

from bench import rig
from bench.release_scenarios import BAD, FUNCTION, GOOD, RELEASES, ROLLBACK, crashing, unwell
from bench.rig import Json
from bench.scenarios import Scenario
from bench.stage import Stage
from lab import helm, jobs, manifests
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.paths import REPOSITORY

COUNT = 4
SPEED = "60"
_VARIANT = REPOSITORY / "knative/variants/helm"
_PATIENCE = 120.0
# Longer than a version has to be well until it counts; times have whole seconds.
_PROVEN = 4.0


@asynccontextmanager
async def at_work(on: Stage) -> AsyncIterator[None]:
    """Run the Jobs of Kreflex."""
    async with jobs.running(on.plane):
        yield


async def shops(on: Stage, where: str) -> list[Json]:
    """Install releases of Helm that are well, and give what rollback needs there."""
    (settings,) = yaml.safe_load_all((_VARIANT / "policy.yaml").read_text())
    rules = {**settings["spec"]["releases"]["helm"], "timeout": "30s"}
    own = {"proof": "1s", "proveWithin": "2m", "releases": {**RELEASES, "stuckAfter": "2m", "helm": rules}}
    await rig.set_policy(on.plane, where, {"maxInFlight": 1}, functions=[FUNCTION], **own)
    await _permit(on.plane, where)
    for number in range(COUNT):
        await _release(on.plane, where, number).install(image=f"shop:{GOOD}", podAnnotations=_notes())
    return [{**await on.plane.api.get(_path(where, number)), "kind": "Deployment"} for number in range(COUNT)]


async def _permit(plane: ControlPlane, where: str) -> None:
    """Apply what the shipped variant gives to a namespace, to this one."""
    found = manifests.read(*(_VARIANT / "shop" / f"{name}.yaml" for name in ("account", "role")))
    for one in found:
        for subject in one.get("subjects", []):
            subject["namespace"] = where if subject["namespace"] == "shop" else subject["namespace"]
    await manifests.apply(plane.api, found, where)


def _notes() -> dict[str, str]:
    return {"lab.kreflex.dev/speed": SPEED}


def _release(plane: ControlPlane, where: str, number: int) -> helm.Release:
    return helm.Release(plane, where, f"shop-{number}")


def _path(where: str, number: int) -> str:
    return f"/apis/apps/v1/namespaces/{where}/deployments/shop-{number}"


async def upgrade(plane: ControlPlane, thing: Json) -> Json:
    """A release whose new revision crashes; the one before has been well for long enough."""
    name, where = thing["metadata"]["name"], thing["metadata"]["namespace"]

    async def proven() -> bool:
        return not await unwell(plane, where, name) and await _well_for(plane, where, name) >= _PROVEN

    await eventually(proven, f"{name} well for long enough", _PATIENCE, 0.5)
    await helm.Release(plane, where, name).upgrade(image=f"shop:{BAD}", podAnnotations=_notes())
    return await crashing(plane, thing)


async def _well_for(plane: ControlPlane, where: str, name: str) -> float:
    told = [one for pod in await rig.pods(plane, where, name) for one in pod["status"]["conditions"]]
    since = max(datetime.fromisoformat(one["lastTransitionTime"]) for one in told if one["type"] == "Ready")
    return (datetime.now(UTC) - since).total_seconds()


async def taken_back(plane: ControlPlane, where: str, thing: Json) -> str:
    """Helm says that its first revision was restored, and all of it runs."""
    release = helm.Release(plane, where, thing["metadata"]["name"])
    found = [one["metadata"]["labels"]["status"] for one in await release.secrets()]
    if found != ["superseded", "superseded", "deployed"]:
        return f"its revisions are {found}"
    return await unwell(plane, where, release.name)


async def twice_by_helm(plane: ControlPlane, where: str, thing: Json) -> list[str]:
    """Helm has rolled back once: by one Job that ran once, to three revisions, of which the last is the first."""
    release = helm.Release(plane, where, thing["metadata"]["name"])
    history = await release.history()
    found = [one for one in (await plane.api.get(jobs.collection(where)))["items"] if _is_of(one, release.name)]
    runs = [one["status"].get("succeeded", 0) + one["status"].get("failed", 0) for one in found]
    if len(history) == 3 and history[-1].get("rollback_revision") == 1 and runs == [1]:
        return []
    said = f"{len(history)} revisions, and the last says: {history[-1]['description']}"
    return [f"{release.name} has {said}; its Jobs ran {runs} times"]


def _is_of(job: Json, release: str) -> bool:
    return str(job["metadata"]["name"]).startswith(f"{release}-undo-")


async def clear(on: Stage, where: str) -> None:
    """Remove the releases and their Jobs."""
    for number in range(COUNT):
        await helm.helm(on.plane, "uninstall", f"shop-{number}", f"--namespace={where}")
    for job in (await on.plane.api.get(jobs.collection(where)))["items"]:
        await rig.remove(on.plane, f"{jobs.collection(where)}/{job['metadata']['name']}")


HELM = replace(
    ROLLBACK,
    variant="by Helm",
    prepare=shops,
    fall_ill=upgrade,
    healed=taken_back,
    twice=twice_by_helm,
    # The way back is noted on the workload, and the Job is asked for.
    writes=(),
    needs=at_work,
    clear=clear,
)
HELM_SCENARIOS: tuple[Scenario, ...] = (HELM,)
