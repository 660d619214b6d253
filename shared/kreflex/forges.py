"""Pull requests at GitHub, GitLab and Gitea: one for a branch, found again before it is opened."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import quote, urlencode

import aiohttp
from yarl import URL

from kreflex.actions import BlockedError
from kreflex.addresses import address_of
from kreflex.git import Access
from kreflex.gitops import DENIED
from kreflex.views import JSON

FORGE = "Forge"
_TIMEOUT = aiohttp.ClientTimeout(total=10, sock_connect=5)
State = Literal["open", "merged", "closed"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """A pull request, or GitLab's merge request; `url` is where people look at it."""

    url: str
    state: State


@dataclass(frozen=True, slots=True)
class _Dialect:
    """How one forge wants to be asked, and what its answers mean."""

    pulls: Callable[[str], str]
    found: Callable[[str, str, str], Mapping[str, str]]
    wanted: Callable[[str, str, str, str], JSON]
    shown: Callable[[str], str]
    state: Callable[[JSON], State]
    head: Callable[[JSON], str]
    # Anybody may propose something from a copy of a repository, in a branch that is called as ours.
    own: Callable[[JSON], bool]
    page: str = "html_url"


def _of_github(pull: JSON) -> State:
    # `merged` is not in lists: https://docs.github.com/en/rest/pulls/pulls#list-pull-requests
    return "merged" if pull.get("merged_at") else ("open" if pull.get("state") == "open" else "closed")


def _of_gitlab(pull: JSON) -> State:
    # "locked" is one that is being merged: https://docs.gitlab.com/api/merge_requests/
    states: dict[str, State] = {"opened": "open", "locked": "open", "merged": "merged"}
    return states.get(str(pull.get("state")), "closed")


def _of_gitea(pull: JSON) -> State:
    return "merged" if pull.get("merged") else ("open" if pull.get("state") == "open" else "closed")


def _pull(title: str, text: str, head: str, base: str) -> JSON:
    return {"title": title, "body": text, "head": head, "base": base}


def _merge_request(title: str, text: str, head: str, base: str) -> JSON:
    branches = {"source_branch": head, "target_branch": base}
    return {"title": title, "description": text, **branches, "remove_source_branch": True}


def _ref(pull: JSON) -> str:
    return str((pull.get("head") or {}).get("ref", ""))


def _unforked(pull: JSON) -> bool:
    head, base = ((pull.get(side) or {}).get("repo") or {} for side in ("head", "base"))
    return bool(head.get("id") == base.get("id"))


_DIALECTS = {
    "GitHub": _Dialect(
        pulls=lambda name: f"/repos/{name}/pulls",
        found=lambda name, head, base: {"head": f"{name.partition('/')[0]}:{head}", "base": base, "state": "all"},
        wanted=_pull,
        shown=lambda token: f"Bearer {token}",
        state=_of_github,
        head=_ref,
        own=_unforked,
    ),
    "GitLab": _Dialect(
        pulls=lambda name: f"/projects/{quote(name, safe='')}/merge_requests",
        found=lambda _, head, base: {"source_branch": head, "target_branch": base, "state": "all"},
        wanted=_merge_request,
        shown=lambda token: f"Bearer {token}",
        state=_of_gitlab,
        head=lambda pull: str(pull.get("source_branch", "")),
        own=lambda pull: pull.get("source_project_id") == pull.get("target_project_id"),
        page="web_url",
    ),
    "Gitea": _Dialect(
        pulls=lambda name: f"/repos/{name}/pulls",
        # Its list knows no heads; the newest come first.
        found=lambda *_: {"state": "all", "sort": "newest", "limit": "50"},
        wanted=_pull,
        shown=lambda token: f"token {token}",
        state=_of_gitea,
        head=_ref,
        own=_unforked,
    ),
}


@dataclass(frozen=True)
class Forge:
    """The API of a forge, asked about one repository."""

    kind: str
    api: str
    repository: str
    access: Access

    async def proposal(self, head: str, base: str) -> Proposal | None:
        """Find the newest pull request from one branch to another, "" for any."""
        dialect = _DIALECTS[self.kind]
        wanted = dialect.found(self.repository, head, base)
        query = urlencode({key: value for key, value in wanted.items() if value})
        status, answer = await self._ask("GET", f"{dialect.pulls(self.repository)}?{query}")
        if status != 200 or not isinstance(answer, list):
            raise self._blocked(status, answer)
        found = next((one for one in answer if dialect.head(one) == head and dialect.own(one)), None)
        return None if found is None else Proposal(str(found.get(dialect.page, "")), dialect.state(found))

    async def propose(self, head: str, base: str, title: str, text: str) -> Proposal:
        """Open a pull request, unless there is one."""
        known = await self.proposal(head, base)
        if known is not None:
            return known
        dialect = _DIALECTS[self.kind]
        wanted = dialect.wanted(title, text, head, base)
        status, answer = await self._ask("POST", dialect.pulls(self.repository), wanted)
        if status == 201 and isinstance(answer, dict):
            return Proposal(str(answer.get(dialect.page, "")), dialect.state(answer))
        # Another process of ours may have been faster.
        known = await self.proposal(head, base) if status in {409, 422} else None
        if known is None:
            raise self._blocked(status, answer)
        return known

    async def _ask(self, method: str, path: str, body: JSON | None = None) -> tuple[int, Any]:
        token = self.access.token or self.access.password
        shown = {"Authorization": _DIALECTS[self.kind].shown(token)} if token else {}
        headers = {"Accept": "application/json", "Content-Type": "application/json", **shown}
        trusted = ssl.create_default_context(cadata=self.access.ca) if self.access.ca else True
        url = f"{self.api.rstrip('/')}{path}"
        try:
            async with (
                aiohttp.ClientSession(timeout=_TIMEOUT, trust_env=True) as session,
                session.request(
                    method,
                    # As it is written: GitLab wants its slashes quoted.
                    URL(url, encoded=True),
                    data=None if body is None else json.dumps(body).encode(),
                    headers=headers,
                    ssl=trusted,
                    # A token must not follow to another host.
                    allow_redirects=False,
                ) as answer,
            ):
                return answer.status, _read(await answer.read())
        except (aiohttp.ClientError, TimeoutError, OSError, ssl.SSLError) as error:
            raise BlockedError(f"{self.kind} at {self.api} does not answer: {error!r}", FORGE) from error

    def _blocked(self, status: int, answer: object) -> BlockedError:
        said = str(answer)[:300]
        if status in {401, 403, 404}:
            because = f"{self.kind} at {self.api} does not show us {self.repository} ({status})"
            return BlockedError(f"{because}, see the policy's releases.git.secret: {said}", DENIED)
        return BlockedError(f"{self.kind} at {self.api} answers {status}: {said}", FORGE)


def _read(content: bytes) -> Any:
    try:
        return json.loads(content)
    except ValueError:
        return content.decode(errors="replace")


def repository_in(url: str) -> str:
    """Tell the name of a repository, with its owner, from its address."""
    address = address_of(url)
    return address.name if address is not None else ""
