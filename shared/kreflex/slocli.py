"""`python -m kreflex slo rules|status|check`: SLOs and their error budgets, for people, pipelines and a CronJob.

Exit codes of `check`: 0 faults may be injected, 1 the budget is spent or burns, 2 nobody can tell, 64 asked in a wrong
way. See docs/error-budget.md.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from kreflex import budgetstatus, slorules
from kreflex.budgets import LEAST, State, budget_of
from kreflex.budgetstatus import BudgetLine, line
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.errors import KreflexError, SettingsError
from kreflex.prom import Metrics
from kreflex.settings import CoreSettings
from kreflex.slos import load_slos, parse, read_slos
from kreflex.world import World

MAY, MAY_NOT, UNKNOWN, USAGE = 0, 1, 2, 64
_CODES: dict[State, int] = {"Healthy": MAY, "Burning": MAY_NOT, "Spent": MAY_NOT, "Unknown": UNKNOWN}
_WAYS = ("rules", "status", "check")


@dataclass(frozen=True)
class _Cluster:
    """What a command needs of its surroundings."""

    reader: Reader
    writer: Writer
    metrics: Metrics
    home: str


class _Parser(argparse.ArgumentParser):
    """As usual, but for the exit code: 2 means that nobody can tell."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(words: Sequence[str]) -> int:
    """Do what the words ask for; the exit code."""
    given = _arguments().parse_args(words)
    try:
        code: int = asyncio.run(given.run(given))
    except SettingsError as error:
        return _failed("; ".join(error.faults), USAGE)
    except (KreflexError, OSError) as error:
        return _failed(str(error), UNKNOWN)
    return code


def _failed(problem: str, code: int) -> int:
    sys.stderr.write(f"python -m kreflex slo: {problem}\n")
    return code


def _arguments() -> _Parser:
    parser = _Parser(prog="python -m kreflex slo", description="SLOs and their error budgets.")
    ways = parser.add_subparsers(required=True, metavar=", ".join(_WAYS))
    rules = ways.add_parser("rules", help="write the rules that Prometheus needs")
    rules.add_argument("files", nargs="*", type=Path, help="YAML files with SLOs; without any, those of the cluster")
    rules.add_argument("--all", action="store_true", help="those of Sloth and Pyrra too, which have rules of their own")
    rules.add_argument("--plain", action="store_true", help="a file for rule_files, not a PrometheusRule")
    rules.set_defaults(run=_rules)
    status = ways.add_parser("status", help="tell what is left of each budget")
    status.add_argument("--namespace", "-n", default="", help="only of this one")
    status.add_argument("--write", action="store_true", help="write it down for admission, too: all namespaces")
    status.set_defaults(run=_status)
    check = ways.add_parser("check", help="exit with 0 only if faults may be injected")
    check.add_argument("--slo", action="append", required=True, help="NAMESPACE/NAME; may be given again")
    check.add_argument("--written", action="store_true", help="ask the cluster's ErrorBudgetStatus, not Prometheus")
    check.set_defaults(run=_check)
    for one in (status, check):
        one.add_argument("--least", type=_share, default=LEAST, help="less than this left counts as spent: 0.2")
        one.add_argument("--json", action="store_true", help="a JSON object a line")
    return parser


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise argparse.ArgumentTypeError(f"must be from 0 to 1, not {text!r}")
    return share


async def _rules(given: argparse.Namespace) -> int:
    if given.files:
        found = read_slos(body for file in given.files for body in parse(file.read_text(), file.name))
    else:
        async with _Surroundings() as there:
            found = await load_slos(there.reader, there.home)
    for slo in found:
        if slo.broken:
            sys.stderr.write(f"{slo} can't be used: {slo.broken}\n")
    wanted = [slo for slo in found if given.all or slo.kind == "SLO"]
    sys.stdout.write(slorules.rules_file(wanted) if given.plain else slorules.prometheus_rule(wanted))
    return UNKNOWN if any(slo.broken for slo in wanted) else MAY


async def _status(given: argparse.Namespace) -> int:
    async with _Surroundings() as there:
        if given.write:
            found = await budgetstatus.write(there.reader, there.writer, there.metrics, there.home, given.least)
        else:
            slos = await load_slos(there.reader, there.home, given.namespace)
            found = await budgetstatus.observe(slos, there.metrics, given.least)
    for slo, budget in found:
        if given.namespace in {"", slo.namespace}:
            _tell(line(slo.namespace, slo.name, budget), as_json=given.json)
    return MAY


async def _check(given: argparse.Namespace) -> int:
    wrong = [name for name in given.slo if not all(name.partition("/")[::2])]
    if wrong:
        _arguments().error(f"--slo {wrong[0]!r} must be NAMESPACE/NAME")
    async with _Surroundings() as there:
        if given.written:
            lines = await budgetstatus.written(there.reader, there.home, given.slo)
        else:
            lines = [await _looked(name, there, given.least) for name in given.slo]
    for one in lines:
        _tell(one, as_json=given.json)
    return max((_CODES[one.state] for one in lines), key=(MAY, UNKNOWN, MAY_NOT).index)


async def _looked(name: str, there: _Cluster, least: float) -> BudgetLine:
    namespace, _, slo = name.partition("/")
    world = World(there.reader, there.metrics, home=there.home)
    return line(namespace, slo, await budget_of("", name, world, least))


def _tell(one: BudgetLine, *, as_json: bool) -> None:
    text = one.model_dump_json() if as_json else f"{one.state:<8} {one.why}"
    sys.stdout.write(f"{text}\n")


class _Surroundings:
    """The cluster of $KUBECONFIG or of the pod, and the Prometheus of $PROMETHEUS_URL, as long as they are needed."""

    async def __aenter__(self) -> _Cluster:
        core = CoreSettings.from_environment()
        self._transport = Transport(load_credentials())
        return _Cluster(
            Reader(self._transport), Writer(self._transport), Metrics(*core.metrics), core.kreflex_namespace
        )

    async def __aexit__(self, *_: object) -> None:
        await self._transport.close()
