"""What chaos-runner does when something beside its fault goes wrong: no fault outlasts its time, and none is twice."""

import copy
import json
from datetime import timedelta
from typing import Any

import pytest

from kreflex.chaos import gates
from kreflex.chaos.engines import engine_intent
from kreflex.chaos.experiments import FINALIZER, ExperimentStatus, Injection, read_experiment
from kreflex.chaos.faults import Hands, act_of
from kreflex.chaos.orphans import Orphans
from kreflex.chaos.runner import Runner, Terms
from kreflex.cluster import Reader, Writer
from kreflex.errors import OutageError, UnavailableError
from kreflex.views import JSON
from kreflex.world import World
from tests.patched import PatchedApi, refused
from tests.values import NOW, CannedMetrics, a_node, a_pod, a_record_body, stamp

TERMS = Terms(timedelta(seconds=30), timedelta(seconds=8), frozenset())
API = "/apis/kreflex.dev/v1alpha1"
STORM = f"{API}/namespaces/shop/experiments/storm"
DEPLOYMENT = "/apis/apps/v1/namespaces/shop/deployments/cart"
POLICY: JSON = {
    "metadata": {"name": "chaos", "uid": "p", "resourceVersion": "1"},
    "spec": {"mode": "Auto", "functions": ["chaos-runner"]},
}
SPEC: JSON = {
    "fault": {"kind": "Image", "image": "shop:2"},
    "duration": "1m",
    "ttl": "10m",
    "recovery": "0s",
    "withoutBudget": "a test that has no Prometheus",
}


def cart(image: str = "shop:1", **meta: Any) -> JSON:
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            "namespace": "shop",
            "name": "cart",
            "uid": "u-cart",
            "resourceVersion": "5",
            "labels": {"kreflex.dev/chaos": "allowed"},
            **meta,
        },
        "spec": {"replicas": 3, "template": {"spec": {"containers": [{"name": "app", "image": image}]}}},
    }


def storm(status: JSON | None = None, meta: JSON | None = None, **spec: Any) -> JSON:
    whole = {"namespace": "shop", "name": "storm", "uid": "u-1", "resourceVersion": "1", **(meta or {})}
    return {
        "metadata": {"creationTimestamp": stamp(NOW), **whole},
        "spec": {**SPEC, **spec},
        "status": status or {},
    }


def running(**status: Any) -> JSON:
    """The status of one that began a minute ago, and has changed nothing yet."""
    return {
        "phase": "Running",
        "run": 1,
        "startedAt": stamp(NOW - timedelta(minutes=1)),
        "revertBy": stamp(NOW + timedelta(minutes=9)),
        "rounds": 1,
        "eligible": 1,
        **status,
    }


def injection(state: str = "Injected", **more: Any) -> JSON:
    prior = [
        {"path": ["spec", "template", "spec", "containers", "name=app", "image"], "before": "shop:1", "after": "shop:2"}
    ]
    return {
        "fault": "Image",
        "target": {"apiVersion": "apps/v1", "kind": "Deployment", "namespace": "shop", "name": "cart", "uid": "u-cart"},
        "state": state,
        "prior": json.dumps(prior),
        "intendedAt": stamp(NOW - timedelta(minutes=1)),
        "revertBy": stamp(NOW + timedelta(minutes=9)),
        **more,
    }


def marked(revert_by: str = "") -> JSON:
    """The Deployment as the experiment has made it."""
    notes = {
        "kreflex.dev/chaos-experiment": "shop/storm/u-1",
        "kreflex.dev/revert-by": revert_by or stamp(NOW + timedelta(minutes=9)),
        "kreflex.dev/chaos-prior": injection()["prior"],
    }
    return cart("shop:2", annotations=notes)


def cluster(experiment: JSON, deployment: JSON | None = None, **others: JSON) -> PatchedApi:
    return PatchedApi(
        {
            STORM: copy.deepcopy(experiment),
            DEPLOYMENT: copy.deepcopy(deployment or cart()),
            f"{API}/clusterremediationpolicies/chaos": copy.deepcopy(POLICY),
            "/api/v1/namespaces/shop": {"metadata": {"name": "shop", "labels": {"kreflex.dev/chaos": "allowed"}}},
            **others,
        }
    )


def runner(api: PatchedApi) -> Runner:
    return Runner(api.world(), Writer(api), TERMS)


async def go_on(api: PatchedApi, calls: int = 1) -> ExperimentStatus:
    """Wake chaos-runner so many times; the status after it."""
    made = runner(api)
    for _ in range(calls):
        await made.go_on("shop", "storm")
    return read_experiment(api.objects[STORM]).status


def image(api: PatchedApi) -> str:
    found: str = api.objects[DEPLOYMENT]["spec"]["template"]["spec"]["containers"][0]["image"]
    return found


LATE = running(revertBy=stamp(NOW - timedelta(minutes=1)), injected=[injection()])


async def test_a_fault_is_taken_back_in_time_though_the_policies_can_t_be_read() -> None:
    api = cluster(storm(LATE), marked())
    api.broken["clusterremediationpolicies"] = OutageError("403", 403)
    status = await go_on(api)
    assert (image(api), status.phase) == ("shop:1", "Done")


