"""Reflex: from an event to its eviction, against one GET and one eviction by a bare client in the same run."""

import asyncio
import contextlib
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from bench import judge, patients, rig
from bench.rig import Json
from lab import functions
from lab.cluster import ControlPlane, Options
from lab.ports import Ports
from lab.processes import trusting

PAIRS, WARM, ALONE = 150, 5, 3
# Longer than a reading of the policies is shared.
_ALONE_SECONDS = 1.5
_BARE = "bare"
# Every guard that a policy can switch on is on; none may refuse, or there would be nothing to measure.
_LIMITS: dict[str, Any] = {
    "maxInFlight": 5000,
    "minHealthy": "1%",
    "storm": {"faults": 5000},
    "errorBudget": {"query": "vector(1)"},
    "rates": [{"count": 2900, "window": "1h"}, {"count": 2900, "window": "24h"}],
}


@dataclass(frozen=True)
class Case:
    """One pod whose eviction was asked for: its UID, and between which wall clock times."""

    uid: str
    begun: float
    answered: float


class Measure:
    """Tells the function of pods, and evicts others by a bare client."""

    def __init__(self, url: str, plane: ControlPlane, token: str) -> None:
        self._function = url
        self._server = plane.url
        self._authority = trusting(plane.authority)
        self._token = token
        self._events = aiohttp.ClientSession(headers=rig.caller(plane))
        self._bare = aiohttp.ClientSession(headers={"Authorization": f"Bearer {token}"})

    async def close(self) -> None:
        """Close the connections."""
        await asyncio.gather(self._events.close(), self._bare.close())

    async def ours(self, pod: Json) -> Case:
        """Tell the function of a pod, as an ApiServerSource does, and wait for its answer."""
        headers, body = patients.told(pod)
        begun = time.time()
        async with self._events.post(self._function, data=body, headers=headers) as answer:
            text = await answer.text()
            if answer.status != 200:
                raise RuntimeError(f"the function answered {answer.status} {text}")
        return Case(pod["metadata"]["uid"], begun, time.time())

    async def bare(self, pod: Json) -> Case:
        """Read a pod and evict it, with nothing between."""
        meta = pod["metadata"]
        url = f"{self._server}/api/v1/namespaces/{meta['namespace']}/pods/{meta['name']}"
        begun = time.time()
        async with self._bare.get(url, ssl=self._authority) as answer:
            found = (await answer.json())["metadata"]
        named = {"namespace": found["namespace"], "name": found["name"]}
        seen = {"preconditions": {"uid": found["uid"], "resourceVersion": found["resourceVersion"]}}
        body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": named, "deleteOptions": seen}
        async with self._bare.post(f"{url}/eviction", json=body, ssl=self._authority) as answer:
            text = await answer.text()
            if answer.status != 201:
                raise RuntimeError(f"the bare eviction was answered {answer.status} {text}")
        return Case(meta["uid"], begun, time.time())


async def run(plane: ControlPlane, url: str, pairs: int) -> dict[str, Any]:
    """Measure so many pairs in turn, the order changing; the figures."""
    where = await rig.namespace(plane, _LIMITS, proof="30m", proveWithin="1h")
    pods = await patients.make(plane, where, 2 * (pairs + WARM) + ALONE)
    rig.say(f"{len(pods)} pods are Ready")
    pods = await patients.fall_ill(plane, pods)
    await asyncio.sleep(2)  # Their controllers have seen it.
    measure = Measure(url, plane, await _bare_token(plane))
    try:
        first, *_ = [await measure.ours(pods.pop()) for _ in range(WARM)]
        for _ in range(WARM):
            await measure.bare(pods.pop())
        await asyncio.sleep(2)
        with _controllers_at_rest(plane):
            ours, bare = await _in_turn(measure, pods, pairs)
        alone = [await _alone(measure, pods.pop()) for _ in range(ALONE)]
    finally:
        await measure.close()
    return _figures(plane, first, ours, bare, alone)


@contextlib.contextmanager
def _controllers_at_rest(plane: ControlPlane) -> Iterator[None]:
    """Stop what would make successors at the same time: it would slow the evictions of both sides, and flatter us."""
    children = [plane.children[name] for name in ("kube-controller-manager", "kube-scheduler", "kwok")]
    for child in children:
        child.pause()
    try:
        yield
    finally:
        for child in children:
            child.resume()


