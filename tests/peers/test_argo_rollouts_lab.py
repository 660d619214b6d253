"""Argo Rollouts itself on the lab: what its status says, what an abort does, and when it does not notice one."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest

from lab import rollouts, workloads
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.rollouts import PAUSE, degraded, healthy, waits, weight

Json = dict[str, Any]
STEPS = [weight(10), PAUSE, weight(50), PAUSE]
"""It waits at step 1 with a tenth, and at step 3 with half; when all is out the step is 4, the number of steps."""

ABORT = {"status": {"abort": True}}


@dataclass
class Place:
    """A namespace with Rollouts in it."""

    plane: ControlPlane
    name: str

    async def make(self, rollout: Json) -> Json:
        return await rollouts.make(self.plane.api, self.name, rollout)

    async def release(self, name: str, tag: str, at: Any = waits) -> Json:
        """Change the image, and wait until the Rollout is as wanted: at a pause, unless told otherwise."""
        await rollouts.release(self.plane.api, self.name, name, tag)
        return await self.until(name, at)

    async def until(self, name: str, wanted: Any, patience: float = 90) -> Json:
        return await rollouts.until(self.plane.api, self.name, name, wanted, patience)

    async def settled(self, name: str) -> Json:
        return await rollouts.settled(self.plane.api, self.name, name)

    async def change(self, name: str, patch: Json, subresource: str = "") -> Json:
        """Change a Rollout once the controller is at rest, so that it notices."""
        await self.settled(name)
        return await self.plane.api.patch(f"{self.path(name)}{subresource}", patch)

    async def get(self, name: str) -> Json:
        return await self.plane.api.get(self.path(name))

    def path(self, name: str) -> str:
        return f"{rollouts.collection(self.name)}/{name}"

    async def abort(self, name: str) -> Json:
        """Abort as `kubectl argo rollouts abort` does, once the controller is at rest."""
        return await self.change(name, ABORT, "/status")

    async def abort_now(self, name: str) -> Json:
        return await self.plane.api.patch(f"{self.path(name)}/status", ABORT)

    async def replicas(self, name: str) -> dict[str, int]:
        """The wanted replicas of each template's ReplicaSet, by hash."""
        sets = await rollouts.replica_sets(self.plane.api, self.name, name)
        return {key: one["spec"]["replicas"] for key, one in sets.items()}

    async def canary_weight(self, name: str) -> str:
        """What nginx would read on the Ingress that the controller makes."""
        path = f"/apis/networking.k8s.io/v1/namespaces/{self.name}/ingresses/{name}-{name}-canary"
        annotations = (await self.plane.api.get(path))["metadata"]["annotations"]
        assert annotations["nginx.ingress.kubernetes.io/canary"] == "true"
        return str(annotations["nginx.ingress.kubernetes.io/canary-weight"])

    async def selects(self, service: str) -> str | None:
        """The hash of the template whose pods stand behind a Service."""
        body = await self.plane.api.get(f"/api/v1/namespaces/{self.name}/services/{service}")
        found: str | None = body["spec"]["selector"].get(rollouts.HASH)
        return found


@pytest.fixture(scope="module")
async def rolling(plane: ControlPlane) -> AsyncIterator[ControlPlane]:
    """A control plane with Argo Rollouts at work."""
    await rollouts.install(plane)
    async with rollouts.running(plane):
        yield plane


@pytest.fixture
async def here(rolling: ControlPlane) -> Place:
    name = f"r-{uuid.uuid4().hex[:8]}"
    await rolling.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    return Place(rolling, name)


def conditions(rollout: Json) -> dict[str, tuple[str, str]]:
    """(status, reason) of each condition."""
    return {one["type"]: (one["status"], one["reason"]) for one in rollout["status"]["conditions"]}


async def test_a_healthy_rollout_has_passed_all_steps_and_its_template_is_the_stable_one(here: Place) -> None:
    status = (await here.make(rollouts.canary("shop", 10, STEPS)))["status"]

    assert (status["phase"], status["currentStepIndex"], status["currentPodHash"]) == ("Healthy", 4, status["stableRS"])
    # The number of a generation is a string here, and the spec was changed once by the controller itself.
    assert status["observedGeneration"] == "2"
    assert not {"abort", "abortedAt", "pauseConditions", "controllerPause", "message"} & set(status)


