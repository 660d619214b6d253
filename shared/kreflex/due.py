"""When a record is to be looked at again: at its time, when its policies change, when a person has approved."""

from __future__ import annotations

from datetime import datetime, timedelta

from kreflex.guards import EXPIRED, MISMATCH
from kreflex.policy import Policies
from kreflex.records import Record


def is_due(record: Record, policies: Policies, now: datetime, patience: timedelta) -> bool:
    """Tell whether a record's function should be called: it is due, its policies changed, or a person has approved."""
    status = record.status
    if record.due(now, patience):
        return True
    if status.phase != "Open" or status.decided_at is None:
        return False
    if status.policy is not None and status.policy != policies.stamp(record.spec.function, record.namespace):
        return True
    approval = record.spec.approval
    if approval is None or status.outcome != "awaiting-approval":
        return False
    # What does not count is looked at once, so that the record says why: a yes to another plan, and one that is over.
    unseen = approval.plan_hash == status.plan_hash or status.guard != MISMATCH
    return unseen and (approval.until > now or status.guard != EXPIRED)
