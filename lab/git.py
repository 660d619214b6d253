"""A Git server on loopback: git's own http-backend behind HTTP authentication, with several repositories.

Clients talk to it as they do to a forge: smart HTTP, basic authentication or a bearer token, 401 without. What the
lab itself does to a repository (`Repository`) is done on the server's disk, past authentication and protection.
"""

import asyncio
import base64
import contextlib
import io
import os
import signal
import ssl
import tarfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from aiohttp import web

from lab.certificates import Pair
from lab.errors import LabError

MAIN = "main"
# A bundle of manifests is small; a push of more than this is a mistake.
_LIMIT = 64 * 1024 * 1024
# User names that forges take with any token: GitHub's and GitLab's.
_ANYBODY = ("x-access-token", "oauth2")
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="lab"'}
_LOG_FORMAT = "%H%x00%P%x00%an <%ae>%x00%B%x01"
# GitHub's words. It also writes "protected branch hook declined", which is for the server to say, not for a hook.
_UPDATE_HOOK = """#!/bin/sh
for branch in $(git config --get-all lab.protected); do
  if [ "$1" = "refs/heads/$branch" ]; then
    echo "error: GH006: Protected branch update failed for $1." >&2
    echo "error: Changes must be made through a pull request." >&2
    exit 1
  fi
done
"""


class GitError(LabError):
    """git has failed; its own words."""


async def git(*arguments: str | Path, directory: Path | None = None, stdin: bytes = b"", trust: str = "") -> str:
    """Run git as nobody in particular, whose settings and credentials are none; what it printed."""
    return (await raw(*arguments, directory=directory, stdin=stdin, trust=trust)).decode()


async def raw(*arguments: str | Path, directory: Path | None = None, stdin: bytes = b"", trust: str = "") -> bytes:
    """As git, for what is no text; `trust` is the file of a certificate."""
    environment = _environment() | ({"GIT_SSL_CAINFO": trust} if trust else {})
    code, output, errors = await ended("git", *arguments, stdin=stdin, env=environment, cwd=directory)
    if code != 0:
        raise GitError(f"git {arguments[0]}: {errors.decode(errors='replace').strip()}")
    return output


async def ended(*command: str | Path, stdin: bytes = b"", **options: Any) -> tuple[int | None, bytes, bytes]:
    """Run a program to its end: code, output, errors. Who is cancelled meanwhile leaves nothing of it behind."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True, **options
    )
    try:
        output, errors = await process.communicate(stdin)
    except asyncio.CancelledError:
        # With its children: git's talk to the server, and hold its pipes.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.communicate()
        raise
    return process.returncode, output, errors


def _environment() -> dict[str, str]:
    who = {
        f"GIT_{role}_{key}": value
        for role in ("AUTHOR", "COMMITTER")
        for key, value in (("NAME", "Lab"), ("EMAIL", "lab@kreflex.dev"))
    }
    # Neither the settings of whoever runs the lab, nor a proxy, nor a question at the terminal.
    alone = {"GIT_CONFIG_NOSYSTEM": "1", "GIT_CONFIG_GLOBAL": os.devnull, "GIT_TERMINAL_PROMPT": "0"}
    return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "NO_PROXY": "*", **who, **alone}


@dataclass(frozen=True)
class Account:
    """Who may come: a name with a password, or the password alone as a token."""

    name: str
    password: str = field(repr=False)
    writes: bool = True

    def shown_in(self, header: str) -> bool:
        """Whether an Authorization header is this account's."""
        scheme, _, rest = header.partition(" ")
        if scheme.lower() in ("bearer", "token"):
            return rest == self.password
        name, _, password = _decoded(rest).partition(":")
        return scheme.lower() == "basic" and name in (self.name, *_ANYBODY) and password == self.password

    def in_url(self, url: str) -> str:
        """A URL of the server with this account's name and password."""
        parts = urlsplit(url)
        return parts._replace(netloc=f"{quote(self.name, '')}:{quote(self.password, '')}@{parts.netloc}").geturl()


def _decoded(text: str) -> str:
    try:
        return base64.b64decode(text, validate=True).decode()
    except ValueError:
        return ""


@dataclass(frozen=True)
class Commit:
    """One commit, as `git log` tells it."""

    sha: str
    parents: tuple[str, ...]
    author: str
    message: str

    @property
    def subject(self) -> str:
        return self.message.partition("\n")[0]


