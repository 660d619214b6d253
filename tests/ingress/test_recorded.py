"""Requests as they came from real senders, through the real ASGI application."""

from typing import Any

import pytest

from tests.ingress.conftest import Caller
from tests.ingress.recorded import ALL, Recorded
from tests.ingress.surroundings import API

BY_NAME = {one.name: one for one in ALL}


async def echoed(caller: Caller, name: str) -> Any:
    one = BY_NAME[name]
    answer = await caller.post(one.body, one.headers, "/echo")
    assert answer.status == 200, answer.body
    return answer.json


@pytest.mark.parametrize("one", ALL, ids=lambda one: one.name)
async def test_what_real_senders_send_is_understood(caller: Caller, one: Recorded) -> None:
    answer = await caller.post(one.body, one.headers)
    assert answer.status in {200, 204}, answer.body
    assert API.writes == []


async def test_the_adapter_shows_a_looping_pod(caller: Caller) -> None:
    (signal,) = (await echoed(caller, "apiserversource/resource-looping"))["signals"]
    assert (signal["name"], signal["seen"], signal["source"]) == ("cart-resource", True, "apiserver")
    await caller.post(
        BY_NAME["apiserversource/resource-looping"].body, BY_NAME["apiserversource/resource-looping"].headers
    )
    assert API.calls == ["GET /api/v1/namespaces/default/pods/cart-resource"]


async def test_the_adapter_names_a_pod(caller: Caller) -> None:
    (signal,) = (await echoed(caller, "apiserversource/reference-updated"))["signals"]
    assert (signal["namespace"], signal["name"], signal["seen"]) == ("default", "cart-reference", False)


@pytest.mark.parametrize("name", ["apiserversource/resource-deleted", "apiserversource/reference-deleted"])
async def test_what_was_deleted_is_for_no_function(caller: Caller, name: str) -> None:
    answer = await echoed(caller, name)
    assert (answer["signals"], len(answer["ignored"])) == ([], 1)


@pytest.mark.parametrize("name", [one.name for one in ALL if one.name.startswith("pingsource/")])
async def test_a_ping_is_a_clock_whatever_its_data(caller: Caller, name: str) -> None:
    assert (await echoed(caller, name))["tick"]


@pytest.mark.parametrize("name", ["updated", "deleted"])
async def test_the_adapter_shows_a_node(caller: Caller, name: str) -> None:
    (signal,) = (await echoed(caller, f"apiserversource/node-{name}"))["signals"]
    assert (signal["name"].partition("-")[0], signal["seen"], signal["source"]) == ("worker", True, "apiserver")
    assert signal["uid"] != ""


@pytest.mark.parametrize(
    ("name", "nodes", "pods"),
    [
        ("nodes-kube-prometheus", ["worker-1", "worker-2"], 0),
        # Where the labels of the exporter's own pod were not dropped, the alert names that, too.
        ("nodes-chart", ["worker-1"], 1),
        ("nodes-exporter", ["172.18.0.3", "fc00:f853:ccd:e793::4"], 2),
        ("nodes-not-honored", ["worker-1"], 0),
        ("nodes-resolved", [], 0),
    ],
)
async def test_the_stock_alerts_tell_of_nodes(caller: Caller, name: str, nodes: list[str], pods: int) -> None:
    signals = (await echoed(caller, f"alertmanager/{name}"))["signals"]
    assert [signal["name"] for signal in signals if "namespace" not in signal] == nodes
    assert len([signal for signal in signals if "namespace" in signal]) == pods


@pytest.mark.parametrize("name", [one.name for one in ALL if "node" in one.name])
async def test_what_tells_of_nodes_is_for_a_function_for_nodes(caller: Caller, name: str) -> None:
    one = BY_NAME[name]
    assert (await caller.post(one.body, one.headers, "/nodes")).status in {200, 204}
    assert API.calls == []


async def test_alertmanager_tells_of_a_group(caller: Caller) -> None:
    answer = await echoed(caller, "alertmanager/group")
    assert [signal["name"] for signal in answer["signals"]] == ["cart-1", "cart-2"]
    assert answer["about"]["reason"] == "first notification"


async def test_alertmanager_tells_how_many_alerts_it_cut_off(caller: Caller) -> None:
    ignored = (await echoed(caller, "alertmanager/truncated"))["ignored"]
    assert ignored[-1] == "3 alerts were cut off by max_alerts; the waker finds what they are about"


@pytest.mark.parametrize("name", ["argo-events/shape-resource", "argo-events/shape-resource-as-string"])
async def test_argo_events_shows_a_looping_pod(caller: Caller, name: str) -> None:
    (signal,) = (await echoed(caller, name))["signals"]
    assert (signal["name"], signal["seen"], signal["source"]) == ("cart-resource", True, "argo-events")
