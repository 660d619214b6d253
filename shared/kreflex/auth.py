"""Who may call: a request is let in before its body is read, or it is answered 401 or 403.

A caller shows a token of a service account, which the API server reviews, or one of two shared values. See
docs/callers.md for senders, and docs/adr/0012 for the reasons.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Protocol

from pydantic import Field, ValidationInfo, field_validator

from kreflex.clock import ServerClock
from kreflex.errors import ForbiddenError, KreflexError, UnauthenticatedError, UnavailableError
from kreflex.rule import Rule
from kreflex.settings import Settings
from kreflex.views import JSON

TOKENREVIEW, SECRET, NETWORK = "tokenreview", "secret", "network"
MODES = (TOKENREVIEW, SECRET, NETWORK)
UNGUARDED = "CALLERS is network: nobody who calls is asked who he is, only a NetworkPolicy protects this function"
# What `tokenreview` needs beyond what a function's signature says.
RBAC = (Rule("authentication.k8s.io", "tokenreviews", "create", "cluster"),)

_REVIEWS = "/apis/authentication.k8s.io/v1/tokenreviews"
_ACCOUNT = re.compile(r"[a-z0-9*?\[\]!-]+/[a-z0-9.*?\[\]!-]+")
_USER = "system:serviceaccount:"
_LEAST_SECRET, _MOST_SECRETS = 16, 2
_MOST_TOKEN = 16 * 1024
_LATEST = 2**40
# Of what a stranger says about himself, in answers and logs.
_SHOWN = 200
_KNOWN_SECONDS, _REFUSED_SECONDS = 60.0, 5.0
_MOST_KNOWN, _MOST_REFUSED = 1024, 1024
# How many tokens that nobody has vouched for may be brought before the API server: so many at once, and a second.
_BURST, _PER_SECOND = 20.0, 5.0


class CallerSettings(Settings):
    """How callers are told apart; every function reads these variables."""

    callers: str = Field(TOKENREVIEW, description="Any of `tokenreview` and `secret` with a comma, or `network` alone.")
    callers_audience: str = Field("kreflex", pattern=r"^\S+$", description="The audience of the callers' tokens.")
    callers_accounts: str = Field(
        "",
        validate_default=True,
        description="Who may call with a token: `namespace/serviceaccount` with commas, shell patterns allowed.",
    )
    callers_secrets: str = Field(
        "", validate_default=True, description="The folder of a mounted Secret: one or two values, a file each."
    )

    @field_validator("callers")
    @classmethod
    def _known_modes(cls, text: str) -> str:
        modes = _parts(text)
        unknown = sorted(set(modes) - set(MODES))
        if unknown or not modes:
            raise ValueError(f"must be any of {', '.join(MODES)}")
        if NETWORK in modes and len(set(modes)) > 1:
            raise ValueError("must not name network together with others: it lets everybody in")
        return text

    @field_validator("callers_accounts")
    @classmethod
    def _accounts(cls, text: str, info: ValidationInfo) -> str:
        if not _parts(text) and _wants(info, TOKENREVIEW):
            raise ValueError("must be set: it names who may call, as in kreflex-system/waker,monitoring/alertmanager")
        wrong = [part for part in _parts(text) if not _ACCOUNT.fullmatch(part)]
        if wrong:
            raise ValueError(f"must hold namespace/serviceaccount with commas between; {wrong[0]!r} is none")
        return text

    @field_validator("callers_secrets")
    @classmethod
    def _secrets(cls, text: str, info: ValidationInfo) -> str:
        if not text and _wants(info, SECRET):
            raise ValueError("must be set: it is the folder of the mounted Secret whose values callers show")
        # Mounted where the mode is off, it may be empty.
        if text and ("callers" not in info.data or _wants(info, SECRET)):
            read_secrets(Path(text))
        return text

    @property
    def modes(self) -> frozenset[str]:
        """The modes that are on."""
        return frozenset(_parts(self.callers))

    @property
    def accounts(self) -> tuple[str, ...]:
        """The patterns of those who may call with a token."""
        return tuple(_parts(self.callers_accounts))


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _wants(info: ValidationInfo, mode: str) -> bool:
    return mode in _parts(info.data.get("callers", ""))


def read_secrets(folder: Path) -> tuple[str, ...]:
    """Read the values of a mounted Secret; raises ValueError with what is wrong with them.

    A file may hold a whole header, `Bearer …`, as an Argo Events Sensor needs it: one Secret serves all senders then.
    """
    try:
        # Names with a dot are the kubelet's own: it swaps `..data` when the Secret changes.
        files = sorted(file for file in folder.iterdir() if not file.name.startswith("."))
        values = [file.read_text().strip().removeprefix("Bearer ") for file in files]
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"can't be read: {error}") from error
    distinct = tuple(dict.fromkeys(values))
    if not 1 <= len(distinct) <= _MOST_SECRETS:
        raise ValueError(f"must hold one value, or two while it is changed, not {len(distinct)}")
    for file, value in zip(files, values, strict=True):
        if len(value) < _LEAST_SECRET or not value.isascii() or not value.isprintable() or " " in value:
            raise ValueError(f"holds {file.name}, which must have {_LEAST_SECRET} characters or more, and no space")
    return distinct


class Sender(Protocol):
    """What reviews are asked through: the transport to the API server."""

    clock: ServerClock

    async def send(self, method: str, path: str, body: JSON | None = None) -> JSON:
        """Send one request."""


class Gate:
    """Lets in who may call."""

    def __init__(self, settings: CallerSettings, api: Sender, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.modes = settings.modes
        self._secrets = Secrets(Path(settings.callers_secrets)) if SECRET in self.modes else None
        self._reviews = (
            Reviews(api, settings.callers_audience, settings.accounts, monotonic) if TOKENREVIEW in self.modes else None
        )

    async def admit(self, authorization: list[str]) -> str:
        """Tell by which mode the sender of these Authorization headers may call.

        Raises UnauthenticatedError (401), ForbiddenError (403), or UnavailableError (503) when it can't be found out.
        """
        if NETWORK in self.modes:
            return NETWORK
        token = bearer(authorization)
        if self._holds(token):
            return SECRET
        if self._reviews is None:
            raise UnauthenticatedError("the bearer value is none of those in CALLERS_SECRETS")
        await self._reviews.admit(token)
        return TOKENREVIEW

    def _holds(self, token: str) -> bool:
        try:
            return self._secrets is not None and self._secrets.hold(token)
        except UnavailableError:
            # Who shows a token, the waker above all, is not kept out by values that are gone.
            if self._reviews is None or not _looks_signed(token):
                raise
            return False

    async def check(self) -> None:
        """See whether callers can be checked, before the first one comes; raises UnavailableError."""
        if self._secrets is not None:
            self._secrets.hold("")
        if self._reviews is not None:
            await self._reviews.check()


def bearer(authorization: list[str]) -> str:
    """Take the token from the Authorization headers of a request; raises UnauthenticatedError if there is none."""
    if not authorization:
        raise UnauthenticatedError("the header Authorization is missing; callers show a token: Authorization: Bearer …")
    scheme, _, token = authorization[0].strip().partition(" ")
    if len(authorization) > 1 or scheme.lower() != "bearer" or not token.strip():
        raise UnauthenticatedError("the header Authorization must be given once, as: Bearer, a space, and the token")
    return token.strip()


def _looks_signed(token: str) -> bool:
    return token.count(".") == 2


class Secrets:
    """The shared values of a mounted Secret, read anew whenever its files change."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._seen: object = None
        self._digests: tuple[bytes, ...] = ()

    def hold(self, value: str) -> bool:
        """Tell whether this is one of the values; raises UnavailableError while they can't be read."""
        given = _digest(value)
        # Digests of one length, and all of them are compared: how long it takes tells nothing.
        return sum(hmac.compare_digest(given, one) for one in self._fresh()) > 0

    def _fresh(self) -> tuple[bytes, ...]:
        try:
            state = _state(self._folder)
            if state != self._seen:
                self._digests = tuple(_digest(value) for value in read_secrets(self._folder))
                self._seen = state
        except (OSError, ValueError) as error:
            # The old values may have been withdrawn on purpose.
            raise UnavailableError(f"callers can't be checked: CALLERS_SECRETS {error}") from error
        return self._digests


