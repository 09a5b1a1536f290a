"""The calibrated marginal cost as a scorer: ``rules.marginal_cost_row``, which has the formula, over arrays.

The ONNX model ``models/policy/marginal-cost`` is this function, operator by operator; export fails unless they agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

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
