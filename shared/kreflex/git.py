"""Git's own program, in a folder of its own for one remediation: it fetches a branch, and pushes one commit to it.

Nothing of whoever runs us counts: no settings, no hooks, no helpers, no questions at a terminal. Credentials go by the
environment and by files that only we can read, never by an address or a command line, which others can see.
"""

from __future__ import annotations

import asyncio
import base64
import os
import re
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from kreflex.actions import BlockedError, HopelessError
from kreflex.errors import ConflictError, KreflexError, UnavailableError
from kreflex.gitops import DENIED, PROTECTED, UNKNOWN
from kreflex.views import JSON

UNREACHABLE = "GitUnreachable"
# Older history is not looked at. Where 200 applications share a repository, 500 commits are two or three of each; 5,000
# took 0.4 s and 2.5 MB to fetch there, without contents.
DEPTH = 5000
# No file that git writes may be larger, in blocks of 512 bytes; a pack without contents is far below that.
_BLOCKS = 256 * 1024 * 2
_MOST_OUTPUT, _MOST_FILE = 32 * 1024 * 1024, 1024 * 1024
# A folder of somebody who was killed has a key in it. Nobody works as long as this.
_PREFIX, _LEFT_BEHIND = "kreflex-git-", 600.0
_GONE_WITHIN = 5.0
_BRANCH = "refs/remotes/origin/head"
# What git, curl, ssh and the forges say to those whom they don't let in.
_NOT_LET_IN = re.compile(
    r"authentication failed|could not read (username|password)|permission denied|host key verification failed"
    r"|access denied|returned error: 40[13]|repository not found|not authorized|may not write",
    re.IGNORECASE,
)
# Handed on, so that a cluster's proxy is used; all else of our environment stays here.
_HANDED_ON = ("PATH", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY", "https_proxy", "http_proxy", "no_proxy", "SSL_CERT_FILE")


class GitError(KreflexError):
    """git has failed; the message is its own words, `code` what it ended with."""

    def __init__(self, words: str, code: int) -> None:
        super().__init__(words)
        self.code = code


@dataclass(frozen=True)
class Access:
    """What lets us in: user name and password, or a token, or an SSH key; `ca` is whom to trust besides."""

    username: str = ""
    password: str = field(default="", repr=False)
    token: str = field(default="", repr=False)
    identity: str = field(default="", repr=False)
    known_hosts: str = ""
    ca: str = ""

    @property
    def header(self) -> str:
        """The Authorization header; "" for none."""
        if self.token:
            return f"Bearer {self.token}"
        basic = base64.b64encode(f"{self.username}:{self.password}".encode()).decode()
        return f"Basic {basic}" if self.password else ""


def access_of(secret: JSON | None) -> Access:
    """Read the Secret of a policy; its keys are those of Flux' and Argo CD's own Secrets.

    https://fluxcd.io/flux/components/source/gitrepositories/#secret-reference
    """
    data = {key: base64.b64decode(value).decode() for key, value in ((secret or {}).get("data") or {}).items()}
    return Access(
        username=data.get("username", "git").strip(),
        password=data.get("password", "").strip(),
        token=data.get("bearerToken", "").strip(),
        # ssh wants the last newline.
        identity=f"{key.strip()}\n" if (key := data.get("identity") or data.get("sshPrivateKey", "")) else "",
        known_hosts=data.get("known_hosts", ""),
        ca=data.get("ca.crt") or data.get("caFile", ""),
    )


def environment(access: Access, folder: Path) -> dict[str, str]:
    """Give git's environment; what has to be in files is written into the folder."""
    settings = {
        # A header that we set would follow a redirect to another host.
        "http.followRedirects": "false",
        "http.lowSpeedLimit": "1000",
        "http.lowSpeedTime": "10",
        "credential.helper": "",
        "core.hooksPath": os.devnull,
        "core.fsmonitor": "false",
        "advice.pushUpdateRejected": "false",
        "gc.auto": "0",
        # What is larger is never held in memory, and never merged.
        "core.bigFileThreshold": "8m",
        "maintenance.auto": "false",
        "fetch.recurseSubmodules": "false",
        # Renames are found by looking into files, which would all have to be fetched.
        "merge.renames": "false",
        "diff.renames": "false",
        **({"http.extraHeader": f"Authorization: {access.header}"} if access.header else {}),
        **({"http.sslCAInfo": _kept(folder / "ca.crt", access.ca)} if access.ca else {}),
    }
    numbered: dict[str, str] = {}
    for number, (key, value) in enumerate(settings.items()):
        numbered |= {f"GIT_CONFIG_KEY_{number}": key, f"GIT_CONFIG_VALUE_{number}": value}
    return {
        **{key: os.environ[key] for key in _HANDED_ON if key in os.environ},
        "HOME": str(folder),
        "LC_ALL": "C",
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_COUNT": str(len(settings)),
        **numbered,
        "GIT_TERMINAL_PROMPT": "0",
        "GIT_ALLOW_PROTOCOL": "http:https:ssh",
        "GIT_SSH_COMMAND": _ssh(access, folder),
        "GIT_SSH_VARIANT": "ssh",
    }


def _ssh(access: Access, folder: Path) -> str:
    """Write how ssh is called: with the Secret's key, and only to hosts that the Secret names."""
    known = _kept(folder / "known_hosts", access.known_hosts)
    options = {
        "BatchMode": "yes",
        "ConnectTimeout": "10",
        "StrictHostKeyChecking": "yes",
        "UserKnownHostsFile": known,
        "GlobalKnownHostsFile": os.devnull,
        "IdentitiesOnly": "yes",
        "IdentityAgent": "none",
    }
    # Without one ssh would try those of the account that we run under.
    identity = ["-i", _kept(folder / "identity", access.identity) if access.identity else os.devnull]
    words = ["ssh", "-F", os.devnull, *identity, *(word for one in options.items() for word in ("-o", "=".join(one)))]
    return shlex.join(words)


def _kept(file: Path, text: str) -> str:
    file.touch(mode=0o600)
    file.write_text(text)
    return str(file)


@dataclass(frozen=True)
class Commit:
    """One commit; `record` and `reverts` are what it says of itself if it is one of ours."""

    sha: str
    parents: tuple[str, ...]
    author: str
    subject: str
    record: str = ""
    reverts: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.sha[:12]} {self.subject[:100]} ({self.author[:50]})"


