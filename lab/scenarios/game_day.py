"""A game day: faults on purpose, and the functions that have to heal them; it fails if one of these is switched off."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web

from kreflex.chaos.experiments import read_experiment
from kreflex.chaos.report import html, markdown
from lab import chaos_engines, rollouts, workloads
from lab.api import eventually
from lab.errors import LabError
from lab.rollouts import PAUSE, weight
from lab.scenarios.bad_canary import COMPARISON, REPLICAS, SHARE, Canary, scraped
from lab.scenarios.place import Json, Place, is_ready
from lab.scenarios.pool import Pool
from lab.scenarios.rules import own_policy
from lab.scenarios.shop import PATIENCE, open_shop
from lab.scenarios.timeline import ScenarioFailed, say
from lab.scenarios.traffic import StandIn
from lab.visitor import Visitor

OPT_IN = {"kreflex.dev/chaos": "allowed"}
GROUP = "/apis/kreflex.dev/v1alpha1"
ISOLATED = "kreflex.dev/chaos-isolated"
WHY = "the lab's shop has no service level objective"
_APP = "checkout"
_CRASHES = "lab.local/checkout:1-crash"
_SPEED = 20
_OVER = {"Done", "Aborted", "Refused"}
_PATIENCE = 300.0
# How long is waited for a function that is switched off.
_IN_VAIN = "30s"


async def play(place: Place, act: str = "", without: str = "", report: Path | None = None) -> None:
    """Play all acts, or one, with a function switched off if one is named; all experiments have to pass."""
    assert place.home is not None, "this plays in the lab alone"
    place.tells_pods = False
    await place.writer.merge(f"/api/v1/namespaces/{place.namespace}", {"metadata": {"labels": OPT_IN}})
    acts = {"pods": crashing_pods, "canary": bad_canary, "node": node_down}
    failed: list[str] = []
    with _off(place, without) if without else nullcontext():
        for name, one in acts.items():
            if act in {"", name}:
                failed += await one(place, without)
    if report is not None:
        await write_report(place, report)
    if failed:
        raise ScenarioFailed("; ".join(failed))


def _off(place: Place, function: str) -> Any:
    """Switch a function off: its process stands still, and nothing that it is told arrives."""
    say(f"{function} is switched off")
    return place.silent(function)


async def crashing_pods(place: Place, without: str) -> list[str]:
    """Make a third of checkout's pods crash, which restart-loop-killer has to heal, while people go on to pay."""
    since = datetime.now(UTC)
    body = workloads.deployment(_APP, 3, workloads.fault(speed=_SPEED))
    await place.writer.create(place.path("deployments", "/apis/apps/v1"), body)
    await place.until(lambda: len(place.ready(_APP)) == 3, "three Ready pods of checkout")
    async with answering(place, _APP) as url:
        ended = await experiment(
            place,
            "pods-of-checkout-crash",
            title="Pods of checkout crash: restart healing",
            fault={"kind": "PodImage", "image": _CRASHES},
            targets={"selector": {"matchLabels": {"app": _APP}}},
            amount="34%",
            duration="10s",
            ttl="4m",
            probes=[
                {"name": "people-pay", "http": {"url": url}, "every": "1s", "tolerated": 10},
                _at_least(_APP, 2, "During"),
                _at_least(_APP, 3, "Before", "After"),
            ],
            expects=expected("restart-loop-killer", "2m", without),
        )
    place.timeline.tell("Pods of checkout crash: are they restarted?", since)
    hit = [one["target"]["uid"] for one in ended["status"].get("injected", [])]
    evicted = [uid for at, uid, code in place.evictions() if code < 300 and at >= since]
    left = [pod for pod in place.of(_APP) if pod["spec"]["containers"][0]["image"] == _CRASHES and is_ready(pod)]
    told = verdict(ended)
    if not told and (evicted != hit or len(hit) != 1):
        told.append(f"of the pods {hit} that were hit, {evicted} were evicted")
    return told + ([f"{left[0]['metadata']['name']} still has the image"] if left else [])


