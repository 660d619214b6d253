"""What a function may look at: the cluster, Prometheus, the time. Nothing here writes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from kreflex.anomalyterms import Anomalies
from kreflex.cluster import Reader
from kreflex.nodes import Node
from kreflex.policy import load_policies
from kreflex.prom import Metrics
from kreflex.records import Answer, Owner, Taken, fault_key, record_name
from kreflex.releases import Releases
from kreflex.upkeep import Upkeep
from kreflex.views import Ref


@dataclass(frozen=True)
class World:
    """The cluster as it is now, seen through readers."""

    cluster: Reader
    metrics: Metrics
    function: str = ""
    home: str = "kreflex-system"

    async def upkeep(self, node: Node) -> Upkeep | str:
        """Tell what the policies say of a node; in words, if they contradict each other or can't be read."""
        effective = (await load_policies(self.cluster)).for_object(self.function, "", node.labels)
        return effective.broken or effective.upkeep

    async def releases(self, workload: Ref, labels: Mapping[str, str]) -> Releases | str:
        """Tell what the policies say of a release; in words, if they contradict each other or can't be read."""
        effective = (await load_policies(self.cluster)).for_object(self.function, workload.namespace, labels)
        return effective.broken or effective.releases

    async def anomalies(self, namespace: str, labels: Mapping[str, str]) -> Anomalies | str:
        """Tell for which anomalies a pod may be evicted; in words, if the policies can't be read."""
        effective = (await load_policies(self.cluster)).for_object(self.function, namespace, labels)
        return effective.broken or effective.anomalies

    def record_of(self, target: Ref, episode: str) -> str:
        """Tell what the record of a fault is called, whether it is there or not."""
        return record_name(self.function, target.name, fault_key(self.function, target.uid, episode))

    def now(self) -> datetime:
        """Tell the API server's time."""
        return self.cluster.now()


@dataclass(frozen=True, slots=True)
class Treatment:
    """What was done about a fault: to which target of which owner, when, and how long health counts as proof."""

    target: Ref
    owner: Owner | None
    acted_at: datetime
    proof: timedelta
    episode: str = ""
    action: str = ""
    answer: Answer | None = None
    steps: tuple[Taken, ...] = ()
    prior: Mapping[str, str] = field(default_factory=dict)
    """What the action said of the state before it."""