async def test_a_canary_of_a_tenth_is_one_of_ten_replicas_and_waits(here: Place) -> None:
    stable = (await here.make(rollouts.canary("shop", 10, STEPS)))["status"]["stableRS"]
    rollout = await here.release("shop", "v2")
    status = rollout["status"]

    new = status["currentPodHash"]
    assert (status["stableRS"], status["currentStepIndex"], status["phase"]) == (stable, 1, "Paused")
    assert (status["controllerPause"], status["message"]) == (True, "CanaryPauseStep")
    assert [one["reason"] for one in status["pauseConditions"]] == ["CanaryPauseStep"]
    assert status["canary"] == {}  # Weights are told only of a traffic router.
    assert (await here.replicas("shop")) == {stable: 9, new: 1}
    assert rollout["spec"].get("paused") is None
    assert conditions(await here.settled("shop"))["Progressing"] == ("Unknown", "RolloutPaused")


async def test_an_abort_takes_the_canary_away_and_leaves_the_spec_as_it_is(here: Place) -> None:
    stable = (await here.make(rollouts.canary("shop", 10, STEPS)))["status"]["stableRS"]
    bad = await here.release("shop", "v2-unready-1s")
    before = datetime.now(UTC).replace(microsecond=0)

    await here.abort("shop")
    aborted = await here.until("shop", degraded)

    status, new = aborted["status"], bad["status"]["currentPodHash"]
    assert (status["abort"], status["currentStepIndex"], status["currentPodHash"]) == (True, 0, new)
    assert datetime.fromisoformat(status["abortedAt"]) >= before
    assert "pauseConditions" not in status
    assert status["message"] == "RolloutAborted: Rollout aborted update to revision 2"
    assert conditions(aborted)["Progressing"] == ("False", "RolloutAborted")
    assert aborted["spec"] == bad["spec"]

    async def back() -> bool:
        return await here.replicas("shop") == {stable: 10, new: 0}

    await eventually(back, "a full stable ReplicaSet, and none of the canary")


async def test_an_abort_right_after_a_write_of_the_controller_goes_unnoticed_until_the_object_changes(
    here: Place,
) -> None:
    """An abort within some 50 ms stands in the API server, and is unknown to the controller: see `rollouts.settled`.

    `abort` is true then, and `abortedAt` is missing. The same patch again changes nothing, so nobody is told; any other
    change of the object brings it to light. What others write into the spec is lost as well, until the next change.
    """
    await here.make(rollouts.canary("shop", 10, STEPS))
    for tag in range(2, 22):
        await here.release("shop", f"v{tag}")
        await here.abort_now("shop")
        if not degraded(await here.settled("shop")):
            break
        await here.release("shop", f"v{tag}a")
    lost = await here.get("shop")
    assert (lost["status"]["abort"], lost["status"].get("abortedAt"), lost["status"]["phase"]) == (True, None, "Paused")

    await here.abort_now("shop")
    assert (await here.settled("shop"))["metadata"]["resourceVersion"] == lost["metadata"]["resourceVersion"]

    await here.plane.api.patch(here.path("shop"), {"metadata": {"annotations": {"kreflex.dev/attempt": "2"}}})
    assert "abortedAt" in (await here.until("shop", degraded))["status"]


async def test_a_second_abort_changes_nothing(here: Place) -> None:
    await here.make(rollouts.canary("shop", 4, STEPS))
    await here.release("shop", "v2")
    await here.abort("shop")
    await here.until("shop", degraded)
    aborted = await here.settled("shop")

    again = await here.abort("shop")

    assert again["metadata"]["resourceVersion"] == aborted["metadata"]["resourceVersion"]


async def test_a_release_that_is_through_has_its_abort_removed(here: Place) -> None:
    through = await here.make(rollouts.canary("shop", 4, STEPS))
    await here.abort("shop")

    async def removed() -> Json | None:
        rollout = await here.get("shop")
        return None if rollout["status"].get("abort") else rollout

    rollout = await eventually(removed, "no abort")
    assert healthy(rollout)
    assert rollout["status"]["stableRS"] == through["status"]["stableRS"]


