"""Fairness between tenants: the virtual token counter of Sheng et al. (OSDI 2024), over held requests.

Each tenant has a counter of the weighted tokens it was served: prompt tokens once, predicted output tokens twice, over
its weight. The tenant with the least counter has the next turn. A tenant that comes back to the queue is lifted to the
least counter of those that have held requests there, or where there are none to that of the one who was served last, so
that absence earns no credit.

The paper charges each generated token as it comes; here the predicted ones are charged with the dispatch, and what the
answer turned out to be is not settled afterwards: a tenant whose answers are longer than predicted gets more than its
share by as much. Counters are each router's own, per model.

The formulas are numbers only: the router calls them as they stand, the simulator compiles them.
"""

from __future__ import annotations

PROMPT_WEIGHT = 1.0
OUTPUT_WEIGHT = 2.0
"""What a prompt token and an output token count; the paper's example, after what they are sold for."""

DEFAULT_WEIGHT = 1.0
LEAST_WEIGHT = 0.001
MOST_WEIGHT = 1000.0


def charged(served: float, prompt_tokens: float, predicted_output_tokens: float, weight: float) -> float:
    """A tenant's counter after one more dispatch."""
    return served + (PROMPT_WEIGHT * prompt_tokens + OUTPUT_WEIGHT * predicted_output_tokens) / weight


def lifted(served: float, least_active: float) -> float:
    """The counter of a tenant that comes back, no lower than the least active one."""
    return max(served, least_active)


def may_join(held_by_tenant: int, held: int, max_held: int) -> bool:
    """Whether a tenant may have one more request held: while it holds fewer than there are free places.

    Alone a tenant can hold half of the queue, two that send everything a third each: a place is left for the next one.
    """
    return held_by_tenant < max_held - held
