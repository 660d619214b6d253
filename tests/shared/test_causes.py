"""Whether a change is the cause: each rule of docs/adr/0022 with the story that it is for."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from kreflex import Pod, Ref
from kreflex.ailments import Ailment
from kreflex.causes import (
    Around,
    Elsewhere,
    Failing,
    Judgement,
    Neighbour,
    Sound,
    Undecided,
    blame,
    findings,
    judge,
    neighbours,
)
from kreflex.revisions import Release
from kreflex.views import JSON
from tests.releases import (
    CHANGED,
    DAY,
    LIMITS,
    RULES,
    a_pod_of,
    a_release,
    a_revision,
    a_template,
    held,
    looping,
    unplaced,
    unready,
)
from tests.values import HOUR, MINUTE, NOW, a_status, says, stamp, the_node

SECOND = timedelta(seconds=1)
WELL = Around({name: the_node(name) for name in ("blue-1", "blue-2", "blue-3")})
CRASHES = "1 of 1 pods of revision 2 (shop:2) fail: shop-2: app restarted 4 times, last with exit code 1"
OLD_WELL = "1 pods of revision 1 (shop:1) are well at the same time"
HOST = "registry.example.com/team"


def judged(release: Release, around: Around = WELL, errors: str = "") -> Judgement:
    return judge(release, findings(release, LIMITS, NOW, errors), around, RULES, LIMITS, NOW)


def cause(release: Release, around: Around = WELL) -> str:
    """The cause that it is refused with, or what else was judged."""
    told = judged(release, around)
    return told.cause if isinstance(told, Elsewhere) else type(told).__name__


def back(story: str, because: str = OLD_WELL, release: Release | None = None) -> Failing:
    release = release or a_release()
    return Failing(story, because, release.revisions[-1])


# -- the change


def test_new_pods_crash_and_old_ones_are_well() -> None:
    release = a_release(looping(2), old=(a_pod_of(1),))
    assert judged(release) == back(CRASHES)


def test_no_old_pod_is_left_and_the_new_version_was_never_healthy() -> None:
    assert judged(a_release(looping(2))) == back(CRASHES, "it has never been healthy, and nothing else fails")


def test_a_release_that_was_complete_fails_soon_after() -> None:
    release = a_release(looping(2), healthy=(1, 2), complete=True)
    assert judged(release) == back(CRASHES, "it was changed 10m ago, and nothing else fails", release)


def test_goes_back_past_revisions_that_were_never_healthy() -> None:
    revisions = (a_revision(4), a_revision(3), a_revision(2), a_revision(1))
    release = a_release(looping(4), revisions=revisions, healthy=(1, 3))
    told = judged(release)
    assert isinstance(told, Failing)
    assert told.to == release.revisions[1]
    told = judged(a_release(looping(4), revisions=revisions, healthy=(1,)))
    assert isinstance(told, Failing)
    assert told.to == release.revisions[3]


def test_never_goes_back_to_what_was_rolled_back_from() -> None:
    revisions = (a_revision(3), a_revision(2, bad="rollback-shop-1"), a_revision(1))
    release = a_release(looping(3), revisions=revisions, healthy=(1, 2))
    told = judged(release)
    assert isinstance(told, Failing)
    assert told.to == release.revisions[2]


def test_of_two_bad_releases_in_a_row_the_pods_of_the_first_say_nothing() -> None:
    revisions = (a_revision(3), a_revision(2), a_revision(1))
    release = a_release(looping(3), old=(looping(2, "two"),), revisions=revisions)
    told = judged(release)
    assert isinstance(told, Failing)
    assert told.to == release.revisions[2]


def test_pods_that_were_ready_for_long_prove_their_revision_without_a_history() -> None:
    assert judged(a_release(looping(2), old=(a_pod_of(1, ready_for=HOUR),), healthy=())) == back(
        CRASHES, release=a_release(healthy=())
    )


def test_one_that_is_never_ready_fails_by_the_change() -> None:
    story = "1 of 1 pods of revision 2 (shop:2) fail: shop-2: app runs and is not ready for 5m"
    assert judged(a_release(unready(2), old=(a_pod_of(1),))) == back(story)


def test_a_change_of_nothing_but_an_environment_variable_is_a_change() -> None:
    new = a_template("shop:1", container={"env": [{"name": "MODE", "value": "broken"}]})
    release = a_release(looping(2), new=new, old=(a_pod_of(1),))
    assert cause(release) == "Failing"


def test_some_new_pods_fail_and_as_many_seem_well_so_far() -> None:
    release = a_release(looping(2), a_pod_of(2, "fine", node="blue-2", ready_for=5 * MINUTE), old=(a_pod_of(1),))
    assert cause(release) == "Failing"


def test_more_requests_fail_since_the_change() -> None:
    release = a_release(a_pod_of(2, ready_for=5 * MINUTE), complete=True)
    errors = "12% of its requests fail, 0.1% did before"
    never = "it has never been healthy, and nothing else fails"
    assert judged(release, errors=errors) == back(f"revision 2 (shop:2): {errors}", never)


# -- nothing wrong, or too early


def test_a_release_that_is_complete_is_sound() -> None:
    assert judged(a_release(a_pod_of(2), complete=True)) == Sound("revision 2 (shop:2) is complete")


def test_a_release_that_goes_on_well_is_sound() -> None:
    starting = unready(2, ago=MINUTE)
    assert judged(a_release(starting, old=(a_pod_of(1),))) == Sound("revision 2 (shop:2) is on its way")


def started(number: int, name: str, took: timedelta) -> Pod:
    """A pod that has run for a day, and was Ready so long after its start."""
    running = {"running": {"startedAt": stamp(NOW - DAY)}}
    return a_pod_of(number, name, app=[a_status(restarts=0, state=running, last={})], ready_for=DAY - took)


def test_a_version_whose_predecessor_started_slowly_is_given_twice_its_time() -> None:
    slow = started(1, "slow", 3 * MINUTE)
    assert cause(a_release(unready(2, ago=8 * MINUTE - SECOND), old=(slow,))) == "Sound"
    assert cause(a_release(unready(2, ago=8 * MINUTE), old=(slow,))) == "Failing"


def test_so_it_is_where_only_the_history_knows_how_slowly() -> None:
    release = a_release(unready(2, ago=8 * MINUTE - SECOND))
    known = tuple(one.model_copy(update={"start_seconds": 180}) for one in release.history.revisions)
    assert cause(release) == "Failing"
    assert cause(replace(release, history=replace(release.history, revisions=known))) == "Sound"


def test_nobody_is_given_time_without_end() -> None:
    """Whoever was away for a moment seems to have started for hours."""
    ages = started(1, "ages", 20 * HOUR)
    assert cause(a_release(unready(2, ago=12 * MINUTE - SECOND), old=(ages,), changed_ago=HOUR)) == "Sound"
    assert cause(a_release(unready(2, ago=12 * MINUTE), old=(ages,), changed_ago=HOUR)) == "Failing"
    others = (ages, started(1, "quick", SECOND), started(1, "usual", 2 * SECOND))
    assert cause(a_release(unready(2), old=others)) == "Failing"


def test_a_pod_that_runs_between_two_crashes_is_watched() -> None:
    pod = a_pod_of(2, app=[a_status(restarts=5, state={"running": {"startedAt": stamp(NOW - MINUTE)}})])
    told = Undecided("a pod runs again at this moment, and may crash again", NOW + MINUTE)
    assert judged(a_release(pod, old=(a_pod_of(1),))) == told


def test_stuck_without_a_pod_that_fails_is_for_people() -> None:
    story = "revision 2 (shop:2) is not complete in its time (progressDeadlineSeconds), and none of its pods fails"
    assert judged(a_release(a_pod_of(2), stuck=True)) == Elsewhere("Stuck", story, 10 * MINUTE)


# -- a dependency


def test_pods_of_the_old_version_fail_as_well() -> None:
    release = a_release(looping(2), old=(looping(1, "old"),))
    also = "old of an earlier revision fails as well: app restarted 4 times, last with exit code 1"
    assert judged(release) == Elsewhere("Dependency", f"{CRASHES}; {also}")


def test_an_old_pod_that_had_to_start_anew_fails_while_those_that_run_are_well() -> None:
    """As after the abort in https://github.com/argoproj/argo-rollouts/issues/841: nothing could start any more."""
    release = a_release(looping(2), old=(a_pod_of(1), looping(1, "started-anew", age=5 * MINUTE)))
    assert cause(release) == "Dependency"


