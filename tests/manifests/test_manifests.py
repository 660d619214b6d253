"""What must hold of the manifests, whichever function they are for; asked of what kustomize makes of them."""

import importlib
import inspect
import os
import re
from pathlib import Path

import pytest
import yaml

from kreflex import kinds
from kreflex.auth import CallerSettings
from kreflex.policy import Policy, PolicySpec, combine
from kreflex.rights import all_rights, manifests, render
from kreflex.settings import CoreSettings, Settings
from lab.filters import passes
from tests.manifests import rendered
from tests.manifests.rendered import FUNCTIONS, INSTALL, KNATIVE, SENDERS, TRIGGERS, WHOLE, Json

every_folder = pytest.mark.parametrize("folder", [*WHOLE, *SENDERS], ids=rendered.name_of)
every_whole = pytest.mark.parametrize("folder", WHOLE, ids=rendered.name_of)
every_function = pytest.mark.parametrize("function", FUNCTIONS)
# What a clock wakes: the waker calls neither itself nor anomaly-scorer, and they act on nothing.
CLOCKED = {"anomaly-scorer", "waker"}
DECIDING = [name for name in FUNCTIONS if name not in CLOCKED]
# Where nothing else ticks for chaos-runner.
SWEEP = "chaos-sweep"
PLAIN, NAMESPACED = KNATIVE / "variants" / "plain", KNATIVE / "variants" / "namespaced"
# Nodes are in no namespace.
NOT_NAMESPACED = {"node-replacer"}
FILES = {
    "admission.yaml",
    "kustomization.yaml",
    "networkpolicy.yaml",
    "rbac.yaml",
    "service.yaml",
    "serviceaccount.yaml",
    "settings.env",
}
GENERATED = {"admission.yaml", "rbac.yaml", "approvals.yaml"}
CLUSTER_WIDE = {
    "ClusterRemediationPolicy",
    "ClusterRole",
    "ClusterRoleBinding",
    "Namespace",
    "ValidatingAdmissionPolicy",
    "ValidatingAdmissionPolicyBinding",
}


def settings_of(function: str) -> type[Settings]:
    """The settings class that a function defines; the waker's needs FUNCTIONS in the environment."""
    module = importlib.import_module(f"functions.{function.replace('-', '_')}.main")
    (found,) = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Settings) and value.__module__ == module.__name__
    ]
    return found


@pytest.fixture(autouse=True)
def waker_can_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FUNCTIONS", "restart-loop-killer=http://127.0.0.1:9/")


def own_settings(function: str) -> dict[str, str]:
    """What the settings.env of a function says."""
    lines = (KNATIVE / function / "settings.env").read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {name: value for name, _, value in pairs}


def environments(folder: Path) -> dict[str, dict[str, str]]:
    """The environment of each workload of a folder."""
    return {name: rendered.environment_of(folder, pod) for name, pod in rendered.pods_of(folder)}


# The folders.


@every_function
def test_a_function_has_a_folder_with_the_same_files_as_all(function: str) -> None:
    assert {file.name for file in (KNATIVE / function).iterdir()} == FILES


@every_whole
def test_every_function_is_installed(folder: Path) -> None:
    assert {name for name, _ in rendered.pods_of(folder)} - {SWEEP} == set(installed(folder))


def installed(folder: Path) -> list[str]:
    """The functions that a folder installs."""
    return [name for name in FUNCTIONS if folder != NAMESPACED or name not in NOT_NAMESPACED]


def deciding(folder: Path) -> list[str]:
    """Those of them that the waker calls."""
    return [name for name in installed(folder) if name in DECIDING]


@pytest.mark.parametrize("function", sorted(NOT_NAMESPACED))
def test_of_what_has_no_namespace_the_namespaced_variant_leaves_nothing_but_settings(function: str) -> None:
    found = [document for document in rendered.render(NAMESPACED) if function in str(document)]
    assert {document["kind"] for document in found} == {"ConfigMap", "Service"}
    (waker,) = [document for document in found if document["kind"] == "Service"]
    assert waker["metadata"]["name"] == "waker"
    assert {document["metadata"]["name"] for document in rendered.of_kind(NAMESPACED, "Namespace")} == {
        "kreflex-system"
    }


