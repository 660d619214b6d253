"""Which writes of chaos-runner the benchmark of chaos meets, and how."""

import json
from collections import Counter
from typing import Any

from bench.chaos import CALM, always, blows, covered, steps_of
from bench.chaos_lane import MARK, Case, Story, late, step_of
from lab.faults import Call

IMAGE = Story("Image")
BOTH = (IMAGE, Story("Probe"))
EXPERIMENT = "/apis/kreflex.dev/v1alpha1/namespaces/shop/experiments/storm"
DEPLOYMENT = "/apis/apps/v1/namespaces/shop/deployments/cart"


def call(method: str, path: str, body: Any = None) -> Call:
    return Call(method, path, json.dumps(body).encode())


def status(phase: str, *words: str, holder: str | None = "me") -> Call:
    told = {"phase": phase, "holder": holder, "timeline": [{"word": word} for word in words]}
    return call("PATCH", f"{EXPERIMENT}/status", {"status": told})


def test_each_kind_of_write_has_a_name() -> None:
    mark = {"op": "add", "path": "/metadata/annotations", "value": {MARK: "shop/storm/u"}}
    writes = [
        call("PATCH", EXPERIMENT, {"metadata": {"finalizers": ["f"]}}),
        call("POST", "/apis/coordination.k8s.io/v1/namespaces/shop/leases", {}),
        status("Pending"),
        status("Running", "began", "chosen"),
        call("PATCH", DEPLOYMENT, [mark]),
        call("PATCH", DEPLOYMENT, [{"op": "remove", "path": "/metadata/annotations"}]),
        call("DELETE", "/apis/coordination.k8s.io/v1/namespaces/shop/leases/kreflex-chaos", {}),
        call("PATCH", EXPERIMENT, {"metadata": {"finalizers": []}}),
        status("Done", "verdict", holder=None),
    ]
    assert [step_of(one) for one in writes] == [
        "finalizer set",
        "lease",
        "Pending",
        "Running chosen",
        "patch deployments: fault",
        "patch deployments: back",
        "release",
        "finalizer removed",
        "Done verdict let go",
    ]


def test_each_step_of_each_story_is_met_in_four_ways() -> None:
    calm = [Case(story, steps=Counter({"lease": 1, "Running fault": 2})) for story in BOTH for _ in range(CALM)]
    steps = steps_of(calm)
    cases = blows(steps)
    assert len(cases) == len({(case.story.kind, case.step, case.moment) for case in cases}) == 2 * 2 * 4
    assert {case.turn for case in cases if case.step == "Running fault" and case.moment in {"after", "stopped"}} == {2}
    assert len(blows(steps, 5)) == 5
    for case in cases:
        case.struck = True
    assert len(covered(cases)) == 4
    cases[0].struck = False
    cases[1].wrong = ["cart is not as it was"]
    assert len(covered(cases)) == 4 - len({(case.story.kind, case.step) for case in cases[:2]})


def test_what_came_by_chance_is_met_if_it_comes_again() -> None:
    calm = [Case(IMAGE, steps=Counter({"lease": 1, "Running fault": times})) for times in (3, 2)]
    calm[0].steps["Reverting stuck"] = 1
    assert steps_of(calm) == {(IMAGE, "lease"): 1, (IMAGE, "Running fault"): 2, (IMAGE, "Reverting stuck"): 1}
    assert always(calm) == {(IMAGE, "lease"), (IMAGE, "Running fault")}


def test_a_blow_meets_the_write_that_it_is_for() -> None:
    strike = Case(IMAGE, "Running fault", "after", turn=2).strike()
    told = [
        status("Running", "fault"),
        call("GET", EXPERIMENT),
        status("Running", "chosen"),
        status("Running", "fault"),
    ]
    assert [strike.chosen(one) for one in told] == [False, False, False, True]
    stop = Case(IMAGE, "lease", "stopped", seconds=4).strike()
    assert (stop.blow, stop.moment, stop.seconds) == ("stop", "before", 4)


def test_what_is_taken_back_too_late_is_told() -> None:
    one = {"target": {"name": "cart"}, "state": "Reverted", "revertedAt": "2026-11-22T12:01:11Z"}
    still = {"target": {"name": "app"}, "state": "Injected"}
    told = late({"phase": "Done", "revertBy": "2026-11-22T12:01:00Z", "injected": [one, still]})
    assert told == [
        "cart was taken back at 2026-11-22T12:01:11Z, after 2026-11-22 12:01:10+00:00",
        "app is still Injected",
    ]
    assert late({"phase": "Refused", "reason": "no"}) == ["it was refused: no"]