RECORD_TRAILER, REVERTS_TRAILER = "Kreflex-Record", "Kreflex-Reverts"
_TRAILERS = tuple(f"%(trailers:key={key},valueonly,separator=%x20)" for key in (RECORD_TRAILER, REVERTS_TRAILER))
_FORMAT = "%x00".join(("%H", "%P", "%an", "%s", *_TRAILERS))


@dataclass
class Clone:
    """A repository without its files; contents are fetched where they are looked at."""

    url: str
    folder: Path
    environment: dict[str, str] = field(repr=False)
    end: float
    """When all has to be over, by the loop's clock."""
    branch: str = ""
    head: str = ""

    async def git(self, *arguments: str, stdin: bytes = b"", more: Mapping[str, str] | None = None) -> bytes:
        """Run git; raises GitError with its words, UnavailableError when the time is over."""
        if any("\0" in one for one in arguments):
            raise GitError(f"git {arguments[0]} can't be asked about a name with a zero in it", 0)
        # A limit of the shell: git has none for what it fetches.
        command = ("/bin/sh", "-c", f'ulimit -f {_BLOCKS}; exec git "$@"', "git", *arguments)
        with tempfile.TemporaryFile() as given:
            # Not through a pipe: git may end before it has read all, and then uvloop fails, and not the command.
            given.write(stdin)
            given.seek(0)
            process = await asyncio.create_subprocess_exec(
                *command,
                cwd=self.folder,
                env={**self.environment, **(more or {})},
                stdin=given,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,
            )
        try:
            async with asyncio.timeout_at(self.end):
                output, errors = await _heard(process)
        except TimeoutError as error:
            raise UnavailableError(f"git {arguments[0]} with {self.url} took too long") from error
        finally:
            if process.returncode is None:
                # All of its group: ssh and curl are its children.
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                await _ended(process)
        if len(output) > _MOST_OUTPUT:
            raise GitError(f"git {arguments[0]} has more to say than anybody reads", 0)
        if process.returncode != 0:
            raise GitError(_words(errors, output), process.returncode or 0)
        return output

    async def text(self, *arguments: str, stdin: bytes = b"", more: Mapping[str, str] | None = None) -> str:
        """Run git for one line."""
        return (await self.git(*arguments, stdin=stdin, more=more)).decode(errors="replace").strip()

    async def fetch(self, branch: str) -> None:
        """Fetch a branch, "" for the default one; raises BlockedError, and HopelessError if there is no such branch."""
        try:
            await self.git("init", "--quiet", "--bare", ".")
            await self.git("remote", "add", "origin", self.url)
            self.branch = branch or await self._default()
            wanted = f"+refs/heads/{self.branch}:{_BRANCH}"
            await self.git(
                *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", f"--depth={DEPTH}", "--filter=blob:none"),
                *("origin", wanted),
            )
        except GitError as error:
            if "couldn't find remote ref" in str(error):
                raise HopelessError(f"{self.branch} is no branch of {self.url}: change it there", UNKNOWN) from error
            raise self.blocked(error) from error
        self.head = await self.text("rev-parse", _BRANCH)

    async def _default(self) -> str:
        told = await self.text("ls-remote", "--symref", "origin", "HEAD")
        found = re.match(r"ref: refs/heads/(\S+)\s", told)
        if found is None:
            raise HopelessError(f"{self.url} has no default branch", UNKNOWN)
        return found.group(1)

    def blocked(self, error: GitError) -> BlockedError:
        """Tell what keeps us out, so that people can let us in."""
        if _NOT_LET_IN.search(str(error)):
            return BlockedError(f"{self.url} does not let us in, see the policy's releases.git.secret: {error}", DENIED)
        return BlockedError(f"{self.url} can't be reached: {error}", UNREACHABLE)

    async def has(self, revision: str, head: str = "") -> bool:
        """Tell whether a commit is in the branch, or in the history of another commit, and not too old."""
        try:
            await self.git("merge-base", "--is-ancestor", revision, head or self.head)
        except GitError:
            return False
        return True

    async def log(self, *arguments: str, paths: Sequence[str] = ()) -> list[Commit]:
        """Read commits, the newest first; with paths only those that touched them."""
        told = await self.git("log", "-z", f"--format={_FORMAT}", *arguments, "--", *_literal(paths))
        words = told.decode(errors="replace").split("\0")
        return [_commit(words[n : n + 6]) for n in range(0, len(words) - 5, 6)]

    async def tree_of(self, revision: str, path: str = "") -> str:
        """Tell the id of what is at a path; "" if nothing is there."""
        try:
            return await self.text("rev-parse", "--verify", "--quiet", f"{revision}:{path}")
        except GitError:
            return ""

    async def changed(self, before: str, after: str, paths: Sequence[str] = ()) -> tuple[str, ...]:
        """Name the files in which two trees differ."""
        told = await self.git("diff-tree", "-r", "-z", "--name-only", before, after, "--", *_literal(paths))
        return tuple(name for name in told.decode(errors="replace").split("\0") if name)

    async def files(self, tree: str, paths: Sequence[str]) -> tuple[str, ...]:
        """Name the files below paths."""
        told = await self.git("ls-tree", "-r", "-z", "--name-only", tree, "--", *(path for path in paths if path))
        return tuple(name for name in told.decode(errors="replace").split("\0") if name)

    async def content(self, tree: str, file: str) -> bytes:
        """Read a file; b"" if it is not there, or if it is larger than any manifest."""
        blob = await self.tree_of(tree, file)
        # Asked first: a few kilobytes of a repository may unpack to as many gigabytes.
        told = (await self.text("cat-file", "--batch-check", stdin=f"{blob}\n".encode())).split() if blob else []
        small = told[1:2] == ["blob"] and int(told[2]) <= _MOST_FILE
        return await self.git("cat-file", "blob", blob) if small else b""

    async def fetch_contents(self, tree: str, files: Sequence[str]) -> None:
        """Fetch what many files contain in one go, as git does for a checkout; they are read one by one later."""
        told = (await self.git("ls-tree", "-r", "-z", tree)).decode(errors="surrogateescape").split("\0")
        # Of each file `mode type id`, then its name.
        named = {line.partition("\t")[2]: line.split()[2] for line in told if line}
        blobs = [named[file] for file in files if file in named]
        wanted = "".join(f"{blob}\n" for blob in blobs).encode()
        # https://github.com/git/git/blob/v2.39.0/promisor-remote.c, fetch_objects
        await self.git(
            *("-c", "fetch.negotiationAlgorithm=noop", "fetch", "origin", "--quiet", "--no-tags"),
            *("--no-write-fetch-head", "--recurse-submodules=no", "--filter=blob:none", "--stdin"),
            stdin=wanted,
        )

    async def with_file(self, tree: str, file: str, content: bytes) -> str:
        """Give a tree in which a file that is there has another content."""
        mode = (await self.text("ls-tree", tree, "--", *_literal([file]))).partition(" ")[0]
        blob = await self.text("hash-object", "-w", "--stdin", stdin=content)
        index = {"GIT_INDEX_FILE": str(self.folder / "edited.index")}
        await self.git("read-tree", tree, more=index)
        await self.git("update-index", "-z", "--index-info", stdin=f"{mode} {blob}\t{file}\0".encode(), more=index)
        return await self.text("write-tree", "--missing-ok", more=index)

    async def without(self, commit: Commit, tree: str, paths: Sequence[str]) -> str:
        """Give a tree in which what a commit did below paths is taken back; raises a Conflict that names the files."""
        before = commit.parents[0]
        told = await self.git("diff-tree", "-r", "-z", before, commit.sha, "--", *_literal(paths))
        words = told.decode(errors="surrogateescape").split("\0")
        # Of each file what it was: `:mode mode id id status`, then its name; mode 0 takes it away.
        entries = [f"{(old := words[n].split())[0][1:]} {old[2]}\t{words[n + 1]}" for n in range(0, len(words) - 1, 2)]
        index = {"GIT_INDEX_FILE": str(self.folder / "undone.index")}
        await self.git("read-tree", commit.sha, more=index)
        given = "".join(f"{entry}\0" for entry in entries).encode(errors="surrogateescape")
        await self.git("update-index", "-z", "--index-info", stdin=given, more=index)
        undone = await self.text("write-tree", "--missing-ok", more=index)
        return await self._merged(await self.tree_of(commit.sha), tree, undone)

    async def _merged(self, base: str, ours: str, theirs: str) -> str:
        # merge-tree finds the base by the history of two commits: git 2.39 can't be told which it is.
        root = await self.commit(base, (), "base")
        sides = [await self.commit(tree, (root,), "side") for tree in (ours, theirs)]
        try:
            told = await self.git("merge-tree", "--write-tree", "--no-messages", "--name-only", "-z", *sides)
        except GitError as error:
            if error.code != 1:
                raise
            raise Conflict(tuple(name for name in str(error).split("\0")[1:] if name)) from error
        return told.decode().split("\0")[0].strip()

    async def commit(
        self, tree: str, parents: Sequence[str], message: str, author: str = "", at: datetime | None = None
    ) -> str:
        """Make a commit; the same in each process for the same author and time."""
        name, _, mail = (author or "Kreflex <kreflex@invalid>").rpartition(" <")
        time = f"@{int(at.timestamp()) if at else 0} +0000"
        who = {
            f"GIT_{role}_{key}": value
            for role in ("AUTHOR", "COMMITTER")
            for key, value in (("NAME", name), ("EMAIL", mail.rstrip(">")), ("DATE", time))
        }
        named = [word for parent in parents for word in ("-p", parent)]
        return await self.text("commit-tree", tree, *named, "-F", "-", stdin=message.encode(), more=who)

    async def push(self, commit: str, branch: str) -> None:
        """Push a commit to the end of a branch, never by force; raises ConflictError if others were faster."""
        try:
            await self.git("push", "--porcelain", "--no-verify", "origin", f"{commit}:refs/heads/{branch}")
        except GitError as error:
            words = str(error)
            if "[rejected]" in words or "cannot lock ref" in words:
                raise ConflictError(f"{branch} of {self.url} has changed in the meantime", 409) from error
            if "remote rejected" in words or "declined" in words:
                raise HopelessError(f"{self.url} refuses a push to {branch}: {words}", PROTECTED) from error
            raise self.blocked(error) from error

    async def remote_head(self, branch: str) -> Commit | None:
        """Read the commit at the end of another branch of the repository; None if there is no such branch."""
        try:
            await self.git(
                *("fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--depth=1", "--filter=blob:none"),
                *("origin", f"+refs/heads/{branch}:refs/remotes/origin/other"),
            )
        except GitError as error:
            if "couldn't find remote ref" in str(error):
                return None
            raise self.blocked(error) from error
        return (await self.log("-1", "refs/remotes/origin/other"))[0]