async def test_a_fault_ends_at_once_when_nobody_can_tell_whether_it_may_go_on() -> None:
    api = cluster(storm(running(injected=[injection()])), marked())
    api.broken["clusterremediationpolicies"] = UnavailableError("it did not answer")
    status = await go_on(api)
    assert (image(api), status.phase) == ("shop:1", "Aborted")
    assert status.aborted == "Unknown: nobody can tell whether it may go on: it did not answer"


async def test_what_was_only_planned_is_not_begun_when_its_time_is_over() -> None:
    late = stamp(NOW - timedelta(minutes=1))
    for over in ({"revertBy": late}, {"endsAt": late}):
        api = cluster(storm(running(injected=[injection("Intended")], **over)))
        status = await go_on(api)
        assert (image(api), status.phase, status.reason) == ("shop:1", "Done", "nothing was hit")
        assert not any("deployments" in call for call in api.writes)


async def test_a_fault_that_the_api_server_does_not_take_keeps_nothing_else_from_its_end() -> None:
    hit = running(endsAt=stamp(NOW + timedelta(minutes=1)), injected=[injection("Intended")])
    api = cluster(storm(hit))
    api.broken["PATCH /apis/apps"] = refused(422, "that is no image")
    status = await go_on(api)
    assert (status.phase, status.injected[0].state, status.injected[0].injected_at) == ("Running", "Injected", None)
    assert status.injected[0].note == "Deployment shop/cart was not hit: it said that is no image"


async def test_an_experiment_ends_though_a_record_can_t_be_read() -> None:
    odd = a_record_body(status={"phase": "Nonsense"})
    expects = {"function": "rollback", "within": "5m"}
    path = f"{API}/namespaces/shop/remediations/odd"
    hit = injection(injectedAt=stamp(NOW - timedelta(minutes=1)))
    api = cluster(storm({**LATE, "injected": [hit]}, expects=expects), marked(), **{path: odd})
    status = await go_on(api)
    assert (image(api), status.phase, status.reason) == ("shop:1", "Done", "rollback did nothing about it")


class Impatient(PatchedApi):
    """Somebody sets spec.stop while chaos-runner is at work, before its third write."""

    def _written(self, method: str, path: str, body: JSON | None, options: dict[str, Any]) -> JSON:
        if len(self.writes) == 3:
            there = self.objects[STORM]
            there["spec"]["stop"] = True
            there["metadata"]["resourceVersion"] += "0"
        return super()._written(method, path, body, options)


async def test_what_a_newer_version_has_written_into_the_status_keeps_nothing_from_its_end() -> None:
    new = {"news": "of a newer version"}
    late = LATE | {
        "injected": [injection() | new],
        "past": [{"since": stamp(NOW), "until": stamp(NOW)} | new],
        "probes": [{"name": "p", "turns": [{"at": stamp(NOW), "ok": True} | new]} | new],
        "remediation": {"record": "x"} | new,
        "budget": [{"at": stamp(NOW), "left": 1} | new],
        "timeline": [{"at": stamp(NOW), "word": "began", "text": ""} | new],
    }
    api = cluster(storm(late | new), marked())
    status = await go_on(api)
    assert (image(api), status.phase) == ("shop:1", "Done")


async def test_a_wish_to_stop_is_heard_by_whoever_is_at_work() -> None:
    api = Impatient(cluster(storm(running(nextRoundAt=stamp(NOW), rounds=0))).objects)
    status = await go_on(api)
    assert (image(api), status.phase, status.aborted) == ("shop:1", "Aborted", "Stopped: spec.stop says so")


async def test_what_is_hit_by_then_has_opted_out_is_left_alone() -> None:
    planned = running(endsAt=stamp(NOW + timedelta(minutes=1)), injected=[injection("Intended")])
    api = cluster(storm(planned), cart(annotations={"kreflex.dev/opt-out": "true"}))
    status = await go_on(api)
    assert image(api) == "shop:1"
    assert status.injected[0].note == "Deployment shop/cart was not hit: it has the annotation kreflex.dev/opt-out"


async def test_an_experiment_that_comes_again_is_due_once_and_begins_anew() -> None:
    before = running(
        phase="Done",
        startedAt=stamp(NOW - timedelta(hours=1)),
        finishedAt=stamp(NOW - timedelta(minutes=50)),
        injected=[injection("Reverted")],
    )
    api = cluster(
        storm(before, every="1h", probes=[{"name": "never", "object": {"name": "cart", "path": "x", "value": "1"}}])
    )
    status = await go_on(api)
    assert (status.phase, status.run, status.injected) == ("Refused", 1, ())
    assert [(one.since, one.until) for one in status.past] == [
        (NOW - timedelta(hours=1), NOW - timedelta(minutes=50)),
    ]
    assert not read_experiment(api.objects[STORM]).due(api.watch.moment)
    assert read_experiment(api.objects[STORM]).due(api.watch.moment + timedelta(hours=1))


