"""Releases, what is remembered of them, and the way back, on a real API server, with the rights that are declared."""

from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kreflex.actions import BlockedError, HopelessError
from kreflex.cluster import Reader
from kreflex.errors import ConflictError, DeniedError
from kreflex.histories import Histories, Noted, digest, histories, history_of, history_path
from kreflex.reverts import BACK_BY, BACK_FROM, BACK_TO, EvictStuck
from kreflex.revisions import Release, Untold, noted, release_of, unremembered
from kreflex.signals import WorkloadSignal
from kreflex.views import Ref
from lab import audit, workloads
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.mending import NAME, OURS, REFLEX, SECOND, THEIRS, Lab, back, evicting, mending, stuck_pods

KINDS: dict[str, Callable[[str, kit.Json], kit.Json]] = {
    "Deployment": lambda name, spec: workloads.deployment(name, 2, spec=spec),
    "StatefulSet": lambda name, spec: workloads.stateful_set(name, 2, spec),
    "DaemonSet": workloads.daemon_set,
}


@pytest.fixture(scope="module")
async def lab(installed: ControlPlane) -> AsyncIterator[Lab]:
    async with mending(installed) as made:
        yield made


def probed(image: str = "shop:1", **container: Any) -> kit.Json:
    """A pod of which a crashed container is not Ready in between."""
    probe = {"httpGet": {"port": 80}, "periodSeconds": 1}
    containers = [{"name": "app", "image": image, "readinessProbe": probe, **container}]
    return {"containers": containers, "terminationGracePeriodSeconds": 0}


def path_of(here: kit.Place, kind: str, name: str = "") -> str:
    return f"/apis/apps/v1/namespaces/{here.name}/{kind.lower()}s{f'/{name}' if name else ''}"


async def made(lab: Lab, here: kit.Place, kind: str = "Deployment", name: str = "shop", **container: Any) -> Ref:
    """Make a workload, and wait until all of it is well."""
    body = await lab.plane.api.post(path_of(here, kind), KINDS[kind](name, probed(**container)))
    ref = Ref("apps/v1", kind, here.name, name, body["metadata"]["uid"])
    await well(lab, ref)
    return ref


async def well(lab: Lab, ref: Ref) -> Release:
    return await lab.until(ref, lambda one: one.complete and one.ready_since(one.current) is not None, "complete")


async def changed(lab: Lab, ref: Ref, spec: kit.Json, **meta: Any) -> None:
    path = f"/apis/apps/v1/namespaces/{ref.namespace}/{ref.kind.lower()}s/{ref.name}"
    await lab.plane.api.patch(path, {"metadata": meta, "spec": spec})


async def released(lab: Lab, ref: Ref, image: str = "shop:2-crash") -> Release:
    """Release another image, and wait until a pod of it is there."""
    before = await lab.release(ref)
    containers = [{**before.body["spec"]["template"]["spec"]["containers"][0], "image": image}]
    await changed(lab, ref, {"template": {"spec": {"containers": containers}}})
    return await lab.until(ref, lambda one: bool(one.new_pods) and one.current.hash != before.current.hash, "changed")


async def body_of(lab: Lab, ref: Ref) -> kit.Json:
    return await lab.plane.api.get(f"/apis/apps/v1/namespaces/{ref.namespace}/{ref.kind.lower()}s/{ref.name}")


def writes(lab: Lab, ref: Ref) -> list[tuple[str, str]]:
    """Tell our account's accepted writes in a namespace, as the API server logged them."""
    return [
        (entry["verb"], entry["objectRef"]["resource"])
        for entry in audit.entries(lab.plane.audit_log, ref.namespace)
        if entry["user"]["username"].endswith(f":{NAME}")
        and entry["objectRef"].get("namespace") == ref.namespace
        and entry["verb"] in {"create", "update", "patch", "delete"}
        and entry["responseStatus"]["code"] < 300
    ]


# What a release is


