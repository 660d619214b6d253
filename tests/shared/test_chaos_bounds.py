"""How far engines, Jobs and people reach in an experiment, without a cluster."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import yaml

from kreflex.chaos import gates, jobs
from kreflex.chaos.bounds import bound, nodes_of
from kreflex.chaos.corruptions import UnfitError
from kreflex.chaos.experiments import ALLOWED, Engine, Experiment, JobOf
from kreflex.chaos.targets import count
from kreflex.durations import parse_duration
from kreflex.policy import Policies
from kreflex.records import experiment_of
from tests.kit import ROOT
from tests.patched import PatchedApi
from tests.shared.test_chaos_values import experiment
from tests.values import a_node, a_policy

STEP = ROOT / "triggers" / "canary-step"
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
OPTED = {"kreflex.dev/chaos": "allowed"}
NOT_FORBIDDEN = {"key": "kreflex.dev/chaos", "operator": "NotIn", "values": ["forbidden"]}


def mesh(**spec: Any) -> dict[str, Any]:
    return bound(experiment(), Engine(kind="NetworkChaos", spec={"action": "delay", "mode": "all", **spec}))


def litmus(name: str, *env: tuple[str, str], **spec: Any) -> Engine:
    told = [{"name": key, "value": text} for key, text in env]
    fault = {"name": name, "spec": {"components": {"env": told}}}
    return Engine(kind="ChaosEngine", spec={"experiments": [fault], **spec})


def test_an_engine_selects_in_its_namespace_on_both_sides_and_leaves_what_says_no() -> None:
    here = {"namespaces": ["shop"], "expressionSelectors": [NOT_FORBIDDEN]}
    labels = {"labelSelectors": {"app": "cart"}}
    assert mesh(selector=labels, target={"mode": "all", "selector": {}}) == {
        "action": "delay",
        "mode": "all",
        "selector": {**labels, **here},
        "target": {"mode": "all", "selector": here},
        "duration": "600s",
    }


@pytest.mark.parametrize(
    ("spec", "because"),
    [
        ({"selector": {"namespaces": ["other"]}}, "spec.selector may only select pods by their labels"),
        ({"target": {"selector": {"namespaces": ["other"]}}}, "spec.target.selector may only select pods"),
        ({"selector": {"pods": {"other": ["a"]}}}, "spec.selector may only select pods by their labels"),
        ({"remoteCluster": "other"}, "spec.remoteCluster is another cluster"),
        ({"duration": "1h"}, "spec.duration is 1h, longer than the ttl of the experiment"),
        ({"duration": "forever"}, "spec.duration must be a duration"),
    ],
)
def test_an_engine_that_reaches_further_is_refused(spec: dict[str, Any], because: str) -> None:
    with pytest.raises(UnfitError, match=because):
        mesh(**spec)


@pytest.mark.parametrize(
    ("engine", "because"),
    [
        (litmus("pod-delete", appinfo={"appns": "other"}), "appinfo.appns is other"),
        (litmus("pod-delete", ("APP_NAMESPACE", "other")), "APP_NAMESPACE is other"),
        (litmus("pod-delete", selectors={"pods": [{"namespace": "other"}]}), "may name other namespaces"),
        (litmus("ec2-terminate-by-id"), "nobody here knows what ec2-terminate-by-id reaches"),
    ],
)
def test_a_chaos_engine_that_reaches_further_is_refused(engine: Engine, because: str) -> None:
    with pytest.raises(UnfitError, match=because):
        bound(experiment(), engine)


async def test_a_chaos_engine_hits_nodes_that_have_opted_in_themselves() -> None:
    nodes = [a_node("blue-1", labels=OPTED), a_node("blue-2", labels=OPTED), a_node("red-1")]
    reader, _ = PatchedApi({f"/api/v1/nodes/{one['metadata']['name']}": one for one in nodes}).pair()
    by_name = litmus("node-cpu-hog", ("TARGET_NODES", "blue-1, blue-2"))
    assert await nodes_of(by_name, reader) == ["blue-1", "blue-2"]
    assert await nodes_of(litmus("pod-delete", ("TARGET_NODE", "red-1")), reader) == []
    with pytest.raises(UnfitError, match="node red-1 has not the label"):
        await nodes_of(litmus("kubelet-service-kill", ("TARGET_NODE", "red-1")), reader)
    with pytest.raises(UnfitError, match="node red-1 has not the label"):
        # It would take any of those that have this label.
        await nodes_of(litmus("node-drain", ("NODE_LABEL", "pool")), reader)
    with pytest.raises(UnfitError, match="node-drain would choose among all nodes"):
        await nodes_of(litmus("node-drain", ("TARGET_NODE", "")), reader)


def test_the_step_of_a_canary_hits_its_only_pod_and_waits_until_the_experiment_is_over() -> None:
    config, template = yaml.safe_load_all((STEP / "analysis.yaml").read_text())
    spec = experiment(**yaml.safe_load(config["data"]["experiment.yaml"])["spec"]).wants
    job = template["spec"]["metrics"][0]["provider"]["job"]["spec"]
    args = job["template"]["spec"]["containers"][0]["args"]
    waits = parse_duration(args[args.index("--timeout") + 1])
    assert count(spec.amount, 1) == 1
    longest = spec.start_within + spec.ttl + spec.recovery
    assert longest < waits < timedelta(seconds=job["activeDeadlineSeconds"])


CRON_JOB: dict[str, Any] = {
    "metadata": {"name": "check", "namespace": "shop", "labels": OPTED},
    "spec": {
        "suspend": True,
        "jobTemplate": {
            "metadata": {"labels": {"app": "check"}},
            "spec": {
                "backoffLimit": 0,
                "ttlSecondsAfterFinished": 999999,
                "template": {
                    "metadata": {"labels": {"app": "check"}},
                    "spec": {"containers": [{"name": "check", "image": "check:1"}], "restartPolicy": "Never"},
                },
            },
        },
    },
}
CRON_JOBS = "/apis/batch/v1/namespaces/shop/cronjobs/check"
PROBE = {"name": "sells", "job": {"cronJob": "check", "within": "2m"}}


def probing() -> Experiment:
    return experiment(probes=[PROBE])


async def test_a_job_is_made_once_from_a_cron_job_and_tells_how_it_ended() -> None:
    api, asked = PatchedApi({CRON_JOBS: CRON_JOB}), probing()
    probe = asked.wants.probes[0]
    reader, writer = api.pair()
    for _ in range(2):
        assert await jobs.look_at(probe, asked, "1/before", reader, writer) is None
    (path,) = (one for one in api.objects if "/jobs/" in one)
    made = api.objects[path]
    assert made["spec"] == {
        "backoffLimit": 0,
        "ttlSecondsAfterFinished": 3600,
        "activeDeadlineSeconds": 120,
        "template": {
            "metadata": {"labels": {"app": "check", "kreflex.dev/chaos": "forbidden"}},
            "spec": CRON_JOB["spec"]["jobTemplate"]["spec"]["template"]["spec"],
        },
    }
    assert made["metadata"]["ownerReferences"][0]["uid"] == asked.uid
    made["status"] = {"conditions": [{"type": "Complete", "status": "True"}]}
    name = made["metadata"]["name"]
    assert await jobs.look_at(probe, asked, "1/before", reader, writer) == (True, f"Job {name} succeeded")
    assert jobs.name_of(probe, asked, "1/after/0") != name


async def test_no_job_is_made_from_what_has_not_opted_in() -> None:
    unlabelled = {**CRON_JOB, "metadata": {**CRON_JOB["metadata"], "labels": {}}}
    asked = probing()
    for objects, because in (
        ({CRON_JOBS: unlabelled}, f"CronJob check has not the label kreflex.dev/chaos: {ALLOWED}"),
        ({}, "there is no CronJob check in this namespace"),
    ):
        api = PatchedApi(dict(objects))
        assert await jobs.look_at(asked.wants.probes[0], asked, "1/before", *api.pair()) == (False, because)
        assert api.writes == []


def test_a_job_that_fails_or_never_ends_has_failed() -> None:
    asked = JobOf(cron_job="check", within=timedelta(minutes=1))
    meta = {"name": "j", "creationTimestamp": "2026-11-22T12:00:00Z"}
    failed = {"type": "Failed", "status": "True", "reason": "DeadlineExceeded"}
    silent = {"metadata": meta, "status": {"conditions": [{"type": "Suspended", "status": "False"}]}}
    assert jobs.ended({"metadata": meta, "status": {"conditions": [failed]}}, asked, NOW) == (
        False,
        "Job j failed: DeadlineExceeded",
    )
    assert jobs.ended(silent, asked, NOW + timedelta(minutes=1)) is None
    assert jobs.ended(silent, asked, NOW + timedelta(minutes=2)) == (False, "Job j has not ended in time")


def approved(**change: Any) -> gates.Stop | None:
    """What a policy in mode Approve says to an experiment that a person has approved."""
    plan = experiment(amount=1).wants.plan_hash
    given = {"planHash": plan, "by": "ada", "until": "2026-11-22T13:00:00Z"}
    spec = {"amount": 1, "approval": given, **change}
    return gates.of_policy(asks_people(), experiment(**spec), change.pop("now", NOW))


def asks_people() -> Any:
    return Policies((a_policy(mode="Approve"),)).for_object("chaos-runner", "shop", {})


def test_a_person_approves_an_experiment_as_it_is() -> None:
    assert approved() is None
    assert approved(stop=True) is None
    changed = approved(duration="2m")
    assert changed is not None
    assert changed.because.startswith("what ada approved is not this experiment: it was changed. To approve: kubectl")
    expired = gates.of_policy(asks_people(), later(), NOW + timedelta(hours=2))
    assert expired is not None
    assert expired.because.startswith("what ada approved has expired at 2026-11-22 13:00:00 UTC")
    # What runs by then goes on.
    assert gates.of_policy(asks_people(), later(), None) is None


def later() -> Experiment:
    given = {"planHash": experiment().wants.plan_hash, "by": "ada", "until": "2026-11-22T13:00:00Z"}
    return experiment(approval=given)


def test_one_that_nobody_has_approved_says_how() -> None:
    waits = gates.of_policy(asks_people(), experiment(), NOW)
    assert waits is not None
    assert waits.guard == "Approve"
    _, _, patch = waits.because.partition("--type merge -p '")
    given = json.loads(
        patch[:-1].replace("'\"$(kubectl auth whoami -o jsonpath={.status.userInfo.username})\"'", "ada")
    )
    assert given["spec"]["approval"] == {
        "planHash": experiment().wants.plan_hash,
        "by": "ada",
        "until": "2026-11-22T13:00:00Z",
    }


@pytest.mark.parametrize(
    ("hours", "now", "opens"),
    [
        ({}, "2026-11-20T09:00", True),  # A Friday.
        ({}, "2026-11-20T16:00", False),
        ({}, "2026-11-21T10:00", False),
        ({"begin": "22:00", "end": "04:00"}, "2026-11-20T22:00", True),
        ({"begin": "22:00", "end": "04:00"}, "2026-11-21T03:59", True),
        ({"begin": "22:00", "end": "04:00"}, "2026-11-21T04:00", False),
        ({"begin": "22:00", "end": "04:00"}, "2026-11-21T22:30", False),
        # Sunday's night is no Monday's.
        ({"begin": "22:00", "end": "04:00"}, "2026-11-23T01:00", False),
        ({"begin": "22:00", "end": "04:00", "days": ["Sun"]}, "2026-11-23T01:00", True),
        ({"begin": "00:00", "end": "24:00"}, "2026-11-20T23:59", True),
        ({"begin": "09:00", "end": "00:00"}, "2026-11-21T00:00", False),
        # 23:30 in New York, and 05:30 in Berlin.
        ({"begin": "22:00", "end": "04:00", "zone": "America/New_York"}, "2026-11-21T04:30", True),
        ({"begin": "22:00", "end": "04:00", "zone": "Europe/Berlin"}, "2026-11-21T04:30", False),
    ],
)
async def test_begins_in_its_hours_which_may_go_past_midnight(hours: dict[str, Any], now: str, opens: bool) -> None:
    stop = await asked_at(now, hours)
    assert (stop is None) is opens, stop


async def asked_at(now: str, hours: dict[str, Any]) -> gates.Stop | None:
    """What the gates say at a time."""
    policy = {
        "metadata": {"name": "chaos", "uid": "p", "resourceVersion": "1"},
        "spec": {"mode": "Auto", "functions": ["chaos-runner"]},
    }
    api = PatchedApi(
        {
            "/apis/kreflex.dev/v1alpha1/clusterremediationpolicies/chaos": policy,
            "/api/v1/namespaces/shop": {"metadata": {"name": "shop", "labels": OPTED}},
        },
        timedelta(),
    )
    api.watch.moment = datetime.fromisoformat(f"{now}:00+00:00")
    return await gates.may_begin(experiment(hours=hours), api.world())


async def test_says_what_hours_mean_and_what_is_wrong_with_them() -> None:
    assert await asked_at("2026-11-21T04:30", {"begin": "22:00", "end": "04:00"}) == gates.Stop(
        "Hours", "it may begin Mon, Tue, Wed, Thu, Fri from 22:00 to 04:00 of the next day, UTC"
    )
    assert await asked_at("2026-11-20T10:00", {"zone": "Europe/Berln"}) == gates.Stop(
        "Hours",
        "hours.zone is 'Europe/Berln', no time zone that is known here: write it as Europe/Berlin, or UTC",
        final=True,
    )
    for hours, told in (
        ({"begin": "09:00", "end": "09:00"}, "begin and end are the same: a whole day is from 00:00 to 24:00"),
        ({"begin": "16:00"}, "begin and end are the same: a whole day is from 00:00 to 24:00"),
        ({"begin": "24:00"}, "should match pattern"),
        ({"days": []}, "at least 1 item"),
        ({"days": ["Monday"]}, "Input should be 'Mon', 'Tue', 'Wed', 'Thu', 'Fri', 'Sat' or 'Sun'"),
    ):
        broken = experiment(hours=hours).broken
        assert broken.startswith("hours"), broken
        assert told in broken


@pytest.mark.parametrize(
    ("notes", "told"),
    [
        (({"kreflex.dev/chaos-experiment": "shop/storm/u-1"},), "shop/storm"),
        (({}, {"kreflex.dev/chaos-experiment": "shop/storm/u-1"}), "shop/storm"),
        (({"kreflex.dev/chaos-experiment": "nonsense"},), None),
        (({}, {}), None),
    ],
)
def test_tells_by_its_mark_whose_fault_on_purpose_it_is(notes: tuple[dict[str, str], ...], told: str | None) -> None:
    assert experiment_of(*notes) == told
