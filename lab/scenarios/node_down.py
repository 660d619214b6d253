"""A node falls silent: it is replaced, and its pods move. Then most of the pool does: nothing is touched."""

from datetime import UTC, datetime

from lab.nodes import is_ready
from lab.scenarios.place import Json, Place
from lab.scenarios.pool import PODS, Pool
from lab.scenarios.timeline import ScenarioFailed, say
from lab.scenarios.writes import Write

BREAKERS = {"PoolBreaker", "ZoneBreaker", "FleetBreaker"}
_PATIENCE = 240.0


async def play(place: Place) -> None:
    """Play both acts on one pool."""
    assert place.home is not None, "this plays in the lab alone"
    async with Pool.open(place, place.home) as pool:
        moved = await one_node(pool)
        await most_nodes(pool, moved)


async def one_node(pool: Pool) -> list[str]:
    """Replace the one node whose kubelet falls silent, tell it, and check it; the UIDs of the pods that had to move."""
    since = datetime.now(UTC)
    victim = min(pool.nodes)
    claim, pods = pool.claim_of(victim), pool.pods_on(victim)
    say(f"silencing the kubelet of {claim}")
    await pool.silence([victim])
    record = await settled(pool, victim, since)
    whole = datetime.now(UTC)
    pool.tell_what_was_logged(since)
    writes = pool.writes(since, victim)
    tell_times(pool, victim, since, writes, whole)
    pool.place.timeline.tell(f"One node of {len(pool.nodes)} falls silent: it is replaced", since)
    check_evicted(pool, pods)
    await check_replaced(pool, victim, claim, record, writes, since)
    return pods


async def settled(pool: Pool, node: str, since: datetime) -> Json:
    """Wait until a node's remediation has its verdict and the pool is whole without it; the record."""
    place = pool.place
    await place.until(lambda: bool(pool.status(node, since).get("steps")), f"remediation of {node}", _PATIENCE)
    await place.until(lambda: node not in pool.nodes, f"end of {node}", _PATIENCE)
    await place.until(pool.is_whole, f"pool that is whole without {node}", _PATIENCE)
    pool.add("recovered", f"{PODS} pods are Ready again, none of them on {node}")
    say("its pods have moved; the verdict waits until the pod garbage collector has found those that nobody could end")
    await place.until(lambda: pool.status(node, since).get("phase") == "Done", f"verdict on {node}", _PATIENCE)
    record = pool.record(node, since)
    assert record is not None, "it has just been read"
    return record


def tell_times(pool: Pool, node: str, since: datetime, writes: list[Write], verdict: datetime) -> None:
    """Add how long what took."""
    claim = pool.claim_of(node)
    lines = [line for line in pool.place.timeline.lines if line.at >= since]
    fault = next(line.at for line in lines if line.word == "fault" and claim in line.text)
    told = next(line.at for line in lines if line.word == "lifecycle" and claim in line.text)
    acted = next((one.at for one in writes if one.resource == "nodes"), verdict)
    handed = next((one.at for one in writes if (one.verb, one.resource) == ("delete", "nodeclaims")), verdict)
    whole = next(line.at for line in lines if line.word == "recovered")
    spans = {
        "silent to Unknown": told - fault,
        "Unknown to cordon": acted - told,
        "cordon to handed over": handed - acted,
        "handed over to whole": whole - handed,
        "in all": whole - fault,
    }
    text = ", ".join(f"{name} {span.total_seconds():.1f} s" for name, span in spans.items())
    pool.add("times", text, at=verdict)


def check_evicted(pool: Pool, *pods: list[str]) -> None:
    """Raise ScenarioFailed unless each of these pods was evicted once, and no other."""
    accepted = sorted(uid for _, uid, code in pool.place.evictions() if code < 300)
    wanted = sorted(uid for some in pods for uid in some)
    if accepted != wanted:
        raise ScenarioFailed(f"the audit log has the evictions of {accepted}, not of {wanted}, once each")