@pytest.mark.parametrize("kind", KINDS)
async def test_a_release_tells_the_pods_of_the_new_template_from_those_of_the_old(
    lab: Lab, here: kit.Place, kind: str
) -> None:
    ref = await made(lab, here, kind)
    first = await lab.release(ref)
    assert (first.revisions, first.earlier, first.complete, first.stuck) == ((first.current,), (), True, False)
    assert (first.current.number, str(first.current)) == (1, "revision 1 (shop:1)")
    assert {pod.ref.uid for pod in first.new_pods} == {pod["metadata"]["uid"] for pod in await here.pods("shop")}
    assert first.current.template == first.body["spec"]["template"]
    assert first.changed_at == first.current.created

    second = await released(lab, ref)
    assert [one.number for one in second.revisions] == [2, 1]
    assert second.earlier == (first.current,)
    assert not second.complete
    assert second.old_pods
    assert {pod.ref.uid for pod in second.old_pods} <= {pod.ref.uid for pod in first.new_pods}
    assert {pod.template_hash for pod in second.new_pods} == {second.current.hash}
    assert second.changed_at == second.current.created


async def test_nothing_is_told_of_a_workload_that_was_replaced_or_whose_controller_has_not_seen_it(
    lab: Lab, here: kit.Place
) -> None:
    ref = await made(lab, here)
    assert await release_of(replace(ref, uid="another"), lab.reader) is None
    assert await release_of(replace(ref, name="another"), lab.reader) is None
    assert await release_of(replace(ref, kind="ReplicaSet"), lab.reader) is None
    assert isinstance(await release_of(replace(ref, uid=""), lab.reader), Release)
    # A Deployment that is paused is looked at by its controller, and nothing is made of its new template.
    await changed(lab, ref, {"paused": True, "template": {"metadata": {"annotations": {"new": "yes"}}}})
    told = Untold(f"{ref}: no revision with its present template was found", passing=True)

    async def seen() -> bool:
        found = await release_of(ref, lab.reader)
        return isinstance(found, Untold) and found.since is not None and replace(found, since=None) == told

    await eventually(seen, "a template of which nothing was made")


async def test_a_roll_out_that_takes_longer_than_its_deadline_is_stuck(lab: Lab, here: kit.Place) -> None:
    ref = await made(lab, here)
    await changed(lab, ref, {"progressDeadlineSeconds": 1, "minReadySeconds": 0})
    await released(lab, ref, "shop:2-unready")
    stuck = await lab.until(ref, lambda one: one.stuck, "stuck")
    assert not stuck.complete


# The way back


@pytest.mark.parametrize("kind", KINDS)
async def test_the_template_is_put_back_exactly_as_it_was_and_all_pods_are_well_again(
    lab: Lab, here: kit.Place, kind: str
) -> None:
    ref = await made(lab, here, kind, env=[{"name": "A", "value": "1"}])
    before = await lab.release(ref)
    bad = await released(lab, ref)

    note = await lab.act(back, ref)
    assert note == "from revision 2 (shop:2-crash) to revision 1 (shop:1)"
    after = await lab.until(ref, lambda one: one.current.hash == before.current.hash, "back")
    assert after.body["spec"] == before.body["spec"]
    assert (after.current.number, after.earlier[0].hash) == (3, bad.current.hash)
    assert after.earlier[0].bad == OURS
    notes = {BACK_FROM: f"2/{bad.current.hash}", BACK_TO: f"1/{before.current.hash}", BACK_BY: OURS}
    assert notes.items() <= after.body["metadata"]["annotations"].items()
    assert after.changed_at >= bad.current.created
    if kind == "StatefulSet":
        await lab.until(ref, lambda one: stuck_pods(one) != (), "stuck")
        assert await lab.act(evicting, ref) == "evicted shop-1"
    await well(lab, ref)
    assert {pod["spec"]["containers"][0]["image"] for pod in await here.ready_pods("shop", len(before.new_pods))} == {
        "shop:1"
    }


