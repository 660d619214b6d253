"""Who is let in, and what is asked of the API server for it. The real one answers in tests/cluster/test_callers.py."""

import asyncio
import base64
import json
from collections.abc import Awaitable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from kreflex.auth import CallerSettings, Gate
from kreflex.clock import ServerClock
from kreflex.errors import (
    ApiError,
    ForbiddenError,
    KreflexError,
    SettingsError,
    UnauthenticatedError,
    UnavailableError,
)
from kreflex.views import JSON
from tests.values import NOW, stamp

WAKER = "kreflex-system/waker"
OLD, NEW = "an-old-value-of-old", "a-new-value-of-new"


class Steps:
    """A monotonic clock that a test steps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Reviewer:
    """Answers TokenReviews as an API server that knows some tokens, and counts them."""

    steps: Steps = field(default_factory=Steps)
    known: dict[str, str] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)
    down: KreflexError | None = None
    audiences: tuple[str, ...] = ("kreflex",)

    def __post_init__(self) -> None:
        self.clock = ServerClock(self.steps)
        self.clock.hear(NOW.strftime("%a, %d %b %Y %H:%M:%S GMT"), self.steps())

    async def send(self, method: str, path: str, body: JSON | None = None) -> JSON:
        assert (method, path) == ("POST", "/apis/authentication.k8s.io/v1/tokenreviews")
        assert body is not None
        self.asked.append(body["spec"]["token"])
        await asyncio.sleep(0)
        if self.down is not None:
            raise self.down
        user = self.known.get(body["spec"]["token"])
        if user is None:
            return {"status": {"error": "invalid bearer token"}}
        return {"status": {"authenticated": True, "user": {"username": user}, "audiences": list(self.audiences)}}

    def issue(self, account: str = WAKER, serial: int = 0, **claims: Any) -> str:
        """A token that this API server knows."""
        token = a_token(account, serial, **claims)
        self.known[token] = "system:serviceaccount:" + account.replace("/", ":")
        return token


def a_token(account: str = WAKER, serial: int = 0, **claims: Any) -> str:
    """What looks like the token of a service account, good for an hour."""
    said = {
        "aud": ["kreflex"],
        "exp": int(NOW.timestamp()) + 3600,
        "sub": "system:serviceaccount:" + account.replace("/", ":"),
        "jti": serial,
        **claims,
    }
    payload = base64.urlsafe_b64encode(json.dumps(said).encode()).rstrip(b"=").decode()
    return f"eyJhbGciOiJSUzI1NiJ9.{payload}.c2lnbmF0dXJl"


def a_gate(api: Reviewer, **settings: str) -> Gate:
    return Gate(CallerSettings.model_validate({"callers_accounts": WAKER, **settings}), api, api.steps)


def enter(gate: Gate, token: str) -> Awaitable[str]:
    return gate.admit([f"Bearer {token}"])


def a_folder(folder: Path, **values: str) -> Path:
    folder.mkdir(exist_ok=True)
    for name, value in values.items():
        (folder / name).write_text(value)
    return folder


def faults(**environment: str) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        CallerSettings.from_environment(environment)
    return caught.value.faults


def test_with_nothing_set_callers_need_a_token_and_a_name() -> None:
    assert faults() == [
        "CALLERS_ACCOUNTS must be set: it names who may call, as in kreflex-system/waker,monitoring/alertmanager"
    ]


def test_names_every_fault_at_once() -> None:
    told = faults(
        CALLERS="secret,tokenreview", CALLERS_AUDIENCE="a b", CALLERS_SECRETS="/nowhere", CALLERS_ACCOUNTS="x"
    )
    assert [fault.split()[0] for fault in told] == ["CALLERS_AUDIENCE", "CALLERS_ACCOUNTS", "CALLERS_SECRETS"]


@pytest.mark.parametrize(
    ("modes", "expected"),
    [
        ("tokens", "CALLERS must be any of tokenreview, secret, network (it is 'tokens')"),
        (" ,", "CALLERS must be any of tokenreview, secret, network (it is ' ,')"),
        (
            "network,secret",
            "CALLERS must not name network together with others: it lets everybody in (it is 'network,secret')",
        ),
    ],
)
def test_modes_that_do_not_exist_or_fit_are_named(modes: str, expected: str) -> None:
    assert faults(CALLERS=modes) == [expected]


def test_a_secret_needs_a_folder() -> None:
    assert faults(CALLERS="secret") == [
        "CALLERS_SECRETS must be set: it is the folder of the mounted Secret whose values callers show"
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, "must hold one value, or two while it is changed, not 0"),
        ({"a": OLD, "b": NEW, "c": f"{NEW}er"}, "must hold one value, or two while it is changed, not 3"),
        ({"a": "fifteen-letters"}, "holds a, which must have 16 characters or more, and no space"),
        ({"a": OLD, "b": "with spaces in between"}, "holds b, which must have 16 characters or more, and no space"),
    ],
)
def test_a_folder_with_other_than_one_or_two_values_is_refused(
    tmp_path: Path, values: dict[str, str], expected: str
) -> None:
    folder = a_folder(tmp_path / "secret", **values)
    (fault,) = faults(CALLERS="secret", CALLERS_SECRETS=str(folder))
    assert fault == f"CALLERS_SECRETS {expected} (it is {str(folder)!r})"


async def test_in_the_network_mode_everybody_may_call() -> None:
    api = Reviewer()
    assert await a_gate(api, callers="network").admit([]) == "network"
    assert api.asked == []


@pytest.mark.parametrize("given", [[], ["Basic dXNlcjpwYXNz"], ["Bearer"], ["Bearer  "], ["Bearer a", "Bearer b"]])
async def test_without_a_bearer_token_nobody_is_asked(given: list[str]) -> None:
    api = Reviewer()
    with pytest.raises(UnauthenticatedError, match=r"^the header Authorization "):
        await a_gate(api).admit(given)
    assert api.asked == []


async def test_a_token_is_reviewed_once_a_minute() -> None:
    api = Reviewer()
    gate, token = a_gate(api), api.issue()
    for step in (0, 30, 29):
        api.steps.now += step
        assert await enter(gate, token) == "tokenreview"
    assert api.asked == [token]
    api.steps.now += 2
    await enter(gate, token)
    assert api.asked == [token, token]


async def test_a_token_is_never_good_past_its_own_end() -> None:
    api = Reviewer()
    gate, token = a_gate(api), api.issue(exp=int(NOW.timestamp()) + 20)
    await enter(gate, token)
    api.steps.now += 21
    with pytest.raises(UnauthenticatedError, match="the token has expired"):
        await enter(gate, token)
    assert api.asked == [token]


async def test_a_token_that_was_withdrawn_is_good_for_a_minute_at_most() -> None:
    api = Reviewer()
    gate, token = a_gate(api), api.issue()
    await enter(gate, token)
    api.known.clear()
    api.steps.now += 61
    with pytest.raises(UnauthenticatedError, match="the API server does not accept the token: invalid bearer token"):
        await enter(gate, token)


async def test_a_burst_with_one_token_is_one_review() -> None:
    api = Reviewer()
    gate, token = a_gate(api), api.issue()
    assert await asyncio.gather(*(enter(gate, token) for _ in range(50))) == ["tokenreview"] * 50
    assert api.asked == [token]


async def test_who_hangs_up_does_not_take_the_answer_from_others() -> None:
    api = Reviewer()
    gate, token = a_gate(api), api.issue()
    first, second = (asyncio.ensure_future(enter(gate, token)) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    assert await second == "tokenreview"
    assert api.asked == [token]


@pytest.mark.parametrize(
    ("claims", "expected"),
    [
        ({"aud": ["https://kubernetes.default.svc"]}, "the token is not for the audience 'kreflex'"),
        ({"aud": None}, "the token is not for the audience 'kreflex'"),
        ({"exp": None}, "the token does not expire"),
        ({"exp": 10**400}, "the token does not expire"),
        ({"exp": 1}, "the token has expired"),
        ({"sub": "somebody"}, "the token is no service account's"),
        ({"sub": None}, "the token is no service account's"),
    ],
)
async def test_what_a_token_says_of_itself_may_suffice_to_refuse_it(claims: dict[str, Any], expected: str) -> None:
    api = Reviewer()
    with pytest.raises(UnauthenticatedError, match=expected):
        await enter(a_gate(api), api.issue(**claims))
    assert api.asked == []


@pytest.mark.parametrize("token", ["x", "a.b", "a.b.c", "a.!!.c", "e30.W10.e30", "é.é.é", "a." + "A" * 20000 + ".c"])
async def test_what_is_no_token_is_not_reviewed(token: str) -> None:
    api = Reviewer()
    with pytest.raises(UnauthenticatedError):
        await enter(a_gate(api), token)
    assert api.asked == []


async def test_an_account_that_is_not_named_is_forbidden() -> None:
    api = Reviewer()
    with pytest.raises(ForbiddenError, match=r"^shop/default is none of those that CALLERS_ACCOUNTS names$"):
        await enter(a_gate(api), api.issue("shop/default"))


@pytest.mark.parametrize("claims", [{"aud": "x" * 9000}, {"sub": "system:serviceaccount:x:" + "x" * 9000}])
async def test_a_stranger_does_not_fill_the_log(claims: dict[str, Any]) -> None:
    with pytest.raises(KreflexError) as caught:
        await enter(a_gate(Reviewer()), a_token(**claims))
    assert len(str(caught.value)) < 400


async def test_accounts_are_named_by_patterns_for_namespace_and_name_apart() -> None:
    api = Reviewer()
    gate = a_gate(api, callers_accounts="kreflex-*/*-oidc-eventing.knative.dev-trigger, monitoring/alertmanager")
    await enter(gate, api.issue("kreflex-system/loops-oidc-eventing.knative.dev-trigger"))
    await enter(gate, api.issue("monitoring/alertmanager"))
    with pytest.raises(ForbiddenError):
        await enter(gate, api.issue("shop/loops-oidc-eventing.knative.dev-trigger"))


async def test_a_token_whose_name_is_not_the_reviewed_one_is_refused() -> None:
    api = Reviewer()
    token = api.issue()
    api.known[token] = "system:serviceaccount:shop:default"
    with pytest.raises(UnauthenticatedError, match="shop:default's, and says another name"):
        await enter(a_gate(api), token)


async def test_an_api_server_that_ignores_audiences_does_not_let_everybody_in() -> None:
    api = Reviewer(audiences=())
    with pytest.raises(UnauthenticatedError, match="does not say that the token is for the audience"):
        await enter(a_gate(api), api.issue())


@pytest.mark.parametrize("error", [UnavailableError("refused"), ApiError("may not create tokenreviews", 403)])
async def test_without_an_answer_of_the_api_server_nobody_knows(error: KreflexError) -> None:
    api = Reviewer()
    gate, token = a_gate(api), api.issue()
    api.down = error
    with pytest.raises(UnavailableError, match=r"^the caller's token can't be reviewed: "):
        await enter(gate, token)
    with pytest.raises(UnavailableError):
        await gate.check()
    api.down = None
    assert await enter(gate, token) == "tokenreview"
    await gate.check()


async def test_one_bad_token_is_reviewed_once_in_five_seconds() -> None:
    api = Reviewer()
    gate = a_gate(api)
    for step in (0, 2, 2, 2):
        api.steps.now += step
        with pytest.raises(UnauthenticatedError):
            await enter(gate, a_token())
    assert len(api.asked) == 2


async def test_a_flood_of_forged_tokens_is_no_load_and_keeps_out_nobody_who_is_known() -> None:
    api = Reviewer()
    gate, good = a_gate(api), api.issue()
    await enter(gate, good)
    outcomes = await asyncio.gather(*(enter(gate, a_token(serial=n + 1)) for n in range(5000)), return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {UnauthenticatedError, UnavailableError}
    assert len(api.asked) <= 21
    # Its minute is over in the midst of the flood.
    api.steps.now += 61
    await asyncio.gather(*(enter(gate, a_token(serial=-n - 1)) for n in range(100)), return_exceptions=True)
    assert await enter(gate, good) == "tokenreview"


async def test_who_is_new_gets_in_when_the_flood_is_over() -> None:
    api = Reviewer()
    gate, good = a_gate(api), api.issue()
    await asyncio.gather(*(enter(gate, a_token(serial=n + 1)) for n in range(100)), return_exceptions=True)
    with pytest.raises(UnavailableError, match="too many tokens of unknown callers"):
        await enter(gate, good)
    api.steps.now += 1
    assert await enter(gate, good) == "tokenreview"


async def test_two_values_are_good_while_one_is_exchanged(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "secret", value=f"{OLD}\n")
    gate = a_gate(Reviewer(), callers="secret", callers_secrets=str(folder))
    assert await enter(gate, OLD) == "secret"
    for stranger in (NEW, OLD[:-1], OLD + "x", "x"):
        with pytest.raises(UnauthenticatedError, match="none of those in CALLERS_SECRETS"):
            await enter(gate, stranger)

    a_folder(folder, next=NEW)
    assert [await enter(gate, value) for value in (OLD, NEW)] == ["secret", "secret"]
    (folder / "value").unlink()
    assert await enter(gate, NEW) == "secret"
    with pytest.raises(UnauthenticatedError):
        await enter(gate, OLD)


async def test_a_secret_is_exchanged_as_the_kubelet_does_it(tmp_path: Path) -> None:
    for name, value in (("first", OLD), ("second", NEW)):
        a_folder(tmp_path / f"..{name}", value=value)
    (tmp_path / "..data").symlink_to("..first")
    (tmp_path / "value").symlink_to("..data/value")
    gate = a_gate(Reviewer(), callers="secret", callers_secrets=str(tmp_path))
    assert await enter(gate, OLD) == "secret"

    (tmp_path / "..new").symlink_to("..second")
    (tmp_path / "..new").replace(tmp_path / "..data")
    assert await enter(gate, NEW) == "secret"
    with pytest.raises(UnauthenticatedError):
        await enter(gate, OLD)


async def test_one_secret_may_hold_a_value_in_the_forms_that_several_senders_need(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "secret", value=OLD, authorization=f"Bearer {OLD}", next=NEW)
    gate = a_gate(Reviewer(), callers="secret", callers_secrets=str(folder))
    assert [await enter(gate, value) for value in (OLD, NEW)] == ["secret", "secret"]


async def test_values_that_can_not_be_read_any_more_let_nobody_in(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "secret", value=OLD)
    gate = a_gate(Reviewer(), callers="secret", callers_secrets=str(folder))
    (folder / "value").unlink()
    with pytest.raises(UnavailableError, match=r"^callers can't be checked: CALLERS_SECRETS must hold one value"):
        await enter(gate, OLD)
    with pytest.raises(UnavailableError):
        await gate.check()


async def test_both_modes_at_once_let_in_either_sender(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "secret", value=OLD)
    api = Reviewer()
    gate = a_gate(api, callers="secret,tokenreview", callers_secrets=str(folder))
    assert await enter(gate, OLD) == "secret"
    assert api.asked == []
    assert await enter(gate, api.issue()) == "tokenreview"
    with pytest.raises(UnauthenticatedError, match="neither one that is known here nor a service account's token"):
        await enter(gate, NEW)


async def test_who_shows_a_token_is_let_in_while_the_values_can_not_be_read(tmp_path: Path) -> None:
    folder = a_folder(tmp_path / "secret", value=OLD)
    api = Reviewer()
    gate = a_gate(api, callers="secret,tokenreview", callers_secrets=str(folder))
    (folder / "value").unlink()
    assert await enter(gate, api.issue()) == "tokenreview"
    with pytest.raises(UnauthenticatedError):
        await enter(gate, a_token(serial=1))
    with pytest.raises(UnavailableError, match="CALLERS_SECRETS must hold one value"):
        await enter(gate, OLD)


def test_the_time_of_these_tests_is_the_api_server_s() -> None:
    assert stamp(Reviewer().clock.now()) == stamp(NOW)