def _state(folder: Path) -> list[tuple[str, int, int, int]]:
    found = [(file.name, file.stat()) for file in folder.iterdir() if not file.name.startswith(".")]
    return sorted((name, stat.st_ino, stat.st_mtime_ns, stat.st_size) for name, stat in found)


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


@dataclass(frozen=True, slots=True)
class Claims:
    """What a token says of itself; nothing is true of it before the API server has reviewed it."""

    account: str
    expires: int

    @classmethod
    def read(cls, token: str, audience: str) -> Claims:
        """Read a token; raises UnauthenticatedError for what can't be a service account's token for this audience."""
        said = _payload(token)
        audiences = said.get("aud")
        if audience not in (audiences if isinstance(audiences, list) else [audiences]):
            named = repr(audiences)[:_SHOWN]
            raise UnauthenticatedError(f"the token is not for the audience {audience!r}, but for {named}")
        expires, subject = said.get("exp"), said.get("sub")
        if not isinstance(expires, int) or not 0 < expires < _LATEST:
            raise UnauthenticatedError("the token does not expire, as a service account's does")
        if not isinstance(subject, str) or not subject.startswith(_USER):
            raise UnauthenticatedError("the token is no service account's: those name it in `sub`")
        return cls(subject.removeprefix(_USER).replace(":", "/", 1), expires)


def _payload(token: str) -> dict[str, Any]:
    parts = token.split(".") if len(token) <= _MOST_TOKEN else []
    try:
        payload = json.loads(base64.urlsafe_b64decode(parts[1] + "=" * (-len(parts[1]) % 4)))
    except (IndexError, ValueError, RecursionError):
        payload = None
    if len(parts) != 3 or not isinstance(payload, dict):
        raise UnauthenticatedError("the bearer value is neither one that is known here nor a service account's token")
    return payload


