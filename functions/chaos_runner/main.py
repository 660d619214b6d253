"""Break on purpose what people have opted in, while the error budget allows it, and take all of it back."""

from __future__ import annotations

from pydantic import Field

from kreflex import Duration, Settings, experiment, parse_duration


class ChaosRunnerSettings(Settings):
    """Whom probes may ask, and how long one call stays with an experiment."""

    probe_hosts: str = Field(
        "",
        pattern=r"^([A-Za-z0-9.-]+(,[A-Za-z0-9.-]+)*)?$",
        description="Hosts that http probes may ask, with commas between, beside Services of their own namespace.",
    )
    linger: Duration = Field(
        parse_duration("25s"),
        ge=parse_duration("5s"),
        description="How long one call carries an experiment on, before it leaves it to the next.",
    )


settings = ChaosRunnerSettings.from_environment()
main = experiment("chaos-runner", frozenset(filter(None, settings.probe_hosts.split(","))), settings.linger)
