"""rollback and Helm itself: bad upgrades are undone by helm, in Jobs that run as processes of the lab."""

import asyncio
import signal as signals
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from functions.rollback import main as rollback
from kreflex.reflex import Arc, Result
from kreflex.reverts import BACK_BY
from kreflex.serve import REFLEXES
from kreflex.signals import Due, WorkloadSignal
from lab import jobs, processes
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.helm import Release
from lab.manifests import apply
from tests import kit

assert rollback.main is not None
REFLEX = REFLEXES["rollback"]
VARIANT = "knative/variants/helm"
POLICIES = "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies"
HISTORIES = "/apis/kreflex.dev/v1alpha1/namespaces/{}/releasehistories"
(SETTINGS,) = kit.manifests(f"{VARIANT}/policy.yaml")
HELM: kit.Json = {**SETTINGS["spec"]["releases"]["helm"], "timeout": "30s"}
RELEASES = {"changeWindow": "10m", "patience": "3s", "healthyFor": "2s", "stuckAfter": "2m"}


@dataclass
class Shop:
    """A namespace with a release of Helm, and the function that looks after it."""

    here: kit.Place
    arc: Arc[Any]
    release: Release

    async def upgrade(self, image: str, **values: Any) -> None:
        """Make a new revision."""
        answer = await self.release.upgrade(image=image, podAnnotations={kit.SPEED: "100"}, **values)
        assert answer.code == 0, answer

    async def told(self) -> Result:
        """Tell the function of the Deployment, as the waker and alerts do."""
        return await self.arc.handle(WorkloadSignal("apps/v1", "Deployment", self.here.name, "shop", summary="told"))

    async def noted(self, source: str) -> None:
        """Tell it of the release until it has noted this revision of Helm as healthy."""

        async def known() -> bool:
            await self.told()
            found = (await self.here.plane.api.get(HISTORIES.format(self.here.name)))["items"]
            return source in [one.get("source") for body in found for one in body["spec"]["revisions"]]

        await eventually(known, f"{source} noted", pause=0.3)

    async def record(self) -> kit.Json:
        (record,) = await self.here.records()
        return record

    async def called(self, arc: Arc[Any] | None = None) -> kit.Json:
        """Tell it once, and then call for the record as the waker does; returns the record."""
        arc = arc or self.arc
        records = await self.here.records()
        if not records:
            await self.told()
            return (await self.here.records() or [{"status": {}}])[0]
        await arc.handle(Due(self.here.name, records[0]["metadata"]["name"]))
        return await self.record()

    async def until(self, key: str, *wanted: str) -> kit.Json:
        """Call for the record until its status says so."""

        async def said() -> kit.Json | None:
            record = await self.called()
            return record if record["status"].get(key) in wanted else None

        found: kit.Json = await eventually(said, f"{key} {wanted}", 90, pause=0.3)
        return found

    async def deployment(self) -> kit.Json:
        return await self.here.plane.api.get(self.release.deployment)

    async def greeting(self) -> str:
        path = f"/api/v1/namespaces/{self.here.name}/configmaps/shop"
        text: str = (await self.here.plane.api.get(path))["data"]["greeting"]
        return text

    async def jobs(self) -> list[kit.Json]:
        found: list[kit.Json] = (await self.here.plane.api.get(jobs.collection(self.here.name)))["items"]
        return found

    def writes(self) -> set[tuple[str, str]]:
        """Tell what the function has written here, but for its records."""
        return {
            (entry["verb"], entry["objectRef"]["resource"])
            for entry in self.here.writes("rollback")
            if entry["responseStatus"]["code"] < 300
            and entry["objectRef"]["resource"] not in {"remediations", "events"}
        }


@pytest.fixture(scope="module")
async def running(installed: ControlPlane) -> AsyncIterator[ControlPlane]:
    """A control plane on which Jobs run."""
    async with jobs.running(installed):
        yield installed


async def permit(here: kit.Place, *files: str) -> None:
    """Apply what the shipped variant gives to a namespace, to this one."""
    bodies = [body for name in files for body in kit.manifests(f"{VARIANT}/shop/{name}.yaml")]
    for body in bodies:
        for subject in body.get("subjects", []):
            subject["namespace"] = here.name if subject["namespace"] == "shop" else subject["namespace"]
    await apply(here.plane.api, bodies, here.name)