@dataclass
class Allowance:
    """How many tokens of unknown senders may be reviewed: rubbish must not become a load on the API server."""

    at: float
    left: float = _BURST

    def take(self, now: float) -> None:
        """Take one; raises UnavailableError when there is none."""
        self.left, self.at = min(_BURST, self.left + (now - self.at) * _PER_SECOND), now
        if self.left < 1:
            raise UnavailableError("too many tokens of unknown callers at the moment; try again")
        self.left -= 1

    def give_back(self) -> None:
        """Give one back: its token was good."""
        self.left = min(_BURST, self.left + 1)


class Reviews:
    """Asks the API server whose a token is, and remembers the answer by the token's hash for a minute."""

    def __init__(
        self, api: Sender, audience: str, accounts: tuple[str, ...], monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._api = api
        self._audience = audience
        self._patterns = [pattern.split("/", 1) for pattern in accounts]
        self._monotonic = monotonic
        self._allowance = Allowance(monotonic())
        self._known: dict[bytes, float] = {}
        self._refused: dict[bytes, tuple[float, str]] = {}
        self._asking: dict[bytes, asyncio.Task[None]] = {}

    async def admit(self, token: str) -> None:
        """Let in who is named; raises UnauthenticatedError, ForbiddenError or UnavailableError."""
        key, now = _digest(token), self._monotonic()
        if self._known.get(key, 0.0) > now:
            return
        claims = Claims.read(token, self._audience)
        if not self._allows(claims.account):
            raise ForbiddenError(f"{claims.account[:_SHOWN]} is none of those that CALLERS_ACCOUNTS names")
        self._check_refused(key, now)
        await self._asked_once(key, token, claims)

    def _allows(self, account: str) -> bool:
        namespace, _, name = account.partition("/")
        return any(fnmatchcase(namespace, one) and fnmatchcase(name, other) for one, other in self._patterns)

    def _check_refused(self, key: bytes, now: float) -> None:
        until, reason = self._refused.get(key, (0.0, ""))
        if until > now:
            raise UnauthenticatedError(reason)

    async def check(self) -> None:
        """See whether we may ask at all; raises UnavailableError."""
        await self._fault("readiness", "")

    async def _asked_once(self, key: bytes, token: str, claims: Claims) -> None:
        # A burst of requests with one new token asks once. Shielded: who hangs up must not take the answer from others.
        task = self._asking.get(key)
        if task is None:
            task = self._asking[key] = asyncio.create_task(self._ask(key, token, claims))
            task.add_done_callback(lambda done: self._told(key, done))
        await asyncio.shield(task)

    def _told(self, key: bytes, task: asyncio.Task[None]) -> None:
        self._asking.pop(key, None)
        # Asked for, because all who waited may have hung up: asyncio complains about an error that nobody saw.
        if not task.cancelled():
            task.exception()

    async def _ask(self, key: bytes, token: str, claims: Claims) -> None:
        # By both clocks: neither one that is wrong for a moment may turn away who comes in time.
        if claims.expires <= min(time.time(), self._now()):
            raise UnauthenticatedError("the token has expired")
        # Who was known a minute ago is not kept out by a flood of others.
        known = key in self._known
        if not known:
            self._allowance.take(self._monotonic())
        reason = await self._fault(token, claims.account)
        now = self._monotonic()
        if reason:
            self._known.pop(key, None)
            self._refused = _fresh(self._refused, now) | {key: (now + _REFUSED_SECONDS, reason)}
            raise UnauthenticatedError(reason)
        if not known:
            self._allowance.give_back()
        self._remember(key, now + min(_KNOWN_SECONDS, claims.expires - self._now()))

    def _now(self) -> float:
        return self._api.clock.now().timestamp()

    async def _fault(self, token: str, account: str) -> str:
        spec = {"token": token, "audiences": [self._audience]}
        body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": spec}
        try:
            status = (await self._api.send("POST", _REVIEWS, body)).get("status") or {}
        except KreflexError as error:
            raise UnavailableError(f"the caller's token can't be reviewed: {error}") from error
        if not status.get("authenticated"):
            return f"the API server does not accept the token: {status.get('error') or 'it gives no reason'}"
        # An API server that ignores audiences leaves them out: then the token may be meant for anybody.
        # https://kubernetes.io/docs/reference/kubernetes-api/authentication-resources/token-review-v1/
        if self._audience not in (status.get("audiences") or ()):
            return f"the API server does not say that the token is for the audience {self._audience!r}"
        user = str((status.get("user") or {}).get("username", ""))
        return "" if user == _USER + account.replace("/", ":", 1) else f"the token is {user}'s, and says another name"

    def _remember(self, key: bytes, until: float) -> None:
        self._known.pop(key, None)
        self._known[key] = until
        while len(self._known) > _MOST_KNOWN:
            del self._known[next(iter(self._known))]


def _fresh(refused: Mapping[bytes, tuple[float, str]], now: float) -> dict[bytes, tuple[float, str]]:
    kept: Iterable[tuple[bytes, tuple[float, str]]] = (item for item in refused.items() if item[1][0] > now)
    return dict(list(kept)[-_MOST_REFUSED + 1 :])
