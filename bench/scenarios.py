"""What the fault matrix plays: one function in one remediation, from what is healthy yet to the end that it has."""

from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from bench import patients, rig
from bench.rig import GROUP, Json
from bench.stage import ACT_WITHIN, Event, Stage
from lab import functions, nodes
from lab.cluster import ControlPlane

End = tuple[str | None, ...]
"""Of a record: phase, outcome, verdict and guard."""
CALM_END: End = ("Done", "applied", "Recovered", None)


async def _itself(_: ControlPlane, __: str, pod: Json) -> list[str]:
    return [pod["metadata"]["uid"]]


async def _remove_shop(on: Stage, where: str) -> None:
    await rig.remove(on.plane, f"/apis/apps/v1/namespaces/{where}/deployments/shop")


async def nothing_else(_: ControlPlane, __: str, ___: Json) -> None:
    """What happens meanwhile, where nothing does."""


async def nothing_twice(_: ControlPlane, __: str, ___: Json) -> list[str]:
    """Where the API server's log tells of all that is done."""
    return []


@dataclass(frozen=True)
class Scenario:
    """One function in one remediation; a later function joins the matrix with a value of its own.

    `prepare` makes what is healthy yet, and returns the objects that fall ill, one after the other;
    `fall_ill` breaks one; `event` is how a sender tells of it, None where nobody does and the function is woken by
    the clock; `healed` says what is wrong with the world at the end, or "".
    """

    function: str
    prepare: Callable[[Stage, str], Awaitable[list[Json]]]
    fall_ill: Callable[[ControlPlane, Json], Awaitable[Json]]
    event: Callable[[Json], Event] | None
    healed: Callable[[ControlPlane, str, Json], Awaitable[str]]
    variant: str = ""
    end: End = CALM_END
    home: str = ""
    """Where its records are, if not in the namespace of the case."""
    evicts: Callable[[ControlPlane, str, Json], Awaitable[list[str]]] = _itself
    """The UIDs of the pods that are evicted, each once, when this object is treated."""
    evicts_ill: Callable[[ControlPlane, str, Json], Awaitable[list[str]]] | None = None
    """The same of one that has fallen ill, where pods are evicted that came only then."""
    spares: bool = False
    """Whether some of these may be left alone, since the trouble takes the time for them."""
    writes: tuple[str, ...] = ()
    """What is done to the object itself, each step once."""
    meanwhile: Callable[[ControlPlane, str, Json], Awaitable[None]] = nothing_else
    """What else happens in the middle of the treatment."""
    twice: Callable[[ControlPlane, str, Json], Awaitable[list[str]]] = nothing_twice
    """What of that which is done elsewhere was done more than once; asked when all has arrived that was on its way."""
    aside: str = ""
    """A word in the fault's key of records that tell of something else, which stays."""
    act_within: float = ACT_WITHIN
    """How many seconds an attempt has."""
    needs: Callable[[Stage], AbstractAsyncContextManager[None]] | None = None
    """What else has to run."""
    proxied: bool = False
    """Whether it does something elsewhere than at the API server, where it is to be met, too."""
    clear: Callable[[Stage, str], Awaitable[None]] = _remove_shop

    @property
    def folder(self) -> str:
        """Its folder in functions/."""
        return self.function.replace("-", "_")

    @property
    def name(self) -> str:
        """As people say it."""
        return f"{self.function} {self.variant}".rstrip()


async def a_shop(on: Stage, where: str) -> list[Json]:
    """A Deployment of two pods."""
    await rig.make(on.plane, where, "shop", 2)
    return await rig.ready(on.plane, where, 2, patience=120)


async def loop(plane: ControlPlane, pod: Json) -> Json:
    """A pod in its back-off."""
    (ill,) = await patients.fall_ill(plane, [pod])
    return ill


async def replaced(plane: ControlPlane, where: str, pod: Json) -> str:
    """The pod has a Ready successor."""
    found = await rig.pods(plane, where, "shop")
    if pod["metadata"]["uid"] in {one["metadata"]["uid"] for one in found}:
        return "the pod is still there"
    ready = [one for one in found if nodes.is_ready(one)]
    return "" if len(ready) == len(found) == 2 else f"{len(ready)} of {len(found)} pods are Ready"


async def a_shop_with_a_past(on: Stage, where: str) -> list[Json]:
    """The same, with a record that is old enough to go."""
    ago = (datetime.now(UTC) - timedelta(days=10)).isoformat(timespec="seconds").replace("+00:00", "Z")
    target = {"apiVersion": "v1", "kind": "Pod", "namespace": where, "name": "old", "uid": "old"}
    path = f"{GROUP}/namespaces/{where}/remediations"
    body = {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "Remediation",
        "metadata": {"name": "restart-loop-killer-old-00000000"},
        "spec": {"function": rig.FUNCTION, "target": target, "fault": {"key": f"{rig.FUNCTION}/old"}},
    }
    status = {"phase": "Done", "outcome": "skipped", "guard": "Gone", "settledAt": ago}
    # Nobody else may write one.
    async with on.plane.api_with(await on.plane.token(rig.FUNCTION, functions.NAMESPACE)) as api:
        await api.post(path, body)
        await api.patch(f"{path}/restart-loop-killer-old-00000000/status", {"status": status})
    return await a_shop(on, where)


async def replaced_and_forgotten(plane: ControlPlane, where: str, pod: Json) -> str:
    """The same, and the old record is gone."""
    names = [record["metadata"]["name"] for record in await rig.records(plane, where)]
    old = "the old record is still there" if "restart-loop-killer-old-00000000" in names else ""
    return old or await replaced(plane, where, pod)


KILLER = Scenario(rig.FUNCTION, a_shop, loop, patients.told, replaced)
WAKER = Scenario(functions.WAKER, a_shop_with_a_past, loop, None, replaced_and_forgotten)