async def test_a_canary_that_never_gets_ready_does_not_come_to_its_first_pause_and_can_be_aborted(here: Place) -> None:
    stable = (await here.make(rollouts.canary("shop", 10, STEPS)))["status"]["stableRS"]
    await here.release("shop", "v2-unready", at=lambda one: one["status"].get("updatedReplicas") == 1)
    stuck = (await here.settled("shop"))["status"]
    assert (stuck["phase"], stuck["currentStepIndex"]) == ("Progressing", 0)
    assert stuck["message"] == "more replicas need to be updated"

    await here.abort("shop")
    await here.until("shop", lambda one: degraded(one) and one["status"]["availableReplicas"] == 10)
    assert (await here.replicas("shop"))[stable] == 10


async def test_another_release_takes_an_abort_away(here: Place) -> None:
    await here.make(rollouts.canary("shop", 4, STEPS))
    await here.release("shop", "v2")
    await here.abort("shop")
    await here.until("shop", degraded)

    status = (await here.release("shop", "v3"))["status"]

    assert not {"abort", "abortedAt"} & set(status)


async def test_a_rollout_that_a_person_has_paused_is_aborted_in_words_and_keeps_its_canary_pods(here: Place) -> None:
    await here.make(rollouts.canary("shop", 10, STEPS))
    new = (await here.release("shop", "v2"))["status"]["currentPodHash"]
    await here.change("shop", {"spec": {"paused": True}})
    paused = (await here.until("shop", lambda one: one["status"].get("message") == "manually paused"))["status"]
    assert (paused["phase"], paused["currentStepIndex"], (await here.replicas("shop"))[new]) == ("Paused", 1, 1)

    await here.abort("shop")
    aborted = (await here.until("shop", degraded))["status"]
    assert (aborted["abort"], aborted["currentStepIndex"]) == (True, 0)
    # No ReplicaSet is scaled until the person goes on, so where pods are the weight, the canary keeps its share.
    await here.settled("shop")
    while_paused = await here.replicas("shop")
    await here.change("shop", {"spec": {"paused": False}})
    await here.until("shop", lambda one: one["status"].get("updatedReplicas") is None)
    assert (while_paused[new], (await here.replicas("shop"))[new]) == (1, 0)


async def test_the_template_of_the_stable_replica_set_undoes_a_release_without_its_steps(here: Place) -> None:
    stable = (await here.make(rollouts.canary("shop", 10, STEPS)))["status"]["stableRS"]
    await here.release("shop", "v2-unready-1s")
    await here.abort("shop")
    await here.until("shop", degraded)

    template = (await rollouts.replica_sets(here.plane.api, here.name, "shop"))[stable]["spec"]["template"]
    # With the controller's own label it would be another template.
    del template["metadata"]["labels"][rollouts.HASH]
    await here.change("shop", {"spec": {"template": template}})

    undone = await here.until("shop", healthy)
    assert (undone["status"]["currentPodHash"], undone["status"]["currentStepIndex"]) == (stable, 4)
    assert undone["metadata"]["annotations"] == {rollouts.REVISION: "3"}
    assert not {"abort", "abortedAt"} & set(undone["status"])


async def test_a_release_that_is_through_is_undone_by_all_steps_unless_there_is_a_rollback_window(here: Place) -> None:
    for name, window in (("slow", None), ("quick", {"revisions": 3})):
        body = rollouts.canary(name, 2, [weight(50), PAUSE])
        body["spec"] |= {"rollbackWindow": window} if window else {}
        stable = (await here.make(body))["status"]["stableRS"]
        await here.release(name, "v2")
        await here.change(name, {"status": {"promoteFull": True}}, "/status")
        await here.until(name, lambda one, old=stable: healthy(one) and one["status"]["stableRS"] != old)
        await rollouts.release(here.plane.api, here.name, name, "1")

    assert (await here.until("slow", waits))["status"]["currentStepIndex"] == 1
    assert (await here.until("quick", healthy))["status"]["currentStepIndex"] == 2


