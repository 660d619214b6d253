"""The Dockerfile, read far enough to do without docker what it says."""

import shlex
from dataclasses import dataclass
from pathlib import Path

from tests.manifests.rendered import ROOT

FILE = ROOT / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """One line of it."""

    name: str
    rest: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.rest)


def stages() -> list[list[Instruction]]:
    """The instructions of each stage, FROM first; what stands before the first FROM is left out."""
    lines = [line for line in FILE.read_text().splitlines() if line and not line.startswith("#")]
    found = [Instruction(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]
    begins = [index for index, one in enumerate(found) if one.name == "FROM"]
    return [found[begin:end] for begin, end in zip(begins, [*begins[1:], len(found)], strict=True)]


def only(stage: list[Instruction], name: str) -> list[Instruction]:
    """The instructions of one name."""
    return [one for one in stage if one.name == name]


def environment(app: Path) -> dict[str, str]:
    """What ENV says, for an /app that is elsewhere."""
    pairs = [word.partition("=") for one in only(stages()[-1], "ENV") for word in one.words]
    return {name: value.replace("/app", str(app)) for name, _, value in pairs}
