"""The lab's command line."""

import argparse
import asyncio
import importlib
import importlib.util
import json
import sys
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lab import stack, state
from lab.errors import LabError
from lab.paths import REPOSITORY, Home
from lab.toolchain import PEERS, PROGRAMS, Toolchain

_FOLLOW_SECONDS = 0.3


def main() -> int:
    """Do what the arguments say; the exit code."""
    arguments = _parser().parse_args()
    try:
        code: int = arguments.run(arguments)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("lab: interrupted", file=sys.stderr)
        return 130
    return code


def _parser() -> argparse.ArgumentParser:
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--home", type=Path, default=REPOSITORY / ".lab", help="where the lab keeps its state")
    parser = argparse.ArgumentParser(prog="python -m lab", description="A real control plane, small.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    up = commands.add_parser("up", parents=[common], help="boot a lab and leave it running")
    up.add_argument("--json", action="store_true", help="print the end points as one JSON object")
    up.add_argument("--only", metavar="PARTS", help=f"some of: {','.join(stack.PARTS)}")
    up.add_argument("--nodes", type=int, default=3, help="how many simulated nodes (3)")
    up.add_argument("--audit-reads", action="store_true", help="log reads, too")
    up.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="a setting of the functions")
    up.set_defaults(run=_up)

    down = commands.add_parser("down", parents=[common], help="end it; its logs stay until the next one")
    down.set_defaults(run=_down)
    status = commands.add_parser("status", parents=[common], help="how its processes are")
    status.add_argument("--json", action="store_true")
    status.set_defaults(run=_status)
    logs = commands.add_parser("logs", parents=[common], help="what a process said")
    logs.add_argument("name", nargs="?", help="a process of `status`; without it all are named")
    logs.add_argument("--lines", type=int, default=100)
    logs.add_argument("-f", "--follow", action="store_true")
    logs.set_defaults(run=_logs)
    build = commands.add_parser("build", help="build the programs that are missing, and start nothing")
    build.add_argument("--peers", action="store_true", help="also the larger programs of others (make test-peers)")
    build.set_defaults(run=_build)
    scenario = commands.add_parser("scenario", parents=[common], help="break something and tell what happens")
    scenario.add_argument("name")
    scenario.add_argument("arguments", nargs=argparse.REMAINDER)
    scenario.set_defaults(run=_scenario)
    return parser


def _up(arguments: argparse.Namespace) -> int:
    home = Home.at(arguments.home)
    if state.is_up(home):
        return _already_up(home, as_json=arguments.json)
    parts = tuple(arguments.only.split(",")) if arguments.only else stack.PARTS
    plan = stack.Plan(
        parts=parts,
        nodes=arguments.nodes,
        audit_reads=arguments.audit_reads,
        function_settings=_settings(arguments.set),
    )
    begin = time.monotonic()
    endpoints = asyncio.run(_bring_up(home, plan))
    _tell(f"up in {time.monotonic() - begin:.1f} s")
    _print_endpoints(endpoints, as_json=arguments.json)
    return 0


async def _bring_up(home: Home, plan: stack.Plan) -> dict[str, str]:
    lab = stack.Lab(home, plan, _tell)
    endpoints = await lab.up()
    await lab.plane.leave()
    return endpoints


def _already_up(home: Home, *, as_json: bool) -> int:
    ill = [one.name for one in asyncio.run(stack.health(home)) if one.verdict != "healthy"]
    if ill:
        raise LabError(f"the lab in {home.root} is up, but not well ({', '.join(ill)}): run `down`, then `up`")
    _tell(f"the lab in {home.root} is up already")
    _print_endpoints(state.read(home)["endpoints"], as_json=as_json)
    return 0


def _settings(pairs: list[str]) -> dict[str, str]:
    settings = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals:
            raise LabError(f"--set wants KEY=VALUE, not {pair!r}")
        settings[key] = value
    return settings


def _print_endpoints(endpoints: dict[str, str], *, as_json: bool) -> None:
    if as_json:
        print(json.dumps(endpoints))
        return
    width = max(len(name) for name in endpoints)
    for name, value in endpoints.items():
        print(f"  {name:<{width}}  {value}")
    print(f"\nsource {endpoints['env']}   # then kubectl speaks to the lab")


def _down(arguments: argparse.Namespace) -> int:
    home = Home.at(arguments.home)
    was_up = asyncio.run(stack.down(home))
    _tell("down" if was_up else f"no lab is up in {home.root}")
    return 0


def _status(arguments: argparse.Namespace) -> int:
    home = Home.at(arguments.home)
    healths = asyncio.run(stack.health(home))
    well = bool(healths) and all(one.verdict == "healthy" for one in healths)
    if arguments.json:
        processes = {one.name: {"pid": one.pid, "health": one.verdict} for one in healths}
        print(json.dumps({"up": state.is_up(home), "healthy": well, "processes": processes}))
    elif not healths:
        _tell(f"no lab is up in {home.root}")
    else:
        _print_table(healths)
    return 0 if well else 1


def _print_table(healths: list[stack.Health]) -> None:
    table = Table(box=None)
    for heading in ("process", "pid", "health", "log"):
        table.add_column(heading)
    colours = {"healthy": "green", "ill": "yellow", "dead": "red"}
    for one in healths:
        table.add_row(one.name, str(one.pid), f"[{colours[one.verdict]}]{one.verdict}", one.log)
    Console().print(table)


def _logs(arguments: argparse.Namespace) -> int:
    home = Home.at(arguments.home)
    if arguments.name is None:
        for file in sorted(home.logs.glob("*.log")):
            print(file.stem)
        return 0
    file = home.log(arguments.name)
    if not file.exists():
        raise LabError(f"there is no {file}: `python -m lab logs` names those that exist")
    with file.open(errors="replace") as lines:
        for line in lines.readlines()[-arguments.lines :]:
            print(line, end="")
        while arguments.follow:
            print(lines.read(), end="", flush=True)
            time.sleep(_FOLLOW_SECONDS)
    return 0


def _build(arguments: argparse.Namespace) -> int:
    begin = time.monotonic()
    programs = PROGRAMS + PEERS if arguments.peers else PROGRAMS
    Toolchain().ensure(programs)
    _tell(f"all {len(programs)} programs are there ({time.monotonic() - begin:.0f} s)")
    return 0


def _scenario(arguments: argparse.Namespace) -> int:
    if importlib.util.find_spec("lab.scenarios") is None:
        raise LabError("there are no scenarios yet")
    scenarios = importlib.import_module("lab.scenarios")
    code: int = scenarios.run(arguments.name, Home.at(arguments.home), arguments.arguments)
    return code


def _tell(text: str) -> None:
    print(f"lab: {text}", file=sys.stderr, flush=True)