@every_folder
def test_labels_are_on_everything_and_written_once(folder: Path) -> None:
    unlabelled = [
        document["metadata"]["name"]
        for document in rendered.render(folder)
        if document["metadata"].get("labels", {}).get("app.kubernetes.io/part-of") != "kreflex"
    ]
    assert [name for name in unlabelled if name not in policies(folder)] == []
    written = [
        file
        for file in folder.glob("*.yaml")
        if file.name not in GENERATED | {"kustomization.yaml"}
        for document in yaml.safe_load_all(file.read_text())
        if any(label.startswith("app.kubernetes.io/") for label in document.get("metadata", {}).get("labels", {}))
    ]
    assert written == []


def policies(folder: Path) -> set[str]:
    """The names of a folder's policies: these are the user's own, and carry no label of ours."""
    return {document["metadata"]["name"] for document in rendered.of_kind(folder, "ClusterRemediationPolicy")}


@every_folder
def test_what_has_a_namespace_names_it_and_nothing_else_does(folder: Path) -> None:
    wrong = [
        (document["kind"], document["metadata"]["name"])
        for document in rendered.render(folder)
        if ("namespace" in document["metadata"]) == (document["kind"] in CLUSTER_WIDE)
    ]
    assert wrong == []


@every_folder
def test_no_role_has_a_wildcard(folder: Path) -> None:
    rules = [rule for role in rendered.of_kind(folder, "Role", "ClusterRole") for rule in role["rules"]]
    assert [rule for rule in rules if "*" in str(rule)] == []


@every_folder
def test_all_run_the_one_image_which_is_set_in_one_place(folder: Path) -> None:
    (image,) = yaml.safe_load((KNATIVE / "image" / "kustomization.yaml").read_text())["images"]
    images = {container["image"] for _, pod in rendered.pods_of(folder) for container in pod["containers"]}
    assert images <= {f"{image['newName']}@{image['digest']}"}


# Pods.


@every_folder
def test_pods_are_bounded_and_can_not_change_their_image(folder: Path) -> None:
    for _, pod in rendered.pods_of(folder):
        (container,) = pod["containers"]
        assert set(container["resources"]["limits"]) == {"cpu", "memory"}
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert pod["serviceAccountName"] in {
            account["metadata"]["name"] for account in rendered.of_kind(folder, "ServiceAccount")
        }


@every_folder
def test_a_network_policy_selects_each_pod(folder: Path) -> None:
    chosen = [document["spec"]["podSelector"]["matchLabels"] for document in rendered.of_kind(folder, "NetworkPolicy")]
    for document in rendered.of_kind(folder, "ksvc", "Deployment", "CronJob"):
        spec = document["spec"]
        template = spec["jobTemplate"]["spec"]["template"] if document["kind"] == "CronJob" else spec["template"]
        assert [labels for labels in chosen if labels.items() <= template["metadata"]["labels"].items()]


@every_folder
def test_a_disruption_budget_selects_pods(folder: Path) -> None:
    """One without a selector is accepted, and protects none."""
    templates = [document["spec"]["template"]["metadata"] for document in rendered.of_kind(folder, "Deployment")]
    for document in rendered.of_kind(folder, "PodDisruptionBudget"):
        chosen = document["spec"]["selector"]["matchLabels"]
        assert [meta for meta in templates if chosen and chosen.items() <= meta["labels"].items()]


@pytest.mark.parametrize("function", DECIDING)
def test_a_request_may_end_before_knative_gives_it_up_or_kills_the_pod(function: str) -> None:
    pods = dict(rendered.pods_of(INSTALL))
    # Knative's grace for a pod is its timeout: 30 seconds of its sidecar's, then 28 of ours.
    assert pods[function]["timeoutSeconds"] >= max(CoreSettings().time_budget.total_seconds(), 30 + 28)


