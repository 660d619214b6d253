"""Whether more requests fail since a change, by what Prometheus answers."""

import pytest

from kreflex.releases import Comparison, Releases
from kreflex.revisions import Release
from kreflex.trends import errors_since
from tests.releases import a_pod_of, a_release
from tests.values import MINUTE, NOW, CannedMetrics

RULES = Releases(canary=Comparison(requests="all{hash='{hash}'}", errors="bad{hash='{hash}'}"))
DONE = a_release(a_pod_of(2), complete=True)


async def told(*answers: float | None, release: Release = DONE, rules: Releases = RULES) -> tuple[str, list[str]]:
    metrics = CannedMetrics(*answers)
    before = release.revisions[1]
    return await errors_since(release, before, rules, metrics, NOW), metrics.queries


async def test_compares_now_and_soon_after_the_change_with_the_moment_before_it() -> None:
    words, queries = await told(1000, 1, 1000, 200, 1000, 300)
    assert words == "30.0% of 1000 requests fail, and 0.1% of 1000 did just before the change"
    old, new = (f"{{hash='h{number}'}}" for number in (1, 2))
    assert queries == [
        f"last_over_time((all{old})[1m:15s] offset 615s)",
        f"last_over_time((bad{old})[1m:15s] offset 615s)",
        f"last_over_time((all{new})[1m:15s] offset 360s)",
        f"last_over_time((bad{new})[1m:15s] offset 360s)",
        f"all{new}",
        f"bad{new}",
    ]


@pytest.mark.parametrize(
    "answers",
    [
        (1000, 300, 1000, 300, 1000, 300),
        (1000, 1, 1000, 1, 1000, 300),
        (1000, 1, 1000, 300, 1000, 1),
        (20, 0, 1000, 300, 1000, 300),
        (None, None, 1000, 300, 1000, 300),
    ],
    ids=["as many before", "began later", "over", "too few before", "nothing before"],
)
async def test_what_did_not_begin_with_the_change_is_not_told(answers: tuple[float | None, ...]) -> None:
    assert (await told(*answers))[0] == ""


async def test_compares_new_pods_with_old_ones_while_both_serve() -> None:
    release = a_release(a_pod_of(2), old=(a_pod_of(1),))
    words, queries = await told(1000, 200, 1000, 1, release=release)
    assert (
        words == "20.0% of 1000 requests of its pods fail, and 0.1% of 1000 of those of the earlier version beside them"
    )
    assert [query.count("offset") for query in queries] == [0, 0, 0, 0]
    assert (await told(1000, 200, 1000, 190, release=release))[0] == ""


async def test_a_prometheus_that_does_not_answer_proves_nothing() -> None:
    assert (await told())[0] == ""


async def test_without_queries_in_the_policy_nobody_is_asked() -> None:
    assert await told(1000, rules=Releases()) == ("", [])


async def test_soon_after_a_change_soon_is_now() -> None:
    release = a_release(a_pod_of(2), complete=True, changed_ago=MINUTE)
    _, queries = await told(1000, 1, 1000, 200, 1000, 300, release=release)
    assert [query.partition("offset ")[2] for query in queries] == ["75s)", "75s)", "", "", "", ""]
