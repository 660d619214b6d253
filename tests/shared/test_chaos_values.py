"""The values of chaos: amounts, changes, probes, score and verdict, without a cluster."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from kreflex.anomaly import states as excluded
from kreflex.anomaly.learning import Exclusion
from kreflex.chaos import changes, gates
from kreflex.chaos.changes import ABSENT, Change
from kreflex.chaos.experiments import Experiment, Healed, Injection, Level, Line, Probed, Turn, read_experiment
from kreflex.chaos.probes import Seen, noted, reachable
from kreflex.chaos.report import day_score, html, markdown
from kreflex.chaos.score import score, shortfalls, success
from kreflex.chaos.service import due
from kreflex.chaos.targets import choose, count, forbidden
from kreflex.records import Target
from tests.anomalies import a_watch
from tests.values import CannedApi

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
DEPLOYMENT: dict[str, Any] = {
    "metadata": {"name": "cart"},
    "spec": {
        "replicas": 3,
        "template": {
            "spec": {
                "containers": [
                    {"name": "side", "image": "side:1"},
                    {"name": "app", "image": "shop:1", "env": [{"name": "A", "value": "1"}]},
                ]
            }
        },
    },
}
APP = ("spec", "template", "spec", "containers", "name=app")


def experiment(status: dict[str, Any] | None = None, **spec: Any) -> Experiment:
    meta = {"namespace": "shop", "name": "storm", "uid": "u-1", "resourceVersion": "1"}
    body = {"metadata": {**meta, "creationTimestamp": "2026-11-22T12:00:00Z"}}
    return read_experiment({**body, "spec": {"fault": {"kind": "PodKill"}, **spec}, "status": status or {}})


@pytest.mark.parametrize(
    ("amount", "of", "wanted"),
    [(1, 5, 1), (9, 5, 5), ("50%", 1, 0), ("50%", 3, 1), ("99%", 10, 9), ("100%", 3, 3), ("0%", 9, 0), (1, 0, 0)],
)
def test_percent_of_an_amount_rounds_down(amount: int | str, of: int, wanted: int) -> None:
    assert count(amount, of) == wanted


def test_chooses_the_same_for_the_same_run_and_nothing_twice() -> None:
    pods = [{"metadata": {"uid": str(number)}} for number in range(9)]
    first = choose(experiment(amount=3), pods, (), 9)
    again = choose(experiment(amount=3), pods, (), 9)
    hit = [pod["metadata"]["uid"] for pod in first.chosen]
    later = choose(experiment(amount=9), pods, hit, 9)
    assert first == again
    assert len(set(hit)) == 3
    assert {pod["metadata"]["uid"] for pod in later.chosen} == {pod["metadata"]["uid"] for pod in pods} - set(hit)


def test_says_what_is_missing_where_nothing_may_be_hit() -> None:
    told = choose(experiment(), [], (), 0)
    assert (
        told.because == "no Pod that is selected has the label kreflex.dev/chaos: allowed, itself or by its namespace"
    )


def test_a_change_finds_its_container_wherever_it_stands_now() -> None:
    change = Change((*APP, "image"), "shop:1", "shop:2")
    assert changes.injecting(DEPLOYMENT, [change]) == [
        {"op": "replace", "path": "/spec/template/spec/containers/1/image", "value": "shop:2"}
    ]


def test_takes_back_what_is_as_it_was_made_and_leaves_what_others_have_set() -> None:
    mine, other = Change((*APP, "image"), "shop:0", "shop:1"), Change(("spec", "replicas"), 5, 0)
    assert changes.reverting(DEPLOYMENT, [mine, other]) == (
        [{"op": "replace", "path": "/spec/template/spec/containers/1/image", "value": "shop:0"}],
        ["spec.replicas"],
    )


def test_what_was_not_there_is_removed_again() -> None:
    added = Change((*APP, "env", "name=A"), ABSENT, {"name": "A", "value": "1"})
    assert changes.reverting(DEPLOYMENT, [added]) == (
        [{"op": "remove", "path": "/spec/template/spec/containers/1/env/0"}],
        [],
    )


def test_changes_are_read_as_they_were_written() -> None:
    told = (
        Change(("a", "b~/c"), ABSENT, {"x": [1]}),
        Change(("h",), "someone", "us", back=""),
        Change(("n",), None, 1),
    )
    assert changes.read(changes.write(told)) == told


def test_names_what_is_still_as_it_was_made() -> None:
    assert changes.left(DEPLOYMENT, [Change(("spec", "replicas"), 1, 3), Change((*APP, "image"), "a", "b")]) == [
        "spec.replicas"
    ]


@pytest.mark.parametrize(
    ("host", "allowed"),
    [
        ("cart.shop.svc", True),
        ("cart.shop.svc.cluster.local", True),
        ("cart.other.svc", False),
        ("cart.shop.svc.evil.example", False),
        ("169.254.169.254", False),
        ("metrics.example", True),
        ("", False),
    ],
)
def test_a_probe_reaches_services_of_its_namespace_and_hosts_that_are_named(host: str, allowed: bool) -> None:
    assert reachable(host, "shop", frozenset({"metrics.example"})) is allowed


def test_a_probe_remembers_when_it_changed() -> None:
    first = noted(Probed(name="a"), Seen(ok=False, said="no"), NOW)
    assert noted(first, Seen(ok=False, said="no"), NOW + timedelta(seconds=1)) == Probed(
        name="a",
        failed=2,
        in_a_row=2,
        last=NOW + timedelta(seconds=1),
        turns=(Turn(at=NOW, ok=False, said="no"),),
    )


def test_the_score_is_the_mean_of_the_probes_by_their_weight() -> None:
    good = Probed(name="a", weight=30, before=True, after=True, passed=8, failed=0)
    bad = Probed(name="b", weight=10, before=True, after=False, passed=4, failed=4)
    assert (success(good), success(bad), score([good, bad])) == (100.0, 50.0, 87.5)


def test_without_probes_there_is_no_score() -> None:
    assert score([]) is None


def test_an_experiment_that_expects_a_remediation_fails_without_one() -> None:
    spec = experiment(expects={"function": "restart-loop-killer"}, ttl="10m").wants
    status = over().status.model_copy(update={"remediation": None, "probes": ()})
    healed = Healed(record="shop/r", function="restart-loop-killer", verdict="Recovered")
    useless = healed.model_copy(update={"verdict": "Ineffective"})
    assert shortfalls(spec, status) == ["restart-loop-killer did nothing about it"]
    assert shortfalls(spec, status.model_copy(update={"remediation": useless})) == ["restart-loop-killer: Ineffective"]
    assert shortfalls(spec, status.model_copy(update={"remediation": healed})) == []


def test_an_experiment_that_has_hit_nothing_has_not_passed() -> None:
    assert shortfalls(experiment().wants, experiment().status) == ["nothing was hit"]


def test_tells_all_faults_of_a_spec_at_once() -> None:
    told = experiment(fault={"kind": "Image"}, ttl="1m", duration="2m", interval="5s").broken
    assert told == (
        "fault.image is needed by Image; ttl must be longer than duration and expects.within; interval is for PodKill"
    )


@pytest.mark.parametrize(
    ("fault", "targets", "told"),
    [
        ("PodKill", {"kind": "Rollout"}, "targets.kind Rollout is for Environment, Image, Probe, ResourceSqueeze,"),
        ("LeaderLoss", {"kind": "StatefulSet"}, "targets.kind StatefulSet is for Environment, Image,"),
        ("ScaleToZero", {"canary": True}, "targets.canary is for NetworkIsolation, PodImage, PodKill, not for"),
        ("NodeDrain", {"canary": True}, "targets.canary is for NetworkIsolation, PodImage, PodKill, not for NodeDrain"),
    ],
)
def test_what_would_be_passed_over_is_refused(fault: str, targets: dict[str, Any], told: str) -> None:
    assert experiment(fault={"kind": fault}, targets=targets).broken.startswith(told)


async def test_what_belongs_to_everybody_is_hit_from_home_only() -> None:
    reader = CannedApi().world().cluster
    for fault, what in (("Cordon", "node"), ("NodeDrain", "node"), ("LeaderLoss", "leader of the control plane")):
        told = f"a {what} belongs to everybody: an experiment on one is made in namespace kreflex-system"
        assert await forbidden(experiment(fault={"kind": fault}), "kreflex-system", reader) == told
        assert await forbidden(experiment(fault={"kind": fault}), "shop", reader) is None
    assert await forbidden(experiment(), "shop", reader) == "namespace shop is Kreflex' own"


def over() -> Experiment:
    """An experiment with all that a report shows."""
    pod = Target(api_version="v1", kind="Pod", namespace="shop", name="cart-<1>", uid="p")
    injection = Injection(
        fault="PodKill",
        target=pod,
        state="Reverted",
        intended_at=NOW,
        injected_at=NOW + timedelta(seconds=1),
        revert_by=NOW + timedelta(minutes=5),
        reverted_at=NOW + timedelta(seconds=30),
    )
    probe = Probed(name="pays", before=True, after=True, passed=3, failed=1, turns=(Turn(at=NOW, ok=True),))
    status = experiment().status.model_copy(
        update={
            "phase": "Done",
            "verdict": "Passed",
            "score": 83.3,
            "started_at": NOW,
            "finished_at": NOW + timedelta(seconds=40),
            "injected": (injection,),
            "probes": (probe,),
            "remediation": Healed(record="shop/r", function="f", verdict="Recovered", opened_after=1, mttr=12.5),
            "timeline": (Line(at=NOW, word="fault", text="a | b"),),
            "reason": "all is as before",
        }
    )
    whole = experiment(title="Kill <b>", expects={"function": "f"}, withoutBudget="nobody has one here")
    return Experiment(**{**whole.__dict__, "status": status})


def test_a_report_is_a_table_and_a_time_line() -> None:
    text = markdown([over()])
    assert "1 of 1 experiments passed. The score is 83.3 %." in text
    assert "| Kill <b> | PodKill of cart-<1> | Passed | 83.3 % | f: Recovered | 12.5 s | 0 | all is as before |" in text
    assert "- `     0.0 s` fault: a | b" in text
    assert "No error budget was asked: nobody has one here." in text


def test_a_page_shows_what_others_wrote_as_text_only() -> None:
    page = html([over()])
    assert "<b>Kill" not in page
    assert "Kill &lt;b&gt;" in page
    assert page.count("<svg") == 1
    assert "http" not in page.replace("http-equiv", "")


def test_a_budget_that_never_changed_is_a_line_all_the_same() -> None:
    one = over()
    status = one.status.model_copy(update={"budget": (Level(at=NOW, left=1.0),)})
    page = html([Experiment(**{**one.__dict__, "status": status})])
    points = page.partition('<polyline points="')[2].partition('"')[0].split()
    assert len({point.partition(",")[0] for point in points}) == 2


def test_the_score_of_a_day_leaves_out_what_has_none() -> None:
    assert day_score([over(), experiment()]) == 83.3


def bodies(*given: dict[str, Any], plural: str = "experiments") -> dict[str, dict[str, Any]]:
    """Objects of namespace shop by their paths."""
    path = f"/apis/kreflex.dev/v1alpha1/namespaces/shop/{plural}"
    return {f"{path}/{body['metadata']['name']}": body for body in given}


def body(name: str, **status: Any) -> dict[str, Any]:
    meta = {"namespace": "shop", "name": name, "uid": name, "resourceVersion": "1"}
    return {
        "metadata": {**meta, "creationTimestamp": "2026-11-22T12:00:00Z"},
        "spec": {"fault": {"kind": "PodKill"}},
        "status": status,
    }


async def test_an_experiment_that_nobody_can_read_does_not_hide_the_others() -> None:
    world = CannedApi(bodies(body("broken", phase="Nonsense"), body("due"))).world()
    assert [one async for one in due(world)] == [{"namespace": "shop", "name": "due"}]


async def test_nothing_begins_beside_a_remediation_that_nobody_can_read() -> None:
    policy = {
        "metadata": {"name": "chaos", "uid": "p", "resourceVersion": "1"},
        "spec": {"mode": "Auto", "functions": ["chaos-runner"]},
    }
    objects = {
        **bodies(body("odd", phase="Nonsense"), plural="remediations"),
        "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies/chaos": policy,
        "/api/v1/namespaces/shop": {"metadata": {"name": "shop", "labels": {}}},
    }
    stop = await gates.may_begin(experiment(), CannedApi(objects).world())
    assert stop is not None
    assert (stop.guard, stop.because) == ("Unsteady", "Remediation odd can't be read: mend or delete it")


def variables(*names: str) -> dict[str, Any]:
    containers = [{"name": "app", "env": [{"name": name, "value": "1"} for name in names]}]
    return {"spec": {"template": {"spec": {"containers": containers}}}}


def taken_back(body: dict[str, Any], *given: Change) -> tuple[list[str], list[str]]:
    """What is removed of a body, and what is somebody else's."""
    steps, foreign = changes.reverting(body, given)
    return [step["path"].removeprefix("/spec/template/spec/containers/0/env") for step in steps], foreign