@every_function
def test_knative_s_webhook_would_take_it(function: str) -> None:
    """What its definitions allow, and pkg/apis/serving/k8s_validation.go does not: the rules near to what we use."""
    pod = dict(rendered.pods_of(INSTALL))[function]
    (container,) = pod["containers"]
    probe = container["readinessProbe"]
    assert "periodSeconds" in probe or not {"timeoutSeconds", "failureThreshold"} & set(probe)
    # What needs a feature flag otherwise.
    allowed = {
        "containerConcurrency",
        "containers",
        "enableServiceLinks",
        "serviceAccountName",
        "timeoutSeconds",
        "volumes",
    }
    assert set(pod) <= allowed
    assert "lifecycle" not in container
    # Of what may be written, only this needs no flag: knative/serving, pkg/apis/config/features.go.
    written = {volume["name"] for volume in pod["volumes"] if "emptyDir" in volume}
    assert all(mount.get("readOnly") or mount["name"] in written for mount in container["volumeMounts"])
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert all({"secret", "projected", "configMap", "emptyDir"} & set(volume) for volume in pod["volumes"])


@every_function
def test_the_plain_variant_runs_the_same_container(function: str) -> None:
    served, plain = (dict(rendered.pods_of(folder))[function] for folder in (INSTALL, PLAIN))
    assert comparable(plain) == comparable(served)


def test_where_nothing_else_ticks_a_cronjob_has_chaos_runner_look_for_what_is_left() -> None:
    pods = dict(rendered.pods_of(PLAIN))
    assert comparable(pods[SWEEP]) == comparable(pods["chaos-runner"])
    assert pods[SWEEP]["containers"][0]["command"][-2:] == ["kreflex.once", "chaos-runner"]
    networks = {one["metadata"]["name"]: one["spec"] for one in rendered.of_kind(PLAIN, "NetworkPolicy")}
    assert networks[SWEEP]["egress"] == networks["chaos-runner"]["egress"]
    assert "ingress" not in networks[SWEEP]


def test_no_service_sends_requests_to_what_a_clock_starts() -> None:
    jobs = [one["spec"]["jobTemplate"]["spec"]["template"] for one in rendered.of_kind(PLAIN, "CronJob")]
    chosen = [one["spec"]["selector"] for one in rendered.of_kind(PLAIN, "Service") if one["spec"].get("selector")]
    assert chosen
    labels = [job["metadata"]["labels"] for job in jobs]
    assert [one for one in labels if any(each.items() <= one.items() for each in chosen)] == []


def comparable(pod: Json) -> Json:
    """A pod without what differs on purpose: how it is served, and whether it is served at all."""
    (container,) = pod["containers"]
    served = {"args", "command", "livenessProbe", "ports", "readinessProbe"}
    same = {key: value for key, value in container.items() if key not in served}
    return {"container": same, "volumes": pod["volumes"], "account": pod["serviceAccountName"]}


# Settings.


@every_whole
def test_every_variable_is_a_setting(folder: Path) -> None:
    classes: list[type[Settings]] = [CoreSettings, CallerSettings, *(settings_of(function) for function in FUNCTIONS)]
    known = {name.upper() for settings in classes for name in settings.model_fields}
    given = {name for environment in environments(folder).values() for name in environment}
    assert given - known == set()


@every_whole
def test_every_function_can_read_what_it_is_given(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "token").write_text("a-value-that-is-long-enough")
    for function, environment in environments(folder).items():
        given = environment | {"CALLERS_SECRETS": str(tmp_path)} if "CALLERS_SECRETS" in environment else environment
        of = "chaos-runner" if function == SWEEP else function
        for settings in (CoreSettings, CallerSettings, settings_of(of)):
            assert isinstance(settings.from_environment(given), settings)


@every_whole
def test_the_waker_asks_each_function_with_its_own_thresholds(folder: Path) -> None:
    waker = environments(folder)["waker"]
    for function in deciding(folder):
        names = {name.upper() for name in settings_of(function).model_fields}
        assert {name: waker.get(name) for name in names} == {name: own_settings(function).get(name) for name in names}


def test_no_two_functions_call_two_things_by_one_name() -> None:
    """The waker has the settings of all in one environment."""
    fields = [one for function in DECIDING for one in settings_of(function).model_fields.items()]
    things = {(name, field.description, field.default) for name, field in fields}
    assert len(things) == len({name for name, *_ in things})


