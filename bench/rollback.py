"""Rollback: bad releases are taken back to what was really healthy, and what fails for another reason is left alone.

The function and the waker run as processes with the rights of their accounts, woken as in a cluster. The audit log is
the judge of what was rolled back.
"""

import asyncio
import contextlib
import itertools
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench import rig
from bench.rig import Json
from bench.scene import FUNCTION, PATIENCE, Scene, Theatre, theatre
from bench.stories import STORIES, Story
from lab import audit, events, filters, functions
from lab.api import eventually
from lab.cluster import ControlPlane, Options
from lab.errors import LabError
from lab.ports import Ports
from lab.relay import Subscriber

FOLDER = "rollback"
ACCOUNT = f"system:serviceaccount:{functions.NAMESPACE}:{FUNCTION}"
CASES, WIDTH, ROUND = 100, 14, 1.5
# A container that is not even made is given five times the policy's patience; then a round of the waker, and its call.
# One that loops counts from its third restart on, and for that a kubelet waits half a minute.
_LOOKED_AT = {False: 5 * PATIENCE + 7.0, True: 52.0}
_LONGER = 45.0
_HEALED_WITHIN = 120.0
# A busy machine must not make healthy nodes look silent.
_PATIENT = Options(node_grace_seconds=60)
_WATCHED = (
    "deployments.v1.apps",
    "statefulsets.v1.apps",
    "daemonsets.v1.apps",
    "remediations.v1alpha1.kreflex.dev",
)


@dataclass
class Case:
    """One story with one kind of workload, and what became of it."""

    number: int
    story: Story
    kind: str
    replicas: int
    where: str = ""
    uid: str = ""
    healed: bool = False
    shown: bool = False
    seconds: float = 0.0
    """From the release to a workload that is well again."""
    said: list[str] = field(default_factory=list)
    """What the records say of the workload."""
    verdict: str = ""
    broken: str = ""
    """Why the story could not be played."""

    @property
    def name(self) -> str:
        """As people say it."""
        return f"{self.story.name} ({self.kind}, {self.replicas})"


@dataclass(frozen=True)
class Write:
    """What the function did to a workload or a pod, as the API server logged it."""

    where: str
    verb: str
    resource: str
    name: str
    of_template: bool


def cases(count: int, only: str = "") -> list[Case]:
    """So many bad releases and as many that are not to blame, in turn; stories and kinds by turns as well."""
    sides = [_side(blamed, count, only) for blamed in (True, False)]
    mixed = [one for pair in itertools.zip_longest(*sides) for one in pair if one is not None]
    return [Case(number, *one) for number, one in enumerate(mixed)]


def _side(blamed: bool, count: int, only: str) -> list[tuple[Story, str, int]]:  # noqa: FBT001 - one of two sides
    told = [story for story in STORIES if story.blamed is blamed and only in story.name]
    rounds = (
        (story, story.kinds[turn % len(story.kinds)], story.replicas[turn % len(story.replicas)])
        for turn in itertools.count()
        for story in told
    )
    return list(itertools.islice(rounds, count)) if told else []


class Trial:
    """Plays cases, some at a time."""

    def __init__(self, on: Theatre, *, verbose: bool = False) -> None:
        self._theatre = on
        self._verbose = verbose
        self._begun = time.monotonic()

    async def play(self, all_cases: Sequence[Case], width: int) -> None:
        """Play all of them."""
        gate = asyncio.Semaphore(width)

        async def one(case: Case) -> None:
            async with gate:
                await self._play(case)
            self._tell(case)

        await asyncio.gather(*(one(case) for case in all_cases))

    async def _play(self, case: Case) -> None:
        scene = await self._theatre.scene(case.kind, case.replicas, case.story.releases)
        case.where = scene.where
        try:
            await case.story.play(scene)
            case.uid = scene.uid
            await (self._until_healed(case, scene) if case.story.blamed else self._look_on(case, scene))
            await self._hear(case, scene)
        except LabError as error:
            case.broken = str(error)
        finally:
            await scene.clear()

    async def _until_healed(self, case: Case, scene: Scene) -> None:
        begun = time.monotonic()

        async def healed() -> bool:
            template = (await scene.body())["spec"]["template"]
            return bool(template == scene.good and await scene.well())

        try:
            # The bad version is there before it is taken back.
            await eventually(healed, f"{case.name} well again", _HEALED_WITHIN, 0.5)
        except LabError:
            return
        case.healed = case.shown = True
        case.seconds = time.monotonic() - begun
        await self._until_settled(scene)

    async def _until_settled(self, scene: Scene) -> None:
        """Wait for the verdict; without one the case is as healed as before."""

        async def settled() -> bool:
            found = await rig.records_about(scene.plane, scene.where, [scene.uid])
            return any((one.get("status") or {}).get("phase") == "Done" for one in found)

        try:
            await eventually(settled, "a verdict", 30, 0.5)
        except LabError:
            return

    async def _look_on(self, case: Case, scene: Scene) -> None:
        """Look at what goes wrong for as long as the function may need to be misled by it."""

        async def ill() -> bool:
            return not await scene.well()

        await eventually(ill, f"something of {case.name} that fails", 30, 0.2)
        case.shown = True
        await asyncio.sleep(_LOOKED_AT[scene.slow])

        async def decided() -> bool:
            return bool(await rig.records_about(scene.plane, scene.where, [scene.uid]))

        # On a busy machine it may not have come to look yet; where no pod of the release fails there is never a record.
        with contextlib.suppress(LabError):
            await eventually(decided, "a record", _LONGER, 1.0)

    async def _hear(self, case: Case, scene: Scene) -> None:
        for record in await rig.records_about(scene.plane, scene.where, [scene.uid]):
            status = record.get("status") or {}
            case.verdict = status.get("verdict", "") or case.verdict
            told = (status.get("outcome", ""), status.get("guard", ""), status.get("reason", ""))
            case.said.append(" ".join(part for part in told if part))

    def _tell(self, case: Case) -> None:
        seconds = time.monotonic() - self._begun
        what = f"BROKEN: {case.broken}" if case.broken else _became(case)
        rig.say(f"{seconds:6.0f} s  {case.number:3} {case.name:60} {what}")
        for line in case.said if self._verbose or (case.story.blamed and not case.healed) else ():
            rig.say(f"{'':14}{case.where}: {line}")


