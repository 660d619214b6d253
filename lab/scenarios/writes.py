"""What the API server's audit log says that an account has written: the judge of each scenario."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from lab import audit
from lab.scenarios.place import Json


@dataclass(frozen=True)
class Write:
    """A write that the API server's audit log has."""

    at: datetime
    verb: str
    resource: str
    name: str
    code: int
    body: Json

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}/{self.name} answered {self.code}"


def written(log: Path, since: datetime, user: str, *resources: str, namespace: str = "") -> list[Write]:
    """What a user has written to such objects since then, the oldest first; in one namespace if it is named."""
    return [
        _write(entry)
        for entry in audit.entries(log)
        if entry["user"]["username"] == user
        and entry["objectRef"].get("resource") in resources
        and entry["verb"] in {"create", "update", "patch", "delete"}
        and namespace in {"", entry["objectRef"].get("namespace")}
        and _when(entry) >= since
    ]


def _write(entry: Json) -> Write:
    about: Json = entry["objectRef"]
    resource = "/".join(part for part in (about["resource"], about.get("subresource")) if part)
    code = entry["responseStatus"]["code"]
    body: Any = entry.get("requestObject") or {}
    name = about.get("name") or (body.get("metadata", {}).get("name", "") if isinstance(body, dict) else "")
    return Write(_when(entry), entry["verb"], resource, name, code, body if isinstance(body, dict) else {"patch": body})


def _when(entry: Json) -> datetime:
    return datetime.fromisoformat(entry["requestReceivedTimestamp"])
