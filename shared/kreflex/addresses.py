"""Addresses of Git repositories: how one is shown to people, and whether a policy names it.

An address comes from whoever may write an Application or a GitRepository; the credentials that are shown to its host
are ours. So it is compared with what a policy names part by part, and what two programs could read differently is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_HOST = r"(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*(?::\d{1,5})?|\[[0-9a-fA-F:]+\](?::\d{1,5})?)"
_URL = re.compile(rf"(?P<scheme>https?|ssh)://(?:(?P<user>[\w.~%+-]+)@)?{_HOST}(?P<path>(?:/[^\s\\?#]*)?)")
# git's own short form for SSH: user@host:path.
_SHORT = re.compile(r"(?P<user>\w[\w.-]*)@(?P<host>[A-Za-z0-9][A-Za-z0-9.-]*):(?P<path>/?[^\s\\?#/:-][^\s\\?#:]*)")
_HIDDEN = re.compile(r"%(2e|2f|5c|00)|[\x00-\x1f\x7f]", re.IGNORECASE)
_SHOWN = re.compile(r"^(\w+://)?[^/\s]*@(?=[^/\s]*/)")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a repository is; with SSH `host` has the user, for it says whose repositories are meant."""

    scheme: str
    host: str
    parts: tuple[str, ...]

    @property
    def name(self) -> str:
        """The repository with its owner, as forges call it."""
        return "/".join(self.parts)

    def below(self, other: Address) -> bool:
        """Tell whether this is the other, or below it: a part of a name is not enough."""
        same = (self.scheme, self.host) == (other.scheme, other.host)
        return same and self.parts[: len(other.parts)] == other.parts


def address_of(url: str) -> Address | None:
    """Read an address over https, http or ssh; None for all else, and for what goes up or hides what it names."""
    found = _URL.fullmatch(url) or _SHORT.fullmatch(url)
    if found is None or _HIDDEN.search(url):
        return None
    told = found.groupdict()
    path = told["path"].removeprefix("/").rstrip("/").removesuffix(".git")
    parts = tuple(path.split("/")) if path else ()
    if {"", ".", ".."} & set(parts):
        return None
    scheme, user = told.get("scheme") or "ssh", told["user"]
    host = told["host"].lower()
    return Address(scheme, f"{user}@{host}" if user and scheme == "ssh" else host, parts)


def shown(url: str) -> str:
    """Leave out who logs in with a web address: a user's name may be a token, and ours are in a Secret."""
    return _SHOWN.sub(r"\1", url) if not url.startswith("ssh://") and "://" in url else url
