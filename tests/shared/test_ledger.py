"""What the ledger admits, and what it costs."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from kreflex.errors import ConflictError, UnavailableError
from kreflex.ledger import (
    WITHDRAWN,
    Book,
    Denial,
    Entry,
    Ledger,
    Request,
    Standing,
    State,
    cooling,
    in_flight,
    over_rate,
    pruned,
    read_book,
    useless,
)
from kreflex.policy import Limits, Rate, Useless
from kreflex.reflex import standing
from kreflex.views import JSON
from tests.values import HOUR, LEDGER_PATH, MINUTE, NOW, CannedApi, a_record, an_empty_ledger, stamp

DAY = timedelta(days=1)
FREE = Limits(cooldown=timedelta(), rates=(), max_in_flight=100)


def an_entry(uid: str = "a", state: State = "Recovered", ago: timedelta = MINUTE, **about: Any) -> Entry:
    """A remediation of shop's cart that has settled, unless told otherwise."""
    owner = {"owner": "shop/Deployment/cart", "template_hash": "7d4", "policies": ("all",), **about}
    return Entry(uid, "shop", f"record-{uid}", **owner, version="1", at=NOW - ago, state=state)


def a_request(uid: str = "new", limits: Limits = FREE, policy: str = "all", **about: Any) -> Request:
    """A request of cart that no limit stands against, unless told otherwise."""
    about = {"owner": "shop/Deployment/cart", "template_hash": "7d4", "useless": Useless(), **about}
    return Request(uid, "shop", f"record-{uid}", "1", limits=((policy, limits),), cooldown=limits.cooldown, **about)


def a_book(*entries: Entry) -> Book:
    return Book(entries)


# Cooldown


def test_an_owner_rests_for_its_cooldown_and_no_longer() -> None:
    request = a_request(limits=Limits(cooldown=5 * MINUTE))
    rests = a_book(an_entry(ago=4 * MINUTE))
    because = "shop/Deployment/cart was remediated 4m ago, it rests for 5m"
    assert cooling(rests, request, NOW) == Denial("Cooldown", because, NOW + MINUTE)
    assert cooling(rests, request, NOW + MINUTE) is None
    assert cooling(a_book(), request, NOW) is None


def test_the_last_remediation_counts_and_only_that_of_the_same_owner() -> None:
    request = a_request(limits=Limits(cooldown=5 * MINUTE))
    book = a_book(an_entry("a", ago=HOUR), an_entry("b", ago=2 * MINUTE), an_entry("c", ago=3 * MINUTE))
    denial = cooling(book, request, NOW)
    assert denial is not None
    assert denial.until == NOW + 3 * MINUTE
    assert cooling(a_book(an_entry(owner="shop/Deployment/other")), request, NOW) is None


def test_an_owner_rests_whatever_its_template_is() -> None:
    book = a_book(an_entry(template_hash="another"))
    assert cooling(book, a_request(limits=Limits(cooldown=5 * MINUTE)), NOW) is not None


# Rates

TWO_RATES = Limits(rates=(Rate(count=2, window=10 * MINUTE), Rate(count=3, window=HOUR)))


def test_every_window_of_a_policy_holds() -> None:
    early, late = an_entry("a", ago=50 * MINUTE), an_entry("b", ago=9 * MINUTE)
    last = an_entry("c", ago=MINUTE)
    request = a_request(limits=TWO_RATES)
    assert over_rate(a_book(early, late), request, NOW) is None
    assert over_rate(a_book(late, last), request, NOW) == Denial(
        "Rate", "all 2 remediations in 10m are spent (all)", NOW + MINUTE
    )
    assert over_rate(a_book(early, replace(late, at=NOW - 20 * MINUTE), last), request, NOW) == Denial(
        "Rate", "all 3 remediations in 1h are spent (all)", NOW + 10 * MINUTE
    )


def test_a_window_ends_on_time() -> None:
    request = a_request(limits=Limits(rates=(Rate(count=1, window=10 * MINUTE),)))
    assert over_rate(a_book(an_entry(ago=10 * MINUTE)), request, NOW) is None
    assert over_rate(a_book(an_entry(ago=10 * MINUTE - timedelta(seconds=1))), request, NOW) is not None


