"""A plan, a person with kubectl, one eviction; and everybody and everything whose yes does not count."""

import contextlib
import os
import subprocess
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from kreflex.due import is_due
from kreflex.errors import UnavailableError
from kreflex.policy import Policies
from kreflex.records import read_record
from kreflex.reflex import Arc
from kreflex.views import JSON
from lab import manifests
from lab.api import Refused, eventually
from lab.cluster import ControlPlane
from lab.toolchain import Toolchain
from tests import kit
from tests.cluster.reflexes import (
    POLICIES,
    SPEED,
    Ahead,
    an_arc,
    changes,
    events,
    handled,
    the_record,
    told,
    woken,
)

RBAC = "rbac.authorization.k8s.io"
KIND = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Remediation"}
WHEN = "%Y-%m-%dT%H:%M:%SZ"


@pytest.fixture
async def arc(installed: ControlPlane) -> AsyncIterator[Arc[Any]]:
    async with an_arc(installed) as running:
        yield running


@pytest.fixture
async def waits(here: kit.Place) -> AsyncIterator["Plan"]:
    """A record that waits for a person, as the function writes it; Ada may approve, Bob may do all but that."""
    await let_approve(here)
    async with here.plane.api_with(await here.plane.token("restart-loop-killer", "kreflex-system")) as function:
        path = f"{POLICIES}/namespaces/{here.name}/remediations"
        target = {"apiVersion": "v1", "kind": "Pod", "namespace": here.name, "name": "cart-1", "uid": "1"}
        spec = {"function": "restart-loop-killer", "target": target, "fault": {"key": "restart-loop-killer/1"}}
        await function.post(path, {**KIND, "metadata": {"name": "cart-1"}, "spec": spec})
        now = f"{datetime.now(UTC):{WHEN}}"
        status = {"phase": "Open", "outcome": "awaiting-approval", "guard": "Approval", "reason": "would evict"}
        status |= {"planHash": "f00d", "decidedAt": now}
        yield Plan(here, await function.patch(f"{path}/cart-1/status", {"status": status}))


async def let_approve(here: kit.Place) -> None:
    patcher = [
        {**rule, "verbs": [verb for verb in rule["verbs"] if verb != "approve"]}
        for rule in approver()
        if "remediations" in rule["resources"]
    ]
    accounts = {"kind": "Group", "name": f"system:serviceaccounts:{here.name}"}
    role = {"apiVersion": f"{RBAC}/v1", "kind": "Role", "metadata": {"name": "patcher"}, "rules": patcher}
    bindings = [
        bound("ClusterRole", "kreflex-approver", {"kind": "User", "name": "ada"}, accounts),
        bound("Role", "patcher", {"kind": "User", "name": "bob"}),
    ]
    await manifests.apply(here.plane.api, [role, *bindings], here.name)


def approver() -> list[JSON]:
    bodies = kit.manifests("knative/admission/approvals.yaml")
    (rules,) = [body["rules"] for body in bodies if body["metadata"]["name"] == "kreflex-approver"]
    found: list[JSON] = rules
    return found


def bound(kind: str, role: str, *subjects: JSON) -> JSON:
    return {
        "apiVersion": f"{RBAC}/v1",
        "kind": "RoleBinding",
        "metadata": {"name": f"{role}-test"},
        "roleRef": {"apiGroup": RBAC, "kind": kind, "name": role},
        "subjects": [{**subject, "apiGroup": RBAC} for subject in subjects],
    }


