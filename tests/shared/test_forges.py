"""Pull requests, against a stand-in for the APIs of three forges."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from kreflex.actions import BlockedError
from kreflex.forges import Forge, Proposal, repository_in
from kreflex.git import Access
from lab import forges, git

KINDS = {"GitHub": "", "GitLab": "/api/v4", "Gitea": "/api/v1"}
PAGES = {"GitHub": "pull/1", "GitLab": "-/merge_requests/1", "Gitea": "pulls/1"}
HEAD = "kreflex/rollback-cart-1"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[forges.Forge]:
    async with forges.serving(tmp_path, git.Account("kreflex", "secret")) as forge:
        repository = await forge.server.make("team/shop", {"a": "1\n"})
        await repository.commit("Take it back", {"a": "0\n"}, HEAD)
        yield forge


def a_forge(server: forges.Forge, kind: str, access: Access | None = None, name: str = "team/shop") -> Forge:
    return Forge(kind, server.server.url + KINDS[kind], name, access or Access("kreflex", "secret"))


@pytest.mark.parametrize("kind", KINDS)
async def test_a_pull_request_is_opened_with_its_words_and_its_branches(server: forges.Forge, kind: str) -> None:
    proposal = await a_forge(server, kind).propose(HEAD, "main", "Take it back", "It crashes")
    assert proposal == Proposal(f"{server.server.url}/team/shop/{PAGES[kind]}", "open")
    (pull,) = server.pulls
    assert (pull.title, pull.body, pull.head, pull.base) == ("Take it back", "It crashes", HEAD, "main")
    assert [asked.account for asked in server.asked] == ["kreflex"]


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_is_there_is_found_and_not_opened_again(server: forges.Forge, kind: str) -> None:
    forge = a_forge(server, kind)
    assert await forge.proposal(HEAD, "main") is None
    first = await forge.propose(HEAD, "main", "Take it back", "")
    assert await forge.propose(HEAD, "main", "Once more", "") == first
    assert await forge.proposal(HEAD, "") == first
    assert len(server.asked) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_two_that_open_it_at_once_find_the_same(server: forges.Forge, kind: str) -> None:
    opening = [a_forge(server, kind).propose(HEAD, "main", "Take it back", "") for _ in range(4)]
    assert len(set(await asyncio.gather(*opening))) == 1
    assert len(server.pulls) == 1


@pytest.mark.parametrize("kind", KINDS)
async def test_what_became_of_it_is_told(server: forges.Forge, kind: str) -> None:
    forge = a_forge(server, kind)
    await forge.propose(HEAD, "main", "Take it back", "")
    await server.merge(server.pulls[0])
    merged = await forge.proposal(HEAD, "main")
    assert merged is not None
    assert merged.state == "merged"


@pytest.mark.parametrize("kind", KINDS)
async def test_one_that_was_closed_is_not_opened_again(server: forges.Forge, kind: str) -> None:
    forge = a_forge(server, kind)
    await forge.propose(HEAD, "main", "Take it back", "")
    server.close(server.pulls[0])
    assert (await forge.propose(HEAD, "main", "Take it back", "")).state == "closed"
    assert len(server.pulls) == 1


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("access", "name"), [(Access(), "team/shop"), (Access("kreflex", "secret"), "team/other")])
async def test_a_forge_that_does_not_let_us_in_says_so(
    server: forges.Forge, kind: str, access: Access, name: str
) -> None:
    with pytest.raises(BlockedError) as blocked:
        await a_forge(server, kind, access, name).propose(HEAD, "main", "Take it back", "")
    assert blocked.value.cause == "GitDenied"
    assert str(blocked.value).startswith(f"{kind} at {server.server.url}{KINDS[kind]} does not show us {name} (40")


@pytest.mark.parametrize("kind", KINDS)
async def test_a_branch_that_is_not_there_can_not_be_proposed(server: forges.Forge, kind: str) -> None:
    with pytest.raises(BlockedError):
        await a_forge(server, kind).propose("kreflex/none", "main", "Take it back", "")
    assert server.pulls == []


async def test_a_forge_that_is_away_is_waited_for() -> None:
    with pytest.raises(BlockedError) as blocked:
        await Forge("GitHub", "http://127.0.0.1:9", "team/shop", Access()).proposal(HEAD, "main")
    assert blocked.value.cause == "Forge"


async def test_a_redirect_is_not_followed_with_a_token() -> None:
    heard: list[bytes] = []

    async def redirects(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heard.append(await reader.readuntil(b"\r\n\r\n"))
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(redirects, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        with pytest.raises(BlockedError, match="answers 302"):
            await Forge("GitLab", url, "team/deep/shop", Access(token="secret")).proposal(HEAD, "main")
    assert len(heard) == 1
    assert heard[0].startswith(
        b"GET /projects/team%2Fdeep%2Fshop/merge_requests?source_branch=kreflex%2Frollback-cart-1&"
    )
    assert b"Authorization: Bearer secret" in heard[0]


@pytest.mark.parametrize(
    ("kind", "pull", "state"),
    [
        # As the forges' documentation shows them.
        ("GitHub", {"state": "open", "merged_at": None, "merge_commit_sha": "a"}, "open"),
        ("GitHub", {"state": "closed", "merged_at": "2026-05-01T12:00:00Z"}, "merged"),
        ("GitHub", {"state": "closed", "merged_at": None}, "closed"),
        ("GitLab", {"state": "opened"}, "open"),
        ("GitLab", {"state": "locked"}, "open"),
        ("GitLab", {"state": "merged"}, "merged"),
        ("GitLab", {"state": "closed"}, "closed"),
        ("Gitea", {"state": "open", "merged": False}, "open"),
        ("Gitea", {"state": "closed", "merged": True}, "merged"),
        ("Gitea", {"state": "closed", "merged": False}, "closed"),
    ],
)
async def test_each_forge_has_its_own_words(kind: str, pull: dict[str, Any], state: str) -> None:
    assert await told(kind, pull) == Proposal("p", state)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "pull"),
    [
        ("GitHub", {"head": {"ref": HEAD, "repo": {"id": 2}}, "base": {"repo": {"id": 1}}}),
        ("GitHub", {"head": {"ref": HEAD, "repo": None}, "base": {"repo": {"id": 1}}}),
        ("Gitea", {"head": {"ref": HEAD, "repo": {"id": 2}}, "base": {"repo": {"id": 1}}}),
        ("GitLab", {"source_project_id": 2, "target_project_id": 1}),
    ],
)
async def test_what_somebody_proposes_from_a_copy_is_not_ours(kind: str, pull: dict[str, Any]) -> None:
    assert await told(kind, {"state": "closed", **pull}) is None


async def told(kind: Any, pull: dict[str, Any]) -> Proposal | None:
    """Ask a forge that knows one pull request, of our branch."""
    body = json.dumps(
        [{"head": {"ref": HEAD}, "source_branch": HEAD, "html_url": "p", "web_url": "p", **pull}]
    ).encode()

    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
        writer.write(head.encode() + body)
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answers, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    async with server:
        return await Forge(kind, url, "team/shop", Access()).proposal(HEAD, "main")


def test_the_name_of_a_repository_is_in_its_address() -> None:
    urls = ("https://github.com/team/shop.git", "git@github.com:team/shop.git", "ssh://git@host:22/team/deep/shop")
    assert [repository_in(url) for url in urls] == ["team/shop", "team/shop", "team/deep/shop"]


def test_an_address_is_no_way_to_another_request() -> None:
    assert repository_in("git@github.com:../user/repos?name=x") == ""
