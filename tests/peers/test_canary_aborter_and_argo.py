"""canary-aborter with Argo Rollouts itself, and with numbers that a real Prometheus has scraped."""

import asyncio
import itertools
import uuid
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from aiohttp import web

from functions.canary_aborter import main as aborter
from kreflex import admission, rights
from kreflex.credentials import load_credentials
from kreflex.prom import Metrics
from kreflex.reflex import Arc
from kreflex.rollouts import HASH
from kreflex.serve import REFLEXES
from kreflex.settings import CoreSettings
from kreflex.signals import Due, PodSignal, WorkloadSignal
from lab import audit, manifests, monitoring, rollouts
from lab.api import eventually
from lab.cluster import ControlPlane
from lab.ports import Ports
from lab.rollouts import PAUSE, degraded, weight
from tests import kit
from tests.cluster.reflexes import Ahead
from tests.mortal import CutError, Mortal

NAME = "canary-aborter"
SETTINGS = aborter.CanaryAborterSettings(abort_within="20s", wait_for_data="20s")  # type: ignore[arg-type]
REFLEX = replace(REFLEXES[NAME], settings=SETTINGS)
STEPS = [weight(10), PAUSE, weight(50), PAUSE]
PODS = 'shop_requests_total{namespace="{namespace}",pod=~"{pods}"'
COMPARISON = {"requests": f"sum(increase({PODS}}}[10s]))", "errors": f'sum(increase({PODS},code=~"5.."}}[10s]))'}


class Numbers(Metrics):
    """A Prometheus with the same four answers to each comparison."""

    def __init__(self, requests: float, errors: float) -> None:
        super().__init__("")
        self._answers = itertools.cycle((requests, errors, 9 * requests, 0.002 * 9 * requests))

    async def scalar(self, query: str) -> float | None:
        assert "{" in query
        return next(self._answers)


class Later(Metrics):
    """A Prometheus that has too few requests at the first look, and enough at the next."""

    def __init__(self) -> None:
        super().__init__("")
        first = (9.0, 9.0, 90.0, 0.0)
        self._answers = itertools.chain(first, itertools.cycle((200.0, 40.0, 1800.0, 4.0)))

    async def scalar(self, query: str) -> float | None:
        assert "{" in query
        return next(self._answers)


WORSE, TOO_FEW, SAME = Numbers(200, 40), Numbers(9, 9), Numbers(200, 0)


@dataclass
class Shop(kit.Place):
    """A namespace with a Rollout in it, called shop."""

    async def make(self, rollout: kit.Json) -> str:
        """Make it, and wait until it is Healthy; returns the hash of its template."""
        made = await rollouts.make(self.plane.api, self.name, rollout)
        stable: str = made["status"]["stableRS"]
        return stable

    async def release(self, tag: str = "v2", at: Any = rollouts.waits) -> str:
        """Give it another image, and wait until its canary is at a pause; returns the hash of the template."""
        found = await rollouts.release(self.plane.api, self.name, "shop", tag)
        await self.until(at)
        return found

    async def until(self, wanted: Any) -> kit.Json:
        return await rollouts.until(self.plane.api, self.name, "shop", wanted)

    async def get(self) -> kit.Json:
        return await self.plane.api.get(f"{rollouts.collection(self.name)}/shop")

    async def replicas(self) -> dict[str, int]:
        """The wanted replicas of each template's ReplicaSet, by hash."""
        sets = await rollouts.replica_sets(self.plane.api, self.name, "shop")
        return {key: one["spec"]["replicas"] for key, one in sets.items()}

    async def pods_of(self, template: str) -> list[str]:
        selector = f"{HASH}={template}"
        pods = await self.plane.api.get(f"/api/v1/namespaces/{self.name}/pods", labelSelector=selector)
        return [one["metadata"]["name"] for one in pods["items"] if kit.is_ready(one)]

    async def canary_weight(self) -> int:
        """What nginx would read on the Ingress that the controller makes."""
        path = f"/apis/networking.k8s.io/v1/namespaces/{self.name}/ingresses/shop-shop-canary"
        annotations = (await self.plane.api.get(path))["metadata"]["annotations"]
        return int(annotations["nginx.ingress.kubernetes.io/canary-weight"])

    def changed(self) -> list[str]:
        """What the function has changed here beside its records, as the API server logged it."""
        return [
            f"{one['objectRef']['resource']}/{one['objectRef'].get('subresource', '')}".rstrip("/")
            for one in self.writes(NAME)
            if one["responseStatus"]["code"] < 300 and one["objectRef"]["resource"] not in {"remediations", "events"}
        ]

    def alert(self) -> WorkloadSignal:
        return WorkloadSignal("argoproj.io/v1alpha1", "Rollout", self.name, "shop", summary="ErrorRate: too many fail")

    async def carried_on(self, arc: Arc[Any], *, until: str = "Done") -> kit.Json:
        """Call for the records as the waker does, until all are in this phase; returns the newest."""

        async def done() -> kit.Json | None:
            for record in await self.records():
                await arc.handle(Due(self.name, record["metadata"]["name"]))
            records = sorted(await self.records(), key=lambda one: str(one["status"].get("settledAt")))
            return records[-1] if {one["status"]["phase"] for one in records} == {until} else None

        found: kit.Json = await eventually(done, f"the record {until}", 60, pause=0.3)
        return found