@dataclass
class Plan:
    """What waits for a person."""

    here: kit.Place
    record: kit.Json

    @property
    def decided(self) -> datetime:
        return datetime.fromisoformat(self.record["status"]["decidedAt"])

    @property
    def path(self) -> str:
        return f"{POLICIES}/namespaces/{self.here.name}/remediations/{self.record['metadata']['name']}"

    def config(self, user: str) -> Path:
        return self.here.plane.kubeconfig_of(user)

    def types(self, command: str, user: str) -> subprocess.CompletedProcess[str]:
        """What becomes of a command that a person pastes into a shell."""
        program = Toolchain().ensure(["kubectl"])["kubectl"]
        path = f"{program.parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "KUBECONFIG": str(self.config(user))}
        return subprocess.run(["bash", "-c", command], env=environment, capture_output=True, text=True, check=False)

    def approve(self, user: str = "ada", **changed: Any) -> None:
        """Approve with the real kubectl and a credential of this person's own; raises with kubectl's words."""
        kit.kubectl(self.here.plane, *self.command(**{"by": user, **changed}), config=self.config(user))

    def command(self, **changed: Any) -> list[str]:
        approval = {"planHash": self.record["status"]["planHash"], "by": "ada", "until": self.later(minutes=30)}
        approval |= changed
        patch = str({"spec": {"approval": approval}}).replace("'", '"')
        name = self.record["metadata"]["name"]
        return ["-n", self.here.name, "patch", "rem", name, "--type=merge", f"--patch={patch}"]

    def later(self, **by: float) -> str:
        return f"{max(self.decided, datetime.now(UTC)) + timedelta(**by):{WHEN}}"


def command_of(record: kit.Json) -> str:
    text: str = record["status"]["reason"].split(". To approve: ")[1]
    return text


# From the plan to the eviction


async def comes_to(arc: Arc[Any], waits: Plan, expected: tuple[str, str, str | None]) -> None:
    """Wake the record until it has come this far; a pod that loops quickly may change while it is looked at."""

    async def there() -> bool:
        with contextlib.suppress(UnavailableError):
            waits.record = await woken(arc, waits.here)
        return told(waits.record) == expected

    await eventually(there, f"a record that is {expected}", patience=90)


async def test_who_has_the_verb_pastes_the_command_and_the_plan_runs_once(here: kit.Place, arc: Arc[Any]) -> None:
    await let_approve(here)
    pod = await here.loop((await here.deployment())[0], speed=SPEED)
    await here.policy(mode="Approve")
    assert (await handled(arc, pod)).outcome == "awaiting-approval"
    waits = Plan(here, await the_record(here))
    assert told(waits.record) == ("Open", "awaiting-approval", "Approval")
    reason = waits.record["status"]["reason"]
    assert reason.startswith(f"would evict Pod {here.name}/{pod['metadata']['name']}: app restarted ")
    assert [note for word, _, note in await events(here) if word == "KreflexApproval"] == [reason]

    # An older version of the function had another plan, and that was approved.
    await arc.writer.merge(f"{waits.path}/status", {"status": {"planHash": "older"}})
    waits.approve(planHash="older", until=waits.later(hours=1))
    await comes_to(arc, waits, ("Open", "awaiting-approval", "ApprovalMismatch"))
    before = changes(here)
    await woken(arc, here)
    assert (changes(here), here.evictions()) == (before, [])

    # The next one comes too late.
    waits.approve(until=waits.later(minutes=1))
    Ahead.of(arc, minutes=5)
    await comes_to(arc, waits, ("Open", "awaiting-approval", "ApprovalExpired"))
    before = changes(here)
    await woken(arc, here)
    assert (changes(here), here.evictions()) == (before, [])

    typed = waits.types(command_of(waits.record), "ada")
    assert (typed.returncode, typed.stderr) == (0, "")
    approval = (await the_record(here))["spec"]["approval"]
    assert (approval["planHash"], approval["by"]) == (waits.record["status"]["planHash"], "ada")
    await comes_to(arc, waits, ("Applied", "applied", None))
    await woken(arc, here)
    assert here.evictions() == [pod["metadata"]["uid"]]


async def test_an_approval_wakes_a_record(waits: Plan) -> None:
    async def due() -> bool:
        record = read_record(await the_record(waits.here))
        return is_due(record, Policies(()), record.created, timedelta(hours=1))

    assert not await due()
    waits.approve()
    assert await due()


# Who is refused


async def refused(waits: Plan, user: str, words: str, **changed: Any) -> None:
    """See an approval refused with these words, and the record as it was."""
    before = (await the_record(waits.here))["spec"]
    with pytest.raises(AssertionError, match=words):
        waits.approve(user, **changed)
    assert (await the_record(waits.here))["spec"] == before