@every_whole
def test_the_waker_calls_each_function_where_it_is(folder: Path) -> None:
    urls = settings_of("waker").from_environment(environments(folder)["waker"]).urls  # type: ignore[attr-defined]
    assert urls == {name: f"http://{name}.kreflex-system.svc.cluster.local/" for name in deciding(folder)}
    served = {document["metadata"]["name"] for document in rendered.of_kind(folder, "ksvc", "Service")}
    assert set(urls) <= served


@every_whole
def test_the_waker_shows_a_token_that_the_functions_accept(folder: Path) -> None:
    pod, environment = dict(rendered.pods_of(folder))["waker"], environments(folder)["waker"]
    (mount,) = [one for one in pod["containers"][0]["volumeMounts"] if one["name"] == "token"]
    (volume,) = [one for one in pod["volumes"] if one["name"] == "token"]
    (token,) = [source["serviceAccountToken"] for source in volume["projected"]["sources"]]
    assert environment["TOKEN_FILE"] == f"{mount['mountPath']}/{token['path']}"
    assert token["audience"] == environment["CALLERS_AUDIENCE"]
    for function in deciding(folder):
        assert "kreflex-system/waker" in environments(folder)[function]["CALLERS_ACCOUNTS"].split(",")


# Some namespaces only.


def test_the_namespaced_roles_are_those_that_are_computed() -> None:
    (names,) = {environment["NAMESPACES"] for environment in environments(NAMESPACED).values()}
    written = {file.parent.name: file.read_text() for file in NAMESPACED.glob("*/rbac.yaml")}
    computed = {one.name: render(manifests(one, namespaces=names.split(","))) for one in all_rights(namespaced=True)}
    assert set(computed) == set(installed(NAMESPACED))
    assert written == computed, "run `make schemas`"


# Policies.


def test_nothing_is_touched_by_what_is_installed_at_first() -> None:
    for function in DECIDING:
        found = [
            document["spec"]
            for document in rendered.of_kind(INSTALL, "ClusterRemediationPolicy")
            if function in document["spec"]["functions"]
        ]
        assert [spec["mode"] for spec in found] == ["DryRun"]


def test_the_rehearsal_holds_whatever_other_policies_say() -> None:
    (body,) = yaml.safe_load_all((KNATIVE / "variants" / "dry-run" / "policy.yaml").read_text())
    rehearsal = Policy("ClusterRemediationPolicy", "", "dry-run", "1", 1, PolicySpec.model_validate(body["spec"]))
    other = Policy("ClusterRemediationPolicy", "", "auto", "2", 1, PolicySpec(mode="Auto", owners=("*",)))
    assert all(rehearsal.selects(function, "shop", {}) for function in DECIDING)
    effective = combine((rehearsal, other))
    assert (effective.mode, effective.allows_owner("DaemonSet")) == ("DryRun", True)


def test_the_documented_policy_for_nodes_is_one() -> None:
    page = (rendered.ROOT / "docs" / "functions" / "node-replacer.md").read_text()
    found = re.search(r"<!-- example: nodes -->\n```yaml\n(.*?)```", page, re.DOTALL)
    assert found
    spec = PolicySpec.model_validate(yaml.safe_load(found[1])["spec"])
    assert spec.nodes is not None
    assert (spec.owners, spec.nodes.max_unhealthy) == (("Node",), "20%")


@every_function
def test_each_setting_of_a_function_is_explained(function: str) -> None:
    page = (rendered.ROOT / "docs" / "functions" / f"{function}.md").read_text()
    names = [name.upper() for name in settings_of(function).model_fields]
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_each_setting_of_the_core_is_explained() -> None:
    page = (rendered.ROOT / "docs" / "install.md").read_text()
    assert [name for name in CoreSettings.model_fields if f"`{name.upper()}`" not in page] == []


# A folder of the user's own.


def test_the_documented_folder_of_ones_own_sets_image_and_settings(tmp_path: Path) -> None:
    text = (rendered.ROOT / "docs" / "install.md").read_text()
    found = re.search(r"<!-- example: overlay -->\n```yaml\n(.*?)```", text, re.DOTALL)
    assert found
    install = os.path.relpath(INSTALL, tmp_path.resolve())
    (tmp_path / "kustomization.yaml").write_text(found[1].replace("kreflex/knative/install", install))
    ((image, url),) = {
        (pod["containers"][0]["image"], rendered.environment_of(tmp_path, pod)["PROMETHEUS_URL"])
        for _, pod in rendered.pods_of(tmp_path)
    }
    assert (image, url) == ("REGISTRY/kreflex@sha256:DIGEST", "http://prometheus.observability:9090")