def test_old_pods_are_not_ready_any_more_either() -> None:
    release = a_release(unready(2), old=(unready(1, "old", age=DAY),))
    assert cause(release) == "Dependency"


@pytest.mark.parametrize(
    "old",
    [looping(1, "old", restarts=1), unready(1, "old", ago=SECOND, age=DAY)],
    ids=["crashed once", "not Ready for a second"],
)
def test_an_old_pod_that_has_only_just_begun_to_fail_is_waited_for(old: Pod) -> None:
    """All that hangs on a database does not crash in the same second."""
    told = judged(a_release(looping(2), old=(old,)))
    assert isinstance(told, Undecided)
    assert told.because.startswith("old of an earlier revision may fail as well: app r")
    assert told.until == NOW + 2 * MINUTE


def test_so_is_a_neighbour_that_has_only_just_begun_to_fail() -> None:
    around = Around(WELL.nodes, (Neighbour("ReplicaSet db", NOW - 9 * MINUTE, NOW - DAY, sure=False),))
    told = Undecided("ReplicaSet db, not changed, may fail as well", NOW + 2 * MINUTE)
    assert judged(a_release(unready(2, ago=9 * MINUTE)), around) == told


def test_an_old_pod_that_is_about_to_go_says_nothing() -> None:
    release = a_release(looping(2), old=(looping(1, "going", terminating=True), a_pod_of(1)))
    assert cause(release) == "Failing"