class Conflict(KreflexError):
    """What is to be taken back was changed again since, in these files."""

    def __init__(self, files: tuple[str, ...]) -> None:
        super().__init__(", ".join(files))
        self.files = files


def _commit(words: Sequence[str]) -> Commit:
    sha, parents, author, subject, record, reverts = words
    return Commit(sha.strip(), tuple(parents.split()), author, subject, record.strip(), tuple(reverts.split()))


def _literal(paths: Sequence[str]) -> list[str]:
    """Let no character of a path be read as a pattern; "" is all of the repository."""
    return [] if "" in paths else [f":(top,literal){path}" for path in paths]


async def _heard(process: asyncio.subprocess.Process) -> tuple[bytes, bytes]:
    """Hear what git says until it ends, or until it is more than anybody reads: it is ended by us then."""
    assert process.stdout is not None
    assert process.stderr is not None
    errors = asyncio.create_task(_read(process.stderr, _MOST_OUTPUT))
    try:
        output = await _read(process.stdout, _MOST_OUTPUT)
        if len(output) <= _MOST_OUTPUT:
            await process.wait()
            return output, await errors
        return output, b""
    finally:
        errors.cancel()
        await asyncio.wait({errors})


async def _ended(process: asyncio.subprocess.Process) -> None:
    """Wait until a process that was killed is gone; what it has said and nobody has read is thrown away.

    asyncio tells its end only after the ends of its pipes, and it never sees the end of one that is full: what is in
    it has to be read first (cpython#119710). A child that has left the group may hold one: nobody waits for that.
    """
    with suppress(TimeoutError):
        async with asyncio.timeout(_GONE_WITHIN):
            await asyncio.gather(*(_discarded(pipe) for pipe in (process.stdout, process.stderr) if pipe is not None))
            await process.wait()


