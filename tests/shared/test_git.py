"""What is taken back in Git, against a real server of Git."""

import asyncio
import base64
import os
import shlex
import tempfile
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import uvloop

from kreflex.actions import BlockedError, HopelessError
from kreflex.errors import ConflictError, UnavailableError
from kreflex.git import Access, Clone, GitError, access_of, cloned, environment
from kreflex.manifests import documents
from kreflex.undoing import Undoing, Wrong, images_in, undoing
from kreflex.views import Ref
from lab import git

CART = Ref("apps/v1", "Deployment", "shop", "cart", "uid-cart")
THEN = datetime(2026, 5, 1, 12, 0, 0, tzinfo=UTC)
ME = Access("kreflex", "secret")
RECORD = "shop/rollback-cart-1a2b3c4d"
OTHERWISE = "Git would have cart:1 for Deployment shop/cart then, not cart:0"
FAILS_TOO = "what it went back to fails as well"
NOTHING_TELLS = "neither its history nor its controller's nor its files tell"


def a_manifest(name: str = "cart", image: str = "cart:1", more: str = "", kind: str = "Deployment") -> str:
    return f"""apiVersion: apps/v1
kind: {kind}
metadata: {{name: {name}, namespace: shop}}
spec:
  template:
    spec:
      containers:
      - name: app
        image: {image}
{more}"""


@dataclass
class Place:
    """A repository at the server, and what has been committed to it."""

    repository: git.Repository

    async def commit(self, message: str, **files: str | None) -> str:
        """Commit files; an underscore in a name is a slash, and .yaml comes after it."""
        named = {f"{name.replace('_', '/')}.yaml": text for name, text in files.items()}
        return await self.repository.commit(message, named)

    async def cloned(self, branch: str = "main", access: Access = ME, seconds: float = 20) -> Any:
        return cloned(self.repository.url, branch, access, asyncio.get_running_loop().time() + seconds)

    async def plan(self, applied: str, good: str = "", **about: Any) -> Undoing:
        wrong = Wrong(CART, ("shop",), applied, good, ("cart:1",), RECORD)
        async with await self.cloned() as clone:
            return await undoing(clone, replace(wrong, **about))

    async def after(self, plan: Undoing, file: str = "shop/cart.yaml") -> str:
        """Read a file as it would be, without pushing anything."""
        async with await self.cloned() as clone:
            planned: bytes = await clone.content(await _rebuilt(clone, plan), file)
            return planned.decode()

    async def undo(self, applied: str, good: str = "", record: str = RECORD, **about: Any) -> str:
        """Push what is planned."""
        wrong = Wrong(CART, ("shop",), applied, good, ("cart:1",), record)
        async with await self.cloned() as clone:
            plan = await undoing(clone, replace(wrong, **about))
            reverts = "".join(f"Kreflex-Reverts: {commit.sha}\n" for commit in plan.commits)
            message = f"Take it back\n\nKreflex-Record: {record}\n{reverts}"
            commit: str = await clone.commit(plan.tree, [plan.head], message, at=THEN)
            await clone.push(commit, "main")
            return commit


async def _rebuilt(clone: Clone, plan: Undoing) -> str:
    tree = await clone.tree_of(clone.head)
    for commit in plan.commits:
        tree = await clone.without(commit, tree, [""])
    return tree


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[git.Server]:
    reader = git.Account("guest", "guest", writes=False)
    async with git.serving(tmp_path, git.Account("kreflex", "secret"), reader) as serving:
        yield serving


@pytest.fixture
async def here(server: git.Server) -> Place:
    files = {"shop/cart.yaml": a_manifest(), "shop/mail.yaml": a_manifest("mail", "mail:1"), "README": "ours\n"}
    return Place(await server.make("team/shop", files))


async def first(here: Place) -> str:
    return (await here.repository.branches())["main"]


async def hopeless(plan: Any) -> tuple[str, str]:
    with pytest.raises(HopelessError) as refused:
        await plan
    return refused.value.cause, str(refused.value)


