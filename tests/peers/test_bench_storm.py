"""The storm benchmark, small: it takes longer than `make test` has."""

from bench import storm


async def test_a_small_storm_loses_nothing_and_stays_within_the_policy() -> None:
    found = await storm.measure(20)
    assert found["breaches"] == []
    assert found["alerts"] == storm.ALERTS_EACH * 40
    assert found["evictions"] == found["allowed_evictions"]