async def _discarded(stream: asyncio.StreamReader) -> None:
    while await stream.read(64 * 1024):
        pass


async def _read(stream: asyncio.StreamReader, most: int) -> bytes:
    read = bytearray()
    while len(read) <= most and (chunk := await stream.read(64 * 1024)):
        read += chunk
    return bytes(read)


def _words(*outputs: bytes) -> str:
    """Give git's words; what it says of a conflict has zeros, which are kept."""
    return "\n".join(text for one in outputs if (text := one[:2000].decode(errors="replace").strip()))


@asynccontextmanager
async def cloned(url: str, branch: str, access: Access, end: float) -> AsyncIterator[Clone]:
    """Fetch a branch of a repository into a folder that is gone afterwards."""
    _sweep(Path(tempfile.gettempdir()), time.time() - _LEFT_BEHIND)
    with tempfile.TemporaryDirectory(prefix=_PREFIX) as name:
        folder = Path(name)
        (repository := folder / "repository").mkdir()
        clone = Clone(url, repository, environment(access, folder), end)
        await clone.fetch(branch)
        try:
            yield clone
        except GitError as error:
            # What is looked at is fetched then, so each question may meet a server that is away.
            raise clone.blocked(error) from error


def _sweep(folder: Path, before: float) -> None:
    """Remove what was left behind by those who were killed."""
    for left in folder.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            if left.lstat().st_uid == os.getuid() and left.lstat().st_mtime < before:
                shutil.rmtree(left, ignore_errors=True)
