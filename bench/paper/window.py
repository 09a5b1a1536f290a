"""How much a choice among several queued requests could win in the paper's cells: bounds by rules.

    .venv/bin/python -m bench.paper.window [--seeds N] [--only CELL …] [--json FILE]

``llmrouter.training.agents.window`` has the rule: of the first k of the line, the request and the instance of the least
cost, batch-hold included; *longest* prefers long answers instead. Once with what the paper's bucket classifier says,
once with true lengths. *All there from the start* plays the same requests as if they had all arrived with the first,
with true lengths, against round-robin on the real arrivals: what no router could reach, who must wait for them. Seeds
are 1,100 and on of the selection block; changes are against round-robin acting as often as the paper's does there.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from bench.paper.agents import EPOCHS, FIRST_DEVELOPMENT_SEED, MOST_SEEDS, NO_WATERMARK
from bench.paper.cells import a100, a100_chunked
from llmrouter.arrivals import predictions
from llmrouter.errors import InvalidInputError
from llmrouter.sim.run import simulate
from llmrouter.study.progress import progress
from llmrouter.study.statistics import half_width
from llmrouter.training.agents import rollout
from llmrouter.training.agents.environment import TICK_S, Decider, Environment
from llmrouter.training.agents.judged import ROUND_ROBIN, ends_s, makespan_s, mean_e2e_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bench.paper.cells import PaperCell
    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.sim.workload import Workload

WINDOWS = (1, 8, 32, 128)
LONGEST_HOLD_S = 1e9
FIGURES = ("makespan_pct", "e2e_pct", "p99_pct")


@dataclass(frozen=True, slots=True)
class Place:
    """Where the rule is played: at decision epochs, and round-robin every ``tick_s`` as the paper's."""

    environment: Environment
    tick_s: float = TICK_S

    def round_robin(self, seed: int) -> Outcomes:
        """Round-robin on the requests of a seed."""
        paced = replace(self.environment, tick_s=self.tick_s)
        return simulate(paced.setup, paced.workload(seed), ROUND_ROBIN, seed=seed)


def on(paper: PaperCell) -> Place:
    """A cell of the paper."""
    source = replace(EPOCHS.source, engine=paper.engine)
    made = Environment(source=source, instances=paper.instances, requests=paper.requests, rate_rps=paper.rate_rps)
    return Place(made, paper.tick_s)


CELLS = {
    "v100": Place(EPOCHS),
    "no-watermark": Place(NO_WATERMARK),
    "a100": on(a100()),
    "a100-chunked": on(a100_chunked()),
}
"""By the name that ``--only`` takes."""


@dataclass(frozen=True, slots=True)
class Row:
    """A rule of the table."""

    title: str
    window: int
    cost: float = 1.0
    longest: float = 0.0
    true_lengths: bool = False
    from_start: bool = False

    @property
    def decider(self) -> Decider:
        """Who decides: cost, regret, size, age and room, in the order of ``window``'s weights."""
        weights = np.array([self.cost, 1.0 - self.cost, -self.longest, 0.1, 0.0])
        hold_s = LONGEST_HOLD_S if self.window > 1 else Decider(rollout.WINDOW).longest_hold_s
        return Decider(rollout.WINDOW, weights, window=self.window, longest_hold_s=hold_s)


ROWS = (
    *(
        Row(f"{window} of the line{', true lengths' if true else ''}", window, true_lengths=true)
        for window in WINDOWS
        for true in (False, True)
    ),
    Row("128 of the line, longest first, true lengths", 128, cost=0.0, longest=1.0, true_lengths=True),
    Row("all there from the start, in their order", 1, true_lengths=True, from_start=True),
    Row("all there from the start, cheapest of 32", 32, true_lengths=True, from_start=True),
    Row("all there from the start, longest of 128", 128, cost=0.0, longest=5.0, true_lengths=True, from_start=True),
)


def requests_of(environment: Environment, row: Row, seed: int) -> Workload:
    """The requests of a seed as the rule is told of them."""
    made = environment.workload(seed)
    if row.true_lengths:
        made = made.with_predictions(predictions.oracle(made))
    if row.from_start:
        first_s = float(made.arrived_at_s.min())
        made = replace(made, arrived_at_s=np.linspace(first_s, first_s + 1e-3, len(made)))
    return made


def changes(environment: Environment, row: Row, seed: int, base: Outcomes) -> list[float]:
    """``FIGURES`` of an episode against round-robin's; only the makespan where the requests were all there."""
    outcomes = environment.play(row.decider, seed, workload=requests_of(environment, row, seed)).outcomes
    pairs = [(makespan_s(outcomes), makespan_s(base))]
    if not row.from_start:
        pairs += [(mean_e2e_s(outcomes), mean_e2e_s(base)), (p99_s(outcomes), p99_s(base))]
    return [100.0 * (value / reference - 1.0) for value, reference in pairs]


def p99_s(outcomes: Outcomes) -> float:
    """The 99th percentile of E2E."""
    return float(np.percentile(ends_s(outcomes) - outcomes.workload.arrived_at_s, 99))


def table_of(name: str, found: Sequence[tuple[str, list[list[float]]]]) -> Table:
    """A row for each rule: means over the seeds and half-widths of their 95 % intervals."""
    table = Table(box=box.MARKDOWN, title=f"{name}: against round-robin")
    for heading in ("chooses among", "makespan %", "mean E2E %", "p99 E2E %"):
        table.add_column(heading, no_wrap=True)
    for title, rows in found:
        columns = list(zip(*rows, strict=True))
        shown = [f"{np.mean(one):+.1f} ± {half_width(one) or 0.0:.1f}" for one in columns]
        table.add_row(title, *shown, *[""] * (len(FIGURES) - len(shown)))
    return table


def arguments(given: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m bench.paper.window", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--seeds", type=int, default=10, help="episodes of each row (default: %(default)s)")
    add("--only", nargs="+", choices=tuple(CELLS), default=tuple(CELLS), metavar="CELL", help="cells (default: all)")
    add("--json", type=Path, default=Path("build/bench/paper_window.json"), help="file (default: %(default)s)")
    return parser.parse_args(given)


def main(given: Sequence[str] | None = None) -> int:
    """Exit status 2, with one line, on bad input."""
    options = arguments(given)
    try:
        check(options)
    except InvalidInputError as error:
        print(error, file=sys.stderr)
        return 2
    seeds = range(FIRST_DEVELOPMENT_SEED, FIRST_DEVELOPMENT_SEED + options.seeds)
    found: dict[str, list[tuple[str, list[list[float]]]]] = {name: [] for name in options.only}
    with progress("window", len(options.only) * len(ROWS), unit="rows") as advance:
        for name in options.only:
            place = CELLS[name]
            bases = [place.round_robin(seed) for seed in seeds]
            for row in ROWS:
                pairs = zip(seeds, bases, strict=True)
                rows = [changes(place.environment, row, seed, base) for seed, base in pairs]
                found[name].append((row.title, rows))
                advance(1)
    console = Console(width=150)
    for name, shown in found.items():
        console.print(table_of(name, shown))
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"seeds": list(seeds), "figures": FIGURES, "cells": found}) + "\n")
    return 0


def check(options: argparse.Namespace) -> None:
    """Raises InvalidInputError where a bound is broken."""
    if not 1 <= options.seeds <= MOST_SEEDS:
        raise InvalidInputError(f"--seeds must be 1 to {MOST_SEEDS}, not {options.seeds}")


if __name__ == "__main__":
    sys.exit(main())
