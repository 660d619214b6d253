"""What is read of YAML that anybody may have written."""

from itertools import pairwise

import pytest

from kreflex.manifests import bodies, documents

NESTED = "\n".join(f"{later}: &{later} [{','.join([f'*{one}'] * 9)}]" for one, later in pairwise("abcdefghijklmnop"))
MERGED = "\n".join(
    f"{later}: &{later} {{<<: [{','.join([f'*{one}'] * 9)}]}}" for one, later in pairwise("abcdefghijkl")
)


def test_objects_are_read_also_from_lists_and_by_anchors() -> None:
    first = "apiVersion: v1\nkind: List\nitems:\n- &one {apiVersion: v1, kind: ConfigMap, metadata: {name: a}}\n- *one"
    assert [body["metadata"]["name"] for body in documents(f"{first}\n---\njust: text\n".encode())] == ["a", "a"]


@pytest.mark.parametrize(
    "text",
    [
        f"a: &a [x]\n{NESTED}",
        f"a: &a {{k: v}}\n{MERGED}",
        "a: &a [*a]",
        "[" * 5000,
        "a: 2026-99-99",
        "a: !!int x",
        "a: !!bool x",
        "a: !!timestamp x",
        "? [a]\n: b",
        "a: !!python/name:os.system",
        "a: [",
        b"\xff\xfe\xff",
    ],
)
def test_what_can_not_be_read_or_grows_without_end_is_left_out(text: str | bytes) -> None:
    # What grows without end would not come to its end here: nothing has to be timed.
    assert bodies(text) == []
