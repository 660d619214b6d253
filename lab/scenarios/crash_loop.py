"""A pod loops where its successor would not: it is evicted once, and its owner proven healthy."""

from datetime import UTC, datetime

from lab.scenarios.place import Json, Place
from lab.scenarios.timeline import ScenarioFailed
from lab.scenarios.traffic import Count, traffic


async def play(place: Place) -> None:
    """Heal one pod told of by an event; in the lab, then another told of by an alert alone."""
    if not place.simulated:
        await place.deploy("cart", 3)
        await heal(place, "cart", "A crash loop in your cluster", None)
        return
    for name in ("cart", "orders"):
        await place.deploy(name, 3)
    async with traffic(place, "cart") as count:
        await heal(place, "cart", "A crash loop, told by an event of the API server (fast path)", count)
    # The same on the stock path alone: the event source and the waker are stopped where they are.
    async with traffic(place, "orders") as count:
        await heal(
            place, "orders", "A crash loop, told by Prometheus and Alertmanager alone (stock path)", count, "alert"
        )


async def heal(place: Place, name: str, title: str, count: Count | None, word: str = "event") -> None:
    """Break one pod, wait for the verdict, tell the timeline, and check it against the API server's audit log."""
    since = datetime.now(UTC)
    silent = ("adapter", "ticker") if word == "alert" else ()
    with place.silent(*silent):
        victim = await place.break_one(name)
        uid = next(pod["metadata"]["uid"] for pod in place.of(name) if pod["metadata"]["name"] == victim)
        await place.until(lambda: bool(place.records(victim)), f"record about {victim}")
    # Who told of it is written down. A pod that changes just then is left to the waker, as in any cluster.
    await place.until(lambda: bool(place.records(victim, outcome="applied")), f"eviction of {victim}")
    await place.until(lambda: bool(place.records(victim, phase="Done")), f"verdict on {victim}")
    record = place.records(victim)[0]
    await place.settled(record)
    place.tell_what_was_logged()
    tell_evictions(place, uid)
    if record["status"]["verdict"] == "Recovered":
        place.timeline.add("recovered", f"{name} is healthy again, as Remediation {record['metadata']['name']} says")
    place.timeline.add("client", str(count) if count else "not asked: the scenario's client reaches the lab only")
    place.timeline.tell(title, since)
    check(place, record, uid, word)


def tell_evictions(place: Place, *uids: str) -> None:
    """Add what the audit log says of the evictions of these pods."""
    for at, uid, code in place.evictions():
        if uid in uids:
            place.timeline.add("audit", f"eviction of pod UID {uid[:8]}… answered {code}", at=at)


def check(place: Place, record: Json, uid: str, word: str) -> None:
    """Raise ScenarioFailed unless the pod was evicted exactly once, by the way told, and its owner healed."""
    status = record["status"]
    if status.get("verdict") != "Recovered":
        raise ScenarioFailed(f"the verdict is {status.get('verdict')}: {status.get('verdictReason')}")
    if not place.simulated:
        return
    accepted = [u for _, u, code in place.evictions() if code < 300]
    if accepted.count(uid) != 1 or len(set(accepted)) != len(accepted):
        raise ScenarioFailed(f"the audit log has {accepted.count(uid)} accepted evictions of the pod, not one")
    if not any(line.word == word for line in place.timeline.lines):
        raise ScenarioFailed(f"it was not the {word} that told of the fault")
