"""A function that does not exist, with actions that change fields, to test what is computed from its signature."""

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any, ClassVar

from kreflex import Defer, EvictPod, PodSignal, Settings, Skip, Treatment, Unknown, World
from kreflex.reflex import Reflex
from kreflex.rule import Rule

NAME = "made-up"


@dataclass(frozen=True)
class ScaleDeployment(EvictPod):
    """Sets a Deployment's replicas."""

    rbac: ClassVar[tuple[Rule, ...]] = (Rule("apps", "deployments", "patch", fields=("spec.replicas",)),)


@dataclass(frozen=True)
class CordonNode(EvictPod):
    """Keeps new pods away from a node."""

    rbac: ClassVar[tuple[Rule, ...]] = (Rule("", "nodes", "patch", fields=("spec.unschedulable",)),)


async def find(world: World, settings: Settings) -> AsyncIterator[PodSignal]:
    async for pod in world.cluster.pods():
        yield PodSignal(pod.ref.namespace, pod.ref.name)


async def evicts(signal: PodSignal, world: World, settings: Settings) -> EvictPod | Skip:
    return Skip("it does not exist")


async def scales_too(signal: PodSignal, world: World, settings: Settings) -> EvictPod | ScaleDeployment | Skip:
    return Skip("it does not exist")


async def cordons_and_scales(
    signal: PodSignal, world: World, settings: Settings
) -> CordonNode | ScaleDeployment | Skip:
    return Skip("it does not exist")


async def recovered(treatment: Treatment, world: World, settings: Settings) -> Unknown | Defer:
    return Unknown("it does not exist")


def reflex(decide: Any) -> Reflex[Any]:
    return Reflex(NAME, find, decide, recovered, Settings())
