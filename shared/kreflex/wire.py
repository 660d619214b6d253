"""Pages of nodes in protocol buffers, each node read as it arrives, and of it only what somebody looks at.

In JSON a node has some 15 KB, nearly all of them images and managed fields, and the API server would spend more time on
writing these than `kubectl get nodes` takes as a whole. What comes out has the shape that it has in JSON. Numbers are
those of https://github.com/kubernetes/api/blob/master/core/v1/generated.proto and of apimachinery's metav1; they never
change. The envelope is https://kubernetes.io/docs/reference/using-api/api-concepts/#protobuf-encoding.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Protocol

MEDIA_TYPE = "application/vnd.kubernetes.protobuf"
_MAGIC = b"k8s\x00"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# A node has 1.5 MB at most: etcd takes no larger object.
_MOST_BYTES = 8 * 2**20
_SHORT, _MOST_KNOWN = 128, 1024
_RAW, _LIST_META, _ITEMS = 2, 1, 2

Reads = Callable[[bytes], Any]
# By its number: the name of a field, whether there may be several, and how it is read.
Shape = Mapping[int, tuple[str, bool, Reads]]


class Stream(Protocol):
    """Bytes that are still arriving."""

    async def readexactly(self, n: int) -> bytes:
        """Give the next bytes; raises EOFError when there are fewer."""
        ...


async def read_page(stream: Stream) -> dict[str, Any]:
    """Read a page of nodes; raises ValueError for what is none, and EOFError for one that was cut off."""
    if await stream.readexactly(len(_MAGIC)) != _MAGIC:
        raise ValueError("it does not begin as Kubernetes' protocol buffers do")
    page: dict[str, Any] = {"metadata": {}, "items": []}
    left = await _begin(stream)
    while left > 0:
        field, size, head = await _field(stream)
        left -= head + size
        if left < 0 or size > _MOST_BYTES:
            raise ValueError(f"field {field} of the list has {size} bytes")
        content = await stream.readexactly(size)
        if field == _LIST_META:
            page["metadata"] = _message(content, _LIST)
        elif field == _ITEMS:
            page["items"].append(_message(content, _NODE))
    return page


async def _begin(stream: Stream) -> int:
    """Come to the list within its envelope; how many bytes it has."""
    while True:
        field, size, _ = await _field(stream)
        if field == _RAW:
            return size
        if size > _MOST_BYTES:
            raise ValueError(f"field {field} of the envelope has {size} bytes")
        await stream.readexactly(size)


async def _field(stream: Stream) -> tuple[int, int, int]:
    """Read which field comes next, of how many bytes, and how many bytes told that."""
    key, first = await _number(stream)
    if key & 7 != _BYTES:
        raise ValueError(f"field {key >> 3} is no message")
    size, second = await _number(stream)
    return key >> 3, size, first + second


async def _number(stream: Stream) -> tuple[int, int]:
    value = 0
    for count in range(10):
        byte = (await stream.readexactly(1))[0]
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, count + 1
    raise ValueError("a number without end")


def _message(data: bytes, shape: Shape) -> dict[str, Any]:
    """Read of a message the fields of its shape, and step over the others; raises ValueError."""
    try:
        return _fields(data, shape)
    except IndexError as error:
        raise ValueError("a message ends within a number") from error


def _fields(data: bytes, shape: Shape) -> dict[str, Any]:
    found: dict[str, Any] = {}
    at, end = 0, len(data)
    while at < end:
        # Most numbers are one byte, and there are hundreds in a node: no call for these.
        key, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
        known, kind = shape.get(key >> 3), key & 7
        if kind == _BYTES:
            size, at = (data[at], at + 1) if data[at] < 0x80 else _varint(data, at)
            begun, at = at, at + size
            if at > end:
                raise ValueError("a field is longer than its message")
            if known is not None:
                _keep(found, known, data[begun:at])
        elif kind == _VARINT:
            number, at = _varint(data, at)
            if known is not None:
                found[known[0]] = number
        elif kind in {_FIXED32, _FIXED64}:
            at += 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"field {key >> 3} is of kind {kind}")
    return found


def _keep(found: dict[str, Any], known: tuple[str, bool, Reads], content: bytes) -> None:
    name, several, read = known
    value = read(content)
    if not several:
        found[name] = value
    elif isinstance(value, tuple):
        found.setdefault(name, {})[value[0]] = value[1]
    else:
        found.setdefault(name, []).append(value)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7


def _text(content: bytes) -> str:
    return _known_text(content) if len(content) <= _SHORT else content.decode()


def _entry(content: bytes) -> tuple[str, str]:
    """Read one entry of a map."""
    return _known_entry(content) if len(content) <= _SHORT else _read_entry(content)


def _read_entry(content: bytes) -> tuple[str, str]:
    found = _message(content, _ENTRY)
    return found.get("key", ""), found.get("value", "")


# Most of what nodes say all of them say: held once, a thousand nodes take 6 MB instead of 10.
_known_text = lru_cache(_MOST_KNOWN)(bytes.decode)
_known_entry = lru_cache(_MOST_KNOWN)(_read_entry)


def _time(content: bytes) -> str | None:
    """Give a time as JSON has it; None for none."""
    found = _message(content, _TIME)
    return (
        datetime.fromtimestamp(found["seconds"], UTC).strftime("%Y-%m-%dT%H:%M:%SZ") if found.get("seconds") else None
    )


def _part(shape: Shape) -> Reads:
    return lambda content: _message(content, shape)


_ENTRY: Shape = {1: ("key", False, _text), 2: ("value", False, _text)}
_TIME: Shape = {1: ("seconds", False, _text)}
_LIST: Shape = {2: ("resourceVersion", False, _text), 3: ("continue", False, _text)}
_META: Shape = {
    1: ("name", False, _text),
    5: ("uid", False, _text),
    6: ("resourceVersion", False, _text),
    8: ("creationTimestamp", False, _time),
    9: ("deletionTimestamp", False, _time),
    11: ("labels", True, _entry),
    12: ("annotations", True, _entry),
}
_TAINT: Shape = {1: ("key", False, _text), 2: ("value", False, _text), 3: ("effect", False, _text)}
_SPEC: Shape = {
    3: ("providerID", False, _text),
    4: ("unschedulable", False, _text),
    5: ("taints", True, _part(_TAINT)),
}
_CONDITION: Shape = {
    1: ("type", False, _text),
    2: ("status", False, _text),
    4: ("lastTransitionTime", False, _time),
    5: ("reason", False, _text),
    6: ("message", False, _text),
}
_STATUS: Shape = {
    4: ("conditions", True, _part(_CONDITION)),
    5: ("addresses", True, _part({2: ("address", False, _text)})),
}
_NODE: Shape = {
    1: ("metadata", False, _part(_META)),
    2: ("spec", False, _part(_SPEC)),
    3: ("status", False, _part(_STATUS)),
}
