"""The lab's Git server and the stand-in for forges, asked by git itself and over HTTP."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from lab import forges, git
from lab.certificates import Authority

WRITER = git.Account("kreflex", "s3cret/with@signs")
READER = git.Account("flux", "only-reads", writes=False)
FIRST = {"shop/deployment.yaml": "image: shop:1\n", "README.md": "A shop.\n"}


@dataclass
class Desk:
    """A repository on the server, and a working copy of it."""

    forge: forges.Forge
    repository: git.Repository
    copy: Path

    async def run(self, *arguments: str) -> str:
        return await git.git(*arguments, directory=self.copy)

    async def change(self, image: str, branch: str = git.MAIN) -> None:
        """Commit another image in the working copy, on a branch."""
        await self.run("checkout", "--quiet", "-B", branch)
        (self.copy / "shop/deployment.yaml").write_text(f"image: {image}\n")
        await self.run("commit", "--quiet", "-a", "-m", f"Release {image}")

    async def propose(self, branch: str = "undo") -> None:
        await self.change("shop:0", branch)
        await self.run("push", "--quiet", "origin", branch)

    async def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
        shown = headers or {"Authorization": f"Bearer {WRITER.password}"}
        url = self.forge.server.url + path
        async with (
            aiohttp.ClientSession() as session,
            session.request(method, url, json=body, headers=shown) as answer,
        ):
            return answer.status, await answer.json()


@pytest.fixture
async def desk(tmp_path: Path) -> AsyncIterator[Desk]:
    async with forges.serving(tmp_path / "server", WRITER, READER) as forge:
        repository = await forge.server.make("team/shop", FIRST)
        await git.git("clone", "--quiet", WRITER.in_url(repository.url), tmp_path / "copy")
        yield Desk(forge, repository, tmp_path / "copy")


async def test_a_push_is_seen_on_the_server(desk: Desk) -> None:
    await desk.change("shop:2")
    await desk.run("push", "--quiet")

    assert await desk.repository.file("shop/deployment.yaml") == "image: shop:2\n"
    newest, first = await desk.repository.log()
    assert (newest.subject, newest.parents, newest.author) == ("Release shop:2", (first.sha,), "Lab <lab@kreflex.dev>")
    assert await desk.repository.branches() == {"main": newest.sha}


async def test_a_revert_brings_back_what_was(desk: Desk) -> None:
    bad = await desk.repository.commit("Release shop:2", {"shop/deployment.yaml": "image: shop:2\n"})
    await desk.run("pull", "--quiet")
    await desk.run("revert", "--no-edit", bad)
    await desk.run("push", "--quiet")

    assert await desk.repository.file("shop/deployment.yaml") == "image: shop:1\n"
    assert await desk.repository.file("shop/deployment.yaml", bad) == "image: shop:2\n"


async def test_what_the_lab_commits_can_be_pulled(desk: Desk) -> None:
    sha = await desk.repository.commit("Tell less\n\nWhy: nobody reads it.", {"README.md": None, "a/b.txt": "é\n"})
    await desk.run("pull", "--quiet")

    assert not (desk.copy / "README.md").exists()
    assert (desk.copy / "a/b.txt").read_text() == "é\n"
    assert (await desk.repository.log())[0].message == "Tell less\n\nWhy: nobody reads it."
    assert (await desk.run("rev-parse", "HEAD")).strip() == sha


@pytest.mark.parametrize(
    ("account", "words"),
    [
        (git.Account("kreflex", "wrong"), "Authentication failed"),
        (git.Account("nobody", WRITER.password), "Authentication failed"),
        (READER, "403"),
    ],
)
async def test_a_push_without_the_right_to_is_refused(desk: Desk, account: git.Account, words: str) -> None:
    before = await desk.repository.branches()
    await desk.change("shop:2")

    with pytest.raises(git.GitError, match=words):
        await desk.run("push", account.in_url(desk.repository.url), "main")

    assert await desk.repository.branches() == before


async def test_who_shows_nothing_is_asked_for_a_password(desk: Desk) -> None:
    url = f"{desk.repository.url}/info/refs?service=git-upload-pack"
    async with aiohttp.ClientSession() as session, session.get(url) as answer:
        assert (answer.status, answer.headers["WWW-Authenticate"]) == (401, 'Basic realm="lab"')


async def test_a_token_does_for_a_password(desk: Desk) -> None:
    by_name = git.Account("x-access-token", WRITER.password)
    header = f"http.extraHeader=Authorization: Bearer {WRITER.password}"

    by_password = await git.git("ls-remote", by_name.in_url(desk.repository.url), "main")
    by_header = await git.git("-c", header, "ls-remote", desk.repository.url, "main")

    assert by_password == by_header == f"{(await desk.repository.branches())['main']}\trefs/heads/main\n"


async def test_a_push_to_an_old_state_is_refused(desk: Desk) -> None:
    theirs = await desk.repository.commit("Release shop:3", {"shop/deployment.yaml": "image: shop:3\n"})
    await desk.change("shop:2")

    with pytest.raises(git.GitError, match="fetch first"):
        await desk.run("push")

    assert await desk.repository.branches() == {"main": theirs}


async def test_a_protected_branch_takes_no_push(desk: Desk) -> None:
    before = await desk.repository.branches()
    await desk.repository.protect()
    await desk.change("shop:2")

    with pytest.raises(git.GitError) as refusal:
        await desk.run("push")
    await desk.propose()

    assert "remote: error: GH006: Protected branch update failed for refs/heads/main." in str(refusal.value)
    assert "remote: error: Changes must be made through a pull request." in str(refusal.value)
    assert (await desk.repository.branches())["main"] == before["main"]
    assert "undo" in await desk.repository.branches()


async def test_a_clone_may_leave_out_what_it_does_not_need(desk: Desk, tmp_path: Path) -> None:
    partial = ("--filter=blob:none", "--no-checkout", "--depth=1")
    await git.git("clone", "--quiet", *partial, WRITER.in_url(desk.repository.url), tmp_path / "partial")

    missing = await git.git("rev-list", "--objects", "--missing=print", "HEAD", directory=tmp_path / "partial")
    assert sum(line.startswith("?") for line in missing.splitlines()) == len(FIRST)


async def test_who_gives_up_leaves_no_process_behind() -> None:
    asked, gone = asyncio.Event(), asyncio.Event()

    async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        asked.set()
        await reader.read()
        gone.set()
        writer.close()

    async with await asyncio.start_server(never_answer, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        task = asyncio.create_task(git.git("ls-remote", f"http://127.0.0.1:{port}/shop.git"))
        await asyncio.wait_for(asked.wait(), 10)
        task.cancel()
        await asyncio.wait_for(gone.wait(), 10)

    assert (await asyncio.gather(task, return_exceptions=True))[0].__class__ is asyncio.CancelledError


async def test_it_speaks_https_to_who_knows_its_authority(tmp_path: Path) -> None:
    authority = Authority(tmp_path)
    async with git.serving(tmp_path / "server", WRITER, pair=authority.issue("git")) as server:
        repository = await server.make("team/shop", FIRST)
        url = WRITER.in_url(repository.url)

        heard = await git.git("ls-remote", url, "main", trust=str(authority.file))
        with pytest.raises(git.GitError, match="certificate"):
            await git.git("ls-remote", url, "main")

    assert url.startswith("https://")
    assert heard.endswith("\trefs/heads/main\n")


GITHUB = ("/repos/team/shop/pulls", {"title": "Undo", "body": "Why", "head": "undo", "base": "main"})
GITLAB = (
    "/api/v4/projects/team%2Fshop/merge_requests",
    {"title": "Undo", "description": "Why", "source_branch": "undo", "target_branch": "main"},
)
GITEA = ("/api/v1/repos/team/shop/pulls", GITHUB[1])


async def test_github_opens_a_pull_request_once(desk: Desk) -> None:
    await desk.propose()
    status, made = await desk.ask("POST", *GITHUB)
    again, refused = await desk.ask("POST", *GITHUB)
    found = await desk.ask("GET", "/repos/team/shop/pulls?head=team:undo&state=open")

    branches = await desk.repository.branches()
    assert (status, made["number"], made["state"]) == (201, 1, "open")
    assert made["html_url"] == f"{desk.forge.server.url}/team/shop/pull/1"
    assert made["head"] == {"label": "team:undo", "ref": "undo", "sha": branches["undo"]}
    assert (again, refused["message"]) == (422, "Validation Failed")
    said = "A pull request already exists for team:undo."
    assert refused["errors"] == [{"resource": "PullRequest", "code": "custom", "message": said}]
    assert found == (200, [made])


async def test_gitlab_opens_a_merge_request_once(desk: Desk) -> None:
    await desk.propose()
    token = {"PRIVATE-TOKEN": WRITER.password}
    status, made = await desk.ask("POST", *GITLAB, **token)
    refused = await desk.ask("POST", *GITLAB, **token)
    found = await desk.ask("GET", f"{GITLAB[0]}?source_branch=undo&state=opened", **token)

    assert (status, made["iid"], made["state"]) == (201, 1, "opened")
    assert made["web_url"] == f"{desk.forge.server.url}/team/shop/-/merge_requests/1"
    said = "Another open merge request already exists for this source branch: !1"
    assert refused == (409, {"message": [said]})
    assert found == (200, [made])


async def test_gitea_opens_a_pull_request_once(desk: Desk) -> None:
    await desk.propose()
    token = {"Authorization": f"token {WRITER.password}"}
    status, made = await desk.ask("POST", *GITEA, **token)
    again, refused = await desk.ask("POST", *GITEA, **token)
    found = await desk.ask("GET", f"{GITEA[0]}/main/undo", **token)

    assert (status, made["number"], made["state"]) == (201, 1, "open")
    assert (again, refused["message"].partition(" [")[0]) == (409, "pull request already exists for these targets")
    assert found == (200, made)


@pytest.mark.parametrize(("path", "body"), [GITHUB, GITLAB, GITEA])
async def test_no_forge_opens_anything_for_a_stranger(desk: Desk, path: str, body: dict[str, str]) -> None:
    await desk.propose()
    status, _ = await desk.ask("POST", path, body, Authorization="Bearer wrong")
    assert (status, desk.forge.pulls) == (401, [])


@pytest.mark.parametrize(
    ("path", "body", "status"), [(*GITHUB, 422), (*GITLAB, 400), (*GITEA, 404)], ids=["github", "gitlab", "gitea"]
)
async def test_a_branch_that_was_not_pushed_is_refused(
    desk: Desk, path: str, body: dict[str, str], status: int
) -> None:
    assert (await desk.ask("POST", path, body))[0] == status


async def test_a_merge_brings_the_change_to_a_protected_branch(desk: Desk) -> None:
    await desk.repository.protect()
    await desk.propose()
    await desk.ask("POST", *GITHUB)
    (pull,) = desk.forge.pulls
    sha = await desk.forge.merge(pull)

    newest, *_ = await desk.repository.log()
    assert (newest.sha, newest.parents) == (sha, (pull.base_sha, pull.head_sha))
    assert await desk.repository.file("shop/deployment.yaml") == "image: shop:0\n"
    assert await desk.ask("GET", "/repos/team/shop/pulls?state=open") == (200, [])
    assert desk.forge.asked == [forges.Asked("kreflex", "/repos/team/shop/pulls", GITHUB[1])]