async def test_only_a_pod_of_another_version_that_is_not_ready_is_evicted_as_stuck(lab: Lab, here: kit.Place) -> None:
    ref = await made(lab, here, "StatefulSet")
    release = await lab.release(ref)
    (pod, *_) = release.new_pods
    for one in (pod, replace(pod, ready=False), replace(pod, labels={})):
        with pytest.raises(ConflictError, match="is not stuck"):
            await EvictStuck("it never becomes Ready", (one,), release=release).apply(lab.writer, lab.reader)
    assert writes(lab, ref) == []
    another = replace(pod, ref=replace(pod.ref, uid="another"), ready=False, labels={})
    action = EvictStuck("it never becomes Ready", (another,), release=release)
    assert await action.apply(lab.writer, lab.reader) == "they went away by themselves"


async def test_what_changed_since_it_was_read_is_not_rolled_back(lab: Lab, here: kit.Place) -> None:
    ref = await made(lab, here)
    bad = await released(lab, ref)
    await changed(lab, ref, {}, annotations={"somebody": "was here"})
    with pytest.raises(ConflictError):
        await back(bad).apply(lab.writer, lab.reader, OURS)
    assert (await body_of(lab, ref))["spec"] == bad.body["spec"]

    # As after a kill between the two writes: the version is known as bad, and the record's next attempt goes on.
    seen = await lab.release(ref)
    assert (seen.current.bad, seen.current.hash) == (OURS, bad.current.hash)
    await lab.act(back, ref)
    assert (await body_of(lab, ref))["spec"]["template"] == bad.earlier[0].template
    assert writes(lab, ref) == [("create", "releasehistories"), ("patch", "deployments")]


async def test_another_object_of_the_same_name_is_not_rolled_back(lab: Lab, here: kit.Place) -> None:
    ref = await made(lab, here)
    bad = await released(lab, ref)
    await lab.plane.api.delete(path_of(here, "Deployment", "shop"), {"propagationPolicy": "Orphan"})
    await eventually(lambda: gone(lab, path_of(here, "Deployment", "shop")), "the end of the Deployment")
    another = await made(lab, here)
    before = await body_of(lab, another)
    with pytest.raises(ConflictError):
        await back(bad).apply(lab.writer, lab.reader, OURS)
    assert (await body_of(lab, another))["spec"] == before["spec"]
    assert (await lab.release(another)).current.bad == ""


async def gone(lab: Lab, path: str) -> bool:
    return await lab.plane.api.find(path) is None


async def test_a_paused_deployment_is_left_as_it_is(lab: Lab, here: kit.Place) -> None:
    ref = await made(lab, here)
    await released(lab, ref)
    await changed(lab, ref, {"paused": True})
    with pytest.raises(BlockedError, match=f"Deployment {here.name}/shop is paused: resume it") as blocked:
        await lab.act(back, ref)
    assert (blocked.value.cause, writes(lab, ref)) == ("WorkloadPaused", [])


async def test_a_version_whose_config_map_is_gone_is_not_gone_back_to(lab: Lab, here: kit.Place) -> None:
    maps = f"/api/v1/namespaces/{here.name}/configmaps"
    await lab.plane.api.post(maps, {"metadata": {"name": "app-5f7"}})
    ref = await made(lab, here, envFrom=[{"configMapRef": {"name": "app-5f7"}}])
    bad = await released(lab, ref)
    await lab.plane.api.delete(f"{maps}/app-5f7")
    words = rf"ConfigMap {here.name}/app-5f7 of revision 1 \(shop:1\) is gone: make it again"
    with pytest.raises(HopelessError, match=words):
        await lab.act(back, ref)
    assert writes(lab, ref) == []
    await lab.plane.api.post(maps, {"metadata": {"name": "app-5f7"}})
    await lab.act(back, ref)
    assert (await body_of(lab, ref))["spec"]["template"] == bad.earlier[0].template


