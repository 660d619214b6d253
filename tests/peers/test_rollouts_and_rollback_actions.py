"""Rollouts of Argo, undone by the actions of a rollback while its real controller looks after them."""

import uuid
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from kreflex.errors import DeniedError
from kreflex.revisions import Release, Untold, release_of
from kreflex.views import Ref
from lab import rollouts
from lab.cluster import ControlPlane
from lab.rollouts import PAUSE, collection, weight
from tests import kit
from tests.mending import OURS, Lab, back, mending


@pytest.fixture(scope="module")
async def lab(installed: ControlPlane) -> AsyncIterator[Lab]:
    await rollouts.install(installed)
    async with rollouts.running(installed), mending(installed) as made:
        yield made


@pytest.fixture
async def space(lab: Lab) -> str:
    name = f"r-{uuid.uuid4().hex[:8]}"
    await lab.plane.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    return name


async def made(lab: Lab, space: str, steps: Any, **strategy: Any) -> Ref:
    body = await rollouts.make(lab.plane.api, space, rollouts.canary("shop", 4, steps, **strategy))
    return Ref(rollouts.VERSION, "Rollout", space, "shop", body["metadata"]["uid"])


async def undone(lab: Lab, ref: Ref, wanted: Callable[[Release], bool]) -> Release:
    """Go back once the controller is at rest, and wait until all pods are of the wanted version again."""
    await rollouts.settled(lab.plane.api, ref.namespace, ref.name)
    await lab.act(back, ref)
    return await lab.until(ref, lambda one: one.complete and wanted(one) and not one.old_pods, "back")


async def test_a_canary_that_crashes_is_undone_by_the_replica_set_of_the_stable_version(lab: Lab, space: str) -> None:
    ref = await made(lab, space, [weight(25), PAUSE])
    stable = await lab.release(ref)
    assert (stable.complete, stable.current.number, len(stable.new_pods)) == (True, 1, 4)

    bad = await rollouts.release(lab.plane.api, space, "shop", "v2-crash")
    release = await lab.until(ref, lambda one: bool(one.new_pods), "with a canary")
    assert (release.current.hash, release.complete, release.earlier) == (bad, False, (stable.current,))
    assert (len(release.new_pods), {pod.template_hash for pod in release.old_pods}) == (1, {stable.current.hash})

    after = await undone(lab, ref, lambda one: one.current.hash == stable.current.hash)
    assert (after.current.number, after.earlier[0].bad) == (3, OURS)
    assert sorted(await rollouts.replica_sets(lab.plane.api, space, "shop")) == sorted([stable.current.hash, bad])
    assert after.current.template == stable.current.template


async def test_what_the_controller_has_put_into_its_replica_sets_is_not_put_into_the_rollout(
    lab: Lab, space: str
) -> None:
    roles = {f"{role}Metadata": {"labels": {"role": role}, "annotations": {"a": role}} for role in ("canary", "stable")}
    apart = {"antiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": {"weight": 1}}}
    ref = await made(lab, space, [weight(50)], **roles, **apart)
    second = await rollouts.release(lab.plane.api, space, "shop", "v2")
    through = await lab.until(ref, lambda one: one.complete and one.current.hash == second, "through")
    made_of = await rollouts.replica_sets(lab.plane.api, space, "shop")
    assert "affinity" in made_of[second]["spec"]["template"]["spec"]

    third = await rollouts.release(lab.plane.api, space, "shop", "v3-unready")
    await lab.until(ref, lambda one: one.current.hash == third and bool(one.new_pods), "with a canary")
    # The controller does not know its ReplicaSet by the template, and makes another one of it: what it takes out of a
    # preferred anti-affinity to compare leaves an empty list. (argo-rollouts 1.9, RemoveInjectedAntiAffinityRule)
    after = await undone(lab, ref, lambda one: one.current.template == through.current.template)
    assert after.body["spec"]["template"] == through.current.template
    assert "affinity" not in through.current.template["spec"]
    assert through.current.template["metadata"] == {"labels": {"app": "shop"}}


async def test_a_version_that_is_through_is_undone_by_its_steps(lab: Lab, space: str) -> None:
    ref = await made(lab, space, [weight(50)])
    first = await lab.release(ref)
    second = await rollouts.release(lab.plane.api, space, "shop", "v2")
    through = await lab.until(ref, lambda one: one.complete and one.current.hash == second, "through")
    assert through.earlier == (first.current,)
    after = await undone(lab, ref, lambda one: one.current.hash == first.current.hash)
    assert after.current.number == 3


async def test_a_rollout_whose_template_is_elsewhere_is_left_to_people(lab: Lab, space: str) -> None:
    deployment = kit.deployment("shop", 0)
    await lab.plane.api.post(f"/apis/apps/v1/namespaces/{space}/deployments", deployment)
    body = rollouts.canary("shop", 1, [])
    named = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"}
    spec = {key: value for key, value in body["spec"].items() if key not in {"template", "selector"}}
    await rollouts.make(lab.plane.api, space, {**body, "spec": {**spec, "workloadRef": named}})
    ref = Ref(rollouts.VERSION, "Rollout", space, "shop", "")
    words = f"Rollout {space}/shop takes its template from Deployment shop (spec.workloadRef): go back there, by hand"
    assert await release_of(ref, lab.reader) == Untold(words)


async def test_of_a_rollout_too_the_account_may_change_the_template_only(lab: Lab, space: str) -> None:
    ref = await made(lab, space, [])
    for spec in ({"replicas": 1}, {"paused": True}, {"strategy": {"canary": {"steps": [PAUSE]}}}):
        with pytest.raises(DeniedError, match=r"only spec\.template may change"):
            await lab.writer.merge(f"{collection(space)}/{ref.name}?dryRun=All", {"spec": spec})