@dataclass(frozen=True)
class Repository:
    """A bare repository on the server's disk."""

    name: str
    """With its owner: `team/shop`."""
    directory: Path
    url: str

    async def commit(self, message: str, files: Mapping[str, str | None], branch: str = MAIN) -> str:
        """Commit files, or their removal (None), at the end of a branch, which is made if need be; its id."""
        known = await self.branches()
        start = known.get(branch) or known.get(MAIN)
        stream = _stream(message, files, branch, start)
        await git("fast-import", "--quiet", "--date-format=now", directory=self.directory, stdin=stream)
        return (await self.branches())[branch]

    async def branches(self) -> dict[str, str]:
        """The commits at which branches end."""
        lines = await git(
            "for-each-ref", "--format=%(refname:short) %(objectname)", "refs/heads/", directory=self.directory
        )
        return {name: sha for name, _, sha in (line.partition(" ") for line in lines.splitlines())}

    async def log(self, revision: str = MAIN) -> list[Commit]:
        """The commits up to one, the newest first."""
        text = await git("log", f"--format={_LOG_FORMAT}", revision, "--", directory=self.directory)
        parts = [entry.strip("\n").split("\0") for entry in text.split("\1") if entry.strip("\n")]
        return [Commit(sha, tuple(parents.split()), who, said.strip("\n")) for sha, parents, who, said in parts]

    async def has(self, commit: str, branch: str) -> bool:
        """Whether a branch has a commit already."""
        return bool((await git("branch", "--list", branch, "--contains", commit, directory=self.directory)).strip())

    async def file(self, path: str, revision: str = MAIN) -> str:
        """What a file holds at a commit or a branch."""
        return await git("show", f"{revision}:{path}", directory=self.directory)

    async def protect(self, branch: str = MAIN) -> None:
        """Refuse pushes to a branch: it is changed by pull requests alone."""
        await git("config", "--add", "lab.protected", branch, directory=self.directory)

    async def merge(self, head: str, base: str, message: str) -> str:
        """Merge a branch into another by a merge commit, as a forge does; its id."""
        known = await self.branches()
        tree = (await git("merge-tree", "--write-tree", base, head, directory=self.directory)).split()[0]
        parents = ("-p", known[base], "-p", known[head])
        sha = (await git("commit-tree", tree, *parents, "-m", message, directory=self.directory)).strip()
        await git("update-ref", f"refs/heads/{base}", sha, known[base], directory=self.directory)
        return sha


@dataclass(frozen=True)
class Mirror:
    """A copy of a repository, as what applies it keeps one."""

    directory: Path

    async def fetch(self, url: str, account: Account | None, branch: str, trust: str = "") -> str:
        """Bring a branch here; the commit at which it ends."""
        if not self.directory.exists():
            self.directory.mkdir(parents=True)
            await git("init", "--quiet", "--bare", directory=self.directory)
        source = account.in_url(url) if account else url
        refs = f"+refs/heads/{branch}:refs/heads/{branch}"
        await git("fetch", "--quiet", source, refs, directory=self.directory, trust=trust)
        return (await git("rev-parse", f"refs/heads/{branch}", directory=self.directory)).strip()

    async def archive(self, commit: str) -> bytes:
        """All files of a commit, as a tar file in gzip."""
        # Of its tree: the archive of a commit begins with an entry that is no file.
        return await raw("archive", "--format=tar.gz", f"{commit}^{{tree}}", directory=self.directory)

    async def export(self, commit: str, target: Path) -> None:
        """Write all files of a commit below a folder."""
        with tarfile.open(fileobj=io.BytesIO(await self.archive(commit))) as archive:
            archive.extractall(target, filter="data")


def _stream(message: str, files: Mapping[str, str | None], branch: str, start: str | None) -> bytes:
    lines = [
        f"commit refs/heads/{branch}\n".encode(),
        b"committer Lab <lab@kreflex.dev> now\n",
        _data(message),
        f"from {start}\n".encode() if start else b"",
    ]
    for path, content in files.items():
        lines += [f"D {path}\n".encode()] if content is None else [f"M 100644 inline {path}\n".encode(), _data(content)]
    return b"".join(lines)


def _data(text: str) -> bytes:
    encoded = text.encode()
    return b"data %d\n%s\n" % (len(encoded), encoded)


