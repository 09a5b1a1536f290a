"""The capacity C of a pool: the highest rate at which round-robin keeps up."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.errors import InvalidInputError
from llmrouter.routing.rules import Rule
from llmrouter.sim.run import simulate
from llmrouter.sim.setup import CompiledPolicy

if TYPE_CHECKING:
    from collections.abc import Callable

    from llmrouter.sim.outcomes import Outcomes
    from llmrouter.sim.setup import Setup
    from llmrouter.sim.workload import Workload

MAX_LATE_TTFT_S = 1.0
"""A rate is sustained if the mean TTFT of the last quarter of the requests stays below this."""

ROUND_ROBIN = CompiledPolicy(rule=Rule.ROUND_ROBIN, max_requests=1_000_000_000)
"""Instances in turn, whatever they carry: engines queue by themselves."""


def late_ttft_s(outcomes: Outcomes) -> float:
    """Mean TTFT of the last quarter of the requests by arrival; infinite where one of them got no token."""
    order = np.argsort(outcomes.arrived_at_s, kind="stable")
    late = outcomes.ttft_s[order[len(order) * 3 // 4 :]]
    return float("inf") if np.isnan(late).any() else float(late.mean())


def capacity_rps(
    setup: Setup,
    workload_at: Callable[[float], Workload],
    *,
    tolerance: float = 0.01,
    start_rps: float = 1.0,
) -> float:
    """The highest rate that round-robin sustains, found by doubling and bisection to a relative ``tolerance``.

    ``workload_at`` makes a long run of arrivals at a rate; its requests should be the same but for their times.

    Raises:
        InvalidInputError: a bad bound, or nothing down to a thousandth of the start is sustained.
    """
    if not (start_rps > 0 and 0 < tolerance < 1):
        raise InvalidInputError(f"start_rps {start_rps} must be positive and tolerance {tolerance} between 0 and 1")

    def sustained(rate_rps: float) -> bool:
        return late_ttft_s(simulate(setup, workload_at(rate_rps), ROUND_ROBIN)) < MAX_LATE_TTFT_S

    lowest_rps = start_rps / 1_000
    found_rps = highest_rate(sustained, start_rps, lowest_rps=lowest_rps, tolerance=tolerance)
    if found_rps is None:
        raise InvalidInputError(f"round-robin sustains no rate down to {lowest_rps:g} requests a second")
    return found_rps


def highest_rate(
    meets: Callable[[float], bool],
    start_rps: float,
    *,
    lowest_rps: float,
    highest_rps: float = float("inf"),
    tolerance: float = 0.01,
) -> float | None:
    """The highest rate that ``meets`` accepts, by doubling or halving from ``start_rps`` and then bisection.

    To a relative ``tolerance``; ``None`` where nothing down to ``lowest_rps`` is accepted. The search ends beyond
    ``highest_rps``: there are runs of so few requests that no rate is too high.
    """
    low_rps, high_rps = start_rps, start_rps * 2
    if meets(start_rps):
        while meets(high_rps):
            low_rps, high_rps = high_rps, high_rps * 2
            if low_rps > highest_rps:
                return low_rps
    else:
        accepted = False
        while not accepted:
            low_rps, high_rps = low_rps / 2, low_rps
            if low_rps < lowest_rps:
                return None
            accepted = meets(low_rps)
    while high_rps - low_rps > tolerance * low_rps:
        middle_rps = (low_rps + high_rps) / 2
        if meets(middle_rps):
            low_rps = middle_rps
        else:
            high_rps = middle_rps
    return low_rps