async def test_a_version_that_was_rolled_back_from_is_not_gone_back_to(lab: Lab, here: kit.Place) -> None:
    ref = await made(lab, here)
    await released(lab, ref)
    await lab.act(back, ref)
    release = await lab.until(ref, lambda one: one.current.number == 3, "back")
    with pytest.raises(HopelessError, match=rf"revision 2 \(shop:2-crash\) was rolled back from itself, by {OURS}"):
        await back(release).apply(lab.writer, lab.reader, THEIRS)
    assert not release.healthy(release.earlier[0], timedelta(), lab.reader.now())


# What is remembered


async def test_a_version_that_has_been_well_for_long_enough_is_remembered_once_in_a_dry_run_too(
    lab: Lab, here: kit.Place
) -> None:
    ref = await made(lab, here)
    await here.policy(mode="DryRun")
    signal = WorkloadSignal("apps/v1", "Deployment", ref.namespace, ref.name, ref.uid)
    async with kit.arc_of(lab.plane, REFLEX) as arc:

        async def remembered() -> bool:
            result = await arc.handle(signal)
            assert (result.outcome, result.changed) == ("skipped", None)
            return "complete, and its pods have been Ready for" in result.because

        await eventually(remembered, "a version that is remembered")
        assert (await arc.handle(signal)).because == "there is nothing to remember"
    assert writes(lab, ref) == [("create", "releasehistories")]
    assert await here.records() == []

    release, history = await lab.release(ref), await history_of(ref, lab.reader)
    (known,) = history.revisions
    since = release.ready_since(release.current)
    assert known == Noted(
        hash=release.current.hash,
        number=1,
        template=digest(release.body["spec"]["template"]),
        images=("shop:1",),
        healthy_at=since,
        healthy_until=known.healthy_until,
        source="main@1",
    )
    assert known.proves(SECOND)
    assert (release.current.healthy_at, release.current.source) == (since, "main@1")
    assert not unremembered(release.body, history, SECOND)
    assert unremembered(release.body, history, timedelta(hours=1))
    assert history in [one async for one in histories(lab.reader)]


async def test_a_version_of_which_no_pod_is_left_is_known_as_healthy_from_its_history(
    lab: Lab, here: kit.Place
) -> None:
    ref = await made(lab, here)
    release = await lab.release(ref)
    now = lab.reader.now()
    well_for = replace(release.current, healthy_at=now - timedelta(minutes=9), healthy_until=now)
    await Histories(lab.reader, lab.writer).note(ref, noted(release, well_for))
    await changed(lab, ref, {"strategy": {"type": "Recreate", "rollingUpdate": None}})
    bad = await released(lab, ref)
    assert bad.old_pods == ()
    assert bad.healthy(bad.earlier[0], timedelta(minutes=9), now)
    assert not bad.healthy(bad.earlier[0], timedelta(minutes=10), now)
    assert not bad.healthy(bad.current, timedelta(), now)


async def test_what_is_remembered_goes_with_its_workload(lab: Lab, here: kit.Place) -> None:
    ref = await made(lab, here)
    release = await lab.release(ref)
    await Histories(lab.reader, lab.writer).note(ref, noted(release, release.current))
    assert len((await history_of(ref, lab.reader)).revisions) == 1
    await lab.plane.api.delete(path_of(here, "Deployment", "shop"))
    await eventually(lambda: gone(lab, history_path(ref)), "the end of the history")


async def test_what_is_remembered_of_an_earlier_workload_of_the_same_name_is_begun_anew(
    lab: Lab, here: kit.Place
) -> None:
    ref = await made(lab, here, "StatefulSet")
    release = await lab.release(ref)
    writing = Histories(lab.reader, lab.writer)
    await writing.condemn(ref, noted(release, release.current), THEIRS)
    await lab.plane.api.delete(path_of(here, "StatefulSet", "shop"), {"propagationPolicy": "Orphan"})

    async def orphaned() -> bool:
        history = await lab.plane.api.find(history_path(ref))
        left = await lab.plane.api.find(path_of(here, "StatefulSet", "shop"))
        return left is None and history is not None and not history["metadata"].get("ownerReferences")

    await eventually(orphaned, "a history without its workload")
    again = await made(lab, here, "StatefulSet")
    assert (await lab.release(again)).current.bad == ""
    await writing.note(again, noted(await lab.release(again), (await lab.release(again)).current))
    body = await lab.plane.api.get(history_path(again))
    assert [owner["uid"] for owner in body["metadata"]["ownerReferences"]] == [again.uid]
    assert [one["bad"] for one in body["spec"]["revisions"]] == [""]


