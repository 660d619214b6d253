"""When a canary is worse than what is stable, by requests and by pods."""

import math
import random
from dataclasses import replace
from datetime import timedelta

import pytest

from kreflex.comparisons import Count, Inconclusive, Same, Side, Worse, by_pods, compare, filled, lower_bound, wilson
from kreflex.comparisons import judged as of_counts
from kreflex.prom import Metrics
from kreflex.releases import Comparison
from kreflex.views import Pod
from tests.values import MINUTE, NOW, CannedMetrics, a_status, the_pod, waits

RULES = Comparison(requests="requests{pods}", errors="errors{pods}")
TRIAL, STABLE = Side("shop", "cart-canary", "7d4", "cart-canary"), Side("shop", "cart", "5f6", "cart")
WELL, CRASHES = the_pod(ready_for=MINUTE), the_pod()


async def judged(*answers: float | None) -> Worse | Same | Inconclusive:
    """What is said of a canary's requests and failures, and of stable's."""
    return await compare(TRIAL, STABLE, RULES, CannedMetrics(*answers))


async def test_a_canary_that_surely_fails_more_is_worse() -> None:
    told = "the canary fails 20.0% of 200 requests, what is stable 0.2% of 1800"
    assert await judged(200, 40, 1800, 4) == Worse(f"{told}: 11.3% more at least, with a confidence of 99.99%")


async def test_a_canary_that_fails_as_much_as_what_is_stable_is_not_worse() -> None:
    assert isinstance(await judged(200, 40, 1800, 360), Same)


@pytest.mark.parametrize("failed", [0, 9])
async def test_a_canary_that_fails_less_than_the_least_is_never_worse(failed: float) -> None:
    assert isinstance(await judged(200, failed, 1_800_000, 0), Same)


async def test_what_may_be_chance_is_inconclusive() -> None:
    assert await judged(50, 4, 50, 2) == Inconclusive(
        "the canary fails 8.0% of 50 requests, what is stable 4.0% of 50:"
        " with a confidence of 99.99% that may be chance"
    )


@pytest.mark.parametrize("answers", [(49, 49, 1000, 0), (1000, 1000, 49, 0), (0, 0, 0, 0)])
async def test_too_few_requests_of_one_side_are_inconclusive(answers: tuple[float, ...]) -> None:
    told = await judged(*answers)
    assert isinstance(told, Inconclusive)
    assert "fewer than 50" in told.because


@pytest.mark.parametrize("answers", [(None, None, 1000, 0), (1000, 1000, None, None)])
async def test_no_data_is_no_failure(answers: tuple[float | None, ...]) -> None:
    told = await judged(*answers)
    assert isinstance(told, Inconclusive)
    assert "no data is no failure" in told.because


async def test_a_counter_that_has_counted_no_failure_has_no_series() -> None:
    assert isinstance(await judged(200, 40, 1800, None), Worse)
    assert isinstance(await judged(200, None, 1800, None), Same)


async def test_a_prometheus_that_is_down_is_inconclusive() -> None:
    assert await judged() == Inconclusive("nobody can tell whether the canary is worse: Prometheus did not answer")


async def test_both_sides_are_asked_for_their_own_pods() -> None:
    metrics = CannedMetrics(1, 1, 1, 1)
    await compare(TRIAL, STABLE, RULES, metrics)
    trial, stable = "cart-canary-7d4-[a-z0-9-]+", "cart-5f6-[a-z0-9-]+"
    assert metrics.queries == [f"requests{trial}", f"errors{trial}", f"requests{stable}", f"errors{stable}"]


async def test_of_a_canary_the_pods_that_it_has_now_are_asked_for() -> None:
    """Those of an earlier try of the same version have failed, and it was aborted for that."""
    metrics = CannedMetrics(1, 1, 1, 1)
    pods = tuple(the_pod(ref=replace(WELL.ref, name=f"cart-canary-7d4-{end}")) for end in ("a.b", "c"))
    await compare(replace(TRIAL, pods=pods), replace(STABLE, pods=pods), RULES, metrics)
    assert metrics.queries[::2] == ["requestscart-canary-7d4-a[.]b|cart-canary-7d4-c", "requestscart-5f6-[a-z0-9-]+"]


