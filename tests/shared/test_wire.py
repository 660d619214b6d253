"""Pages of nodes in protocol buffers are read field by field; tests/cluster compares them with the real ones."""

import asyncio
from datetime import datetime
from typing import Any

import pytest

from kreflex.nodes import node_view
from kreflex.wire import read_page
from tests.values import a_node

MAGIC = b"k8s\x00"


def number(value: int) -> bytes:
    """A number as it is written: seven bits a byte, the lowest first."""
    more = value >> 7
    return bytes([value & 0x7F | 0x80]) + number(more) if more else bytes([value])


def part(field: int, content: bytes | str) -> bytes:
    """A field that holds bytes, a text or a message."""
    raw = content.encode() if isinstance(content, str) else content
    return number(field << 3 | 2) + number(len(raw)) + raw


def a_time(text: str) -> bytes:
    return number(1 << 3) + number(int(datetime.fromisoformat(text).timestamp())) + number(2 << 3) + number(0)


def pairs(field: int, entries: dict[str, str]) -> bytes:
    return b"".join(part(field, part(1, key) + part(2, value)) for key, value in entries.items())


def written(body: dict[str, Any]) -> bytes:
    """Write a node as an API server does, with fields that nobody looks at."""
    meta, spec, status = body["metadata"], body.get("spec") or {}, body["status"]
    about = [
        part(1, meta["name"]),
        part(5, meta["uid"]),
        part(6, meta["resourceVersion"]),
        number(7 << 3) + number(300),
        part(8, a_time(meta["creationTimestamp"])),
        part(9, a_time(meta["deletionTimestamp"])) if "deletionTimestamp" in meta else b"",
        pairs(11, meta["labels"]),
        pairs(12, meta["annotations"]),
        part(17, part(1, "kubelet")),
    ]
    plan = [part(3, spec.get("providerID", "")), number(4 << 3) + number(bool(spec.get("unschedulable")))]
    plan += [part(5, part(1, one["key"]) + part(3, one["effect"])) for one in spec.get("taints") or ()]
    said = [part(4, condition(one)) for one in status["conditions"]]
    said += [part(5, part(1, one["type"]) + part(2, one["address"])) for one in status.get("addresses") or ()]
    images = [part(8, part(1, "registry.example.com/shop@sha256:1") + number(2 << 3) + number(10**9))] * 50
    return part(1, b"".join(about)) + part(2, b"".join(plan)) + part(3, b"".join([*said, *images]))


def condition(said: dict[str, Any]) -> bytes:
    since = said.get("lastTransitionTime")
    texts = part(1, said["type"]) + part(2, said["status"]) + part(5, said.get("reason", ""))
    return texts + (part(4, a_time(since)) if since else part(4, b"")) + part(6, said.get("message", ""))


def a_page(*items: bytes, more: str = "") -> bytes:
    listed = part(1, part(2, "7") + part(3, more)) + b"".join(part(2, item) for item in items)
    return MAGIC + part(1, part(1, "v1") + part(2, "NodeList")) + part(2, listed) + part(3, "") + part(4, "")


def read(content: bytes) -> dict[str, Any]:
    async def arriving() -> dict[str, Any]:
        stream = asyncio.StreamReader()
        stream.feed_data(content)
        stream.feed_eof()
        return await read_page(stream)

    return asyncio.run(arriving())


@pytest.mark.parametrize(
    "body",
    [
        a_node(),
        a_node(labels={"team": "shop", "note": "ü" * 200, "empty": ""}, annotations={"a": "b"}, unschedulable=True),
        a_node(taints=[{"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"}], provider_id="aws:///a/i-1"),
        a_node(terminating=True, control_plane=True),
    ],
)
def test_shows_a_node_as_it_shows_in_json(body: dict[str, Any]) -> None:
    (found,) = read(a_page(written(body)))["items"]
    assert node_view(found) == node_view(body)


def test_a_condition_may_have_no_time() -> None:
    body = a_node()
    body["status"]["conditions"][0]["lastTransitionTime"] = None
    assert node_view(read(a_page(written(body)))["items"][0]) == node_view(body)


def test_leaves_out_what_nobody_looks_at() -> None:
    (found,) = read(a_page(written(a_node())))["items"]
    assert "images" not in found["status"]
    assert "managedFields" not in found["metadata"]


def test_reads_all_nodes_of_a_page_and_where_the_next_begins() -> None:
    page = read(a_page(written(a_node("blue-1")), written(a_node("blue-2")), more="here"))
    assert page["metadata"] == {"resourceVersion": "7", "continue": "here"}
    assert [item["metadata"]["name"] for item in page["items"]] == ["blue-1", "blue-2"]


def test_steps_over_fields_of_every_kind_that_it_does_not_know() -> None:
    fixed = number(99 << 3 | 1) + bytes(8) + number(98 << 3 | 5) + bytes(4) + number(97 << 3) + number(2**40)
    (found,) = read(a_page(fixed + written(a_node())))["items"]
    assert node_view(found) == node_view(a_node())


@pytest.mark.parametrize(
    "content",
    [
        b'{"kind":"NodeList"}',
        MAGIC + number(1 << 3) + number(7),
        MAGIC + b"\x12" + b"\xff" * 11,
        a_page(part(1, b"\x0a\x7f")),
        a_page(part(1, b"\x0b")),
        a_page(part(1, b"\x80")),
        a_page(part(1, part(1, b"\xff"))),
        MAGIC + part(1, "") + number(2 << 3 | 2) + number(2**30) + number(2 << 3 | 2) + number(2**29),
    ],
)
def test_refuses_what_is_no_page_of_nodes(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"begin|field|number|decode"):
        read(content)


@pytest.mark.parametrize("missing", [1, 20, 2000])
def test_a_page_that_is_cut_off_is_no_shorter_page(missing: int) -> None:
    whole = a_page(written(a_node("blue-1")), written(a_node("blue-2")))
    with pytest.raises(EOFError):
        read(whole[: -missing - len(part(3, "") + part(4, ""))])
