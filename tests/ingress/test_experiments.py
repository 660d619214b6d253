"""Experiments in events: those of Kreflex wake chaos-runner, those of Argo Rollouts nobody."""

import json
from typing import Any

import pytest

from kreflex import ingress
from kreflex.signals import Due

META = {"namespace": "shop", "name": "storm", "uid": "u-1"}
OURS: dict[str, Any] = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Experiment", "metadata": META}


def parsed(kind: str, data: Any) -> tuple[tuple[Due, ...], tuple[str, ...]]:
    headers = {"ce-specversion": "1.0", "ce-id": "1", "ce-source": "/x", "ce-type": f"dev.knative.apiserver.{kind}"}
    delivery = ingress.parse({**headers, "content-type": "application/json"}, json.dumps(data).encode())
    assert (delivery.signals, delivery.due) == ((), ())
    return delivery.experiments, delivery.ignored


@pytest.mark.parametrize("kind", ["resource.add", "resource.update"])
def test_a_change_of_an_experiment_names_it(kind: str) -> None:
    assert parsed(kind, OURS) == ((Due("shop", "storm"),), ())


def test_a_reference_to_an_experiment_names_it() -> None:
    reference = {"apiVersion": "kreflex.dev/v1alpha1", "kind": "Experiment", "namespace": "shop", "name": "storm"}
    assert parsed("ref.add", reference) == ((Due("shop", "storm"),), ())


def test_an_experiment_of_argo_rollouts_is_for_nobody() -> None:
    theirs = {**OURS, "apiVersion": "argoproj.io/v1alpha1"}
    assert parsed("resource.update", theirs) == ((), ("a 'Experiment' is for no function here",))
    reference = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Experiment", "namespace": "shop", "name": "storm"}
    assert parsed("ref.add", reference) == ((), ("an Experiment of somebody else is for no function here",))
