"""What is kept of measurements, and what follows from them: ratios between candidates, sizes of routers."""

from __future__ import annotations

import json
import math
import statistics
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from llmrouter.study.statistics import half_width

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

Row = dict[str, Any]

MIB = 1024 * 1024
ROOM = 0.7
"""The share of a core that a sizing plans to use: what is beyond waits in queues."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """A geometric mean of paired ratios, and its 95 % interval, which two repeats at least can have."""

    mean: float
    low: float | None
    high: float | None


class Store:
    """Rows in a file, one a line: a run that was cut short goes on where it was."""

    def __init__(self, path: Path, settings: dict[str, Any]) -> None:
        self._path, self._settings = path, settings
        self.rows: list[Row] = []
        if path.is_file():
            found = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
            self.rows = [row for row in found if row["settings"] == settings]

    def has(self, cell: str, candidate: str, repeat: int) -> bool:
        """Whether this was measured."""
        wanted = (cell, candidate, repeat)
        return any((row["cell"], row["candidate"], row["repeat"]) == wanted for row in self.rows)

    def add(self, row: Row) -> None:
        """Keeps a row."""
        self.rows.append(row | {"settings": self._settings})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(self.rows[-1]) + "\n")


def ratio(values: Iterable[float], base: Iterable[float]) -> Ratio | None:
    """Of pairs of the same repeat: exp(mean of log ratios), with the Student-t interval of that mean.

    ``None`` where a value is 0 or negative: added latencies may be, within the noise.
    """
    pairs = list(zip(values, base, strict=True))
    if not pairs or any(min(pair) <= 0 for pair in pairs):
        return None
    logs = [math.log(value / reference) for value, reference in pairs]
    mean, half = statistics.fmean(logs), half_width(logs)
    if half is None:
        return Ratio(math.exp(mean), None, None)
    return Ratio(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def cpu_ms(row: Row, process: str) -> float | None:
    """CPU milliseconds per request, or per chunk where the load is streams, of one of a candidate's programs."""
    done = row.get("chunks") or row["engines"]["requests"]
    if process not in row["cpu_s"] or not done:
        return None
    return float(row["cpu_s"][process]) / done * 1e3


def picker_of(row: Row) -> str | None:
    """The program that decides."""
    return next((name for name in ("picker", "proxy") if name in row["cpu_s"]), None)


def figures(row: Row, fixed: Row | None) -> dict[str, float | None]:
    """The figures that are compared: rates, latencies in ms, ``added`` ones over the fixed route, CPU, memory.

    ``foretold`` is the percentage of requests whose length our model foretold, in place of which a busy router has a
    law of the application's.
    """
    latency = row["latency_ms"] or {}
    base = (fixed or {}).get("latency_ms") or {}
    picker = picker_of(row)
    found: dict[str, float | None] = {"per_s": row.get("chunks_per_s", row["per_s"])}
    for name in ("p50", "p95", "p99"):
        found[name] = latency.get(name)
        known = name in latency and name in base and fixed is not row
        found[f"added_{name}"] = latency[name] - base[name] if known else None
    found["cpu_ms"] = cpu_ms(row, picker) if picker else None
    found["envoy_cpu_ms"] = cpu_ms(row, "envoy")
    missed, requests = row.get("not_foretold"), row["engines"]["requests"]
    found["foretold"] = None if missed is None or not requests else 100.0 * max(0.0, 1.0 - missed / requests)
    found["rss_mib"] = row["rss_bytes"][picker] / MIB if picker else None
    return found


def wrong(row: Row) -> list[str]:
    """What must not be in a measurement: answers that are none, reservations that stay, engines that got nothing."""
    found = [f"{count} × {name}" for name, count in row["errors"].items()]
    if row["is_asked"] and row["reserved_after"] != 0:
        found.append(f"{row['reserved_after']} reservations left")
    if not row["engines"]["requests"]:
        found.append("no engine was reached")
    return found


@dataclass(frozen=True, slots=True)
class Size:
    """Of one candidate: CPU ms of its picker per request, per KiB of prompt and per chunk; the most memory seen."""

    candidate: str
    request_ms: float
    prompt_kib_ms: float
    chunk_ms: float
    rss_mib: float

    def cores(self, *, requests_s: float, prompt_kib: float, chunks_s: float) -> float:
        """Cores of which a share of ``ROOM`` is used."""
        busy_ms = requests_s * (self.request_ms + prompt_kib * self.prompt_kib_ms) + chunks_s * self.chunk_ms
        return busy_ms / 1e3 / ROOM


def size_of(candidate: str, rows: list[Row], *, short_kib: float, long_kib: float) -> Size | None:
    """From the medians of CPU under fixed loads (cells a, c, d); ``None`` where one of them is not measured."""

    def median(cell: str) -> float | None:
        found = [
            value
            for row in rows
            if (row["cell"], row["candidate"]) == (cell, candidate)
            and (value := cpu_ms(row, picker_of(row) or "")) is not None
        ]
        return statistics.median(found) if found else None

    short, long, chunk = median("a"), median("c"), median("d")
    if short is None or long is None or chunk is None:
        return None
    per_kib = max(0.0, (long - short) / (long_kib - short_kib))
    rss = max(row["rss_bytes"][picker_of(row)] for row in rows if row["candidate"] == candidate)
    return Size(candidate, max(0.0, short - short_kib * per_kib), per_kib, chunk, rss / MIB)


def as_json(value: Ratio | Size | None) -> dict[str, Any] | None:
    """For the file."""
    return None if value is None else asdict(value)