# The Broker's side.


def oidc_account(document: Json) -> str:
    """The account that Knative's OIDC makes for an object: its name and a suffix, hashed if that is too long.

    knative.dev/eventing pkg/auth/serviceaccount.go, knative.dev/pkg kmeta.ChildName.
    """
    group = document["apiVersion"].split("/")[0]
    suffix = f"-oidc-{group}-{document['kind']}"
    name = document["metadata"]["name"]
    assert len(name) + len(suffix) <= 63, f"{name} is too long: its account would have a hash for a name"
    return f"{document['metadata']['namespace']}/{name}{suffix}".lower()


BROKERED = [TRIGGERS / "knative-eventing", TRIGGERS / "knative-eventing-plain"]


@pytest.mark.parametrize("folder", BROKERED, ids=rendered.name_of)
def test_every_trigger_has_a_filter_retries_and_a_dead_letter_sink(folder: Path) -> None:
    (broker,) = rendered.of_kind(folder, "Broker")
    services = {document["metadata"]["name"] for document in rendered.of_kind(folder, "Service")}
    triggers = rendered.of_kind(folder, "Trigger")
    # Without Knative Serving anomaly-scorer is a CronJob, which nobody can call.
    listening = {"anomaly-scorer"} if folder == BROKERED[0] else set()
    assert {trigger["metadata"]["name"] for trigger in triggers} == {*DECIDING, *listening}
    for trigger in triggers:
        spec = trigger["spec"]
        assert (spec["broker"], bool(spec["filters"])) == (broker["metadata"]["name"], True)
        assert spec["delivery"] == broker["spec"]["delivery"]
        assert spec["delivery"]["deadLetterSink"]["ref"]["name"] in services
        assert (
            spec["subscriber"]["audience"]
            == environments(INSTALL)[spec["subscriber"]["ref"]["name"]]["CALLERS_AUDIENCE"]
        )


@pytest.mark.parametrize(("folder", "whole"), [(BROKERED[0], INSTALL), (BROKERED[1], PLAIN)], ids=["knative", "plain"])
def test_what_knative_calls_exists_and_lets_its_accounts_in(folder: Path, whole: Path) -> None:
    served = {(document["apiVersion"], document["metadata"]["name"]) for document in rendered.render(whole)}
    for document in rendered.of_kind(folder, "Trigger", "PingSource"):
        called = document["spec"].get("subscriber") or document["spec"]["sink"]
        assert (called["ref"]["apiVersion"], called["ref"]["name"]) in served
        assert oidc_account(document) in environments(whole)[called["ref"]["name"]]["CALLERS_ACCOUNTS"].split(",")


SOURCES = sorted(folder for folder in SENDERS if rendered.of_kind(folder, "ApiServerSource"))
PLURALS = {kind: plural for (_, kind), plural in (*kinds.RELEASED.items(), *kinds.SHARING.items())}


