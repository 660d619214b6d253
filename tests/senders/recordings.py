"""What real senders sent, kept as it came under tests/ingress/payloads/SENDER/NAME.json: {headers, body}.

`KREFLEX_RECORD=1 pytest tests/senders tests/peers` keeps everything anew.
"""

import json
import os
from pathlib import Path
from typing import Any

from tests.senders.recorder import Taken

FOLDER = Path(__file__).parent.parent / "ingress" / "payloads"


def compare(taken: Taken, name: str) -> None:
    """Fail if a sender's request has other headers or other keys than the one that is kept under this name."""
    file = FOLDER / f"{name}.json"
    if os.environ.get("KREFLEX_RECORD"):
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps({"headers": taken.headers, "body": taken.body.decode()}, indent=1) + "\n")
    kept = json.loads(file.read_text())
    assert _shape(taken.headers, taken.body) == _shape(kept["headers"], kept["body"].encode())


def _shape(headers: dict[str, str], body: bytes) -> tuple[set[str], set[str]]:
    content: Any = json.loads(body) if body else {}
    return {name.lower() for name in headers}, set(content)