def test_more_spent_than_is_allowed_now_waits_until_enough_is_free() -> None:
    request = a_request(limits=Limits(rates=(Rate(count=2, window=HOUR),)))
    book = a_book(*(an_entry(str(ago), ago=ago * MINUTE) for ago in (50, 40, 30, 20)))
    denial = over_rate(book, request, NOW)
    assert denial is not None
    assert denial.until == NOW + 30 * MINUTE


def test_a_rate_of_nothing_admits_nothing() -> None:
    denial = over_rate(a_book(), a_request(limits=Limits(rates=(Rate(count=0, window=HOUR),))), NOW)
    assert denial == Denial("Rate", "all 0 remediations in 1h are spent (all)", NOW + HOUR)


def test_what_other_policies_allowed_spends_nothing_of_this_one() -> None:
    request = a_request(limits=Limits(rates=(Rate(count=1, window=HOUR),)), policy="shop/own")
    assert over_rate(a_book(an_entry(policies=("all",))), request, NOW) is None
    assert over_rate(a_book(an_entry(policies=("all", "shop/own"))), request, NOW) is not None


# Useless remediations


def a_streak(*states: State, template_hash: str = "7d4") -> Book:
    """Remediations of cart, ten minutes apart, the last one a minute ago."""
    count = len(states)
    return a_book(
        *(
            an_entry(str(index), state, (count - 1 - index) * 10 * MINUTE + MINUTE, template_hash=template_hash)
            for index, state in enumerate(states)
        )
    )


def test_stops_after_three_remediations_that_did_not_help() -> None:
    three = a_streak("Ineffective", "Unknown", "Ineffective")
    assert useless(a_streak("Ineffective", "Unknown"), a_request(), NOW) is None
    because = (
        "the last 3 remediations of shop/Deployment/cart did not help: a person has to look; "
        "not tried again before 2026-05-01 12:59 UTC"
    )
    assert useless(three, a_request(), NOW) == Denial("Useless", because, NOW + 59 * MINUTE)


def test_tries_again_after_the_stop_and_stops_again() -> None:
    three = a_streak("Ineffective", "Ineffective", "Ineffective")
    again = NOW + 59 * MINUTE
    assert useless(three, a_request(), again) is None
    fourth = replace(an_entry("d", "Ineffective"), at=again)
    assert useless(a_book(*three.entries, fourth), a_request(), again + MINUTE) is not None


def test_one_that_helped_breaks_the_row() -> None:
    assert useless(a_streak("Ineffective", "Ineffective", "Recovered"), a_request(), NOW) is None
    assert useless(a_streak("Ineffective", "Recovered", "Ineffective"), a_request(), NOW) is None
    assert useless(a_streak("Recovered", "Ineffective", "Unknown", "Ineffective"), a_request(), NOW) is not None


def test_a_new_template_begins_a_new_count() -> None:
    old = a_streak("Ineffective", "Ineffective", "Ineffective", template_hash="old")
    assert useless(old, a_request(), NOW) is None


def test_what_has_no_verdict_yet_is_not_counted() -> None:
    assert useless(a_streak("Ineffective", "Ineffective", "Applied"), a_request(), NOW) is None
    assert useless(a_streak("Ineffective", "Ineffective", "Ineffective", ""), a_request(), NOW) is not None


def test_the_policy_says_how_many_and_for_how_long() -> None:
    request = a_request(useless=Useless(count=1, stop=2 * HOUR))
    denial = useless(a_streak("Unknown"), request, NOW)
    assert denial is not None
    assert denial.until == NOW + 2 * HOUR - MINUTE


# Slots


def test_a_slot_is_held_until_the_verdict_or_until_applied() -> None:
    book = a_book(an_entry("a", ""), an_entry("b", "Applied"), an_entry("c"), an_entry("d", "", policies=("x",)))
    assert [e.uid for e in in_flight(book, "all", Limits(in_flight_until="Verdict"))] == ["a", "b"]
    assert [e.uid for e in in_flight(book, "all", Limits(in_flight_until="Applied"))] == ["a"]


# Pruning