@pytest.fixture(scope="module")
async def rolling(installed: ControlPlane) -> AsyncIterator[ControlPlane]:
    """A control plane with Argo Rollouts at work, and the function's account."""
    await rollouts.install(installed)
    allowed = rights.rights_of(REFLEX)
    await manifests.apply(installed.api, [*rights.manifests(allowed), *admission.policy_of(allowed)])
    async with rollouts.running(installed):
        yield installed


@pytest.fixture
async def shop(rolling: ControlPlane) -> Shop:
    return await a_shop(rolling)


async def a_shop(rolling: ControlPlane) -> Shop:
    """Make a namespace with a policy for canaries."""
    name = f"s-{uuid.uuid4().hex[:8]}"
    await rolling.api.post("/api/v1/namespaces", {"metadata": {"name": name}})
    made = Shop(rolling, name)
    await made.set_policy(functions=[NAME], releases={"canary": COMPARISON})
    return made


@asynccontextmanager
async def an_arc(shop: Shop, metrics: Metrics) -> AsyncIterator[Arc[Any]]:
    """The function with its own account's rights, which must suffice, and these numbers."""
    async with kit.arc_of(shop.plane, REFLEX) as arc:
        arc.world = replace(arc.world, metrics=metrics)
        yield arc
    told = [one for one in audit.entries(shop.plane.audit_log) if one["user"]["username"].endswith(f":{NAME}")]
    assert [one["requestURI"] for one in told if one["responseStatus"]["code"] == 403] == []


def story(record: kit.Json) -> tuple[str | None, list[str]]:
    """Tell a record's verdict, and the steps that were taken."""
    status = record["status"]
    return status.get("verdict"), [one["action"] for one in status["steps"]]


async def test_a_canary_that_is_worse_is_aborted_and_what_is_stable_proves_itself(shop: Shop) -> None:
    stable = await shop.make(rollouts.canary("shop", 10, STEPS))
    bad = await shop.release()
    before = await shop.get()
    async with an_arc(shop, WORSE) as arc:
        await arc.handle(shop.alert())
        record = await shop.carried_on(arc)
    assert story(record) == ("Recovered", ["AbortRollout"])
    assert await shop.replicas() == {stable: 10, bad: 0}
    after = await shop.get()
    assert (degraded(after), after["spec"]) == (True, before["spec"])
    assert set(shop.changed()) <= {"rollouts/status", "rollouts"}


async def test_an_abort_right_after_a_write_of_the_controller_is_noticed_all_the_same(shop: Shop) -> None:
    await shop.make(rollouts.canary("shop", 10, STEPS))
    async with an_arc(shop, WORSE) as arc:
        for number in range(2, 8):
            # Without a pause behind the controller's last write.
            await shop.release(f"v{number}")
            await arc.handle(shop.alert())
            await shop.carried_on(arc)
            assert degraded(await shop.get())


async def test_what_nobody_can_tell_is_paused_then_aborted_when_the_numbers_come_and_not_left_paused(
    shop: Shop,
) -> None:
    stable = await shop.make(rollouts.canary("shop", 10, [weight(10), {"pause": {"duration": "10m"}}]))
    bad = await shop.release()
    async with an_arc(shop, TOO_FEW) as arc:
        handling = asyncio.create_task(arc.handle(shop.alert()))
        await shop.until(lambda one: one["spec"].get("paused"))
        arc.world = replace(arc.world, metrics=WORSE)
        await handling
        record = await shop.carried_on(arc)
    assert story(record) == ("Recovered", ["PauseRollout", "AbortRollout", "ResumeAborted"])
    after = await shop.get()
    assert ("paused" in after["spec"], await shop.replicas()) == (False, {stable: 10, bad: 0})


