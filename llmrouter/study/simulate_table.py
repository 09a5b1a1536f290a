"""Simulated runs side by side for a terminal: one column a policy, one row a figure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from llmrouter.study.figures import HIGHER_IS_BETTER, METRICS
from llmrouter.study.table import LABELS, show

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

LEVELS = " ▁▂▃▄▅▆▇█"
LINE_WIDTH = 60
_LIT = 0.5
"""Percent from which a change has a colour."""


def print_runs(result: Mapping[str, Any], console: Console) -> None:
    """The figures of every run, how requests ended, engines over time where sampled, and the notes."""
    runs = result["runs"]
    engines = ", ".join(f"{count} × {name}" for name, count in result["engines"].items())
    title = f"{result['traffic']}: {result['requests']:,} requests at {result['rate_rps']:.4g}/s on {engines}"
    if result["load"] is not None:
        title += f"; {result['load']:g} of C = {result['capacity_rps']:.4g}/s"
    console.print(title, highlight=False)
    table = Table()
    table.add_column("")
    for place, run in enumerate(runs):
        table.add_column(run["policy"], justify="right")
        if place:
            table.add_column("change", justify="right")
    for metric in METRICS:
        table.add_row(LABELS[metric], *_cells(metric, runs))
    table.add_section()
    for ending in runs[0]["counts"]:
        if any(run["counts"][ending] for run in runs):
            table.add_row(ending, *_spaced([f"{run['counts'][ending]:,}" for run in runs]))
    table.add_row("engines busy", *_spaced([_busy(run["engine_busy_fraction"]) for run in runs]))
    console.print(table)
    for run in runs:
        _print_endings(run, console)
        if "timeline" in run:
            _print_timeline(run, console)
    for note in result["notes"]:
        console.print(f"· {note}", markup=False, highlight=False)


def spark(values: Sequence[float], highest: float, width: int = LINE_WIDTH) -> str:
    """A line of ``width`` block characters or fewer, each the mean of its share of the values, 0 to ``highest``."""
    cells = min(width, len(values))
    line = ""
    for cell in range(cells):
        part = values[cell * len(values) // cells : (cell + 1) * len(values) // cells]
        level = sum(part) / len(part) / highest if highest > 0 else 0.0
        line += LEVELS[min(len(LEVELS) - 1, round(level * (len(LEVELS) - 1)))]
    return line


def _cells(metric: str, runs: Sequence[Mapping[str, Any]]) -> list[str]:
    base = runs[0]["figures"][metric]
    cells = [show(metric, base)]
    for run in runs[1:]:
        value = run["figures"][metric]
        cells += [show(metric, value), _change(metric, base, value)]
    return cells


def _change(metric: str, base: float | None, value: float | None) -> str:
    if base is None or value is None or base == 0:
        return ""
    percent = 100.0 * (value / base - 1.0)
    text = f"{percent:+.1f} %".replace("-", "−")
    if abs(percent) < _LIT:
        return text
    better = (percent > 0) == (metric in HIGHER_IS_BETTER)
    return f"[green]{text}[/]" if better else f"[red]{text}[/]"


def _spaced(cells: Sequence[str]) -> list[str]:
    """Cells of the policies' columns, those of the changes left empty."""
    spaced = [cells[0]]
    for cell in cells[1:]:
        spaced += [cell, ""]
    return spaced


def _busy(fractions: Sequence[float]) -> str:
    shown = list(dict.fromkeys(f"{fraction:.0%}" for fraction in (min(fractions), max(fractions)))) if fractions else []
    return " to ".join(shown)


def _print_endings(run: Mapping[str, Any], console: Console) -> None:
    lost = {ending: run["counts"][ending] for ending in ("shed", "refused", "unfinished") if run["counts"][ending]}
    if lost:
        said = ", ".join(f"{count:,} {ending}" for ending, count in lost.items())
        console.print(
            f"[yellow]{run['policy']}: {said}. Latencies are of the requests that finished.[/]", highlight=False
        )


def _print_timeline(run: Mapping[str, Any], console: Console) -> None:
    timeline = run["timeline"]
    running = [[a + b for a, b in zip(*pair, strict=True)] for pair in _pairs(timeline, "running", "waiting")]
    highest = max((max(line) for line in running if line), default=0)
    console.print(f"{run['policy']}: requests in each engine (up to {highest}), then KV in use", highlight=False)
    for instance, (line, kv) in enumerate(zip(running, timeline["kv_usage_fraction"], strict=True)):
        console.print(f"  {instance:03d} │{spark(line, highest)}│ │{spark(kv, 1.0)}│", highlight=False, no_wrap=True)
    if any(timeline["held"]):
        most = max(timeline["held"])
        console.print(f"  held│{spark(timeline['held'], most)}│ up to {most}", highlight=False, no_wrap=True)


def _pairs(timeline: Mapping[str, Any], first: str, second: str) -> list[tuple[list[int], list[int]]]:
    return list(zip(timeline[first], timeline[second], strict=True))