def test_an_old_pod_on_an_ill_node_says_nothing_of_the_dependency() -> None:
    nodes = Around({"blue-1": the_node("blue-1"), "blue-2": the_node("blue-2", says("Ready", "Unknown"))})
    release = a_release(looping(2), old=(unready(1, "old", node="blue-2", age=DAY), a_pod_of(1)))
    assert cause(release, nodes) == "Failing"


def neighbour(since: timedelta, unchanged: timedelta = DAY) -> Around:
    """A database that fails for so long, and has its template for so long."""
    return Around(WELL.nodes, (Neighbour("StatefulSet db", NOW - since, NOW - unchanged),))


@pytest.mark.parametrize("since", [8 * MINUTE, 9 * MINUTE, 23 * MINUTE])
def test_something_that_nobody_changed_began_to_fail_at_the_same_time(since: timedelta) -> None:
    release = a_release(unready(2, ago=9 * MINUTE))
    story = "1 of 1 pods of revision 2 (shop:2) fail: shop-2: app runs and is not ready for 9m"
    told = Elsewhere("Dependency", f"{story}; StatefulSet db, not changed, began to fail at the same time")
    assert judged(release, neighbour(since)) == told


@pytest.mark.parametrize("since", [7 * MINUTE, 30 * MINUTE, DAY])
def test_what_failed_later_may_fail_because_of_it_and_what_failed_long_before_has_its_own_reasons(
    since: timedelta,
) -> None:
    assert cause(a_release(unready(2, ago=9 * MINUTE)), neighbour(since, 10 * DAY)) == "Failing"


def test_a_neighbour_that_was_released_itself_a_moment_before_may_be_as_bad() -> None:
    around = neighbour(9 * MINUTE, unchanged=12 * MINUTE)
    assert cause(a_release(unready(2, ago=9 * MINUTE)), around) == "Failing"


def test_neighbours_count_even_where_old_pods_are_well_for_those_have_started_before() -> None:
    release = a_release(unready(2, ago=9 * MINUTE), old=(a_pod_of(1),))
    assert cause(release, neighbour(9 * MINUTE)) == "Dependency"


def test_when_requests_fail_nobody_knows_since_when_and_every_neighbour_counts() -> None:
    release = a_release(a_pod_of(2, ready_for=5 * MINUTE), complete=True)
    told = judged(release, neighbour(2 * MINUTE), errors="12% of its requests fail")
    assert isinstance(told, Elsewhere)
    assert told.cause == "Dependency"


# -- a node


def test_all_that_fail_are_on_ill_nodes() -> None:
    nodes = Around({"blue-1": the_node("blue-1", says("Ready", "Unknown"))})
    assert judged(a_release(looping(2), old=(a_pod_of(1),)), nodes) == Elsewhere(
        "Node", f"{CRASHES}; all on ill nodes: blue-1"
    )


@pytest.mark.parametrize(
    "node",
    [
        the_node("blue-1", says("Ready", "False")),
        the_node("blue-1", says("Ready", "True"), says("DiskPressure", "True")),
        the_node("blue-1", says("Ready", "True"), says("NetworkUnavailable", "True")),
        the_node("blue-1", terminating=True),
    ],
)
def test_knows_an_ill_node(node: Any) -> None:
    assert cause(a_release(looping(2), old=(a_pod_of(1),)), Around({"blue-1": node})) == "Node"


def test_a_node_that_is_gone_is_ill() -> None:
    assert cause(a_release(looping(2)), Around()) == "Node"


def test_one_of_the_nodes_being_ill_explains_nothing() -> None:
    nodes = Around({"blue-1": the_node("blue-1", says("Ready", "Unknown")), "blue-2": the_node("blue-2")})
    release = a_release(looping(2), looping(2, "second", node="blue-2"), old=(a_pod_of(1, node="blue-2"),))
    assert cause(release, nodes) == "Failing"


def test_all_that_fail_are_on_one_node_and_others_are_well_elsewhere() -> None:
    fine = [a_pod_of(2, f"fine-{n}", node=f"blue-{n}", ready_for=5 * MINUTE) for n in (2, 3)]
    bad = [looping(2, f"bad-{n}") for n in (1, 2, 3)]
    told = judged(a_release(*bad, *fine))
    story = "3 of 5 pods of revision 2 (shop:2) fail: bad-1: app restarted 4 times, last with exit code 1"
    assert told == Elsewhere("Node", f"{story}; all on blue-1, while others of it are well on blue-2, blue-3")


