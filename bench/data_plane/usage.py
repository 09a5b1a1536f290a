"""CPU time and memory of a program and all that it started, from /proc."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_UTIME, _STIME, _RSS = 11, 12, 21
"""Places in /proc/PID/stat, counted from the state, which follows the name."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Of a program and its children: CPU seconds since they began, and resident bytes."""

    cpu_s: float
    rss_bytes: int


def usage_of(pid: int) -> Usage:
    """What the program and all its descendants have used; 0 of those that have ended."""
    ticks = pages = 0
    for one in _family(pid):
        try:
            fields = Path(f"/proc/{one}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        except OSError:  # it ended between the listing and the look: what it used is not this benchmark's
            continue
        ticks += int(fields[_UTIME]) + int(fields[_STIME])
        pages += int(fields[_RSS])
    return Usage(ticks / _TICKS_PER_S, pages * _PAGE_BYTES)


def _family(pid: int) -> list[int]:
    found, at = [pid], 0
    while at < len(found):
        try:
            for task in Path(f"/proc/{found[at]}/task").iterdir():
                found += [int(child) for child in (task / "children").read_text(encoding="ascii").split()]
        except OSError:  # as above
            pass
        at += 1
    return found