def test_forgets_what_is_settled_and_old_and_nothing_else() -> None:
    book = a_book(an_entry("old", ago=DAY), an_entry("new", ago=DAY - MINUTE), an_entry("open", "", ago=3 * DAY))
    assert [e.uid for e in pruned(book, NOW, DAY).entries] == ["new", "open"]


# Reading and writing


def test_reads_what_it_has_written() -> None:
    api = CannedApi(an_empty_ledger())
    asyncio.run(ledger(api).admit(a_request(), DAY))
    (entry,) = read_book(api.objects[LEDGER_PATH]).entries
    assert entry == a_request().entry(NOW)


@pytest.mark.parametrize("entries", ["rubbish", "{}x", '[{"uid": "a"}]', "[1]", "5"])
async def test_refuses_all_when_the_ledger_can_not_be_read(entries: str) -> None:
    with pytest.raises(UnavailableError, match="what has been spent is not known"):
        await ledger(CannedApi(an_empty_ledger(entries))).admit(a_request(), DAY)


async def test_refuses_all_without_a_ledger() -> None:
    with pytest.raises(UnavailableError, match=r"is missing.*apply knative/base/ledger\.yaml"):
        await ledger(CannedApi()).admit(a_request(), DAY)


async def test_says_so_when_the_ledger_is_deleted_while_it_works() -> None:
    api = CannedApi(an_empty_ledger())
    book = ledger(api)
    assert await book.admit(a_request("a"), DAY) is None
    del api.objects[LEDGER_PATH]
    with pytest.raises(UnavailableError, match="is missing"):
        await book.admit(a_request("b", owner="shop/Deployment/other"), DAY)


# Admission


async def flying(_: Entry) -> Standing:
    return Standing("", NOW + MINUTE)


async def withdrawn(_: Entry) -> Standing:
    return Standing(WITHDRAWN)


def ledger(api: CannedApi, look: Callable[[Entry], Awaitable[Standing]] = flying) -> Ledger:
    """A ledger whose remediations are all in flight, unless told otherwise."""
    return Ledger(*api.pair(), "kreflex-system", look)


def written(*entries: Entry) -> dict[str, JSON]:
    """A ledger with these entries."""
    rows = [
        {
            "uid": e.uid,
            "ns": e.namespace,
            "rec": e.record,
            "own": e.owner,
            "tpl": e.template_hash,
            "pol": list(e.policies),
            "rv": e.version,
            "at": e.at.timestamp(),
            "st": e.state,
        }
        for e in entries
    ]
    return an_empty_ledger(json.dumps(rows))


def uids(api: CannedApi) -> list[str]:
    return [entry.uid for entry in read_book(api.objects[LEDGER_PATH]).entries]


def other(number: int, **about: Any) -> Request:
    """A request of an owner of its own."""
    return a_request(f"r{number}", owner=f"shop/Deployment/w{number}", **about)


async def test_admissions_that_come_together_share_one_write() -> None:
    api = CannedApi(an_empty_ledger())
    book = ledger(api)
    answers = await asyncio.gather(*(book.admit(other(number), DAY) for number in range(50)))
    assert answers == [None] * 50
    assert len(uids(api)) == 50
    assert len(api.writes) <= 2


async def test_a_batch_never_admits_more_than_there_are_slots() -> None:
    api = CannedApi(an_empty_ledger())
    limits = Limits(cooldown=timedelta(), rates=(), max_in_flight=3)
    book = ledger(api)
    answers = await asyncio.gather(*(book.admit(other(number, limits=limits), DAY) for number in range(20)))
    assert answers.count(None) == 3
    denied = Denial("Slots", "3 of 3 remediations are in flight (all)", NOW + MINUTE)
    assert [answer for answer in answers if answer is not None] == [denied] * 17
    assert len(uids(api)) == 3


async def test_a_policy_that_allows_none_in_flight_denies_for_an_hour() -> None:
    api = CannedApi(an_empty_ledger())
    limits = Limits(cooldown=timedelta(), rates=(), max_in_flight=0)
    denied = Denial("Slots", "policy all allows none in flight", NOW + HOUR)
    assert await ledger(api).admit(a_request(limits=limits), DAY) == denied
    assert api.writes == []


