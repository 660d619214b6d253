"""A page of nodes is read slimly: the same views, and nothing of what nobody looks at."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from kreflex.nodes import node_view, read_nodes
from kreflex.views import JSON
from tests.values import a_node

TAINT = {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute", "timeAdded": "2026-01-01T00:00:00Z"}


def a_page(*items: JSON, **metadata: str) -> bytes:
    return json.dumps({"kind": "NodeList", "metadata": {"resourceVersion": "7", **metadata}, "items": items}).encode()


def a_full_node(**about: Any) -> JSON:
    """A node with what a kubelet and the API server add to what we look at."""
    body = a_node(taints=[TAINT], provider_id="aws:///a/i-1", unschedulable=True, annotations={"a": "b"}, **about)
    body["metadata"]["managedFields"] = [{"manager": "kubelet", "fieldsV1": {"f:status": {}}}]
    body["status"]["images"] = [{"names": ["registry.example.com/shop@sha256:1"], "sizeBytes": 1}]
    body["status"]["addresses"] = [{"type": "InternalIP", "address": "10.0.0.1"}]
    return body


def test_shows_each_node_as_it_shows_when_read_alone() -> None:
    whole = [a_full_node(), a_node("blue-2", terminating=True), a_node("blue-3", control_plane=True)]
    read = read_nodes(a_page(*whole))["items"]
    assert [node_view(body) for body in read] == [node_view(body) for body in whole]


def test_leaves_out_images_and_managed_fields() -> None:
    (read,) = read_nodes(a_page(a_full_node()))["items"]
    assert "images" not in read["status"]
    assert "managedFields" not in read["metadata"]


def test_tells_where_the_next_page_begins() -> None:
    assert read_nodes(a_page(**{"continue": "here"}))["metadata"]["continue"] == "here"


def test_reads_a_condition_whose_time_is_not_known() -> None:
    body = a_node()
    body["status"]["conditions"][0]["lastTransitionTime"] = None
    assert node_view(read_nodes(a_page(body))["items"][0]) == node_view(body)


@pytest.mark.parametrize("page", [b"", b"{", b"[]", a_page({"metadata": {"name": 7}}), a_page({"status": "well"})])
def test_refuses_what_is_no_page_of_nodes(page: bytes) -> None:
    with pytest.raises(ValidationError):
        read_nodes(page)
