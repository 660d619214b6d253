"""Records: their keys, their names, and what can follow."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from kreflex.errors import UnavailableError
from kreflex.records import Owner, Records, Target, fault_key, read_record, record_name
from kreflex.views import JSON
from tests.values import CART, CART_DEPLOYMENT, NOW, CannedApi, a_record, a_record_body

SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
labels = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", fullmatch=True)
names = st.lists(labels, min_size=1, max_size=6).map(".".join).filter(lambda name: len(name) <= 253)


def test_a_key_is_about_the_fault_and_not_about_its_delivery() -> None:
    assert fault_key("restart-loop-killer", "uid-1") == "restart-loop-killer/uid-1"
    assert fault_key("node-replacer", "uid-1", "Ready/2026-05-01") == "node-replacer/uid-1/Ready/2026-05-01"


def test_a_name_is_readable_and_the_same_in_each_process() -> None:
    key = fault_key("restart-loop-killer", "uid-cart-1")
    assert record_name("restart-loop-killer", "cart-1", key) == "restart-loop-killer-cart-1-498adacc"


@given(names, st.text(max_size=50))
def test_a_name_is_one_that_kubernetes_accepts(name: str, key: str) -> None:
    made = record_name("restart-loop-killer", name, key)
    assert SUBDOMAIN.fullmatch(made)
    assert len(made) <= 253


@given(st.text(max_size=30), st.text(max_size=30))
def test_two_faults_of_one_object_have_two_names(one: str, other: str) -> None:
    same = record_name("f", "cart-1", one) == record_name("f", "cart-1", other)
    assert same is (one == other)


def test_long_names_stay_apart() -> None:
    assert record_name("f", "x" * 250, "one") != record_name("f", "x" * 250, "other")


@pytest.mark.parametrize(
    ("status", "final"),
    [
        ({"phase": "Open", "outcome": "refused"}, False),
        ({"phase": "Acting"}, False),
        ({"phase": "Applied", "outcome": "applied"}, False),
        ({"phase": "Done", "outcome": "applied", "verdict": "Recovered"}, True),
        ({"phase": "Done", "outcome": "skipped", "guard": "Gone"}, True),
        ({"phase": "Done", "outcome": "skipped"}, False),
    ],
)
def test_final_is_what_was_applied_and_settled_or_is_gone(status: JSON, final: bool) -> None:
    assert a_record(status=status).final is final


def test_an_owner_is_counted_by_its_name() -> None:
    owner = Owner(**Target.of(CART_DEPLOYMENT).model_dump())
    assert owner.key == "shop/Deployment/cart"


def test_a_target_is_the_reference_it_was_made_of() -> None:
    assert Target.of(CART).ref == CART


def test_reads_what_a_newer_version_has_written_into_the_status() -> None:
    assert a_record(status={"phase": "Open", "mood": "fine"}).status.phase == "Open"


@pytest.mark.parametrize("broken", [{"function": ""}, {"target": {"kind": "Pod"}}, {"approval": {"by": "ada"}}])
def test_a_record_that_no_kreflex_wrote_can_not_be_read(broken: JSON) -> None:
    with pytest.raises(ValidationError):
        read_record(a_record_body(broken))


async def test_a_record_that_can_not_be_read_is_no_record_to_act_on() -> None:
    path = "/apis/kreflex.dev/v1alpha1/namespaces/shop/remediations/r"
    records = Records(*CannedApi({path: a_record_body({"approval": {"by": "ada"}})}).pair())
    with pytest.raises(UnavailableError, match=r"^Remediation shop/r can't be read; mend or delete it: "):
        await records.get("shop", "r")


def test_shows_times_in_utc_with_milliseconds() -> None:
    approval = {"planHash": "x", "by": "ada", "until": "2026-05-01T14:00:00+02:00"}
    record = a_record({"approval": approval})
    assert record.spec.approval is not None
    assert record.spec.approval.until == NOW
    assert record.spec.model_dump(mode="json", by_alias=True)["approval"]["until"] == "2026-05-01T12:00:00.000Z"