async def a_policy(here: kit.Place, **of_helm: Any) -> None:
    releases = {**RELEASES, "helm": {**HELM, **of_helm}}
    await here.set_policy(releases=releases, owners=["Deployment"], proof="1s", proveWithin="60s")


@pytest.fixture
async def shop(running: ControlPlane, here: kit.Place) -> AsyncIterator[Shop]:
    await a_policy(here)
    await permit(here, "account", "role")
    async with kit.arc_of(running, REFLEX) as arc:
        yield Shop(here, arc, await installed_by_helm(running, here))


async def installed_by_helm(plane: ControlPlane, here: kit.Place) -> Release:
    """Install a release that is well, and whose pods crash quickly if they do."""
    release = Release(plane, here.name)
    await release.install(image="shop:v1", podAnnotations={kit.SPEED: "100"})
    return release


def image_of(body: kit.Json) -> str:
    text: str = body["spec"]["template"]["spec"]["containers"][0]["image"]
    return text


async def test_an_upgrade_to_a_crashing_image_is_undone_by_helm_without_people(shop: Shop) -> None:
    await shop.noted("helm/shop/1")
    await shop.upgrade("shop:v2-crash", greeting="sale", banner="sale")
    record = await shop.until("phase", "Done")

    status = record["status"]
    assert status["verdict"] == "Recovered", status
    assert [step["action"] for step in status["steps"]] == ["RollBackHelm"]
    assert await shop.release.statuses() == ["superseded", "superseded", "deployed"]
    assert (await shop.release.history())[-1]["rollback_revision"] == 1
    deployed = await shop.deployment()
    assert (image_of(deployed), await shop.greeting()) == ("shop:v1", "welcome")
    assert deployed["metadata"]["annotations"][BACK_BY] == record["metadata"]["name"]
    (job,) = await shop.jobs()
    assert job["metadata"]["annotations"]["kreflex.dev/remediation"] == record["metadata"]["name"]
    assert job["spec"]["template"]["spec"]["serviceAccountName"] == "helm-rollback"
    # The chart was written by helm's own account; of the Deployment the function has only annotated.
    assert shop.writes() == {
        ("create", "releasehistories"),
        ("patch", "releasehistories"),
        ("patch", "deployments"),
        ("create", "jobs"),
    }


async def test_what_helm_calls_superseded_is_not_gone_back_to_if_nobody_has_seen_it_well(shop: Shop) -> None:
    await shop.noted("helm/shop/1")
    await shop.upgrade("shop:v2-pull")
    await shop.upgrade("shop:v3-crash")
    assert await shop.release.statuses() == ["superseded", "superseded", "deployed"]

    record = await shop.until("phase", "Done")
    assert record["status"]["verdict"] == "Recovered", record["status"]
    assert image_of(await shop.deployment()) == "shop:v1"
    assert (await shop.release.history())[-1]["rollback_revision"] == 1


async def test_without_a_memory_the_pods_that_are_left_tell_which_revision_was_well(shop: Shop) -> None:
    await asyncio.sleep(4)
    await shop.upgrade("shop:v2-crash")

    record = await shop.until("phase", "Done")
    assert record["status"]["verdict"] == "Recovered", record["status"]
    assert image_of(await shop.deployment()) == "shop:v1"


async def test_without_a_memory_nothing_tells_of_two_bad_upgrades_in_a_row(shop: Shop) -> None:
    await asyncio.sleep(4)
    await shop.upgrade("shop:v2-pull")
    await asyncio.sleep(2)
    await shop.upgrade("shop:v3-crash")

    record = await shop.until("guard", "HelmUnproven")
    many = "none of the 2 earlier revisions of Helm's release"
    by_hand = f"helm history shop --namespace {shop.here.name}; helm rollback shop REVISION --namespace"
    assert many in record["status"]["reason"]
    assert by_hand in record["status"]["reason"]
    assert await shop.jobs() == []


async def test_the_same_bad_version_once_more_is_for_people(shop: Shop) -> None:
    await shop.noted("helm/shop/1")
    await shop.upgrade("shop:v2-crash")
    await shop.until("phase", "Done")
    await shop.upgrade("shop:v2-crash")

    async def refused() -> bool:
        await shop.told()
        return "SameVersionAgain" in {one["status"].get("guard") for one in await shop.here.records()}

    await eventually(refused, "a refusal", pause=0.3)
    assert len(await shop.jobs()) == 1