async def test_one_that_comes_again_waits_as_long_as_the_first_time() -> None:
    begun = NOW - timedelta(days=3)
    before = running(phase="Done", startedAt=stamp(NOW - timedelta(days=1)), finishedAt=stamp(NOW - timedelta(days=1)))
    api = cluster(storm(before, {"creationTimestamp": stamp(begun)}, every="24h"))
    api.objects[f"{API}/clusterremediationpolicies/chaos"]["spec"]["frozen"] = True
    assert ((await go_on(api)).phase, (await go_on(api)).guard) == ("Pending", "Frozen")
    api.watch.moment += timedelta(hours=2)
    assert (await go_on(api)).phase == "Refused"


async def test_asks_the_budgets_of_all_that_may_be_hit_and_not_of_the_first() -> None:
    one, other = (cart(name=name, annotations={"kreflex.dev/slo": f"{name}-slo"}) for name in ("cart", "zebra"))
    experiment = read_experiment(storm(withoutBudget=None))
    world = cluster(storm()).world()
    assert await gates.objectives(experiment, world, [one, other, one]) == "shop/cart-slo,shop/zebra-slo"
    nameless = await gates.objectives(experiment, world, [one, cart(name="none")])
    assert isinstance(nameless, gates.Stop)
    assert nameless.because.startswith("Unknown: no SLO is about it")


async def test_tells_a_reason_that_changes_each_minute_in_one_event() -> None:
    api = cluster(storm())
    policy = api.objects[f"{API}/clusterremediationpolicies/chaos"]["spec"]
    for words in ("until nine", "until ten"):
        policy["pauseRequests"] = [words]
        await go_on(api)
        api.watch.moment += timedelta(minutes=2)
    assert read_experiment(api.objects[STORM]).status.reason == "a pause is asked for: until ten (chaos)"
    assert sum(call.endswith("/events") for call in api.writes) == 1


async def test_an_engine_without_a_budget_of_its_own_is_ended_like_any_other() -> None:
    """Whose budget it is was asked of the engine's own object once, and there is none."""
    engine = {"kind": "PodChaos", "spec": {"action": "pod-failure", "mode": "one"}}
    made = {**injection(), "fault": "Engine", "prior": "[]"}
    made["target"] = {
        "apiVersion": "chaos-mesh.org/v1alpha1",
        "kind": "PodChaos",
        "namespace": "shop",
        "name": "x",
        "uid": "u-1",
    }
    spec = {"fault": {"kind": "Engine", "engine": engine}, "withoutBudget": None}
    api = cluster(storm(running(injected=[made]), **spec))
    status = await go_on(api)
    assert (status.phase, status.aborted) == ("Aborted", "ErrorBudget: Unknown: nobody knows whose budget it is")


async def test_an_engine_that_is_served_no_more_has_an_end() -> None:
    engine = {"kind": "PodChaos", "spec": {"action": "pod-failure", "mode": "one"}}
    made = {**injection(), "fault": "Engine", "prior": "[]"}
    made["target"] = {
        "apiVersion": "chaos-mesh.org/v1alpha1",
        "kind": "PodChaos",
        "namespace": "shop",
        "name": "x",
        "uid": "u-1",
    }
    api = cluster(
        storm(
            running(injected=[made], endsAt=stamp(NOW + timedelta(seconds=1))),
            fault={"kind": "Engine", "engine": engine},
        )
    )
    api.broken["chaos-mesh.org"] = OutageError("the API server does not serve this resource now", 404)
    status = await go_on(api)
    assert (status.phase, status.injected[0].state) == ("Done", "Reverted")


async def test_does_not_begin_what_its_status_could_not_remember() -> None:
    """Five states of 50 KB; each fits for itself."""
    many = {
        f"/api/v1/namespaces/shop/configmaps/c{number}": {
            "metadata": {"namespace": "shop", "name": f"c{number}", "uid": f"u{number}", "resourceVersion": "1"},
            "data": {"big": "x" * 50_000},
        }
        for number in range(6)
    }
    fault = {"kind": "Configuration", "data": {"big": "small"}}
    api = cluster(storm(fault=fault, amount="100%"), **many)
    status = await go_on(api)
    assert (status.phase, status.rounds, status.injected) == ("Aborted", 0, ())
    assert not any("configmaps" in call for call in api.writes)


async def test_whoever_deletes_an_experiment_does_not_wait_for_its_recovery() -> None:
    never = {"name": "never", "object": {"name": "cart", "path": "x", "value": "1"}, "when": ["After"]}
    meta = {"deletionTimestamp": stamp(NOW), "finalizers": [FINALIZER]}
    api = cluster(
        storm(running(injected=[injection()], probes=[{"name": "never"}]), meta, probes=[never], recovery="24h"),
        marked(),
    )
    status = await go_on(api)
    assert (image(api), status.phase, api.objects[STORM]["metadata"]["finalizers"]) == ("shop:1", "Aborted", [])