def test_most_of_the_new_pods_are_well() -> None:
    fine = [a_pod_of(2, f"fine-{n}", node="blue-1", ready_for=5 * MINUTE) for n in (1, 2)]
    story = "1 of 3 pods of revision 2 (shop:2) fail: shop-2: app restarted 4 times, last with exit code 1"
    told = Elsewhere("SomePods", f"{story}; 2 others of it have been Ready for long enough", 10 * MINUTE)
    assert judged(a_release(looping(2), *fine)) == told


def test_pods_that_came_when_it_had_been_healthy_fail_while_the_first_are_well() -> None:
    """As when it is scaled beyond what its database bears."""
    revisions = (a_revision(2, healthy_at=NOW - 8 * MINUTE), a_revision(1))
    first = a_pod_of(2, "first", node="blue-2")
    later = [looping(2, f"later-{n}", node=f"blue-{n}", age=5 * MINUTE) for n in (1, 2, 3)]
    story = "3 of 4 pods of revision 2 (shop:2) fail: later-1: app restarted 4 times, last with exit code 1"
    others = "all came after it was healthy, and 1 others of it have been Ready since before"
    told = Elsewhere("SomePods", f"{story}; {others}", 10 * MINUTE)
    assert judged(a_release(*later, first, revisions=revisions)) == told
    assert cause(a_release(*later, looping(2, "first"), revisions=revisions)) == "Failing"
    assert cause(a_release(*later, first)) == "Failing"


PROBE = {"readinessProbe": {"httpGet": {"port": 80}}}


@pytest.mark.parametrize(
    ("new", "strategy", "expected"),
    [
        (PROBE, {}, "Dependency"),
        (PROBE, {"maxUnavailable": 2}, "Dependency"),
        (PROBE, {"maxUnavailable": 3}, "Failing"),
        (PROBE, {"maxUnavailable": "66%"}, "Dependency"),
        (PROBE, {"maxUnavailable": "67%"}, "Failing"),
        (PROBE, {"maxUnavailable": 0, "maxSurge": "100%"}, "Failing"),
        # It was ready while it ran, and so the next was replaced.
        ({}, {}, "Failing"),
    ],
)
def test_a_daemon_set_replaces_more_at_once_only_where_the_old_pods_were_not_available(
    new: JSON, strategy: JSON, expected: str
) -> None:
    pods = [looping(2, f"new-{n}", node=f"blue-{n}") for n in (1, 2, 3)]
    release = a_release(
        *pods,
        new=a_template("shop:2", container=new),
        kind="DaemonSet",
        spec={"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": strategy}},
        status={"desiredNumberScheduled": 3},
    )
    assert cause(release) == expected


def test_of_two_bad_releases_in_a_row_a_daemon_set_replaces_all_pods_of_the_first() -> None:
    pods = [looping(3, f"new-{n}", node=f"blue-{n}") for n in (1, 2, 3)]
    template = a_template("shop:3", container=PROBE)
    release = a_release(*pods, revisions=(a_revision(3, template), a_revision(2), a_revision(1)), kind="DaemonSet")
    assert cause(release) == "Failing"


# -- time


def test_a_version_that_was_healthy_for_longer_than_the_window_did_not_fail_by_its_change() -> None:
    release = a_release(unready(2, ago=5 * MINUTE), changed_ago=2 * HOUR, healthy=(1, 2))
    story = "1 of 1 pods of revision 2 (shop:2) fail: shop-2: app runs and is not ready for 5m"
    late = "it began 1h55m after the change, which is later than 1h"
    assert judged(release) == Elsewhere("TooLate", f"{story}; {late}")


def test_what_began_within_the_window_is_still_the_change_when_somebody_looks_later() -> None:
    assert cause(a_release(unready(2, ago=90 * MINUTE), changed_ago=100 * MINUTE)) == "Failing"


def test_more_pods_of_a_version_that_is_healthy_are_no_change() -> None:
    release = a_release(
        unplaced(2, "0/3 nodes are available: 3 Insufficient cpu."),
        a_pod_of(2, "fine", ready_for=9 * MINUTE),
        new=a_template("shop:2", container={"resources": {"requests": {"cpu": "2"}}}),
        healthy=(1, 2),
    )
    assert cause(release) == "Unschedulable"


