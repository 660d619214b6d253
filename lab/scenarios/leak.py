"""One pod of several leaks: it is found in Prometheus before it is killed, and Alertmanager has it evicted in time."""

import asyncio
import time
from datetime import UTC, datetime

from kreflex.anomaly.anomalies import Anomaly, anomalies
from lab import workloads
from lab.scenarios.crash_loop import check, tell_evictions
from lab.scenarios.place import Json, Place
from lab.scenarios.timeline import ScenarioFailed, say
from lab.scenarios.traffic import Count, traffic

NAME, REPLICAS, LIMIT = "cart", 4, "256Mi"
# In a cluster a leak takes hours, samples are a minute apart, and a week of them is known. Here all is in seconds.
INTERVAL, HISTORY = "1s", "10m"
KNOWN_SECONDS = 25
# It learns in the first second. After sixty samples it learns on, and would take what it sees for usual by then.
WATCHED_SECONDS = 6
LEAK_SECONDS = 75
_PATIENCE = 90.0
_WATCHES = "/apis/kreflex.dev/v1alpha1"
_CONTAINERS = 'namespace="{namespace}",container!=""'
_LIMIT = f'max by (namespace, pod, container) (kube_pod_container_resource_limits{{resource="memory",{_CONTAINERS}}})'


def watch(namespace: str) -> Json:
    """What is watched here: each container's memory in two ways, against its limit."""

    def signal(name: str, metric: str) -> Json:
        query = f"max by (namespace, pod, container) ({metric}{{{_CONTAINERS}}})"
        named = {key: text.replace("{namespace}", namespace) for key, text in (("query", query), ("limit", _LIMIT))}
        return {"name": name, "kind": "memory", **named}

    signals = [
        signal("working-set", "container_memory_working_set_bytes"),
        signal("rss", "container_memory_rss"),
    ]
    return {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "AnomalyWatch",
        "metadata": {"name": "memory"},
        "spec": {
            "target": {"kind": "Pod", "nameLabel": "pod"},
            "interval": INTERVAL,
            "history": HISTORY,
            "siblings": ["namespace", "container"],
            "signals": signals,
            "remediations": [{"class": "leak", "function": "restart-loop-killer"}],
        },
    }


async def play(place: Place) -> None:
    """Let one pod leak, wait until it is evicted and its owner proven healthy, tell the timeline, and check it."""
    assert place.home is not None, "this plays in the lab alone"
    body = workloads.deployment(NAME, REPLICAS, spec=workloads.limited(LIMIT))
    await place.writer.create(place.path("deployments", "/apis/apps/v1"), body)
    await place.until(lambda: len(place.ready(NAME)) == REPLICAS, f"{REPLICAS} Ready pods of {NAME}")
    say(f"{KNOWN_SECONDS + WATCHED_SECONDS} s in which Prometheus and anomaly-scorer get to know {NAME}")
    await asyncio.sleep(KNOWN_SECONDS)
    await place.writer.create(place.path("anomalywatches", _WATCHES), watch(place.namespace))
    await asyncio.sleep(WATCHED_SECONDS)
    if early := [one async for one in anomalies(place.reader, place.namespace) if counts(one)]:
        raise ScenarioFailed(f"something was taken for ill before anything was wrong: {early[0].status.summary}")
    place.tells_pods = False
    async with traffic(place, NAME) as count:
        await leak(place, count)


async def leak(place: Place, count: Count) -> None:
    """The fault, and what becomes of it."""
    since, siblings = datetime.now(UTC), place.ready(NAME)
    victim = siblings.pop()
    name, uid = victim["metadata"]["name"], victim["metadata"]["uid"]
    # By the alert alone: what others send is stopped where it is.
    with place.silent("adapter", "ticker", "relay"):
        notes = workloads.fault("leak", leak_seconds=LEAK_SECONDS, since=time.time())
        await place.writer.merge(place.path(f"pods/{name}"), {"metadata": {"annotations": notes}})
        place.timeline.add("fault", f"pod {name} begins to leak: in {LEAK_SECONDS} s it is at its limit of {LIMIT}")
        found = await noticed(place, uid)
        await place.until(lambda: bool(place.records(name, outcome="applied")), f"eviction of {name}", _PATIENCE)
    await place.until(lambda: bool(place.records(name, phase="Done")), f"verdict on {name}", _PATIENCE)
    over = await resolved(place, found)
    record = place.records(name)[0]
    await place.settled(record)
    place.tell_what_was_logged()
    tell_evictions(place, uid)
    place.timeline.add("recovered", f"{over} is Resolved: {over.status.resolved_because}", at=over.status.resolved_at)
    place.timeline.add("client", str(count))
    place.timeline.tell("A leak, found in Prometheus and told by Alertmanager alone", since)
    check(place, record, uid, "alert")
    check_in_time(place, since, siblings)


def counts(one: Anomaly) -> bool:
    """Tell whether it might have a pod evicted: a single signal may cry wolf, at the rate that the watch bears."""
    return one.status.agreed or one.spec.class_ == "leak"


async def noticed(place: Place, uid: str) -> Anomaly:
    """Wait until several signals agree on a leak of this pod; what might have another pod evicted ends the scenario."""
    found: list[Anomaly] = []
    limit = asyncio.get_running_loop().time() + LEAK_SECONDS
    while not found:
        if asyncio.get_running_loop().time() > limit:
            seen = [f"{one}: {one.status.summary}" async for one in anomalies(place.reader, place.namespace)]
            raise ScenarioFailed(f"no leak was found before the kernel found it; seen was {seen or 'nothing'}")
        await asyncio.sleep(0.2)
        known = [one async for one in anomalies(place.reader, place.namespace)]
        if others := [one for one in known if one.spec.target.uid != uid and counts(one)]:
            raise ScenarioFailed(f"a healthy pod was taken for ill: {others[0].status.summary}")
        found = [one for one in known if one.spec.class_ == "leak" and one.status.agreed]
    place.timeline.add("anomaly", f"{found[0].status.summary}; {found[0].status.because}")
    return found[0]


async def resolved(place: Place, anomaly: Anomaly) -> Anomaly:
    """Wait until an anomaly is over."""
    limit = asyncio.get_running_loop().time() + _PATIENCE
    while asyncio.get_running_loop().time() < limit:
        async for one in anomalies(place.reader, place.namespace):
            if one.name == anomaly.name and not one.open:
                return one
        await asyncio.sleep(0.2)
    raise ScenarioFailed(f"{anomaly} is still open after {_PATIENCE:.0f} s")


def check_in_time(place: Place, since: datetime, siblings: list[Json]) -> None:
    """Raise ScenarioFailed unless it was found and evicted before its end, and no other pod was touched."""
    lines = {line.word: line for line in reversed(place.timeline.lines) if line.at >= since}
    end = LEAK_SECONDS - (lines["action"].at - lines["fault"].at).total_seconds()
    early = LEAK_SECONDS - (lines["anomaly"].at - lines["fault"].at).total_seconds()
    say(f"it was found {early:.0f} s before it would have been killed, and evicted {end:.0f} s before that")
    if end <= 0:
        raise ScenarioFailed("the kernel was quicker")
    kept = {pod["metadata"]["uid"]: pod for pod in place.of(NAME)}
    for pod in siblings:
        now = kept.get(pod["metadata"]["uid"])
        if now is None or now["status"]["containerStatuses"][0]["restartCount"]:
            raise ScenarioFailed(f"its healthy sibling {pod['metadata']['name']} was touched")