async def test_tells_people_what_can_t_be_taken_back_and_tries_it_seldom_in_the_end() -> None:
    lost = cart("shop:2")
    gone = running(phase="Reverting", revertBy=stamp(NOW - timedelta(hours=1)), injected=[injection()])
    api = cluster(storm(gone), lost)
    status = await go_on(api)
    assert status.phase == "Reverting"
    assert status.injected[0].note.endswith("put it back by hand, as status.injected has it in prior")
    assert status.due_at is not None
    assert status.due_at > api.watch.moment + timedelta(seconds=50)
    assert [call for call in api.writes if call.endswith("/events")] == [
        "POST /apis/events.k8s.io/v1/namespaces/shop/events"
    ]


async def test_what_somebody_else_has_set_is_left_though_the_rest_does_not_fit_beside_it() -> None:
    both = injection(
        prior=json.dumps([{"path": ["spec", "replicas"], "before": 5, "after": 0}, *json.loads(injection()["prior"])])
    )
    api = cluster(storm({**LATE, "injected": [both]}), marked())
    sent: list[JSON] = []

    class Strict(PatchedApi):
        def _written(self, method: str, path: str, body: JSON | None, options: dict[str, Any]) -> JSON:
            steps = options.get("operations") or []
            sent.extend(steps)
            if any(step["path"].endswith("/image") for step in steps):
                raise refused(422, "it has two handlers")
            return super()._written(method, path, body, options)

    strict = Strict(api.objects)
    status = await go_on(strict)
    assert (status.phase, status.injected[0].state) == ("Done", "Foreign")
    assert "annotations" not in strict.objects[DEPLOYMENT]["metadata"]
    assert "it said it has two handlers" in status.injected[0].note


async def test_writes_down_whose_pods_a_drain_moves_before_it_does_and_keeps_that_for_later_runs() -> None:
    node = a_node("blue-1", labels={"kreflex.dev/chaos": "allowed"})
    path = "/apis/kreflex.dev/v1alpha1/namespaces/kreflex-system/experiments/storm"
    spec = {"fault": {"kind": "NodeDrain"}, "duration": "1s", "every": "1h"}
    pod = a_pod()
    pod["spec"]["nodeName"] = "blue-1"
    api = PatchedApi(
        {
            path: storm(running(nextRoundAt=stamp(NOW), rounds=0), {"namespace": "kreflex-system"}, **spec),
            "/api/v1/nodes/blue-1": node,
            f"{API}/clusterremediationpolicies/chaos": copy.deepcopy(POLICY),
            "/api/v1/namespaces/shop": {"metadata": {"name": "shop"}},
            f"/api/v1/namespaces/shop/pods/{pod['metadata']['name']}": pod,
        }
    )
    made = runner(api)
    api.broken["eviction"] = refused(429, "not now")
    await made.go_on("kreflex-system", "storm")
    status = read_experiment(api.objects[path]).status
    assert (status.phase, [one.moves for one in status.injected]) == ("Done", [("shop",)]), status
    api.watch.moment += timedelta(hours=2)
    await made.go_on("kreflex-system", "storm")
    (span,) = read_experiment(api.objects[path]).status.past
    assert (span.nodes, span.namespaces) == (("blue-1",), ("shop",))


@pytest.mark.parametrize(
    ("error", "tries"), [(UnavailableError("nobody answers"), 1), (OutageError("it is being deleted", 403), 2)]
)
async def test_a_drain_asks_for_no_other_pod_when_nobody_answers(error: Exception, tries: int) -> None:
    pods = [a_pod(), a_pod()]
    for number, pod in enumerate(pods, 1):
        pod["spec"]["nodeName"] = "blue-1"
        pod["metadata"] |= {"name": f"cart-{number}", "uid": f"u-{number}"}
    api = PatchedApi(
        {
            "/api/v1/namespaces/shop": {"metadata": {"name": "shop"}},
            **{f"/api/v1/namespaces/shop/pods/{pod['metadata']['name']}": pod for pod in pods},
        }
    )
    api.broken["eviction"] = error
    node = {"apiVersion": "v1", "kind": "Node", "name": "blue-1", "uid": "u-n"}
    drained = Injection.model_validate(injection(fault="NodeDrain", target=node))
    drain = act_of("NodeDrain").keep_on(read_experiment(storm()), drained, Hands(*api.pair(), "kreflex-system"))
    if tries == 1:
        with pytest.raises(UnavailableError, match="nobody answers"):
            await drain
    else:
        assert await drain == "blue-1 keeps cart-1: it is being deleted"
    assert len(api.writes) == tries


async def test_whose_pods_are_on_a_node_is_asked_only_where_the_namespaces_are_looked_after() -> None:
    pod = a_pod()
    pod["spec"]["nodeName"] = "blue-1"
    env = [{"name": "TARGET_NODE", "value": "blue-1"}]
    fault = {"name": "node-drain", "spec": {"components": {"env": env}}}
    engine = {"kind": "ChaosEngine", "spec": {"experiments": [fault]}}
    made = storm(running(), fault={"kind": "Engine", "engine": engine})
    node = {"/api/v1/nodes/blue-1": a_node("blue-1", labels={"kreflex.dev/chaos": "allowed"})}
    api = PatchedApi({f"/api/v1/namespaces/shop/pods/{pod['metadata']['name']}": pod, **node})
    planned = await engine_intent(read_experiment(made), NOW, Reader(api, ("shop",)))
    assert (planned.nodes, planned.moves) == (("blue-1",), ("shop",))
    assert "GET /api/v1/pods" not in api.calls


