"""Rules: policies that are one formula over an instance's features, the smallest score first.

Every formula is written once, over a row ``x`` of features in the order of ``FEATURE_NAMES``: the router calls it as it
stands, the simulator compiles it. So these functions use numbers and the columns below, and nothing else.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

REQUESTS = 0
CONTEXT = 1
QUEUED = 2
REMAINING = 3
PROMPT = 4
PREDICTED = 5
KV = 6
SLOTS = 7
BASE = 8
PREFILL = 9
PREFILL_SQUARED = 10
CONTEXT_S = 11
SEQUENCE_S = 12
PREFILL_FIRST = 13


class Rule(IntEnum):
    """The rules by number, as the compiled simulator knows them; the first three are no scores but procedures."""

    ROUND_ROBIN = 0
    RANDOM = 1
    POWER_OF_TWO = 2
    LEAST_IN_FLIGHT = 3
    MARGINAL_COST = 4
    LEAST_KV_TOKENS = 5
    LMETRIC = 6


def least_in_flight(x: Sequence[float]) -> float:
    """Requests in flight."""
    return x[REQUESTS]


def least_kv_tokens(x: Sequence[float]) -> float:
    """Context tokens in flight: what the KV cache holds or is about to."""
    return x[CONTEXT]


def lmetric(x: Sequence[float]) -> float:
    """Prefill tokens including the request's own, times the batch size with it: ``(Q + p)·(n + 1)``."""
    return (x[QUEUED] + x[PROMPT]) * (x[REQUESTS] + 1.0)


def score(rule: int, x: Sequence[float], weights: Sequence[float]) -> float:
    """The score of one instance under a rule that has one; lower is better."""
    if rule == 4:  # noqa: PLR2004 - Rule.MARGINAL_COST
        return marginal_cost_row(x, weights)
    if rule == 5:  # noqa: PLR2004 - Rule.LEAST_KV_TOKENS
        return least_kv_tokens(x)
    if rule == 6:  # noqa: PLR2004 - Rule.LMETRIC
        return lmetric(x)
    return least_in_flight(x)


def marginal_cost_row(x: Sequence[float], weights: Sequence[float]) -> float:
    """See ``routing/marginal_cost.py``, which explains the formula; seconds."""
    n, context, remaining, p, d = x[REQUESTS], x[CONTEXT], x[REMAINING], x[PROMPT], x[PREDICTED]
    b, g2, g3 = x[BASE], x[CONTEXT_S], x[SEQUENCE_S]
    n_or_1 = max(n, 1.0)
    left = remaining / n_or_1
    kv_deficit = max(0.0, context + p + 0.15 * (remaining + d) - x[KV])
    slot_deficit = max(0.0, n + 1.0 - x[SLOTS])
    drain_s = (b + g3 * n + g2 * context) * left
    overflow_s = drain_s * (kv_deficit / max(context, 1.0) + slot_deficit / n_or_1)
    prefill_s = x[PREFILL] * p + x[PREFILL_SQUARED] * p * p
    own_s = overflow_s + x[PREFILL] * x[QUEUED] + d * (g3 * n + g2 * context) + d * (b + g3 + g2 * p) + prefill_s
    overlap = min(d, left)
    imposed_s = n * prefill_s + n * overlap * (g3 + g2 * (p + 0.5 * overlap))
    coalesce_s = n * b * x[PREFILL_FIRST] if x[QUEUED] <= 0.0 else 0.0
    return own_s + weights[0] * imposed_s + weights[1] * coalesce_s + weights[2] * overflow_s
