"""The manifests for Argo Events fit the schema of its Go types: its custom resource definitions let everything pass."""

import json
from functools import cache
from typing import Any

import pytest
import yaml

from lab import crds
from tests.manifests import rendered
from tests.manifests.rendered import TRIGGERS, Json

FOLDER = TRIGGERS / "argo-events"
# For what is no part of Kubernetes: a source for each, which is applied where it is there.
MORE = sorted(file.parent for file in (TRIGGERS / "argo-events-more").glob("*/kustomization.yaml"))
PREFIX = "io.argoproj.events.v1alpha1"
KINDS = ("EventBus", "EventSource", "Sensor")
FINAL = [200, 202, 204]


@cache
def definitions() -> dict[str, Json]:
    (file,) = [file for file in crds.ARGO_EVENTS.fetch() if file.suffix == ".json"]
    found: dict[str, Json] = json.loads(file.read_text())["definitions"]
    return found


def faults(value: Any, schema: Json, where: str) -> list[str]:
    """Name the fields of a value that a schema does not know, and the values that are of another type.

    Not what it requires: it requires more than the controller does, a webhook's `url` for one.
    """
    while "$ref" in schema:
        schema = definitions()[schema["$ref"].rpartition("/")[2]]
    if not fits(value, schema.get("type")):
        return [f"{where} is {type(value).__name__}, not {schema['type']}"]
    if isinstance(value, list):
        return [fault for i, item in enumerate(value) for fault in faults(item, schema["items"], f"{where}[{i}]")]
    if not isinstance(value, dict):
        return []
    known, rest = schema.get("properties", {}), schema.get("additionalProperties")
    return [
        fault
        for key, item in value.items()
        for fault in (
            faults(item, known.get(key, rest), f"{where}.{key}")
            if key in known or isinstance(rest, dict)
            else [f"{where}.{key} is unknown"]
        )
    ]


def fits(value: Any, wanted: str | list[str] | None) -> bool:
    types: dict[str, type | tuple[type, ...]] = {
        "object": dict,
        "array": list,
        "string": str,
        "boolean": bool,
        "integer": int,
        "number": (int, float),
    }
    names = [wanted] if isinstance(wanted, str) else wanted or []
    return not names or any(isinstance(value, types[name]) for name in names)


def dependencies(sensor: Json) -> dict[str, Json]:
    return {dependency["name"]: dependency for dependency in sensor["spec"]["dependencies"]}


def sensors() -> list[Json]:
    return rendered.of_kind(FOLDER, "Sensor")


def triggers() -> list[tuple[Json, Json]]:
    return [(sensor, trigger) for sensor in sensors() for trigger in sensor["spec"]["triggers"]]


def test_argo_knows_each_field() -> None:
    found = [document for folder in (FOLDER, *MORE) for document in rendered.of_kind(folder, *KINDS)]
    assert {document["kind"] for document in found} == set(KINDS)
    wrong = [
        fault
        for document in found
        for fault in faults(document["spec"], definitions()[f"{PREFIX}.{document['kind']}Spec"], document["kind"])
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("spec", "fault"),
    [
        ({"dependencys": []}, "Sensor.dependencys is unknown"),
        ({"triggers": [{"template": {"htp": {}}}]}, "Sensor.triggers[0].template.htp is unknown"),
        ({"triggers": [{"atLeastOnce": "yes"}]}, "Sensor.triggers[0].atLeastOnce is str, not boolean"),
    ],
)
def test_an_unknown_field_is_found(spec: Json, fault: str) -> None:
    assert faults(spec, definitions()[f"{PREFIX}.SensorSpec"], "Sensor") == [fault]


def test_its_controller_knows_the_version_of_the_bus() -> None:
    (file,) = [file for file in crds.ARGO_EVENTS.fetch() if file.name.endswith("controller-config.yaml")]
    config = yaml.safe_load(yaml.safe_load(file.read_text())["data"]["controller-config.yaml"])
    known = {entry["version"] for entry in config["eventBus"]["jetstream"]["versions"]}
    (bus,) = rendered.of_kind(FOLDER, "EventBus")
    assert bus["spec"]["jetstream"]["version"] in known


def test_each_dependency_is_an_event_of_a_source() -> None:
    events = {
        (source["metadata"]["name"], name)
        for folder in (FOLDER, *MORE)
        for source in rendered.of_kind(folder, "EventSource")
        for kind in ("calendar", "resource", "webhook")
        for name in source["spec"].get(kind, {})
    }
    wanted = {
        (one["eventSourceName"], one["eventName"]) for sensor in sensors() for one in dependencies(sensor).values()
    }
    assert wanted == events


def test_a_source_may_watch_what_it_tells_of() -> None:
    for folder in (FOLDER, *MORE):
        (role,) = rendered.of_kind(folder, "ClusterRole")
        granted = {
            (group, resource) for rule in role["rules"] for group in rule["apiGroups"] for resource in rule["resources"]
        }
        sources = rendered.of_kind(folder, "EventSource")
        told = [one for source in sources for one in source["spec"].get("resource", {}).values()]
        assert {(one["group"], one["resource"]) for one in told} == granted


def test_each_trigger_has_one_dependency_that_it_takes_everything_from() -> None:
    """With two, the payload of the one that is missing ends the sensor: it reads what is not there."""
    for sensor, trigger in triggers():
        template = trigger["template"]
        assert template["conditions"] in dependencies(sensor)
        read = [*template["http"]["payload"], *template["http"]["dynamicHeaders"]]
        assert {entry["src"]["dependencyName"] for entry in read} == {template["conditions"]}


def test_each_trigger_is_repeated_until_it_is_answered_with_a_final_code() -> None:
    for _, trigger in triggers():
        assert trigger["atLeastOnce"] is True
        assert trigger["policy"]["status"]["allow"] == FINAL
        assert trigger["retryStrategy"]["steps"] > 1
        assert trigger["dlqTrigger"]["atLeastOnce"] is True


def test_each_request_is_a_cloudevent_that_shows_who_sends_it() -> None:
    kinds = {"alerts": "webhook", "minute": "calendar"}
    for _, trigger in triggers():
        http = trigger["template"]["http"]
        assert http["headers"]["ce-specversion"] == "1.0"
        assert (
            http["headers"]["ce-type"]
            == f"io.argoproj.events.{kinds.get(trigger['template']['conditions'], 'resource')}"
        )
        assert http["headers"]["ce-source"]
        assert [header["dest"] for header in http["dynamicHeaders"]] == ["ce-id"]
        assert [header["name"] for header in http["secureHeaders"]] == ["Authorization"]


def test_objects_are_sent_as_objects() -> None:
    """Argo sends an object as a string that holds JSON, unless it is asked for the raw data."""
    sent = [entry["src"] for _, trigger in triggers() for entry in trigger["template"]["http"]["payload"]]
    assert [src for src in sent if src["dataKey"] == "body" and not src.get("useRawData")] == []


def test_each_trigger_calls_a_function() -> None:
    urls = {trigger["template"]["http"]["url"] for _, trigger in triggers()}
    assert urls == {f"http://{name}.kreflex-system.svc.cluster.local/" for name in rendered.FUNCTIONS}