def helm_at_work(namespace: str) -> processes.Identity | None:
    """Find the process of a Job in this namespace."""
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"rollback" in words and f"--namespace={namespace}".encode() in words:
            return processes.Identity.of(int(folder.name))
    return None


async def begun(shop: Shop) -> processes.Identity | None:
    """Look for a process that has begun its work."""
    newest = (await shop.release.secrets())[-1]["metadata"]["labels"]["status"]
    return helm_at_work(shop.here.name) if newest == "pending-rollback" else None


@asynccontextmanager
async def caught_in_the_middle(shop: Shop) -> AsyncIterator[tuple[processes.Identity, asyncio.Task[kit.Json]]]:
    """Let the function begin, and no pod become Ready, so that helm waits for one; gives its process."""
    await shop.noted("helm/shop/1")
    await shop.upgrade("shop:v2-crash", greeting="sale", replicas=1)

    async def crashed() -> bool:
        statuses = [one for pod in await shop.here.pods("shop") for one in pod["status"].get("containerStatuses", [])]
        return any(one["restartCount"] > 2 for one in statuses)

    await eventually(crashed, "a crash loop")
    kwok = shop.here.plane.children["kwok"]
    kwok.pause()
    try:
        going = asyncio.create_task(shop.until("phase", "Done"))
        process: processes.Identity = await eventually(lambda: begun(shop), "helm at work", 60)
        yield process, going
    finally:
        kwok.resume()


async def test_a_rollback_that_is_killed_in_the_middle_is_gone_on_with(shop: Shop) -> None:
    async with caught_in_the_middle(shop) as (process, going):
        assert process.send(signals.SIGKILL)
    record = await going

    assert record["status"]["verdict"] == "Recovered", record["status"]
    assert await shop.release.statuses() == ["superseded", "superseded", "pending-rollback", "deployed"]
    assert (image_of(await shop.deployment()), await shop.greeting()) == ("shop:v1", "welcome")
    assert [job["status"]["succeeded"] for job in await shop.jobs()] == [1]


async def test_a_job_that_is_taken_away_is_made_again_for_the_same_revision(shop: Shop) -> None:
    async with caught_in_the_middle(shop) as (process, going):
        (first,) = await shop.jobs()
        where = f"{jobs.collection(shop.here.name)}/{first['metadata']['name']}"
        await shop.here.plane.api.delete(where, {"propagationPolicy": "Background"})
        await eventually(lambda: ended(process), "the end of helm")
    record = await going

    assert record["status"]["verdict"] == "Recovered", record["status"]
    (second,) = await shop.jobs()
    commands = [one["spec"]["template"]["spec"]["containers"][0]["command"] for one in (first, second)]
    assert commands[0] == commands[1]
    assert first["metadata"]["uid"] != second["metadata"]["uid"]
    assert await shop.release.statuses() == ["superseded", "superseded", "pending-rollback", "deployed"]
    assert (image_of(await shop.deployment()), await shop.greeting()) == ("shop:v1", "welcome")


async def ended(process: processes.Identity) -> bool:
    return not process.alive


async def test_an_upgrade_of_somebody_else_is_waited_for_and_told_to_people_if_it_never_ends(shop: Shop) -> None:
    await shop.noted("helm/shop/1")
    await cut_off(shop, "shop:v2-crash")

    record = await shop.until("outcome", "deferred")
    assert "revision 2 of Helm's release" in record["status"]["reason"]
    assert "is pending-upgrade since" in record["status"]["reason"]

    await shop.here.plane.api.patch(f"{POLICIES}/{shop.here.name}", {"spec": {"releases": {"stuckAfter": "1s"}}})
    record = await shop.until("guard", "HelmPending")
    assert "See that nobody is at it" in record["status"]["reason"]
    assert await shop.jobs() == []


async def cut_off(shop: Shop, image: str) -> None:
    """Kill an upgrade in its midst: it has written the Deployment, and waits for its pods."""
    task = asyncio.create_task(shop.release.upgrade("--wait", image=image, podAnnotations={kit.SPEED: "100"}))

    async def written() -> bool:
        return image_of(await shop.deployment()) == image

    await eventually(written, "an upgrade at work", pause=0.05)
    task.cancel()
    await asyncio.wait([task])
    assert await shop.release.statuses() == ["deployed", "pending-upgrade"]


