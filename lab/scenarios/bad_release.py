"""A bad release is taken back; released again, it is left to people; and one that is not to blame is left alone."""

import asyncio
from datetime import UTC, datetime

from lab import workloads
from lab.scenarios.helm_shop import helm_shop
from lab.scenarios.place import Place
from lab.scenarios.shop import FUNCTION, KINDS, PATIENCE, Shop, open_shop
from lab.scenarios.timeline import ScenarioFailed, say
from lab.scenarios.traffic import Count, traffic

GOOD, BAD, NEXT = "v1", "v2-crash", "v3"
# Of a Rollout it has to be complete first.
_LATE = "v2-crash-10s"
# How long what must not happen is waited for.
_STILL = 12.0


async def play(place: Place, kind: str = "deployment") -> None:
    """Play the acts on one workload of a kind."""
    place.tells_pods = False
    async with helm_shop(place) if kind == "helm" else open_shop(place, KINDS[kind]) as shop:
        neighbour = Shop(place, "Deployment", "cart", 2)
        await asyncio.gather(shop.make(GOOD), neighbour.make(GOOD))
        say(f"waiting until {GOOD} has been well for so long that it is noted as healthy")
        await asyncio.gather(shop.remembered(GOOD), neighbour.remembered(GOOD))
        async with traffic(place, shop.name) as count:
            await taken_back(shop, _LATE if kind == "rollout" else BAD, count)
        await same_again(shop, _LATE if kind == "rollout" else BAD)
        # Of a Rollout whose new version is not complete the canary-aborter decides.
        if kind != "rollout":
            await not_to_blame(shop, neighbour)


async def taken_back(shop: Shop, bad: str, count: Count) -> None:
    """Release a bad version, wait until the good one is back and proven, tell it, and check it."""
    since, place = datetime.now(UTC), shop.place
    await shop.release(bad)
    await place.until(lambda: bool(shop.records(since, outcome="applied")), "rollback", PATIENCE)
    await place.until(lambda: shop.runs(GOOD), f"{shop.name} that runs {GOOD} again", PATIENCE)
    place.timeline.add("recovered", f"all {shop.replicas} pods of {shop.name} run {GOOD} again, and are Ready")
    place.timeline.add("client", str(count))
    await place.until(lambda: bool(shop.records(since, phase="Done")), "verdict", PATIENCE)
    await place.settled(shop.records(since, phase="Done")[0], FUNCTION)
    shop.tell_what_was_logged(since)
    place.timeline.tell(f"A bad version of a {shop.title}: {bad} is taken back", since)
    record = shop.records(since, phase="Done")[0]
    if record["status"].get("verdict") != "Recovered":
        raise ScenarioFailed(f"the verdict is {record['status'].get('verdict')}")
    await shop.check_undone(since)
    if await shop.image() != GOOD:
        raise ScenarioFailed(f"{shop.name} is to run {await shop.image()}, not {GOOD}")


async def same_again(shop: Shop, bad: str) -> None:
    """Release the same bad version again: nobody but people may decide that a second time."""
    since, place = datetime.now(UTC), shop.place
    await shop.release(bad)
    await place.until(lambda: refused(shop, since, "SameVersionAgain"), "refusal of the same version", PATIENCE)
    await asyncio.sleep(_STILL)
    shop.tell_what_was_logged(since)
    place.timeline.add("escalated", "people decide: the record says what they have to know")
    place.timeline.tell("The same bad version again: people are asked", since)
    untouched(shop, since)
    say(f"somebody mends it: {GOOD} is released by hand")
    await shop.release(GOOD)
    await place.until(lambda: shop.runs(GOOD), f"{shop.name} that runs {GOOD}", PATIENCE)


async def not_to_blame(shop: Shop, neighbour: Shop) -> None:
    """Release a good version while what all of them need is down: nothing is rolled back."""
    since, place = datetime.now(UTC), shop.place
    await shop.release(NEXT)
    place.timeline.add("fault", "the database of all is down: each container crashes, old or new")
    falling = asyncio.create_task(fall_ill(place))
    try:
        await place.until(lambda: refused(shop, since), "refusal for the dependency", PATIENCE)
        await asyncio.sleep(_STILL)
    finally:
        falling.cancel()
        await asyncio.gather(falling, return_exceptions=True)
    shop.tell_what_was_logged(since)
    place.timeline.tell("A dependency is down in the middle of a good release: it is left alone", since)
    if not refused(shop, since, "Dependency"):
        raise ScenarioFailed("it was not refused for its dependency")
    untouched(shop, since)
    untouched(neighbour, since)


async def fall_ill(place: Place) -> None:
    """Let each pod crash that is there, and each that comes."""
    struck: set[str] = set()
    notes = {"metadata": {"annotations": workloads.fault("crash-loop", speed=2)}}
    while True:
        for uid, pod in list(place.pods.items()):
            if uid not in struck and "deletionTimestamp" not in pod["metadata"]:
                struck.add(uid)
                await place.writer.merge(place.path(f"pods/{pod['metadata']['name']}"), notes)
        await asyncio.sleep(0.1)


def refused(shop: Shop, since: datetime, guard: str = "") -> bool:
    """Whether rollback has refused, for this reason if one is named."""
    found = shop.records(since, outcome="refused")
    return any(guard in {"", one["status"].get("guard")} for one in found)


def untouched(shop: Shop, since: datetime) -> None:
    """Raise ScenarioFailed if rollback has changed anything of a workload."""
    done = shop.writes(since)
    if done:
        raise ScenarioFailed(f"{shop.name} was touched: {done[0]}")