async def test_what_stays_unknown_stays_paused_and_people_are_told(shop: Shop) -> None:
    stable = await shop.make(rollouts.canary("shop", 10, [weight(10), {"pause": {"duration": "10m"}}]))
    bad = await shop.release()
    async with an_arc(shop, TOO_FEW) as arc:
        await arc.handle(shop.alert())
        record = await shop.carried_on(arc)
    assert story(record) == ("Ineffective", ["PauseRollout"])
    assert record["status"]["guard"] == "Inconclusive"
    assert ((await shop.get())["spec"]["paused"], await shop.replicas()) == (True, {stable: 9, bad: 1})


async def test_a_canary_that_waits_for_a_person_already_is_not_paused_once_more(shop: Shop) -> None:
    await shop.make(rollouts.canary("shop", 10, STEPS))
    await shop.release()
    async with an_arc(shop, TOO_FEW) as arc:
        told = await arc.handle(shop.alert())
    assert (told.outcome, "waits for a person" in told.because, shop.changed()) == ("refused", True, [])


async def test_a_canary_that_is_not_worse_is_left_to_people(shop: Shop) -> None:
    await shop.make(rollouts.canary("shop", 10, STEPS))
    await shop.release()
    async with an_arc(shop, SAME) as arc:
        told = await arc.handle(shop.alert())
    assert (told.outcome, await shop.records(), shop.changed()) == ("skipped", [], [])


async def test_of_a_blue_green_rollout_the_preview_is_aborted_and_the_active_service_stays(shop: Shop) -> None:
    stable = await shop.make(rollouts.blue_green("shop", 3))
    await shop.release()
    async with an_arc(shop, WORSE) as arc:
        await arc.handle(shop.alert())
        record = await shop.carried_on(arc)
    service = await shop.plane.api.get(f"/api/v1/namespaces/{shop.name}/services/shop")
    assert (story(record), service["spec"]["selector"][HASH]) == (("Recovered", ["AbortRollout"]), stable)


async def test_the_same_version_is_aborted_again_when_a_person_tries_it_again(shop: Shop) -> None:
    await shop.make(rollouts.canary("shop", 10, STEPS))
    await shop.release()
    async with an_arc(shop, WORSE) as arc:
        await arc.handle(shop.alert())
        await shop.carried_on(arc)
        await rollouts.settled(shop.plane.api, shop.name, "shop")
        retry = {"status": {"abort": False}}
        await shop.plane.api.patch(f"{rollouts.collection(shop.name)}/shop/status", retry)
        await shop.until(rollouts.waits)
        await arc.handle(shop.alert())
        await eventually(lambda: _aborted(shop), "the second abort")
    assert len(await shop.records()) == 2


async def _aborted(shop: Shop) -> bool:
    return degraded(await shop.get())


async def test_an_alert_about_a_pod_of_an_experiment_is_about_its_rollout(shop: Shop) -> None:
    stable = await shop.make(rollouts.canary("shop", 2, [rollouts.experiment(120), weight(50), PAUSE]))
    bad = await shop.release(at=lambda one: one["status"]["canary"].get("currentExperiment") is not None)
    name = (await shop.get())["status"]["canary"]["currentExperiment"]

    async def tried() -> str | None:
        pods = (await shop.plane.api.get(f"/api/v1/namespaces/{shop.name}/pods"))["items"]
        names = [one["metadata"]["name"] for one in pods if kit.is_ready(one)]
        return next((pod for pod in names if pod.startswith(f"{name}-canary")), None)

    pod = await eventually(tried, "a pod of the experiment")
    async with an_arc(shop, WORSE) as arc:
        await arc.handle(PodSignal(shop.name, pod, summary="ErrorRate: too many fail"))
        record = await shop.carried_on(arc)
    assert (record["spec"]["target"]["kind"], story(record)) == ("Rollout", ("Recovered", ["AbortRollout"]))
    assert (await shop.replicas())[stable] == 2
    assert (await shop.replicas()).get(bad, 0) == 0


# Killed in between


@pytest.mark.parametrize("arrives", [False, True])
async def test_killed_at_any_write_of_an_abort_another_brings_it_to_the_same_end(
    rolling: ControlPlane, *, arrives: bool
) -> None:
    died = 0
    for last in range(20):
        shop = await a_shop(rolling)
        stable = await shop.make(rollouts.canary("shop", 4, [weight(25), {"pause": {"duration": "10m"}}]))
        bad = await shop.release()
        dead = await killed_at(shop, last, arrives=arrives)
        async with an_arc(shop, WORSE) as arc:
            Ahead.of(arc, seconds=40)
            arc.world = replace(arc.world, cluster=arc.reader)
            if not await shop.records():
                await arc.handle(shop.alert())
            record = await shop.carried_on(arc)
        after = await shop.get()
        told = (record["status"]["verdict"], degraded(after), "paused" in after["spec"], await shop.replicas())
        assert told == ("Recovered", True, False, {stable: 4, bad: 0}), last
        assert len(await shop.records()) == 1, last
        died += dead
        if not dead:
            break
    assert died >= 5


