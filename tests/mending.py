"""An account with the rights of a function that rolls back, to try its actions on a real API server."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from kreflex import Defer, Settings, Skip, Treatment, Unknown, World, admission, rights
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.decisions import Remember
from kreflex.errors import ApiError, ConflictError, DeniedError
from kreflex.histories import histories
from kreflex.reflex import Reflex
from kreflex.reverts import EvictStuck, RevertTemplate
from kreflex.revisions import Release, release_of, to_remember
from kreflex.signals import WorkloadSignal
from kreflex.views import Pod, Ref
from lab import manifests
from lab.api import eventually
from lab.cluster import ControlPlane

NAME, HOME = "release-mender", "kreflex-system"
OURS, THEIRS = "release-mender-shop-1", "release-mender-shop-2"
SECOND = timedelta(seconds=1)


async def find(world: World, settings: Settings) -> AsyncIterator[WorkloadSignal]:
    async for history in histories(world.cluster):
        ref = history.workload
        yield WorkloadSignal(ref.api_version, ref.kind, ref.namespace, ref.name)


async def decide(
    signal: WorkloadSignal, world: World, settings: Settings
) -> RevertTemplate | EvictStuck | Remember | Skip:
    ref = Ref(signal.api_version, signal.kind, signal.namespace, signal.name, signal.uid)
    release = await release_of(ref, world.cluster)
    assert isinstance(release, Release)
    return to_remember(release, SECOND, world.now(), "main@1") or Skip("there is nothing to remember")


async def recovered(treatment: Treatment, world: World, settings: Settings) -> Unknown | Defer:
    return Unknown("it is not asked")


REFLEX = Reflex(NAME, find, decide, recovered, Settings())


@dataclass
class Lab:
    """The control plane, and an account with the rights of a function that rolls back."""

    plane: ControlPlane
    reader: Reader
    writer: Writer

    async def release(self, ref: Ref) -> Release:
        """Read a release, once its controller has seen what was changed last."""

        async def found() -> Release | None:
            release = await release_of(ref, self.reader)
            return release if isinstance(release, Release) else None

        release: Release = await eventually(found, f"the release of {ref}")
        return release

    async def until(self, ref: Ref, holds: Callable[[Release], bool], what: str) -> Release:
        """Wait until a release is as wanted."""

        async def found() -> Release | None:
            release = await self.release(ref)
            return release if holds(release) else None

        release: Release = await eventually(found, f"{ref} {what}")
        return release

    async def act(self, make: Callable[[Release], RevertTemplate | EvictStuck], ref: Ref, mark: str = OURS) -> str:
        """Act on the workload as it is now; again if it changed at that moment, for its controller writes to it."""
        for _ in range(5):
            try:
                return await make(await self.release(ref)).apply(self.writer, self.reader, mark)
            except ConflictError:
                continue
        raise AssertionError(f"{ref} changes all the time")


@asynccontextmanager
async def mending(plane: ControlPlane) -> AsyncIterator[Lab]:
    """Make the account on a control plane that has Kreflex' custom resources, and wait until admission holds it."""
    allowed = rights.rights_of(REFLEX)
    await manifests.apply(plane.api, [*rights.manifests(allowed), *admission.policy_of(allowed)])
    transport = Transport(load_credentials(str(await plane.kubeconfig_for(HOME, NAME))))
    made = Lab(plane, Reader(transport), Writer(transport))
    path = "/apis/kreflex.dev/v1alpha1/namespaces/default/releasehistories?dryRun=All"
    target = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "none", "uid": "none"}
    orphan = {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "ReleaseHistory",
        "metadata": {"name": "probe", "namespace": "default"},
        "spec": {"workload": target},
    }
    await eventually(lambda: denied(made.writer.create(path, orphan)), "the admission policy at work")
    yield made
    await transport.close()


async def denied(asking: Awaitable[Any]) -> bool:
    """Tell whether admission says no, and not just RBAC."""
    try:
        await asking
    except DeniedError:
        return True
    except ApiError:
        return False
    return False


def back(release: Release) -> RevertTemplate:
    """Go back by one revision."""
    return RevertTemplate("it crashes", release.earlier[0], release=release)


def stuck_pods(release: Release) -> tuple[Pod, ...]:
    """The pods of other versions that are not Ready and stay."""
    return tuple(pod for pod in release.old_pods if not pod.ready and not pod.terminating)


def evicting(release: Release) -> EvictStuck:
    """Evict these."""
    return EvictStuck("it never becomes Ready", stuck_pods(release), release=release)
