"""What the API server writes down about its callers: the judge of what a function really did."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

_SECRET = [
    {"group": "", "resources": ["secrets", "serviceaccounts/token"]},
    {"group": "authentication.k8s.io", "resources": ["tokenreviews"]},
]
_WRITES = ["create", "update", "patch", "delete", "deletecollection"]
_READS = ["get", "list", "watch"]
# Whose watches are logged when they begin, so that `up` can tell when the adapter sees what happens.
WATCHER = "system:serviceaccount:kreflex-lab:apiserversource"
_FINISHED = ["RequestReceived", "ResponseStarted"]


def policy(*, reads: bool) -> str:
    """An audit policy that logs each write with its body (secrets without), and on demand each read."""
    rules: list[dict[str, Any]] = [
        {"level": "Metadata", "verbs": _WRITES, "resources": _SECRET, "omitStages": _FINISHED},
        {"level": "Request", "verbs": _WRITES, "omitStages": _FINISHED},
        {"level": "Metadata", "verbs": ["watch"], "users": [WATCHER], "omitStages": ["RequestReceived"]},
        {"level": "Metadata" if reads else "None", "verbs": _READS, "omitStages": _FINISHED},
        {"level": "None"},
    ]
    return yaml.safe_dump(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitManagedFields": True,
            "rules": rules,
        },
        sort_keys=False,
    )


def watches(log: Path, user: str, resource: str) -> int:
    """How often a user has begun to watch a resource."""
    return sum(
        entry["verb"] == "watch" and entry["user"]["username"] == user and entry["objectRef"]["resource"] == resource
        for entry in entries(log)
    )


def entries(log: Path, word: str = "") -> Iterator[dict[str, Any]]:
    """The finished lines of an audit log, oldest first; only those with a word in them, if one is given."""
    wanted = word.encode()
    with log.open("rb") as lines:
        for line in lines:
            # The last line may be half written. To look for a word is far cheaper than to read what a line says.
            if line.endswith(b"\n") and wanted in line:
                yield json.loads(line)
