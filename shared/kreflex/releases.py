"""What a policy says about releases: when one is bad, how it is undone, and who owns what would be written."""

from __future__ import annotations

from datetime import timedelta
from typing import Literal

from pydantic import Field, model_validator

from kreflex.addresses import address_of
from kreflex.durations import Duration, parse_duration
from kreflex.parts import Part


class Git(Part):
    """What to do where Argo CD or Flux owns what a rollback would write."""

    mode: Literal["Refuse", "PullRequest", "Commit", "Suspend"] = Field(
        "PullRequest",
        description="Refuse asks people; PullRequest proposes a revert, Commit pushes it to the branch that is"
        " followed; Suspend stops the sync, writes live, and says so until somebody resumes it.",
    )
    secret: str = Field(
        "",
        max_length=253,
        description="A Secret in Kreflex' own namespace: username and password, or identity and known_hosts for SSH.",
    )
    repositories: tuple[str, ...] = Field(
        (),
        max_length=100,
        description="Which repositories may be written with it, by how their addresses begin, such as"
        " https://github.com/our-organisation. Without any, nothing is undone in Git. Whoever may follow one of these"
        " from a namespace of this policy can have its commits taken back: name no more than its own.",
    )
    forge: Literal["", "GitHub", "GitLab", "Gitea"] = Field("", description="Whose API opens the pull request.")
    api: str = Field("", pattern=r"^(https?://\S+)?$", description="Its address, such as https://api.github.com.")
    author: str = Field("Kreflex <kreflex@invalid>", pattern=r"^[^<>\n]+ <[^<>\s]+>$")
    within: Duration = Field(
        parse_duration("10m"), description="How long it may take until what Git says is in the cluster."
    )

    @model_validator(mode="after")
    def _asks_somebody(self) -> Git:
        if bool(self.forge) != bool(self.api):
            raise ValueError("forge and api belong together: name both or none")
        unread = [one for one in self.repositories if address_of(one) is None]
        if unread:
            raise ValueError(f"repositories: {unread[0]} is no address over https, http or ssh without a password")
        return self

    def refuses(self, url: str) -> str:
        """Tell why a repository must not be shown our credentials; "" if it may."""
        address = address_of(url)
        named = [one for text in self.repositories if (one := address_of(text)) is not None]
        if address is not None and any(address.below(one) for one in named):
            return ""
        return f"the policy's releases.git.repositories does not name {url}: name it, or the beginning of its address"


class Helm(Part):
    """How a release of Helm is rolled back: by a Job that runs helm, under an account of the release's namespace."""

    service_account: str = Field(
        "", max_length=63, description="Writes every kind of the chart. Without it releases of Helm are left to people."
    )
    image: str = Field(
        "",
        max_length=512,
        description="With helm on its PATH, by digest. Without it releases of Helm are left to people.",
    )
    timeout: Duration = Field(
        parse_duration("5m"), ge=timedelta(seconds=1), description="How long helm may wait for the rollback."
    )
    force_conflicts: bool = Field(
        False,
        description="Whether helm also takes back fields that others have set since, such as replicas that were scaled."
        " Without it a rollback that meets one fails, and may be half done.",
    )


class Comparison(Part):
    """How a canary is compared with what is stable: PromQL for numbers of requests.

    In a query stand, of one side: {namespace}, {workload} for the name of its Deployment or Rollout, {hash} for its
    template hash, {pods} for a regular expression of its pods' names, and {service} for the name of its Service.
    """

    requests: str = Field(min_length=1, description="Requests in the window, of one side.")
    errors: str = Field(min_length=1, description="Of these the failed ones.")
    least_requests: float = Field(50, ge=1, description="Of each side; with fewer nobody can tell.")
    worse_by: float = Field(0.02, ge=0, le=1, description="So much more of its requests fail than of stable's.")
    at_least: float = Field(0.05, ge=0, le=1, description="A canary that fails less than this is never aborted.")
    confidence: float = Field(
        0.9999,
        ge=0.5,
        le=0.999999,
        description="How sure it must be that the two differ, at each look. There are many: with 0.99, two of five"
        " canaries that are as good as what is stable would be taken for worse within an hour.",
    )


class Releases(Part):
    """When a release is bad, and what may be done then."""

    change_window: Duration = Field(
        parse_duration("1h"), description="What fails later than this after a change is not taken for its fault."
    )
    patience: Duration = Field(
        parse_duration("2m"),
        description="How long a new pod may take until it counts as failing, if it does not crash.",
    )
    healthy_for: Duration = Field(
        parse_duration("5m"), description="How long a revision must have been healthy to be gone back to."
    )
    stuck_after: Duration = Field(
        parse_duration("10m"), description="How long a release of Helm may be pending until people are told."
    )
    git: Git = Git()
    helm: Helm = Helm()
    canary: Comparison | None = Field(
        None, description="Without it a canary is judged by what its pods do, and never by its requests."
    )
