"""What stands in a file of YAML that anybody may have written: read in bounded time and memory, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from kreflex.views import JSON

if TYPE_CHECKING:
    from yaml import Node

# What is nested in an alias of an alias grows without end where it is compared, or merged by a key `<<`.
_MOST_NODES = 200_000


def bodies(content: bytes | str) -> list[object]:
    """Read the documents of a file; nothing of one that can't be read, or grows too large when it is.

    By the loader in Python: that of libyaml ends the process at brackets that are nested some thousand times.
    """
    import yaml  # noqa: PLC0415 - a function is started for one event, and few look into Git

    try:
        nodes = list(yaml.compose_all(content, yaml.SafeLoader))
        return [_constructed(node) for node in nodes] if all(map(bounded, nodes)) else []
    # Beside YAMLError whatever Python's own types say of a date, a number or a word that is none.
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, OverflowError, RecursionError):
        return []


def _constructed(node: Node) -> object:
    import yaml  # noqa: PLC0415 - as above

    return yaml.SafeLoader("").construct_document(node)


def bounded(node: Node) -> bool:
    """Tell whether a node is not too large, its aliases counted as often as they stand there."""
    left, waiting = _MOST_NODES, [node]
    while waiting and left:
        left -= 1
        inside = waiting.pop().value
        for one in inside if isinstance(inside, list) else ():
            waiting.extend(one if isinstance(one, tuple) else (one,))
    return not waiting


def documents(content: bytes) -> Iterator[JSON]:
    """Read the Kubernetes objects in a file; what is none is left out."""
    for body in bodies(content):
        items = body.get("items") if isinstance(body, dict) and body.get("kind") == "List" else [body]
        for one in items if isinstance(items, list) else []:
            if isinstance(one, dict) and isinstance(one.get("metadata"), dict) and {"apiVersion", "kind"} <= one.keys():
                yield one
