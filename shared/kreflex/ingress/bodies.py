"""From bytes to JSON, within bounds: what anybody sends must neither fill a small pod nor be more than JSON."""

from __future__ import annotations

import binascii
import json
from base64 import b64decode
from typing import Any, NoReturn

from kreflex.errors import BadEventError, TooLargeError

# A tenth of them fills 32 MiB of real alerts. Without this bound the same bytes could hold ten million empty lists.
MOST_VALUES = 2_000_000
_FEW_BYTES = 2**20
# What goes to logs and records of a text that anybody may have sent.
LONG = 1000
_SHOWN = 60


def _no_number(text: str) -> NoReturn:
    raise ValueError(f"{text[:_SHOWN]} is no number of JSON")


def _finite(text: str) -> float:
    number = float(text)
    return number if abs(number) != float("inf") else _no_number(text)


_DECODER = json.JSONDecoder(parse_constant=_no_number, parse_float=_finite)


def read_json(body: bytes | bytearray, field: str) -> Any:
    """Read JSON in UTF-8, whatever a charset parameter says (RFC 8259); the errors name the field.

    Raises BadEventError for what is not JSON, TooLargeError for what would take much more memory than its bytes.
    """
    if not body:
        raise BadEventError(field, "is empty; an HTTP trigger of Argo Events sends no body unless it has a `payload`")
    if len(body) > _FEW_BYTES and sum(body.count(mark) for mark in b",[{") > MOST_VALUES:
        raise TooLargeError(f"{field} holds more than {MOST_VALUES} values")
    try:
        return _DECODER.decode(body.decode())
    except RecursionError as error:
        raise BadEventError(field, "is nested too deeply") from error
    except ValueError as error:
        raise BadEventError(field, f"is not JSON: {error}") from error


def read_base64(text: object, field: str) -> bytes:
    """Read base64 as CloudEvents have it, without blanks."""
    try:
        return b64decode(text, validate=True) if isinstance(text, str) else _no_text(field)
    except (binascii.Error, ValueError) as error:
        raise BadEventError(field, f"is not base64: {error}") from error


def _no_text(field: str) -> NoReturn:
    raise BadEventError(field, "must be a string")


def plain(value: object, most: int = LONG) -> str:
    """Give a text as it may be logged and sent on: not too long, and without halves of surrogate pairs."""
    return value[:most].encode(errors="replace").decode() if isinstance(value, str) else shown(value)


def shown(value: object) -> str:
    """Show a value in a message: what anybody sends may be long."""
    if isinstance(value, str):
        return repr(value) if len(value) <= _SHOWN else repr(value[:_SHOWN]) + "…"
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return repr(value)