def _became(case: Case) -> str:
    if case.story.blamed:
        return f"healed in {case.seconds:.0f} s, {case.verdict or 'no verdict'}" if case.healed else "NOT HEALED"
    return "left alone, as far as its records say" if "applied" not in " ".join(case.said) else "TOUCHED"


def writes(plane: ControlPlane) -> list[Write]:
    """What the function has done to workloads and pods, from the audit log; only what was accepted."""
    return [
        _write(entry)
        for entry in audit.entries(plane.audit_log)
        if entry["user"]["username"] == ACCOUNT
        and entry["verb"] in {"create", "update", "patch", "delete"}
        and entry["responseStatus"]["code"] < 300
        and (entry.get("objectRef") or {}).get("resource") in {"deployments", "statefulsets", "daemonsets", "pods"}
    ]


def _write(entry: Json) -> Write:
    meant, body = entry["objectRef"], entry.get("requestObject")
    paths = [str(one.get("path", "")) for one in body] if isinstance(body, list) else []
    changed = any(path.startswith("/spec/template") for path in paths) or "template" in _spec(body)
    return Write(meant.get("namespace", ""), entry["verb"], meant["resource"], meant["name"], changed)


def _spec(body: Any) -> Json:
    spec = body.get("spec") if isinstance(body, dict) else None
    return spec if isinstance(spec, dict) else {}


def figures(played: Iterable[Case], written: Iterable[Write], seconds: float) -> dict[str, Any]:
    """What the audit log, the workloads and the records say."""
    done, by_place = list(played), defaultdict[str, list[Write]](list)
    for write in written:
        by_place[write.where].append(write)
    bad_ones = [case for case in done if case.story.blamed]
    others = [case for case in done if not case.story.blamed]
    healed = [case for case in bad_ones if case.healed and not case.broken]
    false = [case.name for case in others if by_place[case.where]]
    twice = [case.name for case in bad_ones if sum(one.of_template for one in by_place[case.where]) > 1]
    times = sorted(case.seconds for case in healed)
    share = round(len(healed) / max(1, len(bad_ones)), 4)
    found = {
        "bad": len(bad_ones),
        "others": len(others),
        "healed": len(healed),
        "healed_share": share,
        "false_rollbacks": len(false),
        "false_rollbacks_of": sorted(false),
        "not_healed": sorted(f"{case.name}: {'; '.join(case.said)}" for case in bad_ones if case not in healed),
        "rolled_back_twice": sorted(twice),
        "not_played": sorted(f"{case.name}: {case.broken}" for case in done if case.broken),
        "verdicts": dict(Counter(case.verdict or "none" for case in bad_ones)),
        "causes": dict(Counter(_cause(case) for case in others)),
        "stories": len({case.story.name for case in done}),
        "healed_after_seconds_p50": round(statistics.median(times), 1) if times else None,
        "healed_after_seconds_most": round(times[-1], 1) if times else None,
        "seconds": round(seconds),
    }
    sound = not false and not twice and not found["not_played"]
    return {**found, "holds": sound and share >= 0.95}


def _cause(case: Case) -> str:
    """Name the cause that the function gave, if it has recorded one: it need not where nothing of the release fails."""
    refused = [said.split()[1] for said in case.said if said.startswith("refused ")]
    return refused[-1] if refused else "nothing recorded"


async def run(
    plane: ControlPlane, ports: Ports, chosen: Sequence[Case], width: int, *, verbose: bool
) -> dict[str, Any]:
    """Play cases on a control plane with Kreflex; the figures."""
    begun = time.monotonic()
    url = await functions.start(plane, FOLDER, ports.take(), rig.callers(plane))
    told = {"FUNCTIONS": f"{FUNCTION}={url}/"}
    waker = await functions.start(plane, functions.WAKER, ports.take(), told)
    relay = await events.start_relay(
        plane, ports.take(), [Subscriber(FUNCTION, url, filters=filters.shipped(FUNCTION))]
    )
    await events.start_adapter(plane, relay, kinds=_WATCHED)
    await events.start_ticker(plane, waker, ROUND)
    async with theatre(plane) as on:
        await Trial(on, verbose=verbose).play(chosen, width)
    for name in ("ticker", "adapter", "relay", functions.WAKER, FUNCTION):
        await plane.stop_child(name)
    return figures(chosen, writes(plane), time.monotonic() - begun)


async def measure(size: int = 0, only: str = "", *, verbose: bool = False) -> dict[str, Any]:
    """Play 100 bad releases, or `size`, and as many that fail for another reason."""
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home, Ports() as ports:
        async with rig.cluster(Path(home), 0, _PATIENT, (FOLDER,)) as plane:
            return await run(plane, ports, cases(size or CASES, only), WIDTH, verbose=verbose)
