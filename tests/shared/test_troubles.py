"""Answers of the API server: which are its own troubles, and who gets to see them."""

import json

import pytest

from kreflex.cluster import Reader, _refusal
from kreflex.errors import (
    ApiError,
    ConflictError,
    DeniedError,
    GoneError,
    OutageError,
    ThrottledError,
    UnavailableError,
)
from tests.values import CannedApi


def status(reason: str, *causes: str) -> bytes:
    details = {"causes": [{"reason": cause} for cause in causes]}
    return json.dumps({"kind": "Status", "message": "no,\nnot now", "reason": reason, "details": details}).encode()


@pytest.mark.parametrize(
    ("code", "body", "kind"),
    [
        (404, status("NotFound"), GoneError),
        (404, b"404 page not found\n", OutageError),
        (409, status("Conflict"), ConflictError),
        (422, status("Invalid"), ApiError),
        (429, status("TooManyRequests", "DisruptionBudget"), ThrottledError),
        (429, b"Too many requests, please try again later.\n", UnavailableError),
        (401, status("Unauthorized"), OutageError),
        (403, status("Forbidden"), OutageError),
        (410, status("Expired"), OutageError),
        (500, status("ServerTimeout"), OutageError),
        (503, status("ServiceUnavailable"), UnavailableError),
        (504, b"<html>no backend</html>", UnavailableError),
    ],
)
def test_tells_what_is_no_from_what_is_trouble_in_one_line(code: int, body: bytes, kind: type[Exception]) -> None:
    error = _refusal("GET", "/api/v1/pods", code, body)
    assert type(error) is kind
    assert str(error).startswith(f"GET /api/v1/pods: {code} ")
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("code", "reason", "words"),
    [
        (403, "Forbidden", 'admission webhook "guard.example.com" denied the request: not now'),
        (404, "NotFound", 'admission webhook "guard.example.com" denied the request without explanation'),
        (409, "Conflict", 'admission webhook "guard.example.com" denied the request: not now'),
        (422, "Invalid", "it is forbidden: ValidatingAdmissionPolicy 'p' with binding 'b' denied request: no"),
        (429, "TooManyRequests", 'admission webhook "evict.kubevirt.io" denied the request: it moves away'),
        (503, "ServiceUnavailable", 'admission webhook "guard.example.com" denied the request: not now'),
    ],
)
def test_a_denial_is_a_denial_whatever_its_code(code: int, reason: str, words: str) -> None:
    error = _refusal("POST", "/eviction", code, json.dumps({"message": words, "reason": reason}).encode())
    assert type(error) is DeniedError
    assert error.status == code
    assert words in str(error)


async def test_a_reading_that_failed_is_not_shared() -> None:
    answers = [UnavailableError("no answer"), None]

    async def read() -> str:
        error = answers.pop(0)
        if error is not None:
            raise error
        return "an answer"

    reader = Reader(CannedApi())
    with pytest.raises(UnavailableError):
        await reader.share("pods", read)
    assert await reader.share("pods", read) == "an answer"
    assert await reader.share("pods", read) == "an answer"
