"""A stand-in for the pull requests of GitHub, GitLab and Gitea, over the lab's Git server.

It is none of them: it knows the few requests by which a pull request is opened and found, with the paths, the fields
and the refusals of each, and no more. What was asked is kept in `Forge.asked`. All three see the same pull requests.

- https://docs.github.com/en/rest/pulls/pulls (422 for what is there already)
- https://docs.gitlab.com/api/merge_requests (409)
- https://docs.gitea.com/api (409)
"""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import web

from lab.certificates import Pair
from lab.git import Account, Repository, Server

Json = dict[str, Any]
_GITHUB_DOCS = "https://docs.github.com/rest/pulls/pulls#create-a-pull-request"


@dataclass(frozen=True)
class Asked:
    """One request to open a pull request, as it came."""

    account: str
    path: str
    body: Json


@dataclass
class Pull:
    """A pull request."""

    number: int
    repository: Repository
    title: str
    body: str
    head: str
    base: str
    head_sha: str
    base_sha: str
    at: str = field(default_factory=lambda: f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    merged_as: str = ""
    closed: bool = False

    @property
    def state(self) -> str:
        return "closed" if self.closed or self.merged_as else "open"

    @property
    def owner(self) -> str:
        return self.repository.name.rpartition("/")[0]

    @property
    def page(self) -> str:
        """Where people would look at it, without what follows on each forge."""
        return self.repository.url.removesuffix(".git")


@dataclass
class Refusal(Exception):
    """What a forge refuses, before it is said in its words."""

    kind: str
    existing: Pull | None = None
    branch: str = ""


Handler = Callable[[web.Request], Awaitable[web.Response]]


@dataclass
class Forge:
    """The pull requests of a server's repositories."""

    server: Server
    pulls: list[Pull] = field(default_factory=list)
    asked: list[Asked] = field(default_factory=list)

    async def merge(self, pull: Pull) -> str:
        """Merge a pull request, as a person does who has read it; the merge commit."""
        message = f"Merge pull request #{pull.number} from {pull.owner}/{pull.head}\n\n{pull.title}"
        pull.merged_as = await pull.repository.merge(pull.head, pull.base, message)
        return pull.merged_as

    def close(self, pull: Pull) -> None:
        """Close a pull request without merging it."""
        pull.closed = True

    def routes(self) -> list[web.RouteDef]:
        """The requests of the three forges; GitHub's also with the prefix that its Enterprise Server has."""
        github = [
            route
            for prefix in ("", "/api/v3")
            for route in (
                web.post(f"{prefix}/repos/{{name:[^/]+/[^/]+}}/pulls", self._known(self._open_github)),
                web.get(f"{prefix}/repos/{{name:[^/]+/[^/]+}}/pulls", self._known(self._list_github)),
            )
        ]
        return [
            *github,
            web.post("/api/v4/projects/{name:.+}/merge_requests", self._known(self._open_gitlab)),
            web.get("/api/v4/projects/{name:.+}/merge_requests", self._known(self._list_gitlab)),
            web.post("/api/v1/repos/{name:[^/]+/[^/]+}/pulls", self._known(self._open_gitea)),
            web.get("/api/v1/repos/{name:[^/]+/[^/]+}/pulls", self._known(self._list_gitea)),
            web.get("/api/v1/repos/{name:[^/]+/[^/]+}/pulls/{base}/{head:.+}", self._known(self._find_gitea)),
        ]

    def _known(self, handler: Handler) -> Handler:
        """Ask for an account and a repository first."""

        async def handle(request: web.Request) -> web.Response:
            gitlab = request.path.startswith("/api/v4")
            if self.server.caller(request) is None:
                return _json({"message": "401 Unauthorized" if gitlab else "Bad credentials"}, 401)
            if request.match_info["name"] not in self.server.repositories:
                return _json({"message": "404 Project Not Found" if gitlab else "Not Found"}, 404)
            return await handler(request)

        return handle

    async def _open_github(self, request: web.Request) -> web.Response:
        try:
            body = await self._heard(request)
            head = body["head"].rpartition(":")[2]
            return _json(_github(await self._open(request, body["title"], body.get("body"), head, body["base"])), 201)
        except Refusal as refusal:
            said = {
                "message": "Validation Failed",
                "errors": [_github_error(refusal)],
                "documentation_url": _GITHUB_DOCS,
            }
            return _json({**said, "status": "422"}, 422)

    async def _list_github(self, request: web.Request) -> web.Response:
        head = request.query.get("head", "").rpartition(":")[2]
        state = request.query.get("state", "open")
        return _json([_github(one) for one in self._found(request, head, request.query.get("base", ""), state)])

    async def _open_gitlab(self, request: web.Request) -> web.Response:
        try:
            body = await self._heard(request)
            branches = (body["source_branch"], body["target_branch"])
            return _json(_gitlab(await self._open(request, body["title"], body.get("description"), *branches)), 201)
        except Refusal as refusal:
            return _gitlab_refusal(refusal)

    async def _list_gitlab(self, request: web.Request) -> web.Response:
        state = {"opened": "open"}.get(request.query.get("state", "all"), request.query.get("state", "all"))
        branches = (request.query.get("source_branch", ""), request.query.get("target_branch", ""))
        return _json([_gitlab(one) for one in self._found(request, *branches, state)])

    async def _open_gitea(self, request: web.Request) -> web.Response:
        try:
            body = await self._heard(request)
            pull = await self._open(request, body["title"], body.get("body"), body["head"], body["base"])
            return _json(_gitea(pull), 201)
        except Refusal as refusal:
            return _gitea_refusal(refusal, self.server.url)

    async def _list_gitea(self, request: web.Request) -> web.Response:
        # Gitea's list can't be asked for a head.
        state = request.query.get("state", "open")
        return _json([_gitea(one) for one in self._found(request, "", request.query.get("base_branch", ""), state)])

    async def _find_gitea(self, request: web.Request) -> web.Response:
        found = self._found(request, request.match_info["head"], request.match_info["base"], "all")
        if not found:
            return _json({"message": "The target couldn't be found.", "url": f"{self.server.url}/api/swagger"}, 404)
        return _json(_gitea(found[0]))

    async def _heard(self, request: web.Request) -> Json:
        account = self.server.caller(request)
        assert account is not None
        body: Json = json.loads(await request.read())
        self.asked.append(Asked(account.name, request.path, body))
        return body

    async def _open(self, request: web.Request, title: str, text: str | None, head: str, base: str) -> Pull:
        repository = self.server.repositories[request.match_info["name"]]
        branches = await repository.branches()
        for branch in (head, base):
            if branch not in branches:
                raise Refusal("unknown", branch=branch)
        merged = await repository.has(branches[head], base)
        # Nothing is waited for from here on: of two that ask at once, the second finds what the first has opened.
        for pull in self._found(request, head, base, "open"):
            raise Refusal("exists", pull)
        if merged:
            raise Refusal("empty", branch=head)
        number = sum(one.repository is repository for one in self.pulls) + 1
        made = Pull(number, repository, title, text or "", head, base, branches[head], branches[base])
        self.pulls.append(made)
        return made

    def _found(self, request: web.Request, head: str, base: str, state: str) -> list[Pull]:
        return [
            one
            for one in reversed(self.pulls)
            if one.repository.name == request.match_info["name"]
            and head in ("", one.head)
            and base in ("", one.base)
            and state in ("all", one.state)
        ]


@asynccontextmanager
async def serving(root: Path, *accounts: Account, pair: Pair | None = None) -> AsyncIterator[Forge]:
    """Serve repositories and their pull requests for these accounts."""
    forge = Forge(Server(root, accounts, pair))
    async with forge.server.running(forge.routes()):
        yield forge


def _json(body: Any, status: int = 200) -> web.Response:
    return web.json_response(body, status=status)


def _github(pull: Pull) -> Json:
    api = pull.page.replace(f"/{pull.repository.name}", f"/repos/{pull.repository.name}")
    return {
        "url": f"{api}/pulls/{pull.number}",
        "id": 1000 + pull.number,
        "html_url": f"{pull.page}/pull/{pull.number}",
        "number": pull.number,
        "state": pull.state,
        "locked": False,
        "title": pull.title,
        "body": pull.body or None,
        "draft": False,
        "created_at": pull.at,
        "merged_at": pull.at if pull.merged_as else None,
        "merge_commit_sha": pull.merged_as or None,
        "head": {"label": f"{pull.owner}:{pull.head}", "ref": pull.head, "sha": pull.head_sha},
        "base": {"label": f"{pull.owner}:{pull.base}", "ref": pull.base, "sha": pull.base_sha},
    }


def _github_error(refusal: Refusal) -> Json:
    if refusal.existing:
        said = f"A pull request already exists for {refusal.existing.owner}:{refusal.existing.head}."
        return {"resource": "PullRequest", "code": "custom", "message": said}
    if refusal.kind == "empty":
        return {"resource": "PullRequest", "code": "custom", "message": f"No commits between main and {refusal.branch}"}
    return {"resource": "PullRequest", "field": "head", "code": "invalid"}


def _gitlab(pull: Pull) -> Json:
    return {
        "id": 1000 + pull.number,
        "iid": pull.number,
        "project_id": 1,
        "title": pull.title,
        "description": pull.body,
        "state": "merged" if pull.merged_as else {"open": "opened"}.get(pull.state, pull.state),
        "created_at": pull.at,
        "source_branch": pull.head,
        "target_branch": pull.base,
        "sha": pull.head_sha,
        "merge_commit_sha": pull.merged_as or None,
        "draft": False,
        "web_url": f"{pull.page}/-/merge_requests/{pull.number}",
    }


def _gitlab_refusal(refusal: Refusal) -> web.Response:
    if refusal.existing:
        said = f"Another open merge request already exists for this source branch: !{refusal.existing.number}"
        return _json({"message": [said]}, 409)
    # GitLab opens one without commits; a branch that is not there it names in a sentence of its own.
    return _json({"message": [f'Source branch "{refusal.branch}" does not exist']}, 400)


def _gitea(pull: Pull) -> Json:
    return {
        "id": 1000 + pull.number,
        "url": f"{pull.page}/pulls/{pull.number}",
        "html_url": f"{pull.page}/pulls/{pull.number}",
        "number": pull.number,
        "title": pull.title,
        "body": pull.body,
        "state": pull.state,
        "draft": False,
        "merged": bool(pull.merged_as),
        "merge_commit_sha": pull.merged_as or None,
        "created_at": pull.at,
        "head": {"label": pull.head, "ref": pull.head, "sha": pull.head_sha},
        "base": {"label": pull.base, "ref": pull.base, "sha": pull.base_sha},
    }


def _gitea_refusal(refusal: Refusal, url: str) -> web.Response:
    docs = {"url": f"{url}/api/swagger"}
    if pull := refusal.existing:
        ids = f"id: {1000 + pull.number}, issue_id: {pull.number}, head_repo_id: 1, base_repo_id: 1"
        where = f"head_branch: {pull.head}, base_branch: {pull.base}"
        said = f"pull request already exists for these targets [{ids}, {where}]"
        return _json({"message": said, **docs}, 409)
    return _json({"message": "The target couldn't be found.", **docs}, 404)