async def _in_turn(measure: Measure, pods: list[Json], pairs: int) -> tuple[list[Case], list[Case]]:
    ours, bare = [], []
    for number in range(pairs):
        if number % 2:
            bare.append(await measure.bare(pods.pop()))
        ours.append(await measure.ours(pods.pop()))
        if not number % 2:
            bare.append(await measure.bare(pods.pop()))
    return ours, bare


async def _alone(measure: Measure, pod: Json) -> Case:
    await asyncio.sleep(_ALONE_SECONDS)
    return await measure.ours(pod)


def _figures(
    plane: ControlPlane, first: Case, ours: Sequence[Case], bare: Sequence[Case], alone: Sequence[Case]
) -> dict[str, Any]:
    accepted = judge.accepted(plane)
    calls = judge.calls(plane)

    def until(cases: Sequence[Case], moment: int = 1) -> list[float]:
        return [1000 * (accepted[case.uid][moment] - case.begun) for case in cases]

    def within(cases: Sequence[Case]) -> list[list[judge.Call]]:
        return [[call for call in calls if case.begun <= call.at <= case.answered] for case in cases]

    mine, reference = until(ours), until(bare)
    made = within(ours)
    whole = [call for call in calls if ours[0].begun <= call.at <= ours[-1].answered]
    found: dict[str, Any] = {
        "pairs": len(ours),
        "p50_ratio": round(_share(mine, 50) / _share(reference, 50), 2),
        "p99_ratio": round(_share(mine, 99) / _share(reference, 99), 2),
        "calls": statistics.median(len(one) for one in made),
        "writes": statistics.median(sum(call.changes for call in one) for one in made),
        "calls_mean": round(len(whole) / len(ours), 2),
        "writes_mean": round(sum(call.changes for call in whole) / len(ours), 2),
        "calls_most": max(len(one) for one in made),
        "calls_alone": statistics.median(len(one) for one in within(alone)),
        "calls_first": len(within([first])[0]),
        "ours_p50_ms": round(_share(mine, 50), 2),
        "ours_p99_ms": round(_share(mine, 99), 2),
        "bare_p50_ms": round(_share(reference, 50), 2),
        "bare_p99_ms": round(_share(reference, 99), 2),
        "ours_until_asked_p50_ms": round(_share(until(ours, 0), 50), 2),
        "bare_until_asked_p50_ms": round(_share(until(bare, 0), 50), 2),
        "answer_p50_ms": round(statistics.median(1000 * (case.answered - case.begun) for case in ours), 2),
        "server_p50_ms": round(statistics.median(sum(call.milliseconds for call in one) for one in made), 2),
        "steps": _steps(made),
    }
    reached = found["p50_ratio"] <= 3 and found["calls"] <= 8 and found["writes"] <= 5
    return {**found, "goals_reached": reached, "holds": set(accepted) >= {case.uid for case in ours}}


def _share(values: Sequence[float], percent: int) -> float:
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def _steps(made: Sequence[Sequence[judge.Call]]) -> dict[str, float]:
    """What was called in the median remediation, in its order, with the milliseconds that the API server took."""
    usual = statistics.median_low(len(one) for one in made)
    alike = [one for one in made if len(one) == usual]
    return {
        f"{number + 1} {alike[0][number].name}": round(statistics.median(one[number].milliseconds for one in alike), 2)
        for number in range(usual)
    }


async def _bare_token(plane: ControlPlane) -> str:
    """The token of an account with the function's rights and another name, so that the audit log tells them apart."""
    token = await plane.token(_BARE, functions.NAMESPACE)
    group = "rbac.authorization.k8s.io"
    body = {
        "metadata": {"name": "bench:bare"},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": f"kreflex:{rig.FUNCTION}"},
        "subjects": [{"kind": "ServiceAccount", "name": _BARE, "namespace": functions.NAMESPACE}],
    }
    await plane.api.post(f"/apis/{group}/v1/clusterrolebindings", body)
    return token


async def measure(size: int = 0) -> dict[str, Any]:
    """Measure 150 pairs, or `size`, on a control plane of its own whose audit log has the reads, too."""
    with tempfile.TemporaryDirectory(prefix="kreflex-bench-") as home, Ports() as ports:
        async with rig.cluster(Path(home), 3, Options(audit_reads=True)) as plane:
            url = await functions.start(plane, rig.FOLDER, ports.take(), rig.callers(plane))
            return await run(plane, url, size or PAIRS)
