"""`python -m functions.chaos_runner run experiment.yaml`: make an experiment, and wait until it is over.

Its exit code: 0 passed, 1 failed or aborted, 2 refused, by admission too, 3 not over in time, or the API server can't
be asked, 64 asked for in a wrong way. `report` writes the report of all experiments of a namespace. See
docs/functions/chaos-runner.md.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NoReturn

import yaml

from kreflex.chaos.experiments import API, FINAL, KIND, Experiment, path, read_experiment
from kreflex.chaos.report import html, markdown
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.durations import parse_duration
from kreflex.errors import (
    ApiError,
    ConflictError,
    DeniedError,
    KreflexError,
    OutageError,
    SettingsError,
    UnavailableError,
)
from kreflex.views import JSON

PASSED, FAILED, REFUSED, LATE, USAGE = 0, 1, 2, 3, 64
_LOOK_SECONDS = 1.0
# What asking again does not mend, but for the moment in which an API server starts.
_HOPELESS, _TRIES = {401, 403, 404}, 3


class _Parser(argparse.ArgumentParser):
    """As usual, but for the exit code: 2 means that it was refused."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(words: Sequence[str] | None = None) -> int:
    """Do what these words say; the exit code."""
    given = _arguments().parse_args(words)
    try:
        return asyncio.run(_with_cluster(given))
    except (SettingsError, ValueError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return USAGE
    except KreflexError as error:
        sys.stderr.write(f"{error}\n")
        return _code_of(error)


def _code_of(error: KreflexError) -> int:
    if isinstance(error, DeniedError):
        return REFUSED
    # What the API server does not take for an experiment, or not from us.
    return USAGE if isinstance(error, ApiError) and error.status in {400, 413, 422, *_HOPELESS} else LATE


def _arguments() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m functions.chaos_runner", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, parser_class=_Parser)
    run = commands.add_parser("run", help="make an experiment and wait until it is over")
    run.add_argument("file", type=Path, help="an Experiment in YAML")
    run.add_argument("-n", "--namespace", default="", help="instead of the one that stands there")
    run.add_argument("--timeout", default="1h", type=parse_duration, help="wait so long at most; it goes on by itself")
    report = commands.add_parser("report", help="write the report of a game day")
    report.add_argument("names", nargs="*", help="only these experiments")
    report.add_argument("-n", "--namespace", required=True)
    report.add_argument("--html", type=Path)
    report.add_argument("--markdown", type=Path)
    return parser


async def _with_cluster(given: argparse.Namespace) -> int:
    transport = Transport(load_credentials())
    try:
        reader, writer = Reader(transport), Writer(transport)
        if given.command == "report":
            return await _report(given, reader)
        return await _run(given, reader, writer)
    finally:
        await transport.close()


async def _run(given: argparse.Namespace, reader: Reader, writer: Writer) -> int:
    body = _read(given.file)
    namespace = given.namespace or body["metadata"].get("namespace") or "default"
    body["metadata"]["namespace"] = namespace
    try:
        made = read_experiment(await writer.create(path(namespace), body))
    except ConflictError as error:
        sys.stderr.write(f"{error}: give it another name, or metadata.generateName\n")
        return USAGE
    loop = asyncio.get_running_loop()
    end, told = loop.time() + given.timeout.total_seconds(), made.created
    while loop.time() < end:
        found = await _found(made, reader, end)
        if found is None:
            sys.stderr.write(f"{made} was deleted\n")
            return FAILED
        now = read_experiment(found)
        told = _say(now, told)
        if now.status.phase in FINAL:
            return _code(now)
        await asyncio.sleep(_LOOK_SECONDS)
    sys.stderr.write(f"{made} is not over; it goes on, and is taken back by itself\n")
    return LATE


async def _found(made: Experiment, reader: Reader, end: float) -> JSON | None:
    """Read it; while the API server is away the experiment goes on, and so does this."""
    said, hopeless, loop = "", 0, asyncio.get_running_loop()
    while True:
        try:
            return await reader.get(path(made.namespace, made.name))
        except UnavailableError as error:
            hopeless = hopeless + 1 if isinstance(error, OutageError) and error.status in _HOPELESS else 0
            if hopeless == _TRIES or loop.time() >= end:
                sys.stderr.write(f"{made} can't be followed; it goes on, and is taken back by itself\n")
                raise
            if str(error) != said:
                said = str(error)
                sys.stderr.write(f"{said}\n")
        await asyncio.sleep(_LOOK_SECONDS)


def _read(file: Path) -> JSON:
    try:
        body = yaml.safe_load(file.read_text())
    except yaml.YAMLError as error:
        raise ValueError(f"{file} is no YAML: {error}") from error
    if not isinstance(body, dict) or (body.get("apiVersion"), body.get("kind")) != (API, KIND):
        raise ValueError(f"{file} is no {KIND} of {API}")
    if not body.get("metadata"):
        raise ValueError(f"{file} has no metadata: an {KIND} has a name, or metadata.generateName")
    return body


def _say(experiment: Experiment, since: datetime) -> datetime:
    for line in experiment.status.timeline:
        if line.at > since:
            sys.stdout.write(f"{line.at:%H:%M:%S} {line.word}: {line.text}\n")
            since = line.at
    sys.stdout.flush()
    return since


def _code(experiment: Experiment) -> int:
    status = experiment.status
    sys.stdout.write(f"{experiment}: {status.verdict or status.phase}: {status.reason}\n")
    if status.phase == "Refused":
        return REFUSED
    return PASSED if status.verdict == "Passed" else FAILED


async def _report(given: argparse.Namespace, reader: Reader) -> int:
    found = [read_experiment(body) async for body in reader.list(path(given.namespace))]
    chosen = [one for one in found if not given.names or one.name in given.names]
    if not chosen:
        sys.stderr.write(f"namespace {given.namespace} has no such experiment\n")
        return USAGE
    if given.html:
        await asyncio.to_thread(given.html.write_text, html(chosen))
    if given.markdown:
        await asyncio.to_thread(given.markdown.write_text, markdown(chosen))
    if not given.html and not given.markdown:
        sys.stdout.write(markdown(chosen))
    return PASSED


if __name__ == "__main__":
    sys.exit(main())
