"""What a process and its descendants have used: processor time, and memory in which shared pages count once."""

import os
from collections.abc import Iterator
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def family(pid: int) -> list[int]:
    """A process and all its descendants."""
    parents = dict(_parents())
    found = [pid]
    for one in found:
        found += [child for child, parent in parents.items() if parent == one]
    return found


def cpu_seconds(pid: int) -> float:
    """User and system time of the processes that live now."""
    return sum(sum(int(ticks) for ticks in _stat(one)[11:13]) for one in family(pid)) / _TICKS


def pss_mib(pid: int) -> float:
    """The proportional set size of all of them in MiB: a page that two share counts half for each."""
    return sum(_pss_kib(one) for one in family(pid)) / 1024


def _parents() -> Iterator[tuple[int, int]]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                yield int(entry.name), int(_stat(int(entry.name))[1])
            except (FileNotFoundError, ProcessLookupError):
                continue


def _stat(pid: int) -> list[str]:
    # The command's name is in brackets and may hold spaces and brackets itself.
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def _pss_kib(pid: int) -> int:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def rss_mib(pid: int) -> float:
    """The memory that a process alone holds now, shared pages in full, in MiB."""
    return _status_kib(pid, "VmRSS") / 1024


def peak_mib(pid: int) -> float:
    """The most that it has held since `forget_peak`, or since it was started."""
    return _status_kib(pid, "VmHWM") / 1024


def forget_peak(pid: int) -> None:
    """Let the peak begin with what is held now (proc(5), clear_refs)."""
    Path(f"/proc/{pid}/clear_refs").write_text("5")


def _status_kib(pid: int, name: str) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))
