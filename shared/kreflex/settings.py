"""Settings from the environment; every fault is reported at once, at start."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from kreflex.durations import Duration, parse_duration
from kreflex.errors import SettingsError


class Settings(BaseModel):
    """Base of a function's settings: field `min_restarts` is read from the variable `MIN_RESTARTS`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] | None = None) -> Self:
        """Read the settings; raises SettingsError that names each variable which can't be used, the core's too."""
        source = os.environ if environment is None else environment
        try:
            return cls.model_validate(_given(cls, source))
        except ValidationError as error:
            # Whoever mends one variable should not learn of the next one at the next start.
            raise SettingsError(list(dict.fromkeys([*_told(error), *_faults(CoreSettings, source)]))) from error


def _given(settings: type[Settings], source: Mapping[str, str]) -> dict[str, str]:
    return {name: source[name.upper()] for name in settings.model_fields if name.upper() in source}


def _faults(settings: type[Settings], source: Mapping[str, str]) -> list[str]:
    try:
        settings.model_validate(_given(settings, source))
    except ValidationError as error:
        return _told(error)
    return []


def _told(error: ValidationError) -> list[str]:
    return [_sentence(fault) for fault in error.errors()]


def _sentence(fault: ErrorDetails) -> str:
    name = str(fault["loc"][0]).upper()
    if fault["type"] == "missing":
        return f"{name} must be set"
    given = f" (it is {fault['input']!r})" if fault["input"] else ""
    return f"{name} {fault['msg'].removeprefix('Value error, ')}{given}"


class CoreSettings(Settings):
    """What every function needs to know of its surroundings."""

    kreflex_namespace: str = Field("kreflex-system", pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")
    namespaces: str = Field(
        "",
        pattern=r"^([a-z0-9-]+(,[a-z0-9-]+)*)?$",
        description="The only namespaces that are looked after, with commas between; empty means all.",
    )
    prometheus_url: str = Field("", pattern=r"^(https?://\S+)?$")
    prometheus_tenant: str = Field("", description="Sent as X-Scope-OrgID, for Mimir and Thanos.")
    prometheus_token_file: str = Field("", description="The file with the bearer token that Prometheus is shown.")
    act_within: Duration = Field(parse_duration("30s"), description="How long one attempt may hold a record.")
    time_budget: Duration = Field(parse_duration("25s"), description="How long one request may take.")
    drain_grace: Duration = Field(
        parse_duration("3s"),
        le=parse_duration("20s"),
        description="How long new requests are still taken after SIGTERM, from senders that have not heard of it.",
    )
    token_file: str = Field("", description="The file with the token that the waker shows to the functions it calls.")
    concurrency: int = Field(8, ge=1, le=256, description="Signals of one request that are handled at the same time.")

    @property
    def metrics(self) -> tuple[str, str, str]:
        """What `Metrics` is made with."""
        return self.prometheus_url, self.prometheus_tenant, self.prometheus_token_file

    @property
    def looked_after(self) -> tuple[str, ...]:
        """The only namespaces that are looked after; empty means all."""
        return tuple(self.namespaces.split(",")) if self.namespaces else ()