def test_a_restart_is_no_change() -> None:
    notes = {"labels": {"app": "shop"}, "annotations": {"kubectl.kubernetes.io/restartedAt": "2026-05-01T12:00:00Z"}}
    release = a_release(looping(2), new={**a_template("shop:1"), "metadata": notes})
    story = "1 of 1 pods of revision 2 (shop:1) fail: shop-2: app restarted 4 times, last with exit code 1"
    told = Elsewhere("Restarted", f"{story}; it is revision 1 (shop:1), restarted: nothing else was changed")
    assert judged(release) == told
    new = {**a_template("shop:2"), "metadata": notes}
    assert cause(a_release(looping(2), new=new)) == "Failing"


# -- nothing to go back to


def test_the_first_release_has_nothing_before_it() -> None:
    release = a_release(looping(1), revisions=(a_revision(1),), healthy=())
    story = "1 of 1 pods of revision 1 (shop:1) fail: shop-1: app restarted 4 times, last with exit code 1"
    assert judged(release) == Elsewhere("FirstRelease", f"{story}; it has no earlier revision: nothing to go back to")


def test_earlier_revisions_that_nobody_keeps_can_t_be_gone_back_to() -> None:
    told = judged(a_release(looping(2), revisions=(a_revision(2),), healthy=()))
    why = "none of its earlier revisions is kept (spec.revisionHistoryLimit): release a mended one"
    assert told == Elsewhere("NoHealthyRevision", f"{CRASHES}; {why}")


def test_no_earlier_revision_was_ever_seen_healthy() -> None:
    known = "none of its 1 earlier revisions is known to have been healthy for 5m"
    todo = "choose one by hand (kubectl rollout undo --to-revision), or release a mended one"
    assert judged(a_release(looping(2), healthy=())) == Elsewhere("NoHealthyRevision", f"{CRASHES}; {known}: {todo}")


def test_old_pods_that_were_ready_for_a_minute_only_prove_nothing() -> None:
    release = a_release(looping(2), old=(a_pod_of(1, ready_for=MINUTE),), healthy=())
    assert cause(release) == "NoHealthyRevision"


# -- pods that can't be created


def unmade(said: str, ago: timedelta = CHANGED) -> JSON:
    since = stamp(NOW - ago)
    return {"type": "ReplicaFailure", "status": "True", "message": said, "lastTransitionTime": since}


QUOTA = (
    'pods "shop-2-x" is forbidden: exceeded quota: small, requested: limits.cpu=1, used: limits.cpu=2, limited:'
    " limits.cpu=2"
)
MORE = a_template("shop:2", container={"resources": {"limits": {"cpu": "1"}}})


@pytest.mark.parametrize(
    ("said", "new", "expected"),
    [
        (QUOTA, None, "Quota"),
        (QUOTA, MORE, "Failing"),
        ('pods "x" is forbidden: failed quota: q: must specify limits.cpu for: app', None, "Quota"),
        ('pods "x" is forbidden: maximum cpu usage per Container is 500m, but limit is 1', MORE, "Failing"),
        (
            (
                'pods "x" is forbidden: violates PodSecurity "restricted:latest": privileged (container "app" must not'
                " set securityContext.privileged=true)"
            ),
            a_template("shop:2", container={"securityContext": {"privileged": True}}),
            "Failing",
        ),
        ('pods "x" is forbidden: violates PodSecurity "restricted:latest": seccompProfile', None, "PodsDenied"),
        (
            (
                'Internal error occurred: failed calling webhook "policy.example": failed to call webhook: Post "https://…":'
                " dial tcp 10.0.0.1:443: connect: connection refused"
            ),
            None,
            "PodsDenied",
        ),
        ('admission webhook "images.example" denied the request: not signed', None, "PodsDenied"),
        (
            'pods "x" is forbidden: error looking up service account shop/new: serviceaccount "new" not found',
            a_template("shop:2", serviceAccountName="new"),
            "Failing",
        ),
    ],
    ids=str,
)
def test_pods_that_the_api_server_does_not_let_in(said: str, new: JSON | None, expected: str) -> None:
    assert cause(a_release(new=new, old=(a_pod_of(1),), conditions=(unmade(said),))) == expected


BUSY = a_template(container={"resources": {"requests": {"cpu": "1"}}})


@pytest.mark.parametrize(
    ("asked", "exceeded", "expected"),
    [
        ("1100m", "requested: requests.cpu=1100m, used: requests.cpu=4, limited: requests.cpu=4", "Quota"),
        ("5", "requested: requests.cpu=5, used: requests.cpu=2, limited: requests.cpu=4", "Failing"),
        ("5", "requested: cpu=5, used: cpu=3, limited: cpu=4", "Failing"),
        ("5", "requested: cpu=5, used: cpu=3500m, limited: cpu=4", "Quota"),
        ("5", "requested: pods=1, used: pods=3, limited: pods=3", "Quota"),
        # What a mesh puts into each pod is asked for beside the template.
        ("2", "requested: cpu=2500m, used: cpu=3, limited: cpu=4", "Quota"),
        ("2", "requested: cpu=2500m,memory=1Gi, used: cpu=1,memory=1Gi, limited: cpu=3,memory=1Gi", "Quota"),
    ],
)
def test_a_quota_is_the_change_s_fault_if_the_old_template_had_room_in_it(
    asked: str, exceeded: str, expected: str
) -> None:
    new = a_template("shop:2", container={"resources": {"requests": {"cpu": asked}}})
    said = f'pods "shop-h2-x" is forbidden: exceeded quota: small, {exceeded}'
    release = a_release(new=new, before=BUSY, old=(a_pod_of(1),), conditions=(unmade(said),))
    assert cause(release) == expected


