"""Every pod of a release loops: after three evictions that did not help, the fourth is refused and people are asked."""

from lab.scenarios.crash_loop import tell_evictions
from lab.scenarios.place import Place
from lab.scenarios.timeline import ScenarioFailed
from lab.scenarios.traffic import traffic

_TRIES = 3


async def play(place: Place) -> None:
    """Deploy a release that loops, and wait until Kreflex stops by itself."""
    await place.deploy("broken", 1, sick=True)
    if not place.simulated:
        await follow(place, "not asked: the scenario's client reaches the lab only")
        return
    async with traffic(place, "broken") as count:
        await follow(place, count)


async def follow(place: Place, client: object) -> None:
    """Wait for the refusal, tell the timeline, and check it."""
    await place.until(lambda: bool(place.records(guard="Useless")), "refusal after useless evictions")
    refused = place.records(guard="Useless")[0]
    place.tell_what_was_logged()
    tell_evictions(place, *(uid for _, uid, _ in place.evictions()))
    events = await _escalations(place, refused["metadata"]["name"])
    for note in events:
        place.timeline.add("escalated", f"Kubernetes Event on the pod: {note}")
    place.timeline.add("client", str(client))
    place.timeline.tell("A loop that deletion can't help: three tries, then a person")
    ineffective = len(place.records(verdict="Ineffective"))
    if ineffective != _TRIES:
        raise ScenarioFailed(f"{ineffective} evictions were found useless, not {_TRIES}")
    if not events:
        raise ScenarioFailed("no Kubernetes Event tells people of the refusal")
    if place.simulated and sum(code < 300 for _, _, code in place.evictions()) != _TRIES:
        raise ScenarioFailed(f"the audit log does not have {_TRIES} accepted evictions")


async def _escalations(place: Place, record: str) -> list[str]:
    path = place.path("events", "/apis/events.k8s.io/v1")
    found = [body async for body in place.reader.list(path)]
    return [e["note"] for e in found if e["metadata"]["name"].startswith(record) and e["reason"] == "KreflexUseless"]
