"""The judge: what the API server's audit log says was done, and by whom. A function's own words count for nothing."""

from collections import Counter
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from bench.rig import FUNCTION
from lab import audit, functions
from lab.cluster import ControlPlane

ACCOUNTS = tuple(f"system:serviceaccount:{functions.NAMESPACE}:{name}" for name in (FUNCTION, functions.WAKER))
_WRITES = {"create", "update", "patch", "delete"}


def writes(plane: ControlPlane) -> Iterator[dict[str, Any]]:
    """Each write request of the function and the waker, whatever it was answered."""
    for entry in audit.entries(plane.audit_log):
        if entry["user"]["username"] in ACCOUNTS and entry["verb"] in _WRITES:
            yield entry


def evictions(plane: ControlPlane, namespace: str) -> list[tuple[str, datetime]]:
    """The UIDs of the pods whose removal was accepted, once for each acceptance, whoever asked; with the times."""
    return [
        (_uid(entry), datetime.fromisoformat(entry["stageTimestamp"]))
        for entry in audit.entries(plane.audit_log)
        if _removes_pod(entry) and entry["objectRef"].get("namespace") == namespace
    ]


def _removes_pod(entry: dict[str, Any]) -> bool:
    meant = entry["objectRef"]
    if entry["responseStatus"]["code"] >= 300 or meant.get("resource") != "pods":
        return False
    # The simulated kubelet's last step is a deletion too; a function has no right to one.
    deleted = entry["verb"] == "delete" and entry["user"]["username"] in ACCOUNTS
    return deleted or (entry["verb"], meant.get("subresource")) == ("create", "eviction")


def _uid(entry: dict[str, Any]) -> str:
    # The UID is what the function meant: a pod's name may be used again.
    options = entry["requestObject"].get("deleteOptions") or {}
    return str((options.get("preconditions") or {}).get("uid", "without a UID"))


def disruptions(plane: ControlPlane, namespace: str, looping: set[str]) -> tuple[Counter[str], int]:
    """How often each looping pod was evicted, and how many evictions met another pod."""
    uids = [uid for uid, _ in evictions(plane, namespace)]
    met = Counter(dict.fromkeys(looping, 0))
    met.update(uid for uid in uids if uid in looping)
    return met, sum(uid not in looping for uid in uids)
