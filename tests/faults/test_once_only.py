"""Once only, with real processes that are killed and stopped at their writes. The audit log is the judge."""

from pathlib import Path

from bench import once_only, rig
from bench.once_only import Fault

# A kill before or after each write, both where that is worst, and the stops that are worst: while the claim and the
# eviction are on their way. `python -m bench once-only` deals every blow.
KILLS = [
    *(once_only.Plan(step, "before", "kill") for step in ("record", "Acting", "eviction", "Done")),
    *(once_only.Plan(step, "after", "kill") for step in ("ledger", "Acting", "eviction", "Applied", "event")),
]
STOPS = [once_only.Plan(step, "before", "stop") for step in ("Acting", "eviction")]


async def test_each_looping_pod_is_evicted_once_whatever_is_killed(tmp_path: Path) -> None:
    faults = [Fault(f"shop-{number}", plan) for number, plan in enumerate([*KILLS, *STOPS])]
    async with rig.cluster(tmp_path) as plane, rig.rig(plane, 2, once_only.ACT_WITHIN) as running:
        await running.start_waker(once_only.ROUND)
        await once_only.start_senders(running)
        found = await once_only.run(running, faults, width=5, deliveries=50, patience=600)

    assert once_only.breaches(found) == []
    assert found["deliveries_per_fault"] >= 50
    assert set(found["deliveries_by_sender"]) == {"apiserver", "alertmanager-a", "alertmanager-b", "copies", "waker"}