@pytest.mark.parametrize("folder", SOURCES, ids=rendered.name_of)
def test_a_source_may_watch_what_it_tells_of(folder: Path) -> None:
    (role,) = rendered.of_kind(folder, "ClusterRole")
    granted = {
        (group, resource, verb)
        for rule in role["rules"]
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
    wanted = {
        (one["apiVersion"].rpartition("/")[0], PLURALS.get(one["kind"], f"{one['kind'].lower()}s"), verb)
        for source in rendered.of_kind(folder, "ApiServerSource")
        for one in source["spec"]["resources"]
        for verb in ("get", "list", "watch")
    }
    assert granted == wanted


def watched(folder: Path) -> set[tuple[str, str]]:
    """The versions and kinds that the sources of a folder watch."""
    sources = rendered.of_kind(folder, "ApiServerSource")
    return {(one["apiVersion"], one["kind"]) for source in sources for one in source["spec"]["resources"]}


def test_what_is_no_part_of_kubernetes_has_a_source_of_its_own() -> None:
    """Knative's adapter ends when it is asked for a group that is not served, with all other kinds it watches.

    knative.dev/eventing pkg/adapter/apiserver/adapter.go, collectResourceMatches.
    """
    foreign = ("argoproj.io", "flagger.app", "gateway.networking.k8s.io", "networking.istio.io")
    apart = [folder for folder in SOURCES if any(version.startswith(foreign) for version, _ in watched(folder))]
    assert [len(watched(folder)) for folder in apart] == [1] * len(foreign)


def test_all_kinds_that_a_function_may_be_told_of_have_a_source() -> None:
    found = {one for folder in SOURCES for one in watched(folder)}
    assert {(version, kind) for kind, version in kinds.TOLD.items()} <= found


UPDATE = "dev.knative.apiserver.resource.update"
VERDICT = "dev.kreflex.remediation.ineffective.v1"
OURS = "kreflex.dev/functions/"


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({"type": UPDATE, "kind": "Pod", "name": "cart-1"}, True),
        ({"type": UPDATE, "kind": "Remediation", "name": "restart-loop-killer-cart-1-0123abcd"}, True),
        ({"type": "dev.kreflex.anomaly.detected.v1", "source": "anywhere"}, True),
        ({"type": "dev.kreflex.anomaly.resolved.v1", "source": "anywhere"}, False),
        ({"type": UPDATE, "kind": "Remediation", "name": "rollback-cart-0123abcd"}, False),
        ({"type": "dev.knative.apiserver.resource.add", "kind": "Pod", "name": "cart-1"}, False),
        ({"type": "dev.kreflex.remediation.applied.v1", "name": "restart-loop-killer-x"}, False),
        ({"type": "dev.knative.sources.ping"}, False),
    ],
)
def test_the_broker_tells_restart_loop_killer_what_concerns_it(attributes: dict[str, str], wanted: bool) -> None:
    assert told("restart-loop-killer", attributes) is wanted


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({"type": UPDATE, "kind": "Node", "name": "worker-1"}, True),
        ({"type": "dev.knative.apiserver.resource.delete", "kind": "Node", "name": "worker-1"}, True),
        ({"type": UPDATE, "kind": "Remediation", "name": "node-replacer-worker-1-0123abcd"}, True),
        ({"type": "dev.kreflex.node.replacement.answered.v1"}, True),
        ({"type": "dev.knative.apiserver.resource.add", "kind": "Node", "name": "worker-1"}, False),
        ({"type": UPDATE, "kind": "Pod", "name": "cart-1"}, False),
        ({"type": "dev.knative.apiserver.resource.delete", "kind": "Pod", "name": "cart-1"}, False),
        ({"type": UPDATE, "kind": "Remediation", "name": "restart-loop-killer-cart-1-0123abcd"}, False),
        ({"type": "dev.kreflex.remediation.applied.v1", "name": "node-replacer-x"}, False),
    ],
)
def test_the_broker_tells_node_replacer_what_concerns_it(attributes: dict[str, str], wanted: bool) -> None:
    assert told("node-replacer", attributes) is wanted
    assert not told("restart-loop-killer", attributes) or not wanted


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({"type": UPDATE, "kind": "Pod", "name": "cart-1"}, True),
        ({"type": UPDATE, "kind": "Deployment", "name": "cart"}, True),
        ({"type": UPDATE, "kind": "StatefulSet", "name": "db"}, True),
        ({"type": UPDATE, "kind": "DaemonSet", "name": "agent"}, True),
        ({"type": UPDATE, "kind": "Rollout", "name": "cart"}, True),
        ({"type": UPDATE, "kind": "Remediation", "name": "rollback-cart-0123abcd"}, True),
        ({"type": UPDATE, "kind": "Remediation", "name": "restart-loop-killer-cart-0123abcd"}, True),
        ({"type": VERDICT, "source": f"{OURS}restart-loop-killer"}, True),
        ({"type": "dev.kreflex.remediation.changed.v1", "source": f"{OURS}canary-aborter"}, True),
        ({"type": "dev.kreflex.anomaly.detected.v1", "source": "anywhere"}, True),
        ({"type": "dev.kreflex.experiment.finished.v1", "source": "anywhere"}, True),
        ({"type": VERDICT, "source": f"{OURS}rollback"}, False),
        ({"type": "dev.kreflex.remediation.recovered.v1", "source": f"{OURS}restart-loop-killer"}, False),
        ({"type": "dev.knative.apiserver.resource.add", "kind": "Deployment", "name": "cart"}, False),
        ({"type": UPDATE, "kind": "Ingress", "name": "cart"}, False),
    ],
)
def test_the_broker_tells_rollback_what_concerns_it(attributes: dict[str, str], wanted: bool) -> None:
    assert told("rollback", attributes) is wanted


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({"type": UPDATE, "kind": "Rollout", "name": "cart"}, True),
        ({"type": UPDATE, "kind": "Ingress", "name": "cart"}, True),
        ({"type": UPDATE, "kind": "HTTPRoute", "name": "cart"}, True),
        ({"type": UPDATE, "kind": "VirtualService", "name": "cart"}, True),
        ({"type": UPDATE, "kind": "Canary", "name": "cart"}, True),
        ({"type": UPDATE, "kind": "Deployment", "name": "cart-canary"}, True),
        ({"type": UPDATE, "kind": "Remediation", "name": "canary-aborter-cart-0123abcd"}, True),
        ({"type": "dev.kreflex.anomaly.detected.v1"}, True),
        ({"type": "dev.kreflex.experiment.finished.v1"}, True),
        ({"type": UPDATE, "kind": "Deployment", "name": "cart"}, False),
        ({"type": UPDATE, "kind": "Remediation", "name": "rollback-cart-0123abcd"}, True),
        ({"type": VERDICT, "source": f"{OURS}rollback"}, True),
        ({"type": VERDICT, "source": f"{OURS}canary-aborter"}, False),
        ({"type": UPDATE, "kind": "Pod", "name": "cart-canary-1"}, False),
    ],
)
def test_the_broker_tells_canary_aborter_what_concerns_it(attributes: dict[str, str], wanted: bool) -> None:
    assert told("canary-aborter", attributes) is wanted


