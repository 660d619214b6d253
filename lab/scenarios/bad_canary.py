"""A canary at a tenth of the traffic fails: it is aborted by Prometheus' numbers; without numbers it is only paused."""

import asyncio
import itertools
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.request import Request, urlopen

import yaml
from aiohttp import web

from lab import rollouts, state, workloads
from lab.cluster import ControlPlane
from lab.rollouts import HASH, PAUSE, weight
from lab.scenarios.place import Json, Place, is_ready
from lab.scenarios.rules import own_policy
from lab.scenarios.shop import PATIENCE, Shop, open_shop
from lab.scenarios.timeline import ScenarioFailed, say
from lab.scenarios.writes import Write, written
from lab.visitor import Visitor

FUNCTION = "canary-aborter"
_ACCOUNT = f"system:serviceaccount:kreflex-system:{FUNCTION}"
REPLICAS, SHARE, PER_SECOND = 10, 10, 200
_PODS = 'shop_requests_total{namespace="{namespace}",pod=~"{pods}"'
COMPARISON = {"requests": f"sum(increase({_PODS}}}[10s]))", "errors": f'sum(increase({_PODS},code=~"5.."}}[10s]))'}
# What goes on by itself some day, unless somebody pauses it.
_LATER: Json = {"pause": {"duration": "30m"}}
# From the function's decision until nginx would send the canary nothing more: Argo Rollouts writes the weight.
_EVALUATION = 3.0


