"""What the tests of restart-loop-killer on a real API server share."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

from functions.restart_loop_killer import main as killer
from kreflex.clock import ServerClock
from kreflex.errors import UnavailableError
from kreflex.reflex import Arc, Result
from kreflex.serve import REFLEXES
from kreflex.signals import Due, PodSignal
from lab import audit
from lab.api import eventually
from lab.cluster import ControlPlane
from tests import kit

assert killer.main is not None
# Images and configurations get no time to appear: the lab's never do.
REFLEX = replace(REFLEXES["restart-loop-killer"], settings=killer.RestartLoopSettings(waiting_patience=timedelta()))
SPEED = "100"
POLICIES = "/apis/kreflex.dev/v1alpha1"


class Ahead(ServerClock):
    """The API server's time, some minutes later: what is due then is due now."""

    def __init__(self, by: timedelta) -> None:
        super().__init__()
        self._by = by

    def now(self) -> datetime:
        return super().now() + self._by

    @classmethod
    def of(cls, arc: Arc[Any], **by: float) -> None:
        """Take an arc into the future."""
        arc.reader._transport.clock = cls(timedelta(**by))


@asynccontextmanager
async def an_arc(plane: ControlPlane) -> AsyncIterator[Arc[Any]]:
    """restart-loop-killer with its own account's rights, which must suffice."""
    async with kit.arc_of(plane, REFLEX) as made:
        yield made
    assert forbidden(plane) == []


def forbidden(plane: ControlPlane) -> list[str]:
    """Tell what the API server forbade the function; a namespace that is being deleted forbids everybody."""
    return [
        entry["requestURI"]
        for entry in audit.entries(plane.audit_log, ":restart-loop-killer")
        if entry["user"]["username"].endswith(":restart-loop-killer")
        and entry["responseStatus"]["code"] == 403
        and "being terminated" not in entry["responseStatus"].get("message", "")
    ]


def changes(here: kit.Place) -> list[kit.Json]:
    """Tell what the function has changed here: a record that exists already is asked for by making it once more."""
    return [entry for entry in here.writes() if entry["responseStatus"]["code"] < 300]


def asked(here: kit.Place) -> int:
    """Tell how often the function has asked for an eviction here, whatever the answer was."""
    return sum(entry["objectRef"].get("subresource") == "eviction" for entry in here.writes())


def signal(pod: kit.Json) -> PodSignal:
    meta = pod["metadata"]
    return PodSignal(meta["namespace"], meta["name"], meta["uid"])


# What is said of a looping pod between two crashes.
CALM = {"no container loops", "it runs again at this moment, and may crash again"}


async def handled(arc: Arc[Any], pod: kit.Json) -> Result:
    """Tell the arc of a pod that loops; again while it is caught in a moment in which it runs, or just changes."""

    async def answer() -> Result | None:
        try:
            result = await arc.handle(signal(pod))
        except UnavailableError as error:
            if "changes faster" in str(error):
                return None
            raise
        return None if result.because in CALM else result

    found: Result = await eventually(answer, f"{pod['metadata']['name']} handled", pause=0.05)
    return found


async def goes_on(arc: Arc[Any], here: kit.Place, pod: kit.Json) -> kit.Json:
    """Call for the only record as the waker does, and tell of the pod too if it ran or changed at that moment."""
    record = await woken(arc, here)
    if told(record) in {("Done", "skipped", None), ("Open", "deferred", "Changed"), ("Open", "deferred", "TooEarly")}:
        await handled(arc, pod)
        record = await the_record(here)
    return record


async def the_record(here: kit.Place) -> kit.Json:
    (record,) = await here.records()
    return record


async def woken(arc: Arc[Any], here: kit.Place, name: str = "") -> kit.Json:
    """Call for a record as the waker does, for the only one unless it is named; returns what became of it."""
    name = name or (await the_record(here))["metadata"]["name"]
    await arc.handle(Due(here.name, name))
    path = f"/apis/kreflex.dev/v1alpha1/namespaces/{here.name}/remediations/{name}"
    return await here.plane.api.get(path)


async def settled(arc: Arc[Any], here: kit.Place, name: str) -> str:
    """Call for a record until it has a verdict."""

    async def verdict() -> str | None:
        told: str | None = (await woken(arc, here, name))["status"].get("verdict")
        return told

    found: str = await eventually(verdict, f"a verdict on {name}", pause=0.3)
    return found


def told(record: kit.Json) -> tuple[str, str | None, str | None]:
    """Tell a record's phase, outcome and guard."""
    status = record["status"]
    return status["phase"], status.get("outcome"), status.get("guard")


async def made(here: kit.Place, kind: str, spec: kit.Json, name: str = "shop") -> None:
    """Make a workload of another kind than Deployment."""
    version, plural = ("batch/v1", "jobs") if kind == "Job" else ("apps/v1", f"{kind.lower()}s")
    body = {"metadata": {"name": name}, "spec": spec}
    await here.plane.api.post(f"/apis/{version}/namespaces/{here.name}/{plural}", body)


def a_template(name: str = "shop", **annotations: str) -> kit.Json:
    """The pods of such a workload."""
    template: kit.Json = kit.deployment(name, 1, annotations)["spec"]["template"]
    return template


async def events(here: kit.Place) -> list[tuple[str, str, str]]:
    """Tell the Kubernetes Events that the function wrote: their reason, what they are about, and their note."""
    items = (await here.plane.api.get(f"/apis/events.k8s.io/v1/namespaces/{here.name}/events"))["items"]
    return [
        (one["reason"], f"{one['regarding']['kind']} {one['regarding']['name']}", one["note"])
        for one in sorted(items, key=lambda one: str(one["eventTime"]))
        if one.get("reportingController", "").startswith("kreflex.dev/")
    ]
