"""`python -m bench NAME --json`: progress on stderr; the last line of stdout is one JSON object."""

import argparse
import asyncio
import importlib
import json
import sys
from collections.abc import Awaitable, Callable
from typing import Any

NAMES = ("once-only", "storm-pods", "idle")


def main() -> None:
    """Run one benchmark; exit 1 if what it proves does not hold."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("name", choices=NAMES)
    parser.add_argument("--json", action="store_true", help="nothing but the figures on stdout, on one line")
    parser.add_argument("--size", type=int, default=0, help="how many faults, pods or seconds, instead of the usual")
    arguments = parser.parse_args()
    module = importlib.import_module(f"bench.{arguments.name.replace('-', '_')}")
    measure: Callable[[int], Awaitable[dict[str, Any]]] = module.measure
    found = asyncio.run(_run(measure(arguments.size)))
    sys.stdout.write((json.dumps(found) if arguments.json else json.dumps(found, indent=2)) + "\n")
    sys.exit(0 if found["holds"] else 1)


async def _run(measuring: Awaitable[dict[str, Any]]) -> dict[str, Any]:
    return await measuring


if __name__ == "__main__":
    main()
