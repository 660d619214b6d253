"""Flagger's rollback webhook, asked of functions as processes: every answer up to 202 rolls a canary back."""

import json
import uuid
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kreflex import admission, rights
from kreflex.serve import REFLEXES
from lab import crds, manifests
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit
from tests.cluster.test_canary_actions import NAME
from tests.serving import Served, served

CANARIES = "flagger.app/v1beta1"


@pytest.fixture(scope="module")
async def gate(installed: ControlPlane) -> AsyncIterator[Served]:
    """canary-aborter, for callers that can show nothing."""
    allowed = rights.rights_of(REFLEXES[NAME])
    bodies = [*crds.sharing_crds(), *rights.manifests(allowed), *admission.policy_of(allowed)]
    await manifests.apply(installed.api, bodies)
    async with served(installed, "canary_aborter", CALLERS="network") as running:
        yield running


async def a_canary(plane: ControlPlane, *, crashes: bool = True, hook: str = "rollback", **policy: Any) -> kit.Place:
    """Make what Flagger has while it analyses version v2 of Deployment shop, whose pods crash unless told otherwise."""
    here = kit.Place(plane, f"f-{uuid.uuid4().hex[:8]}")
    await plane.api.post("/api/v1/namespaces", {"metadata": {"name": here.name}})
    await here.policy(functions=[NAME], proof="10m", proveWithin="20m", **policy)
    fault = {kit.FAULT: "crash-loop", kit.SPEED: "100"} if crashes else {}
    await here.deployment("shop-primary")
    body = kit.deployment("shop", 1, annotations=fault)
    webhooks = [{"name": "kreflex", "type": hook, "url": "http://canary-aborter"}]
    spec = {
        "targetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "shop"},
        "service": {"port": 80},
        "analysis": {"interval": "10s", "threshold": 3, "iterations": 10, "webhooks": webhooks},
    }
    canary = {"apiVersion": CANARIES, "kind": "Canary", "metadata": {"name": "shop"}, "spec": spec}
    await manifests.apply(plane.api, [body, canary], here.name)
    await analyses(here, "v2")
    await eventually(lambda: _as_wanted(here, crashes=crashes), "pods that crash" if crashes else "pods that are Ready")
    return here


async def analyses(here: kit.Place, version: str, phase: str = "Progressing") -> None:
    """Write what Flagger writes."""
    status = {"phase": phase, "lastAppliedSpec": version, "canaryWeight": 10, "failedChecks": 0, "iterations": 0}
    path = f"/apis/{CANARIES}/namespaces/{here.name}/canaries/shop/status"
    await here.plane.api.patch(path, {"status": status})


async def _as_wanted(here: kit.Place, *, crashes: bool) -> bool:
    pods = await here.pods("shop")
    if not crashes:
        return bool(pods) and kit.is_ready(pods[0])
    counts = [one["restartCount"] for pod in pods for one in pod["status"].get("containerStatuses", [])]
    return bool(counts) and max(counts) > 2


async def asked(function: Served, here: kit.Place, phase: str = "Progressing") -> int:
    """Ask as Flagger does; the status alone is what it looks at."""
    body = {"name": "shop", "namespace": here.name, "phase": phase, "checksum": "1f2e3d", "metadata": {"env": "test"}}
    status, text = await function.post({"Content-Type": "application/json"}, json.dumps(body))
    assert status == 200 or "error" in json.loads(text)
    return status


async def rolled_back(function: Served, here: kit.Place) -> bool:
    """Whether Flagger would roll back; a pod that loops may run at the moment at which it is looked at."""
    return await asked(function, here) <= 202


async def test_the_gate_is_open_for_a_canary_that_is_worse_and_stays_open_until_flagger_has_heard(gate: Served) -> None:
    here = await a_canary(gate.plane)
    await eventually(lambda: rolled_back(gate, here), "the gate open")
    assert [await asked(gate, here) for _ in range(3)] == [200, 200, 200]
    (record,) = await here.records()
    assert (record["status"]["phase"], record["status"]["intent"]["action"]) == ("Applied", "OpenGate")
    assert [one["objectRef"]["resource"] for one in here.writes(NAME) if one["responseStatus"]["code"] < 300].count(
        "canaries"
    ) == 0


async def test_another_version_finds_the_gate_closed(gate: Served) -> None:
    here = await a_canary(gate.plane)
    await eventually(lambda: rolled_back(gate, here), "the gate open")
    await analyses(here, "v3")
    assert await asked(gate, here) == 412


async def test_the_gate_is_closed_for_a_canary_that_is_well(gate: Served) -> None:
    here = await a_canary(gate.plane, crashes=False)
    assert (await asked(gate, here), await here.records()) == (412, [])


@pytest.mark.parametrize("policy", [{"mode": "DryRun"}, {"mode": "Approve"}, {"frozen": True}])
async def test_the_gate_is_closed_while_people_do_not_let_act(gate: Served, policy: dict[str, Any]) -> None:
    here = await a_canary(gate.plane, **policy)

    async def recorded() -> bool:
        assert await asked(gate, here) == 412
        return bool(await here.records())

    await eventually(recorded, "a record")
    (record,) = await here.records()
    assert (await asked(gate, here), record["status"]["phase"]) == (412, "Open")


@pytest.mark.parametrize("phase", ["Failed", "Succeeded", "Initialized", "Promoting"])
async def test_the_gate_is_closed_while_no_analysis_is_under_way(gate: Served, phase: str) -> None:
    here = kit.Place(gate.plane, "default")
    assert await asked(gate, here, phase) == 412


async def test_a_canary_that_is_not_there_is_not_rolled_back(gate: Served) -> None:
    assert await asked(gate, kit.Place(gate.plane, "default")) == 412


async def test_who_is_no_canary_aborter_tells_flagger_nothing(gate: Served) -> None:
    here = await a_canary(gate.plane)
    async with served(gate.plane, CALLERS="network") as killer:
        assert await asked(killer, here) == 412


async def test_nor_does_the_waker(gate: Served) -> None:
    async with served(gate.plane, "waker", CALLERS="network", FUNCTIONS=f"{NAME}=http://127.0.0.1:1") as waker:
        assert await asked(waker, kit.Place(gate.plane, "default")) == 412


async def test_a_body_that_names_nothing_is_refused(gate: Served) -> None:
    body = {"name": "shop", "namespace": "../x", "phase": "Progressing", "checksum": ""}
    status, text = await gate.post({}, json.dumps(body))
    assert (status, json.loads(text)["error"]) == (400, "body.namespace: must be a name as Kubernetes has them")
