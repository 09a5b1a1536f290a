"""The tables of arXiv 2408.13510 beside ours, in simulation.

    .venv/bin/python -m bench.paper [--quick] [--seeds N] [--first-seed K] [--json FILE]

Every cell of the paper whose routes are rules: four and eight V100, four A100 without and with chunked prefill, the
production trace, the impact of mixing, the two-instance study, the in-engine orders, and what each inferred choice is
worth. Its learned agents are printed, not run. Tables go to standard output, progress to standard error, everything to
JSON.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from bench.paper import cells, claims, mixing, printed, tables, two_instances, variations
from bench.paper.assumptions import ASSUMPTIONS
from bench.paper.play import as_json, rows
from bench.paper.routes import PROBES
from llmrouter.errors import InvalidInputError
from llmrouter.study.progress import progress
from llmrouter.study.seeds import block_of

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from bench.paper.cells import PaperCell
    from bench.paper.play import Row

QUICK_SEEDS = 3
ORDER_ROUTES = ("RoundRobin", "JSQ", "DecodeBalancer")


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK_SEEDS} episodes of everything")
    parser.add_argument("--seeds", type=int, default=20, help="episodes of every cell (default: %(default)s)")
    parser.add_argument("--first-seed", type=int, default=0, help="seed of the first (default: %(default)s)")
    parser.add_argument("--json", type=Path, default=Path("build/bench/paper.json"), help="file (default: %(default)s)")
    return parser.parse_args(given)


def run(seeds: Sequence[int], console: Console) -> dict[str, object]:
    """Runs and prints everything; returns the report."""
    found_cells = _cells(seeds, console)
    orders = _orders(seeds, console)
    measured = mixing.measure()
    console.print(tables.mixing_table(measured))
    two = _two_instances(seeds, console)
    varied = _variations(seeds, console)
    console.print(tables.assumptions_table())
    held = claims.of_all(found_cells, measured, two, varied)
    console.print(tables.claims_table(held))
    return {
        "claims": [asdict(claim) for claim in held],
        "cells": {cell.name: _cell_report(cell, found_cells[cell.name]) for cell in cells.all_cells()},
        "orders": _listed(orders),
        "mixing": {**asdict(measured), "paper_s": [printed.MIXING_ALONE_S, printed.MIXING_JOINED_S]},
        "two_instances": {"ours": _scenarios(two), "paper_s": printed.TWO_INSTANCES_S},
        "variations": {name: _listed(found) for name, found in varied.items()},
        "assumptions": [asdict(one) for one in ASSUMPTIONS],
    }


def _cells(seeds: Sequence[int], console: Console) -> dict[str, list[Row]]:
    found = {}
    for cell in cells.all_cells():
        with progress(cell.name, len(cell.routes) * len(seeds), unit="episodes") as on_done:
            found[cell.name] = rows(cell, cell.routes, seeds, on_done)
        console.print(tables.cell_table(cell, found[cell.name]))
    return found


def _cell_report(cell: PaperCell, found: Sequence[Row]) -> dict[str, object]:
    return {
        "title": cell.title,
        "rows": [{**as_json(row), "paper": tables.verdict(cell, row)} for row in found],
        "paper_makespan_s": dict(cell.printed_s),
        "paper_makespan_pct": dict(cell.printed_pct),
    }


def _orders(seeds: Sequence[int], console: Console) -> dict[str, list[Row]]:
    by_order = cells.ordered_cells()
    with progress("in-engine orders", len(by_order) * len(ORDER_ROUTES) * len(seeds), unit="episodes") as on_done:
        found = {order.value: rows(cell, ORDER_ROUTES, seeds, on_done) for order, cell in by_order.items()}
    console.print(tables.orders_table(found))
    return found


def _two_instances(seeds: Sequence[int], console: Console) -> dict[str, list[list[Row]]]:
    with progress("two instances", two_instances.runs(seeds), unit="episodes") as on_done:
        found = two_instances.study(seeds, on_done=on_done)
    console.print(tables.two_instances_table(found))
    return found


def _variations(seeds: Sequence[int], console: Console) -> dict[str, dict[str, list[Row]]]:
    found = {}
    for name, varied in variations.all_variations().items():
        with progress(f"variations of {name}", len(varied) * len(PROBES) * len(seeds), unit="episodes") as on_done:
            found[name] = {title: rows(cell, PROBES, seeds, on_done) for title, cell in varied.items()}
        console.print(tables.variations_table(name, found[name]))
    return found


def _scenarios(found: Mapping[str, Sequence[Sequence[Row]]]) -> dict[str, object]:
    return {
        order: {name: [as_json(row) for row in of] for name, of in zip(printed.SCENARIOS, scenarios, strict=True)}
        for order, scenarios in found.items()
    }


def _listed(found: Mapping[str, Sequence[Row]]) -> dict[str, object]:
    return {name: [as_json(row) for row in of] for name, of in found.items()}


def main() -> int:
    """Exit status 2, with one line, on bad input."""
    options = arguments()
    count = QUICK_SEEDS if options.quick else options.seeds
    try:
        block_of(options.first_seed, count, final=False)
        seeds = list(range(options.first_seed, options.first_seed + count))
        report = run(seeds, Console(width=None if sys.stdout.isatty() else 190))
    except InvalidInputError as error:
        print(error, file=sys.stderr)
        return 2
    command = " ".join(("python -m bench.paper", *sys.argv[1:]))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"command": command, "seeds": seeds, **report}, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
