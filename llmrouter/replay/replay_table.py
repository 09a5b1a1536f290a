"""A replay on a terminal: one table for both ways of estimating, and what to think of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.markup import escape
from rich.table import Table

from llmrouter.decisions.words import seconds

if TYPE_CHECKING:
    from rich.console import Console

NAMES = {"ttft_s": "TTFT", "tpot_s": "TPOT", "e2e_s": "E2E"}


def show(result: dict[str, Any], console: Console) -> None:
    """Prints a replay."""
    policy, logged = result["policy"], result["logged"]
    console.print(
        f"[bold]{escape(policy['name'])}[/bold] ({policy['type']}) in place of "
        f"[bold]{escape(logged['name'])}[/bold] ({logged['type']}): means of {result['decisions']} of "
        f"{result['records']} decisions"
    )
    console.print(_table(result))
    effective = [one["effective"] for one in result["estimates"].values() if one is not None]
    if effective:
        console.print(f"The log is worth {min(effective):.0f} decisions of the other policy.")
    for why, count in result["left_out"].items():
        console.print(f"Left out: {count}: {escape(why)}.")
    simulation = result["simulation"]
    if simulation is not None:
        for note in [f"Not simulated: {simulation['why_not']}."] if "why_not" in simulation else simulation["notes"]:
            console.print(escape(note))
    for warning in result["warnings"]:
        console.print(f"[yellow]Warning:[/yellow] {escape(warning)}")
    console.print(
        "[dim]SNIPS and doubly robust change one decision at a time and keep the log's loads; the simulation lets the "
        "policy make them all.[/dim]"
    )


def _table(result: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("mean", "95 %", "change", "95 %"):
        table.add_column(name, justify="right")
    for metric, name in NAMES.items():
        _add(table, name, result["estimates"][metric], (result["simulation"] or {}, metric))
    return table


def _add(table: Table, name: str, found: dict[str, Any] | None, simulated: tuple[dict[str, Any], str]) -> None:
    """The rows of one metric."""
    table.add_row(f"[bold]{name}[/bold]")
    if found is not None:
        table.add_row("  log", *_told(found["logged"]), "", "")
        for title, field in (("other, SNIPS", "snips"), ("other, doubly robust", "doubly_robust")):
            table.add_row(f"  {title}", *_told(found[field]), *_changed(found[f"{field}_change"], found["logged"]))
    means, metric = simulated
    before, after = ((means.get(side) or {}).get(metric) for side in ("logged", "policy"))
    if before is not None:
        table.add_row("  log's, simulated", seconds(before), "", "", "")
    if after is not None:
        change = f"{after / before - 1.0:+.1%}" if before else ""
        table.add_row("  other, simulated", seconds(after), "", change, "")


def _told(one: dict[str, Any]) -> tuple[str, str]:
    if one["value"] is None:
        return "unknown", ""
    return seconds(one["value"]), "" if one["low"] is None else f"{seconds(one['low'])} … {seconds(one['high'])}"


def _changed(change: dict[str, Any], logged: dict[str, Any]) -> tuple[str, str]:
    """A change as a share of what the log has."""
    base = logged["value"]
    if change["value"] is None or not base:
        return "unknown", ""
    low, high = change["low"], change["high"]
    return f"{change['value'] / base:+.1%}", "" if low is None else f"{low / base:+.1%} … {high / base:+.1%}"
