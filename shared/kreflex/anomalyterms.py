"""What a policy says about anomalies: which of them a pod may be evicted for, and what has to be known then."""

from __future__ import annotations

from pydantic import Field

from kreflex.anomaly.words import AnomalyClass
from kreflex.parts import Part


class Anomalies(Part):
    """What has to be known of an anomaly of a pod, so that the pod may be evicted for it."""

    classes: tuple[AnomalyClass, ...] = Field(
        (),
        max_length=20,
        description="Which classes of anomalies may lead to an eviction, such as leak. Without any, none does.",
    )
    signals: int = Field(
        2, ge=1, le=100, description="So many signals must say the same: one series alone may be wrong."
    )
