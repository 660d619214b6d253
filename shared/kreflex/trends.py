"""Whether more requests of a workload fail since its release changed; asked of Prometheus with the policy's queries.

While old pods serve beside the new ones, the two are compared at the same time. Afterwards the same queries are asked
for the moment before the change, for soon after it, and for now: what began only later was not begun by the change.
"""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta

from kreflex.comparisons import Count, Side, Worse, filled, judged
from kreflex.errors import UnavailableError
from kreflex.prom import Metrics
from kreflex.releases import Comparison, Releases
from kreflex.revisions import Release, Revision

# Just before the first new pod.
_BEFORE = timedelta(seconds=15)
# A range must hold at least one evaluation.
_RANGE = "[1m:15s]"


async def errors_since(release: Release, before: Revision, rules: Releases, metrics: Metrics, now: datetime) -> str:
    """Tell in words how many more requests fail since the change; "" if that is not so, or not known."""
    if rules.canary is None:
        return ""
    new, old = _side(release, release.current), _side(release, before)
    try:
        if any(pod.ready for pod in release.pods.get(before.hash, ())):
            return await _beside(new, old, rules.canary, metrics)
        return await _after(release, new, old, rules, metrics, now)
    except UnavailableError:
        # No data is no failure.
        return ""


def _side(release: Release, revision: Revision) -> Side:
    ref = release.workload.ref
    return Side(ref.namespace, ref.name, revision.hash, ref.name, release.pods.get(revision.hash, ()))


async def _beside(new: Side, old: Side, rules: Comparison, metrics: Metrics) -> str:
    ours, theirs = await asyncio.gather(_count(new, rules, metrics), _count(old, rules, metrics))
    if not isinstance(judged(ours, theirs, rules), Worse):
        return ""
    return f"{ours} requests of its pods fail, and {theirs} of those of the earlier version beside them"


async def _after(release: Release, new: Side, old: Side, rules: Releases, metrics: Metrics, now: datetime) -> str:
    if rules.canary is None:
        return ""
    earlier = now - release.changed_at + _BEFORE
    soon = max(now - release.changed_at - 2 * rules.patience, timedelta())
    then, first, last = await asyncio.gather(
        _count(old, rules.canary, metrics, earlier),
        _count(new, rules.canary, metrics, soon),
        _count(new, rules.canary, metrics),
    )
    if not all(isinstance(judged(one, then, rules.canary), Worse) for one in (first, last)):
        return ""
    return f"{last} requests fail, and {then} did just before the change"


async def _count(side: Side, rules: Comparison, metrics: Metrics, ago: timedelta = timedelta()) -> Count | None:
    queries = (_at(filled(query, side), ago) for query in (rules.requests, rules.errors))
    requests, failed = await asyncio.gather(*(metrics.scalar(query) for query in queries))
    return Count.of(requests, failed)


def _at(query: str, ago: timedelta) -> str:
    """Ask a query for an earlier time: an offset belongs to a selector, so the whole becomes a subquery.

    https://prometheus.io/docs/prometheus/latest/querying/basics/#subquery
    """
    seconds = int(ago.total_seconds())
    return f"last_over_time(({query}){_RANGE} offset {seconds}s)" if seconds else query