async def test_one_bad_commit_is_taken_back_and_what_was_good_is_proven(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    plan = await here.plan(bad, good)
    assert ([commit.sha for commit in plan.commits], plan.files, plan.head) == ([bad], ("shop/cart.yaml",), bad)
    assert plan.proof == "Deployment shop/cart has cart:1 again, as when it was well"
    assert (plan.wide, plan.done) == ("", "")
    assert await here.after(plan) == a_manifest()


async def test_the_commit_that_is_pushed_is_on_top_of_the_branch_and_says_what_it_is(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    pushed = await here.undo(bad, good)
    newest = (await here.repository.log())[0]
    assert (newest.sha, newest.parents, newest.author) == (pushed, (bad,), "Kreflex <kreflex@invalid>")
    assert newest.message == f"Take it back\n\nKreflex-Record: {RECORD}\nKreflex-Reverts: {bad}"
    assert await here.repository.file("shop/cart.yaml") == a_manifest()


async def test_two_processes_make_the_same_commit(here: Place) -> None:
    async with await here.cloned() as one, await here.cloned() as other:
        trees = [await clone.tree_of(clone.head) for clone in (one, other)]
        made = [
            await clone.commit(tree, [clone.head], "Take it back\n", "Ada <ada@example.org>", THEN)
            for clone, tree in zip((one, other), trees, strict=True)
        ]
    assert made[0] == made[1]


async def test_several_bad_commits_are_taken_back_and_what_came_elsewhere_stays(here: Place) -> None:
    good = await first(here)
    one = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    await here.commit("Explain", README="more\n", docs_page="a: 1\n")
    two = await here.commit("Release cart 3", shop_cart=a_manifest(image="cart:3"))
    pushed = await here.undo(two, good)
    assert await here.repository.file("shop/cart.yaml", pushed) == a_manifest()
    assert await here.repository.file("docs/page.yaml", pushed) == "a: 1\n"
    assert {one, two} == set((await here.repository.log())[0].message.split()[-3::2])


async def test_of_a_commit_only_what_it_did_below_the_path_is_taken_back(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release all", shop_cart=a_manifest(image="cart:2"), web_site=a_manifest("web", "web:2"))
    await here.undo(bad, good)
    assert await here.repository.file("shop/cart.yaml") == a_manifest()
    assert await here.repository.file("web/site.yaml") == a_manifest("web", "web:2")


async def test_a_file_that_the_bad_commit_has_added_goes_and_one_that_it_removed_is_back(here: Place) -> None:
    good = await first(here)
    changed = {"shop_cart": a_manifest(image="cart:2"), "shop_extra": "kind: ConfigMap\n", "shop_mail": None}
    bad = await here.commit("Release cart 2", **changed)
    plan = await here.plan(bad, good)
    assert plan.files == ("shop/cart.yaml", "shop/extra.yaml", "shop/mail.yaml")
    assert plan.wide == "it also changes Deployment mail"
    assert await here.after(plan, "shop/mail.yaml") == a_manifest("mail", "mail:1")
    assert await here.after(plan, "shop/extra.yaml") == ""


async def test_a_change_of_another_workload_in_the_same_commit_is_told(here: Place) -> None:
    good = await first(here)
    bad = await here.commit(
        "Release both", shop_cart=a_manifest(image="cart:2"), shop_mail=a_manifest("mail", "mail:2")
    )
    assert (await here.plan(bad, good)).wide == "it also changes Deployment mail"


async def test_what_would_not_bring_the_good_images_back_is_not_pushed(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    assert await hopeless(here.plan(bad, good, images=("cart:0",))) == (
        "GitElsewhere",
        f"taking back {bad[:12]} Release cart 2 (Lab) does not bring it back: {OTHERWISE}",
    )


async def test_what_was_changed_again_since_is_a_conflict(here: Place) -> None:
    await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    better = await here.commit("Release cart 3", shop_cart=a_manifest(image="cart:3"))
    async with await here.cloned() as clone:
        commit = next(one for one in await clone.log(better) if one.sha == bad)
        with pytest.raises(Exception, match=r"^shop/cart.yaml$"):
            await clone.without(commit, await clone.tree_of(better), ["shop"])


async def test_people_who_have_pushed_a_newer_commit_are_waited_for(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    newer = await here.commit("Mend cart", shop_cart=a_manifest(image="cart:2.1"))
    with pytest.raises(BlockedError) as blocked:
        await here.plan(bad, good)
    assert blocked.value.cause == "GitAhead"
    assert str(blocked.value).startswith(f"{newer[:12]} Mend cart (Lab) is newer than what is in the cluster")


async def test_a_newer_commit_elsewhere_is_no_reason_to_wait(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    newer = await here.commit("Explain", README="more\n")
    plan = await here.plan(bad, good)
    assert (plan.head, [commit.sha for commit in plan.commits]) == (newer, [bad])


async def test_what_this_record_has_pushed_is_not_pushed_again(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    pushed = await here.undo(bad, good)
    assert (await here.plan(bad, good)).done == pushed


async def test_the_same_commit_is_not_taken_back_twice(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    rollback = await here.undo(bad, good, "shop/earlier")
    again = await here.commit("Once more", shop_cart=a_manifest(image="cart:2"))
    assert await hopeless(here.plan(again, good)) == (
        "SameVersionAgain",
        f"{rollback[:12]} Take it back (Kreflex) has taken this version back before (shop/earlier): people decide",
    )


async def test_a_rollback_of_ours_is_not_rolled_back(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    rollback = await here.undo(bad, good, "shop/earlier")
    assert await hopeless(here.plan(rollback, good)) == (
        "RollbackOfRollback",
        f"{rollback[:12]} Take it back (Kreflex) is a rollback of Kreflex itself (shop/earlier): {FAILS_TOO}",
    )


async def test_another_bad_version_after_a_rollback_is_taken_back_alone(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    await here.undo(bad, good, "shop/earlier")
    worse = await here.commit("Release cart 3", shop_cart=a_manifest(image="cart:3"))
    assert [commit.sha for commit in (await here.plan(worse, good)).commits] == [worse]


async def test_a_merge_is_taken_back_as_a_whole(here: Place) -> None:
    good = await first(here)
    await here.repository.commit("Begin cart 2", {"shop/cart.yaml": a_manifest(image="cart:2")}, "cart-2")
    await here.repository.commit("End cart 2", {"shop/config.yaml": "a: 2\n"}, "cart-2")
    merged = await here.repository.merge("cart-2", "main", "Merge cart 2")
    plan = await here.plan(merged, good)
    assert ([commit.subject for commit in plan.commits], plan.files) == (
        ["Merge cart 2"],
        ("shop/cart.yaml", "shop/config.yaml"),
    )


async def test_a_rollback_that_came_by_a_merge_is_known(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    message = f"Take it back\n\nKreflex-Record: shop/earlier\nKreflex-Reverts: {bad}\n"
    await here.repository.commit(message, {"shop/cart.yaml": a_manifest()}, "kreflex/earlier")
    merged = await here.repository.merge("kreflex/earlier", "main", "Merge pull request #1")
    assert (await hopeless(here.plan(merged, good)))[0] == "RollbackOfRollback"
    worse = await here.commit("Release cart 3", shop_cart=a_manifest(image="cart:3"))
    assert [commit.sha for commit in (await here.plan(worse, good)).commits] == [worse]


async def test_without_a_known_good_revision_the_files_tell_it_by_the_images(here: Place) -> None:
    await here.commit("Release mail 2", shop_mail=a_manifest("mail", "mail:2"))
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    worse = await here.commit("Release cart 3", shop_cart=a_manifest(image="cart:3"))
    assert [commit.sha for commit in (await here.plan(worse)).commits] == [worse, bad]


async def test_images_that_no_commit_has_are_not_searched_for_ever(here: Place) -> None:
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    assert await hopeless(here.plan(bad, images=("cart:0",))) == (
        "GitHistory",
        f"nobody knows which commit brought cart:0, with which Deployment shop/cart was well: {NOTHING_TELLS}",
    )


async def test_a_change_that_did_not_come_from_the_path_is_not_taken_back(here: Place) -> None:
    good = await first(here)
    applied = await here.commit("Explain", README="more\n")
    assert (await hopeless(here.plan(applied, good)))[0] == "GitElsewhere"


async def test_what_is_in_the_cluster_has_to_be_in_the_branch(here: Place) -> None:
    assert (await hopeless(here.plan("0" * 40, await first(here))))[0] == "GitHistory"


async def test_a_configuration_alone_is_taken_back_without_proof(here: Place) -> None:
    good = await first(here)
    bad = await here.commit("Configure", shop_config="kind: ConfigMap\napiVersion: v1\nmetadata: {name: cart}\n")
    plan = await here.plan(bad, good)
    assert (plan.files, plan.proof, plan.wide) == (("shop/config.yaml",), "", "")


KUSTOMIZATION = "resources: [../base]\nimages: [{name: cart, newTag: '1'}]\n"


async def test_the_bases_of_a_kustomization_belong_to_its_path(server: git.Server) -> None:
    base = {"base/kustomization.yaml": "resources: [cart.yaml]\n", "base/cart.yaml": a_manifest(image="cart")}
    here = Place(await server.make("team/layers", {**base, "shop/kustomization.yaml": KUSTOMIZATION}))
    good = await first(here)
    bad = await here.commit("Break the base", base_cart=a_manifest(image="cart", more="        command: [no]\n"))
    plan = await here.plan(bad, good, others=("Deployment shop/mail",))
    assert ([commit.sha for commit in plan.commits], plan.files) == ([bad], ("base/cart.yaml",))
    assert (plan.proof, plan.wide) == ("", "its files also make Deployment shop/mail")


async def test_an_overlay_is_taken_back_and_said_to_be_without_proof(server: git.Server) -> None:
    base = {"base/kustomization.yaml": "resources: [cart.yaml]\n", "base/cart.yaml": a_manifest(image="cart")}
    here = Place(await server.make("team/layers", {**base, "shop/kustomization.yaml": KUSTOMIZATION}))
    good = await first(here)
    bad = await here.commit("Release cart 2", shop_kustomization=KUSTOMIZATION.replace("'1'", "'2'"))
    plan = await here.plan(bad, good)
    assert (plan.files, plan.proof, plan.wide) == (("shop/kustomization.yaml",), "", "")


async def test_others_who_push_at_the_same_moment_are_first(here: Place) -> None:
    async with await here.cloned() as clone:
        commit = await clone.commit(await clone.tree_of(clone.head), [clone.head], "Nothing\n")
        await here.commit("Explain", README="more\n")
        with pytest.raises(ConflictError, match=r"main of .* has changed in the meantime"):
            await clone.push(commit, "main")


async def test_a_branch_that_is_protected_needs_people(here: Place) -> None:
    await here.repository.protect("main")
    async with await here.cloned() as clone:
        commit = await clone.commit(await clone.tree_of(clone.head), [clone.head], "Nothing\n")
        cause, because = await hopeless(clone.push(commit, "main"))
        assert cause == "GitProtected"
        assert "Changes must be made through a pull request" in because
        await clone.push(commit, "kreflex/one")
        known = await clone.remote_head("kreflex/one")
        assert known is not None
        assert (known.sha, known.record) == (commit, "")
        assert await clone.remote_head("kreflex/two") is None


@pytest.mark.parametrize("access", [Access(), Access("kreflex", "wrong"), Access(token="wrong")])
async def test_wrong_credentials_are_told_and_waited_with(here: Place, access: Access) -> None:
    with pytest.raises(BlockedError) as blocked:
        async with await here.cloned(access=access):
            pass
    assert blocked.value.cause == "GitDenied"
    assert "releases.git.secret" in str(blocked.value)
    assert "wrong" not in str(blocked.value)


async def test_who_may_only_read_is_told_so_at_the_push(here: Place) -> None:
    async with await here.cloned(access=Access("guest", "guest")) as clone:
        commit = await clone.commit(await clone.tree_of(clone.head), [clone.head], "Nothing\n")
        with pytest.raises(BlockedError) as blocked:
            await clone.push(commit, "main")
    assert blocked.value.cause == "GitDenied"


async def test_a_token_lets_in_as_well(here: Place) -> None:
    async with await here.cloned(access=Access(token="secret")) as clone:
        assert clone.head == await first(here)


async def test_the_default_branch_is_asked_for(here: Place) -> None:
    async with await here.cloned("") as clone:
        assert clone.branch == "main"


async def test_a_tag_is_no_branch(here: Place) -> None:
    async def fetch() -> None:
        async with await here.cloned("v1"):
            pass

    assert await hopeless(fetch()) == (
        "GitHistory",
        f"v1 is no branch of {here.repository.url}: change it there",
    )


async def test_a_server_that_is_away_is_waited_for() -> None:
    end = asyncio.get_running_loop().time() + 10
    with pytest.raises(BlockedError) as blocked:
        async with cloned("http://127.0.0.1:9/x.git", "main", ME, end):
            pass
    assert blocked.value.cause == "GitUnreachable"


async def test_a_server_that_does_not_answer_in_time_is_left() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    server = await asyncio.start_server(silent, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/x.git"
    async with server:
        with pytest.raises(UnavailableError, match="took too long"):
            async with cloned(url, "main", ME, asyncio.get_running_loop().time() + 0.5):
                pass


async def test_no_other_protocols_are_spoken(tmp_path: Path) -> None:
    with pytest.raises(BlockedError, match="transport 'file' not allowed"):
        async with cloned(f"file://{tmp_path}", "main", ME, asyncio.get_running_loop().time() + 5):
            pass


def test_no_secret_stands_on_a_command_line_or_in_an_address(tmp_path: Path) -> None:
    given = environment(Access("kreflex", "secret", identity="KEY", known_hosts="HOSTS", ca="CA"), tmp_path)
    shown = {key for key, value in given.items() if "a3JlZmxleDpzZWNyZXQ=" in value}
    assert len(shown) == 1
    assert shown <= {f"GIT_CONFIG_VALUE_{n}" for n in range(20)}
    assert not [key for key, value in given.items() if "KEY" in value]
    assert oct((tmp_path / "identity").stat().st_mode)[-3:] == "600"


def test_a_proxy_is_used_and_nothing_else_of_our_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("GIT_SSH_COMMAND", "evil")
    monkeypatch.setenv("TOKEN", "secret")
    given = environment(Access(), tmp_path)
    assert given["HTTPS_PROXY"] == "http://proxy:3128"
    assert "TOKEN" not in given
    assert shlex.split(given["GIT_SSH_COMMAND"]) == [
        # No key of the account that runs us, either.
        *("ssh", "-F", "/dev/null", "-i", "/dev/null"),
        *("-o", "BatchMode=yes", "-o", "ConnectTimeout=10", "-o", "StrictHostKeyChecking=yes"),
        *("-o", f"UserKnownHostsFile={tmp_path}/known_hosts", "-o", "GlobalKnownHostsFile=/dev/null"),
        *("-o", "IdentitiesOnly=yes", "-o", "IdentityAgent=none"),
    ]


FAKE_SSH = """#!/bin/sh
# Runs what the other side would run, here; what it was given is kept.
printf '%s\\n' "$@" > "{kept}"
cat "$4" > "{kept}.key"
eval "last=\\${{$#}}"
eval "exec git ${{last#git-}}"
"""


async def test_ssh_is_given_its_key_and_its_hosts(here: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (programs := tmp_path / "programs").mkdir()
    (programs / "ssh").write_text(FAKE_SSH.format(kept=tmp_path / "kept"))
    (programs / "ssh").chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:/usr/local/bin:/usr/bin:/bin")
    url = f"ssh://git@forge.example{here.repository.directory}"
    access = Access(identity="KEY\n", known_hosts="forge.example ssh-ed25519 AAAA\n")
    async with cloned(url, "main", access, asyncio.get_running_loop().time() + 10) as clone:
        head = clone.head
        commit = await clone.commit(await clone.tree_of(head), [head], "By SSH\n")
        await clone.push(commit, "main")
    assert await first(here) == commit
    given = (tmp_path / "kept").read_text().splitlines()
    assert given[:3] == ["-F", "/dev/null", "-i"]
    assert {"StrictHostKeyChecking=yes", "git@forge.example"} <= set(given)
    assert (tmp_path / "kept.key").read_text() == "KEY\n"


def test_the_keys_of_a_secret_are_those_of_flux_and_argo_cd() -> None:
    def secret(**data: str) -> dict[str, Any]:
        return {
            "data": {key.replace("__", "."): base64.b64encode(value.encode()).decode() for key, value in data.items()}
        }

    assert access_of(secret(username="me", password="secret\n", ca__crt="CA")) == Access("me", "secret", ca="CA")
    assert access_of(secret(bearerToken="token")) == Access("git", token="token")
    key = Access("git", identity="KEY\n", known_hosts="hosts")
    assert access_of(secret(identity="KEY", known_hosts="hosts")) == key
    assert access_of(secret(sshPrivateKey="KEY\n\n", known_hosts="hosts")) == key
    assert access_of(None) == Access("git")


def test_only_objects_are_read_from_a_file() -> None:
    text = "a: 1\n---\n- b\n---\nkind: List\nitems:\n- {apiVersion: v1, kind: Pod, metadata: {name: one}}\n"
    assert [body["metadata"]["name"] for body in documents(text.encode())] == ["one"]
    assert list(documents(b"{{ template }}: [")) == []
    assert images_in({"spec": {"template": {"spec": "?"}}}) == ()


def test_git_that_ends_before_it_has_read_anything_is_no_failure_in_the_loop_of_a_server(tmp_path: Path) -> None:
    async def asked() -> set[bytes]:
        clone = Clone("https://git.example", tmp_path, {}, asyncio.get_running_loop().time() + 20)
        return {await clone.git("version", stdin=b"x" * 100_000) for _ in range(20)}

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        (told,) = runner.run(asked())
    assert told.startswith(b"git version ")


async def test_a_git_that_never_stops_talking_is_ended(here: Place) -> None:
    async with await here.cloned(seconds=20) as clone:
        with pytest.raises(GitError, match="has more to say than anybody reads"):
            await clone.git("-c", "alias.talk=!yes", "talk")


async def test_a_git_that_never_stops_complaining_is_ended(here: Place) -> None:
    async with await here.cloned(seconds=3) as clone:
        with pytest.raises(UnavailableError, match="took too long"):
            await clone.git("-c", "alias.talk=!yes >&2", "talk")


async def test_a_folder_with_the_name_of_a_file_has_no_content(here: Place) -> None:
    await here.repository.commit("Odd", {"shop/kustomization.yaml/inner.yaml": "a: 1\n"})
    async with await here.cloned() as clone:
        assert await clone.content(clone.head, "shop/kustomization.yaml") == b""


async def test_a_name_with_a_zero_is_no_bug_of_ours(here: Place) -> None:
    applied = await first(here)
    with pytest.raises(BlockedError, match="a name with a zero in it"):
        await here.plan(applied, applied, paths=("shop\0x",))


async def test_what_git_fails_at_later_says_where(here: Place) -> None:
    with pytest.raises(BlockedError) as blocked:
        async with await here.cloned() as clone:
            await clone.git("cat-file", "blob", "f" * 40)
    assert blocked.value.cause == "GitUnreachable"
    assert str(blocked.value).startswith(f"{here.repository.url} can't be reached: ")


async def test_what_somebody_left_behind_who_was_killed_is_removed(here: Place) -> None:
    old, new = (Path(tempfile.mkdtemp(prefix="kreflex-git-")) for _ in range(2))
    (old / "identity").write_text("a key")
    os.utime(old, (0, 0))
    async with await here.cloned():
        assert (old.exists(), new.exists()) == (False, True)
    new.rmdir()


async def test_a_merge_that_has_kept_the_files_of_one_side_is_newer_too(here: Place) -> None:
    good = await first(here)
    await here.repository.commit("Explain", {"README": "more\n"}, "old")
    bad = await here.commit("Release cart 2", shop_cart=a_manifest(image="cart:2"))
    keeps = await here.repository.commit("Merge, ours", {"shop/cart.yaml": a_manifest(), "README": "more\n"}, "main")
    tree = await git.git("rev-parse", f"{keeps}^{{tree}}", directory=here.repository.directory)
    branches = await here.repository.branches()
    sides = ("-p", bad, "-p", branches["old"])
    made = await git.git("commit-tree", tree.strip(), *sides, "-m", "Merge", directory=here.repository.directory)
    await git.git("update-ref", "refs/heads/main", made.strip(), directory=here.repository.directory)
    with pytest.raises(BlockedError) as blocked:
        await here.plan(bad, good)
    assert (blocked.value.cause, str(blocked.value)[:12]) == ("GitAhead", made[:12])


async def test_what_was_good_is_not_taken_back_with_a_merge_of_the_main_branch_into_another(here: Place) -> None:
    """The first parent of such a merge is the other branch: all of main looks like its part."""
    config = "kind: ConfigMap\napiVersion: v1\nmetadata: {name: cart}\ndata: {a: '%s'}\n"
    await here.repository.commit("Begin cart 2", {"shop/other.yaml": config % "bad"}, "mine")
    good = await here.commit("Configure", shop_config=config % "good")
    merged = await here.repository.merge("main", "mine", "Merge main into mine")
    await git.git("update-ref", "refs/heads/main", merged, directory=here.repository.directory)
    cause, told = await hopeless(here.plan(merged, good))
    assert cause == "GitConflict"
    assert f"it would not be as in {good[:12]}, which was good" in told


async def test_what_others_may_be_made_of_is_told(server: git.Server) -> None:
    base = {"base/kustomization.yaml": "resources: [cart.yaml]\n", "base/cart.yaml": a_manifest(image="cart")}
    here = Place(await server.make("team/base", {**base, "shop/kustomization.yaml": KUSTOMIZATION}))
    good = await first(here)
    bad = await here.commit("Break the base", base_cart=a_manifest(image="cart", more="        command: [no]\n"))
    plan = await here.plan(bad, good)
    assert plan.wide == "base/cart.yaml is not below shop, so others may be made of it"
    broken = await here.commit("Break it here", shop_kustomization=KUSTOMIZATION.replace("'1'", "'2'"))
    assert (await here.plan(broken, bad)).wide == ""


def test_odd_containers_have_no_images() -> None:
    assert images_in({"spec": {"template": {"spec": {"containers": 5, "initContainers": ["x"]}}}}) == ()
