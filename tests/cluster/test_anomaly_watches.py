"""AnomalyWatches on a real API server: what it refuses, and what is told of what can't be used."""

import copy
from collections.abc import AsyncIterator
from typing import Any

import pytest

from kreflex.anomaly.watches import Broken, Watch, WatchStatus, read_watches, report
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from lab.api import Refused
from lab.cluster import ControlPlane
from tests import kit

SIGNAL = {"name": "memory", "query": "m", "kind": "memory"}


def a_watch(name: str, **spec: Any) -> dict[str, Any]:
    whole = {"target": {"kind": "Pod", "nameLabel": "pod"}, "signals": [SIGNAL], **spec}
    return {
        "apiVersion": "kreflex.dev/v1alpha1",
        "kind": "AnomalyWatch",
        "metadata": {"name": name},
        "spec": copy.deepcopy(whole),
    }


def path(place: kit.Place) -> str:
    return f"/apis/kreflex.dev/v1alpha1/namespaces/{place.name}/anomalywatches"


@pytest.fixture
async def transport(installed: ControlPlane) -> AsyncIterator[Transport]:
    config = await installed.kubeconfig_for("kreflex-system", "anomaly-scorer")
    made = Transport(load_credentials(str(config)))
    yield made
    await made.close()


@pytest.mark.parametrize(
    ("spec", "because"),
    [
        ({"interval": "2h"}, "must be 1s at least, and 1h at most"),
        ({"history": "5m"}, "must be 10m at least, and 672h at most"),
        ({"interval": "30m", "history": "24h"}, "history must be 60 intervals at least"),
        ({"interval": "1h", "history": "100h", "horizon": "169h"}, "must be 1m at least, and 168h at most"),
        ({"signals": []}, "spec.signals"),
        ({"signals": [SIGNAL, SIGNAL]}, "Duplicate value"),
        ({"signals": [{**SIGNAL, "kind": "heat"}]}, "Unsupported value"),
        ({"siblings": ["a", "a"]}, "Duplicate value"),
        ({"remediations": [{"class": "leek", "function": "f"}]}, "Unsupported value"),
        ({"falseAlarmsPerSeriesDay": 0.0005}, "should be greater than or equal to 0.001"),
        ({"target": {"kind": "Pod", "nameLabel": "po-d"}}, "spec.target.nameLabel"),
    ],
)
async def test_the_api_server_refuses_what_can_not_be_used(here: kit.Place, spec: dict[str, Any], because: str) -> None:
    with pytest.raises(Refused, match=because):
        await here.plane.api.post(path(here), a_watch("bad", **spec))


async def test_one_that_can_not_be_used_skips_only_itself_and_is_told_once(
    here: kit.Place, transport: Transport
) -> None:
    await here.plane.api.post(path(here), a_watch("good"))
    nodes = {"kind": "Node", "nameLabel": "node"}
    await here.plane.api.post(path(here), a_watch("bad", target=nodes))
    writer = Writer(transport)
    for _ in range(2):
        watches = await read_watches(Reader(transport))
        (good,) = [one for one in watches.good if one.namespace == here.name]
        (bad,) = [one for one in watches.broken if one.namespace == here.name]
        assert (type(good), good.name, type(bad), bad.name) == (Watch, "good", Broken, "bad")
        await report(good, "", writer)
        await report(bad, bad.problem, writer)

    problem = "spec.target.kind: nodes are watched from namespace kreflex-system only"
    status = (await here.plane.api.get(f"{path(here)}/bad"))["status"]
    assert status == {"observedGeneration": 1, "problem": problem}
    events = (await here.plane.api.get(f"/apis/events.k8s.io/v1/namespaces/{here.name}/events"))["items"]
    assert [(one["reason"], one["note"], one["regarding"]["name"]) for one in events] == [
        ("WatchCannotBeUsed", problem, "bad")
    ]
    written = [(one["verb"], one["objectRef"]["resource"]) for one in here.writes("anomaly-scorer")]
    assert sorted(written) == [("create", "events"), ("patch", "anomalywatches"), ("patch", "anomalywatches")]


async def test_what_was_mended_is_told_too(here: kit.Place, transport: Transport) -> None:
    await here.plane.api.post(path(here), a_watch("bad", target={"kind": "Node", "nameLabel": "node"}))
    writer = Writer(transport)
    (bad,) = [one for one in (await read_watches(Reader(transport))).broken if one.namespace == here.name]
    await report(bad, bad.problem, writer)
    await here.plane.api.patch(f"{path(here)}/bad", {"spec": {"target": {"kind": "Pod", "nameLabel": "pod"}}})
    (mended,) = [one for one in (await read_watches(Reader(transport))).good if one.namespace == here.name]
    assert mended.status == WatchStatus(observed_generation=1, problem=bad.problem)
    await report(mended, "", writer)
    assert (await here.plane.api.get(f"{path(here)}/bad"))["status"] == {"observedGeneration": 2, "problem": ""}