def test_pods_of_an_old_revision_that_can_t_be_made_are_no_failure_of_the_new_one() -> None:
    release = a_release(new=MORE, old=(a_pod_of(1),), conditions=(unmade(QUOTA.replace("shop-2-x", "shop-h1-x")),))
    assert judged(release) == Sound("revision 2 (shop:2) is on its way")


def test_a_quota_that_is_full_since_long_after_the_change_is_not_its_fault() -> None:
    release = a_release(new=MORE, changed_ago=3 * HOUR, conditions=(unmade(QUOTA, MINUTE),))
    assert cause(release) == "TooLate"


def test_a_quota_that_let_in_some_of_the_new_pods_is_full() -> None:
    fine = a_pod_of(2, ready_for=5 * MINUTE)
    assert cause(a_release(fine, new=MORE, conditions=(unmade(QUOTA),))) == "Quota"


# -- what the kubelet and the scheduler say


def image(said: str, reason: str = "ErrImagePull") -> Ailment:
    pod = held(2, reason, said)
    return Ailment(pod, "Image", f"app waits: {reason}: {said}", NOW, "app", said)


def pulled(what: str) -> str:
    return f'failed to pull and unpack image "{HOST}/shop:2": failed to resolve reference "{HOST}/shop:2": {what}'


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (f"{HOST}/shop:2: not found", None),
        ("unexpected status from HEAD request: 404 Not Found", None),
        ("manifest unknown: manifest unknown", None),
        ("no match for platform in manifest: not found", None),
        ("failed to do request: Head: dial tcp 10.1.2.3:443: i/o timeout", "Registry"),
        ("failed to do request: Head: dial tcp 10.1.2.3:443: connect: connection refused", "Registry"),
        ("failed to do request: Head: net/http: TLS handshake timeout", "Registry"),
        ("failed to do request: tls: x509: certificate has expired or is not yet valid", "Registry"),
        ("failed to do request: dial tcp: lookup registry.example.com: no such host", "Registry"),
        ("unexpected status from HEAD request: 401 Unauthorized", "Registry"),
        ("unexpected status from HEAD request: 403 Forbidden", "Registry"),
        (
            "failed to authorize: failed to fetch anonymous token: unexpected status: 503 Service Unavailable",
            "Registry",
        ),
        ("429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate limit", "Registry"),
        ("context deadline exceeded", "Registry"),
        ("write /var/lib/containerd: no space left on device", "Registry"),
        ("it is a bad day", "ImageUnknown"),
        ("", "ImageUnknown"),
    ],
)
def test_of_an_image_that_is_not_there_and_a_registry_that_does_not_answer(said: str, expected: str | None) -> None:
    new, old = a_template(f"{HOST}/shop:2"), a_template(f"{HOST}/shop:1")
    assert blame(image(pulled(said) if said else ""), new, old) == expected


@pytest.mark.parametrize(
    ("new", "said", "expected"),
    [
        ("registry.exmaple.com/team/shop:2", "dial tcp: lookup registry.exmaple.com: no such host", None),
        (f"{HOST}/shpo:2", "pull access denied, repository does not exist or may require authorization", None),
        (f"{HOST}/shpo:2", "unexpected status from HEAD request: 401 Unauthorized", None),
        (f"{HOST}/shop:1", f"{HOST}/shop:1: not found", "Registry"),
        (f"{HOST}/timeout-429:2", f"{HOST}/timeout-429:2: not found", None),
    ],
)
def test_what_was_changed_in_an_image_s_name_may_be_wrong(new: str, said: str, expected: str | None) -> None:
    assert blame(image(said), a_template(new), a_template(f"{HOST}/shop:1")) == expected


@pytest.mark.parametrize("reason", ["InvalidImageName", "ErrImageNeverPull"])
def test_a_name_that_is_none_is_the_change(reason: str) -> None:
    assert blame(image("", reason), a_template("shop::2"), a_template("shop:1")) is None


