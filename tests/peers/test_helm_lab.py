"""Helm itself on the lab: what a rollback is to it, what it asks for, and what it leaves behind when it is cut off."""

import asyncio
import uuid
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from lab import audit, helm, jobs, processes
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.helm import Release

Json = dict[str, Any]
ACCOUNT = "releases"
LATE = "not ready. status: InProgress, message: Updated: 1/2\ncontext deadline exceeded"
BUSY = "Error: UPGRADE FAILED: another operation (install/upgrade/rollback) is in progress\n"
DONE = "Rollback was a success! Happy Helming!\n"
METADATA = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"


@pytest.fixture(scope="module")
async def running(plane: ControlPlane) -> AsyncIterator[ControlPlane]:
    """A control plane on which Jobs run."""
    async with jobs.running(plane):
        yield plane


@pytest.fixture
async def release(running: ControlPlane) -> Release:
    """A release that is well, in a namespace of its own."""
    made = await bare(running)
    await made.install(image="shop:v1")
    return made


async def bare(plane: ControlPlane) -> Release:
    name = f"helm-{uuid.uuid4().hex[:8]}"
    await plane.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    return Release(plane, name)


async def may(release: Release, *rules: Json) -> None:
    """Let the account of the Jobs do these things, and wait until the API server knows."""
    await helm.account(release.plane, release.namespace, ACCOUNT, rules)

    async def known() -> bool:
        return all([await _allowed(release, rule, resource) for rule in rules for resource in rule["resources"]])

    await eventually(known, f"the rights of {ACCOUNT}")


async def _allowed(release: Release, rule: Json, resource: str) -> bool:
    user = f"system:serviceaccount:{release.namespace}:{ACCOUNT}"
    about = {"namespace": release.namespace, "group": rule["apiGroups"][0], "resource": resource}
    path = "/apis/authorization.k8s.io/v1/subjectaccessreviews"
    answers = [
        await release.plane.api.post(path, {"spec": {"user": user, "resourceAttributes": {**about, "verb": verb}}})
        for verb in rule["verbs"]
    ]
    return all(one["status"]["allowed"] for one in answers)


async def run(release: Release, name: str, *arguments: str, **spec: Any) -> str:
    """Run helm in a Job to its end; the reason of that."""
    body = jobs.job(name, ACCOUNT, "helm", *arguments, **spec)
    await release.plane.api.post(jobs.collection(release.namespace), body)
    reason: str = (await jobs.ended(release.plane.api, release.namespace, name, 60))["reason"]
    return reason


async def message(release: Release, name: str) -> str:
    """The last words of a Job that has failed."""
    path = f"/api/v1/namespaces/{release.namespace}/pods"
    (pod,) = (await release.plane.api.get(path, labelSelector=f"batch.kubernetes.io/job-name={name}"))["items"]
    said: str = pod["status"]["containerStatuses"][0]["state"]["terminated"]["message"]
    return said


async def image(release: Release) -> str:
    """What the pods of a release shall run."""
    found: str = (await release.plane.api.get(release.deployment))["spec"]["template"]["spec"]["containers"][0]["image"]
    return found


async def asked(release: Release) -> set[tuple[str, str]]:
    """What the account has written by now: verbs and resources."""
    user = f"system:serviceaccount:{release.namespace}:{ACCOUNT}"
    entries = [one for one in audit.entries(release.plane.audit_log) if one["user"]["username"] == user]
    return {(one["verb"], one["objectRef"]["resource"]) for one in entries if one["objectRef"]["namespace"]}


async def cut_off(release: Release, doing: str, *arguments: str, image: str) -> None:
    """Kill an upgrade in its midst: as soon as it says that it is at work."""
    task = asyncio.create_task(release.upgrade("--wait", *arguments, image=image))

    async def begun() -> bool:
        return doing in await release.statuses()

    await eventually(begun, doing)
    task.cancel()
    await asyncio.wait([task])


async def test_an_upgrade_that_is_not_ready_in_time_fails_and_the_old_revision_stays_deployed(release: Release) -> None:
    answer = await release.upgrade("--wait", "--timeout=4s", image="shop:v2-crash")

    late = f"resource Deployment/{release.namespace}/shop {LATE}"
    assert answer.code == 1
    assert answer.error.endswith(f"Error: UPGRADE FAILED: {late}\n")
    first, second = await release.history()
    assert {key: value for key, value in first.items() if key != "updated"} == {
        "revision": 1,
        "status": "deployed",
        "chart": "shop-1.0.0",
        "app_version": "1",
        "description": "Install complete",
    }
    assert (second["status"], second["description"]) == ("failed", f'Upgrade "shop" failed: {late}')


