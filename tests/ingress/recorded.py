"""The requests in payloads/, as they came."""

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).with_name("payloads")


@dataclass(frozen=True)
class Recorded:
    """One request."""

    name: str
    headers: dict[str, str]
    body: bytes


def read(file: Path) -> Recorded:
    kept = json.loads(file.read_text())
    headers = {name.lower(): value for name, value in kept["headers"].items()}
    return Recorded(str(file.relative_to(FOLDER).with_suffix("")), headers, kept["body"].encode())


ALL = [read(file) for file in sorted(FOLDER.glob("*/*.json"))]
