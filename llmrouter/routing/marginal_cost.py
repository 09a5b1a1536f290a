"""The calibrated marginal cost as a scorer: ``rules.marginal_cost_row``, which has the formula, over arrays.

The ONNX model ``models/policy/marginal-cost`` is this function, operator by operator; export fails unless they agree.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from llmrouter.routing.features import FEATURE_NAMES, check_score_shapes
from llmrouter.routing.rules import marginal_cost_row

if TYPE_CHECKING:
    from numpy.typing import NDArray

_COLUMN = {name: index for index, name in enumerate(FEATURE_NAMES)}


def marginal_cost(features_IF: NDArray[np.float32], weights_W: NDArray[np.float32]) -> NDArray[np.float32]:
    """Costs in seconds, shape (I,), for features (I, F) and weights (imposed, coalesce, overflow); lower is better."""
    weights = weights_W.tolist()
    return np.array([marginal_cost_row(row, weights) for row in features_IF.tolist()], dtype=np.float32)


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
