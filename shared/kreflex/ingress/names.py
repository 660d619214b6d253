"""What others call an object, made into what Kubernetes calls it."""

from __future__ import annotations

import re
from ipaddress import ip_address
from typing import Any

from kreflex.errors import BadEventError
from kreflex.signals import is_name

# An address of version 6 has its port behind brackets, and none without them.
_HOST = re.compile(r"\[([^\]]*)\](?::\d{1,5})?|([^:]*)(?::\d{1,5})?|([0-9A-Fa-f:.]*)")


def names(item: Any, where: str) -> tuple[str, str]:
    """Read the namespace and the name of something, as Kubernetes has them."""
    if not isinstance(item, dict):
        raise BadEventError(where, "must be an object")
    return name_in(item, "namespace", where), name_in(item, "name", where)


def name_in(item: dict[str, Any], field: str, where: str) -> str:
    """Read one name, as Kubernetes has them."""
    name = item.get(field)
    if not is_name(name):
        raise BadEventError(f"{where}.{field}", "must be a name as Kubernetes has them")
    return name


def machine_name(told: object) -> str | None:
    """Make of `host:port` the name or the address of a machine, as a Node has it; None for what is neither."""
    found = _HOST.fullmatch(told) if isinstance(told, str) else None
    if found is None:
        return None
    host = next((part for part in found.groups() if part is not None), "").lower()
    try:
        return str(ip_address(host))
    except ValueError:
        return host if is_name(host) else None
