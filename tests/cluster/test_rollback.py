"""rollback on a real API server, with the real controllers of workloads: bad releases, and what only looks like one."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import pytest

from functions.rollback import main as rollback
from kreflex.reflex import Arc, Result
from kreflex.reverts import BACK_BY, BACK_FROM, BACK_TO
from kreflex.serve import REFLEXES
from kreflex.signals import Due, PodSignal, WorkloadSignal
from lab import audit, workloads
from lab.api import Refused, eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster.reflexes import Ahead

assert rollback.main is not None
REFLEX = REFLEXES["rollback"]
HISTORIES = "/apis/kreflex.dev/v1alpha1/namespaces/{}/releasehistories"
RELEASES = {"changeWindow": "10m", "patience": "3s", "healthyFor": "1s"}
OWNERS = ["DaemonSet", "Deployment", "StatefulSet"]
FAST = {f"{workloads.PREFIX}speed": "100"}
KINDS: dict[str, Callable[[str, kit.Json], kit.Json]] = {
    "Deployment": lambda name, spec: workloads.deployment(name, 2, spec=spec),
    "StatefulSet": lambda name, spec: workloads.stateful_set(name, 2, spec),
    "DaemonSet": workloads.daemon_set,
}


@dataclass
class Shop:
    """A namespace in which the function looks after releases."""

    here: kit.Place
    arc: Arc[Any]

    def path(self, kind: str, name: str = "") -> str:
        return f"/apis/apps/v1/namespaces/{self.here.name}/{kind.lower()}s/{name}"

    async def read(self, kind: str, name: str = "shop") -> kit.Json:
        return await self.here.plane.api.get(self.path(kind, name))

    async def open(self, kind: str = "Deployment", name: str = "shop", probed: bool = True) -> None:
        """Make a workload, and have it remembered as healthy."""
        spec = workloads.pod_spec()
        spec["terminationGracePeriodSeconds"] = 0
        if probed:
            spec["containers"][0]["readinessProbe"] = {"httpGet": {"path": "/", "port": 80}}
        body = KINDS[kind](name, workloads.release("1", spec))
        body["spec"]["template"]["metadata"]["annotations"] = FAST
        await self.here.plane.api.post(self.path(kind), body)

        async def remembered() -> bool:
            await self.told(kind, name)
            found = await self.here.plane.api.get(HISTORIES.format(self.here.name))
            return f"{kind.lower()}-{name}" in [one["metadata"]["name"] for one in found["items"]]

        await eventually(remembered, f"{kind} {name} remembered as healthy", pause=0.3)

    async def release(self, tag: str, kind: str = "Deployment", name: str = "shop") -> None:
        """Release another version."""
        containers = (await self.read(kind, name))["spec"]["template"]["spec"]["containers"]
        image = f"{containers[0]['image'].rpartition(':')[0]}:{tag}"
        spec = {"template": {"spec": {"containers": [{**containers[0], "image": image}]}}}
        await self.here.plane.api.patch(self.path(kind, name), {"spec": spec})

    async def told(self, kind: str = "Deployment", name: str = "shop") -> Result:
        """Tell the function of a workload, as the waker and alerts do."""
        return await self.arc.handle(WorkloadSignal("apps/v1", kind, self.here.name, name, summary="told by a test"))

    async def answer(self, kind: str = "Deployment", name: str = "shop") -> Result:
        """Tell the function of a workload until it does something about it."""

        async def other() -> Result | None:
            result = await self.told(kind, name)
            return None if result.outcome in {"skipped", "deferred"} else result

        found: Result = await eventually(other, f"an answer about {kind} {name}", pause=0.2)
        return found

    async def record(self) -> kit.Json:
        (record,) = await self.here.records()
        return record

    async def verdict(self, kind: str = "Deployment", name: str = "shop") -> kit.Json:
        """Tell of the workload once, and then call for its record as the waker does until there is a verdict."""
        await self.answer(kind, name)

        async def settled() -> kit.Json | None:
            record = await self.record()
            await self.arc.handle(Due(self.here.name, record["metadata"]["name"]))
            record = await self.record()
            return record if record["status"].get("verdict") else None

        found: kit.Json = await eventually(settled, f"a verdict on {kind} {name}", 60.0, pause=0.3)
        return found

    def writes(self) -> list[tuple[str, str]]:
        """Tell what the function has written to anything but its own records."""
        return [
            (
                entry["verb"],
                "/".join(filter(None, (entry["objectRef"].get(key, "") for key in KEYS))),
            )
            for entry in self.here.writes("rollback")
            if entry["responseStatus"]["code"] < 300
            and entry["objectRef"]["resource"] not in {"remediations", "events"}
        ]


KEYS = ("resource", "subresource", "name")


@pytest.fixture
async def shop(installed: ControlPlane, here: kit.Place) -> AsyncIterator[Shop]:
    await here.set_policy(releases=RELEASES, owners=OWNERS, proof="1s", proveWithin="60s")
    async with kit.arc_of(installed, REFLEX) as arc:
        yield Shop(here, arc)
    assert forbidden(installed, here) == []


def forbidden(plane: ControlPlane, here: kit.Place) -> list[str]:
    """Tell what the API server forbade the function."""
    return [
        entry["requestURI"]
        for entry in audit.entries(plane.audit_log, here.name)
        if entry["user"]["username"].endswith(":rollback")
        and here.name in entry["requestURI"]
        and entry["responseStatus"]["code"] == 403
    ]


def image_of(body: kit.Json) -> str:
    text: str = body["spec"]["template"]["spec"]["containers"][0]["image"]
    return text


@pytest.mark.parametrize(
    ("kind", "tag"),
    [
        # The benchmark plays all faults with all kinds.
        *(("Deployment", tag) for tag in ("2-crash", "2-unready", "2-pull", "2-config", "2-oom", "2-exit")),
        *(("StatefulSet", tag) for tag in ("2-crash", "2-pull")),
        *(("DaemonSet", tag) for tag in ("2-unready", "2-config")),
    ],
)
async def test_a_bad_release_is_healthy_again_without_people(shop: Shop, kind: str, tag: str) -> None:
    await shop.open(kind)
    before = await shop.read(kind)
    await shop.release(tag, kind)
    record = await shop.verdict(kind)
    assert (record["status"]["verdict"], record["spec"]["target"]["kind"]) == ("Recovered", kind), record["status"]
    after = await shop.read(kind)
    assert after["spec"]["template"] == before["spec"]["template"]
    assert {BACK_BY, BACK_FROM, BACK_TO} <= after["metadata"]["annotations"].keys()
    patches = [one for one in shop.writes() if one[0] == "patch" and one[1].startswith(f"{kind.lower()}s/")]
    assert patches == [("patch", f"{kind.lower()}s/shop")]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_version_whose_pods_crash_after_the_release_was_complete_is_rolled_back(shop: Shop, kind: str) -> None:
    await shop.open(kind, probed=False)
    await shop.release("2-crash-2s", kind)
    record = await shop.verdict(kind)
    assert record["status"]["verdict"] == "Recovered", record["status"]
    assert image_of(await shop.read(kind)).endswith(":1")


async def held_up_by_another(shop: Shop, tag: str) -> None:
    """Release a version of a StatefulSet over one whose first pod is never ready, and which it waits for."""
    await shop.open("StatefulSet")
    await shop.release("2-unready", "StatefulSet")

    async def made() -> bool:
        found = await shop.here.pods("shop")
        pods = [one for one in found if one["spec"]["containers"][0]["image"].endswith(":2-unready")]
        return any(one["status"].get("phase") == "Running" for one in pods)

    await eventually(made, "a pod of the version that is never ready")
    await shop.release(tag, "StatefulSet")


async def test_a_stateful_set_that_waits_for_a_pod_of_an_older_version_is_freed(shop: Shop) -> None:
    await held_up_by_another(shop, "3")
    record = await shop.verdict("StatefulSet")
    status = record["status"]
    assert (status["verdict"], [step["action"] for step in status["steps"]]) == ("Recovered", ["EvictStuck"]), status
    assert shop.writes()[-1] == ("create", "pods/eviction/shop-1")
    pods = await shop.here.ready_pods("shop", 2)
    assert {one["spec"]["containers"][0]["image"] for one in pods} == {image_of(await shop.read("StatefulSet"))}


async def test_a_bad_version_that_waited_for_a_pod_of_another_bad_one_is_rolled_back_too(shop: Shop) -> None:
    await held_up_by_another(shop, "3-crash")

    async def back() -> bool:
        await shop.told("StatefulSet")
        for record in await shop.here.records():
            await shop.arc.handle(Due(shop.here.name, record["metadata"]["name"]))
        verdicts = [one["status"].get("verdict") for one in await shop.here.records()]
        return image_of(await shop.read("StatefulSet")).endswith(":1") and verdicts.count("Recovered") == 1

    await eventually(back, "the first version", 90, pause=0.3)
    await shop.here.ready_pods("shop", 2)
    assert len(shop.here.evictions()) == len(set(shop.here.evictions())) == 2


async def test_a_pod_that_crashes_leads_to_a_record_of_its_deployment(shop: Shop) -> None:
    await shop.open()
    await shop.release("2-crash")

    async def told() -> bool:
        for pod in await shop.here.pods("shop"):
            await shop.arc.handle(PodSignal(shop.here.name, pod["metadata"]["name"], pod["metadata"]["uid"]))
        return bool(await shop.here.records())

    await eventually(told, "a record", pause=0.2)
    record = await shop.record()
    uid = (await shop.read("Deployment"))["metadata"]["uid"]
    assert (record["spec"]["target"]["kind"], record["spec"]["target"]["uid"]) == ("Deployment", uid)


async def test_of_two_who_are_told_at_once_one_writes(shop: Shop, installed: ControlPlane) -> None:
    await shop.open()
    await shop.release("2-crash")
    async with kit.arc_of(installed, REFLEX) as second:
        others = Shop(shop.here, second)

        async def both() -> bool:
            answers = await asyncio.gather(shop.told(), others.told(), return_exceptions=True)
            return any(isinstance(one, Result) and one.outcome == "applied" for one in answers)

        await eventually(both, "a rollback", pause=0.2)
    assert [one for one in shop.writes() if one[1].startswith("deployments/")] == [("patch", "deployments/shop")]


async def test_the_same_bad_version_once_more_is_for_people(shop: Shop) -> None:
    await shop.open()
    await shop.release("2-crash")
    await shop.verdict()
    await shop.release("2-crash")
    told = await shop.answer()
    assert told.outcome == "refused"
    guards = {record["status"].get("guard") for record in await shop.here.records()}
    assert "SameVersionAgain" in guards
    assert image_of(await shop.read("Deployment")).endswith(":2-crash")


async def test_a_dependency_that_is_down_is_no_bad_release(shop: Shop) -> None:
    await shop.open()
    await shop.open(name="db")
    await shop.release("2-unready")
    for app in ("db", "shop"):
        for pod in await shop.here.pods(app):
            await shop.here.fault(pod, "unready")
    told = await shop.answer()
    assert told.outcome == "refused", told
    assert (await shop.record())["status"]["guard"] == "Dependency"
    assert image_of(await shop.read("Deployment")).endswith(":2-unready")


async def test_a_release_that_was_never_healthy_before_has_nothing_to_go_back_to(shop: Shop) -> None:
    await shop.here.plane.api.post(shop.path("Deployment"), KINDS["Deployment"]("shop", workloads.release("1-pull")))
    told = await shop.answer()
    assert told.outcome == "refused"
    assert (await shop.record())["status"]["guard"] == "FirstRelease"
    assert shop.writes() == []


async def test_a_good_release_is_left_alone_and_remembered(shop: Shop) -> None:
    await shop.open()
    await shop.release("2")

    async def known() -> bool:
        await shop.told()
        (history,) = (await shop.here.plane.api.get(HISTORIES.format(shop.here.name)))["items"]
        return len(history["spec"]["revisions"]) == 2

    await eventually(known, "both versions remembered", pause=0.3)
    assert await shop.here.records() == []
    assert {one[1].partition("/")[0] for one in shop.writes()} == {"releasehistories"}


async def test_the_waker_finds_what_nobody_told_of(shop: Shop) -> None:
    await shop.open()
    found = [one async for one in REFLEX.find(shop.arc.world, REFLEX.settings) if one.namespace == shop.here.name]
    assert found == []
    await shop.release("2-pull")

    async def ill() -> Any:
        found = REFLEX.find(shop.arc.world, REFLEX.settings)
        return [one async for one in found if one.namespace == shop.here.name]

    (signal,) = await eventually(ill, "a release that is not complete")
    uid = (await shop.read("Deployment"))["metadata"]["uid"]
    summary = f"Deployment {shop.here.name}/shop: its release is not complete"
    assert signal == WorkloadSignal("apps/v1", "Deployment", shop.here.name, "shop", uid, summary)


async def test_an_event_that_shows_nothing_costs_no_call(shop: Shop) -> None:
    await shop.open()
    body = await shop.read("Deployment")
    body |= {"kind": "Deployment", "apiVersion": "apps/v1"}
    calls = audit.entries(shop.here.plane.audit_log, ":rollback")
    before = len([one for one in calls if one["user"]["username"].endswith(":rollback")])
    signal = WorkloadSignal("apps/v1", "Deployment", shop.here.name, "shop", body["metadata"]["uid"], seen=body)
    assert (await shop.arc.handle(signal)).outcome == "skipped"
    calls = audit.entries(shop.here.plane.audit_log, ":rollback")
    assert len([one for one in calls if one["user"]["username"].endswith(":rollback")]) == before


ADMISSION = "/apis/admissionregistration.k8s.io/v1"


async def deny_templates(here: kit.Place) -> None:
    """Have people forbid all changes of templates, as in a freeze; wait until the API server heeds that."""
    rule = {"apiGroups": ["apps"], "apiVersions": ["v1"], "operations": ["UPDATE"], "resources": ["deployments"]}
    same = "object.spec.template == oldObject.spec.template"
    spec = {
        "failurePolicy": "Fail",
        "matchConstraints": {"resourceRules": [rule]},
        "validations": [{"expression": same, "message": "no releases today"}],
    }
    selects = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": here.name}}}
    bound = {"policyName": here.name, "validationActions": ["Deny"], "matchResources": selects}
    for plural, what in (("ies", spec), ("ybindings", bound)):
        body = {"metadata": {"name": here.name}, "spec": what}
        await here.plane.api.post(f"{ADMISSION}/validatingadmissionpolic{plural}", body)

    await eventually(lambda: frozen(here), "the freeze", pause=0.2)


async def frozen(here: kit.Place) -> bool:
    path = f"/apis/apps/v1/namespaces/{here.name}/deployments/shop?dryRun=All"
    try:
        await here.plane.api.patch(path, {"spec": {"template": {"metadata": {"labels": {"probe": "1"}}}}})
    except Refused as error:
        return "no releases today" in str(error)
    return False


async def thawed(here: kit.Place) -> bool:
    return not await frozen(here)


async def test_what_is_never_let_through_is_told_to_people_in_the_end(shop: Shop) -> None:
    await shop.open()
    await shop.release("2-crash")
    await deny_templates(shop.here)
    told, minutes, held = await eventually(lambda: begun(shop), "a first attempt", pause=0.2), 0, 0
    while told.outcome == "deferred" and minutes < 60:
        minutes, held = minutes + 2, held + 1
        Ahead.of(shop.arc, minutes=minutes)
        told = await shop.arc.handle(Due(shop.here.name, (await shop.record())["metadata"]["name"]))
    assert (told.outcome, held) == ("refused", 9), told
    assert "no releases today. It was tried 10 times" in told.because
    status = (await shop.record())["status"]
    assert (status["phase"], status["guard"]) == ("Open", "Admission")
    assert image_of(await shop.read("Deployment")).endswith(":2-crash")
    await shop.here.plane.api.delete(f"{ADMISSION}/validatingadmissionpolicybindings/{shop.here.name}")
    await eventually(lambda: thawed(shop.here), "the end of the freeze", pause=0.2)
    Ahead.of(shop.arc, minutes=minutes + 61)
    await eventually(lambda: rolled_back(shop), "what was refused for an hour rolled back", pause=0.5)


async def rolled_back(shop: Shop) -> bool:
    await shop.told()
    return image_of(await shop.read("Deployment")).endswith(":1")


async def begun(shop: Shop) -> Result | None:
    result = await shop.told()
    return result if "no releases today" in result.because else None


async def test_a_dry_run_tells_what_it_would_do_and_writes_nothing(shop: Shop) -> None:
    await shop.open()
    await shop.here.policy(releases=RELEASES, owners=OWNERS, mode="DryRun")
    await shop.release("2-crash")
    await shop.answer()
    status = (await shop.record())["status"]
    assert (status["outcome"], status["guard"]) == ("refused", "DryRun")
    assert "would roll back Deployment" in status["reason"]
    assert {one[1].partition("/")[0] for one in shop.writes()} == {"releasehistories"}
