"""The tables in the terminal: the paper's numbers beside ours."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table

from bench.paper import printed, verdicts
from bench.paper.assumptions import ASSUMPTIONS
from bench.paper.play import BASE, CHANGES
from bench.paper.routes import ROUTES

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.paper.cells import PaperCell
    from bench.paper.claims import Claim
    from bench.paper.mixing import Mixing
    from bench.paper.play import Row
    from llmrouter.study.statistics import Change

NOT_RUN = "not run here"


def signed(change: Change) -> str:
    """A change in percent with its interval."""
    if change.percent is None:
        return "–"
    half = "" if change.half_width is None else f" ± {change.half_width:.1f}"
    return f"{change.percent:+.1f}{half}"


def verdict(cell: PaperCell, row: Row) -> str:
    """Whether the paper's number for a row is reproduced."""
    if row.route in cell.printed_s:
        return verdicts.of_seconds(row.mean("makespan_s"), cell.printed_s[row.route])
    if row.route in cell.printed_pct:
        return verdicts.of_change(row.changes["makespan_s"], cell.printed_pct[row.route])
    return "reference" if ROUTES[row.route].reference else verdicts.UNKNOWN


def paper_seconds(cell: PaperCell, route: str) -> str:
    """The makespan that the paper prints, or the range that follows from it."""
    if route not in cell.printed_s:
        return ""
    low_s, high_s = cell.printed_s[route]
    return f"{low_s:g}" if low_s == high_s else f"{low_s:g} to {high_s:g}"


def cell_table(cell: PaperCell, rows: Sequence[Row]) -> Table:
    """A row for each route, and one for each learned agent of the paper."""
    table = Table(title=cell.title, caption="changes against RoundRobin, paired, with 95 % intervals")
    table.add_column("route")
    for heading in (
        *("makespan s", "paper s", "change %", "paper %"),
        *("mean E2E s", "change %", "mean TTFT s", "change %", "router wait s", "preemptions"),
    ):
        table.add_column(heading, justify="right")
    table.add_column("paper's number")
    for row in rows:
        makespan, e2e, ttft = (signed(row.changes[name]) if row.route != BASE else "" for name in CHANGES)
        paper = f"{cell.printed_pct[row.route]:+.2f}" if row.route in cell.printed_pct else ""
        table.add_row(
            row.route,
            *(f"{row.mean('makespan_s'):.1f}", paper_seconds(cell, row.route), makespan, paper),
            *(f"{row.mean('e2e_mean_s'):.2f}", e2e, f"{row.mean('ttft_mean_s'):.2f}", ttft),
            *(f"{row.mean('router_wait_mean_s'):.2f}", f"{row.mean('preemptions'):.0f}"),
            verdict(cell, row),
        )
    for name in printed.LEARNED:
        table.add_row(name, "", "", NOT_RUN, f"{cell.printed_pct[name]:+.2f}", *[""] * 6, NOT_RUN)
    return table


def mixing_table(mixing: Mixing) -> Table:
    """The impact of mixing."""
    table = Table(title="impact of mixing, one V100 engine")
    table.add_column("quantity")
    for heading in ("ours", "paper", "ours / paper"):
        table.add_column(heading, justify="right")
    table.add_column("paper's number")
    pairs = (
        ("1,000 / 1,000 tokens alone, s", mixing.alone_s, printed.MIXING_ALONE_S),
        (f"a 500 / 500 joins every 50 iterations ({mixing.joins} do), s", mixing.joined_s, printed.MIXING_JOINED_S),
        *(
            (f"decode step at {tokens:,} context tokens, ms", 1e3 * mixing.step_s[tokens], 1e3 * paper_s)
            for tokens, paper_s in printed.MIXING_STEP_S.items()
        ),
    )
    for name, ours, paper in pairs:
        said = verdicts.of_seconds(ours, (paper, paper))
        table.add_row(name, f"{ours:.1f}", f"{paper:g}", f"{ours / paper:.3f}", said)
    return table


def orders_table(found: Mapping[str, Sequence[Row]]) -> Table:
    """The main cell under each in-engine order; changes are against first come, first served with the same route."""
    table = Table(title="in-engine orders in the main cell (the paper prints none for it)")
    for heading, side in (("order", "left"), ("route", "left"), ("makespan s", "right"), ("mean E2E s", "right")):
        table.add_column(heading, justify="left" if side == "left" else "right")
    for heading in ("makespan against FCFS %", "mean E2E against FCFS %", "preemptions"):
        table.add_column(heading, justify="right")
    first = next(iter(found.values()))
    for order, rows in found.items():
        for row, base in zip(rows, first, strict=True):
            against = (f"{100 * (row.mean(name) / base.mean(name) - 1):+.1f}" for name in CHANGES[:2])
            times = (f"{row.mean('makespan_s'):.1f}", f"{row.mean('e2e_mean_s'):.2f}")
            table.add_row(order, row.route, *times, *against, f"{row.mean('preemptions'):.0f}")
    return table


def two_instances_table(found: Mapping[str, Sequence[Sequence[Row]]]) -> Table:
    """36 totals: seconds, and against round-robin under first come, first served in the same scenario."""
    table = Table(title="two instances, 3,000 requests: total s (against FCFS RoundRobin %), ours | paper")
    for heading in ("order", "route", *printed.SCENARIOS):
        table.add_column(heading)
    bases = [rows[0].mean("makespan_s") for rows in next(iter(found.values()))]
    paper_bases = printed.TWO_INSTANCES_S["FirstComeFirstServed"][BASE]
    for order, scenarios in found.items():
        for place, row in enumerate(scenarios[0]):
            papers = printed.TWO_INSTANCES_S[order][row.route]
            cells = []
            for number, rows in enumerate(scenarios):
                ours = _against(rows[place].mean("makespan_s"), bases[number])
                cells.append(f"{ours} | {_against(papers[number], paper_bases[number])}")
            table.add_row(order, row.route, *cells)
    return table


def _against(seconds: float, base_s: float) -> str:
    return f"{seconds:.0f} ({100 * (seconds / base_s - 1):+.1f})"


def variations_table(name: str, found: Mapping[str, Sequence[Row]]) -> Table:
    """One inferred choice changed at a time."""
    table = Table(title=f"{name}: one inferred choice changed", caption="change of makespan / of mean E2E, %")
    table.add_column("variation")
    table.add_column("RoundRobin s")
    table.add_column("preemptions")
    for row in next(iter(found.values())):
        if row.route != BASE:
            table.add_column(row.route)
    for variation, rows in found.items():
        changes = (f"{signed(row.changes['makespan_s'])} / {signed(row.changes['e2e_mean_s'])}" for row in rows[1:])
        table.add_row(variation, f"{rows[0].mean('makespan_s'):.1f}", f"{rows[0].mean('preemptions'):.0f}", *changes)
    return table


def claims_table(found: Sequence[Claim]) -> Table:
    """What the paper claims and whether it holds here."""
    table = Table(title="what reproduces", show_lines=True)
    for heading in ("claim", "paper", "ours", "reproduces"):
        table.add_column(heading)
    for claim in found:
        table.add_row(claim.statement, claim.paper, claim.ours, "yes" if claim.holds else "[bold]no[/bold]")
    return table


def assumptions_table() -> Table:
    """Every inferred choice."""
    table = Table(title="what the paper does not print, and what stands in for it", show_lines=True)
    for heading in ("subject", "choice", "why"):
        table.add_column(heading)
    for one in ASSUMPTIONS:
        table.add_row(one.subject, one.choice, one.why)
    return table