def test_of_a_list_that_somebody_has_put_in_another_order_only_ours_is_removed() -> None:
    ours = [Change((*APP, "env", f"name={name}"), ABSENT, {"name": name, "value": "1"}) for name in "AB"]
    # After B is gone, A is the first.
    assert taken_back(variables("B", "A", "theirs"), *ours) == (["/0", "/0"], [])


def test_of_what_was_made_of_nothing_only_ours_is_removed_where_somebody_has_added_to_it() -> None:
    ours = Change((*APP, "env"), ABSENT, [{"name": "A", "value": "1"}])
    assert taken_back(variables("A"), ours) == ([""], [])
    assert taken_back(variables("theirs", "A"), ours) == (["/1"], [])
    assert changes.left(variables("theirs", "A"), [ours]) == [f"{'.'.join(APP)}.env.name=A"]
    labels = Change(("metadata", "labels"), ABSENT, {"cut": "off"})
    pod = {"metadata": {"labels": {"cut": "off", "theirs": "x"}}}
    assert changes.reverting(pod, [labels]) == ([{"op": "remove", "path": "/metadata/labels/cut"}], [])


def test_half_of_a_probe_is_not_taken_back() -> None:
    made = Change(("probe",), ABSENT, {"tcpSocket": {"port": 1}, "periodSeconds": 1})
    assert changes.reverting({"probe": {"tcpSocket": {"port": 1}, "periodSeconds": 5}}, [made]) == ([], ["probe"])


