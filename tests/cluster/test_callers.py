"""Who may call a function, with tokens that the real API server has issued."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from lab import callers
from lab.cluster import ControlPlane
from lab.faults import Hit
from lab.troubles import TROUBLES
from tests.serving import PING, Served, served

REVIEW = "create tokenreviews"


@pytest.fixture(scope="module")
async def function(installed: ControlPlane) -> AsyncIterator[Served]:
    """restart-loop-killer, which lets in the senders of the lab."""
    async with served(installed) as running:
        yield running


@pytest.fixture(autouse=True)
def forget(request: pytest.FixtureRequest) -> None:
    """Each test counts its own calls."""
    if "function" in request.fixturenames:
        request.getfixturevalue("function").proxy.forget()


async def shown(
    plane: ControlPlane, account: str, namespace: str = callers.NAMESPACE, audience: str = "kreflex"
) -> dict[str, str]:
    """The headers of an event from the holder of a new token."""
    return PING | {"Authorization": f"Bearer {await plane.token(account, namespace, audience)}"}


async def test_a_token_for_this_audience_of_an_account_that_is_named_is_let_in(function: Served) -> None:
    headers = await shown(function.plane, "broker")
    assert await function.post(headers, b"{}") == (204, "")
    assert function.steps() == [REVIEW]


async def test_many_requests_with_one_token_are_one_review(function: Served) -> None:
    headers = await shown(function.plane, "busy")
    answers = await asyncio.gather(*(function.post(headers, b"{}") for _ in range(60)))
    assert set(answers) == {(204, "")}
    assert function.steps() == [REVIEW]


async def test_who_shows_nothing_is_told_what_is_missing_and_costs_nothing(function: Served) -> None:
    async with function.client.post(function.url, headers=PING, data=b"{}") as answer:
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Bearer realm="kreflex"')
        assert (await answer.json())["error"].startswith("the header Authorization is missing")
    assert function.steps() == []


async def test_a_token_for_the_api_server_is_not_for_us(function: Served) -> None:
    status, text = await function.post(await shown(function.plane, "broker", audience=""), b"{}")
    assert (status, "the token is not for the audience 'kreflex'" in text) == (401, True)
    assert function.steps() == []


async def test_an_account_that_is_not_named_is_forbidden(function: Served) -> None:
    status, text = await function.post(await shown(function.plane, "default", "default"), b"{}")
    assert (status, json.loads(text)["error"]) == (403, "default/default is none of those that CALLERS_ACCOUNTS names")
    assert function.steps() == []


async def test_a_forged_token_is_found_out(function: Served) -> None:
    headers = await shown(function.plane, "broker")
    head, said, signature = headers["Authorization"].split(".")
    forged = {**headers, "Authorization": f"{head}.{said}.{signature[::-1]}"}
    for _ in range(3):
        status, text = await function.post(forged, b"{}")
        assert (status, "the API server does not accept the token" in text) == (401, True)
    assert function.steps() == [REVIEW]


async def test_the_token_of_an_account_that_is_gone_is_refused(function: Served) -> None:
    headers = await shown(function.plane, "gone")
    await function.plane.api.delete(f"/api/v1/namespaces/{callers.NAMESPACE}/serviceaccounts/gone")
    status, _ = await function.post(headers, b"{}")
    assert status == 401


@pytest.mark.parametrize("name", ["429", "500", "503", "401", "403", "not JSON", "reset before"])
async def test_a_sender_comes_again_when_nobody_can_tell_who_it_is(function: Served, name: str) -> None:
    trouble = next(one for one in TROUBLES if one.name == name)
    headers = await shown(function.plane, f"late-{name.lower().replace(' ', '-')}")
    function.plan.append(Hit(lambda call: call.step == REVIEW, trouble))
    status, text = await function.post(headers, b"{}")
    assert (status, json.loads(text)["error"].split(":")[0]) == (503, "the caller's token can't be reviewed")
    assert await function.post(headers, b"{}") == (204, "")


async def test_a_shared_value_is_let_in_and_exchanged(installed: ControlPlane, tmp_path: Path) -> None:
    old, new = "the-value-of-yesterday", "the-value-of-tomorrow"
    (tmp_path / "value").write_text(old)
    async with served(installed, CALLERS="secret,tokenreview", CALLERS_SECRETS=str(tmp_path)) as function:

        async def status(value: str) -> int:
            return (await function.post(PING | {"Authorization": f"Bearer {value}"}, b"{}"))[0]

        assert [await status(old), await status(new)] == [204, 401]
        (tmp_path / "next").write_text(new)
        assert [await status(old), await status(new)] == [204, 204]
        (tmp_path / "value").unlink()
        assert [await status(old), await status(new)] == [401, 204]
        assert function.steps() == []
        # The other mode is on beside it.
        assert (await function.post(await shown(installed, "broker"), b"{}"))[0] == 204


async def test_the_network_mode_is_said_aloud(installed: ControlPlane) -> None:
    async with served(installed, CALLERS="network") as function:
        assert await function.post(PING, b"{}") == (204, "")
        aloud = "nobody who calls is asked who he is, only a NetworkPolicy protects this function"
        assert aloud in await function.becomes("/readyz", 200)
        assert aloud in function.child.log.read_text()
        assert 'kreflex_callers_info{mode="network"} 1' in (await function.get("/metrics"))[1]
        assert REVIEW not in function.steps()