async def test_sides_that_are_equal_are_seldom_taken_for_different_in_an_hour_of_looks() -> None:
    chance = random.Random(1)
    aborted = 0
    for _ in range(100):
        trial, stable = ([sum(chance.random() < 0.05 for _ in range(n)) for _ in range(60)] for n in (20, 180))
        looks = [(sum(trial[t : t + 5]), sum(stable[t : t + 5])) for t in range(55)]
        told = [of_counts(Count(100, mine), Count(900, other), RULES) for mine, other in looks]
        aborted += any(isinstance(one, Worse) for one in told)
    assert aborted <= 5


def test_only_the_places_that_are_known_are_filled() -> None:
    query = 'sum by (le) (x{{namespace="{namespace}",app="{workload}",v="{hash}",s="{service}",z="{zone}"}})'
    assert filled(query, TRIAL) == (
        'sum by (le) (x{{namespace="shop",app="cart-canary",v="7d4",s="cart-canary",z="{zone}"}})'
    )


@pytest.mark.parametrize("name", ['a"} or vector(1) #', "a\\", "a'} or b{c='", "a`", "a\nb"])
def test_no_name_breaks_out_of_its_string(name: str) -> None:
    text = filled('x{a="{service}"}', Side("shop", "cart", "7d4", name))
    assert text.count('"') == 2
    assert not any(one in text for one in "\\'`\n")


def test_the_names_of_pods_are_matched_as_the_api_server_cuts_them() -> None:
    assert Side("shop", "a" * 70, "7d4").pattern == "a" * 58 + "[a-z0-9-]+"
    assert Side("shop", "cart.v2", "7d4").pattern == "cart[.]v2-7d4-[a-z0-9-]+"


def test_wilsons_interval_is_that_of_the_tables() -> None:
    """10 of 100, two-sided 95 %: Agresti and Coull 1998 and every table give 0.0552 to 0.1744."""
    assert [round(bound, 4) for bound in wilson(10, 100, 0.975)] == [0.0552, 0.1744]
    assert wilson(0, 50, 0.99)[0] == 0


def test_newcombes_interval_is_that_of_his_paper() -> None:
    """Table II of Newcombe 1998, method 10: 56/70 and 48/80 give 0.0524 to 0.3339; 9/10 and 3/10 from 0.1705 on."""
    assert math.isclose(lower_bound(56, 70, 48, 80, 0.975), 0.0524, abs_tol=5e-5)
    assert math.isclose(lower_bound(9, 10, 3, 10, 0.975), 0.1705, abs_tol=5e-5)


# Without requests


def of_pods(trial: tuple[Pod, ...], stable: tuple[Pod, ...]) -> Worse | Same | Inconclusive:
    return by_pods(trial, stable, 2 * MINUTE, NOW)


def test_pods_that_crash_beside_stable_ones_that_are_well_are_worse() -> None:
    assert of_pods((CRASHES,), (WELL, WELL)) == Worse(
        "1 of 1 pods of the canary fail (cart-1: app crashes, restarted 4 times), and all 2 of what is stable are well"
    )


@pytest.mark.parametrize("reason", ["ImagePullBackOff", "CrashLoopBackOff", "CreateContainerConfigError"])
def test_pods_that_can_not_start_are_worse(reason: str) -> None:
    pod = the_pod(app=[a_status(restarts=0, state=waits(reason), last={})], age=timedelta(seconds=20))
    assert isinstance(of_pods((pod,), (WELL,)), Worse)


def test_a_new_pod_may_take_its_time() -> None:
    starting = {"app": [a_status(restarts=0, state=waits("ContainerCreating"), last={})]}
    early, late = (the_pod(**starting, age=age) for age in (2 * MINUTE, 2 * MINUTE + timedelta(seconds=1)))
    assert isinstance(of_pods((early,), (WELL,)), Inconclusive)
    assert isinstance(of_pods((late,), (WELL,)), Worse)


@pytest.mark.parametrize("stable", [(), (CRASHES,), (WELL, CRASHES)])
def test_if_what_is_stable_is_not_well_either_nobody_can_tell(stable: tuple[Pod, ...]) -> None:
    assert isinstance(of_pods((CRASHES,), stable), Inconclusive)


def test_pods_that_are_all_ready_are_not_worse() -> None:
    assert isinstance(of_pods((WELL,), (WELL,)), Same)
    assert isinstance(of_pods((), (WELL,)), Inconclusive)


async def test_only_prometheus_being_down_is_taken_for_that() -> None:
    class Broken(Metrics):
        async def scalar(self, query: str) -> float | None:
            raise ZeroDivisionError(query)

    with pytest.raises(ZeroDivisionError):
        await compare(TRIAL, STABLE, RULES, Broken(""))
