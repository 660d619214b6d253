"""`python -m bench NAME --json`: progress on stderr; the last line of stdout is one JSON object."""

import argparse
import asyncio
import importlib
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bench import surroundings

_SPEED = ("reflex", "cold-start", "memory", "duplicates", "irrelevant")
NAMES = (
    *_SPEED,
    "storm",
    "once-only",
    "storm-pods",
    "idle",
    "faults",
    "fleet",
    "drain",
    "rollback",
    "chaos",
    "anomaly",
    "anomaly-classes",
    "anomaly-speed",
)
_OPTIONS = {"chaos": ("only",), "faults": ("only", "strikes"), "rollback": ("only", "verbose")}
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run one benchmark; exit 1 if what it proves does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", action="store_true", help="nothing but the figures on stdout, on one line")
    parser.add_argument(
        "--size",
        "--nodes",
        dest="size",
        type=int,
        default=0,
        help="how many faults, nodes, pods or seconds, instead of the usual",
    )
    parser.add_argument(
        "--only",
        default="",
        help="faults: scenarios whose names begin so, as in `node-replacer`; rollback: stories whose names have it",
    )
    parser.add_argument("--strikes", action="store_true", help="faults: no troubles, only kills and stops")
    parser.add_argument("--verbose", action="store_true", help="rollback: what the records say of each case")
    parser.add_argument("--save", action="store_true", help="keep the figures in bench/results/")
    arguments = parser.parse_args()
    module = importlib.import_module(f"bench.{arguments.name.replace('-', '_')}")
    measure: Callable[..., Awaitable[dict[str, Any]]] = module.measure
    chosen = {name: getattr(arguments, name) for name in _OPTIONS.get(arguments.name, ())}
    found = asyncio.run(_run(measure(arguments.size, **chosen)))
    if arguments.save:
        _save(arguments.name, found)
    sys.stdout.write((json.dumps(found) if arguments.json else json.dumps(found, indent=2)) + "\n")
    sys.exit(0 if found["holds"] else 1)


def _save(name: str, found: dict[str, Any]) -> None:
    """Write the figures with the machine, the versions and the commit that they belong to."""
    RESULTS.mkdir(exist_ok=True)
    told = {"benchmark": name, "date": datetime.now(UTC).date().isoformat(), **surroundings.describe()}
    (RESULTS / f"{name}.json").write_text(json.dumps({**told, "figures": found}, indent=2) + "\n")


async def _run(measuring: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    return await measuring


if __name__ == "__main__":
    main()