async def check_replaced(
    pool: Pool, victim: str, claim: str, record: Json, writes: list[Write], since: datetime
) -> None:
    """Raise ScenarioFailed unless the node was replaced once, under its Lease, and its pods have moved."""
    status = record["status"]
    if status.get("verdict") != "Recovered":
        raise ScenarioFailed(f"the verdict is {status.get('verdict')}: {status.get('verdictReason')}")
    done = [(one.verb, one.resource) for one in writes if one.code < 300 and one.verb != "update"]
    cordon, deletion = ("patch", "nodes"), ("delete", "nodeclaims")
    if done.count(cordon) != 1 or done.count(deletion) != 1:
        raise ScenarioFailed(f"the audit log has not one cordon and one deletion of the NodeClaim, but {done}")
    # It is given back by us, or it goes with its Node: whichever is first.
    lease = ("create", "leases")
    if done.count(lease) != 1 or not done.index(lease) < done.index(cordon) < done.index(deletion):
        raise ScenarioFailed(f"the Lease was not taken before the cordon: {done}")
    if await pool.lease(victim):
        raise ScenarioFailed(f"the Lease of {victim} was not given back")
    asked = next(one.body for one in writes if (one.verb, one.resource) == deletion)
    if asked.get("preconditions", {}).get("uid") is None:
        raise ScenarioFailed("the NodeClaim was deleted by its name alone")
    if not any(one.name != claim for one in pool.claims_made(since)):
        raise ScenarioFailed("the audit log has no NodeClaim that Karpenter made instead")


async def most_nodes(pool: Pool, earlier: list[str]) -> None:
    """All nodes but one fall silent: none is touched; all but one of these come back, and that one is replaced."""
    since, place = datetime.now(UTC), pool.place
    *lost, spared = sorted(pool.nodes)
    before = {name: (body["metadata"]["uid"]) for name, body in pool.nodes.items()}
    say(pool.short(f"silencing the kubelets of all nodes but {spared}"))
    await pool.silence(lost)
    await place.until(lambda: all(refused(pool, name, since) for name in lost), "refusal for each", _PATIENCE)
    *healed, last = lost
    say(pool.short(f"each is refused; all of them but {last} are heard again"))
    await pool.heal(healed)
    await place.until(lambda: all(is_ready(pool.nodes[name]) for name in healed), "Ready nodes", _PATIENCE)
    touched = pool.writes(since)
    say(pool.short(f"{last} stays silent: it is replaced when no more than one has been ill for the storm cooldown"))
    claim, pods = pool.claim_of(last), pool.pods_on(last)
    record = await settled(pool, last, since)
    verdict = datetime.now(UTC)
    pool.tell_what_was_logged(since)
    writes = pool.writes(since, last)
    tell_times(pool, last, since, writes, verdict)
    place.timeline.tell(f"{len(lost)} nodes of {len(before)} fall silent at once: nothing is touched", since)
    if touched:
        raise ScenarioFailed(f"something was touched while {len(lost)} nodes were silent: {touched[0]}")
    check_kept(pool, {name: before[name] for name in (*healed, spared)}, since)
    check_evicted(pool, earlier, pods)
    await check_replaced(pool, last, claim, record, writes, since)


def refused(pool: Pool, node: str, since: datetime) -> bool:
    """Whether a node was refused because too many are ill."""
    status = pool.status(node, since)
    return status.get("outcome") == "refused" and status.get("guard") in BREAKERS


def check_kept(pool: Pool, kept: dict[str, str], since: datetime) -> None:
    """Raise ScenarioFailed unless these nodes are the same as before, and were never written to."""
    for name, uid in kept.items():
        node = pool.nodes.get(name)
        if node is None or node["metadata"]["uid"] != uid or node["spec"].get("unschedulable"):
            raise ScenarioFailed(f"{name} was not left as it was")
        if pool.writes(since, name):
            raise ScenarioFailed(f"{name} was touched: {pool.writes(since, name)[0]}")
