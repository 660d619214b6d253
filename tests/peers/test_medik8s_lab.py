"""Node Healthcheck itself and ours on one node: what it makes, and that the Lease of a node keeps either off."""

import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest

from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.leases import HOLDER, Leases
from kreflex.views import Ref
from lab import medik8s, nodes
from lab.api import eventually
from lab.cluster import ControlPlane

Json = dict[str, Any]
US = f"{HOLDER}test"
A_WHILE = timedelta(minutes=10)


@dataclass
class Ward:
    """Two nodes that Node Healthcheck looks after."""

    plane: ControlPlane
    name: str
    ill: str

    @property
    def lease(self) -> str:
        return f"node-{self.ill}"

    async def break_one(self) -> None:
        await nodes.break_node(self.plane.api, self.ill, "not-ready")

    async def remediation(self) -> Json | None:
        return await self.plane.api.find(f"{medik8s.REMEDIATIONS}/{self.ill}")

    async def remediated(self) -> Json:
        found: Json = await eventually(self.remediation, f"a remediation of {self.ill}")
        return found

    async def held(self) -> Json | None:
        return await self.plane.api.find(f"{medik8s.LEASES}/{self.lease}")

    async def over(self) -> None:
        """Wait until nothing is left of the remediation."""

        async def gone() -> bool:
            return await self.remediation() is None and await self.held() is None

        await eventually(gone, f"the end of the remediation of {self.ill}")

    async def said(self, words: str) -> None:
        """Wait until Node Healthcheck has said this in an Event."""

        async def found() -> bool:
            events = (await self.plane.api.get("/api/v1/events"))["items"]
            return any(words in one["message"] and one["involvedObject"]["name"] == self.name for one in events)

        await eventually(found, f"an Event that says {words}")


@pytest.fixture(scope="module")
async def checked(installed: ControlPlane) -> AsyncIterator[ControlPlane]:
    """A control plane with Node Healthcheck at work."""
    await medik8s.install(installed)
    async with medik8s.running(installed):
        yield installed


@pytest.fixture
async def ward(checked: ControlPlane) -> AsyncIterator[Ward]:
    """Nodes of a test's own, and a NodeHealthCheck for them."""
    name = f"ward-{uuid.uuid4().hex[:8]}"
    label = {"lab.kreflex.dev/ward": name}
    ill, other = await nodes.add(checked.api, 2, nodes.Pool(name, labels=label))
    await medik8s.make_check(checked, name, label)
    yield Ward(checked, name, ill)
    for path in (f"/api/v1/nodes/{ill}", f"/api/v1/nodes/{other}", f"{medik8s.CHECKS}/{name}"):
        await checked.api.delete(path)


@pytest.fixture
async def leases(checked: ControlPlane) -> AsyncIterator[Leases]:
    transport = Transport(load_credentials(str(checked.kubeconfig)))
    yield Leases(Reader(transport), Writer(transport))
    await transport.close()


async def test_it_makes_an_object_of_the_template_and_holds_the_lease_of_the_node(ward: Ward) -> None:
    await ward.break_one()
    made = await ward.remediated()

    (owner,) = made["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["name"], owner["controller"]) == ("NodeHealthCheck", ward.name, False)
    assert made["metadata"]["annotations"] == {
        medik8s.NODE_NAME: ward.ill,
        "remediation.medik8s.io/template-name": medik8s.TEMPLATE,
    }
    assert made["spec"] == {"remediationStrategy": "ResourceDeletion"}
    lease = await ward.held()
    assert lease is not None
    assert lease["spec"]["holderIdentity"] == f"NodeHealthCheck-{ward.name}"
    assert lease["metadata"]["ownerReferences"][0]["kind"] == "Node"


async def test_a_mended_node_is_let_go(ward: Ward) -> None:
    async with medik8s.remediating(ward.plane) as remediator:
        await ward.break_one()
        await ward.remediated()
        await ward.over()

    assert remediator.rebooted == [ward.ill]
    assert nodes.is_ready(await ward.plane.api.get(f"/api/v1/nodes/{ward.ill}"))


async def test_it_leaves_a_node_alone_whose_lease_we_hold_until_we_give_it_back(ward: Ward, leases: Leases) -> None:
    node = await ward.plane.api.get(f"/api/v1/nodes/{ward.ill}")
    ref = Ref("v1", "Node", "", ward.ill, node["metadata"]["uid"])
    assert await leases.hold(ward.lease, US, A_WHILE, ref) is None

    await ward.break_one()
    await ward.said("node lease is already taken")
    assert await ward.remediation() is None

    await leases.release(ward.lease, US)
    # It would look again in a minute.
    await medik8s.make_check(ward.plane, ward.name, {"lab.kreflex.dev/ward": ward.name}, minHealthy=1)
    await ward.remediated()


async def test_we_leave_a_node_alone_whose_lease_it_holds(ward: Ward, leases: Leases) -> None:
    await ward.break_one()
    await ward.remediated()

    refused = await leases.hold(ward.lease, US, A_WHILE)

    assert refused is not None
    assert refused.startswith(f"NodeHealthCheck-{ward.name} is at work on it until ")
    await leases.release(ward.lease, US)
    assert await ward.held() is not None


async def test_what_does_not_help_in_time_is_told_to_stop_and_says_that_it_failed(ward: Ward) -> None:
    template = {"apiVersion": medik8s.VERSION, "kind": "SelfNodeRemediationTemplate", "name": medik8s.TEMPLATE}
    step = {"remediationTemplate": {**template, "namespace": medik8s.NAMESPACE}, "order": 1, "timeout": "2s"}
    label = {"lab.kreflex.dev/ward": ward.name}
    await ward.plane.api.delete(f"{medik8s.CHECKS}/{ward.name}")
    await medik8s.make_check(ward.plane, ward.name, label, remediationTemplate=None, escalatingRemediations=[step])

    async with medik8s.remediating(ward.plane, "hangs"):
        await ward.break_one()

        async def stopped() -> Json | None:
            made = await ward.remediation()
            return made if made and nodes.condition(made, "Succeeded") == "False" else None

        made = await eventually(stopped, "the end of its patience", 60)

    assert medik8s.TIMED_OUT in made["metadata"]["annotations"]
    assert nodes.condition(made, "Processing") == "False"
