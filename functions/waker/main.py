"""Call just the functions that have something due, find what no event told, and remove old records."""

from __future__ import annotations

from pydantic import Field, field_validator

from kreflex import Duration, Settings, parse_duration, wake


class WakerSettings(Settings):
    """Whom to wake, and how long to keep what is over."""

    functions: str = Field(description="`name=url` pairs with commas between: restart-loop-killer=http://host/")
    retain: Duration = Field(parse_duration("168h"), description="How long a settled record is kept at least.")

    @field_validator("functions")
    @classmethod
    def _pairs(cls, text: str) -> str:
        for pair in text.split(","):
            name, _, url = pair.strip().partition("=")
            if not name or not url.startswith(("http://", "https://")):
                raise ValueError(f"must be name=url pairs with commas between; {pair!r} is none")
        return text

    @property
    def urls(self) -> dict[str, str]:
        """Where each function listens."""
        pairs = (pair.strip().partition("=") for pair in self.functions.split(","))
        return {name: url for name, _, url in pairs}


settings = WakerSettings.from_environment()
main = wake(settings.urls, settings.retain)
