"""The capacity C of a pool: the highest rate at which round-robin keeps up."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from llmrouter.errors import InvalidInputError
from llmrouter.sim.run import simulate

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from llmrouter.domain import EngineProfile, Request
    from llmrouter.sim.run import Arrival, Outcome

MAX_LATE_TTFT_S = 1.0
"""A rate is sustained if the mean TTFT of the last quarter of the requests stays below this."""


def round_robin(instances: int) -> Callable[[Request, float], int]:
    """A ``choose`` that takes the instances in turn."""
    turn = itertools.cycle(range(instances))
    return lambda _request, _now_s: next(turn)


def late_ttft_s(outcomes: Sequence[Outcome]) -> float:
    """Mean TTFT of the last quarter of the requests by arrival."""
    ordered = sorted(outcomes, key=lambda outcome: outcome.arrived_at_s)
    late = ordered[len(ordered) * 3 // 4 :]
    return sum(outcome.ttft_s for outcome in late) / len(late)


def capacity_rps(
    profiles: Sequence[EngineProfile],
    arrivals_at: Callable[[float], Sequence[Arrival]],
    *,
    tolerance: float = 0.01,
    start_rps: float = 1.0,
) -> float:
    """The highest rate that round-robin sustains, found by doubling and bisection to a relative ``tolerance``.

    ``arrivals_at`` makes a long run of arrivals at a rate; its arrivals should be the same but for their times.

    Raises:
        InvalidInputError: no engine, a bad bound, or nothing down to a thousandth of the start is sustained.
    """
    if not profiles:
        raise InvalidInputError("a pool without engines has no capacity")
    if not (start_rps > 0 and 0 < tolerance < 1):
        raise InvalidInputError(f"start_rps {start_rps} must be positive and tolerance {tolerance} between 0 and 1")

    def sustained(rate_rps: float) -> bool:
        outcomes = simulate(profiles, arrivals_at(rate_rps), round_robin(len(profiles)))
        return late_ttft_s(outcomes) < MAX_LATE_TTFT_S

    low_rps = start_rps
    while not sustained(low_rps):
        low_rps /= 2
        if low_rps < start_rps / 1_000:
            raise InvalidInputError(f"round-robin sustains no rate down to {low_rps:g} requests a second")
    high_rps = low_rps * 2
    while sustained(high_rps):
        low_rps, high_rps = high_rps, high_rps * 2
    while high_rps - low_rps > tolerance * low_rps:
        middle_rps = (low_rps + high_rps) / 2
        if sustained(middle_rps):
            low_rps = middle_rps
        else:
            high_rps = middle_rps
    return low_rps
