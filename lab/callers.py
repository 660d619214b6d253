"""Who may call the functions of a lab: each sender has an account and a token of its own, as in a cluster."""

from pathlib import Path

from lab import bearer
from lab.cluster import ControlPlane

AUDIENCE = "kreflex"
NAMESPACE = "kreflex-lab"
PERSON = "person"
"""The account with which people and tests call."""
SETTINGS = {
    "CALLERS": "tokenreview",
    "CALLERS_AUDIENCE": AUDIENCE,
    "CALLERS_ACCOUNTS": f"kreflex-system/waker,{NAMESPACE}/*",
    # Nobody here has to hear first that a function ends.
    "DRAIN_GRACE": "0s",
}
"""What functions are told about their callers."""


async def issue(plane: ControlPlane, account: str, namespace: str = NAMESPACE) -> Path:
    """Write a sender's token, which is good for as long as the lab's other tokens; its file."""
    token = await plane.token(account, namespace, AUDIENCE)
    file = _file(plane, account, namespace)
    file.touch(mode=0o600)
    file.write_text(token)
    return file


def headers(plane: ControlPlane, account: str = PERSON) -> dict[str, str]:
    """The headers with which somebody calls who has a token already."""
    return bearer.shown(_file(plane, account, NAMESPACE))


def _file(plane: ControlPlane, account: str, namespace: str) -> Path:
    return plane.home.secrets / f"{namespace}.{account}.token"