async def test_of_two_replicas_one_asks_for_a_job(shop: Shop, running: ControlPlane) -> None:
    await shop.noted("helm/shop/1")
    await shop.upgrade("shop:v2-crash")
    async with kit.arc_of(running, REFLEX) as second:

        async def both() -> bool:
            asked = (shop.called(), shop.called(second))
            answers = await asyncio.gather(*asked, return_exceptions=True)
            return any(isinstance(one, dict) and one["status"].get("phase") == "Done" for one in answers)

        await eventually(both, "a verdict", 90, pause=0.3)
    assert (await shop.record())["status"]["verdict"] == "Recovered"
    assert len(await shop.jobs()) == 1
    assert await shop.release.statuses() == ["superseded", "superseded", "deployed"]


async def test_without_the_right_to_list_secrets_people_are_told_what_to_apply(
    running: ControlPlane, here: kit.Place
) -> None:
    await a_policy(here)
    release = await installed_by_helm(running, here)
    async with kit.arc_of(running, REFLEX) as arc:
        shop = Shop(here, arc, release)
        await asyncio.sleep(4)
        await shop.upgrade("shop:v2-crash")
        record = await shop.until("guard", "HelmRights")
    assert f"apply knative/variants/helm to namespace {here.name}" in record["status"]["reason"]
    assert await shop.jobs() == []


async def test_an_account_that_may_not_write_the_chart_fails_and_its_words_are_told(shop: Shop) -> None:
    await shop.noted("helm/shop/1")
    role = f"/apis/rbac.authorization.k8s.io/v1/namespaces/{shop.here.name}/roles/helm-rollback"
    rules = [{"apiGroups": [""], "resources": ["secrets"], "verbs": ["list", "get", "create", "update"]}]
    await shop.here.plane.api.patch(role, {"rules": rules})
    await shop.upgrade("shop:v2-crash")

    status = (await shop.until("phase", "Done"))["status"]
    assert (status["verdict"], status["guard"]) == ("Ineffective", "HelmFailed")
    assert "is forbidden" in status["verdictReason"]
    assert status["verdictReason"].endswith(". Give the account that right (knative/variants/helm)")


async def test_a_field_that_somebody_else_has_set_is_taken_only_if_the_policy_says_so(shop: Shop) -> None:
    await shop.noted("helm/shop/1")
    await shop.upgrade("shop:v2-crash")
    await shop.here.plane.api.patch(f"{shop.release.deployment}/scale", {"spec": {"replicas": 5}})

    status = (await shop.until("phase", "Done"))["status"]
    assert (status["verdict"], status["guard"]) == ("Ineffective", "HelmFailed")
    assert ".spec.replicas" in status["verdictReason"]
    assert "(releases.helm.forceConflicts)" in status["verdictReason"]


async def test_what_was_changed_beside_helm_is_left_to_people(shop: Shop) -> None:
    await shop.noted("helm/shop/1")
    kit.kubectl(shop.here.plane, "set", "image", "-n", shop.here.name, "deployment/shop", "app=shop:v2-crash")

    record = await shop.until("guard", "HelmDrift")
    by_hand = f"helm rollback shop 1 --namespace {shop.here.name} --wait"
    assert "kubectl-set has changed Deployment" in record["status"]["reason"]
    assert by_hand in record["status"]["reason"]


async def test_after_a_rollback_the_new_revision_is_the_one_that_is_noted(shop: Shop) -> None:
    await shop.noted("helm/shop/1")
    await shop.upgrade("shop:v2-crash")
    await shop.until("phase", "Done")
    await shop.noted("helm/shop/3")


async def test_helm_needs_no_folder_to_write_to(shop: Shop) -> None:
    """Its container's file system is read-only; here its home is a folder in which nobody can make anything."""
    await shop.upgrade("shop:v2")
    body = jobs.job("undo", "helm-rollback", "helm", "rollback", "shop", "1", "--wait", "--timeout=30s")
    body["spec"]["template"]["spec"]["containers"][0]["env"] = [
        {"name": name, "value": "/proc/nothing"} for name in ("HOME", "TMPDIR")
    ]
    await shop.here.plane.api.post(jobs.collection(shop.here.name), body)
    assert (await jobs.ended(shop.here.plane.api, shop.here.name, "undo", 60))["reason"] == "CompletionsReached"
    assert image_of(await shop.deployment()) == "shop:v1"