async def killed_at(shop: Shop, last: int, *, arrives: bool) -> bool:
    """Let the function die at one of its writes, of a pause first and then of the abort; whether it died."""
    credentials = load_credentials(str(await shop.plane.kubeconfig_for("kreflex-system", NAME)))
    mortal = Mortal(credentials, last, arrives=arrives)
    arc = Arc(REFLEX, CoreSettings(), mortal)
    arc.world = replace(arc.world, metrics=Later())
    try:
        await arc.handle(shop.alert())
    except CutError:
        return True
    finally:
        await mortal.close()
    return False


# With numbers that Prometheus has


@dataclass
class Traffic:
    """A stand-in for nginx, clients and pods: so many requests a second, a share of them to the canary's pods.

    The share is what stands on the canary's Ingress. A fifth of the canary's requests fail. Counters are served as pods
    would serve them.
    """

    shop: Shop
    stable: str
    bad: str
    per_second: int = 200
    sent: Counter[tuple[str, str]] = field(default_factory=Counter)
    shares: list[int] = field(default_factory=list)

    async def flow(self) -> None:
        """Send requests until somebody stops it."""
        numbers = itertools.count()
        while True:
            share = await self.shop.canary_weight()
            self.shares.append(share)
            new, old = await self.shop.pods_of(self.bad), await self.shop.pods_of(self.stable)
            for number in itertools.islice(numbers, self.per_second // 10):
                canary = bool(new) and number % 100 < share
                pods = new if canary else old
                failed = canary and number % 5 == 0
                self.sent[pods[number % len(pods)], "500" if failed else "200"] += 1
            await asyncio.sleep(0.1)

    async def metrics(self, _: web.Request) -> web.Response:
        """Serve the counters."""
        lines = [
            f'shop_requests_total{{namespace="{self.shop.name}",pod="{pod}",code="{code}"}} {count}'
            for (pod, code), count in self.sent.items()
        ]
        return web.Response(text="\n".join(lines) + "\n")

    @property
    def failed(self) -> int:
        return sum(count for (_, code), count in self.sent.items() if code == "500")


@asynccontextmanager
async def scraped(shop: Shop, traffic: Traffic) -> AsyncIterator[str]:
    """Let the traffic flow, and Prometheus scrape it; gives its URL."""
    application = web.Application()
    application.router.add_get("/metrics", traffic.metrics)
    runner = web.AppRunner(application, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    url = f"http://127.0.0.1:{runner.addresses[0][1]}"
    flowing = asyncio.create_task(traffic.flow())
    try:
        with Ports() as ports:
            prometheus = await monitoring.start_prometheus(shop.plane, ports.take(), {"shop": url}, interval="1s")
            yield prometheus
    finally:
        flowing.cancel()
        await asyncio.gather(flowing, return_exceptions=True)
        await shop.plane.stop_child("prometheus")
        await runner.cleanup()


async def test_at_a_tenth_with_errors_the_traffic_is_off_within_one_evaluation_and_what_is_stable_is_untouched(
    shop: Shop,
) -> None:
    stable = await shop.make(rollouts.canary("shop", 10, STEPS, **rollouts.through_nginx("shop")))
    bad = await shop.release()
    traffic = Traffic(shop, stable, bad)
    sets = await rollouts.replica_sets(shop.plane.api, shop.name, "shop")
    async with scraped(shop, traffic) as url, an_arc(shop, Metrics(url)) as arc:
        told = await eventually(lambda: _worse(arc, shop), "enough requests to tell", 90, pause=0.5)
        weight_after, failed = await shop.canary_weight(), traffic.failed
        await asyncio.sleep(2)
        record = await shop.carried_on(arc)
        later = traffic.failed
    assert told == "applied"
    assert (weight_after, traffic.shares[0], traffic.shares[-1]) == (0, 10, 0)
    # Those that were on their way when the weight was read.
    assert later - failed <= traffic.per_second // 10
    assert story(record)[0] == "Recovered"
    after = await rollouts.replica_sets(shop.plane.api, shop.name, "shop")
    assert (after[stable]["spec"], set(shop.changed()) <= {"rollouts/status", "rollouts"}) == (
        sets[stable]["spec"],
        True,
    )


async def _worse(arc: Arc[Any], shop: Shop) -> str | None:
    """Go one round of the waker: nothing is said against the canary, and its numbers are looked at."""
    told = await arc.handle(replace(shop.alert(), summary=""))
    return None if told.outcome == "skipped" else told.outcome
