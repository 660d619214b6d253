"""What is not learnt from: anomalies that are confirmed, and for a while those that are open."""

from datetime import datetime, timedelta
from typing import Any

import pytest

from kreflex.anomaly.anomalies import Anomaly, AnomalySpec, AnomalyStatus
from kreflex.anomaly.learning import Exclusion
from kreflex.anomaly.states import incidents
from kreflex.records import Target
from tests.anomalies import a_watch
from tests.values import CART, HOUR, MINUTE, NOW

DAY = timedelta(days=1)


def an_anomaly(**status: Any) -> Anomaly:
    spec = AnomalySpec.model_validate({"watch": "a/b", "target": Target.of(CART), "class": "leak", "since": NOW})
    return Anomaly("shop", "one", "u", "1", spec, AnomalyStatus.model_validate(status))


def until(now: datetime, **status: Any) -> datetime | None:
    """Until when the samples of an anomaly that was seen first at NOW are not learnt from."""
    found = incidents(a_watch(), [an_anomaly(**status)], now)
    if not found:
        return None
    assert found == [Exclusion({"pod": "cart-1", "namespace": "shop"}, (NOW - 5 * MINUTE).timestamp(), found[0].until)]
    return datetime.fromtimestamp(found[0].until, NOW.tzinfo)


@pytest.mark.parametrize("agreed", [False, True])
def test_what_is_open_is_not_learnt_from_for_a_day(agreed: bool) -> None:
    assert [until(NOW + after, agreed=agreed) for after in (HOUR, DAY, 3 * DAY)] == [NOW + HOUR, NOW + DAY, NOW + DAY]


def test_what_was_confirmed_is_never_learnt_from() -> None:
    assert until(NOW + 3 * DAY, feedback="confirmed") == NOW + 3 * DAY
    over = {"phase": "Resolved", "resolved_at": NOW + 2 * DAY, "feedback": "confirmed"}
    assert until(NOW + 3 * DAY, **over) == NOW + 2 * DAY


def test_what_was_dismissed_or_is_over_is_learnt_from() -> None:
    assert until(NOW + HOUR, feedback="dismissed") is None
    assert until(NOW + 2 * HOUR, phase="Resolved", resolved_at=NOW + HOUR) is None
