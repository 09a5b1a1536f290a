"""The calibrated marginal cost: the seconds a request would take on an instance, and cost everyone else there.

For request i (prompt tokens p, expected output tokens d) and instance j (n requests with C context tokens, Q of them
still to prefill, R predicted tokens to decode; step time ``b + g3·n + g2·C``, prefill ``g1·p + g1b·p²``):

    step     = b + g3·n + g2·C
    drain    = step · R / n                          seconds until the mean request in flight ends (0 if idle)
    overflow = drain · (max(0, C + p + r·(R + d) − K) / C + max(0, n + 1 − max) / n)
    own      = overflow + g1·Q + d·(g3·n + g2·C) + d·(b + g3 + g2·p) + g1·p + g1b·p²
    imposed  = n·(g1·p + g1b·p²) + n·v·(g3 + g2·(p + v/2)),    v = min(d, R/n)
    coalesce = n·b if the engine runs prefill-only steps and has no queued prefill, else 0
    cost     = own + w_imposed·imposed + w_coalesce·coalesce + w_overflow·overflow

``imposed`` is the slowdown of the n requests that share the batch: the prompt stalls each of them once, and for v steps
(while the mean one still runs) every step is longer by the new sequence and its growing context. The ONNX model
``models/policy/marginal-cost`` is this function, operator by operator; export fails unless they agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.features import FEATURE_NAMES, check_score_shapes

if TYPE_CHECKING:
    from numpy.typing import NDArray

DECODE_RESERVE_FRACTION = 0.15
"""r: the share of the predicted tokens to come that is counted against KV now; most of it is freed before it fills."""

_COLUMN = {name: index for index, name in enumerate(FEATURE_NAMES)}


def marginal_cost(features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
    """Costs in seconds, shape (I,), for features (I, F) and weights (imposed, coalesce, overflow); lower is better."""
    columns_FI = features_IF.astype(np.float64).T
    n, context, queued, remaining, p, d, kv, slots, b, g1, g1b, g2, g3, prefill_first = columns_FI
    w_imposed, w_coalesce, w_overflow = weights_W.astype(np.float64)

    n_or_1, context_or_1 = np.maximum(n, 1.0), np.maximum(context, 1.0)
    left = remaining / n_or_1
    drain_s = (b + g3 * n + g2 * context) * left
    kv_deficit = np.maximum(0.0, context + p + DECODE_RESERVE_FRACTION * (remaining + d) - kv)
    slot_deficit = np.maximum(0.0, n + 1.0 - slots)
    overflow_s = drain_s * (kv_deficit / context_or_1 + slot_deficit / n_or_1)

    prefill_s = g1 * p + g1b * p * p
    own_s = overflow_s + g1 * queued + d * (g3 * n + g2 * context) + d * (b + g3 + g2 * p) + prefill_s
    overlap = np.minimum(d, left)
    imposed_s = n * prefill_s + n * overlap * (g3 + g2 * (p + 0.5 * overlap))
    coalesce_s = n * b * prefill_first * (queued <= 0.0)
    cost_s = own_s + w_imposed * imposed_s + w_coalesce * coalesce_s + w_overflow * overflow_s
    result_I: NDArray[np.float32] = cost_s.astype(np.float32)
    return result_I


class FormulaScorer:
    """The formula as a scorer: what the simulator uses, and what the ONNX model is held against."""

    digest = "formula"
    provider = "numpy"

    def score(self, features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
        """See ``marginal_cost``; raises ModelRejectedError on a wrong shape."""
        check_score_shapes(features_IF, weights_W)
        return marginal_cost(features_IF, weights_W)


def column(name: str) -> int:
    """Index of a feature; raises KeyError for a name that is none."""
    return _COLUMN[name]