@dataclass
class Canary:
    """A Rollout with its traffic: a stand-in for nginx, clients and pods, whose counters Prometheus scrapes.

    The canary's share is what stands on its Ingress. A fifth of its requests fail.
    """

    shop: Shop
    plane: ControlPlane
    flows: bool = True
    share: int = 0
    sent: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Requests by the template's hash, the pod, and the code."""
    weights: list[tuple[datetime, int]] = field(default_factory=list)
    """When the canary's share was seen to change."""

    @property
    def where(self) -> str:
        return self.shop.place.namespace

    async def rollout(self) -> Json:
        """The Rollout as it is now."""
        return await self.plane.api.get(f"{rollouts.collection(self.where)}/{self.shop.name}")

    async def flow(self) -> None:
        """Send requests until somebody stops it."""
        numbers = itertools.count()
        while True:
            body = await self.rollout()
            await self._look()
            stable = str(body.get("status", {}).get("stableRS", ""))
            pods = [pod for pod in self.shop.place.of(self.shop.name) if is_ready(pod)]
            new = [pod for pod in pods if _hash(pod) != stable]
            for number in itertools.islice(numbers, PER_SECOND // 10 if self.flows else 0):
                self._send(number, new, [pod for pod in pods if _hash(pod) == stable])
            await asyncio.sleep(0.1)

    async def _look(self) -> None:
        path = f"/apis/networking.k8s.io/v1/namespaces/{self.where}/ingresses/shop-shop-canary"
        body = await self.plane.api.find(path)
        notes = body["metadata"]["annotations"] if body else {}
        share = int(notes.get("nginx.ingress.kubernetes.io/canary-weight", 0))
        if share != self.share:
            self.share = share
            self.weights.append((datetime.now(UTC), share))
            self.shop.place.timeline.add("weight", f"nginx is told to send {share} % to the canary")

    def _send(self, number: int, new: list[Json], old: list[Json]) -> None:
        canary = bool(new) and number % 100 < self.share
        pods = new if canary else old
        if pods:
            pod = pods[number % len(pods)]
            code = "500" if canary and number % 5 == 0 else "200"
            self.sent[_hash(pod), pod["metadata"]["name"], code] += 1

    async def metrics(self, _: web.Request) -> web.Response:
        """Serve the counters."""
        lines = [
            f'shop_requests_total{{namespace="{self.where}",pod="{pod}",code="{code}"}} {count}'
            for (_, pod, code), count in self.sent.items()
        ]
        return web.Response(text="\n".join(lines) + "\n")

    def count(self, template: str = "") -> tuple[int, int]:
        """How many requests were sent to a template's pods, or to all, and how many of them failed."""
        chosen = {key: count for key, count in self.sent.items() if template in {"", key[0]}}
        return sum(chosen.values()), sum(count for (_, _, code), count in chosen.items() if code == "500")

    def records(self, since: datetime) -> list[Json]:
        """The function's records of the Rollout since then."""
        return [one for one in self.shop.records(since, FUNCTION) if one["status"].get("outcome") != "skipped"]

    def writes(self, since: datetime) -> list[Write]:
        """What the function has changed here, as the audit log says: anything but its records and Events."""
        kinds = ("rollouts", "replicasets", "deployments", "services", "ingresses", "pods")
        found = written(self.shop.log, since, _ACCOUNT, *kinds, namespace=self.where)
        return [one for one in found if one.code < 300]


def _hash(pod: Json) -> str:
    return str(pod["metadata"]["labels"].get(HASH, ""))


async def play(place: Place) -> None:
    """Play both acts on one Rollout."""
    assert place.home is not None, "this plays in the lab alone"
    place.tells_pods = False
    async with (
        open_shop(place, "Rollout") as shop,
        Visitor(place.home) as plane,
        own_policy(place, plane.api, canary=COMPARISON),
    ):
        canary = Canary(replace(shop, replicas=REPLICAS), plane)
        steps = [weight(SHARE), _LATER, weight(50), PAUSE]
        body = rollouts.canary("shop", REPLICAS, steps, workloads.release("v1"), **rollouts.through_nginx("shop"))
        say(f"waiting for {REPLICAS} pods of the stable version")
        await rollouts.make(plane.api, place.namespace, body)
        async with scraped(canary):
            await aborted(canary)
            await paused(canary)


@asynccontextmanager
async def scraped(canary: Canary) -> AsyncIterator[None]:
    """Let the traffic flow, and the lab's Prometheus scrape its counters."""
    home = canary.shop.place.home
    assert home is not None, "this plays in the lab alone"
    application = web.Application()
    application.router.add_get("/metrics", canary.metrics)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    file, url = home.config / "prometheus.yaml", state.read(home)["endpoints"]["prometheus"]
    before = file.read_text()
    config = yaml.safe_load(before)
    target = {"targets": [f"127.0.0.1:{runner.addresses[0][1]}"]}
    config["scrape_configs"].append({"job_name": canary.where, "honor_labels": True, "static_configs": [target]})
    flowing = asyncio.create_task(canary.flow())
    try:
        await _configure(file, yaml.safe_dump(config, sort_keys=False), url)
        yield
    finally:
        await _configure(file, before, url)
        flowing.cancel()
        await asyncio.gather(flowing, return_exceptions=True)
        await runner.cleanup()


async def _configure(file: Path, text: str, url: str) -> None:
    """Give Prometheus another configuration."""

    def configure() -> None:
        file.write_text(text)
        urlopen(Request(f"{url}/-/reload", method="POST"), timeout=10).close()  # noqa: S310 - it is our own

    await asyncio.to_thread(configure)


async def aborted(canary: Canary) -> None:
    """Release a bad version as a canary, wait until it is aborted and the stable one proven, tell it, and check it."""
    since, place = datetime.now(UTC), canary.shop.place
    stable = str((await canary.rollout())["status"]["stableRS"])
    before = (await rollouts.replica_sets(canary.plane.api, canary.where, "shop"))[stable]
    pods = {pod["metadata"]["uid"] for pod in place.of("shop")}
    place.timeline.add("fault", f"v2 is tried with {SHARE} % of the traffic: a fifth of its requests fail")
    bad = await rollouts.release(canary.plane.api, canary.where, "shop", "v2")
    await place.until(lambda: canary.share == SHARE, "canary with traffic", PATIENCE)
    await place.until(lambda: bool(canary.weights) and canary.share == 0, "canary without traffic", PATIENCE)
    off, failed = canary.weights[-1][0], canary.count(bad)[1]
    await place.until(
        lambda: any(one["status"].get("phase") == "Done" for one in canary.records(since)), "verdict", PATIENCE
    )
    canary.shop.tell_what_was_logged(since, FUNCTION)
    for write in canary.writes(since):
        place.timeline.add("audit", str(write), at=write.at)
    (sent, wrong), (all_sent, all_wrong) = canary.count(bad), canary.count()
    place.timeline.add(
        "client", f"{all_sent} requests at {PER_SECOND} a second, {all_wrong} failed: of {sent} to the canary {wrong}"
    )
    place.timeline.tell("A canary that fails, judged by its requests: it is aborted", since)
    record = next(one for one in canary.records(since) if one["status"].get("phase") == "Done")
    if record["status"].get("verdict") != "Recovered":
        raise ScenarioFailed(f"the verdict is {record['status'].get('verdict')}: {record['status'].get('reason')}")
    _check_quick(canary, since, off, wrong - failed)
    after = (await rollouts.replica_sets(canary.plane.api, canary.where, "shop"))[stable]
    left = {pod["metadata"]["uid"] for pod in place.of("shop") if _hash(pod) == stable}
    if after["spec"] != before["spec"] or left != pods:
        raise ScenarioFailed("the stable version was touched")
    strange = [one for one in canary.writes(since) if not one.resource.startswith("rollouts")]
    if strange:
        raise ScenarioFailed(f"the function wrote something else than the Rollout: {strange[0]}")


def _check_quick(canary: Canary, since: datetime, off: datetime, later: int) -> None:
    """Raise ScenarioFailed unless the traffic was off within one evaluation."""
    decided = next(line.at for line in canary.shop.place.timeline.lines if line.word == "decision" and line.at >= since)
    seconds = (off - decided).total_seconds()
    say(f"the traffic was off {seconds:.1f} s after the numbers were looked at; {later} requests failed after that")
    if seconds > _EVALUATION:
        raise ScenarioFailed(f"the traffic was off only {seconds:.1f} s after the decision")


async def complain(canary: Canary) -> None:
    """Let an alert fire that names the Rollout."""
    home = canary.shop.place.home
    assert home is not None, "this plays in the lab alone"
    labels = {"alertname": "ShopIsSlow", "namespace": canary.where, "rollout": canary.shop.name, "kreflex": FUNCTION}
    body = json.dumps([{"labels": labels, "annotations": {"summary": "People say that the shop is slow."}}]).encode()
    url = f"{state.read(home)['endpoints']['alertmanager']}/api/v2/alerts"
    canary.shop.place.timeline.add("alert", "ShopIsSlow fires, and names the Rollout")

    def post() -> None:
        urlopen(Request(url, body, {"Content-Type": "application/json"}), timeout=10).close()  # noqa: S310 - our own

    await asyncio.to_thread(post)


async def paused(canary: Canary) -> None:
    """Try another version while nobody asks for anything: nobody can tell how it is, so people are asked."""
    since, place = datetime.now(UTC), canary.shop.place
    canary.flows = False
    say("nobody sends requests any more; waiting until Prometheus has forgotten those that were sent")
    await asyncio.sleep(12)
    place.timeline.add("release", "v3 is tried, and nobody sends a request")
    await rollouts.release(canary.plane.api, canary.where, "shop", "v3")
    await complain(canary)
    limit = asyncio.get_running_loop().time() + PATIENCE
    while not (await canary.rollout())["spec"].get("paused"):
        if asyncio.get_running_loop().time() > limit:
            raise ScenarioFailed("the canary was not paused")
        await asyncio.sleep(0.2)
    place.timeline.add("paused", "the Rollout stands: it goes on only if a person says so")
    await place.until(
        lambda: any(one["status"].get("guard") == "Inconclusive" for one in canary.records(since)),
        "word to people",
        PATIENCE,
    )
    canary.shop.tell_what_was_logged(since, FUNCTION)
    for write in canary.writes(since):
        place.timeline.add("audit", str(write), at=write.at)
    place.timeline.tell("A canary of which nobody can tell: it is paused, and people are asked", since)
    body = await canary.rollout()
    if body["status"].get("abort") or body["status"].get("phase") == "Degraded":
        raise ScenarioFailed("it was aborted without any proof")
    if not body["spec"].get("paused"):
        raise ScenarioFailed("it is not paused any more")
