"""What a prediction is worth, as tables for a terminal, each with its verdict."""

from __future__ import annotations

from itertools import groupby
from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from llmrouter.study.figures import change_name
from llmrouter.study.table import LABELS, show, show_change
from llmrouter.training.length_worth_runs import Block

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from rich.console import Console

CHANGES = ("e2e_mean_s", "e2e_p99_s", "ttft_p99_s", "makespan_s")

TITLES = {
    Block.PLACEMENT: "placement, first come first served: change in % against no prediction",
    Block.ORDER: "order of held requests, placed by the default: change in % against first come first served",
    Block.RESERVE: "KV reserved: change in % against the mean of ours at the same share r",
}


def print_worth(result: Mapping[str, Any], console: Console) -> None:
    """One table for each load and block, verdicts below it, then how good the columns were, and the notes."""
    rows = result["rows"]
    for load in result["loads"]:
        for block in Block:
            members = [row for row in rows if row["load"] == load and row["block"] == block]
            if members:
                console.print(_table(f"{load:g} of C = {result['capacity_rps']:.2f} req/s · {TITLES[block]}", members))
                _print_verdicts(result, block, load, console)
    console.print(_quality_table(result))
    for note in result["notes"]:
        console.print(f"· {note}", markup=False, highlight=False)


def _table(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column("policy or order", no_wrap=True)
    table.add_column("predicted by", no_wrap=True)
    table.add_column("E2E mean", justify="right")
    for heading in (*(f"{LABELS[metric]}, %" for metric in CHANGES), "preempted", "more than base", "wait"):
        table.add_column(heading, justify="right")
    for way, members in groupby(rows, key=lambda row: row["way"]):
        for place, row in enumerate(members):
            table.add_row(escape(way) if place == 0 else "", escape(row["column"]), *_cells(row))
        table.add_section()
    return table


def _cells(row: Mapping[str, Any]) -> list[str]:
    changes = [show_change(metric, row[change_name(metric)], row[f"{change_name(metric)}_ci95"]) for metric in CHANGES]
    more = show_change("preemptions", row["preemptions_more"], row["preemptions_more_ci95"])
    waits = show("router_wait_mean_s", row["router_wait_mean_s"])
    return [show("e2e_mean_s", row["e2e_mean_s"]), *changes, show("preemptions", row["preemptions"]), more, waits]


def _print_verdicts(result: Mapping[str, Any], block: Block, load: float, console: Console) -> None:
    for one in result["verdicts"]:
        if (one["block"], one["load"]) == (block, load):
            console.print(f"  {one['way']}: {one['verdict']}", markup=False, highlight=False)
    best = [one for one in result["best_reserves"] if block is Block.RESERVE and one["load"] == load]
    for policy, members in groupby(best, key=lambda one: one["policy"]):
        shares = [
            f"{escape(one['column'])} (r {one['r']:g}) "
            + show_change("e2e_mean_s", one["e2e_mean_pct"], one["e2e_mean_pct_ci95"])
            for one in members
        ]
        console.print(f"  {policy}, each at its best r, against the mean of ours at its best, on other seeds: ")
        console.print(f"    {', '.join(shares[1:])}; ours at {shares[0].partition('(')[2].partition(')')[0]}")
    console.print()


def _quality_table(result: Mapping[str, Any]) -> Table:
    table = Table(title="how good the predictions were", title_justify="left")
    table.add_column("predicted by")
    for heading in ("bucket accuracy, %", "Somers' D", "MAE, tokens", "mean said", "mean in truth"):
        table.add_column(heading, justify="right")
    for column, one in result["quality"].items():
        table.add_row(
            escape(column),
            f"{100 * one['bucket_accuracy']:.1f}",
            f"{one['somers_d']:.2f}",
            *(f"{one[metric]:.0f}" for metric in ("mae_tokens", "mean_tokens", "true_mean_tokens")),
        )
    return table