async def test_a_batch_admits_one_of_an_owner() -> None:
    book = ledger(CannedApi(an_empty_ledger()))
    first, second = await asyncio.gather(book.admit(a_request("a"), DAY), book.admit(a_request("b"), DAY))
    assert first is None
    assert second == Denial("OneAtATime", "shop/record-a of the same owner has no verdict yet", NOW + MINUTE)


async def test_two_processes_together_never_admit_more_than_there_are_slots() -> None:
    api = CannedApi(an_empty_ledger())
    limits = Limits(cooldown=timedelta(), rates=(), max_in_flight=5)
    replicas = [ledger(api) for _ in range(4)]
    answers = await asyncio.gather(
        *(replicas[number % 4].admit(other(number, limits=limits), DAY) for number in range(40))
    )
    assert answers.count(None) == 5
    assert len(uids(api)) == 5


async def test_gives_up_when_others_change_the_ledger_faster() -> None:
    class Contended(CannedApi):
        def before(self, method: str) -> None:
            if method == "PUT":
                raise ConflictError("somebody else was faster", 409)

    api = Contended(an_empty_ledger())
    with pytest.raises(UnavailableError, match="changed by others faster than it can be written"):
        await ledger(api).admit(a_request(), DAY)


async def test_reads_again_after_a_conflict_and_sees_what_the_other_has_spent() -> None:
    limits = Limits(cooldown=timedelta(), rates=(), max_in_flight=1)

    class Raced(CannedApi):
        def before(self, method: str) -> None:
            if method == "PUT" and not uids(self):
                self.objects = written(an_entry("another", "", owner="shop/Deployment/w9"))
                self.objects[LEDGER_PATH]["metadata"]["resourceVersion"] = "2"

    api = Raced(an_empty_ledger())
    denial = await ledger(api).admit(a_request(limits=limits), DAY)
    assert denial is not None
    assert (denial.guard, uids(api)) == ("Slots", ["another"])


async def test_resuming_is_free_and_is_not_judged_again() -> None:
    limits = Limits(cooldown=HOUR, rates=(Rate(count=1, window=HOUR),), max_in_flight=1)
    api = CannedApi(written(an_entry("mine", "")))
    assert await ledger(api).admit(a_request("mine", limits=limits), DAY) is None
    assert api.writes == []


async def test_one_that_was_put_back_asks_anew() -> None:
    api = CannedApi(written(an_entry("mine", "", ago=HOUR)))
    put_back = replace(a_request("mine"), version="2")
    assert await ledger(api, withdrawn).admit(put_back, DAY) is None
    (entry,) = read_book(api.objects[LEDGER_PATH]).entries
    assert (entry.uid, entry.at) == ("mine", NOW)


async def test_what_was_put_back_has_spent_nothing() -> None:
    limits = Limits(cooldown=HOUR, rates=(Rate(count=1, window=HOUR),), max_in_flight=1)
    for owner in ("shop/Deployment/cart", "shop/Deployment/other"):
        api = CannedApi(written(an_entry("blocked", "", owner=owner)))
        assert await ledger(api, withdrawn).admit(a_request(limits=limits), DAY) is None
        assert uids(api) == ["new"]


async def test_a_rate_alone_forgives_what_was_put_back() -> None:
    limits = Limits(cooldown=timedelta(), rates=(Rate(count=1, window=HOUR),), max_in_flight=100)
    api = CannedApi(written(an_entry("blocked", "", owner="shop/Deployment/other")))
    assert await ledger(api, withdrawn).admit(a_request(limits=limits), DAY) is None
    flies = CannedApi(written(an_entry("flies", "", owner="shop/Deployment/other")))
    denial = await ledger(flies).admit(a_request(limits=limits), DAY)
    assert denial is not None
    assert denial.guard == "Rate"


async def test_a_denial_writes_nothing() -> None:
    api = CannedApi(written(an_entry("a", "")))
    denial = await ledger(api).admit(a_request(), DAY)
    assert denial is not None
    assert api.writes == []


