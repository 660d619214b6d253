"""The report of a game day: what was broken, what held, who healed it, and one chart of all of it on a time line."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from html import escape

from kreflex.chaos.chart import chart
from kreflex.chaos.experiments import Experiment
from kreflex.chaos.score import success, weighted

_COLUMNS = ("Experiment", "Fault", "Verdict", "Score", "Healed by", "MTTR", "Lost requests", "Why")


def ordered(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Give those that have begun or were refused, the first one first."""
    return sorted(experiments, key=lambda one: one.status.started_at or one.created)


def day_score(experiments: Iterable[Experiment]) -> float | None:
    """Weigh the scores of a day's experiments; those without probes have none."""
    scored = [(one.spec.weight, one.status.score) for one in experiments if one.spec and one.status.score is not None]
    return weighted([(weight, score) for weight, score in scored])


def _title(one: Experiment) -> str:
    return (one.spec.title if one.spec else "") or one.name


def _row(one: Experiment) -> tuple[str, ...]:
    status, healed = one.status, one.status.remediation
    hit = ", ".join(dict.fromkeys(injection.target.name for injection in status.injected)) or "nothing"
    fault = f"{one.spec.fault.kind} of {hit}" if one.spec else one.broken
    return (
        _title(one),
        fault,
        status.verdict or status.phase,
        "none" if status.score is None else f"{status.score:g} %",
        f"{healed.function}: {healed.verdict or 'no verdict'}" if healed and healed.record else "nobody",
        f"{healed.mttr:g} s" if healed and healed.mttr is not None else "none",
        str(status.lost),
        status.reason or "",
    )


def _summary(experiments: Sequence[Experiment]) -> str:
    passed = sum(one.status.verdict == "Passed" for one in experiments)
    score = day_score(experiments)
    told = f"{passed} of {len(experiments)} experiments passed."
    return told if score is None else f"{told} The score is {score:g} %."


def markdown(experiments: Iterable[Experiment]) -> str:
    """Write the report for a wiki or an issue."""
    found = ordered(experiments)
    rows = [_COLUMNS, ("---",) * len(_COLUMNS), *map(_row, found)]
    table = "\n".join(f"| {' | '.join(_cell(text) for text in row)} |" for row in rows)
    parts = [f"# Game day {_day(found)}", _summary(found), table, *(_section(one) for one in found)]
    return "\n\n".join(parts) + "\n"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _day(found: Sequence[Experiment]) -> str:
    at = next((one.status.started_at or one.created for one in found), None)
    return f"{at:%Y-%m-%d}" if at else ""


def _section(one: Experiment) -> str:
    began = one.status.started_at or one.created
    lines = [f"- `{_seconds(line.at, began):8.1f} s` {line.word}: {line.text}" for line in one.status.timeline]
    why = f"No error budget was asked: {one.spec.without_budget}." if one.spec and one.spec.without_budget else ""
    probes = [f"- {text}" for text in _probes(one)]
    blocks = [f"## {_title(one)}", why, "\n".join(probes), "\n".join(lines)]
    return "\n\n".join(block for block in blocks if block)


def _seconds(at: datetime, began: datetime) -> float:
    return (at - began).total_seconds()


def _probes(one: Experiment) -> list[str]:
    words = {True: "passed", False: "failed", None: "not asked"}
    return [
        f"{probe.name}: before {words[probe.before]}, during {probe.passed} of {probe.passed + probe.failed},"
        f" after {words[probe.after]} ({success(probe):.1f} %, weight {probe.weight})"
        for probe in one.status.probes
    ]


_STYLE = """
:root{color-scheme:light dark;--ink:#1d1d1f;--paper:#fff;--line:#d5d5da;--faint:#6b6b70}
:root{--bad:#c0392b;--good:#1e8449;--band:#f7d9d5;--heal:#2563eb;--budget:#a15c00}
@media(prefers-color-scheme:dark){:root{--ink:#ececf0;--paper:#17171a;--line:#3a3a40;--faint:#9a9aa2}
:root{--bad:#ff7b6b;--good:#5fd38a;--band:#4a2320;--heal:#7aa7ff;--budget:#f0b45a}}
body{font:15px/1.5 system-ui,sans-serif;color:var(--ink);background:var(--paper);margin:2rem auto;max-width:70rem}
body{padding:0 1rem}table{border-collapse:collapse;width:100%}
td,th{text-align:left;padding:.35rem .6rem;border-bottom:1px solid var(--line);vertical-align:top}
.Passed{color:var(--good);font-weight:600}.Failed,.Refused,.Aborted{color:var(--bad);font-weight:600}
ol{list-style:none;padding:0;font-size:13px}li b{display:inline-block;min-width:5rem}
li time{display:inline-block;width:6rem;color:var(--faint);text-align:right;padding-right:1rem}
.wide{overflow-x:auto}svg{width:100%;height:auto;min-width:44rem}
"""


def html(experiments: Iterable[Experiment]) -> str:
    """Write the report as one page that needs nothing else."""
    found = ordered(experiments)
    title = f"Game day {_day(found)}"
    head = "".join(f"<th>{escape(name)}</th>" for name in _COLUMNS)
    rows = "".join(_html_row(one) for one in found)
    body = "".join(_html_section(one) for one in found)
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width">'
        f"<title>{escape(title)}</title><style>{_STYLE}</style><h1>{escape(title)}</h1><p>{escape(_summary(found))}</p>"
        f'<div class="wide"><table><tr>{head}</tr>{rows}</table></div>'
        f'<h2>Faults, probes, budget and remediations</h2><div class="wide">{chart(found)}</div>{body}</html>\n'
    )


def _html_row(one: Experiment) -> str:
    cells = _row(one)
    told = "".join(
        f'<td class="{escape(text)}">{escape(text)}</td>' if index == 2 else f"<td>{escape(text)}</td>"
        for index, text in enumerate(cells)
    )
    return f"<tr>{told}</tr>"


def _html_section(one: Experiment) -> str:
    began = one.status.started_at or one.created
    lines = "".join(
        f"<li><time>{_seconds(line.at, began):.1f} s</time><b>{escape(line.word)}</b> {escape(line.text)}</li>"
        for line in one.status.timeline
    )
    why = one.spec.without_budget if one.spec else None
    note = f"<p>No error budget was asked: {escape(why)}.</p>" if why else ""
    probes = "".join(f"<li>{escape(text)}</li>" for text in _probes(one))
    return f"<h2>{escape(_title(one))}</h2>{note}<ul>{probes}</ul><ol>{lines}</ol>"
