"""Scenarios: something is broken for real, and the timeline tells what became of it.

A scenario exits 0 only if what it tells has happened in the cluster: it asks the API server, and the audit log where
there is one.
"""

import argparse
import asyncio
import importlib
import sys
from pathlib import Path

from lab import stack, state
from lab.errors import LabError
from lab.paths import Home
from lab.scenarios.place import Place
from lab.scenarios.timeline import ScenarioFailed

NAMES = (
    *("crash-loop", "useless-deletion", "node-down", "bad-release", "bad-release-gitops", "bad-canary", "leak"),
    "game-day",
)
_TAGS = "takes the lab's images, whose tags say what is wrong with them"
# What a cluster of yours is not made for.
_LAB_ONLY = {
    "node-down": "breaks machines",
    "bad-release": _TAGS,
    "bad-release-gitops": _TAGS,
    "bad-canary": "takes the lab's Prometheus",
    "game-day": _TAGS,
    "leak": "takes what the lab's Prometheus is told of memory",
}
ACTS = ("pods", "canary", "node")
KINDS = ("deployment", "statefulset", "daemonset", "helm", "rollout")


def run(name: str, home: Home, arguments: list[str]) -> int:
    """Run one scenario in the lab of this home, or in a cluster of the user's own; the exit code."""
    if name not in NAMES:
        raise LabError(f"there is no scenario {name!r}: choose of {', '.join(NAMES)}")
    options = _parser(name).parse_args(arguments)
    if options.kubeconfig and name in _LAB_ONLY:
        raise LabError(f"{name} {_LAB_ONLY[name]}, so it plays in the lab only")
    if options.kubeconfig and not options.yes:
        raise LabError(
            f"{options.kubeconfig} is a cluster of yours. The scenario makes a namespace of its own there, breaks a "
            "workload in it and deletes it again; it touches nothing else. Say --yes if that is all right"
        )
    try:
        asyncio.run(_run(name, home, options))
    except ScenarioFailed as failure:
        print(f"\nlab: {name} did not happen as told: {failure}", file=sys.stderr)
        return 1
    return 0


def _parser(name: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog=f"python -m lab scenario {name}")
    parser.add_argument("--kubeconfig", type=Path, help="a cluster of your own, with Kreflex installed, not the lab")
    parser.add_argument("--yes", action="store_true", help="yes, break a workload in a new namespace of that cluster")
    parser.add_argument("--image", default="busybox:1.36", help="an image with sh, for a cluster of your own")
    if name == "bad-release":
        parser.add_argument("--kind", choices=KINDS, default=KINDS[0], help="what is released")
    if name == "game-day":
        parser.add_argument("--act", choices=ACTS, default="", help="only one of its acts")
        parser.add_argument("--without", default="", metavar="FUNCTION", help="switch a function off: then it fails")
        parser.add_argument("--report", type=Path, metavar="FOLDER", help="write the day's report there")
    parser.add_argument("--keep", action="store_true", help="leave the namespace, to look at it")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="write the timeline as a picture, too")
    return parser


async def _run(name: str, home: Home, options: argparse.Namespace) -> None:
    scenario = importlib.import_module(f"lab.scenarios.{name.replace('-', '_')}")
    if options.kubeconfig is None and not state.is_up(home):
        lab = stack.Lab(home, stack.Plan(), lambda text: print(f"lab: {text}", file=sys.stderr, flush=True))
        await lab.up()
        await lab.plane.leave()
    where = None if options.kubeconfig else home
    async with Place.open(name, where, options.kubeconfig, options.image, keep=options.keep) as place:
        given = {word: getattr(options, word) for word in ("kind", "act", "without", "report") if word in options}
        await scenario.play(place, **given)
        if options.svg:
            place.timeline.draw(options.svg)