def test_one_pod_that_is_told_why_speaks_for_those_that_are_not() -> None:
    told = held(2, "ErrImagePull", "docker.io/library/shop:2: not found", name="told")
    release = a_release(held(2, "ImagePullBackOff", 'Back-off pulling image "shop:2"'), told, old=(a_pod_of(1),))
    assert cause(release) == "Failing"
    alone = a_release(held(2, "ImagePullBackOff", 'Back-off pulling image "shop:2"'), old=(a_pod_of(1),))
    waits = 'app waits: ImagePullBackOff: Back-off pulling image "shop:2"'
    story = f"1 of 1 pods of revision 2 (shop:2) fail: shop-2: {waits}"
    why = "why the image can't be pulled is not told yet"
    assert judged(alone) == Elsewhere("ImageUnknown", f"{story}; {why}", MINUTE)


def env(kind: str, name: str, key: str) -> JSON:
    return {"env": [{"name": "X", "valueFrom": {f"{kind}KeyRef": {"name": name, "key": key}}}]}


FROM_MAP = a_template("shop:2", container={"envFrom": [{"configMapRef": {"name": "settings"}}]})
FROM_SECRET = a_template("shop:2", container=env("secret", "login", "token"))


@pytest.mark.parametrize(
    ("said", "new", "old", "expected"),
    [
        ('configmap "settings" not found', FROM_MAP, a_template(), None),
        ('configmap "settings" not found', FROM_MAP, FROM_MAP, "Config"),
        ('secret "login" not found', FROM_SECRET, a_template(), None),
        ('secret "login" not found', FROM_SECRET, a_template(container=env("secret", "login", "user")), "Config"),
        ("couldn't find key token in Secret shop/login", FROM_SECRET, FROM_SECRET, "Config"),
        (
            "couldn't find key token in Secret shop/login",
            FROM_SECRET,
            a_template(container=env("secret", "login", "user")),
            None,
        ),
        (
            "couldn't find key mode in ConfigMap shop/settings",
            a_template(container=env("configMap", "settings", "mode")),
            a_template(container=env("configMap", "settings", "level")),
            None,
        ),
        (
            'configmap "settings-5f7" not found',
            a_template(volumes=[{"name": "v", "configMap": {"name": "settings-5f7"}}]),
            a_template(volumes=[{"name": "v", "configMap": {"name": "settings-4a1"}}]),
            None,
        ),
        (
            "container has runAsNonRoot and image will run as root",
            a_template("shop:2"),
            a_template("shop:1"),
            None,
        ),
    ],
    ids=str,
)
def test_of_a_configuration_that_is_missing(said: str, new: JSON, old: JSON, expected: str | None) -> None:
    one = Ailment(held(2, "CreateContainerConfigError", said), "Config", "", NOW, "app", said)
    assert blame(one, new, old) == expected


FULL = (
    "0/3 nodes are available: 3 Insufficient cpu. preemption: 0/3 nodes are available: 3 No preemption victims found."
)
SELECTS = "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector."


@pytest.mark.parametrize(
    ("said", "new", "expected"),
    [
        (FULL, a_template("shop:2"), "Unschedulable"),
        (FULL, a_template("shop:2", container={"resources": {"requests": {"cpu": "64"}}}), None),
        (FULL, a_template("shop:2", nodeSelector={"disk": "ssd"}), "Unschedulable"),
        (SELECTS, a_template("shop:2", nodeSelector={"disk": "ssd"}), None),
        (SELECTS, a_template("shop:2"), "Unschedulable"),
        (FULL, a_template("shop:2", container={"resources": {"requests": {"memory": "64Gi"}}}), "Unschedulable"),
        (FULL, a_template("shop:2", container={"resources": {"limits": {"cpu": "64"}}}), None),
        (
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) were unschedulable.",
            a_template("shop:2", container={"resources": {"requests": {"cpu": "1"}}}),
            "Unschedulable",
        ),
        (
            "0/3 nodes are available: 3 node(s) had untolerated taint {node.kubernetes.io/unreachable: }.",
            a_template("shop:2", container={"resources": {"requests": {"cpu": "1"}}}),
            "Unschedulable",
        ),
        (
            "0/3 nodes are available: 3 node(s) were unschedulable.",
            a_template("shop:2", priorityClassName="high"),
            "Unschedulable",
        ),
        (
            "0/1 nodes are available: 1 Insufficient nvidia.com/gpu.",
            a_template("shop:2", container={"resources": {"limits": {"nvidia.com/gpu": "8"}}}),
            None,
        ),
        (
            "0/3 nodes are available: 1 Insufficient cpu, 2 node(s) didn't match Pod's node affinity/selector.",
            a_template("shop:2", nodeSelector={"disk": "ssd"}),
            None,
        ),
        (
            'persistentvolumeclaim "data" not found',
            a_template(volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "data"}}]),
            None,
        ),
    ],
    ids=str,
)
def test_of_a_pod_that_no_node_takes(said: str, new: JSON, expected: str | None) -> None:
    one = Ailment(unplaced(2, said), "Unplaced", "", NOW, said=said)
    assert blame(one, new, a_template("shop:1")) == expected