async def test_a_denial_comes_only_from_what_was_just_read() -> None:
    api = CannedApi(an_empty_ledger())
    book = ledger(api)
    limits = Limits(cooldown=HOUR, rates=(), max_in_flight=100)
    assert await book.admit(a_request("a", limits=limits), DAY) is None
    api.objects = an_empty_ledger()  # Somebody has cleared it.
    assert await book.admit(a_request("b", limits=limits), DAY) is None


async def test_an_early_denial_comes_only_from_what_was_just_read_too() -> None:
    api = CannedApi(written(*a_streak("Ineffective", "Ineffective", "Ineffective").entries))
    book = ledger(api)
    denial = await book.useless(a_request())
    assert denial is not None
    api.objects = an_empty_ledger()
    assert await book.useless(a_request()) is None


async def test_the_early_question_costs_no_call_when_the_ledger_is_known() -> None:
    api = CannedApi(an_empty_ledger())
    book = ledger(api)
    assert await book.useless(a_request()) is None
    api.calls.clear()
    assert await book.useless(a_request()) is None
    assert api.calls == []


async def test_sees_a_verdict_that_was_given_since() -> None:
    async def helped(_: Entry) -> Standing:
        return Standing("Ineffective")

    two = a_streak("Ineffective", "Ineffective").entries
    book = ledger(CannedApi(written(*two, an_entry("c", "Applied"))), helped)
    denial = await book.useless(a_request())
    assert denial is not None
    assert denial.guard == "Useless"


async def test_a_failed_write_fails_all_that_wait_with_it() -> None:
    api = CannedApi(an_empty_ledger())
    book = ledger(api)
    await book.useless(a_request())
    api.down = True
    answers = await asyncio.gather(*(book.admit(other(n), DAY) for n in range(5)), return_exceptions=True)
    assert [type(answer) for answer in answers] == [UnavailableError] * 5
    api.down = False
    assert await book.admit(other(9), DAY) is None


@pytest.mark.parametrize(("count", "name"), [(3000, "o"), (1000, "o" * 900)], ids=["many", "long"])
async def test_a_full_ledger_denies_before_it_is_too_large_to_be_written(count: int, name: str) -> None:
    book = [an_entry(f"e{n}", owner=f"{name}{n}") for n in range(count)]
    because = f"the ledger is full with {count} entries: shorten the policies' windows"
    denied = Denial("Ledger", because, NOW + 10 * MINUTE)
    assert await ledger(CannedApi(written(*book))).admit(a_request(), DAY) == denied
    assert await ledger(CannedApi(written(*book[: count // 2]))).admit(a_request(), DAY) is None


async def test_old_entries_go_with_the_next_admission() -> None:
    api = CannedApi(written(an_entry("old", ago=2 * DAY)))
    assert await ledger(api).admit(a_request(), DAY) is None
    assert uids(api) == ["new"]


# How a record stands


@pytest.mark.parametrize(
    ("status", "version", "stands"),
    [
        ({"phase": "Open"}, "1", Standing("")),
        ({"phase": "Open"}, "2", Standing(WITHDRAWN)),
        ({"phase": "Acting"}, "2", Standing("")),
        ({"phase": "Applied", "outcome": "applied"}, "3", Standing("Applied")),
        ({"phase": "Done", "outcome": "applied", "verdict": "Recovered"}, "4", Standing("Recovered")),
        ({"phase": "Done", "outcome": "applied", "verdict": "Ineffective"}, "4", Standing("Ineffective")),
        ({"phase": "Done", "outcome": "applied"}, "4", Standing("Unknown")),
        ({"phase": "Done", "outcome": "skipped", "guard": "Gone"}, "4", Standing(WITHDRAWN)),
    ],
)
def test_the_record_tells_how_its_admission_stands(status: JSON, version: str, stands: Standing) -> None:
    assert standing(a_record(status=status, version=version), "1") == stands


def test_the_record_tells_when_to_look_again() -> None:
    due: datetime = NOW + MINUTE
    acting = a_record(status={"phase": "Acting", "dueAt": stamp(due)}, version="2")
    assert standing(acting, "1") == Standing("", due)


def test_the_time_of_an_open_record_is_no_time_to_wait_for() -> None:
    put_off = a_record(status={"phase": "Open", "dueAt": stamp(NOW + HOUR)}, version="1")
    assert standing(put_off, "1") == Standing("")