async def test_with_nginx_the_weight_is_told_and_goes_to_zero_before_the_pods_go(here: Place) -> None:
    body = rollouts.canary("shop", 4, [weight(10), PAUSE], **rollouts.through_nginx("shop"))
    stable = (await here.make(body))["status"]["stableRS"]
    new = (await here.release("shop", "v2"))["status"]["currentPodHash"]
    assert (await here.get("shop"))["status"]["canary"]["weights"] == {
        "canary": {"podTemplateHash": new, "serviceName": "shop-canary", "weight": 10},
        "stable": {"podTemplateHash": stable, "serviceName": "shop", "weight": 90},
    }
    assert await here.canary_weight("shop") == "10"
    assert (await here.selects("shop"), await here.selects("shop-canary")) == (stable, new)
    assert await here.replicas("shop") == {stable: 4, new: 1}

    await here.abort("shop")
    await here.until("shop", degraded)
    aborted = await here.settled("shop")
    assert aborted["status"]["canary"]["weights"] == {
        "canary": {"podTemplateHash": new, "serviceName": "shop-canary", "weight": 0},
        "stable": {"podTemplateHash": stable, "serviceName": "shop", "weight": 100},
    }
    assert await here.canary_weight("shop") == "0"
    assert await here.selects("shop-canary") == stable
    # abortScaleDownDelaySeconds, 30 by default.
    assert await here.replicas("shop") == {stable: 4, new: 1}


async def test_a_blue_green_abort_leaves_the_active_service_alone_and_the_new_pods_behind_the_preview(
    here: Place,
) -> None:
    stable = (await here.make(rollouts.blue_green("shop", 2)))["status"]["stableRS"]
    status = (await here.release("shop", "v2"))["status"]
    new = status["currentPodHash"]
    assert [one["reason"] for one in status["pauseConditions"]] == ["BlueGreenPause"]
    assert status["blueGreen"] == {"activeSelector": stable, "previewSelector": new}

    await here.abort("shop")
    await here.until("shop", degraded)
    aborted = (await here.settled("shop"))["status"]

    assert (aborted["abort"], aborted["stableRS"]) == (True, stable)
    assert aborted["blueGreen"] == {"activeSelector": stable, "previewSelector": new}
    assert (await here.selects("shop"), await here.selects("shop-preview")) == (stable, new)
    assert await here.replicas("shop") == {stable: 2, new: 2}


async def test_an_abort_ends_the_experiment_of_a_step(here: Place) -> None:
    await here.make(rollouts.canary("shop", 2, [rollouts.experiment(60), weight(50), PAUSE]))
    running = await here.release(
        "shop", "v2", at=lambda one: one["status"]["canary"].get("currentExperiment") is not None
    )
    path = f"/apis/{rollouts.VERSION}/namespaces/{here.name}/experiments"
    name = running["status"]["canary"]["currentExperiment"]
    await eventually(lambda: _phase_is(here, f"{path}/{name}", "Running"), "a running experiment")

    await here.abort("shop")
    await here.until("shop", degraded)

    await eventually(lambda: _ended(here, f"{path}/{name}"), "the end of the experiment")


async def _phase_is(here: Place, path: str, phase: str) -> bool:
    found = await here.plane.api.get(path)
    return bool(found.get("status", {}).get("phase") == phase)


async def _ended(here: Place, path: str) -> bool:
    found = await here.plane.api.get(path)
    return found["spec"].get("terminate") is True and found["status"]["phase"] == "Successful"


async def test_a_failed_analysis_aborts_by_itself(here: Place) -> None:
    template = rollouts.job_analysis("check", workloads.release("1-crash"))
    await here.plane.api.apply(f"/apis/{rollouts.VERSION}/namespaces/{here.name}/analysistemplates/check", template)
    await here.make(rollouts.canary("shop", 4, [weight(25), rollouts.analysis("check"), PAUSE]))

    status = (await here.release("shop", "v2", at=degraded))["status"]

    assert (status["abort"], status["currentStepIndex"]) == (True, 0)
    assert status["message"] == (
        "RolloutAborted: Rollout aborted update to revision 2: Step-based analysis phase error/failed: "
        'Metric "job" assessed Failed due to failed (1) > failureLimit (0)'
    )


async def test_a_release_that_makes_no_progress_is_degraded_and_not_aborted(here: Place) -> None:
    body = rollouts.canary("shop", 4, STEPS)
    body["spec"]["progressDeadlineSeconds"] = 3
    stable = (await here.make(body))["status"]["stableRS"]

    late = await here.release("shop", "v2-pull", at=degraded)

    assert conditions(late)["Progressing"] == ("False", "ProgressDeadlineExceeded")
    assert (late["status"].get("abort"), late["status"]["stableRS"]) == (None, stable)
