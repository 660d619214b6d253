"""The timeline that a scenario tells: what happened when, each line with its word."""

import re
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import SVG_EXPORT_THEME
from rich.text import Text

from lab.errors import LabError

_COLOURS = {
    "fault": "red",
    "anomaly": "red",
    "event": "cyan",
    "alert": "cyan",
    "waker": "cyan",
    "lifecycle": "red",
    "karpenter": "blue",
    "step": "magenta",
    "decision": "yellow",
    "guards": "yellow",
    "acting": "magenta",
    "action": "magenta",
    "refused": "yellow",
    "deferred": "yellow",
    "verdict": "bold",
    "recovered": "green",
    "escalated": "yellow",
}
# What happens in one look of the watch is told in the order of the arc.
_ORDER = (
    *(
        "fault",
        "lifecycle",
        "anomaly",
        "event",
        "alert",
        "waker",
        "decision",
        "guards",
        "acting",
        "audit",
        "step",
        "action",
    ),
    *("karpenter", "node", "pod", "pods", "verdict"),
)


class ScenarioFailed(LabError):
    """What the scenario tells did not happen."""


@dataclass(frozen=True)
class Line:
    """One thing that happened."""

    at: datetime
    word: str
    text: str


class Timeline:
    """Lines with their times, told relative to the first fault."""

    def __init__(self) -> None:
        self.lines: list[Line] = []
        self._console = Console(highlight=False, record=True)

    def add(self, word: str, text: str, at: datetime | None = None) -> None:
        """Note something; the time is now unless told otherwise."""
        self.lines.append(Line(at or datetime.now(UTC), word, text))

    def tell(self, title: str, since: datetime | None = None) -> None:
        """Print the lines, oldest first, in seconds since the first fault."""
        lines = sorted((line for line in self.lines if since is None or line.at >= since), key=_key)
        start = next((line.at for line in lines if line.word == "fault"), lines[0].at)
        console = self._console
        console.print(f"\n[bold]{title}[/bold]")
        for line in lines:
            seconds = (line.at - start).total_seconds()
            if seconds < -1:
                continue
            text = Text(f"{max(seconds, 0.0):8.2f} s  ", style="dim")
            text.append(f"{line.word:<10}", style=_COLOURS.get(line.word, ""))
            console.print(text.append(f" {line.text}"), soft_wrap=True)

    def draw(self, file: Path) -> None:
        """Write what was told as a picture."""
        picture = self._console.export_svg(title="make demo", theme=SVG_EXPORT_THEME, code_format=_SVG)
        file.write_text(picture)


def say(text: str) -> None:
    """Tell whoever waits what is waited for."""
    print(f"lab: {text}", file=sys.stderr, flush=True)


# The terminal's own font: rich's would be fetched from elsewhere.
_SVG = re.sub(r"@font-face \{\{.*?\}\}", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def _key(line: Line) -> tuple[datetime, int]:
    return line.at, _ORDER.index(line.word) if line.word in _ORDER else len(_ORDER)