RUNS = [("2026-11-21T10:00:00Z", "2026-11-21T10:05:00Z"), ("2026-11-22T10:00:00Z", "2026-11-22T10:05:00Z")]


def ran(kind: str = "PodKill", past: dict[str, Any] | None = None, *injected: dict[str, Any]) -> dict[str, Any]:
    """An experiment that ran yesterday and today."""
    (since, until), (started, finished) = RUNS
    told = body("ran", phase="Done", startedAt=started, finishedAt=finished, injected=[*injected])
    told["status"]["past"] = [{"since": since, "until": until, **(past or {})}]
    return {**told, "spec": {"fault": {"kind": kind}}}


async def left_out(kind: str, name_label: str, experiment_: dict[str, Any]) -> list[Exclusion]:
    """What is not learnt of a watch."""
    reader = CannedApi(bodies(experiment_, body("waits", phase="Pending"))).world().cluster
    return await excluded.experiments(reader, a_watch(target={"kind": kind, "nameLabel": name_label}), NOW)


def during(run: int, **labels: str) -> Exclusion:
    return Exclusion(labels, *map(stamp_of, RUNS[run]))


async def test_anomalies_are_not_learnt_from_the_runs_of_experiments_and_the_nodes_that_they_hit() -> None:
    hit = {"fault": "Cordon", "target": {"kind": "Node", "name": "blue-1"}}
    told = {"fault": "Engine", "target": {"kind": "ChaosEngine", "name": "x"}, "prior": '["blue-2"]'}
    cordons = ran("Cordon", {"nodes": ["red-1"]}, hit, told)
    assert await left_out("Pod", "pod", cordons) == [during(0, namespace="shop"), during(1, namespace="shop")]
    nodes = [during(0, node="red-1"), during(1, node="blue-1"), during(1, node="blue-2")]
    assert await left_out("Node", "node", cordons) == nodes


async def test_anomalies_are_not_learnt_from_the_pods_that_a_drain_moves() -> None:
    hit = {"fault": "NodeDrain", "target": {"kind": "Node", "name": "blue-1"}, "moves": ["bank", "shop"]}
    drains = ran("NodeDrain", {"namespaces": ["mail"]}, hit)
    for kind, label in (("Pod", "pod"), ("Deployment", "deployment")):
        assert await left_out(kind, label, drains) == [
            during(0, namespace="shop"),
            during(0, namespace="mail"),
            during(1, namespace="shop"),
            during(1, namespace="bank"),
        ]
    assert await left_out("Node", "node", drains) == [during(1, node="blue-1")]


async def test_nothing_is_learnt_while_the_control_plane_has_no_leader() -> None:
    lost = ran("LeaderLoss", None, {"fault": "LeaderLoss", "target": {"kind": "Lease", "name": "kube-scheduler"}})
    for kind, label in (("Pod", "pod"), ("Node", "node")):
        assert await left_out(kind, label, lost) == [during(0), during(1)]


def stamp_of(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()
