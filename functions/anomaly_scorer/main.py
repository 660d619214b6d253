"""Say at each tick what the metrics of a cluster show to be unlike itself, in which way, and how sure that is."""

from __future__ import annotations

from pydantic import Field

from kreflex import Duration, Settings, parse_duration, score_watches

_URL = r"https?://[^\s,]+"


class AnomalyScorerSettings(Settings):
    """Where what is found goes, and where what is learnt is kept."""

    alertmanager_url: str = Field(
        "",
        pattern=rf"^({_URL}(,{_URL})*)?$",
        description="Alertmanager, or the members of a cluster of them with commas between; empty means no alerts.",
    )
    alertmanager_token_file: str = Field(
        "", pattern=r"^(/\S+)?$", description="The file with the bearer token that Alertmanager is shown."
    )
    k_sink: str = Field("", pattern=rf"^({_URL})?$", description="Where events go; Knative's SinkBinding sets it.")
    sink: str = Field("", pattern=rf"^({_URL})?$", description="Where events go, if K_SINK is not set.")
    state_store: str = Field(
        "configmaps",
        pattern=r"^(configmaps|file:///\S+|s3://\S+)$",
        description="Where states are kept: `configmaps`, `file:///path` or `s3://bucket/prefix`.",
    )
    detector: str = Field(
        "calibrated", pattern=r"^[a-z0-9]([-a-z0-9_]*[a-z0-9])?$", description="The detector, by its name."
    )
    retain: Duration = Field(parse_duration("168h"), description="How long an anomaly that is over is kept at least.")
    most_open: int = Field(
        50, ge=1, le=1000, description="Of so many targets a watch tells one by one; of more it tells once."
    )


settings = AnomalyScorerSettings.from_environment()
main = score_watches(
    settings.detector,
    settings.state_store,
    settings.k_sink or settings.sink,
    settings.alertmanager_url,
    alertmanager_token_file=settings.alertmanager_token_file,
    retain=settings.retain,
    most_open=settings.most_open,
)
