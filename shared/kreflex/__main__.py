"""`python -m kreflex NAME`: serve the function in functions/NAME/ on $HOST:$PORT.

`python -m kreflex slo …` is no function: it tells of error budgets (slocli.py).
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

from kreflex import app, figures, trace
from kreflex.audit import configure_logging, log
from kreflex.auth import NETWORK, UNGUARDED, CallerSettings
from kreflex.credentials import load_credentials
from kreflex.errors import SettingsError
from kreflex.server import Server
from kreflex.settings import CoreSettings
from kreflex.startup import serving


def main() -> None:
    """Serve until SIGTERM, answer what has begun; configuration that can't be used ends it with every fault named."""
    if sys.argv[1:2] == ["slo"]:
        from kreflex import slocli  # noqa: PLC0415 - no function needs it

        sys.exit(slocli.main(sys.argv[2:]))
    configure_logging()
    source = _source(sys.argv[1] if len(sys.argv) > 1 else os.environ.get("FUNCTION", ""))
    port, function, callers, core = _made(source)
    figures.CALLERS.facts = [{"mode": mode} for mode in sorted(callers.modes)]
    if NETWORK in callers.modes:
        log.warning("callers.unknown", problem=UNGUARDED)
    host = os.environ.get("HOST", "0.0.0.0")  # noqa: S104 - a pod is reached through its own address
    serving()
    try:
        Server(function, host, port, core.drain_grace).run()
    finally:
        trace.stop()


def _source(name: str) -> Path:
    root = Path(os.environ.get("FUNCTIONS_ROOT", Path.cwd() / "functions"))
    source = root / name.replace("-", "_") / "main.py"
    if not name or not source.is_file():
        known = ", ".join(sorted(path.parent.name for path in root.glob("*/main.py"))) or f"none in {root}"
        sys.exit(f"usage: python -m kreflex NAME, where NAME is one of: {known}")
    return source


def _made(source: Path) -> tuple[int, Any, CallerSettings, CoreSettings]:
    made: list[Any] = []
    faults: list[str] = []
    make = partial(app.load, source)
    spans = partial(trace.start, source.parent.name.replace("_", "-"))
    for step in (_port, load_credentials, make, CallerSettings.from_environment, CoreSettings.from_environment, spans):
        try:
            made.append(step())
        except SettingsError as error:
            faults += error.faults
    if faults:
        told = (f"  {fault}" for fault in dict.fromkeys(faults))
        sys.exit("\n".join(["This function can't start with its configuration:", *told]))
    port, _, function, callers, core, _ = made
    return port, function, callers, core


def _port() -> int:
    text = os.environ.get("PORT", "8080")
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise SettingsError([f"PORT must be a port number, not {text!r}"])
    return int(text)


if __name__ == "__main__":
    main()
