"""What is shipped in knative/ is what is computed, and what is computed follows the signature."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kreflex import admission, rights
from kreflex.rule import Rule
from tests import made_up

KNATIVE = Path(__file__).parents[2] / "knative"


SHIPPED: list[tuple[str, list[str], rights.Rights]] = [(".", [], one) for one in rights.all_rights()]
SHIPPED += [("variants/namespaced", ["shop"], one) for one in rights.all_rights(namespaced=True)]


@pytest.mark.parametrize(("folder", "namespaces", "computed"), SHIPPED, ids=lambda one: getattr(one, "name", ""))
def test_the_shipped_rights_are_the_computed_ones(folder: str, namespaces: list[str], computed: rights.Rights) -> None:
    shipped = (KNATIVE / folder / computed.name / "rbac.yaml").read_text()
    assert shipped == rights.render(rights.manifests(computed, namespaces=namespaces)), "run `make schemas`"


def test_what_is_in_no_namespace_is_for_no_function_of_namespaces() -> None:
    assert {one.name for one in rights.all_rights()} - {one.name for one in rights.all_rights(namespaced=True)} == {
        "node-replacer"
    }


@pytest.mark.parametrize(("name", "text"), admission.files().items())
def test_the_shipped_admission_policies_are_the_computed_ones(name: str, text: str) -> None:
    assert (KNATIVE / name).read_text() == text, "run `make schemas`"


def test_every_function_has_rights() -> None:
    folders = {path.parent.name.replace("_", "-") for path in KNATIVE.parent.glob("functions/*/main.py")}
    assert {computed.name for computed in rights.all_rights()} == folders


def roles(decide: Any, **where: Any) -> list[tuple[str, str, list[dict[str, Any]]]]:
    """Tell kind, namespace and rules of the roles of the made-up function."""
    bodies = rights.manifests(rights.rights_of(made_up.reflex(decide)), **where)
    return [(b["kind"], b["metadata"].get("namespace", ""), b["rules"]) for b in bodies if "rules" in b]


def test_another_action_in_the_signature_is_another_rule() -> None:
    (kind, namespace, before), home = roles(made_up.evicts)
    (_, _, after), same = roles(made_up.scales_too)
    assert (kind, namespace, home) == ("ClusterRole", "", same)
    assert [rule for rule in before if rule not in after] == [GETS]
    assert [rule for rule in after if rule not in before] == [GETS_THE_REST, SCALES]


GETS = {
    "apiGroups": ["apps"],
    "resources": ["daemonsets", "deployments", "replicasets", "statefulsets"],
    "verbs": ["get"],
}
GETS_THE_REST = {"apiGroups": ["apps"], "resources": ["daemonsets", "replicasets", "statefulsets"], "verbs": ["get"]}
SCALES = {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["get", "patch"]}


def test_another_action_in_the_signature_may_be_asked_of_admission() -> None:
    def asked(decide: Any) -> set[str]:
        return {admission.asks(rule) for rule in rights.rights_of(made_up.reflex(decide)).rules}

    assert asked(made_up.scales_too) - asked(made_up.evicts) == {"UPDATE deployments.apps"}
    assert asked(made_up.evicts) - asked(made_up.cordons_and_scales) == {"CREATE pods/eviction"}


def test_the_waker_may_read_what_each_find_reads_and_act_in_no_way() -> None:
    computed = rights.rights_of_waker([made_up.reflex(made_up.scales_too)])
    assert computed.acts == ()
    assert Rule("", "pods", "list") in computed.rules
    assert {(rule.resource, rule.verb) for rule in computed.rules if rule.verb not in {"get", "list"}} == {
        ("remediations", "delete"),
        ("tokenreviews", "create"),
    }


def test_what_concerns_targets_can_be_granted_in_some_namespaces_only() -> None:
    cluster, shop, cart, home = roles(made_up.evicts, home="reflexes", namespaces=["shop", "cart"])
    assert [role[:2] for role in (cluster, shop, cart, home)] == [
        ("ClusterRole", ""),
        ("Role", "shop"),
        ("Role", "cart"),
        ("Role", "reflexes"),
    ]
    assert shop[2] == cart[2]
    assert {resource for rule in cluster[2] for resource in rule["resources"]} == {
        "tokenreviews",
        "clusterremediationpolicies",
        "remediationpolicies",
        "remediations",
    }
    assert {verb for rule in cluster[2] for verb in rule["verbs"]} == {"create", "list"}
    assert "pods/eviction" in {resource for rule in shop[2] for resource in rule["resources"]}


def test_every_binding_is_of_its_own_account_and_role() -> None:
    for computed in rights.all_rights():
        bodies = rights.manifests(computed, "reflexes", ["shop"])
        for role, binding in zip(bodies[::2], bodies[1::2], strict=True):
            assert binding["kind"] == role["kind"] + "Binding"
            assert binding["metadata"] == role["metadata"]
            assert (binding["roleRef"]["kind"], binding["roleRef"]["name"]) == (role["kind"], role["metadata"]["name"])
            assert binding["subjects"] == [{"kind": "ServiceAccount", "name": computed.name, "namespace": "reflexes"}]


def test_the_only_objects_that_are_meant_are_named() -> None:
    for computed in rights.all_rights():
        bodies = rights.manifests(computed)
        (home,) = [b for b in bodies if b["kind"] == "Role" and b["metadata"]["name"].endswith(":home")]
        maps = [rule for rule in home["rules"] if "configmaps" in rule["resources"]]
        # A list can't be narrowed to some; SLOs are kept in ConfigMaps with a label.
        named = [rule.get("resourceNames") for rule in maps if rule["verbs"] != ["list"]]
        # chaos-runner has no ledger. The parts of what anomaly-scorer has learnt have numbers in their names.
        wanted = {"chaos-runner": [], "anomaly-scorer": [None]}
        assert named == wanted.get(computed.name, [["kreflex-ledger"]]), computed.name


def test_no_rule_has_a_wildcard() -> None:
    files = [path for path in KNATIVE.glob("*/*.yaml") if "kind: ClusterRole\n" in path.read_text()]
    bodies = [body for path in files for body in yaml.safe_load_all(path.read_text())]
    granted = [rule for body in bodies for rule in body.get("rules") or []]
    assert len(granted) > 10
    assert [rule for rule in granted if "*" in str(rule)] == []


def test_admission_lets_pass_exactly_the_writes_that_rbac_grants() -> None:
    for computed in rights.all_rights():
        (policy, _) = admission.policy_of(computed)
        only = policy["spec"]["validations"][0]["expression"]
        writes = {admission.asks(rule) for rule in computed.rules} - {""}
        assert only == f"variables.asked in {sorted(writes)!r}"