# A namespace that is deleted

GOING: JSON = {
    "metadata": {"name": "shop", "labels": {"kreflex.dev/chaos": "allowed"}, "deletionTimestamp": stamp(NOW)}
}
DENIED = OutageError("chaos-runner may not do that in namespace shop", 403)


def doomed(experiment: JSON, deployment: JSON | None = None) -> PatchedApi:
    api = cluster(experiment, deployment)
    api.objects["/api/v1/namespaces/shop"] = copy.deepcopy(GOING)
    return api


async def test_nothing_begins_in_a_namespace_that_is_being_deleted_and_what_runs_there_ends() -> None:
    status = await go_on(doomed(storm()))
    assert (status.phase, status.guard, status.reason) == ("Refused", "Scope", "namespace shop is being deleted")
    api = doomed(storm(running(injected=[injection()])), marked())
    status = await go_on(api)
    assert (status.phase, status.aborted) == ("Aborted", "Scope: namespace shop is being deleted")
    assert (image(api), status.injected[0].state) == ("shop:1", "Reverted")


async def test_a_run_ends_though_the_namespace_has_taken_our_rights_and_the_objects_with_it() -> None:
    """As where a RoleBinding in the namespace gave them. Those on experiments are of the whole cluster."""
    meta = {"deletionTimestamp": stamp(NOW), "finalizers": [FINALIZER]}
    expects = {"function": "rollback", "within": "5m"}
    hit = injection(injectedAt=stamp(NOW))
    api = doomed(storm(running(injected=[hit]), meta, expects=expects, probes=[PROBE_OF_CART]), marked())
    for part in ("deployments", "leases", "remediations", "events"):
        api.broken[f"/namespaces/shop/{part}"] = DENIED
    status = await go_on(api)
    assert (status.phase, api.objects[STORM]["metadata"]["finalizers"]) == ("Aborted", [])
    assert (status.injected[0].state, status.injected[0].note) == (
        "Gone",
        "namespace shop is being deleted, and it goes with it",
    )
    assert status.aborted == "Deleted: it was deleted"


PROBE_OF_CART: JSON = {"name": "cart", "object": {"name": "cart", "path": "spec.replicas", "value": "3"}}


async def test_names_the_nodes_of_an_engine_that_goes_with_its_namespace() -> None:
    made = injection(fault="Engine", prior='["blue-1"]', injectedAt=stamp(NOW))
    target = {"apiVersion": "litmuschaos.io/v1alpha1", "kind": "ChaosEngine", "namespace": "shop", "name": "x"}
    api = doomed(storm(running(phase="Reverting", injected=[{**made, "target": {**target, "uid": "u-1"}}])))
    api.broken["chaosengines"] = DENIED
    status = await go_on(api)
    assert (status.injected[0].state, status.injected[0].note) == (
        "Gone",
        "namespace shop is being deleted, and it goes with it: see that nothing of it is left on blue-1",
    )


async def test_what_may_not_be_looked_at_in_a_namespace_that_stays_is_not_given_up() -> None:
    api = cluster(storm(running(injected=[injection()]), stop=True), marked())
    api.broken["/namespaces/shop/deployments"] = DENIED
    status = await go_on(api)
    assert (status.phase, status.injected[0].state, status.injected[0].note) == (
        "Reverting",
        "Injected",
        "chaos-runner may not do that in namespace shop",
    )


async def test_the_end_of_an_experiment_that_was_deleted_is_told() -> None:
    """It is gone as soon as its finalizer is."""

    class Collected(PatchedApi):
        def _written(self, method: str, path: str, body: JSON | None, options: dict[str, Any]) -> JSON:
            answer = super()._written(method, path, body, options)
            if path == STORM and not answer["metadata"].get("finalizers"):
                del self.objects[STORM]
            return answer

    # As its namespace goes, it is deleted a moment after nothing holds it any more.
    for stop, deleted in ((False, {"deletionTimestamp": stamp(NOW)}), (True, {})):
        meta = {"finalizers": [FINALIZER], **deleted}
        api = Collected(cluster(storm(running(injected=[injection()]), meta, stop=stop), marked()).objects)
        ended = await runner(api).go_on("shop", "storm")
        assert ended is not None
        assert (ended.status.phase, ended.status.verdict, image(api)) == ("Aborted", "Failed", "shop:1")
        assert STORM not in api.objects


async def test_the_event_of_its_last_write_is_answered_with_its_end_whoever_has_carried_it_there() -> None:
    api = cluster(storm(running(phase="Done", finishedAt=stamp(NOW), verdict="Passed")))
    again = await runner(api).go_on("shop", "storm")
    assert again is not None
    assert (again.status.verdict, api.writes) == ("Passed", [])
    api.watch.moment += timedelta(minutes=1)
    assert await runner(api).go_on("shop", "storm") is None


