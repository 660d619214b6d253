"""`python -m functions.anomaly_scorer --query … --explain` and `… backtest --last 7d`: look before it is switched on.

Without `backtest` it looks at what is there now. A backtest of nothing that is named plays the sets that ship with
Kreflex, `knative/anomaly-watches`. Its exit code: 0 as ever, 1 something is beyond its threshold,
2 nothing can be said (no series, too little history, Prometheus does not answer), 64 asked for in a wrong way. A
backtest ends with 0 whatever it found, with 2, or with 64.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import NoReturn, get_args

import yaml
from pydantic import ValidationError

from kreflex.anomaly import asking, backtest, dialogue, page
from kreflex.anomaly.codec import Bundle
from kreflex.anomaly.detector import Detector
from kreflex.anomaly.explain import Explained, explain
from kreflex.anomaly.feedback import Book, read_book
from kreflex.anomaly.learning import load
from kreflex.anomaly.plugins import detector
from kreflex.anomaly.reading import Samples, tick_of
from kreflex.anomaly.replay import Replay, TooMuchError, replay
from kreflex.anomaly.store import store_at
from kreflex.anomaly.watches import Broken, Watch, WatchSpec, read_watch, read_watches
from kreflex.anomaly.words import SignalKind
from kreflex.cluster import Reader, Transport, Writer
from kreflex.credentials import load_credentials
from kreflex.durations import parse_duration, show_duration
from kreflex.errors import KreflexError, SettingsError
from kreflex.prom import Metrics

QUIET, LOUD, UNKNOWN, USAGE = 0, 1, 2, 64
_KINDS = get_args(SignalKind)
# There in a checkout, and not in the image.
_SHIPPED = Path(__file__).parents[2] / "knative" / "anomaly-watches"


class _Parser(argparse.ArgumentParser):
    """As usual, but for the exit code: 2 means that nothing can be said."""

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(USAGE, f"{self.prog}: {message}\n")


def main(words: Sequence[str] | None = None) -> int:
    """Do what these words say; the exit code."""
    parser = _arguments()
    given = parser.parse_args(words)
    if not given.prometheus:
        parser.error("--prometheus, or PROMETHEUS_URL: where Prometheus answers")
    if not given.query and not given.watch:
        if given.what != "backtest" or not _SHIPPED.is_dir():
            parser.error("--query, or --watch: what is to be looked at")
        given.watch = str(_SHIPPED)
    if given.ask and (given.what != "backtest" or not given.watch or _is_path(given.watch)):
        parser.error(
            "--ask goes with backtest and --watch NAMESPACE/NAME: answers are kept with a watch of the cluster"
        )
    try:
        return asyncio.run(_backtest(given) if given.what == "backtest" else _explain(given))
    except (SettingsError, TooMuchError, ValueError) as error:
        parser.error(str(error))
    except KreflexError as error:
        sys.stderr.write(f"{parser.prog}: {error}\n")
        return UNKNOWN


def _arguments() -> _Parser:
    parser = _Parser(prog="python -m functions.anomaly_scorer", description="Look for anomalies, and change nothing.")
    parser.add_argument("what", nargs="?", choices=("explain", "backtest"), default="explain")
    parser.add_argument("--prometheus", default=os.environ.get("PROMETHEUS_URL", ""), help="its URL, or PROMETHEUS_URL")
    parser.add_argument("--tenant", default=os.environ.get("PROMETHEUS_TENANT", ""), help="sent as X-Scope-OrgID")
    parser.add_argument("--token-file", default=os.environ.get("PROMETHEUS_TOKEN_FILE", ""), help="its bearer token")
    parser.add_argument("--query", default="", help="PromQL that yields one series for each object")
    parser.add_argument("--limit", default="", help="PromQL: where it is exhausted")
    parser.add_argument("--kind", choices=_KINDS, default="gauge", help="what kind of number the query yields")
    parser.add_argument("--name-label", default="pod", help="the label that names the object (default: pod)")
    parser.add_argument("--interval", type=_duration, default=timedelta(minutes=1), help="between two samples")
    parser.add_argument("--history", type=_duration, default=timedelta(days=1), help="what is learnt from (1d: 24h)")
    parser.add_argument(
        "--watch",
        default="",
        help="a file or a folder with AnomalyWatches; or NAMESPACE/NAME of one in the cluster, with its states and its"
        " feedback (default for backtest: the sets that ship with Kreflex)",
    )
    parser.add_argument("--state-store", default=os.environ.get("STATE_STORE", "configmaps"))
    parser.add_argument("--detector", default=os.environ.get("DETECTOR", "calibrated"))
    parser.add_argument("--at", type=float, default=0.0, help="a time in seconds since 1970, instead of now")
    parser.add_argument("--explain", action="store_true", help="tell of each series, and not only of the loud ones")
    parser.add_argument("--json", action="store_true", help="one JSON object at the end")
    parser.add_argument("--last", type=_duration, default=timedelta(days=7), help="backtest: how much time (7d: 168h)")
    parser.add_argument(
        "--ask",
        type=int,
        default=0,
        metavar="N",
        help="backtest: ask about the N strongest moments of each series, and keep the answers as feedback"
        " (with --watch NAMESPACE/NAME)",
    )
    parser.add_argument("--html", type=Path, default=Path("backtest.html"), help="backtest: where the page is written")
    return parser


def _duration(text: str) -> timedelta:
    try:
        return timedelta(days=float(text[:-1])) if text.endswith("d") else parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _adhoc(given: argparse.Namespace) -> Watch:
    signal = {"name": "query", "query": given.query, "kind": given.kind, "limit": given.limit or None}
    target = {"kind": "Node" if given.name_label == "node" else "Pod", "nameLabel": given.name_label}
    times = {"interval": show_duration(given.interval), "history": show_duration(given.history)}
    try:
        return Watch(
            "kreflex-system", "query", "", 0, WatchSpec.model_validate({"target": target, **times, "signals": [signal]})
        )
    except ValidationError as error:
        raise ValueError("; ".join(str(fault["msg"]) for fault in error.errors())) from error


def _is_path(name: str) -> bool:
    return Path(name).exists()


def _from_file(path: Path) -> list[Watch]:
    files = sorted(path.glob("*.yaml")) if path.is_dir() else [path]
    found = [body for file in files for body in yaml.safe_load_all(file.read_text())]
    bodies = [body for body in found if body and body.get("kind") == "AnomalyWatch"]
    read = [read_watch(body) for body in bodies]
    broken = [f"{one.name}: {one.problem}" for one in read if isinstance(one, Broken)]
    if broken or not read:
        raise ValueError(f"{path}: {'; '.join(broken) or 'there is no AnomalyWatch in it'}")
    return [one for one in read if isinstance(one, Watch)]


def _samples(given: argparse.Namespace) -> Samples:
    return Samples(Metrics(given.prometheus, given.tenant, given.token_file))


async def _explain(given: argparse.Namespace) -> int:
    made, samples = detector(given.detector), _samples(given)
    found: list[Explained] = []
    for watch, states, book in await _looked_at(given, made):
        at = tick_of((given.at or time.time()) - min(5.0, watch.step / 10), watch.step)
        for signal in watch.spec.signals:
            found += await explain(samples, made, watch, signal, at, states.get(signal.name), book)
    loud = [one for one in found if one.flag]
    known = [one for one in found if math.isfinite(one.score) or one.flag]
    if given.json:
        sys.stdout.write(json.dumps({"series": [one.json for one in found], "loud": len(loud)}) + "\n")
    else:
        told = found if given.explain else loud
        sys.stdout.write("".join(f"{one.text}\n\n" for one in told))
        sys.stdout.write(f"{len(loud)} of {len(found)} series are beyond their thresholds\n")
    return LOUD if loud else QUIET if known else UNKNOWN


async def _looked_at(given: argparse.Namespace, made: Detector) -> list[tuple[Watch, dict[str, Bundle], Book | None]]:
    if not given.watch:
        return [(_adhoc(given), {}, None)]
    if _is_path(given.watch):
        return [(watch, {}, None) for watch in _from_file(Path(given.watch))]
    transport = Transport(load_credentials())
    try:
        reader = Reader(transport)
        watch = await _declared(given.watch, reader)
        # What production knows: its states, and what people have taught it.
        store = store_at(given.state_store, reader, Writer(transport), "kreflex-system")
        read = {one.name: await load(store, watch, one, made) for one in watch.spec.signals}
        book, _ = await read_book(store, watch)
    finally:
        await transport.close()
    return [(watch, {name: bundle for name, bundle in read.items() if bundle is not None}, book)]


async def _declared(name: str, reader: Reader) -> Watch:
    watches = await read_watches(reader)
    for one in watches.good:
        if one.key == name:
            return one
    broken = [one.problem for one in watches.broken if f"{one.namespace}/{one.name}" == name]
    known = ", ".join(one.key for one in watches.good) or "none"
    raise ValueError(f"--watch {name}: {broken[0] if broken else f'no such file, and no such AnomalyWatch ({known})'}")


async def _backtest(given: argparse.Namespace) -> int:
    made, samples = detector(given.detector), _samples(given)
    watches = [watch for watch, _, _ in await _looked_at(given, made)]
    played, left = await _played(given, watches, made, samples)
    if not any(len(track.matrix.keys) for one in played for track in one.tracks):
        sys.stderr.write("no series in all that time: is the query right, and the time?\n")
        return UNKNOWN
    given.html.write_text(page.page(played))
    if given.ask:
        await _ask(given, played)
    if given.json:
        figures = {"watches": [backtest.figures(one) for one in played], "left_out": left}
        sys.stdout.write(json.dumps(figures) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for one in played for line in backtest.report(one)))
        sys.stdout.write("".join(f"{key} IS LEFT OUT: {why}\n" for key, why in left.items()))
        sys.stdout.write(f"plots: {given.html}\n")
    return QUIET


async def _played(
    given: argparse.Namespace, watches: Sequence[Watch], made: Detector, samples: Samples
) -> tuple[list[Replay], dict[str, str]]:
    """Play the watches, and say why of those that are too much; raises TooMuchError if all are."""
    played: list[Replay] = []
    left: dict[str, str] = {}
    for watch in watches:
        at = tick_of((given.at or time.time()) - min(5.0, watch.step / 10), watch.step)
        try:
            played.append(await replay(samples, made, watch, at, given.last, _progress))
        except TooMuchError as error:
            left[watch.key] = str(error)
            if len(left) == len(watches):
                raise
    return played, left


async def _ask(given: argparse.Namespace, played: Sequence[Replay]) -> None:
    """Ask whoever sits there what the past was, and keep what is said."""
    transport = Transport(load_credentials())
    try:
        store = store_at(given.state_store, Reader(transport), Writer(transport), "kreflex-system")
        for one in played:
            book, _ = await read_book(store, one.watch)
            found = asking.questions(one, book, given.ask)
            heard = await asyncio.to_thread(dialogue.hold, found, sys.stdin.readline, _wait)
            new = await asking.teach(store, one.watch, heard)
            for name in (one.name for one in heard):
                _progress(f"{name}: its factor was {book.factors.get(name, 1):g}, and is {new.factors.get(name, 1):g}")
            _progress(f"{one.watch.key}: answers about {len(heard)} series are kept, and count from the next tick on")
    finally:
        await transport.close()


def _wait(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()


def _progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
