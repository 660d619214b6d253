"""`python -m functions.rollback deployment/cart --namespace shop`: wait in a pipeline until a release is healthy.

Its exit code says what has become of the release: 0 healthy, 1 rolled back and healthy again, 2 people are needed,
3 not healthy in time, 64 asked for in a wrong way. See docs/pipeline.md.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import NoReturn

from kreflex.cluster import Reader, Transport
from kreflex.credentials import load_credentials
from kreflex.durations import parse_duration
from kreflex.errors import SettingsError
from kreflex.pipeline import KINDS, USAGE, End, Pipeline, Wish
from kreflex.signals import is_name

_ENDS = {0: "healthy", 1: "rolled-back", 2: "people", 3: "late", 64: "usage"}


class _Parser(argparse.ArgumentParser):
    """As usual, but for the exit code: 2 means that people are needed."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(words: Sequence[str] | None = None) -> int:
    """Follow the release that these words name; the exit code."""
    given = _arguments().parse_args(words)
    wish = _wish(given)
    say = _say_json if given.json else _say_plain
    try:
        end = asyncio.run(_follow(wish, lambda word, text: say({"about": word, "text": text})))
    except SettingsError as error:
        end = End(USAGE, "; ".join(error.faults))
    say({"end": _ENDS[end.code], "text": end.text, "code": end.code, "record": end.record})
    return end.code


def _say_json(told: Mapping[str, object]) -> None:
    at = datetime.now(UTC).isoformat(timespec="milliseconds")
    sys.stdout.write(json.dumps({"at": at, **told}) + "\n")
    sys.stdout.flush()


def _say_plain(told: Mapping[str, object]) -> None:
    word = told.get("about") or told["end"]
    record = f" ({told['record']})" if told.get("record") else ""
    sys.stdout.write(f"{datetime.now(UTC):%H:%M:%S} {word}: {told['text']}{record}\n")
    sys.stdout.flush()


async def _follow(wish: Wish, tell: Callable[[str, str], None]) -> End:
    transport = Transport(load_credentials())
    try:
        return await Pipeline(wish, Reader(transport), tell).run()
    finally:
        await transport.close()


def _arguments() -> _Parser:
    parser = _Parser(prog="python -m functions.rollback", description="Wait until a release is healthy.")
    parser.add_argument("workload", help=f"what was released, as KIND/NAME; a kind is one of {', '.join(KINDS)}")
    parser.add_argument("--namespace", "-n", default="default")
    parser.add_argument("--image", default="", help="wait until it is to run this image, as its template has it")
    parser.add_argument("--within", type=_duration, default=timedelta(minutes=10), help="how long to wait, as 10m")
    parser.add_argument("--proof", type=_duration, default=timedelta(seconds=30), help="healthy for so long counts")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--rollback", action="store_true", help="ask the function to look; it needs --function-url")
    how.add_argument("--check", action="store_true", help="ask nobody; events, alerts and the waker tell the function")
    parser.add_argument("--function-url", default=os.environ.get("FUNCTION_URL", ""), help="or $FUNCTION_URL")
    parser.add_argument("--token-file", default=os.environ.get("TOKEN_FILE", ""), help="or $TOKEN_FILE")
    parser.add_argument("--json", action="store_true", help="a JSON object a line")
    return parser


def _duration(text: str) -> timedelta:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _wish(given: argparse.Namespace) -> Wish:
    kind, _, name = given.workload.partition("/")
    parser = _arguments()
    if kind.lower() not in KINDS or not is_name(name):
        parser.error(f"{given.workload!r} is no KIND/NAME with a kind of {', '.join(KINDS)}")
    if not is_name(given.namespace):
        parser.error(f"--namespace {given.namespace!r} is no name of a namespace")
    if given.rollback and not given.function_url:
        parser.error("--rollback needs --function-url, or FUNCTION_URL: where the function rollback listens")
    if given.function_url and not given.function_url.startswith(("http://", "https://")):
        parser.error(f"--function-url {given.function_url!r} is no URL")
    url = "" if given.check else given.function_url
    return Wish(
        KINDS[kind.lower()],
        given.namespace,
        name,
        given.within,
        given.proof,
        given.image,
        url,
        given.token_file,
    )


if __name__ == "__main__":
    sys.exit(main())
