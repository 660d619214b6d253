"""The CRDs that are shipped are those of the models, and structural."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from kreflex.schemas import all_crds, render

FOLDER = Path(__file__).parents[2] / "knative" / "crds"


def test_the_shipped_crds_are_the_generated_ones() -> None:
    shipped = {file.name: file.read_text() for file in FOLDER.glob("*.yaml") if file.name != "kustomization.yaml"}
    assert shipped == {name: render(body) for name, body in all_crds().items()}, "run `make schemas`"


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path, schema
    for name, below in schema.get("properties", {}).items():
        yield from nodes(below, f"{path}.{name}")
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], f"{path}[]")


@pytest.mark.parametrize("name", all_crds())
def test_every_field_has_a_type_and_nothing_that_kubernetes_forbids(name: str) -> None:
    (version,) = all_crds()[name]["spec"]["versions"]
    for path, schema in nodes(version["schema"]["openAPIV3Schema"]):
        assert "type" in schema or schema.get("x-kubernetes-int-or-string"), path
        assert not {"$ref", "anyOf", "title", "const", "$defs"} & schema.keys(), path
        # Numbers in JSON Schema as pydantic writes it, booleans in that of the API server, which refuses the whole CRD.
        assert not {"exclusiveMaximum", "exclusiveMinimum"} & schema.keys(), f"{path}: ge= or le= instead of gt= or lt="