@pytest.mark.parametrize(
    ("attributes", "wanted"),
    [
        ({"type": "dev.kreflex.anomaly.feedback.v1"}, True),
        ({"type": "dev.kreflex.anomaly.detected.v1"}, False),
        ({"type": UPDATE, "kind": "Pod", "name": "cart-1"}, False),
    ],
)
def test_the_broker_tells_anomaly_scorer_what_concerns_it(attributes: dict[str, str], wanted: bool) -> None:
    assert told("anomaly-scorer", attributes) is wanted


@pytest.mark.parametrize("folder", BROKERED, ids=rendered.name_of)
def test_the_broker_hears_of_anomalies(folder: Path) -> None:
    (broker,) = rendered.of_kind(folder, "Broker")
    (binding,) = rendered.of_kind(folder, "SinkBinding")
    assert binding["spec"]["sink"]["ref"]["name"] == broker["metadata"]["name"]
    whole = INSTALL if folder == BROKERED[0] else PLAIN
    chosen = binding["spec"]["subject"]
    bound = [document for document in rendered.render(whole) if binds(chosen, document)]
    assert [document["metadata"]["name"] for document in bound] == ["anomaly-scorer"]


def binds(subject: Json, document: Json) -> bool:
    """Whether a SinkBinding is about a workload, or about the Jobs that one makes."""
    if document["kind"] == "CronJob" and subject["kind"] == "Job":
        labels = document["spec"]["jobTemplate"]["metadata"]["labels"]
        return bool(subject["selector"]["matchLabels"].items() <= labels.items())
    same = (subject["apiVersion"], subject["kind"]) == (document["apiVersion"], document["kind"])
    return same and subject.get("name") == document["metadata"]["name"]


def told(function: str, attributes: dict[str, str]) -> bool:
    """Whether the Trigger of a function lets an event with these attributes pass."""
    triggers = rendered.of_kind(TRIGGERS / "knative-eventing", "Trigger")
    (trigger,) = [document for document in triggers if document["metadata"]["name"] == function]
    return passes({"all": trigger["spec"]["filters"]}, attributes)