async def test_says_what_is_gone_and_so_not_as_before() -> None:
    api = cluster(storm(LATE | {"injected": [injection(injectedAt=stamp(NOW))]}))
    del api.objects[DEPLOYMENT]
    status = await go_on(api)
    assert (status.phase, status.injected[0].state) == ("Done", "Gone")
    assert status.reason == "the steady state held, and all is as before, but for Deployment shop/cart"


async def test_who_is_bound_to_some_namespaces_leaves_experiments_elsewhere_alone() -> None:
    api = cluster(storm())
    world = World(Reader(api, ("bank",)), CannedMetrics(), "chaos-runner")
    assert await Runner(world, Writer(api), TERMS).go_on("shop", "storm") is None
    assert api.writes == []


# Rollouts

ROLLOUT = "/apis/argoproj.io/v1alpha1/namespaces/shop/rollouts/cart"
OF_ROLLOUTS: JSON = {"kind": "Rollout"}


def rollout(spec: JSON | None = None, status: JSON | None = None, **more: Any) -> JSON:
    """A Rollout at rest."""
    rest = {"observedGeneration": "3", "currentPodHash": "a", "stableRS": "a", "phase": "Healthy"}
    whole = {**cart(generation=3, **more), "apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout"}
    return {**whole, "spec": {**whole["spec"], **(spec or {})}, "status": {**rest, **(status or {})}}


async def test_a_rollout_is_changed_and_as_before_in_the_end() -> None:
    before = rollout()
    api = cluster(storm(targets=OF_ROLLOUTS, duration="1s"), **{ROLLOUT: before})
    status = await go_on(api)
    changed = [call for call in api.writes if "rollouts" in call]
    assert ([(one.target.kind, one.stable) for one in status.injected], len(changed)) == ([("Rollout", "a")], 2)
    assert (status.phase, status.verdict, status.injected[0].state) == ("Done", "Passed", "Reverted"), status
    after = api.objects[ROLLOUT]
    assert after["spec"] == before["spec"]
    assert "annotations" not in after["metadata"]
    assert image(api) == "shop:1", "the Deployment of this name is left alone"


@pytest.mark.parametrize(
    ("spec", "status", "because"),
    [
        ({}, {"observedGeneration": "2"}, "Argo has not seen its newest spec yet"),
        ({}, {"currentPodHash": "b"}, "version b is being rolled out, and a is the stable one"),
        ({}, {"currentPodHash": "b", "abort": True}, "version b was aborted, and a is the stable one"),
        ({"paused": True}, {}, "it is paused, so nothing that is changed would be rolled out"),
        ({}, {"phase": "Progressing", "message": "more replicas"}, "it is Progressing: more replicas"),
    ],
)
async def test_a_rollout_that_is_not_at_rest_is_not_touched(spec: JSON, status: JSON, because: str) -> None:
    api = cluster(storm(targets=OF_ROLLOUTS), **{ROLLOUT: rollout(spec, status)})
    waits = await go_on(api)
    assert (waits.phase, waits.guard, waits.reason) == ("Pending", "Unsteady", f"Rollout shop/cart: {because}")
    planned = injection("Intended", target={**injection()["target"], "kind": "Rollout"})
    planned["target"]["apiVersion"] = "argoproj.io/v1alpha1"
    begun = running(endsAt=stamp(NOW + timedelta(minutes=1)), injected=[planned])
    api = cluster(storm(begun, targets=OF_ROLLOUTS), **{ROLLOUT: rollout(spec, status)})
    assert (await go_on(api)).injected[0].note == f"Rollout shop/cart was not hit: {because}"
    assert not any("rollouts" in call for call in api.writes)


def hit_rollout(name: str = "cart", **more: Any) -> JSON:
    """What was done to a Rollout whose stable version was a."""
    target = {**injection()["target"], "kind": "Rollout", "apiVersion": "argoproj.io/v1alpha1", "name": name}
    begun = stamp(NOW - timedelta(seconds=50))
    return injection(**{"injectedAt": begun, "stable": "a", "target": target, **more})


def broken_rollout(name: str = "cart", **status: Any) -> JSON:
    """A Rollout as the experiment has made it."""
    meta = {**marked()["metadata"], "name": name, "generation": 3}
    return {**rollout(status=status), "metadata": meta, "spec": marked()["spec"]}


def taking_back(*hits: JSON, **status: Any) -> JSON:
    begun = {"phase": "Reverting", "revertingAt": stamp(NOW), "injected": [*hits], **status}
    return storm(running(**begun), targets=OF_ROLLOUTS)


UNSEEN: JSON = {"observedGeneration": "2"}


async def test_a_rollout_is_as_before_when_argo_has_seen_that() -> None:
    api = cluster(taking_back(hit_rollout()), **{ROLLOUT: broken_rollout(**UNSEEN)})
    api.watch.moment += timedelta(seconds=30)
    status = await go_on(api)
    unseen = "its fields are as before, but Argo has not seen that yet"
    assert (status.phase, status.injected[0].note) == ("Reverting", unseen)
    api.objects[ROLLOUT]["status"]["observedGeneration"] = "3"
    api.watch.moment += timedelta(minutes=1)
    status = await go_on(api)
    assert (status.phase, status.injected[0].state, status.injected[0].note) == ("Done", "Reverted", "Argo has seen it")
    assert api.objects[ROLLOUT]["spec"] == rollout()["spec"]


