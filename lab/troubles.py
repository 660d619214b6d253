"""What may happen to one call of the API server: no answer, a wrong one, a late one, or one from the past.

The words of the answers are kube-apiserver's own, where it has some.
"""

import json
from dataclasses import dataclass, field, replace
from datetime import timedelta
from email.utils import format_datetime, parsedate_to_datetime
from typing import Any, Literal


@dataclass(frozen=True)
class Answer:
    """What a caller gets."""

    status: int
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(default_factory=dict, repr=False)

    def shifted(self, by: timedelta) -> "Answer":
        """The same from a server whose clock is wrong by this much."""
        if not by or "Date" not in self.headers:
            return self
        moment = format_datetime(parsedate_to_datetime(self.headers["Date"]) + by, usegmt=True)
        return replace(self, headers={**self.headers, "Date": moment})


def refusal(status: int, reason: str, message: str, **headers: str) -> Answer:
    """A Status object, as the API server answers what it does not do."""
    body: dict[str, Any] = {
        "kind": "Status",
        "apiVersion": "v1",
        "metadata": {},
        "status": "Failure",
        "message": message,
        "reason": reason,
        "code": status,
    }
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/json", **headers})


def text(status: int, words: str, kind: str = "text/plain; charset=utf-8", **headers: str) -> Answer:
    """An answer of a filter before the API, or of something else than the API server."""
    return Answer(status, f"{words}\n".encode(), {"Content-Type": kind, **headers})


@dataclass(frozen=True)
class Trouble:
    """What happens to one call. The defaults are no trouble at all."""

    name: str
    arrives: bool = True
    """Whether the API server sees the request."""
    says: Answer | None = None
    """The answer instead of the API server's own."""
    breaks: Literal["", "before", "within"] = ""
    """Where the connection is reset: before the answer's first byte, or within its body."""
    holds: float = 0.0
    """Seconds for which the request is on its way."""
    keeps: float = 0.0
    """Seconds for which the answer is on its way."""
    older: Literal["", "fault", "write"] = ""
    """A read is answered as it was: before the fault began, or before the caller's own last write."""
    shift: timedelta = timedelta()
    """How wrong the clock in the answer is."""
    lasting: bool = False
    """Whether the clock stays wrong."""

    @property
    def for_writes_only(self) -> bool:
        """True where a lost answer makes a difference only if something was written."""
        return self.arrives and (self.says is not None or self.breaks == "before")

    @property
    def for_reads_only(self) -> bool:
        """True where there is nothing to answer a write with."""
        return bool(self.older)


_INTERNAL = refusal(500, "InternalError", "Internal error occurred: etcdserver: leader changed")
# What a request meets while etcd does not answer: https://github.com/kubernetes/kubernetes, storage/errors/storage.go
_NO_ETCD = refusal(
    500, "ServerTimeout", "The operation against pods could not be completed at this time, please try again."
)
_UNAVAILABLE = refusal(503, "ServiceUnavailable", "apiserver is shutting down", **{"Retry-After": "5"})
_TIMEOUT = refusal(504, "Timeout", "Timeout: request did not complete within requested timeout - context canceled")
_BUSY = text(429, "Too many requests, please try again later.", **{"Retry-After": "1"})
_STRANGER = refusal(401, "Unauthorized", "Unauthorized")
# While it starts, RBAC's roles are not read yet.
_FORBIDDEN = refusal(403, "Forbidden", 'forbidden: User "x" cannot do that: RBAC: clusterrole not found')
_NOT_SERVED = text(404, "404 page not found")
_BALANCER = text(200, "<html><body>We will be right back</body></html>", "text/html")
# Longer than a function waits for an answer (kreflex.cluster), and shorter.
LONG, SHORT = 11.0, 2.5

TROUBLES = (
    Trouble("429", arrives=False, says=_BUSY),
    Trouble("500", arrives=False, says=_INTERNAL),
    Trouble("500 though done", says=_INTERNAL),
    Trouble("etcd away", arrives=False, says=_NO_ETCD),
    Trouble("503", arrives=False, says=_UNAVAILABLE),
    Trouble("503 though done", says=_UNAVAILABLE),
    Trouble("504", arrives=False, says=_TIMEOUT),
    Trouble("504 though done", says=_TIMEOUT),
    Trouble("401", arrives=False, says=_STRANGER),
    Trouble("403", arrives=False, says=_FORBIDDEN),
    Trouble("not served", arrives=False, says=_NOT_SERVED),
    Trouble("not JSON", arrives=False, says=_BALANCER),
    Trouble("reset before", arrives=False, breaks="before"),
    Trouble("reset though done", breaks="before"),
    Trouble("reset within", breaks="within"),
    Trouble("slow request", holds=SHORT),
    Trouble("slow answer", keeps=SHORT),
    Trouble("request too slow", holds=LONG),
    Trouble("answer too slow", keeps=LONG),
    Trouble("older than the fault", older="fault"),
    Trouble("older than the last write", older="write"),
    Trouble("clock ahead once", shift=timedelta(seconds=40)),
    Trouble("clock behind once", shift=timedelta(seconds=-40)),
    Trouble("clock ahead from now on", shift=timedelta(seconds=40), lasting=True),
    Trouble("clock behind from now on", shift=timedelta(seconds=-40), lasting=True),
    Trouble("clock an hour ahead once", shift=timedelta(hours=1)),
)