@dataclass
class Server:
    """Repositories below a directory, for those who have an account."""

    root: Path
    accounts: tuple[Account, ...]
    pair: Pair | None = None
    """With a certificate it speaks HTTPS."""
    url: str = ""
    repositories: dict[str, Repository] = field(default_factory=dict)

    async def make(self, name: str, files: Mapping[str, str | None], message: str = "Begin") -> Repository:
        """Make a repository with a first commit on main."""
        directory = self.root / f"{name}.git"
        directory.mkdir(parents=True)
        await git("init", "--quiet", "--bare", f"--initial-branch={MAIN}", directory=directory)
        # As forges have it: partial clones, and a commit by its id.
        for key in ("http.receivepack", "uploadpack.allowFilter", "uploadpack.allowAnySHA1InWant"):
            await git("config", key, "true", directory=directory)
        hook = directory / "hooks" / "update"
        hook.parent.mkdir(exist_ok=True)
        hook.write_text(_UPDATE_HOOK)
        hook.chmod(0o755)
        made = self.repositories[name] = Repository(name, directory, f"{self.url}/{name}.git")
        await made.commit(message, files)
        return made

    def caller(self, request: web.Request) -> Account | None:
        """Whose credentials a request shows; GitLab has a header of its own for tokens."""
        header = request.headers.get("Authorization", "")
        token = request.headers.get("PRIVATE-TOKEN")
        shown = f"Bearer {token}" if token else header
        return next((account for account in self.accounts if account.shown_in(shown)), None)

    @asynccontextmanager
    async def running(self, more: Iterable[web.RouteDef] = ()) -> AsyncIterator[None]:
        """Serve the repositories, and more routes if need be."""
        application = web.Application(client_max_size=_LIMIT)
        application.add_routes([*more, web.route("*", "/{name:.+}.git/{rest:.+}", self._serve)])
        runner = web.AppRunner(application)
        await runner.setup()
        try:
            site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=_context(self.pair))
            await site.start()
            scheme = "https" if self.pair else "http"
            self.url = f"{scheme}://127.0.0.1:{runner.addresses[0][1]}"
            yield
        finally:
            await runner.cleanup()

    async def _serve(self, request: web.Request) -> web.Response:
        account = self.caller(request)
        if account is None:
            return web.Response(status=401, headers=_CHALLENGE, text="Authentication failed\n")
        if request.match_info["name"] not in self.repositories:
            return web.Response(status=404, text="Repository not found\n")
        if not account.writes and "git-receive-pack" in request.path_qs:
            return web.Response(status=403, text=f"{account.name} may not write\n")
        body = await request.read()
        environment = _environment() | self._gateway(request, account, body)
        _, answer, errors = await ended("git", "http-backend", stdin=body, env=environment)
        return _parsed(answer) if answer else web.Response(status=500, body=errors)

    def _gateway(self, request: web.Request, account: Account, body: bytes) -> dict[str, str]:
        # https://git-scm.com/docs/git-http-backend; aiohttp has unpacked a compressed body already.
        return {
            "GIT_PROJECT_ROOT": str(self.root),
            "GIT_HTTP_EXPORT_ALL": "1",
            "GIT_PROTOCOL": request.headers.get("Git-Protocol", ""),
            "PATH_INFO": request.path,
            "QUERY_STRING": request.query_string,
            "REQUEST_METHOD": request.method,
            "CONTENT_TYPE": request.headers.get("Content-Type", ""),
            "CONTENT_LENGTH": str(len(body)),
            "REMOTE_USER": account.name,
            "REMOTE_ADDR": "127.0.0.1",
        }


def _parsed(answer: bytes) -> web.Response:
    head, _, body = answer.partition(b"\r\n\r\n")
    headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
    status = int(headers.pop("Status", "200").split()[0])
    return web.Response(status=status, headers=headers, body=body)


def _context(pair: Pair | None) -> ssl.SSLContext | None:
    if pair is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(pair.certificate, pair.key)
    return context


@asynccontextmanager
async def serving(root: Path, *accounts: Account, pair: Pair | None = None) -> AsyncIterator[Server]:
    """Serve repositories for these accounts, without the APIs of a forge."""
    server = Server(root, accounts, pair)
    async with server.running():
        yield server
