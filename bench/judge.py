"""The judge: what the API server's audit log says was done, and by whom. A function's own words count for nothing."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from bench.rig import FUNCTION
from lab import audit, functions
from lab.cluster import ControlPlane

ACCOUNTS = tuple(f"system:serviceaccount:{functions.NAMESPACE}:{name}" for name in (FUNCTION, functions.WAKER))
_TIMES = ("requestReceivedTimestamp", "stageTimestamp")
_WRITES = {"create", "update", "patch", "delete"}


def writes(plane: ControlPlane) -> Iterator[dict[str, Any]]:
    """Each write request of the function and the waker, whatever it was answered."""
    for entry in audit.entries(plane.audit_log):
        if entry["user"]["username"] in ACCOUNTS and entry["verb"] in _WRITES and not _asks(entry):
            yield entry


def _asks(entry: dict[str, Any]) -> bool:
    # A TokenReview is a question, although it is asked with a POST.
    return bool((entry.get("objectRef") or {}).get("resource") == "tokenreviews")


@dataclass(frozen=True)
class Call:
    """One request of the function, as the API server saw it: when it came, and how long it took there."""

    name: str
    at: float
    milliseconds: float
    changes: bool
    """Whether it writes an object. A TokenReview is a question, although it is asked with a POST."""

    @property
    def about_callers(self) -> bool:
        """Whether it asks who called; that is known for a minute afterwards."""
        return self.name == "create tokenreviews"


def calls(plane: ControlPlane, account: str = ACCOUNTS[0]) -> list[Call]:
    """Each request of the function, in the order of their arrival; the audit log has to have the reads, too."""
    entries = (entry for entry in audit.entries(plane.audit_log) if entry["user"]["username"] == account)
    return sorted((_call(entry) for entry in entries), key=lambda call: call.at)


def between(plane: ControlPlane, begun: float, ended: float) -> list[Call]:
    """The function's requests between two wall clock times."""
    return [call for call in calls(plane) if begun <= call.at <= ended]


def _call(entry: dict[str, Any]) -> Call:
    begun, ended = (datetime.fromisoformat(entry[name]).timestamp() for name in _TIMES)
    meant = entry.get("objectRef") or {}
    what = "/".join(filter(None, (meant.get("resource"), meant.get("subresource"))))
    changes = entry["verb"] in _WRITES and what != "tokenreviews"
    return Call(f"{entry['verb']} {what or entry['requestURI']}", begun, 1000 * (ended - begun), changes)


def accepted(plane: ControlPlane) -> dict[str, tuple[float, float]]:
    """When each pod's eviction came in and when it was accepted, by UID, whoever asked: seconds of the wall clock."""
    found: dict[str, tuple[float, float]] = {}
    for entry in audit.entries(plane.audit_log):
        if _removes_pod(entry):
            begun, ended = (datetime.fromisoformat(entry[name]).timestamp() for name in _TIMES)
            found.setdefault(_uid(entry), (begun, ended))
    return found


def evictions(plane: ControlPlane, namespace: str) -> list[tuple[str, datetime]]:
    """The UIDs of the pods whose removal was accepted, once for each acceptance, whoever asked; with the times."""
    return [
        (_uid(entry), datetime.fromisoformat(entry["stageTimestamp"]))
        for entry in audit.entries(plane.audit_log)
        if _removes_pod(entry) and entry["objectRef"].get("namespace") == namespace
    ]


def evicted_names(plane: ControlPlane, namespace: str) -> list[str]:
    """The names of the pods whose eviction was accepted, once for each acceptance; who asks may name no UID."""
    entries = (entry for entry in audit.entries(plane.audit_log) if _removes_pod(entry))
    return [entry["objectRef"]["name"] for entry in entries if entry["objectRef"].get("namespace") == namespace]


def _removes_pod(entry: dict[str, Any]) -> bool:
    meant = entry.get("objectRef") or {}
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
