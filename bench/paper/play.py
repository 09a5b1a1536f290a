"""Runs: an episode of a cell under a route, its figures, and paired comparisons over episodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from bench.paper.routes import ROUTES
from llmrouter.sim.run import simulate
from llmrouter.study.statistics import half_width, mean_of, paired_change

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from bench.paper.cells import PaperCell
    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.study.statistics import Change

BASE = "RoundRobin"

FIGURES = ("makespan_s", "e2e_mean_s", "ttft_mean_s", "tpot_mean_s", "router_wait_mean_s", "preemptions")
"""Of an episode: seconds, and preemptions in all."""

CHANGES = ("makespan_s", "e2e_mean_s", "ttft_mean_s")
"""Figures whose paired change against round-robin is given."""


@dataclass(frozen=True, slots=True)
class Row:
    """A route over all episodes: every figure of each, and its paired change in percent against round-robin."""

    route: str
    episodes: dict[str, list[float]]
    changes: dict[str, Change]

    def mean(self, figure: str) -> float:
        """Mean of a figure over the episodes."""
        return float(np.mean(self.episodes[figure]))

    def interval(self, figure: str) -> float | None:
        """Half-width of its 95 % interval."""
        return half_width(self.episodes[figure])


def figures(outcomes: Outcomes) -> dict[str, float]:
    """The figures of an episode, over all its requests.

    Raises:
        RuntimeError: a request did not finish: the paper's makespan needs them all.
    """
    if not outcomes.finished.all():
        raise RuntimeError(f"{int((~outcomes.finished).sum())} of {len(outcomes.status)} requests did not finish")
    return {
        "makespan_s": outcomes.makespan_s,
        "e2e_mean_s": float(outcomes.e2e_s.mean()),
        "ttft_mean_s": float(outcomes.ttft_s.mean()),
        "tpot_mean_s": float(np.nanmean(outcomes.tpot_s)),
        "router_wait_mean_s": float(outcomes.wait_s.mean()),
        "preemptions": float(outcomes.preemptions.sum()),
    }


def episode(cell: PaperCell, route: str, seed: int) -> dict[str, float]:
    """One episode of a cell under a route."""
    chosen = ROUTES[route]
    workload = cell.workload(seed, chosen.lengths)
    return figures(simulate(cell.setup, workload, chosen.make(), seed=seed))


def rows(
    cell: PaperCell, routes: Sequence[str], seeds: Sequence[int], on_done: Callable[[int], None] = lambda _done: None
) -> list[Row]:
    """A row for each route, round-robin first; every route meets the same episodes."""
    made: dict[str, list[dict[str, float]]] = {}
    for route in dict.fromkeys((BASE, *routes)):
        made[route] = []
        for seed in seeds:
            made[route].append(episode(cell, route, seed))
            on_done(1)
    return compared(made)


def compared(made: dict[str, list[dict[str, float]]]) -> list[Row]:
    """Rows from the figures of every episode, by route; changes are against ``BASE``."""
    columns = {route: {name: [one[name] for one in ran] for name in ran[0]} for route, ran in made.items()}
    base = columns[BASE]
    return [
        Row(route, own, {name: paired_change(own[name], base[name]) for name in CHANGES if name in own})
        for route, own in columns.items()
    ]


def as_json(row: Row) -> dict[str, object]:
    """A row for the report's file."""
    changes: dict[str, object] = {}
    for name, change in row.changes.items():
        key = name.removesuffix("_s")
        changes[f"{key}_pct"], changes[f"{key}_pct_ci95"] = change.percent, change.half_width
    means = {name: mean_of(values) for name, values in row.episodes.items()}
    intervals = {f"{name}_ci95": row.interval(name) for name in row.episodes}
    return {"route": row.route, **means, **intervals, **changes}