def expected(function: str, within: str, without: str) -> Json:
    """Expect a function to heal it; where it is switched off nobody comes, so that is not waited for as long."""
    return {"function": function, "within": _IN_VAIN if function == without else within}


def _at_least(name: str, count: int, *when: str) -> Json:
    ready = {"name": name, "path": "status.readyReplicas", "operator": ">=", "value": str(count)}
    return {"name": f"{name}-has-{count}", "object": ready, "when": list(when), "every": "1s"}


class Isolable(Canary):
    """A canary all of whose requests fail while a NetworkPolicy keeps them from its pods; else none does."""

    async def flow(self) -> None:
        """Send requests until somebody stops it; who can't look at the Rollout for a moment looks again."""
        while True:
            try:
                await super().flow()
            except (LabError, OSError, TimeoutError, aiohttp.ClientError, KeyError) as error:
                say(f"the traffic stands for a moment: {error!r}")
                await asyncio.sleep(0.5)

    def _send(self, number: int, new: list[Json], old: list[Json]) -> None:
        pods = new if bool(new) and number % 100 < self.share else old
        if pods:
            pod = pods[number % len(pods)]
            cut_off = ISOLATED in pod["metadata"]["labels"]
            meta = pod["metadata"]
            self.sent[str(meta["labels"].get(rollouts.HASH, "")), meta["name"], "500" if cut_off else "200"] += 1


async def bad_canary(place: Place, without: str) -> list[str]:
    """Cut the pods of a canary off, and no other: canary-aborter has to take it out of the traffic."""
    assert place.home is not None, "this plays in the lab alone"
    since = datetime.now(UTC)
    async with (
        open_shop(place, "Rollout") as shop,
        Visitor(place.home) as plane,
        own_policy(place, plane.api, canary=COMPARISON),
    ):
        canary = Isolable(replace(shop, replicas=REPLICAS), plane)
        steps = [weight(SHARE), PAUSE]
        body = rollouts.canary("shop", REPLICAS, steps, workloads.release("v1"), **rollouts.through_nginx("shop"))
        say(f"waiting for {REPLICAS} pods of the stable version")
        await rollouts.make(plane.api, place.namespace, body)
        async with scraped(canary):
            new = await rollouts.release(plane.api, place.namespace, "shop", "v2")
            await place.until(lambda: canary.share == SHARE, "canary with traffic", PATIENCE)
            ended = await experiment(
                place,
                "the-canary-is-cut-off",
                title="The canary fails: is it aborted?",
                fault={"kind": "NetworkIsolation"},
                targets={"selector": {"matchLabels": {"app": "shop"}}, "canary": True},
                amount="100%",
                duration="10s",
                ttl="5m",
                probes=[{"name": "the-stable-version-serves", "object": _stable(), "every": "2s"}],
                expects=expected("canary-aborter", "3m", without),
            )
        # The next act has pods of this name, too.
        await plane.api.delete(f"{rollouts.collection(place.namespace)}/shop")
        await place.until(lambda: not place.of("shop"), "end of the canary", PATIENCE)
    place.timeline.add("client", f"{canary.count()[0]} requests, {canary.count()[1]} failed, all of the canary")
    place.timeline.tell("The canary fails: is it aborted?", since)
    told, (_, failed) = verdict(ended), canary.count()
    if failed != canary.count(new)[1]:
        told.append("requests to the stable version failed")
    return told


def _stable() -> Json:
    return {"kind": "Rollout", "name": "shop", "path": "status.readyReplicas", "operator": ">=", "value": str(REPLICAS)}