async def test_metadata_alone_tells_the_status_of_each_revision(release: Release) -> None:
    await release.upgrade(image="shop:v2-pull")
    await release.rollback(1)

    url = f"{release.plane.url}/api/v1/namespaces/{release.namespace}/secrets"
    headers = {"Authorization": f"Bearer {release.plane.token_of('admin')}", "Accept": METADATA}
    context = processes.trusting(release.plane.authority)
    async with (
        aiohttp.ClientSession(headers=headers) as session,
        session.get(url, params={"labelSelector": "owner=helm,name=shop"}, ssl=context) as answer,
    ):
        items = (await answer.json())["items"]

    assert [one["kind"] for one in items] == ["PartialObjectMetadata"] * 3
    assert [one["metadata"]["name"] for one in items] == [f"sh.helm.release.v1.shop.v{n}" for n in (1, 2, 3)]
    labels = [one["metadata"]["labels"] for one in items]
    assert all(int(one.pop("modifiedAt")) for one in labels)
    common = {"owner": "helm", "name": "shop"}
    assert labels == [
        {**common, "version": "1", "status": "superseded"},
        {**common, "version": "2", "status": "superseded"},
        {**common, "version": "3", "status": "deployed"},
    ]
    assert (await release.history())[-1]["rollback_revision"] == 1


async def test_a_job_rolls_back_with_these_rights_and_no_others(release: Release) -> None:
    await may(release, *helm.ROLLBACK_RULES, *helm.WAIT_RULES)
    await release.upgrade(image="shop:v2-crash", banner="sale")
    arguments = ("rollback", "shop", "1", "--wait", "--timeout=30s")

    assert await run(release, "undo", *arguments) == "CompletionsReached"
    assert await image(release) == "shop:v1"
    assert await release.statuses() == ["superseded", "superseded", "deployed"]
    assert await asked(release) == {
        ("create", "secrets"),
        ("update", "secrets"),
        ("patch", "configmaps"),
        ("patch", "services"),
        ("patch", "deployments"),
        ("delete", "configmaps"),
    }


async def test_what_only_the_restored_revision_had_needs_the_right_to_create(release: Release) -> None:
    secrets, _, deployments = helm.ROLLBACK_RULES
    poor = {"apiGroups": [""], "resources": ["configmaps", "services"], "verbs": ["get", "patch", "delete"]}
    await release.upgrade(image="shop:v2", banner="sale")
    await release.upgrade(image="shop:v3-crash")
    await may(release, secrets, poor, deployments)

    assert await run(release, "poor", "rollback", "shop", "2") == "BackoffLimitExceeded"
    assert 'cannot create resource "configmaps"' in await message(release, "poor")

    await may(release, *helm.ROLLBACK_RULES)
    assert await run(release, "rich", "rollback", "shop", "2") == "CompletionsReached"
    assert await image(release) == "shop:v2"


async def test_the_oldest_revisions_go_but_not_the_deployed_one(release: Release) -> None:
    await may(release, *helm.ROLLBACK_RULES)
    for number in (2, 3):
        await release.upgrade("--wait", "--timeout=2s", image=f"shop:v{number}-pull")

    assert await run(release, "undo", "rollback", "shop", "1", "--history-max=3") == "CompletionsReached"
    assert [(one["revision"], one["status"]) for one in await release.history()] == [
        (1, "superseded"),
        (3, "failed"),
        (4, "deployed"),
    ]