@pytest.mark.parametrize(
    ("kind", "said", "new", "expected"),
    [
        ("Start", 'exec: "serve": executable file not found in $PATH', a_template("shop:2"), None),
        ("Start", "context deadline exceeded", a_template("shop:2"), "Runtime"),
        ("Start", "failed to reserve container name", a_template("shop:2"), "Runtime"),
        ("Waiting", "", a_template("shop:2"), "NotStarted"),
        ("Waiting", "", a_template(volumes=[{"name": "v", "secret": {"secretName": "new"}}]), None),
        ("Gate", "", a_template("shop:2"), "ReadinessGate"),
        ("Loop", "", a_template("shop:2"), None),
        ("Unready", "", a_template("shop:2"), None),
    ],
)
def test_of_other_ailments(kind: Any, said: str, new: JSON, expected: str | None) -> None:
    assert blame(Ailment(a_pod_of(2), kind, "", NOW, "app", said), new, a_template("shop:1")) == expected


def of_container(name: str, kind: Any = "Loop") -> Ailment:
    return Ailment(a_pod_of(2), kind, "", NOW, name)


WAITS = {"name": "wait-for-db", "image": "tools:1"}


@pytest.mark.parametrize("kind", ["Loop", "Unready", "Start"])
def test_a_container_that_a_webhook_has_put_in_is_not_the_release_s(kind: Any) -> None:
    assert blame(of_container("istio-proxy", kind), a_template("shop:2"), a_template()) == "Injected"


def test_an_init_container_that_was_not_changed_fails_before_the_change_runs() -> None:
    new, old = a_template("shop:2", initContainers=[WAITS]), a_template(initContainers=[WAITS])
    assert blame(of_container("wait-for-db"), new, old) == "Dependency"
    assert blame(of_container("app"), new, old) is None


@pytest.mark.parametrize(
    ("new", "old"),
    [
        ([{**WAITS, "image": "tools:2"}], [WAITS]),
        ([WAITS], []),
        ([{"name": "migrate", "image": "migrate:2"}, WAITS], [WAITS]),
        ([{**WAITS, "restartPolicy": "Always"}], [{**WAITS, "restartPolicy": "Always"}]),
    ],
    ids=["another image", "a new one", "another before it", "a sidecar"],
)
def test_of_another_init_container_the_change_may_be_the_cause(new: list[JSON], old: list[JSON]) -> None:
    templates = a_template("shop:2", initContainers=new), a_template(initContainers=old)
    assert blame(of_container("wait-for-db"), *templates) is None


# -- neighbours


def db(name: str, pod: Any, owner: str = "db") -> Pod:
    ref = Ref("apps/v1", "ReplicaSet", "shop", owner, f"uid-{owner}")
    found: Pod = pod(1, name, owner=ref, **({} if pod is a_pod_of else {"age": DAY}))
    return found


def test_a_neighbour_fails_if_half_of_its_pods_do() -> None:
    half = [db("a", unready), db("b", a_pod_of)]
    made = {"uid-db": NOW - 3 * DAY}
    told = (Neighbour("ReplicaSet db", NOW - 5 * MINUTE, NOW - 3 * DAY),)
    assert neighbours(half, made, LIMITS, NOW) == told
    assert neighbours([*half, db("c", a_pod_of)], made, LIMITS, NOW) == ()


def test_a_neighbour_that_crashed_once_is_not_sure_to_fail() -> None:
    owner = Ref("apps/v1", "ReplicaSet", "shop", "db", "uid-db")
    pods = [looping(1, "a", restarts=1, owner=owner, age=DAY)]
    told = Neighbour("ReplicaSet db", NOW, NOW - 3 * DAY, sure=False)
    assert neighbours(pods, {"uid-db": NOW - 3 * DAY}, LIMITS, NOW) == (told,)


def test_without_a_replica_set_a_template_is_as_old_as_its_oldest_pod() -> None:
    assert neighbours([db("a", unready)], {}, LIMITS, NOW) == (Neighbour("ReplicaSet db", NOW - 5 * MINUTE, NOW - DAY),)


def test_jobs_bare_pods_and_pods_that_wait_for_room_are_no_neighbours() -> None:
    job = Ref("batch/v1", "Job", "shop", "nightly", "uid-nightly")
    pods = [looping(1, "a", owner=job), looping(1, "b", owner=None), unplaced(1, FULL)]
    assert neighbours(pods, {}, LIMITS, NOW) == ()


def test_a_pod_that_is_ready_has_no_neighbour_s_trouble() -> None:
    assert neighbours([a_pod_of(1, ready_for=HOUR)], {}, LIMITS, NOW) == ()