async def node_down(place: Place, without: str) -> list[str]:
    """Have LitmusChaos stop a kubelet: node-replacer has to have the node replaced. Its operator is played."""
    assert place.home is not None, "this plays in the lab alone"
    since = datetime.now(UTC)
    async with Pool.open(place, place.home) as pool:
        victim = min(pool.nodes)
        # A node belongs to everybody: that the namespace has opted in does not say that it may be hit.
        await pool.plane.api.patch(f"/api/v1/nodes/{victim}", {"metadata": {"labels": OPT_IN}})

        async def heal(names: list[str]) -> None:
            await pool.heal([name for name in names if name in pool.nodes])

        async with chaos_engines.litmus(pool.plane, pool.silence, heal):
            env = [{"name": "TARGET_NODE", "value": victim}, {"name": "TOTAL_CHAOS_DURATION", "value": "300"}]
            fault = {"name": "kubelet-service-kill", "spec": {"components": {"env": env}}}
            ended = await experiment(
                place,
                "a-node-is-down",
                title="A node is down: is it replaced?",
                fault={
                    "kind": "Engine",
                    "engine": {
                        "kind": "ChaosEngine",
                        "spec": {"chaosServiceAccount": "litmus-admin", "experiments": [fault]},
                    },
                },
                duration="10s",
                ttl="10m",
                recovery="2m",
                probes=[_at_least("shop", 10, "Before", "After"), _at_least("shop", 8, "During")],
                expects=expected("node-replacer", "5m", without),
            )
        pool.tell_what_was_logged(since)
        there = victim in pool.nodes
    place.timeline.tell("A node is down: is it replaced?", since)
    told = verdict(ended)
    return told + ([f"{victim} is still there"] if there and not told else [])


async def experiment(place: Place, name: str, **spec: Any) -> Json:
    """Make an experiment and wait until it is over; what happened stands in the timeline."""
    body = {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "Experiment",
        "metadata": {"name": name},
        "spec": {"withoutBudget": WHY, **spec},
    }
    path = place.path("experiments", GROUP)
    say(f"experiment {name} begins")
    await place.writer.create(path, body)
    seen: dict[str, Json] = {}

    async def look() -> None:
        found = await place.reader.get(f"{path}/{name}")
        if found is not None:
            seen["it"] = found

    async def over() -> bool:
        await look()
        return seen.get("it", {}).get("status", {}).get("phase") in _OVER

    try:
        await eventually(over, f"the end of {name}", _PATIENCE + 120, 0.5)
    except TimeoutError as error:
        raise ScenarioFailed(str(error)) from error
    for line in seen["it"]["status"].get("timeline", []):
        place.timeline.add(line["word"], line["text"], at=datetime.fromisoformat(line["at"]))
    return seen["it"]


def verdict(ended: Json) -> list[str]:
    """What kept an experiment from passing; nothing if it has."""
    status = ended["status"]
    left = [one["target"]["name"] for one in status.get("injected", []) if one["state"] in {"Intended", "Injected"}]
    told = [f"{', '.join(left)} was not taken back"] if left else []
    if status.get("verdict") != "Passed":
        told.append(
            f"{ended['metadata']['name']} is {status.get('verdict') or status.get('phase')}: {status.get('reason')}"
        )
    return told


@asynccontextmanager
async def answering(place: Place, app: str) -> AsyncIterator[str]:
    """Answer for a Service of this name at a URL, as its endpoints would."""
    body = {"metadata": {"name": app}, "spec": {"selector": {"app": app}, "ports": [{"port": 80}]}}
    await place.writer.create(place.path("services"), body)
    stand_in = StandIn(place, app)
    application = web.Application()
    application.router.add_get("/", stand_in.answer)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    following = asyncio.create_task(stand_in.follow())
    await asyncio.sleep(0.3)
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}/"
    finally:
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
        await runner.cleanup()


async def write_report(place: Place, folder: Path) -> None:
    """Write the day's report, for people and for a wiki."""
    found = [read_experiment(body) async for body in place.reader.list(place.path("experiments", GROUP))]

    def write() -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "game-day.html").write_text(html(found))
        (folder / "game-day.md").write_text(markdown(found))

    await asyncio.to_thread(write)
    say(f"the report is in {folder}")
