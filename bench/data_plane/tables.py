"""Measurements as tables: medians over repeats, ratios to the peer."""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from rich.table import Table

from bench.data_plane.results import Ratio, Row, Size, figures, ratio, wrong

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from bench.data_plane.cells import Cell

COLUMNS = {
    "per_s": "/s",
    "p50": "p50 ms",
    "p95": "p95 ms",
    "p99": "p99 ms",
    "added_p50": "+p50",
    "added_p95": "+p95",
    "added_p99": "+p99",
    "cpu_ms": "CPU ms",
    "envoy_cpu_ms": "Envoy ms",
    "rss_mib": "MiB",
    "foretold": "foretold %",
}
COMPARED = ("per_s", "p50", "p99", "added_p99", "cpu_ms")
"""What is told as a ratio to the base."""

SHOWN = ("per_s", "p99", "cpu_ms")
"""Of these ratios, those that the tables show."""

LOADS = (
    (100, 1.0, 2_500, "100 requests/s of 200 tokens, 25 chunks each"),
    (500, 1.0, 12_500, "500 of them"),
    (1_000, 1.0, 25_000, "1,000 of them"),
    (1_000, 1.0, 0, "1,000 requests/s, no streams"),
    (20, 400.0, 4_000, "20 requests/s of 100,000 tokens, 200 chunks each"),
    (0, 0.0, 50_000, "50,000 chunks/s"),
)
"""Requests per second, KiB of a prompt, chunks per second."""


def summary(cell: Cell, rows: Sequence[Row], base: str) -> list[Row]:
    """One record a candidate of the cell: medians of its figures, ratios to the base candidate, what went wrong."""
    mine = [row for row in rows if row["cell"] == cell.name]
    found = []
    for name in dict.fromkeys(one.name for one in cell.candidates):
        by_repeat = _figures(cell, mine, name)
        if not by_repeat:
            continue
        others = _figures(cell, mine, base)
        shared = sorted(set(by_repeat) & set(others))
        told = {key: _median([one[key] for one in by_repeat.values()]) for key in COLUMNS}
        ratios = {
            key: ratio(*([float(side[at][key] or 0.0) for at in shared] for side in (by_repeat, others)))
            for key in COMPARED
            if name != base and shared
        }
        faults = [fault for row in mine if row["candidate"] == name for fault in wrong(row)]
        found.append({"candidate": name, "repeats": len(by_repeat), "figures": told, "ratios": ratios, "wrong": faults})
    return found


def _figures(cell: Cell, rows: Sequence[Row], name: str) -> dict[int, dict[str, float | None]]:
    fixed_name = next((one.name for one in cell.candidates if one.kind == "fixed"), None)
    fixed = {row["repeat"]: row for row in rows if row["candidate"] == fixed_name}
    return {row["repeat"]: figures(row, fixed.get(row["repeat"])) for row in rows if row["candidate"] == name}


def _median(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


def tables(cells: Sequence[Cell], summaries: dict[str, list[Row]], bases: dict[str, str]) -> Iterator[Table]:
    """One table a cell."""
    for cell in cells:
        if not summaries.get(cell.name):
            continue
        repeats = max(record["repeats"] for record in summaries[cell.name])
        title = f"({cell.name}) {cell.title.format(size=cell.size)}; medians of {repeats}, ratios to {bases[cell.name]}"
        table = Table(title=title, title_justify="left", title_style="bold")
        table.add_column("", no_wrap=True)
        for heading in COLUMNS.values():
            table.add_column(heading, justify="right")
        for key in SHOWN:
            table.add_column(f"{COLUMNS[key]} ratio", justify="right", no_wrap=True)
        for record in summaries[cell.name]:
            told = [number(record["figures"][key]) for key in COLUMNS]
            table.add_row(record["candidate"], *told, *(times(record["ratios"].get(key)) for key in SHOWN))
        faults = {record["candidate"]: record["wrong"] for record in summaries[cell.name] if record["wrong"]}
        if faults:
            table.caption = "; ".join(f"{name}: {', '.join(found[:4])}" for name, found in faults.items())
        yield table


def sizes(found: Sequence[Size]) -> Table:
    """Cores of a picker by load."""
    table = Table(title="cores of pickers, 70 % used", title_justify="left", title_style="bold")
    table.add_column("load")
    for one in found:
        table.add_column(one.candidate, justify="right")
    for requests_s, prompt_kib, chunks_s, label in LOADS:
        cores = [one.cores(requests_s=requests_s, prompt_kib=prompt_kib, chunks_s=chunks_s) for one in found]
        table.add_row(label, *(f"{value:.2f}" for value in cores))
    table.add_row("CPU ms per request", *(f"{one.request_ms:.3f}" for one in found))
    table.add_row("CPU ms per KiB of prompt", *(f"{one.prompt_kib_ms:.4f}" for one in found))
    table.add_row("CPU ms per 1,000 chunks", *(f"{one.chunk_ms * 1e3:.1f}" for one in found))
    table.add_row("most memory seen, MiB", *(f"{one.rss_mib:.0f}" for one in found))
    return table


def number(value: float | None) -> str:
    """Three digits, or so."""
    if value is None:
        return "–"
    if abs(value) >= 100:  # noqa: PLR2004 - three digits
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"  # noqa: PLR2004 - as above


def times(value: Ratio | None) -> str:
    """A ratio and its interval."""
    if value is None:
        return "–"
    if value.low is None or value.high is None:
        return f"{value.mean:.2f}"
    return f"{value.mean:.2f} [{value.low:.2f}, {value.high:.2f}]"
