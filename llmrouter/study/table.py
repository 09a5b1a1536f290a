"""Comparisons as tables for a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.table import Table

from llmrouter.study.contenders import BASE
from llmrouter.study.figures import HIGHER_IS_BETTER, change_name

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from rich.console import Console

NOTHING = "–"

_LATENCIES = (
    *("e2e_mean_s", "e2e_p50_s", "e2e_p95_s", "e2e_p99_s"),
    *("ttft_mean_s", "ttft_p50_s", "ttft_p99_s", "tpot_mean_s", "tpot_p95_s", "slowdown_mean"),
)
_OTHERS = (
    *("makespan_s", "preemptions", "recomputed_tokens", "router_wait_mean_s", "largest_share"),
    *("slo_attainment", "goodput_rps", "shed_rate", "slo_capacity_rps"),
)
_IN_PERCENT = ("makespan_s", "slo_capacity_rps")
"""Of the others, those shown as changes; the rest as they are, because a change of a small count says little."""

LABELS = {
    "e2e_mean_s": "E2E mean",
    "e2e_p50_s": "E2E p50",
    "e2e_p95_s": "E2E p95",
    "e2e_p99_s": "E2E p99",
    "ttft_mean_s": "TTFT mean",
    "ttft_p50_s": "TTFT p50",
    "ttft_p99_s": "TTFT p99",
    "tpot_mean_s": "TPOT mean",
    "tpot_p95_s": "TPOT p95",
    "slowdown_mean": "slowdown",
    "makespan_s": "makespan",
    "preemptions": "preempted",
    "recomputed_tokens": "recomputed",
    "router_wait_mean_s": "wait",
    "largest_share": "share",
    "slo_attainment": "in SLO",
    "goodput_rps": "goodput",
    "shed_rate": "shed",
    "slo_capacity_rps": "SLO capacity",
}


def show(metric: str, value: float | None) -> str:
    """A figure with its unit; a dash for what is not known."""
    if value is None:
        return NOTHING
    if metric.startswith("tpot"):
        return f"{value * 1e3:.1f} ms"
    if metric.endswith("_s"):
        return f"{value:.3g} s" if value < 100 else f"{value:,.0f} s"  # noqa: PLR2004 - three digits
    if metric in ("largest_share", "slo_attainment", "shed_rate"):
        return f"{value:.1%}"
    if metric.endswith("_rps"):
        return f"{value:.3g}/s"
    return f"{value:.2f}" if metric == "slowdown_mean" else f"{value:,.0f}"


def show_change(metric: str, percent: float | None, half_width: float | None) -> str:
    """``−12.3 ±0.4`` with colour where the interval leaves 0 out: green for better, red for worse."""
    if percent is None:
        return NOTHING
    text = f"{percent:+.1f}".replace("-", "−") + (f" ±{half_width:.1f}" if half_width is not None else "")
    if half_width is None or abs(percent) <= half_width:
        return text
    better = (percent > 0) == (metric in HIGHER_IS_BETTER)
    return f"[green]{text}[/]" if better else f"[red]{text}[/]"


def print_comparison(result: Mapping[str, Any], console: Console) -> None:
    """Two tables for each cell and load, the best baselines, and the notes."""
    for (cell, load), rows in _by_point(result["rows"]):
        about = result["cells"][cell]
        title = f"{cell} at {load:g} of C = {about['capacity_rps']:.2f} req/s, {rows[0]['seeds']} seeds"
        console.print(_table(f"{title}: change against {BASE} in %", rows, _LATENCIES, relative=_LATENCIES))
        console.print(
            _table(f"{title}: the rest (changes in %, else as they are)", rows, _OTHERS, relative=_IN_PERCENT)
        )
    console.print(_best_table(result["best"]))
    for note in result["notes"]:
        console.print(f"· {note}", markup=False, highlight=False)


def _by_point(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, float], list[Mapping[str, Any]]]]:
    points: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        points.setdefault((row["cell"], row["load"]), []).append(row)
    yield from points.items()


def _table(title: str, rows: Sequence[Mapping[str, Any]], metrics: Sequence[str], *, relative: Sequence[str]) -> Table:
    present = [metric for metric in metrics if metric in rows[0]]
    table = Table(title=title, title_justify="left")
    table.add_column("policy", no_wrap=True)
    for metric in present:
        table.add_column(LABELS[metric], justify="right")
    for row in rows:
        table.add_row(row["policy"], *(_cell(row, metric, relative=metric in relative) for metric in present))
    return table


def _cell(row: Mapping[str, Any], metric: str, *, relative: bool) -> str:
    if not relative or row["policy"] == BASE:
        return show(metric, row[metric])
    name = change_name(metric)
    return show_change(metric, row[name], row[f"{name}_ci95"])


def _best_table(best: Sequence[Mapping[str, Any]]) -> Table:
    metrics = ("e2e_mean_s", "e2e_p99_s", "ttft_mean_s", "ttft_p99_s", "tpot_p95_s")
    table = Table(title="the default against the best baseline by mean E2E, in %", title_justify="left")
    for heading in ("cell", "load", "best baseline"):
        table.add_column(heading)
    for metric in metrics:
        table.add_column(LABELS[metric], justify="right")
    for entry in best:
        names = [f"vs_best_{change_name(metric)}" for metric in metrics]
        shown = [
            show_change(metric, entry.get(name), entry.get(f"{name}_ci95"))
            for metric, name in zip(metrics, names, strict=True)
        ]
        table.add_row(entry["cell"], f"{entry['load']:g}", entry["policy"] or NOTHING, *shown)
    return table
