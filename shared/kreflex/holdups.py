"""A StatefulSet that waits for a pod of an older version: the newer one never gets a pod, and no status says why.

With OrderedReady its controller makes no progress while a pod that is there is not Ready, whatever its version is, so
neither a mended template nor one that was put back helps until somebody removes that pod.
https://github.com/kubernetes/kubernetes/issues/67250
"""

from __future__ import annotations

from dataclasses import dataclass

from kreflex.ailments import Ailment
from kreflex.causes import Findings
from kreflex.revisions import Release, Revision
from kreflex.views import Pod

HELD_UP = "held-up"


@dataclass(frozen=True, slots=True)
class HoldUp:
    """The pods that are waited for, all of one version, and why they may not be evicted, or ""."""

    episode: str
    pods: tuple[Pod, ...]
    story: str
    spared: str

    @property
    def by_hand(self) -> str:
        """Tell people what to do."""
        names = " ".join(pod.ref.name for pod in self.pods)
        return f"kubectl delete pod {names} --namespace {self.pods[0].ref.namespace}"


def hold_up(release: Release, found: Findings) -> HoldUp | None:
    """Find what keeps a StatefulSet from making the first pod of its version; None if nothing does, or nobody knows."""
    ill = [one for one in found.old if not (one.pod.ready or one.pod.terminating)]
    if not ill or release.new_pods or not _in_order(release):
        return None
    name = ill[0].pod.template_hash
    held = [one for one in ill if one.pod.template_hash == name]
    older = next((one for one in release.revisions if one.hash == name), None)
    return HoldUp(
        f"{HELD_UP}/{name}/{release.current.number}",
        tuple(one.pod for one in held),
        _story(release, held, older),
        _spared(release, older),
    )


def _in_order(release: Release) -> bool:
    """Tell whether it makes one pod after the other, and means to replace all of them."""
    spec = release.body["spec"]
    update = spec.get("updateStrategy") or {}
    all_of_them = not (update.get("rollingUpdate") or {}).get("partition")
    in_order = spec.get("podManagementPolicy", "OrderedReady") == "OrderedReady"
    by_itself = update.get("type", "RollingUpdate") == "RollingUpdate"
    return release.workload.ref.kind == "StatefulSet" and in_order and by_itself and all_of_them


def _story(release: Release, held: list[Ailment], older: Revision | None) -> str:
    of = str(older) if older is not None else "an older version"
    waits = f"{release.workload.ref} waits for it before it makes any pod of {release.current}"
    return f"{held[0].pod.ref.name} of {of} fails: {held[0].story}; {waits}"


def _spared(release: Release, older: Revision | None) -> str:
    """Tell why a pod stays: a version that has worked may work again, and fail for another reason than itself."""
    if older is None:
        return "its version is not known any more"
    if older.healthy_at is not None or any(pod.ready for pod in release.pods.get(older.hash, ())):
        return f"{older} was well before, so it may be something else that is wrong"
    return ""
