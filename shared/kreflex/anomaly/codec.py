"""What is learnt, as bytes: equal states are equal bytes, and a damaged or a foreign one is known as such.

    magic (8) | SHA-256 of the rest (32) | zlib of: length of the head (4) | head, JSON | the columns

A column is one field of all series. The bytes of its numbers stand in planes (all first bytes, all second ones, …), for
those of one kind resemble each other: that halves what zlib makes of it.
"""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from kreflex.errors import KreflexError

State = npt.NDArray[np.void]
Times = npt.NDArray[np.float64]
_MAGIC = b"kreflex\x01"
_HEAD = len(_MAGIC) + 32
# Nothing here is larger; it keeps a made-up one from filling the memory.
_MOST_BYTES = 512 * 1024 * 1024


class StateError(KreflexError):
    """A state that can't be used: it is damaged, or another detector's. It is learnt anew."""


@dataclass(frozen=True)
class Bundle:
    """What is known of the series of one signal of a watch; the arrays have one entry a series, sorted by key."""

    detector: str
    version: int
    meaning: str
    """What it is about: the watch, the query, the step."""
    tick: float
    """Until when all of it has learnt."""
    keys: tuple[str, ...]
    state: State
    until: Times
    """Until when each has learnt."""
    seen: Times
    """When each was there last."""

    def of(self, keys: tuple[str, ...]) -> tuple[State, npt.NDArray[np.bool_]]:
        """Give the states of these series, in this order, and which of them are known; zeros for the others."""
        place = {key: row for row, key in enumerate(self.keys)}
        rows = np.array([place.get(key, -1) for key in keys], dtype=np.intp)
        found = np.zeros(len(keys), self.state.dtype)
        found[rows >= 0] = self.state[rows[rows >= 0]]
        return found, rows >= 0


def encode(bundle: Bundle) -> bytes:
    """Give a bundle's bytes."""
    head = {
        "detector": bundle.detector,
        "version": bundle.version,
        "meaning": bundle.meaning,
        "tick": bundle.tick,
        "layout": _layout(bundle.state.dtype),
        "keys": bundle.keys,
    }
    text = json.dumps(head, separators=(",", ":"), sort_keys=True).encode()
    columns = [bundle.until, bundle.seen, *(bundle.state[name] for name in _names(bundle.state.dtype))]
    body = zlib.compress(b"".join([struct.pack("<I", len(text)), text, *map(_planes, columns)]), 1)
    return _MAGIC + hashlib.sha256(body).digest() + body


def decode(content: bytes, dtype: np.dtype[np.void]) -> Bundle:
    """Read a bundle whose states have this type; raises StateError if it can't be used."""
    payload = _payload(content)
    (size,) = struct.unpack_from("<I", payload)
    head = json.loads(payload[4 : 4 + size])
    if head["layout"] != _layout(dtype):
        raise StateError(f"it is laid out as that of {head['detector']} {head['version']}")
    keys = tuple(head["keys"])
    columns = _Columns(payload[4 + size :], len(keys))
    until, seen = columns.take(np.dtype("<f8")), columns.take(np.dtype("<f8"))
    state = np.zeros(len(keys), dtype)
    for name in _names(dtype):
        state[name] = columns.take(dtype[name])
    return Bundle(head["detector"], head["version"], head["meaning"], head["tick"], keys, state, until, seen)


def _payload(content: bytes) -> bytes:
    if content[: len(_MAGIC)] != _MAGIC:
        raise StateError(f"it begins with {content[:8]!r}, not with {_MAGIC!r}")
    body = content[_HEAD:]
    if hashlib.sha256(body).digest() != content[len(_MAGIC) : _HEAD]:
        raise StateError("its checksum is wrong: it is damaged")
    unpacker = zlib.decompressobj()
    payload = unpacker.decompress(body, _MOST_BYTES)
    if not unpacker.eof:
        raise StateError(f"it unpacks to more than {_MOST_BYTES} bytes")
    return payload


def _names(dtype: np.dtype[Any]) -> tuple[str, ...]:
    return dtype.names or ()


def _layout(dtype: np.dtype[np.void]) -> str:
    return ",".join(f"{name}:{_little(dtype[name].base).str}:{dtype[name].shape}" for name in _names(dtype))


def _little(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return dtype.newbyteorder("<")


def _planes(column: npt.NDArray[Any]) -> bytes:
    flat = np.ascontiguousarray(column, _little(column.dtype)).reshape(-1)
    if flat.dtype.kind == "f":
        # Not-a-number has many bit patterns, which differ between processors.
        flat = np.where(np.isnan(flat), np.array(np.nan, flat.dtype), flat)
    return flat.view(np.uint8).reshape(len(flat), flat.dtype.itemsize).T.tobytes()


@dataclass
class _Columns:
    """Reads one column after the other."""

    content: bytes
    rows: int
    at: int = 0

    def take(self, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        base, shape = _little(dtype.base), (self.rows, *dtype.shape)
        count = int(np.prod(shape))
        planes = np.frombuffer(self.content, np.uint8, count * base.itemsize, self.at)
        self.at += planes.size
        return np.ascontiguousarray(planes.reshape(base.itemsize, count).T).view(base).reshape(shape)
