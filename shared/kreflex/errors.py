"""What can go wrong, as types that somebody catches."""

from __future__ import annotations


class KreflexError(Exception):
    """Base of every error of Kreflex; its message is for the person who reads it at night."""


class SettingsError(KreflexError):
    """Configuration that can't be used; lists every fault at once."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


class BadEventError(KreflexError):
    """A request that can't be understood; names the field. Answered 400, which no sender repeats."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class UnauthenticatedError(KreflexError):
    """A caller who does not show who he is. Answered 401, which no sender repeats."""


class ForbiddenError(KreflexError):
    """A caller who shows who he is, and may not call. Answered 403, which no sender repeats."""


class TooLargeError(KreflexError):
    """A body over the limit of its ingress. Answered 413."""


class UnavailableError(KreflexError):
    """A dependency does not answer, or not in time. Answered 503, which Knative and Alertmanager repeat."""


class QueryError(UnavailableError):
    """Prometheus answers, but not this query: who wrote it has to mend it. No answer, as if it were down."""


class ApiError(KreflexError):
    """The API server said no.

    `status` is the HTTP code, `reason` the machine-readable reason of the Status object, `causes` its causes.
    """

    def __init__(self, message: str, status: int, reason: str = "", causes: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.causes = causes


class OutageError(ApiError, UnavailableError):
    """The API server answered with a trouble of its own, or does not know us: nothing that the request could mend."""


class DeniedError(OutageError):
    """An admission policy or a webhook of the cluster said no, whatever code it chose; the request was not done."""


class ConflictError(ApiError):
    """409: the object is not as it was read, or exists already. Read it again and decide anew."""


class GoneError(ApiError):
    """404 on a write: what was to be changed is not there any more."""


class ThrottledError(ApiError):
    """429: the API server asks to come back later, or a PodDisruptionBudget says no (see `causes`)."""
