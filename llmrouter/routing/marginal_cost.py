"""The calibrated marginal cost as a scorer: ``rules.marginal_cost_row``, which has the formula, over arrays.

The ONNX model ``models/policy/marginal-cost`` is this function, operator by operator; export fails unless they agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.domain import DECODE_RESERVE_FRACTION
from llmrouter.routing import rules
from llmrouter.routing.features import FEATURE_NAMES, check_score_shapes
from llmrouter.routing.rules import marginal_cost_row, queued_prefill_s

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

_COLUMN = {name: index for index, name in enumerate(FEATURE_NAMES)}


def marginal_costs(rows: Sequence[Sequence[float]], weights: Sequence[float]) -> list[float]:
    """Cost in seconds of each candidate, for its feature rows, with weights in the order of ``WEIGHT_NAMES``."""
    backlog_s = sum(map(queued_prefill_s, rows)) / max(1, len(rows))
    return [marginal_cost_row(row, weights, backlog_s) for row in rows]


def marginal_cost_columns(rows_IF: NDArray[np.float64], weights: Sequence[float]) -> NDArray[np.float64]:
    """``marginal_costs`` of feature rows (I, F), at least one: (I,), bit for bit.

    ``rules.marginal_cost_row`` operation by operation, all rows at once; a law holds the two against each other.
    """
    n, context, queued, remaining, p, d = (rows_IF[:, place] for place in range(rules.KV))
    b, g1, squared, g2, g3, first = (rows_IF[:, place] for place in range(rules.BASE, rules.CACHED))
    slots, cached = rows_IF[:, rules.SLOTS], rows_IF[:, rules.CACHED]
    backlog_s = float(np.cumsum(g1 * queued)[-1]) / len(rows_IF)
    n_or_1 = np.maximum(n, 1.0)
    crowd_s = g3 * n + g2 * context
    kv_deficit = context + p + DECODE_RESERVE_FRACTION * (remaining + d) - rows_IF[:, rules.KV]
    slot_deficit = n + 1.0 - slots
    shares = np.maximum(0.0, kv_deficit) / np.maximum(context, 1.0) + np.maximum(0.0, slot_deficit) / n_or_1
    overflows = (kv_deficit > 0.0) | (slot_deficit > 0.0)
    overflow_s = np.where(overflows, (b + crowd_s) * (remaining / n_or_1) * shares, 0.0)
    prefill_s = g1 * (p - cached) + squared * (p * p - cached * cached)
    crowded_s = crowd_s + g3 + g2 * p
    decode_s = prefill_s + d * (crowded_s + b)
    slowdown_s = n * d * (g3 + g2 * (p + 0.5 * d))
    coalesce_s = np.where(queued <= 0.0, n * b * first, 0.0)
    spread_s = d * crowded_s * crowded_s / np.maximum(b, rules.LEAST_BASE_S)
    costs_I: NDArray[np.float64] = (
        weights[0] * g1 * queued
        + weights[1] * decode_s
        + weights[2] * (1.0 + weights[7] * backlog_s) * n * prefill_s
        + weights[3] * slowdown_s
        + weights[4] * coalesce_s
        + weights[5] * overflow_s
        + weights[6] * spread_s
        - weights[8] * (g1 * cached + squared * cached * cached)
    )
    return costs_I


def marginal_cost(features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
    """Costs in seconds, shape (I,), for features (I, F) and weights (W,); lower is better."""
    return np.array(marginal_costs(features_IF.tolist(), weights_W.tolist()), dtype=np.float32)


class FormulaScorer:
    """The formula as a scorer: what the ONNX model is held against."""

    digest = "formula"
    provider = "numpy"

    def score(self, features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
        """See ``marginal_cost``; raises ModelRejectedError on a wrong shape."""
        check_score_shapes(features_IF, weights_W)
        return marginal_cost(features_IF, weights_W)


def column(name: str) -> int:
    """Index of a feature; raises KeyError for a name that is none."""
    return _COLUMN[name]
