"""What an AnomalyWatch may say, and what its series are about."""

from typing import Any

import pytest

from kreflex.anomaly.watches import Broken, Watch, read_watch


def a_body(namespace: str = "kreflex-system", **spec: Any) -> dict[str, Any]:
    whole = {
        "target": {"kind": "Pod", "nameLabel": "pod"},
        "signals": [{"name": "memory", "query": "container_memory_working_set_bytes", "kind": "memory"}],
        **spec,
    }
    return {"metadata": {"namespace": namespace, "name": "pods", "uid": "u", "generation": 3}, "spec": whole}


def a_watch(namespace: str = "kreflex-system", **spec: Any) -> Watch:
    watch = read_watch(a_body(namespace, **spec))
    assert isinstance(watch, Watch), watch
    return watch


SIGNAL = {"name": "memory", "query": "m"}


@pytest.mark.parametrize(
    ("spec", "problem"),
    [
        ({"target": {"kind": "Job", "nameLabel": "job"}}, "spec.target.kind: Input should be 'Pod', 'Node'"),
        ({"target": {"kind": "Pod"}}, "spec.target.nameLabel: Field required"),
        ({"target": {"kind": "Pod", "nameLabel": "po-d"}}, "spec.target.nameLabel: String should match"),
        ({"signals": []}, "spec.signals: Tuple should have at least 1 item"),
        ({"signals": [{**SIGNAL, "kind": "heat"}]}, r"spec.signals[0].kind: Input should be 'cpu'"),
        ({"signals": [SIGNAL, SIGNAL]}, "spec: signals must have different names"),
        ({"signals": [SIGNAL, {"name": "other", "query": " m\n"}]}, "spec: signals must have different queries"),
        ({"signals": [{**SIGNAL, "classes": ["leek"]}]}, "spec.signals[0].classes[0]: Input should be"),
        ({"interval": "500ms"}, "spec.interval: must be a duration like 90s, 5m or 1h30m, not '500ms'"),
        ({"interval": "0s"}, "spec.interval: must be 1s at least, and 1h at most"),
        ({"interval": "30m", "history": "24h"}, "spec: history must be 60 intervals at least"),
        (
            {"falseAlarmsPerSeriesDay": 0},
            "spec.falseAlarmsPerSeriesDay: Input should be greater",
        ),
        ({"agreement": 0}, "spec.agreement: Input should be greater than or equal to 1"),
        ({"colour": "red"}, "spec.colour: Extra inputs are not permitted"),
    ],
)
def test_what_can_not_be_used_is_told_with_its_field(spec: dict[str, Any], problem: str) -> None:
    broken = read_watch(a_body(**spec))
    assert isinstance(broken, Broken)
    assert (broken.namespace, broken.name, broken.uid, broken.generation) == ("kreflex-system", "pods", "u", 3)
    assert problem in broken.problem


def test_all_faults_are_told_at_once() -> None:
    broken = read_watch(a_body(agreement=0, interval="1d"))
    assert isinstance(broken, Broken)
    assert broken.problem.count("spec.") == 2


def test_nodes_are_watched_from_kreflex_own_namespace_only() -> None:
    nodes: dict[str, Any] = {"target": {"kind": "Node", "nameLabel": "node"}}
    assert a_watch(**nodes).target({"node": "n1"}) == ("", "n1")
    broken = read_watch(a_body("shop", **nodes))
    assert isinstance(broken, Broken)
    assert broken.problem == "spec.target.kind: nodes are watched from namespace kreflex-system only"


@pytest.mark.parametrize(
    ("labels", "target"),
    [
        ({"namespace": "shop", "pod": "cart-1"}, ("shop", "cart-1")),
        ({"namespace": "shop"}, None),
        ({"pod": "cart-1"}, None),
        ({"namespace": "", "pod": "cart-1"}, None),
        ({"namespace": "shop", "pod": "../../bank/pods/teller"}, None),
        ({"namespace": "shop/secrets", "pod": "key"}, None),
        ({"namespace": "shop", "pod": "cart-1/log?tailLines=1"}, None),
        ({"namespace": "shop", "pod": "p" * 300}, None),
        ({"namespace": "n" * 64, "pod": "cart-1"}, None),
    ],
)
def test_the_labels_name_the_target(labels: dict[str, str], target: tuple[str, str] | None) -> None:
    assert a_watch().target(labels) == target


def test_a_namespaces_own_watch_is_about_that_namespace_only() -> None:
    watch = a_watch("shop")
    assert watch.target({"namespace": "shop", "pod": "cart-1"}) == ("shop", "cart-1")
    assert watch.target({"namespace": "bank", "pod": "teller"}) is None


def test_the_labels_of_the_namespace_and_the_name_may_be_others() -> None:
    pointer = {"kind": "Service", "namespaceLabel": "exported_namespace", "nameLabel": "exported_service"}
    labels = {"namespace": "monitoring", "exported_namespace": "shop", "exported_service": "cart"}
    assert a_watch(target=pointer).target(labels) == ("shop", "cart")


def test_siblings_have_the_same_labels() -> None:
    watch = a_watch(siblings=["namespace", "workload"])
    assert watch.siblings({"namespace": "shop", "workload": "cart", "pod": "cart-1"}) == ("shop", "cart")
    assert watch.siblings({"namespace": "shop"}) == ("shop", "")


def test_a_class_leads_to_the_function_that_is_named_for_it() -> None:
    watch = a_watch(remediations=[{"class": "leak", "function": "restart-loop-killer"}])
    assert (watch.remediation("leak"), watch.remediation("spike")) == ("restart-loop-killer", "")


def test_what_is_learnt_is_about_the_query_its_kind_and_its_limit() -> None:
    meanings = [
        a_watch(signals=[signal]).spec.signals[0].meaning
        for signal in (
            SIGNAL,
            {**SIGNAL, "name": "other", "classes": ["leak"]},
            {**SIGNAL, "query": "m*2"},
            {**SIGNAL, "kind": "memory"},
            {**SIGNAL, "limit": "l"},
        )
    ]
    assert meanings[0] == meanings[1]
    assert len(set(meanings)) == 4