async def test_nobody_approves_without_the_verb(waits: Plan) -> None:
    why = f"bob needs the verb approve on remediations in namespace {waits.here.name}, as ClusterRole kreflex-approver"
    await refused(waits, "bob", why, by="bob")


async def test_nobody_approves_in_another_name(waits: Plan) -> None:
    await refused(waits, "ada", "spec.approval.by must be who asks: ada, not bob", by="bob")
    await refused(waits, "bob", "spec.approval.by must be who asks: bob, not ada", by="ada")


async def test_no_service_account_approves_whatever_it_may(waits: Plan) -> None:
    config = await waits.here.plane.kubeconfig_for(waits.here.name, "robot")
    robot = f"system:serviceaccount:{waits.here.name}:robot"
    with pytest.raises(AssertionError, match=f"only people approve, and {robot} is none"):
        kit.kubectl(waits.here.plane, *waits.command(by=robot), config=config)
    with pytest.raises(AssertionError, match=f"only people approve, and {robot} is none"):
        kit.kubectl(waits.here.plane, *waits.command(by="ada"), config=config)


# What is refused


async def test_another_plan_than_the_one_that_waits_is_not_approved(waits: Plan) -> None:
    await refused(waits, "ada", r"planHash must be the plan that waits now", planHash="another")


async def test_nothing_is_approved_without_a_plan(waits: Plan) -> None:
    async with waits.here.plane.api_with(await waits.here.plane.token("restart-loop-killer", "kreflex-system")) as one:
        await one.patch(f"{waits.path}/status", {"status": {"planHash": None, "guard": "Frozen"}})
    await refused(waits, "ada", "planHash must be the plan that waits now")


@pytest.mark.parametrize("by", [timedelta(minutes=-1), timedelta(hours=25), timedelta(days=3650)])
async def test_an_approval_is_for_a_day_at_most(waits: Plan, by: timedelta) -> None:
    until = f"{waits.decided + by:{WHEN}}"
    await refused(waits, "ada", r"until must be later than status.decidedAt, and by 24 hours at most", until=until)


@pytest.mark.parametrize("until", ["tomorrow", "2030-01-01T00:00:00", "2030-01-01", "2030-01-01T00:00:00+25:00", 5])
async def test_an_approval_ends_at_a_time_with_a_zone(waits: Plan, until: Any) -> None:
    await refused(waits, "ada", "until", until=until)


async def test_an_approval_is_neither_changed_nor_taken_back(waits: Plan) -> None:
    waits.approve()
    for changed in ({"until": waits.later(hours=2)}, {"planHash": "x"}):
        await refused(waits, "ada", "an approval is neither changed nor taken back; freeze the policy", **changed)
    gone: kit.Json = {"spec": {"approval": None}}
    with pytest.raises(Refused, match=r"422: .*an approval is neither changed nor taken back; freeze the policy"):
        await waits.here.plane.api.patch(waits.path, gone)


async def test_nobody_makes_a_record_not_even_with_an_approval_in_it(waits: Plan) -> None:
    spec = {**waits.record["spec"], "approval": {"planHash": "x", "by": "admin", "until": "2030-01-01T00:00:00Z"}}
    body = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Remediation", "metadata": {"name": "forged"}, "spec": spec}
    collection = waits.path.rpartition("/")[0]
    with pytest.raises(Refused, match=r"422: .*a record is made without an approval"):
        await waits.here.plane.api.post(collection, body)
    del spec["approval"]
    with pytest.raises(Refused, match=r"403: .*only the account of restart-loop-killer writes its records"):
        await waits.here.plane.api.post(collection, body)


async def test_nobody_but_its_function_writes_how_far_a_record_is(waits: Plan) -> None:
    forged = {"status": {"guard": "ApprovalExpired"}}
    with pytest.raises(Refused, match=r"403: .*only the account of restart-loop-killer writes.*delete this one"):
        await waits.here.plane.api.patch(f"{waits.path}/status", forged)