async def test_all_rollouts_are_put_back_before_argo_is_waited_for_and_a_moment_of_that_is_not_told() -> None:
    other = ROLLOUT.replace("cart", "bank")
    both = {ROLLOUT: broken_rollout(**UNSEEN), other: broken_rollout("bank", **UNSEEN)}
    api = cluster(taking_back(hit_rollout(), hit_rollout("bank")), **both)
    api.each = timedelta(milliseconds=900)
    status = await go_on(api)
    assert [call for call in api.writes if "rollouts" in call] == [f"PATCH {other}", f"PATCH {ROLLOUT}"]
    assert [line.word for line in status.timeline] == []
    for path in both:
        api.objects[path]["status"]["observedGeneration"] = "3"
    api.watch.moment += timedelta(minutes=1)
    status = await go_on(api)
    assert (status.phase, [one.state for one in status.injected]) == ("Done", ["Reverted", "Reverted"])
    assert [line.word for line in status.timeline] == ["reverted", "reverted", "verdict"]


async def test_others_stay_away_while_many_things_are_put_back() -> None:
    """Each takes 16 seconds here, and an attempt has 30 of them."""
    names = ["cart", "bank", "shop"]
    many = {ROLLOUT.replace("cart", name): broken_rollout(name, **UNSEEN) for name in names}
    just_now = stamp(NOW + timedelta(minutes=2))
    api = cluster(taking_back(*map(hit_rollout, names), revertingAt=just_now), **many)
    api.each = timedelta(seconds=4)
    await go_on(api)
    wrote = [call.rpartition("/")[2] for call in api.writes]
    assert wrote == ["status", "shop", "status", "bank", "status", "cart", "status"]


async def test_what_argo_never_looks_at_is_told_to_people_and_never_taken_for_proven() -> None:
    over = {"revertBy": stamp(NOW - timedelta(minutes=1))}
    api = cluster(taking_back(hit_rollout(**over), **over), **{ROLLOUT: broken_rollout(**UNSEEN)})
    status = await go_on(api)
    assert (status.phase, status.injected[0].state) == ("Reverting", "Injected")
    assert status.injected[0].note == (
        "its fields are as before, but Argo has not seen that yet: see that its controller runs, and change an"
        " annotation of the Rollout, so that it looks again"
    )
    assert sum(call.endswith("/events") for call in api.writes) == 1


@pytest.mark.parametrize(
    ("hit", "status", "phase"),
    [
        (hit_rollout(), {"currentPodHash": "c", "stableRS": "b"}, "Reverting"),
        (hit_rollout(), {"currentPodHash": "c", "stableRS": "c"}, "Done"),
        (hit_rollout(), {"currentPodHash": "c", "stableRS": "a"}, "Done"),
        (hit_rollout(stable=""), {"currentPodHash": "c", "stableRS": "a"}, "Reverting"),
    ],
)
async def test_what_was_changed_and_has_become_stable_is_not_taken_back_by_its_fields(
    hit: JSON, status: JSON, phase: str
) -> None:
    """As when the steps of the Rollout end before the fault does. Another's release since then is his."""
    api = cluster(taking_back(hit), **{ROLLOUT: broken_rollout(**status)})
    found = await go_on(api)
    assert found.phase == phase, found
    if phase == "Reverting":
        assert found.injected[0].note == (
            "what was changed had become stable, so Argo releases what is put back: version c is being rolled out, and"
            f" {status['stableRS']} is the stable one: promote it if it waits, or retry it"
        )
        assert sum(call.endswith("/events") for call in api.writes) == 1


async def test_a_run_ends_though_rollouts_are_served_no_more_when_its_time_is_over() -> None:
    api = cluster(taking_back(hit_rollout()), **{ROLLOUT: broken_rollout()})
    api.broken["argoproj.io"] = OutageError("the API server does not serve this resource now", 404)
    assert (await go_on(api)).phase == "Reverting"
    api.watch.moment += timedelta(minutes=10)
    status = await go_on(api)
    assert (status.phase, status.injected[0].state, status.injected[0].note) == (
        "Done",
        "Gone",
        "Rollouts are served no more",
    )
    assert (status.reason or "").endswith("but for Rollout shop/cart")