async def test_of_two_who_remember_at_once_one_is_told_to_look_again(lab: Lab, here: kit.Place) -> None:
    ref = await made(lab, here)
    release = await lab.release(ref)

    class Slow(Reader):
        """Reads, and lets somebody else write before it tells what it read."""

        async def get(self, path: str) -> kit.Json | None:
            body = await super().get(path)
            await Histories(lab.reader, lab.writer).condemn(ref, other, THEIRS)
            return body

    mine = noted(release, release.current)
    for name in ("first", "second"):
        other = mine.model_copy(update={"hash": name})
        with pytest.raises(ConflictError):
            await Histories(Slow(lab.reader._transport), lab.writer).condemn(ref, mine, OURS)
    assert [one.hash for one in (await history_of(ref, lab.reader)).revisions] == ["second", "first"]


# What admission holds the account to, whatever its code does


async def test_the_account_may_write_a_template_with_its_notes_and_nothing_else(lab: Lab, here: kit.Place) -> None:
    ref = await made(lab, here)
    path = f"{path_of(here, 'Deployment', 'shop')}?dryRun=All"
    notes = {"annotations": {BACK_FROM: "2/a", BACK_TO: "1/b", BACK_BY: OURS}}
    template = {"template": {"metadata": {"annotations": {"new": "yes"}}}}
    await lab.writer.merge(path, {"metadata": notes, "spec": template})
    for body, words in (
        ({"spec": template}, "a template is written with the annotations"),
        ({"metadata": notes, "spec": {**template, "replicas": 0}}, "only spec.template may change"),
        ({"metadata": notes, "spec": {"paused": True}}, "only spec.template may change"),
        ({"metadata": {"labels": {"a": "b"}}}, "only spec.template may change"),
        ({"metadata": {"annotations": {"kreflex.dev/opt-out": "true"}}}, "only spec.template may change"),
        ({"metadata": {"annotations": {"theirs": "true"}}}, "only spec.template may change"),
    ):
        with pytest.raises(DeniedError, match=words):
            await lab.writer.merge(path, body)
    await changed(lab, ref, {"paused": True})
    with pytest.raises(DeniedError, match="somebody has paused it"):
        await lab.writer.merge(path, {"metadata": notes, "spec": template})


@pytest.mark.parametrize("kind", KINDS)
async def test_the_account_may_not_write_live_what_git_owns(lab: Lab, here: kit.Place, kind: str) -> None:
    ref = await made(lab, here, kind)
    await changed(lab, ref, {}, annotations={"argocd.argoproj.io/tracking-id": "shop:apps/Deployment:shop/shop"})
    bad = await released(lab, ref)
    with pytest.raises(DeniedError, match=r"Git owns spec\.template of it: change it there"):
        await lab.act(back, ref)
    assert (await body_of(lab, ref))["spec"] == bad.body["spec"]


async def test_the_account_may_not_write_the_history_of_what_does_not_own_it(lab: Lab, here: kit.Place) -> None:
    ref = await made(lab, here)
    await Histories(lab.reader, lab.writer).note(ref, Noted(hash="a", number=1))
    body = await lab.plane.api.get(history_path(ref))
    for change, words in (
        ({"spec": {"workload": {"uid": "another"}}}, "belongs to its workload"),
        ({"metadata": {"ownerReferences": []}}, "belongs to its workload"),
        ({"metadata": {"labels": {"a": "b"}}}, "only metadata.ownerReferences, spec may change"),
    ):
        with pytest.raises(DeniedError, match=words):
            await lab.writer.merge(history_path(ref), change)
    assert await lab.plane.api.get(history_path(ref)) == body