async def test_a_rollback_that_lacks_a_right_fails_and_the_bad_revision_counts_as_superseded(release: Release) -> None:
    *secrets, _ = helm.ROLLBACK_RULES
    await may(release, *secrets, {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get"]})
    await release.upgrade("--wait", "--timeout=2s", image="shop:v2-pull")
    assert await release.statuses() == ["deployed", "failed"]

    assert await run(release, "undo", "rollback", "shop", "1") == "BackoffLimitExceeded"

    user = f"system:serviceaccount:{release.namespace}:{ACCOUNT}"
    assert (await message(release, "undo")).endswith(
        f'deployments.apps "shop" is forbidden: User "{user}" cannot patch resource "deployments" in API group "apps" '
        f'in the namespace "{release.namespace}"\n'
    )
    assert await image(release) == "shop:v2-pull"
    # Revision 2 has never worked.
    assert await release.statuses() == ["deployed", "superseded", "failed"]


async def test_an_account_that_may_not_read_secrets_writes_nothing(release: Release) -> None:
    await helm.account(release.plane, release.namespace, ACCOUNT, [])

    assert await run(release, "undo", "rollback", "shop", "1") == "BackoffLimitExceeded"
    user = f"system:serviceaccount:{release.namespace}:{ACCOUNT}"
    assert await message(release, "undo") == (
        "Error: query: failed to query with labels: secrets is forbidden: "
        f'User "{user}" cannot list resource "secrets" in API group "" in the namespace "{release.namespace}"\n'
    )
    assert await asked(release) == set()


async def test_a_rollback_that_is_ended_stays_pending_and_the_next_one_is_not_kept_from_it(release: Release) -> None:
    await may(release, *helm.ROLLBACK_RULES, *helm.WAIT_RULES)
    await release.upgrade(image="shop:v2-unready")
    await release.upgrade(image="shop:v3")
    waits = ("rollback", "shop", "2", "--wait", "--timeout=5m")

    assert await run(release, "cut", *waits, activeDeadlineSeconds=3) == "DeadlineExceeded"
    assert await release.statuses() == ["superseded", "superseded", "deployed", "pending-rollback"]
    assert await release.upgrade(image="shop:v4") == helm.Answer(1, "", BUSY)
    # Helm asks for no state before a rollback: only an upgrade is refused.
    assert await run(release, "again", "rollback", "shop", "1", "--wait", "--timeout=30s") == "CompletionsReached"
    assert await image(release) == "shop:v1"
    # What was cut off stays as it is for ever, and is in nobody's way.
    assert await release.statuses() == ["superseded", "superseded", "superseded", "pending-rollback", "deployed"]
    assert (await release.upgrade(image="shop:v4")).code == 0


async def test_without_a_revision_it_goes_back_by_one_even_if_that_one_was_bad(release: Release) -> None:
    await release.upgrade("--wait", "--timeout=2s", image="shop:v2-pull")
    await release.rollback(1)
    assert await image(release) == "shop:v1"

    assert await release.rollback() == helm.Answer(0, DONE, "")
    assert await image(release) == "shop:v2-pull"
    assert [one.get("rollback_revision") for one in await release.history()] == [None, None, 1, 2]


async def test_an_upgrade_that_is_killed_stays_pending_until_a_rollback(release: Release) -> None:
    await cut_off(release, "pending-upgrade", image="shop:v2-unready")

    assert await release.statuses() == ["deployed", "pending-upgrade"]
    assert await release.upgrade(image="shop:v3") == helm.Answer(1, "", BUSY)
    assert await release.rollback(1, "--wait", "--timeout=30s") == helm.Answer(0, DONE, "")
    assert await release.statuses() == ["superseded", "pending-upgrade", "deployed"]


async def test_a_field_that_somebody_else_has_set_is_a_conflict_unless_it_is_forced(release: Release) -> None:
    await release.upgrade(image="shop:v2-crash", greeting="sale")
    scale = {"spec": {"replicas": 5}}
    await release.plane.api.patch(f"{release.deployment}/scale", scale)

    refused = await release.rollback(1)
    assert refused.code == 1
    assert "Apply failed with 1 conflict: conflict with " in refused.error
    assert refused.error.endswith(' with subresource "scale" using apps/v1: .spec.replicas\n')
    # ConfigMaps come first: half of it is rolled back.
    settings = await release.plane.api.get(f"/api/v1/namespaces/{release.namespace}/configmaps/shop")
    assert settings["data"] == {"greeting": "welcome"}
    assert await image(release) == "shop:v2-crash"

    assert await release.rollback(1, "--force-conflicts") == helm.Answer(0, DONE, "")
    assert await image(release) == "shop:v1"
    assert (await release.plane.api.get(release.deployment))["spec"]["replicas"] == 2


async def test_a_first_revision_that_fails_leaves_nothing_to_go_back_to(running: ControlPlane) -> None:
    release = await bare(running)
    answer = await helm.helm(
        running,
        *("install", "shop", str(helm.CHART), "-n", release.namespace),
        *("--set=image=shop:v1-pull", "--wait", "--timeout=2s"),
    )

    assert answer.code == 1
    assert await release.statuses() == ["failed"]
    assert await release.rollback() == helm.Answer(1, "", "Error: release has no 0 version\n")
    assert await release.rollback(7) == helm.Answer(1, "", "Error: release has no 7 version\n")