async def test_an_experiment_on_rollouts_says_what_does_not_fit() -> None:
    api = cluster(storm(targets=OF_ROLLOUTS))
    api.broken["argoproj.io"] = OutageError("404", 404)
    status = await go_on(api)
    none = "no Rollout that is selected has the label kreflex.dev/chaos: allowed, itself or by its namespace"
    assert (status.phase, status.reason) == ("Refused", f"{none}, or this cluster knows no Rollouts")
    template = {"workloadRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "cart"}}
    referring = rollout(template)
    del referring["spec"]["template"]
    status = await go_on(cluster(storm(targets=OF_ROLLOUTS), **{ROLLOUT: referring}))
    told = "its template is that of Deployment cart, and Argo would release what is changed there"
    assert (status.phase, status.aborted) == ("Aborted", f"Targets: cart: {told}: experiment with its pods")


async def test_a_deployment_is_left_alone_that_a_rollout_refers_to() -> None:
    ref = {"apiVersion": "apps/v1", "kind": "Deployment", "name": "cart"}
    api = cluster(storm(), **{ROLLOUT: rollout({"workloadRef": ref}, name="canary")})
    status = await go_on(api)
    told = "it is the template of Rollout canary, and Argo would release what is changed in it"
    assert (status.phase, status.aborted) == (
        "Aborted",
        f"Targets: cart: {told}: experiment with the pods of that Rollout",
    )
    assert image(api) == "shop:1"
    other = cluster(storm(duration="1s"), **{ROLLOUT: rollout({"workloadRef": {**ref, "name": "other"}})})
    assert (await go_on(other)).verdict == "Passed"


# Orphans


async def left(api: PatchedApi) -> list[str]:
    return await Orphans(api.world(), Writer(api)).take_back()


async def test_an_object_whose_experiment_nobody_can_read_is_taken_back_when_its_own_time_is_over() -> None:
    api = cluster(storm({"phase": "Nonsense"}), marked(stamp(NOW + timedelta(minutes=1))))
    assert (await left(api), image(api)) == ([], "shop:2")
    api.watch.moment += timedelta(minutes=2)
    assert (await left(api), image(api)) == ([], "shop:1")


async def test_the_turn_of_an_experiment_that_is_over_is_given_back() -> None:
    """The Lease of a process that was stopped in the middle of its write."""
    path = "/apis/coordination.k8s.io/v1/namespaces/shop/leases/kreflex-chaos"
    lease: JSON = {
        "metadata": {"namespace": "shop", "name": "kreflex-chaos", "uid": "u-l", "resourceVersion": "1"},
        "spec": {"holderIdentity": "kreflex-chaos/storm/u-1"},
    }
    for phase, stays in (("Done", False), ("Running", True), ("Pending", True)):
        api = cluster(storm({"phase": phase}), **{path: copy.deepcopy(lease)})
        assert (await left(api), path in api.objects) == ([], stays)


async def test_an_experiment_that_can_t_be_read_keeps_its_turn_and_no_other_s_from_being_given_back() -> None:
    leases = {
        f"/apis/coordination.k8s.io/v1/namespaces/{space}/leases/kreflex-chaos": {
            "metadata": {"namespace": space, "name": "kreflex-chaos", "uid": "u-l", "resourceVersion": "1"},
            "spec": {"holderIdentity": "kreflex-chaos/storm/u-1"},
        }
        for space in ("shop", "bank")
    }
    api = cluster(storm({"phase": "Nonsense"}), **copy.deepcopy(leases))
    world = World(Reader(api, ("shop", "bank")), CannedMetrics(), "chaos-runner")
    assert await Orphans(world, Writer(api)).take_back() == []
    assert [path in api.objects for path in leases] == [True, False]


async def test_what_is_left_is_found_though_another_namespace_goes_or_is_not_there() -> None:
    api = cluster(storm({"phase": "Done"}), marked())
    world = World(Reader(api, ("gone", "shop", "shut")), CannedMetrics(), "chaos-runner")
    api.objects["/api/v1/namespaces/shut"] = {"metadata": {"name": "shut"}}
    for space in ("gone", "shut"):
        api.broken[f"/namespaces/{space}/"] = DENIED
    told = await Orphans(world, Writer(api)).take_back()
    assert image(api) == "shop:1"
    assert told[0] == (
        "what is left of Pods can't be seen in namespace shut: chaos-runner may not do that in namespace shop"
    )
    assert all("in namespace shut" in one for one in told)


async def test_a_rollout_whose_experiment_is_gone_is_taken_back() -> None:
    left_over = {**rollout(), "metadata": marked()["metadata"], "spec": marked()["spec"]}
    api = cluster(storm({"phase": "Done"}), **{ROLLOUT: left_over})
    assert await left(api) == []
    assert api.objects[ROLLOUT]["spec"] == cart()["spec"]
    api.broken["argoproj.io"] = OutageError("404", 404)
    assert await left(api) == []


async def test_one_kind_that_can_t_be_listed_does_not_hide_the_others() -> None:
    api = cluster(storm(), marked())
    api.broken["GET /api/v1/nodes"] = UnavailableError("it took too long")
    del api.objects[STORM]
    assert (await left(api), image(api)) == (["what is left of Nodes can't be seen: it took too long"], "shop:1")


async def test_an_engine_s_object_that_came_late_is_deleted() -> None:
    path = "/apis/chaos-mesh.org/v1alpha1/namespaces/shop/podchaos/x"
    meta = {"namespace": "shop", "name": "x", "uid": "u-x", "resourceVersion": "1"}
    mine: JSON = {"metadata": {**meta, "annotations": {"kreflex.dev/chaos-experiment": "shop/storm/u-1"}}}
    other: JSON = {"metadata": {**meta, "name": "y"}}
    api = cluster(storm({"phase": "Done"}), **{path: mine, path[:-1] + "y": other})
    assert await left(api) == []
    assert [where for where in api.objects if "podchaos" in where] == [path[:-1] + "y"]
